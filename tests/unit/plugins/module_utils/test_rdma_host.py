# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _rdma_host as rdma

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "rdma"
ROCE = {"enabled": True, "interfaces": [], "dscp": 26, "priority": 3, "ecn": True}


def text(name: str) -> str:
    return (FIXTURES / name).read_text("utf-8")


def put(root: Path, path: str, content: str = "") -> None:
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{content}\n")


class Machine:
    """A host with tools that do what they are told, in a tree of files."""

    def __init__(self, root: Path, virtualization: str = "none") -> None:
        self.root = root
        self.virtualization = virtualization
        self.qos = text("mlnx_qos_before.txt")
        self.lspci = text("lspci_vv.txt")
        self.calls: list[str] = []
        self.missing: set[str] = set()
        self.deaf: set[str] = set()
        self.modules = {"rdma_rxe"}
        put(root, "proc/sys/net/ipv4/tcp_ecn", "2")
        put(root, "proc/sys/kernel/osrelease", "6.1.0-25-amd64")

    def port(self, name: str, mtu: int = 1500) -> None:
        put(self.root, f"sys/class/net/{name}/mtu", str(mtu))

    def soft(self, port: str, gid: str = "") -> None:
        base = f"sys/class/infiniband/rxe_{port}"
        put(self.root, f"{base}/parent", port)
        put(self.root, f"{base}/ports/1/link_layer", "Ethernet")
        put(self.root, f"{base}/ports/1/state", "4: ACTIVE")
        put(self.root, f"{base}/ports/1/gids/0", "fe80:0000:0000:0000:0000:0000:0000:0001")
        put(self.root, f"{base}/ports/1/gid_attrs/types/0", "RoCE v2")
        if gid:
            put(self.root, f"{base}/ports/1/gids/1", gid)
            put(self.root, f"{base}/ports/1/gid_attrs/types/1", "RoCE v2")

    def adapter(self, name: str, port: str, vendor_driver: bool = True) -> None:
        device = self.root / "sys/devices/pci0000:40/0000:41:00.0"
        (device / "net" / port).mkdir(parents=True)
        driver = self.root / "sys/bus/pci/drivers/mlx5_core"
        driver.mkdir(parents=True)
        (device / "driver").symlink_to(driver)
        base = self.root / "sys/class/infiniband" / name
        base.mkdir(parents=True)
        (base / "device").symlink_to(device)
        put(base, "ports/1/link_layer", "Ethernet")
        put(base, "ports/1/state", "4: ACTIVE")
        put(base, "ports/1/gid_attrs/ndevs/0", port)
        self.port(port, 9000)
        if vendor_driver:
            put(base, "tc/1/traffic_class", "")
            for side in ("roce_np", "roce_rp"):
                put(self.root, f"sys/class/net/{port}/ecn/{side}/enable/3", "0")

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        line = " ".join(argv)
        self.calls.append(line)
        if argv[0] in self.missing:
            return 127, "", f"{argv[0]} is not installed"
        if argv[0] in self.deaf:
            return 1, "", f"{argv[0]} cannot"
        if argv[0] == "systemd-detect-virt":
            return (1 if self.virtualization == "none" else 0), f"{self.virtualization}\n", ""
        if argv[0] == "modinfo":
            return (0, "", "") if argv[-1] in self.modules else (1, "", "not found")
        if line == "ip -j address show":
            return 0, text("ip_address.json"), ""
        if line == "rdma -j link show":
            return 0, "[]", ""
        if line.startswith("rdma link add"):
            self.soft(argv[-1])
        if line.startswith("rdma link delete"):
            base = self.root / "sys/class/infiniband"
            base.joinpath(argv[-1]).rename(self.root / "deleted")
        if argv[0] == "mlnx_qos":
            if len(argv) > 3:
                self.qos = text("mlnx_qos_after.txt")
            return 0, self.qos, ""
        if argv[0] == "mkdir":
            return 0, "", ""
        if line == "lspci -D -vv":
            return 0, self.lspci, ""
        if argv[0] == "setpci":
            self._setpci(argv[2], argv[3])
        return 0, "", ""

    def _setpci(self, address: str, value: str) -> None:
        blocks = self.lspci.split("\n\n")
        for index, block in enumerate(blocks):
            if not block.startswith(address):
                continue
            if value == "ECAP_ACS+0x6.w=0000":
                head, control = block.split("ACSCtl:")
                blocks[index] = f"{head}ACSCtl:{control.replace('+', '-')}"
            if value == "CAP_EXP+8.w=5000:7000":
                blocks[index] = block.replace("MaxReadReq 512", "MaxReadReq 4096")
            if value == "CAP_EXP+8.w=0010:0010":
                blocks[index] = block.replace("RlxdOrd-", "RlxdOrd+")
        self.lspci = "\n\n".join(blocks)

    def host(self) -> rdma.Host:
        return rdma.Host(self.run, str(self.root))


def shown(settings: list[rdma.Setting]) -> list[str]:
    return [f"{one.what}: {one.found} -> {one.wanted}" for one in settings]


def test_what_the_tools_print() -> None:
    before, after = rdma.parse_qos(text("mlnx_qos_before.txt")), rdma.parse_qos(text("mlnx_qos_after.txt"))
    assert (before.trust, before.pfc, before.priority_of) == ("pcp", (0,) * 8, {})
    assert (after.trust, after.pfc) == ("dscp", (0, 0, 0, 1, 0, 0, 0, 0))
    assert (after.priority_of[26], after.priority_of[0], len(after.priority_of)) == (3, 0, 64)
    places = rdma.parse_lspci(text("lspci_vv.txt"))
    assert places["0000:40:01.1"] == rdma.Pcie(True, True, 512, True)
    assert places["0000:40:03.1"].acs is False
    assert places["0000:00:00.0"] == rdma.Pcie(False, None, 0, None)
    assert places["0000:41:00.0"] == rdma.Pcie(False, None, 512, False)
    assert rdma.parse_write_bw(text("ib_write_bw.txt")) == pytest.approx(197.02)
    assert rdma.parse_write_bw("Unable to open device\n") is None
    for average in ("0.00", "inf", "-nan"):
        row = f" 65536      4000             0.00               {average}               0.000000\n"
        assert rdma.parse_write_bw(row, 5) == pytest.approx(65536 * 4000 * 8 / 3 / 1e9)
        assert rdma.parse_write_bw(row) is None
    assert [entry["ifname"] for entry in rdma.parse_links(text("rdma_link.json"))] == ["mlx5_0", "rxe_eth1"]
    assert rdma.parse_links("no json") == []


def test_numbers() -> None:
    assert rdma.traffic_class(26, ecn=True) == 106
    assert rdma.traffic_class(26, ecn=False) == 104
    assert rdma.gid_of("10.1.0.11") == "0000:0000:0000:0000:0000:ffff:0a01:000b"
    assert rdma.gid_of("fe80::1") == "fe80:0000:0000:0000:0000:0000:0000:0001"
    assert rdma.bare_address("10.1.0.11/24") == "10.1.0.11"


def test_soft_roce_is_bound_and_taken_away(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "qemu")
    machine.port("eth1")
    config: dict[str, Any] = {"soft_roce": ["eth1"], "acs": "auto", "max_read_request": 4096, "relaxed_ordering": True}
    assert machine.host().refusals(config) == []
    assert shown(machine.host().due(config)) == ["soft RoCE on eth1: not bound -> bound"]
    assert shown(machine.host().apply(config)) == ["soft RoCE on eth1: not bound -> bound"]
    assert "rdma link add rxe_eth1 type rxe netdev eth1" in machine.calls
    assert machine.host().apply(config) == []
    assert shown(machine.host().apply({"soft_roce": []})) == ["soft RoCE on eth1: bound -> not bound"]
    assert machine.host().apply({"soft_roce": []}) == []
    assert not any(line.startswith(("lspci", "setpci")) for line in machine.calls)


def test_soft_roce_of_others_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "qemu")
    machine.soft("eth1")
    (tmp_path / "sys/class/infiniband/rxe_eth1").rename(tmp_path / "sys/class/infiniband/rxe0")
    assert machine.host().due({"soft_roce": []}) == []


def test_a_setting_that_does_not_hold_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "qemu")
    machine.port("eth1")
    machine.deaf = {"rdma", "modprobe"}
    with pytest.raises(rdma.RdmaError, match=r"soft RoCE on eth1: expected bound, found not bound .*rdma cannot"):
        machine.host().apply({"soft_roce": ["eth1"]})


def test_roce_ports_become_lossless(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.adapter("mlx5_0", "ens1f0")
    config = {"roce": ROCE, "acs": "kept"}
    assert shown(machine.host().due(config)) == [
        "ens1f0 trust: pcp -> dscp",
        "ens1f0 PFC: 0,0,0,0,0,0,0,0 -> 0,0,0,1,0,0,0,0",
        "ens1f0 priority of DSCP 26:  -> 3",
        "mlx5_0 type of service of rdma_cm:  -> 106",
        "mlx5_0 traffic class:  -> 106",
        "ens1f0 ECN roce_np of priority 3: 0 -> 1",
        "ens1f0 ECN roce_rp of priority 3: 0 -> 1",
        "net.ipv4.tcp_ecn: 2 -> 1",
    ]
    # The kernel makes what is below the directory of a device.
    put(tmp_path, "sys/kernel/config/rdma_cm/mlx5_0/ports/1/default_roce_tos", "0")
    assert len(machine.host().apply(config)) == 8
    assert "mlnx_qos -i ens1f0 --pfc 0,0,0,1,0,0,0,0" in machine.calls
    assert "mlnx_qos -i ens1f0 --dscp2prio set,26,3" in machine.calls
    assert machine.host().apply(config) == []
    assert (tmp_path / "sys/kernel/config/rdma_cm/mlx5_0/ports/1/default_roce_tos").read_text() == "106\n"
    put(tmp_path, "sys/class/infiniband/mlx5_0/tc/1/traffic_class", "Global tclass=106")
    assert machine.host().due(config) == []
    assert machine.host().due({"roce": {**ROCE, "interfaces": ["other"]}}) == []
    assert machine.host().due({"roce": {**ROCE, "enabled": False}}) == []


def test_lossless_roce_needs_its_tool(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.adapter("mlx5_0", "ens1f0", vendor_driver=False)
    config = {"roce": ROCE}
    assert machine.host().refusals(config) == [
        "rdma_roce_qos: expected mlnx_qos for ens1f0 (it comes with rdma_stack: doca), found none; "
        "rdma_roce_qos: false goes on without lossless RoCE"
    ]
    assert machine.host().refusals({**config, "qos_comes": True}) == []
    put(tmp_path, "usr/bin/mlnx_qos", "")
    assert machine.host().refusals(config) == []
    assert rdma.notes(machine.host(), config) == [
        "mlx5_0: this driver has no default traffic class for programs without rdma_cm; NCCL gets it by NCCL_IB_TC"
    ]
    machine.missing = {"mlnx_qos"}
    assert len(machine.host().due(config)) == 5


def test_pcie_settings_on_bare_metal_only(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.adapter("mlx5_0", "ens1f0")
    config: dict[str, Any] = {"acs": "auto", "max_read_request": 4096, "relaxed_ordering": True}
    done = machine.host().apply(config)
    assert shown(done) == [
        "ACS of bridge 0000:40:01.1: on -> off",
        "max read request of 0000:41:00.0: 512 -> 4096",
        "relaxed ordering of 0000:41:00.0: off -> on",
    ]
    assert machine.host().apply(config) == []
    assert machine.host().due({"acs": "kept", "max_read_request": 0, "relaxed_ordering": None}) == []
    machine.missing = {"lspci"}
    assert shown(machine.host().due(config)) == ["PCIe settings: not known, lspci is not installed -> known"]
    guest = Machine(tmp_path, "kvm")
    assert guest.host().due(config) == []
    assert rdma.notes(guest.host(), config) == [
        "PCIe settings (ACS, max read request, relaxed ordering) are left alone: this is a virtual machine (kvm)"
    ]


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        (
            "systemd-nspawn",
            {"acs": "disabled"},
            "rdma_acs: expected bare metal for 'disabled', found a container (systemd-nspawn)",
        ),
        ("kvm", {"acs": "disabled"}, "found a virtual machine (kvm)"),
        (
            "none",
            {"iommu": "enabled"},
            "rdma_iommu_passthrough: expected a host that boots by GRUB for 'enabled', found bare metal",
        ),
        ("kvm", {"soft_roce": ["eth9"]}, "rdma_soft_roce_interfaces: expected ports of the host (eth1), found eth9"),
    ],
)
def test_what_is_refused(tmp_path: Path, kind: str, config: dict[str, Any], words: str) -> None:
    machine = Machine(tmp_path, kind)
    machine.port("eth1")
    (found,) = machine.host().refusals(config)
    assert words in found


def test_no_soft_roce_in_a_container(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "systemd-nspawn")
    machine.port("host0")
    machine.modules = set()
    assert machine.host().refusals({"soft_roce": ["host0"]}) == [
        "rdma_soft_roce_interfaces: expected the module rdma_rxe for the kernel 6.1.0-25-amd64, found none; "
        "a container has the kernel of its machine"
    ]


def test_rails(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "qemu")
    machine.port("eth1")
    machine.soft("eth1", gid=rdma.gid_of("10.1.0.11"))
    config: dict[str, Any] = {"rails": [{"name": "rail0", "address": "10.1.0.11/24", "mtu": 1500}]}
    host = machine.host()
    assert host.rail_ports(config) == {"rail0": "eth1"}
    assert host.gid_index("rxe_eth1", "10.1.0.11/24") == 1
    assert host.rail_findings(config) == []
    wrong: dict[str, Any] = {
        "rails": [
            {"name": "rail0", "address": "10.1.0.11/24", "mtu": 9000},
            {"name": "rail1", "address": "10.2.0.11/24"},
            {"name": "rail2", "address": "10.3.0.11/24"},
        ]
    }
    assert host.rail_findings(wrong) == [
        "rdma_peers: expected MTU 9000 on eth1 of rail0, found 1500",
        "rdma_peers: expected an RDMA device on ens1f0 of rail1, found none",
        "rdma_peers: expected 10.3.0.11 of rail2 on a port of this host, found it on none",
    ]
    put(tmp_path, "sys/class/infiniband/rxe_eth1/ports/1/state", "1: DOWN")
    assert host.rail_findings(config) == ["rxe_eth1: expected the port of rail0 ACTIVE, found DOWN"]
    put(tmp_path, "sys/class/infiniband/rxe_eth1/ports/1/state", "4: ACTIVE")
    put(tmp_path, "sys/class/infiniband/rxe_eth1/ports/1/gid_attrs/types/1", "IB/RoCE v1")
    assert host.rail_findings(config) == [
        "rxe_eth1: expected 10.1.0.11 of rail0 in its GID table as RoCE v2, found it nowhere"
    ]


def test_rails_in_one_network_loosen_rp_filter(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "qemu")
    for name, value in (("rp_filter", "1"), ("arp_ignore", "0"), ("arp_announce", "0")):
        put(tmp_path, f"proc/sys/net/ipv4/conf/eth1/{name}", value)
    config: dict[str, Any] = {"rp_filter_loose": True, "rails": [{"name": "rail0", "address": "10.1.0.11/24"}]}
    assert shown(machine.host().apply(config)) == [
        "net.ipv4.conf.eth1.rp_filter: 1 -> 2",
        "net.ipv4.conf.eth1.arp_ignore: 0 -> 1",
        "net.ipv4.conf.eth1.arp_announce: 0 -> 2",
    ]
    assert machine.host().due(config) == []


def test_reboot_reasons(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    put(tmp_path, "proc/cmdline", "root=/dev/sda1 quiet")
    assert machine.host().reboot_reasons(["iommu=pt", "quiet"]) == ["the kernel was booted without iommu=pt"]
    assert machine.host().reboot_reasons([]) == []
    put(tmp_path, "sys/module/mlx5_core/srcversion", "AAA")
    assert machine.host().reboot_reasons([]) == []
    host = rdma.Host(lambda argv: (0, "BBB\n", ""), str(tmp_path))
    assert host.reboot_reasons([]) == ["the loaded mlx5_core is not the installed one"]
