"""Dropout: the mask is a function of seed, step, layer and shard; in evaluation it is the identity."""

from __future__ import annotations

import numpy as np
import pytest

from tests.worker.nn.allocations import peak_bytes
from tests.worker.nn.layer_bench import LayerBench, stack_is_loop, worst_error
from worker.nn.streams import Streams
from worker.specs import DropoutRecord

STREAMS = Streams(seed=5, step=9, first_shard=2)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_the_gradient(rate: float) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 4, 5))
    assert worst_error(DropoutRecord(rate), x, streams=STREAMS) < 1e-6


def test_a_stack_is_a_loop() -> None:
    stack_is_loop(DropoutRecord(0.4), np.random.default_rng(2).standard_normal((3, 50, 20, 30)), streams=STREAMS)


def test_the_mask_is_what_the_stream_says() -> None:
    x = np.ones((2, 3, 4))
    y = LayerBench(DropoutRecord(0.25), (4,), shards=2, rows=3, streams=STREAMS).forward(x)
    for shard in range(2):
        philox = np.random.Philox(key=np.array([5, 4 << 32 | 0], np.uint64), counter=np.array([0, 2 + shard, 9, 0], np.uint64))
        kept = (philox.random_raw(12) >> np.uint64(40)) * 2.0**-24 >= 0.25
        # Inside, the rows come last.
        assert (y[shard].T.reshape(-1) == kept / 0.75).all()


def test_the_mean_stays() -> None:
    y = LayerBench(DropoutRecord(0.3), (400,), shards=1, rows=400, streams=STREAMS).forward(np.ones((1, 400, 400)))
    assert float(y.mean()) == pytest.approx(1, abs=0.01)
    assert float((y == 0).mean()) == pytest.approx(0.3, abs=0.01)


def test_every_step_has_another_mask() -> None:
    x = np.ones((1, 3, 50))
    bench = LayerBench(DropoutRecord(0.5), (50,), shards=1, rows=3, streams=STREAMS)
    first = bench.forward(x)
    assert (bench.forward(x) == first).all()
    bench.streams = Streams(seed=5, step=10, first_shard=2)
    assert (bench.forward(x) != first).any()


def test_nothing_is_dropped_in_evaluation_or_without_streams() -> None:
    x = np.random.default_rng(3).standard_normal((1, 3, 50))
    bench = LayerBench(DropoutRecord(0.5), (50,), shards=1, rows=3, training=False, streams=STREAMS)
    assert (bench.forward(x) == x).all()
    assert (LayerBench(DropoutRecord(0.5), (50,), shards=1, rows=3).forward(x) == x).all()


def test_words_come_a_block_at_a_time() -> None:
    bench = LayerBench(DropoutRecord(0.5), (500,), shards=2, rows=100, streams=STREAMS)
    bench.layer.forward(bench.x, STREAMS)
    # And a byte for each word of a block, between the comparison and the mask.
    assert peak_bytes(lambda: bench.layer.forward(bench.x, STREAMS)) < 65536 + 8192 + 4096
