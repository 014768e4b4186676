"""The other side: one rank under DistributedDataParallel, or one plain process. Runs in the peers' environment.

The table lies in memory, the rows of a batch are gathered by index, and nothing is read back from a step.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.distributed
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from benchmarks import gloo
from benchmarks.ddp_race.cases import BY_NAME, DdpCase
from benchmarks.engine_race.cases import MOMENTUM
from benchmarks.engine_race.theirs import Builder
from benchmarks.turns import serve

ORDER_SEED = 1  # of the epochs after the first one, the same on all ranks


@final
class Rank:
    """A process of `processes`, 0 for one without DistributedDataParallel; `order` is that of the first epoch's rows."""

    def __init__(self, case: DdpCase, folder: Path, rank: int, processes: int) -> None:
        self._case, self._grouped = case, processes > 0
        self._share = case.batch // max(1, processes)
        self._first = rank * self._share
        table = np.load(folder / f"{case.widths[0]}.npz")
        self._x, self._y = torch.from_numpy(table["x"]), torch.from_numpy(table["y"])
        self._first_order = torch.from_numpy(np.load(folder / "order.npy"))
        tensors = {name: value.copy() for name, value in np.load(folder / "weights.npz").items()}
        net = Builder(case, tensors, True).build(case.layers)
        self._net: nn.Module = DistributedDataParallel(net, gradient_as_bucket_view=True) if self._grouped else net
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=case.learning_rate, momentum=MOMENTUM, fused=True)
        self._start_epochs()

    def _start_epochs(self) -> None:
        self._order, self._at = self._first_order, 0
        self._draw = torch.Generator().manual_seed(ORDER_SEED)

    def step(self, to_none: bool) -> Any:
        """One step on this rank's share of the next batch; returns the mean loss of the share."""
        if self._at == len(self._order):
            self._order, self._at = torch.randperm(len(self._order), generator=self._draw), 0
        rows = self._order[self._at + self._first : self._at + self._first + self._share]
        self._at += self._case.batch
        x, y = self._x.index_select(0, rows), self._y.index_select(0, rows)
        self._optimizer.zero_grad(set_to_none=to_none)
        loss = functional.cross_entropy(self._net(x), y)
        loss.backward()
        self._optimizer.step()
        return loss

    def losses(self, steps: int) -> list[float]:
        """Of the first steps of all."""
        return [self.step(True).item() for _ in range(steps)]

    def turn(self, steps: int, to_none: bool, threads: int) -> float:
        """Seconds of so many steps, from when all ranks begin until all are done."""
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        self._meet()
        began = time.perf_counter()
        for _ in range(steps):
            self.step(to_none)
        self._meet()
        return time.perf_counter() - began

    def _meet(self) -> None:
        if self._grouped:
            torch.distributed.barrier()


def main() -> None:
    """Serves turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=sorted(BY_NAME))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0)
    parser.add_argument("--meeting-file", default="")
    parser.add_argument("--pinned", action="store_true")
    options = parser.parse_args()
    if options.processes:
        gloo.join(options.rank, options.processes, options.meeting_file, options.pinned)
    rank = Rank(BY_NAME[options.case], options.folder, options.rank, options.processes)
    serve({"losses": rank.losses, "turn": rank.turn})
    if options.processes:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
