# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The engines behind a gateway, read from inventory variables and checked. PRIVATE to the collection."""

from __future__ import annotations

import ipaddress
import re
import typing as t

STATES = ("up", "drain", "down")
WEIGHTS = (1, 256)
PORTS = (1, 65535)
MAX_CONNS = (0, 1_000_000)
# Defaults of role envoy_sidecar.
SIDECAR_PORT = 8080
SIDECAR_STATS_PORT = 9146

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_KEYS = {"name", "address", "port", "weight", "state", "region", "max_conns", "sni"}


def whole_number(value: t.Any, limits: tuple[int, int]) -> int | None:
    """The value as an int when it is a whole number within limits, else None. Digits in a string count: surveys send them."""
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value), re.ASCII):
        return None
    number = int(value)
    return number if limits[0] <= number <= limits[1] else None


def is_address(value: t.Any) -> bool:
    """Whether the value is an IPv4 or IPv6 address, or looks like a host name."""
    if not isinstance(value, str):
        return False
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return len(value) <= 253 and bool(_NAME.fullmatch(value)) and not re.fullmatch(r"[\d.]+", value)
    return "%" not in value


def peer_problems(peers: t.Any) -> list[str]:
    """What is wrong with a list of peers, a sentence each.

    :arg peers: list of mappings with name, address and, all optional, port, weight, state, region, max_conns, sni.
    """
    if isinstance(peers, (str, t.Mapping)) or not isinstance(peers, t.Sequence):
        return [f"expected a list of peers, found {type(peers).__name__.replace('_AnsibleTagged', '')}"]
    problems: list[str] = []
    names: dict[str, int] = {}
    endpoints: dict[str, str] = {}
    any_up = False
    for number, peer in enumerate(peers, start=1):
        if not isinstance(peer, t.Mapping):
            problems.append(f"peer number {number}: expected a mapping, found {peer!r}")
            continue
        name = str(peer.get("name", ""))
        label = f"peer {name}" if name else f"peer number {number}"
        if not _NAME.fullmatch(name):
            problems.append(f"{label}: name: expected letters, digits, dots, dashes and underscores, found {name!r}")
        elif name in names:
            problems.append(f"{label}: name: used by peers number {names[name]} and {number}, expected different names")
        names.setdefault(name, number)
        problems += [f"{label}: {key}: no such key of a peer" for key in sorted(set(map(str, peer)) - _KEYS)]
        problems += _value_problems(label, peer)
        any_up = any_up or peer.get("state", "up") == "up"
        endpoint = f"{peer.get('address')} port {peer.get('port', 8000)}"
        if endpoint in endpoints:
            problems.append(
                f"{label}: address: {endpoint} is also that of peer {endpoints[endpoint]}, expected different ones"
            )
        endpoints.setdefault(endpoint, name)
    if not any_up:
        problems.append(f"expected at least one peer in state up, found none among {len(peers)}")
    return problems


def _value_problems(label: str, peer: t.Mapping[str, t.Any]) -> list[str]:
    problems: list[str] = []
    if not is_address(peer.get("address", "")):
        problems.append(f"{label}: address: expected an IP address or a host name, found {peer.get('address')!r}")
    for key, limits, default in (("port", PORTS, 8000), ("weight", WEIGHTS, 1), ("max_conns", MAX_CONNS, 0)):
        if whole_number(peer.get(key, default), limits) is None:
            problems.append(
                f"{label}: {key}: expected a whole number from {limits[0]} to {limits[1]}, found {peer.get(key)!r}"
            )
    if peer.get("sni") and not is_address(peer["sni"]):
        problems.append(f"{label}: sni: expected the name in its certificate, found {peer['sni']!r}")
    if peer.get("state", "up") not in STATES:
        problems.append(
            f"{label}: state: expected {', '.join(STATES[:-1])} or {STATES[-1]}, found {peer.get('state')!r}"
        )
    return problems


class HostReader:
    """Reads the variables of one host and collects what is wrong with them."""

    def __init__(self, host: str, variables: t.Mapping[str, t.Any]) -> None:
        self.host = host
        self.problems: list[str] = []
        self._variables = variables

    def value(self, name: str, default: t.Any) -> t.Any:
        """The variable, or the default when it is absent or cannot be resolved."""
        if name not in self._variables:
            return default
        try:
            return self._variables[name]
        except Exception as exc:  # a template of the inventory that fails may raise anything
            self._expected(name, "a value", f"a template that fails: {exc}")
            return default

    def number(self, name: str, limits: tuple[int, int], default: int) -> int:
        """The variable as a whole number within limits."""
        value = self.value(name, default)
        found = whole_number(value, limits)
        if found is None:
            self._expected(name, f"a whole number from {limits[0]} to {limits[1]}", repr(value))
            return default
        return found

    def address(self) -> str:
        """The address by which peers reach the host."""
        name = next((name for name in ("fleet_address", "ansible_host") if name in self._variables), "fleet_address")
        value = self.value(name, self.host)
        if not is_address(value):
            self._expected(name, "an IP address or a host name", repr(value))
        return str(value)

    def flag(self, name: str) -> bool:
        """Whether the variable is true; without it, false."""
        return str(self.value(name, False)).lower() in ("true", "yes", "on", "1")

    def has_sidecar(self) -> bool:
        """Whether gateways ask the sidecar of the host and not its engine."""
        return self.flag("envoy_sidecar_enabled")

    def serving_port(self, port: int) -> int:
        """The port that gateways ask: that of the sidecar, or of the engine, which is port unless the host says so."""
        if self.has_sidecar():
            return self.number("envoy_sidecar_port", PORTS, SIDECAR_PORT)
        return self.number("deepseek_service_port", PORTS, port)

    def state(self) -> str:
        """Whether the host takes requests."""
        value = self.value("fleet_peer_state", STATES[0])
        if value not in STATES:
            self._expected("fleet_peer_state", f"{', '.join(STATES[:-1])} or {STATES[-1]}", repr(value))
        return str(value)

    def _expected(self, name: str, expected: str, found: str) -> None:
        self.problems.append(f"host {self.host}: {name}: expected {expected}, found {found}")


def _host_list_problem(hosts: t.Any) -> str:
    """Why this is no list of hosts; empty when it is one."""
    if isinstance(hosts, (str, t.Mapping)) or not isinstance(hosts, t.Sequence):
        return f"expected a list of inventory host names, found {hosts!r}"
    return ""


def answering_hosts(hosts: t.Any, plan: t.Any) -> list[dict[str, t.Any]]:
    """The hosts that answer requests according to a plan, each with the weight that the plan gives it.

    :arg hosts: inventory names.
    :arg plan: fleet_plan: ``peers`` with a weight for each host that answers, ``hosts`` that it was made for; may be empty.
    :returns: ``name`` and ``weight`` of each host, in the order of hosts. A host that the plan covers and that is not among its peers is left
        out: it works for another host's replica, or stays out. One that the plan does not cover has the weight 1.
    :raises ValueError: hosts is no list of names, or plan no mapping.
    """
    problem = _host_list_problem(hosts)
    if problem:
        raise ValueError(problem)
    if not isinstance(plan, t.Mapping):
        raise ValueError(f"expected a plan, which is a mapping, found {plan!r}")
    planned = plan.get("peers", {})
    covered = set(plan.get("hosts", []))
    return [
        {"name": str(host), "weight": int(planned.get(host, {}).get("weight", 1))}
        for host in hosts
        if host in planned or host not in covered
    ]


def _tls_problem(reader: HostReader, tls: bool) -> str:
    """Whether gateways and the sidecar of a host would speak differently; empty when not."""
    if not reader.has_sidecar() or reader.flag("envoy_sidecar_tls") == tls:
        return ""
    return (
        f"host {reader.host}: envoy_sidecar_tls: expected {str(tls).lower()} because gateway_peer_tls is {str(tls).lower()},"
        f" found {str(not tls).lower()}"
    )


def peers_from_inventory(
    hosts: t.Any, hostvars: t.Mapping[str, t.Any], port: int, tls: bool | None = None
) -> tuple[list[dict[str, t.Any]], list[str]]:
    """Make the peers from the variables of the hosts that run an engine.

    :arg hosts: inventory names, or mappings with C(name) and the C(weight) of a host that does not set C(fleet_weight), in the order wanted.
    :arg hostvars: variables by host; a host's variables resolve their templates when they are read.
    :arg port: port of a host that does not set C(deepseek_service_port); one with C(envoy_sidecar_enabled) is asked at its C(envoy_sidecar_port).
    :arg tls: whether the gateway asks over TLS; None does not look at it.
    :returns: the peers, and a sentence for each problem, naming host, variable, what was expected and what was found.
    """
    problems: list[str] = []
    peers: list[dict[str, t.Any]] = []
    problem = _host_list_problem(hosts)
    if problem:
        return peers, [problem]
    for item in hosts:
        named = item if isinstance(item, t.Mapping) else {"name": item}
        host = str(named.get("name", ""))
        if host not in hostvars:
            problems.append(f"host {host}: expected a host of the inventory, found no such name")
            continue
        reader = HostReader(host, hostvars[host])
        peers.append(
            {
                "name": host,
                "address": reader.address(),
                "port": reader.serving_port(port),
                "weight": reader.number("fleet_weight", WEIGHTS, int(named.get("weight", 1))),
                "state": reader.state(),
                "region": str(reader.value("fleet_region", "default")),
            }
        )
        problems += reader.problems
        problem = _tls_problem(reader, tls) if tls is not None else ""
        problems += [problem] if problem else []
    return peers, problems
