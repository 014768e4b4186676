"""PyTorch's processes of a group over gloo, as a side of a race sees its own. Runs in the peers' environment."""

from __future__ import annotations

import os

import torch
import torch.distributed


def join(rank: int, processes: int, meeting_file: str, pinned: bool) -> None:
    """Makes this process a member of the group, with one thread; on a core of its own if `pinned`."""
    if pinned:  # before gloo starts its threads, which inherit it
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=processes)
