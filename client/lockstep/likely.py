"""What somebody probably meant: names close to a wrong one, and where a misplaced key belongs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher, get_close_matches
from functools import cache

from google.protobuf.descriptor import Descriptor

from lockstep.contract.rules import fields_of, map_value, rules_of

# How deep a misplaced key is looked for: optimizer.schedule.step.every_epochs, model.layers[].dense.initializer.
MAX_DEPTH = 5

# How much closer the best of two names must be for the other not to be mentioned.
CLEARLY_LIKELIER = 0.08


def likely(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """At most two of `known` that `name` may stand for, the likeliest first; an abbreviation by initials counts."""
    names = list(known)
    folded = name.lower().replace("-", "_")
    initials = [full for full in names if len(folded) > 1 and folded == "".join(part[:1] for part in full.split("_"))]
    close = get_close_matches(folded, names, n=2, cutoff=cutoff)
    if len(close) == 2 and _ratio(folded, close[0]) - _ratio(folded, close[1]) > CLEARLY_LIKELIER:
        close.pop()
    return initials or close


def _ratio(name: str, full: str) -> float:
    return SequenceMatcher(None, name, full).ratio()


def either(names: Iterable[str]) -> str:
    """`did you mean a or b?`, or nothing for no names."""
    listed = " or ".join(names)
    return f"did you mean {listed}?" if listed else ""


def homes(root: Descriptor, name: str, present: Iterable[str]) -> list[str]:
    """Where in `root` a key called `name` belongs; those that share most with the keys already `present` come first, alone.

    Paths name list elements as `model.layers[].dense`.
    """
    given = set(present)

    def shared(path: str) -> int:
        parts = path.split(".")
        return sum(".".join(parts[:end]) in given for end in range(1, len(parts)))

    found = [path for path in _paths(root) if path.rpartition(".")[2] == name and "." in path]
    best = max((shared(path) for path in found), default=0)
    return [path for path in found if shared(path) == best]


@cache
def _paths(root: Descriptor) -> tuple[str, ...]:
    return tuple(_walk(root, "", (root.full_name,)))


def _walk(descriptor: Descriptor, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    for field in fields_of(descriptor):
        if rules_of(field).output_only:
            continue
        path = f"{prefix}{field.name}"
        yield path
        inner = field.message_type
        if inner is not None and map_value(field) is None and inner.full_name not in above and len(above) < MAX_DEPTH:
            dots = "[]." if field.is_repeated else "."
            yield from _walk(inner, path + dots, (*above, inner.full_name))
