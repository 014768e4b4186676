"""Links between nodes through a proxy that spoils them: slower, or with a new group, and the same bits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from coordinator.group.local import LocalNode
from tests.coordinator.links import Through
from tests.coordinator.proxy import Proxy
from tests.faults.links import LINKS, LinkCase, carry_out

pytestmark = [pytest.mark.faults, pytest.mark.timeout(90)]


@pytest.mark.parametrize("case", [case for row in LINKS for case in row.fixed()], ids=lambda case: case.name)
def test_spoilt_links_give_the_same_bits(case: LinkCase) -> None:
    assert carry_out(case)


@pytest.fixture
def namespaces() -> Iterator[tuple[tuple[LocalNode, ...], dict[str, str]]]:
    """Two network namespaces, each joined by a veth pair to this one, where the proxy stands; they cannot reach each other."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces want root: run this test with sudo, or in a container of your own")
    mark = f"ls{os.getpid()}"

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    nodes = {}
    with ExitStack() as stack:
        for number, node in enumerate("ab", 1):
            space, inside, outside = f"{mark}{node}", f"{mark}{node}i", f"{mark}{node}o"
            ip("netns", "add", space)
            stack.callback(ip, "netns", "del", space)  # the pair goes with it
            ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
            ip("address", "add", f"10.213.{number}.254/24", "dev", outside)
            ip("link", "set", outside, "up")
            ip("-n", space, "address", "add", f"10.213.{number}.1/24", "dev", inside)
            ip("-n", space, "link", "set", inside, "up")
            ip("-n", space, "link", "set", "lo", "up")
            nodes[node] = LocalNode(node, f"10.213.{number}.1", ("ip", "netns", "exec", space))
        # A peer is in the other namespace, and can dial the proxy only at its own end.
        stands_for = {"a": "10.213.2.254", "b": "10.213.1.254"}
        yield (nodes["a"], nodes["a"], nodes["b"]), stands_for


def test_two_network_namespaces_with_a_link_that_is_cut(
    tmp_path: Path, namespaces: tuple[tuple[LocalNode, ...], dict[str, str]]
) -> None:
    nodes, stands_for = namespaces
    with Proxy(delay_s=0.005) as proxy:
        proxy.after(200_001, lambda: proxy.hold(5.0))
        run = Through(tmp_path, proxy, nodes, stands_for, units=256)
    run.is_like_alone()
    assert run.groups == [3] and not run.told and run.seconds > 5.0
