# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Bring a RAID 0 and its mount into being: read, decide, apply, read back. Can be cut anywhere and goes on the next time.

Before anything is created, a record with the UUIDs that array and file system are going to have is on the disk. Whatever carries them later is
known to be ours; nothing else is formatted, however alike it looks.
"""

from __future__ import annotations

import hashlib
import typing as t
import uuid
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_storage as storage
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvme_config as config
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvme_plan as planning
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_drives import (
    Array,
    Drive,
    NvmeError,
    gigabytes,
    hexadecimal,
    read_arrays,
    read_drives,
    signatures,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_machine import Machine
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_plan import Plan, Record, Wish

_SHOWN = 3


@dataclass(frozen=True)
class Setup:
    """How the array is used: mount options, queue settings (empty and 0 leave them), initramfs, place of the record."""

    options: tuple[str, ...] = ("noatime", "nofail")
    scheduler: str = "none"
    read_ahead_kb: int = 0
    update_initramfs: bool = True
    state_dir: str = "/var/lib/gpufleet/nvme_raid"

    def record_file(self, name: str) -> str:
        """Where the record of an array lies."""
        return f"{self.state_dir}/{name}.json"

    def stamp_file(self, name: str) -> str:
        """Where it is noted what the initramfs knows."""
        return f"{self.state_dir}/{name}.initramfs"


@dataclass
class View:
    """What a host looks like, and what follows from it."""

    plan: Plan
    record: Record | None
    config: list[str] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)

    @property
    def actions(self) -> list[str]:
        """All that there is to do."""
        return self.plan.actions + self.config


def _stamp(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest() + "\n"


def _array_line(text: str, name: str) -> str:
    """Our line in mdadm.conf."""
    lines = text.splitlines()
    for number, entry in enumerate(lines[:-1]):
        if entry.rstrip() == config.marker(name):
            return lines[number + 1]
    return ""


def _mounted_at(machine: Machine, point: str) -> str:
    """What is mounted at a point: the kernel's name of the device, or the source in other words."""
    for _number, place, source in reversed(storage.parse_mountinfo(machine.reader.text("/proc/self/mountinfo") or "")):
        if place == point:
            return machine.reader.real(source).rpartition("/")[2] if source.startswith("/dev/") else source
    return ""


def _mount_problems(machine: Machine, wish: Wish, plan: Plan, record: Record | None) -> list[str]:
    """Why the array cannot be mounted where it shall be."""
    option = f"{wish.prefix}mount"
    found = []
    fs_uuid = record.fs_uuid if record else ""
    for line in config.fstab_users(machine.text(config.FSTAB), wish.mount, fs_uuid):
        found.append(f"{option}: expected {wish.mount} to be free, found in /etc/fstab: {line}")
    there = _mounted_at(machine, wish.mount)
    kernel = plan.array.kernel if plan.array is not None else ""
    if there and there != kernel:
        found.append(f"{option}: expected {wish.mount} to be free, found {there} mounted on it")
    elif not there:
        names = machine.reader.names(wish.mount)
        if names:
            shown = ", ".join(names[:_SHOWN]) + (" and more" if len(names) > _SHOWN else "")
            found.append(
                f"{option}: expected {wish.mount} to be empty before the array is mounted over it, found {shown}: move that away"
            )
    elsewhere = [point for point in plan.array.mounts if point != wish.mount] if plan.array is not None else []
    if elsewhere and not there:
        found.append(
            f"{option}: expected the array {wish.name} on {wish.mount}, found it on {', '.join(elsewhere)}: unmount it first"
        )
    return found


def _queue(machine: Machine, setup: Setup, plan: Plan) -> dict[str, tuple[str, str]]:
    """Attributes in sysfs that differ: what they are and what they shall be."""
    found = {}
    if setup.scheduler:
        for drive in plan.members:
            path = f"/sys/block/{drive.kernel}/queue/scheduler"
            now = machine.reader.text(path)
            if now is not None and config.chosen_scheduler(now) != setup.scheduler:
                found[path] = (now, setup.scheduler)
    if setup.read_ahead_kb and plan.array is not None:
        path = f"/sys/block/{plan.array.kernel}/queue/read_ahead_kb"
        now = machine.reader.text(path)
        if now != str(setup.read_ahead_kb):
            found[path] = (now or "unknown", str(setup.read_ahead_kb))
    return found


def _options(setup: Setup) -> str:
    return ",".join(dict.fromkeys(setup.options)) or "defaults"


def _texts(machine: Machine, wish: Wish, setup: Setup, record: Record) -> dict[str, tuple[str, str]]:
    """The three files, as they are and as they shall be."""
    conf, table = machine.text(config.MDADM_CONF), machine.text(config.FSTAB)
    rule = config.UDEV_RULE.format(name=wish.name)
    return {
        config.MDADM_CONF: (conf, config.mdadm_conf(conf, wish.name, record.array_uuid, True)),
        config.FSTAB: (
            table,
            config.fstab(table, wish.name, record.fs_uuid, (wish.mount, wish.filesystem, _options(setup))),
        ),
        rule: (
            machine.text(rule),
            config.udev_rule(wish.name, record.array_uuid, setup.scheduler, setup.read_ahead_kb),
        ),
    }


def _initramfs_due(machine: Machine, wish: Wish, setup: Setup, conf: str) -> bool:
    """Does the initramfs know our line? Asked of a stamp, so that a run that was cut owes it to the next."""
    if not setup.update_initramfs or not machine.has_command("update-initramfs"):
        return False
    return machine.text(setup.stamp_file(wish.name)) != _stamp(_array_line(conf, wish.name))


def _describe(machine: Machine, wish: Wish, plan: Plan, record: Record | None) -> dict[str, str]:
    """The host in a few lines, for diffs."""
    array = plan.array
    members = _recorded_names(record) if array is not None else []
    carried = [entry.kind for entry in array.signatures] if array is not None else []
    spec = f"UUID={config.dashed_uuid(record.fs_uuid)}" if record else ""
    table = [line for line in machine.text(config.FSTAB).splitlines() if spec and line.startswith(spec)]
    there = _mounted_at(machine, wish.mount)
    return {
        "array": f"{wish.name}, RAID 0, chunk {array.chunk_kib} KiB" if array is not None else "none",
        "drives": ", ".join(members) or "none",
        "file system": ", ".join(carried) or "none",
        "mdadm.conf": _array_line(machine.text(config.MDADM_CONF), wish.name) or "none",
        "fstab": table[0] if table else "none",
        "mounted": wish.mount if array is not None and there == array.kernel else "no",
    }


def _recorded_names(record: Record | None) -> list[str]:
    return record.names if record is not None else []


def _wanted(wish: Wish, setup: Setup, plan: Plan, record: Record | None) -> dict[str, str]:
    """The host as it shall be; UUIDs that are not made yet are said to be new."""
    fs_uuid = config.dashed_uuid(record.fs_uuid) if record else "(new)"
    return {
        "array": f"{wish.name}, RAID 0, chunk {wish.chunk_kib} KiB",
        "drives": ", ".join(drive.by_id for drive in plan.members),
        "file system": wish.filesystem,
        "mdadm.conf": config.mdadm_line(wish.name, record.array_uuid) if record else f"ARRAY /dev/md/{wish.name} (new)",
        "fstab": f"UUID={fs_uuid} {wish.mount} {wish.filesystem} {_options(setup)} 0 0",
        "mounted": wish.mount,
    }


def _read(machine: Machine, wish: Wish, setup: Setup) -> tuple[list[Drive], list[Array], Record | None]:
    try:
        record = planning.load_record(machine.text(setup.record_file(wish.name)) or None, setup.record_file(wish.name))
    except ValueError as exc:
        raise NvmeError(str(exc)) from exc
    return read_drives(machine.reader, machine.run), read_arrays(machine.reader, machine.run), record


def look(machine: Machine, wish: Wish, setup: Setup) -> View:
    """Read the host and decide. Changes nothing; raises NvmeError with every reason why it cannot be done."""
    drives, arrays, record = _read(machine, wish, setup)
    plan = planning.decide(wish, drives, arrays, record)
    if plan.adopt and plan.array is not None:
        array_uuid = config.dashed_uuid(planning.uuid_of(plan.array, drives))
        record = planning.new_record(wish, plan.members, array_uuid, plan.array.signatures[0].uuid)
        record = planning.with_stage(record, planning.BUILT)
    known = record if not plan.create else None
    problems = [*plan.problems, *_mount_problems(machine, wish, plan, known)]
    if problems:
        raise NvmeError("; ".join(dict.fromkeys(problems)))
    view = View(plan, record, lines=_describe(machine, wish, plan, known))
    if known is None:
        view.config = ["write mdadm.conf, fstab and the udev rule", f"mount it on {wish.mount}"]
        return view
    texts = _texts(machine, wish, setup, known)
    view.config += [f"write {path}" for path, (before, after) in texts.items() if before != after]
    if _initramfs_due(machine, wish, setup, texts[config.MDADM_CONF][1]):
        view.config.append("update the initramfs")
    view.config += [f"set {path} to {after}" for path, (_before, after) in _queue(machine, setup, plan).items()]
    if plan.array is None or _mounted_at(machine, wish.mount) != plan.array.kernel:
        view.config.append(f"mount it on {wish.mount}")
    return view


def _recheck(machine: Machine, members: t.Sequence[Drive]) -> None:
    """Right before a write: the same drives, blank and free. Whatever changed since the plan was made stops it."""
    now = {
        drive.kernel: drive for drive in read_drives(machine.reader, machine.run, [drive.kernel for drive in members])
    }
    for drive in members:
        again = now.get(drive.kernel)
        if again is None or (again.by_id, again.serial, again.size) != (drive.by_id, drive.serial, drive.size):
            raise NvmeError(f"{drive.text} was there a moment ago and is another drive now; nothing was written to it")
        if not again.blank:
            found = ", ".join((*again.content, *again.users, again.unreadable)).strip(", ")
            raise NvmeError(f"{drive.text} was blank a moment ago and is not now: {found}; nothing was written to it")
        reason = machine.claim(f"/dev/{drive.kernel}")
        if reason:
            raise NvmeError(
                f"{drive.text} is held by something that shows no signature ({reason}); nothing was written to it"
            )


def _wipe(machine: Machine, wish: Wish, plan: Plan) -> None:
    """Stop arrays and erase signatures; udev looks again when it is done."""
    with machine.locked(f"/dev/{drive.kernel}" for drive in plan.wipe):
        _wipe_locked(machine, wish, plan)
    machine.settle()


def _wipe_locked(machine: Machine, wish: Wish, plan: Plan) -> None:
    """Erase the signatures of drives whose names are confirmed, if they still carry what was seen."""
    for array in plan.stop:
        # What it carries would show again in a new array over the same drives.
        if array.signatures:
            machine.must(["wipefs", "--all", array.path])
        machine.must(["mdadm", "--stop", array.path])
    for drive in plan.wipe:
        if not drive.has_name(wish.confirm_wipe):
            raise NvmeError(f"{drive.text} is not confirmed")
        now = {each.kernel: each for each in read_drives(machine.reader, machine.run, [drive.kernel])}.get(drive.kernel)
        same = now is not None and (now.by_id, now.serial, now.content) == (drive.by_id, drive.serial, drive.content)
        if now is None or not same or now.users or now.system:
            raise NvmeError(f"{drive.text} is not what it was a moment ago; nothing was written to it")
        reason = machine.claim(f"/dev/{drive.kernel}")
        if reason:
            raise NvmeError(f"{drive.text} is in use ({reason}); nothing was written to it")
        for part in now.partitions:
            machine.must(["wipefs", "--all", f"/dev/{part}"])
        machine.must(["wipefs", "--all", f"/dev/{drive.kernel}"])


def _save(machine: Machine, setup: Setup, record: Record) -> Record:
    machine.write(setup.record_file(record.name), record.dump(), 0o644)
    return record


def _our_array(machine: Machine, record: Record) -> Array:
    wanted = hexadecimal(record.array_uuid)
    for array in read_arrays(machine.reader, machine.run):
        if array.uuid == wanted:
            return array
    raise NvmeError(
        f"expected the array {record.name} (UUID {record.array_uuid}) after it was made, found no such array"
    )


def _create(machine: Machine, wish: Wish, setup: Setup, plan: Plan, new_uuid: t.Callable[[], str]) -> Record:
    """Write down what is intended, look once more, create."""
    record = _save(machine, setup, planning.new_record(wish, plan.members, new_uuid(), new_uuid()))
    _recheck(machine, plan.members)
    # Without --run: mdadm looks at the drives, too, and would ask before it took one that is not empty. Nobody answers.
    machine.must(
        [
            "mdadm",
            "--create",
            f"/dev/md/{wish.name}",
            "--metadata=1.2",
            "--level=0",
            f"--raid-devices={len(plan.members)}",
            f"--chunk={wish.chunk_kib}",
            f"--name={wish.name}",
            f"--homehost={wish.homehost}",
            f"--uuid={config.md_uuid(record.array_uuid)}",
            *(drive.path for drive in plan.members),
        ]
    )
    machine.settle()
    array = _our_array(machine, record)
    found = (array.level, array.wanted, array.chunk_kib, array.whole)
    expected = ("raid0", len(plan.members), wish.chunk_kib, True)
    if found != expected:
        raise NvmeError(f"the array {wish.name}: expected level, drives, chunk and wholeness {expected}, found {found}")
    return record


def _geometry(machine: Machine, wish: Wish, array: Array, drives: int) -> None:
    """The file system's own idea of the stripes."""
    if wish.filesystem == "xfs":
        said = config.parse_xfs_info(machine.must(["xfs_info", array.path]))
    else:
        said = config.parse_dumpe2fs(machine.must(["dumpe2fs", "-h", array.path]))
    unit = said.get("sunit", 0) * said.get("bsize", 0) // 1024
    width = said.get("swidth", 0) * said.get("bsize", 0) // 1024
    if (unit, width) != (wish.chunk_kib, wish.chunk_kib * drives):
        raise NvmeError(
            f"the file system on {array.path}: expected stripes of {wish.chunk_kib} and {wish.chunk_kib * drives} KiB, found {unit} and {width}"
        )


def _format(machine: Machine, wish: Wish, setup: Setup, record: Record, members: t.Sequence[Drive]) -> Record:
    """Make the file system on an array that is ours by its UUID and carries none."""
    array = _our_array(machine, record)
    ours = [entry for entry in array.signatures if hexadecimal(entry.uuid) == hexadecimal(record.fs_uuid)]
    if len(ours) != len(array.signatures):
        seen = ", ".join(entry.words for entry in array.signatures)
        if record.stage != planning.CREATE or not planning.all_confirmed(wish, members):
            raise NvmeError(
                f"{array.path} shows {seen}, of an older array of these drives; it is not formatted unless "
                f"{wish.prefix}confirm_wipe names all of {', '.join(record.names)}"
            )
        _claim_array(machine, array)
        machine.must(["wipefs", "--all", array.path])
        ours = []
    record = _save(machine, setup, planning.with_stage(record, planning.FORMAT))
    if not ours or array.unfinished:
        _claim_array(machine, array)
        drives = len(record.members)
        force = bool(ours) and array.unfinished
        argv = config.mkfs(wish.filesystem, array.path, record.fs_uuid, wish.name, record.chunk_kib, drives, force)
        machine.must(argv)
        machine.settle()
        now = [(entry.kind, hexadecimal(entry.uuid)) for entry in signatures(machine.run, array.path)]
        if now != [(wish.filesystem, hexadecimal(record.fs_uuid))]:
            raise NvmeError(
                f"{array.path}: expected the file system {wish.filesystem} {record.fs_uuid} after mkfs, found {now}"
            )
        _geometry(machine, wish, array, drives)
    return _save(machine, setup, planning.with_stage(record, planning.BUILT))


def _claim_array(machine: Machine, array: Array) -> None:
    reason = machine.claim(array.path)
    if reason:
        raise NvmeError(f"{array.path} is in use ({reason}); it is not formatted")


def _configure(machine: Machine, wish: Wish, setup: Setup, record: Record, plan: Plan) -> None:
    """Files, initramfs, queues, mount."""
    texts = _texts(machine, wish, setup, record)
    changed = {path for path, (before, after) in texts.items() if before != after}
    for path in sorted(changed):
        if texts[path][1]:
            machine.write(path, texts[path][1])
        else:
            machine.remove(path)
    conf = texts[config.MDADM_CONF][1]
    if _initramfs_due(machine, wish, setup, conf):
        machine.must(["update-initramfs", "-u", "-k", "all"])
        machine.write(setup.stamp_file(wish.name), _stamp(_array_line(conf, wish.name)))
    if changed - {config.MDADM_CONF, config.FSTAB}:
        machine.run(["udevadm", "control", "--reload"])
    for path, (_before, after) in _queue(machine, setup, plan).items():
        machine.poke(path, after)
    if config.FSTAB in changed:
        machine.must(["systemctl", "daemon-reload"])
    if plan.array is not None and _mounted_at(machine, wish.mount) != plan.array.kernel:
        machine.make_directory(wish.mount)
        machine.must(["mount", wish.mount])


def _build(machine: Machine, wish: Wish, setup: Setup, view: View, new_uuid: t.Callable[[], str]) -> None:
    """Do what was decided, one step after the other."""
    plan, record = view.plan, view.record
    if plan.assemble and record is not None:
        # No --run and no --force: with a drive missing it fails, and that is right.
        uuid_option = f"--uuid={config.md_uuid(record.array_uuid)}"
        machine.must(
            ["mdadm", "--assemble", f"/dev/md/{wish.name}", uuid_option, *(drive.path for drive in plan.members)]
        )
        machine.settle()
        view = look(machine, wish, setup)
        plan, record = view.plan, view.record
    if plan.adopt and record is not None:
        _save(machine, setup, record)
    if plan.wipe or plan.stop:
        _wipe(machine, wish, plan)
    if plan.create:
        record = _create(machine, wish, setup, plan, new_uuid)
    if record is None:
        raise NvmeError(f"the array {wish.name} has no record")
    if record.stage != planning.BUILT:
        record = _format(machine, wish, setup, record, plan.members)
    view = look(machine, wish, setup)
    _configure(machine, wish, setup, record, view.plan)


def _text(lines: t.Mapping[str, str]) -> str:
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def _missing_tools(machine: Machine, wish: Wish) -> list[str]:
    """Programs that are needed and not installed."""
    own = ["mkfs.xfs", "xfs_info"] if wish.filesystem == "xfs" else ["mkfs.ext4", "dumpe2fs"]
    return [name for name in ("mdadm", *own) if not machine.has_command(name)]


def _report(wish: Wish, view: View, missing: list[str]) -> dict[str, t.Any]:
    """What callers want to know about the array."""
    plan, record = view.plan, view.record if not view.plan.create else None
    array = plan.array
    return {
        "array": {
            "name": wish.name,
            "device": array.path if array is not None else "",
            "uuid": config.md_uuid(record.array_uuid) if record is not None else "",
            "filesystem_uuid": config.dashed_uuid(record.fs_uuid) if record is not None else "",
            "size_bytes": array.size if array is not None else sum(drive.size for drive in plan.members),
            "members": [drive.by_id for drive in plan.members],
            "devices": [f"/dev/{drive.kernel}" for drive in plan.members],
        },
        "skipped_drives": list(plan.skipped),
        "missing_tools": missing,
    }


def ensure(
    machine: Machine,
    wish: Wish,
    setup: Setup,
    check: bool,
    new_uuid: t.Callable[[], str] = lambda: str(uuid.uuid4()),
) -> tuple[dict[str, t.Any], list[str]]:
    """Bring the array into being. Gives the result of the module and its warnings."""
    machine.settle()
    view = look(machine, wish, setup)
    actions = view.actions
    before = view.lines
    known = view.record if not view.plan.create else None
    after = {**before, **_wanted(wish, setup, view.plan, known)}
    missing = _missing_tools(machine, wish)
    if missing and not check:
        raise NvmeError(f"expected {', '.join(missing)} to be installed, found no such program")
    if actions and not check:
        _build(machine, wish, setup, view, new_uuid)
        view = look(machine, wish, setup)
        if view.actions:
            raise NvmeError(f"the array {wish.name}: expected nothing left to do, found: {'; '.join(view.actions)}")
        after = view.lines
    result = {
        "changed": bool(actions),
        "actions": actions,
        **_report(wish, view, missing),
        "diff": {"before": _text(before), "after": _text(after if actions else before)},
    }
    return result, list(view.plan.warnings)


def _absent_files(machine: Machine, wish: Wish, record: Record | None) -> dict[str, tuple[str, str]]:
    """The files of an array, as they are and without it."""
    conf, table = machine.text(config.MDADM_CONF), machine.text(config.FSTAB)
    array_uuid, fs_uuid = (record.array_uuid, record.fs_uuid) if record is not None else ("", "")
    rule = config.UDEV_RULE.format(name=wish.name)
    if record is None:
        return {rule: (machine.text(rule), "")}
    return {
        config.MDADM_CONF: (conf, config.mdadm_conf(conf, wish.name, array_uuid, False)),
        config.FSTAB: (table, config.fstab(table, wish.name, fs_uuid, None)),
        rule: (machine.text(rule), ""),
    }


def ensure_absent(
    machine: Machine, wish: Wish, setup: Setup, destroy: t.Sequence[str], check: bool
) -> dict[str, t.Any]:
    """Unmount the array and forget its configuration; give it up when every one of its drives is named."""
    machine.settle()
    drives, arrays, record = _read(machine, wish, setup)
    array = next((each for each in arrays if planning.is_ours(wish, each, record, drives)), None)
    files = _absent_files(machine, wish, record)
    actions: list[str] = []
    mounted = array.mounts if array is not None else ()
    actions += [f"unmount {point}" for point in mounted]
    actions += [f"clean {path}" for path, (before, after) in files.items() if before != after]
    stamped = bool(machine.text(setup.stamp_file(wish.name)))
    if stamped:
        actions.append("update the initramfs")
    lost = _lost(machine, wish, record, drives, destroy, mounted)
    if lost and array is not None and array.holders:
        raise NvmeError(f"the array {wish.name} is held by {', '.join(array.holders)}; nothing was changed")
    actions += lost
    if actions and not check:
        for point in mounted:
            machine.must(["umount", point])
        for path, (before, after) in files.items():
            if before != after and after:
                machine.write(path, after)
            elif before != after:
                machine.remove(path)
        machine.run(["systemctl", "daemon-reload"])
        machine.run(["udevadm", "control", "--reload"])
        if stamped:
            if setup.update_initramfs and machine.has_command("update-initramfs"):
                machine.must(["update-initramfs", "-u", "-k", "all"])
            machine.remove(setup.stamp_file(wish.name))
        if lost and record is not None:
            _destroy(machine, setup, record, drives, array)
    was = {"mounted": ", ".join(mounted) or "no", "record": "there" if record is not None else "none"}
    becomes = {"mounted": "no", "record": "none" if lost else was["record"]}
    return {
        "changed": bool(actions),
        "actions": actions,
        "diff": {"before": _text(was), "after": _text(becomes)},
    }


def _lost(
    machine: Machine,
    wish: Wish,
    record: Record | None,
    drives: t.Sequence[Drive],
    destroy: t.Sequence[str],
    mounted: t.Sequence[str],
) -> list[str]:
    """What giving the array up would lose, in words; nothing without consent. A consent that is not whole is refused."""
    if not destroy or record is None:
        return []
    named = {name.rpartition("/")[2] for name in destroy}
    present = {name: next((drive for drive in drives if name in drive.names), None) for name in record.names}
    if not named & {alias for drive in present.values() if drive is not None for alias in drive.names} | named & set(
        present
    ):
        return []
    unnamed = [
        name for name, drive in present.items() if name not in named and not (drive and named & set(drive.names))
    ]
    held = ""
    for point in mounted:
        size, files = machine.usage(point)
        held = f" with {files} files, {gigabytes(size)}, on {point}"
    if unnamed:
        raise NvmeError(
            f"{wish.prefix}destroy: giving the array {wish.name}{held} up loses all of it. Expected the names of all its drives "
            f"({', '.join(record.names)}), found none for {', '.join(unnamed)}; nothing was changed"
        )
    return [f"give up the array {wish.name}{held} and wipe {', '.join(record.names)}"]


def _destroy(machine: Machine, setup: Setup, record: Record, drives: t.Sequence[Drive], array: Array | None) -> None:
    """Stop the array and erase md's superblock from those drives that carry this very array."""
    wanted = hexadecimal(record.array_uuid)
    members = [drive for drive in drives if drive.md_uuid == wanted]
    with machine.locked(f"/dev/{drive.kernel}" for drive in members):
        if array is not None:
            # An array that lacks a drive takes no writes any more.
            if array.signatures and array.whole:
                machine.must(["wipefs", "--all", array.path])
            machine.must(["mdadm", "--stop", array.path])
        for drive in members:
            reason = machine.claim(f"/dev/{drive.kernel}")
            if reason:
                raise NvmeError(f"{drive.text} is in use ({reason}); it was not wiped")
            machine.must(["wipefs", "--all", f"/dev/{drive.kernel}"])
    machine.settle()
    left = [
        drive.text
        for drive in read_drives(machine.reader, machine.run)
        if drive.md_uuid == wanted or (drive.unreadable and drive.has_name(record.names))
    ]
    if left:
        raise NvmeError(
            f"the array {record.name}: expected no drive to carry it any more, found {', '.join(left)}: run it again"
        )
    machine.remove(setup.record_file(record.name))
