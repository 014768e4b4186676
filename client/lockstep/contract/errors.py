"""The exceptions that reach people: yours (UserError) and ours (InternalError).

LockstepError
|-- UserError        what was asked cannot be done: place, value, remedy for each violation
`-- InternalError    a fault of Lockstep's own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Violation:
    """One thing that is wrong with what was asked.

    `place` is a path in the request ("optimizer.momentum.learning_rate") or in a file ("digits.csv, row 17"); `value` is
    what stood there, as text, empty where nothing did; `remedy` says what must hold or what to do, as a clause: "it must be
    above 0". `reason` is an anchor in docs/errors.md.
    """

    place: str
    value: str
    remedy: str
    reason: str = "INVALID_FIELD"

    def __str__(self) -> str:
        got = f"got {self.value}; " if self.value else ""
        return f"{self.place}: {got}{self.remedy}" if self.place else f"{got}{self.remedy}"


MORE = "MORE_VIOLATIONS"


def more(count: int) -> Violation:
    """The last of a list that does not name all: how many there are besides."""
    return Violation("", "", f"and {count} more", MORE)


def count_of(violations: Sequence[Violation]) -> int:
    """How many there are, with those that a last one only counts."""
    if not violations or violations[-1].reason != MORE:
        return len(violations)
    return len(violations) - 1 + int(violations[-1].remedy.split()[1])


class LockstepError(Exception):
    """What Lockstep raises on purpose."""


@final
class UserError(LockstepError):
    """What was asked cannot be done. Says all that is wrong at once."""

    def __init__(self, violations: Sequence[Violation], reason: str = "") -> None:
        self.violations = tuple(violations)
        self.reason = reason or (self.violations[0].reason if self.violations else "INVALID_ARGUMENT")
        super().__init__(self.violations, self.reason)

    def __str__(self) -> str:
        return "\n".join(str(violation) for violation in self.violations)

    @classmethod
    def of(cls, place: str, value: object, remedy: str, reason: str) -> UserError:
        """An error with a single violation."""
        return cls([Violation(place, str(value), remedy, reason)])


@final
class InternalError(LockstepError):
    """A fault of Lockstep's own; `run` names the job and run to put into the report, where there is one."""

    def __init__(self, message: str, run: str = "") -> None:
        self.message = message
        self.run = run
        super().__init__(message, run)

    def __str__(self) -> str:
        return f"{self.message} (please report it{f', with run {self.run}' if self.run else ''})"
