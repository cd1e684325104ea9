# SPDX-License-Identifier: Apache-2.0
"""Hosts as hardware_info describes them, for tests and the benchmark of the comparison."""

from __future__ import annotations

import typing as t

Facts = dict[str, t.Any]


def gpu(index: int, **changes: t.Any) -> Facts:
    """One A100-SXM4-80GB."""
    return {
        "index": index,
        "pci_address": f"0000:{7 + index * 16:02x}:00.0",
        "vendor_id": "10de",
        "device_id": "20b2",
        "subsystem_id": "10de:1463",
        "name": "NVIDIA A100-SXM4-80GB",
        "catalogue": "a100-sxm4-80gb",
        "architecture": "sm80",
        "memory_mib": 81920,
        "numa_node": index // 4,
        "pcie": {"width": 16, "width_max": 16, "gen": 4, "gen_max": 4},
        "state": "ok",
        "uuid": f"GPU-{index}",
        "serial": f"15640200{index}",
        "vbios": "92.00.45.00.05",
        "inforom": "G506.0200.00.05",
        "board_part_number": "692-2G506-0212-002",
        "gsp_firmware": "550.127.05",
        "ecc": {
            "enabled": True,
            "pending": True,
            "volatile_corrected": 0,
            "volatile_uncorrected": 0,
            "aggregate_corrected": 0,
            "aggregate_uncorrected": 0,
            "sram_uncorrected_volatile": 0,
            "sram_uncorrected_aggregate": 0,
            "sram_corrected": 0,
            "dram_corrected": 0,
        },
        "row_remap": {"correctable": 0, "uncorrectable": 0, "pending": False, "failed": False},
        "retired_pages": {"single_bit": 0, "double_bit": 0, "pending": False},
        "mig": False,
        "persistence": True,
        "power_limit_w": 400.0,
        "power_limit_default_w": 400.0,
        "power_limit_max_w": 400.0,
        "clocks": {"sm_mhz": 210, "memory_mhz": 1593, "sm_max_mhz": 1410, "memory_max_mhz": 1593},
        "temperature_c": 31,
        "throttle_reasons": [],
        "nvlink": {"active": 12, "inactive": 0, "speed_gbps": 200.0},
        **changes,
    }


def facts(number: int = 1, **changes: t.Any) -> Facts:
    """A host about which the standard a100_80gb_8 has nothing to say.

    :arg changes: values by path, with two underscores for a dot.
    """
    found: Facts = {
        "schema": 1,
        "source": "live",
        "simulated": False,
        "subsets": ["gpu", "cpu", "memory", "board", "network", "rdma", "storage", "os", "xid"],
        "unavailable": {},
        "gpu": {
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
            "topology_hash": "6d2f0c1a9b",
            "mig_enabled": 0,
        },
        "gpus": [gpu(index) for index in range(8)],
        "gpu_driver": {
            "version": "550.127.05",
            "loaded_version": "550.127.05",
            "installed_version": "550.127.05",
            "open_modules": True,
            "cuda_version": "12.4",
            "answers": True,
            "error": "",
            "mismatch": False,
            "peermem_loaded": True,
        },
        "fabric_manager": {
            "installed_version": "550.127.05",
            "active": True,
            "version_matches_driver": True,
            "needed": True,
        },
        "dcgm": {"installed_version": "3.3.9", "active": True},
        "cpu": {
            "model": "Intel(R) Xeon(R) Platinum 8358 CPU @ 2.60GHz",
            "vendor": "GenuineIntel",
            "sockets": 2,
            "cores": 64,
            "threads": 128,
            "smt": True,
            "numa_nodes": 2,
            "governor": "performance",
            "microcode": "0xd0003e7",
            "architecture": "x86_64",
            "flags_avx512": True,
        },
        "memory": {
            "total_mib": 2063872 - number % 7,
            "dimm_count": 32,
            "dimm_size_mib": {"65536": 32},
            "dimm_speed_mts": [3200],
            "swap_mib": 0,
            "hugepages": {"2048": 0, "1048576": 0},
        },
        "board": {
            "vendor": "Dell Inc.",
            "product": "PowerEdge XE8545",
            "serial": f"S{number:08d}",
            "board_product": "0XYZ12",
            "bios_vendor": "American Megatrends Inc.",
            "bios_version": "2.5",
            "bios_date": "09/14/2023",
            "bmc_version": "01.02.30",
        },
        "nics": [
            {
                "name": f"ens{port}",
                "driver": "mlx5_core",
                "driver_version": "24.07-0.6.1",
                "firmware": "22.41.1000 (MT_0000000359)",
                "pci_address": f"0000:e1:00.{port}",
                "vendor_id": "15b3",
                "device_id": "101d",
                "speed_mbps": 100000,
                "link": True,
                "duplex": "full",
                "mtu": 9000,
                "mac": f"b8:3f:d2:00:{number % 256:02x}:{port:02x}",
                "numa_node": 1,
                "pcie": {"width": 16, "width_max": 16, "gen": 4, "gen_max": 4},
                "offloads": {**dict.fromkeys(("rx_checksum", "tx_checksum", "tso", "gso", "gro"), True), "lro": False},
                "rdma_device": None,
            }
            for port in range(2)
        ],
        "rdma": [
            {
                "name": f"mlx5_{port}",
                "board_id": "MT_0000000223",
                "firmware": "20.41.1000",
                "hca_type": "MT4123",
                "node_guid": f"b83f:d203:00{number % 256:02x}:{port:04x}",
                "pci_address": f"0000:{10 + port:02x}:00.0",
                "numa_node": port // 4,
                "netdev": None,
                "ports": [
                    {
                        "port": 1,
                        "state": "ACTIVE",
                        "physical_state": "LinkUp",
                        "rate_gbps": 200.0,
                        "link_layer": "InfiniBand",
                        "roce_mode": None,
                        "mtu": 4096,
                    }
                ],
            }
            for port in range(8)
        ],
        "network": {"fastest_gbps": 100.0, "rdma_ports_active": 8, "rdma_fastest_gbps": 200.0},
        "nvme": [
            {
                "name": f"nvme{disk}n1",
                "controller": f"nvme{disk}",
                "model": "SAMSUNG MZWLJ3T8HBLS-00007",
                "firmware": "EPK9CB5Q",
                "serial": f"S64H{number:05d}{disk}",
                "size_bytes": 3840755982336,
                "by_id": f"/dev/disk/by-id/nvme-eui.{number:05d}{disk}",
                "pci_address": f"0000:{20 + disk:02x}:00.0",
                "numa_node": 0,
                "pcie": {"width": 4, "width_max": 4, "gen": 4, "gen_max": 4},
                "wear_percent": 1,
                "media_errors": 0,
                "in_use": True,
                "used_by": ["md0"],
            }
            for disk in range(4)
        ],
        "storage": {
            "nvme_count": 4,
            "nvme_models": ["SAMSUNG MZWLJ3T8HBLS-00007"],
            "nvme_bytes": 4 * 3840755982336,
            "nvme_free_count": 0,
            "raid0": [{"name": "md0", "level": "raid0", "members": [], "state": "clean", "size_bytes": 1}],
            "mounts_rotational": [],
        },
        "block": [],
        "os": {
            "distribution": "debian",
            "version": "12",
            "codename": "bookworm",
            "kernel": "6.1.0-26-amd64",
            "kernel_cmdline": f"BOOT_IMAGE=/vmlinuz-6.1.0-26-amd64 root=UUID={number:08x} ro iommu=pt quiet",
            "architecture": "x86_64",
            "container": False,
            "virtualization": "none",
            "secure_boot": False,
            "glibc": "2.36",
        },
        "iommu": {"enabled": True, "mode": "passthrough", "groups": 120},
        "pci": {"acs_enabled_bridges": [], "max_payload_mismatch": []},
        "clock": {"synchronized": True, "source": "chrony"},
        "sysctl": {"vm.swappiness": "10", "net.core.rmem_max": "16777216", "vm.zone_reclaim_mode": "1"},
        "xids": [],
    }
    for path, value in changes.items():
        place = found
        *head, last = path.split("__")
        for key in head:
            place = place[key]
        place[last] = value
    return found


def fleet(count: int, start: int = 1) -> dict[str, Facts]:
    """Equal hosts gpu1, gpu2 ..."""
    return {f"gpu{number}": facts(number) for number in range(start, start + count)}
