"""What one backward pass costs against central differences, as the parameters grow.

python -m benchmarks.backward_cost prints the table of docs/backpropagation.md; --plot FILE.svg writes its plot.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from benchmarks.log_plot import Line, log_plot
from worker.nn.model import Model, Stack
from worker.specs import Architecture, DenseRecord, InitializerRecord, MeanSquaredErrorRecord, TanhRecord

# Units of each layer of `network`: about 100, 1,000, ... 1,000,000 parameters.
UNITS = (6, 21, 70, 222, 706)
# Of the batch, one shard.
ROWS = 256
# Up to so many parameters the differences of all are measured; beyond, of a sample: the others would take as long each.
ALL = 20_000
SAMPLES = 120
# Of the central difference, in float64: near the cube root of its precision.
STEP = 1e-5

F64 = NDArray[np.float64]


@final
@dataclass(frozen=True, slots=True)
class Cost:
    """CPU times in seconds, which a busy machine hardly changes, the medians of all turns: of one forward pass, of one forward
    and one backward pass, and of the differences of `sampled` parameters.

    `ratio` is the median of forward and backward over forward in the same turn. `disagreement` is the largest difference of
    both gradients at the sampled parameters, over the largest derivative there.
    """

    units: int
    parameters: int
    sampled: int
    forward_s: float
    both_s: float
    sample_s: float
    ratio: float
    disagreement: float

    @property
    def differences_s(self) -> float:
        """Central differences of all parameters: measured where all were sampled, else in proportion."""
        return self.sample_s * self.parameters / self.sampled

    @property
    def measured(self) -> bool:
        """Whether no parameter was left out."""
        return self.sampled == self.parameters


def network(units: int) -> Model:
    """`units` inputs, two hidden layers of as many units with tanh, which has a derivative everywhere, and one output."""
    initial = InitializerRecord("glorot_uniform")
    hidden = DenseRecord(units, True, initial)
    layers = (hidden, TanhRecord(), hidden, TanhRecord(), DenseRecord(1, True, initial))
    return Model(Architecture(layers, (units,)), MeanSquaredErrorRecord(), dtype=np.float64)


def places(model: Model, samples: int) -> NDArray[np.int64]:
    """Places in the flat vector of at most `samples` parameters, evenly spread over all."""
    entries = model.layout.entries
    every = np.concatenate([np.arange(entry.offset, entry.offset + entry.size) for entry in entries])
    return every[np.unique(np.linspace(0, len(every) - 1, min(samples, len(every))).astype(np.int64))]


def differences(model: Model, batch: Sequence[Stack], at: NDArray[np.int64]) -> F64:
    """Central differences of the loss sum at these places: two forward passes each."""
    found = np.empty(len(at))
    for number, place in enumerate(at.tolist()):
        kept = model.parameters[place]
        model.parameters[place] = kept + STEP
        above = model.loss_sum(batch)
        model.parameters[place] = kept - STEP
        below = model.loss_sum(batch)
        model.parameters[place] = kept
        found[number] = (above - below) / (2 * STEP)
    return found


def seconds(passes: Callable[[], object], count: int) -> float:
    """The CPU time of one of `count` calls."""
    began = time.process_time()
    for _ in range(count):
        passes()
    return (time.process_time() - began) / count


def measure(units: int, turns: int) -> Cost:
    """Forward, forward and backward, and differences in turn, so that a slow moment of the machine meets all three."""
    model = network(units)
    rng = np.random.default_rng(1)
    batch = [(rng.standard_normal((1, ROWS, units)), rng.standard_normal((1, ROWS, 1)))]
    parameters = sum(entry.size for entry in model.layout.entries)
    at = places(model, parameters if parameters <= ALL else SAMPLES)
    # The first pass makes the buffers.
    model.loss_and_gradient(batch)
    count = max(1, min(200, int(0.1 / seconds(lambda: model.loss_and_gradient(batch), 3))))
    found, times = np.zeros(0), []
    for _ in range(turns):
        forward_s = seconds(lambda: model.loss_sum(batch), count)
        both_s = seconds(lambda: model.loss_and_gradient(batch), count)
        began = time.process_time()
        found = differences(model, batch, at)
        times.append((forward_s, both_s, time.process_time() - began))
    model.loss_and_gradient(batch)
    ours = model.gradients[0, at]
    disagreement = float(np.abs(found - ours).max() / np.abs(ours).max())
    forward_s, both_s, sample_s = (median(column) for column in zip(*times, strict=True))
    ratio = median(both_s / forward_s for forward_s, both_s, _ in times)
    return Cost(units, parameters, len(at), forward_s, both_s, sample_s, ratio, disagreement)


def duration(value_s: float) -> str:
    """Three digits, in the unit that people would say."""
    for unit, size_s in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if value_s >= size_s:
            return f"{value_s / size_s:.3g} {unit}"
    return f"{value_s * 1e6:.3g} µs"


def table(costs: Sequence[Cost]) -> str:
    """In Markdown."""
    heads = (
        *("parameters", "units", "forward", "forward + backward", "ratio"),
        *("central differences", "over forward + backward", "they differ by"),
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cost in costs:
        how = "" if cost.measured else f" (from {cost.sampled})"
        lines.append(
            f"| {cost.parameters:,} | {cost.units} | {duration(cost.forward_s)} | {duration(cost.both_s)} "
            f"| {cost.ratio:.1f} | {duration(cost.differences_s)}{how} "
            f"| {float(f'{cost.differences_s / cost.both_s:.3g}'):,.0f} | {cost.disagreement:.0e} |"
        )
    return "\n".join(lines)


def plot(costs: Sequence[Cost]) -> str:
    """The three times over the parameters, as SVG."""
    parameters = [cost.parameters for cost in costs]
    first_estimate = next((number for number, cost in enumerate(costs) if not cost.measured), len(costs))
    lines = [
        Line("central differences", "#c2410c", [cost.differences_s for cost in costs], solid=first_estimate),
        Line("forward + backward", "#1d4ed8", [cost.both_s for cost in costs]),
        Line("forward", "#64748b", [cost.forward_s for cost in costs]),
    ]
    named = ((1e-5, "10 µs"), (1e-4, "0.1 ms"), (1e-3, "1 ms"), (1e-2, "10 ms"), (0.1, "0.1 s"), (1.0, "1 s"), (10.0, "10 s"))
    longer = ((60.0, "1 min"), (600.0, "10 min"), (3600.0, "1 h"), (36000.0, "10 h"))
    titles = ("One gradient, two ways", f"CPU time of one thread; dashed: from {SAMPLES} of the parameters")
    return log_plot(titles, "parameters", parameters, lines, named + longer)


def machine() -> str:
    """What a result depends on beside the code."""
    with open("/proc/cpuinfo") as file:
        name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    blas = threadpool_info()[0]
    kernels = f"OpenBLAS {blas['version']} ({blas['architecture']})"
    return f"{date.today()}, {name}, one thread, {kernels}, NumPy {np.__version__}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=11, help="of which the median is taken")
    parser.add_argument("--plot", type=Path, help="where to write the plot (SVG)")
    options = parser.parse_args()
    with threadpool_limits(limits=1, user_api="blas"):
        costs = [measure(units, options.turns) for units in UNITS]
    print(f"{table(costs)}\n\n{machine()}.")
    if options.plot:
        options.plot.write_text(plot(costs))


if __name__ == "__main__":
    main()
