"""The table of states: what it promises, read from the table itself."""

from __future__ import annotations

import pytest

from lockstep.v1.training_job_pb2 import TrainingJob
from services.jobs.transitions import LIVE, NEXT, TERMINAL, Event, InvalidTransition, State, next_state


def test_states_are_the_protos() -> None:
    assert {state.value for state in State} == set(TrainingJob.State.keys()) - {"STATE_UNSPECIFIED"}


def test_nothing_leaves_a_terminal_state() -> None:
    leaving = {(state, event): after for (state, event), after in NEXT.items() if state in TERMINAL}
    assert leaving == {(State.CANCELLED, Event.CANCEL): State.CANCELLED}


def test_a_cancel_reaches_every_live_state_and_wins_over_what_comes_late() -> None:
    assert all(next_state(state, Event.CANCEL) in (State.CANCELLING, State.CANCELLED) for state in LIVE)
    for late in (Event.SUCCEED, Event.FAIL, Event.LOSE, Event.STOPPED, Event.RESTED):
        assert next_state(State.CANCELLING, late) is State.CANCELLED


def test_a_pause_reaches_every_job_that_is_not_ending_and_a_number_of_workers_is_no_matter_of_state() -> None:
    for state in LIVE - {State.CANCELLING}:
        assert next_state(state, Event.PAUSE) in (State.PAUSING, State.PAUSED)
        assert next_state(state, Event.SCALE) is state
    assert {state for state, event in NEXT if event in (Event.PAUSE, Event.SCALE)} == LIVE - {State.CANCELLING}
    assert {state for state, event in NEXT if event is Event.RESUME} == {State.PAUSED}


def test_every_state_can_reach_an_end() -> None:
    reached = set(TERMINAL)
    while grown := {state for (state, _), after in NEXT.items() if after in reached} - reached:
        reached |= grown
    assert reached == set(State)


def test_all_else_is_refused() -> None:
    refused = [(state, event) for state in State for event in Event if (state, event) not in NEXT]
    assert (State.QUEUED, Event.START) in refused
    for state, event in refused:
        with pytest.raises(InvalidTransition, match=f"a job that is {state} cannot ") as caught:
            next_state(state, event)
        assert (caught.value.state, caught.value.event) == (state, event)


def test_what_people_asked_for_is_said_in_their_words() -> None:
    assert str(InvalidTransition(State.FAILED, Event.CANCEL)) == "a job that is FAILED cannot be cancelled"
