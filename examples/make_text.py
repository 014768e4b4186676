"""Makes examples/brackets.npz, texts of nested brackets for examples/transformer.yaml.

    .venv/bin/python examples/make_text.py

Each text is 8 to 24 brackets of three kinds, nested at most 5 deep and not all of them closed. What is to be told at each of
its positions is the kind of the bracket that is open there and was opened last: `(`, `[`, `{`, or none.

    text    (  [  ]  {  (  )  }  )
    label   (  [  (  {  (  {  (  none
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("brackets.npz")
ROWS, LENGTH, SHORTEST, DEEPEST = 4_000, 24, 8, 5
KINDS = "([{"  # a kind k opens as token 1 + k and closes as token 4 + k; its label is 1 + k, and 0 is none
PADDING, NO_LABEL = 0, -100  # what stands after a text's end


def text(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """The tokens of one text, and their labels."""
    tokens: list[int] = []
    labels: list[int] = []
    opened: list[int] = []
    for _ in range(rng.integers(SHORTEST, LENGTH + 1)):
        if opened and (len(opened) == DEEPEST or rng.random() < 0.5):
            tokens.append(1 + len(KINDS) + opened.pop())
        else:
            opened.append(int(rng.integers(len(KINDS))))
            tokens.append(1 + opened[-1])
        labels.append(1 + opened[-1] if opened else 0)
    return tokens, labels


def main() -> None:
    """Writes x (4000, 24) uint8, tokens and then padding, and y (4000, 24) int8, labels and then -100."""
    rng = np.random.default_rng(0)
    x = np.full((ROWS, LENGTH), PADDING, np.uint8)
    y = np.full((ROWS, LENGTH), NO_LABEL, np.int8)
    for row in range(ROWS):
        tokens, labels = text(rng)
        x[row, : len(tokens)] = tokens
        y[row, : len(labels)] = labels
    np.savez_compressed(FILE, x=x, y=y)
    print(f"{FILE}: {ROWS:,} texts of {SHORTEST} to {LENGTH} brackets")


if __name__ == "__main__":
    main()
