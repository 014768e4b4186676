"""The rows of the table of faults that processes without Ray can show, each as cases: those of every run of the tests, which
are fixed, and those of the soak, drawn from a seed. All that goes through points is made from the list of their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Generic, final

from coordinator.group.local import NODE
from lockstep.contract.manifest import MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE
from tests.faults.campaign import AT_ONCE, AnyCase, Verdict, judge
from tests.faults.case import Case
from tests.faults.kernels import other_kernel
from worker.failpoints import COORDINATOR, WORKER

# How often a process passes a place in one run of the job that nothing disturbs; places that are not named here: every step.
STEPS = 9  # the short batches of its 12 steps may leave a worker without rows
PASSINGS = {
    **dict.fromkeys(("worker.when_joining", "dataset.when_opening", "snapshot.when_received"), 1),
    **dict.fromkeys((name for name in WORKER if name.startswith(("stretch.", "snapshot.when_offering"))), 6),
    "evaluation.when_begun": 3,
    **dict.fromkeys((name for name in COORDINATOR if name.startswith(("dataset.", "group.", "recovery.", "run."))), 1),
    **dict.fromkeys((name for name in COORDINATOR if name.startswith(("stretch.", "snapshot."))), 6),
    **dict.fromkeys((name for name in COORDINATOR if name.startswith("checkpoint.")), 4),
    **dict.fromkeys(("checkpoint.when_file_written", "checkpoint.when_file_synced"), 12),
    "checkpoint.when_deleting": 2,
    "evaluation.when_combined": 3,
}


@final
@dataclass(frozen=True, slots=True)
class Row(Generic[AnyCase]):
    """A row: what is done, its fixed cases, how a case is drawn for the soak, how many the soak takes, and how one is judged.

    A case may stand for several, at most `in_one`: as many as it is asked for. With `apart` each wants a process where there
    is no other; `at_once` are carried out side by side.
    """

    number: int
    fault: str
    fixed: Callable[[], list[AnyCase]]
    drawn: Callable[[Random, int], AnyCase]
    soak: int
    judge: Callable[[AnyCase], Verdict]
    in_one: int = 1
    apart: bool = False
    at_once: int = AT_ONCE


def worker_cases(name: str) -> list[Case]:
    """A worker killed at one place: each of two victims, early and late."""
    times = PASSINGS.get(name, STEPS)
    moments = ((min(2, times), False), (max(1, times - 2), True))
    return [_worker_killed(name, victim, *moments[(victim + turn) % 2]) for turn in (0, 1) for victim in (0, 1)]


def _worker_killed(name: str, victim: int, number: int, late: bool, workers: int = 2) -> Case:
    here = f"{name}=kill@{number}"
    if PASSINGS.get(name, STEPS) > 1:
        points: tuple[str, ...] = (f"run1/rank{victim}/{here}",)
    elif name == "snapshot.when_received" or late:
        # It takes a group that is formed anew: a third worker is killed first, behind the victim or before it.
        first = f"run1/rank{0 if victim else 2}/step.before_forward=kill@{7 if late else 3}"
        points, workers = (first, f"run1/group2/rank{victim}/{here}"), 3
    else:
        points = (f"run1/rank{victim}/{here}",)
    return Case(1, f"worker {victim} killed at {name}", points, workers=workers)


def _draw_worker_killed(random: Random, _: int) -> Case:
    name = random.choice(list(WORKER))
    number = random.randint(1, PASSINGS.get(name, STEPS))
    workers = random.choice((2, 3))
    victim = random.randrange(2 if PASSINGS.get(name, STEPS) == 1 else workers)
    return _worker_killed(name, victim, number, random.random() < 0.5, workers)


def coordinator_cases(name: str) -> list[Case]:
    """The coordinator killed at one place: the first time that it comes there, and a later time or in the next run."""
    if name.startswith("recovery."):
        return [_coordinator_killed(name, 1, step=step) for step in (3, 7)]
    if PASSINGS[name] == 1:
        return [_coordinator_killed(name, 1), _coordinator_killed(name, 1, run=2)]
    return [_coordinator_killed(name, 1), _coordinator_killed(name, 2)]


def _coordinator_killed(name: str, number: int, run: int = 1, step: int = 3, workers: int = 2) -> Case:
    points = [f"run{run}/coordinator/{name}=kill@{number}"]
    if run == 2:
        points.insert(0, "run1/coordinator/stretch.when_reported=kill@2")
    if name.startswith("recovery."):
        points.insert(0, f"run1/rank1/step.before_forward=kill@{step}")
    return Case(2, f"coordinator of run {run} killed at {name}", tuple(points), workers=workers)


def _draw_coordinator_killed(random: Random, _: int) -> Case:
    name = random.choice(list(COORDINATOR))
    number, workers = random.randint(1, PASSINGS[name]), random.choice((2, 3))
    again = PASSINGS[name] == 1 and not name.startswith("recovery.") and random.random() < 0.5
    return _coordinator_killed(name, number, 2 if again else 1, random.randint(2, 8), workers)


def many_kills(random: Random, kills: int) -> Case:
    """One job with so many kills of workers, one in each group that is formed, until the job is through."""
    names = [name for name in WORKER if PASSINGS.get(name, STEPS) == STEPS]
    points = tuple(
        f"run1/group{group}/rank{random.randrange(2)}/{random.choice(names)}=kill@{random.randint(2, 5)}"
        for group in range(1, 3 * kills)
    )
    # Two of three workers are the least, so that every group has both ranks. Most groups come a few steps further.
    return Case(
        5, f"{kills} kills", points, workers=3, least=2, epochs=3 * kills // 5, fired=kills, deadline_s=60.0 + 6.0 * kills
    )


# Places that a worker comes to in each step before it needs the others.
_ALONE = ("step.before_forward", "step.after_forward", "step.after_backward")


def _both_workers(places: tuple[str, str], number: int) -> Case:
    """Two of three workers in the same step."""
    points = tuple(f"run1/rank{rank}/{place}=kill@{number}" for rank, place in enumerate(places))
    return Case(6, f"workers killed at {places[0]} and {places[1]}", points, workers=3)


def _worker_again(first: str, second: str, number: int, again: int, victim: int) -> Case:
    """A worker, then one of those that are left, in the group that they form."""
    points = (f"run1/rank{0 if victim else 2}/{first}=kill@{number}", f"run1/group2/rank{victim}/{second}=kill@{again}")
    return Case(6, f"a worker killed at {first}, then one at {second}", points, workers=3)


def _worker_and_coordinator(first: str, number: int, second: str, third: str = "", again: int = 1) -> Case:
    """A worker, then the coordinator while it recovers; with a third place a worker of the next run, too."""
    points = [f"run1/rank1/{first}=kill@{number}", f"run1/coordinator/{second}=kill@1"]
    if third:
        points.append(f"run2/rank0/{third}=kill@{again}")
    then = f", then a worker at {third}" if third else ""
    return Case(6, f"a worker killed at {first}, the coordinator at {second}{then}", tuple(points))


def _coordinator_and_worker(first: str, number: int, second: str, again: int, victim: int) -> Case:
    """The coordinator, then a worker of the next run."""
    points = (f"run1/coordinator/{first}=kill@{number}", f"run2/rank{victim}/{second}=kill@{again}")
    return Case(6, f"the coordinator killed at {first}, then a worker at {second}", points)


def _double_cases() -> list[Case]:
    return [
        _both_workers(("step.after_forward", "step.before_forward"), 3),
        _worker_again("update.when_half_done", "snapshot.when_received", 3, 1, 1),
        _worker_and_coordinator("gather.when_sent", 3, "recovery.when_fenced", "reduce.after_post", 2),
        _coordinator_and_worker("checkpoint.when_renamed", 1, "update.when_begun", 2, 1),
        *(_draw_double(Random(seed), 1) for seed in range(16)),
    ]


def _draw_double(random: Random, _: int) -> Case:
    steps = [name for name in WORKER if PASSINGS.get(name, STEPS) == STEPS]
    recoveries = [name for name in COORDINATOR if name.startswith("recovery.")]
    # Early enough that the job goes on behind it.
    early = [name for name in COORDINATOR if name.startswith(("group.", "stretch.", "snapshot.", "checkpoint.when_f"))]
    first, second, number, again = random.choice(steps), random.choice(steps), random.randint(2, 6), random.randint(1, 3)
    match random.randrange(4):
        case 0:
            return _both_workers((random.choice(_ALONE), random.choice(_ALONE)), number)
        case 1:
            if random.random() < 0.3:
                second, again = "snapshot.when_received", 1
            return _worker_again(first, second, number, again, random.randrange(2))
        case 2:
            third = second if random.random() < 0.5 else ""
            return _worker_and_coordinator(first, number, random.choice(recoveries), third, again)
        case _:
            name = random.choice(early)
            return _coordinator_and_worker(name, random.randint(1, min(3, PASSINGS[name])), second, again, random.randrange(2))


def _stopped(name: str, victim: int, number: int, wakes_after_s: float | None) -> Case:
    long = f"for {wakes_after_s} s" if wakes_after_s else "for ever"
    words = () if wakes_after_s else (f"worker {victim} (node local",)
    points = (f"run1/rank{victim}/{name}=stop@{number}",)
    return Case(14, f"worker {victim} stopped {long} at {name}", points, wakes_after_s=wakes_after_s, words=words)


def late_in_a_new_group() -> Case:
    """A survivor is stopped before it comes to the first barrier of its second group, which looks just like its first: whatever
    were left of that one in its memory, the other would take for its arrival and its gradients."""
    points = ("run1/rank1/step.before_forward=kill@3", "run1/group2/rank0/step.after_backward=stop@1")
    return Case(14, "worker 0 stopped for 0.5 s in its second group", points, least=2, wakes_after_s=0.5)


def _stop_cases() -> list[Case]:
    point = "run1/coordinator/stretch.when_reported=stop@3"
    return [
        _stopped("step.after_forward", 1, 5, 0.5),
        _stopped("update.when_half_done", 0, 5, 1.0),
        _stopped("step.before_forward", 1, 5, None),
        _stopped("update.when_half_done", 0, 5, None),
        _stopped("gather.when_sent", 1, 3, None),
        late_in_a_new_group(),
        Case(14, "coordinator stopped for 1 s", (point,), wakes_after_s=1.0),
    ]


def _draw_stopped(random: Random, _: int) -> Case:
    names = [name for name in WORKER if PASSINGS.get(name, STEPS) == STEPS]
    return _stopped(random.choice(names), random.randrange(2), random.randint(2, STEPS), random.choice((0.5, 1.0, None)))


def _foreign(victim: int) -> Case:
    words = ("has fingerprint", "the job's is", "it was refused")
    environments = {victim: {"OPENBLAS_CORETYPE": other_kernel()}}
    return Case(16, f"worker {victim} with another kernel", (), workers=3, environments=environments, words=words)


def _draw_foreign(random: Random, _: int) -> Case:
    return _foreign(random.randrange(3))


def _flipped_parameters(name: str, victim: int, number: int, place: int = 500) -> Case:
    """Two workers on what they take for two nodes: each has parameters of its own."""
    points = (f"run1/rank{victim}/{name}=corrupt:,{place}@{number}",)
    case = f"a bit of the parameters of node {victim} flipped at {name}"
    return Case(17, case, points, nodes=(NODE, "other"), words=("the workers' parameters differ",))


# The steps after which a run takes snapshots; every second one becomes a checkpoint.
_SNAPSHOTS = (1, 3, 4, 6, 8, 9)


def _flipped_snapshot(number: int, place: int = 500) -> Case:
    points: tuple[str, ...] = (f"run1/coordinator/snapshot.when_copied=corrupt:,{place}@{number}",)
    if number % 2:  # those of odd numbers become no checkpoint, and are used only where somebody is lost
        points += (f"run1/rank1/step.before_forward=kill@{_SNAPSHOTS[number - 1] + 1}",)
    return Case(17, "a bit of a snapshot flipped", points, words=("in the snapshot of step",))


def _flipped_file(file: str, name: str, number: int, place: int = 500) -> Case:
    """A file of a checkpoint, before it was read back or afterwards; then the coordinator is killed before the next one."""
    points: tuple[str, ...] = (f"run1/coordinator/{name}=corrupt:{file},{place}@{number}",)
    published = name == "checkpoint.when_published"
    if published:
        points += (f"run1/coordinator/checkpoint.when_reserved=kill@{number + 1}",)
    word = "it was set aside" if published else "did not read back"
    return Case(17, f"a bit of {file} flipped at {name}", points, words=(word,), newest_lost=published)


def _flipped_dataset(file: str, place: int = 500, run: int = 1) -> Case:
    """A file of the dataset, before a run or before the one that follows a lost one. No run can mend it."""
    points = [f"run{run}/coordinator/dataset.before_check=corrupt:{file},{place}@1"]
    if run == 2:
        points.insert(0, "run1/coordinator/stretch.when_reported=kill@3")
    return Case(17, f"a bit of {file} flipped before run {run}", tuple(points), words=("is not what was uploaded",), fails=True)


_COLUMNS = ("x.npy", "y.npy")
_FILES = (MODEL_FILE, OPTIMIZER_FILE, MANIFEST_FILE)


def _flip_cases() -> list[Case]:
    return [
        _flipped_parameters("gather.when_sent", 1, 6),
        _flipped_parameters("stretch.when_done", 0, 3),
        _flipped_snapshot(3),
        _flipped_snapshot(6, 900),
        *(_flipped_file(file, "checkpoint.when_folder_synced", 2) for file in _FILES),
        *(_flipped_file(file, "checkpoint.when_published", 2) for file in _FILES),
        _flipped_file(MANIFEST_FILE, "checkpoint.when_published", 1, 20),
        _flipped_file(MODEL_FILE, "checkpoint.when_published", 1, 3),
        _flipped_dataset("x.npy"),
        _flipped_dataset("y.npy", 900, run=2),
        _flipped_dataset("dataset.json", 300),
    ]


def _draw_flipped(random: Random, _: int) -> Case:
    place = random.randrange(1000)
    match random.randrange(5):
        case 0:
            # A flip shows where it meets the comparison: in the last step of a stretch.
            places = (("gather.when_sent", random.choice(_SNAPSHOTS)), ("stretch.when_done", random.randint(1, 6)))
            name, number = random.choice(places)
            return _flipped_parameters(name, random.randrange(2), number, place)
        case 1:
            return _flipped_snapshot(random.randint(1, 6), place)
        case 2:
            return _flipped_file(random.choice(_FILES), "checkpoint.when_folder_synced", random.randint(1, 4), place)
        case 3:
            return _flipped_file(random.choice(_FILES), "checkpoint.when_published", random.randint(1, 3), place)
        case _:
            return _flipped_dataset(random.choice(_COLUMNS), max(place, 80), random.choice((1, 2)))  # behind the header


def _all(names: dict[str, str], cases: Callable[[str], list[Case]]) -> Callable[[], list[Case]]:
    return lambda: [case for name in names for case in cases(name)]


ROWS: dict[int, Row[Case]] = {
    row.number: row
    for row in (
        Row(1, "worker killed at a named place", _all(WORKER, worker_cases), _draw_worker_killed, 800, judge),
        Row(
            2, "coordinator killed at a named place", _all(COORDINATOR, coordinator_cases), _draw_coordinator_killed, 450, judge
        ),
        Row(5, "many kills in one job", lambda: [many_kills(Random(5), 25)], many_kills, 1500, judge, in_one=1500),
        Row(6, "two or three kills in one job", _double_cases, _draw_double, 500, judge),
        Row(14, "worker or coordinator stopped", _stop_cases, _draw_stopped, 120, judge),
        Row(16, "mixed fingerprints", lambda: [_foreign(rank) for rank in range(3)], _draw_foreign, 3, judge),
        Row(17, "a bit flipped", _flip_cases, _draw_flipped, 600, judge),
    )
}


def drawn(row: Row[AnyCase], seed: int, count: int) -> Iterator[AnyCase]:
    """The soak's cases of a row; the same for the same seed."""
    for first in range(0, count, row.in_one):
        yield row.drawn(Random(f"{seed}/{row.number}/{first}"), min(row.in_one, count - first))


def places_of(case: Case) -> set[str]:
    """The names of the points of a case."""
    return {point.rpartition("/")[2].partition("=")[0] for point in case.points}
