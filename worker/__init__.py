"""The worker: its shards of every mini-batch, forward and backward, and its part of the all-reduce.

Nothing is imported here, so that `worker.specs` and `worker.nn.shapes` can be read without NumPy.
"""
