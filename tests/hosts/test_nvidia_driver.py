# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The distribution's driver on a real kernel: DKMS built it, it loads as far as it can without a GPU, and the role says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hosttools import Hosts

HOST = "vm1"
# What the role writes there. The packages are the image's and stay.
FILES = (
    "/etc/apt/preferences.d/gpufleet-nvidia-driver",
    "/etc/modprobe.d/gpufleet-nvidia-driver.conf",
    "/etc/systemd/system/nvidia-persistenced.service.d/gpufleet.conf",
    "/run/gpufleet/reboot-required.d/nvidia_driver.reason",
)
# An initramfs takes minutes on an emulated processor.
WISH: dict[str, Any] = {
    "nvidia_driver_source": "distro",
    "nvidia_driver_allow_no_gpu": True,
    "nvidia_driver_initramfs": False,
}


@pytest.fixture(name="driver", autouse=True)
def leave_as_found(vms: Hosts) -> Iterator[None]:
    yield
    vms.module(HOST, "package_hold", {"patterns": ["*"], "state": "released"})
    vms.ssh(HOST, f"rm -f {' '.join(FILES)} && systemctl daemon-reload")


def test_driver_without_a_gpu(vms: Hosts) -> None:
    vms.role("nvidia_driver", hosts=HOST, variables={**WISH, "nvidia_driver_allow_no_gpu": False}).refused(
        f"{HOST}: nvidia_driver_allow_no_gpu: expected an NVIDIA GPU on the PCI bus, found none (No NVIDIA GPU found)"
    )
    kernel = vms.ssh(HOST, "uname -r")
    said = vms.role("nvidia_driver", hosts=HOST, variables=WISH).ok().text
    flat = re.sub(r"\s+", " ", said)
    version = vms.ssh(HOST, "dpkg-query -W -f '${Version}' nvidia-open-kernel-dkms").split("-")[0]
    assert f"driver {version} is installed for kernel {kernel} and not loaded: No NVIDIA GPU found" in flat
    # DKMS really built it for this kernel, and this kernel really tried it.
    found = vms.ssh(
        HOST,
        "dkms status; modinfo -F vermagic nvidia-current-open; dmesg | grep 'NVRM: No NVIDIA GPU found'; apt-mark showhold; "
        "apt-cache policy linux-image-amd64 nvidia-open-kernel-dkms | grep -A1 Candidate",
    )
    assert re.search(rf"nvidia-current-open/{re.escape(version)}, {re.escape(kernel)}, x86_64: installed", found)
    assert f"{kernel} SMP" in found
    assert "NVRM: No NVIDIA GPU found." in found
    held = set(found.splitlines())
    assert {
        "nvidia-open-kernel-dkms",
        "nvidia-smi",
        "nvidia-persistenced",
        f"linux-image-{kernel}",
        f"linux-headers-{kernel}",
    } <= held
    # No daemon failed for the lack of a GPU, and nobody is asked to reboot.
    assert vms.try_ssh(HOST, "test -e /run/gpufleet/reboot-required.d/nvidia_driver.reason").returncode == 1
    vms.role("nvidia_driver", hosts=HOST, variables=WISH).unchanged()
