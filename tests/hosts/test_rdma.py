# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Soft RoCE between two hosts, with traffic; after a reboot, and after the port came again."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hosttools import Hosts

PORT = "enp0s17"
REBOOTED = "vm2"
MARK = "/run/gpufleet/reboot-required.d/rdma.reason"


@pytest.fixture(name="settings", scope="module")
def make_settings(vms: Hosts) -> dict[str, Any]:
    for name in vms.names:
        # Rail and management lie on one bridge here: the other port would answer for the rail's address, and RoCE packets that go
        # there are lost.
        vms.ssh(name, "echo net.ipv4.conf.all.arp_ignore=1 > /etc/sysctl.d/10-one-bridge.conf; sysctl -q --system")
    peers = [
        {
            "name": name,
            "rails": [
                {"name": "rail0", "address": vms.ssh(name, f"ip -4 -o address show {PORT}").split()[3], "mtu": 1500}
            ],
        }
        for name in vms.names
    ]
    return {"rdma_soft_roce_interfaces": [PORT], "rdma_peers": peers, "rdma_verify_seconds": 2}


def links(vms: Hosts, host: str) -> str:
    """Soft RoCE as the kernel shows it, once it is there."""
    limit = time.monotonic() + 60
    while True:
        said = vms.ssh(host, "rdma link show; true")
        if "rxe_" in said or time.monotonic() > limit:
            return said
        time.sleep(1)


def test_what_is_refused(vms: Hosts, settings: dict[str, Any]) -> None:
    wrong = [
        {**peer, "rails": [{**peer["rails"][0], "mtu": 1500 + index}]}
        for index, peer in enumerate(settings["rdma_peers"])
    ]
    vms.role("rdma", hosts="vm1", variables={**settings, "rdma_acs": "disabled"}).refused(
        "rdma_acs: expected bare metal for 'disabled', found a virtual machine (qemu)"
    )
    vms.role("rdma", hosts="vm1", variables={**settings, "rdma_peers": wrong}).refused(
        "rdma_peers: expected one mtu along rail0, found 1500 on vm1 and 1501 on vm2"
    )
    assert vms.ssh("vm1", "ls /etc/gpufleet/rdma 2>/dev/null; true") == ""


def test_traffic_between_two_hosts(vms: Hosts, settings: dict[str, Any]) -> None:
    done = vms.role("rdma", variables=settings).ok()
    flat = " ".join(done.text.split())
    for one, two in (("vm1", "vm2"), ("vm2", "vm1")):
        assert f"{one} rail0 to {two}: " in flat
    assert flat.count("Gb/s by soft RoCE, which is no measure of hardware, rping answered") == 2
    print([line.strip() for line in done.text.splitlines() if "Gb/s" in line])
    assert vms.ssh("vm1", "systemctl show --property=DefaultLimitMEMLOCK --value") == "infinity"
    vms.role("rdma", variables={**settings, "rdma_verify_traffic": False}).ok()
    vms.role("rdma", variables={**settings, "rdma_verify_traffic": False}).unchanged()


def test_soft_roce_refuses_other_offloads(vms: Hosts) -> None:
    vms.role("nic_offload", hosts="vm1", variables={"nic_offload_interfaces": [PORT]}).refused(
        "expected no RDMA port unless nic_offload_allow_rdma is true", f"found {PORT} with rxe_{PORT}"
    )


def test_a_port_that_comes_again(vms: Hosts) -> None:
    place = vms.ssh("vm1", f"basename $(readlink -f /sys/class/net/{PORT}/device)")
    driver = "/sys/bus/pci/drivers/e1000e"
    vms.ssh(
        "vm1", f"echo {place} > {driver}/unbind; sleep 1; rdma link show; echo {place} > {driver}/bind; udevadm settle"
    )
    assert f"netdev {PORT}" in links(vms, "vm1")


def test_one_reboot_for_the_kernel_argument(vms: Hosts, settings: dict[str, Any]) -> None:
    # The lab's inventory lets roles reboot.
    wanted = {**settings, "rdma_iommu_passthrough": "enabled", "fleet_reboot_allowed": False}
    vms.role("rdma", hosts=REBOOTED, variables={**wanted, "rdma_verify_traffic": False}).ok()
    assert vms.ssh(REBOOTED, f"cat {MARK}") == "the kernel was booted without iommu=pt"
    vms.reboot(REBOOTED)
    assert f"netdev {PORT}" in links(vms, REBOOTED)
    assert "iommu=pt" in vms.ssh(REBOOTED, "cat /proc/cmdline").split()
    # The partner was not rebooted; traffic crosses again, and nothing is left to do.
    done = vms.role("rdma", hosts=REBOOTED, variables=wanted).ok()
    assert "rping answered" in " ".join(done.text.split()), done.text[-4000:]
    assert done.changed == {REBOOTED: 0}, done.text[-4000:]
    assert vms.ssh(REBOOTED, f"cat {MARK} 2>/dev/null; true") == ""


def test_it_goes_away(vms: Hosts) -> None:
    vms.role("rdma", tasks_from="remove.yml").ok()
    for host in vms.names:
        assert "rxe_" not in vms.ssh(host, "rdma link show; true")
        assert vms.ssh(host, "find /etc /usr/local /var/lib/gpufleet -name '*gpufleet-rdma*' -o -name nccl.conf") == ""
