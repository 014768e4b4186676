"""Lockstep: a distributed training service."""
