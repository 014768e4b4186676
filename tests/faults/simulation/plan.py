"""What is to go wrong in a simulation, and when: drawn from the seed, or given."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


class Kind(enum.Enum):
    """What goes wrong, or is wished for."""

    # A worker, at a call; `part` says where in it.
    KILL = "a worker is killed"
    CRASH = "a worker crashes"
    STARVE = "a worker is killed for memory"
    VANISH = "a worker's node goes away"
    HANG = "a worker is silent for ever"
    SLEEP = "a worker is silent for a while"
    MEMORY = "a worker answers that memory ran out"
    EXCEPTION = "a worker answers with an exception"
    UNSOUND = "a worker answers that its node is not sound"
    UNLINK = "the link between two workers breaks"
    CUT = "the state of a worker cannot be moved"
    # Replacements, from a call on.
    LATE_HIRES = "replacements come late"
    STILLBORN = "a replacement dies before it arrives"
    STRANGER = "a replacement computes otherwise"
    # The coordinator, at one of its acts.
    STOP = "the coordinator dies"
    NO_PLACE = "the workers cannot be placed"
    # The disk, from an act of the coordinator on.
    FULL = "the disk is full for a while"
    NO_ROOM = "a checkpoint does not fit for a while"
    BROKEN = "a call to the disk fails"
    DAMAGE = "a file of a checkpoint is damaged between runs"
    # People, in the midst of a call.
    PAUSE = "the job is paused and later resumed"
    SCALE = "the job is scaled"
    CANCEL = "the job is cancelled"


class Moment(enum.Enum):
    """When in a call, or in a step of it, a worker goes."""

    BEFORE = "before"
    IN = "in"
    AFTER = "after"


WORKER = (
    Kind.KILL,
    Kind.CRASH,
    Kind.STARVE,
    Kind.VANISH,
    Kind.HANG,
    Kind.SLEEP,
    Kind.MEMORY,
    Kind.EXCEPTION,
    Kind.UNSOUND,
    Kind.UNLINK,
    Kind.CUT,
)
DEATHS = (Kind.KILL, Kind.CRASH, Kind.STARVE, Kind.VANISH)
HIRES = (Kind.LATE_HIRES, Kind.STILLBORN, Kind.STRANGER)
DISK = (Kind.FULL, Kind.NO_ROOM, Kind.BROKEN, Kind.DAMAGE)
PEOPLE = (Kind.PAUSE, Kind.SCALE, Kind.CANCEL)
# These count the coordinator's acts; all others its calls to the group.
AT_ACTS = (Kind.STOP, Kind.FULL, Kind.NO_ROOM, Kind.BROKEN)


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """One of them, at the `at`-th act or call of the job, counted through all its runs from 1."""

    kind: Kind
    at: int
    rank: int = 0  # modulo the workers there are; of UNLINK, and the one after it
    moment: Moment = Moment.IN
    part: float = 0.5  # of a stretch's steps, or of a call's time
    seconds: float = 0.0
    workers: int = 1  # wished for

    def __str__(self) -> str:
        unit = "act" if self.kind in AT_ACTS else "call"
        where = f"{unit} {self.at}, rank {self.rank}, {self.moment.value}, {self.part:.2f}"
        return f"{self.kind.value} ({where}, {self.seconds:.1f} s)"


# So much oftener than the others.
_WEIGHTS = {Kind.KILL: 5, Kind.STOP: 10, Kind.HANG: 2, Kind.SLEEP: 2, Kind.PAUSE: 4, Kind.SCALE: 4, Kind.LATE_HIRES: 2}


def drawn(seed: int, calls: int, acts: int) -> list[Fault]:
    """Faults for a job that takes about so many calls and acts where nothing happens.

    One to four, and what lets replacements and files come to harm; half of them follow the one before within a few
    calls, so that they meet its mending.
    """
    dice = random.Random(seed * 2)
    kinds = list(Kind)
    weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
    faults: list[Fault] = []
    call = 0
    for _ in range(dice.choice([1, 2, 2, 2, 3, 3, 4])):
        kind = dice.choices(kinds, weights)[0]
        near = faults and dice.random() < 0.5
        call = call + dice.choice([0, 0, 1, 2, 3, 4, 6, 8]) if near else dice.randint(1, calls + 4)
        at = call if kind not in AT_ACTS else max(1, call * acts // calls + dice.randint(-10, 10))
        if kind in HIRES:
            faults.append(Fault(Kind.KILL, call, dice.randrange(8), Moment.IN, dice.random()))  # so that somebody is hired
        if kind == Kind.DAMAGE:
            faults.append(Fault(Kind.STOP, max(1, call * acts // calls)))  # so that there is a next run
        if kind in (*HIRES, Kind.DAMAGE, Kind.NO_PLACE) and dice.random() < 0.8:
            at = 1  # at the first chance
        faults.append(
            Fault(
                kind=kind,
                at=max(1, at),
                rank=dice.randrange(8),
                moment=dice.choice(list(Moment)),
                part=dice.random(),
                seconds=dice.choice([0.05, 2.0, 20.0, 100.0, 700.0]),
                workers=dice.randint(1, 5),
            )
        )
        if kind == Kind.CANCEL and dice.random() < 0.7:  # it ends all: most jobs go on
            faults.pop()
    return faults


def described(faults: Sequence[Fault]) -> str:
    """For people."""
    return "; ".join(map(str, faults)) or "nothing goes wrong"
