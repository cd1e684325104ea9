# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What each host of a fleet opens, and to whom."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.fleet_openings import FilterModule, fleet_openings

GROUPS: dict[str, list[str]] = {
    "gpu_hosts": ["gpu1", "gpu2"],
    "gateways": ["gw1"],
    "monitors": ["mon1"],
    "stores": ["store1"],
}
HOSTVARS: dict[str, dict[str, t.Any]] = {
    "gpu1": {"ansible_host": "192.0.2.21", "fleet_address": "10.0.0.21", "deepseek_service_port": 8001},
    "gpu2": {"ansible_host": "192.0.2.22"},
    "gw1": {"ansible_host": "192.0.2.10", "gateway_port": "8443"},
    "mon1": {"ansible_host": "192.0.2.30", "fleet_operator_networks": ["127.0.0.0/8", "198.51.100.0/24", "::1/128"]},
    "store1": {"ansible_host": "192.0.2.40"},
}
NODE = {"ports": [9100], "proto": "tcp", "from": ["192.0.2.30"], "comment": "node exporter"}


def test_by_groups() -> None:
    assert FilterModule().filters() == {"fleet_openings": fleet_openings}
    assert fleet_openings("gpu1", GROUPS, HOSTVARS) == [
        {"ports": [8001], "proto": "tcp", "from": ["192.0.2.10", "192.0.2.30"], "comment": "engine"},
        NODE,
    ]
    assert fleet_openings("gw1", GROUPS, HOSTVARS) == [
        NODE,
        {"ports": [8443], "proto": "tcp", "comment": "gateway"},
        {"ports": [9113], "proto": "tcp", "from": ["192.0.2.30"], "comment": "nginx exporter"},
    ]
    assert fleet_openings("mon1", GROUPS, HOSTVARS) == [
        {"ports": [9090], "proto": "tcp", "from": ["198.51.100.0/24"], "comment": "Prometheus"},
    ]
    assert fleet_openings("store1", GROUPS, HOSTVARS) == [NODE]


def test_a_gateway_with_limits_shows_them_to_monitors_and_operators() -> None:
    own = {**HOSTVARS["gw1"], "gateway_balancer": "lua", "fleet_operator_networks": ["127.0.0.0/8", "198.51.100.0/24"]}
    assert fleet_openings("gw1", GROUPS, {**HOSTVARS, "gw1": own})[-1] == {
        "ports": [9145],
        "proto": "tcp",
        "from": ["192.0.2.30", "198.51.100.0/24"],
        "comment": "metrics and status of the gateway",
    }


def test_nobody_to_let_in_is_no_rule() -> None:
    """A rule without addresses would be one for everybody."""
    assert fleet_openings("gpu1", {"gpu_hosts": ["gpu1"]}, HOSTVARS) == []
    assert fleet_openings("mon1", {"monitors": ["mon1"]}, {"mon1": {}}) == []


def test_one_host_for_everything() -> None:
    groups = {"gpu_hosts": ["gpu1"], "gateways": ["gpu1"], "monitors": ["gpu1"]}
    assert fleet_openings("gpu1", groups, HOSTVARS) == [{"ports": [443], "proto": "tcp", "comment": "gateway"}]


def test_rdma_between_those_that_have_it() -> None:
    rails = [{"name": "rail0", "address": "10.1.0.22/24"}, {"name": "rail1", "address": "10.1.1.22/24"}]
    hostvars = {
        **HOSTVARS,
        "gpu1": {**HOSTVARS["gpu1"], "rdma_enabled": True},
        "gpu2": {**HOSTVARS["gpu2"], "rdma_enabled": "yes", "fleet_rails": rails},
    }
    peers = ["192.0.2.22", "10.1.0.22", "10.1.1.22"]
    rules = fleet_openings("gpu1", GROUPS, hostvars)
    assert {"ports": [4791], "proto": "udp", "from": peers, "comment": "RoCE"} in rules
    assert {"ports": ["18515-18630"], "proto": "tcp", "from": peers, "comment": "proof of RDMA"} in rules
    hostvars["gpu2"] = {**hostvars["gpu2"], "rdma_enabled": False}
    assert [rule["comment"] for rule in fleet_openings("gpu1", GROUPS, hostvars)] == ["engine", "node exporter"]


@pytest.mark.parametrize(
    ("host", "variables", "words"),
    [
        ("nobody", {}, "expected a host of the inventory, found 'nobody'"),
        (
            "gpu2",
            {"deepseek_service_port": 0},
            "host gpu2: deepseek_service_port: expected a whole number from 1 to 65535",
        ),
        ("mon1", {"fleet_operator_networks": ["office"]}, "fleet_operator_networks: expected networks"),
    ],
)
def test_refused(host: str, variables: dict[str, t.Any], words: str) -> None:
    hostvars = {**HOSTVARS, "gpu2": {**HOSTVARS["gpu2"], **variables}, "mon1": {**HOSTVARS["mon1"], **variables}}
    with pytest.raises(AnsibleFilterError, match=words):
        fleet_openings(host, GROUPS, hostvars)
