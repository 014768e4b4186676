"""The limits of reading an upload: every bound of the ingest process stands here."""

from __future__ import annotations

# Memory the process may hold: its heap and its private maps.
MAX_MEMORY_BYTES = 1 << 30
# Address space it may reserve; above the memory, since libraries reserve more than they use.
MAX_ADDRESS_BYTES = 3 << 30
# Processor time it may spend.
MAX_CPU_SECONDS = 900
# Files it may hold open.
MAX_OPEN_FILES = 64
# Size of an upload, and of each column file that is written.
MAX_UPLOAD_BYTES = 8 << 30
MAX_COLUMN_BYTES = 32 << 30

# Rows of a dataset.
MAX_ROWS = 1_000_000_000
# Numbers in one row's input.
MAX_INPUT_VALUES = 1 << 20
# Largest index into a table of vectors: larger whole numbers are not exact in float32.
MAX_INDEX = (1 << 24) - 1
# Axes of one row's input.
MAX_INPUT_DIMENSIONS = 6
# Numbers to predict per row.
MAX_TARGET_VALUES = 65_536
# Classes: as many as a job may weigh.
MAX_CLASSES = 65_536
# Characters of a column's or a class's name.
MAX_NAME_CHARACTERS = 256
# Size of all column names, and of all class names, as JSON.
MAX_NAMES_BYTES = 1 << 20

# Members of an archive.
MAX_ARCHIVE_MEMBERS = 1024
# Characters of an array's header.
MAX_ARRAY_HEADER_BYTES = 10_000
# How much larger than its compressed form a member may be, once it is larger than the floor.
MAX_COMPRESSION_RATIO = 400
COMPRESSION_RATIO_FLOOR_BYTES = 256 << 20

# Columns of a table.
MAX_TABLE_COLUMNS = 16_384
# Bytes of one line, and characters of one field.
MAX_LINE_BYTES = 4 << 20
MAX_FIELD_CHARACTERS = 131_072
# Lines that are looked at for a header that was not where it should be.
MAX_PROBED_LINES = 100

# Numbers that are held at once while a column is read or written.
BLOCK_VALUES = 1 << 18

# Faults that are told of one file, and rows that are named in one.
MAX_VIOLATIONS = 20
MAX_NAMED_ROWS = 5
# Names that one sentence lists.
MAX_LISTED_NAMES = 10
# Characters of a cell that a sentence quotes.
MAX_QUOTED_CHARACTERS = 40
