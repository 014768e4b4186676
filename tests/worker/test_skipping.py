"""Steps without a finite gradient: all workers skip the same ones, and the optimizer counts the others alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lockstep.internal.v1 import worker_pb2 as pb
from lockstep.v1.job_spec_pb2 import NonFinitePolicy
from lockstep.v1.optimization_pb2 import Adam, Optimizer
from tests.worker.worker_processes import Workers, order, vectors, write_columns, write_dataset

INPUTS = 12
SPLITS = [["a"], ["a", "a"], ["a", "b"], ["a", "b", "a"], ["a", "a", "b", "c"]]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(["a"] * 4) as processes:
        yield processes


def test_any_number_of_workers_skips_the_same_steps(workers: Workers, tmp_path: Path) -> None:
    bad = write_dataset(tmp_path, 64, INPUTS, seed=10)
    x = np.load(tmp_path / "datasets" / bad / "x.npy")
    x[17, 3] = np.inf
    np.save(tmp_path / "datasets" / bad / "x.npy", x)
    run = order(bad, batch_size=10, shards=4)
    run.spec.non_finite = NonFinitePolicy.SKIP_STEP
    run.spec.optimizer.CopyFrom(Optimizer(adam=Adam(learning_rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-8)))
    found, skipped = set(), set()
    for nodes in SPLITS:
        workers.form(tmp_path, run, nodes)
        workers.restore()
        replies = workers.stretch(1, 21)
        assert all(reply.step == 21 and not reply.HasField("non_finite") for reply in replies)
        assert {(reply.skipped_steps, len(reply.skipped)) for reply in replies} == {(3, 3)}
        places = [max(told, key=lambda place: bool(place.layer)) for told in zip(*(r.skipped for r in replies), strict=True)]
        skipped.add(tuple(place.step for place in places))
        assert all(place.layer == "layers[0].dense" and 17 in place.rows for place in places)
        found.add(tuple(vector.tobytes() for _, vector in sorted(vectors(workers.state(21)).items())))
    assert len(found) == len(skipped) == 1

    # The same by hand: whoever stops before such a step, and says that it was left out, comes to the same state.
    workers.form(tmp_path, run, ["a", "b"])
    workers.restore()
    last = 0
    for count, step in enumerate((*skipped.pop(), 22)):
        if step - 1 > last:
            request = pb.StretchRequest(first_step=last + 1, last_step=step - 1, rate_factor=1, skipped_steps=count)
            workers.ask(stretch=request)
        state = vectors(workers.state(step - 1))
        workers.give(step, state)
        last = step
    assert tuple(vector.tobytes() for _, vector in sorted(state.items())) == found.pop()


def test_the_hundredth_step_in_a_row_without_a_gradient_is_not_skipped(workers: Workers, tmp_path: Path) -> None:
    bad = write_columns(tmp_path, np.full((8, INPUTS), np.nan, np.float32), np.arange(8) % 4)
    run = order(bad, batch_size=8, shards=2, total_steps=200)
    run.spec.non_finite = NonFinitePolicy.SKIP_STEP
    workers.form(tmp_path, run, ["a", "b"])
    workers.restore()
    assert {(reply.step, reply.skipped_in_a_row) for reply in workers.stretch(1, 60)} == {(60, 60)}
    request = pb.StretchRequest(first_step=61, last_step=200, rate_factor=1, skipped_steps=60, skipped_in_a_row=60)
    replies = [reply.stretch for reply in workers.ask(stretch=request)]
    assert {(reply.step, reply.non_finite.step, reply.skipped_steps) for reply in replies} == {(99, 100, 39)}
    assert all(len(reply.skipped) == 4 for reply in replies)
