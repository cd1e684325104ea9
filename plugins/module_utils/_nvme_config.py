# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""The lines that make an array come back after a reboot: mdadm.conf, fstab, a udev rule. Text in, text out."""

from __future__ import annotations

import re
import typing as t

MDADM_CONF = "/etc/mdadm/mdadm.conf"
FSTAB = "/etc/fstab"
UDEV_RULE = "/etc/udev/rules.d/66-gpufleet-{name}.rules"


def marker(name: str) -> str:
    """The comment above each line of ours."""
    return f"# gpufleet nvme_raid {name}"


def md_uuid(uuid: str) -> str:
    """A UUID as mdadm writes it."""
    plain = re.sub(r"[^0-9a-f]", "", uuid.lower())
    return ":".join(plain[at : at + 8] for at in range(0, 32, 8))


def dashed_uuid(uuid: str) -> str:
    """A UUID as blkid and udev write it."""
    plain = re.sub(r"[^0-9a-f]", "", uuid.lower())
    return "-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:]))


def _replace(text: str, name: str, line: str | None, is_ours: t.Callable[[str], bool]) -> str:
    """Put one line under its marker; where it stood, or at the end. Everything else stays byte for byte."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    kept: list[str] = []
    place = None
    for entry in lines:
        if entry.rstrip() == marker(name) or is_ours(entry):
            place = len(kept) if place is None else place
        else:
            kept.append(entry)
    if line is not None:
        place = len(kept) if place is None else place
        kept[place:place] = [marker(name) + "\n", line + "\n"]
    return "".join(kept)


def mdadm_line(name: str, uuid: str) -> str:
    """The array's line in mdadm.conf. By UUID alone: the name in the superblocks keeps the host name of the day it was built."""
    return f"ARRAY /dev/md/{name} metadata=1.2 UUID={md_uuid(uuid)}"


def mdadm_conf(text: str, name: str, uuid: str, present: bool) -> str:
    """mdadm.conf with the array's line, or without it."""
    wanted = md_uuid(uuid)

    def is_ours(entry: str) -> bool:
        found = re.search(r"\bUUID=([0-9A-Fa-f:]+)", entry)
        return entry.startswith("ARRAY") and found is not None and md_uuid(found[1]) == wanted

    return _replace(text, name, mdadm_line(name, uuid) if present else None, is_ours)


def _fields(entry: str) -> list[str]:
    return [] if entry.lstrip().startswith("#") else entry.split()


def _spec_uuid(spec: str) -> str:
    """The UUID in the first field of a line of fstab."""
    for start in ("uuid=", "/dev/disk/by-uuid/"):
        if spec.lower().startswith(start):
            return spec[len(start) :].strip('"').lower()
    return ""


def fstab(text: str, name: str, uuid: str, mount: tuple[str, str, str] | None) -> str:
    """fstab with our line, or without it when there is no mount (point, type, options)."""
    spec = f"UUID={dashed_uuid(uuid)}"

    def is_ours(entry: str) -> bool:
        fields = _fields(entry)
        return bool(fields) and _spec_uuid(fields[0]) == dashed_uuid(uuid)

    # The last fields: no dump, and no check at boot (XFS has none, and ext4 would wait for one).
    line = f"{spec} {mount[0]} {mount[1]} {mount[2]} 0 0" if mount else None
    return _replace(text, name, line, is_ours)


def fstab_users(text: str, point: str, uuid: str) -> list[str]:
    """Lines of others for the same mount point."""
    ours = dashed_uuid(uuid) if uuid else "none"
    found = []
    for entry in text.splitlines():
        fields = _fields(entry)
        if len(fields) > 1 and fields[1].rstrip("/") == point.rstrip("/") and _spec_uuid(fields[0]) != ours:
            found.append(entry.strip())
    return found


def udev_rule(name: str, uuid: str, scheduler: str, read_ahead_kb: int) -> str:
    """Scheduler of the drives and read-ahead of the array, each time they appear; empty when neither is set."""
    if not scheduler and not read_ahead_kb:
        return ""
    head = (
        f"# Written by Ansible, role gpufleet.deepseek.nvme_raid, for the array {name}.\n"
        'SUBSYSTEM!="block", GOTO="gpufleet_end"\n'
        'ACTION!="add|change", GOTO="gpufleet_end"\n'
    )
    drives = ""
    array = ""
    if scheduler:
        drives = (
            f'KERNEL=="nvme*", ENV{{DEVTYPE}}=="disk", ENV{{ID_FS_TYPE}}=="linux_raid_member", '
            f'ENV{{ID_FS_UUID}}=="{dashed_uuid(uuid)}", ATTR{{queue/scheduler}}="{scheduler}"\n'
        )
    if read_ahead_kb:
        array = f'KERNEL=="md*", ENV{{MD_UUID}}=="{md_uuid(uuid)}", ATTR{{queue/read_ahead_kb}}="{read_ahead_kb}"\n'
    return f'{head}{drives}{array}LABEL="gpufleet_end"\n'


def chosen_scheduler(text: str) -> str:
    """The scheduler in brackets, as sysfs shows it."""
    found = re.search(r"\[([^\]]+)\]", text)
    return found[1] if found else text.strip()


def mkfs(filesystem: str, device: str, uuid: str, label: str, chunk_kib: int, drives: int, force: bool) -> list[str]:
    """The command that makes the file system, aligned with the stripes."""
    if filesystem == "xfs":
        geometry = f"su={chunk_kib}k,sw={drives}"
        argv = ["mkfs.xfs", "-q", "-m", f"uuid={dashed_uuid(uuid)}", "-L", label[:12], "-d", geometry]
        # Only over the beginning of an XFS of this very array whose own mkfs was cut.
        return [*argv, *(["-f"] if force else []), device]
    stride = chunk_kib // 4
    geometry = f"stride={stride},stripe_width={stride * drives}"
    argv = ["mkfs.ext4", "-q", "-U", dashed_uuid(uuid), "-L", label[:16], "-b", "4096", "-m", "0", "-E", geometry]
    return [*argv, device]


def parse_xfs_info(text: str) -> dict[str, int]:
    """Block size, stripe unit and stripe width (in blocks) in the data section of xfs_info."""
    found = {}
    data = re.search(r"^data\s.*?(?=^naming|\Z)", text, re.MULTILINE | re.DOTALL)
    for key in ("bsize", "sunit", "swidth"):
        value = re.search(rf"\b{key}=(\d+)", data[0]) if data else None
        if value:
            found[key] = int(value[1])
    return found


def parse_dumpe2fs(text: str) -> dict[str, int]:
    """The same for ext4: block size, RAID stride and stripe width."""
    names = {"Block size": "bsize", "RAID stride": "sunit", "RAID stripe width": "swidth"}
    found = {}
    for line in text.splitlines():
        key, _colon, value = line.partition(":")
        if key in names and value.strip().isdigit():
            found[names[key]] = int(value)
    return found
