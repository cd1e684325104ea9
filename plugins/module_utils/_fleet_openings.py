# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What hosts of the fleet must let in from each other, read from the inventory. PRIVATE to the collection."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peers import PORTS, HostReader

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
            callers = [*self._addresses("gateways"), *monitors]
            found += self._rule("engine", self._port("deepseek_service_port", 8000), callers)
            found += self._rdma()
        found += self._rule("node exporter", self._port("node_exporter_port", 9100), monitors)
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
        self.problems += self._reader.problems
        return found

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

    def _rdma(self) -> list[dict[str, t.Any]]:
        """The others of the fabric, by their addresses on the rails as well."""
        if not self._true(self._reader):
            return []
        peers = []
        for name in self._groups.get("gpu_hosts", []):
            reader = HostReader(name, self._hostvars[name])
            if name != self.host and self._true(reader):
                rails = reader.value("fleet_rails", [])
                peers += [reader.address(), *(str(rail["address"]).partition("/")[0] for rail in rails)]
                self.problems += reader.problems
        first = self._port("rdma_verify_port", 18515)
        return [
            *self._rule("RoCE", _ROCE_PORT, peers, "udp"),
            *self._rule("proof of RDMA", f"{first}-{first + _RDMA_PORTS}", peers),
        ]

    @staticmethod
    def _true(reader: HostReader) -> bool:
        return str(reader.value("rdma_enabled", False)).lower() in ("true", "yes", "on", "1")
