# SPDX-License-Identifier: Apache-2.0
"""GPUs that break on hosts with simulated GPUs, a gateway that cannot reach an engine, and the end of those who watch: the longer half of the faults."""

from __future__ import annotations

import time
import typing as t
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from alerts import FIRING, QUICK, RESOLVED, Pages
from fleet import Fleet, dropped, wait_for

pytestmark = pytest.mark.long

PROFILE = "a100_sxm4_80gb_8"
SOON = 60
# Prometheus says again every so often that an alert fires (in production a minute), and Alertmanager believes it four times as long.
RESEND = 10
SETTINGS = {
    **QUICK,
    # The second is for the counters of an earlier run.
    "prometheus_extra_args": [f"--rules.alert.resend-delay={RESEND}s", "--web.enable-admin-api"],
}
# The counter, and what the rules have made of it.
XIDS = "&".join(f"match[]={quote(name)}" for name in ("nvidia_xid_errors_total", "gpu:xid:counted", "gpu:xid:recent"))


@pytest.fixture(scope="module", name="gpus")
def make_gpus(fleet: Fleet) -> Iterator[Fleet]:
    """The lab with eight simulated A100-80GB in each GPU host, and their page and XIDs in Prometheus; gone afterwards."""
    one = Fleet(fleet.inventory, **fleet.variables, lab_simulated_gpu_profile=PROFILE)
    for playbook in ("playbooks/lab_simulated_gpu.yml", "tests/faults/gpu_metrics.yml"):
        run = one.play(playbook)
        assert run.rc == 0, run.output
    try:
        yield one
    finally:
        one.ssh("gpu2", "gpufleet-simulated-gpu heal", check=False)
        for words in (
            # Prometheus first: it would miss the pages.
            ("playbooks/monitoring.yml", "--limit", "monitors", "--tags", "prometheus"),
            ("tests/faults/gpu_metrics.yml",),
            ("playbooks/lab_simulated_gpu.yml", "-e", '{"lab_simulated_gpu_profile": ""}'),
        ):
            run = fleet.play(*words)
            assert run.rc == 0, run.output


@pytest.fixture(scope="module", name="told")
def make_told(gpus: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """The alerts of that lab at a web hook."""
    with Pages(gpus, tmp_path_factory.mktemp("gpu_pages"), SETTINGS) as one:
        yield one


def xid_alerts(fleet: Fleet) -> list[t.Any]:
    """Alerts about XIDs that fire, for Prometheus or for Alertmanager."""
    words = quote('alertname=~"GpuXid.+"')
    try:
        firing = fleet.ask_monitor(9090, "/api/v1/alerts")["data"]["alerts"]
        believed = fleet.ask_monitor(9093, f"/api/v2/alerts?filter={words}")
    except (OSError, AssertionError) as exc:
        return [str(exc)]
    return [*believed, *(one for one in firing if one["labels"]["alertname"].startswith("GpuXid"))]


def forget_xids(fleet: Fleet) -> None:
    """The alerts of an earlier run still fire, and a counter is compared with that of ten minutes ago: its XIDs go from Prometheus and from the hosts."""
    if not fleet.ask_monitor(9090, f"/api/v1/series?{XIDS}&start={time.time() - 1800:.0f}")["data"]:
        return
    for host in fleet.groups["gpu_hosts"]:
        # The counter counts what the journal of this boot holds, so the lab host's journal begins anew.
        fleet.ssh(
            host, "journalctl --rotate && sleep 2 && journalctl --vacuum-time=1s && systemctl restart gpufleet-xid"
        )
    fleet.ask_monitor(9090, f"/api/v1/admin/tsdb/delete_series?{XIDS}", "POST")
    # An alert goes on for five minutes (keep_firing_for) in the memory of Prometheus; in that of Alertmanager for four, when it was told of it with the
    # lab's own resend delay.
    fleet.ssh(fleet.groups["monitors"][0], "systemctl restart prometheus.service", timeout=180)
    wait_for("the alerts of an earlier run are over", lambda: not xid_alerts(fleet), 300)
    # Until the end of the old ones was told, which is when the group's next message is due, new ones are no news.
    time.sleep(7)


def test_gpus_break_and_each_is_told_by_what_must_be_done(gpus: Fleet, told: Pages) -> None:
    """XID 79: power-cycle. 94: restart the engine. 64: check for an RMA. A pending remap: at the next drain. One cause, one page."""
    forget_xids(gpus)
    told.wait_for("Watchdog", seconds=SOON)
    # What was there before must be known: a GPU is missed only by those who have seen it, and a counter rises only from somewhere.
    time.sleep(6)
    told.mark()
    for words in ("lost --gpu 3", "ecc --gpu 1", "row_remap_failed --gpu 2", "row_remap_pending --gpu 4"):
        gpus.ssh("gpu2", f"gpufleet-simulated-gpu inject {words}")
    for name in ("GpuXidReboot", "GpuXidRestartApp", "GpuXidRmaCheck", "GpuXidNextDrain", "GpuRowRemapPending"):
        told.wait_for(name, "gpu2", seconds=SOON)
    with pytest.raises(AssertionError):
        told.wait_for("GpuLost", "gpu2", seconds=15)
    assert told.paged() == {("GpuXidReboot", "gpu2"), ("GpuXidRmaCheck", "gpu2")}

    told.mark()
    gpus.ssh("gpu2", "gpufleet-simulated-gpu heal")
    # Those of the XIDs go when the counter of the last ten minutes has forgotten them: tests/rules has that.
    told.wait_for("GpuRowRemapPending", "gpu2", RESOLVED, SOON)


def test_a_breaker_opens(gpus: Fleet, told: Pages) -> None:
    """The gateway alone cannot reach an engine that is well: a ticket, and nobody is woken."""
    gateway, engine = (gpus.vars[host]["ansible_host"] for host in ("gw1", "gpu1"))
    told.mark()
    with dropped(gpus, f"ip saddr {gateway} ip daddr {engine} tcp dport 8000"):
        told.wait_for("GatewayEngineOut", "gw1", seconds=2 * SOON)
        assert told.paged() == set()
        told.mark()
    told.wait_for("GatewayEngineOut", "gw1", RESOLVED, 2 * SOON)


def test_alertmanager_dies_and_the_dead_mans_switch_falls_silent(gpus: Fleet, told: Pages) -> None:
    """Nobody can tell of it but by silence: the receiver of the Watchdog misses it, and hears it again afterwards."""
    monitor, unit = gpus.groups["monitors"][0], "prometheus-alertmanager.service"
    told.wait_for("Watchdog", seconds=SOON)
    try:
        gpus.ssh(monitor, f"systemctl kill --signal=KILL {unit}; systemctl stop {unit}")
        time.sleep(5)
        told.mark()
        with pytest.raises(AssertionError):
            told.wait_for("Watchdog", seconds=20)
    finally:
        gpus.ssh(monitor, f"systemctl start {unit}", timeout=180)
    told.mark()
    told.wait_for("Watchdog", seconds=SOON)


def test_prometheus_dies_and_the_dead_mans_switch_falls_silent(gpus: Fleet, told: Pages) -> None:
    """Alertmanager goes on with what it was told last for four times the resend delay; the receiver of the Watchdog misses it then, and hears it again."""
    monitor, unit = gpus.groups["monitors"][0], "prometheus.service"
    told.wait_for("Watchdog", seconds=SOON)
    told.mark()
    try:
        gpus.ssh(monitor, f"systemctl kill --signal=KILL {unit}; systemctl stop {unit}")
        time.sleep(4 * RESEND + 15)
        last = max(
            (one.at for one in told.told() if one.name == "Watchdog" and one.state == FIRING), default=told.since
        )
        print(f"Watchdog was said for the last time {last - told.since:.1f} s after the death", flush=True)
        told.mark()
        with pytest.raises(AssertionError):
            told.wait_for("Watchdog", seconds=20)
    finally:
        told.mark()
        gpus.ssh(monitor, f"systemctl start {unit}", timeout=180)
    # Its first alerts go nowhere: it does not know Alertmanager for its first five seconds. The next time is the resend delay later.
    told.wait_for("Watchdog", seconds=RESEND + SOON)
