# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Disks: what they are, how worn, and what uses them. Reads sysfs, /proc and udev's notes; asks NVMe drives for their health log."""

from __future__ import annotations

import array
import fcntl
import json
import os
import re
import struct
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_pci as pci
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Reader, integer

BLOCK = "/sys/block"
BY_ID = "/dev/disk/by-id"
_NAMESPACE = re.compile(r"nvme\d+n\d+")
_CONTROLLER = re.compile(r"nvme\d+")
# No disks: loops, RAM, arrays and mappings (which are made of disks), CD and floppy drives, network and replicated devices.
_NO_DISK = re.compile(r"(loop|ram|zram|md|dm-|sr|fd|nbd|rbd|drbd|nvme|mtdblock|zd)\d*")
_SECTOR = 512
# linux/nvme_ioctl.h: _IOWR('N', 0x41, struct nvme_admin_cmd); opcode and page of the NVMe base specification.
_ADMIN_COMMAND = 0xC0484E41
_GET_LOG_PAGE = 0x02
_PAGE_HEALTH = 0x02
_HEALTH_SIZE = 512
_ALL_NAMESPACES = 0xFFFFFFFF
_UNDERSCORE_TYPES = {"linux_raid_member": "md member", "LVM2_member": "lvm", "crypto_LUKS": "luks", "swap": "swap"}
_PROBE = 68 * 1024
# Signatures: offset, bytes, what they mean. Sources: the kernel's headers of each file system, md, LVM and LUKS; UEFI for GPT.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0x438, b"\x53\xef", "filesystem ext4"),
    (0, b"XFSB", "filesystem xfs"),
    (0x10040, b"_BHRfS_M", "filesystem btrfs"),
    (0x10, b"\xfc\x4e\x2b\xa9", "md member"),
    (0x1000, b"\xfc\x4e\x2b\xa9", "md member"),
    (0x218, b"LVM2 001", "lvm"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0xFF6, b"SWAPSPACE2", "swap"),
    (0x200, b"EFI PART", "partition table gpt"),
    (0x1000, b"EFI PART", "partition table gpt"),
)


@dataclass(frozen=True)
class Array:
    """A software RAID in /proc/mdstat."""

    name: str
    level: str
    members: tuple[str, ...]
    active: bool
    blocks: int


@dataclass
class Users:
    """Who uses block devices, by kernel name: mount points and swap."""

    mounts: dict[str, list[str]] = field(default_factory=dict)
    swaps: set[str] = field(default_factory=set)


def parse_mdstat(text: str) -> list[Array]:
    """Read /proc/mdstat."""
    found = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        match = re.match(r"(md\S+)\s*:\s*(active|inactive)\s*(?:\([^)]*\)\s*)*(.*)", line)
        if match is None:
            continue
        words = match[3].split()
        level = words.pop(0) if words and "[" not in words[0] else ""
        members = sorted(word.partition("[")[0] for word in words if "[" in word)
        size = re.match(r"\s+(\d+)\s+blocks", lines[number + 1] if number + 1 < len(lines) else "")
        found.append(Array(match[1], level, tuple(members), match[2] == "active", int(size[1]) if size else 0))
    return sorted(found, key=lambda entry: entry.name)


def parse_mountinfo(text: str) -> list[tuple[str, str, str]]:
    """Device number, mount point and source of each mount in /proc/self/mountinfo."""
    found = []
    for line in text.splitlines():
        left, _dash, right = line.partition(" - ")
        first, second = left.split(), right.split()
        if len(first) >= 5 and len(second) >= 2:
            found.append((first[2], _plain(first[4]), _plain(second[1])))
    return found


def _plain(text: str) -> str:
    """Undo the kernel's octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def parse_udev(text: str) -> dict[str, str]:
    """The properties in a file of udev's database, and its links below by-id under ``links``."""
    found = {}
    links = []
    for line in text.splitlines():
        kind, _colon, rest = line.partition(":")
        if kind == "E":
            key, _equals, value = rest.partition("=")
            found[key] = value
        elif kind == "S" and rest.startswith("disk/by-id/"):
            links.append(rest[len("disk/by-id/") :])
    found["links"] = " ".join(sorted(links))
    return found


def signature(data: bytes) -> str:
    """What the beginning of a device is, or nothing."""
    for offset, magic, meaning in _SIGNATURES:
        if data[offset : offset + len(magic)] == magic:
            return meaning
    # An MBR: its mark, and at least one partition of some type.
    if data[510:512] == b"\x55\xaa" and any(data[446 + 16 * i + 4 : 446 + 16 * i + 5].strip(b"\0") for i in range(4)):
        return "partition table dos"
    return ""


def parse_health(data: bytes) -> dict[str, int | None]:
    """Wear and media errors in an NVMe drive's health log (512 bytes)."""
    if len(data) < _HEALTH_SIZE:
        return {"wear_percent": None, "media_errors": None}
    return {"wear_percent": data[5], "media_errors": int.from_bytes(data[160:176], "little")}


def parse_health_json(text: str) -> dict[str, int | None]:
    """The same from ``nvme smart-log -o json``, of old (percent_used) and new versions."""
    try:
        log = json.loads(text)
    except ValueError:
        log = None
    if not isinstance(log, dict):
        log = {}
    wear = log.get("percent_used", log.get("percentage_used"))
    errors = log.get("media_errors")
    return {"wear_percent": integer(str(wear)), "media_errors": integer(str(errors))}


def read_health(controller: str) -> dict[str, int | None]:
    """Ask a drive of this host for its health log; a question only, which takes root."""
    room = array.array("B", bytes(_HEALTH_SIZE))
    begin, length = room.buffer_info()
    words = _PAGE_HEALTH | (length // 4 - 1) << 16
    command = struct.pack(
        "=BBHIIIQQII6III", _GET_LOG_PAGE, 0, 0, _ALL_NAMESPACES, 0, 0, 0, begin, 0, length, words, 0, 0, 0, 0, 0, 0, 0
    )
    try:
        descriptor = os.open(f"/dev/{controller}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return parse_health(b"")
    try:
        status = fcntl.ioctl(descriptor, _ADMIN_COMMAND, bytearray(command))
    except OSError:
        status = -1
    finally:
        os.close(descriptor)
    return parse_health(room.tobytes() if status == 0 else b"")


def start_health(reader: Reader) -> None:
    """Begin to ask all drives of this host at once."""
    if reader.live and os.geteuid() == 0:
        for name in reader.names("/sys/class/nvme"):
            if _CONTROLLER.fullmatch(name):
                reader.in_background(f"health of {name}", _ask(name))


def _ask(name: str) -> t.Callable[[], dict[str, int | None]]:
    return lambda: read_health(name)


def _health(reader: Reader, controller: str) -> dict[str, int | None]:
    if reader.live:
        return reader.result(f"health of {controller}") or parse_health(b"")
    said = reader.recorded(f"nvme_smart_{controller}")
    return parse_health_json(said.out if said is not None and said.answered else "")


def users(reader: Reader) -> Users:
    """Mount points and swap of this host by the kernel's names of the devices."""
    found = Users()
    by_number = {
        number: name
        for name in reader.names("/sys/class/block")
        if (number := reader.text(f"/sys/class/block/{name}/dev"))
    }
    text = reader.text("/proc/self/mountinfo")
    mounts = parse_mountinfo(text or "")
    if text is None:
        fields = [line.split() for line in (reader.text("/proc/mounts") or "").splitlines()]
        mounts = [("", _plain(words[1]), _plain(words[0])) for words in fields if len(words) > 1]
    for number, point, source in mounts:
        # btrfs and overlay have a device number of their own: then the source tells.
        name = by_number.get(number) or _kernel_name(reader, source)
        if name:
            found.mounts.setdefault(name, []).append(point)
    for line in (reader.text("/proc/swaps") or "").splitlines()[1:]:
        source = line.split()[0] if line.split() else ""
        name = _kernel_name(reader, _plain(source))
        if name:
            found.swaps.add(name)
    return found


def _kernel_name(reader: Reader, source: str) -> str | None:
    """The kernel's name of a device such as /dev/mapper/x, or None for what is no device."""
    if not source.startswith("/dev/"):
        return None
    return os.path.basename(reader.real(source))


def _mapping(reader: Reader, name: str) -> str:
    """What a device made of others is: its md name, or the kind of a mapping."""
    kind = (reader.text(f"/sys/class/block/{name}/dm/uuid") or "").partition("-")[0].lower()
    if kind:
        return {"crypt": "luks", "mpath": "multipath", "lvm": "lvm"}.get(kind, f"mapping {kind}")
    return name


def _uses(reader: Reader, path: str, name: str, known: Users, depth: int = 0) -> set[str]:
    """What uses one device or partition and all that is made of it."""
    found = {f"mount {point}" for point in known.mounts.get(name, [])}
    if name in known.swaps:
        found.add("swap")
    for holder in reader.names(f"{path}/holders"):
        found.add(_mapping(reader, holder))
        if depth < 8:
            found |= _uses(reader, f"/sys/class/block/{holder}", holder, known, depth + 1)
    return found


def _content(reader: Reader, path: str, name: str) -> set[str]:
    """The signatures on one device: from udev's database, else from its first bytes."""
    number = reader.text(f"{path}/dev")
    notes = reader.text(f"/run/udev/data/b{number}") if number else None
    if notes is not None:
        said = parse_udev(notes)
        kind, table = said.get("ID_FS_TYPE", ""), said.get("ID_PART_TABLE_TYPE", "")
        found = {_UNDERSCORE_TYPES.get(kind, f"filesystem {kind}")} if kind else set()
        return found | ({f"partition table {table}"} if table else set())
    seen = signature(reader.data(f"/dev/{name}", _PROBE) or b"") if reader.live else ""
    return {seen} if seen else set()


def used_by(reader: Reader, name: str, known: Users) -> list[str]:
    """Everything that speaks against overwriting a disk."""
    path = f"{BLOCK}/{name}"
    found = _uses(reader, path, name, known) | _content(reader, path, name)
    parts = [part for part in reader.names(path) if reader.exists(f"{path}/{part}/partition")]
    for part in parts:
        found |= _uses(reader, f"{path}/{part}", part, known) | _content(reader, f"{path}/{part}", part)
    if parts and not any(entry.startswith("partition table") for entry in found):
        found.add(f"{len(parts)} partitions")
    return sorted(found)


def _notes(reader: Reader, path: str) -> dict[str, str]:
    number = reader.text(f"{path}/dev")
    return parse_udev((reader.text(f"/run/udev/data/b{number}") if number else None) or "")


def by_id(names: t.Iterable[str]) -> str | None:
    """The best of a drive's names below by-id: the one that a change of firmware or kernel does not change."""
    ranked = sorted(
        (name for name in names if "-part" not in name and name.startswith("nvme-")),
        key=lambda name: (not name.startswith("nvme-eui."), not name.startswith("nvme-uuid."), len(name), name),
    )
    return f"{BY_ID}/{ranked[0]}" if ranked else None


def _links(reader: Reader) -> dict[str, list[str]]:
    """Names below /dev/disk/by-id of each device."""
    found: dict[str, list[str]] = {}
    for name in reader.names(BY_ID):
        target = reader.target(f"{BY_ID}/{name}")
        if target:
            found.setdefault(target, []).append(name)
    return found


def _controller(reader: Reader, name: str) -> str | None:
    """The controller of a namespace; with several ways to it, the first."""
    owner = os.path.basename(reader.real(f"{BLOCK}/{name}/device"))
    if _CONTROLLER.fullmatch(owner):
        return owner
    ways = [way for way in reader.names(f"{BLOCK}/{name}/device") if _CONTROLLER.fullmatch(way)]
    if ways:
        return ways[0]
    match = _CONTROLLER.match(name)
    return match[0] if match is not None and reader.exists(f"/sys/class/nvme/{match[0]}") else None


def _size(reader: Reader, name: str) -> int | None:
    sectors = reader.number(f"{BLOCK}/{name}/size")
    return None if sectors is None else sectors * _SECTOR


def nvme(reader: Reader, known: Users) -> list[dict[str, t.Any]]:
    """All NVMe namespaces."""
    links = _links(reader)
    found = []
    for name in reader.names(BLOCK):
        if not _NAMESPACE.fullmatch(name):
            continue
        controller = _controller(reader, name)
        path = f"/sys/class/nvme/{controller}"
        place = pci.address_in_path(reader.real(f"{path}/device")) if controller else None
        device = f"{pci.DEVICES}/{place}"
        names = links.get(name) or _notes(reader, f"{BLOCK}/{name}")["links"].split()
        uses = used_by(reader, name, known)
        found.append(
            {
                "name": name,
                "controller": controller,
                "model": reader.word(f"{path}/model"),
                "firmware": reader.word(f"{path}/firmware_rev"),
                "serial": reader.word(f"{path}/serial"),
                "size_bytes": _size(reader, name),
                "by_id": by_id(names),
                "pci_address": place,
                "numa_node": pci.numa_node(reader, device if place else path),
                "pcie": pci.link_or_none(reader, device) if place else None,
                **(_health(reader, controller) if controller else parse_health(b"")),
                "in_use": bool(uses),
                "used_by": uses,
            }
        )
    return found


def disks(reader: Reader, known: Users) -> list[dict[str, t.Any]]:
    """All disks that are no NVMe."""
    found = []
    for name in reader.names(BLOCK):
        size = _size(reader, name)
        if _NO_DISK.match(name) or not size:
            continue
        path = f"{BLOCK}/{name}"
        notes = _notes(reader, path)
        uses = used_by(reader, name, known)
        found.append(
            {
                "name": name,
                "size_bytes": size,
                "model": reader.word(f"{path}/device/model") or notes.get("ID_MODEL"),
                "serial": notes.get("ID_SERIAL_SHORT")
                or reader.word(f"{path}/serial")
                or reader.word(f"{path}/device/serial"),
                "rotational": reader.text(f"{path}/queue/rotational") == "1",
                "in_use": bool(uses),
                "used_by": uses,
            }
        )
    return found


def raid0(reader: Reader) -> list[dict[str, t.Any]]:
    """Striped arrays."""
    found = []
    for entry in parse_mdstat(reader.text("/proc/mdstat") or ""):
        if entry.level == "raid0":
            found.append(
                {
                    "name": entry.name,
                    "level": entry.level,
                    "members": list(entry.members),
                    "state": reader.word(f"{BLOCK}/{entry.name}/md/array_state")
                    or ("active" if entry.active else "inactive"),
                    "size_bytes": _size(reader, entry.name) or entry.blocks * 1024,
                }
            )
    return found


def sections(reader: Reader) -> tuple[dict[str, t.Any], str]:
    """Sections nvme, block and storage, and why they are not complete."""
    if not reader.exists(BLOCK):
        return {"nvme": None, "block": None, "storage": None}, f"{BLOCK} cannot be read"
    known = users(reader)
    drives, others = nvme(reader, known), disks(reader, known)
    rotating = [entry for entry in others if entry["rotational"]]
    points = {use[len("mount ") :] for entry in rotating for use in entry["used_by"] if use.startswith("mount ")}
    storage = {
        "nvme_count": len(drives),
        "nvme_models": sorted({drive["model"] for drive in drives if drive["model"]}),
        "nvme_bytes": sum(drive["size_bytes"] or 0 for drive in drives),
        "nvme_free_count": sum(1 for drive in drives if not drive["in_use"]),
        "raid0": raid0(reader),
        "mounts_rotational": sorted(points),
    }
    reason = ""
    silent = [drive["name"] for drive in drives if drive["wear_percent"] is None]
    if silent:
        why = (
            "the health log takes root" if reader.live and os.geteuid() else "the drive, or the tree, has no health log"
        )
        reason = f"wear of {', '.join(silent)} is not known: {why}"
    return {"nvme": drives, "block": others, "storage": storage}, reason
