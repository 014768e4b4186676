"""docs/tensors.md has every tensor that a layer can have, and none besides."""

from __future__ import annotations

import re
from pathlib import Path

from tests.worker.nn.zoo import ZOO
from worker.nn.shapes import flattened, layer_shapes

PAGE = Path(__file__).parents[3] / "docs" / "tensors.md"


def test_the_page_has_the_tensors_of_every_layer() -> None:
    documented: set[tuple[str, str]] = set()
    kind = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and "`" in line:
            cells = [cell.strip() for cell in line.split("|")]
            kind = cells[1] or kind
            documented |= {(kind, name) for name in re.findall(r"`(\w+)`", cells[2])}
    layers = [layer for animal in ZOO.values() for layer in flattened(layer_shapes(animal.architecture))]
    assert documented == {(layer.kind, name) for layer in layers for name in layer.tensors}
