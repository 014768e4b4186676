"""Every NumPy call of the engine stands in docs/determinism.md, and every line there has its call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
FILES = [*sorted((ROOT / "worker" / "nn").rglob("*.py")), ROOT / "worker" / "randomness.py"]

# Names of types, and what only looks at an array or makes a view of it.
NO_CALLS = {
    "np.dtype",
    "np.ndarray",
    "np.floating",
    "np.integer",
    "np.float32",
    "np.float64",
    "np.int64",
    "np.uint64",
    "np.uint8",
    "np.uint16",
    "np.may_share_memory",
}

# Methods of arrays that compute or move numbers.
METHODS = {
    *(
        "all",
        "any",
        "argmax",
        "argmin",
        "argsort",
        "astype",
        "choose",
        "clip",
        "compress",
        "copy",
        "cumprod",
        "cumsum",
        "dot",
        "fill",
    ),
    *(
        "max",
        "mean",
        "min",
        "nonzero",
        "partition",
        "prod",
        "put",
        "repeat",
        "round",
        "searchsorted",
        "sort",
        "std",
        "sum",
        "take",
    ),
    *("trace", "var"),
}


def chain(node: ast.expr) -> str:
    """ "np.add.reduce" of an attribute expression, else empty."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := chain(node.value)):
        return f"{before}.{node.attr}"
    return ""


def calls(tree: ast.AST) -> Iterator[str]:
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            name = chain(node)
            if name.startswith("np.") and name not in NO_CALLS:
                yield name
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in METHODS
            and not chain(node.func).startswith(("np.", "math."))
        ):
            yield f".{node.func.attr}"
        if isinstance(node, ast.MatMult | ast.Pow):
            yield type(node).__name__


def documented() -> set[tuple[str, str]]:
    text = (ROOT / "docs" / "determinism.md").read_text()
    lines = text.split("<!-- calls -->")[1].splitlines()
    rows = [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    assert all(len(row) == 3 and row[2] for row in rows)
    return {(row[0], row[1]) for row in rows}


def found() -> set[tuple[str, str]]:
    return {(str(path.relative_to(ROOT / "worker")), call) for path in FILES for call in calls(ast.parse(path.read_text()))}


def test_every_call_is_documented() -> None:
    assert found() - documented() == set()


def test_every_documented_call_is_there() -> None:
    assert documented() - found() == set()


def test_the_search_finds_what_it_looks_for() -> None:
    code = "a = np.add\nnp.linalg.qr(x)\nx.T.sum()\ny = x @ x\nz = x ** 2\nt: np.dtype\nnp.add.reduce(x)"
    assert set(calls(ast.parse(code))) == {"np.add", "np.linalg.qr", ".sum", "MatMult", "Pow", "np.add.reduce"}
