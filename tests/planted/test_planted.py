"""Each planted defect is caught: without it a row, or a test, holds; with it the oracle that is named finds it."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from tests.faults.campaign import Verdict, judge
from tests.faults.fault_job import reference
from tests.faults.rows import coordinator_cases, late_in_a_new_group, worker_cases
from tests.planted.defect import ROOT, VARIABLE, environment
from tests.planted.defects import DEFECTS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

# Cases of rows, whose processes have the defect. The undisturbed run that they are compared with has not.
_KILLED = worker_cases("update.when_half_done")[0]
CASES = {
    "tree_order_swapped": worker_cases("worker.when_joining")[1],
    "snapshot_in_mid_update": _KILLED,
    "divided_per_shard": _KILLED,
    "dropout_by_rank": _KILLED,
    "segments_reused": late_in_a_new_group(),
    "controller_not_restored": coordinator_cases("checkpoint.when_published")[1],
}

# Tests, run in a process that has the defect.
_CUT = "tests/faults/test_crash_states.py::test_a_cut_anywhere_leaves_the_old_or_the_new_checkpoint"
TESTS = {
    "files_not_synced": _CUT,
    "folder_not_synced": _CUT,
    "name_not_synced": _CUT,
    "manifest_before_files": "tests/faults/test_crash_states.py::test_where_there_is_a_manifest_there_is_all_that_it_names",
    "run_number_unchecked": "tests/services/test_agent.py::test_an_event_counts_once_and_one_of_an_older_run_not_at_all",
    "norms_by_rank": (
        "tests/worker/collective/test_reduction.py::test_norms_give_the_same_bits_on_any_number_of_workers_and_nodes"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_catches_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = without(name)
    assert undisturbed.effective and not undisturbed.failure, undisturbed.failure
    for variable, value in environment(DEFECTS[name]).items():
        monkeypatch.setenv(variable, value)
    verdict = judge(CASES[name])
    assert verdict.effective and verdict.failure.startswith(f"{DEFECTS[name].word}: "), verdict.failure


@pytest.mark.parametrize("name", TESTS)
def test_a_test_catches_it(name: str) -> None:
    code, said = all_without()
    assert code == pytest.ExitCode.OK, said
    code, said = run([TESTS[name]], environment(DEFECTS[name]))
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert re.search(f"^E .*{re.escape(DEFECTS[name].word)}", said, re.MULTILINE), said


_verdicts: dict[str, Verdict] = {}


def without(name: str) -> Verdict:
    """What becomes of the case of a defect that is not there."""
    case = CASES[name]
    if case.name not in _verdicts:
        reference(case.epochs)
        _verdicts[case.name] = judge(case)
    return _verdicts[case.name]


@functools.cache
def all_without() -> tuple[int, str]:
    """The tests, in a process without a defect."""
    return run(sorted(set(TESTS.values())), {})


def run(nodes: Sequence[str], variables: Mapping[str, str]) -> tuple[int, str]:
    """Runs tests in a process of their own; gives its exit code and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *nodes],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


# The list, the source and the docs


def test_every_defect_is_caught_by_something() -> None:
    assert sorted([*CASES, *TESTS]) == sorted(DEFECTS) and len(DEFECTS) >= 10


@pytest.mark.parametrize("name", DEFECTS)
def test_what_is_replaced_stands_in_the_source(name: str) -> None:
    sources: dict[str, str] = {}
    for change in DEFECTS[name].changes:
        sources[change.file] = change.made(sources.get(change.file, (ROOT / change.file).read_text()))
    for file, source in sources.items():
        compile(source, file, "exec")


def test_a_process_has_the_defect_that_its_environment_names() -> None:
    loaded = "import coordinator.standing as it; print('restored' in it.Standing.resume.__code__.co_names)"
    for variables, expected in (({}, "True"), (environment(DEFECTS["controller_not_restored"]), "False")):
        command = [sys.executable, "-c", loaded]
        said = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == expected


def test_the_programs_know_nothing_of_it() -> None:
    for folder in ("services", "coordinator", "worker", "client/lockstep", "deploy", "scripts"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in ("", ".py", ".sh", ".yml", ".toml"):
                text = path.read_text(errors="replace")
                assert VARIABLE not in text and "tests.planted" not in text, path


def test_the_docs_list_the_defects() -> None:
    listed = re.findall(r"^\| `([a-z_]+)` \| (.+) \| (.+) \|$", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE)
    assert listed == [(defect.name, defect.sentence, defect.caught_by) for defect in DEFECTS.values()]
