"""Runs: slots are granted, the agent is told what to run, and what it reports is applied to the store, once and in order."""
