"""The agent beside the Ray head, and the coordinator of a run: shards, stretches, snapshots, checkpoints, recovery."""
