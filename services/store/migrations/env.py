"""Alembic's entry: runs the steps on the connection that it is given, inside its transaction."""

from __future__ import annotations

from alembic import context

from services.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
    render_as_batch=True,
)
context.run_migrations()
