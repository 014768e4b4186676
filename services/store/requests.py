"""Rows of requests that carried a request_id: the same request again gets the answer of the first, for 24 hours."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from lockstep.contract.errors import UserError
from services import limits
from services.clock import SECOND
from services.store.tables import requests


def answered(connection: Connection, method: str, request_id: str, digest: str) -> str:
    """The name that the first such request was answered with; empty for a new one.

    Raises UserError if the id came before with another body.
    """
    if not request_id:
        return ""
    where = (requests.c.method == method, requests.c.request_id == request_id)
    row = connection.execute(select(requests.c.digest, requests.c.answer_name).where(*where)).one_or_none()
    if row is None:
        return ""
    if row.digest != digest:
        remedy = "this id came before with another request; make a new UUID4 for each request"
        raise UserError.of("request_id", request_id, remedy, "REQUEST_ID_REUSED")
    return str(row.answer_name)


def record(connection: Connection, method: str, request_id: str, digest: str, answer_name: str, now: int) -> None:
    """Remembers the answer, in the transaction that makes it true."""
    if request_id:
        values = {"digest": digest, "answer_name": answer_name, "create_time": now}
        connection.execute(insert(requests).values(method=method, request_id=request_id, **values))


def purge(connection: Connection, now: int) -> None:
    """Forgets what is older than a day."""
    connection.execute(delete(requests).where(requests.c.create_time < now - limits.REQUEST_IDS_KEPT_SECONDS * SECOND))
