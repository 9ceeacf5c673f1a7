"""Writes losswire.json, the Grafana dashboard: `python deploy/grafana/dashboard.py`.

What it shows is in panels.py; what is the same in all panels is written once, here.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any, Final

from panels import JOB, ROWS, Panel

FILE: Final = Path(__file__).with_name("losswire.json")
DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
WIDTH: Final = 24
ROW_HEIGHT: Final = 8


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    return {
        "uid": "losswire",
        "title": "losswire",
        "description": "Service level, stages, batching, bytes, quality and devices of losswire servers.",
        "tags": ["losswire"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "annotations": {"list": [_alerts()]},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    # Outside Kubernetes nothing has a namespace, and `.*` matches that too.
    chosen = {"namespace": "", "job": 'namespace=~"$namespace"', "instance": JOB}
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [source, *(_variable(name, selector) for name, selector in chosen.items())]


def _variable(name: str, selector: str) -> dict[str, Any]:
    query = f"label_values(losswire_build_info{{{selector}}}, {name})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "expr": 'ALERTS{alertname=~"Losswire.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "iconColor": "red",
    }


def _panels() -> list[dict[str, Any]]:
    panels, numbers, y = [], count(1), 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append(
            {"id": next(numbers), "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place}
        )
        y, x, height = y + 1, 0, 0
        for panel in row:
            if x + panel.width > WIDTH:
                y, x, height = y + height, 0, 0
            own_height = ROW_HEIGHT // 2 if panel.kind == "stat" else ROW_HEIGHT
            place = {"x": x, "y": y, "w": panel.width, "h": own_height}
            panels.append({"id": next(numbers), "gridPos": place, **_panel(panel)})
            x, height = x + panel.width, max(height, own_height)
        y += height
    return panels


def _panel(panel: Panel) -> dict[str, Any]:
    written: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [_target(panel, name, legend) for name, legend in zip("ABCD", panel.queries, strict=False)],
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, **_thresholds(panel)}, "overrides": []},
    }
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        written["fieldConfig"]["defaults"]["custom"] = {"fillOpacity": 30 if panel.stacked else 5, "stacking": stacking}
        written["options"] = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif panel.kind == "stat":
        written["options"] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    else:
        hidden = dict.fromkeys(("Time", "Value", "__name__", "job", "namespace"), True)
        written["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return written


def _target(panel: Panel, name: str, legend: str) -> dict[str, Any]:
    at_once = {"instant": True, "range": False, "format": "table"} if panel.kind == "table" else {"range": True}
    target = {"refId": name, "datasource": DATASOURCE, "expr": panel.queries[legend], "legendFormat": legend, **at_once}
    return {**target, "exemplar": True} if panel.exemplars else target


def _thresholds(panel: Panel) -> dict[str, Any]:
    if panel.limits is None:
        return {}
    yellow, red = panel.limits
    steps = [{"color": "green", "value": None}, {"color": "yellow", "value": yellow}, {"color": "red", "value": red}]
    return {"thresholds": {"mode": "absolute", "steps": steps}}


def written() -> str:
    """The text of the file."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
