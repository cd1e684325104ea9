# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Lab hosts of the kind vm: what each has, that it heals, and that a second run leaves it alone."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from hosttools import Hosts, run


def qemu(vms: Hosts, host: str) -> int:
    """The process that is a host."""
    return int((vms.state / "hosts" / host / "qemu.pid").read_text(encoding="ascii"))


def test_each_host_is_itself(vms: Hosts) -> None:
    for host in vms.names:
        text = vms.ssh(
            host,
            "hostname; ip -4 -o addr show enp0s16; cat /proc/modules | grep -c ^nvme; uname -r; findmnt -no SOURCE /",
        )
        assert text.splitlines()[0] == host
        assert f" {vms.address(host)}/24 " in text
        assert text.splitlines()[-1] == "/dev/vdb"
    # A kernel of their own, not the machine's.
    assert vms.ssh("vm1", "uname -r") != os.uname().release


def test_drives_and_the_one_with_data(vms: Hosts) -> None:
    found = json.loads(vms.ssh("vm1", "lsblk --json -o NAME,SERIAL,FSTYPE,LABEL,SIZE,TYPE,MOUNTPOINT"))["blockdevices"]
    drives = {item["serial"]: item for item in found if item["name"].startswith("nvme")}
    assert sorted(drives) == [vms.serial("vm1", name) for name in ("data", "nvme0", "nvme1", "nvme2", "nvme3")]
    assert drives[vms.serial("vm1", "data")]["label"] == "keepme"
    assert [drives[vms.serial("vm1", f"nvme{number}")]["fstype"] for number in range(4)] == [None] * 4
    text = vms.ssh("vm1", "mount -o ro /dev/disk/by-label/keepme /mnt && cat /mnt/models/keep-me.txt; umount /mnt")
    assert text == "This file lies on a drive that no role may touch."


def test_hosts_talk_on_both_cards(vms: Hosts) -> None:
    for address in (vms.address("vm2"), vms.rail("vm2")):
        vms.ssh("vm1", f"ping -c 2 -W 5 {address}")
    drivers = vms.ssh(
        "vm1", "for card in enp0s16 enp0s17; do basename $(readlink /sys/class/net/$card/device/driver); done"
    )
    assert drivers.split() == ["e1000e", "e1000e"]


def test_offloads_can_be_toggled(vms: Hosts) -> None:
    shown = "ethtool -k enp0s17 | grep tx-checksum-ip-generic"
    assert vms.ssh("vm1", f"ethtool -K enp0s17 tx off && {shown}").endswith("off")
    assert vms.ssh("vm1", f"ethtool -K enp0s17 tx on && {shown}").endswith("on")


def test_a_second_run_changes_nothing(vms: Hosts) -> None:
    before = {host: vms.boot_id(host) for host in vms.names}
    vms.up().unchanged()
    vms.playbook("playbooks/lab_up.yml", "--check", "--diff").unchanged()
    assert {host: vms.boot_id(host) for host in vms.names} == before


def test_a_dead_host_is_booted_again_with_its_disk(vms: Hosts) -> None:
    other = vms.boot_id("vm1")
    vms.ssh("vm2", "echo kept > /root/kept && sync")
    pid = qemu(vms, "vm2")
    os.kill(pid, signal.SIGKILL)
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        time.sleep(0.1)
    result = vms.up().ok()
    assert result.changed["localhost"] == 1
    assert vms.ssh("vm2", "cat /root/kept; rm /root/kept") == "kept"
    assert vms.boot_id("vm1") == other


def test_power_is_cut(vms: Hosts) -> None:
    vms.ssh("vm1", "echo synced > /root/synced && sync && echo lost > /root/lost")
    pid = qemu(vms, "vm1")
    vms.cut_power("vm1")
    assert qemu(vms, "vm1") == pid
    assert (
        vms.ssh("vm1", "cat /root/synced; cat /root/lost 2>/dev/null | tr -d '\\0'; rm -f /root/synced /root/lost")
        == "synced"
    )


def test_values_that_cannot_be(vms: Hosts) -> None:
    vms.playbook("playbooks/lab_up.yml", variables={"lab_vm_memory_mb": 100}).refused(
        "memory_mb: expected at least 512, found 100"
    )


def test_secrets_are_the_owners(vms: Hosts) -> None:
    folder = vms.state / "hosts" / "vm1"
    for name in ("seed.img", "host.json", "console.log"):
        assert (folder / name).stat().st_mode & 0o077 == 0, name
    assert folder.stat().st_mode & 0o077 == 0
    # The host's private key is nowhere on QEMU's command line.
    assert "PRIVATE" not in run(["ps", "-ww", "-o", "args=", "-p", str(qemu(vms, "vm1"))]).stdout
