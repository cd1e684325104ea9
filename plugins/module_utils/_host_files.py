# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no stability promise.
"""Files of a host in many places: write, edit and tighten them in one go, remember what was there, and run what must follow."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
import typing as t
from dataclasses import dataclass, field
from pathlib import Path


class HostFilesError(Exception):
    """The files cannot be had, in words for the operator."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


class File(t.NamedTuple):
    """A file that is wanted whole."""

    path: str
    content: str
    mode: int = 0o644
    validate: tuple[str, ...] = ()
    then: tuple[str, ...] = ()


class Edit(t.NamedTuple):
    """Settings that are wanted in a file of somebody else's."""

    path: str
    values: t.Mapping[str, str]
    separator: str = " = "
    then: tuple[str, ...] = ()


@dataclass
class Record:
    """What was there before, and which commands are still owed."""

    files: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    edits: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    due: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What was found and done."""

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    tightened: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Was there anything to do?"""
        return bool(self.written or self.removed or self.tightened or self.ran)


def read(path: str) -> str | None:
    """The text of a regular file, whatever its bytes."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise HostFilesError(f"{path}: expected a regular file or nothing there, found something else")
        return Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def save(path: str, text: str, mode: int) -> None:
    """Write a file so that it is whole after a power cut."""
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.gpufleet-new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(text.encode("utf-8", "surrogateescape"))
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, mode)
    os.replace(temporary, path)


def load_record(path: str) -> Record:
    """The record of earlier runs; an unreadable one knows nothing."""
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        return Record(
            **{
                key: type(value)(data[key])
                for key, value in vars(Record()).items()
                if isinstance(data.get(key), type(value))
            }
        )
    except (OSError, ValueError, AttributeError):
        return Record()


def save_record(path: str, record: Record) -> None:
    """Remember, atomically."""
    save(path, json.dumps(vars(record), indent=1, sort_keys=True) + "\n", 0o600)


def _line(key: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t]*{re.escape(key)}(?=[ \t=]).*$", re.MULTILINE)


def value_of(text: str, key: str) -> str | None:
    """The value that a 'key = value' or 'key value' file gives a key."""
    found = _line(key).findall(text)
    if not found:
        return None
    return str(found[-1]).strip()[len(key) :].strip().lstrip("=").strip()


def set_value(text: str, key: str, value: str | None, separator: str) -> str:
    """The same text with another value for one key; None takes its line away."""
    pattern = _line(key)
    if value is None:
        return re.sub(rf"^[ \t]*{re.escape(key)}(?=[ \t=]).*\n?", "", text, flags=re.MULTILINE)
    line = f"{key}{separator}{value}"
    if pattern.search(text):
        return pattern.sub(lambda _match: line, text)
    return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n"


def mode_of(path: str) -> int | None:
    """The permission bits of what a path leads to."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except OSError:
        return None


class Host:
    """One go over the files of a host."""

    def __init__(self, run: Run, record: str, actions: t.Mapping[str, list[list[str]]], check: bool) -> None:
        """Read what earlier runs remember."""
        self.run = run
        self.actions = actions
        self.check = check
        self.path = record
        self.record = load_record(record)
        self.out = Outcome()

    def _owe(self, names: t.Iterable[str]) -> None:
        for name in names:
            if name not in self.actions:
                raise HostFilesError(f"expected one of {', '.join(self.actions) or 'no'} actions, found {name!r}")
            if name not in self.record.due:
                self.record.due.append(name)

    def _show(self, path: str, before: str | None, after: str | None) -> None:
        self.out.diff.append(
            {"before": before or "", "after": after or "", "before_header": path, "after_header": path}
        )

    def _remember(self) -> None:
        if not self.check:
            save_record(self.path, self.record)

    def _validate(self, wanted: File) -> None:
        if not wanted.validate:
            return
        if shutil.which(wanted.validate[0]) is None:
            if self.check:
                return
            raise HostFilesError(f"{wanted.path}: cannot check the new file, {wanted.validate[0]} is not installed")
        handle, temporary = tempfile.mkstemp(prefix="gpufleet-", suffix=f"-{Path(wanted.path).name}")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(wanted.content.encode("utf-8", "surrogateescape"))
            code, out, err = self.run([word.replace("%s", temporary) for word in wanted.validate])
        finally:
            os.unlink(temporary)
        if code != 0:
            said = " ".join((err.strip() or out.strip()).replace(temporary, wanted.path).split())
            raise HostFilesError(f"{wanted.path}: the new file was refused and nothing was changed: {said}")

    def validate(self, files: t.Sequence[File]) -> None:
        """Let the programs judge what would change, before anything does."""
        for wanted in files:
            if read(wanted.path) != wanted.content:
                self._validate(wanted)

    def write(self, wanted: File) -> None:
        """One whole file."""
        before, mode = read(wanted.path), mode_of(wanted.path)
        if before == wanted.content and mode == wanted.mode:
            return
        self.out.written.append(wanted.path)
        self._show(wanted.path, before, wanted.content)
        known = self.record.files.setdefault(wanted.path, {"before": before, "mode": mode})
        known["then"] = list(wanted.then)
        self._owe(wanted.then)
        self._remember()
        if not self.check:
            save(wanted.path, wanted.content, wanted.mode)

    def edit(self, wanted: Edit) -> None:
        """Some settings of a file of somebody else's."""
        before = read(wanted.path)
        if before is None:
            self.out.missing.append(wanted.path)
            return
        known = self.record.edits.get(wanted.path, {"values": {}})
        after = before
        for key, value in wanted.values.items():
            if value_of(after, key) != value:
                known["values"].setdefault(key, value_of(before, key))
                after = set_value(after, key, value, wanted.separator)
        for key in [key for key in known["values"] if key not in wanted.values]:
            after = set_value(after, key, known["values"].pop(key), wanted.separator)
        if after == before:
            return
        self.out.written.append(wanted.path)
        self._show(wanted.path, before, after)
        self.record.edits[wanted.path] = {**known, "separator": wanted.separator, "then": list(wanted.then)}
        self._owe(wanted.then)
        self._remember()
        if not self.check:
            save(wanted.path, after, mode_of(wanted.path) or 0o644)

    def tighten(self, path: str, most: int) -> None:
        """Take away the permission bits beyond those allowed; nothing is ever loosened."""
        now = mode_of(path)
        if now is None:
            return
        if now & ~most & 0o7777:
            self.out.tightened.append(path)
            self._show(path, f"mode: {now:04o}\n", f"mode: {now & most:04o}\n")
            self.record.modes.setdefault(path, now)
            self._remember()
            if not self.check:
                os.chmod(path, now & most)

    def restore_file(self, path: str) -> None:
        """What stood at a path before the first run."""
        known = self.record.files.pop(path)
        now, before = read(path), known.get("before")
        if now != before:
            self.out.removed.append(path)
            self._show(path, now, before)
            self._owe(name for name in known.get("then", []) if name in self.actions)
            if not self.check:
                if before is None:
                    os.unlink(path)
                else:
                    save(path, before, known.get("mode") or 0o644)
        self._remember()

    def restore_edit(self, path: str) -> None:
        """The former settings of a file of somebody else's; what others changed in it since then stays."""
        known = self.record.edits.pop(path)
        now = read(path)
        if now is not None:
            after = now
            for key, value in known.get("values", {}).items():
                after = set_value(after, key, value, known.get("separator", " = "))
            if after != now:
                self.out.removed.append(path)
                self._show(path, now, after)
                self._owe(name for name in known.get("then", []) if name in self.actions)
                if not self.check:
                    save(path, after, mode_of(path) or 0o644)
        self._remember()

    def restore_mode(self, path: str) -> None:
        """The former permission bits."""
        before, now = self.record.modes.pop(path), mode_of(path)
        if now is not None and now != before:
            self.out.removed.append(path)
            self._show(path, f"mode: {now:04o}\n", f"mode: {before:04o}\n")
            if not self.check:
                os.chmod(path, before)
        self._remember()

    def follow_up(self) -> None:
        """Run what is owed, in the order of the actions, and forget each when it is done."""
        for name in [name for name in self.actions if name in self.record.due]:
            self.out.ran.append(name)
            if self.check:
                continue
            for argv in self.actions[name]:
                code, out, err = self.run(list(argv))
                if code != 0:
                    said = " ".join((err.strip() or out.strip()).split())
                    raise HostFilesError(
                        f"the files are in place, but '{' '.join(argv)}' ({name}) failed and will be tried again by the next run: {said}"
                    )
            self.record.due.remove(name)
            self._remember()


def present(host: Host, files: t.Sequence[File], edits: t.Sequence[Edit], limits: t.Mapping[str, int]) -> Outcome:
    """Files, settings and permissions as wanted; what is no longer wanted gets back what it was."""
    host.validate(files)
    for path in [path for path in host.record.files if path not in {wanted.path for wanted in files}]:
        host.restore_file(path)
    for path in [path for path in host.record.edits if path not in {wanted.path for wanted in edits}]:
        host.restore_edit(path)
    for path in [path for path in host.record.modes if path not in limits]:
        host.restore_mode(path)
    for wanted in files:
        host.write(wanted)
    for change in edits:
        host.edit(change)
    for path, most in limits.items():
        host.tighten(path, most)
    host.follow_up()
    return host.out


def absent(host: Host) -> Outcome:
    """Everything as it was before the first run."""
    existed = os.path.exists(host.path)
    for path in list(host.record.files):
        host.restore_file(path)
    for path in list(host.record.edits):
        host.restore_edit(path)
    for path in list(host.record.modes):
        host.restore_mode(path)
    host.follow_up()
    if existed and not host.check:
        os.unlink(host.path)
    return host.out
