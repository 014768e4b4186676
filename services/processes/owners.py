"""Who owns a process id or a listening port on this machine, read from /proc."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from lockstep.contract.errors import UserError


def command_of(pid: int) -> str:
    """The command line of a process, shortened; "?" where it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "?"
    text = " ".join(word for word in words if word)
    return text if len(text) <= 120 else text[:117] + "..."


def owner_of_port(port: int) -> str:
    """Names the process that listens on a TCP port: "process 812 (python server.py)"."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            for fd in (entry / "fd").iterdir():
                if os.readlink(fd) in inodes:
                    return f"process {entry.name} ({command_of(int(entry.name))})"
        except OSError:
            continue
    return "another process"


def port_taken(flag: str, port: int) -> UserError:
    """The refusal of a port that somebody else has."""
    return UserError.of(
        flag, port, f"the port is taken by {owner_of_port(port)}; stop it, or choose another port", "PORT_TAKEN"
    )


def bind(flag: str, host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError that names the port's owner."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise _cannot_listen(flag, host, port, error) from None
    return listener


def check_free(flag: str, host: str, port: int) -> None:
    """Raises UserError if nothing can listen there; port 0 is always free."""
    if port:
        bind(flag, host, port).close()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _cannot_listen(flag: str, host: str, port: int, error: OSError) -> UserError:
    if error.errno == 98:  # EADDRINUSE
        return port_taken(flag, port)
    return UserError.of(
        flag, f"{host}:{port}", f"cannot listen there ({error.strerror}); choose an address of this machine", "ADDRESS_UNUSABLE"
    )
