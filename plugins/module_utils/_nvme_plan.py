# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""What is to be done about a RAID 0 over NVMe drives, and what must not be done. Decides only; nothing here touches a host."""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import asdict, dataclass, field, replace

from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_drives import (
    Array,
    Drive,
    gigabytes,
    hexadecimal,
    short,
)

# Stages of the record, in order: before mdadm --create, before mkfs, after it.
CREATE, FORMAT, BUILT = "create", "format", "built"
# Drives with four bits per cell made for desktops: a few hundred full writes, and slow once their cache is full. Names as the drives report them.
CONSUMER_QLC = (
    r"INTEL SSDPEKN[WU]",  # 660p, 665p, 670p
    r"SOLIDIGM SSDPFKNU",  # P41 Plus
    r"CT\d+P1SSD8",
    r"CT\d+P2SSD8",
    r"CT\d+P3P?SSD8",
    r"Sabrent Rocket Q",
    r"(Corsair )?(Force )?MP400\b",
    r"Corsair MP600 CORE",
    r"WD Green SN350",
    r"KINGSTON SNV[23]?S",
)
_GROW = (
    "md grows a RAID 0 only by turning it into RAID 4 and moving every stripe, and a power cut on that way loses all of it; "
    "weights are loaded anew faster. Keep the drives as they are, or take the array down with remove.yml and build it again"
)


@dataclass(frozen=True)
class Wish:
    """What the operator asks for; sizes in bytes, 0 for no limit."""

    name: str
    devices: tuple[str, ...] = ()
    count: int = 0
    min_size: int = 0
    max_size: int = 0
    models: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    confirm_wipe: tuple[str, ...] = ()
    chunk_kib: int = 512
    filesystem: str = "xfs"
    mount: str = "/srv/models"
    homehost: str = ""
    consumer: str = "warn"
    consumer_models: tuple[str, ...] = ()
    mixed_sizes: str = "refuse"
    mixed_firmware: str = "warn"
    prefix: str = ""

    @property
    def md_name(self) -> str:
        """The name in the superblocks. mdadm leaves the host out when both do not fit."""
        full = f"{self.homehost}:{self.name}"
        return full if self.homehost and len(full) < 32 else self.name


@dataclass(frozen=True)
class Record:
    """What was intended, written before anything is created: how an array is known to be ours.

    :ivar members: by-id name, serial and kernel-independent size of each drive, in the array's order.
    """

    name: str
    stage: str
    array_uuid: str
    fs_uuid: str
    filesystem: str
    chunk_kib: int
    homehost: str
    members: tuple[dict[str, t.Any], ...]
    mount: str = ""

    @property
    def names(self) -> list[str]:
        """The by-id names of its drives."""
        return [str(member["by_id"]) for member in self.members]

    def dump(self) -> str:
        """As a file."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"


def load_record(text: str | None, path: str) -> Record | None:
    """Read a record. A file that is none is an error in words: guessing would be the wrong thing."""
    if text is None:
        return None
    try:
        said = json.loads(text)
        said["members"] = tuple(said["members"])
        return Record(**said)
    except (ValueError, TypeError, KeyError) as exc:
        raise ValueError(f"{path}: expected the record of an array, found something else ({exc})") from exc


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order, or the reasons why nothing is.

    :ivar problems: why nothing can be done, each in a sentence.
    :ivar stop: arrays that are not ours, of which every member is confirmed to be wiped.
    :ivar wipe: confirmed drives that carry something.
    :ivar array: our array, when the kernel has it already.
    """

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    members: tuple[Drive, ...] = ()
    stop: tuple[Array, ...] = ()
    wipe: tuple[Drive, ...] = ()
    array: Array | None = None
    assemble: bool = False
    create: bool = False
    make_filesystem: bool = False
    adopt: bool = False

    @property
    def actions(self) -> list[str]:
        """The steps for people."""
        found = [f"stop the array {array.kernel} ({array.name or array.uuid})" for array in self.stop]
        found += [f"wipe {drive.text}: {', '.join(drive.content)}" for drive in self.wipe]
        if self.create:
            found.append(f"create a RAID 0 of {', '.join(drive.by_id for drive in self.members)}")
        if self.assemble:
            found.append(f"assemble the array of {', '.join(drive.by_id for drive in self.members)}")
        if self.adopt:
            found.append("take over the array and its file system as they are")
        if self.make_filesystem:
            found.append("make the file system")
        return found


@dataclass
class _Draft:
    """A plan in the making."""

    wish: Wish
    drives: list[Drive]
    arrays: list[Array]
    record: Record | None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def say(self, action: str, text: str) -> None:
        """Refuse, warn or keep quiet."""
        if action == "refuse":
            self.problems.append(text)
        elif action == "warn":
            self.warnings.append(text)

    def option(self, name: str) -> str:
        """The name under which the operator knows an option."""
        return f"{self.wish.prefix}{name}"


def _rule(wish: Wish) -> str:
    """The rule in words."""
    parts = []
    if wish.models:
        parts.append(f"model like {' or '.join(wish.models)}")
    if wish.min_size:
        parts.append(f"at least {gigabytes(wish.min_size)}")
    if wish.max_size:
        parts.append(f"at most {gigabytes(wish.max_size)}")
    if wish.exclude:
        parts.append("not " + ", ".join(short(name) for name in wish.exclude))
    return "; ".join(parts) or "any model and size"


def _by_name(draft: _Draft) -> list[Drive]:
    """The drives of a list of by-id names."""
    chosen: list[Drive] = []
    known = sorted(drive.by_id for drive in draft.drives if drive.by_id)
    for name in draft.wish.devices:
        found = [drive for drive in draft.drives if drive.has_name([name])]
        if not found:
            draft.problems.append(
                f"{draft.option('devices')}: expected names below /dev/disk/by-id of NVMe drives on this host, found {name}; "
                f"there are {', '.join(known) or 'none'}"
            )
        elif found[0] in chosen:
            draft.problems.append(
                f"{draft.option('devices')}: {name} is the drive {found[0].by_id}, which is listed twice"
            )
        else:
            chosen.append(found[0])
    wanted = draft.wish.count
    if wanted and not draft.problems and len(chosen) != wanted:
        draft.problems.append(
            f"{draft.option('count')}: expected {wanted} drives, found {len(chosen)} in {draft.option('devices')}"
        )
    return chosen


def _matches(wish: Wish, drive: Drive) -> str:
    """Why a drive is not meant by the rule; empty when it is."""
    if drive.has_name(wish.exclude):
        return "excluded"
    if wish.models and not any(re.search(pattern, drive.model) for pattern in wish.models):
        return f"model {drive.model or 'unknown'}"
    if drive.size < wish.min_size or drive.size > (wish.max_size or drive.size):
        return f"size {gigabytes(drive.size)}"
    if drive.size == 0:
        return "no capacity"
    if drive.system and not drive.has_name(wish.confirm_wipe):
        return f"disk of the system ({drive.system})"
    return ""


def _by_rule(draft: _Draft) -> list[Drive]:
    """The drives that the rule means. The system's disk is never meant."""
    chosen = []
    for drive in draft.drives:
        why = _matches(draft.wish, drive)
        if why:
            draft.skipped.append(f"{drive.text}: {why}")
        else:
            chosen.append(drive)
    wanted = draft.wish.count
    there = "; left out: " + ", ".join(draft.skipped) if draft.skipped else ""
    if not chosen:
        draft.problems.append(
            f"no drives: expected {wanted or 'some'} NVMe drives ({_rule(draft.wish)}), "
            f"found {f'none that fits among {len(draft.drives)}' if draft.drives else 'no NVMe drive on this host'}{there}"
        )
    elif wanted and len(chosen) != wanted:
        draft.problems.append(
            f"{draft.option('count')}: expected {wanted} drives ({_rule(draft.wish)}), found {len(chosen)}: "
            f"{', '.join(drive.text + _carries(drive) for drive in chosen)}{there}; "
            f"name those that are meant in {draft.option('devices')}, or the others in {draft.option('exclude')}"
        )
    return chosen


def _carries(drive: Drive) -> str:
    if drive.content or drive.users:
        return f" with {', '.join((*drive.content, *drive.users))}"
    return ""


def _members_of(array: Array, drives: t.Iterable[Drive]) -> list[Drive]:
    return [drive for drive in drives if drive.kernel in array.members]


def uuid_of(array: Array, drives: t.Iterable[Drive]) -> str:
    """The array's UUID, from md or from its members (mdadm may not be installed yet)."""
    return array.uuid or next((drive.md_uuid for drive in _members_of(array, drives) if drive.md_uuid), "")


def is_ours(wish: Wish, array: Array, record: Record | None, drives: t.Sequence[Drive]) -> bool:
    """By the record's UUID; the name alone proves nothing."""
    return record is not None and uuid_of(array, drives) == hexadecimal(record.array_uuid) and record.name == wish.name


def _check_drives(draft: _Draft, chosen: list[Drive], ours: t.Collection[str]) -> list[Drive]:
    """Refuse what must not be overwritten, and name what is confirmed. Members of our array are not looked at."""
    wipe = []
    confirm = draft.option("confirm_wipe")
    for drive in chosen:
        if drive.kernel in ours:
            continue
        confirmed = drive.has_name(draft.wish.confirm_wipe)
        stoppable = [f"held by {name}" for name in drive.arrays]
        stoppable += [user for user in drive.users if re.fullmatch(r"part of md\S* \((raid\d+|linear|md)\)", user)]
        busy = [user for user in drive.users if user not in stoppable]
        if drive.system:
            draft.problems.append(
                f"{drive.text} is the disk of the running system ({drive.system} is on it): it is never overwritten, whatever {confirm} says"
            )
        elif drive.unreadable:
            draft.problems.append(f"{drive.text}: expected to read what is on it, found: {drive.unreadable}")
        elif not drive.by_id:
            draft.problems.append(
                f"{drive.text}: expected a name below /dev/disk/by-id, found none: it could not be recognised after a reboot"
            )
        elif drive.read_only:
            draft.problems.append(f"{drive.text}: expected a drive that can be written, found one that is read-only")
        elif busy:
            what = ", ".join((*busy, *drive.content))
            draft.problems.append(
                f"{drive.text} is in use: {what}. It is not overwritten while it is, whatever {confirm} says; "
                f"leave it out ({draft.option('exclude')}), or release it and name it in {confirm}"
            )
        elif drive.content and not confirmed:
            draft.problems.append(
                f"{drive.text} carries data: {', '.join(drive.content)}. Expected a blank drive or its name in {confirm}; "
                f"leave it out ({draft.option('exclude')}) or, if all of it may be lost, write {drive.by_id} there"
            )
        elif drive.content or drive.users:
            wipe.append(drive)
    return wipe


def _stop(draft: _Draft, wipe: list[Drive]) -> tuple[Array, ...]:
    """Arrays that hold confirmed drives: they may be stopped when every one of their members is confirmed."""
    found = []
    names = {drive.kernel for drive in wipe}
    for array in draft.arrays:
        held = [drive for drive in wipe if array.kernel in drive.arrays or drive.kernel in array.members]
        if not held:
            continue
        others = sorted(set(array.members) - names)
        if array.mounts or array.holders:
            what = ", ".join(
                [*(f"mounted on {point}" for point in array.mounts), *(f"held by {name}" for name in array.holders)]
            )
            draft.problems.append(f"{held[0].text} is a member of {array.kernel}, which is in use: {what}")
        elif others:
            draft.problems.append(
                f"{held[0].text} is a member of {array.kernel} ({array.name or array.level}) together with {', '.join(others)}, "
                f"which {draft.option('confirm_wipe')} does not name or which is not chosen: all of that array would be lost"
            )
        else:
            found.append(array)
    return tuple(found)


def _check_sameness(draft: _Draft, chosen: list[Drive]) -> None:
    """Sizes, firmware and kind of the drives."""
    wish = draft.wish
    sizes = {drive.size for drive in chosen}
    if len(sizes) > 1:
        each = ", ".join(f"{drive.by_id} {drive.size} bytes" for drive in chosen)
        draft.say(
            wish.mixed_sizes,
            f"{draft.option('mixed_sizes')}: expected drives of one size, found {each}: beyond the smallest, fewer drives carry the stripes",
        )
    firmware = {(drive.model, drive.firmware) for drive in chosen}
    if len(firmware) > 1:
        each = ", ".join(f"{drive.by_id} {drive.model} {drive.firmware}" for drive in chosen)
        draft.say(
            wish.mixed_firmware,
            f"{draft.option('mixed_firmware')}: expected one model with one firmware, found {each}: the slowest sets the pace",
        )
    patterns = (*CONSUMER_QLC, *wish.consumer_models)
    for drive in chosen:
        if any(re.search(pattern, drive.model, re.IGNORECASE) for pattern in patterns):
            draft.say(
                wish.consumer,
                f"{draft.option('consumer')}: {drive.by_id} ({drive.model}) is a desktop drive with four bits per cell: "
                "it wears out after few hundred full writes, and writes slowly once its cache is full",
            )


def _missing(record: Record, drives: t.Iterable[Drive]) -> list[str]:
    """Drives of the record that are not on the host."""
    there = {name for drive in drives for name in drive.names}
    return [name for name in record.names if name not in there]


def _recorded(record: Record, drives: t.Sequence[Drive]) -> list[Drive]:
    """The record's drives that are there, in its order."""
    return [drive for name in record.names for drive in drives if name in drive.names]


def _broken(draft: _Draft, record: Record, found: str) -> str:
    """A sentence about an array of ours that is not whole."""
    return (
        f"the array {record.name} was built of {', '.join(record.names)} (UUID {record.array_uuid}); found {found}. "
        "A RAID 0 has no redundancy: without one of its drives there is no data. Nothing is changed: bring back the drive "
        "(seat it, look at nvme list and dmesg), or give the array up: remove.yml with "
        f"{draft.option('destroy')}, then build it anew and load the weights again"
    )


def _decide_known(draft: _Draft, record: Record) -> Plan | None:
    """The plan for an array that an earlier run began or built; None when it never came to be."""
    wish = draft.wish
    uuid = hexadecimal(record.array_uuid)
    array = next((each for each in draft.arrays if is_ours(wish, each, record, draft.drives)), None)
    present = _recorded(record, draft.drives)
    carrying = [drive for drive in present if drive.md_uuid == uuid]
    missing = _missing(record, draft.drives)
    if array is None and not carrying and record.stage == CREATE:
        # mdadm --create never wrote a superblock: a plan from the beginning.
        return None
    if array is None and record.stage == CREATE and len(carrying) < len(record.members):
        return _decide_half_created(draft, record, carrying)
    if array is None and not carrying and not missing:
        draft.problems.append(
            _broken(draft, record, "all of them, and on none of them md's superblock: somebody wiped them")
        )
    elif array is None and (missing or len(carrying) < len(record.members)):
        blank = [drive.by_id for drive in present if drive not in carrying]
        said = [f"{name} not on this host" for name in missing]
        said += [f"{name} without this array's superblock" for name in blank]
        draft.problems.append(_broken(draft, record, "; ".join(said)))
    elif array is not None and (missing or not array.whole):
        gone = missing or [drive.by_id for drive in present if drive.kernel not in array.members]
        # md goes on counting a drive that was pulled; what is on this host is what counts.
        here = len([drive for drive in present if drive.kernel in array.members])
        state = f"{array.path} {array.state} with {here} of {array.wanted or len(record.members)} drives on this host"
        state += f" ({array.unreadable})" if array.unreadable else ""
        draft.problems.append(_broken(draft, record, f"{state}, missing {', '.join(gone)}" if gone else state))
    if draft.problems:
        return Plan(tuple(draft.problems), tuple(draft.warnings), tuple(draft.skipped), tuple(present), array=array)
    return _decide_whole(draft, record, array, present)


def _decide_half_created(draft: _Draft, record: Record, carrying: list[Drive]) -> Plan | None:
    """mdadm --create was cut while it wrote superblocks. No data has ever been there, but wiping still takes the names."""
    unnamed = [drive for drive in carrying if not drive.has_name(draft.wish.confirm_wipe)]
    if not unnamed:
        return None
    draft.problems.append(
        f"the array {record.name} is half-built: mdadm --create was cut, its superblock (UUID {record.array_uuid}) is on "
        f"{', '.join(drive.by_id for drive in carrying)} and not on the others of {', '.join(record.names)}. "
        f"It never held data. Write {', '.join(drive.by_id for drive in unnamed)} into {draft.option('confirm_wipe')} to begin again"
    )
    return Plan(tuple(draft.problems), tuple(draft.warnings), tuple(draft.skipped))


def _decide_whole(draft: _Draft, record: Record, array: Array | None, present: list[Drive]) -> Plan:
    """Our array is there, or can be assembled: compare it with the wish."""
    wish = draft.wish
    chosen = _by_name(draft) if wish.devices else [drive for drive in draft.drives if not _matches(wish, drive)]
    if not wish.devices:
        others = [drive for drive in draft.drives if drive not in chosen and drive not in present]
        draft.skipped += [f"{drive.text}: {_matches(wish, drive)}" for drive in others]
    more = [drive for drive in chosen if drive not in present]
    fewer = [drive for drive in present if drive not in chosen]
    if wish.devices or not wish.count or len(present) != wish.count:
        if more:
            draft.problems.append(
                f"the array {wish.name} has {len(present)} drives and {', '.join(drive.text + _carries(drive) for drive in more)} "
                f"is chosen besides: growing is refused. {_GROW}, or leave the drive out by {draft.option('exclude')}"
            )
        elif fewer:
            draft.problems.append(
                f"the array {wish.name} is made of {', '.join(record.names)}, and {', '.join(drive.by_id for drive in fewer)} "
                f"is not chosen any more: a RAID 0 cannot give up a drive. {_GROW}"
            )
        elif wish.count and len(present) != wish.count:
            draft.problems.append(
                f"{draft.option('count')}: expected {wish.count} drives, found an array {wish.name} of {len(present)}: "
                f"growing and shrinking are refused. {_GROW}"
            )
    for option, have, want in (
        ("chunk_kib", array.chunk_kib if array is not None and array.chunk_kib else record.chunk_kib, wish.chunk_kib),
        ("filesystem", record.filesystem, wish.filesystem),
    ):
        if have != want:
            draft.problems.append(
                f"{draft.option(option)}: the array {wish.name} was built with {have}, expected {want}: that cannot be changed in place. {_GROW}"
            )
    _check_sameness(draft, present)
    stale = array is not None and _is_leftover(draft, record, array, present)
    if not stale:
        draft.problems += _filesystem_problems(draft, record, array)
    return Plan(
        tuple(draft.problems),
        tuple(draft.warnings),
        tuple(draft.skipped),
        tuple(present),
        array=array,
        assemble=array is None,
        # With an array that is not assembled yet, apply looks again.
        make_filesystem=record.stage != BUILT and (array is None or stale or not array.signatures or array.unfinished),
    )


def _is_ours(record: Record, array: Array) -> bool:
    """Does the array carry the file system of the record and nothing else?"""
    entries = array.signatures
    return (
        len(entries) == 1
        and hexadecimal(entries[0].uuid) == hexadecimal(record.fs_uuid)
        and entries[0].kind == record.filesystem
    )


def _is_leftover(draft: _Draft, record: Record, array: Array, present: list[Drive]) -> bool:
    """A new array over old members can show what an older array of theirs carried: it may go when every drive is confirmed."""
    if record.stage != CREATE or not array.signatures or _is_ours(record, array):
        return False
    return not array.mounts and not array.holders and all_confirmed(draft.wish, present)


def all_confirmed(wish: Wish, drives: t.Iterable[Drive]) -> bool:
    """Does confirm_wipe name every one of the drives?"""
    return all(drive.has_name(wish.confirm_wipe) for drive in drives)


def _filesystem_problems(draft: _Draft, record: Record, array: Array | None) -> list[str]:
    """What the array carries must be nothing (not formatted yet) or the file system of the record."""
    if array is None:
        return []
    if not array.signatures:
        if record.stage != BUILT:
            return []
        return [
            f"the array {record.name} ({array.path}) carries nothing; expected the {record.filesystem} file system {record.fs_uuid} "
            f"that was made on it. It is not made again on its own: remove.yml with {draft.option('destroy')} gives the array up"
        ]
    if _is_ours(record, array):
        return []
    if record.stage == CREATE:
        return [
            f"the new array {record.name} ({array.path}) shows {', '.join(entry.words for entry in array.signatures)}: "
            "its drives belonged to an older array whose superblocks are gone. It is not formatted: bring the older array back by hand, "
            f"or name all of {', '.join(record.names)} in {draft.option('confirm_wipe')}"
        ]
    return [
        f"the array {record.name} ({array.path}) carries {', '.join(entry.words for entry in array.signatures)} that this role did not make; "
        f"expected the {record.filesystem} file system {record.fs_uuid}. It is not touched"
    ]


def _adoptable(draft: _Draft, chosen: list[Drive]) -> tuple[Array | None, str]:
    """An array with our name, of exactly these drives, with a file system of our kind, and no record: it was ours before the system was set up anew.

    The second value says why an array with our name is not taken.
    """
    wish = draft.wish
    for array in draft.arrays:
        if array.name != wish.md_name:
            continue
        members = {drive.kernel for drive in chosen}
        kinds = [entry.kind for entry in array.signatures]
        if not array.whole or array.level != "raid0" or set(array.members) != members:
            return None, f"{array.path} is named {array.name} and is {array.level} of {', '.join(array.members)}"
        if kinds != [wish.filesystem] or not array.signatures[0].uuid:
            carried = ", ".join(entry.words for entry in array.signatures) or "nothing"
            return (
                None,
                f"{array.path} is named {array.name} and carries {carried}, not a file system {wish.filesystem}",
            )
        if array.chunk_kib != wish.chunk_kib:
            return (
                None,
                f"{array.path} is named {array.name} and has a chunk of {array.chunk_kib} KiB, not {wish.chunk_kib}",
            )
        return array, ""
    return None, ""


def decide(wish: Wish, drives: list[Drive], arrays: list[Array], record: Record | None) -> Plan:
    """Compare what is with what shall be."""
    draft = _Draft(wish, drives, arrays, record)
    if record is not None:
        known = _decide_known(draft, record)
        if known is not None:
            return known
    chosen = _by_name(draft) if wish.devices else _by_rule(draft)
    if draft.problems and not chosen:
        return Plan(tuple(draft.problems), tuple(draft.warnings), tuple(draft.skipped))
    array, why = _adoptable(draft, chosen)
    if array is not None:
        _check_sameness(draft, chosen)
        order = sorted(chosen, key=lambda drive: array.members.index(drive.kernel))
        return Plan(
            tuple(draft.problems), tuple(draft.warnings), tuple(draft.skipped), tuple(order), array=array, adopt=True
        )
    wipe = _check_drives(draft, chosen, ())
    if why and draft.problems:
        draft.problems.append(f"{why}; there is no record of it, so it is not taken as this role's own")
    stop = _stop(draft, wipe)
    if len(chosen) == 1 and not draft.problems:
        draft.problems.append(f"expected at least 2 drives to stripe over, found one: {chosen[0].text}")
    _check_sameness(draft, chosen)
    return Plan(
        tuple(dict.fromkeys(draft.problems)),
        tuple(draft.warnings),
        tuple(draft.skipped),
        tuple(chosen),
        stop=stop,
        wipe=tuple(wipe),
        create=True,
        make_filesystem=True,
    )


def new_record(wish: Wish, members: t.Sequence[Drive], array_uuid: str, fs_uuid: str) -> Record:
    """The intent to build an array."""
    return Record(
        name=wish.name,
        stage=CREATE,
        array_uuid=array_uuid,
        fs_uuid=fs_uuid,
        filesystem=wish.filesystem,
        chunk_kib=wish.chunk_kib,
        homehost=wish.homehost,
        members=tuple({"by_id": drive.by_id, "serial": drive.serial, "size": drive.size} for drive in members),
        mount=wish.mount,
    )


def with_stage(record: Record, stage: str) -> Record:
    """The record, one stage further."""
    return replace(record, stage=stage)
