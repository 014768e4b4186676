"""The process that reads what people upload: `python -m worker.data.ingest --upload FILE --out DIR --header JSON`.

It runs behind limits, executes nothing that it reads, leaves a dataset version in DIR, and says so in one JSON line:
{"ok": true, "dataset": {...}} or {"ok": false, "violations": [...]}. Any other end is a fault of ours.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep.contract.errors import UserError

if TYPE_CHECKING:
    from lockstep.v1.dataset_service_pb2 import UploadHeader


def ingest(upload: Path, out: Path, header: UploadHeader) -> dict[str, Any]:
    """Reads one upload into `out` and gives the document of dataset.json. Raises UserError."""
    from worker.data.csv_lines import Dialect
    from worker.data.csv_table import read_csv
    from worker.data.dataset_writer import DatasetWriter
    from worker.data.limits import MAX_MEMORY_BYTES, MAX_UPLOAD_BYTES
    from worker.data.npz import read_npz

    size = upload.stat().st_size
    if size > MAX_UPLOAD_BYTES:
        raise UserError.of("file", f"{size} bytes", f"at most {MAX_UPLOAD_BYTES} bytes are read", "TOO_LARGE")
    try:
        with DatasetWriter(out) as writer:
            if header.HasField("csv"):
                csv = header.csv
                return read_csv(upload, csv.label, Dialect(csv.delimiter or ",", csv.decimal or ".", csv.skip_lines), writer)
            return read_npz(upload, header.npz.inputs or "x", header.npz.labels or "y", writer)
    except MemoryError as error:
        remedy = f"reading it needs more than {MAX_MEMORY_BYTES} bytes of memory: make its rows smaller"
        raise UserError.of("file", "", remedy, "TOO_LARGE") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the process's exit status."""
    parser = argparse.ArgumentParser("python -m worker.data.ingest", description="Reads one upload into a dataset version.")
    parser.add_argument("--upload", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--header", required=True, help="lockstep.v1.UploadHeader as JSON")
    options = parser.parse_args(arguments)
    # One thread: BLAS is not used here, and its threads' stacks would count against the limits.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

    from google.protobuf import json_format

    from lockstep.v1.dataset_service_pb2 import UploadHeader
    from worker.data.confinement import confine

    confine()
    try:
        header = json_format.Parse(options.header, UploadHeader())
        answer: dict[str, Any] = {"ok": True, "dataset": ingest(options.upload, options.out, header)}
    except UserError as error:
        fields = ("place", "value", "remedy", "reason")
        violations = [{field: getattr(violation, field) for field in fields} for violation in error.violations]
        answer = {"ok": False, "violations": violations}
    sys.stdout.write(json.dumps(answer, allow_nan=False) + "\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
