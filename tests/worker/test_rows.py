"""The rows of a worker: each row of an epoch once, shards cut as the contract says, standardization as defined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lockstep.contract.arithmetic import shard_rows
from tests.worker.worker_processes import write_dataset
from worker.collective.tree import owned_shards
from worker.data.columns import Columns, DatasetUnreadable, open_columns
from worker.data.standardize import FIT_BLOCK_ROWS, Standardization, fit_standardize
from worker.rows import RowSource, TrainingRows

ROWS = 103


def source() -> RowSource:
    x = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)
    return RowSource(Columns(x, np.arange(ROWS)), None)


def training(rank: int, workers: int, *, batch_size: int, shards: int) -> TrainingRows:
    owned = owned_shards(rank, workers, shards)
    return TrainingRows(source(), np.arange(ROWS), seed=3, batch_size=batch_size, shards=shards, owned=owned)


@pytest.mark.parametrize(("batch_size", "shards", "workers"), [(20, 4, 1), (20, 4, 3), (50, 8, 5), (7, 8, 2), (1000, 5, 2)])
def test_each_row_of_an_epoch_is_computed_once(batch_size: int, shards: int, workers: int) -> None:
    sources = [training(rank, workers, batch_size=batch_size, shards=shards) for rank in range(workers)]
    for epoch in range(2):
        seen: list[int] = []
        for number in range(sources[0].steps_per_epoch):
            taken: list[int] = []
            for rows in sources:
                batch = rows.batch(epoch * rows.steps_per_epoch + number + 1)
                stacks = rows.stacks(len(batch))
                stacks.fill(batch)
                own = np.concatenate([y.reshape(-1) for _, y in stacks.stacks]) if stacks.stacks else np.zeros(0, np.int64)
                assert stacks.own_rows == len(own) and len(stacks.stacks) <= 2
                for x, y in stacks.stacks:
                    assert (x[..., 0] == 3 * y).all()
                taken += own.tolist()
            assert taken == batch.tolist()
            seen += taken
        assert sorted(seen) == list(range(ROWS))


def test_a_shard_is_known_by_its_number_and_rows() -> None:
    rows = training(1, 2, batch_size=20, shards=4)
    batch = rows.batch(6)
    assert len(batch) == 3
    shard, own = rows.stacks(3).shard_of(0, batch)
    assert shard == 2 and own.tolist() == batch[slice(*shard_rows(3, 4)[2])].tolist()


def test_the_fit_is_that_of_the_definition() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(3, 5, (3 * FIT_BLOCK_ROWS, 2, 3)).astype(np.float32)
    x[:, 1, 2] = 0.1
    rows = np.sort(draw.permutation(len(x))[: 2 * FIT_BLOCK_ROWS + 77])
    mean, scale = fit_standardize(x, rows)
    chosen = x[rows].astype(np.float64)
    assert mean.shape == scale.shape == (2, 3)
    assert np.allclose(mean, chosen.mean(axis=0), rtol=1e-12)
    deviation = chosen.std(axis=0)
    deviation[1, 2] = np.inf
    assert np.allclose(scale, 1 / deviation, rtol=1e-12) and scale[1, 2] == 0
    applied = x[rows].copy()
    Standardization(mean, scale).apply(applied)
    assert applied.dtype == np.float32 and (applied[:, 1, 2] == 0).all()
    assert np.abs(applied.mean(axis=0)).max() < 1e-3 and np.abs(applied[:, 0].std(axis=0) - 1).max() < 1e-3


@pytest.mark.parametrize("values", [(0, 1e-45), (1e-40, 3e-40), (3e38, -3e38), (1e8, 1e8 + 8), (0, 1e-30)])
def test_standardized_inputs_are_finite(values: tuple[float, float]) -> None:
    """Were the scale of numbers next to 0 infinite, the mean would become NaN."""
    x = np.array(values * 4, np.float32)[:, None]
    Standardization(*fit_standardize(x, np.arange(8))).apply(x)
    assert np.isfinite(x).all() and x[0] != x[1]


def test_columns_are_opened_as_described_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / write_dataset(tmp_path, 10)
    columns = open_columns(folder)
    assert columns.rows == 10 and columns.input_shape == (12,) and not columns.x.flags.writeable
    data = (folder / "y.npy").read_bytes()
    for wrong in (data[:-3], b"", b"\x93NUMPY", data.replace(b"<i8", b"|O8")):
        (folder / "y.npy").write_bytes(wrong)
        with pytest.raises(DatasetUnreadable, match=r"\(y\.npy: .*must see the data folder.*uploading the same file again"):
            open_columns(folder)
    np.save(folder / "y.npy", np.zeros(9, np.int64))
    with pytest.raises(DatasetUnreadable, match=r"not what dataset\.json says"):
        open_columns(folder)
