# SPDX-License-Identifier: Apache-2.0
"""The plan on the screen and as a page, and how reports are written."""

from __future__ import annotations

import html.parser
import stat
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._declared_hardware import expand
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import known
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_fit import Targets, Wish, make_plan
from ansible_collections.gpufleet.deepseek.plugins.module_utils._plan_hosts import plan_host
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._plan_page import plan_page, plan_summary, plan_table
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._report_file import ReportError, write_report

VOID = {"meta", "br", "i"}


class Balance(html.parser.HTMLParser):
    """Checks that every element is closed by its own end tag."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make(name: str = "gpu1", **targets: float) -> dict[str, object]:
    host = plan_host(name, expand({"gpu": "a100-sxm4-80gb", "gpus": 8}), region="eu")
    goals = Targets(**targets)  # type: ignore[arg-type]
    return make_plan(known("deepseek-r1"), [host], Wish(targets=goals))


def test_the_page_is_whole_and_needs_nothing_from_elsewhere() -> None:
    page = plan_page({**make(availability_percent=99.9), "simulated": True})
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert not {"script", "link", "img", "iframe"} & set(balance.found)
    assert "Simulated: at least one host" in page
    assert "99.988 % with one failover" in page
    # The parts of the bar fill it.
    widths = [float(part.split("%")[0]) for part in page.split('style="width:')[1:5]]
    assert sum(widths) == pytest.approx(100, abs=0.1)


def test_names_of_hosts_are_text() -> None:
    assert "<b>evil" not in plan_page(make("<b>evil"))


def test_a_refusal_has_a_page_and_lines_too() -> None:
    plan = make_plan(known("deepseek-r1"), [], Wish())
    assert "Refused: deepseek-r1" in plan_page(plan)
    assert plan_table(plan)[0] == "No plan for deepseek-r1:"
    assert plan_summary(plan) == "deepseek-r1: refused"
    missed = make(requests_per_second=3000.0)
    assert "missed" in plan_page(missed)
    assert any("NO" in line.split() for line in plan_table(missed))


def test_the_table_says_what_matters() -> None:
    text = "\n".join(plan_table(make()))
    assert "sglang with awq weights, tensor parallel 8, 1 replica on 1 host, 64 requests at a time" in text
    assert "8 x a100-sxm4-80gb" in text
    assert "One replica: while its host is down, nobody answers." in text


def test_a_report_is_written_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    assert write_report(str(path), "one", check=True)
    assert not path.parent.exists()
    assert write_report(str(path), "one", check=False)
    before = path.stat()
    assert not write_report(str(path), "one", check=False)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert write_report(str(path), "two", check=False)
    assert path.read_text(encoding="utf-8") == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [file.name for file in path.parent.iterdir()] == ["plan.json"]


def test_a_report_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ReportError, match=r"plan\.json cannot be written"):
        write_report(str(tmp_path / "file" / "plan.json"), "x", check=False)
