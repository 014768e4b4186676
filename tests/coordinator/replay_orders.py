"""Orders of replays, for the tests of the coordinator."""

from __future__ import annotations

from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job


def replay_order(
    trained: agent.RunOrder, fingerprint: str, start: int, step: int | None = None, hashed: tuple[int, ...] = (), run: int = 1
) -> agent.RunOrder:
    """A replay of it as the server resolves it."""
    order = agent.RunOrder()
    order.CopyFrom(trained)
    order.job_id, order.run_number, order.kind, order.fingerprint = "verify-0001", run, job.TrainingJob.VERIFY, fingerprint
    asked = job.Replay(job=f"jobs/{trained.job_id}", step=step, hashed_steps=hashed, start_step=start)
    order.plan.replay.CopyFrom(asked)
    return order
