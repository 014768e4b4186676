"""Every bound of the agent and of a coordinator: sizes, counts, and how long anything may wait."""

from __future__ import annotations

import os

MIB = 1 << 20

# --- pipes and spool

# A message on a pipe or in the spool.
FRAME_BYTES = 16 * MIB
# Beyond this size of a run's spool progress is dropped; everything else is still written.
SPOOL_PROGRESS_BYTES = 224 * MIB
# How long an event waits for space on a full disk.
SPOOL_FULL_S = 60.0
# Characters of a reason or a notice that is sent to people.
REASON_CHARACTERS = 2000

# --- the agent

# Backoff between attempts to reach the API server.
RECONNECT_FIRST_S = 0.2
RECONNECT_LAST_S = 5.0
# A beat of the stream, and the silence after which it counts as dead.
PULSE_S = 5.0
SILENCE_S = 20.0
# How often spools are looked at for new events, and wishes compared with what runs.
SPOOL_POLL_S = 0.1
RECONCILE_S = 1.0
# Events that are sent and not acknowledged; more wait in the spool.
UNACKNOWLEDGED_EVENTS = 2000
# A coordinator that was killed must be gone after this.
KILL_S = 10.0
# Grace for a coordinator to end by itself, once it was told to cancel.
CANCEL_GRACE_S = 15.0
# The warm coordinator looks at the nodes this often, and counts as stuck when it is silent for so long.
CAPACITY_POLL_S = 1.0
CAPACITY_SILENCE_S = 30.0
# The next warm one is started when the workers of a run have, or after this.
WARM_AFTER_S = 10.0
# Backoff between starts of the warm coordinator.
WARM_FIRST_S = 0.5
WARM_LAST_S = 10.0
# Coordinators that run at once.
RUNS = 256
# A message of the stream.
MESSAGE_BYTES = 16 * MIB

# --- a coordinator

# The lock of a job, which the coordinator before may still hold for a moment.
JOB_LOCK_S = 60.0
# Placing the workers and hearing from each of them.
GROUP_START_S = 120.0
# join, and connect of peers.
JOIN_S = 60.0
CONNECT_S = 60.0
# Building the model and opening the dataset; reading a checkpoint.
PREPARE_S = 300.0
RESTORE_S = 300.0
# A round of evaluation; offering a snapshot.
EVALUATE_S = 600.0
SNAPSHOT_S = 300.0
# One tensor of a gradient check, whose elements take at most worker.limits.GRADIENT_CHECK_TIME_S in all.
GRADIENT_CHECK_S = 300.0
# Once a worker is lost, the others' answers are awaited this much longer.
LOSS_GRACE_S = 0.3
# How long a wait lasts before it looks for a cancel.
POLL_S = 0.2
# Between two attempts to find space for a checkpoint that cannot be put off.
RETRY_S = 3.0
# After replacements that did not fit, or whose group failed before its first stretch, the next ones are asked for so much
# later, twice as long each time.
HIRE_FIRST_S = 3.0
HIRE_LAST_S = 300.0
# A hired worker that died before it joined: the next one is started after this.
HIRE_AGAIN_S = 10.0
# Groups of a run that may fail by the same cause, and the time that they may step in vain, with no stretch completed between.
SAME_CAUSE_GROUPS = 3
NO_PROGRESS_S = 1800
# A peer within a step, and within the first one. Settings, so that tests need not wait.
STEP_DEADLINE_FLOOR_S = float(os.environ.get("LOCKSTEP_STEP_DEADLINE_FLOOR_S", "30"))
FIRST_STEP_DEADLINE_S = float(os.environ.get("LOCKSTEP_FIRST_STEP_DEADLINE_S", "300"))
# Beats to workers; a worker that hears nothing for so long ends itself.
HEARTBEAT_S = 5.0
WORKER_SILENCE_S = 30.0
# A stretch lasts this long, or so many times the copying of the state; it grows at most by this factor from one to the next.
STRETCH_S = 1.0
STRETCH_COPIES = 50
STRETCH_GROWTH = 8
STRETCH_STEPS = 1_000_000
# Progress is written this often.
PROGRESS_S = 1.0
# Checkpoints without a cadence of their own lie at epochs' ends, at least so far apart.
CHECKPOINT_APART_S = 10.0
# Checkpoints that are kept when the spec does not say, and damaged ones that are kept for a look.
CHECKPOINTS_KEPT = 3
BAD_CHECKPOINTS_KEPT = 3

# Skipped steps of a job that are told; the others are counted.
SKIP_NOTICES = 20

# A dataset's description, dataset.json.
DATASET_JSON_BYTES = 16 * MIB

# --- what a node must have

DESCRIPTORS = 1024
SPACE_BYTES = 256 * MIB
# Looking at one node, how often its answer is asked after, and how often a node that lacks something is looked at again.
PREFLIGHT_S = 20.0
LOOK_POLL_S = 0.05
PREFLIGHT_AGAIN_S = 30.0
# Workers that a warm coordinator keeps ready on a node.
READY_WORKERS = 8
# Those for slots that others hold are made so long after it has started.
READY_ALL_S = 60.0
# After one of them died, none is made for so long.
READY_AGAIN_S = 10.0
# Those who stay in a group are placed anew where they are, before others are asked for; after so long these are anyway.
PLACE_FIRST_S = 5.0
