"""The tables. Times are whole microseconds since 1970 (UTC); messages are serialized protobuf."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata: Final = MetaData()

jobs: Final = Table(
    "jobs",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("kind", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("detail", Text, nullable=False, default=""),
    Column("queue_position", BigInteger, nullable=False),  # rises with each entry into the queue
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("start_time", BigInteger),
    Column("end_time", BigInteger),
    Column("arithmetic_digest", String(64), nullable=False),
    Column("arithmetic_version", Integer, nullable=False),
    Column("dataset_id", String(63), nullable=False),
    Column("dataset_digest", String(64), nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("plan", LargeBinary, nullable=False),
    Column("warnings", Text, nullable=False, default="[]"),  # a JSON list
    Column("workers_min", Integer, nullable=False),
    Column("workers_max", Integer, nullable=False),
    Column("progress", LargeBinary),
    Column("result", LargeBinary),
    Column("run_number", BigInteger, nullable=False, default=0),
    Column("fingerprint", String(64), nullable=False, default=""),  # of the first checkpoint's run
    Column("furthest_step", BigInteger, nullable=False, default=0),  # any run's last applied step
    Column("applied_rows", BigInteger, nullable=False, default=0),  # never goes backwards
    Column("replayed_rows", BigInteger, nullable=False, default=0),  # of the runs that have ended
    Column("last_event", BigInteger, nullable=False, default=0),
    Column("failure_cause", Text, nullable=False, default=""),
    Column("failure_count", Integer, nullable=False, default=0),
    Column("progress_time", BigInteger, nullable=False, default=0),  # when a run last came beyond its start
    Index("jobs_by_state", "state", "queue_position"),
    Index("jobs_by_time", "create_time", "id"),
    Index("jobs_by_dataset", "dataset_digest"),
)

job_labels: Final = Table(
    "job_labels",
    metadata,
    Column("job_id", String(63), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(63), primary_key=True),
    Column("value", String(63), nullable=False),
    Index("job_labels_by_value", "key", "value"),
)

runs: Final = Table(
    "runs",
    metadata,
    Column("job_id", String(63), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("run_number", BigInteger, primary_key=True),
    Column("workers", Integer, nullable=False),
    Column("active", Boolean, nullable=False),  # granted and not known to have ended; it holds its slots
    Column("last_sequence", BigInteger, nullable=False, default=0),
    Column("fingerprint", String(64), nullable=False, default=""),
    Column("run_order", LargeBinary, nullable=False),  # lockstep.internal.v1.RunOrder, fixed when it was granted
    Column("message", LargeBinary, nullable=False),  # lockstep.v1.Run
    Index("runs_by_active", "active"),
)

events: Final = Table(
    "events",
    metadata,
    Column("job_id", String(63), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("is_progress", Boolean, nullable=False),
    Column("message", LargeBinary, nullable=False),  # lockstep.v1.JobEvent
)

points: Final = Table(
    "points",
    metadata,
    Column("job_id", String(63), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("value", Float(53)),  # NULL stands for NaN, which SQLite cannot hold
)

checkpoints: Final = Table(
    "checkpoints",
    metadata,
    Column("job_id", String(63), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("run_number", BigInteger, nullable=False),
    Column("message", LargeBinary, nullable=False),  # lockstep.v1.Checkpoint
)

requests: Final = Table(
    "requests",
    metadata,
    Column("method", String(64), primary_key=True),
    Column("request_id", String(36), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("answer_name", String(128), nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Index("requests_by_time", "create_time"),
)

removals: Final = Table(  # deleted jobs whose folder of checkpoints may still stand
    "removals",
    metadata,
    Column("job_id", String(63), primary_key=True),
    Column("create_time", BigInteger, nullable=False),
)

datasets: Final = Table(
    "datasets",
    metadata,
    Column("id", String(63), primary_key=True),
    Column("create_time", BigInteger, nullable=False),
)

dataset_versions: Final = Table(
    "dataset_versions",
    metadata,
    Column("dataset_id", String(63), ForeignKey("datasets.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("create_time", BigInteger, nullable=False),
    Column("schema", LargeBinary, nullable=False),  # lockstep.v1.DatasetSchema
    Column("warnings", Text, nullable=False, default="[]"),  # a JSON list
    Index("dataset_versions_by_digest", "digest"),
)

settings: Final = Table(  # of the cluster: its id
    "settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
