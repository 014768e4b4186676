"""The exporter: families of metrics read from the store at scrape time; series of a job live as long as the job does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, final

from google.protobuf.message import Message
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from lockstep.contract.arithmetic import ARITHMETIC_VERSION
from lockstep.v1.training_job_pb2 import Progress
from services import VERSION
from services.clock import SECOND
from services.jobs.transitions import State
from services.store import jobs as rows

RPC_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)

# Name, help, field of Progress. A field that is not set has no series; NaN is a value like others.
GAUGES: Final = (
    ("lockstep_job_step", "The last applied step of a live job.", "step"),
    ("lockstep_job_total_steps", "Steps of a live job in all.", "total_steps"),
    ("lockstep_job_epoch", "The epoch of the last applied step, from 1.", "epoch"),
    ("lockstep_job_loss", "Mean training loss of the last reported step.", "loss"),
    ("lockstep_job_validation_loss", "Mean loss of the last evaluation.", "validation_loss"),
    ("lockstep_job_validation_accuracy", "Accuracy of the last evaluation, 0 to 1.", "validation_accuracy"),
    ("lockstep_job_samples_per_second", "Rows per second over the last stretch.", "samples_per_second"),
    ("lockstep_job_step_seconds", "Mean time of a step over the last stretch.", "step_seconds"),
    ("lockstep_job_workers", "Workers that step together.", "workers"),
)

# Help and field of ValidationMetrics, by which the family is named.
VALIDATION_GAUGES: Final = (
    ("Part of the labels among the five largest outputs at the last evaluation.", "top_5_accuracy"),
    ("Mean of the classes' precisions at the last evaluation.", "precision"),
    ("Mean of the classes' recalls at the last evaluation.", "recall"),
    ("Mean of the classes' F1 at the last evaluation.", "f1"),
    ("Precision of class 1 of two at the last evaluation.", "class_1_precision"),
    ("Recall of class 1 of two at the last evaluation.", "class_1_recall"),
    ("F1 of class 1 of two at the last evaluation.", "class_1_f1"),
    ("Area under the ROC curve at the last evaluation.", "auc"),
    ("Mean of -log of the label's probability at the last evaluation.", "log_loss"),
    ("exp of the log loss at the last evaluation.", "perplexity"),
    ("Mean squared error of the last evaluation.", "mean_squared_error"),
    ("Mean absolute error of the last evaluation.", "mean_absolute_error"),
    ("Coefficient of determination of the last evaluation.", "r2"),
)


@final
@dataclass(frozen=True, slots=True)
class LiveJob:
    """What the exporter says of one job."""

    job_id: str
    state: str
    progress: Progress | None
    applied_rows: int
    replayed_rows: int
    update_time: int


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is exported, as it was at one moment."""

    jobs: list[LiveJob]
    counts: dict[str, int]
    slots: int
    slots_in_use: int
    agent_connected: bool
    watchers: int


def read_jobs(connection: Connection) -> tuple[list[LiveJob], dict[str, int]]:
    """The live jobs with a run, and how many jobs are in each state."""
    live = []
    for job in rows.live(connection):
        if job.run_number == 0:
            continue  # a queue of thousands is one number
        progress = Progress.FromString(job.progress) if job.progress is not None else None
        replayed = progress.replayed_rows if progress is not None else job.replayed_rows
        heard = LiveJob(job.id, job.state, progress, job.applied_rows, max(replayed, job.replayed_rows), job.update_time)
        live.append(heard)
    return live, rows.counts(connection)


@final
class Families(Collector):
    """The families of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Every family, whether it has series or not."""
        snapshot = self._snapshot
        version = {"version": VERSION, "arithmetic_version": str(ARITHMETIC_VERSION)}
        yield InfoMetricFamily("lockstep_build", "The version of the server.", value=version)
        counts = GaugeMetricFamily("lockstep_jobs", "Jobs in each state.", labels=["state"])
        for state in State:
            counts.add_metric([state], snapshot.counts.get(state, 0))
        yield counts
        yield GaugeMetricFamily("lockstep_slots", "Worker slots of the cluster.", value=snapshot.slots)
        yield GaugeMetricFamily("lockstep_slots_in_use", "Worker slots that jobs hold.", value=snapshot.slots_in_use)
        connected = float(snapshot.agent_connected)
        yield GaugeMetricFamily("lockstep_agent_connected", "Whether an agent is connected.", value=connected)
        yield GaugeMetricFamily("lockstep_watchers", "Streams of events that are open.", value=snapshot.watchers)
        yield from self._jobs()

    def _jobs(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("lockstep_job_state", "1 for the state of a live job.", labels=["training_job", "state"])
        applied = CounterMetricFamily("lockstep_job_applied_rows", "Rows of applied steps.", labels=["training_job"])
        replayed = CounterMetricFamily(
            "lockstep_job_replayed_rows", "Rows that were computed again after failures.", labels=["training_job"]
        )
        skipped = CounterMetricFamily(
            "lockstep_job_skipped_steps",
            "Steps whose update was left out because their gradient was not finite.",
            labels=["training_job"],
        )
        heard = GaugeMetricFamily(
            "lockstep_job_update_timestamp_seconds",
            "When anything was last heard of a live job; long ago, though it is RUNNING, means that its coordinator hangs.",
            labels=["training_job"],
        )
        for job in self._snapshot.jobs:
            heard.add_metric([job.job_id], job.update_time / SECOND)
            for state in State:
                states.add_metric([job.job_id, state], float(state == job.state))
            applied.add_metric([job.job_id], job.applied_rows)
            replayed.add_metric([job.job_id], job.replayed_rows)
            skipped.add_metric([job.job_id], job.progress.skipped_steps if job.progress is not None else 0)
        yield from (states, applied, replayed, skipped, heard)
        progress = {job.job_id: job.progress for job in self._snapshot.jobs if job.progress is not None}
        for name, text, field in GAUGES:
            yield _gauge(name, text, progress, field)
        metrics = {job_id: message.validation_metrics for job_id, message in progress.items()}
        for text, field in VALIDATION_GAUGES:
            yield _gauge(f"lockstep_job_validation_{field}", text, metrics, field)


def _gauge(name: str, text: str, messages: Mapping[str, Message], field: str) -> GaugeMetricFamily:
    """A field of each job's message."""
    family = GaugeMetricFamily(name, text, labels=["training_job"])
    for job_id, message in messages.items():
        if _is_set(message, field):
            family.add_metric([job_id], float(getattr(message, field)))
    return family


def _is_set(message: Message, field: str) -> bool:
    return not message.DESCRIPTOR.fields_by_name[field].has_presence or message.HasField(field)


@final
class CallMetrics:
    """Counts of calls; the one thing that is counted as it happens."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self.registry = CollectorRegistry()
        labels = ("method", "code")
        self._requests = Counter("lockstep_rpc_requests", "Calls by method and status code.", labels, registry=self.registry)
        self._seconds = Histogram(
            "lockstep_rpc_seconds",
            "Time of a call; a stream's whole life.",
            ("method",),
            buckets=RPC_SECONDS,
            registry=self.registry,
        )

    def observe(self, method: str, code: str, seconds: float) -> None:
        """Counts one call."""
        self._requests.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)


def exposition(snapshot: Snapshot, calls: CallMetrics) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(Families(snapshot))
    return generate_latest(registry) + generate_latest(calls.registry)
