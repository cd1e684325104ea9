# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Rules with more or less patience."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.rule_patience import FilterModule, rule_patience

TEXT = """groups:
  - name: a
    rules:
      - alert: One
        expr: x == 0
        for: 2m
        keep_firing_for: 1h30m
        annotations:
          summary: "wait for: 2m"
          description: for 2m
      - alert: Two
        for: 10s
"""
TEMPLATES = Path(__file__).parents[4] / "roles/prometheus/templates/etc/prometheus/rules.d"


def times(text: str) -> list[Any]:
    """Every time of the rules."""
    rules = yaml.safe_load(text)["groups"][0]["rules"]
    return [rule.get(key) for rule in rules for key in ("for", "keep_firing_for")]


def test_every_wait_is_multiplied_and_nothing_else() -> None:
    assert FilterModule().filters() == {"rule_patience": rule_patience}
    assert times(rule_patience(TEXT, 0.1)) == ["12s", "1h30m", "1s", None]
    assert times(rule_patience(TEXT, "3")) == ["360s", "1h30m", "30s", None]
    assert times(rule_patience(TEXT, 0.001)) == ["1s", "1h30m", "1s", None]
    assert rule_patience(TEXT, 1.0) == TEXT
    assert 'summary: "wait for: 2m"\n          description: for 2m' in rule_patience(TEXT, 5)


def test_the_rules_of_the_collection_write_their_waits_so() -> None:
    """A time in another form would be left as it is."""
    for path in TEMPLATES.iterdir():
        text = path.read_text("utf-8").replace("<< prometheus_alert_engine_stuck_minutes >>", "3")
        lines = [line.strip() for line in rule_patience(text, 0.001).splitlines()]
        waits = [line for line in lines if line.startswith("for: ")]
        assert set(waits) <= {f"for: {n}s" for n in range(1, 30)}, path.name


@pytest.mark.parametrize(("value", "factor"), [(TEXT, 0), (TEXT, -1), (TEXT, "much"), (TEXT, None), ([], 1)])
def test_wrong_input_is_named(value: Any, factor: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="rule_patience: expected"):
        rule_patience(value, factor)
