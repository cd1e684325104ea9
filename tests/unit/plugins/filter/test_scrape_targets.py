# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Targets of Prometheus from inventory hosts."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ansible.errors import AnsibleError, AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.scrape_targets import FilterModule, scrape_targets


class Unresolved(dict[str, Any]):
    """Variables of a host, some of which cannot be worked out, as hostvars has them."""

    def get(self, key: str, default: Any = None) -> Any:
        value = super().get(key, default)
        if value == "undefined":
            raise AnsibleError(f"{key} is undefined")
        return value


def one(kind: str, variables: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The only group of the only host."""
    groups = scrape_targets({kind: ["h1"]}, {"h1": Unresolved(variables)}, **more)
    assert list(groups) == [kind]
    assert len(groups[kind]) == 1
    return groups[kind][0]


@pytest.mark.parametrize(
    ("kind", "variables", "target"),
    [
        ("node", {}, "h1:9100"),
        ("node", {"ansible_host": "192.0.2.1"}, "192.0.2.1:9100"),
        ("node", {"ansible_host": "192.0.2.1", "fleet_address": "192.0.2.2"}, "192.0.2.2:9100"),
        ("node", {"fleet_address": "192.0.2.2", "node_exporter_listen_address": "192.0.2.3"}, "192.0.2.3:9100"),
        ("node", {"fleet_address": "192.0.2.2", "node_exporter_listen_address": "0.0.0.0"}, "192.0.2.2:9100"),
        ("node", {"fleet_address": "192.0.2.2", "node_exporter_listen_address": "::"}, "192.0.2.2:9100"),
        ("node", {"fleet_address": "2001:db8::1", "node_exporter_port": 9200}, "[2001:db8::1]:9200"),
        ("node", {"fleet_address": "undefined", "ansible_host": "192.0.2.1"}, "192.0.2.1:9100"),
        ("node", {"fleet_address": ["not", "a", "string"], "ansible_host": "192.0.2.1"}, "192.0.2.1:9100"),
        ("engine", {"fleet_address": "192.0.2.2", "deepseek_service_port": "8100"}, "192.0.2.2:8100"),
        ("engine", {"fleet_address": "192.0.2.2"}, "192.0.2.2:8000"),
        ("gateway", {"fleet_address": "192.0.2.2"}, "192.0.2.2:9113"),
        ("gateway", {"fleet_address": "192.0.2.2", "gateway_exporter_port": 9200}, "192.0.2.2:9200"),
        ("prometheus", {"prometheus_listen_address": "192.0.2.9", "prometheus_port": 9091}, "192.0.2.9:9091"),
        ("alertmanager", {"alertmanager_listen_address": "192.0.2.9"}, "192.0.2.9:9093"),
        ("alertmanager_cluster", {"fleet_address": "192.0.2.2"}, "192.0.2.2:9094"),
        ("gpu", {"fleet_address": "192.0.2.2"}, "192.0.2.2:9400"),
        ("xid", {"fleet_address": "192.0.2.2", "gpu_exporter_xid_port": 3904}, "192.0.2.2:3904"),
        ("tracing", {"fleet_address": "192.0.2.2", "tracing_listen_address": "192.0.2.3"}, "192.0.2.3:8888"),
        ("spanmetrics", {"fleet_address": "192.0.2.2"}, "192.0.2.2:8889"),
        ("prometheus", {"prometheus_listen_address": "undefined", "ansible_host": "192.0.2.1"}, "192.0.2.1:9090"),
    ],
)
def test_target(kind: str, variables: dict[str, Any], target: str) -> None:
    assert one(kind, variables)["targets"] == [target]


def test_behind_a_sidecar_the_engine_is_reached_through_it() -> None:
    variables = {"fleet_address": "192.0.2.2", "deepseek_service_listen_address": "127.0.0.1"}
    assert scrape_targets({"engine": ["h1"]}, {"h1": Unresolved(variables)})["engine"] == []
    variables |= {"envoy_sidecar_enabled": "true", "deepseek_service_engine": "tensorrt_llm"}
    engine, sidecar = scrape_targets({"engine": ["h1"]}, {"h1": Unresolved(variables)})["engine"]
    assert engine["targets"] == sidecar["targets"] == ["192.0.2.2:9146"]
    assert engine["labels"] == {
        "host": "h1",
        "region": "default",
        "role": "engine",
        "__metrics_path__": "/prometheus/metrics",
    }
    assert sidecar["labels"] == {
        "host": "h1",
        "region": "default",
        "role": "sidecar",
        "__metrics_path__": "/stats/prometheus",
    }
    variables |= {"envoy_sidecar_stats_port": "0"}
    assert scrape_targets({"engine": ["h1"]}, {"h1": Unresolved(variables)})["engine"] == []


def test_a_gateway_with_limits_has_a_second_target() -> None:
    variables = {"fleet_address": "192.0.2.2", "gateway_balancer": "lua", "gateway_exporter_enabled": "true"}
    groups = scrape_targets({"gateway": ["h1"]}, {"h1": Unresolved(variables)})["gateway"]
    assert [group["targets"] for group in groups] == [["192.0.2.2:9113"], ["192.0.2.2:9145"]]
    variables.update(gateway_exporter_enabled="false", gateway_metrics_port="9200")
    groups = scrape_targets({"gateway": ["h1"]}, {"h1": Unresolved(variables)})["gateway"]
    assert [group["targets"] for group in groups] == [["192.0.2.2:9200"]]


def test_labels() -> None:
    group = one("engine", {"fleet_region": "eu-west", "fleet_address": "192.0.2.2"})
    assert group["labels"] == {"host": "h1", "region": "eu-west", "role": "engine"}


def test_a_page_of_xids_belongs_to_the_gpus() -> None:
    hosts = {"gpu": ["h1"], "xid": ["h1"], "tracing": ["h1"], "spanmetrics": ["h1"]}
    groups = scrape_targets(hosts, {"h1": {"gpu_exporter_tls_certificate_src": "x.crt"}})
    assert {kind: found[0]["labels"]["role"] for kind, found in groups.items()} == {
        "gpu": "gpu",
        "xid": "gpu",
        "tracing": "tracing",
        "spanmetrics": "tracing",
    }
    assert groups["gpu"][0]["labels"]["__scheme__"] == "https"
    assert "__scheme__" not in groups["xid"][0]["labels"]


def redis(**variables: Any) -> list[tuple[str, str, str]]:
    """What an exporter of Redis is asked for: its own address, the server as it is named to it, and to people."""
    groups = scrape_targets({"redis": ["h1"]}, {"h1": Unresolved({"fleet_address": "192.0.2.2", **variables})})["redis"]
    for group in groups:
        assert {key: group["labels"][key] for key in ("host", "role", "__metrics_path__")} == {
            "host": "h1",
            "role": "state_store",
            "__metrics_path__": "/scrape",
        }
    return [(group["targets"][0], group["labels"]["__param_target"], group["labels"]["instance"]) for group in groups]


def test_an_exporter_of_redis_is_asked_for_each_server() -> None:
    own = "192.0.2.2:9121"
    default = [(own, "tcp://127.0.0.1:6379", "192.0.2.2:6379")]
    assert redis() == default
    # A list that cannot be read here, and none.
    assert redis(redis_exporter_servers="undefined") == redis(redis_exporter_servers="redis://one") == default
    assert redis(redis_exporter_servers=[]) == []
    assert redis(
        redis_exporter_servers=["redis://[::1]:6380", "rediss://redis.example:6390", "redis://192.0.2.9:6379"]
    ) == [
        (own, "tcp://[::1]:6380", "192.0.2.2:6380"),
        (own, "rediss://redis.example:6390", "redis.example:6390"),
        (own, "tcp://192.0.2.9:6379", "192.0.2.9:6379"),
    ]
    assert redis(fleet_address="2001:db8::1", redis_exporter_port=9222) == [
        ("[2001:db8::1]:9222", "tcp://127.0.0.1:6379", "[2001:db8::1]:6379")
    ]
    assert redis(redis_exporter_listen_address="127.0.0.1") == []
    hosts = {"redis": ["h1"]}
    with_tls = scrape_targets(hosts, {"h1": {"redis_exporter_tls_certificate_src": "x.crt"}})["redis"][0]
    assert with_tls["labels"]["__scheme__"] == "https"
    assert with_tls["labels"]["instance"] == "h1:6379"


def probes(**variables: Any) -> list[tuple[str, str, str]]:
    """What is tried on a host that is a gateway and an engine: module, target, instance."""
    hosts = {"gateway": ["h1"], "engine": ["h1"], "probe": ["h1"]}
    groups = scrape_targets(hosts, {"h1": Unresolved({"fleet_address": "192.0.2.2", **variables})}, scraper="m1")
    assert {group["labels"]["prober"] for group in groups["probe"]} <= {"m1"}
    return [(group["labels"]["module"], group["targets"][0], group["labels"]["instance"]) for group in groups["probe"]]


def test_probes_ask_gateways_and_engines() -> None:
    assert probes() == [
        ("gateway_health", "https://192.0.2.2:443/healthz", "https://192.0.2.2:443"),
        ("gateway_models", "https://192.0.2.2:443/v1/models", "https://192.0.2.2:443"),
        ("tcp_connect", "192.0.2.2:8000", "192.0.2.2:8000"),
    ]
    assert probes(fleet_gateway_url="https://gw.example/", deepseek_service_listen_address="127.0.0.1") == [
        ("gateway_health", "https://gw.example/healthz", "https://gw.example"),
        ("gateway_models", "https://gw.example/v1/models", "https://gw.example"),
    ]
    own = {
        "gateway_tls_mode": "none",
        "gateway_port": 8080,
        "envoy_sidecar_enabled": True,
        "fleet_address": "2001:db8::1",
    }
    assert [target for _module, target, _instance in probes(**own)] == [
        "http://[2001:db8::1]:8080/healthz",
        "http://[2001:db8::1]:8080/v1/models",
        "[2001:db8::1]:8080",
    ]


def test_a_probe_has_the_labels_of_every_target() -> None:
    groups = scrape_targets({"probe": ["e", "x"], "engine": ["e"]}, {"e": {"fleet_region": "eu"}}, scraper="m1")
    assert groups["probe"] == [
        {
            "targets": ["e:8000"],
            "labels": {
                "host": "e",
                "region": "eu",
                "role": "engine",
                "instance": "e:8000",
                "module": "tcp_connect",
                "prober": "m1",
            },
        }
    ]


def test_node_has_the_role_of_its_host() -> None:
    hosts = {"node": ["a", "b", "c", "d"], "engine": ["a"], "gateway": ["b"], "prometheus": ["c"]}
    groups = scrape_targets(hosts, {}, scraper="c")
    assert [group["labels"]["role"] for group in groups["node"]] == ["engine", "gateway", "prometheus", "node"]


def test_scheme_follows_the_certificate() -> None:
    assert one("node", {"node_exporter_tls_certificate_src": "x.crt"})["labels"]["__scheme__"] == "https"
    assert one("node", {"node_exporter_tls_certificate_src": "undefined"})["labels"]["__scheme__"] == "https"
    assert "__scheme__" not in one("node", {"node_exporter_tls_certificate_src": ""})["labels"]


def test_metrics_path_follows_the_engine() -> None:
    assert (
        one("engine", {"deepseek_service_engine": "tensorrt_llm"})["labels"]["__metrics_path__"]
        == "/prometheus/metrics"
    )
    assert "__metrics_path__" not in one("engine", {"deepseek_service_engine": "llama_cpp"})["labels"]
    own = {"deepseek_service_engine": "tensorrt_llm", "deepseek_service_metrics_path": "/m"}
    assert one("engine", own)["labels"]["__metrics_path__"] == "/m"


def test_loopback_is_scraped_by_its_own_host_only() -> None:
    hosts = {"prometheus": ["m1", "m2"]}
    hostvars = {"m1": {"fleet_address": "192.0.2.1"}, "m2": {"fleet_address": "192.0.2.2"}}
    groups = scrape_targets(hosts, hostvars, scraper="m1")
    assert [group["targets"] for group in groups["prometheus"]] == [["127.0.0.1:9090"]]
    assert scrape_targets(hosts, hostvars) == {"prometheus": []}


def test_own_variables_of_the_scraper_win() -> None:
    own = {"prometheus_listen_address": "192.0.2.7", "prometheus_port": 9099}
    assert one("prometheus", {"prometheus_port": 1}, scraper="h1", own=own)["targets"] == ["192.0.2.7:9099"]
    assert one("prometheus", {"prometheus_listen_address": "192.0.2.8"}, scraper="x", own=own)["targets"] == [
        "192.0.2.8:9090"
    ]


@pytest.mark.parametrize("off", [False, "false", "no"])
def test_a_gateway_without_an_exporter_is_left_out(off: Any) -> None:
    assert scrape_targets({"gateway": ["g"]}, {"g": {"gateway_exporter_enabled": off}}) == {"gateway": []}
    assert one("gateway", {"gateway_exporter_enabled": True, "gateway_exporter_address": "192.0.2.4"})["targets"] == [
        "192.0.2.4:9113"
    ]


def test_unknown_hosts_show_and_doubles_do_not() -> None:
    groups = scrape_targets({"node": ["b", "a", "b"]}, {})
    assert [group["targets"] for group in groups["node"]] == [["b:9100"], ["a:9100"]]


@pytest.mark.parametrize("value", [{"nodes": []}, {"node": "h1"}, {"node": 1}, ["h1"]])
def test_wrong_input_is_named(value: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="scrape_targets: expected"):
        scrape_targets(value, {})


def test_a_large_fleet_is_quick() -> None:
    names = [f"gpu{number}" for number in range(2000)]
    start = time.perf_counter()
    groups = scrape_targets({"node": names, "engine": names}, {name: {"fleet_address": name} for name in names})
    assert len(groups["node"]) == len(groups["engine"]) == 2000
    assert time.perf_counter() - start < 2


def test_the_filter_is_offered() -> None:
    assert FilterModule().filters() == {"scrape_targets": scrape_targets}
