"""The dense nets that are raced, and what is asked of each. Read by both sides: plain Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from benchmarks.engine_race.cases import InputKind, Layers, dense_layers

WORKERS = 2
LEAST_SHARDS = 2  # one for each worker


@final
@dataclass(frozen=True)
class DdpCase:
    """A row of the table. Floors are of our samples/s with two workers: over DDP's, over those of one PyTorch process with all
    cores, over our own with one worker, and over our own with two shards when there are eight."""

    widths: tuple[int, ...]
    batch: int
    ddp_floor: float | None = None
    torch_floor: float | None = None
    scaling_floor: float | None = None
    shards_floor: float | None = None
    learning_rate: float = 0.02
    classes: int = 10
    rows: int = 8192
    input_kind: InputKind = "numbers"

    @property
    def name(self) -> str:
        """For the command line."""
        return "-".join(map(str, (*self.widths, f"b{self.batch}")))

    @property
    def title(self) -> str:
        """For people."""
        return f"[{', '.join(map(str, self.widths))}] b{self.batch}"

    @property
    def layers(self) -> Layers:
        """As in a job file."""
        return dense_layers(*self.widths[1:])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one row."""
        return self.widths[:1]

    @property
    def parameters(self) -> int:
        """Numbers that are learned."""
        return sum((inputs + 1) * units for inputs, units in zip(self.widths, self.widths[1:], strict=False))


CASES = (
    DdpCase((64, 64, 10), 64, 30, 6),
    DdpCase((784, 128, 10), 128, 5, 1.7),
    DdpCase((784, 512, 256, 10), 256, 1.9, 1.05, 1.6),
    DdpCase((784, 1024, 1024, 10), 256, 1.35, 1.0, 1.6),
    DdpCase((784, 2048, 2048, 2048, 10), 1024, 1.15, 1.0, 1.8, learning_rate=0.005),
    DdpCase((784, 512, 256, 10), 1024, shards_floor=0.85),
)
BY_NAME = {case.name: case for case in CASES}
