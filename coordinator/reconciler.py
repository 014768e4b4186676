"""What runs, brought level with what is wished: coordinators started, told, killed; ends written for those that cannot."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import structlog
from filelock import FileLock, Timeout

from coordinator import limits
from coordinator.children import Child, Warm
from coordinator.exit_codes import EXIT_BROKEN, EXIT_FAILED, EXIT_ORPHANED, EXIT_SPOOL_FULL, EXIT_SPOOL_TAKEN, EXIT_UNREACHABLE
from coordinator.exit_status import interpret, out_of_memory_kills
from coordinator.outbox import Outbox, RunId, run_id
from coordinator.spool import SpoolFull, SpoolTaken, append_lost
from lockstep.internal.v1 import agent_service_pb2 as agent

OUTSIDE, OWN = agent.RunEnded.OUTSIDE, agent.RunEnded.OWN

# What exit codes of a coordinator mean, and where their cause lies; Ray itself ends a driver with 1.
_EXIT_CODES: dict[int, tuple[str, agent.RunEnded.Cause.ValueType]] = {
    1: ("ended with exit code 1, as Ray makes it when its head is gone", OUTSIDE),
    EXIT_ORPHANED: ("saw its pipe to the agent close", OUTSIDE),
    EXIT_UNREACHABLE: ("could not reach the Ray head", OUTSIDE),
    EXIT_SPOOL_TAKEN: ("found another process at the run's spool", OUTSIDE),
    EXIT_BROKEN: ("could not make durable what it wrote; look at the disk of the data folder", OWN),
    EXIT_SPOOL_FULL: ("found no space for the run's events; free some space in the data folder", OUTSIDE),
    EXIT_FAILED: ("failed in a way it did not expect; the agent's log says more", OWN),
}


@final
class Reconciler:
    """Level-triggered: looks at the last wishes and at what there is, never at how it came to be.

    What may take long on a disk happens in threads, one last word and one removal at a time.
    """

    def __init__(self, files_folder: Path, outbox: Outbox, warm: Warm, changed: asyncio.Event) -> None:
        self._files_folder = files_folder
        self._outbox = outbox
        self._warm = warm
        self._changed = changed
        self._children: dict[RunId, Child] = {}
        self._ends: dict[RunId, tuple[str, agent.RunEnded.Cause.ValueType]] = {}
        self._acknowledged: set[RunId] = set()
        self._wishes: Mapping[RunId, agent.RunWish] | None = None
        self._removed: list[str] = []
        self._waiting: set[asyncio.Task[None]] = set()
        self._appending = asyncio.Lock()
        self._removing: asyncio.Task[None] | None = None
        self._log = structlog.get_logger().bind(process="agent")

    def wish(self, wishes: agent.Wishes) -> None:
        """The whole of what is wanted now."""
        self._wishes = {run_id(wish.order): wish for wish in wishes.runs}
        self._removed = list(wishes.removed_job_ids)
        self._acknowledged &= self._wishes.keys()
        self._changed.set()

    def running(self) -> list[agent.RunKey]:
        """Runs whose coordinator lives."""
        return [agent.RunKey(job_id=job_id, run_number=number) for job_id, number in self._children]

    def acknowledged_end(self, run: RunId) -> None:
        """The server knows that a run ended; wishes that still hold it are older."""
        self._acknowledged.add(run)
        if run in self._children:
            self._children[run].ended_at = asyncio.get_running_loop().time()

    async def close_spools(self) -> None:
        """Writes the last word of runs that have a spool, no end and no coordinator: theirs ended with an earlier agent."""
        self._outbox.look()
        for run in self._outbox.runs():
            if run not in self._children:
                reason, cause = self._ends.get(run, ("the agent ended, and the run's coordinator with it", OUTSIDE))
                await self._last_word(run, reason, cause)

    async def keep(self) -> None:
        """A round whenever something changed, and every second; for ever."""
        while True:
            await self.reconcile()
            try:
                # Not wait_for, which in Python 3.11 swallows a cancel that comes together with the change.
                async with asyncio.timeout(limits.RECONCILE_S):
                    await self._changed.wait()
            except TimeoutError:
                continue
            self._changed.clear()
            await asyncio.sleep(limits.SPOOL_POLL_S / 10)  # several changes at once make one round

    async def reconcile(self) -> None:
        """One round."""
        if self._wishes is None:
            return
        now = asyncio.get_running_loop().time()
        for run, child in list(self._children.items()):
            wish = self._wishes.get(run)
            if wish is None and child.ended_at is not None and now - child.ended_at < limits.KILL_S:
                continue  # the end of its run is known; it is ending by itself
            if wish is None:
                self._ends[run] = "the run was not wished any more", OUTSIDE
                child.kill()
            elif wish != child.wish:
                child.tell(wish)
            elif wish.intent == agent.RunWish.CANCEL and now - child.told_at > limits.CANCEL_GRACE_S:
                said = f"cancelled; its coordinator did not end within {limits.CANCEL_GRACE_S:.0f} s and was killed"
                self._ends[run] = said, OUTSIDE
                child.kill()
        await self.close_spools()
        busy = {job_id for job_id, _ in self._children}
        for run, wish in self._wishes.items():
            known = run in self._children or run in self._acknowledged or run in self._outbox.runs()
            if not known and run[0] not in busy and len(self._children) < limits.RUNS:
                await self._start(run, wish)
                busy.add(run[0])
        removable = [job_id for job_id in self._removed if job_id not in busy]
        if removable and (self._removing is None or self._removing.done()):
            self._removing = asyncio.ensure_future(self._remove(removable))

    async def _start(self, run: RunId, wish: agent.RunWish) -> None:
        child = await self._warm.take()
        child.tell(wish)
        self._children[run] = child
        self._ends.pop(run, None)
        self._log.info("coordinator started", job=run[0], run=run[1], pid=child.pid)
        task = asyncio.ensure_future(self._attend(run, child))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _attend(self, run: RunId, child: Child) -> None:
        before = out_of_memory_kills()
        said, cause = said_of(await child.wait(), before)
        self._ends.setdefault(run, (f"the run's coordinator (pid {child.pid}) {said}", cause))
        try:
            await self._last_word(run, *self._ends[run], child)
        finally:  # not before: until then nobody else gives it a last word, or starts it again
            del self._children[run]
        self._log.info("coordinator ended", job=run[0], run=run[1], pid=child.pid, status=said)
        self._changed.set()

    async def _last_word(
        self, run: RunId, reason: str, cause: agent.RunEnded.Cause.ValueType, child: Child | None = None
    ) -> None:
        """Appends the end of a run whose coordinator is gone, unless it has one."""
        async with self._appending:
            self._outbox.look()
            ended = await asyncio.to_thread(self._outbox.has_ended, run)
            # Once its end was acknowledged its spool is gone, and a new one would say that it was lost.
            acknowledged = run not in self._outbox.runs() if child is None else child.ended_at is not None
            if ended or acknowledged or await asyncio.to_thread(self._append_end, run, reason, cause):
                self._ends.pop(run, None)
            self._outbox.look()  # a run without a spool would be started again

    def _append_end(self, run: RunId, reason: str, cause: agent.RunEnded.Cause.ValueType) -> bool:
        """Gives whether the spool holds the end now; a later round tries again."""
        key = agent.RunKey(job_id=run[0], run_number=run[1])
        try:
            append_lost(self._outbox.path(run), key, time.time_ns, reason, cause)
        except SpoolTaken:
            return False  # the coordinator of an earlier agent is still ending; a later round finds it gone
        except (OSError, SpoolFull) as error:
            self._log.error("the end of a run cannot be written", job=run[0], run=run[1], reason=str(error))
            return False
        return True

    async def _remove(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            await asyncio.to_thread(self._remove_checkpoints, job_id)

    def _remove_checkpoints(self, job_id: str) -> None:
        folder = self._files_folder / "checkpoints" / job_id
        if Path(job_id).name != job_id or job_id in ("", ".", "..") or not folder.is_dir():
            return
        try:
            with FileLock(folder / "lock", timeout=0):
                shutil.rmtree(folder)
        except Timeout:
            return  # its coordinator is still ending
        except OSError as error:
            self._log.warning("checkpoints not removed", job=job_id, reason=str(error))

    async def close(self) -> None:
        """Ends all coordinators."""
        for child in self._children.values():
            child.kill()
        for task in self._waiting | ({self._removing} if self._removing else set()):
            task.cancel()


def said_of(returncode: int, out_of_memory_kills_before: int) -> tuple[str, agent.RunEnded.Cause.ValueType]:
    if returncode in _EXIT_CODES:
        return _EXIT_CODES[returncode]
    cause, said = interpret(returncode, out_of_memory_kills() > out_of_memory_kills_before)
    return said, OUTSIDE if cause.outside else OWN
