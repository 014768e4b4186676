"""The agent: the daemon beside the Ray head. It starts a coordinator for each wished run and carries their events to the
API server. It holds no state of its own: wishes come from the server, events lie in the spools."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import uuid
from pathlib import Path

import structlog

from coordinator.children import Launch, Warm
from coordinator.connection import Connection, Refused
from coordinator.exit_codes import EXIT_REFUSED
from coordinator.logs import configure
from coordinator.outbox import Outbox
from coordinator.preflight import write_marker
from coordinator.reconciler import Reconciler
from worker import failpoints


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m coordinator.agent", description=__doc__)
    parser.add_argument("--server", required=True, help="HOST:PORT of the API server's listener for agents")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the agents' token")
    parser.add_argument("--files", type=Path, required=True, help="the files/ folder that all nodes share")
    parser.add_argument("--ray-address", default="", help="HOST:PORT of the Ray head")
    parser.add_argument("--take-over", action="store_true", help="fence the agent that is connected now")
    parser.add_argument(
        "--slots", type=int, default=len(os.sched_getaffinity(0)), help="worker slots, where workers are processes"
    )
    arguments = parser.parse_args(argv)
    # For the fault tests: "local" makes workers plain processes of this machine.
    arguments.group = os.environ.get("LOCKSTEP_GROUP", "ray")
    if arguments.group not in ("ray", "local"):
        parser.error(f"LOCKSTEP_GROUP: got {arguments.group}; it must be ray or local")
    if arguments.group == "ray" and not arguments.ray_address:
        parser.error("--ray-address: the HOST:PORT of the Ray head must be given")
    return arguments


async def serve(arguments: argparse.Namespace) -> int:
    """Runs until the agent is refused or told to stop; returns the exit code."""
    log = structlog.get_logger().bind(process="agent")
    if failpoints.allowed():
        log.warning("failpoints are allowed: runs may be told to come to harm", variable=failpoints.ALLOW)
    write_marker(arguments.files, uuid.uuid4().hex)
    changed = asyncio.Event()
    outbox = Outbox(arguments.files / "spool")
    warm = Warm(Launch(arguments.files, arguments.group, arguments.ray_address, arguments.slots), changed)
    reconciler = Reconciler(arguments.files, outbox, warm, changed)
    connection = Connection(arguments.server, arguments.token_file, arguments.take_over, outbox, reconciler, warm, changed)

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    tasks = [asyncio.ensure_future(part) for part in (connection.keep(), warm.keep(), reconciler.keep(), stopped.wait())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return 0
    except Refused as refused:
        log.error("refused", reason=str(refused))
        print(str(refused), file=sys.stderr)
        return EXIT_REFUSED
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        warm.close()
        await reconciler.close()


def main(argv: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    arguments = arguments_of(argv)
    configure("agent")
    return asyncio.run(serve(arguments))


if __name__ == "__main__":
    sys.exit(main())
