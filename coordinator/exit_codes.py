"""The exit codes of the agent and of coordinators."""

from __future__ import annotations

# The API server does not want this agent.
EXIT_REFUSED = 3
# A worker heard nothing from its coordinator.
EXIT_SILENCE = 4
# A coordinator's agent is gone. Ray ends its actors with it; plain workers see their own pipe close.
EXIT_ORPHANED = 5
# The cluster cannot be reached.
EXIT_UNREACHABLE = 6
# Another process writes the run's spool.
EXIT_SPOOL_TAKEN = 7
# The disk failed under a checkpoint or the spool; the spool may not say so.
EXIT_BROKEN = 8
# There was no space for the run's events for too long.
EXIT_SPOOL_FULL = 9
# It failed in a way that it did not expect, and could not say so in the spool. Not 1: with that Ray ends a driver.
EXIT_FAILED = 10
