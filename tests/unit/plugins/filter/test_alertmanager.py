# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Alertmanager's configuration from the settings of its role."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.alertmanager import (
    FilterModule,
    alertmanager_config,
    alertmanager_problems,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._alertmanager import (
    INHIBITIONS,
    Builder,
    inhibitions,
    matcher,
    problems,
    version_of,
)

ROOT = Path(__file__).parents[4]
PLAIN: dict[str, t.Any] = {
    "group_by": ["region", "alertname"],
    "group_wait": "30s",
    "group_interval": "5m",
    "repeat_interval": "4h",
    "watchdog_repeat_interval": "1m",
}
RECEIVERS: list[dict[str, t.Any]] = [
    {"name": "On call", "kind": "webhook", "url": "https://chat.example/hook-secret", "token": "t0ken"},
    {
        "name": "On call",
        "kind": "email",
        "to": "a@example.org",
        "from": "b@example.org",
        "smarthost": "mail.example.org:587",
        "username": "b",
        "password": "pass-word",
    },
    {"name": "desk", "kind": "slack", "url": "https://slack.example/s3cret", "channel": "#gpu", "send_resolved": False},
    {"name": "pager", "kind": "pagerduty", "routing_key": "r-key"},
]


def built(version: str = "0.28", **settings: t.Any) -> t.Any:
    """The configuration for some settings that are right."""
    assert problems({**PLAIN, **settings}) == []
    return Builder({**PLAIN, **settings}, version, "/etc/am").build()


def test_secrets_go_to_files() -> None:
    config = built(receivers=RECEIVERS)
    assert config.secrets == {
        "secrets/0_on_call_url": "https://chat.example/hook-secret",
        "secrets/0_on_call_token": "t0ken",
        "secrets/1_on_call_password": "pass-word",
        "secrets/2_desk_url": "https://slack.example/s3cret",
        "secrets/3_pager_routing_key": "r-key",
    }
    assert not config.inline
    text = json.dumps(config.content)
    assert not [secret for secret in config.secrets.values() if secret in text]
    nobody, call, desk, pager = config.content["receivers"]
    assert nobody == {"name": "nobody"}
    assert call["webhook_configs"] == [
        {
            "send_resolved": True,
            "url_file": "/etc/am/secrets/0_on_call_url",
            "http_config": {"authorization": {"type": "Bearer", "credentials_file": "/etc/am/secrets/0_on_call_token"}},
        }
    ]
    assert call["email_configs"][0]["auth_password_file"] == "/etc/am/secrets/1_on_call_password"
    assert desk["slack_configs"][0]["send_resolved"] is False
    assert pager["pagerduty_configs"][0]["routing_key_file"] == "/etc/am/secrets/3_pager_routing_key"


def test_an_old_alertmanager_has_some_of_them_in_its_configuration() -> None:
    """Debian 12 has 0.25, which reads no url_file; Ubuntu 22.04 has 0.23, which reads no password file of mail."""
    config = built("0.25.0", receivers=RECEIVERS)
    assert config.inline
    assert config.content["receivers"][1]["webhook_configs"][0]["url"] == "https://chat.example/hook-secret"
    assert "secrets/1_on_call_password" in config.secrets
    assert (
        built("0.23", receivers=RECEIVERS).content["receivers"][1]["email_configs"][0]["auth_password"] == "pass-word"
    )
    assert not built("0.25", receivers=RECEIVERS[1:]).inline


def test_who_hears_what() -> None:
    """Without more settings the first receiver hears pages and tickets, and the dead man's switch goes nowhere."""
    route = built(receivers=RECEIVERS).content["route"]
    assert (route["receiver"], route["group_by"]) == ("On call", ["region", "alertname"])
    assert [(one["receiver"], one.get("matchers")) for one in route["routes"]] == [
        ("nobody", ['alertname="Watchdog"']),
        ("On call", ['severity="page"']),
        ("nobody", ['severity="info"']),
    ]
    assert built().content["route"]["receiver"] == "nobody"


def test_routes_of_the_site_come_first_and_tickets_can_wait() -> None:
    intervals = [{"name": "night", "time_intervals": [{"times": [{"start_time": "20:00", "end_time": "24:00"}]}]}]
    own = {
        "receiver": "pager",
        "match": {"severity": "page", "region": ["eu-west", 'a"b\\']},
        "matchers": ['team!~"x|y"'],
        "mute": ["night"],
        "continue": True,
        "routes": [{"receiver": "desk", "match": {"team": "lab"}}],
    }
    settings: dict[str, t.Any] = {
        "receivers": RECEIVERS,
        "routes": [own],
        "ticket_receiver": "desk",
        "watchdog_receiver": "pager",
        "time_intervals": intervals,
        "ticket_mute": ["night"],
    }
    content = built(**settings).content
    watchdog, first, _page, _info, tickets = content["route"]["routes"]
    assert (watchdog["receiver"], watchdog["group_interval"], watchdog["repeat_interval"]) == ("pager", "1m", "1s")
    assert first == {
        "receiver": "pager",
        "matchers": ['severity="page"', 'region=~"eu\\\\-west|a\\"b\\\\\\\\"', 'team!~"x|y"'],
        "continue": True,
        "mute_time_intervals": ["night"],
        "routes": [{"receiver": "desk", "matchers": ['team="lab"']}],
    }
    assert tickets == {"receiver": "desk", "mute_time_intervals": ["night"]}
    assert content["time_intervals"] == intervals
    assert "mute_time_intervals" in built("0.23", **settings).content


def test_matchers_are_quoted() -> None:
    assert matcher("a", "x") == 'a="x"'
    assert matcher("a", ["x", "y.z"]) == 'a=~"x|y\\\\.z"'


def test_raw_receivers_are_taken_as_they_are() -> None:
    config = built(receivers=[{"name": "x", "kind": "raw", "config": {"sns_configs": [{"topic_arn": "a"}]}}])
    assert config.content["receivers"][1] == {"name": "x", "sns_configs": [{"topic_arn": "a"}]}
    assert config.inline, "nobody knows what is secret in it"


def test_inhibitions() -> None:
    own = [{"source": {"alertname": "A"}, "target": {"alertname": ["B", "C"]}, "equal": ["host"]}]
    rules = built(inhibitions=own).content["inhibit_rules"]
    assert rules[:-1] == inhibitions()
    assert rules[-1] == {
        "source_matchers": ['alertname="A"'],
        "target_matchers": ['alertname=~"B|C"'],
        "equal": ["host"],
    }
    assert "inhibit_rules" not in built(default_inhibitions=False).content


def test_inhibitions_name_alerts_that_exist() -> None:
    """A rule that is renamed must not leave its inhibition behind."""
    rules = ROOT / "roles/prometheus/templates/etc/prometheus/rules.d"
    alerts = {name for path in rules.iterdir() for name in re.findall(r"- alert: (\w+)", path.read_text("utf-8"))}
    for source, target, _equal in INHIBITIONS:
        for pattern in (*source["alertname"].split("|"), *target["alertname"].split("|")):
            assert any(re.fullmatch(pattern, name) for name in alerts), pattern


def test_no_alert_silences_itself_and_no_two_each_other() -> None:
    """A pair that silences each other would page nobody."""
    pairs = {
        (one, other)
        for source, target, _equal in INHIBITIONS
        for one in source["alertname"].split("|")
        for other in target["alertname"].split("|")
    }
    assert not [pair for pair in pairs if pair[0] == pair[1]]
    # TargetDown is about an engine on one side and about a gateway on the other.
    both = {pair for pair in pairs if pair[::-1] in pairs}
    assert both == {("TargetDown", "ProbeFails"), ("ProbeFails", "TargetDown")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"receivers": ["x"]}, "receivers[0]: expected a dictionary"),
        ({"receivers": [{"name": "a;b", "kind": "slack"}]}, "receivers[0].name: expected letters"),
        ({"receivers": [{"name": "nobody", "kind": "raw", "config": {}}]}, "expected another name than nobody"),
        ({"receivers": [{"name": "a", "kind": "pigeon"}]}, "receivers[0].kind: expected one of webhook, email"),
        ({"receivers": [{"name": "a", "kind": "webhook"}]}, "receivers[0].url: expected to be set"),
        ({"receivers": [{"name": "a", "kind": "webhook", "url": "x"}]}, "receivers[0].url: expected an address"),
        ({"receivers": [{**RECEIVERS[0], "chanel": 1}]}, "found chanel"),
        ({"receivers": [{**RECEIVERS[0], "password": "p"}]}, "expected username and password"),
        ({"receivers": [{"name": "a", "kind": "raw", "config": {"x": 1}}]}, "receivers[0].config: expected lists"),
        ({"page_receiver": "b"}, "alertmanager_page_receiver: expected one of nobody, found b"),
        ({"group_wait": "soon"}, "alertmanager_group_wait: expected a duration such as 30s, found soon"),
        ({"group_by": ["a-b"]}, "alertmanager_group_by: expected names of labels, found a-b"),
        ({"group_by": "a"}, "alertmanager_group_by: expected a list"),
        ({"ticket_mute": ["night"]}, "alertmanager_ticket_mute: expected names of alertmanager_time_intervals"),
        ({"time_intervals": [{"name": "x"}]}, "alertmanager_time_intervals[0]: expected name"),
        ({"routes": ["x"]}, "alertmanager_routes[0]: expected a dictionary"),
        ({"routes": [{"receiver": "b", "match": {"a": "b"}}]}, "routes[0].receiver: expected one of nobody, found b"),
        ({"routes": [{"receiver": "nobody"}]}, "expected match or matchers, found neither"),
        ({"routes": [{"match": {"a": 1}, "to": "x"}]}, "found to"),
        ({"routes": [{"match": {"a-": 1}}]}, "routes[0].match: expected names of labels, found a-"),
        ({"routes": [{"matchers": ["a=b"]}]}, "routes[0].matchers: expected texts such as"),
        ({"routes": [{"match": {"a": 1}, "group_by": 1}]}, "routes[0].group_by: expected a list"),
        ({"routes": [{"match": {"a": 1}, "group_wait": "x"}]}, "routes[0].group_wait: expected a duration"),
        ({"routes": [{"match": {"a": 1}, "mute": ["x"]}]}, "routes[0].mute: expected names"),
        ({"routes": [{"match": {"a": 1}, "routes": [{}]}]}, "routes[0].routes[0]: expected match"),
        ({"inhibitions": ["x"]}, "alertmanager_inhibitions[0]: expected a dictionary"),
        ({"inhibitions": [{"source": {"a": 1}}]}, "inhibitions[0].target: expected values by label"),
    ],
)
def test_problems(settings: dict[str, t.Any], words: str) -> None:
    found = alertmanager_problems({**PLAIN, **settings})
    assert any(words in one for one in found), found
    assert "hook-secret" not in " ".join(found)


def test_filters() -> None:
    assert FilterModule().filters() == {
        "alertmanager_config": alertmanager_config,
        "alertmanager_problems": alertmanager_problems,
    }
    assert version_of("v0.33.1") == (0, 33)
    made = alertmanager_config({**PLAIN, "receivers": RECEIVERS}, "0.28", "/etc/am/")
    assert made["receivers"] == {"page": "On call", "ticket": "On call", "info": "nobody", "watchdog": "nobody"}
    with pytest.raises(AnsibleFilterError, match="expected a version"):
        alertmanager_config(PLAIN, "new", "/etc/am")
    with pytest.raises(AnsibleFilterError, match="expected a dictionary"):
        alertmanager_problems([])
