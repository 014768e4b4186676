"""A BLAS kernel whose arithmetic is another than that of this machine's own choice."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

_PRINT = "from worker.fingerprint import fingerprint; print(fingerprint()[0])"


@functools.cache
def other_kernel() -> str:
    """A value of OPENBLAS_CORETYPE that gives another fingerprint. Raises RuntimeError where there is none."""
    own = _fingerprint({})
    for name in ("Sandybridge", "Haswell", "Nehalem", "Prescott"):
        if _fingerprint({"OPENBLAS_CORETYPE": name}) != own:
            return name
    raise RuntimeError("every OPENBLAS_CORETYPE gives the same fingerprint here")


def _fingerprint(variables: dict[str, str]) -> str:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", _PRINT], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()
