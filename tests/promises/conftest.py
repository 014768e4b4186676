"""The service that the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with four slots, the examples registered; stopped at the file's end, when nothing of it may be left."""
    with Service(tmp_path_factory.mktemp("service"), slots=4) as running:
        running.push_examples()
        yield running
