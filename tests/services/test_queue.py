"""The queue: order, what blocks, what is told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.jobs.queue import Growing, Waiting, decide


def test_first_in_first_out_on_one_slot() -> None:
    jobs = [Waiting(name, 1, 1) for name in "abc"]
    decision = decide(jobs, slots=1, in_use=0, ready=True)
    assert decision.grants == {"a": 1}
    assert decision.details["b"] == "place 1 of 2 in the queue; needs 1 worker slot, 0 are free"
    assert decision.details["c"].startswith("place 2 of 2")


def test_a_job_gets_as_many_slots_as_it_may_have_and_as_are_free() -> None:
    assert decide([Waiting("a", 1, 4), Waiting("b", 1, 4)], slots=6, in_use=0, ready=True).grants == {"a": 4, "b": 2}


def test_a_job_that_fits_the_cluster_is_not_overtaken() -> None:
    decision = decide([Waiting("large", 4, 4), Waiting("small", 1, 1)], slots=4, in_use=2, ready=True)
    assert decision.grants == {}
    assert "needs 4 worker slots, 2 are free" in decision.details["large"]
    assert "an earlier job comes first" in decision.details["small"]


def test_a_job_larger_than_the_cluster_says_what_it_lacks_and_holds_back_nobody() -> None:
    decision = decide([Waiting("huge", 9, 9), Waiting("small", 1, 1)], slots=4, in_use=0, ready=True)
    assert decision.grants == {"small": 1}
    assert "needs 9 worker slots, the cluster has 4" in decision.details["huge"]


def test_a_job_whose_run_was_lost_comes_first() -> None:
    decision = decide([Waiting("a", 1, 1), Waiting("b", 1, 1, recovering=True)], slots=1, in_use=0, ready=True)
    assert decision.grants == {"b": 1}


def test_a_cluster_whose_nodes_have_not_joined_yet_is_waited_for() -> None:
    decision = decide([Waiting("a", 2, 2)], slots=0, in_use=0, ready=True)
    assert "needs 2 worker slots, no node has any yet" in decision.details["a"]


def test_nothing_is_granted_without_an_agent() -> None:
    decision = decide([Waiting("a", 1, 1)], slots=4, in_use=0, ready=False)
    assert decision.grants == {} and "no agent is connected" in decision.details["a"]


def test_what_nobody_waits_for_makes_runs_grow_the_smallest_first() -> None:
    running = [Growing("large", 4, 8), Growing("small", 1, 8), Growing("nearly", 2, 3)]
    assert decide([], slots=12, in_use=7, ready=True, growing=running).grown == {"small": 4, "nearly": 3, "large": 5}
    assert decide([], slots=64, in_use=7, ready=True, growing=running).grown == {"large": 8, "small": 8, "nearly": 3}
    assert decide([], slots=12, in_use=7, ready=False, growing=running).grown == {}
    assert decide([], slots=6, in_use=7, ready=True, growing=running).grown == {}


def test_a_run_does_not_grow_into_what_others_wait_for() -> None:
    running = [Growing("r", 1, 8)]
    assert decide([Waiting("a", 3, 3)], slots=4, in_use=2, ready=True, growing=running).grown == {}
    assert decide([Waiting("a", 1, 1)], slots=4, in_use=2, ready=True, growing=running).grown == {"r": 2}
    assert decide([Waiting("huge", 9, 9)], slots=4, in_use=2, ready=True, growing=running).grown == {"r": 3}


WAITING = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4), st.booleans()), max_size=12)


RUNNING = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), max_size=6)


@given(WAITING, RUNNING, st.integers(0, 40), st.integers(0, 16))
def test_never_more_than_is_free_never_less_than_the_minimum(
    jobs: list[tuple[int, int, bool]], runs: list[tuple[int, int]], slots: int, in_use: int
) -> None:
    waiting = [Waiting(str(n), least, least + more, again) for n, (least, more, again) in enumerate(jobs)]
    growing = [Growing(f"r{n}", has, has + more) for n, (has, more) in enumerate(runs)]
    decision = decide(waiting, slots, in_use, True, growing)
    taken = sum(decision.grown[run.job_id] - run.workers for run in growing if run.job_id in decision.grown)
    assert sum(decision.grants.values()) + taken <= max(0, slots - in_use)
    assert all(run.workers <= decision.grown.get(run.job_id, run.workers) <= run.workers_max for run in growing)
    for job in waiting:
        assert (job.job_id in decision.grants) != (job.job_id in decision.details)
        granted = decision.grants.get(job.job_id)
        assert granted is None or job.workers_min <= granted <= job.workers_max
