"""The other side: one rank of gloo's all_reduce. Runs in the peers' environment."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed

from benchmarks import gloo
from benchmarks.turns import serve


def main(rank: int, processes: int, meeting_file: str, placing: str) -> None:
    """Serves turns."""
    gloo.join(rank, processes, meeting_file, placing == "pinned")
    vectors: dict[int, torch.Tensor] = {}

    def turn(floats: int, count: int) -> float:
        vector = vectors.setdefault(floats, torch.zeros(floats))  # of zeros, which stay what they are
        torch.distributed.barrier()
        began = time.perf_counter()
        for _ in range(count):
            torch.distributed.all_reduce(vector)
        return time.perf_counter() - began

    serve({"turn": turn})
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
