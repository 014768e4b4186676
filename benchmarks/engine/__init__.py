"""One worker's training step against PyTorch eager, on one core: `python -m benchmarks.engine`."""
