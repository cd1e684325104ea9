# SPDX-License-Identifier: Apache-2.0
"""Faults of a machine with a kernel, a clock and drives of its own, a virtual one, and what is told of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from alerts import FIRING, QUICK, RESOLVED, Pages
from fleet import ROOT, Fleet, wait_for

pytestmark = [pytest.mark.long, pytest.mark.own_lab]

# Another lab for somebody who works on a test: GPUFLEET_ALERTS_LAB=NAME,SUBNET,RAIL_SUBNET; with GPUFLEET_KEEP_HOSTS=1 it is left standing.
NAME, SUBNET, RAIL_SUBNET = (os.environ.get("GPUFLEET_ALERTS_LAB") or "gfalerts,10.75.4.0/24,172.30.75.0/24").split(",")
VM, MONITOR = "vm1", "mon1"
ARRAY = "/srv/models"
DRIVE = f"nvme-QEMU_NVMe_Ctrl_{NAME[:6]}-{VM}-"
SOON = 120
# What an emulated host on a busy machine tells by itself: it answers late, and its network card loses packets. And Prometheus drops alerts when it is
# configured for these tests, which is no fault if it is over within five minutes.
SLOW = {"Watchdog", "HostUnreachable", "TargetDown", "NetworkErrors", "AlertsNotDelivered"}
# An emulated machine takes its time to boot.
BOOT = 600


@pytest.fixture(scope="module", name="machine")
def make_machine() -> Iterator[Fleet]:
    """One virtual host with an array of four NVMe drives, prepared by hosts.yml, and a monitor, which tells it the time as well."""
    one = Fleet(
        ROOT / "inventories" / "lab",
        lab_name=NAME,
        lab_subnet=SUBNET,
        lab_vm_rail_subnet=RAIL_SUBNET,
        lab_gateway_count=0,
        lab_gpu_count=0,
        lab_monitor_count=1,
        lab_vm_count=1,
        # To install a package takes an emulated processor minutes.
        lab_vm_extra_packages=["prometheus-node-exporter"],
        lab_image_timeout=1800,
        nvme_raid_enabled=True,
        nvme_raid_exclude=[f"{DRIVE}data"],
        nvme_raid_check_seconds=30,
        nvme_raid_update_initramfs=False,
        # No engine is there: nothing but the machine is watched.
        prometheus_engine_hosts=[],
    )
    try:
        for words in (
            ("playbooks/lab_up.yml",),
            ("playbooks/hosts.yml",),
            ("playbooks/monitoring.yml", "--tags", "node_exporter,alertmanager,blackbox_exporter,prometheus"),
        ):
            run = one.play(*words, timeout=2400)
            assert run.rc == 0, run.output
        give_time(one)
        yield one
    finally:
        if os.environ.get("GPUFLEET_KEEP_HOSTS") != "1":
            run = one.play("playbooks/lab_down.yml")
            assert run.rc == 0, run.output


def give_time(fleet: Fleet) -> None:
    """The monitor is the machine's only time server: it gives the time that it has."""
    fleet.ssh(MONITOR, "command -v chronyd || apt-get install -qq --no-install-recommends chrony", timeout=300)
    # A container cannot set the clock, so the distribution's unit does not start here.
    words = f"chronyd -x -d 'local stratum 5' 'allow {SUBNET}' 'cmdport 0'"
    fleet.ssh(MONITOR, f"systemctl is-active test-time.service || systemd-run --unit=test-time {words}")
    server = f"server {fleet.vars[MONITOR]['ansible_host']} iburst minpoll 0 maxpoll 2"
    fleet.ssh(VM, f"echo '{server}' > /etc/chrony/sources.d/test.sources; systemctl restart chrony", timeout=120)
    fleet.ssh(VM, "chronyc waitsync 60 0.5 0 1", timeout=120)


@pytest.fixture(scope="module", name="told")
def make_told(machine: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """The alerts of that lab at a web hook. An emulated host takes seconds to answer a scrape."""
    slow = {
        name: "10s" for name in QUICK if name.startswith("prometheus_") and name.endswith(("_interval", "_timeout"))
    }
    with Pages(machine, tmp_path_factory.mktemp("machine_pages"), {**QUICK, **slow}) as one:
        one.wait_for("Watchdog", seconds=SOON)
        yield one


def names(told: Pages) -> set[str]:
    """What has been told since the mark, but for what is nobody's fault here."""
    return {one.name for one in told.told() if one.state == FIRING} - SLOW


def test_a_file_system_fills_up(machine: Fleet, told: Pages) -> None:
    """A ticket when it is nearly full, a page when it is; both are over when there is room again."""
    machine.ssh(VM, f"fallocate -l $(($(stat -f -c '%a * %S * 95 / 100' {ARRAY}))) {ARRAY}/one")
    told.mark()
    try:
        told.wait_for("DiskSpaceLow", VM, seconds=SOON)
        assert names(told) == {"DiskSpaceLow"}
        told.mark()
        machine.ssh(VM, f"fallocate -l $(($(stat -f -c '%a * %S * 95 / 100' {ARRAY}))) {ARRAY}/two")
        told.wait_for("DiskSpaceCritical", VM, seconds=SOON)
        assert names(told) == {"DiskSpaceCritical"}
    finally:
        told.mark()
        machine.ssh(VM, f"rm -f {ARRAY}/one {ARRAY}/two")
    told.wait_for("DiskSpaceCritical", VM, RESOLVED, SOON)


def test_a_clock_is_wrong(machine: Fleet, told: Pages) -> None:
    """The time daemon is gone and somebody sets the clock: tickets. The daemon comes back and sets it right: over."""
    told.mark()
    try:
        machine.ssh(VM, "systemctl stop chrony && date -s '+30 seconds'")
        told.wait_for("ClockDiffers", VM, seconds=SOON)
        told.wait_for("ClockNotSynchronised", VM, seconds=SOON)
        assert names(told) == {"ClockDiffers", "ClockNotSynchronised"}
    finally:
        told.mark()
        machine.ssh(VM, "systemctl start chrony", timeout=120)
    told.wait_for("ClockDiffers", VM, RESOLVED, SOON)
    told.wait_for("ClockNotSynchronised", VM, RESOLVED, SOON)


def boot_id(fleet: Fleet) -> str:
    """Another one with every boot; empty when the machine does not answer."""
    try:
        return fleet.ssh(VM, "cat /proc/sys/kernel/random/boot_id", check=False).stdout
    except subprocess.TimeoutExpired:
        return ""


def test_a_drive_of_the_array_is_gone(machine: Fleet, told: Pages) -> None:
    """One page, and nothing of the array besides it; the drive is found again at the next boot, and the array with its file."""
    written = machine.ssh(
        VM, f"head -c 20000000 /dev/urandom > {ARRAY}/weights && sync && sha256sum {ARRAY}/weights", timeout=120
    ).stdout
    told.mark()
    # What a drive does that falls off the bus: the kernel forgets it.
    machine.ssh(VM, f"echo 1 > /sys/block/$(basename $(readlink -f /dev/disk/by-id/{DRIVE}nvme3))/device/device/remove")
    told.wait_for("NvmeRaidMemberMissing", VM, seconds=SOON)
    # The unit of the check has failed as well, and nobody need be told.
    wait_for("the failed unit is an alert", lambda: "HostUnitFailed" in machine.firing(), SOON)
    time.sleep(15)
    assert names(told) == {"NvmeRaidMemberMissing"}
    told.mark()
    before = boot_id(machine)
    machine.ssh(VM, "systemctl reboot", check=False)
    wait_for("it boots", lambda: boot_id(machine) not in ("", before), BOOT)
    # A host that is away has no metrics, and no alert made of them: nobody is told that it is over before it has booted.
    assert [one for one in told.told() if one.name == "NvmeRaidMemberMissing" and one.state == RESOLVED] == []
    query = f"/api/v1/query?query={quote(f'gpufleet_nvme_raid_up{{host={VM!r}}} == 1')}"
    wait_for("the array is seen whole", lambda: machine.ask_monitor(9090, query)["data"]["result"] != [], SOON)
    told.wait_for("NvmeRaidMemberMissing", VM, RESOLVED, 10 * QUICK["prometheus_alert_hold_seconds"] + SOON)
    assert names(told) == set()
    assert machine.ssh(VM, f"sha256sum {ARRAY}/weights", timeout=120).stdout == written
    machine.ssh(VM, f"rm {ARRAY}/weights")
