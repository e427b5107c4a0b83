"""From rows of panels to what Grafana imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.grafana.cost import COST
from scripts.grafana.panels import Panel, Row, Variable
from scripts.grafana.serving import SERVING

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "grafana"

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24

CHOICES = [
    Variable("model_name", "Model", "label_values(octavo:engine_up, model_name)"),
    Variable("instance", "Server", "label_values(octavo:engine_up, instance)"),
]
COST_CHOICES = [
    *CHOICES,
    Variable("feature", "Feature", "label_values(octavo:feature_requests_total, feature)"),
]


def dashboard(
    uid: str, title: str, text: str, rows: list[Row], variables: list[Variable]
) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in rows:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
            }
        )
        top += 1
        left = 0
        height = 4 if row.panels[0].kind == "stat" else 8
        for panel in row.panels:
            if left + panel.width > WIDTH:
                left, top = 0, top + height
            place = {"h": height, "w": panel.width, "x": left, "y": top}
            panels.append(_panel(panel, len(panels) + 1, place))
            left += panel.width
        top += height
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["octavo", "llm"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_datasource(), *map(_variable, variables)]},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    is_heatmap = panel.kind == "heatmap"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query,
            "legendFormat": legend,
            "format": "heatmap" if is_heatmap else "time_series",
            "instant": panel.kind == "bargauge",
            "range": panel.kind != "bargauge",
        }
        for index, (query, legend) in enumerate(panel.queries.items())
    ]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": colour, "value": limit} for limit, colour in panel.limits.items()]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "color": {"mode": "thresholds" if panel.limits else "palette-classic"},
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": _custom(panel),
            },
            "overrides": [],
        },
        "options": _options(panel),
    }


def _custom(panel: Panel) -> dict[str, Any]:
    if panel.kind != "timeseries":
        return {}
    return {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 25 if panel.stacks else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacks else "none", "group": "A"},
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
            "yAxis": {"unit": "short"},
            "cellGap": 1,
            "tooltip": {"show": True, "yHistogram": False},
        }
    if panel.kind in ("stat", "bargauge"):
        return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "refresh": 1,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "label": variable.title,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": variable.query,
        "query": {"query": variable.query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def texts() -> dict[str, str]:
    """Every file's name and content."""
    dashboards = {
        "serving.json": dashboard(
            "octavo-serving", "Octavo: serving", "Load, latency, errors.", SERVING, CHOICES
        ),
        "cost.json": dashboard(
            "octavo-cost", "Octavo: cost", "What requests cost, by feature.", COST, COST_CHOICES
        ),
    }
    return {name: json.dumps(value, indent=1) + "\n" for name, value in dashboards.items()}


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
