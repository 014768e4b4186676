"""The child process: its one line of answer, its limits, its bounded memory."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .conftest import Reading

WATCHED = """
import resource, sys
from worker.data.ingest import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""

CONFINED = """
import json, resource, socket
from worker.data.confinement import confine
confine()
names = ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE")
interfaces = [name for _, name in socket.if_nameindex()]
try:
    bytearray(2 << 30)
    memory = "given"
except MemoryError:
    memory = "refused"
print(json.dumps({"limits": {name: resource.getrlimit(getattr(resource, name)) for name in names}, "memory": memory,
                  "interfaces": interfaces}))
"""


def peak_bytes(reading: Reading, upload: Path, header: str) -> int:
    """The largest memory of a child that reads the upload."""
    command = [sys.executable, "-c", WATCHED, "--upload", str(upload), "--out", str(reading.folder / f"{upload.name}-out")]
    done = subprocess.run([*command, "--header", header], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["ok"]
    return int(done.stderr) * 1024


def test_one_json_line_says_what_was_read_or_what_is_wrong(reading: Reading) -> None:
    header = json.dumps({"dataset_id": "a", "size_bytes": "12", "sha256": "0" * 64, "csv": {"label": "label"}})
    good = reading.child(reading.upload("a,label\n1,0\n2,1\n"), header)
    assert good["ok"] and good["dataset"] == reading.csv("a,label\n1,0\n2,1\n")[0]
    bad = reading.child(reading.upload("a,label\n1,0\n2\n"), header)
    assert bad == {
        "ok": False,
        "violations": [
            {
                "place": "row 2 (line 3)",
                "value": "1 fields",
                "remedy": "the header names 2: each row needs as many (a field with the delimiter in it is quoted)",
                "reason": "RAGGED_ROW",
            }
        ],
    }


def test_memory_does_not_grow_with_the_rows(reading: Reading) -> None:
    few, many = reading.folder / "few", reading.folder / "many"
    row = "1.25,-3.5e2,17,{},0.001,{}\n"
    for path, rows in ((few, 1000), (many, 200_000)):
        path.write_text("a,b,c,d,e,label\n" + "".join(row.format(n % 100, n % 3) for n in range(rows)))
    header = '{"csv": {"label": "label"}}'
    assert peak_bytes(reading, many, header) - peak_bytes(reading, few, header) < 100 << 20


def test_an_archive_in_fortran_order_is_read_in_bounded_memory(reading: Reading) -> None:
    paths = [reading.folder / "small.npz", reading.folder / "large.npz"]
    for path, rows in zip(paths, (1000, 1_500_000), strict=True):
        np.savez(path, x=np.asfortranarray(np.arange(rows * 16, dtype=np.float64).reshape(rows, 16)), y=np.arange(rows) % 5)
    small, large = (peak_bytes(reading, path, '{"npz": {}}') for path in paths)
    assert paths[1].stat().st_size > 190 << 20 and large - small < 60 << 20


def test_the_process_is_confined() -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    assert seen["memory"] == "refused"
    assert all(hard != resource.RLIM_INFINITY for _, hard in seen["limits"].values())
    assert seen["limits"]["RLIMIT_CORE"] == [0, 0]
    assert seen["interfaces"] in (["lo"], [name for _, name in socket.if_nameindex()])


@pytest.mark.parametrize(
    ("values", "largest"),
    [
        ([[0, 3], [7, 2]], 7),
        ([[0.0, 3.0], [7.0, 2.0]], 7),
        ([[0, 3], [7, 2.5]], None),
        ([[0, 3], [-1, 2]], None),
        ([[0, 3], [2**24 - 1, 2]], 2**24 - 1),
        ([[2.0e30, 5.97e24], [6.4e23, 1.9e27]], None),  # kilograms, and whole ones
    ],
)
def test_the_largest_index_is_that_of_whole_numbers(reading: Reading, values: list[list[float]], largest: int | None) -> None:
    document, _ = reading.arrays(x=np.array(values), y=np.array([0, 1]))
    assert document["largest_index"] == largest
