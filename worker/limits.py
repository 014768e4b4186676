"""The limits of a worker; all of them stand in docs/limits.md."""

from __future__ import annotations

# Most numbers that one model may learn: 8 GiB of float32.
MAX_PARAMETERS = 2**31

# Most elements of one row's activation at any layer, of a window, and of the scores of an attention.
MAX_ACTIVATION = 2**28

# Most buffer layouts (stack shapes with their subtrees) that a model keeps; the oldest is dropped.
MAX_PASSES = 8

# Numbers to predict per row up to which R2 is computed: it takes three sums for each of them.
MAX_R2_OUTPUTS = 1024

# Rows of a dataset that one draw of the order or the split may cover.
MAX_ROWS = 2**32

# Time for both ends of a link to prove the group's key.
HANDSHAKE_TIMEOUT_S = 10.0

# Time to have all links of a new group.
CONNECT_TIMEOUT_S = 30.0

# Connections to a worker that may be in the handshake at once; others wait in the system's queue.
MAX_HANDSHAKES = 64

# Wait for a peer within a step, as a multiple of the median step; never below the floor that the coordinator gives.
STEP_DEADLINE_FACTOR = 10

# Longest silence while a range of a vector is sent to the coordinator or received by it.
TRANSFER_TIMEOUT_S = 30.0

# Bytes that are sent, received or hashed at a time.
TRANSFER_BYTES = 4 << 20

# Step times that a stretch keeps for its median.
STEP_TIMES = 4096

# Rows that are named when numbers of a step are not finite.
NAMED_ROWS = 16

# Skipped steps of a stretch that are located, each of which takes its pass once more; and how many may follow each other.
NAMED_SKIPS = 4
SKIPPED_IN_A_ROW = 100

# Rows of a gradient check, elements of one tensor that it compares, and evaluations of the loss that all of them take; one
# element of each tensor is compared whatever it takes.
GRADIENT_CHECK_ROWS = 16
GRADIENT_CHECK_ELEMENTS = 50
GRADIENT_CHECK_EVALUATIONS = 20_000

# Time for the elements of a gradient check; when it is up, a tensor gets one element and no more.
GRADIENT_CHECK_TIME_S = 40.0

# Characters of a failure's trace that is sent; its end is kept.
TRACE_CHARACTERS = 20_000
