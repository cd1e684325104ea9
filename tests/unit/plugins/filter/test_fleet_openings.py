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


def weights(*others: str) -> list[dict[str, t.Any]]:
    """What is open to those who hand weights round."""
    return [
        {"ports": [port], "proto": "tcp", "from": list(others), "comment": comment}
        for port, comment in ((7411, "weights"), (7412, "weights, plain copy"))
    ]


GPU = [
    {"ports": [9400], "proto": "tcp", "from": ["192.0.2.30"], "comment": "metrics of the GPUs"},
    {"ports": [3903], "proto": "tcp", "from": ["192.0.2.30"], "comment": "XIDs"},
]
NODE = {"ports": [9100], "proto": "tcp", "from": ["192.0.2.30"], "comment": "node exporter"}


def test_by_groups() -> None:
    assert FilterModule().filters() == {"fleet_openings": fleet_openings}
    assert fleet_openings("gpu1", GROUPS, HOSTVARS) == [
        {"ports": [8001], "proto": "tcp", "from": ["192.0.2.10", "192.0.2.30"], "comment": "engine"},
        *weights("192.0.2.22", "192.0.2.40"),
        NODE,
    ]
    assert fleet_openings("gw1", GROUPS, HOSTVARS) == [
        NODE,
        {"ports": [8443], "proto": "tcp", "comment": "gateway"},
        {"ports": [9113], "proto": "tcp", "from": ["192.0.2.30"], "comment": "nginx exporter"},
    ]
    prometheus = {"ports": [9090], "proto": "tcp", "from": ["198.51.100.0/24"], "comment": "Prometheus"}
    assert fleet_openings("mon1", GROUPS, HOSTVARS) == [prometheus]
    pages = {"dashboards_grafana_listen_address": "10.0.0.30", "dashboards_status_listen_address": "10.0.0.30"}
    assert fleet_openings("mon1", GROUPS, {**HOSTVARS, "mon1": {**HOSTVARS["mon1"], **pages}}) == [
        prometheus,
        {"ports": [3000], "proto": "tcp", "from": ["198.51.100.0/24"], "comment": "Grafana"},
        {"ports": [8095], "proto": "tcp", "from": ["198.51.100.0/24"], "comment": "status page"},
    ]
    assert fleet_openings("store1", GROUPS, HOSTVARS) == [*weights("10.0.0.21", "192.0.2.22"), NODE]


def test_an_exporter_of_redis_is_open_to_monitors() -> None:
    groups = {**GROUPS, "state_stores": ["store1", "mon1"]}
    rule = {"ports": [9222], "proto": "tcp", "from": ["192.0.2.30"], "comment": "redis exporter"}
    hosts = {**HOSTVARS, "store1": {**HOSTVARS["store1"], "redis_exporter_port": 9222}}
    assert fleet_openings("store1", groups, hosts) == [*fleet_openings("store1", GROUPS, hosts), rule]
    # Nobody else watches: the only monitor reaches its own.
    assert fleet_openings("mon1", groups, hosts) == fleet_openings("mon1", GROUPS, hosts)


def test_monitors_talk_to_each_other() -> None:
    groups = {"monitors": ["mon1", "mon2"]}
    hostvars = {
        "mon1": {"ansible_host": "192.0.2.30", "alertmanager_listen_address": "192.0.2.30"},
        "mon2": {"ansible_host": "192.0.2.31"},
    }
    assert [(rule["ports"][0], rule["proto"], rule["from"]) for rule in fleet_openings("mon1", groups, hostvars)] == [
        (port, proto, ["192.0.2.31"])
        for port, proto in (
            (9100, "tcp"),
            (9093, "tcp"),
            (9094, "tcp"),
            (9094, "udp"),
        )
    ]


def test_gpu_metrics_are_open_where_there_are_some() -> None:
    def gpu_ports(**own: t.Any) -> list[dict[str, t.Any]]:
        rules = fleet_openings("gpu2", GROUPS, {**HOSTVARS, "gpu2": {**HOSTVARS["gpu2"], **own}})
        return [rule for rule in rules if rule in GPU]

    assert gpu_ports() == []
    assert gpu_ports(gpu_exporter_enabled=True) == GPU
    assert gpu_ports(gpu_exporter_enabled=True, gpu_exporter_kind="none") == GPU[1:]
    assert gpu_ports(gpu_exporter_enabled=True, gpu_exporter_xid_enabled=False) == GPU[:1]


def test_a_gateway_with_limits_shows_them_to_monitors_and_operators() -> None:
    own = {**HOSTVARS["gw1"], "gateway_balancer": "lua", "fleet_operator_networks": ["127.0.0.0/8", "198.51.100.0/24"]}
    assert fleet_openings("gw1", GROUPS, {**HOSTVARS, "gw1": own})[-1] == {
        "ports": [9145],
        "proto": "tcp",
        "from": ["192.0.2.30", "198.51.100.0/24"],
        "comment": "metrics and status of the gateway",
    }


def test_a_collector_of_spans_is_open_to_those_who_send_them() -> None:
    own = {**HOSTVARS["mon1"], "tracing_enabled": True, "tracing_otlp_http_port": 14318}
    hosts = {**HOSTVARS, "mon1": own, "mon2": {"ansible_host": "192.0.2.31"}}
    senders = ["192.0.2.10", "10.0.0.21", "192.0.2.22"]
    assert fleet_openings("mon1", {**GROUPS, "monitors": ["mon1", "mon2"]}, hosts)[-4:] == [
        {"ports": [4317], "proto": "tcp", "from": senders, "comment": "spans"},
        {"ports": [14318], "proto": "tcp", "from": senders, "comment": "spans"},
        {"ports": [8889], "proto": "tcp", "from": ["192.0.2.31"], "comment": "metrics of spans"},
        {"ports": [8888], "proto": "tcp", "from": ["192.0.2.31"], "comment": "metrics of spans"},
    ]


def test_a_sidecar_is_opened_instead_of_the_engine() -> None:
    def rules(**own: t.Any) -> list[dict[str, t.Any]]:
        host = {**HOSTVARS["gpu1"], "envoy_sidecar_enabled": True, **own}
        found = fleet_openings("gpu1", GROUPS, {**HOSTVARS, "gpu1": host})
        return [rule for rule in found if not rule["comment"].startswith("weights")]

    sidecar = {"ports": [8080], "proto": "tcp", "from": ["192.0.2.10", "192.0.2.30"], "comment": "sidecar"}
    stats = {"ports": [9146], "proto": "tcp", "from": ["192.0.2.30"], "comment": "metrics of sidecar and engine"}
    assert rules(deepseek_service_listen_address="127.0.0.1") == [sidecar, stats, NODE]
    assert rules(deepseek_service_listen_address="::1", envoy_sidecar_stats_port=0, envoy_sidecar_port="8443") == [
        {**sidecar, "ports": [8443]},
        NODE,
    ]
    # Until gateways know of the sidecar they ask the engine.
    engine = {"ports": [8001], "proto": "tcp", "from": ["192.0.2.10"], "comment": "engine"}
    assert rules() == [sidecar, engine, stats, NODE]
    assert rules(envoy_sidecar_enabled="no")[0]["comment"] == "engine"
    with pytest.raises(
        AnsibleFilterError, match="envoy_sidecar_port: expected a whole number from 1 to 65535, found 0"
    ):
        rules(envoy_sidecar_port=0)


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
    assert [rule["comment"] for rule in fleet_openings("gpu1", GROUPS, hostvars)] == [
        "engine",
        "weights",
        "weights, plain copy",
        "node exporter",
    ]


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
