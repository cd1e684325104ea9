# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus file_sd target groups from inventory hosts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible.errors import AnsibleError, AnsibleFilterError


@dataclass(frozen=True)
class Job:
    """Which variables of a host say where its service answers."""

    address: str
    port: str
    default_port: int
    default_address: str = ""
    certificate: str = ""
    switch: str = ""


JOBS = {
    "node": Job(
        "node_exporter_listen_address", "node_exporter_port", 9100, certificate="node_exporter_tls_certificate_src"
    ),
    "engine": Job("deepseek_service_listen_address", "deepseek_service_port", 8000),
    "gateway": Job("gateway_exporter_address", "gateway_exporter_port", 9113, switch="gateway_exporter_enabled"),
    "prometheus": Job(
        "prometheus_listen_address", "prometheus_port", 9090, "127.0.0.1", "prometheus_tls_certificate_src"
    ),
    "alertmanager": Job(
        "alertmanager_listen_address", "alertmanager_port", 9093, "127.0.0.1", "alertmanager_tls_certificate_src"
    ),
    # No job of Prometheus: where Alertmanagers talk to each other.
    "alertmanager_cluster": Job("alertmanager_cluster_address", "alertmanager_cluster_port", 9094),
    "blackbox": Job("blackbox_exporter_listen_address", "blackbox_exporter_port", 9115, "127.0.0.1"),
    "gpu": Job(
        "gpu_exporter_listen_address", "gpu_exporter_port", 9400, certificate="gpu_exporter_tls_certificate_src"
    ),
    "xid": Job("gpu_exporter_listen_address", "gpu_exporter_xid_port", 3903),
    "spanmetrics": Job("tracing_listen_address", "tracing_spanmetrics_port", 8889),
    "tracing": Job("tracing_listen_address", "tracing_metrics_port", 8888),
    "redis": Job(
        "redis_exporter_listen_address", "redis_exporter_port", 9121, certificate="redis_exporter_tls_certificate_src"
    ),
}
# Two pages of one thing.
ROLES = {"xid": "gpu", "spanmetrics": "tracing", "redis": "state_store"}
# What a prober asks as a client would: the module of blackbox_exporter, and for gateways the path.
PROBE = "probe"
GATEWAY_PROBES = {"gateway_health": "/healthz", "gateway_models": "/v1/models"}
ENGINE_PROBE = "tcp_connect"
GATEWAY_LIMITS = Job("gateway_metrics_address", "gateway_metrics_port", 9145)
# With a sidecar, the engine's metrics come through it, and its own stand beside them.
SIDECAR = Job("envoy_sidecar_stats_address", "envoy_sidecar_stats_port", 9146)
SIDECAR_PATH = "/stats/prometheus"
# What gateways ask when there is a sidecar.
SIDECAR_SERVING = Job("envoy_sidecar_listen_address", "envoy_sidecar_port", 8080)
METRICS_PATHS = {"tensorrt_llm": "/prometheus/metrics"}
# An exporter of Redis is asked for each of its servers. With redis:// it would not say why it does not reach one.
REDIS_SERVERS = "redis_exporter_servers"
REDIS_DEFAULT = ("redis://127.0.0.1:6379",)
REDIS_PATH = "/scrape"


class Variables:
    """One host's variables, without an opinion on what is missing."""

    def __init__(self, hostvars: Mapping[str, Any], name: str, own: Mapping[str, Any]) -> None:
        # "in" first: hostvars has an answer for every name, also for one that is not in the inventory.
        self._known: Mapping[str, Any] = {}
        if name in hostvars:
            self._known = hostvars[name]
        self._own = own

    def read(self, name: str, unclear: str | None = None) -> Any:
        """The value; None when there is none, unclear when it names what cannot be known here.

        A host's variable may refer to a default of its role, or to a fact of a host that did not answer.
        """
        if name in self._own:
            return self._own[name]
        try:
            value = self._known.get(name)
        except AnsibleError:
            return unclear
        return value if value is None or isinstance(value, (str, int)) else unclear

    def read_list(self, name: str, default: Iterable[str]) -> list[str]:
        """The words of a list; the default when it is not set, or names what cannot be known here."""
        try:
            value = self._own.get(name, self._known.get(name))
        except AnsibleError:
            value = None
        if value is None or isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
            return list(default)
        return [str(word) for word in value]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _is_wildcard(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return address in ("", "*")


def _address(host: Variables, job: Job, name: str, is_scraper: bool) -> str:
    """Where the host's service answers to the scraper; empty when it cannot."""
    own = str(host.read(job.address, unclear="*") or job.default_address)
    if _is_loopback(own):
        return own if is_scraper else ""
    if _is_wildcard(own):
        return str(host.read("fleet_address") or host.read("ansible_host") or name)
    return own


def _role(name: str, jobs: Mapping[str, list[str]]) -> str:
    """What a host does in the fleet, for its exporter's targets."""
    return next((job for job in ("engine", "gateway", "prometheus") if name in jobs.get(job, [])), "node")


def _has_sidecar(host: Variables) -> bool:
    return str(host.read("envoy_sidecar_enabled")).lower() in ("true", "yes", "on", "1")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _gateway_url(name: str, host: Variables) -> str:
    """Where clients reach the gateway: fleet_gateway_url when the inventory has it, since a certificate may be for a name."""
    given = host.read("fleet_gateway_url")
    if given:
        return str(given).rstrip("/")
    scheme = "http" if host.read("gateway_tls_mode") == "none" else "https"
    address = str(host.read("fleet_address") or host.read("ansible_host") or name)
    return f"{scheme}://{_bracketed(address)}:{host.read('gateway_port') or 443}"


def _probes(name: str, jobs: Mapping[str, list[str]], host: Variables, scraper: str) -> list[dict[str, Any]]:
    """What a prober tries on a host. The label instance is the same for all that is tried at one place."""
    where: list[tuple[str, str, str, str]] = []
    if name in jobs.get("gateway", []):
        url = _gateway_url(name, host)
        where += [("gateway", module, url + path, url) for module, path in GATEWAY_PROBES.items()]
    if name in jobs.get("engine", []):
        job = SIDECAR_SERVING if _has_sidecar(host) else JOBS["engine"]
        address = _address(host, job, name, name == scraper)
        if address:
            place = f"{_bracketed(address)}:{host.read(job.port) or job.default_port}"
            where.append(("engine", ENGINE_PROBE, place, place))
    region = str(host.read("fleet_region") or "default")
    return [
        {
            "targets": [target],
            "labels": {
                "host": name,
                "region": region,
                "role": role,
                "instance": instance,
                "module": module,
                "prober": scraper,
            },
        }
        for role, module, target, instance in where
    ]


def _redis(base: dict[str, Any], host: Variables, name: str) -> list[dict[str, Any]]:
    """A target for each server of an exporter. What listens on the exporter's own loopback is known by the host's address."""
    found = []
    for server in host.read_list(REDIS_SERVERS, REDIS_DEFAULT):
        scheme, _slashes, place = server.partition("://")
        address, _colon, port = place.rpartition(":")
        if _is_loopback(address.strip("[]")):
            place = f"{_bracketed(str(host.read('fleet_address') or host.read('ansible_host') or name))}:{port}"
        labels = {
            **base["labels"],
            "instance": place,
            "__metrics_path__": REDIS_PATH,
            "__param_target": server if scheme == "rediss" else server.replace("redis://", "tcp://", 1),
        }
        found.append({**base, "labels": labels})
    return found


def _groups(
    name: str, kind: str, jobs: Mapping[str, list[str]], host: Variables, is_scraper: bool
) -> list[dict[str, Any]]:
    """The targets of a host for a job: what a gateway's Lua says of limits and engines belongs to the job of the gateway, what a sidecar says
    of its engine to that of the engine."""
    if kind == "redis":
        base = _group(name, kind, jobs, host, is_scraper, JOBS[kind])
        return _redis(base, host, name) if base else []
    sidecar = kind == "engine" and _has_sidecar(host)
    found = [_group(name, kind, jobs, host, is_scraper, SIDECAR if sidecar else JOBS[kind])]
    if sidecar:
        own = _group(name, kind, jobs, host, is_scraper, SIDECAR)
        if str(host.read(SIDECAR.port)) == "0":
            return []
        if own:
            labels = {**own["labels"], "role": "sidecar", "__metrics_path__": SIDECAR_PATH}
            found.append({**own, "labels": labels})
    if kind == "gateway" and host.read("gateway_balancer") == "lua":
        found.append(_group(name, kind, jobs, host, is_scraper, GATEWAY_LIMITS))
    return [group for group in found if group is not None]


def _group(
    name: str, kind: str, jobs: Mapping[str, list[str]], host: Variables, is_scraper: bool, job: Job
) -> dict[str, Any] | None:
    if job.switch and str(host.read(job.switch)).lower() in ("false", "no", "0"):
        return None
    address = _address(host, job, name, is_scraper)
    if not address:
        return None
    labels = {
        "host": name,
        "region": str(host.read("fleet_region") or "default"),
        "role": _role(name, jobs) if kind == "node" else ROLES.get(kind, kind),
    }
    if job.certificate and host.read(job.certificate, unclear="set"):
        labels["__scheme__"] = "https"
    if kind == "engine":
        path = host.read("deepseek_service_metrics_path") or METRICS_PATHS.get(
            str(host.read("deepseek_service_engine"))
        )
        if path:
            labels["__metrics_path__"] = str(path)
    return {"targets": [f"{_bracketed(address)}:{host.read(job.port) or job.default_port}"], "labels": labels}


def scrape_targets(
    value: Mapping[str, Iterable[str]],
    hostvars: Mapping[str, Any],
    scraper: str = "",
    own: Mapping[str, Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Target groups of each job, in the order of the hosts given."""
    known_jobs = [*JOBS, PROBE]
    unknown = sorted(set(value) - set(known_jobs)) if isinstance(value, Mapping) else ["input is no dictionary"]
    if unknown:
        raise AnsibleFilterError(
            f"scrape_targets: expected hosts by job, jobs are {', '.join(known_jobs)}; found {', '.join(unknown)}"
        )
    jobs: dict[str, list[str]] = {}
    for kind, hosts in value.items():
        if isinstance(hosts, (str, Mapping)) or not isinstance(hosts, Iterable):
            raise AnsibleFilterError(f"scrape_targets: expected a list of host names for job {kind}, found {hosts!r}")
        jobs[kind] = list(dict.fromkeys(str(host) for host in hosts))
    names = {name for hosts in jobs.values() for name in hosts}
    known = {name: Variables(hostvars, name, (own or {}) if name == scraper else {}) for name in names}
    return {
        kind: [
            group
            for name in hosts
            for group in (
                _probes(name, jobs, known[name], scraper)
                if kind == PROBE
                else _groups(name, kind, jobs, known[name], name == scraper)
            )
        ]
        for kind, hosts in jobs.items()
    }


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter functions by name."""
        return {"scrape_targets": scrape_targets}
