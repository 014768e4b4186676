"""What commands print: results on stdout (text, or one JSON object a line), talk on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from lockstep.contract.errors import UserError


def printable(text: str) -> str:
    """Text without the control characters with which it could steer a terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


def write(line: str) -> None:
    """A line on stdout, at once. Raises UserError where stdout takes no more, BrokenPipeError where nobody reads it."""
    try:
        click.echo(line)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_stdout()
        raise UserError.of("stdout", "", f"it cannot be written: {error.strerror or error}", "STDOUT_UNWRITABLE") from error


def abandon_stdout() -> None:
    """What is still buffered has nowhere to go: at exit it would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def result(text: str) -> None:
    """A line of the result."""
    write(printable(text))


def talk(text: str) -> None:
    """A line for people."""
    click.echo(printable(text), err=True)


def json_line(value: Message | dict[str, Any]) -> None:
    """One object on one line: protobuf JSON with the field names of the proto."""
    plain = MessageToDict(value, preserving_proto_field_name=True) if isinstance(value, Message) else value
    write(json.dumps(plain, ensure_ascii=True, allow_nan=False))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns side by side, the last one as wide as it likes."""
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        write("  ".join([*cells, line[-1]]).rstrip())


def pairs(values: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line; pairs without a value are left out."""
    shown = [(name, value) for name, value in values if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        result(f"{name.ljust(width)}  {value}")


def number(value: float, digits: int = 4) -> str:
    """A real number for people; what is not finite is said in words."""
    if math.isnan(value):
        return "not a number"
    return f"{value:.{digits}g}" if math.isfinite(value) else "infinite" if value > 0 else "minus infinite"


def percent(value: float) -> str:
    """A part of 1 for people."""
    return f"{100 * value:.2f} %" if math.isfinite(value) else number(value)


def size(count: int) -> str:
    """Bytes for people."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def moment(time: Timestamp) -> str:
    """A time in UTC to the second; nothing for a time that is not set."""
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S}Z" if time.seconds else ""


def duration(seconds: float) -> str:
    """A time span for people."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
