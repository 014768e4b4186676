"""The filter of a list, part of AIP-160: `state = RUNNING AND labels.team != "a" AND create_time > "2026-01-01T00:00:00Z"`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, and_, not_

from lockstep.contract.errors import UserError
from services import limits
from services.clock import SECOND
from services.jobs.transitions import State
from services.store.jobs import label_is
from services.store.tables import jobs

_TOKEN: Final = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(!=|>=|<=|[=><:()])|([A-Za-z0-9_.:+\-*]+))')
_KEY: Final = re.compile(r"labels\.([a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)")
_GRAMMAR: Final = 'write `state = RUNNING`, `labels.KEY = "value"` or `create_time > "2026-01-01T00:00:00Z"`, joined by AND'


def condition(text: str) -> ColumnElement[bool] | None:
    """The filter as a condition on jobs, None for an empty one. Raises UserError that says where it is not understood."""
    tokens = _tokens(text)
    if not tokens:
        return None
    terms = []
    for index in range(0, len(tokens), 4):
        term = tokens[index : index + 4]
        if len(term) < 3:
            raise _refuse(text, len(text), "the last comparison is not whole")
        terms.append(_comparison(text, *term[:3]))
        if len(terms) > limits.FILTER_TERMS:
            raise _refuse(text, term[0][0], f"there are more than {limits.FILTER_TERMS} comparisons")
        if len(term) == 4 and term[3][1] != "AND":
            raise _refuse(text, term[3][0], f"{term[3][1]!r} cannot join comparisons")
        if len(term) == 4 and index + 4 == len(tokens):
            raise _refuse(text, len(text), "AND must be followed by a comparison")
    return and_(*terms)


def order(text: str) -> bool:
    """Whether the newest come first. Raises UserError for an order that is not documented."""
    words = text.split()
    if words in ([], ["create_time", "desc"]):
        return True
    if words in (["create_time"], ["create_time", "asc"]):
        return False
    raise UserError.of("order_by", text, "it must be `create_time desc` or `create_time`", "INVALID_ORDER")


def _tokens(text: str) -> list[tuple[int, str]]:
    found, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            position += len(text[position:]) - len(text[position:].lstrip())
            raise _refuse(text, position, f"{text[position]!r} is not understood")
        position = match.end()
        found.append((match.start(match.lastindex or 0), match[0].strip()))
    return found


def _comparison(text: str, field: tuple[int, str], operator: tuple[int, str], value: tuple[int, str]) -> ColumnElement[bool]:
    name, sign, plain = field[1], operator[1], _unquoted(value[1])
    if name == "create_time":
        if sign != ">":
            raise _refuse(text, operator[0], "create_time is compared with > alone")
        try:
            moment = datetime.fromisoformat(plain)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise _refuse(text, value[0], f'{plain!r} is not a time like "2026-01-01T00:00:00Z"')
        return jobs.c.create_time > int(moment.timestamp() * SECOND)
    if name != "state" and not _KEY.fullmatch(name):
        raise _refuse(text, field[0], f"{name!r} cannot be filtered by")
    if sign not in ("=", "!="):
        raise _refuse(text, operator[0], f"{name} is compared with = or !=")
    if name == "state":
        if plain not in State.__members__:
            raise _refuse(text, value[0], f"{plain!r} is not a state; the states are {', '.join(State)}")
        return jobs.c.state == plain if sign == "=" else jobs.c.state != plain
    has = label_is(name.removeprefix("labels."), plain)
    return has if sign == "=" else not_(has)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def _refuse(text: str, position: int, what: str) -> UserError:
    return UserError.of("filter", text[:200], f"at character {position + 1}: {what}; {_GRAMMAR}", "INVALID_FILTER")
