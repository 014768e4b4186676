"""Jobs on a real service against PyTorch's DistributedDataParallel and against one plain process: `benchmarks/ddp.py`."""
