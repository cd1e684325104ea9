# SPDX-License-Identifier: Apache-2.0
"""Comparing hosts."""

from __future__ import annotations

import copy
import json
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity import (
    Comparison,
    Golden,
    Unusable,
    compare,
    golden_data,
    golden_notes,
    load_golden,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_derived import DERIVED
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_rules import RuleError, load_standard
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_text import (
    document,
    host_results,
    message,
    table,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_values import contrast, key_of, shown
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.homogeneity_fleet import (
    Facts,
    facts,
    fleet,
    gpu,
)

STANDARD = load_standard(
    yaml.safe_load((Path(__file__).parents[4] / "roles/fleet/files/standards/a100_80gb_8.yml").read_text("utf-8")),
    "a100",
)


def one_rule(
    hosts: t.Mapping[str, t.Any], rule: dict[str, t.Any], group: t.Mapping[str, str] | None = None, **options: t.Any
) -> Comparison:
    """Compare by one rule; hosts map to their structures, or to the value of x."""
    structures = {
        name: value if isinstance(value, Unusable) or value is None else {"schema": 1, "x": value}
        for name, value in hosts.items()
    }
    whole = {"path": "x", "severity": "block", "compare": "majority", "title": "X", **rule}
    standard = load_standard({"name": "test", "rules": [whole]}, "test")
    names = list(hosts)
    return compare(names, structures, group or dict.fromkeys(names, "eu"), standard, **options)


def bad(result: Comparison) -> dict[str, list[str]]:
    """Hosts that stand out, by the kind of finding."""
    found: dict[str, list[str]] = {}
    for one in result.differences:
        found.setdefault(one.kind, []).extend(one.hosts)
    return found


def a100(hosts: t.Mapping[str, Facts | Unusable | None], **options: t.Any) -> Comparison:
    return compare(list(hosts), hosts, dict.fromkeys(hosts, "eu"), STANDARD, **options)


def test_equal_hosts_pass_every_rule_of_the_standard() -> None:
    result = a100(fleet(5))
    assert [one.sentence() for one in result.differences] == []
    assert result.verdict == "pass"
    assert result.notes == []
    assert table(result) == ["  nothing differs"]


def test_a_wrong_vbios_names_host_gpu_value_majority_and_remedy() -> None:
    hosts = fleet(4)
    hosts["gpu2"]["gpus"][4]["vbios"] = "92.00.36.00.02"
    result = a100(hosts)
    assert result.verdicts == {"gpu1": "pass", "gpu2": "block", "gpu3": "pass", "gpu4": "pass"}
    assert message(result).splitlines() == [
        "4 hosts compared by standard a100_80gb_8: 1 blocked, 0 with warnings, 3 without:",
        "  - block: gpu2: VBIOS (gpus[].vbios) is 92.00.36.00.02 on 0000:47:00.0; 3 of 4 hosts have 92.00.45.00.05. "
        "Flash the VBIOS that the other hosts have, with the server vendor's tool.",
    ]
    finding = host_results(result)["gpu2"]["findings"][0]
    assert finding["value"] == ["92.00.36.00.02", "92.00.45.00.05"]
    assert (finding["hosts_with_value"], finding["hosts_compared"]) == (1, 4)


def test_a_lost_gpu_is_said_once_and_not_by_every_rule() -> None:
    hosts = fleet(4)
    lost = dict.fromkeys(gpu(1))
    hosts["gpu2"]["gpus"][1] = {**lost, "pci_address": "0000:17:00.0", "state": "lost"}
    hosts["gpu2"]["gpu"].update(lost=["0000:17:00.0"], driver_count=7)
    result = a100(hosts)
    assert [one.rule.path for one in result.differences] == ["gpu.lost", "derived.gpus_missing"]


def test_a_broken_driver_is_one_finding_and_says_what_the_tool_said() -> None:
    hosts = fleet(4)
    driver = hosts["gpu3"]["gpu_driver"]
    driver.update(answers=False, error="Failed to initialize NVML", version=None, cuda_version=None)
    for one in hosts["gpu3"]["gpus"]:
        one.update(
            dict.fromkeys(("vbios", "inforom", "ecc", "row_remap", "retired_pages", "nvlink", "persistence"), None),
            state="no_driver",
        )
    result = a100(hosts)
    assert [(one.rule.path, one.kind) for one in result.differences] == [
        ("gpus[].ecc.enabled", "unreadable"),
        ("derived.driver_answers", "golden"),
    ]
    assert all("Failed to initialize NVML" in one.sentence() for one in result.differences)


def test_a_host_without_a_driver_is_a_warning_and_its_ecc_unknown() -> None:
    hosts = fleet(3)
    hosts["gpu1"]["gpu_driver"] = None
    hosts["gpu1"]["gpu"]["driver_count"] = None
    result = a100(hosts)
    assert [(one.rule.path, one.severity) for one in result.differences] == [("derived.driver_installed", "warn")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "no facts"),
        (Unusable("no facts: the host was not reached"), "no facts: the host was not reached"),
        ("text", "facts are text, not the structure that hardware_info returns"),
        ([], "facts are a list, not"),
        ({}, "facts have schema nothing; this version compares schema 1"),
        ({"schema": 2}, "facts have schema 2; this version compares schema 1"),
        ({"schema": True}, "facts have schema true"),
        ({"schema": "1"}, "facts have schema 1"),
    ],
)
def test_a_host_that_cannot_be_compared_is_blocked_and_not_skipped(value: t.Any, text: str) -> None:
    result = a100({**fleet(2), "gpu9": value})
    assert result.verdicts["gpu9"] == "block"
    assert [one.hosts for one in result.differences] == [["gpu9"]]
    assert text in result.differences[0].sentence()
    assert result.differences[0].rule.remedy in message(result)


def test_a_host_that_is_not_among_the_facts_is_blocked() -> None:
    assert compare(["a"], {}, {"a": "eu"}, STANDARD).verdicts == {"a": "block"}


def test_simulated_hosts_are_blocked_or_noted() -> None:
    hosts = {"gpu1": facts(1, simulated=True), "gpu2": facts(2)}
    refused = a100(hosts)
    assert refused.verdicts == {"gpu1": "block", "gpu2": "pass"}
    assert refused.simulated
    allowed = a100(hosts, allow_simulated=True)
    assert allowed.verdict == "pass"
    assert allowed.simulated
    assert "simulated GPUs on gpu1" in allowed.notes[0]


def test_declared_hosts_are_not_blamed_for_what_nobody_measured() -> None:
    hosts = {
        "gpu1": facts(
            1, source="declared", board=None, clock=None, gpu_driver=None, cpu__model=None, iommu=None, xids=None
        )
    }
    for one in hosts["gpu1"]["gpus"]:
        one["ecc"] = None
    result = a100(hosts)
    assert result.verdict == "pass"
    assert "1 hosts are declared in the inventory, not measured" in result.notes[0]


def test_the_majority_wins() -> None:
    result = one_rule({"a": 1, "b": 1, "c": 2}, {})
    assert bad(result) == {"differs": ["c"]}
    assert result.differences[0].sentence() == "X (x) is 2; 2 of 3 hosts have 1"


def test_a_tie_is_named_as_a_tie_and_blames_every_side() -> None:
    result = one_rule({"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}, {})
    assert bad(result) == {"tie": ["a", "b", "c", "d", "e"]}
    assert {one.severity for one in result.differences} == {"block"}
    assert result.differences[0].sentence() == "X (x) is 1; no majority: 2 hosts have 1, 2 hosts have 2"


def test_all_hosts_different() -> None:
    result = one_rule({name: name for name in "abcd"}, {})
    assert bad(result) == {"tie": list("abcd")}
    assert "no majority: 4 hosts have 4 different values" in result.differences[0].sentence()
    assert golden_data(result, [])["groups"] == {}


def test_hundreds_of_different_values_do_not_become_as_many_findings() -> None:
    result = one_rule({f"h{number:04}": number for number in range(1000)}, {})
    assert len(result.differences) == 201
    assert result.counts()["findings_block"] == 1000
    assert result.differences[-1].sentence().startswith("X (x) is one of 800 more different values")


def test_one_host_is_compared_with_nothing_and_that_is_said() -> None:
    result = a100(fleet(1))
    assert result.verdict == "pass"
    assert result.notes == [
        "gpu1 is the only host of group eu: nothing to compare it with, only fixed limits were checked"
    ]


def test_no_hosts() -> None:
    result = compare([], {}, {}, STANDARD)
    assert result.verdict == "pass"
    assert document(result)["counts"]["hosts"] == 0


def test_hosts_are_compared_within_their_group() -> None:
    groups = {"a": "eu", "b": "eu", "c": "us", "d": "us", "e": "us"}
    result = one_rule({"a": 1, "b": 1, "c": 2, "d": 2, "e": 3}, {}, groups)
    assert bad(result) == {"differs": ["e"]}
    assert list(result.groups) == ["eu", "us"]
    assert "e [us]: X (x) is 3; 2 of 3 hosts have 2" in message(result)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (1, "1", False),
        (True, "true", False),
        (float("nan"), float("nan"), True),
        (float("nan"), None, False),
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({}, [], False),
        ([], None, False),
        ([True], [1], False),
        ("", None, False),
    ],
)
def test_values_of_other_types_are_other_values(left: t.Any, right: t.Any, equal: bool) -> None:
    assert (key_of(left) == key_of(right)) is equal
    hosts = {"a": left, "b": left, "c": right}
    if left is not None and right is not None:
        assert (bad(one_rule(hosts, {})) == {}) is equal
    assert (bad(one_rule(hosts, {"compare": "golden", "value": left})) == {}) is equal


def test_not_a_number_is_no_number() -> None:
    result = one_rule({"a": float("nan"), "b": 5, "c": "7"}, {"compare": "minimum", "value": 1})
    assert bad(result) == {"minimum": ["a", "c"]}
    assert {one.expectation for one in result.differences} == {"expected a number"}


@pytest.mark.parametrize(
    ("value", "fits"),
    [(103.0, True), (97.0, True), (103.01, False), (96.99, False), (100, True), (float("inf"), False)],
)
def test_the_edge_of_a_tolerance(value: float, fits: bool) -> None:
    result = one_rule({"a": 100, "b": 100, "c": 100, "d": value}, {"compare": "tolerance", "tolerance": 3})
    assert bad(result) == ({} if fits else {"tolerance": ["d"]})


def test_the_centre_is_the_majority_or_the_median() -> None:
    hosts = {"a": 100, "b": 101, "c": 102, "d": 110}
    assert bad(one_rule(hosts, {"compare": "tolerance", "tolerance": 3})) == {"tolerance": ["d"]}
    skewed = {"a": 100, "b": 100, "c": 100, "d": 104, "e": 104}
    assert bad(one_rule(skewed, {"compare": "tolerance", "tolerance": 3})) == {"tolerance": ["d", "e"]}
    assert bad(one_rule({"a": 0, "b": 0, "c": 1}, {"compare": "tolerance", "tolerance": 3})) == {"tolerance": ["c"]}
    assert bad(one_rule({"a": "x", "b": "y"}, {"compare": "tolerance", "tolerance": 3})) == {"tolerance": ["a", "b"]}
    assert (
        "± 3 %, the median"
        in one_rule(hosts, {"compare": "tolerance", "tolerance": 3, "center": "median"}).differences[0].expectation
    )


def test_elements_are_judged_one_by_one_and_named() -> None:
    hosts: dict[str, t.Any] = {
        "a": [{"name": "n0", "mac": "", "mtu": 9000}, {"name": "n1", "mac": "", "mtu": 1500}],
        "b": [{"mtu": 9000}],
    }
    result = one_rule(hosts, {"path": "x[].mtu", "compare": "minimum", "value": 9000})
    assert bad(result) == {"minimum": ["a"]}
    assert result.where(result.differences[0], "a") == "n1"
    every = one_rule({"a": [{"mtu": 1}, {"mtu": 2}]}, {"path": "x[].mtu", "compare": "maximum", "value": 0})
    assert every.where(every.differences[0], "a") == "all 2"


def test_booleans_in_lists_are_found_by_their_element() -> None:
    hosts = {"a": [{"on": True}, {"on": False}], "b": [{"on": True}, {"on": True}]}
    result = one_rule(hosts, {"path": "x[].on", "compare": "golden", "value": True})
    assert bad(result) == {"golden": ["a"]}
    assert result.where(result.differences[0], "a") == "1"


def test_a_uniform_rule_lets_the_host_that_is_mixed_stand_out() -> None:
    mixed = [{"v": "A"}, {"v": "A"}, {"v": "B"}]
    pair = one_rule({"a": [{"v": "A"}], "b": mixed}, {"path": "x[].v", "uniform": True})
    assert bad(pair) == {"differs": ["b"]}
    alone = one_rule({"b": mixed}, {"path": "x[].v", "uniform": True})
    assert bad(alone) == {"mixed": ["b"]}
    assert alone.where(alone.differences[0], "b") == "2"
    assert bad(one_rule({"b": mixed}, {"path": "x[].v"})) == {}


def test_nothing_is_no_value_and_no_vote() -> None:
    hosts = {"a": None, "b": 1, "c": {"y": None}, "d": {"y": 5}}
    standard = {"path": "x.y", "compare": "majority"}
    result = one_rule({name: value for name, value in hosts.items() if name in "cd"}, standard)
    assert bad(result) == {"unreadable": ["c"]}
    assert bad(one_rule({"c": {"y": None}, "d": {"y": 5}}, {**standard, "optional": True})) == {}


def test_elements_without_a_value() -> None:
    hosts = {"a": [{"v": 1}, {"v": None}], "b": [{"v": 1}, {"v": 1}], "c": [{"v": None}], "d": []}
    strict = one_rule(hosts, {"path": "x[].v", "compare": "golden", "value": 1})
    assert bad(strict) == {"golden": ["a"], "unreadable": ["c"]}
    assert bad(one_rule(hosts, {"path": "x[].v", "compare": "golden", "value": 1, "optional": True})) == {}


def test_a_path_that_no_host_has_is_noted() -> None:
    result = one_rule({"a": {"count": 1}, "b": {"count": 1}}, {"path": "x.cuont"})
    assert result.notes == ["no host's facts have x.cuont: is the path of this rule misspelt?"]
    assert bad(result) == {"unreadable": ["a", "b"]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"unavailable": {"memory": "dmidecode needs root"}}, "cannot be read: dmidecode needs root"),
        ({"subsets": ["gpu"]}, "cannot be read: subset memory was not gathered"),
        ({}, "cannot be read: the facts have no value there"),
    ],
)
def test_why_a_value_cannot_be_read(change: dict[str, t.Any], text: str) -> None:
    hosts = {**fleet(2), "gpu3": facts(3, memory=None, **change)}
    found = [one.sentence() for one in a100(hosts).differences]
    assert any(sentence == f"Memory (memory.total_mib) {text}" for sentence in found)
    # Three facts, one line.
    assert len([line for line in message(a100(hosts)).splitlines() if text in line]) == 1


def test_facts_of_another_shape_do_not_break_the_comparison() -> None:
    hosts: dict[str, t.Any] = fleet(4)
    hosts["gpu2"].update(
        gpus="eight", gpu=[], nics={"a": 1}, memory=7, xids=[5], nvme=[None, "x"], os=None, rdma=[{"ports": 4}]
    )
    result = a100(hosts)
    assert result.verdicts["gpu2"] == "block"
    assert result.verdicts["gpu1"] == "pass"


def test_forbidden_says_why() -> None:
    hosts = fleet(3)
    hosts["gpu2"]["nvme"][1]["model"] = "CT2000P3PSSD8"
    found = [one for one in a100(hosts).differences if one.kind == "forbidden"]
    assert [one.hosts for one in found] == [["gpu2"]]
    assert "consumer drive with QLC flash" in found[0].sentence()
    assert a100(hosts).where(found[0], "gpu2") == "nvme1n1"


@pytest.mark.parametrize(
    ("change", "path", "severity"),
    [
        ({"gpu__count": 7}, "gpu.count", "block"),
        ({"gpu__catalogue": "mixed"}, "gpu.catalogue", "block"),
        ({"gpu__catalogue": "a100-sxm4-40gb"}, "gpu.catalogue", "block"),
        ({"gpu__mig_enabled": 2}, "gpu.mig_enabled", "block"),
        ({"gpu__nvswitch_count": 5}, "gpu.nvswitch_count", "block"),
        ({"gpu_driver__version": "535.1"}, "gpu_driver.version", "block"),
        ({"gpu_driver__mismatch": True}, "gpu_driver.mismatch", "block"),
        ({"fabric_manager__active": False}, "derived.fabric_manager", "block"),
        ({"fabric_manager__version_matches_driver": False}, "derived.fabric_manager_matches", "block"),
        ({"dcgm__installed_version": None}, "derived.dcgm", "warn"),
        ({"cpu__model": "AMD EPYC 7742 64-Core Processor"}, "derived.cpu_class", "block"),
        ({"cpu__sockets": 1}, "cpu.sockets", "block"),
        ({"memory__total_mib": 1990000}, "memory.total_mib", "warn"),
        ({"board__bios_version": "2.6"}, "board.bios_version", "block"),
        ({"network__fastest_gbps": 10.0}, "network.fastest_gbps", "block"),
        ({"network__rdma_ports_active": 0}, "network.rdma_ports_active", "block"),
        ({"storage__raid0": []}, "derived.raid0_count", "warn"),
        ({"os__kernel": "6.1.0-27-amd64"}, "os.kernel", "block"),
        ({"pci__acs_enabled_bridges": ["0000:00:01.0"]}, "pci.acs_enabled_bridges", "warn"),
        ({"pci__max_payload_mismatch": ["0000:00:01.0"]}, "pci.max_payload_mismatch", "block"),
        ({"clock__synchronized": False}, "clock.synchronized", "warn"),
        ({"clock__source": "ntpd"}, "clock.source", "info"),
        ({"iommu__mode": "translated"}, "iommu.mode", "warn"),
        ({"sysctl": {"vm.swappiness": "60"}}, "sysctl", "warn"),
        (
            {"xids": [{"xid": 79, "count": 1, "pci_address": "0000:07:00.0", "message": ""}]},
            "derived.xid_block",
            "block",
        ),
        ({"xids": [{"xid": 48, "count": 1, "pci_address": None, "message": ""}]}, "derived.xid_check", "warn"),
        ({"xids": [{"xid": 999, "count": 1, "pci_address": None, "message": ""}]}, "derived.xid_check", "warn"),
        ({"xids": [{"xid": 31, "count": 1, "pci_address": None, "message": ""}]}, "derived.xid_application", "info"),
    ],
)
def test_the_standard_sees_it(change: dict[str, t.Any], path: str, severity: str) -> None:
    result = a100({**fleet(4), "gpu9": facts(9, **change)})
    found = {one.rule.path: one for one in result.differences if one.hosts == ["gpu9"]}
    assert path in found
    assert found[path].severity == severity
    assert {one.hosts[0] for one in result.differences} == {"gpu9"}
    assert result.verdicts["gpu9"] == (
        "pass" if severity == "info" else severity if len(found) == 1 else result.verdicts["gpu9"]
    )


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"pcie": {"width": 8, "width_max": 16, "gen": 4, "gen_max": 4}}, "gpus[].pcie.width"),
        ({"pcie": {"width": 16, "width_max": 16, "gen": 3, "gen_max": 3}}, "gpus[].pcie.gen_max"),
        ({"ecc": {**gpu(0)["ecc"], "enabled": False}}, "gpus[].ecc.enabled"),
        ({"ecc": {**gpu(0)["ecc"], "sram_uncorrected_volatile": 1}}, "gpus[].ecc.sram_uncorrected_volatile"),
        (
            {"row_remap": {"correctable": 0, "uncorrectable": 0, "pending": True, "failed": False}},
            "gpus[].row_remap.pending",
        ),
        (
            {"row_remap": {"correctable": 0, "uncorrectable": 0, "pending": False, "failed": True}},
            "gpus[].row_remap.failed",
        ),
        (
            {"row_remap": {"correctable": 0, "uncorrectable": 513, "pending": False, "failed": False}},
            "derived.remap_uncorrectable",
        ),
        ({"nvlink": {"active": 11, "inactive": 1, "speed_gbps": 200.0}}, "gpus[].nvlink.inactive"),
        ({"throttle_reasons": ["hw_slowdown"]}, "gpus[].throttle_reasons[]"),
        ({"state": "requires_reset"}, "gpus[].state"),
        ({"power_limit_w": 300.0}, "gpus[].power_limit_w"),
        ({"inforom": "G506.0200.00.04"}, "gpus[].inforom"),
    ],
)
def test_the_standard_sees_one_gpu(change: Facts, path: str) -> None:
    hosts = fleet(3)
    hosts["gpu2"]["gpus"][5] = gpu(5, **change)
    result = a100(hosts)
    found = {one.rule.path: one for one in result.differences}
    assert path in found
    if not path.startswith("derived."):
        assert result.where(found[path], "gpu2") == "0000:57:00.0"


def test_an_idle_gpu_may_lower_its_link_and_a_busy_one_may_not() -> None:
    low = {"width": 16, "width_max": 16, "gen": 1, "gen_max": 4}
    hosts = fleet(3)
    hosts["gpu1"]["gpus"][0] = gpu(0, pcie=low)
    assert a100(hosts).verdict == "pass"
    hosts["gpu1"]["gpus"][0] = gpu(
        0, pcie=low, clocks={"sm_mhz": 1410, "memory_mhz": 1593, "sm_max_mhz": 1410, "memory_max_mhz": 1593}
    )
    assert [one.rule.path for one in a100(hosts).differences] == ["derived.pcie_slow"]


def test_command_lines_differ_by_their_words_and_not_by_their_disks() -> None:
    hosts = fleet(3)
    assert a100(hosts).verdict == "pass"
    hosts["gpu2"]["os"]["kernel_cmdline"] += " mitigations=off"
    result = a100(hosts)
    assert [(one.rule.path, one.hosts) for one in result.differences] == [("derived.kernel_cmdline", ["gpu2"])]


@pytest.mark.parametrize("name", sorted(DERIVED))
def test_derived_facts_of_nothing_are_nothing(name: str) -> None:
    empty: Facts = {"schema": 1}
    assert DERIVED[name].compute(empty) is None
    assert DERIVED[name].compute(dict.fromkeys(facts())) is None
    assert DERIVED[name].description


def test_a_golden_file_finds_what_has_drifted() -> None:
    before = a100(fleet(4))
    data = yaml.safe_load(yaml.safe_dump(golden_data(before, ["fleet_region"])))
    golden = load_golden(data, "golden.yml", ["fleet_region"])
    same = a100(fleet(4), golden=golden)
    assert same.verdict == "pass"
    assert golden_notes(same, golden) == []
    # The whole fleet moved: the majority sees nothing, the golden file does.
    moved = {f"gpu{number}": facts(number, os__kernel="6.1.0-30-amd64") for number in range(1, 5)}
    assert a100(moved).verdict == "pass"
    drifted = a100(moved, golden=golden)
    assert [(one.rule.path, one.hosts, one.sentence()) for one in drifted.differences] == [
        (
            "os.kernel",
            ["gpu1", "gpu2", "gpu3", "gpu4"],
            "Kernel (os.kernel) is 6.1.0-30-amd64; the golden file has 6.1.0-26-amd64",
        )
    ]
    shrunk = {name: facts(int(name[3:]), memory__total_mib=1000000) for name in moved}
    assert [one.rule.path for one in a100(shrunk, golden=golden).differences] == ["memory.total_mib"]


def test_golden_files_of_equal_fleets_are_equal() -> None:
    hosts = fleet(6)
    texts = {yaml.safe_dump(golden_data(a100(dict(some)), [])) for some in (hosts.items(), reversed(hosts.items()))}
    assert len(texts) == 1


def test_what_a_golden_file_does_not_say() -> None:
    result = a100(fleet(2), golden=Golden({"us": {}}))
    assert "the golden file has no group eu" in golden_notes(result, Golden({"us": {}}))[0]
    some = Golden({"eu": {"os.kernel": "6.1.0-26-amd64", "no.such": 1}})
    notes = golden_notes(a100(fleet(2), golden=some), some)
    assert "has no value for" in notes[0]
    assert notes[1] == "the golden file has values that no rule reads: no.such"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected a golden file"),
        ({"schema": 2, "groups": {}}, "golden file of schema 2; this version reads schema 1: write it again"),
        ({"schema": 1}, "groups must map each group"),
        ({"schema": 1, "groups": {"eu": 5}}, "groups must map each group"),
        (
            {"schema": 1, "groups": {}, "group_by": ["rack"]},
            "was written with group_by rack, this comparison has fleet_region",
        ),
    ],
)
def test_a_wrong_golden_file(data: t.Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        load_golden(data, "golden.yml", ["fleet_region"])


def test_the_same_facts_make_the_same_document() -> None:
    hosts = fleet(5)
    hosts["gpu2"]["gpus"][4]["vbios"] = "92.00.36.00.02"
    hosts["gpu4"]["os"]["kernel"] = "other"
    first = json.dumps(document(a100(hosts)))
    assert json.dumps(document(a100(copy.deepcopy(hosts)))) == first
    assert json.loads(first)["verdict"] == "block"


def test_a_message_is_short_and_says_where_the_rest_is() -> None:
    hosts = {
        name: facts(1, gpu__count=4, cpu__sockets=1, os__kernel=name, board__bios_version=name)
        for name in map("h{:02}".format, range(30))
    }
    text = message(a100(hosts), "/tmp/report.html")
    assert len(text.splitlines()) == 22
    assert text.endswith("more, see /tmp/report.html")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "nothing"),
        (True, "", "true"),
        (200.0, "Gb/s", "200 Gb/s"),
        (3840755982336, "bytes", "3.84 TB"),
        ([], "", "none"),
        ("", "", "(empty)"),
        ("a\nb", "", "a b"),
        ({"b": 1, "a": [2]}, "", "a=2, b=1"),
    ],
)
def test_values_for_people(value: t.Any, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_of_long_values_only_what_differs_is_shown() -> None:
    assert contrast({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "d": 4}) == "b=2, c=3; no d"
    assert contrast(list("abcde"), list("abcdf")) == "with e and without f"
    assert contrast(list("abcde"), list("edcba")) == "in another order"


def test_a_host_without_gpus_needs_no_kernel_log() -> None:
    """A container may not read the kernel's log; without a GPU there are no XIDs in it."""
    assert DERIVED["xid_block"].compute({"gpu": {"count": 0}, "xids": None}) == []
    assert DERIVED["xid_block"].compute({"gpu": {"count": 8}, "xids": None}) is None
