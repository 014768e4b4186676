"""docs/determinism.md promises nothing without a test, and every test that a page names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
TEST = re.compile(r"`(?:tests/)?([\w/]+\.py)::(\w+)`")
NAMED = sorted({(page.name, *found) for page in DOCS.glob("*.md") for found in TEST.findall(page.read_text())})


@pytest.mark.parametrize(("page", "file", "test"), NAMED)
def test_a_test_that_a_page_names_is_there(page: str, file: str, test: str) -> None:
    path = TESTS / file
    assert path.is_file(), f"docs/{page} names tests/{file}; there is no such file"
    body = ast.parse(path.read_text()).body
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert test in functions, f"docs/{page}: tests/{file} has no {test}"
    assert test.startswith("test_"), f"docs/{page}: pytest does not run {test}"


def test_every_promise_has_a_test() -> None:
    table = (DOCS / "determinism.md").read_text().split("\n<!-- promises -->\n")[1].split("\n\n")[0]
    promises = [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    assert promises
    for promise, shown_by in promises:
        left = TEST.sub("", shown_by).replace(",", "").strip()
        assert TEST.search(shown_by) and not left, f"docs/determinism.md: {promise.strip()} is shown by {shown_by.strip()}"
