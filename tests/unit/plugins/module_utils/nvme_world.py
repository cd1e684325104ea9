# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host of paper: drives, md and file systems that behave like the real ones, and that notice when data is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvme_config as config
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_drives import hexadecimal
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_machine import Machine

Sig = dict[str, str]


class KilledError(Exception):
    """The run ended here."""


@dataclass
class Disk:
    serial: str
    size: int = 3_840_755_982_336
    model: str = "SAMSUNG MZQL23T8HCLS-00A07"
    firmware: str = "GDC5902Q"
    sigs: list[Sig] = field(default_factory=list)
    parts: dict[str, list[Sig]] = field(default_factory=dict)
    by_id: bool = True

    @property
    def name(self) -> str:
        return f"nvme-{self.model.replace(' ', '_')}_{self.serial}"


@dataclass
class Md:
    uuid: str
    name: str
    members: list[str]
    chunk: int
    state: str = "clean"
    active: bool = True
    wanted: int = 0


def sig(kind: str, uuid: str = "", label: str = "") -> Sig:
    return {"type": kind, "uuid": uuid, "label": label}


class World:
    """One host. Commands that change it are counted; ``kill`` ends the run before (n) or after (n + 0.5) the n-th of them."""

    def __init__(self, root: Path, count: int = 4) -> None:
        self.root = root
        self.disks = {f"nvme{n}n1": Disk(f"S64HNE0R60000{n}") for n in range(count)}
        self.arrays: dict[str, Md] = {}
        # What lies on the stripes stays there when the array is stopped: kernel names of the members, then signatures.
        self.stripes: dict[tuple[str, ...], list[Sig]] = {}
        self.unfinished: set[tuple[str, ...]] = set()
        self.mounts: list[tuple[str, str]] = [("sda1", "/")]
        self.may_go: set[str] = set()
        self.calls: list[list[str]] = []
        self.changes: list[list[str]] = []
        self.kill: float | None = None
        self.cut_mkfs = False
        self.broken = False
        self.sticks = ""
        self.claims: dict[str, str] = {}
        self.before_change: Any = None
        self.ahead: dict[str, str] = {}
        for path, text in (
            ("etc/fstab", "UUID=1234 / ext4 defaults 0 1\n"),
            ("etc/mdadm/mdadm.conf", "MAILADDR root\n"),
        ):
            self.file(path, text)
        for name in ("update-initramfs", "mdadm", "mkfs.xfs", "xfs_info", "mkfs.ext4", "dumpe2fs"):
            self.file(f"usr/sbin/{name}", "")
        self.sync()

    # The tree that is read.
    def file(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def read(self, path: str) -> str:
        place = self.root / path
        return place.read_text() if place.exists() else ""

    def sync(self) -> None:
        for gone in ("sys", "dev", "proc"):
            shutil.rmtree(self.root / gone, ignore_errors=True)
        lines = []
        (self.root / "dev/disk/by-id").mkdir(parents=True)
        for number, (kernel, disk) in enumerate(self.disks.items()):
            base = f"sys/block/{kernel}"
            self.file(f"{base}/dev", f"259:{number * 8}\n")
            self.file(f"{base}/size", f"{disk.size // 512}\n")
            for key, value in (("model", disk.model), ("serial", disk.serial), ("firmware_rev", disk.firmware)):
                self.file(f"{base}/device/{key}", f"{value:<40}\n")
            self.file(f"{base}/queue/scheduler", "none [mq-deadline]\n" if not hasattr(disk, "sched") else "[none]\n")
            self.file(f"sys/class/block/{kernel}/dev", f"259:{number * 8}\n")
            self.file(f"dev/{kernel}", "")
            if disk.by_id:
                for name in (disk.name, f"nvme-eui.{number:016x}"):
                    os.symlink(f"../../{kernel}", self.root / "dev/disk/by-id" / name)
            for part in disk.parts:
                self.file(f"{base}/{part}/partition", "1\n")
                self.file(f"{base}/{part}/dev", f"259:{number * 8 + 1}\n")
                os.symlink(f"../../block/{kernel}/{part}", self.root / "sys/class/block" / part)
        self.file("sys/class/block/sda1/dev", "8:1\n")
        for number, (kernel, md) in enumerate(self.arrays.items()):
            for member in md.members:
                self.file(f"sys/class/block/{member}/holders/{kernel}/x", "")
            base = f"sys/block/{kernel}"
            self.file(f"{base}/md/array_state", f"{md.state if md.active else 'inactive'}\n")
            self.file(f"{base}/md/chunk_size", f"{md.chunk * 1024}\n")
            self.file(f"{base}/md/raid_disks", f"{md.wanted or len(md.members)}\n")
            size = sum(self.disks[name].size for name in md.members if name in self.disks)
            self.file(f"{base}/size", f"{size // 512}\n")
            self.file(f"{base}/queue/read_ahead_kb", self.ahead.get(kernel, "2048") + "\n")
            self.file(f"sys/class/block/{kernel}/dev", f"9:{number}\n")
            self.file(f"dev/{kernel}", "XFSB" + "\0" * 122 + ("\1" if tuple(md.members) in self.unfinished else "\0"))
            state = "active" if md.active else "inactive"
            level = " raid0" if md.active else ""
            names = " ".join(f"{name}[{at}]" for at, name in enumerate(md.members))
            lines.append(
                f"{kernel} : {state}{level} {names}\n      {size // 1024} blocks super 1.2 {md.chunk}k chunks\n"
            )
        self.file("proc/mdstat", "Personalities : [raid0]\n" + "".join(lines) + "unused devices: <none>\n")
        text = ""
        for number, (kernel, point) in enumerate(self.mounts):
            dev = self.read(f"sys/class/block/{kernel}/dev").strip()
            text += f"{number + 20} 1 {dev} / {point} rw,noatime shared:1 - xfs /dev/{kernel} rw\n"
        self.file("proc/self/mountinfo", text)
        self.file("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")

    # Commands.
    def device(self, path: str) -> str:
        name = path.rpartition("/")[2]
        return next((kernel for kernel, disk in self.disks.items() if disk.name == name), name)

    def sigs(self, kernel: str) -> list[Sig]:
        if kernel in self.arrays:
            return self.stripes.setdefault(tuple(self.arrays[kernel].members), [])
        for name, disk in self.disks.items():
            if kernel == name:
                return disk.sigs
            if kernel in disk.parts:
                return disk.parts[kernel]
        raise AssertionError(f"no device {kernel}")

    def lose(self, kernel: str) -> None:
        """Everything on a device goes: that must have been allowed."""
        for entry in self.sigs(kernel):
            owner = next((name for name, disk in self.disks.items() if kernel == name or kernel in disk.parts), "")
            members = self.arrays[kernel].members if kernel in self.arrays else [owner]
            for member in members:
                assert self.disks[member].name in self.may_go, f"data lost: {entry} on {kernel}"

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        self.calls.append(argv)
        tool = getattr(self, "do_" + argv[0].replace("-", "_").replace(".", "_"), None)
        if tool is None:
            return 127, "", f"{argv[0]} cannot be run: No such file or directory"
        reading = argv[0] in ("lsblk", "blkid", "udevadm", "xfs_info", "dumpe2fs", "systemctl")
        reading = reading or "--no-act" in argv or "--detail" in argv
        if reading:
            return tool(argv)
        if self.before_change:
            self.before_change(argv)
        at = len(self.changes)
        if self.kill == at:
            raise KilledError(" ".join(argv))
        self.changes.append(argv)
        answer = tool(argv)
        self.sync()
        if self.kill == at + 0.5:
            raise KilledError(" ".join(argv))
        return answer

    def do_udevadm(self, argv: list[str]) -> tuple[int, str, str]:
        return 0, "", ""

    do_systemctl = do_udevadm
    do_update_initramfs = do_udevadm

    def do_lsblk(self, argv: list[str]) -> tuple[int, str, str]:
        nodes = [
            {"name": "/dev/sda", "kname": "/dev/sda", "type": "disk", "size": 10, "ro": False, "mountpoints": [None]}
        ]

        def points(kernel: str) -> list[str | None]:
            return [point for name, point in self.mounts if name == kernel] or [None]

        for kernel, disk in self.disks.items():
            children = [
                {"kname": f"/dev/{part}", "type": "part", "size": 1, "ro": False, "mountpoints": points(part)}
                for part in disk.parts
            ]
            children += [
                {"kname": f"/dev/{name}", "type": "raid0", "size": 1, "ro": False, "mountpoints": points(name)}
                for name, md in self.arrays.items()
                if kernel in md.members
            ]
            node: dict[str, Any] = {"name": f"/dev/{kernel}", "kname": f"/dev/{kernel}", "type": "disk"}
            node.update(size=disk.size, ro=False, mountpoints=points(kernel), fstype=None)
            if children:
                node["children"] = children
            nodes.append(node)
        return 0, json.dumps({"blockdevices": nodes}), ""

    def do_wipefs(self, argv: list[str]) -> tuple[int, str, str]:
        kernel = self.device(argv[-1])
        if self.broken and kernel in self.arrays:
            return 1, "", "I/O error"
        if "--no-act" in argv:
            return (
                0,
                json.dumps({"signatures": [{"device": kernel, "offset": "0x0", **e} for e in self.sigs(kernel)]}),
                "",
            )
        self.lose(kernel)
        if self.sticks == kernel:
            self.sticks = ""
            return 0, "", ""
        self.sigs(kernel).clear()
        if kernel in self.disks:
            self.disks[kernel].parts.clear()
        return 0, "", ""

    def do_blkid(self, argv: list[str]) -> tuple[int, str, str]:
        seen = self.sigs(self.device(argv[-1]))
        if not seen:
            return 2, "", ""
        key = "PTTYPE" if seen[0]["type"] in ("gpt", "dos") else "TYPE"
        return 0, f"DEVNAME={argv[-1]}\nUUID={seen[0]['uuid']}\nLABEL={seen[0]['label']}\n{key}={seen[0]['type']}\n", ""

    def do_mdadm(self, argv: list[str]) -> tuple[int, str, str]:
        said = dict(word[2:].split("=", 1) for word in argv if word.startswith("--") and "=" in word)
        if argv[1] == "--detail":
            md = self.arrays[self.device(argv[-1])]
            text = f"MD_LEVEL=raid0\nMD_DEVICES={md.wanted or len(md.members)}\nMD_METADATA=1.2\n"
            return 0, f"{text}MD_UUID={config.md_uuid(md.uuid)}\nMD_NAME={md.name}\n", ""
        if argv[1] == "--stop":
            kernel = self.device(argv[2])
            assert kernel not in {name for name, _point in self.mounts}, "stopped while mounted"
            del self.arrays[kernel]
            return 0, "", ""
        members = [self.device(word) for word in argv[3:] if not word.startswith("--")]
        if argv[1] == "--assemble":
            uuid = hexadecimal(said["uuid"])
            mine = [n for n in members if any(hexadecimal(e["uuid"]) == uuid for e in self.disks[n].sigs)]
            assert len(mine) == len(members)
            self.arrays["md127"] = Md(uuid, self.disks[mine[0]].sigs[0]["label"], mine, 512)
            return 0, "", ""
        assert argv[1] == "--create"
        assert "--run" not in argv
        assert "--force" not in argv
        if any(self.disks[name].sigs for name in members):
            return 1, "", "mdadm: create aborted."
        full = f"{said['homehost']}:{said['name']}"
        for name in members:
            self.disks[name].sigs.append(sig("linux_raid_member", config.dashed_uuid(said["uuid"]), full))
        self.arrays["md127"] = Md(hexadecimal(said["uuid"]), full, members, int(said["chunk"]))
        return 0, "", ""

    def mkfs(self, kind: str, argv: list[str], uuid: str) -> tuple[int, str, str]:
        kernel = self.device(argv[-1])
        members = tuple(self.arrays[kernel].members)
        if self.sigs(kernel) and not (members in self.unfinished and "-f" in argv):
            return 1, "", "mkfs: appears to contain an existing filesystem"
        assert "-f" not in argv or members in self.unfinished
        self.stripes[members] = [sig(kind, uuid, "models")]
        self.unfinished.discard(members)
        if self.cut_mkfs:
            self.unfinished.add(members)
            self.sync()
            raise KilledError("mkfs")
        return 0, "", ""

    def do_mkfs_xfs(self, argv: list[str]) -> tuple[int, str, str]:
        return self.mkfs("xfs", argv, next(word[5:] for word in argv if word.startswith("uuid=")))

    def do_mkfs_ext4(self, argv: list[str]) -> tuple[int, str, str]:
        return self.mkfs("ext4", argv, argv[argv.index("-U") + 1])

    def do_xfs_info(self, argv: list[str]) -> tuple[int, str, str]:
        md = self.arrays[self.device(argv[-1])]
        unit = md.chunk // 4
        return (
            0,
            f"data     =    bsize=4096 blocks=9\n =  sunit={unit} swidth={unit * len(md.members)} blks\nnaming =v2",
            "",
        )

    def do_dumpe2fs(self, argv: list[str]) -> tuple[int, str, str]:
        md = self.arrays[self.device(argv[-1])]
        unit = md.chunk // 4
        return 0, f"Block size:  4096\nRAID stride:  {unit}\nRAID stripe width:  {unit * len(md.members)}\n", ""

    def do_mount(self, argv: list[str]) -> tuple[int, str, str]:
        line = next(entry for entry in self.read("etc/fstab").splitlines() if f" {argv[1]} " in entry)
        uuid = hexadecimal(line.split()[0][5:])
        kernel = next(k for k in self.arrays if any(hexadecimal(e["uuid"]) == uuid for e in self.sigs(k)))
        assert tuple(self.arrays[kernel].members) not in self.unfinished
        self.mounts.append((kernel, argv[1]))
        return 0, "", ""

    def do_umount(self, argv: list[str]) -> tuple[int, str, str]:
        self.mounts = [entry for entry in self.mounts if entry[1] != argv[1]]
        return 0, "", ""

    # What tests do to it.
    def machine(self) -> Machine:
        world = self

        class Paper(Machine):
            def poke(self, path: str, text: str) -> None:
                found = re.match(r"/sys/block/(\w+)/queue/(\w+)", path)
                assert found is not None
                if found[2] == "scheduler":
                    vars(world.disks[found[1]])["sched"] = text
                else:
                    world.ahead = {**world.ahead, found[1]: text}
                world.sync()

        return Paper(self, root=str(self.root), try_claim=lambda path: self.claims.get(path.rpartition("/")[2], ""))

    def reboot(self, assemble: bool = True) -> None:
        """Power is cut and comes back: nothing is mounted, arrays are assembled under the name md126."""
        before = list(self.arrays.values())
        self.arrays = {}
        self.ahead = {}
        self.mounts = [("sda1", "/")]
        for disk in self.disks.values():
            vars(disk).pop("sched", None)
        if assemble and before:
            self.arrays["md126"] = before[0]
        self.kill = None
        self.sync()
