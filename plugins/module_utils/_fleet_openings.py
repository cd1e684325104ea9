# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What hosts of the fleet must let in from each other, read from the inventory. PRIVATE to the collection."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peers import (
    PORTS,
    SIDECAR_STATS_PORT,
    HostReader,
)

# RoCE v2.
_ROCE_PORT = 4791
# The proof of role rdma: a port for each rail from rdma_verify_port on, and as many 100 higher.
_RDMA_PORTS = 115


class Openings:
    """The openings of one host.

    :arg host: its inventory name.
    :arg groups: inventory names by group.
    :arg hostvars: variables by host; a host's variables resolve their templates when they are read.
    """

    def __init__(self, host: str, groups: t.Mapping[str, t.Any], hostvars: t.Mapping[str, t.Any]) -> None:
        self.host = host
        self.problems: list[str] = []
        self._groups = groups
        self._hostvars = hostvars
        self._reader = HostReader(host, hostvars[host])

    def rules(self) -> list[dict[str, t.Any]]:
        """A rule for each opening. Who has nobody to let in has no rule: one without addresses would let in everybody."""
        monitors = self._addresses("monitors")
        found: list[dict[str, t.Any]] = []
        if self._is("gpu_hosts"):
            found += self._serving(monitors)
            found += self._gpu_metrics(monitors)
            found += self._rdma()
        if self._is("gpu_hosts") or self._is("stores"):
            found += self._weights()
        found += self._rule("node exporter", self._port("node_exporter_port", 9100), monitors)
        if self._is("state_stores"):
            found += self._rule("redis exporter", self._port("redis_exporter_port", 9121), monitors)
        if self._is("gateways"):
            everybody = {"ports": [self._port("gateway_port", 443)], "proto": "tcp", "comment": "gateway"}
            found.append(everybody)
            found += self._rule("nginx exporter", self._port("gateway_exporter_port", 9113), monitors)
            if self._reader.value("gateway_balancer", "native") == "lua":
                operators = self._networks(self._reader.value("fleet_operator_networks", []))
                port = self._port("gateway_metrics_port", 9145)
                found += self._rule("metrics and status of the gateway", port, [*monitors, *operators])
        if self._is("monitors"):
            operators = self._networks(self._reader.value("fleet_operator_networks", []))
            found += self._rule("Prometheus", self._port("prometheus_port", 9090), operators)
            found += self._monitor(monitors, operators)
        self.problems += self._reader.problems
        return found

    def _gpu_metrics(self, monitors: t.Sequence[str]) -> list[dict[str, t.Any]]:
        """The pages of role gpu_exporter, where it is on."""
        if not self._reader.flag("gpu_exporter_enabled"):
            return []
        found = []
        if self._reader.value("gpu_exporter_kind", "dcgm") != "none":
            found += self._rule("metrics of the GPUs", self._port("gpu_exporter_port", 9400), monitors)
        if str(self._reader.value("gpu_exporter_xid_enabled", True)).lower() in ("true", "yes", "on", "1"):
            found += self._rule("XIDs", self._port("gpu_exporter_xid_port", 3903), monitors)
        return found

    def _monitor(self, monitors: t.Sequence[str], operators: t.Sequence[str]) -> list[dict[str, t.Any]]:
        """What monitors ask each other, what people look at where it is not on loopback, and the collector of spans."""
        found: list[dict[str, t.Any]] = []
        if not self._is_loopback(self._reader.value("alertmanager_listen_address", "127.0.0.1")):
            found += self._rule("Alertmanager", self._port("alertmanager_port", 9093), [*monitors, *operators])
        cluster = self._port("alertmanager_cluster_port", 9094)
        for proto in ("tcp", "udp"):
            found += self._rule("Alertmanagers among each other", cluster, monitors, proto)
        for comment, name, default in (
            ("Grafana", "dashboards_grafana", 3000),
            ("status page", "dashboards_status", 8095),
        ):
            if not self._is_loopback(self._reader.value(f"{name}_listen_address", "127.0.0.1")):
                found += self._rule(comment, self._port(f"{name}_port", default), operators)
        return found + self._tracing(monitors)

    def _tracing(self, monitors: t.Sequence[str]) -> list[dict[str, t.Any]]:
        """The collector of spans: gateways, sidecars and engines send them, the other monitors scrape it."""
        if not self._reader.flag("tracing_enabled"):
            return []
        senders = [*self._addresses("gateways"), *self._addresses("gpu_hosts")]
        found = []
        for name, default in (("tracing_otlp_grpc_port", 4317), ("tracing_otlp_http_port", 4318)):
            found += self._rule("spans", self._port(name, default), senders)
        for name, default in (("tracing_spanmetrics_port", 8889), ("tracing_metrics_port", 8888)):
            found += self._rule("metrics of spans", self._port(name, default), monitors)
        return found

    def _serving(self, monitors: t.Sequence[str]) -> list[dict[str, t.Any]]:
        """The engine, or what stands before it. An engine that answers others than its own host stays open to the gateways: they go on asking
        it until gateway.yml has told them of the sidecar."""
        gateways = self._addresses("gateways")
        engine = self._port("deepseek_service_port", 8000)
        if not self._reader.has_sidecar():
            return self._rule("engine", engine, [*gateways, *monitors])
        found = self._rule("sidecar", self._reader.serving_port(8000), [*gateways, *monitors])
        if not self._is_loopback(self._reader.value("deepseek_service_listen_address", "")):
            found += self._rule("engine", engine, gateways)
        stats = self._reader.number("envoy_sidecar_stats_port", (0, PORTS[1]), SIDECAR_STATS_PORT)
        return found + (self._rule("metrics of sidecar and engine", stats, monitors) if stats else [])

    @staticmethod
    def _is_loopback(address: t.Any) -> bool:
        try:
            return ipaddress.ip_address(str(address)).is_loopback
        except ValueError:
            return str(address) == "localhost"

    def _is(self, group: str) -> bool:
        return self.host in self._groups.get(group, [])

    def _port(self, name: str, default: int) -> int:
        return self._reader.number(name, PORTS, default)

    def _rule(
        self, comment: str, ports: int | str, sources: t.Sequence[str], proto: str = "tcp"
    ) -> list[dict[str, t.Any]]:
        unique = list(dict.fromkeys(sources))
        return [{"ports": [ports], "proto": proto, "from": unique, "comment": comment}] if unique else []

    def _addresses(self, group: str) -> list[str]:
        """Addresses of the other hosts of a group."""
        found = []
        for name in self._groups.get(group, []):
            if name != self.host:
                reader = HostReader(name, self._hostvars[name])
                found.append(reader.address())
                self.problems += reader.problems
        return found

    def _networks(self, networks: t.Any) -> list[str]:
        """Those that are not this host's own loopback, which needs no opening."""
        found = []
        for network in networks:
            try:
                if not ipaddress.ip_network(network, strict=False).is_loopback:
                    found.append(str(network))
            except ValueError:
                self.problems.append(
                    f"host {self.host}: fleet_operator_networks: expected networks such as 192.0.2.0/24, found {network!r}"
                )
        return found

    def _weights(self) -> list[dict[str, t.Any]]:
        """Those who hand weights round among each other. They listen only while they do."""
        others = [*self._addresses("gpu_hosts"), *self._addresses("stores")]
        swarm, copy = self._port("model_store_port", 7411), self._port("model_store_http_port", 7412)
        return [*self._rule("weights", swarm, others), *self._rule("weights, plain copy", copy, others)]

    def _rdma(self) -> list[dict[str, t.Any]]:
        """The others of the fabric, by their addresses on the rails as well."""
        if not self._reader.flag("rdma_enabled"):
            return []
        peers = []
        for name in self._groups.get("gpu_hosts", []):
            reader = HostReader(name, self._hostvars[name])
            if name != self.host and reader.flag("rdma_enabled"):
                rails = reader.value("fleet_rails", [])
                peers += [reader.address(), *(str(rail["address"]).partition("/")[0] for rail in rails)]
                self.problems += reader.problems
        first = self._port("rdma_verify_port", 18515)
        return [
            *self._rule("RoCE", _ROCE_PORT, peers, "udp"),
            *self._rule("proof of RDMA", f"{first}-{first + _RDMA_PORTS}", peers),
        ]
