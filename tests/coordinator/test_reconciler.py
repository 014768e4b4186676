"""The agent's reconciler beside a child that only ends: which ends get a last word, and which have one."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, final

import pytest

from coordinator.children import Child, Warm
from coordinator.outbox import Outbox
from coordinator.reconciler import Reconciler
from coordinator.spool import append_lost, read_events
from lockstep.internal.v1 import agent_service_pb2 as agent

RUN = ("a-b", 3)


@final
class EndedChild:
    """A coordinator that is told its order and ends."""

    pid = 1
    returncode = None

    def __init__(self) -> None:
        self.wish = agent.RunWish()
        self.told: list[tuple[int, int]] = []
        self.told_at = 0.0
        self.ended_at: float | None = None
        self.may_end = asyncio.Event()

    def tell(self, wish: agent.RunWish) -> None:
        self.wish = wish
        self.told.append((wish.order.spec.workers.min, wish.order.workers))

    async def wait(self) -> int:
        await self.may_end.wait()
        return 0


@final
class WarmChild:
    """Has one child to give."""

    def __init__(self, child: EndedChild) -> None:
        self.taken: list[EndedChild] = []
        self._child = child

    async def take(self) -> Child:
        self.taken.append(self._child)
        return cast(Child, self._child)


def wishes(*numbers: int) -> agent.Wishes:
    orders = [agent.RunOrder(job_id="a-b", run_number=number) for number in numbers]
    return agent.Wishes(runs=[agent.RunWish(order=order, intent=agent.RunWish.RUN) for order in orders])


@pytest.mark.parametrize("acknowledged", [True, False])
def test_an_end_that_was_acknowledged_gets_no_second_last_word(tmp_path: Path, acknowledged: bool) -> None:
    async def scenario() -> None:
        outbox, child = Outbox(tmp_path / "spool"), EndedChild()
        reconciler = Reconciler(tmp_path, outbox, cast(Warm, WarmChild(child)), asyncio.Event())
        reconciler.wish(wishes(3))
        await reconciler.reconcile()
        if acknowledged:  # its spool was removed with the acknowledgement, before its process was gone
            reconciler.acknowledged_end(RUN)
            reconciler.wish(wishes())
        child.may_end.set()
        async with asyncio.timeout(10):
            while reconciler.running():
                await asyncio.sleep(0)
        found = [event.ended.outcome for path in (tmp_path / "spool").iterdir() for event, _ in read_events(path)]
        assert found == ([] if acknowledged else [agent.RunEnded.LOST])

    asyncio.run(scenario())


def test_one_run_of_a_job_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        warm = WarmChild(EndedChild())
        reconciler = Reconciler(tmp_path, Outbox(tmp_path / "spool"), cast(Warm, warm), asyncio.Event())
        reconciler.wish(wishes(3, 4))
        await reconciler.reconcile()
        assert len(warm.taken) == 1

    asyncio.run(scenario())


def test_a_coordinator_hears_of_another_number_of_workers_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        child = EndedChild()
        reconciler = Reconciler(tmp_path, Outbox(tmp_path / "spool"), cast(Warm, WarmChild(child)), asyncio.Event())
        for least, workers in ((2, 4), (2, 4), (2, 2), (1, 2), (1, 2), (1, 3)):
            wished = wishes(3)
            wished.runs[0].order.workers, wished.runs[0].order.spec.workers.min = workers, least
            reconciler.wish(wished)
            await reconciler.reconcile()
        assert child.told == [(2, 4), (2, 2), (1, 2), (1, 3)]

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(6))
def test_a_cancel_that_comes_together_with_a_change_ends_it(tmp_path: Path, turns: int) -> None:
    async def scenario() -> None:
        changed = asyncio.Event()
        reconciler = Reconciler(tmp_path, Outbox(tmp_path / "spool"), cast(Warm, WarmChild(EndedChild())), changed)
        task = asyncio.ensure_future(reconciler.keep())
        for _ in range(5):
            await asyncio.sleep(0)
        changed.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        ended = task.cancelled()
        task.cancel()
        assert ended

    asyncio.run(scenario())


def test_the_agent_stays_awake_while_a_disk_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        let, loop = threading.Event(), threading.get_ident()
        at_work: list[str] = []

        def slow(name: str, work: Callable[..., None]) -> Callable[..., None]:
            def act(*arguments: Any) -> None:
                assert threading.get_ident() != loop
                at_work.append(name)
                assert let.wait(10)
                work(*arguments)

            return act

        monkeypatch.setattr("coordinator.reconciler.append_lost", slow("append", lambda *arguments: None))
        # It does remove: a folder that still stands is rightly removed again by the next round.
        monkeypatch.setattr("coordinator.reconciler.shutil.rmtree", slow("remove", shutil.rmtree))
        (tmp_path / "spool").mkdir()
        (tmp_path / "spool" / "c-d-1.events").touch()
        (tmp_path / "checkpoints" / "gone").mkdir(parents=True)
        reconciler = Reconciler(tmp_path, Outbox(tmp_path / "spool"), cast(Warm, WarmChild(EndedChild())), asyncio.Event())
        reconciler.wish(agent.Wishes(removed_job_ids=["gone"]))
        rounds = [asyncio.ensure_future(reconciler.reconcile()) for _ in range(2)]
        async with asyncio.timeout(10):
            while "append" not in at_work:  # the removal may have begun as well
                await asyncio.sleep(0.001)
            let.set()
            await asyncio.wait(rounds)
            while "remove" not in at_work:
                await asyncio.sleep(0.001)
        assert at_work.count("remove") == 1

    asyncio.run(scenario())


def test_a_run_is_not_started_again_while_its_last_word_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        let, begun = threading.Event(), threading.Event()

        def slow(*arguments: Any) -> None:
            begun.set()
            assert let.wait(10)
            append_lost(*arguments)

        monkeypatch.setattr("coordinator.reconciler.append_lost", slow)
        child = EndedChild()
        warm = WarmChild(child)
        reconciler = Reconciler(tmp_path, Outbox(tmp_path / "spool"), cast(Warm, warm), asyncio.Event())
        reconciler.wish(wishes(3))
        await reconciler.reconcile()
        child.may_end.set()
        async with asyncio.timeout(10):
            while not begun.is_set():
                await asyncio.sleep(0.001)
            await reconciler.reconcile()
            let.set()
            while reconciler.running():
                await asyncio.sleep(0.001)
            await reconciler.reconcile()
        assert len(warm.taken) == 1
        ((event, _),) = read_events(tmp_path / "spool" / "a-b-3.events")
        assert (event.ended.cause, "exit code 0" in event.ended.reason) == (agent.RunEnded.OWN, True)

    asyncio.run(scenario())
