# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Everything of RDMA on one host that a reboot or a new link forgets: soft RoCE, QoS of RoCE ports, PCIe settings, kernel settings.

Each is a setting with what was found, what is wanted and what brings it there; all are read back.
Role rdma leaves this very file on the host, where it does the same at boot: standard library only.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "rxe_"
_MELLANOX = "mlx5_core"
_REQUEST_SIZES = {128: 0, 256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}
_PRIORITIES = 8
_GIDS = 64
_V2 = "RoCE v2"
_ROCE_PORT_TOOL = "mlnx_qos"
_CONFIGFS = "sys/kernel/config/rdma_cm"
# What a container says about its machine is not its own to change.
_BARE = "none"
_CONTAINERS = {
    "container-other",
    "docker",
    "lxc",
    "lxc-libvirt",
    "openvz",
    "podman",
    "proot",
    "pouch",
    "rkt",
    "systemd-nspawn",
    "wsl",
}


class RdmaError(Exception):
    """What is wrong, in words for the operator."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


@dataclass(frozen=True)
class Device:
    """One RDMA device."""

    name: str
    driver: str
    netdev: str
    pci: str = ""
    layer: str = ""
    state: str = ""

    @property
    def soft(self) -> bool:
        """Made by software, over any Ethernet port?"""
        return self.driver == "rdma_rxe"

    @property
    def lossless(self) -> bool:
        """A port on which RoCE can be made lossless here?"""
        return self.driver == _MELLANOX and self.layer == "Ethernet" and bool(self.netdev)


@dataclass
class Setting:
    """One thing that shall be so."""

    what: str
    found: str
    wanted: str
    # ("run", argv) or ("write", path, text)
    steps: list[tuple[str, t.Any]] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Nothing to do?"""
        return self.found == self.wanted


@dataclass(frozen=True)
class Qos:
    """What mlnx_qos says about a port."""

    trust: str
    pfc: tuple[int, ...]
    priority_of: dict[int, int]


@dataclass(frozen=True)
class Pcie:
    """What lspci says about a device."""

    bridge: bool
    acs: bool | None
    max_read_request: int
    relaxed_ordering: bool | None


def parse_links(text: str) -> list[dict[str, t.Any]]:
    """Read ``rdma -j link show``."""
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return []
    return (
        [entry for entry in value if isinstance(entry, dict) and entry.get("ifname")] if isinstance(value, list) else []
    )


def parse_qos(text: str) -> Qos:
    """Read ``mlnx_qos -i IF``."""
    trust = re.search(r"^Priority trust state:\s*(\S+)", text, re.MULTILINE)
    pfc = re.search(r"^\s*enabled((?:\s+[01]){8})\s*$", text, re.MULTILINE)
    mapping: dict[int, int] = {}
    for line in re.finditer(r"^\s*prio:(\d)\s+dscp:([\d,]+)", text, re.MULTILINE):
        for value in line[2].strip(",").split(","):
            mapping[int(value)] = int(line[1])
    return Qos(trust[1] if trust else "", tuple(int(bit) for bit in pfc[1].split()) if pfc else (), mapping)


def parse_lspci(text: str) -> dict[str, Pcie]:
    """Read ``lspci -D -vv``."""
    found = {}
    for block in re.split(r"\n(?=[0-9a-f]{4}:[0-9a-f]{2}:)", text):
        head = re.match(r"([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) ([^:]+):", block)
        if not head:
            continue
        acs = re.search(r"ACSCtl:\s*(.+)", block)
        size = re.search(r"MaxReadReq (\d+) bytes", block)
        relaxed = re.search(r"DevCtl:.*?RlxdOrd([+-])", block, re.DOTALL)
        found[head[1]] = Pcie(
            "PCI bridge" in head[2],
            "+" in acs[1] if acs else None,
            int(size[1]) if size else 0,
            relaxed[1] == "+" if relaxed else None,
        )
    return found


def parse_write_bw(text: str, seconds: int = 0) -> float | None:
    """Average Gb/s of ``ib_write_bw --report_gbits --duration``; None when it got nowhere.

    Where the clock of the processor cannot be measured (emulated ones) it prints 0 or inf; then what it sent in that time is counted. It leaves
    out a quarter of the time at the beginning and at the end.
    """
    rows = re.findall(r"^\s*(\d+)\s+(\d+)\s+\S+\s+(\S+)\s+\S+\s*$", text, re.MULTILINE)
    if not rows:
        return None
    size, count, average = int(rows[-1][0]), int(rows[-1][1]), rows[-1][2]
    if re.fullmatch(r"[\d.]+", average) and float(average) > 0:
        return float(average)
    return size * count * 8 / (seconds - 2 * (seconds // 4)) / 1e9 if seconds else None


def traffic_class(dscp: int, ecn: bool) -> int:
    """The byte in the IP header: DSCP, and whether routers may mark congestion instead of dropping."""
    return dscp << 2 | (2 if ecn else 0)


def gid_of(address: str) -> str:
    """How an IP address stands in a GID table."""
    place = ipaddress.ip_address(address)
    whole = place.packed if place.version == 6 else b"\0" * 10 + b"\xff\xff" + place.packed
    return ":".join(whole.hex()[index : index + 4] for index in range(0, 32, 4))


def bare_address(text: str) -> str:
    """An address without its prefix length, in its shortest form."""
    return str(ipaddress.ip_interface(text).ip)


class Host:
    """One host, below a root that tests may choose."""

    def __init__(self, run: Run, root: str = "/") -> None:
        self.run = run
        self.root = Path(root)
        self._virtualization: str | None = None
        self._devices: list[Device] | None = None

    # Reading

    def text(self, path: str) -> str:
        """Content of a file; empty when it cannot be read, as an unused GID cannot."""
        try:
            return (self.root / path).read_text("utf-8").strip()
        except (OSError, ValueError):
            return ""

    def exists(self, path: str) -> bool:
        """Is the path there?"""
        return (self.root / path).exists()

    def names(self, path: str) -> list[str]:
        """What a directory holds."""
        base = self.root / path
        return sorted(item.name for item in base.iterdir()) if base.is_dir() else []

    def _target(self, path: str) -> str:
        place = self.root / path
        return os.path.basename(os.path.realpath(place)) if place.exists() else ""

    @property
    def virtualization(self) -> str:
        """``none`` on bare metal, else the kind of virtual machine or container."""
        if self._virtualization is None:
            _code, out, _err = self.run(["systemd-detect-virt"])
            self._virtualization = out.strip() or "unknown"
        return self._virtualization

    @property
    def bare_metal(self) -> bool:
        """Does the host own its PCIe bridges?"""
        return self.virtualization == _BARE

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.bare_metal:
            return "bare metal"
        return f"a {'container' if self.virtualization in _CONTAINERS else 'virtual machine'} ({self.virtualization})"

    def interfaces(self) -> list[str]:
        """Names of all network ports."""
        return self.names("sys/class/net")

    def mtu(self, interface: str) -> int:
        """MTU of a port; 0 when it is not there."""
        value = self.text(f"sys/class/net/{interface}/mtu")
        return int(value) if value.isdigit() else 0

    def devices(self, fresh: bool = False) -> list[Device]:
        """All RDMA devices."""
        if self._devices is None or fresh:
            self._devices = [self._device(name) for name in self.names("sys/class/infiniband")]
        return self._devices

    def _device(self, name: str) -> Device:
        base = f"sys/class/infiniband/{name}"
        parent = self.text(f"{base}/parent")
        ports = self.names(f"{base}/device/net")
        pci = self._target(f"{base}/device")
        return Device(
            name=name,
            # Newer kernels may do without the file "parent"; what software makes has no device behind it.
            driver="rdma_rxe"
            if parent or (name.startswith("rxe") and not pci)
            else self._target(f"{base}/device/driver"),
            netdev=parent or self.text(f"{base}/ports/1/gid_attrs/ndevs/0") or (ports[0] if ports else ""),
            pci=pci if re.match(r"[0-9a-f]{4}:[0-9a-f]{2}:", pci) else "",
            layer=self.text(f"{base}/ports/1/link_layer"),
            state=self.text(f"{base}/ports/1/state").partition(":")[2].strip(),
        )

    def gid_index(self, device: str, address: str) -> int:
        """Where in the GID table an address stands as RoCE v2; -1 when it does not."""
        wanted = gid_of(bare_address(address))
        base = f"sys/class/infiniband/{device}/ports/1"
        for index in range(_GIDS):
            if self.text(f"{base}/gids/{index}") == wanted and self.text(f"{base}/gid_attrs/types/{index}") == _V2:
                return index
        return -1

    def addresses(self) -> dict[str, str]:
        """Port by address."""
        code, out, _err = self.run(["ip", "-j", "address", "show"])
        try:
            entries = json.loads(out) if code == 0 else []
        except ValueError:
            entries = []
        return {
            info["local"]: entry["ifname"]
            for entry in entries
            for info in entry.get("addr_info", [])
            if "local" in info and entry.get("ifname")
        }

    def module_there(self, name: str) -> bool:
        """Can the running kernel have this module?"""
        return self.exists(f"sys/module/{name}") or self.run(["modinfo", name])[0] == 0

    def has(self, program: str) -> bool:
        """Is a program installed?"""
        return any(
            self.exists(f"{place}/{program}")
            for place in ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
        )

    # Settings

    def settings(self, config: t.Mapping[str, t.Any]) -> list[Setting]:
        """Everything that shall be so, with what was found."""
        return [
            *self._soft_roce(config),
            *self._roce(config),
            *self._pcie(config),
            *self._rp_filter(config),
        ]

    def _soft_roce(self, config: t.Mapping[str, t.Any]) -> list[Setting]:
        wanted = [str(name) for name in config.get("soft_roce", [])]
        soft = {device.netdev: device.name for device in self.devices() if device.soft}
        if not wanted and not soft:
            return []
        links = {entry["ifname"]: entry for entry in parse_links(self.run(["rdma", "-j", "link", "show"])[1])}
        found = []
        for interface in wanted:
            name = soft.get(interface, "")
            there = "bound" if name and (not links or name in links) else "not bound"
            steps: list[tuple[str, t.Any]] = [
                # The character devices that programs open come with these two.
                *[("run", ["modprobe", module]) for module in ("rdma_rxe", "ib_uverbs", "rdma_ucm")],
                ("run", ["rdma", "link", "add", f"{PREFIX}{interface}", "type", "rxe", "netdev", interface]),
            ]
            found.append(Setting(f"soft RoCE on {interface}", there, "bound", steps))
        found += [
            Setting(f"soft RoCE on {interface}", "bound", "not bound", [("run", ["rdma", "link", "delete", name])])
            for interface, name in soft.items()
            # What others bound under a name of their own is theirs.
            if interface not in wanted and name == f"{PREFIX}{interface}"
        ]
        return found

    def lossless(self, config: t.Mapping[str, t.Any]) -> list[Device]:
        """Ports that get the QoS of RoCE."""
        roce = config.get("roce") or {}
        if not roce.get("enabled"):
            return []
        named = roce.get("interfaces") or []
        return [device for device in self.devices() if device.lossless and (not named or device.netdev in named)]

    def _roce(self, config: t.Mapping[str, t.Any]) -> list[Setting]:
        ports = self.lossless(config)
        roce = config.get("roce") or {}
        found: list[Setting] = []
        for device in ports:
            found += self._qos(device, roce)
        if ports and roce.get("ecn"):
            found.append(self._sysctl("net.ipv4.tcp_ecn", "1"))
        return found

    def _qos(self, device: Device, roce: t.Mapping[str, t.Any]) -> list[Setting]:
        port, priority, dscp = device.netdev, int(roce["priority"]), int(roce["dscp"])
        tclass = str(traffic_class(dscp, bool(roce.get("ecn"))))
        code, out, err = self.run([_ROCE_PORT_TOOL, "-i", port])
        # Not installed: everything is due in check mode, and fails by its read-back otherwise.
        if code not in (0, 127):
            raise RdmaError(
                f"{port}: expected the QoS settings of the port from {_ROCE_PORT_TOOL}, found: {_said(out, err)}"
            )
        now = parse_qos(out)
        bits = ",".join("1" if index == priority else "0" for index in range(_PRIORITIES))
        tool = [_ROCE_PORT_TOOL, "-i", port]
        found = [
            Setting(f"{port} trust", now.trust, "dscp", [("run", [*tool, "--trust", "dscp"])]),
            Setting(f"{port} PFC", ",".join(map(str, now.pfc)), bits, [("run", [*tool, "--pfc", bits])]),
            Setting(
                f"{port} priority of DSCP {dscp}",
                str(now.priority_of.get(dscp, "")),
                str(priority),
                [("run", [*tool, "--dscp2prio", f"set,{dscp},{priority}"])],
            ),
        ]
        # What cma_roce_tos of the vendor sets, in the place where the kernel keeps it. Making the directory shows the value.
        place = f"{_CONFIGFS}/{device.name}/ports/1/default_roce_tos"
        found.append(
            Setting(
                f"{device.name} type of service of rdma_cm",
                self.text(place),
                tclass,
                [("run", ["modprobe", "rdma_cm"]), ("mkdir", f"{_CONFIGFS}/{device.name}"), ("write", (place, tclass))],
            )
        )
        # Only the vendor's driver has the next two.
        place = f"sys/class/infiniband/{device.name}/tc/1/traffic_class"
        if self.exists(place):
            value = re.search(r"-?\d+", self.text(place))
            found.append(
                Setting(f"{device.name} traffic class", value[0] if value else "", tclass, [("write", (place, tclass))])
            )
        for side in ("roce_np", "roce_rp") if roce.get("ecn") else ():
            place = f"sys/class/net/{port}/ecn/{side}/enable/{priority}"
            if self.exists(place):
                found.append(
                    Setting(
                        f"{port} ECN {side} of priority {priority}", self.text(place), "1", [("write", (place, "1"))]
                    )
                )
        return found

    def acs_wanted_off(self, config: t.Mapping[str, t.Any]) -> bool:
        """Shall ACS be off on the PCIe bridges of this host?"""
        return config.get("acs") in ("auto", "disabled") and self.bare_metal

    def _pcie(self, config: t.Mapping[str, t.Any]) -> list[Setting]:
        if not self.bare_metal:
            return []
        ports = [device for device in self.devices() if device.pci]
        size, relaxed = int(config.get("max_read_request") or 0), config.get("relaxed_ordering")
        off = self.acs_wanted_off(config)
        if not off and not (ports and (size or relaxed is not None)):
            return []
        code, out, err = self.run(["lspci", "-D", "-vv"])
        if code == 127:
            return [Setting("PCIe settings", "not known, lspci is not installed", "known")]
        if code != 0:
            raise RdmaError(f"expected the PCIe devices from 'lspci -D -vv', found: {_said(out, err)}")
        places = parse_lspci(out)
        found = []
        for address, place in places.items():
            if off and place.bridge and place.acs is not None:
                step = ("run", ["setpci", "-s", address, "ECAP_ACS+0x6.w=0000"])
                found.append(Setting(f"ACS of bridge {address}", "on" if place.acs else "off", "off", [step]))
        for address in dict.fromkeys(device.pci for device in ports):
            pcie = places.get(address)
            if pcie is None or not pcie.max_read_request:
                continue
            if size:
                value = f"{_REQUEST_SIZES[size] << 12:04x}"
                step = ("run", ["setpci", "-s", address, f"CAP_EXP+8.w={value}:7000"])
                found.append(Setting(f"max read request of {address}", str(pcie.max_read_request), str(size), [step]))
            if relaxed is not None and pcie.relaxed_ordering is not None:
                step = ("run", ["setpci", "-s", address, f"CAP_EXP+8.w={'0010' if relaxed else '0000'}:0010"])
                now = "on" if pcie.relaxed_ordering else "off"
                found.append(Setting(f"relaxed ordering of {address}", now, "on" if relaxed else "off", [step]))
        return found

    def _sysctl(self, name: str, value: str) -> Setting:
        # A dot in the name of a port is a slash in sysctl's eyes; the path has no such doubt.
        place = "proc/sys/" + name.replace(".", "/")
        return Setting(name, self.text(place), value, [("write", (place, value))])

    def rail_ports(self, config: t.Mapping[str, t.Any]) -> dict[str, str]:
        """Port of each rail by the rail's name; empty where its address is on no port."""
        rails = config.get("rails") or []
        ports = self.addresses() if rails else {}
        return {rail["name"]: ports.get(bare_address(rail["address"]), "") for rail in rails}

    def _rp_filter(self, config: t.Mapping[str, t.Any]) -> list[Setting]:
        if not config.get("rp_filter_loose"):
            return []
        found = []
        for port in sorted(set(self.rail_ports(config).values()) - {""}):
            # All rails in one network: accept what comes by another port, answer for the own address only.
            for name, value in (("rp_filter", "2"), ("arp_ignore", "1"), ("arp_announce", "2")):
                place = f"proc/sys/net/ipv4/conf/{port}/{name}"
                found.append(
                    Setting(f"net.ipv4.conf.{port}.{name}", self.text(place), value, [("write", (place, value))])
                )
        return found

    # Doing

    def _step(self, kind: str, value: t.Any) -> str:
        """Do one thing; what went wrong, or nothing."""
        if kind == "run":
            code, out, err = self.run(list(value))
            return "" if code == 0 else f"'{' '.join(value)}' said: {_said(out, err)}"
        try:
            if kind == "mkdir":
                (self.root / value).mkdir(parents=True, exist_ok=True)
            else:
                (self.root / value[0]).write_text(f"{value[1]}\n", "utf-8")
        except OSError as exc:
            return f"/{value if kind == 'mkdir' else value[0]}: {exc.strerror}"
        return ""

    def due(self, config: t.Mapping[str, t.Any]) -> list[Setting]:
        """What is not as wanted."""
        return [setting for setting in self.settings(config) if not setting.right]

    def apply(self, config: t.Mapping[str, t.Any]) -> list[Setting]:
        """Bring everything where it shall be, read back, and return what had to be changed."""
        before = self.due(config)
        said: dict[str, str] = {}
        for setting in before:
            for kind, value in setting.steps:
                failed = self._step(kind, value)
                if failed:
                    said[setting.what] = failed
        if before:
            self.devices(fresh=True)
            wrong = self.due(config)
            if wrong:
                raise RdmaError(
                    "; ".join(
                        f"{setting.what}: expected {setting.wanted}, found {setting.found or 'nothing'}"
                        + (f" ({said[setting.what]})" if setting.what in said else "")
                        for setting in wrong
                    )
                )
        return before

    # Judging

    def refusals(self, config: t.Mapping[str, t.Any]) -> list[str]:
        """What forbids the run, before anything is touched."""
        found = []
        for interface in config.get("soft_roce", []):
            if interface not in self.interfaces():
                found.append(
                    f"rdma_soft_roce_interfaces: expected ports of the host ({', '.join(self.interfaces())}), found {interface}"
                )
        if config.get("soft_roce") and not self.module_there("rdma_rxe"):
            kernel = self.text("proc/sys/kernel/osrelease")
            found.append(
                f"rdma_soft_roce_interfaces: expected the module rdma_rxe for the kernel {kernel}, found none"
                + ("; a container has the kernel of its machine" if self.virtualization in _CONTAINERS else "")
            )
        if config.get("acs") == "disabled" and not self.bare_metal:
            found.append(
                f"rdma_acs: expected bare metal for 'disabled', found {self.kind}; ACS is what keeps its neighbours' devices apart there"
            )
        if config.get("iommu") == "enabled" and (self.virtualization in _CONTAINERS or not self.has("update-grub")):
            found.append(
                f"rdma_iommu_passthrough: expected a host that boots by GRUB for 'enabled', found {self.kind} without update-grub"
            )
        if self.lossless(config) and not config.get("qos_comes") and not self.has(_ROCE_PORT_TOOL):
            ports = ", ".join(device.netdev for device in self.lossless(config))
            found.append(
                f"rdma_roce_qos: expected {_ROCE_PORT_TOOL} for {ports} (it comes with rdma_stack: doca), found none; "
                "rdma_roce_qos: false goes on without lossless RoCE"
            )
        return found

    def rail_findings(self, config: t.Mapping[str, t.Any]) -> list[str]:
        """What is wrong with the rails of this host: address, MTU, rp_filter, GID."""
        found = []
        ports = self.rail_ports(config)
        by_port = {device.netdev: device for device in self.devices(fresh=True)}
        for rail in config.get("rails") or []:
            name, port = rail["name"], ports[rail["name"]]
            address = bare_address(rail["address"])
            if not port:
                found.append(f"rdma_peers: expected {address} of {name} on a port of this host, found it on none")
                continue
            mtu = int(rail.get("mtu") or 0)
            if mtu and self.mtu(port) != mtu:
                found.append(f"rdma_peers: expected MTU {mtu} on {port} of {name}, found {self.mtu(port)}")
            device = by_port.get(port)
            if device is None:
                found.append(f"rdma_peers: expected an RDMA device on {port} of {name}, found none")
            elif device.state != "ACTIVE":
                found.append(f"{device.name}: expected the port of {name} ACTIVE, found {device.state or 'nothing'}")
            elif device.layer == "Ethernet" and self.gid_index(device.name, address) < 0:
                found.append(
                    f"{device.name}: expected {address} of {name} in its GID table as RoCE v2, found it nowhere"
                )
        return found

    def memlock(self) -> str:
        """What systemd gives services as locked memory."""
        return self.run(["systemctl", "show", "--property=DefaultLimitMEMLOCK", "--value"])[1].strip()

    def reboot_reasons(self, arguments: t.Sequence[str]) -> list[str]:
        """Why the host must be rebooted: kernel arguments that it was not booted with, a driver that is not the installed one."""
        given = self.text("proc/cmdline").split()
        missing = [word for word in arguments if word not in given]
        found = [f"the kernel was booted without {' '.join(missing)}"] if missing else []
        loaded = self.text(f"sys/module/{_MELLANOX}/srcversion")
        if loaded:
            code, out, _err = self.run(["modinfo", "--field=srcversion", _MELLANOX])
            if code == 0 and out.strip() and out.strip() != loaded:
                found.append(f"the loaded {_MELLANOX} is not the installed one")
        return found


def _said(out: str, err: str) -> str:
    return " ".join((err.strip() or out.strip()).split()) or "nothing"


def notes(host: Host, config: t.Mapping[str, t.Any]) -> list[str]:
    """What the operator should know although nothing is wrong."""
    found = []
    if config.get("acs") == "auto" and not host.bare_metal:
        found.append(f"PCIe settings (ACS, max read request, relaxed ordering) are left alone: this is {host.kind}")
    if config.get("iommu") == "auto" and host.bare_metal and not host.has("update-grub"):
        found.append("IOMMU passthrough is left alone: no update-grub here, the boot loader is not GRUB")
    for device in host.lossless(config):
        if not host.exists(f"sys/class/infiniband/{device.name}/tc/1/traffic_class"):
            found.append(
                f"{device.name}: this driver has no default traffic class for programs without rdma_cm; NCCL gets it by NCCL_IB_TC"
            )
    return found
