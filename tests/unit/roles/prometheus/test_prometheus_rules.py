# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What every alert of role prometheus must bring along. That they fire is tested by promtool, with tests/rules."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from ansible_collections.gpufleet.deepseek.plugins.module_utils._alertmanager import INHIBITIONS

ROOT = Path(__file__).parents[4]
ROLE = ROOT / "roles/prometheus"
TEMPLATES = ROLE / "templates/etc/prometheus/rules.d"
DEFAULTS: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text("utf-8"))
PRIVATE: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text("utf-8"))
TOPICS: list[str] = PRIVATE["__prometheus_rule_topics"]
JOBS = ("node", "engine", "gateway", "prometheus")
SEVERITIES = {"page", "ticket", "info"}
# A dead man's switch that is silent would be no good.
ALWAYS = {"Watchdog"}


@functools.cache
def text_of(topic: str, jobs: tuple[str, ...] = JOBS, **settings: Any) -> str:
    """A rule file as the role writes it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(),
        **PRIVATE["__prometheus_rule_marks"],
    )
    values = {
        **DEFAULTS,
        "__prometheus_hosts": {job: ["a-host"] for job in jobs},
        "__prometheus_keep_firing_for": True,
        **settings,
    }
    return environment.get_template(f"{topic}.yml.j2").render(values)


def rules_of(topic: str, **settings: Any) -> list[dict[str, Any]]:
    """The rules of a topic."""
    return [rule for group in yaml.safe_load(text_of(topic, **settings))["groups"] for rule in group["rules"]]


ALERTS = [(topic, rule) for topic in TOPICS for rule in rules_of(topic) if "alert" in rule]
NAMES = [f"{topic}-{rule['alert']}-{rule['labels'].get('job', '')}" for topic, rule in ALERTS]


@functools.cache
def asked_of(topic: str) -> list[list[dict[str, Any]]]:
    """The expectations of each test of a topic, one for each time at which an alert is asked for."""
    content = yaml.safe_load((ROOT / f"tests/rules/{topic}.yml").read_text("utf-8"))
    return [test["alert_rule_test"] for test in content["tests"]]


def used_labels(rule: dict[str, Any]) -> set[str]:
    """The labels that an alert's sentences name."""
    return set(re.findall(r"[$]labels[.](\w+)", " ".join(rule["annotations"].values())))


def test_each_template_is_a_topic_with_tests_and_a_runbook() -> None:
    """Nothing lies about that is never rendered, tested or explained."""
    assert sorted(path.name for path in TEMPLATES.iterdir()) == sorted(f"{topic}.yml.j2" for topic in TOPICS)
    assert sorted(path.stem for path in (ROOT / "tests/rules").glob("*.yml")) == sorted(TOPICS)
    assert sorted(path.stem for path in (ROOT / "docs/runbooks").glob("*.md")) == sorted([*TOPICS, "README"])


def test_names_of_alerts_and_groups_are_used_once() -> None:
    """Alerts are known by their names; TargetsAbsent is one for each job."""
    names = [rule["alert"] for _topic, rule in ALERTS if rule["alert"] != "TargetsAbsent"]
    groups = [group["name"] for topic in TOPICS for group in yaml.safe_load(text_of(topic))["groups"]]
    assert sorted(names) == sorted(set(names))
    assert sorted(groups) == sorted(set(groups))


@pytest.mark.parametrize(("topic", "rule"), ALERTS, ids=NAMES)
def test_an_alert_says_what_one_needs_at_night(topic: str, rule: dict[str, Any]) -> None:
    """Severity, a sentence, more of it, and where to read on."""
    name = rule["alert"]
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert 10 <= len(rule["annotations"]["summary"]) <= 160
    assert len(rule["annotations"]["description"]) > len(rule["annotations"]["summary"])
    assert rule["annotations"]["runbook_url"] == f"{DEFAULTS['prometheus_runbook_url']}/{topic}.md#{name.lower()}"


@pytest.mark.parametrize(("topic", "rule"), ALERTS, ids=NAMES)
def test_an_alert_names_the_source_of_its_metrics(topic: str, rule: dict[str, Any]) -> None:
    """A comment in front of it, so that a site knows what it needs."""
    assert re.search(rf"# source: [^\n]+\n( *#[^\n]*\n)* +- alert: {rule['alert']}\n", text_of(topic))


@pytest.mark.parametrize(("topic", "rule"), ALERTS, ids=NAMES)
def test_an_alert_is_tested_in_both_ways(topic: str, rule: dict[str, Any]) -> None:
    """In one test it is silent, fires with its sentences, and is silent again."""
    asked = [[one for one in test if one["alertname"] == rule["alert"]] for test in asked_of(topic)]
    courses = [[bool(one["exp_alerts"]) for one in test] for test in asked]
    wanted = [True] if rule["alert"] in ALWAYS else [False, True, False]
    assert wanted in [[key for key, _same in itertools.groupby(course)] for course in courses]
    for one in itertools.chain.from_iterable(asked):
        for alert in one["exp_alerts"]:
            # A label that is not there is an empty place in the sentence.
            assert used_labels(rule) <= set(alert["exp_labels"])
            assert set(alert["exp_annotations"]) == {"summary", "description", "runbook_url"}


@pytest.mark.parametrize(("topic", "rule"), ALERTS, ids=NAMES)
def test_an_alert_has_a_section_in_its_runbook(topic: str, rule: dict[str, Any]) -> None:
    """With the four things that somebody wants to know."""
    book = (ROOT / f"docs/runbooks/{topic}.md").read_text("utf-8")
    section = re.search(rf"^## {rule['alert']}\n(.*?)(?=^## |\Z)", book, re.MULTILINE | re.DOTALL)
    assert section
    for word in ("What it means", "Look at", "Do", "It is over when"):
        assert f"**{word}**: " in section.group(1)
    assert f"Severity: {rule['labels']['severity']}." in section.group(1)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_runbook_has_no_section_without_an_alert(topic: str) -> None:
    """What is explained exists; headings with blanks are for tables."""
    book = (ROOT / f"docs/runbooks/{topic}.md").read_text("utf-8")
    explained = re.findall(r"^## (\w+)$", book, re.MULTILINE)
    assert sorted(explained) == sorted({rule["alert"] for place, rule in ALERTS if place == topic})
    assert {one["alertname"] for test in asked_of(topic) for one in test} == set(explained)


def test_each_setting_of_the_rules_reaches_a_rule_and_has_a_range() -> None:
    """A threshold that nothing reads would be a lie."""
    settings = {name for name in DEFAULTS if re.match(r"prometheus_(alert|slo)_", name)}
    assert set(PRIVATE["__prometheus_alert_ranges"]) == settings
    plain = "".join(text_of(topic) for topic in TOPICS)
    # The patience is not in the templates: filter rule_patience works on what they make.
    for name in sorted(settings - {"prometheus_alert_patience"}):
        assert "".join(text_of(topic, **{name: 77.25}) for topic in TOPICS) != plain, name


def test_every_job_with_hosts_is_missed_when_it_is_gone() -> None:
    """One rule for each job of the inventory, none where there is none."""
    for jobs in ((), ("node",), JOBS):
        absent = [
            rule["labels"]["job"] for rule in rules_of("monitoring", jobs=jobs) if rule["alert"] == "TargetsAbsent"
        ]
        assert absent == list(jobs)


def test_an_old_prometheus_gets_no_word_that_it_does_not_know() -> None:
    """keep_firing_for came with 2.42."""
    assert any("keep_firing_for" in text_of(topic) for topic in TOPICS)
    assert not any("keep_firing_for:" in text_of(topic, __prometheus_keep_firing_for=False) for topic in TOPICS)


def held(name: str) -> float:
    """Seconds for which an alert goes on when its expression is false."""
    rule = next(rule for _topic, rule in ALERTS if rule["alert"] == name)
    text = str(rule.get("keep_firing_for", "0s"))
    return float(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def test_a_cause_outlasts_what_follows_from_it() -> None:
    """Else people are told of a consequence when its cause is over; and what is held itself needs a cause that is held longer."""
    names = sorted({rule["alert"] for _topic, rule in ALERTS})
    seen = set()
    for source, target, _equal in INHIBITIONS:
        for cause in (name for name in names if re.fullmatch(source["alertname"], name)):
            for consequence in (name for name in names if re.fullmatch(target["alertname"], name)):
                if held(consequence):
                    # A gateway whose probe fails and whose nginx runs: who asks and who is asked for metrics is the same.
                    assert held(cause) > held(consequence) or (cause, consequence) == ("ProbeFails", "TargetDown")
                    seen.add(cause)
    assert seen == {"AlertmanagerDown", "EnginesAllDown", "HostUnreachable", "NginxDown", "ProbeFails"}
    assert held("TargetDown") == held("EngineStuck") == 60
    assert all(held(cause) for cause in ("GatewayEnginesAllOut", "TargetDown", "EngineStuck"))


def test_a_host_that_is_gone_is_known_before_its_targets_are() -> None:
    """Each target is seen down by its own scrape: the host's alert needs the last of them, and must come before that of the first."""
    waits = {
        rule["alert"]: rule["for"] for _topic, rule in ALERTS if rule["alert"] in ("HostUnreachable", "TargetDown")
    }
    assert waits == {"HostUnreachable": "90s", "TargetDown": "2m"}
    # Prometheus' own defaults and the role's: a scrape and an evaluation.
    intervals = [DEFAULTS[f"prometheus_{name}_interval"] for name in ("scrape", "evaluation")]
    assert sum(int(one.removesuffix("s")) for one in intervals) <= 120 - 90


def test_every_xid_has_one_action() -> None:
    """No XID is in two alerts, and the one for unknown ones leaves out all the others."""
    codes: list[str] = []
    known: list[str] = []
    for rule in rules_of("gpu"):
        found = re.search(r'gpu:xid:recent\{xid(=~|!~)"([0-9|]+)"\}', rule["expr"])
        if found and "alert" in rule:
            (codes if found.group(1) == "=~" else known).extend(found.group(2).split("|"))
    assert sorted(codes) == sorted(set(codes))
    assert set(known) == {*codes, "45", "121", "154"}
    table = (ROOT / "docs/runbooks/gpu.md").read_text("utf-8")
    rows = [line.split("|") for line in table.splitlines() if re.match(r"\| [0-9]", line)]
    assert sorted(code for row in rows for code in row[1].replace(" ", "").split(",")) == sorted(known)
