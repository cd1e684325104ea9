# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The burn-in on a real kernel: RDMA writes over soft RoCE, a drive that goes and comes, power that fails in the middle."""

from __future__ import annotations

import json
import time
from typing import Any

from hosttools import Hosts

HOST = "vm1"
NETDEV = "enp0s17"
LINK = "burn0"
DRIVE = "gfhost-vm1-nvme3"
STATE = "/var/lib/gpufleet/burn_in"
VARIABLES: dict[str, Any] = {
    "burn_in_install_method": "none",
    "burn_in_tests": ["rdma", "fio", "hardware"],
    "burn_in_conflicting_units": [],
    "burn_in_rdma_devices": [LINK],
    "burn_in_rdma_gpu_memory": False,
    "burn_in_rdma_seconds": 2,
    "burn_in_rdma_write_gbps_min": 0.001,
    "burn_in_fio_directory": "/var/lib/gpufleet/burn_in_disk",
    "burn_in_fio_size": "16M",
    "burn_in_fio_read_mbs_min": 1,
    "burn_in_fio_write_mbs_min": 1,
    "burn_in_gpu_count": 0,
    "fleet_report_dir": "",
}


def info(vms: Hosts) -> dict[str, Any]:
    """What module burn_in_info says, by the configuration on the host."""
    return vms.module(HOST, "burn_in_info")


def test_rdma_and_disk_are_measured(vms: Hosts) -> None:
    vms.ssh(HOST, f"modprobe rdma_rxe && rdma link add {LINK} type rxe netdev {NETDEV}")
    done = vms.role("burn_in", hosts=HOST, variables=VARIABLES).ok()
    assert "rdma: passed: burn0 port 1: RDMA write" in " ".join(done.text.split())
    result = json.loads(vms.ssh(HOST, f"cat {STATE}/result.json"))
    tests = {entry["name"]: entry for entry in result["tests"]}
    assert tests["rdma"]["measured"]["write_gbps"][f"{LINK} port 1"] > 0.001
    assert tests["fio"]["measured"]["read_mbs"] > 1
    assert not result["simulated"]
    # All five drives and both ports of hardware, and nothing that has no hardware of its own.
    assert len(result["fingerprint"]["nvme"]) == 5
    assert sorted(result["fingerprint"]["nics"].values()) == ["enp0s16", "enp0s17"]


def test_a_second_run_changes_nothing(vms: Hosts) -> None:
    vms.role("burn_in", hosts=HOST, variables=VARIABLES).unchanged()


def test_a_drive_that_goes_voids_the_result_until_it_comes_back(vms: Hosts) -> None:
    path = vms.ssh(HOST, f"dirname $(grep -l {DRIVE} /sys/class/nvme/*/serial) | xargs -I% readlink -f %/device")
    vms.ssh(HOST, f"echo 1 > {path}/remove")
    try:
        found = info(vms)
    finally:
        vms.ssh(HOST, "echo 1 > /sys/bus/pci/rescan")
    assert found["verdict"] == "void"
    assert [reason.split(" (")[0] for reason in found["reasons"]] == [f"NVMe drive {DRIVE}"]
    assert "was tested and is gone" in found["reasons"][0]
    limit = time.monotonic() + 60
    while not info(vms)["valid"] and time.monotonic() < limit:
        time.sleep(1)
    assert info(vms)["reasons"] == []


def test_a_host_that_lost_its_power_in_the_middle_is_not_proved(vms: Hosts) -> None:
    # Longer than the test, and it must not go on by itself after the boot.
    vms.ssh(
        HOST,
        'sed -i \'s/"seconds": 2/"seconds": 3000/\' /etc/gpufleet/burn_in/job.json && systemctl start gpufleet-burn-in',
    )
    limit = time.monotonic() + 60
    while info(vms)["state"] != "running" and time.monotonic() < limit:
        time.sleep(1)
    job = info(vms)["job"]
    vms.cut_power(HOST)
    found = info(vms)
    assert (found["valid"], found["state"], found["job"]) == (False, "interrupted", job)
    assert found["reasons"] == [f"the burn-in {job} did not come to its end (interrupted)"]
    assert vms.ssh(HOST, "systemctl is-active gpufleet-burn-in; true") == "inactive"


def test_nothing_is_left(vms: Hosts) -> None:
    vms.role("burn_in", hosts=HOST, variables=VARIABLES, tasks_from="remove.yml").ok()
    assert vms.ssh(HOST, "find /etc /usr/local /var/lib/gpufleet -name '*burn*in*' 2>/dev/null; true") == ""
