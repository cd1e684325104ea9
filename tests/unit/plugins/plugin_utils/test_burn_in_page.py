# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in as proof
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._burn_in_page import burn_in_page, burn_in_rows

MARKS = {"nccl_busbw_gbs_min": 228.0, "nvbandwidth_h2d_gbs_min": 24.0}
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta"}


class Balance(HTMLParser):
    """Reads a page and complains about elements that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def host(bus: float, **changes: Any) -> dict[str, Any]:
    common = {
        "errors": [],
        "notes": ["XID 94 came up"],
        "params": {},
        "seconds": 75.0,
        "versions": {"nccl": "22703"},
        "command": ["/opt/x", "-b"],
    }
    entries: list[dict[str, Any]] = [
        {"name": "nccl", "outcome": "measured", "measured": {"busbw_gbs": bus}, **common},
        {
            "name": "nvbandwidth",
            "outcome": "measured",
            "measured": {"h2d_gbs": {f"GPU {n}": 25.0 + n for n in range(40)}},
            **common,
        },
        {
            "name": "fio",
            "outcome": "not_run",
            "reason": "fio is not installed",
            "measured": {},
            **common,
            "errors": [],
            "notes": [],
        },
        {
            "name": "memory",
            "outcome": "measured",
            "measured": {"tested_mb": 512.0},
            **common,
            "notes": [],
            "simulated": True,
        },
    ]
    result = {
        "schema": 1,
        "job": "20261129T010000Z-1",
        "started": "2026-11-29T01:00:00Z",
        "finished": "2026-11-29T01:10:00Z",
        "seconds": 600.0,
        "simulated": True,
        "simulated_by": ["memory"],
        "fingerprint": {},
        "serials": {
            "board": "B1",
            "gpus": [{"index": 0, "name": "A100 <80GB>", "serial": "156", "uuid": "GPU-0"}],
            "nvme": [],
            "nics": [],
        },
        "versions": {"driver": "550.1"},
        "tests": entries,
    }
    names: dict[str, Any] = {str(entry["name"]): {"params": {}} for entry in entries}
    config = {"tests": names, "marks": MARKS, "allow_not_run": ["fio"], "allow_simulated": True}
    return {**proof.assess(result, config, {}), "result": result, "job": result["job"], "state": "done", **changes}


HOSTS = {
    "gpu1": host(234.0),
    "gpu2": host(150.0),
    "gpu3": {"valid": False, "verdict": "none", "reasons": ["no burn-in has run"], "tests": [], "result": None},
}


def test_rows() -> None:
    assert burn_in_rows(HOSTS) == [
        ["gpu1", "passed, simulated", "2026-11-29T01:10:00Z", "10 min 00 s", "3 passed, fio not run"],
        ["gpu2", "failed, simulated", "2026-11-29T01:10:00Z", "10 min 00 s", "2 passed, nccl failed, fio not run"],
        ["gpu3", "no result", "", "", ""],
    ]


def test_the_page_is_whole_and_escaped() -> None:
    page = burn_in_page(HOSTS)
    reader = Balance()
    reader.feed(page)
    assert reader.open == []
    assert "A100 &lt;80GB&gt;" in page
    assert "Simulated: at least one host" in page
    # Those that did not pass come first.
    assert re.findall(r'<h2 id="(\w+)"', page) == ["gpu2", "gpu3", "gpu1"]
    # Forty GPUs that reached the mark are one line.
    assert "host to device, 40 devices" in page
    assert "25 to 64 GB/s" in page


def test_what_is_missed_stands_beside_what_was_wanted() -> None:
    page = burn_in_page({"gpu2": HOSTS["gpu2"]})
    row = next(line for line in re.findall(r"<tr.*?</tr>", page) if "miss" in line)
    assert "at least 228 GB/s" in row
    assert "150 GB/s" in row


def test_a_page_of_nothing() -> None:
    reader = Balance()
    reader.feed(burn_in_page({}))
    assert reader.open == []
