"""A table's bytes as records: UTF-8 lines of bounded length, and the fields between delimiters and quotes."""

from __future__ import annotations

import csv
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lockstep.contract.errors import UserError
from worker.data.limits import MAX_FIELD_CHARACTERS, MAX_LINE_BYTES

UTF8_BOM = b"\xef\xbb\xbf"


@final
@dataclass(frozen=True, slots=True)
class Dialect:
    """How a table is written: one character between fields, one before the fraction, lines to pass over before the header."""

    delimiter: str = ","
    decimal: str = "."
    skip_lines: int = 0


def text_lines(path: Path, skip_lines: int = 0) -> Generator[str]:
    """The lines with their ends, without a byte-order mark and without the first `skip_lines`.

    Raises UserError with the byte's offset at what is not UTF-8, at a NUL byte, or at a line that is too long.
    """
    offset = 0
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                value = f"more than {MAX_LINE_BYTES} bytes without a line end"
                raise UserError.of(f"line {number}", value, "end each row with a line feed", "LINE_TOO_LONG")
            if offset == 0:
                _check_beginning(line)
            if b"\0" in line:
                place = f"line {number}, byte {offset + line.index(0)} of the file"
                raise UserError.of(place, "a NUL byte", "a CSV file is text: save the table as CSV in UTF-8", "NOT_TEXT")
            bare = line[len(UTF8_BOM) :] if offset == 0 and line.startswith(UTF8_BOM) else line
            try:
                text = bare.decode("utf-8")
            except UnicodeDecodeError as error:
                at = offset + len(line) - len(bare) + error.start
                place = f"line {number}, byte {at} of the file"
                remedy = "the file is not UTF-8: save it as CSV UTF-8"
                raise UserError.of(place, f"byte 0x{bare[error.start]:02x}", remedy, "NOT_UTF8") from error
            offset += len(line)
            if number > skip_lines:
                yield text


def _check_beginning(line: bytes) -> None:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError.of("file", "UTF-16", "save it as CSV UTF-8", "NOT_UTF8")
    if line.startswith((b"PK\x03\x04", b"\x1f\x8b", b"%PDF", b"\x93NUMPY", b"\xd0\xcf\x11\xe0")):
        remedy = "a CSV file is text: save the table as CSV in UTF-8, not compressed"
        raise UserError.of("file", f"a file that begins with {line[:4]!r}", remedy, "NOT_TEXT")


@final
@dataclass(frozen=True, slots=True)
class Record:
    """One record: its fields, the line of the file on which it begins (from 1)."""

    fields: list[str]
    line: int


def records(path: Path, dialect: Dialect) -> Generator[Record]:
    """The records of a table; lines with nothing on them are passed over. Raises UserError at a broken quote."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    with closing(text_lines(path, dialect.skip_lines)) as lines:
        reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True)
        while True:
            line = dialect.skip_lines + reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _quote_error(str(error), line) from error
            if fields:
                yield Record(fields, line)


def _quote_error(message: str, line: int) -> UserError:
    if "unexpected end of data" in message or "field larger than" in message:
        remedy = 'a field that begins with " ends with ", and a quote inside it is doubled'
        return UserError.of(f"line {line}", "a quote that is not closed, in the record that begins here", remedy, "CSV_QUOTES")
    if "new-line character" in message:
        return UserError.of(f"line {line}", "a carriage return inside a field", "end lines with LF or CRLF", "CSV_QUOTES")
    remedy = 'write a field either without quotes or wholly inside them, and double a quote inside: "5"" disk"'
    return UserError.of(f"line {line}", "text after a closing quote, in the record that begins here", remedy, "CSV_QUOTES")
