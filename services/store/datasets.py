"""Rows of datasets and their versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from lockstep.contract.errors import UserError
from lockstep.v1.dataset_service_pb2 import Dataset, DatasetSchema, DatasetVersion
from services import limits
from services.clock import timestamp
from services.store.tables import dataset_versions, datasets


def find(connection: Connection, dataset_id: str) -> Dataset | None:
    """A dataset with its versions, or None."""
    row = connection.execute(select(datasets).where(datasets.c.id == dataset_id)).one_or_none()
    return None if row is None else _message(row, versions_of(connection, dataset_id))


def versions_of(connection: Connection, dataset_id: str) -> Sequence[Row[Any]]:
    """Its versions, oldest first."""
    query = select(dataset_versions).where(dataset_versions.c.dataset_id == dataset_id)
    return connection.execute(query.order_by(dataset_versions.c.create_time, dataset_versions.c.digest)).all()


def find_version(connection: Connection, dataset_id: str, prefix: str) -> Row[Any] | None:
    """The newest version whose digest begins so, or None. Raises UserError if several versions begin so."""
    found = [row for row in versions_of(connection, dataset_id) if row.digest.startswith(prefix)]
    if prefix and len(found) > 1:
        raise UserError.of("dataset", prefix, f"{len(found)} versions begin so; give more digits", "DATASET_AMBIGUOUS")
    return found[-1] if found else None


def schema_of(connection: Connection, digest: str) -> bytes:
    """The schema of a version that a live job reads, whatever name it has by now."""
    query = select(dataset_versions.c.schema).where(dataset_versions.c.digest == digest).limit(1)
    return bytes(connection.execute(query).scalar_one())


def ids(connection: Connection) -> list[str]:
    """The ids of datasets, in order, as many as a message can use."""
    return list(connection.execute(select(datasets.c.id).order_by(datasets.c.id).limit(1000)).scalars())


def page(connection: Connection, after: str, size: int) -> list[Dataset]:
    """Up to `size` datasets by id behind `after`."""
    query = select(datasets).where(datasets.c.id > after).order_by(datasets.c.id).limit(size)
    return [_message(row, versions_of(connection, row.id)) for row in connection.execute(query).all()]


def add_version(
    connection: Connection, dataset_id: str, digest: str, schema: DatasetSchema, warnings: list[str], now: int
) -> None:
    """Registers a version; content that the name already has becomes its newest version again.

    Raises UserError where there are too many.
    """
    if connection.execute(select(datasets.c.id).where(datasets.c.id == dataset_id)).first() is None:
        if connection.execute(select(func.count()).select_from(datasets)).scalar_one() >= limits.DATASETS:
            raise UserError.of(
                "dataset_id", dataset_id, f"there are {limits.DATASETS:,} datasets; delete one", "TOO_MANY_DATASETS"
            )
        connection.execute(insert(datasets).values(id=dataset_id, create_time=now))
    # The newest is the one that was registered last, also where the clock was set back meanwhile.
    now = max([now, *(version.create_time + 1 for version in versions_of(connection, dataset_id))])
    values = {"create_time": now, "schema": schema.SerializeToString(), "warnings": json.dumps(warnings)}
    where = (dataset_versions.c.dataset_id == dataset_id, dataset_versions.c.digest == digest)
    if connection.execute(update(dataset_versions).where(*where).values(**values)).rowcount:
        return
    if len(versions_of(connection, dataset_id)) >= limits.DATASET_VERSIONS:
        remedy = f"it has {limits.DATASET_VERSIONS} versions; register the file under another name"
        raise UserError.of("dataset_id", dataset_id, remedy, "TOO_MANY_VERSIONS")
    connection.execute(insert(dataset_versions).values(dataset_id=dataset_id, digest=digest, **values))


def remove(connection: Connection, dataset_id: str) -> None:
    """Removes a dataset and its versions; the files are somebody else's affair."""
    connection.execute(delete(datasets).where(datasets.c.id == dataset_id))


def digests(connection: Connection) -> set[str]:
    """All versions that any dataset has."""
    return set(connection.execute(select(dataset_versions.c.digest)).scalars())


def _message(row: Row[Any], versions: Sequence[Row[Any]]) -> Dataset:
    message = Dataset(name=f"datasets/{row.id}", state=Dataset.READY, create_time=timestamp(row.create_time))
    for version in versions:
        schema = DatasetSchema.FromString(version.schema)
        message.versions.append(
            DatasetVersion(
                digest=version.digest,
                create_time=timestamp(version.create_time),
                rows=schema.rows,
                size_bytes=schema.size_bytes,
            )
        )
    if versions:
        newest = versions[-1]
        message.digest = newest.digest
        message.update_time.CopyFrom(timestamp(newest.create_time))
        message.schema.ParseFromString(newest.schema)
        message.warnings.extend(json.loads(newest.warnings))
    return message
