"""The table of a job's states: which event takes which state where. All else is refused."""

from __future__ import annotations

from enum import StrEnum, auto
from typing import Final, final


class State(StrEnum):
    """The states, named as in lockstep.v1.TrainingJob.State."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class Event(StrEnum):
    """What can happen to a job. People ask for the first four; the rest comes from the queue and from runs."""

    CANCEL = auto()
    PAUSE = auto()
    RESUME = auto()
    SCALE = auto()
    GRANT = auto()  # slots are given to a run
    START = auto()  # the run's workers joined; steps begin
    RECOVER = auto()  # the group is being mended inside its run
    LOSE = auto()  # the run ended with a cause that a new run may not meet
    SUCCEED = auto()
    FAIL = auto()
    STOPPED = auto()  # the run ended because of a cancel
    RESTED = auto()  # the run ended because of a pause


TERMINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
LIVE: Final = frozenset(State) - TERMINAL

_Q, _S, _R, _V = State.QUEUED, State.STARTING, State.RUNNING, State.RECOVERING

NEXT: Final[dict[tuple[State, Event], State]] = {
    (_Q, Event.GRANT): _S,
    (_Q, Event.PAUSE): State.PAUSED,
    (_Q, Event.CANCEL): State.CANCELLED,
    # A run that was granted.
    **{(state, Event.START): _R for state in (_S, _R, _V)},
    **{(state, Event.RECOVER): _V for state in (_S, _R, _V)},
    **{(state, Event.LOSE): _V for state in (_S, _R, _V)},
    **{(state, Event.SUCCEED): State.SUCCEEDED for state in (_S, _R, _V)},
    **{(state, Event.FAIL): State.FAILED for state in (_S, _R, _V)},
    **{(state, Event.PAUSE): State.PAUSING for state in (_S, _R, _V)},
    **{(state, Event.CANCEL): State.CANCELLING for state in (_S, _R, _V)},
    (_V, Event.GRANT): _V,
    # A pause under way. A run that is lost meanwhile has paused, at its last checkpoint.
    **{(State.PAUSING, event): State.PAUSING for event in (Event.START, Event.RECOVER, Event.PAUSE)},
    (State.PAUSING, Event.RESTED): State.PAUSED,
    (State.PAUSING, Event.LOSE): State.PAUSED,
    (State.PAUSING, Event.SUCCEED): State.SUCCEEDED,
    (State.PAUSING, Event.FAIL): State.FAILED,
    (State.PAUSING, Event.CANCEL): State.CANCELLING,
    (State.PAUSED, Event.PAUSE): State.PAUSED,
    (State.PAUSED, Event.RESUME): _Q,
    (State.PAUSED, Event.CANCEL): State.CANCELLED,
    # A cancel under way always wins, whatever the run says.
    **{(State.CANCELLING, event): State.CANCELLING for event in (Event.START, Event.RECOVER, Event.CANCEL)},
    **{
        (State.CANCELLING, event): State.CANCELLED
        for event in (Event.STOPPED, Event.RESTED, Event.LOSE, Event.SUCCEED, Event.FAIL)
    },
    (State.CANCELLED, Event.CANCEL): State.CANCELLED,
    # How many workers a job may have is no matter of its state, as long as there can be a run with so many.
    **{(state, Event.SCALE): state for state in (_Q, _S, _R, _V, State.PAUSING, State.PAUSED)},
}


@final
class InvalidTransition(Exception):
    """An event that a state does not know."""

    def __init__(self, state: State, event: Event) -> None:
        self.state = state
        self.event = event
        super().__init__(state, event)

    def __str__(self) -> str:
        return f"a job that is {self.state} cannot {_ASKED.get(self.event, self.event)}"


# How people are told that what they asked for cannot be.
_ASKED: Final = {
    Event.CANCEL: "be cancelled",
    Event.PAUSE: "be paused",
    Event.RESUME: "be resumed",
    Event.SCALE: "be scaled",
}


def next_state(state: State, event: Event) -> State:
    """Where the event leads. Raises InvalidTransition."""
    try:
        return NEXT[state, event]
    except KeyError:
        raise InvalidTransition(state, event) from None
