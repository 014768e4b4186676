"""The fingerprint tells kernels apart, and explains itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from worker.fingerprint import fingerprint

CODE = "import json; from worker.fingerprint import fingerprint; print(json.dumps(fingerprint()))"


def elsewhere(**environment: str) -> tuple[str, dict[str, str]]:
    """The fingerprint that a new process has under these variables."""
    variables = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"} | environment
    done = subprocess.run([sys.executable, "-c", CODE], env=variables, capture_output=True, text=True, check=True, timeout=60)
    found, explanation = json.loads(done.stdout)
    return found, explanation


def test_it_is_a_hash_with_an_explanation() -> None:
    found, explanation = fingerprint()
    assert len(bytes.fromhex(found)) == 32
    assert set(explanation) == {"numpy", "blas", "blas_kernel", "cpu_features", "libm", "python", "machine"}
    assert all(explanation.values())


def test_kernels_differ() -> None:
    kernels = {name: elsewhere(OPENBLAS_CORETYPE=name) for name in ("Haswell", "SkylakeX", "Prescott")}
    if len({explanation["blas_kernel"] for _, explanation in kernels.values()}) < 3:
        pytest.fail(f"OpenBLAS did not take the kernels asked for: {kernels}")
    assert len({found for found, _ in kernels.values()}) == 3


def test_the_functions_of_the_c_library_count() -> None:
    without = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4"}
    assert elsewhere(**without)[0] != elsewhere()[0]


def test_it_depends_on_neither_threads_nor_the_process() -> None:
    one = elsewhere(OPENBLAS_CORETYPE="Haswell", OPENBLAS_NUM_THREADS="1")
    assert elsewhere(OPENBLAS_CORETYPE="Haswell", OPENBLAS_NUM_THREADS="2") == one
