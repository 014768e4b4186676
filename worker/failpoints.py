"""Failpoints: named places where a run that was started with points comes to harm, so that tests can say where and when.

`failpoint("reduce.after_post")` looks into a dict that is empty unless this process was given points. A point is written
`run1/rank2/reduce.after_post=kill@3`: the worker that joined run 1's first group as rank 2 is killed when it passes there for
the third time. `run1/group4/rank0/...` is one of a later group, `run2/coordinator/...` the coordinator of run 2. Points come in
the orders of run and group, never in an environment: a successor would meet them again.

Actions: `kill` (or `kill:SIGSEGV`) and `stop` are signals to itself; `raise` raises FailpointRaised, and `raise:KeyError` that
built-in exception; `sleep:SECONDS`; `corrupt` flips a bit of what the place hands over: memory, or the file of a folder that
`corrupt:FILE` names; in its middle, or so many thousandths behind its beginning: `corrupt:,20`, `corrupt:FILE,20`.
"""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from lockstep.contract.errors import UserError

# The variable that must be 1 wherever a process is to heed points.
ALLOW = "LOCKSTEP_ALLOW_FAILPOINTS"

WORKER = {
    "worker.when_joining": "The worker was asked to prove itself.",
    "dataset.when_opening": "It is about to open its dataset, as a new member of a group.",
    "snapshot.when_received": "The coordinator has put a snapshot into its memory; it has not taken it over yet.",
    "step.before_forward": "The rows of a step are gathered; nothing is computed.",
    "step.after_forward": "Between the forward and the backward pass.",
    "step.after_backward": "The gradient sums of its subtrees are in memory; nothing is posted.",
    "reduce.after_post": "The gradients are posted; it has not come to the barrier.",
    "reduce.when_half_done": "In the midst of reduce-scatter; of the update, too, where that is a single pass.",
    "update.when_begun": "The norms of all blocks are there; the next pass of the update begins.",
    "update.when_half_done": "In the midst of a later pass of the update: half of the own chunk has moved.",
    "update.when_done": "The own chunk of the parameters has moved; other nodes have not got it.",
    "gather.when_sent": "In all-gather: all chunks are on this node; it has not come to the barrier.",
    "stretch.when_done": "The steps of a stretch are taken; the parameters are not hashed, nothing is answered.",
    "snapshot.when_offering_parameters": "It was asked for its state and offers the parameters, if it is the one that does.",
    "snapshot.when_offering_optimizer": "It offers its chunk of the optimizer's state.",
    "evaluation.when_begun": "It is about to evaluate its blocks of validation rows.",
}

COORDINATOR = {
    "dataset.before_check": "The run has its order; its dataset is about to be read and compared with its digests.",
    "group.before_start": "The run has begun; no worker is started.",
    "group.when_started": "The workers are started; none was spoken to.",
    "group.when_joined": "The workers have proved themselves.",
    "stretch.before_hand_out": "A stretch is about to be handed out.",
    "stretch.when_reported": "All workers have reported a stretch.",
    "snapshot.when_begun": "The state is about to be copied out of the workers.",
    "snapshot.when_copied": "The snapshot is whole; the run does not stand there yet.",
    "checkpoint.when_reserved": "Space for the files of a checkpoint is reserved.",
    "checkpoint.when_file_written": "A file of a checkpoint is written and not durable.",
    "checkpoint.when_manifest_written": "The manifest, the last file, is written and not durable.",
    "checkpoint.when_file_synced": "A file of a checkpoint is durable.",
    "checkpoint.when_renamed": "The folder has its name; the name is not durable.",
    "checkpoint.when_folder_synced": "The checkpoint is durable; it was not read back.",
    "checkpoint.when_deleting": "A checkpoint that is not kept has lost its name; its files are still there.",
    "checkpoint.when_published": "The checkpoint was said; nothing else was done.",
    "evaluation.when_combined": "All workers' sums are combined; nothing is said.",
    "recovery.when_fenced": "The lost workers are ended, all answers are in; no new group is formed.",
    "recovery.when_formed": "A group of those that are left is linked; it has no state.",
    "recovery.when_restored": "The group stands where the run does; no step was handed out.",
    "run.before_end": "The run is over, which is not said.",
    "run.when_ended": "The run is over, which is said.",
}

NAMES = {**WORKER, **COORDINATOR}

_POINT = re.compile(
    r"run(?P<run>\d+)/(?:coordinator|(?:group(?P<group>\d+)/)?rank(?P<rank>\d+))"
    r"/(?P<name>[a-z_]+\.[a-z_]+)=(?P<action>kill|stop|raise|sleep|corrupt)(?::(?P<argument>[^@/]+))?@(?P<number>[1-9]\d*)"
)

_Item = TypeVar("_Item")


@final
class FailpointRaised(Exception):
    """What the action `raise` raises, unless it names another exception."""


@final
@dataclass(slots=True)
class _Armed:
    """A point of this process; `passings` are left until its action."""

    text: str
    action: str
    argument: str
    passings: int


# Empty unless this process was given points. What a step passes looks here before it calls: a call takes 50 ns, a look 10.
armed: dict[str, list[_Armed]] = {}


def failpoint(name: str, step: int = 0, target: Any = None) -> None:
    """A place that a point may name. `step` is the step under way, for the log; `target` is what `corrupt` corrupts."""
    if armed and name in armed:
        _pass(name, step, target)


def halfway(name: str, items: Sequence[_Item], step: int = 0) -> Iterable[_Item]:
    """The items; where a point names this place, it is passed when half of them are done."""
    return _halfway(name, items, step) if name in armed else items


def allowed() -> bool:
    """Whether this process heeds points."""
    return os.environ.get(ALLOW) == "1"


def of_coordinator(points: Iterable[str], run_number: int) -> list[str]:
    """The points whose victim is the coordinator of this run. Raises UserError where one is no point."""
    return [point for point in points if _victim(point) == (run_number, 0, -1)]


def of_worker(points: Iterable[str], run_number: int, group_number: int, rank: int) -> list[str]:
    """The points whose victim joins this group as this rank. Raises UserError where one is no point."""
    return [point for point in points if _victim(point) == (run_number, group_number, rank)]


def arm(points: Iterable[str]) -> None:
    """Arms points of which this process is the victim, beside those that it has. Raises UserError where it must not."""
    for point in points:
        found = _parsed(point)
        new = _Armed(point, found["action"], found["argument"], int(found["number"]))
        armed.setdefault(found["name"], []).append(new)


def disarm() -> None:
    """Forgets all points."""
    armed.clear()


def _victim(point: str) -> tuple[int, int, int]:
    """(run, group, rank) of a worker, (run, 0, -1) of a coordinator."""
    found = _parsed(point)
    if not found["rank"]:
        return int(found["run"]), 0, -1
    return int(found["run"]), int(found["group"] or 1), int(found["rank"])


def _parsed(point: str) -> dict[str, str]:
    place = "failpoints"
    if not allowed():
        remedy = f"points are heeded only by processes that were started with {ALLOW}=1, which is for tests alone"
        raise UserError.of(place, point, remedy, "FAILPOINTS_NOT_ALLOWED")
    found = _POINT.fullmatch(point)
    if found is None:
        raise UserError.of(place, point, "it must look like run1/rank2/reduce.after_post=kill@3", "FAILPOINT_UNKNOWN")
    names = WORKER if found["rank"] else COORDINATOR
    if found["name"] not in names:
        raise UserError.of(place, point, f"its victim has these: {', '.join(names)}", "FAILPOINT_UNKNOWN")
    return found.groupdict("")


def _pass(name: str, step: int, target: Any) -> None:
    for point in list(armed[name]):
        point.passings -= 1
        if not point.passings:
            armed[name].remove(point)
            said = {"event": "failpoint", "point": point.text, "pid": os.getpid(), "step": step}
            os.write(2, json.dumps(said).encode() + b"\n")  # in one piece, unbuffered: these may be the last words
            _act(point, target)


def _act(point: _Armed, target: Any) -> None:
    match point.action:
        case "kill":
            os.kill(os.getpid(), signal.Signals[point.argument or "SIGKILL"])
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise" if point.argument:
            raise getattr(builtins, point.argument)("made by a failpoint")  # without who and where: the same cause each time
        case "raise":
            raise FailpointRaised(point.text)
        case "sleep":
            time.sleep(float(point.argument))
        case "corrupt" if target is not None:
            name, _, thousandths = point.argument.partition(",")
            _flip(target / name if isinstance(target, Path) else target, int(thousandths or 500))
        case _:
            raise FailpointRaised(f"{point.text}: there is nothing to corrupt")


def _flip(target: Any, thousandths: int) -> None:
    content = bytearray(target.read_bytes()) if isinstance(target, Path) else memoryview(target).cast("B")
    content[len(content) * thousandths // 1000] ^= 1
    if isinstance(target, Path):
        target.write_bytes(content)


def _halfway(name: str, items: Sequence[_Item], step: int) -> Iterator[_Item]:
    half = (len(items) + 1) // 2
    yield from items[:half]
    failpoint(name, step)
    yield from items[half:]
