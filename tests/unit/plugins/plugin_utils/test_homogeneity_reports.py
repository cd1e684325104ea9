# SPDX-License-Identifier: Apache-2.0
"""JUnit XML and HTML page of a comparison."""

from __future__ import annotations

import re
import typing as t
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import pytest
import yaml

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity import Comparison, compare
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_rules import Standard, load_standard
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _homogeneity_junit
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._homogeneity_junit import junit
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._homogeneity_page import homogeneity_page
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.homogeneity_fleet import facts, fleet

STANDARDS = Path(__file__).parents[4] / "roles" / "fleet" / "files" / "standards"
HOSTILE = "<script>alert('1')</script>\"&]]>\x00\x1b[31m\ud800\ufffe"
# The schema that CI servers agree on (Jenkins' junit-10.xsd): elements with their attributes and the order of their children.
SCHEMA: dict[str, tuple[set[str], list[str]]] = {
    "testsuites": ({"name", "tests", "failures", "errors", "time", "disabled"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "testcase": (
        {"name", "classname", "time", "assertions", "status"},
        ["skipped", "error", "failure", "system-out", "system-err"],
    ),
    "failure": ({"message", "type"}, []),
    "skipped": ({"message", "type"}, []),
    "system-out": (set(), []),
}


def standard(name: str = "a100_80gb_8") -> Standard:
    return load_standard(yaml.safe_load((STANDARDS / f"{name}.yml").read_text("utf-8")), name)


def uneven() -> Comparison:
    """Every kind of finding, with values that want to break out."""
    hosts: dict[str, t.Any] = fleet(8)
    hosts["gpu2"]["gpus"][4]["vbios"] = HOSTILE
    hosts["gpu3"] = None
    hosts["gpu4"]["schema"] = HOSTILE
    hosts["gpu5"]["board"] = None
    hosts["gpu5"]["unavailable"] = {"memory": HOSTILE}
    hosts["gpu5"]["memory"] = None
    hosts["gpu6"]["os"].update(kernel=HOSTILE, version="13")
    hosts["gpu7"]["sysctl"] = {HOSTILE: HOSTILE}
    hosts["gpu8"]["simulated"] = True
    hosts["gpu1"]["clock"]["source"] = HOSTILE
    hosts[HOSTILE] = facts(9, gpu__count=7)
    groups = {name: "eu & <us>" if name in ("gpu1", "gpu2", HOSTILE) else "de" for name in hosts}
    return compare(list(hosts), hosts, groups, standard())


def parse(text: str) -> ElementTree.Element:
    """Elements of a document."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = (
        builder.start,
        builder.end,
        builder.data,
    )
    parser.Parse(text.encode("utf-8"), True)
    return builder.close()


def check(element: ElementTree.Element) -> None:
    """Attributes and children as the schema has them."""
    attributes, children = SCHEMA[element.tag]
    assert set(element.attrib) <= attributes
    places = [children.index(child.tag) for child in element]
    assert places == sorted(places)
    for child in element:
        check(child)


@pytest.mark.parametrize("fail_on", ["block", "warn"])
def test_junit_is_valid_and_adds_up(fail_on: str) -> None:
    result = uneven()
    text = junit(result, fail_on)
    root = parse(text)
    check(root)
    cases = root.findall("testsuite/testcase")
    assert len(cases) == 9 * (114 + 3) == int(root.get("tests", ""))
    assert len(root.findall(".//failure")) == int(root.get("failures", ""))
    for suite in root:
        assert len(suite.findall("testcase")) == int(suite.get("tests", ""))
        assert len(suite.findall(".//failure")) == int(suite.get("failures", ""))
        assert len(suite.findall(".//skipped")) == int(suite.get("skipped", ""))
    names = [(case.get("classname"), case.get("name")) for case in cases]
    assert len(set(names)) == len(names)
    kinds = {failure.get("type") for failure in root.findall(".//failure")}
    assert kinds == ({"block", "warn"} if fail_on == "warn" else {"block"})


def test_junit_does_not_pass_what_was_not_looked_at() -> None:
    root = parse(junit(uneven()))
    lost = [case for case in root.findall(".//testcase") if case.get("classname") == "gpu3"]
    assert [
        len(lost),
        sum(case.find("skipped") is not None for case in lost),
        sum(case.find("failure") is not None for case in lost),
    ] == [117, 114, 1]


def test_junit_of_a_large_fleet_has_one_case_for_a_host_without_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_homogeneity_junit, "MOST_CASES", 100)
    hosts = fleet(4)
    hosts["gpu2"]["os"]["kernel"] = "other"
    root = parse(junit(compare(list(hosts), hosts, dict.fromkeys(hosts, "eu"), standard())))
    assert [case.get("name") for case in root.findall(".//testcase") if case.get("classname") != "gpu2"] == [
        "all rules"
    ] * 3
    assert len(root.findall(".//failure")) == 1


class Reader(HTMLParser):
    """Tags, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _value in attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_whole_and_no_value_breaks_out_of_it() -> None:
    text = homogeneity_page(uneven())
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "script" not in reader.seen
    assert "&lt;script&gt;" in text
    assert not re.search(r"https?://", text)
    text.encode("utf-8")


def test_a_page_of_a_thousand_hosts_is_small_and_names_who_stands_out() -> None:
    hosts = fleet(1000)
    for number in range(1, 1001, 10):
        hosts[f"gpu{number}"]["os"]["kernel"] = "6.1.0-27-amd64"
    hosts["gpu500"]["gpus"][0]["vbios"] = "92.00.36.00.02"
    text = homogeneity_page(compare(list(hosts), hosts, dict.fromkeys(hosts, "eu"), standard()))
    assert len(text) < 30_000
    assert "gpu500" in text
    assert "899 hosts" in text
    assert "900 of 1000 hosts" in text


def test_a_page_of_equal_hosts_says_so() -> None:
    hosts = fleet(3)
    text = homogeneity_page(compare(list(hosts), hosts, dict.fromkeys(hosts, "eu"), standard()))
    assert "None: no host stands out." in text
    assert "nothing differs" in text


def test_reports_are_the_same_each_time() -> None:
    assert homogeneity_page(uneven()) == homogeneity_page(uneven())
    assert junit(uneven()) == junit(uneven())
