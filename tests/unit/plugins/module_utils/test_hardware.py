# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole structure, on recorded hosts that are healthy, broken, empty and garbled."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware import (
    SUBSETS,
    HardwareError,
    choose,
    gather,
    one_of,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import (
    TOOLS,
    ModuleRunner,
    Output,
    Reader,
)
from ansible_collections.gpufleet.deepseek.tests.unit.fixtures.hardware import build

INT, STR, BOOL, FLOAT = (int,), (str,), (bool,), (float,)


def or_none(kind: Any) -> Any:
    """This, or null."""
    return ("or none", kind)


PCIE = dict.fromkeys(("width", "width_max", "gen", "gen_max"), or_none(INT))
COUNTERS = (
    "volatile_corrected",
    "volatile_uncorrected",
    "aggregate_corrected",
    "aggregate_uncorrected",
    "sram_uncorrected_volatile",
    "sram_uncorrected_aggregate",
    "sram_corrected",
    "dram_corrected",
)
# The structure: a mapping has exactly these keys, a list holds such entries, {str: x} is a mapping of any keys.
SHAPE: dict[str, Any] = {
    "schema": INT,
    "source": STR,
    "simulated": BOOL,
    "subsets": [STR],
    "unavailable": {str: STR},
    "gpu": or_none(
        {
            "count": INT,
            "driver_count": or_none(INT),
            "product": STR,
            "catalogue": or_none(STR),
            "architecture": or_none(STR),
            "generation": or_none(STR),
            "memory_mib": or_none(INT),
            "nvswitch_count": INT,
            "lost": [STR],
            "unknown_pci_ids": [STR],
            "topology_hash": or_none(STR),
            "mig_enabled": INT,
        }
    ),
    "gpus": or_none(
        [
            {
                "index": or_none(INT),
                "pci_address": STR,
                "vendor_id": STR,
                "device_id": STR,
                "subsystem_id": or_none(STR),
                "name": STR,
                "catalogue": or_none(STR),
                "architecture": or_none(STR),
                "memory_mib": or_none(INT),
                "numa_node": or_none(INT),
                "pcie": PCIE,
                "state": STR,
                **dict.fromkeys(
                    ("uuid", "serial", "vbios", "inforom", "board_part_number", "gsp_firmware"), or_none(STR)
                ),
                "ecc": {"enabled": or_none(BOOL), "pending": or_none(BOOL), **dict.fromkeys(COUNTERS, or_none(INT))},
                "row_remap": or_none(
                    {
                        "correctable": or_none(INT),
                        "uncorrectable": or_none(INT),
                        "pending": or_none(BOOL),
                        "failed": or_none(BOOL),
                    }
                ),
                "retired_pages": or_none(
                    {"single_bit": or_none(INT), "double_bit": or_none(INT), "pending": or_none(BOOL)}
                ),
                "mig": or_none(BOOL),
                "persistence": or_none(BOOL),
                **dict.fromkeys(("power_limit_w", "power_limit_default_w", "power_limit_max_w"), or_none(FLOAT)),
                "clocks": dict.fromkeys(("sm_mhz", "memory_mhz", "sm_max_mhz", "memory_max_mhz"), or_none(INT)),
                "temperature_c": or_none(INT),
                "throttle_reasons": [STR],
                "nvlink": or_none({"active": INT, "inactive": INT, "speed_gbps": or_none(FLOAT)}),
            }
        ]
    ),
    "gpu_driver": or_none(
        {
            **dict.fromkeys(("version", "loaded_version", "installed_version", "cuda_version"), or_none(STR)),
            "open_modules": or_none(BOOL),
            "answers": BOOL,
            "error": STR,
            "mismatch": or_none(BOOL),
            "peermem_loaded": BOOL,
        }
    ),
    "fabric_manager": or_none(
        {
            "installed_version": or_none(STR),
            "active": or_none(BOOL),
            "version_matches_driver": or_none(BOOL),
            "needed": BOOL,
        }
    ),
    "dcgm": or_none({"installed_version": or_none(STR), "active": or_none(BOOL)}),
    "cpu": or_none(
        {
            **dict.fromkeys(("model", "vendor", "governor", "microcode", "architecture"), or_none(STR)),
            "sockets": or_none(INT),
            "cores": or_none(INT),
            "threads": INT,
            "smt": BOOL,
            "numa_nodes": INT,
            "flags_avx512": BOOL,
        }
    ),
    "memory": or_none(
        {
            "total_mib": INT,
            "dimm_count": or_none(INT),
            "dimm_size_mib": or_none({str: INT}),
            "dimm_speed_mts": or_none([INT]),
            "swap_mib": INT,
            "hugepages": {str: INT},
        }
    ),
    "board": or_none(
        dict.fromkeys(
            ("vendor", "product", "serial", "board_product", "bios_vendor", "bios_version", "bios_date", "bmc_version"),
            or_none(STR),
        )
    ),
    "nics": or_none(
        [
            {
                "name": STR,
                **dict.fromkeys(
                    (
                        "driver",
                        "driver_version",
                        "firmware",
                        "pci_address",
                        "vendor_id",
                        "device_id",
                        "duplex",
                        "mac",
                        "rdma_device",
                    ),
                    or_none(STR),
                ),
                **dict.fromkeys(("speed_mbps", "mtu", "numa_node"), or_none(INT)),
                "link": BOOL,
                "pcie": or_none(PCIE),
                "offloads": or_none(dict.fromkeys(("rx_checksum", "tx_checksum", "tso", "gso", "gro", "lro"), BOOL)),
            }
        ]
    ),
    "rdma": or_none(
        [
            {
                "name": STR,
                **dict.fromkeys(
                    ("board_id", "firmware", "hca_type", "node_guid", "pci_address", "netdev"), or_none(STR)
                ),
                "numa_node": or_none(INT),
                "ports": [
                    {
                        "port": INT,
                        **dict.fromkeys(("state", "physical_state", "link_layer", "roce_mode"), or_none(STR)),
                        "rate_gbps": or_none(FLOAT),
                        "mtu": or_none(INT),
                    }
                ],
            }
        ]
    ),
    "network": or_none({"fastest_gbps": or_none(FLOAT), "rdma_ports_active": INT, "rdma_fastest_gbps": or_none(FLOAT)}),
    "nvme": or_none(
        [
            {
                "name": STR,
                **dict.fromkeys(("controller", "model", "firmware", "serial", "by_id", "pci_address"), or_none(STR)),
                **dict.fromkeys(("size_bytes", "numa_node", "wear_percent", "media_errors"), or_none(INT)),
                "pcie": or_none(PCIE),
                "in_use": BOOL,
                "used_by": [STR],
            }
        ]
    ),
    "storage": or_none(
        {
            "nvme_count": INT,
            "nvme_models": [STR],
            "nvme_bytes": INT,
            "nvme_free_count": INT,
            "raid0": [{"name": STR, "level": STR, "members": [STR], "state": STR, "size_bytes": INT}],
            "mounts_rotational": [STR],
        }
    ),
    "block": or_none(
        [
            {
                "name": STR,
                "size_bytes": INT,
                "model": or_none(STR),
                "serial": or_none(STR),
                "rotational": BOOL,
                "in_use": BOOL,
                "used_by": [STR],
            }
        ]
    ),
    "os": or_none(
        {
            **dict.fromkeys(
                (
                    "distribution",
                    "version",
                    "codename",
                    "kernel",
                    "kernel_cmdline",
                    "architecture",
                    "virtualization",
                    "glibc",
                ),
                or_none(STR),
            ),
            "container": BOOL,
            "secure_boot": or_none(BOOL),
        }
    ),
    "iommu": or_none({"enabled": BOOL, "mode": or_none(STR), "groups": INT}),
    "pci": or_none({"acs_enabled_bridges": [STR], "max_payload_mismatch": [STR]}),
    "clock": or_none({"synchronized": or_none(BOOL), "source": or_none(STR)}),
    "sysctl": or_none({str: STR}),
    "xids": or_none([{"xid": INT, "count": INT, "pci_address": or_none(STR), "message": STR}]),
}


def problems(value: Any, shape: Any, place: str = "hardware") -> list[str]:
    """Where a value is not of its shape."""
    if isinstance(shape, tuple) and shape and shape[0] == "or none":
        return [] if value is None else problems(value, shape[1], place)
    if isinstance(shape, tuple):
        return [] if type(value) in shape else [f"{place} is {type(value).__name__}, not {shape[0].__name__}"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{place} is no list"]
        return [text for number, entry in enumerate(value) for text in problems(entry, shape[0], f"{place}[{number}]")]
    if not isinstance(value, dict):
        return [f"{place} is no mapping"]
    if str in shape:
        return [text for key, entry in value.items() for text in problems(entry, shape[str], f"{place}.{key}")]
    if set(value) != set(shape):
        return [f"{place}: {sorted(set(value) ^ set(shape))} are missing or too many"]
    return [text for key in shape for text in problems(value[key], shape[key], f"{place}.{key}")]


def recorded(host: str, folder: Path, wanted: Sequence[str] = ("all",)) -> dict[str, Any]:
    """The structure of a host of the fixtures."""
    return gather(Reader(str(build.build(host, folder)), "/var/lib/gpufleet/simulated"), list(wanted))


@pytest.mark.parametrize("host", build.HOSTS)
def test_every_key_is_there_and_of_its_type(host: str, tmp_path: Path) -> None:
    found = recorded(host, tmp_path)
    assert problems(found, SHAPE) == []
    assert (found["schema"], found["source"], found["simulated"]) == (1, "recorded", False)
    assert found["subsets"] == list(SUBSETS)


def test_no_key_hides_a_method_of_a_mapping() -> None:
    def names(shape: Any) -> set[str]:
        if isinstance(shape, dict):
            return {key for key in shape if isinstance(key, str)} | {
                name for entry in shape.values() for name in names(entry)
            }
        if isinstance(shape, (list, tuple)):
            return {name for entry in shape for name in names(entry)}
        return set()

    assert names(SHAPE) & set(dir(dict)) == set()


def test_this_host(tmp_path: Path) -> None:
    found = gather(Reader("", str(tmp_path)), ["all"])
    assert problems(found, SHAPE) == []
    assert found["source"] == "live"
    assert found["cpu"]["threads"] == os.cpu_count()
    assert found["os"]["kernel"] == os.uname().release


def test_an_empty_tree_says_why_there_is_nothing(tmp_path: Path) -> None:
    found = gather(Reader(str(tmp_path)), ["all"])
    assert problems(found, SHAPE) == []
    assert found["gpus"] == []
    assert (
        found["gpu_driver"]
        is found["cpu"]
        is found["memory"]
        is found["board"]
        is found["nics"]
        is found["xids"]
        is None
    )
    assert set(found["unavailable"]) == {"cpu", "memory", "board", "network", "storage", "os", "xid"}
    assert found["unavailable"]["xid"] == "the kernel log cannot be read: dmesg was not recorded in commands/dmesg"


def test_a_healthy_host(tmp_path: Path) -> None:
    found = recorded("a100_80gb_8", tmp_path)
    assert found["unavailable"] == {}
    assert found["gpu"] == {
        "count": 8,
        "driver_count": 8,
        "product": "NVIDIA A100-SXM4-80GB",
        "catalogue": "a100-sxm4-80gb",
        "architecture": "sm80",
        "generation": "ampere",
        "memory_mib": 81920,
        "nvswitch_count": 6,
        "lost": [],
        "unknown_pci_ids": [],
        "topology_hash": found["gpu"]["topology_hash"],
        "mig_enabled": 0,
    }
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(8))
    assert [gpu["numa_node"] for gpu in found["gpus"]] == list(build.NODES)
    assert {gpu["state"] for gpu in found["gpus"]} == {"ok"}
    assert found["gpus"][0]["nvlink"] == {"active": 12, "inactive": 0, "speed_gbps": 200.0}
    assert found["fabric_manager"] == {
        "installed_version": "550.127.05",
        "active": True,
        "version_matches_driver": True,
        "needed": True,
    }
    assert found["dcgm"] == {"installed_version": "3.3.5", "active": False}
    assert found["gpu_driver"]["mismatch"] is False
    assert found["cpu"]["sockets"] == 2
    assert (found["cpu"]["cores"], found["cpu"]["threads"], found["cpu"]["smt"], found["cpu"]["numa_nodes"]) == (
        4,
        8,
        True,
        8,
    )
    assert found["memory"]["dimm_size_mib"] == {"65536": 1, "32768": 1, "16384": 1}
    assert found["memory"]["hugepages"] == {"2048": 0, "1048576": 4}
    assert found["board"]["bmc_version"] == "0.23"
    assert found["network"] == {"fastest_gbps": 200.0, "rdma_ports_active": 1, "rdma_fastest_gbps": 200.0}
    assert [port["name"] for port in found["nics"]] == ["enp225s0f0"]
    assert found["rdma"][0]["ports"][0]["roce_mode"] == "RoCE v2"
    assert [drive["used_by"] for drive in found["nvme"]] == [["md member", "md1", "mount /raid"]] * 2 + [[]]
    assert found["nvme"][2]["by_id"] == "/dev/disk/by-id/nvme-eui.01000000000000008ce38ee20a9d1202"
    assert found["nvme"][0]["pcie"] == {"width": 4, "width_max": 4, "gen": 4, "gen_max": 4}
    assert found["storage"]["nvme_free_count"] == 1
    assert found["storage"]["raid0"][0]["members"] == ["nvme0n1", "nvme1n1"]
    assert [entry["name"] for entry in found["block"]] == ["sda"]
    assert found["os"]["distribution"] == "Ubuntu"
    assert found["os"]["glibc"] == "2.35"
    assert found["os"]["secure_boot"] is False
    assert found["iommu"] == {"enabled": True, "mode": "passthrough", "groups": 3}
    assert found["pci"] == {"acs_enabled_bridges": [], "max_payload_mismatch": []}
    assert found["clock"] == {"synchronized": True, "source": "chrony"}
    assert found["sysctl"]["net.ipv4.tcp_rmem"] == "4096 131072 6291456"
    assert found["xids"] == []


def test_a_gpu_that_fell_off_the_bus(tmp_path: Path) -> None:
    found = recorded("lost", tmp_path)
    assert (found["gpu"]["count"], found["gpu"]["driver_count"]) == (8, 7)
    assert found["gpu"]["lost"] == ["0000:07:00.0"]
    assert found["gpu"]["product"] == "NVIDIA A100-SXM4-80GB"
    lost = found["gpus"][0]
    assert (lost["index"], lost["state"], lost["uuid"], lost["nvlink"]) == (0, "lost", None, None)
    assert lost["pcie"] == {"width": None, "width_max": 16, "gen": None, "gen_max": 4}
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(8))
    assert found["gpu_driver"]["answers"] is True
    assert "GPU0: 0000:07:00.0: Unknown Error" in found["gpu_driver"]["error"]
    assert (79, "0000:07:00.0") in [(xid["xid"], xid["pci_address"]) for xid in found["xids"]]


def test_a_driver_of_two_versions(tmp_path: Path) -> None:
    found = recorded("mismatch", tmp_path)
    assert (found["gpu"]["count"], found["gpu"]["driver_count"]) == (8, None)
    assert {gpu["state"] for gpu in found["gpus"]} == {"error"}
    driver = found["gpu_driver"]
    assert (driver["loaded_version"], driver["installed_version"], driver["mismatch"]) == (
        "550.127.05",
        "560.35.03",
        True,
    )
    assert driver["answers"] is False
    assert "Driver/library version mismatch" in found["unavailable"]["gpu"]
    # What the kernel module says by itself is not lost.
    assert found["gpus"][1]["uuid"] == "GPU-6ec3c8a1-0d4c-4f6e-a6c5-0f6b1f2d0001"
    assert found["gpus"][1]["vbios"] == "92.00.45.00.03"


def test_a_host_without_a_driver(tmp_path: Path) -> None:
    found = recorded("no_driver", tmp_path)
    assert (found["gpu"]["count"], found["gpu"]["driver_count"], found["gpu"]["nvswitch_count"]) == (8, None, 6)
    assert (found["gpu"]["catalogue"], found["gpu"]["memory_mib"]) == ("a100-sxm4-80gb", 81920)
    assert {gpu["state"] for gpu in found["gpus"]} == {"no_driver"}
    assert found["gpu_driver"] is None
    assert found["fabric_manager"]["needed"] is True
    assert found["unavailable"]["gpu"].startswith("the driver does not answer: nvidia-smi")


def test_a_host_without_a_gpu(tmp_path: Path) -> None:
    found = recorded("no_gpu", tmp_path)
    assert found["gpus"] == []
    assert (found["gpu"]["count"], found["gpu"]["product"], found["gpu"]["catalogue"]) == (0, "", None)
    assert found["gpu_driver"] is None
    assert "gpu" not in found["unavailable"]


def test_gpus_of_two_products(tmp_path: Path) -> None:
    found = recorded("mixed", tmp_path)["gpu"]
    assert (found["product"], found["catalogue"], found["architecture"], found["generation"]) == ("mixed",) * 4
    assert found["memory_mib"] == 81559


def test_links_down_and_access_control(tmp_path: Path) -> None:
    down = recorded("links_down", tmp_path / "down")
    assert down["gpus"][3]["nvlink"] == {"active": 10, "inactive": 2, "speed_gbps": 200.0}
    assert down["gpus"][2]["nvlink"]["inactive"] == 0
    fabric = recorded("acs", tmp_path / "acs")["pci"]
    assert len(fabric["acs_enabled_bridges"]) == 10
    assert fabric["max_payload_mismatch"] == ["0000:e1:00.0"]


def test_a_gpu_that_the_catalogue_does_not_know(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    tree.device("0000:01:00.0", "0000:00:01.0", "0x030000", "10de", "ffff")
    tree.device("0000:02:00.0", "0000:00:01.0", "0x030000", "1a03", "2000")
    found = gather(Reader(str(tmp_path)), ["gpu"])
    assert found["gpu"]["unknown_pci_ids"] == ["10de:ffff"]
    assert found["gpu"]["count"] == 1
    assert found["gpus"][0]["name"] == "NVIDIA device 10de:ffff"
    assert found["gpus"][0]["catalogue"] is found["gpus"][0]["memory_mib"] is found["gpus"][0]["subsystem_id"] is None


def test_a_virtual_function_is_no_gpu_of_its_own(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    whole = tree.device("0000:01:00.0", "0000:00:01.0", "0x030200", "10de", "20b2")
    part = tree.device("0000:01:00.4", "0000:00:01.0", "0x030200", "10de", "20b2")
    tree.link(f"{part}/physfn", whole)
    found = gather(Reader(str(tmp_path)), ["gpu"])
    assert [gpu["pci_address"] for gpu in found["gpus"]] == ["0000:01:00.0"]


@pytest.mark.parametrize(
    ("said", "code", "bound", "state"),
    [
        ("No devices were found\n", 6, "", "lost"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9, "", "no_driver"),
        ("Segmentation fault\n", 139, "", "error"),
        ("", 1, "", "error"),
        ("No devices were found\n", 6, "vfio-pci", "no_driver"),
        ("No devices were found\n", 6, "nvidia", "lost"),
        (
            "Unable to determine the device handle for GPU 0000:01:00.0: GPU requires reset\n",
            15,
            "nvidia",
            "requires_reset",
        ),
    ],
)
def test_gpus_on_the_bus_that_the_driver_does_not_show(
    tmp_path: Path, said: str, code: int, bound: str, state: str
) -> None:
    tree = build.Tree(tmp_path)
    place = tree.device("0000:01:00.0", "0000:00:01.0", "0x030200", "10de", "20b2")
    tree.command("nvidia_smi_xml", said, code)
    if bound:
        tree.folder(f"sys/bus/pci/drivers/{bound}")
        tree.link(f"{place}/driver", f"sys/bus/pci/drivers/{bound}")
    found = gather(Reader(str(tmp_path)), ["gpu"])
    assert found["gpus"][0]["state"] == state
    assert (found["gpu"]["lost"] == ["0000:01:00.0"]) is (state == "lost")
    assert problems(found, SHAPE) == []


def test_gpus_that_the_bus_does_not_show(tmp_path: Path) -> None:
    build.Tree(tmp_path).command("nvidia_smi_xml", build.smi_xml(build.eight()))
    found = gather(Reader(str(tmp_path)), ["gpu"])
    assert found["gpu"]["count"] == found["gpu"]["driver_count"] == 8
    assert found["gpus"][0]["catalogue"] == "a100-sxm4-80gb"
    assert found["gpus"][0]["subsystem_id"] == "10de:1463"
    assert found["gpus"][0]["pcie"]["width"] == 16


def test_the_module_file_is_read_when_no_tool_is_there(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    tree.put("proc/sys/kernel/osrelease", "6.1.0-26-amd64")
    tree.put(
        "lib/modules/6.1.0-26-amd64/modules.dep",
        "kernel/fs/ext4/ext4.ko:\nupdates/dkms/nvidia-current.ko: kernel/x.ko\n",
    )
    tree.put("lib/modules/6.1.0-26-amd64/updates/dkms/nvidia-current.ko", b"\x7fELF garbage")
    tree.text("proc/driver/nvidia/version", "version_open.txt")
    found = gather(Reader(str(tmp_path)), ["gpu"])["gpu_driver"]
    assert (found["loaded_version"], found["installed_version"], found["open_modules"]) == ("570.86.15", None, True)
    assert (found["version"], found["mismatch"], found["answers"]) == ("570.86.15", None, False)


def simulated(tmp_path: Path) -> Path:
    """A host of the lab: real but for its GPUs."""
    root = build.build("no_gpu", tmp_path)
    tree = build.Tree(root)
    tree.device("0000:41:00.0", "0000:00:03.0", "0x030000", "10de", "1eb8")
    home = "var/lib/gpufleet/simulated"
    tree.put(f"{home}/SIMULATED", "")
    for number, place in enumerate(build.ADDRESSES):
        folder = f"{home}/sys/bus/pci/devices/0000:{place}"
        for name, value in {
            "vendor": "0x10de",
            "device": "0x20b2",
            "subsystem_vendor": "0x10de",
            "subsystem_device": "0x1463",
            "class": "0x030200",
            "numa_node": str(build.NODES[number]),
            "current_link_speed": "16.0 GT/s PCIe",
            "current_link_width": "8" if number == 5 else "16",
            "max_link_speed": "16.0 GT/s PCIe",
            "max_link_width": "16",
        }.items():
            tree.put(f"{folder}/{name}", value)
    tree.put(f"{home}/sys/bus/pci/devices/0000:c4:00.0/vendor", "0x10de")
    tree.put(f"{home}/sys/bus/pci/devices/0000:c4:00.0/device", "0x1af1")
    tree.put(f"{home}/sys/bus/pci/devices/0000:c4:00.0/class", "0x068000")
    tree.text(f"{home}/proc/driver/nvidia/version", "version_proprietary.txt")
    tree.put(f"{home}/kmsg", "[  123.456789] NVRM: Xid (PCI:0000:07:00): 79, pid=1, GPU has fallen off the bus.")
    tree.put(f"{home}/modinfo_version", "550.127.05")
    tree.put(f"{home}/fabric_manager", "version=550.54.15\nactive=true")
    tree.command("nvidia_smi_xml", build.smi_xml(build.eight()))
    return root


def test_a_simulated_host(tmp_path: Path) -> None:
    root = simulated(tmp_path)
    found = gather(Reader(str(root), "/var/lib/gpufleet/simulated"), ["all"])
    assert problems(found, SHAPE) == []
    assert found["simulated"] is True
    assert [gpu["device_id"] for gpu in found["gpus"]] == ["20b2"] * 8
    assert found["gpus"][5]["pcie"]["width"] == 8
    assert found["gpu"]["nvswitch_count"] == 1
    assert found["gpu_driver"]["installed_version"] == found["gpu_driver"]["loaded_version"] == "550.127.05"
    assert found["fabric_manager"] == {
        "installed_version": "550.54.15",
        "active": True,
        "version_matches_driver": False,
        "needed": True,
    }
    assert [xid["xid"] for xid in found["xids"]] == [79]
    assert found["nics"][0]["name"] == "enp225s0f0"
    assert gather(Reader(str(root), "/elsewhere"), ["gpu"])["gpus"][-1]["device_id"] == "20b2"
    assert gather(Reader(str(root), "/elsewhere"), ["gpu"])["simulated"] is False


def test_fabric_manager_that_is_not_simulated_is_not_installed(tmp_path: Path) -> None:
    root = simulated(tmp_path)
    (root / "var/lib/gpufleet/simulated/fabric_manager").unlink()
    found = gather(Reader(str(root), "/var/lib/gpufleet/simulated"), ["gpu"])["fabric_manager"]
    assert found == {"installed_version": None, "active": None, "version_matches_driver": None, "needed": True}


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["all"], list(SUBSETS)),
        ([], list(SUBSETS)),
        (["xid", "gpu"], ["gpu", "xid"]),
        (["!storage"], [name for name in SUBSETS if name != "storage"]),
        (["all", "!gpu"], [name for name in SUBSETS if name != "gpu"]),
        (["!gpu", "gpu", "cpu"], ["cpu"]),
        (["!all"], []),
    ],
)
def test_subsets(wanted: list[str], chosen: list[str]) -> None:
    assert choose(wanted) == chosen


def test_subsets_that_do_not_exist() -> None:
    with pytest.raises(HardwareError, match="it does not know !disk, gpus"):
        choose(["gpu", "!disk", "gpus"])


def test_what_was_not_asked_for_is_null(tmp_path: Path) -> None:
    found = recorded("a100_80gb_8", tmp_path, ["cpu"])
    assert problems(found, SHAPE) == []
    assert found["subsets"] == ["cpu"]
    assert found["cpu"]["sockets"] == 2
    assert [key for keys in SUBSETS.values() for key in keys if found[key] is not None] == ["cpu"]


def test_one_of() -> None:
    assert one_of(["a", "a"]) == "a"
    assert one_of(["a", None]) == "mixed"
    assert one_of([None, None]) is None
    assert one_of([]) is None


def test_trees_that_are_cut_anywhere_never_raise(tmp_path: Path) -> None:
    chance = build.Chance()
    root = build.build("a100_80gb_8", tmp_path)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    for turn in range(25):
        kept: dict[Path, bytes] = {}
        for _number in range(40):
            path = files[chance.below(len(files))]
            data = path.read_bytes()
            kept.setdefault(path, data)
            cut = bytearray(data[: chance.below(len(data) + 1)])
            if cut:
                cut[chance.below(len(cut))] = chance.below(256)
            path.write_bytes(bytes(cut))
        found = gather(Reader(str(root)), ["all"])
        assert problems(found, SHAPE) == [], turn
        assert not [text for text in found["unavailable"].values() if "could not be understood" in text]
        for path, data in kept.items():
            path.write_bytes(data)


def test_links_never_lead_out_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("top secret")
    root = tmp_path / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc" / "cpuinfo").symlink_to("../../secret")
    (root / "proc" / "meminfo").symlink_to("/etc/hostname")
    reader = Reader(str(root))
    assert reader.text("/proc/cpuinfo") is None
    assert reader.text("/proc/meminfo") is None
    assert reader.text("/../secret") is None
    assert not reader.exists("/proc/cpuinfo")
    assert reader.names("/..") == []


def test_a_pipe_in_the_place_of_a_file_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert Reader(str(tmp_path)).text("/pipe") == ""


class Tools:
    """Stands in for the tools of a live host; remembers what was run."""

    def __init__(self, answers: dict[str, Output] | None = None, slow: float = 0.0) -> None:
        self.answers = answers or {}
        self.slow = slow
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, argv: Sequence[str], timeout: float) -> Output:
        self.asked.append(tuple(argv))
        time.sleep(self.slow)
        slug = next(slug for slug, tool in TOOLS.items() if tool == tuple(argv))
        return self.answers.get(slug, Output(127, "", problem=f"{argv[0]} is not installed", missing=True))


def test_each_tool_runs_once_and_beside_the_others(tmp_path: Path) -> None:
    answers = {
        "nvidia_smi_xml": Output(0, build.smi_xml(build.eight())),
        "nvidia_smi_nvlink": Output(0, build.nvlink(build.eight())),
        "nvidia_smi_topo": Output(0, build.topo(8)),
    }
    tools = Tools(answers, slow=0.2)
    begin = time.monotonic()
    found = gather(Reader("", str(tmp_path), tools), ["gpu", "os"])
    # Six tools of 0.2 s, one after the other, would take 1.2 s.
    assert time.monotonic() - begin < 0.9
    assert len(tools.asked) == len(set(tools.asked))
    assert found["gpu"]["driver_count"] == 8
    assert found["gpus"][0]["nvlink"]["active"] == 12
    assert found["gpu"]["topology_hash"]


def test_a_tool_that_hangs_for_good_costs_its_time_only(tmp_path: Path) -> None:
    reader = Reader("", str(tmp_path), Tools(slow=4.0), timeout=0.1)
    begin = time.monotonic()
    said = reader.command("nvidia_smi_xml")
    assert time.monotonic() - begin < 3.0
    assert said.problem == "nvidia-smi did not end within 0.1 s and cannot be stopped"


def test_without_a_runner_no_tool_runs(tmp_path: Path) -> None:
    assert Reader("", str(tmp_path)).command("dmesg").problem == "dmesg is not run here"


class Process:
    """A process that can be killed."""

    killed = False

    def kill(self) -> None:
        """End it."""
        self.killed = True


def test_the_runner_of_a_module() -> None:
    asked: dict[str, Any] = {}

    def run_command(argv: list[str], **options: Any) -> tuple[int, str, str]:
        asked.update(options, argv=argv)
        options["before_communicate_callback"](Process())
        return 3, "out", "err"

    runner = ModuleRunner(run_command, lambda tool: f"/usr/bin/{tool}" if tool != "absent" else None)
    assert runner(["dmesg", "-x"], 5) == Output(3, "out", "err")
    assert asked["argv"] == ["/usr/bin/dmesg", "-x"]
    assert asked["environ_update"]["LC_ALL"] == "C"
    assert runner(["absent"], 5) == Output(127, "", problem="absent is not installed", missing=True)


def test_the_runner_ends_what_takes_too_long() -> None:
    process = Process()

    def run_command(_argv: list[str], **options: Any) -> tuple[int, str, str]:
        options["before_communicate_callback"](process)
        deadline = time.monotonic() + 5
        while not process.killed and time.monotonic() < deadline:
            time.sleep(0.01)
        return -9, "", ""

    said = ModuleRunner(run_command, lambda tool: tool)(["nvidia-smi"], 0.05)
    assert process.killed
    assert (said.rc, said.problem) == (124, "nvidia-smi did not end within 0.05 s")


def test_a_tool_that_cannot_be_run_is_an_answer() -> None:
    def run_command(_argv: list[str], **_options: Any) -> tuple[int, str, str]:
        raise PermissionError(13, "Permission denied")

    said = ModuleRunner(run_command, lambda tool: tool)(["dmesg"], 1)
    assert said.problem == "dmesg cannot be run: Permission denied"
    assert said.failure("dmesg") == said.problem
    assert Output(2, "", "\n  first line\nsecond\n").failure("dmesg") == "dmesg ended with exit code 2: first line"
