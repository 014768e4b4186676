"""A run of one group that begins again after a failure: what it gives, or how the failure ends it."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.group.group import GroupStartFailed, Interrupted, WorkerGroup
from coordinator.group.heartbeat import Heartbeat
from coordinator.joining import NotFitting
from coordinator.recovery import Corrupted, GroupFailed, NotFinite, decide
from coordinator.reports import Reports
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import job_spec_pb2
from lockstep.v1 import training_job_pb2 as job


def with_one_group(
    make_group: Callable[[], WorkerGroup],
    work: Callable[[WorkerGroup], agent.RunEnded],
    reports: Reports,
    policy: job_spec_pb2.NonFinitePolicy.ValueType,
    so_far: Callable[[], str],
) -> agent.RunEnded:
    """Has `work` done with a group, which is closed behind it. `so_far` says how far a cancelled run came.

    Workers of another arithmetic than the job's end the run: it has nothing to wait with.
    """
    group = make_group()
    try:
        with Heartbeat(group):
            return work(group)
    except Interrupted:
        return agent.RunEnded(outcome=agent.RunEnded.CANCELLED, reason=f"cancelled after {so_far()}")
    except NotFitting as refused:
        reports.notice(job.Notice.ERROR, "NODE_FINGERPRINT_DIFFERS", str(refused))
        return agent.RunEnded(outcome=agent.RunEnded.FAILED, reason=str(refused))
    except (GroupStartFailed, GroupFailed, NotFinite, Corrupted) as failure:
        end = decide(failure, policy)
        if end.notice:
            reports.notice(job.Notice.ERROR, end.notice, end.reason)
        return agent.RunEnded(outcome=end.outcome, reason=end.reason, cause=end.cause)
    finally:
        group.close()
