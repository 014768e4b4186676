"""Brings a database to this release's schema: a copy first, then Alembic's steps."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, inspect, text

from lockstep.contract.errors import UserError

SCRIPTS: Final = Path(__file__).with_name("migrations")


def migrate(engine: Engine, path: Path) -> None:
    """Upgrades the database behind the engine, whose file is `path`; a copy lies beside it before anything changes.

    Raises UserError if a later release wrote it.
    """
    revisions = sorted(script.stem.partition("_")[0] for script in (SCRIPTS / "versions").glob("[0-9]*.py"))
    with engine.connect() as connection:
        current = None
        if inspect(connection).has_table("alembic_version"):
            current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        connection.rollback()
    if current == revisions[-1]:
        return
    if current is not None and current not in revisions:
        remedy = "a later release wrote this database; start that release, or restore the copy beside it"
        raise UserError.of(str(path), current, remedy, "STORE_TOO_NEW")
    if current is not None:
        _copy(path, path.with_name(f"{path.name}.before-{revisions[-1]}"))
    _upgrade(engine)


def _upgrade(engine: Engine) -> None:
    # Alembic takes a third of a second to load, and only a new database or a new release needs it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _copy(source: Path, target: Path) -> None:
    """Copies and puts the copy on the disk under its name only when it is whole."""
    partial = target.with_name(target.name + ".tmp")
    with source.open("rb") as reader, partial.open("wb") as writer:
        os.fchmod(writer.fileno(), 0o600)
        shutil.copyfileobj(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
    partial.replace(target)
