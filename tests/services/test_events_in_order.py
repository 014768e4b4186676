"""Events of a run as they come: in order, each once, what is missing asked for and then given up."""

from __future__ import annotations

import pytest

from lockstep.internal.v1 import agent_service_pb2 as pb
from services import limits
from services.runs import apply as apply_module
from services.store import events as store_events
from tests.services.fake_agent import points, started
from tests.services.running import Running
from tests.services.steering import submitted

pytestmark = pytest.mark.anyio


async def test_a_missing_event_is_asked_for_and_then_given_up(api: Running) -> None:
    job = await submitted(api)
    agent_id = "one-agent"
    async with api.agent(agent_id=agent_id) as agent:
        await agent.sync()
        await agent.wish(job)
        await agent.say(job, 1, **started())
        run = pb.RunKey(job_id=job, run_number=1)
        await agent._call.write(pb.ConnectRequest(run_event=pb.RunEvent(run=run, sequence=3, **points(1, loss=1.0))))
        await agent.until(lambda: agent.ended)
        assert "event 3 came after event 1" in agent.ended
    async with api.agent(agent_id=agent_id) as agent:
        await agent.say(job, 1, sequence=3, **points(1, loss=1.0))


async def test_points_in_a_row_are_applied_together_and_each_once(api: Running) -> None:
    job = await submitted(api)
    async with api.agent() as agent:
        await agent.sync()
        await agent.wish(job)
        await agent.say(job, 1, **started())
        store, run = api.server.agent_desk._store, pb.RunKey(job_id=job, run_number=1)

        async def apply(*sequences: int) -> list[str]:
            batch = [pb.RunEvent(run=run, sequence=number, **points(number, loss=number)) for number in sequences]
            return await store.run(lambda connection: apply_module.apply(connection, batch, 1))

        assert await apply(1, 2, 3, 3, 4) == [job] and await apply(2, 3, 4) == []
        with pytest.raises(apply_module.Gap, match="event 7 came after event 5"):
            await apply(5, 7)
        assert await apply(4, 5, 6) == [job]
        events = await store.run(lambda connection: store_events.after(connection, job, 0, 100))
        stored = [event.points for event in events if event.HasField("points")]
        assert [(said.step, said.points[0].value) for said in stored] == [(step, float(step)) for step in range(2, 7)]


async def test_gaps_are_remembered_up_to_a_bound_and_forgotten_once_they_are_passed(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "AGENT_GAPS", 2)
    job = await submitted(api)
    run = pb.RunKey(job_id=job, run_number=1)
    desk = api.server.agent_desk
    async with api.agent(agent_id="a1") as agent:
        await agent.sync()
        await agent.wish(job)
        await agent.say(job, 1, **started())
    for sequence in (9, 7, 5, 3):
        async with api.agent(agent_id="a1") as agent:
            event = pb.RunEvent(run=run, sequence=sequence, **points(sequence, loss=1.0))
            await agent._call.write(pb.ConnectRequest(run_event=event))
            await agent.until(lambda agent=agent: agent.ended)
    assert list(desk._gaps) == [(job, 1, 5), (job, 1, 3)]
    async with api.agent(agent_id="a1") as agent:
        await agent.say(job, 1, sequence=3, **points(3, loss=1.0))
        assert list(desk._gaps) == [(job, 1, 5)]
