"""The dashboards' JSON: generated, and as Grafana 10 imports it."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest

from scripts.grafana.build import FOLDER, texts

DASHBOARDS = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def test_the_files_are_up_to_date() -> None:
    assert {path.name: path.read_text() for path in FOLDER.glob("*.json")} == texts(), (
        "run `make docs`"
    )


def test_uids_differ() -> None:
    uids = [dashboard["uid"] for dashboard in DASHBOARDS.values()]
    assert len(set(uids)) == len(uids) == 2
    assert all(0 < len(uid) <= 40 for uid in uids)  # Grafana's bound


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_structure(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 38
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    own = {"type": "prometheus", "uid": "${datasource}"}
    assert all(v["datasource"] == own for n, v in variables.items() if n != "datasource")
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == own
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == own
            text = target["expr"]
            for name in ("__rate_interval", "__range", *variables):
                text = text.replace(f"${name}", "")
            assert "$" not in text, f"an unknown variable in {target['expr']}"
    for a, b in combinations((panel["gridPos"] for panel in panels), 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, "panels overlap"
