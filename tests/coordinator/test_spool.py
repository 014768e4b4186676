"""The spool: what was appended is read in order, a torn tail is cut off, one process writes, progress alone is dropped."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import framing, limits
from coordinator.outbox import Outbox
from coordinator.spool import SpoolBroken, SpoolFull, SpoolTaken, SpoolWriter, append_lost, read_events, spool_path
from lockstep.internal.v1 import agent_service_pb2 as agent
from lockstep.v1 import training_job_pb2 as job

RUN = agent.RunKey(job_id="a-b", run_number=3)


def now_ns() -> int:
    return 1_700_000_000_000_000_000


def progress(step: int) -> agent.RunEvent:
    return agent.RunEvent(progress=agent.RunProgress(progress=job.Progress(step=step), computed_rows=[step, 2]))


def notice(text: str = "n") -> agent.RunEvent:
    return agent.RunEvent(notice=job.Notice(text=text))


def sequences(path: Path) -> list[int]:
    return [event.sequence for event, _ in read_events(path)]


def test_events_are_numbered_and_read_in_order(tmp_path: Path) -> None:
    path = spool_path(tmp_path, "a-b", 3)
    writer = SpoolWriter(path, RUN, now_ns)
    assert [writer.append(progress(step)) for step in (1, 2, 3)] == [1, 2, 3]
    writer.close()
    writer = SpoolWriter(path, RUN, now_ns)
    assert writer.append(notice()) == 4
    writer.close()
    events = [event for event, _ in read_events(path)]
    assert [event.sequence for event in events] == [1, 2, 3, 4]
    assert all(event.run == RUN and event.time.seconds == 1_700_000_000 for event in events)


def test_any_torn_or_damaged_tail_is_cut_off(tmp_path: Path) -> None:
    path = spool_path(tmp_path, "a-b", 3)
    writer = SpoolWriter(path, RUN, now_ns)
    writer.append(progress(1))
    whole = path.stat().st_size
    writer.append(progress(2))
    writer.close()
    content = path.read_bytes()
    tails = [content[:end] for end in range(whole, len(content))] + [content[:-1] + bytes([content[-1] ^ 1])]
    for torn in tails:
        path.write_bytes(torn)
        assert sequences(path) == [1]
        writer = SpoolWriter(path, RUN, now_ns)
        assert writer.append(notice()) == 2
        writer.close()
        assert sequences(path) == [1, 2]


def test_one_process_writes(tmp_path: Path) -> None:
    path = spool_path(tmp_path, "a-b", 3)
    writer = SpoolWriter(path, RUN, now_ns)
    with pytest.raises(SpoolTaken, match="another process"):
        SpoolWriter(path, RUN, now_ns)
    with pytest.raises(SpoolTaken):
        append_lost(path, RUN, now_ns, "killed", agent.RunEnded.OUTSIDE)
    writer.close()


def test_the_agent_writes_the_last_word_once(tmp_path: Path) -> None:
    path = spool_path(tmp_path, "a-b", 3)
    writer = SpoolWriter(path, RUN, now_ns)
    writer.append(progress(7))
    writer.close()
    append_lost(path, RUN, now_ns, "killed", agent.RunEnded.OUTSIDE)
    append_lost(path, RUN, now_ns, "killed again", agent.RunEnded.OUTSIDE)
    events = [event for event, _ in read_events(path)]
    assert [event.WhichOneof("event") for event in events] == ["progress", "ended"]
    ended = events[-1].ended
    assert (ended.outcome, ended.cause, ended.reason, ended.last_step, list(ended.computed_rows)) == (
        agent.RunEnded.LOST,
        agent.RunEnded.OUTSIDE,
        "killed",
        7,
        [7, 2],
    )


def test_near_the_bound_progress_alone_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPOOL_PROGRESS_BYTES", 100)
    path = spool_path(tmp_path, "a-b", 3)
    writer = SpoolWriter(path, RUN, now_ns)
    while writer.append(progress(1)):
        pass
    before = writer.sequence
    assert writer.append(notice()) == before + 1
    writer.close()
    assert sequences(path) == list(range(1, before + 2))


def test_on_a_full_disk_progress_is_dropped_and_nothing_is_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = spool_path(tmp_path, "a-b", 3)
    writer = SpoolWriter(path, RUN, now_ns)
    writer.append(notice())
    real, room = os.write, [10]

    def write(descriptor: int, data: memoryview) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 10
        return real(descriptor, data[:10])

    monkeypatch.setattr(os, "write", write)
    assert writer.append(progress(1)) == 0 and sequences(path) == [1]
    monkeypatch.setattr(limits, "SPOOL_FULL_S", 0.0)
    with pytest.raises(SpoolFull, match="free some space"):
        writer.append(notice())
    monkeypatch.setattr(limits, "POLL_S", 0.0)
    monkeypatch.setattr(limits, "SPOOL_FULL_S", 20.0)
    monkeypatch.setattr("time.sleep", lambda _: room.__setitem__(0, 10_000))
    assert writer.append(notice()) == 2 and sequences(path) == [1, 2]
    writer.close()


def test_the_agent_does_not_wait_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = spool_path(tmp_path, "a-b", 3)
    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        full.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
        with pytest.raises(SpoolFull):
            append_lost(path, RUN, now_ns, "killed", agent.RunEnded.OUTSIDE)
    append_lost(path, RUN, now_ns, "killed", agent.RunEnded.OUTSIDE)
    assert sequences(path) == [1]


def test_a_failed_fsync_is_another_error_than_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SpoolWriter(spool_path(tmp_path, "a-b", 3), RUN, now_ns)
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SpoolBroken, match="look at the disk"):
        writer.append(notice())
    assert len(calls) == 1
    writer.close()


def test_the_outbox_sends_again_what_was_not_acknowledged_and_removes_what_ended(tmp_path: Path) -> None:
    path = tmp_path / "spool" / "a-b-3.events"
    writer = SpoolWriter(path, RUN, now_ns)
    for step in (1, 2, 3):
        writer.append(progress(step))
    outbox = Outbox(tmp_path / "spool")
    assert [event.sequence for event in outbox.unsent()] == [1, 2, 3]
    assert not list(outbox.unsent()) and outbox.caught_up() and not outbox.has_ended(("a-b", 3))
    assert not outbox.acknowledge(agent.Acknowledge(run=RUN, sequence=2))
    outbox.rewind()
    assert [event.sequence for event in outbox.unsent()] == [3]
    writer.append(agent.RunEvent(ended=agent.RunEnded(outcome=agent.RunEnded.SUCCEEDED)))
    assert outbox.has_ended(("a-b", 3)) and not outbox.caught_up()
    assert [event.sequence for event in outbox.unsent()] == [4]
    writer.close()
    assert outbox.acknowledge(agent.Acknowledge(run=RUN, sequence=4))
    assert not path.exists() and not outbox.runs()
    assert not outbox.acknowledge(agent.Acknowledge(run=RUN, sequence=4))


def test_the_outbox_bounds_what_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UNACKNOWLEDGED_EVENTS", 2)
    writer = SpoolWriter(tmp_path / "spool" / "a-b-3.events", RUN, now_ns)
    for step in (1, 2, 3):
        writer.append(progress(step))
    writer.close()
    outbox = Outbox(tmp_path / "spool")
    assert [event.sequence for event in outbox.unsent()] == [1, 2]
    outbox.acknowledge(agent.Acknowledge(run=RUN, sequence=1))
    assert [event.sequence for event in outbox.unsent()] == [3]


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(1, 50), min_size=1))
def test_frames_come_out_as_they_went_in_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(framing.pack(message) for message in messages)
    frames, out, at, number = framing.Frames(), [], 0, 0
    while at < len(stream):
        size = cuts[number % len(cuts)]
        out += list(frames.feed(stream[at : at + size]))
        at, number = at + size, number + 1
    assert out == messages


def test_a_frame_that_lies_about_its_length_is_refused_before_it_is_held() -> None:
    with pytest.raises(framing.FrameError, match="at most"):
        list(framing.Frames().feed(b"\xff\xff\xff\xff" + bytes(4)))
    with pytest.raises(framing.FrameError, match="at most"):
        framing.pack(bytes(limits.FRAME_BYTES + 1))
