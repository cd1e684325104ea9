# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Offloads of a real driver: off, kept over a new link and a reboot, measured, and back."""

from __future__ import annotations

import time

import pytest
from hosttools import Hosts

HOST, PEER, PORT = "vm1", "vm2", "enp0s17"
OFF = {"nic_offload_interfaces": [PORT]}


def features(vms: Hosts) -> dict[str, str]:
    """Every line of ethtool, as it is."""
    lines = vms.ssh(HOST, f"ethtool -k {PORT}").splitlines()
    return {name.strip(): state.strip() for name, _colon, state in (line.partition(":") for line in lines[1:])}


def wait_until_off(vms: Hosts) -> dict[str, str]:
    """The unit is started by udev, some time after the port is there."""
    limit = time.monotonic() + 60
    while True:
        now = features(vms)
        if now["tx-checksumming"] == "off" or time.monotonic() > limit:
            return now
        time.sleep(1)


@pytest.fixture(name="before", scope="module")
def what_was_there(vms: Hosts) -> dict[str, str]:
    return features(vms)


def test_off_and_measured(vms: Hosts, before: dict[str, str]) -> None:
    assert before["tx-checksumming"] == "on"
    address = vms.ssh(PEER, f"ip -4 -o address show {PORT}").split()[3].split("/")[0]
    measure = {
        "nic_offload_measure_peer": PEER,
        "nic_offload_measure_address": address,
        "nic_offload_measure_seconds": 3,
    }
    done = vms.role("nic_offload", hosts=HOST, variables={**OFF, **measure}).ok()
    flat = " ".join(done.text.split())
    assert f"{HOST}: {PORT}: tcp-segmentation-offload went off with rx-checksumming, tx-checksumming" in flat
    for moment in ("before", "after"):
        assert f"{HOST} to {PEER} {moment} the change:" in flat
    print([line.strip() for line in done.text.splitlines() if "Gb/s" in line])
    now = features(vms)
    assert (now["tx-checksumming"], now["rx-checksumming"]) == ("off", "off")
    vms.role("nic_offload", hosts=HOST, variables=OFF).unchanged()


def test_a_port_that_comes_again(vms: Hosts) -> None:
    place = vms.ssh(HOST, f"basename $(readlink -f /sys/class/net/{PORT}/device)")
    driver = "/sys/bus/pci/drivers/e1000e"
    vms.ssh(HOST, f"echo {place} > {driver}/unbind; sleep 1; echo {place} > {driver}/bind; udevadm settle")
    assert wait_until_off(vms)["tx-checksumming"] == "off"


def test_after_a_reboot(vms: Hosts) -> None:
    vms.reboot(HOST)
    now = wait_until_off(vms)
    assert (now["tx-checksumming"], now["rx-checksumming"]) == ("off", "off")
    assert "set rx-checksumming off" in vms.ssh(
        HOST, f"journalctl --boot --output=cat --unit=gpufleet-nic-offload@{PORT}"
    )
    vms.role("nic_offload", hosts=HOST, variables=OFF).unchanged()


def test_back_to_what_was_there(vms: Hosts, before: dict[str, str]) -> None:
    reverted = {**OFF, "nic_offload_state": "reverted"}
    vms.role("nic_offload", hosts=HOST, variables=reverted).ok()
    assert features(vms) == before
    vms.role("nic_offload", hosts=HOST, variables=reverted).unchanged()
    vms.role("nic_offload", hosts=HOST, tasks_from="remove.yml").ok()
    left = "find /etc /usr/local /var/lib/gpufleet -name '*nic-offload*' -o -name '*nic_offload*'"
    assert vms.ssh(HOST, left) == ""
