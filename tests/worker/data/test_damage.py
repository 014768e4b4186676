"""Whatever bytes arrive, a dataset comes out or a UserError with places and remedies, never anything else."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lockstep.contract.errors import UserError
from lockstep.v1.dataset_service_pb2 import CsvFormat, NpzFormat, UploadHeader
from worker.data.ingest import ingest

TRIALS = 500
PIECES = b'",\n\r 01.e-x;\t\xef\xbb\xbf\x00PK'


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.asfortranarray(np.arange(12.0).reshape(4, 3)), y=np.array([0, 1, 0, 1]))
    return buffer.getvalue()


def table() -> bytes:
    return b'a,b,label\n1,2.5,x\n"3",4e1,y\n5,6,"x"\n\n7,8,y\n'


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content with a few bytes changed, put in, taken out, or cut off."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) or 1)
        match draw.randrange(4):
            case 0 if data:
                data[at] = draw.randrange(256)
            case 1:
                data[at:at] = bytes(draw.choices(PIECES, k=draw.randint(1, 3)))
            case 2:
                del data[at : at + draw.randint(1, 5)]
            case _:
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize(
    ("content", "header"),
    [
        (archive, UploadHeader(npz=NpzFormat())),
        (table, UploadHeader(csv=CsvFormat(label="label"))),
        (table, UploadHeader(csv=CsvFormat(label="label", delimiter=";", decimal=",", skip_lines=1))),
    ],
)
def test_damage_never_gets_past(content: Callable[[], bytes], header: UploadHeader, tmp_path: Path) -> None:
    draw = random.Random(20)
    upload, out = tmp_path / "upload", tmp_path / "out"
    for _ in range(TRIALS):
        data = damaged(content(), draw)
        upload.write_bytes(data)
        try:
            ingest(upload, out, header)
        except UserError as error:
            assert all(violation.place and violation.remedy and violation.reason for violation in error.violations), data
        shutil.rmtree(out)
