"""Links between nodes through a proxy that spoils them: slower, or with a new group, and the same bits."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from coordinator.group.local import LocalNode
from tests.coordinator.links import Through
from tests.coordinator.proxy import Proxy
from tests.faults.campaign import Verdict
from tests.faults.links import LINKS, LinkCase, judge

_USED = count()

pytestmark = [pytest.mark.faults, pytest.mark.timeout(90)]


@pytest.mark.parametrize("case", [case for row in LINKS for case in row.fixed()], ids=lambda case: case.name)
def test_spoilt_links_give_the_same_bits(case: LinkCase, record: Callable[[Iterable[Verdict]], None]) -> None:
    verdict = judge(case)
    record([verdict])
    assert verdict.effective


@pytest.fixture
def namespaces() -> Iterator[tuple[tuple[LocalNode, ...], dict[str, str]]]:
    """Two network namespaces, each joined by a veth pair to this one, where the proxy stands; they cannot reach each other."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces want root: run this test with sudo, or in a container of your own")
    mark = f"ls{os.getpid()}{next(_USED)}"  # the names of a test before may not be free yet

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


def test_two_network_namespaces_with_a_link_that_loses_packets(
    tmp_path: Path, namespaces: tuple[tuple[LocalNode, ...], dict[str, str]]
) -> None:
    nodes, stands_for = namespaces

    def nft(under: tuple[str, ...], *words: str) -> str:
        return subprocess.run([*under, "nft", *words], capture_output=True, text=True, check=True).stdout

    spaces = {node.node_id: node.under for node in nodes}
    for under in spaces.values():
        nft(under, "add", "table", "ip", "loss")
        nft(under, "add", "chain", "ip", "loss", "in", "{ type filter hook input priority 0 ; }")
        rule = "iifname != lo numgen random mod 100 < 5 counter drop"
        nft(under, "add", "rule", "ip", "loss", "in", *rule.split())
    with Proxy() as proxy:
        run = Through(tmp_path, proxy, nodes, stands_for)
    run.is_like_alone()
    assert run.groups == [3] and not run.told
    for under in spaces.values():
        found = re.search(r"counter packets (\d+)", nft(under, "list", "table", "ip", "loss"))
        assert found is not None and int(found[1]) > 0
