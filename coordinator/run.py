"""The process of one run: attaches to the cluster, waits warm for its order, holds the job's lock, trains, says how it ended.

Started by the agent as `python -m coordinator.run`; framed RunWish messages on stdin, framed Capacity messages on stdout
while it waits; stdout is closed once its workers have started. It is the run's Ray driver: with its end its workers end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, final

import structlog
from filelock import FileLock, Timeout

from coordinator import framing, limits
from coordinator.checkpoint_folder import CheckpointBroken
from coordinator.dataset_check import DatasetDamaged, check_dataset
from coordinator.exit_codes import EXIT_BROKEN, EXIT_FAILED, EXIT_ORPHANED, EXIT_SPOOL_FULL, EXIT_SPOOL_TAKEN, EXIT_UNREACHABLE
from coordinator.gradient_check import GradientCheckRun
from coordinator.group.cluster import Cluster, ClusterUnreachable
from coordinator.group.group import PORTABLE_WORKER, SHARD_WORKER
from coordinator.logs import configure
from coordinator.orders import Orders
from coordinator.parent import die_with_parent
from coordinator.preflight import MARKER, Needs
from coordinator.replay import Replay
from coordinator.reports import Reports
from coordinator.spool import SpoolBroken, SpoolFull, SpoolTaken, SpoolWriter, spool_path
from coordinator.training import Training
from lockstep.contract.errors import LockstepError, UserError
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import job_spec_pb2
from lockstep.v1 import training_job_pb2 as job
from worker import failpoints
from worker.failpoints import failpoint

KINDS: Final[dict[job.TrainingJob.Kind.ValueType, type[Training | GradientCheckRun | Replay]]] = {
    job.TrainingJob.TRAINING: Training,
    job.TrainingJob.GRADIENT_CHECK: GradientCheckRun,
    job.TrainingJob.VERIFY: Replay,
}


def make_cluster(group: str, ray_address: str, slots: int) -> Cluster:
    """The leaf that is asked for. The local one reads variables for single workers, as JSON ({"1": {"NAME": "value"}}), and
    the names of the nodes on which its workers are started in turn, as in "a,b"."""
    if group == "local":
        from coordinator.group.local import NODE, LocalCluster, LocalNode

        given = json.loads(os.environ.get("LOCKSTEP_LOCAL_WORKER_ENV", "{}"))
        names = os.environ.get("LOCKSTEP_LOCAL_NODES", NODE).split(",")
        environments = {int(number): variables for number, variables in given.items()}
        return LocalCluster(slots, environments, [LocalNode(name) for name in names])
    from coordinator.group.ray import RayCluster

    return RayCluster(ray_address)


@final
class Lookout:
    """Tells the agent the cluster's capacity and what its nodes lack, while this coordinator waits for an order.

    Nodes that are `in_order` another coordinator has looked at, and found that they lack nothing.
    """

    def __init__(self, cluster: Cluster, files_folder: Path, out: BinaryIO, in_order: Iterable[str] = ()) -> None:
        self._cluster = cluster
        self._files_folder = files_folder
        self._out = out
        now = time.monotonic()
        self._lacking: dict[str, tuple[float, list[str]]] = {node_id: (now, []) for node_id in in_order}

    def report(self) -> bool:
        """Looks once and says it. Nodes are looked at when they appear, and again while they lack something.

        A node counts once it has been looked at; one that is slow to answer holds up neither the others nor an order. Gives
        whether all have been.
        """
        nodes = self._cluster.nodes()
        now = time.monotonic()
        self._lacking = {node.node_id: self._lacking[node.node_id] for node in nodes if node.node_id in self._lacking}
        for node in nodes:
            looked_at, lacking = self._lacking.get(node.node_id, (0.0, ["not looked at"]))
            if (lacking and now - looked_at > limits.PREFLIGHT_AGAIN_S) or not looked_at:
                needs = Needs(str(self._files_folder), (self._files_folder / MARKER).read_text())
                found = self._cluster.lacks(node.node_id, needs, limits.PREFLIGHT_S)
                if found is not None:
                    self._lacking[node.node_id] = (now, found)
        known = [node for node in nodes if node.node_id in self._lacking]
        problems = [f"node {node.address}: {sentence}" for node in known for sentence in self._lacking[node.node_id][1]]
        self._cluster.prepare(known)
        if known or not nodes:
            message = agent.Capacity(nodes=known, problems=problems)
            self._out.write(framing.pack(message.SerializeToString()))
            self._out.flush()
        return len(known) == len(nodes)


def carry_out(
    wish: agent.RunWish, files_folder: Path, orders: Orders, cluster: Cluster, on_started: Callable[[], None] = lambda: None
) -> None:
    """Runs an order to its end and spools how it ended. Raises SpoolTaken, SpoolFull, SpoolBroken, CheckpointBroken."""
    order = wish.order
    log = structlog.get_logger().bind(job=order.job_id, run=order.run_number)
    key = agent.RunKey(job_id=order.job_id, run_number=order.run_number)
    spool = SpoolWriter(spool_path(files_folder, order.job_id, order.run_number), key, time.time_ns)
    reports = Reports(spool, on_started=on_started)
    log.info("run begins", workers=order.workers, total_steps=order.plan.total_steps)
    folder = files_folder / "checkpoints" / order.job_id
    try:
        with contextlib.ExitStack() as held:
            refusal = _lock(folder, held)
            ended = refusal or _carry_out(order, files_folder, reports, orders, cluster)
    except CheckpointBroken as broken:
        # The spool may lie on the same disk; whether or not this can be written, the process ends, with this as its cause.
        with contextlib.suppress(SpoolBroken, SpoolFull, OSError):
            reports.notice(job.Notice.ERROR, "CHECKPOINT_FAILED", str(broken))
            reports.ended(agent.RunEnded(outcome=agent.RunEnded.LOST, reason=str(broken), cause=agent.RunEnded.OWN))
        raise
    log.info("run ended", outcome=agent.RunEnded.Outcome.Name(ended.outcome), reason=ended.reason, step=ended.last_step)
    failpoint("run.before_end", ended.last_step)
    reports.ended(ended)
    failpoint("run.when_ended", ended.last_step)


def _lock(folder: Path, held: contextlib.ExitStack) -> agent.RunEnded | None:
    """Makes the job's folder and holds its lock; how the run ends where that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(folder / "lock", timeout=limits.JOB_LOCK_S))
    except Timeout:
        reason = f"the coordinator of an earlier run still held {folder / 'lock'} after {limits.JOB_LOCK_S:.0f} s"
        return agent.RunEnded(outcome=agent.RunEnded.LOST, reason=reason, cause=agent.RunEnded.OUTSIDE)
    except OSError as error:
        reason = f"{folder}, the folder of the job's checkpoints, cannot be written ({error.strerror}); give the agent's user "
        reason += "the right to write it, and see that its file system is not mounted read-only"
        return agent.RunEnded(outcome=agent.RunEnded.LOST, reason=reason, cause=agent.RunEnded.OWN)
    return None


def _carry_out(order: agent.RunOrder, files_folder: Path, reports: Reports, orders: Orders, cluster: Cluster) -> agent.RunEnded:
    kind = order.kind or job.TrainingJob.TRAINING
    # A gradient check compares with float64 and may run on any kernels.
    portable = kind != job.TrainingJob.GRADIENT_CHECK and order.spec.training.arithmetic == job_spec_pb2.PORTABLE
    make_group = partial(cluster.group, PORTABLE_WORKER if portable else SHARD_WORKER)
    try:
        failpoints.arm(failpoints.of_coordinator(order.failpoints, order.run_number))
        check_dataset(files_folder / "datasets" / order.dataset_digest, orders.cancelled)
        return KINDS[kind](order, files_folder, reports, orders, make_group).run()
    except DatasetDamaged as damaged:
        reports.notice(job.Notice.ERROR, "CORRUPTION_DETECTED", str(damaged))
        return agent.RunEnded(outcome=agent.RunEnded.FAILED, reason=str(damaged))
    except UserError as error:
        return agent.RunEnded(outcome=agent.RunEnded.FAILED, reason=str(error))
    except (CheckpointBroken, SpoolBroken, SpoolFull):
        raise
    except Exception as error:  # the edge of the process: a run always has a last word
        structlog.get_logger().exception("run failed", job=order.job_id, run=order.run_number)
        said = str(error) if isinstance(error, LockstepError) else f"{type(error).__name__}: {error}"
        return agent.RunEnded(outcome=agent.RunEnded.LOST, reason=f"the coordinator failed: {said}", cause=agent.RunEnded.OWN)


def main(argv: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m coordinator.run")
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--group", choices=["ray", "local"], default="ray")
    parser.add_argument("--ray-address", default="")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--in-order", nargs="*", default=[])
    arguments = parser.parse_args(argv)
    die_with_parent(arguments.parent)
    # Whatever a library prints must not stand among the reports.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    log = configure("coordinator")
    orders = Orders(sys.stdin.fileno())
    cluster = make_cluster(arguments.group, arguments.ray_address, arguments.slots)
    try:
        with cluster.attached():
            lookout = Lookout(cluster, arguments.files, out, arguments.in_order)
            wish = orders.first(0)
            while wish is None:
                try:
                    all_known = lookout.report()
                except BrokenPipeError:
                    return EXIT_ORPHANED
                wish = orders.first(limits.CAPACITY_POLL_S if all_known else limits.LOOK_POLL_S)
            carry_out(wish, arguments.files, orders, cluster, out.close)
            # The group is closed and the spool durable; detaching in good order would hold the job's next run up for a second.
            sys.stderr.flush()
            os._exit(0)
    except ClusterUnreachable as error:
        log.error("cluster unreachable", reason=str(error))
        out.write(framing.pack(agent.Capacity(problems=[str(error)]).SerializeToString()))
        out.flush()
        return EXIT_UNREACHABLE
    except SpoolTaken as error:
        log.error("spool taken", reason=str(error))
        return EXIT_SPOOL_TAKEN
    except (CheckpointBroken, SpoolBroken) as broken:
        log.error("disk broken", reason=str(broken))
        return EXIT_BROKEN
    except SpoolFull as full:
        log.error("spool full", reason=str(full))
        return EXIT_SPOOL_FULL
    except Exception:  # the edge of the process: its exit code says that it was neither Ray nor the disk
        log.exception("coordinator failed")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
