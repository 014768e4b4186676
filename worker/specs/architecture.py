"""The Architecture: the layers' records, those of residual and parallel layers inside them, read from a ModelSpec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

from lockstep.contract.arithmetic import BATCH_STATISTICS_ROWS
from lockstep.contract.errors import UserError, Violation
from lockstep.v1.model_pb2 import Layer, ModelSpec, Parallel
from worker.specs import activations, convolution, dense, normalization, recurrent, sequence
from worker.specs.records import LayerReader, LayerRecord, Reading, none_given

# Deepest nesting of residual and parallel layers.
MAX_DEPTH = 8

# What stands between a layer and the activation that its initial weights should suit.
_PASSED_OVER = frozenset({"batch_norm", "layer_norm", "rms_norm", "dropout", "max_pool", "average_pool", "flatten", "reshape"})


@final
@dataclass(frozen=True, slots=True)
class Architecture:
    """The layers in the order of the forward pass, and the shape of one input row."""

    layers: tuple[LayerRecord, ...]
    input_shape: tuple[int, ...]

    @property
    def least_shard_rows(self) -> int:
        """How many rows a shard must have, in a batch that has as many."""
        return BATCH_STATISTICS_ROWS if any(record.batch_statistics for record in all_records(self.layers)) else 1


@final
@dataclass(frozen=True, slots=True)
class ResidualRecord(LayerRecord):
    """layers(x) + shortcut(x); an empty shortcut is the identity."""

    kind: ClassVar[str] = "residual"
    layers: tuple[LayerRecord, ...]
    shortcut: tuple[LayerRecord, ...]


@final
@dataclass(frozen=True, slots=True)
class ParallelRecord(LayerRecord):
    """Branches over one input, joined along the last axis of a row or added; an empty branch is the identity."""

    kind: ClassVar[str] = "parallel"
    branches: tuple[tuple[LayerRecord, ...], ...]
    join: Literal["concatenate", "add"]


def all_records(records: Sequence[LayerRecord]) -> Iterator[LayerRecord]:
    """The records, depth first: one that holds others before them."""
    for record in records:
        yield record
        if isinstance(record, ResidualRecord):
            yield from all_records((*record.layers, *record.shortcut))
        elif isinstance(record, ParallelRecord):
            for branch in record.branches:
                yield from all_records(branch)


def _residual(message: Layer, reading: Reading) -> LayerRecord:
    residual, place = message.residual, reading.place
    return ResidualRecord(
        read_layers(residual.layers, f"{place}.layers", "", reading.wrong),
        read_layers(residual.shortcut, f"{place}.shortcut", "", reading.wrong),
    )


def _parallel(message: Layer, reading: Reading) -> LayerRecord:
    parallel, place = message.parallel, reading.place
    branches = tuple(
        read_layers(branch.layers, f"{place}.branches[{number}].layers", reading.follower, reading.wrong)
        for number, branch in enumerate(parallel.branches)
    )
    return ParallelRecord(branches, "add" if parallel.join == Parallel.ADD else "concatenate")


# A kind of layer is added in the file of its family here, in worker/nn/shapes/ and in worker/nn/layers/.
READERS: dict[str, LayerReader] = {
    **dense.READERS,
    **activations.READERS,
    **convolution.READERS,
    **normalization.READERS,
    **sequence.READERS,
    **recurrent.READERS,
    "residual": _residual,
    "parallel": _parallel,
}


def read_layers(messages: Sequence[Layer], place: str, behind: str, wrong: list[Violation]) -> tuple[LayerRecord, ...]:
    """The records of a list of layers at `place` ("model.layers"); `behind` is the activation that follows the last."""
    if messages and place.count(".residual.") + place.count(".parallel.") > MAX_DEPTH:
        remedy = f"residual and parallel layers may lie at most {MAX_DEPTH} deep in each other"
        wrong.append(Violation(place, f"{len(messages)} layers", remedy, "MODEL_TOO_DEEP"))
        return ()
    kinds = [layer.WhichOneof("kind") or "" for layer in messages]
    records = []
    for index, (layer, kind) in enumerate(zip(messages, kinds, strict=True)):
        if kind not in READERS:
            wrong.append(none_given(f"{place}[{index}]", "layer", READERS))
            continue
        following = (other for other in kinds[index + 1 :] if other not in _PASSED_OVER)
        reading = Reading(f"{place}[{index}].{kind}", next(following, behind), wrong)
        records.append(READERS[kind](layer, reading))
    return tuple(records)


def architecture(model: ModelSpec, input_shape: tuple[int, ...]) -> Architecture:
    """The records of a model whose input rows have `input_shape`.

    Raises UserError with all that is wrong, each at its place ("model.layers[2].conv2d.kernel").
    """
    wrong: list[Violation] = []
    if not model.layers:
        wrong.append(Violation("model.layers", "no layers", "at least one layer must be given"))
    layers = read_layers(model.layers, "model.layers", "", wrong)
    if wrong:
        raise UserError(wrong)
    return Architecture(layers, tuple(int(size) for size in input_shape))
