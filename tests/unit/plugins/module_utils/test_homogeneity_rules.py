# SPDX-License-Identifier: Apache-2.0
"""Standards, rules, paths."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_rules import (
    RuleError,
    extend_standard,
    load_standard,
    parse_path,
    path_text,
)

STANDARDS = Path(__file__).parents[4] / "roles" / "fleet" / "files" / "standards"
RULE: dict[str, t.Any] = {
    "path": "gpu.count",
    "severity": "block",
    "compare": "golden",
    "value": 8,
    "title": "GPUs",
    "remedy": "Look.",
}


def standard(*rules: t.Any) -> dict[str, t.Any]:
    return {"name": "test", "description": "", "source": "", "rules": list(rules)}


@pytest.mark.parametrize(
    ("text", "steps", "canonical"),
    [
        ("gpu.count", ("gpu", "count"), "gpu.count"),
        ("gpus[].vbios", ("gpus", None, "vbios"), "gpus[].vbios"),
        ("rdma[].ports[].rate_gbps", ("rdma", None, "ports", None, "rate_gbps"), "rdma[].ports[].rate_gbps"),
        ("gpus[].throttle_reasons[]", ("gpus", None, "throttle_reasons", None), "gpus[].throttle_reasons[]"),
        ('sysctl["vm.swappiness"]', ("sysctl", "vm.swappiness"), 'sysctl["vm.swappiness"]'),
        ("sysctl['vm.swappiness']", ("sysctl", "vm.swappiness"), 'sysctl["vm.swappiness"]'),
        ('os["kernel"]', ("os", "kernel"), "os.kernel"),
    ],
)
def test_paths(text: str, steps: tuple[str | None, ...], canonical: str) -> None:
    assert parse_path(text) == steps
    assert path_text(steps) == canonical


@pytest.mark.parametrize(
    ("text", "place"), [("gpu..count", 5), ("", 1), ("gpu.", 5), ("[].x", 1), ("gpus[0].x", 5), ("a b", 2), ('s["x', 2)]
)
def test_a_path_that_is_none_is_told_where(text: str, place: int) -> None:
    with pytest.raises(RuleError, match=f"from character {place} on"):
        parse_path(text)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({**RULE, "sevrity": "block"}, "rule gpu.count: unknown key 'sevrity'; did you mean severity?"),
        ({**RULE, "severity": "blok"}, "rule gpu.count: severity is 'blok'; expected one of block, warn, info"),
        ({**RULE, "compare": "equal"}, "rule gpu.count: compare is 'equal'; expected one of majority"),
        (
            {"path": "gpu.count", "severity": "block", "compare": "golden"},
            "rule gpu.count: compare golden needs a value",
        ),
        ({**RULE, "compare": "minimum", "value": "8"}, "value of compare minimum must be a number, found '8'"),
        ({**RULE, "compare": "maximum", "value": True}, "value of compare maximum must be a number, found True"),
        ({**RULE, "compare": "majority"}, "rule gpu.count: value has no meaning with compare majority"),
        (
            {"path": "x", "severity": "warn", "compare": "tolerance"},
            "rule x: compare tolerance needs tolerance, a percentage",
        ),
        ({"path": "x", "severity": "warn", "compare": "tolerance", "tolerance": 101}, "from 0 to 100, found 101"),
        (
            {"path": "x", "severity": "warn", "compare": "tolerance", "tolerance": 3, "center": "mean"},
            "expected majority or median",
        ),
        ({"path": "x", "severity": "warn", "compare": "forbidden"}, "rule x: compare forbidden needs patterns"),
        (
            {"path": "x", "severity": "warn", "compare": "forbidden", "patterns": ["("]},
            "rule x: pattern '(' is no regular expression",
        ),
        ({"path": "x", "severity": "warn", "compare": "forbidden", "patterns": [3]}, "found 3"),
        ({"path": "x", "severity": "warn"}, "rule x: compare is missing"),
        ({"path": "x", "compare": "majority"}, "rule x: severity is missing"),
        ({"severity": "warn"}, "rule 1: path is missing"),
        ("gpu.count", "rule 1: expected a mapping with path, found text"),
        ({**RULE, "path": "gpu..count"}, "rule 1: path 'gpu..count' cannot be read"),
        ({**RULE, "optional": "yes"}, "optional must be true or false, found 'yes'"),
        ({**RULE, "title": 5}, "title must be text, found a number"),
        ({"path": "gpu.x", "severity": "warn", "compare": "majority", "uniform": True}, "the path has no []"),
        ({"path": "derived.xyz", "severity": "warn", "compare": "majority"}, "rule derived.xyz: no such derived fact"),
    ],
)
def test_a_wrong_rule_is_one_sentence_that_names_it(rule: t.Any, message: str) -> None:
    with pytest.raises(RuleError, match=re.escape(message)) as caught:
        load_standard(standard(rule), "test.yml")
    assert str(caught.value).startswith("test.yml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected a mapping with name, description, source and rules, found nothing"),
        ([], "found a list"),
        ({"name": "x"}, "rules must be a list with at least one rule, found nothing"),
        ({"name": "x", "rules": []}, "at least one rule"),
        ({"rules": [RULE]}, "name is missing"),
        ({"name": "x", "rule": [RULE]}, "unknown key 'rule'; did you mean rules?"),
        ({"name": "x", "rules": [RULE, RULE]}, "rule gpu.count: there are two rules for this path"),
    ],
)
def test_a_wrong_standard(data: t.Any, message: str) -> None:
    with pytest.raises(RuleError, match=re.escape(message)):
        load_standard(data, "test.yml")


def test_a_rule_of_the_user_changes_what_it_names_and_keeps_the_rest() -> None:
    rule = extend_standard(standard(RULE), [{"path": "gpu.count", "value": 4}], "test.yml").rules[0]
    assert (rule.value, rule.severity, rule.title, rule.remedy) == (4, "block", "GPUs", "Look.")
    other = extend_standard(standard(RULE), [{"path": "gpu.count", "compare": "majority"}], "test.yml").rules[0]
    assert (other.compare, other.value, other.title) == ("majority", None, "GPUs")


@pytest.mark.parametrize("off", ["off", False])
def test_severity_off_takes_a_rule_away(off: t.Any) -> None:
    more = {"path": "os.kernel", "severity": "warn", "compare": "majority"}
    found = extend_standard(standard(RULE, more), [{"path": "gpu.count", "severity": off}], "test.yml")
    assert [rule.path for rule in found.rules] == ["os.kernel"]
    with pytest.raises(
        RuleError, match=r"rules: rule gpu\.cuont: severity off takes a rule away.*did you mean gpu\.count"
    ):
        extend_standard(standard(RULE, more), [{"path": "gpu.cuont", "severity": off}], "test.yml")


def test_patterns_are_added_or_replaced() -> None:
    rule = {"path": "nvme[].model", "severity": "block", "compare": "forbidden", "patterns": ["A"]}
    added = extend_standard(
        standard(rule), [{"path": "nvme[].model", "extra_patterns": [{"pattern": "B", "why": "slow"}]}], "t"
    ).rules[0]
    assert [(one.regex.pattern, one.why) for one in added.patterns] == [("A", ""), ("B", "slow")]
    replaced = extend_standard(standard(rule), [{"path": "nvme[].model", "patterns": ["C"]}], "t").rules[0]
    assert [one.regex.pattern for one in replaced.patterns] == ["C"]


@pytest.mark.parametrize("path", sorted(STANDARDS.glob("*.yml")), ids=lambda path: path.stem)
def test_shipped_standards_say_what_and_why(path: Path) -> None:
    found = load_standard(yaml.safe_load(path.read_text("utf-8")), path.name)
    assert found.name == path.stem
    assert found.description
    assert found.source
    for rule in found.rules:
        assert rule.title != rule.path, rule.path
        assert rule.remedy, rule.path
        assert all(pattern.why for pattern in rule.patterns), rule.path


QLC = (
    ("INTEL SSDPEKNW010T8", True),
    ("INTEL SSDPEKNU512GZ", True),
    ("SOLIDIGM SSDPFKNU010TZ", True),
    ("CT2000P3PSSD8", True),
    ("CT1000P2SSD8", True),
    ("CT1000P310SSD8", True),
    ("KINGSTON SNV2S1000G", True),
    ("KINGSTON SNVS2000G", True),
    ("WD Green SN350 1TB", True),
    ("Sabrent Rocket Q4", True),
    ("Corsair MP400", True),
    ("Force MP600 CORE", True),
    ("Seagate BarraCuda Q5 ZP1000CV30001", True),
    ("Micron_2400_MTFDKBA1T0QFM", True),
    # Drives that look alike and are none: TLC of consumers, data-centre drives, data-centre QLC.
    ("CT1000P5SSD8", False),
    ("CT1000P5PSSD8", False),
    ("CT1000T500SSD8", False),
    ("KINGSTON SKC3000S1024G", False),
    ("Sabrent Rocket 4.0 1TB", False),
    ("Force MP600", False),
    ("SAMSUNG MZWLJ3T8HBLS-00007", False),
    ("INTEL SSDPF2KX038T9", False),
    ("SOLIDIGM SBFPF2BV307T", False),
    ("Micron_7450_MTFDKCC3T8TFR", False),
    ("WD Black SN850X", False),
    ("Dell Ent NVMe CM6 RI 3.84TB", False),
)


@pytest.mark.parametrize(("model", "refused"), QLC)
def test_consumer_qlc_drives_are_known_by_their_model(model: str, refused: bool) -> None:
    data = yaml.safe_load((STANDARDS / "a100_80gb_8.yml").read_text("utf-8"))
    rule = next(rule for rule in load_standard(data, "a100").rules if rule.path == "nvme[].model")
    assert any(pattern.regex.search(model) for pattern in rule.patterns) is refused
