# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading a host's driver: captured output, and a tree in place of a host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Output, Reader
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver import (
    Driver,
    Probe,
    components,
    natural,
    parse_dkms,
    parse_loaded,
    parse_packages,
    parse_parameters,
    upstream,
)

KERNEL = "6.1.0-50-amd64"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)\nGCC version: 12\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Tue Jun 10 2025\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (OPEN, ("580.95.05", "open")),
        (CLOSED, ("535.261.03", "proprietary")),
        ("", ("", "")),
        ("NVRM version: none", ("", "")),
    ],
)
def test_loaded_module(text: str, found: tuple[str, str]) -> None:
    assert parse_loaded(text) == found


def test_dkms_lines() -> None:
    text = (
        "nvidia-current-open/535.261.03, 6.1.0-50-amd64, x86_64: installed\n"
        "nvidia/580.95.05, 5.15.0-1053-nvidia, x86_64: built\n"
        "nvidia/580.95.05: added\n"
        "mlnx-ofed-kernel/24.10, 6.1.0-50-amd64, x86_64: installed\n"
    )
    assert [(one["module"], one["version"], one["kernel"], one["state"]) for one in parse_dkms(text)] == [
        ("nvidia-current-open", "535.261.03", "6.1.0-50-amd64", "installed"),
        ("nvidia", "580.95.05", "5.15.0-1053-nvidia", "built"),
    ]


def test_packages_of_dpkg() -> None:
    text = (
        "nvidia-smi\t535.261.03-1\thold\tinstalled\nlibcuda1:amd64\t535.261.03-1\tinstall\thalf-configured\n"
        "nvidia-driver\t\tdeinstall\tconfig-files\nbroken line\n"
    )
    found = parse_packages(text)
    assert sorted(found) == ["libcuda1", "nvidia-smi"]
    assert found["nvidia-smi"].held
    assert found["libcuda1"].state == "half-configured"


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("535.261.03-1", "535.261.03"),
        ("580.95.05-0ubuntu1", "580.95.05"),
        ("1:2.3-4", "2.3"),
        ("", ""),
        ("570.172.08-1~deb12u1", "570.172.08"),
    ],
)
def test_upstream_version(version: str, found: str) -> None:
    assert upstream(version) == found


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.1.0-9-amd64", "6.1.0-50-amd64"),
        ("5.15.0-99-generic", "6.8.0-31-generic"),
        ("580.65.06", "580.126.09"),
        ("580", "580.65.06"),
    ],
)
def test_order_of_versions(older: str, newer: str) -> None:
    assert natural(older) < natural(newer)


def test_components_of_both_forms() -> None:
    texts = [
        "deb [signed-by=/x y=z] http://deb.debian.org/debian bookworm main contrib\n# deb http://x bookworm old\ndeb-src http://x b src\n",
        "Types: deb\nURIs: http://x\nSuites: bookworm\nComponents: main non-free\n",
    ]
    assert components(texts) == ["contrib", "main", "non-free"]


def test_parameters() -> None:
    assert parse_parameters('RmProfilingAdminOnly: 1\nRegistryDwords: ""\nnonsense\n') == {
        "RmProfilingAdminOnly": "1",
        "RegistryDwords": "",
    }


def put(root: Path, path: str, text: str | bytes) -> None:
    """One file of a recorded host."""
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture(name="tree")
def make_tree(tmp_path: Path) -> Path:
    """An HGX board with one GPU and one NVSwitch seen, driver and Fabric Manager of two versions, a kernel that waits."""
    for address, device, kind in (("0000:07:00.0", "0x20b2", "0x030200"), ("0000:c4:00.0", "0x1af1", "0x068000")):
        for name, text in (("vendor", "0x10de"), ("device", device), ("class", kind)):
            put(tmp_path, f"/sys/bus/pci/devices/{address}/{name}", f"{text}\n")
    put(tmp_path, "/proc/sys/kernel/osrelease", f"{KERNEL}\n")
    put(tmp_path, "/proc/driver/nvidia/version", OPEN)
    put(tmp_path, "/sys/module/nouveau/refcnt", "0\n")
    put(tmp_path, f"/boot/vmlinuz-{KERNEL}", "")
    put(tmp_path, "/boot/vmlinuz-6.1.0-51-amd64", "")
    put(tmp_path, f"/lib/modules/{KERNEL}/build/Makefile", "")
    put(tmp_path, f"/lib/modules/{KERNEL}/updates/dkms/nvidia.ko.xz", "")
    put(tmp_path, "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.95.05", "")
    put(tmp_path, "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", b"\6\0\0\0\1")
    put(tmp_path, "/var/lib/dkms/mok.pub", "")
    put(tmp_path, "/etc/apt/sources.list", "deb http://deb.debian.org/debian bookworm main\n")
    put(tmp_path, "/etc/apt/sources.list.d/gpufleet-nvidia-driver.sources", "Components: non-free\n")
    put(
        tmp_path,
        "/commands/dpkg_query",
        "nvidia-fabricmanager\t570.172.08-1\thold\tinstalled\nbash\t5.2\tinstall\tunpacked\n",
    )
    put(tmp_path, "/commands/modinfo_version", "580.95.05\n")
    put(tmp_path, "/commands/mokutil_test_key", "/var/lib/dkms/mok.pub is not enrolled\n")
    put(tmp_path, "/commands/dkms_status", f"nvidia/580.95.05, {KERNEL}, x86_64: installed\n")
    return tmp_path


def test_a_recorded_host(tree: Path) -> None:
    driver = Probe(Reader(str(tree))).read()
    assert [gpu["key"] for gpu in driver.gpus] == ["a100-sxm4-80gb"]
    assert driver.nvswitches == 1
    assert (driver.kernel, driver.newest_kernel, driver.kernel_pending, driver.headers) == (
        KERNEL,
        "6.1.0-51-amd64",
        True,
        True,
    )
    assert (driver.loaded, driver.module, driver.module_version, driver.library) == (
        "580.95.05",
        "nvidia",
        "580.95.05",
        "580.95.05",
    )
    assert driver.nouveau
    assert (driver.secure_boot, driver.mok_enrolled) == (True, False)
    assert driver.dpkg_interrupted
    assert sorted(driver.packages) == ["nvidia-fabricmanager"]
    # The role's own file does not count.
    assert driver.components == ["main"]


def test_an_empty_host(tmp_path: Path) -> None:
    put(tmp_path, "/proc/sys/kernel/osrelease", "6.18.0\n")
    driver = Probe(Reader(str(tmp_path))).read(["deepseek-*.service"], "/etc/modprobe.d/x.conf")
    assert driver == Driver(kernel="6.18.0", secure_boot=False)
    assert not driver.kernel_pending


def test_tools_of_a_live_host() -> None:
    asked = []

    def run(argv: Sequence[str], timeout: float) -> Output:
        asked.append(argv[0])
        return Output(0, "deepseek-service.service loaded active running x\n" if argv[0] == "systemctl" else "")

    driver = Probe(Reader(), run).read(["deepseek-*.service"])
    assert driver.active_units == ["deepseek-service.service"]
    assert "dpkg-query" in asked


def test_units_that_were_stopped_are_remembered(tmp_path: Path) -> None:
    put(tmp_path, "/run/gpufleet-nvidia-driver.stopped", "deepseek-service.service\ndcgm-exporter.service\n")
    driver = Probe(Reader(str(tmp_path))).read([], "/etc/modprobe.d/x.conf")
    assert driver.stopped_units == ["deepseek-service.service", "dcgm-exporter.service"]
