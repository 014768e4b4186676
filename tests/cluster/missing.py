"""Says what a machine lacks for a test, in one sentence."""

from __future__ import annotations

import shutil

import pytest


def needs(command: str, package: str) -> str:
    """The command's path; without it, the test is skipped and says how to get it."""
    path = shutil.which(command)
    if path is None:
        pytest.skip(f"{command} is missing; on Debian: apt-get install {package}")
    return path
