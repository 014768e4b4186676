"""The contract of a worker group, kept by both leaves: plain processes and Ray actors."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest

from coordinator import limits
from coordinator.exit_status import Cause
from coordinator.group.group import AnswersDue, GroupStartFailed, Interrupted
from coordinator.group.heartbeat import Heartbeat
from coordinator.group.local import LocalGroup
from tests.coordinator.ray_head import RayHead
from tests.leftovers import gone

FAKE = "tests.coordinator.fakes:FakeWorker"
BROKEN = "tests.coordinator.fakes:BrokenWorker"

MakeGroup = Callable[..., Any]

pytestmark = [
    pytest.mark.timeout(90),
    # Ray leaves sockets and files of its own open in its driver.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def leaf(request: pytest.FixtureRequest) -> Iterator[MakeGroup]:
    """The class of one leaf, attached where it must be."""
    if request.param == "local":
        yield LocalGroup
        return
    head = RayHead(cpus=3)
    before = {name: os.environ.get(name) for name in head.environment}
    os.environ.update(head.environment)
    try:
        from coordinator.group.ray import RayCluster, RayGroup  # Ray reads its authentication from the environment on import

        with RayCluster(head.address).attached():
            yield RayGroup
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        head.stop()


@pytest.fixture
def make(leaf: MakeGroup) -> Iterator[MakeGroup]:
    """Makes started groups; every process is gone when they are closed."""
    with ExitStack() as stack:

        def start(workers: int, handler: str = FAKE) -> Any:
            group = leaf(handler)
            stack.callback(group.close)
            group.start(workers, 30)
            return group

        yield start


def pids(group: Any) -> list[int]:
    """The workers' processes, by rank."""
    replies = group.call(dict.fromkeys(range(group.size), b"pid"), 20).by_rank
    return [int(replies[rank]) for rank in range(group.size)]


def wait_gone(*processes: int) -> None:
    """Waits until processes are gone."""
    end = time.monotonic() + 10
    while not all(gone(pid) for pid in processes):
        assert time.monotonic() < end, processes
        time.sleep(0.02)


def test_calls_go_to_each_rank_and_come_back_by_rank(make: MakeGroup) -> None:
    group = make(2)
    assert group.size == 2
    big = b"echo " + bytes(200_000)
    replies = group.call({0: b"echo zero", 1: big}, 20)
    assert replies.by_rank == {0: b"zero", 1: bytes(200_000)} and not replies.losses
    assert group.call({1: b"echo one"}, 20).by_rank == {1: b"one"}
    processes = pids(group)
    assert len({os.getpid(), *processes}) == 3
    assert set(group.call({0: b"node", 1: b"node"}, 20).by_rank.values()) == {group.here.encode()}
    group.close()
    group.close()
    wait_gone(*processes)


def test_a_killed_worker_is_a_loss_at_once_and_the_others_still_answer(make: MakeGroup) -> None:
    group = make(2)
    process = pids(group)[1]
    began = time.monotonic()
    replies = group.call({0: b"echo fine", 1: f"kill {int(signal.SIGKILL)}".encode()}, 30)
    assert time.monotonic() - began < 8
    (loss,) = replies.losses
    assert (loss.rank, loss.pid, loss.cause) == (1, process, Cause.KILLED)
    assert "killed" in loss.text and replies.by_rank == {0: b"fine"}
    assert group.call({0: b"echo again"}, 20).by_rank == {0: b"again"}
    assert group.call({1: b"echo nobody"}, 20).losses[0].rank == 1


def test_a_worker_that_hangs_is_late(make: MakeGroup) -> None:
    group = make(2)
    processes = pids(group)
    os.kill(processes[0], signal.SIGSTOP)
    try:
        replies = group.call({0: b"echo", 1: b"echo fine"}, 1.0)
        assert [(loss.rank, loss.cause) for loss in replies.losses] == [(0, Cause.LATE)]
        assert replies.by_rank == {1: b"fine"}
    finally:
        os.kill(processes[0], signal.SIGCONT)


def test_a_wait_is_given_up_when_asked(make: MakeGroup) -> None:
    group = make(1)
    asked = time.monotonic() + 0.3
    with pytest.raises(Interrupted):
        group.call({0: b"sleep 20"}, 30, lambda: time.monotonic() > asked)
    assert time.monotonic() < asked + 3


def test_keep_renumbers_and_ends_the_others(make: MakeGroup) -> None:
    group = make(3)
    before = pids(group)
    group.keep([2, 0])
    assert group.size == 2 and pids(group) == [before[2], before[0]]
    wait_gone(before[1])


def test_hired_workers_arrive_by_themselves_and_are_welcomed_as_the_last(make: MakeGroup) -> None:
    group = make(2)
    before = pids(group)
    os.kill(before[0], signal.SIGKILL)
    assert group.call({0: b"echo", 1: b"echo"}, 20).losses[0].rank == 0
    group.keep([1])
    group.hire(3)
    group.hire(2)
    with Heartbeat(group, 0.05):
        end = time.monotonic() + 30
        while group.arrived() < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert group.size == 1
    group.welcome()
    after = pids(group)
    assert group.size == 3 and after[0] == before[1] and len({*before, *after}) == 4
    assert not group.failed() and group.arrived() == 0
    group.keep([0, 2])
    wait_gone(before[0], after[1])
    assert pids(group) == [after[0], after[2]]


def test_hired_workers_that_die_are_told_once(make: MakeGroup, leaf: MakeGroup) -> None:
    group = leaf(BROKEN)
    try:
        group.hire(1)
        end = time.monotonic() + 30
        while not (failed := group.failed()):
            assert group.arrived() == 0 and time.monotonic() < end
            time.sleep(0.02)
        group.hire(1)  # not so soon
        assert len(failed) == 1 and not failed[0].cause.outside and not group.failed()
    finally:
        group.close()


def test_after_an_alarm_the_others_still_owe_their_answers_and_the_next_call_gets_its_own(make: MakeGroup) -> None:
    group = make(3)
    requests = {0: b"echo alarm", 1: b"sleep 1.5", 2: b"sleep 60"}
    answered = group.call(requests, 30, alarm=lambda reply: 0.3 if reply == b"alarm" else 0.0)
    assert answered.by_rank == {0: b"alarm"} and not answered.losses
    settled = group.settle(4)
    assert settled.by_rank == {1: b"slept"} and [(loss.rank, loss.cause) for loss in settled.losses] == [(2, Cause.LATE)]
    group.keep([1, 0])
    assert group.call({0: b"echo one", 1: b"echo zero"}, 20).by_rank == {0: b"one", 1: b"zero"}


def test_beats_arrive_while_a_request_is_at_work(make: MakeGroup) -> None:
    group = make(1)
    with Heartbeat(group, 0.05):
        assert group.call({0: b"sleep 1"}, 20).by_rank == {0: b"slept"}
        assert int(group.call({0: b"beats"}, 20).by_rank[0]) >= 5


def test_a_gang_that_cannot_start_says_why(make: MakeGroup) -> None:
    try:
        group = make(1, BROKEN)
    except GroupStartFailed as failed:
        assert "cannot be made" in str(failed)  # Ray tells at the start
        return
    assert group.call({0: b"echo"}, 20).losses[0].cause == Cause.EXITED  # a process, at the first call


@pytest.mark.ray
def test_ray_says_when_there_is_no_room(request: pytest.FixtureRequest, leaf: MakeGroup) -> None:
    if leaf is LocalGroup:
        return
    with pytest.raises(GroupStartFailed, match="free CPUs"):
        leaf(FAKE).start(4, 0.5)


def test_a_head_that_is_gone_does_not_stand_in_place_of_the_runs_end(leaf: MakeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    if leaf is LocalGroup:
        return  # it has no head
    import ray
    from ray.exceptions import RayError

    from coordinator.group import ray as module
    from coordinator.group.ray import _Place

    tried: list[str] = []

    def gone(what: str) -> Any:
        def act(*arguments: object, **options: object) -> None:
            tried.append(what)
            raise RayError("the head is gone")

        return act

    monkeypatch.setattr(ray, "kill", gone("kill"))
    monkeypatch.setattr(module, "remove_placement_group", gone("placement"))
    group = leaf()
    group._actors, group._places = ["one", "two"], [_Place(cast(Any, "placement"), [])]
    group.close()
    assert tried == ["kill", "kill", "placement"]
    group.close()
    assert len(tried) == 3


def test_the_most_patient_alarm_is_heeded_yet_not_after_a_loss() -> None:
    due = AnswersDue(100.0)
    due.heard(10.0, 0.0)
    assert due.end == 100.0 and not due.alarmed
    due.heard(10.0, 0.3)
    due.heard(10.1, 5.0)
    due.heard(10.2, 0.3)
    assert due.end == pytest.approx(15.1) and due.alarmed
    due.lost(11.0)
    assert due.end == pytest.approx(11.0 + limits.LOSS_GRACE_S)
