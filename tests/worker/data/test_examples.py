"""The example data sets: what examples/DATA.md says of them is so."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lockstep.v1.dataset_service_pb2 import CsvFormat, NpzFormat, UploadHeader
from worker.data.ingest import ingest

EXAMPLES = Path(__file__).parents[3] / "examples"
HEADERS = {
    "digits.npz": UploadHeader(npz=NpzFormat()),
    "iris.csv": UploadHeader(csv=CsvFormat(label="species")),
}


def test_the_digests_are_those_that_are_documented(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (\S+) \| `([0-9a-f]{64})` \| `([0-9a-f]{64})` \|$", (EXAMPLES / "DATA.md").read_text(), re.M)
    assert {name for name, _, _ in rows} == set(HEADERS)
    for name, file_digest, dataset_digest in rows:
        assert hashlib.sha256((EXAMPLES / name).read_bytes()).hexdigest() == file_digest
        assert ingest(EXAMPLES / name, tmp_path / name, HEADERS[name])["digest"] == dataset_digest


def test_digits_are_images_of_ten_classes(tmp_path: Path) -> None:
    dataset = ingest(EXAMPLES / "digits.npz", tmp_path / "out", HEADERS["digits.npz"])
    x = np.load(tmp_path / "out" / "x.npy")
    assert x.shape == (1797, 64) and x.min() == 0 and x.max() == 16
    assert dataset["target"]["classes"]["count"] == 10 and min(dataset["target"]["classes"]["rows"]) == 174


def test_iris_has_fifty_of_each_species(tmp_path: Path) -> None:
    dataset = ingest(EXAMPLES / "iris.csv", tmp_path / "out", HEADERS["iris.csv"])
    names = ["setosa", "versicolor", "virginica"]
    assert dataset["target"] == {"classes": {"count": 3, "names": names, "rows": [50, 50, 50]}}
    assert dataset["input_names"] == ["sepal_length", "sepal_width", "petal_length", "petal_width"]


@pytest.mark.parametrize(
    ("script", "name", "header"),
    [
        ("make_text.py", "brackets.npz", UploadHeader(npz=NpzFormat())),
        ("make_friedman.py", "friedman.csv", UploadHeader(csv=CsvFormat(label="y"))),
    ],
)
def test_what_a_script_makes_is_what_is_documented(tmp_path: Path, script: str, name: str, header: UploadHeader) -> None:
    shutil.copy(EXAMPLES / script, tmp_path)
    subprocess.run([sys.executable, tmp_path / script], check=True, timeout=60)
    (digest,) = re.findall(rf"^\| {name} \| `([0-9a-f]{{64}})` \|$", (EXAMPLES / "DATA.md").read_text(), re.M)
    assert ingest(tmp_path / name, tmp_path / "out", header)["digest"] == digest


def test_a_bracket_is_answered_by_the_kind_that_is_open(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "make_text.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "make_text.py"], check=True, timeout=60)
    made = np.load(tmp_path / "brackets.npz")
    for tokens, labels in zip(made["x"][:200], made["y"][:200], strict=True):
        text = "".join(" ([{)]}"[token] for token in tokens)
        for position, label in enumerate(labels):
            before = text[: position + 1]
            while (shorter := before.replace("()", "").replace("[]", "").replace("{}", "")) != before:
                before = shorter
            assert label == (-100 if text[position] == " " else " ([{".index(before[-1:] or " "))
