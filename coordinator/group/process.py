"""The main program of a worker that is a plain process: framed requests on stdin, framed replies on stdout."""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading

from coordinator import framing
from coordinator.group.group import SHARD_WORKER
from coordinator.parent import die_with_parent

# The first byte of a frame on stdin.
REQUEST = b"R"
BEAT = b"B"

_READ_BYTES = 1 << 18


def main() -> None:
    """Hosts a worker until stdin closes. A reading thread answers beats while a request is at work."""
    parser = argparse.ArgumentParser(prog="python -m coordinator.group.process")
    parser.add_argument("--handler", default=SHARD_WORKER)
    parser.add_argument("--node", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    die_with_parent(arguments.parent)

    # Whatever a library prints must not stand among the replies.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    # After the arguments, so that a wrong one is answered at once.
    from coordinator.group.host import Host

    host = Host(arguments.handler, arguments.node, arguments.host)
    requests: queue.Queue[bytes] = queue.Queue(maxsize=2)

    def read() -> None:
        frames, stdin = framing.Frames(), sys.stdin.fileno()
        try:
            # Not through sys.stdin: its lock, held while it waits, would stop the interpreter's end.
            while data := os.read(stdin, _READ_BYTES):
                for frame in frames.feed(data):
                    if frame[:1] == BEAT:
                        host.beat()
                    else:
                        requests.put(frame[1:])
        except framing.FrameError as error:
            print(f"worker {os.getpid()}: {error}", file=sys.stderr)
        os._exit(0)

    threading.Thread(target=read, name="requests", daemon=True).start()
    while True:
        reply = memoryview(framing.pack(host.handle(requests.get())))
        while reply:
            reply = reply[replies.write(reply) or 0 :]


if __name__ == "__main__":
    main()
