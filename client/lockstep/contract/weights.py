"""The hash of weights: over tensors, and over a safetensors file read with nothing but the standard library."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from lockstep.contract.errors import UserError

# The header of a safetensors file is JSON; ours stay far below this.
MAX_HEADER_BYTES = 16 * 1024 * 1024

CHUNK_BYTES = 1024 * 1024


def weights_sha256(tensors: Iterable[tuple[str, Any]]) -> str:
    """SHA-256, in hex, over the bytes of the tensors in ascending byte order of their names; nothing else is hashed.

    Each tensor is a C-contiguous buffer of little-endian float32 in the public layout. Raises ValueError for a name that comes
    twice or a buffer that is not contiguous.
    """
    named = sorted(((name.encode("utf-8"), buffer) for name, buffer in tensors), key=lambda pair: pair[0])
    digest = hashlib.sha256()
    for index, (name, buffer) in enumerate(named):
        if index and named[index - 1][0] == name:
            raise ValueError(f"the tensor {name.decode('utf-8')} comes twice")
        digest.update(buffer)
    return digest.hexdigest()


def weights_sha256_of_file(path: str | os.PathLike[str]) -> str:
    """`weights_sha256` of the tensors of a safetensors file, read in pieces.

    Raises UserError if the file is not whole: a header that lies, a tensor that is not float32, bytes that no tensor owns.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        spans, data_begin = _spans(file, size, str(path))
        digest = hashlib.sha256()
        for _, begin, end in sorted(spans):
            file.seek(data_begin + begin)
            left = end - begin
            while left:
                chunk = file.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise _damaged(str(path), "it became shorter while it was read")
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def _spans(file: BinaryIO, size: int, place: str) -> tuple[list[tuple[bytes, int, int]], int]:
    """(name, begin, end) of each tensor, relative to where the data begins, and that place."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise _damaged(place, f"its {size:,} bytes do not begin with a safetensors header")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
        spans = [_span(name, entry) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(place, f"its header cannot be read: {error}") from error
    at = 0
    for _, begin, end in sorted(spans, key=lambda span: (span[1], span[2])):
        if begin != at:
            raise _damaged(place, f"its tensors do not follow each other at byte {at:,}")
        at = end
    if at != size - 8 - length:
        raise _damaged(place, f"its tensors take {at:,} bytes, but it holds {size - 8 - length:,}")
    return spans, 8 + length


def _span(name: str, entry: dict[str, Any]) -> tuple[bytes, int, int]:
    begin, end = entry["data_offsets"]
    shape = entry["shape"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"{name} has a shape or offsets that are not whole numbers")
    if entry["dtype"] != "F32":
        raise ValueError(f"{name} is {entry['dtype']}, not F32")
    if end - begin != 4 * math.prod(shape):
        raise ValueError(f"{name} takes {end - begin:,} bytes, its shape {4 * math.prod(shape):,}")
    return name.encode("utf-8"), begin, end


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name comes twice")
    return values


def _damaged(place: str, what: str) -> UserError:
    return UserError.of(place, what, "pull the model again; its weights cannot be trusted", "WEIGHTS_DAMAGED")
