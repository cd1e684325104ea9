# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Releases of a model on one host: stage, activate, judge, roll back, prune.

What is on disk decides, in this order: the link ``current`` says what is active, a directory with a ``release.json`` under its final name is
a release, and ``state.json`` says the rest. Each change is a row of steps, each of them atomic, and after any of them a run may be killed;
:meth:`Releases._reconcile` brings the next run to where the row began or ended.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
import typing as t
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

FORMAT = 1
RELEASE_FILE = "release.json"
JOURNAL_FILE = "state.json"
LOCK_FILE = ".model_release.lock"
STATES = ("staged", "activated", "good", "bad", "rolled_back", "pruned")

_PARTIAL = ".partial"
_REMOVING = re.compile(r"\.(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\.removing")
_RECORD = re.compile(r"\.(?P<id>[A-Za-z0-9][A-Za-z0-9._-]*)\.staging\.json")
_NEW_FILE = ".model_release.new"
_NEW_LINK = ".model_release.link"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH = re.compile(r"([a-z0-9][a-z0-9-]*:)?[0-9a-f]{32,128}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_ACTIVATIONS = ("activated", "rolled_back", "found")
_MARKS = ("staged", "good", "bad")


class ReleaseError(Exception):
    """The wish cannot be met; the text says why."""


# -- what a release is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file of a release, by its size in bytes and the hash that the caller gave."""

    size: int
    hash: str


@dataclass(frozen=True)
class Binding:
    """What belongs together in a release.

    :ivar files: None when the caller did not name them.
    """

    id: str
    weights_root: str
    engine: str
    engine_version: str
    plan_id: str
    image_digest: str = ""
    configuration: t.Mapping[str, t.Any] = field(default_factory=dict)
    files: t.Mapping[str, File] | None = None

    @property
    def bytes(self) -> int:
        """Size of the files that were named."""
        return sum(one.size for one in (self.files or {}).values())

    def document(self) -> dict[str, t.Any]:
        """As JSON has it."""
        found = asdict(replace(self, files=None))
        found["files"] = None if self.files is None else {name: vars(one) for name, one in self.files.items()}
        return found


def check_id(name: str) -> str:
    """A release's name is one plain path component that this module gives no other meaning."""
    if not _ID.fullmatch(name) or name.endswith((_PARTIAL, ".removing", ".staging.json")):
        raise ReleaseError(
            "id: expected up to 128 letters, digits, dots, dashes and underscores that begin with a letter or a digit"
            f" and do not end in {_PARTIAL}, found {name!r}"
        )
    return name


def _hash(option: str, value: object) -> str:
    text = str(value).lower()
    if not _HASH.fullmatch(text):
        raise ReleaseError(
            f"{option}: expected a hash of 32 to 128 hexadecimal digits, with or without the name of its kind and a colon"
            f" before it, found {value!r}"
        )
    return text


def _word(option: str, value: object) -> str:
    text = str(value)
    if not text.strip() or text != text.strip() or len(text) > 256 or not text.isprintable():
        raise ReleaseError(f"{option}: expected up to 256 characters on one line, found {value!r}")
    return text


def _files(found: t.Mapping[str, t.Any]) -> dict[str, File]:
    files = {}
    for name, one in sorted(found.items()):
        pure = PurePosixPath(name)
        if not pure.parts or name.startswith("/") or ".." in pure.parts or str(pure) != name:
            raise ReleaseError(
                f"files: expected plain paths relative to the release, such as weights/00001.gguf, found {name!r}"
            )
        if name == RELEASE_FILE or any(str(parent) in found for parent in pure.parents):
            raise ReleaseError(f"files: {name!r} cannot be a file of the release, something else has that place")
        size = one.get("size") if isinstance(one, t.Mapping) else None
        if isinstance(size, str) and size.isdigit():
            size = int(size)
        if not isinstance(one, t.Mapping) or isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ReleaseError(
                f"files.{name}: expected a mapping with size, a whole number of bytes, and hash, found {one!r}"
            )
        files[name] = File(size, _hash(f"files.{name}.hash", one.get("hash", "")))
    return files


def binding(found: t.Mapping[str, t.Any]) -> Binding:
    """A binding from options or from JSON, with every value checked."""
    configuration = found.get("configuration") or {}
    if not isinstance(configuration, t.Mapping):
        raise ReleaseError(f"configuration: expected a mapping, found {type(configuration).__name__}")
    digest = str(found.get("image_digest") or "").lower()
    if digest and not _DIGEST.fullmatch(digest):
        raise ReleaseError(f"image_digest: expected sha256: and 64 hexadecimal digits, found {digest!r}")
    files = found.get("files") or None
    if files is not None and not isinstance(files, t.Mapping):
        raise ReleaseError(f"files: expected a mapping of names, found {type(files).__name__}")
    return Binding(
        id=check_id(str(found.get("id") or "")),
        weights_root=_hash("weights_root", found.get("weights_root") or ""),
        engine=_word("engine", found.get("engine") or ""),
        engine_version=_word("engine_version", found.get("engine_version") or ""),
        plan_id=_word("plan_id", found.get("plan_id") or ""),
        image_digest=digest,
        # What JSON makes of it is what a later run reads.
        configuration=json.loads(json.dumps(configuration, sort_keys=True)),
        files=None if files is None else _files(files),
    )


def differences(there: Binding, wanted: Binding) -> list[str]:
    """The fields in which two bindings differ, each with both values. Files that the caller does not name are not compared."""
    before, after = there.document(), wanted.document()
    if wanted.files is None:
        before.pop("files")
        after.pop("files")
    found: list[str] = []
    for name in sorted({*before, *after}):
        _compare(name, before.get(name), after.get(name), found)
    return found


def _compare(name: str, there: t.Any, wanted: t.Any, found: list[str]) -> None:
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in sorted({*there, *wanted}):
            if key not in there or key not in wanted:
                found.append(f"{name}.{key} is {'missing' if key not in there else 'there'}, and should")
                found[-1] += " be there" if key not in there else " be missing"
            else:
                _compare(f"{name}.{key}", there[key], wanted[key], found)
    elif json.dumps(there, sort_keys=True) != json.dumps(wanted, sort_keys=True):
        found.append(f"{name} is {_short(there)}, and should be {_short(wanted)}")


def _short(value: t.Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 120 else f"{text[:117]}..."


@dataclass(frozen=True)
class Release:
    """A release as its release.json has it."""

    binding: Binding
    bytes: int
    staged_at: str
    staged_by: str
    reason: str = ""

    def text(self) -> str:
        """The content of release.json."""
        found = {"format": FORMAT, **self.binding.document(), "bytes": self.bytes, "staged_at": self.staged_at}
        found.update(staged_by=self.staged_by, reason=self.reason)
        return json.dumps(found, indent=2, sort_keys=True) + "\n"


def _object(text: str) -> dict[str, t.Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    version = found.get("format")
    if version != FORMAT:
        raise ValueError(f"format {version!r} instead of {FORMAT}")
    return found


def parse_release(text: str) -> Release:
    """A release from the content of release.json."""
    try:
        found = _object(text)
        return Release(
            binding(found),
            int(found["bytes"]),
            seconds_text(seconds_of(found["staged_at"])),
            str(found["staged_by"]),
            str(found["reason"]),
        )
    except ReleaseError as exc:
        raise ValueError(str(exc)) from exc
    except (KeyError, TypeError) as exc:
        raise ValueError(f"{exc} is missing or of another type") from exc


def seconds_of(text: str) -> float:
    """Seconds since 1970 of a time as the journal writes it."""
    return datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.timezone.utc).timestamp()


def seconds_text(seconds: float) -> str:
    """A time as the journal writes it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime(_TIME)


# -- the journal --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happened to a release.

    :ivar origin: the release that was active before, for an activation.
    """

    at: str
    event: str
    id: str
    by: str = ""
    reason: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Mark:
    """What is thought of a release."""

    status: str = "staged"
    reason: str = ""
    activated_at: str = ""


@dataclass
class Journal:
    """What state.json keeps.

    :ivar pending: an activation that was begun.
    """

    current: str = ""
    previous: str = ""
    marks: dict[str, Mark] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)
    pending: Event | None = None

    def text(self) -> str:
        """The content of state.json."""
        found = {
            "format": FORMAT,
            "current": self.current,
            "previous": self.previous,
            "releases": {name: vars(mark) for name, mark in self.marks.items()},
            "history": [vars(event) for event in self.history],
            "pending": vars(self.pending) if self.pending else None,
        }
        return json.dumps(found, indent=2, sort_keys=True) + "\n"

    def settle(self) -> None:
        """The pending activation took place."""
        event = self.pending
        if event is None:
            return
        self.pending = None
        self.history.append(event)
        self.previous, self.current = event.origin, event.id
        self.marks[event.id] = replace(self.marks.get(event.id, Mark()), activated_at=event.at)

    def order(self) -> dict[str, int]:
        """When each release was last activated, as a position in the history. A rollback does not make a release newer."""
        found: dict[str, int] = {}
        plain: dict[str, int] = {}
        for at, event in enumerate(self.history):
            if event.event == "staged":
                # What had the name before was another release.
                found.pop(event.id, None)
                plain.pop(event.id, None)
            elif event.event in _ACTIVATIONS:
                found[event.id] = at
                if event.event == "activated":
                    plain[event.id] = at
        return {**found, **plain}

    def adopt(self, name: str, one: Release) -> None:
        """Take in a release that is on disk, with what the history knows of it."""
        begin = [
            at
            for at, event in enumerate(self.history)
            if (event.event, event.id, event.at) == ("staged", name, one.staged_at)
        ]
        if not begin:
            self.history.append(Event(one.staged_at, "staged", name, one.staged_by, one.reason))
        since = [event for event in self.history[begin[-1] if begin else -1 :] if event.id == name]
        verdict = [event for event in since if event.event in _MARKS][-1]
        active = [event.at for event in since if event.event in _ACTIVATIONS]
        reason = "" if verdict.event == "staged" else verdict.reason
        self.marks[name] = Mark(verdict.event, reason, active[-1] if active else "")

    def rolled_back(self) -> bool:
        """Whether the current release was reached by a rollback."""
        last = next((event for event in reversed(self.history) if event.event in _ACTIVATIONS), None)
        return last is not None and last.id == self.current and last.event == "rolled_back"


def parse_journal(text: str) -> Journal:
    """The journal from the content of state.json."""
    try:
        found = _object(text)
        marks = {check_id(name): _record(Mark, one) for name, one in found["releases"].items()}
        if any(mark.status not in _MARKS for mark in marks.values()):
            raise ValueError("a status that this module does not know")
        history = [_record(Event, one) for one in found["history"]]
        pending = None if found["pending"] is None else _record(Event, found["pending"])
        for at in [
            *(event.at for event in [*history, *([pending] if pending else [])]),
            *(mark.activated_at for mark in marks.values() if mark.activated_at),
        ]:
            seconds_of(at)
        current, previous = found["current"], found["previous"]
        for name in (current, previous):
            if name != "":
                check_id(name)
        return Journal(current, previous, marks, history, pending)
    except ReleaseError as exc:
        raise ValueError(str(exc)) from exc
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"{exc} is missing or of another type") from exc


_R = t.TypeVar("_R", Event, Mark)


def _record(kind: type[_R], found: t.Mapping[str, t.Any]) -> _R:
    if not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"expected texts, found {_short(found)}")
    return kind(**found)


# -- the file system ----------------------------------------------------------------------------------------------------


@dataclass
class Tree:
    """The files below a directory.

    :ivar bytes: size of all regular files, each counted once.
    :ivar changed: when anything in it was last changed, in seconds since 1970.
    :ivar problems: what must not be in a release.
    """

    files: dict[str, os.stat_result] = field(default_factory=dict)
    bytes: int = 0
    changed: float = 0.0
    problems: list[str] = field(default_factory=list)


def scan(path: Path) -> Tree:
    """Look at everything below a directory, without following a link."""
    tree = Tree(changed=path.lstat().st_ctime)
    seen: set[tuple[int, int]] = set()

    def fail(exc: OSError) -> None:
        # Somebody may be filling the directory.
        if not isinstance(exc, FileNotFoundError):
            raise exc

    for where, folders, names in os.walk(path, onerror=fail):
        for name in [*folders, *names]:
            place = Path(where) / name
            below = str(place.relative_to(path))
            try:
                found = place.lstat()
            except FileNotFoundError:
                continue
            # Not the time of change of the content: what copies a file may set that to anything.
            tree.changed = max(tree.changed, found.st_ctime)
            if stat.S_ISLNK(found.st_mode):
                problem = _link_problem(path, place)
                tree.problems += [f"{below}: {problem}"] if problem else []
            elif stat.S_ISREG(found.st_mode):
                tree.files[below] = found
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    tree.bytes += 0 if below == RELEASE_FILE else found.st_size
            elif not stat.S_ISDIR(found.st_mode):
                tree.problems.append(f"{below}: neither a file nor a directory")
    return tree


def _link_problem(top: Path, place: Path) -> str:
    target = os.readlink(place)
    real = Path(os.path.realpath(place))
    inside = Path(os.path.realpath(top))
    # The release gets another name, so a link that goes by the name of its directory leads out as well.
    lexical = os.path.normpath(os.path.join(os.path.relpath(place.parent, top), target))
    out = os.path.isabs(target) or lexical.split("/")[0] == ".."
    if out or (real != inside and inside not in real.parents):
        return f"a link that leads out of the release, to {target}"
    return "" if real.exists() else f"a link to {target}, which is not there"


def freed(paths: t.Iterable[Path]) -> list[int]:
    """What removing one path after the other frees. The content of a file is gone with the last of its names."""
    names: dict[tuple[int, int], int] = {}
    found = []
    for path in paths:
        total = 0
        for where, _folders, files in os.walk(path):
            for file in files:
                one = (Path(where) / file).lstat()
                key = (one.st_dev, one.st_ino)
                names[key] = names.get(key, 0) + 1
                total += one.st_size if names[key] == one.st_nlink and stat.S_ISREG(one.st_mode) else 0
        found.append(total)
    return found


def process_identity(pid: int) -> str:
    """What tells a running process from a later one with the same number; empty when there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return ""
    return "" if words[0] in ("Z", "X") else f"{boot}:{pid}:{words[19]}"


def mount_points() -> list[str]:
    """Where something is mounted."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    return [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4]) for line in lines]


def free_bytes(path: Path) -> int:
    """What a program may still write there."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _no_step(_name: str) -> None:
    """Nothing happens between two steps."""


@dataclass(frozen=True)
class Probes:
    """What a test puts something else in the place of.

    :ivar step: called after every step that changed the disk, with its name.
    """

    now: t.Callable[[], float] = time.time
    clock: t.Callable[[], float] = time.monotonic
    sleep: t.Callable[[float], None] = time.sleep
    free: t.Callable[[Path], int] = free_bytes
    mounts: t.Callable[[], list[str]] = mount_points
    process: t.Callable[[int], str] = process_identity
    step: t.Callable[[str], None] = _no_step


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# -- the wish and what came of it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What shall be. Sizes are bytes, times are seconds unless the name says otherwise."""

    root: str
    state: str
    id: str = ""
    binding: Binding | None = None
    source: str = ""
    finish: bool = True
    link: bool = False
    bytes: int = 0
    margin: int = 0
    stager_pid: int = 0
    force: bool = False
    soak: int = 0
    keep: int = 3
    partial_hours: int = 24
    by: str = ""
    reason: str = ""
    lock_seconds: int = 60


@dataclass
class Outcome:
    """What came of it, or would in check mode."""

    changed: bool = False
    before: str = ""
    after: str = ""
    warnings: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    result: dict[str, t.Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """Beside a directory that is being filled: for which release, since when, and by whom."""

    binding: Binding
    at: str
    by: str
    process: str = ""

    def text(self) -> str:
        """The content of the file."""
        found = {"format": FORMAT, "release": self.binding.document(), "at": self.at, "by": self.by}
        return json.dumps({**found, "process": self.process}, indent=2, sort_keys=True) + "\n"


def parse_record(text: str) -> Record:
    """A record from the content of its file."""
    try:
        found = _object(text)
        return Record(binding(found["release"]), str(found["at"]), str(found["by"]), str(found["process"]))
    except ReleaseError as exc:
        raise ValueError(str(exc)) from exc
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"{exc} is missing or of another type") from exc


@dataclass
class Removal:
    """One thing that state pruned removes."""

    kind: str
    name: str
    path: Path
    bytes: int
    freed: int = 0


class Releases:
    """The releases below one root. One object does one wish."""

    def __init__(self, wish: Wish, probes: Probes | None = None, check: bool = False) -> None:
        self.wish = wish
        self.probes = probes or Probes()
        self.check = check
        self.root = Path(os.path.realpath(wish.root))
        self.folder = self.root / "releases"
        self.begun = self.probes.now()
        self.outcome = Outcome()
        self.journal = Journal()
        self.damage = ""
        self.link = ""
        self.written = ""
        self.releases: dict[str, Release] = {}
        self.partials: dict[str, Tree] = {}
        self.records: dict[str, Record | None] = {}
        self.trash: dict[str, Path] = {}
        self.foreign: dict[str, str] = {}
        self.leftovers: list[Path] = []

    def run(self) -> Outcome:
        """Meet the wish, or say what would be done."""
        self._check_wish()
        self._check_places()
        if self.wish.state == "staged":
            self._make_places()
        with self._locked():
            self._load()
            self.outcome.before = self._text()
            self._reconcile()
            action: dict[str, t.Callable[[], None]] = {
                "staged": self._stage,
                "activated": self._activate,
                "good": self._good,
                "bad": self._bad,
                "rolled_back": self._roll_back,
                "pruned": self._prune,
            }
            action[self.wish.state]()
            # Removing may take a while, and an activation does not wait for it.
            self._finish_removals()
            self.outcome.after = self._text()
            self._report()
        return self.outcome

    # -- what is there

    def _check_wish(self) -> None:
        wish = self.wish
        if not os.path.isabs(wish.root) or self.root == Path("/"):
            raise ReleaseError(f"root: expected an absolute path below /, found {wish.root!r}")
        if wish.id:
            check_id(wish.id)
        for option, value, least in (
            ("bytes", wish.bytes, 0),
            ("margin_bytes", wish.margin, 0),
            ("stager_pid", wish.stager_pid, 0),
            ("soak_seconds", wish.soak, 0),
            ("keep", wish.keep, 1),
            ("partial_hours", wish.partial_hours, 0),
            ("lock_seconds", wish.lock_seconds, 0),
        ):
            if value < least:
                raise ReleaseError(f"{option}: expected a whole number of at least {least}, found {value}")
        if wish.state == "bad" and not wish.reason.strip():
            raise ReleaseError("reason: expected words that say why the release is bad, found none")
        files = wish.binding.files if wish.binding else None
        if wish.link and wish.state == "staged" and files is None:
            raise ReleaseError("link_from: identical needs option files with size and hash of each file, found none")
        if files is not None and wish.binding and wish.bytes and wish.bytes != wish.binding.bytes:
            raise ReleaseError(f"bytes: expected {wish.binding.bytes}, the sum of files, found {wish.bytes}")

    def _check_places(self) -> None:
        """Nothing that this module goes through leads elsewhere."""
        for path in (self.root, self.folder):
            if path.is_symlink() or (os.path.lexists(path) and not path.is_dir()):
                raise ReleaseError(f"{path}: expected a directory, found {_kind(path)}")
        journal = self.root / JOURNAL_FILE
        if os.path.lexists(journal) and (journal.is_symlink() or not journal.is_file()):
            raise ReleaseError(f"{journal}: expected a file, found {_kind(journal)}")
        if self.folder.is_dir() and self.folder.stat().st_dev != self.root.stat().st_dev:
            raise ReleaseError(f"{self.folder}: expected a directory on the file system of {self.root}, found another")
        self._read_link()

    def _read_link(self) -> None:
        path = self.root / "current"
        self.link = ""
        if not os.path.lexists(path):
            return
        if not path.is_symlink():
            raise ReleaseError(f"{path}: expected a link to releases/<id>, found {_kind(path)}")
        target = os.readlink(path)
        for prefix in ("releases/", f"{self.folder}/", f"{self.wish.root.rstrip('/')}/releases/"):
            name = target[len(prefix) :] if target.startswith(prefix) else ""
            if _ID.fullmatch(name) and not name.endswith(_PARTIAL):
                self.link = name
                break
        if not self.link or (self.folder / self.link).is_symlink():
            raise ReleaseError(
                f"{path}: expected a link to releases/<id>, found one to {target}, which is no place for a release in"
                f" {self.folder}; nothing was changed"
            )

    def _make_places(self) -> None:
        if self.check:
            return
        for path in (*reversed(self.root.parents), self.root, self.folder):
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                path.chmod(0o755)
                self.outcome.changed = True
                self._step(f"made {path.name}")

    @contextlib.contextmanager
    def _locked(self) -> t.Iterator[None]:
        """One at a time. In check mode nothing is changed, a lock file neither."""
        if self.check or not self.root.is_dir():
            yield
            return
        path = self.root / LOCK_FILE
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            end = self.probes.clock() + self.wish.lock_seconds
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as exc:
                    if self.probes.clock() >= end:
                        raise ReleaseError(
                            f"{path}: another run works on these releases and did not end within"
                            f" {self.wish.lock_seconds} s (lock_seconds)"
                        ) from exc
                    self.probes.sleep(0.2)
            # What the other run did counts.
            self._read_link()
            yield
        finally:
            os.close(handle)

    def _load(self) -> None:
        for name in sorted(os.listdir(self.folder)) if self.folder.is_dir() else []:
            self._sort_in(name, self.folder / name)
        path = self.root / JOURNAL_FILE
        try:
            self.written = path.read_bytes().decode("utf-8", "replace")
            self.journal = parse_journal(self.written)
        except FileNotFoundError:
            if self.releases or self.link:
                self.damage = "no file"
        except ValueError as exc:
            self.damage = str(exc)
            version = re.search(r'"format"\s*:\s*(\d+)', self.written)
            if version and int(version[1]) > FORMAT:
                raise ReleaseError(
                    f"{path}: expected format {FORMAT}, found {version[1]}, which a later version of the collection wrote"
                ) from exc

    def _sort_in(self, name: str, path: Path) -> None:
        real = path.is_dir() and not path.is_symlink()
        removing, record = _REMOVING.fullmatch(name), _RECORD.fullmatch(name)
        stem = name[: -len(_PARTIAL)] if name.endswith(_PARTIAL) else ""
        if name in (_NEW_FILE, _NEW_LINK) and not real:
            self.leftovers.append(path)
        elif removing and real:
            self.trash[removing["name"]] = path
        elif record and path.is_file() and not path.is_symlink():
            try:
                self.records[record["id"]] = parse_record(path.read_text("utf-8"))
            except ValueError:
                self.records[record["id"]] = None
        elif stem and real and _ID.fullmatch(stem):
            self.partials[stem] = scan(path)
        elif real and _ID.fullmatch(name):
            try:
                found = parse_release(_read_plain(path / RELEASE_FILE))
                if found.binding.id != name:
                    raise ValueError(f"it is of release {found.binding.id}")
                self.releases[name] = found
            except (OSError, ValueError) as exc:
                self.foreign[name] = f"a directory without a {RELEASE_FILE} of this module ({_why(exc)})"
        else:
            self.foreign[name] = _kind(path)

    def _reconcile(self) -> None:
        """Finish or undo what a killed run began, and take over what others did."""
        said = self.outcome.recovered
        journal = self.journal
        if self.damage:
            self._rebuild()
        for name, one in self.releases.items():
            if name not in journal.marks:
                journal.adopt(name, one)
                said.append(f"took release {name} into the journal")
        event = journal.pending
        if event is not None and self.link == event.id:
            journal.settle()
            said.append(f"finished the activation of {event.id} that began at {event.at}")
        elif event is not None:
            journal.pending = None
            said.append(f"dropped the activation of {event.id} that began at {event.at} and changed nothing")
        if self.link != journal.current:
            self._find_current()
        for name in sorted(set(journal.marks) - set(self.releases) - set(self.foreign)):
            del journal.marks[name]
            ours = name in self.trash
            journal.history.append(Event(self._now(), "pruned" if ours else "lost", name, self.wish.by))
            said.append(f"release {name} is no more, and left the journal")
            if not ours:
                self.outcome.warnings.append(f"{self.folder / name}: expected release {name}, found nothing")
        if journal.previous and journal.previous not in {*self.releases, *self.foreign}:
            journal.previous = ""
        if self.link and self.link not in {*self.releases, *self.foreign}:
            self.outcome.warnings.append(
                f"{self.root / 'current'}: leads to {self.folder / self.link}, which is not there"
            )
        self._tidy()
        if self.damage and not self.check:
            self._keep_damaged()
        self.damage = ""
        self._save()

    def _tidy(self) -> None:
        """Remove the small things that a killed run left."""
        gone = [(path, f"removed {path.name}") for path in self.leftovers]
        for name in sorted(set(self.records) - set(self.partials)):
            gone.append((self._record_path(name), f"dropped the registration of {name}, of which nothing is there"))
            del self.records[name]
        for path, words in gone:
            self.outcome.changed = True
            self.outcome.recovered.append(words)
            if not self.check:
                path.unlink()
                self._step(f"removed {path.name}")

    def _rebuild(self) -> None:
        """What of the journal can be had from what else is there."""
        path = self.root / JOURNAL_FILE
        names = ", ".join(sorted(self.releases)) or "none"
        kept = "" if self.damage == "no file" else f" The damaged file is kept as {self._damaged_path().name}."
        self.outcome.warnings.append(
            f"{path}: expected the journal as this module writes it, found {self.damage}. It is rebuilt from the releases"
            f" ({names}) and the link current ({self.link or 'none'}). Lost are the marks good and bad, which release was"
            " active before, and when, by whom and why releases were activated; until releases are marked good again"
            f" there is none to roll back to.{kept}"
        )
        self.outcome.recovered.append(f"rebuilt {JOURNAL_FILE}")

    def _find_current(self) -> None:
        """Somebody else moved the link, or the journal is new."""
        journal = self.journal
        if journal.current and not self.damage:
            self.outcome.warnings.append(
                f"{self.root / 'current'}: expected a link to releases/{journal.current}, as {JOURNAL_FILE} says, found"
                f" {f'one to releases/{self.link}' if self.link else 'none'}; the link counts"
            )
        self.outcome.recovered.append(f"took current, {self.link or 'none'}, into the journal")
        if not self.link:
            journal.previous, journal.current = journal.current, ""
            return
        at = seconds_text((self.root / "current").lstat().st_mtime)
        journal.pending = Event(at, "found", self.link, reason="the link was there", origin=journal.current)
        journal.settle()

    # -- states

    def _stage(self) -> None:
        wish, wanted = self.wish, self.wish.binding
        if wanted is None:
            raise ReleaseError("state: staged needs weights_root, engine, engine_version and plan_id, found none")
        name = wanted.id
        self.outcome.result.update(partial="", linked=[], missing=[])
        if name in self.releases:
            differs = differences(self.releases[name].binding, wanted)
            if differs:
                raise ReleaseError(
                    f"id: release {name} exists with other content, and a release is never changed: {'; '.join(differs)}."
                    " Take another id"
                )
            return
        if name in self.foreign:
            raise ReleaseError(f"{self.folder / name}: expected nothing or release {name}, found {self.foreign[name]}")
        self._finish_removals()
        record = self._wanted_record(wanted)
        # With the files that were named when the directory was registered.
        wanted = record.binding
        tree, source = self._filled(wanted)
        links = self._links(wanted, tree) if wish.link else {}
        missing = [
            file
            for file, one in (wanted.files or {}).items()
            if file not in links and (file not in tree.files or tree.files[file].st_size != one.size)
        ]
        if tree.problems:
            raise ReleaseError(
                f"{self._partial_path(name)}: expected files and directories, found {_some(tree.problems)}"
            )
        self._check_room(wanted, tree, links)
        assumed = self.check and wish.finish and source is None and name not in self.partials
        problems = self._incomplete(wanted, tree, links, source) if wish.finish and not assumed else []
        if problems:
            found = (
                f"{source or self._partial_path(name)}: expected the complete release {name}, found {_some(problems)}"
            )
            if not self.check or source is not None:
                raise ReleaseError(found)
            self.outcome.warnings.append(f"{found}; taken as complete in check mode")
            assumed = True
        self._register(wanted, record, tree, source, links)
        if not wish.finish:
            self.outcome.result.update(missing=missing)
            return
        self._complete(wanted, tree, assumed)

    def _wanted_record(self, wanted: Binding) -> Record:
        """What the registration shall say; refused while somebody fills the directory for something else."""
        wish, name = self.wish, wanted.id
        there = self.records.get(name)
        if there is not None:
            differs = differences(there.binding, wanted)
            if wanted.files is None and there.binding.files is not None:
                wanted = replace(wanted, files=there.binding.files)
            if differs and not wish.force:
                raise ReleaseError(
                    f"id: {name} is being staged with other content: {'; '.join(differs)}."
                    " Take another id, or option force for the new content"
                )
        process = there.process if there else ""
        if wish.stager_pid:
            process = self.probes.process(wish.stager_pid)
            if not process:
                raise ReleaseError(
                    f"stager_pid: expected a running process, found none with the number {wish.stager_pid}"
                )
        at, by = (there.at, there.by) if there else (self._now(), wish.by)
        record = Record(wanted, at, by, process)
        alive = self._filler(name)
        if alive and (wish.finish or (there and there.binding != record.binding)):
            raise ReleaseError(
                f"{self._partial_path(name)}: expected a directory that is filled, found that {alive} fills it"
            )
        return record

    def _filled(self, wanted: Binding) -> tuple[Tree, Path | None]:
        """What is there of the release, and the directory that is to be taken over."""
        name, source = wanted.id, Path(self.wish.source) if self.wish.source else None
        there = self.partials.get(name)
        if source is None:
            return there or Tree(), None
        if not source.is_absolute() or ".." in source.parts:
            raise ReleaseError(f"source: expected an absolute path, found {self.wish.source!r}")
        if not os.path.lexists(source):
            if there is not None or self.check:
                # A run that was killed after the move, or a task before this one that does nothing in check mode.
                return there or Tree(), None
            raise ReleaseError(f"source: expected a directory, found nothing at {source}")
        if there is not None:
            raise ReleaseError(
                f"source: expected no {self._partial_path(name)} beside it, found both; remove the one that is not wanted"
            )
        real = Path(os.path.realpath(source))
        if source.is_symlink() or not source.is_dir():
            raise ReleaseError(f"source: expected a directory, found {_kind(source)} at {source}")
        if real == self.root or real in self.root.parents or self.folder in (real, *real.parents):
            raise ReleaseError(
                f"source: expected a directory outside of {self.folder} that does not hold it, found {source}"
            )
        place = self.folder if self.folder.is_dir() else _parent_that_is(self.folder)
        if source.stat().st_dev != place.stat().st_dev:
            raise ReleaseError(
                f"source: expected a directory on the file system of {self.root}, found {source} on another"
            )
        self._refuse_mounts(real)
        return scan(source), source

    def _links(self, wanted: Binding, tree: Tree) -> dict[str, Path]:
        """For each file that is not there, one with the same size and hash in a release that nobody called bad."""
        known: dict[File, Path] = {}
        for name, one in self.releases.items():
            if self.journal.marks[name].status == "bad":
                continue
            for file, what in (one.binding.files or {}).items():
                path = self.folder / name / file
                if what not in known and _is_plain(path, self.folder) and path.lstat().st_size == what.size:
                    known[what] = path
        files = wanted.files or {}
        return {name: known[one] for name, one in files.items() if name not in tree.files and one in known}

    def _check_room(self, wanted: Binding, tree: Tree, links: t.Mapping[str, Path]) -> None:
        files = wanted.files or {}
        needed = (self.wish.bytes or wanted.bytes) - tree.bytes - sum(files[name].size for name in links)
        if needed <= 0 or self.wish.finish:
            return
        free = self.probes.free(_parent_that_is(self.folder))
        if free < needed + self.wish.margin:
            raise ReleaseError(
                f"bytes: release {wanted.id} needs {needed} more bytes at {self.root}, with margin_bytes expected"
                f" {needed + self.wish.margin} bytes free, found {free}"
            )

    def _incomplete(self, wanted: Binding, tree: Tree, links: t.Mapping[str, Path], source: Path | None) -> list[str]:
        """What is missing of the release, or too much."""
        place = source or self._partial_path(wanted.id)
        there = {name: one for name, one in tree.files.items() if name != RELEASE_FILE}
        problems = []
        if RELEASE_FILE in tree.files:
            try:
                found = parse_release(_read_plain(place / RELEASE_FILE))
                problems += differences(found.binding, wanted)
            except ValueError as exc:
                problems.append(f"{RELEASE_FILE} is not of this module ({exc})")
        if wanted.files is not None:
            problems += [f"{name} is missing" for name in wanted.files if name not in there and name not in links]
            problems += [
                f"{name} has {there[name].st_size} bytes instead of {one.size}"
                for name, one in wanted.files.items()
                if name in there and there[name].st_size != one.size
            ]
            problems += [f"{name} is not one of files" for name in sorted(set(there) - set(wanted.files))]
        elif tree.bytes < self.wish.bytes:
            problems.append(f"{tree.bytes} bytes instead of {self.wish.bytes}")
        elif not there:
            problems.append("no file")
        return problems

    def _register(
        self, wanted: Binding, record: Record, tree: Tree, source: Path | None, links: t.Mapping[str, Path]
    ) -> None:
        """From here on the next run knows what is to become of the directory."""
        name, partial = wanted.id, self._partial_path(wanted.id)
        if self.records.get(name) != record:
            self.records[name] = record
            self._write(self._record_path(name), record.text())
        if name not in self.partials:
            self.outcome.changed = True
            self.partials[name] = tree
            if not self.check:
                if source is None:
                    partial.mkdir()
                    partial.chmod(0o755)
                else:
                    self._take_over(source, partial)
                _fsync(self.folder)
                self._step("made the directory")
        counted = {(one.st_dev, one.st_ino) for one in tree.files.values()}
        for file, path in links.items():
            self.outcome.changed = True
            if not self.check:
                self._link(path, partial, file)
                self._step(f"linked {file}")
            one = path.lstat()
            tree.bytes += 0 if (one.st_dev, one.st_ino) in counted else one.st_size
            counted.add((one.st_dev, one.st_ino))
        self.outcome.result.update(partial=str(partial), linked=sorted(links))

    def _take_over(self, source: Path, partial: Path) -> None:
        try:
            source.rename(partial)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            # One file system that is mounted in two places.
            raise ReleaseError(
                f"source: expected a directory that can be moved to {self.folder}, found {source} in another mount"
            ) from exc
        _fsync(source.parent)

    @staticmethod
    def _link(path: Path, top: Path, file: str) -> None:
        place = top / file
        for parent in reversed([one for one in place.parents if top in one.parents]):
            if not parent.is_dir():
                parent.mkdir()
                parent.chmod(0o755)
        try:
            os.link(path, place, follow_symlinks=False)
        except OSError as exc:
            if exc.errno != errno.EMLINK:
                raise
            raise ReleaseError(
                f"{place}: cannot be a further name of {path}, which has {path.lstat().st_nlink}; use link_from: none"
            ) from exc

    def _complete(self, wanted: Binding, tree: Tree, assumed: bool) -> None:
        """Everything is there: make it last, and give it its name."""
        wish, name = self.wish, wanted.id
        partial = self._partial_path(name)
        size = (wish.bytes or wanted.bytes) if assumed else tree.bytes
        release = Release(wanted, size, self._now(), wish.by, wish.reason)
        self.outcome.changed = True
        if not self.check:
            self._sync_tree(partial)
            self._write(partial / RELEASE_FILE, release.text())
            partial.rename(self.folder / name)
            _fsync(self.folder)
            self._step("gave the release its name")
        self.releases[name] = release
        del self.partials[name]
        self.journal.marks[name] = Mark()
        self.journal.history.append(Event(release.staged_at, "staged", name, wish.by, wish.reason))
        self._save()
        self.records.pop(name, None)
        if not self.check:
            self._record_path(name).unlink()
            self._step("removed the registration")
        self.outcome.result.update(partial="")

    def _sync_tree(self, top: Path) -> None:
        for where, _folders, names in os.walk(top, topdown=False):
            for name in names:
                path = Path(where) / name
                if not path.is_symlink():
                    _fsync(path)
            _fsync(Path(where))
        self._step("synced the files")

    def _activate(self) -> None:
        wish, name = self.wish, self.wish.id
        if not name:
            raise ReleaseError("id: expected the release to activate, found none")
        mark = self.journal.marks.get(name, Mark())
        if name not in self.releases:
            here = name in self.foreign and _is_directory(self.folder / name)
            if not here and self.check and name not in self.foreign:
                self.outcome.warnings.append(f"{self.folder / name}: not there yet; taken as staged in check mode")
            elif not here or not wish.force:
                found = self.foreign.get(name, "one that is being staged" if name in self.partials else "nothing")
                raise ReleaseError(
                    f"id: expected a staged release, found {found} for {name}. There are {self._there()}"
                )
        if mark.status == "bad" and not wish.force:
            raise ReleaseError(
                f"id: expected a release that is not bad, found {name}, which is bad: {mark.reason}. force activates it"
            )
        if self.link != name:
            self._point(name, "activated")

    def _point(self, name: str, event: str) -> None:
        """Move the link. The journal says so before, and what came of it after."""
        wish = self.wish
        self.outcome.changed = True
        origin = self.link if self.link in {*self.releases, *self.foreign} else ""
        self.journal.pending = Event(self._now(), event, name, wish.by, wish.reason, origin)
        self._save()
        if not self.check:
            new = self.folder / _NEW_LINK
            with contextlib.suppress(FileNotFoundError):
                new.unlink()
            new.symlink_to(f"releases/{name}")
            self._step("made the new link")
            new.replace(self.root / "current")
            _fsync(self.root)
            self._step("moved the link")
        self.link = name
        self.journal.settle()
        self._save()

    def _good(self) -> None:
        wish, name = self.wish, self.wish.id
        mark = self._known(name)
        if mark.status == "good":
            return
        if mark.status == "bad" and not wish.force:
            raise ReleaseError(
                f"id: expected a release that is not bad, found {name}, which is bad: {mark.reason}. force marks it good"
            )
        if name != self.link:
            raise ReleaseError(
                f"id: expected the active release, {self.link or 'which there is none of'}, found {name}"
            )
        now = self.probes.now()
        active = max(0, int(now - (seconds_of(mark.activated_at) if mark.activated_at else now)))
        if active < wish.soak:
            raise ReleaseError(
                f"soak_seconds: expected {name} to be active for {wish.soak} s, found {active} s;"
                f" {wish.soak - active} s are left"
            )
        self._mark(name, "good", wish.reason)

    def _bad(self) -> None:
        mark = self._known(self.wish.id)
        if (mark.status, mark.reason) != ("bad", self.wish.reason):
            self._mark(self.wish.id, "bad", self.wish.reason)

    def _known(self, name: str) -> Mark:
        if not name or name not in self.releases:
            raise ReleaseError(f"id: expected a staged release, found {name or 'none'}. There are {self._there()}")
        return self.journal.marks[name]

    def _mark(self, name: str, status: str, reason: str) -> None:
        self.outcome.changed = True
        self.journal.marks[name] = replace(self.journal.marks[name], status=status, reason=reason)
        self.journal.history.append(Event(self._now(), status, name, self.wish.by, reason))
        self._save()

    def _roll_back(self) -> None:
        journal, leave, now = self.journal, self.wish.id, self.link
        marks = journal.marks
        self.outcome.result.update({"from": now, "to": now})
        if leave and leave != now:
            if leave not in marks and all(event.id != leave for event in journal.history):
                raise ReleaseError(f"id: expected the release to leave, found {leave}. There are {self._there()}")
            return
        if not leave and journal.rolled_back() and marks.get(now, Mark()).status != "bad":
            # A second run of the same play does not go back any further.
            return
        order = journal.order()
        before = order.get(now, len(journal.history))
        good = [
            name
            for name in sorted(order, key=lambda one: order[one])
            if name != now and order[name] < before and name in self.releases and marks[name].status == "good"
        ]
        if not now or not good:
            raise ReleaseError(
                f"rolled_back: expected a good release from before {now or 'the active one, which there is none of'},"
                f" found none. There are {self._there()}. Activate one by its id"
            )
        self.outcome.result["to"] = good[-1]
        self._point(good[-1], "rolled_back")

    def _prune(self) -> None:
        wish, journal = self.wish, self.journal
        order = journal.order()
        good = [name for name in self.releases if journal.marks[name].status == "good"]
        good.sort(key=lambda name: order.get(name, -1), reverse=True)
        stay = {*good[: wish.keep], self.link, journal.previous}
        # One that was never active waits for its activation.
        stay |= {name for name in self.releases if name not in order and journal.marks[name].status == "staged"}
        removals = [Removal("leftover", name, path, scan(path).bytes) for name, path in sorted(self.trash.items())]
        removals += [
            Removal("partial", name, self._partial_path(name), tree.bytes)
            for name, tree in sorted(self.partials.items())
            if self.probes.now() - tree.changed >= wish.partial_hours * 3600 and not self._filler(name)
        ]
        removals += [
            Removal("release", name, self.folder / name, self.releases[name].bytes)
            for name in sorted(self.releases, key=lambda one: (order.get(one, -1), one))
            if name not in stay
        ]
        for one in removals:
            self._refuse_mounts(one.path)
        for one, size in zip(removals, freed(one.path for one in removals)):
            one.freed = size
        # What an earlier run put away has the name that one of these may need.
        self._finish_removals()
        for one in removals:
            if one.kind != "leftover":
                self.outcome.changed = True
                self._put_away(one)
        self._finish_removals()
        self.outcome.result.update(
            removed=[
                {"kind": one.kind, "id": one.name, "path": str(one.path), "bytes": one.bytes, "freed_bytes": one.freed}
                for one in removals
            ],
            freed_bytes=sum(one.freed for one in removals),
        )

    def _put_away(self, one: Removal) -> None:
        """Under another name it is no release any more, and whoever comes next may remove it."""
        place = self.folder / f".{one.path.name}.removing"
        if not self.check:
            if os.path.lexists(place):
                raise ReleaseError(f"{place}: expected nothing, found {_kind(place)}")
            one.path.rename(place)
            _fsync(self.folder)
            self._step(f"put {one.path.name} away")
        self.trash[one.path.name] = place
        if one.kind == "partial":
            del self.partials[one.name]
            if self.records.pop(one.name, None) is not None and not self.check:
                self._record_path(one.name).unlink()
                self._step(f"removed the registration of {one.name}")
            return
        del self.releases[one.name]
        del self.journal.marks[one.name]
        self.journal.history.append(Event(self._now(), "pruned", one.name, self.wish.by, self.wish.reason))
        self._save()

    def _finish_removals(self) -> None:
        """Remove what was put away. Never more than that."""
        for name, path in sorted(self.trash.items()):
            try:
                self._refuse_mounts(path)
                if not self.check:
                    shutil.rmtree(path)
                    self._step(f"removed {name}")
            except (OSError, ReleaseError) as exc:
                if self.wish.state == "pruned":
                    raise
                # What was wished has nothing to do with it.
                self.outcome.warnings.append(f"{path}: cannot be removed: {exc}")
                continue
            self.outcome.changed = True
            del self.trash[name]
            if self.wish.state != "pruned":
                self.outcome.recovered.append(f"finished the removal of {name}")

    # -- parts

    def _now(self) -> str:
        return seconds_text(self.probes.now())

    def _step(self, name: str) -> None:
        self.probes.step(name)

    def _partial_path(self, name: str) -> Path:
        return self.folder / f"{name}{_PARTIAL}"

    def _record_path(self, name: str) -> Path:
        return self.folder / f".{name}.staging.json"

    def _damaged_path(self) -> Path:
        path = self.root / JOURNAL_FILE
        for there in sorted(self.root.glob(f"{JOURNAL_FILE}.damaged-*")):
            if path.exists() and there.samefile(path):
                return there
        return self.root / f"{JOURNAL_FILE}.damaged-{re.sub('[:-]', '', seconds_text(self.begun))}"

    def _keep_damaged(self) -> None:
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.link(self.root / JOURNAL_FILE, self._damaged_path(), follow_symlinks=False)
            self._step("kept the damaged journal")

    def _save(self) -> None:
        text = self.journal.text()
        if text == self.written or (not self.written and self.journal == Journal()):
            return
        self._write(self.root / JOURNAL_FILE, text)
        self.written = text

    def _write(self, path: Path, text: str) -> None:
        """Put a file in place as a whole. It is made in the directory of the releases, where this module may remove things."""
        self.outcome.changed = True
        if self.check:
            return
        self._make_places()
        new = self.folder / _NEW_FILE
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        self._step(f"made the new {path.name}")
        new.replace(path)
        _fsync(path.parent)
        self._step(f"wrote {path.name}")

    def _filler(self, name: str) -> str:
        """Who fills the directory of a release that is being staged, as far as anybody said so; empty when nobody does."""
        record = self.records.get(name)
        if record and record.process:
            number = int(record.process.split(":")[1])
            if self.probes.process(number) == record.process:
                return f"process {number}"
        try:
            handle = os.open(self._record_path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"a process that holds a lock on {self._record_path(name).name}"
        finally:
            os.close(handle)
        return ""

    def _refuse_mounts(self, path: Path) -> None:
        """What is mounted in a directory is not a part of it."""
        for place in self.probes.mounts():
            if place == str(path) or place.startswith(f"{path}/"):
                raise ReleaseError(
                    f"{path}: expected a directory in which nothing is mounted, found a mount at {place}"
                )

    def _status(self, name: str) -> str:
        mark = self.journal.marks.get(name, Mark())
        return "active" if mark.status == "staged" and name == self.link else mark.status

    def _there(self) -> str:
        """What there is, for a message."""
        order = self.journal.order()
        found = [
            f"{name} ({self._status(name)}{'' if name in order else ', never active'}"
            f"{', current' if name == self.link else ''})"
            for name in sorted(self.releases)
        ]
        found += [f"{name} (being staged)" for name in sorted(self.partials)]
        found += [f"{name} (no release: {why})" for name, why in sorted(self.foreign.items())]
        return ", ".join(found) or "no releases"

    def _text(self) -> str:
        """What there is, for a diff."""
        lines = [f"{JOURNAL_FILE}: cannot be used"] if self.damage else []
        lines += [f"current: {self.link or 'none'}", f"previous: {self.journal.previous or 'none'}"]
        for name, one in sorted(self.releases.items()):
            mark = self.journal.marks.get(name, Mark())
            why = f" ({mark.reason})" if mark.status == "bad" else ""
            lines.append(f"release {name}: {self._status(name)}{why}, {one.bytes} bytes")
        for name, tree in sorted(self.partials.items()):
            known = "registered" if self.records.get(name) else "not registered"
            lines.append(f"partial {name}: {known}, {tree.bytes} bytes")
        lines += [f"leftover {name}" for name in sorted(self.trash)]
        return "".join(f"{line}\n" for line in lines)

    def _report(self) -> None:
        """The same facts for every state."""
        outcome = self.outcome
        if self.foreign:
            outcome.result["foreign"] = [f"{name}: {why}" for name, why in sorted(self.foreign.items())]
        outcome.result.setdefault("foreign", [])
        outcome.result.update(
            current=self.link,
            previous=self.journal.previous,
            recovered=outcome.recovered,
            releases=[self._described(name, one) for name, one in sorted(self.releases.items())],
            staging=[
                {
                    "id": name,
                    "path": str(self._partial_path(name)),
                    "bytes": tree.bytes,
                    "filled_by": self._filler(name),
                }
                for name, tree in sorted(self.partials.items())
            ],
        )

    def _described(self, name: str, one: Release) -> dict[str, t.Any]:
        mark = self.journal.marks.get(name, Mark())
        return {
            "id": name,
            "path": str(self.folder / name),
            "status": self._status(name),
            "active": name == self.link,
            "reason": mark.reason,
            "activated_at": mark.activated_at,
            "staged_at": one.staged_at,
            "bytes": one.bytes,
            "weights_root": one.binding.weights_root,
            "engine": one.binding.engine,
            "engine_version": one.binding.engine_version,
            "image_digest": one.binding.image_digest,
            "configuration": dict(one.binding.configuration),
            "plan_id": one.binding.plan_id,
        }


def _read_plain(path: Path) -> str:
    """The text of a file that is no link."""
    if path.is_symlink() or not path.is_file():
        raise ValueError(_kind(path))
    return path.read_text("utf-8")


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_plain(path: Path, top: Path) -> bool:
    """A file that no link on the way from the top leads to."""
    if path.is_symlink() or not path.is_file():
        return False
    return all(not parent.is_symlink() for parent in path.parents if top in parent.parents)


def _parent_that_is(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.is_dir())


def _kind(path: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return "nothing"
    if stat.S_ISLNK(mode):
        return f"a link to {os.readlink(path)}"
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a file" if stat.S_ISREG(mode) else "neither a file nor a directory"


def _why(exc: Exception) -> str:
    return (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)


def _some(problems: t.Sequence[str]) -> str:
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
