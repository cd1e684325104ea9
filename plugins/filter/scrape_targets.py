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
}
GATEWAY_LIMITS = Job("gateway_metrics_address", "gateway_metrics_port", 9145)
METRICS_PATHS = {"tensorrt_llm": "/prometheus/metrics"}


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


def _groups(
    name: str, kind: str, jobs: Mapping[str, list[str]], host: Variables, is_scraper: bool
) -> list[dict[str, Any]]:
    """The targets of a host for a job: what a gateway's Lua says of limits and engines belongs to the job of the gateway."""
    found = [_group(name, kind, jobs, host, is_scraper, JOBS[kind])]
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
    if ":" in address:
        address = f"[{address}]"
    labels = {
        "host": name,
        "region": str(host.read("fleet_region") or "default"),
        "role": _role(name, jobs) if kind == "node" else kind,
    }
    if job.certificate and host.read(job.certificate, unclear="set"):
        labels["__scheme__"] = "https"
    if kind == "engine":
        path = host.read("deepseek_service_metrics_path") or METRICS_PATHS.get(
            str(host.read("deepseek_service_engine"))
        )
        if path:
            labels["__metrics_path__"] = str(path)
    return {"targets": [f"{address}:{host.read(job.port) or job.default_port}"], "labels": labels}


def scrape_targets(
    value: Mapping[str, Iterable[str]],
    hostvars: Mapping[str, Any],
    scraper: str = "",
    own: Mapping[str, Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Target groups of each job, in the order of the hosts given."""
    unknown = sorted(set(value) - set(JOBS)) if isinstance(value, Mapping) else ["input is no dictionary"]
    if unknown:
        raise AnsibleFilterError(
            f"scrape_targets: expected hosts by job, jobs are {', '.join(JOBS)}; found {', '.join(unknown)}"
        )
    jobs: dict[str, list[str]] = {}
    for kind, hosts in value.items():
        if isinstance(hosts, (str, Mapping)) or not isinstance(hosts, Iterable):
            raise AnsibleFilterError(f"scrape_targets: expected a list of host names for job {kind}, found {hosts!r}")
        jobs[kind] = list(dict.fromkeys(str(host) for host in hosts))
    names = {name for hosts in jobs.values() for name in hosts}
    known = {name: Variables(hostvars, name, (own or {}) if name == scraper else {}) for name in names}
    return {
        kind: [group for name in hosts for group in _groups(name, kind, jobs, known[name], name == scraper)]
        for kind, hosts in jobs.items()
    }


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter functions by name."""
        return {"scrape_targets": scrape_targets}
