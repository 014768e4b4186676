"""Every bound of the API server, in one place; docs/limits.md says the same to people."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Messages and streams.
CHUNK_BYTES: Final = 1 * MIB
REQUEST_BYTES: Final = CHUNK_BYTES + 64 * KIB
RESPONSE_BYTES: Final = 4 * MIB
METADATA_BYTES: Final = 16 * KIB
CONCURRENT_STREAMS: Final = 2048
WATCHERS: Final = 1500
DOWNLOADS: Final = 32
# How often the files of a checkpoint are looked for, and the time between: a newer one may have taken its place.
DOWNLOAD_LOOKS: Final = 4
DOWNLOAD_LOOK_SECONDS: Final = 0.5
UNARY_SECONDS: Final = 60.0
BEAT_SECONDS: Final = 15.0
KEEPALIVE_SECONDS: Final = 30.0
CLIENT_PING_SECONDS: Final = 10.0

# Jobs.
SPEC_BYTES: Final = 512 * KIB
LIVE_JOBS: Final = 10_000
JOBS: Final = 100_000
PAGE_SIZE: Final = 50
PAGE_SIZE_MOST: Final = 1000
PAGE_BYTES: Final = 3 * MIB
FILTER_TERMS: Final = 16
VIOLATIONS: Final = 100
REQUEST_IDS_KEPT_SECONDS: Final = 24 * 3600
WATCH_BATCH: Final = 500
NAME_TRIES: Final = 20

# A job that is lost again and again.
SAME_CAUSE_RUNS: Final = 3
NO_PROGRESS_SECONDS: Final = 3600.0

# Datasets.
UPLOAD_BYTES: Final = 4 * GIB
UPLOADS: Final = 4
UPLOAD_IDLE_SECONDS: Final = 60.0
INGEST_SECONDS: Final = 900.0
INGEST_ANSWER_BYTES: Final = 4 * MIB
DATASETS: Final = 10_000
DATASET_VERSIONS: Final = 100
DISK_FREE_BYTES: Final = 512 * MIB

# The store.
STORE_QUEUE: Final = 10_000
STORE_BATCH: Final = 200
STORE_OPEN_SECONDS: Final = 5.0

# The agent's stream.
AGENT_MESSAGE_BYTES: Final = 16 * MIB
AGENT_EVENTS: Final = 500
AGENT_GAPS: Final = 1000
AGENT_HELLO_SECONDS: Final = 10.0
AGENT_PULSE_SECONDS: Final = 5.0
AGENT_SILENCE_SECONDS: Final = 20.0
AGENT_AWAY_SHOWN_SECONDS: Final = 5.0
REMOVALS: Final = 1000

# HTTP.
HTTP_CONNECTIONS: Final = 64
HTTP_KEEPALIVE_SECONDS: Final = 5

# Stopping.
DRAIN_SECONDS: Final = 2.0
CHILD_STOP_SECONDS: Final = 8.0
HOUSEKEEPING_SECONDS: Final = 60.0

# Starting.
RAY_START_SECONDS: Final = 60.0
READY_SECONDS: Final = 90.0
RESTARTS: Final = 5
RESTART_WINDOW_SECONDS: Final = 60.0
