"""The store: one transaction per function, group commit, migrations, the lock, and the events' rules."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.exc import OperationalError

from lockstep.contract.errors import UserError
from lockstep.v1.dataset_service_pb2 import DatasetSchema
from lockstep.v1.training_job_pb2 import Checkpoint, Point, Points, Progress
from services.clock import SECOND
from services.jobs import lifecycle
from services.jobs.submission import Version, prepare
from services.store import Store, datasets, events
from services.store import jobs as rows
from services.store import requests as request_rows
from services.store.migrate import migrate
from services.store.store import open_engine
from services.store.tables import metadata
from tests.services.specs import DIGEST, DIGITS, spec

pytestmark = pytest.mark.anyio


def add_job(connection: Connection, job_id: str = "a", now: int = 1) -> None:
    lifecycle.create(connection, job_id, prepare(spec(), Version("digits", DIGEST, DIGITS)), now)


async def test_what_was_answered_is_there_after_a_new_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await asyncio.gather(*(store.run(lambda c, n=n: add_job(c, f"a{n}")) for n in range(50)))  # type: ignore[misc]
    store.close()
    again = Store(tmp_path)
    assert await again.run(rows.counts) == {"QUEUED": 50}
    again.close()


async def test_a_function_that_raises_leaves_nothing_and_harms_nobody(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def half(connection: Connection) -> None:
        add_job(connection, "half")
        raise ValueError("no")

    results = await asyncio.gather(
        store.run(lambda c: add_job(c, "one")), store.run(half), store.run(lambda c: add_job(c, "two")), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), ValueError, type(None)]
    assert await store.run(rows.counts) == {"QUEUED": 2}
    store.close()


async def test_a_second_server_is_refused_and_told_who_has_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UserError, match=r"in use by process \d+ \(.*python"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_migrations_make_what_the_tables_say(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "migrated.db")
    migrate(engine, tmp_path / "migrated.db")
    fresh = create_engine("sqlite://")
    metadata.create_all(fresh)

    def shape(of: object) -> dict[str, object]:
        inspector = inspect(of)
        return {
            table: (
                [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(table)],
                inspector.get_pk_constraint(table)["constrained_columns"],
                sorted((index["name"], tuple(index["column_names"])) for index in inspector.get_indexes(table)),
            )
            for table in sorted(inspector.get_table_names())
            if table != "alembic_version"
        }

    assert shape(engine) == shape(fresh)
    engine.dispose()
    fresh.dispose()


def test_a_database_of_a_later_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lockstep.db"
    engine = open_engine(path)
    migrate(engine, path)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="a later release"):
        migrate(engine, path)
    engine.dispose()


def test_a_copy_is_made_before_a_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lockstep.db"
    engine = open_engine(path)
    migrate(engine, path)
    scripts = tmp_path / "migrations"
    from services.store import migrate as module

    (scripts / "versions").mkdir(parents=True)
    for source in module.SCRIPTS.rglob("*.py"):
        (scripts / source.relative_to(module.SCRIPTS)).write_text(source.read_text())
    step = (
        'revision = "0002"\ndown_revision = "0001"\nfrom alembic import op\n\n\ndef upgrade():\n    op.drop_table("settings")\n'
    )
    (scripts / "versions" / "0002.py").write_text(step)
    monkeypatch.setattr(module, "SCRIPTS", scripts)
    migrate(engine, path)
    engine.dispose()
    copy, now = sqlite3.connect(path.with_name("lockstep.db.before-0002")), sqlite3.connect(path)
    query = "SELECT count(*) FROM sqlite_master WHERE name = 'settings'"
    assert copy.execute(query).fetchone() == (1,) and now.execute(query).fetchone() == (0,)
    copy.close()
    now.close()


async def test_a_progress_event_replaces_the_one_before_and_numbers_rise(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def write(connection: Connection) -> list[tuple[int, str | None]]:
        add_job(connection)
        for step in (1, 2, 3):
            events.append(connection, "a", 5, 1, progress=Progress(step=step))
        events.append(connection, "a", 5, 1, checkpoint=Checkpoint(step=3))
        return [(event.number, event.WhichOneof("event")) for event in events.after(connection, "a", 0, 10)]

    assert await store.run(write) == [(1, "state_change"), (4, "progress"), (5, "checkpoint")]
    store.close()


async def test_a_point_that_comes_again_must_be_equal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.run(add_job)

    async def said(step: int, value: float) -> tuple[int, int]:
        message = Points(step=step, points=[Point(name="loss", value=value)])
        fresh, differing = await store.run(lambda c: events.add_points(c, "a", [message]))
        return sum(len(points.points) for points in fresh), len(differing)

    for step, value in enumerate((0.1, math.nan, math.inf, -0.0), start=1):
        assert await said(step, value) == (1, 0)
        assert await said(step, value) == (0, 0)
    assert await said(1, 0.1000000001) == (0, 1)
    assert await said(2, 1.0) == (0, 1)
    store.close()


async def test_points_of_several_steps_are_kept_once_each(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.run(add_job)
    messages = [Points(step=step, points=[Point(name="loss", value=step), Point(name="rate", value=1.0)]) for step in (4, 5, 4)]
    fresh, differing = await store.run(lambda c: events.add_points(c, "a", messages))
    assert [points.step for points in fresh] == [4, 5] and not differing
    messages = [Points(step=step, points=[Point(name="loss", value=5.0)]) for step in (3, 4, 5, 6)]
    fresh, (sentence,) = await store.run(lambda c: events.add_points(c, "a", messages))
    assert [points.step for points in fresh] == [3, 6] and sentence.startswith("loss of step 4 was 4.0 and came again as 5.0")
    store.close()


@given(st.lists(st.tuples(st.integers(1, 30), st.none() | st.floats(allow_nan=True)), max_size=12), st.integers(1, 3))
def test_the_last_and_the_best_checkpoints_are_kept(found: list[tuple[int, float | None]], keep: int) -> None:
    items = {step: Checkpoint(step=step, validation_loss=loss) for step, loss in found}
    best = events.best_step(list(items.values()))
    finite = {
        s: c.validation_loss for s, c in items.items() if c.HasField("validation_loss") and math.isfinite(c.validation_loss)
    }
    assert best == (min(finite, key=lambda step: (finite[step], step)) if finite else None)


async def test_checkpoints_beyond_the_last_three_and_the_best_are_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.run(add_job)
    for step, loss in ((10, 0.5), (20, 0.2), (30, 0.4), (40, 0.3), (50, 0.9)):
        await store.run(
            lambda c, s=step, v=loss: events.add_checkpoint(c, "a", 1, Checkpoint(step=s, validation_loss=v), 3)  # type: ignore[misc]
        )
    kept = await store.run(lambda c: events.checkpoints_of(c, "a"))
    assert [(item.step, item.best) for item in kept] == [(20, True), (30, False), (40, False), (50, False)]
    store.close()


async def test_a_request_id_is_kept_for_a_day(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.run(lambda c: request_rows.record(c, "M", "id", "digest", "jobs/a", 0))
    day = 24 * 3600 * SECOND
    await store.run(lambda c: request_rows.purge(c, day))
    assert await store.run(lambda c: request_rows.answered(c, "M", "id", "digest")) == "jobs/a"
    await store.run(lambda c: request_rows.purge(c, day + 1))
    assert await store.run(lambda c: request_rows.answered(c, "M", "id", "digest")) == ""
    store.close()


async def test_a_full_disk_refuses_and_harms_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.run(add_job)
    pages = await store.run(lambda c: c.execute(text("PRAGMA page_count")).scalar_one())
    await store.run(lambda c: c.execute(text(f"PRAGMA max_page_count = {pages}")).scalar_one())
    with pytest.raises(UserError, match="cannot write its store") as caught:
        for number in range(100):
            await store.run(lambda c, n=number: add_job(c, f"more-{n}"))  # type: ignore[misc]
    assert caught.value.reason == "STORE_UNAVAILABLE" and store.broken == ""
    await store.run(lambda c: c.execute(text("PRAGMA max_page_count = 100000")).scalar_one())
    await store.run(lambda c: add_job(c, "again"))
    assert await store.run(lambda c: rows.find(c, "again") is not None)
    store.close()


async def test_a_store_that_cannot_be_written_says_so_and_stays_so(tmp_path: Path) -> None:
    reasons: list[str] = []
    store = Store(tmp_path, reasons.append)

    def fail(connection: Connection) -> None:
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("disk I/O error"))

    for _ in range(2):
        with pytest.raises(UserError, match="cannot write its store"):
            await store.run(fail)
    assert len(reasons) == 1 and "disk I/O error" in store.broken
    store.close()


async def test_the_newest_version_is_the_last_one_registered_whatever_the_clock_says(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def write(connection: Connection) -> list[str]:
        newest = []
        for digest, now in (("1" * 64, 2_000_000), ("2" * 64, 1_000_000), ("1" * 64, 0)):
            datasets.add_version(connection, "a", digest, DatasetSchema(), [], now)
            found = datasets.find_version(connection, "a", "")
            assert found is not None
            newest.append(str(found.digest)[0])
        return newest

    assert await store.run(write) == ["1", "2", "1"]
    store.close()


async def test_a_checkpoint_that_comes_again_with_other_weights_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.run(add_job)
    said = [
        (await store.run(lambda c, w=weights: events.add_checkpoint(c, "a", 1, Checkpoint(step=3, weights_sha256=w), 3)))[1]  # type: ignore[misc]
        for weights in ("one", "one", "other")
    ]
    assert said[:2] == ["", ""] and said[2].startswith("the checkpoint of step 3 was one and came again as other")
    store.close()
