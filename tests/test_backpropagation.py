"""docs/backpropagation.md tells the truth: its links, its example, and the script behind its measurement."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.backward_cost import measure, plot, table
from worker.nn.model import Model
from worker.nn.schedules import learning_rate
from worker.nn.update import Update
from worker.specs import (
    Architecture,
    ConstantSchedule,
    DenseRecord,
    InitializerRecord,
    MeanSquaredErrorRecord,
    PenaltyRecord,
    ReluRecord,
    SgdRecord,
)

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "backpropagation.md").read_text()
LINKS = sorted(set(re.findall(r"\[([^\]]*)\]\(([^)]*)\)", TEXT)))
PARAMETERS = {"W1": "0.dense.weight", "b1": "0.dense.bias", "W2": "2.dense.weight", "b2": "2.dense.bias"}

Matrix = NDArray[np.float64]


# Links


def members(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """What these statements define, by name; a class with what it holds."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node.body if isinstance(node, ast.ClassDef) else []
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = []
    return found


@pytest.mark.parametrize(("text", "address"), LINKS)
def test_every_name_stands_in_the_file_that_is_linked(text: str, address: str) -> None:
    path = DOCS / address
    assert path.is_file(), address
    if path.suffix != ".py":
        return
    body = ast.parse(path.read_text()).body
    for name in text.strip("`").split("."):
        here = members(body)
        assert name in here, f"docs/backpropagation.md: {address} has no {text}"
        body = here[name]


def test_a_link_into_the_code_has_a_name() -> None:
    names = [text for text, address in LINKS if address.endswith(".py")]
    assert names
    assert all(re.fullmatch(r"`[\w.]+`", name) for name in names)


# The example


def numbers(cell: str) -> Matrix:
    """A cell of a table as a matrix; rows are parted by semicolons."""
    return np.array([[float(number) for number in row.split(",")] for row in cell.split(";")])


def example_tables() -> tuple[dict[str, list[Matrix]], dict[str, list[Matrix]]]:
    """The columns of the two tables by the name of the line."""
    section = TEXT.split("\n## By hand\n")[1].split("\n## ")[0]
    tables: list[dict[str, list[Matrix]]] = []
    for part in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in part.splitlines()[2:]]
        tables.append({line[0].strip("`"): [numbers(cell) for cell in line[1:] if cell and "`" not in cell] for line in lines})
    passes, update = tables
    return passes, update


def dense(units: int) -> DenseRecord:
    return DenseRecord(units, True, InitializerRecord("glorot_uniform"))


LAYERS = (dense(2), ReluRecord(), dense(1))


def model_of(update: dict[str, list[Matrix]], column: int, layers: int = 3) -> Model:
    """The first layers of the example's network, with the parameters of a column."""
    model = Model(Architecture(LAYERS[:layers], (2,)), MeanSquaredErrorRecord())
    for name, tensor in model.named_parameters().items():
        short = next(short for short, full in PARAMETERS.items() if full == name)
        value = update[short][column]
        tensor[...] = value.T if short.startswith("W") else value[0]
    return model


def as_written(name: str, tensor: NDArray[np.floating]) -> Matrix:
    return np.atleast_2d(tensor.T.astype(np.float64) if name.startswith("W") else tensor.astype(np.float64))


def batch(passes: dict[str, list[Matrix]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rows as two shards of one row each."""
    x, y = (np.array(passes[name], np.float32) for name in ("x", "y"))
    return x, y


def test_the_passes_of_the_example() -> None:
    passes, update = example_tables()
    x, y = batch(passes)
    for layers, name in ((1, "a"), (2, "h"), (3, "z")):
        assert model_of(update, 0, layers).predict(x[:, 0]).tolist() == [row[0].tolist() for row in passes[name]]
    model = model_of(update, 0)
    result = model.loss_and_gradient([(x, y)], ((0, 1), (1, 2)))
    assert list(result.loss_sums) == [row.item() for row in passes["l"]]
    for row in range(2):
        gradients = {short: model.named_gradients(row)[full] for short, full in PARAMETERS.items()}
        for name, gradient in gradients.items():
            assert np.array_equal(as_written(name, gradient), passes[f"d{name}"][row]), (name, row)
        # A bias adds to its unit's sum as it is: its gradient is that sum's.
        assert np.array_equal(passes["dz"][row], passes["db2"][row])
        assert np.array_equal(passes["da"][row], passes["db1"][row])
        assert np.array_equal(passes["dh"][row], passes["dz"][row] @ update["W2"][0])


def test_the_update_of_the_example() -> None:
    passes, update = example_tables()
    rows, optimizer = batch(passes), SgdRecord(1 / 32, ConstantSchedule())
    model = model_of(update, 0)
    result = model.loss_and_gradient([rows])
    gradient = model.gradients[0]
    check_column(model.named_gradients(), update, 1)
    np.divide(gradient, np.float32(result.denominator), out=gradient)
    check_column(model.named_gradients(), update, 2)
    rate = learning_rate(optimizer, step=1, steps_per_epoch=1, total_steps=1)
    Update(optimizer, PenaltyRecord(0, 0), model.layout).apply(0, model.parameters, gradient, (), 1, rate)
    check_column(model.named_parameters(), update, 3)

    before, after = (float(text) for text in re.findall(r"mean loss was ([\d.]+)\. It is now ([\d.]+)\.", TEXT)[0])
    assert result.loss_sum / result.denominator == before
    moved = model.loss_and_gradient([rows])
    assert moved.loss_sum / moved.denominator == pytest.approx(after, abs=5e-7)


def check_column(tensors: dict[str, NDArray[np.floating]], update: dict[str, list[Matrix]], column: int) -> None:
    for short, full in PARAMETERS.items():
        assert np.array_equal(as_written(short, tensors[full]), update[short][column]), (short, column)


def test_the_difference_of_the_example() -> None:
    passes, update = example_tables()
    x, y = batch(passes)
    losses = []
    for by in (1 / 8, -1 / 8):
        model = model_of(update, 0)
        model.named_parameters()["0.dense.weight"][0, 0] += by
        losses.append(model.loss_and_gradient([(x[:1], y[:1])]).loss_sum)
    assert losses == [0.25, 2.25]
    assert (losses[0] - losses[1]) / (1 / 4) == passes["dW1"][0][0, 0]


# The measurement


def test_the_script_measures_one_gradient_in_two_ways() -> None:
    cost = measure(units=3, turns=1)
    assert cost.parameters == cost.sampled == 28
    assert cost.disagreement < 1e-8
    assert 0 < cost.forward_s < cost.differences_s
    assert table([cost]).splitlines()[0] in TEXT
    shapes = list(ElementTree.fromstring(plot([cost, cost])).iter())
    assert sum(shape.tag.endswith("circle") for shape in shapes) == 6
