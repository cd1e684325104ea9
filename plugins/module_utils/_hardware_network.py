# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Ethernet ports and RDMA devices: sysfs, and ethtool's questions to the kernel without ethtool."""

from __future__ import annotations

import array
import fcntl
import re
import socket
import struct
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_pci as pci
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Reader

NET = "/sys/class/net"
INFINIBAND = "/sys/class/infiniband"
_ETHERNET = "1"
# linux/sockios.h and linux/ethtool.h
_SIOCETHTOOL = 0x8946
_GET_DRIVER = 0x03
_GET_FLAGS = 0x25
_FLAG_LRO = 1 << 15
_GET = {"rx_checksum": 0x14, "tx_checksum": 0x16, "tso": 0x1E, "gso": 0x23, "gro": 0x2B}
# What `ethtool -k` calls them.
_FEATURES = {
    "rx-checksumming": "rx_checksum",
    "tx-checksumming": "tx_checksum",
    "tcp-segmentation-offload": "tso",
    "generic-segmentation-offload": "gso",
    "generic-receive-offload": "gro",
    "large-receive-offload": "lro",
}
# What a RoCE packet carries beside its data (GRH, UDP, BTH, XRC, atomic header, ICRC): the kernel's iboe_get_mtu.
_ROCE_HEADERS = 40 + 8 + 12 + 4 + 28 + 4
_IB_MTUS = (4096, 2048, 1024, 512, 256)
_GIDS = 16


def parse_features(text: str) -> dict[str, bool] | None:
    """Read ``ethtool -k``; None when it lists none of them."""
    found = {}
    for line in text.splitlines():
        name, _colon, state = line.partition(":")
        key = _FEATURES.get(name.strip())
        if key and state.split():
            found[key] = state.split()[0] == "on"
    return {key: found.get(key, False) for key in _FEATURES.values()} if found else None


def parse_driver(text: str) -> dict[str, str | None]:
    """Read ``ethtool -i``."""
    lines = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    names = {"driver": "driver", "driver_version": "version", "firmware": "firmware-version"}
    return {key: _meant(lines.get(name, "")) for key, name in names.items()}


def _meant(text: str) -> str | None:
    """What a driver says, or None for its ways to say nothing."""
    text = " ".join(text.split())
    return None if text.lower() in ("", "n/a", "na", "unknown") else text


class Ethtool:
    """Asks the kernel about a port, as ethtool does; every user may."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        """Give back the socket."""
        self._socket.close()

    def _ask(self, name: str, request: bytes) -> bytes | None:
        # The answer is written where the request lies.
        room = array.array("B", request)
        begin, _length = room.buffer_info()
        try:
            fcntl.ioctl(self._socket, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), begin))
        except (OSError, ValueError, struct.error):
            return None
        return room.tobytes()

    def _value(self, name: str, command: int) -> int | None:
        answer = self._ask(name, struct.pack("II", command, 0))
        return int(struct.unpack("II", answer)[1]) if answer else None

    def offloads(self, name: str) -> dict[str, bool] | None:
        """State of the offloads; None when the port knows none."""
        found = {key: self._value(name, command) for key, command in _GET.items()}
        flags = self._value(name, _GET_FLAGS)
        if flags is None and all(value is None for value in found.values()):
            return None
        return {**{key: bool(value) for key, value in found.items()}, "lro": bool((flags or 0) & _FLAG_LRO)}

    def driver(self, name: str) -> dict[str, str | None]:
        """Driver, its version, firmware."""
        answer = self._ask(name, struct.pack("I192x", _GET_DRIVER))
        fields = struct.unpack_from("32s32s32s", answer, 4) if answer else (b"", b"", b"")
        texts = [_meant(field.split(b"\0", 1)[0].decode("utf-8", "replace")) for field in fields]
        return {"driver": texts[0], "driver_version": texts[1], "firmware": texts[2]}


def _driver(reader: Reader, ethtool: Ethtool | None, name: str) -> dict[str, str | None]:
    if ethtool is not None:
        return ethtool.driver(name)
    said = reader.recorded(f"ethtool_driver_{name}")
    return parse_driver(said.out if said is not None and said.answered else "")


def _offloads(reader: Reader, ethtool: Ethtool | None, name: str) -> dict[str, bool] | None:
    if ethtool is not None:
        return ethtool.offloads(name)
    said = reader.recorded(f"ethtool_features_{name}")
    return parse_features(said.out) if said is not None and said.answered else None


def is_physical(reader: Reader, name: str) -> bool:
    """Is it an Ethernet port of a device, neither made by software nor a virtual function of another port?"""
    path = f"{NET}/{name}"
    return (
        reader.text(f"{path}/type") == _ETHERNET
        and reader.exists(f"{path}/device")
        and not reader.exists(f"{path}/device/physfn")
        and not reader.exists(f"{path}/wireless")
    )


def nic(reader: Reader, ethtool: Ethtool | None, name: str) -> dict[str, t.Any]:
    """One port."""
    path = f"{NET}/{name}"
    place = pci.address_in_path(reader.real(f"{path}/device"))
    device = f"{pci.DEVICES}/{place}" if place else f"{path}/device"
    said = _driver(reader, ethtool, name)
    speed = reader.number(f"{path}/speed")
    duplex = reader.text(f"{path}/duplex")
    rdma = reader.names(f"{path}/device/infiniband")
    carrier = reader.text(f"{path}/carrier")
    return {
        "name": name,
        "driver": said["driver"] or reader.target(f"{path}/device/driver"),
        "driver_version": said["driver_version"],
        "firmware": said["firmware"],
        "pci_address": place,
        "vendor_id": pci.identifier(reader.text(f"{device}/vendor")) or None,
        "device_id": pci.identifier(reader.text(f"{device}/device")) or None,
        "speed_mbps": speed if speed is not None and 0 < speed < 0xFFFFFFFF else None,
        "link": carrier == "1" if carrier else reader.text(f"{path}/operstate") == "up",
        "duplex": duplex if duplex in ("full", "half") else None,
        "mtu": reader.number(f"{path}/mtu"),
        "mac": reader.word(f"{path}/address"),
        "numa_node": pci.numa_node(reader, device),
        "pcie": pci.link_or_none(reader, device),
        "offloads": _offloads(reader, ethtool, name),
        "rdma_device": rdma[0] if rdma else None,
    }


def nics(reader: Reader) -> tuple[list[dict[str, t.Any]] | None, str]:
    """All Ethernet ports, or None and why."""
    names = reader.names(NET)
    if not names:
        return None, f"{NET} is empty or cannot be read"
    ethtool = None
    if reader.live:
        try:
            ethtool = Ethtool()
        except OSError as exc:
            return None, f"no socket to ask about Ethernet ports: {exc}"
    try:
        return [nic(reader, ethtool, name) for name in names if is_physical(reader, name)], ""
    finally:
        if ethtool is not None:
            ethtool.close()


def parse_rate(text: str | None) -> float | None:
    """Gb/s in ``200 Gb/sec (4X HDR)``, or None."""
    match = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)\s*Gb/sec", text or "")
    return float(match[1]) if match else None


def parse_state(text: str | None) -> str | None:
    """The word in ``4: ACTIVE``, or None."""
    return (text or "").partition(":")[2].strip() or None


def roce_mtu(mtu: int | None) -> int | None:
    """The payload of RoCE packets over a port of this MTU."""
    return next((size for size in _IB_MTUS if mtu is not None and mtu - _ROCE_HEADERS >= size), None)


def _roce_mode(reader: Reader, path: str) -> str | None:
    """The newest RoCE version among the first addresses of a port."""
    kinds = {reader.text(f"{path}/gid_attrs/types/{index}") for index in range(_GIDS)}
    return "RoCE v2" if "RoCE v2" in kinds else "RoCE v1" if kinds & {"IB/RoCE v1", "RoCE v1"} else None


def _netdevs(reader: Reader, path: str) -> list[str]:
    """The Ethernet or IPoIB ports of an RDMA device, the first port's first."""
    names = reader.names(f"{path}/device/net")
    return sorted(names, key=lambda name: (reader.number(f"{path}/device/net/{name}/dev_port") or 0, name))


def _port(reader: Reader, path: str, name: str, netdevs: t.Sequence[str]) -> dict[str, t.Any]:
    layer = reader.word(f"{path}/ports/{name}/link_layer")
    place = int(name) - 1
    netdev = netdevs[place] if place < len(netdevs) else netdevs[0] if netdevs else None
    ethernet = layer == "Ethernet"
    return {
        "port": int(name),
        "state": parse_state(reader.text(f"{path}/ports/{name}/state")),
        "physical_state": parse_state(reader.text(f"{path}/ports/{name}/phys_state")),
        "rate_gbps": parse_rate(reader.text(f"{path}/ports/{name}/rate")),
        "link_layer": layer,
        "roce_mode": _roce_mode(reader, f"{path}/ports/{name}") if ethernet else None,
        "mtu": roce_mtu(reader.number(f"{NET}/{netdev}/mtu")) if ethernet and netdev else None,
    }


def rdma(reader: Reader) -> list[dict[str, t.Any]]:
    """All RDMA devices."""
    found = []
    for name in reader.names(INFINIBAND):
        path = f"{INFINIBAND}/{name}"
        netdevs = _netdevs(reader, path)
        place = pci.address_in_path(reader.real(f"{path}/device"))
        ports = sorted((port for port in reader.names(f"{path}/ports") if port.isdigit()), key=int)
        found.append(
            {
                "name": name,
                "board_id": reader.word(f"{path}/board_id"),
                "firmware": reader.word(f"{path}/fw_ver"),
                "hca_type": reader.word(f"{path}/hca_type"),
                "node_guid": reader.word(f"{path}/node_guid"),
                "pci_address": place,
                "numa_node": pci.numa_node(reader, f"{path}/device"),
                "netdev": netdevs[0] if netdevs else None,
                "ports": [_port(reader, path, port, netdevs) for port in ports],
            }
        )
    return found


def summary(ports: t.Sequence[dict[str, t.Any]], devices: t.Sequence[dict[str, t.Any]]) -> dict[str, t.Any]:
    """What rules ask for: the fastest Ethernet port with a link, active RDMA ports and the fastest of them."""
    speeds = [port["speed_mbps"] / 1000 for port in ports if port["link"] and port["speed_mbps"]]
    active = [port for device in devices for port in device["ports"] if port["state"] == "ACTIVE"]
    rates = [port["rate_gbps"] for port in active if port["rate_gbps"] is not None]
    return {
        "fastest_gbps": max(speeds, default=None),
        "rdma_ports_active": len(active),
        "rdma_fastest_gbps": max(rates, default=None),
    }
