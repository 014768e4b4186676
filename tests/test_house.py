"""What holds of the house as a whole: its imports, its sizes, its locks, its contract, and what no file may do."""

from __future__ import annotations

import ast
import filecmp
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lockstep.v1 import rules_pb2

ROOT = Path(__file__).parent.parent
OURS = ("client/lockstep", "services", "coordinator", "worker")
LINES_OF_A_FILE = 400
LINES_OF_WHAT_GROWS = 250
CLIENT_BYTES = 60_000_000
IMPORT_SECONDS = 0.030


def sources(*folders: str) -> Iterator[Path]:
    """The Python files of these folders that people wrote."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
                yield path


def imports(path: Path) -> Iterator[str]:
    """The names of the modules that a file imports, wherever in it, but not for types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Imports


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("worker", {"grpc", "ray"}), ("services", {"numpy", "ray"})],
)
def test_a_whole_package_loads_without(package: str, forbidden: set[str]) -> None:
    loaded = fresh(
        "import importlib, pkgutil, sys\n"
        f"import {package}\n"
        f"for module in pkgutil.walk_packages({package}.__path__, '{package}.'):\n"
        # Alembic alone can import what runs a migration.
        "    if not module.name.endswith('__main__') and '.migrations' not in module.name:\n"
        "        importlib.import_module(module.name)\n"
        "print(*sys.modules)"
    )
    assert not forbidden & set(loaded.split())


def test_importing_lockstep_is_light() -> None:
    loaded = fresh("import lockstep, sys; print(*sys.modules)")
    assert not {"grpc", "click", "rich", "numpy", "ray"} & set(loaded.split())
    code = "import time; begin = time.process_time(); import lockstep; print(time.process_time() - begin)"
    assert statistics.median(float(fresh(code)) for _ in range(5)) < IMPORT_SECONDS


def test_the_api_server_imports_two_modules_of_the_worker() -> None:
    allowed = ("worker.specs", "worker.nn.shapes")
    for path in sources("services"):
        for name in imports(path):
            assert not name.startswith("worker.") or name.startswith(allowed), f"{path.relative_to(ROOT)} imports {name}"


def test_ray_is_imported_in_one_folder() -> None:
    with_ray = {
        str(path.relative_to(ROOT))
        for path in sources(*OURS)
        if any(name == "ray" or name.startswith("ray.") for name in imports(path))
    }
    assert with_ray == {"coordinator/group/ray.py", "coordinator/group/ray_actors.py"}


# Nothing that is sent is executed


def test_no_file_executes_data() -> None:
    for path in sources(*OURS):
        where = path.relative_to(ROOT)
        for name in imports(path):
            assert name.split(".")[0] not in {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, f"{where} imports {name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            line = f"{where}:{node.lineno}"
            assert called not in {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}, (
                f"{line} calls {called}"
            )
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                assert (keyword.arg, value) not in {("allow_pickle", "True"), ("shell", "True")}, (
                    f"{line} passes {keyword.arg}={value}"
                )
            if called in {"np.load", "numpy.load"}:
                assert any(keyword.arg == "allow_pickle" for keyword in node.keywords), (
                    f"{line}: {called} must say allow_pickle=False"
                )


# Sizes


def test_files_are_short() -> None:
    for path in sources(*OURS, "tests", "benchmarks"):
        lines = len(path.read_text().splitlines())
        budget = LINES_OF_A_FILE
        if path == ROOT / "coordinator/run.py" or path.is_relative_to(ROOT / "services/store"):
            budget = LINES_OF_WHAT_GROWS
        assert lines <= budget, f"{path.relative_to(ROOT)} has {lines} lines; its budget is {budget}"


def test_every_module_says_what_lives_there() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources(*OURS, "tests")
        if not ast.get_docstring(ast.parse(path.read_text() or "''"))
    ]
    assert not silent


def test_names_say_something() -> None:
    empty = {"utils.py", "helpers.py", "common.py", "manager.py"}
    assert not [path for path in sources(*OURS, "tests") if path.name in empty or path.name.startswith("base_")]


def test_the_client_installs_small() -> None:
    # The lock's packages as pip has installed them here, byte-compiled files included.
    size = sum(path.stat().st_size for path in (ROOT / "client/lockstep").rglob("*") if path.is_file())
    for name, version in pins("client").items():
        installed = distribution(name)
        assert installed.version == version
        size += sum(
            Path(str(file.locate())).stat().st_size for file in installed.files or [] if Path(str(file.locate())).is_file()
        )
    assert size < CLIENT_BYTES, f"{size / 1e6:.0f} MB"


# Dependencies and locks


def pins(lock: str, everywhere: bool = False) -> dict[str, str]:
    """Name and version of what a lock installs here (or, with the markers in the names, for every Python)."""
    found: dict[str, str] = {}
    for line in (ROOT / f"locks/{lock}.txt").read_text().splitlines():
        if re.match(r"[a-zA-Z0-9]", line):
            requirement = Requirement(line.rstrip("\\ "))
            version = str(requirement.specifier).removeprefix("==")
            if everywhere:
                found[f"{requirement.name};{requirement.marker or ''}"] = version
            elif requirement.marker is None or requirement.marker.evaluate():
                found[canonicalize_name(requirement.name)] = version
    return found


@pytest.mark.parametrize("lock", ["build", "client", "server", "dev"])
def test_locks_hold_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / f"locks/{lock}.txt").read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text and "-e " not in text
    for entry in re.split(r"\n(?=[a-zA-Z0-9])", text):
        assert "==" not in entry.splitlines()[0] or "--hash=sha256:" in entry, entry


def test_locks_agree_with_each_other() -> None:
    everything = pins("dev", everywhere=True)
    for lock in ("client", "server"):
        for name, version in pins(lock, everywhere=True).items():
            assert everything[name] == version, f"{name} is {version} in {lock} and {everything[name]} in dev"


def test_locks_fit_the_declarations() -> None:
    server = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    client = tomllib.loads((ROOT / "client/pyproject.toml").read_text())["project"]
    declared = {
        "client": client["dependencies"],
        "server": [*server["dependencies"], *client["dependencies"]],
        "dev": [*server["dependencies"], *server["optional-dependencies"]["dev"], *client["dependencies"]],
    }
    for lock, requirements in declared.items():
        locked = pins(lock)
        for requirement in map(Requirement, requirements):
            if requirement.name == "lockstep-client":
                continue
            version = locked.get(canonicalize_name(requirement.name))
            assert version and requirement.specifier.contains(version), (
                f"{requirement} in locks/{lock}.txt: {version}; run scripts/locks"
            )


@pytest.mark.parametrize("file", ["pyproject.toml", "client/pyproject.toml", "locks/build.in"])
def test_every_dependency_has_its_reason(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    dependencies = [line for line in lines if re.match(r'(  ")?[A-Za-z0-9_.-]+(\[.*\])?[<>=!~]=?[^"]*("|$)', line)]
    assert dependencies
    for line in dependencies:
        assert re.search(r"# \w{2,}", line), f"{file}: {line.strip()} says no reason"


# The contract


def test_the_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/protos", tmp_path], check=True, timeout=60)
    made = {path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*")}
    stored = {path.relative_to(ROOT / "client") for path in (ROOT / "client").rglob("*_pb2*.py*") if path.suffix != ".pyc"}
    assert made == stored
    for path in made:
        assert filecmp.cmp(tmp_path / path, ROOT / "client" / path, shallow=False), f"{path} is stale; run scripts/protos"


def rules(files: FileDescriptorSet) -> dict[str, str]:
    """The rules of every field, as text, by the field's full name and number."""
    found: dict[str, str] = {}

    def walk(prefix: str, message: DescriptorProto) -> None:
        for field in message.field:
            found[f"{prefix}.{message.name}.{field.name}={field.number}"] = str(field.options.Extensions[rules_pb2.rules])
        for nested in message.nested_type:
            walk(f"{prefix}.{message.name}", nested)

    for file in files.file:
        for message in file.message_type:
            walk(file.package, message)
    return found


def test_the_rules_are_those_of_the_last_release(tmp_path: Path) -> None:
    # buf compares fields and types; a rule that became stricter would break users unseen.
    now = tmp_path / "now.binpb"
    buf = str(Path(sys.executable).with_name("buf"))
    command = [buf, "build", "proto", "--as-file-descriptor-set", "--exclude-source-info", "-o", str(now)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    present = rules(FileDescriptorSet.FromString(now.read_bytes()))
    for field, rule in rules(FileDescriptorSet.FromString((ROOT / "proto/released.binpb").read_bytes())).items():
        if field in present:
            assert present[field] == rule, f"the rules of {field} changed since the last release"
