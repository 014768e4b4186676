"""Portable arithmetic: kernels that x86-64 machines of different generations share, chosen before NumPy is imported.

NumPy and its BLAS choose their kernels once, when they are loaded, by the processor, unless these variables say otherwise. So
nothing here imports NumPy before they stand in the environment of the process.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.shard_worker import ShardWorker

BLAS_KERNEL = "Haswell"

# What NumPy may dispatch to beyond AVX2. It passes over names that the processor does not have.
DISABLED_FEATURES = ("X86_V4", "AVX512_ICL", "AVX512_SPR")

_ENVIRONMENT = {
    "OPENBLAS_CORETYPE": BLAS_KERNEL,
    "NPY_DISABLE_CPU_FEATURES": " ".join(DISABLED_FEATURES),
    "OPENBLAS_NUM_THREADS": "1",
}

# What Haswell brought, as NumPy's X86_V3 and the BLAS kernel take it, in the kernel's words: abm is LZCNT.
_NEEDED_FLAGS = ("avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm")

_CPUINFO = Path("/proc/cpuinfo")


def portable_worker(node_id: str, host: str) -> ShardWorker:
    """A worker with the shared kernels, the first thing of its process that imports NumPy.

    Where that cannot be it has the processor's own, and says on joining why it does not fit.
    """
    lacking = lacks(platform.machine(), _CPUINFO.read_text())
    if not lacking:
        # The BLAS does not look whether the processor has what the named kernel takes: without it, it ends in SIGILL.
        os.environ.update(_ENVIRONMENT)
        # NumPy refuses to be imported with both lists.
        os.environ.pop("NPY_ENABLE_CPU_FEATURES", None)
        if "numpy" in sys.modules:
            lacking = "NumPy was loaded before its kernels could be chosen"
    from worker.fingerprint import explanation
    from worker.shard_worker import ShardWorker

    return ShardWorker(node_id, host, lacking or differs(explanation()))


def lacks(machine: str, cpuinfo: str) -> str:
    """What a machine lacks for the shared kernels, or nothing; `cpuinfo` is the text of /proc/cpuinfo."""
    if machine not in ("x86_64", "AMD64"):
        return f"its processor is {machine}, not x86-64"
    flags = next((line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    missing = [flag for flag in _NEEDED_FLAGS if flag not in flags]
    return f"its processor lacks {', '.join(missing)}, which those of 2013 (Haswell) and later mostly have" if missing else ""


def differs(explanation: dict[str, str]) -> str:
    """What the loaded kernels have that is not shared, or nothing; `explanation` is the fingerprint's."""
    if explanation["blas_kernel"] != BLAS_KERNEL:
        return f"its BLAS ({explanation['blas']}) took the kernel {explanation['blas_kernel']} instead of {BLAS_KERNEL}"
    active = explanation["cpu_features"].split()
    above = [feature for feature in active if feature in DISABLED_FEATURES]
    if above or "X86_V3" not in active:
        return f"NumPy {explanation['numpy']} took the kernels of {' '.join(active)} instead of those up to X86_V3"
    return ""
