# SPDX-License-Identifier: Apache-2.0
"""The checker of inventories: every kind of bad variable gets one sentence with host, variable, expected and found."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._fleet_inventory import (
    RoleSpecs,
    check_addresses,
    check_host,
    check_topology,
    validator_spec,
)

SPECS = RoleSpecs(
    {
        "fleet": {
            "fleet_api_key": {"type": "str", "required": True, "description": "x"},
            "fleet_weight": {"type": "int", "default": 1},
            "fleet_state": {"type": "str", "choices": ["up", "down"]},
            "fleet_networks": {"type": "list", "elements": "str"},
        },
        "gateway": {
            "gateway_port": {"type": "int", "default": 443},
            "gateway_peers": {
                "type": "list",
                "elements": "dict",
                "options": {"name": {"type": "str", "required": True, "description": "n"}, "weight": {"type": "int"}},
            },
        },
        "gateway_extra": {"gateway_extra_mode": {"type": "str"}},
    }
)
GOOD = {"fleet_api_key": "0123456789abcdef", "fleet_weight": "3", "ansible_host": "192.0.2.1", "other": object()}


def problems(roles: list[str], unknown: str = "fail", **variables: t.Any) -> list[str]:
    return check_host("gpu1", roles, {**GOOD, **variables}, SPECS, unknown).problems


def test_good_variables_pass_and_numbers_may_come_as_text() -> None:
    assert problems(["fleet", "gateway"], gateway_port="8443", gateway_peers=[{"name": "a", "weight": "2"}]) == []


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"fleet_weight": "heavy"}, "gpu1: role fleet: variable fleet_weight: expected int, found str 'heavy'"),
        ({"fleet_weight": [1]}, "gpu1: role fleet: variable fleet_weight: expected int, found list '[1]'"),
        ({"fleet_state": "maybe"}, "gpu1: role fleet: value of fleet_state must be one of: up, down, got: maybe"),
        (
            {"fleet_networks": {"a": 1}},
            "gpu1: role fleet: variable fleet_networks: expected list, found dict \"{'a': 1}\"",
        ),
        ({"fleet_wieght": 2}, "gpu1: variable fleet_wieght is not known to role fleet; did you mean fleet_weight?"),
        ({"gateway_zzz": 2}, "gpu1: variable gateway_zzz is not known to role gateway"),
    ],
)
def test_each_bad_variable_gets_one_sentence(variables: dict[str, t.Any], sentence: str) -> None:
    assert problems(["fleet"], **variables) == [sentence]


def test_a_missing_required_variable_is_named() -> None:
    report = check_host("gpu1", ["fleet"], {"fleet_weight": 1}, SPECS)
    assert report.problems == ["gpu1: role fleet: missing required variable fleet_api_key"]


def test_a_secret_of_the_wrong_type_is_not_shown() -> None:
    specs = RoleSpecs({"fleet": {"fleet_api_key": {"type": "dict", "required": True}}})
    report = check_host("gpu1", ["fleet"], {"fleet_api_key": "hunter2hunter2"}, specs)
    assert len(report.problems) == 1
    assert "fleet_api_key: expected dict" in report.problems[0]
    assert "hunter2" not in report.problems[0]


def test_a_template_that_cannot_be_resolved_is_reported_once() -> None:
    assert problems(["fleet"], fleet_weight=ValueError("'nope' is undefined")) == [
        "gpu1: variable fleet_weight cannot be resolved: 'nope' is undefined"
    ]


def test_suboptions_are_checked() -> None:
    found = problems(["gateway"], gateway_peers=[{"weight": 1}])
    assert len(found) == 1
    assert "gpu1: role gateway: missing required variable name" in found[0]


def test_a_role_is_checked_only_where_it_runs_but_names_everywhere() -> None:
    assert problems([], gateway_port="x") == []
    assert len(problems([], gateway_prot=1)) == 1


@pytest.mark.parametrize(("unknown", "fails", "warns"), [("fail", 1, 0), ("warn", 0, 1), ("ignore", 0, 0)])
def test_unknown_variables_can_be_let_through(unknown: str, fails: int, warns: int) -> None:
    report = check_host("gpu1", ["fleet"], {**GOOD, "gateway_prot": 1}, SPECS, unknown)
    assert (len(report.problems), len(report.warnings)) == (fails, warns)


def test_the_longest_prefix_owns_a_variable() -> None:
    assert SPECS.owner("gateway_extra_mode") == "gateway_extra"
    assert SPECS.owner("gateway_port") == "gateway"
    assert SPECS.owner("gatewayport") is None


def test_documentation_and_defaults_leave_the_spec() -> None:
    assert validator_spec(SPECS.options["gateway"])["gateway_peers"]["options"]["name"] == {
        "type": "str",
        "required": True,
    }
    assert validator_spec(SPECS.options["gateway"])["gateway_port"] == {"type": "int"}


def test_empty_groups_and_shared_addresses() -> None:
    assert check_topology({"gpu_hosts": ["a"], "gateways": []}, ["gpu_hosts", "gateways"]) == [
        "group gateways has no hosts in this inventory; expected at least one"
    ]
    assert check_addresses({"a": "192.0.2.1", "b": "192.0.2.1", "c": "192.0.2.2"}) == [
        "hosts a, b have the same fleet_address 192.0.2.1; expected one address per host"
    ]
