# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""hosts.yml with all its roles on two virtual hosts: killed before its reboot, finished by the next run, and then at rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

import hosttools
from hosttools import Hosts, Result

ARRAY = "/srv/models"
NO_GPU = "No NVIDIA GPU found"


def variables(vms: Hosts) -> dict[str, Any]:
    """Every role that prepares hosts, on both at a time: nobody serves here."""
    rail = vms.rail_subnet.rpartition(".")[0]
    return {
        "fleet_serial": ["100%"],
        "os_hardening_enabled": True,
        "os_hardening_rails": ["enp0s17"],
        # Masked in images of the lab.
        "os_hardening_updates_timers": False,
        "nvidia_driver_enabled": True,
        "nvidia_driver_source": "distro",
        "nvidia_driver_flavor": "open",
        "nvidia_driver_allow_no_gpu": True,
        "nvme_raid_enabled": True,
        "nvme_raid_count": 4,
        "nvme_raid_exclude": [f"nvme-QEMU_NVMe_Ctrl_{vms.name[:6]}-{{{{ inventory_hostname }}}}-data"],
        "nic_offload_enabled": True,
        "nic_offload_interfaces": ["enp0s16"],
        "rdma_enabled": True,
        "rdma_soft_roce_interfaces": ["enp0s17"],
        "rdma_verify_seconds": 1,
        "fleet_rails": [{"name": "enp0s17", "address": f"{rail}.{{{{ ansible_host.split('.') | last }}}}/24"}],
    }


def boots(vms: Hosts, host: str) -> int:
    """How often the host has booted."""
    return int(vms.ssh(host, "last reboot | grep -c ^reboot"))


def run_until(vms: Hosts, task: str, seconds: float = 1500) -> str:
    """Start hosts.yml and kill it, as a power cut of the controller would, when it begins that task; what it had said."""
    argv = [hosttools.tool("ansible-playbook"), "-i", "inventories/lab", "playbooks/hosts.yml", *vms.variables()]
    argv += ["-e", json.dumps(variables(vms))]
    env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"}
    said: list[str] = []
    limit = time.monotonic() + seconds
    with subprocess.Popen(
        argv,
        cwd=hosttools.ROOT,
        env=env,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as play:
        assert play.stdout is not None
        for line in play.stdout:
            said.append(line)
            if line.startswith("TASK [") and task in line:
                os.killpg(play.pid, signal.SIGKILL)
                break
            assert time.monotonic() < limit, "".join(said[-40:])
        play.stdout.close()
    text = "".join(said)
    assert task in text, text[-6000:]
    return text


def hosts_yml(vms: Hosts, *words: str) -> Result:
    """One run."""
    return vms.playbook("playbooks/hosts.yml", *words, variables=variables(vms))


def test_a_run_that_is_killed_before_its_reboot(vms: Hosts) -> None:
    """The driver waits for the kernel that is installed and does not run: killed when it is to be rebooted into."""
    for host in vms.names:
        newest = vms.ssh(host, "ls /boot/vmlinuz-* | sort -V | tail -1").rpartition("vmlinuz-")[2]
        assert vms.ssh(host, "uname -r") != newest
        vms.ssh(host, f"ln -sf boot/vmlinuz-{newest} /vmlinuz; ln -sf boot/initrd.img-{newest} /initrd.img; sync")
    text = run_until(vms, "reboot | Reboot")
    assert "wait" in text


def test_the_next_run_finishes_it(vms: Hosts) -> None:
    before = {host: boots(vms, host) for host in vms.names}
    # Two more causes: an update that asks for a reboot, and an operator's own.
    for host in vms.names:
        vms.ssh(host, "touch /run/reboot-required")
    result = hosts_yml(vms).ok()
    assert NO_GPU in " ".join(result.text.split())
    for host in vms.names:
        # One reboot: what waited for the driver's kernel is done with it, and so is the update.
        assert boots(vms, host) - before[host] == 1
        assert vms.ssh(host, "find /run/gpufleet/reboot-required.d/* /run/reboot-required 2>/dev/null || true") == ""


def test_another_run_changes_nothing(vms: Hosts) -> None:
    hosts_yml(vms).unchanged()


def test_what_the_hosts_are_now(vms: Hosts) -> None:
    for host in vms.names:
        newest = vms.ssh(host, "ls /boot/vmlinuz-* | sort -V | tail -1").rpartition("vmlinuz-")[2]
        assert vms.ssh(host, "uname -r") == newest
        assert "xfs" in vms.ssh(host, f"findmnt -no FSTYPE,OPTIONS {ARRAY}")
        assert "off" in vms.ssh(host, "ethtool -k enp0s16 | grep tx-checksumming")
        assert "ACTIVE" in vms.ssh(host, "rdma link")
        assert vms.ssh(host, "sysctl -n kernel.kptr_restrict") != "0"
        assert "table inet gpufleet" in vms.ssh(host, "nft list tables")
        for kernel in vms.ssh(host, "ls /boot/vmlinuz-*").split():
            version = kernel.rpartition("vmlinuz-")[2]
            path = vms.ssh(host, f"modinfo -k {version} -n nvidia-current-open")
            assert "/dkms/" in path
            assert vms.ssh(host, f"modinfo -F vermagic {path}").startswith(version)
        text = vms.ssh(host, "mount -o ro /dev/disk/by-label/keepme /mnt && cat /mnt/models/keep-me.txt; umount /mnt")
        assert text == "This file lies on a drive that no role may touch."


def test_all_of_it_survives_a_power_cut(vms: Hosts) -> None:
    vms.ssh("vm1", f"echo weights > {ARRAY}/file && sync")
    vms.cut_power(*vms.names)
    assert vms.ssh("vm1", f"cat {ARRAY}/file && rm {ARRAY}/file") == "weights"
    hosts_yml(vms).unchanged()
