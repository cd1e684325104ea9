# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no stability promise.
"""Kernel settings: keep them in a drop-in, put them to work, read them back, and remember what was there before."""

from __future__ import annotations

import errno
import json
import os
import re
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

KEY = re.compile(r"^[a-z][A-Za-z0-9_]*([./][A-Za-z0-9_*@:-]+)+$")
# Where systemd-sysctl looks, in the order of their right to replace a file of the same name.
DIRECTORIES = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d")
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class SysctlError(Exception):
    """A setting cannot be had, in words for the operator."""


@dataclass
class Outcome:
    """What was found and done."""

    changed: bool = False
    before: dict[str, str] = field(default_factory=dict)
    applied: list[str] = field(default_factory=list)
    read_only: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    file_before: str = ""
    file_after: str = ""


def normal(value: object) -> str:
    """One blank between the words, as the kernel prints tabs and people write blanks."""
    if isinstance(value, bool):
        value = int(value)
    return " ".join(str(value).split())


def check_keys(settings: t.Mapping[str, object]) -> None:
    """Names as sysctl writes them, and values that are one line."""
    for key, value in settings.items():
        if not KEY.match(key) or ".." in key or "*" in key:
            raise SysctlError(f"expected a name such as net.ipv4.conf.all.rp_filter, found {key!r}")
        if isinstance(value, (dict, list)) or not normal(value) or "\n" in str(value).strip():
            raise SysctlError(f"{key}: expected one value, found {value!r}")


def place(root: Path, key: str) -> Path:
    """The file behind a key. A key with slashes may have dots in a name, such as that of an interface."""
    parts = key.split("/") if "/" in key else key.split(".")
    return root.joinpath("proc", "sys", *parts)


def read(root: Path, key: str) -> str | None:
    """The value that is in force, or None where the kernel has no such key or does not show it."""
    try:
        return normal(place(root, key).read_text("utf-8", "replace"))
    except OSError:
        return None


def writable(root: Path, key: str) -> bool:
    """Whether this host lets us write it: /proc/sys is read-only in a container."""
    return os.access(place(root, key), os.W_OK)


def write(root: Path, key: str, value: str) -> bool:
    """Write one value; False where the kernel or the container does not allow it."""
    try:
        with place(root, key).open("r+", encoding="utf-8") as stream:
            stream.write(value + "\n")
    except OSError as exc:
        if exc.errno in _REFUSED:
            return False
        raise SysctlError(f"{key}: the kernel refuses {value!r}: {exc.strerror}") from exc
    return True


def ordered(settings: t.Mapping[str, object]) -> list[str]:
    """The keys by name, but forwarding first: when it changes, the kernel sets others of the same interface anew."""
    return sorted(settings, key=lambda key: (not key.endswith((".ip_forward", ".forwarding")), key))


def render(settings: t.Mapping[str, object], header: str) -> str:
    """The text of the drop-in."""
    lines = [f"# {line}" for line in header.splitlines()]
    return "\n".join([*lines, *(f"{key} = {normal(settings[key])}" for key in ordered(settings))]) + "\n"


def parse(text: str) -> dict[str, str]:
    """The settings of a sysctl.d file."""
    found = {}
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line[0] in "#;" or "=" not in line:
            continue
        key, value = line.split("=", 1)
        found[key.strip().lstrip("-").strip()] = normal(value)
    return found


def later_files(root: Path, name: str) -> list[Path]:
    """Files that are read after ours at boot, and so win over it."""
    seen: dict[str, Path] = {}
    for directory in DIRECTORIES:
        folder = root / directory
        if folder.is_dir():
            for path in folder.glob("*.conf"):
                seen.setdefault(path.name, path)
    return [seen[other] for other in sorted(seen) if other > name]


def conflicts(root: Path, drop_in: Path, settings: t.Mapping[str, object]) -> list[str]:
    """Keys that another file sets to something else at boot, after ours."""
    found = []
    for path in later_files(root, drop_in.name):
        try:
            theirs = parse(path.read_text("utf-8", "replace"))
        except OSError:
            continue
        found += [
            f"{path}: {key} = {value}, expected {normal(settings[key])}"
            for key, value in sorted(theirs.items())
            if key in settings and value != normal(settings[key])
        ]
    return found


def load_record(path: Path) -> dict[str, str]:
    """What the keys were before the first change; an unreadable record knows nothing."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in data.items()} if isinstance(data, dict) else {}


def save(path: Path, text: str, mode: int) -> None:
    """Write a file so that it is whole after a power cut."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(mode)
    temporary.replace(path)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _read_back(root: Path, settings: t.Mapping[str, object], result: Outcome) -> None:
    """All of them, after the last one was written. What another one moved is set once more; what the kernel did not take is an error."""
    keys = [key for key in ordered(settings) if key not in result.read_only and key not in result.absent]
    for key in keys:
        if read(root, key) != normal(settings[key]):
            write(root, key, normal(settings[key]))
            if key not in result.applied:
                result.applied.append(key)
    for key in keys:
        now = read(root, key)
        if now != normal(settings[key]):
            raise SysctlError(f"{key}: expected {normal(settings[key])!r} after writing it, found {now!r}")


def present(
    root: Path, drop_in: Path, record: Path, settings: t.Mapping[str, object], header: str, check: bool
) -> Outcome:
    """Write the drop-in, write the values, read them back."""
    check_keys(settings)
    result = Outcome(file_before=_text(drop_in), file_after=render(settings, header))
    known = load_record(record)
    dropped = {key: value for key, value in known.items() if key not in settings}
    wrong = {}
    for key in ordered(settings):
        now = read(root, key)
        if now is None:
            result.absent.append(key)
            continue
        result.before[key] = now
        if now != normal(settings[key]):
            if writable(root, key):
                wrong[key] = normal(settings[key])
            else:
                result.read_only.append(key)
    back = {
        key: value for key, value in dropped.items() if read(root, key) not in (None, value) and writable(root, key)
    }
    result.conflicts = conflicts(root, drop_in, settings)
    result.changed = bool(wrong or back) or result.file_before != result.file_after
    if check:
        result.applied, result.restored = sorted(wrong), sorted(back)
        return result
    # First what was there, then what shall be: a run that is killed in between knows the way back.
    remembered = {**{key: result.before[key] for key in wrong if key not in known}, **known}
    if remembered != known:
        save(record, json.dumps(remembered, indent=1, sort_keys=True) + "\n", 0o600)
    if result.file_before != result.file_after:
        save(drop_in, result.file_after, 0o644)
    for key, value in wrong.items():
        if write(root, key, value):
            result.applied.append(key)
        else:
            result.read_only.append(key)
    for key, value in back.items():
        if write(root, key, value):
            result.restored.append(key)
    _read_back(root, settings, result)
    if dropped:
        kept = {key: value for key, value in remembered.items() if key in settings}
        save(record, json.dumps(kept, indent=1, sort_keys=True) + "\n", 0o600)
    return result


def absent(root: Path, drop_in: Path, record: Path, check: bool) -> Outcome:
    """Take the drop-in away and give every key the value that it had."""
    known = load_record(record)
    result = Outcome(file_before=_text(drop_in))
    for key in ordered(known):
        now, value = read(root, key), known[key]
        if now is None or now == value:
            continue
        result.before[key] = now
        if not writable(root, key):
            result.read_only.append(key)
            continue
        if not check and not write(root, key, value):
            result.read_only.append(key)
            continue
        result.restored.append(key)
    result.changed = bool(result.restored) or drop_in.exists() or record.exists()
    if not check:
        for path in (drop_in, record):
            if path.exists():
                path.unlink()
    return result
