"""What is wrong is refused at submission with one clear message, exit code 2, and nothing stored; docs/errors.md is made here.

LOCKSTEP_WRITE_DOCS=1 writes docs/errors.md anew; otherwise it must be what the service says.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lockstep import UserError

from .service import EXAMPLES, ROOT, Service

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

DOCUMENT = ROOT / "docs" / "errors.md"
DIGITS = (EXAMPLES / "digits.yaml").read_text()
TABLE = "length,width,kind\n" + "".join(f"{row}.5,{row % 7},{'ab'[row % 2]}\n" for row in range(1, 31))


@dataclass(frozen=True)
class Wrong:
    """Something that is wrong: in words, and the file's name and content, how it is sent, what the message must contain."""

    words: str
    name: str
    content: Callable[[], bytes]
    says: tuple[str, ...]
    label: str | None = None
    token: str | None = "own"


def job(words: str, old: str, new: str, *says: str) -> Wrong:
    """digits.yaml with a change."""
    assert DIGITS.count(old) == 1, old
    return Wrong(words, "job.yaml", lambda: DIGITS.replace(old, new).encode(), says)


def table(words: str, content: str | bytes, *says: str, label: str = "kind") -> Wrong:
    """A table."""
    return Wrong(words, "table.csv", lambda: content.encode() if isinstance(content, str) else content, says, label=label)


def arrays(words: str, x: object, y: object, *says: str, size: int | None = None) -> Wrong:
    """An archive, or its first bytes."""

    def content() -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, x=np.asarray(x), y=np.asarray(y))
        return buffer.getvalue()[:size]

    return Wrong(words, "arrays.npz", content, says)


X = np.arange(40.0).reshape(20, 2)
Y = np.arange(20) % 4

WRONG = [
    job("an unknown layer", "- relu: {}", "- rleu: {}", "job.yaml:", "rleu", "relu"),
    job("a layer on rows that it does not take", "- relu: {}", "- attention: {heads: 4}", "job.yaml:", "(length, width)"),
    job("a negative learning rate", "learning_rate: 0.05", "learning_rate: -0.1", "job.yaml:", "-0.1", "above 0"),
    job("a learning rate that is not a number", "learning_rate: 0.05", "learning_rate: .nan", "job.yaml:", "NaN", "finite"),
    job("an infinite learning rate", "learning_rate: 0.05", "learning_rate: .inf", "job.yaml:", "inf", "finite"),
    job("a key at the wrong place", "epochs: 20,", "epochs: 20, learning_rate: 0.1,", "job.yaml:", "learning_rate"),
    job("a misspelt key", "momentum: 0.9}", "momentun: 0.9}", "job.yaml:", "momentun", "momentum"),
    job("half a row in a batch", "batch_size: 128", "batch_size: 2.5", "job.yaml:", "2.5", "whole number"),
    job("a validation fraction that yields no rows", "fraction: 0.2", "fraction: 0.0001", "job.yaml:", "0.0001"),
    job("a validation fraction that leaves no rows", "fraction: 0.2", "fraction: 0.9999", "job.yaml:", "0.9999"),
    Wrong(
        "reduce-on-plateau without validation rows",
        "job.yaml",
        lambda: (
            DIGITS.replace("fraction: 0.2", "fraction: 0")
            .replace("momentum: 0.9}", "momentum: 0.9}, schedule: {plateau: {}}")
            .encode()
        ),
        ("job.yaml:", "plateau", "validation_fraction"),
    ),
    job("layers whose shapes do not meet", "dataset: digits", "dataset: images", "dense", "flatten"),
    job("fewer outputs than classes", "units: 10}", "units: 8}", "8", "10"),
    job("numbers to predict under a loss for classes", "dataset: digits", "dataset: numbers", "softmax_cross_entropy"),
    job("more workers at least than shards", "{min: 1, max: 2}", "{min: 5, max: 8}", "job.yaml:", "5", "4"),
    job("more workers at least than at most", "{min: 1, max: 2}", "{min: 2, max: 1}", "job.yaml:", "2", "1"),
    job("an unknown dataset", "dataset: digits", "dataset: digit", "job.yaml:", "digit"),
    job("a key that stands twice", "dataset: digits\n", "dataset: digits\ndataset: iris\n", "job.yaml:", "dataset"),
    Wrong("a job file that is not YAML", "job.yaml", lambda: b"model: [dense: {units: 3\n", ("job.yaml:",)),
    Wrong("a job file that is not text", "job.yaml", lambda: bytes(range(256)), ("job.yaml",)),
    table("a row with one field too many", TABLE.replace("17.5,3,b", "17.5,3,b,9"), "row 17 (line 18)", "4 fields", "3"),
    table("text in a number column", TABLE.replace("12.5,", "twelve,"), "'length'", "row 12 (line 13)", "twelve"),
    table(
        "an empty cell and one that is not finite",
        TABLE.replace("8.5,1", ",1").replace("9.5,2", "9.5,inf"),
        "'length'",
        "row 8",
    ),
    table(
        "a table with another delimiter and decimal comma",
        TABLE.replace(",", ";").replace(".", ","),
        "--delimiter ';' --decimal ,",
    ),
    table("a label column that is not there", TABLE, "Kind", "'kind'", label="Kind"),
    table("a table with a header alone", "length,width,kind\n", "no rows"),
    table("a table that is not UTF-8", TABLE.encode().replace(b"5.5", b"\xe95"), "byte 0xe9", "UTF-8"),
    table("a label column with one class", TABLE.replace(",b\n", ",a\n"), "'a' in every row"),
    table("classes from 1", TABLE.replace(",b\n", ",2\n").replace(",a\n", ",1\n"), "labels start at 0"),
    arrays("an archive with an object array", X.astype(object), Y, "array x", "object"),
    arrays("an archive that was cut short", X, Y, "damaged", "300 bytes", size=300),
    arrays("an archive whose arrays differ in rows", X, Y[:-1], "19 rows", "20 rows"),
    arrays("labels with -1", X, Y - 1, "-1", "labels start at 0"),
    arrays("inputs that are not finite", np.where(X == 6, np.nan, X), Y, "array x, column 0", "row 3"),
    Wrong("no token", "job.yaml", DIGITS.encode, ("token",), token=None),
    Wrong("a wrong token", "job.yaml", DIGITS.encode, ("token",), token="wrong"),
]


@pytest.fixture(scope="module")
def rows(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, str]]:
    """For each wrong thing: the words, the message, the reason. Checks the rest on the way."""
    folder = tmp_path_factory.mktemp("wrong")
    for name, x, y in (("images", X.reshape(20, 1, 2), Y), ("numbers", X.repeat(32, axis=1), X[:, 0])):
        np.savez(folder / f"{name}.npz", x=x, y=y)
        with service.client() as client:
            client.push_dataset(folder / f"{name}.npz", name)
    before = stored(service)
    found = []
    for number, wrong in enumerate(WRONG):
        path = folder / str(number) / wrong.name
        path.parent.mkdir()
        path.write_bytes(wrong.content())
        message = refused_by_command(service, wrong, path)
        found.append((wrong.words, message, refused_by_client(service, wrong, path)))
    assert stored(service) == before
    return found


def stored(service: Service) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """Jobs, datasets and dataset files that the service holds."""
    with service.client() as client:
        names = [job.name for job in client.list()]
        datasets = [(dataset.name, dataset.digest) for dataset in client.list_datasets()]
    return names, datasets, sorted(os.listdir(service.data / "files" / "datasets"))


def token_environment(service: Service, wrong: Wrong, folder: Path) -> dict[str, str]:
    """The environment that gives the command its token, a wrong one, or none."""
    if wrong.token == "own":
        return {"LOCKSTEP_TOKEN_FILE": str(service.token_file)}
    if wrong.token is None:
        return {"XDG_STATE_HOME": str(folder)}
    (folder / "token").write_text("x" * 43)
    return {"LOCKSTEP_TOKEN_FILE": str(folder / "token")}


def refused_by_command(service: Service, wrong: Wrong, path: Path) -> str:
    """The one message of the command line, without what differs from run to run."""
    words = ["submit", str(path)] if wrong.name == "job.yaml" else ["dataset", "push", "wrong", str(path)]
    words += ["--label", wrong.label] if wrong.label else []
    done = service.cli(*words, environment=token_environment(service, wrong, path.parent))
    assert done.returncode == 2 and done.stdout == "", (wrong.words, done)
    lines = done.stderr.splitlines()
    assert len(lines) == (2 if "empty cell" in wrong.words else 1), (wrong.words, done.stderr)
    message = " / ".join(line.removeprefix("error: ") for line in lines)
    for part in wrong.says:
        assert part in message, f"{wrong.words}: {part!r} is not in {message!r}"
    assert "Traceback" not in message and "0x7f" not in message
    message = message.replace(str(path.parent) + "/", "").replace(service.address, "127.0.0.1:7460")
    return message.replace(str(service.folder), "~")


def refused_by_client(service: Service, wrong: Wrong, path: Path) -> str:
    """The reason, for programs."""
    if wrong.token != "own":
        token_file = path.parent / "token"
        token = "x" * 43 if token_file.exists() else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_STATE_HOME", str(path.parent))
            from lockstep import Client

            with pytest.raises(UserError) as caught, Client(service.address, token) as client:
                client.submit(path)
        return caught.value.reason
    with pytest.raises(UserError) as caught, service.client() as client:
        if wrong.name == "job.yaml":
            client.submit(path)
        else:
            client.push_dataset(path, "wrong", label=wrong.label)
    reasons = {violation.reason for violation in caught.value.violations}
    return " / ".join(sorted(reasons))


def test_each_wrong_thing_has_one_message_and_a_reason(rows: list[tuple[str, str, str]]) -> None:
    for words, message, reason in rows:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]{2,62}( / [A-Z][A-Z0-9_]{2,62})*", reason), (words, reason)
        assert len(message) < 600, words


def test_the_document_says_what_the_service_says(rows: list[tuple[str, str, str]]) -> None:
    lines = [
        "# What is refused, and how it is said",
        "",
        "One message for each thing that is wrong: the place, the value, the remedy. The command's exit code is 2, and nothing",
        "is stored. The reason stands in the error's `ErrorInfo` or in the violation, for programs.",
        "`tests/promises/test_bad_input.py` makes this table.",
        "",
        "| what was done | message | reason |",
        "|---|---|---|",
    ]
    anchored: set[str] = set()
    for words, message, reason in rows:
        new = [each for each in reason.split(" / ") if each not in anchored]
        anchored.update(new)
        anchors = "".join(f'<a id="{each}"></a>' for each in new)
        lines.append(f"| {words} | {cell(message)} | {anchors}`{reason}` |")
    text = "\n".join(lines) + "\n"
    if os.environ.get("LOCKSTEP_WRITE_DOCS") == "1":
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text, "run this test with LOCKSTEP_WRITE_DOCS=1 and look at what changed"


def cell(message: str) -> str:
    """A message as a cell of a table."""
    return message.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
