"""An .npz archive as untrusted bytes: directory, headers of arrays, values block by block; nothing is unpickled."""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lockstep.contract.errors import UserError
from worker.data.findings import listed, quoted
from worker.data.limits import (
    BLOCK_VALUES,
    COMPRESSION_RATIO_FLOOR_BYTES,
    MAX_ARCHIVE_MEMBERS,
    MAX_ARRAY_HEADER_BYTES,
    MAX_COLUMN_BYTES,
    MAX_COMPRESSION_RATIO,
    MAX_LISTED_NAMES,
)

LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
# What zipfile raises at bytes that lie.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError)
# What NumPy raises at a header that is none.
HEADER_ERRORS = (ValueError, TypeError, SyntaxError, RecursionError, KeyError, OverflowError, tokenize.TokenError)
COPY_AGAIN = "the file is damaged or cut short: copy or write it again"


@final
@dataclass(frozen=True, slots=True)
class Member:
    """An array of the archive, of which only the header was read; `data_offset` is where its values begin in the member."""

    name: str
    info: zipfile.ZipInfo
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    data_offset: int

    @property
    def data_bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


@final
class NpzArchive:
    """Reads arrays of an .npz file.

    Raises UserError where the file is no archive, is damaged, or would grow beyond the limits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = os.path.getsize(path)
        self._check_beginning()
        try:
            self._zip = zipfile.ZipFile(path)
        except (*ZIP_ERRORS, OSError, ValueError) as error:
            raise _damaged("file", f"{self._size} bytes{self._promised()}") from error
        infos = self._zip.infolist()
        if len(infos) > MAX_ARCHIVE_MEMBERS:
            raise UserError.of("file", f"{len(infos)} members", f"at most {MAX_ARCHIVE_MEMBERS} are read", "ARCHIVE_UNSAFE")
        self._infos = {info.filename.removesuffix(".npy"): info for info in infos}
        if len(self._infos) != len(infos):
            raise UserError.of("file", "two members of one name", "name each array once", "ARCHIVE_UNSAFE")

    @property
    def names(self) -> list[str]:
        """The arrays' names, in the order of the archive."""
        return list(self._infos)

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def member(self, name: str) -> Member:
        """Reads the header of one array. Raises UserError where it is missing, is not plain numbers, or cannot be whole."""
        place = f"array {name}"
        info = self._infos.get(name)
        if info is None:
            names = listed([quoted(other) for other in self.names[:MAX_LISTED_NAMES]], len(self.names)) or "none"
            remedy = f"the file has no such array, but {names}: name the one to read"
            raise UserError.of(place, "", remedy, "ARRAY_MISSING")
        _check_member(place, info)
        with self._open(place, info) as stream:
            try:
                dtype, shape, fortran_order = _read_header(stream)
            except UserError:
                raise
            except HEADER_ERRORS as error:
                raise _damaged(place, "a header that is not that of an array") from error
            offset = stream.tell()
        if dtype.hasobject:
            remedy = "arrays of Python objects are never read, since that could run code: store plain numbers"
            raise UserError.of(place, f"dtype {_dtype_name(dtype)}", remedy, "ARRAY_OBJECTS")
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            remedy = "store whole or real numbers of at most 64 bits"
            raise UserError.of(place, f"dtype {_dtype_name(dtype)}", remedy, "ARRAY_TYPE")
        member = Member(name, info, dtype, shape, fortran_order and len(shape) > 1, offset)
        if offset + member.data_bytes != info.file_size:
            value = f"{info.file_size - offset} bytes of values where shape {shape} of {dtype} wants {member.data_bytes}"
            raise _damaged(place, value)
        return member

    def blocks(self, member: Member, scratch: Path) -> Iterator[NDArray[Any]]:
        """The rows of an array in order, as blocks (R, *row_shape) of its own dtype.

        An array in Fortran order is first laid out in the file `scratch`, which is removed again.
        """
        if member.fortran_order:
            yield from self._fortran_blocks(member, scratch)
            return
        row_shape = member.shape[1:]
        row_bytes = math.prod(row_shape) * member.dtype.itemsize
        block_rows = max(1, BLOCK_VALUES // max(1, math.prod(row_shape)))
        with self._values(member) as stream:
            for first in range(0, member.shape[0], block_rows):
                rows = min(block_rows, member.shape[0] - first)
                data = _read_exactly(stream, rows * row_bytes, f"array {member.name}")
                yield np.frombuffer(data, member.dtype).reshape(rows, *row_shape)
            # Reading to the end is what makes zipfile compare the checksum.
            stream.read(1)

    def _fortran_blocks(self, member: Member, scratch: Path) -> Iterator[NDArray[Any]]:
        """Column after column in the file: every block gathers its rows from all of them."""
        rows, columns = member.shape[0], math.prod(member.shape[1:])
        itemsize = member.dtype.itemsize
        with open(scratch, "x+b") as laid_out:
            scratch.unlink()
            with self._values(member) as stream:
                while chunk := stream.read(1 << 20):
                    laid_out.write(chunk)
            laid_out.flush()
            descriptor = laid_out.fileno()
            block_rows = max(1, BLOCK_VALUES // columns)
            for first in range(0, rows, block_rows):
                count = min(block_rows, rows - first)
                block = np.empty((columns, count), member.dtype)
                for column in range(columns):
                    wanted = memoryview(block[column]).cast("B")
                    if os.preadv(descriptor, [wanted], (column * rows + first) * itemsize) != len(wanted):
                        raise OSError("the scratch file ended early")
                # The columns run over the row's axes in Fortran order, too.
                reversed_axes = block.T.reshape(count, *member.shape[:0:-1])
                yield reversed_axes.transpose(0, *range(reversed_axes.ndim - 1, 0, -1))

    @contextmanager
    def _values(self, member: Member) -> Iterator[IO[bytes]]:
        with self._open(f"array {member.name}", member.info) as stream:
            _read_exactly(stream, member.data_offset, f"array {member.name}")
            yield stream

    @contextmanager
    def _open(self, place: str, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
        try:
            opened = self._zip.open(info)
        except (*ZIP_ERRORS, OSError, ValueError, RuntimeError) as error:
            # OSError and ValueError come of offsets and names that lie.
            raise _damaged(place, "a member that is not where the directory says") from error
        try:
            with opened as stream:
                yield stream
        except ZIP_ERRORS as error:
            raise _damaged(place, f"a member that does not read back ({error})") from error

    def _check_beginning(self) -> None:
        with open(self._path, "rb") as file:
            beginning = file.read(8)
        if beginning.startswith(npy.MAGIC_PREFIX):
            remedy = "put inputs and labels into one archive: numpy.savez('data.npz', x=x, y=y)"
            raise UserError.of("file", "a single .npy array", remedy, "NOT_AN_ARCHIVE")
        if not beginning.startswith(b"PK"):
            remedy = "an .npz archive begins with PK: write it with numpy.savez('data.npz', x=x, y=y)"
            raise UserError.of("file", f"a file that begins with {beginning!r}", remedy, "NOT_AN_ARCHIVE")

    def _promised(self) -> str:
        """What the local headers at the beginning promise beyond the file's end, as far as they can be followed."""
        with open(self._path, "rb") as file:
            at = 0
            for _ in range(MAX_ARCHIVE_MEMBERS):
                file.seek(at)
                header = file.read(LOCAL_HEADER.size)
                if len(header) < LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
                    break
                fields = LOCAL_HEADER.unpack(header)
                flags, packed, unpacked, name_bytes, extra_bytes = fields[2], fields[7], fields[8], fields[9], fields[10]
                name = file.read(name_bytes).decode("utf-8", "replace")
                extra = file.read(extra_bytes)
                if packed == 0xFFFFFFFF and unpacked == 0xFFFFFFFF and len(extra) >= 20:
                    packed = struct.unpack_from("<Q", extra, 12)[0]
                if flags & 8:
                    break
                at += LOCAL_HEADER.size + name_bytes + extra_bytes + packed
                if at > self._size:
                    return f", of which {quoted(name)} alone ends at byte {at}"
        return " without the archive's directory, which stands at the end"


def _check_member(place: str, info: zipfile.ZipInfo) -> None:
    """Refuses what would be dangerous or useless to unpack, before a byte is unpacked."""
    if info.flag_bits & 1:
        raise UserError.of(place, "an encrypted member", "write the archive without a password", "ARCHIVE_UNSAFE")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        remedy = "write the archive with numpy.savez or numpy.savez_compressed"
        raise UserError.of(place, f"compression method {info.compress_type}", remedy, "ARCHIVE_UNSAFE")
    if info.file_size > MAX_COLUMN_BYTES:
        raise UserError.of(place, f"{info.file_size} bytes", f"at most {MAX_COLUMN_BYTES} bytes are read", "TOO_LARGE")
    ratio = info.file_size / max(1, info.compress_size)
    if info.file_size > COMPRESSION_RATIO_FLOOR_BYTES and ratio > MAX_COMPRESSION_RATIO:
        remedy = f"at most {MAX_COMPRESSION_RATIO} times: write the archive with numpy.savez, uncompressed"
        value = f"{info.file_size} bytes out of {info.compress_size} ({ratio:.0f} times)"
        raise UserError.of(place, value, remedy, "ARCHIVE_UNSAFE")


def _read_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Dtype, shape and order of an array, from its .npy header alone."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = npy.read_array_header_1_0(stream, max_header_size=MAX_ARRAY_HEADER_BYTES)
    elif version == (2, 0):
        shape, fortran_order, dtype = npy.read_array_header_2_0(stream, max_header_size=MAX_ARRAY_HEADER_BYTES)
    else:
        raise ValueError(f"version {version}")
    if any(size < 0 or size > 1 << 62 for size in shape):
        raise ValueError(f"shape {shape}")
    return dtype, tuple(int(size) for size in shape), bool(fortran_order)


def _read_exactly(stream: IO[bytes], size_bytes: int, place: str) -> bytes:
    data = stream.read(size_bytes)
    if len(data) != size_bytes:
        raise _damaged(place, f"{len(data)} bytes where {size_bytes} more were due")
    return data


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return "object" if dtype == np.dtype(object) else quoted(str(dtype)).strip("'\"")


def _damaged(place: str, value: str) -> UserError:
    return UserError.of(place, value, COPY_AGAIN, "ARCHIVE_DAMAGED")
