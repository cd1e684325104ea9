# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""The PCI bus as sysfs shows it: needs no driver and no tool."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import NVIDIA
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Parts, Reader

DEVICES = "/sys/bus/pci/devices"
_ADDRESS = re.compile(r"(?:PCI:)?([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?")
_IN_PATH = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
# Raw bit rate of a lane by generation, as the kernel writes it. Source: PCI Express base specifications 1.0 to 6.0.
_SPEEDS = {2.5: 1, 5.0: 2, 8.0: 3, 16.0: 4, 32.0: 5, 64.0: 6}
_BRIDGE = "0x0604"
# Endpoints whose payload size matters: network, NVMe, display and 3D controllers, RDMA adapters.
_ENDPOINTS = ("0x02", "0x0108", "0x03", "0x0c06")
_CAPABILITY_EXPRESS = 0x10
_EXTENDED_ACS = 0x000D
_ACS_BITS = 0x007F
_GONE = 0xFFFFFFFF


@dataclass(frozen=True)
class Device:
    """One function on the bus; ``path`` is its directory."""

    address: str
    path: str
    vendor: str
    device: str
    kind: str


def address(text: str) -> str | None:
    """Any spelling of a PCI address in the kernel's: four digits of domain, small letters, a function."""
    match = _ADDRESS.search(text)
    if match is None:
        return None
    domain = int(match[1], 16)
    return f"{domain:04x}:{match[2].lower()}:{match[3].lower()}.{match[4] or '0'}"


def address_in_path(path: str) -> str | None:
    """The PCI device that a path of sysfs leads through last."""
    found = _IN_PATH.findall(path)
    return found[-1] if found else None


def identifier(text: str | None) -> str:
    """A vendor or device id without 0x; empty when there is none."""
    return (text or "").strip().lower().replace("0x", "")


def generation(text: str | None) -> int | None:
    """The PCIe generation behind a link speed such as ``16.0 GT/s PCIe``."""
    match = re.match(r"\s*([0-9]+(?:\.[0-9]+)?)\s*GT/s", text or "")
    return _SPEEDS.get(float(match[1])) if match else None


def lanes(text: str | None) -> int | None:
    """The width of a link; None for 0 and for what a device that is gone answers (63, 255)."""
    match = re.match(r"\s*x?([0-9]+)x?\s*$", text or "")
    width = int(match[1]) if match else 0
    return width if 0 < width <= 32 else None


def link(reader: Reader, path: str) -> dict[str, int | None]:
    """Width and generation of a device's link, now and at most."""
    return {
        "width": lanes(reader.text(f"{path}/current_link_width")),
        "width_max": lanes(reader.text(f"{path}/max_link_width")),
        "gen": generation(reader.text(f"{path}/current_link_speed")),
        "gen_max": generation(reader.text(f"{path}/max_link_speed")),
    }


def link_or_none(reader: Reader, path: str) -> dict[str, int | None] | None:
    """As ``link``; None for a device without a link, as in a virtual machine."""
    found = link(reader, path)
    return found if any(value is not None for value in found.values()) else None


def numa_node(reader: Reader, path: str) -> int | None:
    """The NUMA node of a device; None when the kernel knows of none."""
    node = reader.number(f"{path}/numa_node")
    return None if node is None or node < 0 else node


def _devices(reader: Reader, folder: str) -> t.Iterator[Device]:
    for name in reader.names(folder):
        found = address(name)
        if found is None:
            continue
        path = f"{folder}/{name}"
        yield Device(
            found,
            path,
            identifier(reader.text(f"{path}/vendor")),
            identifier(reader.text(f"{path}/device")),
            (reader.text(f"{path}/class") or "").lower(),
        )


def devices(reader: Reader) -> list[Device]:
    """All functions on the bus by address. On a simulated host NVIDIA's come from the simulation."""
    found = list(_devices(reader, DEVICES))
    if reader.simulation:
        found = [device for device in found if device.vendor != NVIDIA]
        found += _devices(reader, f"{reader.simulation}{DEVICES}")
    return sorted(found, key=lambda device: device.address)


def is_gone(reader: Reader, path: str) -> bool:
    """Does the device answer with ones only, as one that fell off the bus does?"""
    with reader.parts(f"{path}/config") as config:
        return config is not None and config.number(0, 4) == _GONE


def express(config: Parts) -> int | None:
    """Where the PCI Express capability begins, or None."""
    place = config.number(0x34, 1) or 0
    for _step in range(48):
        place &= 0xFC
        if place < 0x40:
            return None
        head = config.number(place, 2)
        if head is None or head == 0xFFFF:
            return None
        if head & 0xFF == _CAPABILITY_EXPRESS:
            return place
        place = head >> 8
    return None


def payload(config: Parts) -> tuple[int, int] | None:
    """The largest payload a device can take and the one that is set, in bytes; None when it does not say."""
    place = express(config)
    if place is None:
        return None
    able, control = config.number(place + 4, 4), config.number(place + 8, 2)
    if able is None or control is None:
        return None
    return 128 << (able & 7), 128 << (control >> 5 & 7)


def acs_enabled(config: Parts) -> bool | None:
    """Is any access control service of a bridge on? None when the extended space cannot be read."""
    place = 0x100
    head = config.number(place, 4)
    if head is None:
        return None
    for _step in range(96):
        if head in (0, None, _GONE):
            return False
        if head & 0xFFFF == _EXTENDED_ACS:
            control = config.number(place + 6, 2)
            return None if control is None else bool(control & _ACS_BITS)
        place = head >> 20 & 0xFFC
        if place < 0x100:
            return False
        head = config.number(place, 4)
    return False


def _payloads(reader: Reader, found: t.Iterable[Device]) -> dict[str, tuple[int, int]]:
    sizes = {}
    for device in found:
        with reader.parts(f"{device.path}/config") as config:
            said = payload(config) if config is not None else None
        if said is not None:
            sizes[device.address] = said
    return sizes


def mismatches(sizes: t.Mapping[str, tuple[int, int]], paths: t.Mapping[str, t.Sequence[str]]) -> list[str]:
    """Endpoints that are set to another payload than the way to them can carry.

    :arg sizes: what each device can take and is set to.
    :arg paths: for each endpoint the devices from the root port to itself.
    """
    wrong = []
    for endpoint, way in paths.items():
        if endpoint not in sizes:
            continue
        best = min(sizes[step][0] for step in (*way, endpoint) if step in sizes)
        if sizes[endpoint][1] != best:
            wrong.append(endpoint)
    return sorted(wrong)


def fabric(reader: Reader, found: t.Sequence[Device]) -> tuple[dict[str, list[str]] | None, str]:
    """What slows traffic between devices: ACS on bridges, payload sizes that do not fit.

    :returns: the section (None when it cannot be known), and the reason when it cannot.
    """
    if not found:
        return None, f"{DEVICES} is empty or cannot be read"
    bridges = [device for device in found if device.kind.startswith(_BRIDGE)]
    ends = [device for device in found if device.kind.startswith(_ENDPOINTS)]
    acs: list[str] = []
    unread = 0
    for bridge in bridges:
        with reader.parts(f"{bridge.path}/config") as config:
            state = acs_enabled(config) if config is not None and config.number(0, 4) is not None else None
            # A conventional bridge has 256 bytes and no such capability.
            conventional = state is None and config is not None and config.size == 256
        if state:
            acs.append(bridge.address)
        unread += state is None and not conventional
    if unread:
        return None, f"the configuration space of {unread} PCI bridges cannot be read, which takes root"
    sizes = _payloads(reader, [*bridges, *ends])
    if ends and not sizes and not any(reader.exists(f"{device.path}/config") for device in ends):
        return None, "the tree has no configuration space of PCI devices"
    ways = {device.address: _IN_PATH.findall(reader.real(device.path)) for device in ends}
    return {"acs_enabled_bridges": sorted(acs), "max_payload_mismatch": mismatches(sizes, ways)}, ""
