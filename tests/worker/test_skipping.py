"""Steps without a finite gradient: all workers skip the same ones, and the optimizer counts the others alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.recovery import earliest
from lockstep.internal.v1 import worker_pb2 as pb
from lockstep.v1.job_spec_pb2 import NonFinitePolicy
from lockstep.v1.optimization_pb2 import Adam, Optimizer
from tests.worker.nn.networks import CROSS_ENTROPY, dense_net
from tests.worker.worker_processes import Workers, order, vectors, write_columns, write_dataset
from worker.nn.model import Model
from worker.randomness import epoch_order

INPUTS = 12
SPLITS = [["a"], ["a", "a"], ["a", "b"], ["a", "b", "a"], ["a", "a", "b", "c"]]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(["a"] * 4) as processes:
        yield processes


def large_rows(files: Path, rows: int, large: Mapping[int, NDArray[Any]]) -> str:
    """A dataset of small numbers in which these rows are others; returns its digest."""
    draw = np.random.default_rng(10)
    x = draw.normal(size=(rows, INPUTS)).astype(np.float32)
    for row, values in large.items():
        x[row] = values
    return write_columns(files, x, draw.integers(0, 4, rows))


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
        places = [earliest(told) for told in zip(*(reply.skipped for reply in replies), strict=True)]
        skipped.add(tuple(place.step for place in places))
        assert all((place.layer, place.where, list(place.rows)) == ("layers[0].dense", "input", [17]) for place in places)
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


@pytest.mark.parametrize("shards", [1, 4])
def test_the_one_row_of_a_thousand_that_overflows_is_named(workers: Workers, tmp_path: Path, shards: int) -> None:
    bad = large_rows(tmp_path, 1003, {417: np.full(INPUTS, 3.3e38)})
    workers.form(tmp_path, order(bad, batch_size=1003, shards=shards), ["a"])
    workers.restore()
    [found] = [reply.non_finite for reply in workers.stretch(1, 2)]
    assert (found.layer, found.where, list(found.rows), found.non_finite_rows) == ("layers[0].dense", "output", [417], 1)
    assert found.shard_rows in range(1003 // shards, 1003 // shards + 2)


def test_of_many_rows_that_overflow_sixteen_are_named_and_all_are_counted(workers: Workers, tmp_path: Path) -> None:
    bad = large_rows(tmp_path, 64, dict.fromkeys(range(10, 60, 2), np.full(INPUTS, 3.3e38)))
    workers.form(tmp_path, order(bad, batch_size=64, shards=1), ["a"])
    workers.restore()
    [found] = [reply.non_finite for reply in workers.stretch(1, 2)]
    assert (list(found.rows), found.non_finite_rows, found.shard_rows) == (list(range(10, 42, 2)), 25, 64)


def test_any_number_of_workers_names_what_came_first_in_the_pass(workers: Workers, tmp_path: Path) -> None:
    """The first shard overflows in the second layer, the last one in the first layer, where no gradient shows it: the rectifier
    takes minus infinity for 0."""
    units, batch = (4, 64, 4), epoch_order(7, 0, 64)
    weight = Model(dense_net(units, inputs=(INPUTS,)), CROSS_ENTROPY, seed=7).named_parameters()["0.dense.weight"]
    positive = weight[:, 0] / np.abs(weight.T @ weight[:, 0]).max() * 3e38
    late, early = {batch[3]: positive}, {batch[60]: np.full(INPUTS, 3.3e38)}
    for rows, layer, row in ((late, "layers[2].dense", batch[3]), (late | early, "layers[0].dense", batch[60])):
        run = order(large_rows(tmp_path, 64, rows), batch_size=64, shards=4, units=units)
        found = set()
        for nodes in SPLITS:
            workers.form(tmp_path, run, nodes)
            workers.restore()
            found.add(earliest(reply.non_finite for reply in workers.stretch(1, 2)).SerializeToString())
        assert len(found) == 1
        place = pb.NonFinite.FromString(found.pop())
        assert (place.layer, place.where, list(place.rows)) == (layer, "output", [row])


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
