# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Dashboards: how the data becomes Grafana's JSON, and that each of the role's is one that can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.grafana_dashboard import grafana_dashboard
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _grafana_dashboard as made

ROLE = Path(__file__).resolve().parents[4] / "roles" / "dashboards"
SOURCES = sorted((ROLE / "files" / "dashboards").glob("*.yml"))
SETTINGS = dict.fromkeys(yaml.safe_load((ROLE / "vars" / "main.yml").read_text("utf-8"))["__dashboards_settings"], 1.5)
# Grafana's names of units; a name of one's own follows "suffix:".
UNITS = {
    *(
        "short",
        "percent",
        "percentunit",
        "s",
        "ms",
        "reqps",
        "bytes",
        "Bps",
        "bps",
        "celsius",
        "watt",
        "dateTimeFromNow",
    ),
}
# Words that stay small within a title.
SMALL = {"a", "and", "as", "at", "by", "for", "from", "in", "of", "per", "the", "to", "into", "or", "over"}
PANEL = {"title": "A", "unit": "s", "queries": [{"expr": "up"}]}


def dashboard(*panels: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A dashboard of one row."""
    return {"title": "T", "uid": "t", "rows": [{"title": "R", "panels": list(panels)}], **more}


def panels_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels without the headings of rows."""
    return [panel for panel in found["panels"] if panel["type"] != "row"]


def in_title_case(text: str) -> bool:
    """Whether each word but the small ones begins with a capital, a digit or a sign."""
    words = re.findall(r"[^\s/,]+", text)
    return all(word in SMALL or not word[0].islower() for word in words[1:]) and not words[0][0].islower()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_dashboards_of_the_role(path: Path) -> None:
    found = grafana_dashboard(yaml.safe_load(path.read_text("utf-8")), SETTINGS)
    assert found["uid"].startswith("gpufleet-")
    assert found["description"]
    assert in_title_case(found["title"])
    numbers = [panel["id"] for panel in found["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= made.COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    known = {f"${variable['name']}" for variable in found["templating"]["list"]}
    for panel in panels_of(found):
        assert in_title_case(panel["title"]), panel["title"]
        assert panel["datasource"] == made.DATASOURCE
        if panel["type"] == "text":
            assert panel["options"]["content"]
            continue
        assert len(panel["description"]) > 20, panel["title"]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS or unit.startswith("suffix:"), (panel["title"], unit)
        assert panel["targets"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for target in panel["targets"]:
            assert target["expr"].strip()
            assert target["datasource"] == made.DATASOURCE
            assert set(re.findall(r"\$\w+", target["expr"])) <= known, target["expr"]
            assert target["expr"].count("(") == target["expr"].count(")")
            if panel["type"] == "timeseries" and len(panel["targets"]) > 1:
                assert target["legendFormat"] != "__auto", panel["title"]


def test_uids_and_titles_differ() -> None:
    found = [yaml.safe_load(path.read_text("utf-8")) for path in SOURCES]
    assert len({one["uid"] for one in found}) == len({one["title"] for one in found}) == len(SOURCES) == 7


def test_every_dashboard_of_the_folder_is_written() -> None:
    named = yaml.safe_load((ROLE / "vars" / "main.yml").read_text("utf-8"))["__dashboards_own"]
    assert sorted(named) == [path.stem for path in SOURCES]


def test_panels_flow_from_left_to_right() -> None:
    found = grafana_dashboard(dashboard(*({**PANEL, "title": name} for name in "ABC")))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels_of(found)]
    assert places == [(0, 1), (12, 1), (0, 9)]


def test_settings_are_filled_in() -> None:
    panel = {**PANEL, "description": "Below << limit >> s.", "limits": {"bad": "<< limit >>"}}
    found = panels_of(grafana_dashboard(dashboard(panel), {"limit": "10.0"}))[0]
    assert found["description"] == "Below 10 s."
    assert found["fieldConfig"]["defaults"]["thresholds"]["steps"] == [
        {"color": "green", "value": None},
        {"color": "red", "value": 10.0},
    ]


def test_limits_from_below() -> None:
    panel = {**PANEL, "limits": {"below": True, "warn": 0.5, "bad": 0.1}}
    steps = panels_of(grafana_dashboard(dashboard(panel)))[0]["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps == [
        {"color": "red", "value": None},
        {"color": "orange", "value": 0.1},
        {"color": "green", "value": 0.5},
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text", "expected a mapping, found str"),
        (dashboard({**PANEL, "kind": "pie"}), "expected kind"),
        (dashboard({**PANEL, "widht": 3}), "found widht"),
        (dashboard({**PANEL, "width": 30}), "expected a width of 1 to 24"),
        (dashboard({**PANEL, "needs": ["luck"]}), "found luck"),
        (dashboard({**PANEL, "title": "<< nobody >>"}), "found << nobody >>"),
        (dashboard(PANEL, variables=["planet"]), "found planet"),
        (dashboard(PANEL, author="me"), "found author"),
    ],
)
def test_bad_data_is_refused(data: Any, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=re.escape(words)):
        grafana_dashboard(data)
