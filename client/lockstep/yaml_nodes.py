"""YAML text as nodes with line and column, within limits; anchors, aliases and tags are refused."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.error import Mark, MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from lockstep.contract.errors import UserError, Violation

# Limits of a job file. 512 layers take about 20 KB; each nested residual layer takes five levels.
MAX_FILE_BYTES = 256 * 1024
MAX_NODES = 20_000
MAX_DEPTH = 64

__all__ = [
    "MAX_DEPTH",
    "MAX_FILE_BYTES",
    "MAX_NODES",
    "MappingNode",
    "Mark",
    "Node",
    "ScalarNode",
    "SequenceNode",
    "at",
    "compose",
]


def at(name: str, mark: Mark) -> str:
    """`job.yaml:14:22`, counted from 1."""
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


def compose(content: bytes, name: str) -> Node:
    """The only node of a YAML (or JSON) text. Raises UserError, with the position, for anything else and beyond the limits."""
    if len(content) > MAX_FILE_BYTES:
        remedy = f"a job file has at most {MAX_FILE_BYTES:,} bytes"
        raise UserError.of(name, f"{len(content):,} bytes", remedy, "FILE_TOO_LARGE")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _refused(f"{name}:{line}", "it must be a text file in UTF-8 with YAML or JSON in it") from error
    if name.endswith(".json"):
        # JSON may be indented with tabs, which YAML refuses; inside its strings a tab cannot stand.
        text = text.replace("\t", " ")
    try:
        node: Node | None = _Loader(text, name).get_single_node()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise _refused(at(name, mark) if mark else name, f"it is not YAML: {what}") from error
    except ReaderError as error:
        before = text[: error.position]
        place = f"{name}:{before.count(chr(10)) + 1}:{error.position - before.rfind(chr(10))}"
        raise _refused(place, f"it is not YAML: the character U+{ord(text[error.position]):04X} cannot stand in it") from error
    if node is None:
        raise _refused(name, "it is empty; a job file has the keys dataset, model, loss, optimizer, training")
    return node


class _Loader(yaml.SafeLoader):
    """Composes nodes and looks at each event before it does."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self._name = name
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it untyped
        place = at(self._name, event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            raise _refused(place, f"*{event.anchor} refers to another place; write the value itself")
        if event.anchor is not None:
            raise _refused(place, f"&{event.anchor} marks a place for references; job files have none: leave it out")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _refused(place, f"{tag} is a tag; the field decides what a value means: leave it out")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _refused(place, f"a job file has at most {MAX_NODES:,} keys and values")
        if self._depth == MAX_DEPTH:
            raise _refused(place, f"a job file nests at most {MAX_DEPTH} levels")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _refused(place: str, remedy: str) -> UserError:
    return UserError([Violation(place, "", remedy, "NOT_YAML")])
