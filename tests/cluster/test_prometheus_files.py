"""Prometheus's files: promtool accepts them, and the rules say what they must of synthetic series."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.missing import needs

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy/prometheus"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [needs("promtool", "prometheus"), *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried_and_explained() -> None:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    alerts = {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}
    tried = (FOLDER / "rules_test.yml").read_text()
    runbook = (ROOT / "docs/alerts.md").read_text()
    for name, rule in alerts.items():
        assert f"alertname: {name}\n" in tried
        assert f"## {name}\n" in runbook
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
