# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""NVMe drives and the md arrays of a host: what they are, and all that speaks against overwriting them.

Nothing here is taken from a cache: signatures are read from the devices (wipefs --no-act, blkid -p), users from the kernel.
"""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_storage as storage
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Reader

Run = t.Callable[[list[str]], tuple[int, str, str]]

LSBLK = ["lsblk", "--json", "--bytes", "--paths", "--output", "NAME,KNAME,TYPE,SIZE,RO,MOUNTPOINTS,FSTYPE"]
_NAMESPACE = re.compile(r"nvme\d+n\d+")
# A disk with one of these mounted is the system's: refused whatever is confirmed.
SYSTEM_MOUNTS = ("/", "/boot", "/boot/efi", "/usr", "/var", "/home")
_BLKID_NOTHING = 2
_BLKID_AMBIVALENT = 8
# xfs_format.h, struct xfs_dsb: mkfs.xfs sets sb_inprogress first and clears it last; the kernel refuses to mount with it.
_XFS_SUPERBLOCK = 512
_XFS_INPROGRESS = 126
_FILE_SYSTEMS = re.compile(
    r"apfs|bcachefs|btrfs|exfat|ext[234]|f2fs|gfs2|hfsplus|iso9660|jfs|nilfs2|ntfs|ocfs2|udf|vfat|xfs"
)
_WORDS = {
    "linux_raid_member": "a member of an md array",
    "LVM2_member": "an LVM physical volume",
    "crypto_LUKS": "a LUKS volume",
    "zfs_member": "a member of a ZFS pool",
    "swap": "a swap area",
    "gpt": "a GPT partition table",
    "PMBR": "a GPT partition table",
    "dos": "a DOS partition table",
}


class NvmeError(Exception):
    """Something cannot be done or must not be; the text is for the operator."""


@dataclass(frozen=True)
class Signature:
    """One thing that a device carries."""

    kind: str
    uuid: str = ""
    label: str = ""

    @property
    def words(self) -> str:
        """In words, such as "an ext4 file system labelled data"."""
        what = "file system" if _FILE_SYSTEMS.fullmatch(self.kind) else "signature"
        text = _WORDS.get(self.kind) or f"{_article(self.kind)} {self.kind} {what}"
        return f"{text} named {self.label}" if self.label else text


@dataclass(frozen=True)
class Drive:
    """One NVMe namespace.

    :ivar by_id: the best of its names below /dev/disk/by-id; ``names`` are all of them.
    :ivar content: what it or its partitions carry, in words.
    :ivar users: who uses it now (mounts, swap, holders), in words.
    :ivar system: why it belongs to the system; empty for other disks.
    """

    kernel: str
    by_id: str
    names: tuple[str, ...]
    model: str
    serial: str
    firmware: str
    size: int
    read_only: bool = False
    content: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    system: str = ""
    partitions: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    md_uuid: str = ""
    md_name: str = ""
    unreadable: str = ""

    @property
    def blank(self) -> bool:
        """Does nothing at all speak against it?"""
        return not (self.content or self.users or self.system or self.unreadable or self.read_only)

    @property
    def path(self) -> str:
        """Its name that does not change with the order of the bus."""
        return f"{storage.BY_ID}/{self.by_id}" if self.by_id else f"/dev/{self.kernel}"

    @property
    def text(self) -> str:
        """The drive for a message."""
        return f"{self.by_id or 'a drive without a by-id name'} (/dev/{self.kernel}, {gigabytes(self.size)})"

    def has_name(self, names: t.Iterable[str]) -> bool:
        """Is one of the names its own?"""
        return bool(set(self.names) & {short(name) for name in names})


@dataclass(frozen=True)
class Array:
    """One md array that the kernel knows.

    :ivar unfinished: it carries an XFS whose mkfs was cut: such a one cannot be mounted, so nobody ever wrote to it.
    """

    kernel: str
    level: str
    uuid: str
    name: str
    members: tuple[str, ...]
    wanted: int
    state: str
    active: bool
    chunk_kib: int = 0
    size: int = 0
    mounts: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    signatures: tuple[Signature, ...] = ()
    unfinished: bool = False
    unreadable: str = ""

    @property
    def path(self) -> str:
        """The device."""
        return f"/dev/{self.kernel}"

    @property
    def whole(self) -> bool:
        """Is it running with all its members?"""
        good = self.active and self.state not in ("broken", "inactive") and not self.unreadable
        return good and len(self.members) == self.wanted


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiouxAEIOUX" else "a"


def short(name: str) -> str:
    """A by-id name without its directory."""
    return name.rpartition("/")[2]


def hexadecimal(uuid: str) -> str:
    """A UUID without the separators, which md, blkid and udev write differently."""
    return re.sub(r"[^0-9a-f]", "", uuid.lower())


def gigabytes(size: int) -> str:
    """A size as drive makers write it."""
    return f"{size / 1e12:.2f} TB" if size >= 10**12 else f"{size / 1e9:.1f} GB"


def parse_wipefs(text: str) -> list[Signature]:
    """Read ``wipefs --no-act --json``."""
    if not text.strip():
        return []
    found = json.loads(text).get("signatures") or []
    return [
        Signature(str(entry.get("type") or "unknown"), str(entry.get("uuid") or ""), str(entry.get("label") or ""))
        for entry in found
    ]


def parse_export(text: str) -> dict[str, str]:
    """Read lines of KEY=VALUE, as blkid and mdadm print them."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def parse_lsblk(text: str) -> list[dict[str, t.Any]]:
    """The trees of devices in ``lsblk --json``."""
    return list(json.loads(text).get("blockdevices") or [])


def _below(node: dict[str, t.Any]) -> t.Iterator[dict[str, t.Any]]:
    """All that is made of a device."""
    for child in node.get("children") or []:
        yield child
        yield from _below(child)


def signatures(run: Run, device: str) -> list[Signature]:
    """What a device carries, by two independent readers. Raises NvmeError when it cannot be read."""
    code, out, err = run(["wipefs", "--no-act", "--json", device])
    if code != 0:
        raise NvmeError(f"{device} cannot be probed: {err.strip() or out.strip() or f'wipefs ended with {code}'}")
    found = parse_wipefs(out)
    code, out, err = run(["blkid", "-p", "-o", "export", device])
    if code == _BLKID_AMBIVALENT:
        return found or [Signature("more than one")]
    if code not in (0, _BLKID_NOTHING):
        raise NvmeError(f"{device} cannot be probed: {err.strip() or f'blkid ended with {code}'}")
    said = parse_export(out) if code == 0 else {}
    kinds = {entry.kind for entry in found}
    for key in ("TYPE", "PTTYPE"):
        if said.get(key) and said[key] not in kinds:
            found.append(Signature(said[key], said.get("UUID", ""), said.get("LABEL", "")))
    return list(dict.fromkeys(found))


def xfs_unfinished(data: bytes) -> bool:
    """Is it the beginning of an XFS whose mkfs has not ended?"""
    return data[:4] == b"XFSB" and data[_XFS_INPROGRESS : _XFS_INPROGRESS + 1] == b"\1"


def _links(reader: Reader) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in reader.names(storage.BY_ID):
        target = reader.target(f"{storage.BY_ID}/{name}")
        if target:
            found.setdefault(target, []).append(name)
    return found


def readable(names: t.Iterable[str]) -> str:
    """The name that people can match with the label on the drive: model and serial number, not EUI or UUID."""
    ranked = sorted(
        (name for name in names if name.startswith("nvme-") and "-part" not in name),
        key=lambda name: (name.startswith(("nvme-eui.", "nvme-uuid.", "nvme-nvme.")), len(name), name),
    )
    return ranked[0] if ranked else ""


def disks_of(reader: Reader, name: str, depth: int = 0) -> set[str]:
    """The whole disks that a partition, mapping or array stands on."""
    path = f"/sys/class/block/{name}"
    below = reader.names(f"{path}/slaves")
    if reader.exists(f"{path}/partition"):
        below = [reader.real(path).split("/")[-2]]
    if not below or depth > 8:
        return {name}
    return {disk for part in below for disk in disks_of(reader, part, depth + 1)}


def _system_disks(reader: Reader, known: storage.Users) -> dict[str, str]:
    """Disks of the running system and the mount point that says so."""
    found: dict[str, str] = {}
    for name, points in known.mounts.items():
        for point in sorted(points):
            if point in SYSTEM_MOUNTS:
                for disk in disks_of(reader, name):
                    found.setdefault(disk, point)
    return found


def _tree(run: Run) -> dict[str, dict[str, t.Any]]:
    code, out, err = run(LSBLK)
    if code != 0:
        raise NvmeError(f"lsblk does not answer: {err.strip() or out.strip()}")
    return {short(str(node["kname"])): node for node in parse_lsblk(out)}


def _users(reader: Reader, node: dict[str, t.Any], kernel: str, known: storage.Users) -> list[str]:
    """Who uses a disk and what is made of it, by the kernel and by lsblk."""
    found = []
    for each in (node, *_below(node)):
        name = short(str(each["kname"]))
        points = {str(point) for point in each.get("mountpoints") or [] if point} - {"[SWAP]"}
        found += [f"mounted on {point}" for point in sorted(points | set(known.mounts.get(name, [])))]
        if name in known.swaps or "[SWAP]" in (each.get("mountpoints") or []):
            found.append("used as swap")
        if each is not node and each.get("type") != "part":
            found.append(f"part of {name} ({each.get('type')})")
        found += [f"held by {holder}" for holder in reader.names(f"/sys/class/block/{name}/holders")]
    below = {short(str(each["kname"])) for each in _below(node)}
    said = {entry for entry in found if entry.startswith("held by ") and entry[len("held by ") :] in below}
    return sorted(set(found) - said)


def read_drive(
    reader: Reader,
    run: Run,
    node: dict[str, t.Any],
    names: t.Sequence[str],
    known: storage.Users,
    system: t.Mapping[str, str],
) -> Drive:
    """Everything about one drive."""
    kernel = short(str(node["kname"]))
    device = f"/sys/block/{kernel}/device"
    partitions = [short(str(child["kname"])) for child in node.get("children") or [] if child.get("type") == "part"]
    content, unreadable, md_uuid, md_name = [], "", "", ""
    for part in (kernel, *partitions):
        try:
            seen = signatures(run, f"/dev/{part}")
        except NvmeError as exc:
            unreadable = unreadable or str(exc)
            continue
        where = "" if part == kernel else f"partition {part}: "
        content += [f"{where}{entry.words}" for entry in seen]
        for entry in seen:
            if part == kernel and entry.kind == "linux_raid_member":
                md_uuid, md_name = hexadecimal(entry.uuid), entry.label
        if part != kernel and not seen:
            content.append(f"partition {part}")
    return Drive(
        kernel=kernel,
        by_id=readable(names),
        names=tuple(sorted(names)),
        model=reader.text(f"{device}/model") or "",
        serial=reader.text(f"{device}/serial") or "",
        firmware=reader.text(f"{device}/firmware_rev") or "",
        size=int(node.get("size") or 0),
        read_only=str(node.get("ro")).lower() in ("true", "1"),
        content=tuple(dict.fromkeys(content)),
        users=tuple(_users(reader, node, kernel, known)),
        system=system.get(kernel, ""),
        partitions=tuple(partitions),
        arrays=tuple(name for name in reader.names(f"/sys/class/block/{kernel}/holders") if name.startswith("md")),
        md_uuid=md_uuid,
        md_name=md_name,
        unreadable=unreadable,
    )


def read_drives(reader: Reader, run: Run, only: t.Collection[str] = ()) -> list[Drive]:
    """All NVMe drives with a device node, or only those with these kernel names."""
    known = storage.users(reader)
    system = _system_disks(reader, known)
    links = _links(reader)
    found = []
    for kernel, node in sorted(_tree(run).items(), key=lambda item: _order(item[0])):
        # A container sees the machine's disks in sysfs, but has no device node for them.
        if not _NAMESPACE.fullmatch(kernel) or not reader.exists(f"/dev/{kernel}") or (only and kernel not in only):
            continue
        found.append(read_drive(reader, run, node, links.get(kernel, []), known, system))
    return found


def _order(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def read_arrays(reader: Reader, run: Run) -> list[Array]:
    """All md arrays that the kernel knows, with what they carry."""
    known = storage.users(reader)
    found = []
    for entry in storage.parse_mdstat(reader.text("/proc/mdstat") or ""):
        path = f"/sys/block/{entry.name}"
        code, out, _err = run(["mdadm", "--detail", "--export", f"/dev/{entry.name}"])
        said = parse_export(out) if code == 0 else {}
        state = reader.text(f"{path}/md/array_state") or ("active" if entry.active else "inactive")
        size = (reader.number(f"{path}/size") or 0) * 512
        seen: list[Signature] = []
        unreadable = ""
        try:
            if entry.active and size:
                seen = signatures(run, f"/dev/{entry.name}")
        except NvmeError as exc:
            # A drive of it is gone: that is said about the array, and the host's other drives are looked at all the same.
            unreadable = str(exc)
        found.append(
            Array(
                kernel=entry.name,
                level=said.get("MD_LEVEL") or entry.level,
                uuid=hexadecimal(said.get("MD_UUID", "")),
                name=said.get("MD_NAME", ""),
                members=tuple(sorted(entry.members, key=_order)),
                wanted=int(said.get("MD_DEVICES") or 0) or reader.number(f"{path}/md/raid_disks") or 0,
                state=state,
                active=entry.active,
                chunk_kib=(reader.number(f"{path}/md/chunk_size") or 0) // 1024,
                size=size,
                mounts=tuple(sorted(known.mounts.get(entry.name, []))),
                holders=tuple(reader.names(f"/sys/class/block/{entry.name}/holders")),
                signatures=tuple(seen),
                unreadable=unreadable,
                unfinished=xfs_unfinished(reader.data(f"/dev/{entry.name}", _XFS_SUPERBLOCK) or b"") if seen else False,
            )
        )
    return found
