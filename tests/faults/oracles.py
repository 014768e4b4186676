"""The oracles: what must hold of a job after any fault. Each raises AssertionError with what it found.

O1 the weights of every checkpoint, the state of those that are kept, and the curves are those of one uninterrupted run on
   one worker
O2 whatever was acknowledged is there, whole
O3 the job's states are a path of the transition table, with one end; no step has two results
O4 nothing is left: processes, temporary folders, shared memory
O5 once faults stop, the job ends within its time
O6 what people are told names the victim and the cause, and nothing is told that no fault has caused
"""

from __future__ import annotations

import time

from coordinator.checkpoint_folder import Damaged, verify_folder
from coordinator.checkpoints import folder_name
from lockstep.contract.manifest import Manifest
from lockstep.internal.v1 import agent_service_pb2 as agent
from services.jobs.transitions import TERMINAL, Event, State, next_state
from tests.faults.fault_job import StepState, reference
from tests.faults.trial import Outcome
from tests.leftovers import abandoned_segments, process_folders

GONE_S = 10.0

_ENDS = {
    agent.RunEnded.SUCCEEDED: Event.SUCCEED,
    agent.RunEnded.FAILED: Event.FAIL,
    agent.RunEnded.LOST: Event.LOSE,
    agent.RunEnded.CANCELLED: Event.STOPPED,
    agent.RunEnded.PAUSED: Event.RESTED,
}


def check(outcome: Outcome) -> None:
    """All of them that concern a job which must succeed, or one that must fail."""
    for oracle in _OF_FAILED if outcome.case.fails else _ORACLES:
        try:
            oracle(outcome)
        except AssertionError as error:
            tail = "\n".join(outcome.log.splitlines()[-30:])
            said = "\n".join(text for text in outcome.said if text)
            raise AssertionError(
                f"{oracle.__name__}: row {outcome.case.row}, {outcome.case.name}, points {outcome.case.points}, fired "
                f"{outcome.fired}: {error}\n--- told\n{said}\n--- log\n{tail}"
            ) from error


def same_weights(outcome: Outcome) -> None:
    """O1."""
    undisturbed = reference(outcome.case.epochs)
    points: dict[tuple[int, str], float] = {}
    for events in outcome.events:
        for event in events:
            if event.HasField("checkpoint"):
                assert event.checkpoint.weights_sha256 == undisturbed.hashes[event.checkpoint.step], (
                    f"the checkpoint of step {event.checkpoint.step} has other weights"
                )
            for point in event.points.points:
                assert points.setdefault((event.points.step, point.name), point.value) == point.value, (
                    f"{point.name} at step {event.points.step} has two values"
                )
    assert points == undisturbed.curve, "the curves differ"
    last = max(undisturbed.hashes)
    result = outcome.ended.result
    assert (result.step, result.weights_sha256) == (last, undisturbed.hashes[last]), f"the result is that of step {result.step}"


def same_state(outcome: Outcome) -> None:
    """O1 of what a next run would begin with: the optimizer's state, what the controller remembers."""
    undisturbed = reference(outcome.case.epochs)
    for step, manifest in _kept(outcome).items():
        found, expected = StepState.of(manifest), undisturbed.states[step]
        assert found == expected, f"the checkpoint of step {step} has another state: {found} instead of {expected}"


def nothing_acknowledged_lost(outcome: Outcome) -> None:
    """O2: no gap in the events; a run begins no earlier than at the last checkpoint that was acknowledged; what the result
    names verifies."""
    assert not outcome.violations, outcome.violations
    acknowledged = 0
    for events in outcome.events:
        for event in events:
            if event.HasField("started") and not outcome.case.newest_lost:
                assert event.started.start_step >= acknowledged, f"began at {event.started.start_step} after {acknowledged}"
            if event.HasField("checkpoint"):
                acknowledged = max(acknowledged, event.checkpoint.step)
    kept = _kept(outcome)
    assert outcome.ended.result.checkpoints
    for checkpoint in outcome.ended.result.checkpoints:
        assert kept[checkpoint.step].weights_sha256 == checkpoint.weights_sha256


def states_are_a_path(outcome: Outcome) -> None:
    """O3."""
    state = State.QUEUED
    for number, (order, events) in enumerate(zip(outcome.orders, outcome.events, strict=True), 1):
        assert order.run_number == number
        state = next_state(state, Event.GRANT)
        for place, event in enumerate(events, 1):
            assert event.run.run_number == number and event.sequence == place
            kind = event.WhichOneof("event")
            assert (kind == "ended") == (place == len(events)), f"run {number}: event {place} of {len(events)} is {kind}"
            if kind == "started":
                state = next_state(state, Event.START)
            elif kind == "recovering":
                state = next_state(state, Event.RECOVER)
            elif kind == "ended":
                state = next_state(state, _ENDS[event.ended.outcome])
    assert state in TERMINAL, state


def nothing_left(outcome: Outcome) -> None:
    """O4."""
    end = time.monotonic() + GONE_S
    while left := _of_sessions(set(outcome.sessions)):
        assert time.monotonic() < end, f"processes are left: {left}"
        time.sleep(0.01)
    halves = [path for path in outcome.files.rglob("*") if path.suffix in (".tmp", ".old")]
    assert not halves or outcome.ended.outcome != agent.RunEnded.SUCCEEDED, halves
    shared = abandoned_segments(outcome.segments_before)
    assert not shared, f"shared memory is left: {shared}"
    spools = list((outcome.files / "spool").glob("*.events"))
    assert not spools, f"acknowledged spools are left: {spools}"


def failed_in_time(outcome: Outcome) -> None:
    """O5, where nothing can be mended."""
    assert outcome.in_time, f"not over within {outcome.case.deadline_s} s"
    assert outcome.ended.outcome == agent.RunEnded.FAILED, outcome.ended.reason


def ended_in_time(outcome: Outcome) -> None:
    """O5."""
    assert outcome.in_time, f"not over within {outcome.case.deadline_s} s"
    assert outcome.ended.outcome == agent.RunEnded.SUCCEEDED, outcome.ended.reason


def victims_named(outcome: Outcome) -> None:
    """O6."""
    said = "\n".join(outcome.said)
    # Nobody was left who could say it.
    unsaid = {fired.point.partition("/")[0] for fired in outcome.fired if "/recovery.when_fenced=" in fired.point}
    for fired in outcome.fired:
        run, victim = fired.point.split("/")[:2]
        if "=kill@" in fired.point and "run.when_ended" not in fired.point and (run not in unsaid or victim == "coordinator"):
            assert any(f"pid {fired.pid})" in text and "SIGKILL" in text for text in outcome.said), (
                f"nobody is told of {fired.point}"
            )
    for word in outcome.case.words:
        assert word in said, f"nobody is told {word!r}"


def nobody_else_blamed(outcome: Outcome) -> None:
    """O6: no more failures are told than faults fired that cause such. Waits that ran out do not count: the machine may be that
    slow."""
    stops = "=stop@" if outcome.case.wakes_after_s is None else "=kill@"  # one that is woken costs time alone
    for words, causes in ((("WORKER_LOST", "WORKER_FAILED"), ("=kill@", stops)), (("CORRUPTION_DETECTED",), ("=corrupt",))):
        told = [text for word in words for text in outcome.told(word) if not any(late in text for late in _LATE)]
        fired = [fired for fired in outcome.fired if any(cause in fired.point for cause in causes)]
        assert len(told) <= len(fired), f"nothing has caused one of these: {told}"


_LATE = ("did not reach step", "did not answer within")
_ORACLES = (
    ended_in_time,
    same_weights,
    nothing_acknowledged_lost,
    same_state,
    states_are_a_path,
    nothing_left,
    victims_named,
    nobody_else_blamed,
)
_OF_FAILED = (failed_in_time, states_are_a_path, nothing_left, victims_named, nobody_else_blamed)


def _kept(outcome: Outcome) -> dict[int, Manifest]:
    """What the checkpoints that the result names say, by step; each is read back. Raises AssertionError."""
    folder, order = outcome.files / "checkpoints" / outcome.orders[-1].job_id, outcome.orders[-1]
    try:
        steps = [checkpoint.step for checkpoint in outcome.ended.result.checkpoints]
        return {step: verify_folder(folder / folder_name(step, order.arithmetic_digest)) for step in steps}
    except Damaged as damaged:
        raise AssertionError(str(damaged)) from damaged


def _of_sessions(sessions: set[int]) -> list[int]:
    """The live processes of these sessions, zombies left out."""
    found = []
    for pid, folder in process_folders():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) in sessions and fields[0] not in "ZX":
            found.append(pid)
    return found
