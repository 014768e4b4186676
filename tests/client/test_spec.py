"""Job files: what scalars mean, and that all that is wrong has a line, a column, a path and a remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from lockstep import spec, yaml_nodes
from lockstep.contract.errors import UserError, Violation
from tests.client.specs import DIGITS, digits


def errors(text: str | bytes, name: str = "job.yaml") -> list[str]:
    """The messages of a file that is refused."""
    with pytest.raises(UserError) as caught:
        spec.parse(text, name)
    return [str(violation) for violation in caught.value.violations]


def changed(old: str, new: str) -> list[str]:
    """The messages for the example with something replaced."""
    assert old in DIGITS
    return errors(DIGITS.replace(old, new))


RATE = "optimizer.momentum.learning_rate"
AT_RATE = f"job.yaml:10:39: {RATE}:"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", ".001", "0.001", "+1e-3", '"1e-3"', "'0.001'"])
def test_a_number_is_a_number_however_it_is_written(text: str) -> None:
    read = spec.parse(DIGITS.replace("0.05", text)).spec
    assert read.optimizer.momentum.learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (".nan", "got NaN; it must be a finite number and must be above 0"),
        ("NaN", "got NaN; it must be a finite number and must be above 0"),
        (".inf", "got infinity; it must be a finite number and must be above 0"),
        ("-.inf", "got -infinity; it must be a finite number and must be above 0"),
        ("1e999", "got infinity; it must be a finite number and must be above 0"),
        ("-0.1", "got -0.1; it must be above 0"),
        ("0", "got 0.0; it must be above 0"),
        ("1e-400", "got 0.0; it must be above 0"),
        ("on", 'got "on"; it must be a number'),
        ("12:30:00", 'got "12:30:00"; it must be a number'),
        ("1_000", 'got "1_000"; it must be a number'),
        ("0x10", 'got "0x10"; it must be a number'),
        ("010", 'got "010"; a number must not begin with a zero: it could mean two things'),
        ("null", "it is empty; give a value or remove the key"),
        ("[0.1]", "it must be a single value"),
        ("{a: 1}", "it must be a single value"),
        ("9" * 5000, f'got "{"9" * 80}..."; it must be a number'),
    ],
)
def test_what_is_no_learning_rate(text: str, remedy: str) -> None:
    assert changed("0.05", text) == [f"{AT_RATE} {remedy}"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 20", "epochs: 0", "job.yaml:11:20: training.epochs: got 0; it must be at least 1"),
        ("epochs: 20", "epochs: -1", "job.yaml:11:20: training.epochs: got -1; it must be at least 1"),
        (
            "batch_size: 128",
            "batch_size: 2.5",
            'job.yaml:11:36: training.batch_size: got "2.5"; it must be a whole number, written in digits',
        ),
        (
            "seed: 7",
            f"seed: {2**64}",
            f"job.yaml:11:47: training.seed: got {2**64}; it must be at most {2**64 - 1:,}",
        ),
        ("seed: 7", "seed: -1", "job.yaml:11:47: training.seed: got -1; it must be at least 0"),
        ("units: 128", "units: 0", "job.yaml:6:22: model.layers[0].dense.units: got 0; it must be at least 1"),
        (
            "units: 128",
            "units: 99999999999",
            "job.yaml:6:22: model.layers[0].dense.units: got 99999999999; it must be at most 1,048,576",
        ),
        ("relu: {}", "dropout: {rate: 1.0}", "job.yaml:7:23: model.layers[1].dropout.rate: got 1.0; it must be below 1"),
        (
            "units: 128",
            "units: 128, bias: yes",
            'job.yaml:6:33: model.layers[0].dense.bias: got "yes"; it must be true or false',
        ),
        (
            "relu: {}",
            "gelu: {form: tanh}",
            'job.yaml:7:20: model.layers[1].gelu.form: got "tanh"; it must be one of EXACT, TANH',
        ),
    ],
)
def test_each_value_is_refused_by_its_own_rule(old: str, new: str, message: str) -> None:
    assert changed(old, new) == [message]


def test_a_seed_of_64_bits() -> None:
    assert spec.parse(DIGITS.replace("seed: 7", f"seed: {2**64 - 1}")).spec.training.seed == 2**64 - 1


def test_text_stays_text() -> None:
    read = spec.parse(DIGITS + "labels: {team: on, zip: 010, when: 12:30:00, day: 2026-11-25, quoted: 'null'}\n").spec
    assert read.labels == {"team": "on", "zip": "010", "when": "12:30:00", "day": "2026-11-25", "quoted": "null"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "learning_rate",
            "learnig_rate",
            "job.yaml:10:24: optimizer.momentum.learnig_rate: there is no such key; did you mean learning_rate?",
        ),
        ("learning_rate", "lr", "job.yaml:10:24: optimizer.momentum.lr: there is no such key; did you mean learning_rate?"),
        (
            "relu: {}",
            "dropout: {probability: 0.5}",
            "job.yaml:7:17: model.layers[1].dropout.probability: there is no such key; did you mean rate?",
        ),
        ("relu: {}", "rellu: {}", "job.yaml:7:7: model.layers[1].rellu: there is no such key; did you mean relu?"),
        ("relu: {}", "rellu", 'job.yaml:7:7: model.layers[1]: got "rellu"; there is no such choice; did you mean relu?'),
        (
            "name: digits-mlp",
            "learning_rate: 0.1",
            f"job.yaml:1:1: learning_rate: it does not belong here; it belongs at {RATE}",
        ),
        ("name: digits-mlp", "epochs: 3", "job.yaml:1:1: epochs: it does not belong here; it belongs at training.epochs"),
        ("relu: {}", "relu: {slope: 1}", "job.yaml:7:14: model.layers[1].relu.slope: it does not belong here; it belongs at "
         "model.layers[].leaky_relu.slope"),
        ("units: 10}", "units: 10, units: 12}", "job.yaml:8:26: model.layers[2].dense.units: "
         "the key stands twice, first in line 8; remove one"),
        (
            "relu: {}",
            "relu: {}\n      dense: {units: 3}",
            "job.yaml:8:7: model.layers[1].dense: "
            "relu is given already, and only one can be; make it two elements or remove one",
        ),
        ("{min: 1, max: 2}", "2", "job.yaml:12:10: workers: got 2; it must be a mapping, as in {min: ..., max: ...}"),
        ("relu: {}", "relu: 3", "job.yaml:7:13: model.layers[1].relu: got 3; it must be {}: there is nothing to set"),
        ("loss: {softmax_cross_entropy: {}}", "loss: {}", "job.yaml:9:7: loss: exactly one of softmax_cross_entropy, "
         "mean_squared_error, binary_cross_entropy, mean_absolute_error, huber must be given"),
        ("workers: {", "optimizer: {", "job.yaml:12:1: optimizer: the key stands twice, first in line 10; remove one"),
        ("0.9}}", "0.9}, clipping: {value: x}}", 'job.yaml:10:79: optimizer.clipping.value: got "x"; it must be a number'),
        ("loss: {softmax_cross_entropy: {}}\n", "", "job.yaml:1:1: loss: it is required"),
        ("epochs: 20, ", "", "job.yaml:11:1: training.epochs: it is required and must be at least 1"),
        ("dataset: digits", "dataset: Digits", 'job.yaml:2:10: dataset: got "datasets/Digits"; it must match '
         "datasets/[a-z]([a-z0-9-]{0,61}[a-z0-9])?(@[0-9a-f]{8,64})?"),
    ],
)  # fmt: skip
def test_keys_and_shapes(old: str, new: str, message: str) -> None:
    assert [error.replace('"2"', "2").replace('"3"', "3") for error in changed(old, new)] == [message]


def test_a_model_that_is_no_list() -> None:
    text = DIGITS[: DIGITS.index("  layers:")] + "  layers: dense\n" + DIGITS[DIGITS.index("loss:") :]
    assert errors(text) == ["job.yaml:5:11: model.layers: it must be a list, as in layers: [...]"]


def test_all_that_is_wrong_is_said_at_once_in_the_order_of_the_file() -> None:
    text = DIGITS.replace("units: 128", "unit: 128").replace("0.05", "-1").replace("seed: 7", "seed: x").replace("0.2", "1")
    assert [error.split(": ")[0] for error in errors(text)] == [
        "job.yaml:3:22",
        "job.yaml:6:15",
        "job.yaml:10:39",
        "job.yaml:11:47",
    ]


def test_a_flood_of_errors_is_bounded() -> None:
    text = DIGITS.replace("    - relu: {}\n", "    - rellu: {}\n" * 500)
    found = errors(text)
    assert len(found) == spec.MAX_VIOLATIONS + 1
    assert found[-1] == "job.yaml: and 470 more"


@pytest.mark.parametrize("relu", ["relu", "relu:", "relu: ~", "relu: null", "relu: {}", '"relu"', "{relu: {}}"])
def test_an_alternative_without_values_can_be_written_short(relu: str) -> None:
    assert spec.parse(DIGITS.replace("relu: {}", relu)).spec == digits()


def test_a_choice_can_be_a_word_anywhere() -> None:
    text = DIGITS.replace("{softmax_cross_entropy: {}}", "softmax_cross_entropy")
    assert (
        spec.parse(text.replace("units: 128", "units: 128, initializer: zeros"))
        .spec.model.layers[0]
        .dense.initializer.HasField("zeros")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "job.yaml: it is empty; a job file has the keys dataset, model, loss, optimizer, training"),
        (b"# nothing\n", "job.yaml: it is empty; a job file has the keys dataset, model, loss, optimizer, training"),
        (b"[1]", "job.yaml:1:1: it must be a mapping, as in {name: ..., labels: ...}"),
        (b"a: [1\nb: 2\n", "job.yaml:2:2: it is not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
        (b"a: 1\n b: 2\n", "job.yaml:2:3: it is not YAML: mapping values are not allowed here"),
        (b"a:\n\t- 1\n", "job.yaml:2:1: it is not YAML: "
         "while scanning for the next token, found character '\\t' that cannot start any token"),
        (b"a: 1\n---\nb: 2\n", "job.yaml:2:1: it is not YAML: "
         "expected a single document in the stream, but found another document"),
        (b"PK\x03\x04", "job.yaml:1:3: it is not YAML: the character U+0003 cannot stand in it"),
        (b"a: 1\nb: \xff\n", "job.yaml:2: it must be a text file in UTF-8 with YAML or JSON in it"),
        (b"a: &x 1\nb: *x\n", "job.yaml:1:4: &x marks a place for references; job files have none: leave it out"),
        (b"b: *x\n", "job.yaml:1:4: *x refers to another place; write the value itself"),
        (b"b: !!python/object:os.system x\n", "job.yaml:1:4: !!python/object:os.system is a tag; "
         "the field decides what a value means: leave it out"),
        (b"a: " + b"[" * 5000, "job.yaml:1:67: a job file nests at most 64 levels"),
        (b"- 1\n" * 20_000, "job.yaml:20000:3: a job file has at most 20,000 keys and values"),
        (b"#" * (yaml_nodes.MAX_FILE_BYTES + 1), "job.yaml: got 262,145 bytes; a job file has at most 262,144 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_job_file(content: bytes, message: str) -> None:
    assert errors(content) == [message]


def test_merge_keys_are_keys_that_nobody_knows() -> None:
    assert errors(DIGITS + "<<: {name: a}\n")[0].startswith("job.yaml:13:1: <<: there is no such key; the keys here are name,")


def test_a_byte_order_mark_is_passed_over() -> None:
    assert spec.parse(b"\xef\xbb\xbf" + DIGITS.encode()).spec == digits()


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_is_read_as_well(indent: int | str | None) -> None:
    text = json.dumps(MessageToDict(digits(), preserving_proto_field_name=True), indent=indent)
    assert spec.parse(text, "job.json").spec == digits()


def test_json_escapes() -> None:
    text = DIGITS + 'labels: {"a": "\\ud83d\\ude00", "b": "\\u00e9\\/"}\n'
    assert spec.parse(text).spec.labels == {"a": "\U0001f600", "b": "é/"}


def test_a_violation_of_the_server_gets_its_place_in_the_file() -> None:
    file = spec.parse(DIGITS)
    placed = [
        file.located(Violation(place, "", "x")).place
        for place in ("training_job.spec.model.layers[2].dense", "workers.min", "training.shards", "request_id", "")
    ]
    assert placed == [
        "job.yaml:8:14: model.layers[2].dense",
        "job.yaml:12:16: workers.min",
        "job.yaml:11:1: training.shards",
        "request_id",
        "",
    ]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(UserError, match="it cannot be read") as caught:
            spec.read(path)
        assert caught.value.reason == "FILE_UNREADABLE"


def test_a_file_is_called_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("digits.yaml", "jobs/digits.yaml", str(tmp_path / "digits.yaml")):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(DIGITS.replace("0.05", "-1"))
        with pytest.raises(UserError, match=f"^{re.escape(path)}:10:39: optimizer"):
            spec.read(path)
