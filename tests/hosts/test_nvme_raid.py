# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""One story of two hosts with four empty NVMe drives and one that carries data: vm1 keeps that one, vm2 gives it up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hosttools import Hosts

ROLE = "nvme_raid"
KEEP = "mkdir -p /mnt/keep && mount -o ro /dev/disk/by-id/{0} /mnt/keep && cat /mnt/keep/models/keep-me.txt; umount /mnt/keep"
# What stands in for mkfs.xfs ends the module that called it, as a lost connection or the OOM killer would.
KILLER = r"printf '#!/bin/sh\nkill -9 $PPID\n' > /usr/sbin/mkfs.xfs && chmod 755 /usr/sbin/mkfs.xfs"


def by_id(vms: Hosts, host: str, drive: str) -> str:
    return f"nvme-QEMU_NVMe_Ctrl_{vms.ssh(host, 'cat /sys/block/nvme0n1/device/serial').rpartition('-')[0]}-{drive}"


class Story:
    """Names and settings of both hosts."""

    def __init__(self, vms: Hosts) -> None:
        self.vms = vms
        self.data = {host: by_id(vms, host, "data") for host in vms.names}
        blank = ["nvme0", "nvme1", "nvme2", "nvme3"]
        self.names = {host: [name.replace("-data", f"-{drive}") for drive in blank] for host, name in self.data.items()}
        self.kept = vms.ssh("vm1", KEEP.format(self.data["vm1"]))
        self.variables = {
            "nvme_raid_exclude": [self.data["vm1"]],
            "nvme_raid_confirm_wipe": [self.data["vm2"]],
            # To make an initramfs takes an emulated processor minutes. The kernel finds the array without it, which is the harder case.
            "nvme_raid_update_initramfs": False,
        }

    def on_all(self, host: str, command: str) -> str:
        """A command for each of the four drives that were empty."""
        return "; ".join(f"{command} /dev/disk/by-id/{name}" for name in self.names[host])


def give_up(vms: Hosts, found: Story) -> None:
    """Take the arrays and all of the role off the hosts."""
    every = [name for host in vms.names for name in (*found.names[host], found.data[host])]
    variables = {"nvme_raid_destroy": every, "nvme_raid_update_initramfs": False}
    vms.role(ROLE, tasks_from="remove.yml", variables=variables)
    for host in vms.names:
        vms.try_ssh(host, f"mdadm --stop --scan; {found.on_all(host, 'wipefs --all')}")


@pytest.fixture(scope="module")
def story(vms: Hosts) -> Iterator[Story]:
    found = Story(vms)
    if any(vms.try_ssh(host, found.on_all(host, "wipefs --no-act --noheadings")).stdout for host in vms.names):
        # What a run that was cut has left on hosts that are kept.
        give_up(vms, found)
    yield found
    vms.try_ssh("vm2", "test -e /usr/sbin/mkfs.xfs.real && mv /usr/sbin/mkfs.xfs.real /usr/sbin/mkfs.xfs")
    give_up(vms, found)
    # The drive that was unplugged comes back with its superblock, which no run may touch: the array is given up.
    vms.try_ssh(
        "vm2", "echo 1 > /sys/bus/pci/rescan; sleep 2; udevadm settle; mdadm --stop --scan; rm -rf /var/lib/prometheus"
    )
    vms.try_ssh("vm2", f"wipefs --all /dev/disk/by-id/{found.names['vm2'][3]}")
    disk = f"/dev/disk/by-id/{found.data['vm2']}"
    vms.try_ssh(
        "vm2",
        f"blkid -p {disk} || (mkfs.ext4 -q -L keepme {disk} && mount {disk} /mnt && mkdir /mnt/models "
        f"&& echo '{found.kept}' > /mnt/models/keep-me.txt && umount /mnt)",
    )


def test_a_drive_with_data_is_refused_by_name_and_stays_as_it_is(vms: Hosts, story: Story) -> None:
    told = vms.role(ROLE)
    for host in vms.names:
        told.refused(
            f"{host}: {story.data[host]} (/dev/nvme4n1, 1.1 GB) carries data: an ext4 file system named keepme.",
            "nvme_raid_confirm_wipe",
        )
    assert not any(told.changed.values())
    assert vms.ssh("vm1", KEEP.format(story.data["vm1"])) == story.kept
    assert "no arrays" in vms.ssh("vm1", "ls /dev/md* /var/lib/gpufleet/nvme_raid 2>/dev/null || echo no arrays")


def test_check_mode_on_a_bare_host_changes_nothing(vms: Hosts, story: Story) -> None:
    told = vms.role(ROLE, hosts="vm1", variables=story.variables, words=("--check", "--diff")).ok()
    assert told.changed["vm1"] > 0
    assert "+fstab: UUID=(new) /srv/models xfs" in told.text
    assert vms.ssh("vm1", "grep -c ^md /proc/mdstat || true") == "0"


def test_built_on_one_host_and_killed_between_create_and_mkfs_on_the_other(vms: Hosts, story: Story) -> None:
    vms.ssh("vm2", f"mv /usr/sbin/mkfs.xfs /usr/sbin/mkfs.xfs.real && {KILLER}")
    told = vms.role(ROLE, variables=story.variables)
    assert told.failed == {"vm1": 0, "vm2": 1}, told.text[-4000:]
    vms.ssh("vm2", "mv /usr/sbin/mkfs.xfs.real /usr/sbin/mkfs.xfs && sync")
    # The array of five is there, without a file system, and its record says so.
    assert vms.ssh("vm2", "mdadm --detail --export /dev/md/models | grep MD_DEVICES") == "MD_DEVICES=5"
    assert '"stage": "format"' in vms.ssh("vm2", "cat /var/lib/gpufleet/nvme_raid/models.json")
    assert vms.ssh("vm2", "wipefs --no-act --noheadings /dev/md/models") == ""
    assert "It has no redundancy: when one drive fails, all of it is lost." in " ".join(told.text.split())
    assert vms.ssh("vm1", KEEP.format(story.data["vm1"])) == story.kept
    assert vms.ssh("vm1", "xfs_info /srv/models | grep -c 'sunit=128 *swidth=512'") == "1"
    assert vms.ssh("vm1", "cat /sys/block/md*/queue/read_ahead_kb") == "4096"
    vms.ssh("vm1", "grep -q '^ARRAY /dev/md/models ' /etc/mdadm/mdadm.conf")


def test_after_a_power_cut_one_array_is_back_with_its_file_and_the_other_is_finished(vms: Hosts, story: Story) -> None:
    written = vms.ssh(
        "vm1", "head -c 50000000 /dev/urandom > /srv/models/weights && sync && sha256sum /srv/models/weights"
    )
    vms.cut_power(*vms.names)
    assert vms.ssh("vm1", "sha256sum /srv/models/weights") == written
    assert vms.ssh("vm1", "findmnt -no OPTIONS,SOURCE /srv/models").startswith("rw,noatime")
    assert vms.ssh("vm1", "cat /sys/block/md*/queue/read_ahead_kb; readlink -f /dev/md/models").startswith(
        "4096\n/dev/md"
    )
    told = vms.role(ROLE, variables=story.variables).ok()
    assert told.changed["vm1"] == 0, told.text[-4000:]
    assert told.changed["vm2"] > 0
    assert vms.ssh("vm2", "findmnt -no FSTYPE /srv/models && grep ^md /proc/mdstat | wc -w").split() == ["xfs", "9"]


def test_a_second_run_changes_nothing_and_growing_is_refused(vms: Hosts, story: Story) -> None:
    vms.role(ROLE, hosts="vm2", variables=story.variables).unchanged()
    grow = {**story.variables, "nvme_raid_exclude": []}
    vms.role(ROLE, hosts="vm1", variables=grow, words=("--check",)).refused(
        f"the array models has 4 drives and {story.data['vm1']}", "is chosen besides: growing is refused"
    )


def test_the_check_notices_a_drive_that_is_gone(vms: Hosts, story: Story) -> None:
    assert vms.ssh("vm2", "systemctl is-active gpufleet-nvme-raid.timer") == "active"
    vms.ssh("vm2", "mkdir -p /var/lib/node_exporter/textfile && systemctl start gpufleet-nvme-raid.service")
    path = "/var/lib/node_exporter/textfile/gpufleet_nvme_raid.prom"
    assert 'gpufleet_nvme_raid_up{array="models"} 1' in vms.ssh("vm2", f"cat {path}")
    # The drive of a hot unplug: the kernel forgets it, md calls the array broken.
    vms.ssh("vm2", "echo 1 > /sys/block/nvme3n1/device/device/remove; udevadm settle")
    vms.try_ssh("vm2", "systemctl start gpufleet-nvme-raid.service")
    assert 'gpufleet_nvme_raid_up{array="models"} 0' in vms.ssh("vm2", f"cat {path}")
    assert "nvme3 is not on this host" in vms.ssh("vm2", "journalctl --no-pager -o cat -u gpufleet-nvme-raid.service")
    vms.role(ROLE, hosts="vm2", variables=story.variables).refused(
        f"with 4 of 5 drives on this host, missing {story.names['vm2'][3]}",
        "A RAID 0 has no redundancy: without one of its drives there is no data. Nothing is changed",
    )
