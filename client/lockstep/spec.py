"""Job files: YAML or JSON read node by node into a JobSpec, with the line and column of all that is wrong."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from lockstep.contract import rules
from lockstep.contract.errors import UserError, Violation, more
from lockstep.likely import either, homes, likely
from lockstep.scalars import is_null, too_wide, value_of
from lockstep.v1 import job_spec_pb2
from lockstep.yaml_nodes import MAX_FILE_BYTES, MappingNode, Mark, Node, ScalarNode, SequenceNode, at, compose

# More than this and the file is something else.
MAX_VIOLATIONS = 30


@final
@dataclass
class JobFile:
    """A job file as it was read: the spec, and where each of its fields stands."""

    name: str
    spec: job_spec_pb2.JobSpec
    keys: dict[str, Mark] = field(default_factory=dict)
    values: dict[str, Mark] = field(default_factory=dict)

    def located(self, violation: Violation) -> Violation:
        """A violation of the spec with the place in the file before its path: the value's, or the nearest key's around it."""
        path = violation.place.removeprefix("training_job.").removeprefix("spec.")
        if re.split(r"[.\[]", path)[0] not in job_spec_pb2.JobSpec.DESCRIPTOR.fields_by_name:
            return violation
        if not self.name:  # the spec came from a program
            return replace(violation, place=path)
        around = path
        mark = self.values.get(path)
        while mark is None and around:
            around = around[: max(around.rfind("."), around.rfind("["), 0)]
            mark = self.keys.get(around) or self.values.get(around)
        place = at(self.name, mark) if mark else self.name
        return replace(violation, place=f"{place}: {path}")


def read(path: str | os.PathLike[str]) -> JobFile:
    """Reads a job file. Raises UserError with all that is wrong, each with its line and column."""
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UserError.of(name, "", f"it cannot be read: {error.strerror or error}", "FILE_UNREADABLE") from error
    return parse(content, name)


def parse(content: bytes | str, name: str = "job.yaml") -> JobFile:
    """Reads the text of a job file; `name` is what messages call it."""
    root = compose(content.encode("utf-8") if isinstance(content, str) else content, name)
    file = JobFile(name, job_spec_pb2.JobSpec())
    reader = _Reader(file, root)
    reader.message(root, file.spec, "")
    found = [*reader.violations]
    for violation in rules.check(file.spec, given=reader.given):
        if reader.is_news(violation):
            found.append((file.located(violation), reader.order(violation.place)))
    if found:
        found.sort(key=lambda pair: pair[1])
        shown = [violation for violation, _ in found[:MAX_VIOLATIONS]]
        if len(found) > MAX_VIOLATIONS:
            shown.append(replace(more(len(found) - MAX_VIOLATIONS), place=name))
        raise UserError(shown)
    return file


def _within(path: str, refused: str) -> bool:
    return path == refused or path.startswith((f"{refused}.", f"{refused}["))


@final
class _Reader:
    """Fills messages from nodes; the type of the field decides what a scalar means, quotes or not."""

    def __init__(self, file: JobFile, root: Node) -> None:
        self._file = file
        self._present = frozenset(_key_paths(root, ""))
        self.violations: list[tuple[Violation, tuple[int, int]]] = []
        self.refused: set[str] = set()  # paths about which something was said already
        self.choosing: set[str] = set()  # paths of messages whose choice was made, well or badly
        self.given: set[str] = set()  # paths of scalars that stand in the file

    def order(self, path: str) -> tuple[int, int]:
        """Line and column by which violations are sorted; what is nowhere in the file comes last."""
        mark = self._file.values.get(path) or self._file.keys.get(path)
        return (mark.line, mark.column) if mark else (1 << 30, 0)

    def is_news(self, violation: Violation) -> bool:
        """Whether a rule's violation is not what was said already about the same place."""
        if violation.reason == "CHOICE_REQUIRED" and violation.place in self.choosing:
            return False
        return "" not in self.refused and not any(_within(violation.place, path) for path in self.refused)

    def _refuse(self, mark: Mark, path: str, value: object, remedy: str, reason: str = "INVALID_FIELD") -> None:
        place = at(self._file.name, mark)
        violation = Violation(f"{place}: {path}" if path else place, rules.shown(value) if value != "" else "", remedy, reason)
        self.violations.append((violation, (mark.line, mark.column)))
        self.refused.add(path)

    def message(self, node: Node, message: Message, path: str) -> None:
        """A mapping, nothing at all, or the name of an alternative that needs no value."""
        self._file.values.setdefault(path, node.start_mark)
        known = [field.name for field in rules.fields_of(message.DESCRIPTOR)]
        if isinstance(node, MappingNode):
            self._mapping(node, message, path, known)
        elif isinstance(node, ScalarNode) and is_null(node):
            message.SetInParent()
        elif isinstance(node, ScalarNode) and _is_bare_choice(message, node.value):
            getattr(message, node.value).SetInParent()
        else:
            value = node.value if isinstance(node, ScalarNode) else ""
            self._refuse(node.start_mark, path, value, _mapping_remedy(message, value, known))

    def _mapping(self, node: MappingNode, message: Message, path: str, known: list[str]) -> None:
        message.SetInParent()
        chosen: dict[str, str] = {}
        fields = {field.name: field for field in rules.fields_of(message.DESCRIPTOR)}
        for key, value in self._pairs(node, path):
            place = f"{path}.{key.value}" if path else key.value
            field = fields.get(key.value)
            if field is None:
                self._refuse(key.start_mark, place, "", self._unknown(key.value, path, known), "UNKNOWN_KEY")
                self.choosing.add(path)
                continue
            oneof = field.containing_oneof
            if oneof is not None and len(oneof.fields) > 1:
                if oneof.name in chosen:
                    remedy = f"{chosen[oneof.name]} is given already, and only one can be; make it two elements or remove one"
                    self._refuse(key.start_mark, place, "", remedy, "CHOICE_TWICE")
                    continue
                chosen[oneof.name] = field.name
                self.choosing.add(path)
            self._file.keys[place] = key.start_mark
            self._field(field, value, message, place)

    def _pairs(self, node: MappingNode, path: str) -> list[tuple[ScalarNode, Node]]:
        """The pairs of a mapping whose keys are words that come once."""
        seen: dict[str, int] = {}
        pairs = []
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._refuse(key.start_mark, path, "", "a key must be a word", "UNKNOWN_KEY")
            elif key.value in seen:
                place = f"{path}.{key.value}" if path else key.value
                self._refuse(
                    key.start_mark,
                    place,
                    "",
                    f"the key stands twice, first in line {seen[key.value]}; remove one",
                    "REPEATED_KEY",
                )
            else:
                seen[key.value] = key.start_mark.line + 1
                pairs.append((key, value))
        return pairs

    def _unknown(self, name: str, path: str, known: list[str]) -> str:
        """What to say about a key that is not known: the likely name, or where it belongs.

        What the key was to say is then missing as well; one message is enough.
        """
        guess = likely(name, known, cutoff=0.75)
        elsewhere = [] if guess else homes(job_spec_pb2.JobSpec.DESCRIPTOR, name, self._present)
        if elsewhere:
            self.refused.update(elsewhere)
            return f"it does not belong here; it belongs at {' or '.join(elsewhere[:3])}"
        guess = guess or likely(name, known) or (known if len(known) == 1 else [])
        self.refused.update(f"{path}.{other}" if path else other for other in guess)
        if guess:
            return f"there is no such key; {either(guess)}"
        listed = f"the keys here are {', '.join(known)}" if known else "nothing can be set here: write {}"
        return f"there is no such key; {listed}"

    def _field(self, field: FieldDescriptor, node: Node, message: Message, path: str) -> None:
        self._file.values[path] = node.start_mark
        target: Any = getattr(message, field.name)
        if (element := rules.map_value(field)) is not None:
            if not isinstance(node, MappingNode):
                self._refuse(node.start_mark, path, "", "it must be a mapping, as in {team: a}")
                return
            for key, value in self._pairs(node, path):
                self._file.values[f"{path}.{key.value}"] = value.start_mark
                if (text := self._scalar(element, value, f"{path}.{key.value}")) is not None:
                    target[key.value] = text
        elif field.is_repeated:
            if not isinstance(node, SequenceNode):
                self._refuse(node.start_mark, path, "", f"it must be a list, as in {field.name}: [...]")
                return
            for index, item in enumerate(node.value):
                place = f"{path}[{index}]"
                self._file.values[place] = item.start_mark
                if field.message_type is not None:
                    self.message(item, target.add(), place)
                elif (value := self._scalar(field, item, place)) is not None:
                    target.append(value)
        elif field.message_type is not None:
            self.message(node, target, path)
        elif (value := self._scalar(field, node, path)) is not None:
            self.given.add(path)
            setattr(message, field.name, value)

    def _scalar(self, field: FieldDescriptor, node: Node, path: str) -> Any:
        """The value that the field's type makes of a scalar; None, and a violation, where it makes none."""
        if not isinstance(node, ScalarNode):
            self._refuse(node.start_mark, path, "", "it must be a single value")
            return None
        if is_null(node):
            self._refuse(node.start_mark, path, "", "it is empty; give a value or remove the key")
            return None
        value, remedy = value_of(field, node.value)
        if remedy:
            self._refuse(node.start_mark, path, node.value, remedy)
        elif isinstance(value, int) and not isinstance(value, bool) and field.enum_type is None:
            # Before it is stored: the field's type may be too narrow for it.
            bounds = list(rules.check_value(field, rules.rules_of(field), value, path)) or too_wide(field, value)
            if bounds:
                self._refuse(node.start_mark, path, value, bounds[0].remedy, bounds[0].reason)
                return None
        return value


def _mapping_remedy(message: Message, value: str, known: list[str]) -> str:
    """What to write instead of a bare `value` or a list, where a mapping must stand."""
    if not known:
        return "it must be {}: there is nothing to set"
    if value in known:
        return f"it must be a mapping, as in {{{value}: ...}}"
    if value and rules.required_choices(message.DESCRIPTOR):
        guess = likely(value, known)
        listed = either(guess) if guess else f"the choices are {', '.join(known)}"
        return f"there is no such choice; {listed}"
    return f"it must be a mapping, as in {{{', '.join(f'{name}: ...' for name in known[:2])}}}"


def _is_bare_choice(message: Message, name: str) -> bool:
    field = message.DESCRIPTOR.fields_by_name.get(name)
    return field is not None and field.containing_oneof is not None and field.message_type is not None


def _key_paths(node: Node, path: str) -> list[str]:
    """The paths of all keys of a document, list elements written `[]`."""
    found: list[str] = []
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                below = f"{path}.{key.value}" if path else key.value
                found += [below, *_key_paths(value, below)]
    elif isinstance(node, SequenceNode):
        for item in node.value:
            found += [f"{path}[]", *_key_paths(item, f"{path}[]")]
    return found
