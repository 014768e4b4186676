"""Portable arithmetic: one fingerprint whatever the environment says, and a reason where the kernels cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.portable import differs, lacks

# What a portable worker of a fresh process says on joining; "early" has NumPy imported before it.
CODE = """
import json, sys
if "early" in sys.argv:
    import numpy
from lockstep.internal.v1.worker_pb2 import JoinRequest, WorkerReply, WorkerRequest
from worker.portable import portable_worker
reply = portable_worker("n", "h").handle(WorkerRequest(join=JoinRequest()).SerializeToString())
join = WorkerReply.FromString(reply).join
print(json.dumps([join.fingerprint, join.unfit, dict(join.explanation)]))
"""

FLAGS = "flags\t\t: fpu sse4_2 movbe abm avx f16c fma avx2 bmi1 bmi2\n"


def joined(*arguments: str, **environment: str) -> tuple[str, str, dict[str, str]]:
    """Fingerprint, reason and explanation of a worker that is started under these variables."""
    variables = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"} | environment
    command = [sys.executable, "-W", "error::ImportWarning", "-c", CODE, *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=60)
    fingerprint, unfit, explanation = json.loads(done.stdout)
    return fingerprint, unfit, explanation


def test_it_is_one_whatever_the_environment_says() -> None:
    fingerprint, unfit, explanation = joined()
    assert not unfit and differs(explanation) == ""
    for environment in (
        {"OPENBLAS_CORETYPE": "SkylakeX"},
        {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4"},
        {"NPY_ENABLE_CPU_FEATURES": "X86_V3", "OPENBLAS_NUM_THREADS": "2"},
    ):
        assert joined(**environment) == (fingerprint, "", explanation)


def test_where_numpy_is_loaded_already_the_worker_does_not_fit() -> None:
    assert joined("early", OPENBLAS_CORETYPE="Prescott")[1] == "NumPy was loaded before its kernels could be chosen"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "said"),
    [
        ("x86_64", FLAGS, ""),
        ("x86_64", FLAGS.replace(" fma", "").replace(" avx2", ""), "avx2, fma"),
        ("x86_64", "", "avx2, fma, f16c, bmi1, bmi2, movbe, abm"),
        ("aarch64", "Features\t: fp asimd\n", "aarch64, not x86-64"),
    ],
)
def test_what_a_machine_lacks_is_said(machine: str, cpuinfo: str, said: str) -> None:
    found = lacks(machine, cpuinfo)
    assert said in found if said else found == ""


def test_a_machine_that_lacks_it_keeps_its_own_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from worker import portable

    (tmp_path / "cpuinfo").write_text(FLAGS.replace(" fma", ""))
    monkeypatch.setattr(portable, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Sandybridge")
    worker = portable.portable_worker("n", "h")
    assert "lacks fma" in worker._unfit and os.environ["OPENBLAS_CORETYPE"] == "Sandybridge"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"blas_kernel": "SkylakeX"}, "took the kernel SkylakeX instead of Haswell"),
        ({"cpu_features": "X86_V2 X86_V3 X86_V4"}, "instead of those up to X86_V3"),
        ({"cpu_features": "X86_V2"}, "instead of those up to X86_V3"),
    ],
)
def test_kernels_that_are_not_the_shared_ones_are_said(changed: dict[str, str], said: str) -> None:
    explanation = {"blas": "openblas 1", "blas_kernel": "Haswell", "cpu_features": "X86_V2 X86_V3", "numpy": "2"} | changed
    assert said in differs(explanation) if said else differs(explanation) == ""
