"""The client against a real gRPC server: names, retries, errors, watching through breaks, uploads, downloads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lockstep import watching
from lockstep.client import Client
from lockstep.contract.errors import InternalError, UserError, Violation
from lockstep.failures import ServerUnavailable, WaitTimeout
from lockstep.v1 import job_spec_pb2, training_job_pb2, training_job_service_pb2
from tests.client.fake_server import TOKEN, FakeServer, State, WatchStep, state_event
from tests.client.specs import digits

Code = grpc.StatusCode


def test_submit_from_a_file_a_message_and_a_mapping(client: Client, server: FakeServer, job_file: Path) -> None:
    mapping = {
        "name": "digits-mlp",
        "dataset": "digits",
        "validation_fraction": 0.2,
        "model": {"layers": [{"dense": {"units": 128}}, "relu", {"dense": {"units": 10}}]},
        "loss": "softmax_cross_entropy",
        "optimizer": {"momentum": {"learning_rate": 0.05, "momentum": 0.9}},
        "training": {"epochs": 20, "batch_size": 128, "seed": 7},
        "workers": {"min": 1, "max": 2},
    }
    for job in (job_file, str(job_file), digits(), mapping):
        assert client.submit(job).name == "jobs/digits-mlp-7f3a"
        assert server.requests[-1].training_job.spec == digits()
    assert len({request.request_id for request in server.requests}) == 4


def test_a_lost_answer_is_asked_for_again_with_the_same_request_id(client: Client, server: FakeServer) -> None:
    server.failures.extend([Code.UNAVAILABLE, Code.UNAVAILABLE])
    client.submit(digits())
    assert len(server.requests) == 3
    assert len({request.request_id for request in server.requests}) == 1


@pytest.mark.parametrize(
    ("code", "kind", "calls"),
    [
        (Code.UNAVAILABLE, ServerUnavailable, 5),
        (Code.DEADLINE_EXCEEDED, ServerUnavailable, 1),
        (Code.INTERNAL, InternalError, 1),
        (Code.UNKNOWN, InternalError, 1),
        (Code.NOT_FOUND, UserError, 1),
        (Code.FAILED_PRECONDITION, UserError, 1),
        (Code.RESOURCE_EXHAUSTED, UserError, 1),
        (Code.UNIMPLEMENTED, UserError, 1),
    ],
)
def test_codes_become_exceptions(client: Client, server: FakeServer, code: Code, kind: type[Exception], calls: int) -> None:
    server.failures.extend([code] * calls)
    with pytest.raises(kind, match=r"as the test wants it|did not answer within 10 s"):
        client.get("a")
    assert len(server.requests) == calls


def test_a_delete_is_not_repeated(client: Client, server: FakeServer) -> None:
    server.failures.append(Code.UNAVAILABLE)
    with pytest.raises(ServerUnavailable):
        client.delete("a")
    assert len(server.requests) == 1


def test_violations_of_the_server_arrive_whole(client: Client, server: FakeServer, job_file: Path) -> None:
    server.refusal = UserError(
        [
            Violation("training_job.spec.model.layers[2].dense.units", "10", "datasets/digits has 12 classes", "OUTPUTS"),
            Violation("training_job.spec.workers.min", "", "it is above the shards", "WORKERS"),
        ],
        "INVALID_SPEC",
    )
    with pytest.raises(UserError) as caught:
        client.submit(job_file)
    assert caught.value.reason == "INVALID_SPEC"
    assert str(caught.value) == (
        f"{job_file}:8:22: model.layers[2].dense.units: got 10; datasets/digits has 12 classes\n"
        f"{job_file}:12:16: workers.min: it is above the shards"
    )
    with pytest.raises(UserError) as caught:
        client.plan(digits())
    assert str(caught.value).startswith("model.layers[2].dense.units: got 10; datasets/digits")
    assert caught.value.violations[0].reason == "OUTPUTS"


def test_a_bad_spec_never_leaves_the_client(client: Client, server: FakeServer) -> None:
    spec = digits()
    spec.optimizer.momentum.learning_rate = float("nan")
    with pytest.raises(UserError, match=r"^optimizer\.momentum\.learning_rate: got NaN"):
        client.submit(spec)
    with pytest.raises(UserError, match="name: got"):
        client.get("Jobs/../x")
    assert server.requests == []


def test_tokens(server: FakeServer, tmp_path: Path) -> None:
    server.add_job("a")
    with Client(server.address) as client, pytest.raises(UserError, match="wants one: name its file") as caught:
        client.get("a")
    assert caught.value.reason == "TOKEN_MISSING"
    with Client(server.address, "wrong") as client, pytest.raises(UserError, match="does not know the token") as caught:
        client.get("a")
    assert caught.value.reason == "UNAUTHENTICATED"
    (tmp_path / "token").write_text(TOKEN)
    with Client(server.address, token_file=tmp_path / "token") as client:
        assert client.get("a").name == "jobs/a"


def test_nobody_listens() -> None:
    with Client("127.0.0.1:1", TOKEN, deadline_s=10) as client, pytest.raises(ServerUnavailable, match="nobody listens there"):
        client.get("a")


def test_every_call_has_a_deadline(server: FakeServer) -> None:
    server.held = threading.Event()
    with Client(server.address, TOKEN, deadline_s=0.2) as client, pytest.raises(ServerUnavailable, match=r"within 0\.2 s"):
        client.get("a")
    server.held.set()


def test_lists_are_read_page_by_page(client: Client, server: FakeServer) -> None:
    for name in "abcde":
        server.add_job(name)
    listed = client.list(filter="state = QUEUED")
    assert server.requests == []
    assert [job.name for job in listed] == [f"jobs/{name}" for name in "abcde"]
    assert [(request.page_token, request.filter) for request in server.requests] == [
        ("", "state = QUEUED"),
        ("2", "state = QUEUED"),
        ("4", "state = QUEUED"),
    ]


def test_verbs(client: Client, server: FakeServer) -> None:
    server.add_job("a", State.RUNNING)
    assert client.cancel("a").state == State.CANCELLING
    assert client.pause("jobs/a").state == State.PAUSED
    assert client.resume("a", accept_new_arithmetic=True).state == State.QUEUED
    assert not server.requests[-1].HasField("workers")
    assert client.scale("a", max=3).spec.workers.max == 3
    assert not server.requests[-1].workers.HasField("min")
    client.pause("a")
    assert client.resume("a", min=2, max=2).spec.workers == job_spec_pb2.Workers(min=2, max=2)
    ids = [request.request_id for request in server.requests[1:]]
    assert len(set(ids)) == 5 and all(len(one) == 36 for one in ids)
    with pytest.raises(UserError, match="a job that is QUEUED cannot be resumed") as refused:
        client.resume("a", request_id=ids[0])
    assert refused.value.reason == "WRONG_STATE" and server.requests[-1].request_id == ids[0]
    client.delete("a")
    with pytest.raises(UserError, match="there is no job jobs/a") as caught:
        client.get("a")
    assert caught.value.reason == "JOB_NOT_FOUND"
    assert client.version() == "0.1.0"


# Watching


def test_a_watch_goes_on_after_the_last_number_however_often_it_breaks(
    client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "FIRST_PAUSE_S", 0.01)
    server.add_job("a")
    events = [state_event(1, State.QUEUED), state_event(2, State.STARTING), state_event(5, State.RUNNING)]
    beat = training_job_pb2.JobEvent(number=0, beat=training_job_pb2.Beat())
    server.watches.extend(
        [
            [events[0], beat, Code.UNAVAILABLE],
            [],  # a server that stops in peace
            [events[1], Code.CANCELLED],
            [events[1], events[2]],  # one that came already
            [state_event(9, State.SUCCEEDED)],
        ]
    )
    assert [event.number for event in client.watch("a")] == [1, 2, 5, 9]
    watches = [request for request in server.requests if isinstance(request, training_job_service_pb2.WatchTrainingJobRequest)]
    assert [request.after_number for request in watches] == [0, 1, 1, 2, 5]


def test_a_watch_of_an_ended_job_ends(client: Client, server: FakeServer) -> None:
    server.add_job("a", State.FAILED)
    assert list(client.watch("a", after_number=7)) == []


def test_a_watch_ends_although_the_stream_breaks_after_the_end(client: Client, server: FakeServer) -> None:
    server.add_job("a")
    server.watches.append([state_event(1, State.CANCELLED), Code.UNAVAILABLE])
    assert [event.number for event in client.watch("a")] == [1]


def test_a_watch_gives_up(client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "FIRST_PAUSE_S", 0.01)
    server.add_job("a")
    server.watches.append([state_event(1, State.RUNNING), Code.UNAVAILABLE])
    server.failures.clear()
    seen = []
    with pytest.raises(ServerUnavailable, match="it has been away for"):
        for event in client.watch("a", away_s=0.2):
            seen.append(event.number)
            server.failures.extend([Code.UNAVAILABLE] * 200)
    assert seen == [1]


def test_a_watch_of_no_job_fails_at_once(client: Client) -> None:
    with pytest.raises(UserError, match="there is no job jobs/b"):
        next(client.watch("b"))


def test_a_silent_stream_is_cut_and_opened_again(client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SILENCE_S", 0.2)
    monkeypatch.setattr(watching, "FIRST_PAUSE_S", 0.01)
    server.add_job("a")
    release = threading.Event()

    class Silence(list[WatchStep]):
        def __iter__(self) -> Iterator[WatchStep]:
            release.wait(10)
            return iter(())

    server.watches.extend([Silence(), [state_event(1, State.SUCCEEDED)]])
    begin = time.monotonic()
    told: list[float] = []
    assert [event.number for event in client.watch("a", on_away=told.append)] == [1]
    release.set()
    assert time.monotonic() - begin < 5 and told == [watching.AWAY_S]


def test_wait_returns_the_job_in_the_state(client: Client, server: FakeServer) -> None:
    server.add_job("a")
    server.watches.append([state_event(1, State.STARTING), state_event(2, State.RUNNING), state_event(3, State.RECOVERING)])
    assert client.wait("a", {State.RUNNING}).name == "jobs/a"


def test_wait_does_not_take_history_for_news(client: Client, server: FakeServer) -> None:
    job = server.add_job("a", State.RECOVERING)
    job.update_time.seconds = 2000
    server.watches.append([state_event(1, State.RUNNING), state_event(2, State.FAILED, seconds=3000)])
    assert client.wait("a", {State.RUNNING}).state == State.FAILED


def test_wait_has_a_timeout(client: Client, server: FakeServer) -> None:
    server.add_job("a", State.RUNNING)
    with pytest.raises(WaitTimeout, match=r"it is still RUNNING after 0\.3 s; it goes on"):
        client.wait("a", timeout_s=0.3)


# Datasets


def test_an_upload_arrives_whole(client: Client, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "iris.csv"
    content = bytes(range(256)) * 5000
    path.write_bytes(content)
    told: list[tuple[int, int]] = []
    dataset = client.push_dataset(path, "iris", label="species", progress=lambda sent, total: told.append((sent, total)))
    assert dataset.name == "datasets/iris"
    assert server.uploads == [content]
    assert told[-1] == (len(content), len(content))
    header = server.requests[-1]
    assert (header.csv.label, header.size_bytes) == ("species", len(content))
    assert not header.csv.HasField("delimiter")
    assert [found.name for found in client.list_datasets()] == ["datasets/iris"]
    client.delete_dataset("iris")
    assert server.datasets == {}


def test_a_broken_upload_begins_anew_with_the_same_request_id(client: Client, server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "digits.npz"
    path.write_bytes(b"npz")
    server.failures.append(Code.UNAVAILABLE)
    client.push_dataset(path, "digits")
    assert server.uploads == [b"npz"]
    assert len({header.request_id for header in server.requests}) == 1
    assert server.requests[-1].HasField("npz")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", b"x", {}, r"a\.txt: got \.txt; it must end in \.npz or \.csv"),
        ("a.csv", b"x", {}, r"label: a table needs"),
        ("a.npz", b"x", {"label": "y"}, r"label: got y; a \.npz file has no such option"),
        ("a.csv", b"", {"label": "y"}, r"a\.csv: got 0 bytes; the file is empty"),
        ("a.csv", b"x", {"label": "y", "delimiter": "::"}, r'csv\.delimiter: got "::"; it must match'),
        ("a.csv", None, {"label": "y"}, r"a\.csv: it cannot be read: No such file"),
    ],
)
def test_what_cannot_be_uploaded(
    client: Client, server: FakeServer, tmp_path: Path, name: str, content: bytes | None, options: dict[str, str], message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        client.push_dataset(tmp_path / name, "a", **options)  # type: ignore[arg-type]
    assert server.requests == []


# Models


def test_a_model_comes_home_whole(client: Client, server: FakeServer, tmp_path: Path) -> None:
    server.add_job("a")
    folder = tmp_path / "models" / "a"
    for _ in range(2):  # the second time it replaces what lies there
        manifest = client.pull_model("a", folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == server.files()
        assert manifest.step == 240
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def test_a_broken_download_begins_anew(client: Client, server: FakeServer, tmp_path: Path) -> None:
    server.add_job("a")
    server.failures.append(Code.UNAVAILABLE)
    assert client.pull_model("a", tmp_path / "model", step=240).step == 240
    assert [request.step for request in server.requests] == [240, 240]


def flipped(files: dict[str, bytes]) -> dict[str, bytes]:
    content = bytearray(files["model.safetensors"])
    content[-1] ^= 1
    return {**files, "model.safetensors": bytes(content)}


def test_a_damaged_download_leaves_nothing(client: Client, server: FakeServer, tmp_path: Path) -> None:
    server.add_job("a")
    good = server.files()
    whole = list(server.stream(good))
    manifest = whole[: -(-len(good["manifest.json"]) // 1000) + 1]
    lying = list(server.stream(good))
    lying[0].header.sha256 = "0" * 64
    elsewhere = list(server.stream({"../evil": b"x"}))
    streams = {
        "ended after 3,000 of": whole[:-2],
        "has the SHA-256": lying,
        "did not come": manifest,
        "is longer than": [*whole, whole[-1], whole[-1]],
        "before the name": whole[1:],
        "it offered '../evil'": elsewhere,
        "it offered 'manifest.json'": [*manifest, *whole],
        "the manifest says": list(server.stream(flipped(good))),
        "the weights hash to": list(server.stream(server.files(b"\0\0\0\0") | {"manifest.json": without_record(server)})),
    }
    for message, stream in streams.items():
        server.download = lambda stream=stream: iter(stream)  # type: ignore[misc]
        with pytest.raises((ServerUnavailable, UserError)) as caught:
            client.pull_model("a", tmp_path / "model")
        assert message in str(caught.value) and "take another with --step" in str(caught.value)
        assert list(tmp_path.glob("**/*.part")) == []
        assert not (tmp_path / "model").exists()


def without_record(server: FakeServer) -> bytes:
    """A manifest that says nothing of the file but the hash of other weights."""
    manifest = json.loads(server.files()["manifest.json"])
    del manifest["manifest_sha256"]
    manifest["files"]["other"] = manifest["files"].pop("model.safetensors")
    return json.dumps(manifest).encode()


def test_a_folder_that_is_a_file(client: Client, server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="name a folder"):
        client.pull_model("a", tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written there"):
        client.pull_model("a", tmp_path / "file" / "below")


# Imports


def test_import_lockstep_loads_almost_nothing() -> None:
    code = (
        "import sys, lockstep; assert not {'grpc', 'click', 'rich', 'numpy', 'yaml', 'google.protobuf'} & set(sys.modules);"
        "lockstep.UserError, lockstep.__version__; assert 'grpc' not in sys.modules;"
        "lockstep.Client; assert 'click' not in sys.modules and 'rich' not in sys.modules; print(*dir(lockstep))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Client" in done.stdout
