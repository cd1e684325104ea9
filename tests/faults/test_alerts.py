# SPDX-License-Identifier: Apache-2.0
"""Faults on real hosts, and who is paged: one cause is one page, and it is over when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from alerts import RESOLVED, Pages
from fleet import Fleet, cut_off

ENGINE = "deepseek-service.service"
EXPORTER = "prometheus-node-exporter.service"
# Seconds for a page with the tests' patience: scrape, evaluation, twelve seconds of "for", Alertmanager's wait, and a busy machine.
SOON = 75
# An engine loads its weights before it answers again.
LATER = 120


@contextmanager
def stopped(fleet: Fleet, unit: str, *hosts: str) -> Iterator[None]:
    """A service is killed and stays away on these hosts; afterwards it runs again."""
    try:
        for host in hosts:
            # Stopping ends its restarts; the process itself is killed.
            fleet.ssh(host, f"systemctl kill --signal=KILL {unit}; systemctl stop {unit}")
        yield
    finally:
        for host in hosts:
            fleet.ssh(host, f"systemctl start {unit}", timeout=180)


def test_the_dead_mans_switch_arrives(pages: Pages) -> None:
    """Rules, Prometheus, Alertmanager and web hook work; nobody is paged on a fleet that is well."""
    pages.wait_for("Watchdog", seconds=SOON)
    pages.mark()
    pages.wait_for("Watchdog", seconds=SOON)
    assert pages.paged() == set()


def test_an_engine_and_an_exporter_die(fleet: Fleet, pages: Pages) -> None:
    """One page for each of them: the probe of the engine and the gateway, which miss it as well, are silent."""
    pages.mark()
    with stopped(fleet, ENGINE, "gpu2"), stopped(fleet, EXPORTER, "gw1"):
        pages.wait_for("TargetDown", "gpu2", seconds=SOON)
        pages.wait_for("TargetDown", "gw1", seconds=SOON)
        assert pages.paged() == {("TargetDown", "gpu2"), ("TargetDown", "gw1")}
        pages.mark()
    pages.wait_for("TargetDown", "gw1", RESOLVED, SOON)
    pages.wait_for("TargetDown", "gpu2", RESOLVED, LATER)
    assert not {"ProbeFails", "GatewayEngineOut"} & {one.name for one in pages.told()}


def test_the_gateway_dies(fleet: Fleet, pages: Pages) -> None:
    """nginx is gone: its exporter, the probes and its own metrics tell of it, and one page comes."""
    pages.mark()
    with stopped(fleet, "nginx.service", "gw1"):
        pages.wait_for("NginxDown", "gw1", seconds=SOON)
        # Longer than any of the others would need.
        with pytest.raises(AssertionError):
            pages.wait_for("ProbeFails", "gw1", seconds=20)
        assert pages.paged() == {("NginxDown", "gw1")}
        pages.mark()
    pages.wait_for("NginxDown", "gw1", RESOLVED, SOON)


def test_a_host_is_cut_off(fleet: Fleet, pages: Pages) -> None:
    """Everything on it is down, and exactly one page comes."""
    pages.mark()
    with cut_off(fleet, "gpu1"):
        pages.wait_for("HostUnreachable", "gpu1", seconds=SOON)
        with pytest.raises(AssertionError):
            pages.wait_for("TargetDown", "gpu1", seconds=20)
        assert pages.paged() == {("HostUnreachable", "gpu1")}
        pages.mark()
    pages.wait_for("HostUnreachable", "gpu1", RESOLVED, SOON)


def test_every_engine_dies(fleet: Fleet, pages: Pages) -> None:
    """One page for the region, none for each engine and for what the gateway says of them."""
    pages.mark()
    with stopped(fleet, ENGINE, *fleet.groups["gpu_hosts"]):
        pages.wait_for("EnginesAllDown", seconds=SOON)
        with pytest.raises(AssertionError):
            pages.wait_for("TargetDown", seconds=20)
        assert pages.paged() == {("EnginesAllDown", "")}
        pages.mark()
    pages.wait_for("EnginesAllDown", state=RESOLVED, seconds=LATER)
