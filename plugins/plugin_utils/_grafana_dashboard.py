# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Grafana's JSON of a dashboard from a few lines of data. PRIVATE to the collection.

A dashboard is a mapping: title, uid, description, time (a duration such as 6h), refresh, variables (names of :data:`VARIABLES`) and rows, each with a title
and panels. A panel has a title, a kind of :data:`KINDS` (default lines), a Grafana unit, a description and queries (expr, legend, instant, table); width and
height in Grafana's grid of 24 columns; max, decimals, stack; limits (warn, bad, below: the bad side is below); needs (what must be there for data: a fleet
without GPUs leaves such panels empty). ``<< name >>`` in any text stands for a setting.
"""

from __future__ import annotations

import re
import typing as t

DATASOURCE = {"type": "prometheus", "uid": "gpufleet-prometheus"}
COLUMNS = 24
# Of Grafana 10.4; newer ones bring it up to date when they load it.
SCHEMA_VERSION = 39
KINDS = {
    "lines": "timeseries",
    "stat": "stat",
    "table": "table",
    "bars": "bargauge",
    "states": "state-timeline",
    "text": "text",
}
# How the values of a variable are asked for: name of the variable in queries, title, query.
VARIABLES = {
    "region": ("region", "Region", "label_values(up, region)"),
    "host": ("host", "Host", 'label_values(up{job="engine", region=~"$region"}, host)'),
    "gpu_host": ("host", "Host", 'label_values(up{role="engine", region=~"$region"}, host)'),
    "tenant": ("tenant", "Tenant", 'label_values(gw_requests_total{region=~"$region"}, tenant)'),
    "release": ("release", "Release", 'label_values(gpufleet_release_info{region=~"$region"}, release)'),
}
# What a panel may need, and how it is said.
NEEDS = {
    "gpu": "Needs the GPUs' metrics (role gpu_exporter).",
    "gpu_engine": "Needs an engine for GPUs: vLLM, SGLang or TensorRT-LLM.",
    "vllm": "Needs vLLM.",
    "nvme_raid": "Needs role nvme_raid.",
    "nvme": "Needs the NVMe scripts of node_exporter's collectors.",
    "rdma": "Needs RDMA ports.",
    "tls": "Needs probes or sidecars with TLS.",
    "tracing": "Needs role tracing.",
    "disks": "Needs file systems of its own, which a container has not.",
    "failures": "Empty until something fails.",
    "quality": "Needs role quality_probe.",
}
GREEN, ORANGE, RED = "green", "orange", "red"
_MARK = re.compile(r"<<\s*(\w+)\s*>>")
_KNOWN = {"title", "uid", "description", "time", "refresh", "variables", "rows"}
_PANEL = {
    "title",
    "kind",
    "unit",
    "width",
    "height",
    "description",
    "queries",
    "limits",
    "needs",
    "max",
    "decimals",
    "stack",
    "text",
    "empty",
}


class DashboardError(ValueError):
    """The data of a dashboard is wrong; the text says where and how."""


def fill(value: t.Any, settings: t.Mapping[str, float]) -> t.Any:
    """A copy with settings in place of their marks; a text that is nothing but a mark becomes the setting itself."""
    if isinstance(value, t.Mapping):
        return {str(key): fill(one, settings) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [fill(one, settings) for one in value]
    if not isinstance(value, str):
        return value
    unknown = [name for name in _MARK.findall(value) if name not in settings]
    if unknown:
        raise DashboardError(f"expected settings {', '.join(sorted(settings))}, found << {unknown[0]} >>")
    whole = _MARK.fullmatch(value)
    if whole:
        return settings[whole[1]]
    return _MARK.sub(lambda mark: f"{settings[mark[1]]:g}", value)


def _steps(limits: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """Grafana's thresholds, from the lowest up; the first has no value."""
    if not limits:
        return [{"color": GREEN, "value": None}]
    marks = [(float(limits[name]), color) for name, color in (("warn", ORANGE), ("bad", RED)) if name in limits]
    if not limits.get("below"):
        return [{"color": GREEN, "value": None}, *({"color": color, "value": at} for at, color in sorted(marks))]
    # From below: red up to bad, orange up to warn, green from there.
    ordered = sorted(marks)
    colors = [color for _at, color in ordered] + [GREEN]
    return [{"color": colors[0], "value": None}] + [
        {"color": color, "value": at} for (at, _own), color in zip(ordered, colors[1:])
    ]


def _custom(kind: str, panel: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    if kind == "lines":
        stack = bool(panel.get("stack"))
        return {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if stack else 5,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if stack else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.get("limits") and not stack else "off"},
        }
    if kind == "states":
        return {"fillOpacity": 70, "lineWidth": 0}
    if kind == "table":
        return {"align": "auto", "cellOptions": {"type": "auto"}}
    return {}


def _options(kind: str, panel: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    calcs = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    found: dict[str, dict[str, t.Any]] = {
        "lines": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {
            "colorMode": "background" if panel.get("limits") else "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "textMode": "auto",
            "reduceOptions": calcs,
        },
        "table": {"showHeader": True, "cellHeight": "sm"},
        "bars": {"orientation": "horizontal", "displayMode": "basic", "reduceOptions": calcs},
        "states": {
            "mergeValues": True,
            "showValue": "never",
            "rowHeight": 0.8,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        },
        "text": {"mode": "markdown", "content": str(panel.get("text", ""))},
    }
    return found[kind]


def _targets(panel: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    found = []
    for place, query in enumerate(panel.get("queries", [])):
        instant = bool(query.get("instant") or query.get("table"))
        found.append(
            {
                "refId": chr(ord("A") + place),
                "datasource": dict(DATASOURCE),
                "editorMode": "code",
                "expr": " ".join(str(query.get("expr", "")).split()),
                "legendFormat": str(query.get("legend", "__auto")),
                "format": "table" if query.get("table") else "time_series",
                "instant": instant,
                "range": not instant,
            }
        )
    return found


def _panel(panel: t.Mapping[str, t.Any], number: int, place: t.Mapping[str, int]) -> dict[str, t.Any]:
    where = f"panel {panel.get('title')!r}"
    unknown = sorted(set(panel) - _PANEL)
    if unknown:
        raise DashboardError(f"{where}: expected {', '.join(sorted(_PANEL))}, found {', '.join(unknown)}")
    kind = str(panel.get("kind", "lines"))
    if kind not in KINDS:
        raise DashboardError(f"{where}: expected kind {', '.join(KINDS)}, found {kind}")
    needs = panel.get("needs", [])
    for need in needs:
        if need not in NEEDS:
            raise DashboardError(f"{where}: expected needs of {', '.join(NEEDS)}, found {need}")
    defaults: dict[str, t.Any] = {"custom": _custom(kind, panel), "mappings": []}
    if kind != "text":
        steps = _steps(panel.get("limits", {}))
        if kind == "states" and not panel.get("limits"):
            steps = [{"color": RED, "value": None}, {"color": GREEN, "value": 1}]
        defaults |= {
            "unit": panel.get("unit", ""),
            "color": {"mode": "palette-classic" if kind == "lines" else "thresholds"},
            "thresholds": {"mode": "absolute", "steps": steps},
            "noValue": str(panel.get("empty", "no data")),
        }
    if "decimals" in panel:
        defaults["decimals"] = int(panel["decimals"])
    if "max" in panel:
        defaults |= {"min": 0, "max": panel["max"]}
    elif kind == "lines":
        defaults["min"] = 0
    description = " ".join([str(panel.get("description", "")), *(NEEDS[need] for need in needs)]).strip()
    found = {
        "id": number,
        "type": KINDS[kind],
        "title": str(panel.get("title", "")),
        "description": description,
        "gridPos": dict(place),
        "datasource": dict(DATASOURCE),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(kind, panel),
        "targets": _targets(panel),
    }
    if kind == "table":
        # One row for each series; the time of the answer and the value 1 say nothing.
        found["transformations"] = [
            {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}, "indexByName": {}}}
        ]
    return found


def _size(panel: t.Mapping[str, t.Any]) -> tuple[int, int]:
    small = panel.get("kind") == "stat"
    width, height = int(panel.get("width", 12)), int(panel.get("height", 4 if small else 8))
    if not 1 <= width <= COLUMNS or not 1 <= height <= 40:
        raise DashboardError(f"panel {panel.get('title')!r}: expected a width of 1 to 24 and a height of 1 to 40")
    return width, height


def _variable(name: str) -> dict[str, t.Any]:
    if name not in VARIABLES:
        raise DashboardError(f"expected variables of {', '.join(VARIABLES)}, found {name}")
    own, label, query = VARIABLES[name]
    return {
        "name": own,
        "label": label,
        "type": "query",
        "datasource": dict(DATASOURCE),
        "query": {"query": query, "refId": f"Variable{label}"},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # A series without the label is in "All" as well.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
    }


def grafana_dashboard(data: t.Mapping[str, t.Any], settings: t.Mapping[str, float]) -> dict[str, t.Any]:
    """The dashboard as Grafana reads it.

    :arg data: what the module's text describes.
    :arg settings: the numbers behind the marks in the data.
    :raises DashboardError: the data is wrong.
    """
    unknown = sorted(set(data) - _KNOWN)
    if unknown:
        raise DashboardError(f"expected {', '.join(sorted(_KNOWN))}, found {', '.join(unknown)}")
    data = fill(data, settings)
    panels: list[dict[str, t.Any]] = []
    top = 0
    for row in data.get("rows", []):
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": row["title"], "gridPos": place, "collapsed": False}
            | {"panels": []}
        )
        top += 1
        left = line = 0
        for panel in row["panels"]:
            width, height = _size(panel)
            if left + width > COLUMNS:
                top, left, line = top + line, 0, 0
            panels.append(_panel(panel, len(panels) + 1, {"x": left, "y": top, "w": width, "h": height}))
            left, line = left + width, max(line, height)
        top += line
    return {
        "uid": data["uid"],
        "title": data["title"],
        "description": data.get("description", ""),
        "tags": ["gpufleet"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "utc",
        "time": {"from": f"now-{data.get('time', '6h')}", "to": "now"},
        "refresh": data.get("refresh", "1m"),
        "templating": {"list": [_variable(name) for name in data.get("variables", [])]},
        "annotations": {"list": []},
        "links": [
            {"type": "dashboards", "title": "Fleet", "tags": ["gpufleet"], "asDropdown": True, "keepTime": True}
            | {"includeVars": True, "icon": "external link", "targetBlank": False, "tooltip": "", "url": ""}
        ],
        "panels": panels,
    }
