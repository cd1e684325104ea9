# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Hardware that is written down before there is a host: a few words become the structure that hardware_info returns."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import GPUS, by_name

SCHEMA = 1
_SECTIONS = [
    "gpu",
    "gpus",
    "gpu_driver",
    "fabric_manager",
    "dcgm",
    "cpu",
    "memory",
    "board",
    "nics",
    "rdma",
    "network",
    "nvme",
    "storage",
    "block",
    "os",
    "iommu",
    "pci",
    "clock",
    "sysctl",
    "xids",
]
_SUBSETS = ["gpu", "cpu", "memory", "board", "network", "rdma", "storage", "os", "xid"]


class DeclaredError(Exception):
    """Declared hardware that makes no sense, in words for the operator."""


# What may be declared: type, smallest, largest, default.
_NUMBERS: dict[str, tuple[int, int, int]] = {
    "gpus": (0, 64, 0),
    "sockets": (1, 16, 2),
    "cores": (1, 4096, 64),
    "memory_gib": (1, 131072, 1024),
    "nic_gbps": (0, 3200, 25),
    "rdma_gbps": (0, 3200, 0),
    "rdma_ports": (0, 64, 0),
    "nvme_count": (0, 128, 0),
    "nvme_gb": (0, 1000000, 0),
}


def expand(declared: t.Any) -> dict[str, t.Any]:
    """The structure of hardware_info for declared hardware; what was not declared is null and says so.

    :arg declared: mapping with gpu (key or name of the catalogue; left out for a host without), gpus, sockets, cores (in all), memory_gib, nic_gbps,
      rdma_gbps, rdma_ports, nvme_count, nvme_gb (each).
    :raises DeclaredError: unknown key, value out of range, GPU that the catalogue does not know.
    """
    if not isinstance(declared, t.Mapping):
        raise DeclaredError(f"fleet_declared_hardware: expected a mapping, found {declared!r}")
    unknown = sorted(set(map(str, declared)) - set(_NUMBERS) - {"gpu"})
    if unknown:
        raise DeclaredError(f"fleet_declared_hardware: unknown {', '.join(unknown)}; known: gpu, {', '.join(_NUMBERS)}")
    value: dict[str, int] = {}
    for key, (low, high, default) in _NUMBERS.items():
        found = declared.get(key, default)
        if isinstance(found, bool) or not isinstance(found, int) or not low <= found <= high:
            raise DeclaredError(
                f"fleet_declared_hardware.{key}: expected a whole number from {low} to {high}, found {found!r}"
            )
        value[key] = found
    gpu = None
    if declared.get("gpu"):
        gpu = by_name(str(declared["gpu"]))
        if gpu is None:
            raise DeclaredError(
                f"fleet_declared_hardware.gpu: {declared['gpu']!r} is not in the catalogue; known: {', '.join(sorted(GPUS))}"
            )
        if not value["gpus"]:
            raise DeclaredError("fleet_declared_hardware.gpus: expected 1 to 64 with a gpu, found 0")
    elif value["gpus"]:
        raise DeclaredError(
            f"fleet_declared_hardware.gpu: expected a product of the catalogue for {value['gpus']} GPUs, found none"
        )
    count = value["gpus"]
    hardware: dict[str, t.Any] = dict.fromkeys(_SECTIONS)
    hardware.update(
        schema=SCHEMA,
        source="declared",
        simulated=False,
        subsets=_SUBSETS,
        gpu={
            "count": count,
            "driver_count": None,
            "product": gpu.name if gpu else "",
            "catalogue": gpu.key if gpu else None,
            "architecture": gpu.architecture if gpu else None,
            "generation": gpu.generation if gpu else None,
            "memory_mib": gpu.memory_mib if gpu else None,
            "nvswitch_count": 6 if gpu and gpu.form == "sxm" and gpu.generation == "ampere" and count == 8 else 0,
            "lost": [],
            "unknown_pci_ids": [],
            "topology_hash": None,
            "mig_enabled": 0,
        },
        cpu={"sockets": value["sockets"], "cores": value["cores"], "threads": value["cores"]},
        memory={"total_mib": value["memory_gib"] * 1024},
        network={
            "fastest_gbps": float(max(value["nic_gbps"], value["rdma_gbps"])),
            "rdma_ports_active": value["rdma_ports"],
            "rdma_fastest_gbps": float(value["rdma_gbps"]) if value["rdma_ports"] else None,
        },
        storage={"nvme_count": value["nvme_count"], "nvme_bytes": value["nvme_count"] * value["nvme_gb"] * 10**9},
    )
    hardware["unavailable"] = {
        section: "declared in the inventory, not looked at" for section in _SECTIONS if hardware[section] is None
    }
    return hardware
