"""Grafana's files, checked without Grafana: references that hold, and panels that say what they show in which unit."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.cluster.dashboards import dashboards, panels, queries

GRAFANA = Path(__file__).parent.parent.parent / "deploy/grafana"
VARIABLE = {"type": "prometheus", "uid": "${datasource}"}


def test_dashboards_have_stable_and_unique_uids() -> None:
    uids = [dashboard["uid"] for dashboard in dashboards().values()]
    assert uids and len(set(uids)) == len(uids) and all(re.fullmatch(r"lockstep[a-z-]*", uid) for uid in uids)
    for dashboard in dashboards().values():
        assert "id" not in dashboard, "an absolute id belongs to one Grafana"
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)


def test_panels_reach_their_data_by_the_variable() -> None:
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    for dashboard in dashboards().values():
        variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert variables["datasource"]["type"] == "datasource"
        assert variables["datasource"]["current"]["value"] in {source["uid"] for source in provisioned}
        assert variables["training_job"]["datasource"] == VARIABLE
        for panel in panels(dashboard):
            assert panel["datasource"] == VARIABLE
            assert all(target["datasource"] == VARIABLE for target in panel["targets"])
            used = set(re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel["targets"])))
            assert used <= set(variables), f"{panel['title']} uses {used - set(variables)}"


def test_panels_have_unit_description_and_place() -> None:
    for name, dashboard in dashboards().items():
        taken: set[tuple[int, int]] = set()
        for panel in panels(dashboard):
            assert panel["description"].endswith("."), f"{name}: {panel['title']} has no description"
            assert panel["fieldConfig"]["defaults"]["unit"], f"{name}: {panel['title']} has no unit"
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken and max(x for x, _ in cells) < 24, f"{name}: {panel['title']} lies on another panel"
            taken |= cells


def test_the_provider_reads_the_folder_that_compose_mounts() -> None:
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/lockstep.yml").read_text())["providers"][0]
    compose = yaml.safe_load((GRAFANA.parent.parent / "docker-compose.yml").read_text())
    mounts = compose["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_queries_name_metrics_of_ours() -> None:
    recorded = yaml.safe_load((GRAFANA.parent / "prometheus/rules.yml").read_text())["groups"][0]["rules"]
    names = {rule["record"] for rule in recorded}
    for title, expression in queries():
        for metric in re.findall(r"lockstep[_:][a-z0-9_:]+", expression):
            assert metric in names or metric.startswith("lockstep_"), f"{title}: {metric}"
