"""Plots with two logarithmic axes, as SVG, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

WIDTH, HEIGHT = 760, 460
LEFT, RIGHT, TOP, BOTTOM = 80, 190, 76, 62
INK, QUIET, GRID = "#0f172a", "#64748b", "#e2e8f0"


@final
@dataclass(frozen=True, slots=True)
class Line:
    """Values over x. From the point `solid` on they are estimates: dashed, with open marks."""

    label: str
    color: str
    values: Sequence[float]
    solid: int | None = None


def log_plot(
    titles: tuple[str, str], x_label: str, xs: Sequence[float], lines: Sequence[Line], named: Sequence[tuple[float, str]]
) -> str:
    """An SVG: `lines` over `xs`, both axes logarithmic, under a title and a line that explains it.

    The marks of the x axis are powers of ten; those of the y axis are `named`, (value, text).
    """
    values = [value for line in lines for value in line.values]
    x_low, x_high = math.log10(min(xs)) - 0.15, math.log10(max(xs)) + 0.15
    y_low, y_high = math.log10(min(values)) - 0.4, math.log10(max(values)) + 0.4

    def across(x: float) -> float:
        return LEFT + (math.log10(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(y) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        _text(LEFT, 32, titles[0], INK, "start", ' font-size="16" font-weight="600"'),
        _text(LEFT, 54, titles[1], QUIET, "start"),
    ]
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        x = across(10.0**power)
        out.append(_rule(x, TOP, x, HEIGHT - BOTTOM))
        out.append(_text(x, HEIGHT - BOTTOM + 20, f"{10**power:,}", QUIET, "middle"))
    for value, text in named:
        if y_low <= math.log10(value) <= y_high:
            out.append(_rule(LEFT, down(value), WIDTH - RIGHT, down(value)))
            out.append(_text(LEFT - 10, down(value) + 4, text, QUIET, "end"))
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, x_label, QUIET, "middle"))
    # Labels stand at the ends of their lines, from the top down, and never on each other.
    lowest = 0.0
    for line in sorted(lines, key=lambda line: -line.values[-1]):
        points = [(across(x), down(y)) for x, y in zip(xs, line.values, strict=True)]
        out.extend(_drawn(line, points))
        lowest = max(points[-1][1] + 4, lowest + 18)
        out.append(_text(points[-1][0] + 14, lowest, line.label, line.color, "start", ' font-weight="600"'))
    return "\n".join([*out, "</svg>", ""])


def _drawn(line: Line, points: Sequence[tuple[float, float]]) -> list[str]:
    solid = len(points) if line.solid is None else line.solid
    out = []
    for number, (begin, end) in enumerate(pairwise(points), 1):
        dashed = "" if number < solid else ' stroke-dasharray="5 5"'
        coordinates = f'x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
        out.append(f'<line {coordinates} stroke="{line.color}" stroke-width="2.5" stroke-linecap="round"{dashed}/>')
    for number, (x, y) in enumerate(points):
        fill = line.color if number < solid else "#ffffff"
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{line.color}" stroke-width="2"/>')
    return out


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{GRID}"/>'


def _text(x: float, y: float, text: str, color: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}"{more}>{text}</text>'
