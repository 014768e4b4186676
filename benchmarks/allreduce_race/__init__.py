"""The reduction alone, two processes, against gloo's all_reduce: `python benchmarks/allreduce.py`."""
