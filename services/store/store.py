"""The store: one connection in one thread, which commits what has gathered together (group commit).

Single writer: this process, held by the lock on DIR/store/lock. A function that is given to `run` gets the connection and
must neither commit nor wait; it is undone as a whole when it raises. Its answer is handed out after the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from lockstep.contract.errors import UserError
from services import limits
from services.store.lock import FolderLock
from services.store.migrate import migrate

T = TypeVar("T")
log = structlog.get_logger()


class _Work:
    """One function to run, and who waits for its answer."""

    __slots__ = ("answer", "error", "function", "future", "loop")

    def __init__(self, function: Callable[[Connection], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.answer: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed already
            self.loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if self.future.done():  # the caller has gone
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.answer)


class Store:
    """DIR/store/lockstep.db. Raises UserError if another server has the folder."""

    def __init__(self, folder: Path, on_broken: Callable[[str], None] = lambda reason: None) -> None:
        self._lock = FolderLock(folder / "lock")
        try:
            self._engine = open_engine(folder / "lockstep.db")
            migrate(self._engine, folder / "lockstep.db")
        except BaseException:
            self._lock.close()
            raise
        self._on_broken = on_broken
        self._work: queue.Queue[_Work | None] = queue.Queue(limits.STORE_QUEUE)
        self.broken = ""  # why nothing can be written; empty while all is well
        self._thread = threading.Thread(target=self._loop, name="store", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[Connection], T]) -> T:
        """Runs the function in the writer thread; answers after the commit. Raises what the function raises."""
        work = _Work(function, asyncio.get_running_loop())
        if self.broken:
            raise _unavailable(self.broken)
        try:
            self._work.put_nowait(work)
        except queue.Full:
            raise UserError.of("", "", "the store has too much to do; try again in a second", "STORE_BUSY") from None
        return await work.future  # type: ignore[no-any-return]  # the queue holds works of all results

    def close(self) -> None:
        """Commits what is waiting, closes the database and lets the folder go."""
        self._work.put(None)
        self._thread.join(limits.STORE_OPEN_SECONDS * 2)
        self._engine.dispose()
        self._lock.close()

    def _loop(self) -> None:
        with self._engine.connect() as connection:
            while (first := self._work.get()) is not None:
                batch, last = [first], False
                while len(batch) < limits.STORE_BATCH:
                    try:
                        work = self._work.get_nowait()
                    except queue.Empty:
                        break
                    if work is None:
                        last = True
                        break
                    batch.append(work)
                self._commit(connection, batch)
                if last:
                    return

    def _commit(self, connection: Connection, batch: list[_Work]) -> None:
        try:
            with connection.begin():
                for work in batch:
                    savepoint = connection.begin_nested()
                    try:
                        work.answer = work.function(connection)
                        savepoint.commit()
                    except OperationalError:
                        raise
                    except Exception as error:
                        work.error = error
                        savepoint.rollback()
        except Exception as error:
            reason = f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"
            log.error("store_commit_failed", reason=reason)
            for work in batch:
                work.error = work.error or _unavailable(reason)
            if not _disk_is_full(error):  # a failed write is never tried again: what is on disk is not known
                self.broken = reason
                self._on_broken(reason)
        for work in batch:
            work.settle()


def open_engine(path: Path) -> Engine:
    """An engine with exactly one connection. Rollback journal and full synchronization: a commit is on the disk."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": limits.STORE_OPEN_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # BEGIN is ours, so that savepoints and migrations are transactional
        for pragma in ("journal_mode=DELETE", "synchronous=EXTRA", "foreign_keys=ON", "trusted_schema=OFF"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.execute(text("BEGIN IMMEDIATE"))

    return engine


def _disk_is_full(error: BaseException) -> bool:
    return getattr(getattr(error, "orig", None), "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _unavailable(reason: str) -> UserError:
    return UserError.of(
        "", reason, "the server cannot write its store; its operator must look at the disk", "STORE_UNAVAILABLE"
    )
