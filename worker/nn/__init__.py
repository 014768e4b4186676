"""The engine: forward and backward passes in NumPy over stacks of shards.

Nothing is imported here, so that `worker.nn.shapes` can be read without NumPy.
"""
