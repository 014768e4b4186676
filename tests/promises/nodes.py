"""A service over several Ray nodes, its parts started apart as operators start them, all on this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import final

from .service import STOP_S, Service, free_ports, wait_until

HOST = "127.0.0.1"


@final
class Nodes(Service):
    """`lockstep-server api`, `agent` with the Ray head and `head_slots`, and a `worker` for each of `slots`."""

    def __init__(self, folder: Path, head_slots: int, slots: list[int], step_deadline_s: float) -> None:
        super().__init__(folder, head_slots + sum(slots))
        self._head_slots, self._node_slots = head_slots, slots
        self._agent_port, self._ray_port = free_ports(2)
        self.ray_token = folder / "ray-token"
        self.ray_token.write_text(secrets.token_hex(32))
        self.ray_token.chmod(0o600)
        self.ray_address = f"{HOST}:{self._ray_port}"
        for name in ("LOCKSTEP_STEP_DEADLINE_FLOOR_S", "LOCKSTEP_FIRST_STEP_DEADLINE_S"):
            self.environment[name] = str(step_deadline_s)
        self.api: subprocess.Popen[bytes] | None = None
        self.head: subprocess.Popen[bytes] | None = None
        self.workers: dict[subprocess.Popen[bytes], int] = {}

    def start(self) -> None:
        """API server, head, nodes."""
        self.start_api()
        wait_until("the API server is up", lambda: self.token_file.exists() and self._agent_token.exists(), 20)
        self.start_head()
        for slots in self._node_slots:
            self.add_node(slots)

    def start_api(self) -> None:
        """The API server, on the ports that it always has."""
        listen = ["--listen", self.address, "--http-listen", f"{HOST}:{self.http_port}"]
        self.api = self.command("api", "--data", str(self.data), *listen, "--agent-listen", f"{HOST}:{self._agent_port}")

    def start_head(self) -> None:
        """The Ray head and the agent."""
        self.head = self.command(
            *("agent", "--data", str(self.data), "--server", f"{HOST}:{self._agent_port}"),
            *("--agent-token-file", str(self._agent_token), "--ray-token-file", str(self.ray_token)),
            *("--ray-port", str(self._ray_port), "--node-ip", HOST, "--head-slots", str(self._head_slots)),
        )

    def add_node(self, slots: int) -> subprocess.Popen[bytes]:
        """A node with worker slots; it is not waited for."""
        node = self.command(
            *("worker", "--data", str(self.data), "--head", self.ray_address, "--slots", str(slots)),
            *("--node-ip", HOST, "--ray-token-file", str(self.ray_token)),
        )
        self.workers[node] = slots
        return node

    def stop(self) -> None:
        """Nodes first, then head and agent, then the API server."""
        for process in [*self.workers, self.head, self.api]:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(STOP_S) == 0, self.log.read_text()[-3000:]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL for a command."""
        process.kill()
        process.wait(STOP_S)
        self._started.remove(process)

    def lose(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL for a node's Ray and all its workers; the command above them then tidies up and ends."""
        for pid in self.below(process)[1:]:
            with contextlib.suppress(OSError):
                if b"services.processes.guard" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        assert process.wait(STOP_S) == 1, self.log.read_text()[-3000:]
        self._started.remove(process)
        self.workers.pop(process)

    def freeze(self, process: subprocess.Popen[bytes]) -> None:
        """SIGSTOP for a command and all below it."""
        self._signal(process, signal.SIGSTOP)

    def thaw(self, process: subprocess.Popen[bytes]) -> None:
        """SIGCONT for them."""
        self._signal(process, signal.SIGCONT)

    def below(self, process: subprocess.Popen[bytes]) -> list[int]:
        """The processes below a command, itself included."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found, front = [process.pid], [process.pid]
        while front:
            front = [pid for pid, parent in parents.items() if parent in front]
            found += front
        return found

    def _signal(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        for pid in self.below(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def _agent_token(self) -> Path:
        return self.data / "store" / "agent_token"
