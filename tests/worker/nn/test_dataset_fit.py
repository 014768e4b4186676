"""Every loss against every kind of target: what fits, and what is refused, with place and remedy."""

from __future__ import annotations

import pytest

from tests.worker.nn.networks import dense_net
from worker.nn.shapes import check_against_dataset
from worker.specs import (
    Architecture,
    BinaryCrossEntropyRecord,
    DenseRecord,
    HuberRecord,
    InitializerRecord,
    LossRecord,
    MeanAbsoluteErrorRecord,
    MeanSquaredErrorRecord,
    SoftmaxCrossEntropyRecord,
)

CROSS_ENTROPY, BINARY = SoftmaxCrossEntropyRecord(), BinaryCrossEntropyRecord()
OF_NUMBERS = [MeanSquaredErrorRecord(), MeanAbsoluteErrorRecord(), HuberRecord()]
UNITS = "model.layers[0].dense.units"


def found(loss: LossRecord, units: int, **target: int) -> list[tuple[str, str]]:
    return [(violation.place, violation.reason) for violation in check_against_dataset(net(units), loss, **target)]


def net(units: int) -> Architecture:
    return dense_net([units], inputs=(4,))


def per_position(units: int) -> Architecture:
    """Rows of 6 positions, as many outputs at each."""
    return Architecture((DenseRecord(units, True, InitializerRecord("glorot_uniform")),), (6, 4))


@pytest.mark.parametrize("loss", OF_NUMBERS)
def test_losses_of_numbers(loss: LossRecord) -> None:
    assert found(loss, 3, width=3) == []
    assert found(loss, 1, width=1) == []
    assert found(loss, 3, width=2) == [(UNITS, "WRONG_NUMBER_OF_OUTPUTS")]
    assert found(loss, 3, classes=3) == [(f"loss.{loss.kind}", "LOSS_DOES_NOT_FIT")]


def test_binary_cross_entropy() -> None:
    assert found(BINARY, 1, classes=2) == []
    assert found(BINARY, 5, width=5) == []
    assert found(BINARY, 2, classes=2) == [(UNITS, "WRONG_NUMBER_OF_OUTPUTS")]
    assert found(BINARY, 2, width=1) == [(UNITS, "WRONG_NUMBER_OF_OUTPUTS")]
    assert found(BINARY, 1, width=1) == [("loss.binary_cross_entropy", "LOSS_DOES_NOT_FIT")]
    assert found(BINARY, 1, classes=3) == [("loss.binary_cross_entropy", "LOSS_DOES_NOT_FIT")]
    (refused,) = check_against_dataset(net(1), BINARY, classes=3)
    assert str(refused) == (
        "loss.binary_cross_entropy: got 3 classes; it takes one label per row, 0 or 1; use `softmax_cross_entropy: {}`"
    )


def test_class_weights_and_the_ignored_label() -> None:
    assert found(SoftmaxCrossEntropyRecord(class_weights=(1, 2, 3)), 3, classes=3) == []
    weights = ("loss.softmax_cross_entropy.class_weights", "WRONG_NUMBER_OF_WEIGHTS")
    assert found(SoftmaxCrossEntropyRecord(class_weights=(1, 2)), 3, classes=3) == [weights]
    assert found(SoftmaxCrossEntropyRecord(class_weights=(1, 2, 3)), 2, classes=3) == [(UNITS, "TOO_FEW_OUTPUTS"), weights]
    assert found(SoftmaxCrossEntropyRecord(ignored_label=2), 2, classes=3) == []
    assert found(SoftmaxCrossEntropyRecord(ignored_label=1), 2, classes=3) == [(UNITS, "TOO_FEW_OUTPUTS")]


def test_labels_at_each_position() -> None:
    assert check_against_dataset(per_position(5), CROSS_ENTROPY, classes=5, positions=6) == []
    for model, positions, reason in [
        (per_position(5), None, "SHAPES_DO_NOT_MEET"),
        (per_position(5), 7, "SHAPES_DO_NOT_MEET"),
        (net(5), 6, "SHAPES_DO_NOT_MEET"),
        (per_position(4), 6, "TOO_FEW_OUTPUTS"),
    ]:
        assert [v.reason for v in check_against_dataset(model, CROSS_ENTROPY, classes=5, positions=positions)] == [reason]
    (refused,) = check_against_dataset(net(5), CROSS_ENTROPY, classes=5, positions=6)
    assert str(refused) == (
        "model.layers[0].dense: got an output of shape (5,); "
        "the dataset has a label at each of 6 positions; the last layer must give rows of shape (6, outputs)"
    )
    ignoring = SoftmaxCrossEntropyRecord(ignored_label=-100)
    assert check_against_dataset(per_position(5), ignoring, classes=5, positions=6, no_label=-100) == []
    assert check_against_dataset(per_position(5), ignoring, classes=5, positions=6) == []
    for record, got in [(CROSS_ENTROPY, "none"), (SoftmaxCrossEntropyRecord(ignored_label=0), "0")]:
        (refused,) = check_against_dataset(per_position(5), record, classes=5, positions=6, no_label=-100)
        assert str(refused) == (
            f"loss.softmax_cross_entropy.ignored_label: got {got}; "
            "the dataset has -100 at positions without a label; set ignored_label to -100"
        )
    for loss in [BINARY, *OF_NUMBERS]:
        (refused,) = check_against_dataset(per_position(5), loss, classes=2, positions=6)
        assert (refused.place, refused.reason) == (f"loss.{loss.kind}", "LOSS_DOES_NOT_FIT")
