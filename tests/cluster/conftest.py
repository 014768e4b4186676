"""The compose cluster that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.engine import Engine, MachineLacks
from tests.cluster.missing import needs


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker engine; without one and the means to start one, the test is skipped and says what is missing."""
    needs("docker-compose", "docker-compose")
    try:
        engine = Engine()
    except MachineLacks as lack:
        pytest.skip(str(lack))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def cluster(engine: Engine, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster, with two workers that have joined. What its services said is printed where it does not come up."""
    plugins = request.config.pluginmanager
    terminal, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    assert terminal is not None and capture is not None

    def write(line: str) -> None:
        # Each kill is shown with its time, whether the test passes or not.
        with capture.global_and_fixture_disabled():
            terminal.write_line(line)

    cluster = Cluster(engine, tmp_path_factory.mktemp("cluster"), write)
    try:
        cluster.start()
    except BaseException:
        print(cluster.logs())
        cluster.close()
        raise
    yield cluster
    cluster.close()
