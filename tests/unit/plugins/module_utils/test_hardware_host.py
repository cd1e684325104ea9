# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parsers beside NVIDIA's: host, bus, network, disks."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_host as host
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_network as network
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_pci as pci
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_storage as storage
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Output, Parts, Reader
from ansible_collections.gpufleet.deepseek.tests.unit.fixtures.hardware import build

TEXT = Path(build.__file__).with_name("text")


def text(name: str) -> str:
    """A typed or captured fixture."""
    return (TEXT / name).read_text(encoding="utf-8")


# --- processors, memory, board -----------------------------------------------------------------------------------------------


def test_cpuinfo_of_a_real_machine() -> None:
    found = host.parse_cpuinfo(text("cpuinfo_vm.txt"))
    assert found is not None
    assert (found["model"], found["vendor"], found["microcode"]) == ("AMD EPYC", "AuthenticAMD", "0x1000065")
    assert (found["sockets"], found["cores"], found["threads"]) == (1, 1, 1)
    assert "hypervisor" in found["flags"]


def test_cpuinfo_of_arm_does_not_count() -> None:
    found = host.parse_cpuinfo(
        "processor\t: 0\nCPU implementer\t: 0x41\nFeatures\t: fp\n\nprocessor\t: 1\nCPU implementer\t: 0x41\n"
    )
    assert found is not None
    assert (found["threads"], found["sockets"], found["cores"], found["vendor"]) == (2, None, None, "0x41")
    assert host.parse_cpuinfo("") is None
    assert host.parse_cpuinfo("nothing of the kind") is None


def test_meminfo_of_a_real_machine() -> None:
    found = host.parse_meminfo(text("meminfo_vm.txt"))
    assert found["MemTotal"] > 1024 * 1024
    assert "SwapTotal" in found
    assert host.parse_meminfo("MemTotal: many kB\n\n") == {}


def test_dmidecode() -> None:
    assert host.parse_dmidecode(text("dmidecode_memory.txt")) == [(65536, 2933), (32768, 3200), (16384, 2666)]
    assert host.parse_dmidecode("") == []


def dimm(size: int, speed: int, configured: int, extended: int = 0, length: int = 0x5C) -> bytes:
    """A memory device of the SMBIOS tables."""
    data = bytearray(length)
    struct.pack_into("<BBH", data, 0, 17, length, 0x25)
    struct.pack_into("<H", data, 0x0C, size)
    if length > 0x20:
        struct.pack_into("<H", data, 0x15, speed)
        struct.pack_into("<I", data, 0x1C, extended)
        struct.pack_into("<H", data, 0x20, configured)
        struct.pack_into("<I", data, 0x58, 8800)
    return bytes(data) + b"DIMM_A0\0Samsung\0\0"


def test_smbios_tables() -> None:
    bios = struct.pack("<BBH", 0, 4, 0) + b"\0\0"
    end = struct.pack("<BBH", 127, 4, 0xFFFE) + b"\0\0"
    table = (
        bios
        + dimm(0x7FFF, 3200, 2933, extended=65536)
        + dimm(0, 0, 0)
        + dimm(0xFFFF, 0, 0)
        + dimm(16384, 3200, 0)
        + dimm(0x8000 | 2048, 100, 0xFFFF)
        + end
        + dimm(16384, 1, 1)
    )
    assert host.parse_smbios(table) == [(65536, 2933), (16384, 3200), (2, 8800)]
    for cut in range(len(table)):
        host.parse_smbios(table[:cut])
    assert host.parse_smbios(bytes(range(256)) * 4) == []


# --- operating system --------------------------------------------------------------------------------------------------------


def test_os_release() -> None:
    found = host.parse_os_release(text("os_release_debian12.txt"))
    assert (found["NAME"], found["VERSION_ID"], found["VERSION_CODENAME"]) == ("Debian GNU/Linux", "12", "bookworm")
    assert host.parse_os_release("# comment\nNAME='Rocky \\$ Linux'\nbroken") == {"NAME": "Rocky $ Linux"}


@pytest.mark.parametrize(
    ("vendor", "product", "hypervisor", "found"),
    [
        ("QEMU", "Standard PC", True, "kvm"),
        ("VMware, Inc.", "VMware7,1", True, "vmware"),
        ("Microsoft Corporation", "Virtual Machine", True, "microsoft"),
        ("Microsoft Corporation", "Surface", False, None),
        ("", "", True, "vm"),
        ("NVIDIA", "DGXA100", False, None),
    ],
)
def test_virtualization(vendor: str, product: str, hypervisor: bool, found: str | None) -> None:
    assert host.virtualization(vendor, product, hypervisor) == found


def test_units() -> None:
    states = host.unit_states(Output(0, text("systemctl_show.txt")))
    assert host.is_active(states, "nvidia-fabricmanager.service") is True
    assert host.is_active(states, "nvidia-dcgm.service", "dcgm.service") is False
    assert host.is_active(None, "x.service") is None
    assert host.unit_states(Output(1, "System has not been booted with systemd")) is None
    assert host.unit_states(Output(0, "")) is None


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (text("timedatectl.txt"), True),
        (text("timedatectl_show.txt"), False),
        ("NTP synchronized: yes", True),
        ("", None),
    ],
)
def test_timedatectl(said: str, found: bool | None) -> None:
    assert host.parse_timedatectl(said) is found


def test_chronyc() -> None:
    assert host.parse_chronyc(text("chronyc_tracking.txt")) is True
    assert host.parse_chronyc(text("chronyc_lost.txt")) is False
    assert host.parse_chronyc("506 Cannot talk to daemon") is None


def test_kmsg() -> None:
    assert host.parse_kmsg(text("kmsg.txt")).splitlines() == [
        "Linux version 6.1.0-26-amd64",
        "NVRM: Xid (PCI:0000:07:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        "a continued line; with a semicolon",
    ]


def test_iommu_modes(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    assert host.iommu(Reader(str(tmp_path))) == {"enabled": False, "mode": "off", "groups": 0}
    tree.folder("sys/kernel/iommu_groups/0")
    assert host.iommu(Reader(str(tmp_path))) == {"enabled": True, "mode": None, "groups": 1}
    tree.put("proc/cmdline", "root=/dev/sda iommu=pt quiet")
    assert host.iommu(Reader(str(tmp_path)))["mode"] == "passthrough"
    tree.put("sys/kernel/iommu_groups/1/type", "DMA-FQ")
    assert host.iommu(Reader(str(tmp_path))) == {"enabled": True, "mode": "translated", "groups": 2}


# --- bus -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("00000000:07:00.0", "0000:07:00.0"),
        ("0000:B7:00", "0000:b7:00.0"),
        ("PCI:0000:07:00", "0000:07:00.0"),
        ("0000000F:01:00.0", "000f:01:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("virtio0", None),
        ("", None),
    ],
)
def test_addresses(said: str, found: str | None) -> None:
    assert pci.address(said) == found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("16.0 GT/s PCIe", 4),
        ("8 GT/s", 3),
        ("2.5 GT/s PCIe", 1),
        ("64.0 GT/s PCIe", 6),
        ("Unknown", None),
        (None, None),
    ],
)
def test_generations(said: str | None, found: int | None) -> None:
    assert pci.generation(said) == found


@pytest.mark.parametrize(
    ("said", "found"), [("16", 16), ("16x", 16), ("x8", 8), ("0", None), ("63", None), ("255", None), (None, None)]
)
def test_widths(said: str | None, found: int | None) -> None:
    assert pci.lanes(said) == found


def parts(path: Path, data: bytes) -> Parts:
    """A configuration space."""
    path.write_bytes(data)
    return Parts(os.open(path, os.O_RDONLY), len(data))


@pytest.mark.parametrize(
    ("data", "acs", "payload"),
    [
        (build.config_space(bridge=True, able=2, used=1, acs=0x1D), True, (512, 256)),
        (build.config_space(bridge=True, able=1, used=1, acs=0), False, (256, 256)),
        (build.config_space(able=0, used=0), False, (128, 128)),
        (build.config_space(able=2, used=1, acs=0x1D)[:256], None, (512, 256)),
        (build.config_space()[:64], None, None),
        (build.config_space(gone=True), False, None),
        (bytes(4096), False, None),
        (b"", None, None),
    ],
)
def test_configuration_space(tmp_path: Path, data: bytes, acs: bool | None, payload: Any) -> None:
    config = parts(tmp_path / "config", data)
    assert pci.acs_enabled(config) is acs
    assert pci.payload(config) == payload


def test_configuration_spaces_that_run_in_circles(tmp_path: Path) -> None:
    data = bytearray(build.config_space())
    struct.pack_into("<BB", data, 0x60, 0x01, 0x60)
    struct.pack_into("<I", data, 0x100, 0x0001 | 2 << 16 | 0x100 << 20)
    config = parts(tmp_path / "config", bytes(data))
    assert pci.payload(config) is None
    assert pci.acs_enabled(config) is False


def test_payloads_are_measured_by_the_weakest_on_the_way() -> None:
    sizes = {"root": (256, 256), "switch": (512, 256), "gpu": (256, 256), "nic": (512, 256), "slow": (512, 128)}
    ways = {name: ["root", "switch", name] for name in ("gpu", "nic", "slow", "silent")}
    assert pci.mismatches(sizes, ways) == ["slow"]
    assert pci.mismatches({"gpu": (256, 128)}, {"gpu": []}) == ["gpu"]


# --- network -------------------------------------------------------------------------------------------------------------------


def test_ethtool() -> None:
    assert network.parse_features(text("ethtool_features.txt")) == {
        "rx_checksum": True,
        "tx_checksum": True,
        "tso": True,
        "gso": True,
        "gro": False,
        "lro": False,
    }
    assert network.parse_features("Cannot get device feature names: No such device") is None
    assert network.parse_driver(text("ethtool_driver.txt")) == {
        "driver": "mlx5_core",
        "driver_version": "24.10-1.1.4",
        "firmware": "22.39.2048 (MT_0000000436)",
    }
    assert network.parse_driver("driver: virtio_net\nfirmware-version: N/A\n") == {
        "driver": "virtio_net",
        "driver_version": None,
        "firmware": None,
    }


def test_the_kernel_answers_as_ethtool() -> None:
    ethtool = network.Ethtool()
    try:
        offloads = ethtool.offloads("lo")
        assert offloads is not None
        assert offloads["gso"] is True
        assert ethtool.offloads("no-such-port") is None
        assert ethtool.driver("no-such-port") == {"driver": None, "driver_version": None, "firmware": None}
        assert ethtool.offloads("a-name-that-is-longer-than-the-kernel-allows") is None
    finally:
        ethtool.close()


@pytest.mark.parametrize(
    ("mtu", "payload"), [(9000, 4096), (4200, 4096), (4096, 2048), (1500, 1024), (100, None), (None, None)]
)
def test_roce_mtu(mtu: int | None, payload: int | None) -> None:
    assert network.roce_mtu(mtu) == payload


def test_rates_and_states() -> None:
    assert network.parse_rate("200 Gb/sec (4X HDR)") == 200.0
    assert network.parse_rate("2.5 Gb/sec (1X SDR)") == 2.5
    assert network.parse_rate(None) is None
    assert network.parse_state("4: ACTIVE") == "ACTIVE"
    assert network.parse_state("broken") is None


def test_summary_counts_only_what_is_up() -> None:
    ports: list[dict[str, Any]] = [
        {"link": True, "speed_mbps": 25000},
        {"link": False, "speed_mbps": 100000},
        {"link": True, "speed_mbps": None},
    ]
    devices: list[dict[str, Any]] = [
        {"ports": [{"state": "ACTIVE", "rate_gbps": 100.0}, {"state": "DOWN", "rate_gbps": 200.0}]}
    ]
    assert network.summary(ports, devices) == {"fastest_gbps": 25.0, "rdma_ports_active": 1, "rdma_fastest_gbps": 100.0}
    assert network.summary([], []) == {"fastest_gbps": None, "rdma_ports_active": 0, "rdma_fastest_gbps": None}


def test_infiniband_has_no_roce(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    for name, value in (
        ("state", "1: DOWN"),
        ("phys_state", "3: Disabled"),
        ("rate", "10 Gb/sec (4X SDR)"),
        ("link_layer", "InfiniBand"),
    ):
        tree.put(f"sys/class/infiniband/mlx5_0/ports/1/{name}", value)
    tree.put("sys/class/infiniband/mlx5_0/ports/junk/state", "1: DOWN")
    device = network.rdma(Reader(str(tmp_path)))[0]
    assert device["board_id"] is device["netdev"] is device["pci_address"] is None
    assert device["ports"] == [
        {
            "port": 1,
            "state": "DOWN",
            "physical_state": "Disabled",
            "rate_gbps": 10.0,
            "link_layer": "InfiniBand",
            "roce_mode": None,
            "mtu": None,
        }
    ]


def test_virtual_functions_and_radios_are_no_ports(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    for name, extra in (("eth0", ""), ("vf0", "device/physfn"), ("wlan0", "wireless")):
        tree.put(f"sys/class/net/{name}/type", "1")
        tree.folder(f"sys/class/net/{name}/device")
        if extra:
            tree.folder(f"sys/class/net/{name}/{extra}")
    found, reason = network.nics(Reader(str(tmp_path)))
    assert reason == ""
    assert found is not None
    assert [port["name"] for port in found] == ["eth0"]
    assert found[0]["link"] is False
    assert found[0]["speed_mbps"] is found[0]["offloads"] is found[0]["pcie"] is None


# --- disks ---------------------------------------------------------------------------------------------------------------------


def test_mdstat() -> None:
    found = [(e.name, e.level, e.members, e.active, e.blocks) for e in storage.parse_mdstat(text("mdstat.txt"))]
    assert found == [
        ("md0", "raid1", ("nvme8n1p2", "nvme9n1p2"), True, 937036800),
        ("md1", "raid0", ("nvme0n1", "nvme1n1", "nvme2n1", "nvme3n1"), True, 15002423296),
        ("md127", "", ("sdb1",), False, 976630464),
        ("md5", "raid5", ("sdc1", "sdd1", "sde1"), True, 1953260544),
    ]
    assert storage.parse_mdstat("Personalities :\nunused devices: <none>\n") == []


def test_mountinfo_has_octal_escapes() -> None:
    line = "36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
    assert storage.parse_mountinfo(f"{line}\nbroken\n") == [("98:0", "/mnt/a b", "/dev/root")]


def test_udev() -> None:
    said = "S:disk/by-id/nvme-eui.1\nS:disk/by-path/x\nE:ID_FS_TYPE=ext4\nI:1\nE:EMPTY=\n"
    assert storage.parse_udev(said) == {"ID_FS_TYPE": "ext4", "EMPTY": "", "links": "nvme-eui.1"}


def at(offset: int, magic: bytes) -> bytes:
    """A device with something at some place."""
    return bytes(offset) + magic + bytes(512)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (at(0x438, b"\x53\xef"), "filesystem ext4"),
        (at(0, b"XFSB"), "filesystem xfs"),
        (at(0x10040, b"_BHRfS_M"), "filesystem btrfs"),
        (at(0x1000, b"\xfc\x4e\x2b\xa9"), "md member"),
        (at(0x218, b"LVM2 001"), "lvm"),
        (at(0, b"LUKS\xba\xbe"), "luks"),
        (at(0xFF6, b"SWAPSPACE2"), "swap"),
        (at(0x200, b"EFI PART"), "partition table gpt"),
        (at(450, b"\x83")[:510] + b"\x55\xaa", "partition table dos"),
        (bytes(510) + b"\x55\xaa", ""),
        (bytes(4096), ""),
        (b"", ""),
    ],
)
def test_signatures(data: bytes, found: str) -> None:
    assert storage.signature(data) == found


def test_health() -> None:
    log = bytearray(512)
    log[5] = 104
    log[160:176] = (7).to_bytes(16, "little")
    assert storage.parse_health(bytes(log)) == {"wear_percent": 104, "media_errors": 7}
    assert storage.parse_health(b"short") == {"wear_percent": None, "media_errors": None}
    assert storage.parse_health_json(text("nvme_smart.json")) == {"wear_percent": 2, "media_errors": 0}
    assert storage.parse_health_json('{"percentage_used": 9}') == {"wear_percent": 9, "media_errors": None}
    for broken in ("", "{", "[]", "null", '{"percent_used": "many"}'):
        assert storage.parse_health_json(broken) == {"wear_percent": None, "media_errors": None}
    assert storage.read_health("no-such-drive") == {"wear_percent": None, "media_errors": None}


def test_the_best_name_of_a_drive() -> None:
    names = ["nvme-KCM6_91K0", "nvme-eui.01", "nvme-eui.01-part1", "lvm-pv-uuid-x", "nvme-KCM6_91K0_1"]
    assert storage.by_id(names) == "/dev/disk/by-id/nvme-eui.01"
    assert storage.by_id(names[:1]) == "/dev/disk/by-id/nvme-KCM6_91K0"
    assert storage.by_id([]) is None


def disk(tree: build.Tree, name: str, number: str) -> str:
    """A plain disk of the tree."""
    place = f"sys/devices/pci0000:00/x/block/{name}"
    tree.put(f"{place}/size", "2048")
    tree.put(f"{place}/dev", number)
    for folder in ("block", "class/block"):
        tree.link(f"sys/{folder}/{name}", place)
    return place


def test_what_uses_a_disk(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    plain = disk(tree, "sda", "8:0")
    disk(tree, "sdb", "8:16")
    disk(tree, "sdc", "8:32")
    tree.put("sys/devices/virtual/block/dm-0/dm/uuid", "LVM-abc")
    tree.put("sys/devices/virtual/block/dm-0/dev", "253:0")
    tree.link("sys/class/block/dm-0", "sys/devices/virtual/block/dm-0")
    tree.link(f"{plain}/holders/dm-0", "sys/devices/virtual/block/dm-0")
    tree.put("dev/dm-0", "")
    tree.link("dev/mapper/vg-data", "dev/dm-0")
    # btrfs gives its mounts a number of their own: only the source tells.
    tree.put("proc/self/mountinfo", "40 1 0:40 / /srv/a\\040b rw - btrfs /dev/mapper/vg-data rw\n")
    tree.put("dev/sdb", "")
    tree.put("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sdb partition 1 0 -2\n")
    reader = Reader(str(tmp_path))
    known = storage.users(reader)
    assert storage.used_by(reader, "sda", known) == ["lvm", "mount /srv/a b"]
    assert storage.used_by(reader, "sdb", known) == ["swap"]
    assert storage.used_by(reader, "sdc", known) == []
    tree.put("sys/devices/pci0000:00/x/block/sdc/sdc1/partition", "1")
    assert storage.used_by(reader, "sdc", known) == ["1 partitions"]


def test_rotating_disks_and_their_mounts(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    place = disk(tree, "vda", "254:0")
    tree.put(f"{place}/queue/rotational", "1")
    tree.put(f"{place}/serial", "123")
    tree.put("proc/self/mountinfo", "1 0 254:0 / / rw - ext4 /dev/root rw\n")
    found, reason = storage.sections(Reader(str(tmp_path)))
    assert reason == ""
    assert found["storage"]["mounts_rotational"] == ["/"]
    assert found["block"][0] == {
        "name": "vda",
        "size_bytes": 1048576,
        "model": None,
        "serial": "123",
        "rotational": True,
        "in_use": True,
        "used_by": ["mount /"],
    }


def test_drives_with_several_ways(tmp_path: Path) -> None:
    tree = build.Tree(tmp_path)
    subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    tree.folder(f"{subsystem}/nvme4")
    tree.put(f"{subsystem}/nvme0n1/size", "2048")
    tree.link(f"{subsystem}/nvme0n1/device", subsystem)
    tree.link("sys/block/nvme0n1", f"{subsystem}/nvme0n1")
    tree.put("sys/class/nvme/nvme4/model", "SOME MODEL")
    found, reason = storage.sections(Reader(str(tmp_path)))
    assert found["nvme"][0]["controller"] == "nvme4"
    assert found["nvme"][0]["model"] == "SOME MODEL"
    assert "nvme0n1" in reason


def test_a_tree_without_disks(tmp_path: Path) -> None:
    found, reason = storage.sections(Reader(str(tmp_path)))
    assert found == {"nvme": None, "block": None, "storage": None}
    assert reason == "/sys/block cannot be read"
