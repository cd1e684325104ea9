# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""A directory of large files as hash trees: make the manifest, prove every piece, replace only the pieces that are damaged.

The tree of a file is that of BitTorrent v2 (BEP 52): SHA-256 of each 16 KiB block, the level filled up with zeros to a power of two, pairs hashed up to
the root. A piece is a subtree. The set root is SHA-256 over the names, sizes and roots of all files, so that one value stands for the whole directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import stat
import threading
import time
import typing as t
from dataclasses import dataclass, field

BLOCK = 16384
MIB = 1 << 20
MAX_PIECE = 64 * MIB
FORMAT = "gpufleet.merkle_manifest"
STATE_FORMAT = "gpufleet.merkle_state"
CACHE_FORMAT = "gpufleet.merkle_cache"
VERSION = 1
PARTIAL = ".partial"
SAVE_EVERY = 5.0  # seconds between two writes of the state file
_WIDTH = 32
_ZERO = bytes(_WIDTH)
_CHUNK = MIB
_SET_PREFIX = b"gpufleet.merkle_manifest set 1\n"
_SHOWN = 5
_LINES = 20
_EMPTY = hashlib.sha256()


class MerkleError(Exception):
    """The wish cannot be met; the text says why."""


# The tree


def _parent(pair: bytes) -> bytes:
    digest = _EMPTY.copy()
    digest.update(pair)
    return digest.digest()


def _fold(level: bytes, pad: bytes, height: int) -> bytes:
    """Hash a level of the tree upwards; what is missing on the right is the pad of that level."""
    for _step in range(height):
        if len(level) % (2 * _WIDTH):
            level += pad
        level = b"".join([_parent(level[at : at + 2 * _WIDTH]) for at in range(0, len(level), 2 * _WIDTH)])
        pad = _parent(pad + pad)
    return level


def _leaves(data: memoryview) -> bytes:
    found = []
    for at in range(0, len(data), BLOCK):
        digest = _EMPTY.copy()
        digest.update(data[at : at + BLOCK])
        found.append(digest.digest())
    return b"".join(found)


def _height(count: int) -> int:
    """Levels above that many nodes."""
    return (count - 1).bit_length()


def piece_count(size: int, piece_length: int) -> int:
    """How many pieces a file of that size has."""
    return -(-size // piece_length)


def _piece_height(size: int, piece_length: int) -> int:
    # A file of one piece is a tree of its own, as high as it must be. All pieces of a larger file are equally high, the last too.
    return _height(-(-size // BLOCK)) if size <= piece_length else _height(piece_length // BLOCK)


def piece_hash(data: bytes, size: int, piece_length: int) -> bytes:
    """Hash of one piece of a file of that size."""
    return _fold(_leaves(memoryview(data)), _ZERO, _piece_height(size, piece_length))


def root_of(layer: bytes, size: int, piece_length: int) -> bytes:
    """Root of a file from the hashes of its pieces; an empty file has none, and counts as zeros."""
    if not size:
        return _ZERO
    if size <= piece_length:
        return layer
    pad = _ZERO
    for _step in range(_height(piece_length // BLOCK)):
        pad = _parent(pad + pad)
    return _fold(layer, pad, _height(len(layer) // _WIDTH))


# The manifest


@dataclass(frozen=True)
class Entry:
    """A file of the set, with the hashes of its pieces."""

    path: str
    size: int
    root: bytes
    layer: bytes = b""


class Piece(t.NamedTuple):
    """A part of a file."""

    path: str
    number: int
    offset: int
    length: int

    def as_dict(self) -> dict[str, t.Any]:
        """For results."""
        return {"path": self.path, "index": self.number, "offset": self.offset, "length": self.length}


class Stamp(t.NamedTuple):
    """What changes when somebody writes a file."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Manifest:
    """All files of the set, sorted by the bytes of their names."""

    piece_length: int
    files: list[Entry]

    def root(self) -> str:
        """The value that stands for the whole set, whatever the length of its pieces."""
        digest = hashlib.sha256(_SET_PREFIX)
        for entry in self.files:
            name = entry.path.encode("utf-8")
            digest.update(len(name).to_bytes(8, "big") + name + entry.size.to_bytes(8, "big") + entry.root)
        return digest.hexdigest()

    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def pieces_of(self, entry: Entry) -> t.Iterator[Piece]:
        """The pieces of one file."""
        for index in range(piece_count(entry.size, self.piece_length)):
            offset = index * self.piece_length
            yield Piece(entry.path, index, offset, min(self.piece_length, entry.size - offset))

    def count(self) -> int:
        """Pieces of all files."""
        return sum(piece_count(entry.size, self.piece_length) for entry in self.files)


def shown(name: str) -> str:
    """A file name as text that can be printed, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def few(names: t.Sequence[str]) -> str:
    """The first of many names."""
    more = len(names) - _SHOWN
    return ", ".join(shown(name) for name in names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def manifest_text(manifest: Manifest) -> str:
    """The manifest as JSON, a line for each file, the same bytes for the same set."""
    head = {
        "format": FORMAT,
        "version": VERSION,
        "root": manifest.root(),
        "piece_length": manifest.piece_length,
        "size": manifest.size(),
    }
    lines = []
    for entry in manifest.files:
        one: dict[str, t.Any] = {"path": entry.path, "size": entry.size, "root": entry.root.hex() if entry.size else ""}
        if entry.size > manifest.piece_length:
            one["pieces"] = entry.layer.hex()
        lines.append(json.dumps(one, ensure_ascii=False))
    opening = json.dumps(head, indent=1)[:-2]
    return opening + ',\n "files": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def _wrong(where: str, what: str, expected: str, found: object) -> MerkleError:
    text = repr(found)
    return MerkleError(
        f"{where}: {what}: expected {expected}, found {shown(text if len(text) < 90 else text[:87] + '...')}"
    )


def _hashes(where: str, what: str, value: object, count: int) -> bytes:
    expected = f"{count} SHA-256 in {count * 64} hexadecimal digits" if count > 1 else "64 hexadecimal digits"
    if not isinstance(value, str):
        raise _wrong(where, what, expected, value)
    if len(value) != count * 64:
        raise _wrong(where, what, expected, f"{len(value)} characters")
    if not set(value) <= set("0123456789abcdef"):
        raise _wrong(where, what, expected + " in lower case", value)
    return bytes.fromhex(value)


def check_path(where: str, what: str, path: object) -> str:
    """A name below the directory, in the one way to write it."""
    expected = "a plain path relative to the directory, such as 'sub/model.safetensors'"
    if not isinstance(path, str) or not path or "\0" in path:
        raise _wrong(where, what, expected, path)
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise _wrong(where, what, expected, path)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise _wrong(where, what, "a name in UTF-8", path) from None
    return path


def _size(where: str, what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise _wrong(where, what, "a number of bytes", value)
    return value


def _load(path: str) -> t.Any:
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError:
        raise MerkleError(f"{path}: no such file") from None
    except ValueError as exc:
        raise MerkleError(f"{path}: expected JSON in UTF-8, found something else ({exc})") from None


def _head(path: str, data: t.Any, name: str) -> dict[str, t.Any]:
    """The format and its version, of which this code knows one."""
    if not isinstance(data, dict) or data.get("format") != name:
        raise _wrong(path, "field format", repr(name), data.get("format") if isinstance(data, dict) else data)
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise _wrong(path, "field version", str(VERSION), data.get("version"))
    return data


def check_piece_length(where: str, value: object) -> int:
    """A power of two from the block to 64 MiB."""
    if isinstance(value, bool) or not isinstance(value, int) or not BLOCK <= value <= MAX_PIECE or value & (value - 1):
        raise _wrong(where, "field piece_length", f"a power of two from {BLOCK} to {MAX_PIECE}", value)
    return value


def _entry(where: str, one: t.Any, number: int, piece_length: int) -> Entry:
    if not isinstance(one, dict):
        raise _wrong(where, f"files[{number}]", "a mapping", one)
    path = check_path(where, f"files[{number}].path", one.get("path"))
    what = f"files[{number}] ({path})"
    odd = sorted(set(one) - {"path", "size", "root", "pieces"})
    if odd:
        raise _wrong(where, what, "the fields path, size, root and pieces", odd)
    size = _size(where, f"{what} field size", one.get("size"))
    if not size:
        if one.get("root") != "":
            raise _wrong(where, f"{what} field root", "an empty text, as the file is empty", one.get("root"))
        root = _ZERO
    else:
        root = _hashes(where, f"{what} field root", one.get("root"), 1)
    if size <= piece_length:
        if "pieces" in one:
            raise _wrong(
                where, f"{what} field pieces", "nothing, as the file has no more than one piece", one["pieces"]
            )
        return Entry(path, size, root, root if size else b"")
    layer = _hashes(where, f"{what} field pieces", one.get("pieces"), piece_count(size, piece_length))
    found = root_of(layer, size, piece_length)
    if found != root:
        raise MerkleError(
            f"{where}: {what} field pieces: expected hashes with the root {root.hex()}, found {found.hex()}"
        )
    return Entry(path, size, root, layer)


def parse_manifest(where: str, data: t.Any, root: str = "") -> Manifest:
    """Read a manifest and prove that its parts fit together; with a root, that it is the one that is meant."""
    data = _head(where, data, FORMAT)
    length = check_piece_length(where, data.get("piece_length"))
    listed = data.get("files")
    if not isinstance(listed, list) or not listed:
        raise _wrong(where, "field files", "a list of one file or more", listed)
    entries = [_entry(where, one, number, length) for number, one in enumerate(listed)]
    names = [entry.path for entry in entries]
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            raise MerkleError(f"{where}: files[{number}].path: {name!r} is listed twice")
        seen.add(name)
    for name in names:
        above = name.rpartition("/")[0]
        while above:
            if above in seen:
                raise MerkleError(f"{where}: {name!r} lies below {above!r}, which is a file")
            above = above.rpartition("/")[0]
    if names != sorted(names, key=lambda name: name.encode("utf-8")):
        raise MerkleError(
            f"{where}: field files: expected files sorted by the bytes of their paths, found another order"
        )
    manifest = Manifest(length, entries)
    if _size(where, "field size", data.get("size")) != manifest.size():
        raise _wrong(where, "field size", f"{manifest.size()}, the sum of the files", data["size"])
    found = manifest.root()
    stated = _hashes(where, "field root", data.get("root"), 1).hex()
    if root and root != found:
        raise MerkleError(f"{where}: this is not the manifest that is meant: expected the root {root}, found {found}")
    if stated != found:
        raise MerkleError(f"{where}: field root: expected {found}, the root of the files listed, found {stated}")
    return manifest


def read_manifest(path: str, root: str = "") -> Manifest:
    """Read a manifest file."""
    return parse_manifest(path, _load(path), root)


def write_atomically(path: str, text: str, mode: int = 0o644) -> None:
    """Old or new content under the name, never half of it, whatever stops the run."""
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fchmod(stream.fileno(), mode)
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    _sync_directory(folder)


def make_directory(folder: str) -> None:
    """Create a directory and those above it, with mode 0755 whatever the umask."""
    if os.path.isdir(folder):
        return
    before = os.umask(0o022)
    try:
        os.makedirs(folder, exist_ok=True)
    finally:
        os.umask(before)


def _sync_directory(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# What is in the directory


def scan(root: str) -> dict[str, Stamp]:
    """Every file below the directory. What is no file, or is somebody else's, is refused by name."""
    if not os.path.isdir(root):
        raise MerkleError(
            f"{root}: expected a directory, found {'something else' if os.path.lexists(root) else 'nothing'}"
        )
    inside = os.path.realpath(root) + os.sep
    found: dict[str, Stamp] = {}
    refused: list[str] = []

    def stop(error: OSError) -> None:
        raise error

    for where, folders, names in os.walk(root, onerror=stop):
        for name in [*(one for one in folders if os.path.islink(os.path.join(where, one))), *names]:
            full = os.path.join(where, name)
            path = os.path.relpath(full, root)
            state = _state(full, path, inside, refused)
            if state is not None:
                found[path] = Stamp(state.st_size, state.st_mtime_ns, state.st_ino)
    if refused:
        raise MerkleError(f"{root}: {len(refused)} names cannot be part of a set: {few(sorted(refused))}")
    return dict(sorted(found.items(), key=lambda item: item[0].encode("utf-8")))


def _state(full: str, path: str, inside: str, refused: list[str]) -> os.stat_result | None:
    """What a name stands for, if it may be in a set; else the reason goes to the list."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        refused.append(f"{path} (its name is not UTF-8)")
        return None
    if os.path.islink(full):
        target = os.path.realpath(full)
        why = ""
        if not target.startswith(inside):
            why = "outside of the directory"
        elif not os.path.exists(target):
            why = "which does not exist"
        elif os.path.isdir(target):
            why = "which is a directory"
        if why:
            refused.append(f"{path} (a link to {os.readlink(full)}, {why})")
            return None
    state = os.stat(full)
    if not stat.S_ISREG(state.st_mode):
        refused.append(f"{path} (neither a file nor a directory)")
        return None
    return state


# Work by threads


@dataclass
class Work:
    """How to work, and who hears of it."""

    threads: int = 0
    drop_cache: bool = False
    # Called before each step that a run may be killed at, with its name and the piece or the path. Tests stop a run here.
    step: t.Callable[[str, object], None] = lambda _name, _what: None
    clock: t.Callable[[], float] = time.monotonic

    def workers(self) -> int:
        """Threads to use; none asked for is one for each core that this process may use."""
        if self.threads:
            return self.threads
        return len(os.sched_getaffinity(0))


_Item = t.TypeVar("_Item")
_Result = t.TypeVar("_Result")


def in_threads(
    items: t.Iterable[_Item],
    act: t.Callable[[_Item, memoryview], _Result],
    done: t.Callable[[_Item, _Result], None],
    threads: int,
    buffer: int,
) -> None:
    """Act on every item, each thread with one buffer of its own; results are handed over one at a time. The first error ends it."""
    queue = iter(items)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def serve() -> None:
        view = memoryview(bytearray(buffer))
        try:
            while True:
                with lock:
                    if errors:
                        return
                    try:
                        item = next(queue)
                    except StopIteration:
                        return
                result = act(item, view)
                with lock:
                    done(item, result)
        except BaseException as exc:
            with lock:
                errors.append(exc)

    workers = [threading.Thread(target=serve, daemon=True) for _number in range(threads - 1)]
    for worker in workers:
        worker.start()
    serve()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]


def _read_into(handle: int, view: memoryview, offset: int) -> int:
    """Fill the view from a file; less only where the file ends."""
    have = 0
    while have < len(view):
        got = os.preadv(handle, [view[have:]], offset + have)
        if not got:
            break
        have += got
    return have


def _forget(handle: int, offset: int, length: int) -> None:
    """Take a part of a file out of memory, so that the drive is read and other programs keep their pages."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_DONTNEED)


def _hash_at(handle: int, piece: Piece, size: int, piece_length: int, view: memoryview, drop: bool) -> bytes:
    """Hash of a piece as it is in an open file; empty when the file ends before."""
    if drop:
        _forget(handle, piece.offset, piece.length)
    leaves = []
    at = 0
    while at < piece.length:
        part = view[: min(_CHUNK, piece.length - at)]
        if _read_into(handle, part, piece.offset + at) < len(part):
            return b""
        leaves.append(_leaves(part))
        at += len(part)
    if drop:
        _forget(handle, piece.offset, piece.length)
    return _fold(b"".join(leaves), _ZERO, _piece_height(size, piece_length))


@contextlib.contextmanager
def _opened(path: str, flags: int = os.O_RDONLY) -> t.Iterator[int]:
    """An open regular file. Opening never waits, as it would for a named pipe."""
    handle = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", path)
        yield handle
    finally:
        os.close(handle)


def _stamp(handle: int) -> Stamp:
    state = os.fstat(handle)
    return Stamp(state.st_size, state.st_mtime_ns, state.st_ino)


def _hash_unchanged(
    root: str, piece: Piece, stamp: Stamp, size: int, piece_length: int, view: memoryview, work: Work
) -> bytes:
    """Hash of a piece of a file that nobody writes meanwhile."""
    full = os.path.join(root, piece.path)
    with _opened(full) as handle:
        found = _hash_at(handle, piece, size, piece_length, view, work.drop_cache)
        now = _stamp(handle)
    if now != stamp:
        raise MerkleError(
            f"{full}: changed while it was read: expected {stamp.size} bytes of {stamp.mtime_ns} ns (inode {stamp.inode}), "
            f"found {now.size} bytes of {now.mtime_ns} ns (inode {now.inode})"
        )
    return found


# Build


def read_cache(
    path: str, manifest: Manifest | None, piece_length: int, stamps: t.Mapping[str, Stamp]
) -> dict[str, Entry]:
    """Entries of the old manifest whose files are, by size, time and inode, those that were hashed for it."""
    if not os.path.lexists(path):
        return {}
    data = _head(path, _load(path), CACHE_FORMAT)
    if manifest is None or manifest.piece_length != piece_length or not isinstance(data.get("files"), dict):
        return {}
    known = {}
    for entry in manifest.files:
        stamp = stamps.get(entry.path)
        if stamp and data["files"].get(entry.path) == [*stamp, entry.root.hex()] and stamp.size == entry.size:
            known[entry.path] = entry
    return known


def write_cache(path: str, manifest: Manifest, stamps: t.Mapping[str, Stamp]) -> None:
    """Remember what the files looked like when they were hashed."""
    files = {entry.path: [*stamps[entry.path], entry.root.hex()] for entry in manifest.files}
    write_atomically(
        path, json.dumps({"format": CACHE_FORMAT, "version": VERSION, "files": files}, indent=1) + "\n", 0o600
    )


def build(
    root: str,
    piece_length: int,
    work: Work,
    stamps: t.Mapping[str, Stamp] | None = None,
    known: t.Mapping[str, Entry] | None = None,
) -> Manifest:
    """Hash every file, but those that are known."""
    stamps = scan(root) if stamps is None else stamps
    known = known or {}
    if not stamps:
        raise MerkleError(f"{root}: expected files to make a manifest of, found an empty directory")
    layers = {path: bytearray(_WIDTH * piece_count(stamp.size, piece_length)) for path, stamp in stamps.items()}
    empty = Manifest(
        piece_length, [Entry(path, stamp.size, _ZERO) for path, stamp in stamps.items() if path not in known]
    )

    def act(piece: Piece, view: memoryview) -> bytes:
        work.step("hash", piece)
        stamp = stamps[piece.path]
        return _hash_unchanged(root, piece, stamp, stamp.size, piece_length, view, work)

    def done(piece: Piece, digest: bytes) -> None:
        layers[piece.path][piece.number * _WIDTH : (piece.number + 1) * _WIDTH] = digest

    todo = itertools.chain.from_iterable(empty.pieces_of(entry) for entry in empty.files)
    in_threads(todo, act, done, work.workers(), _CHUNK)
    entries = []
    for path, stamp in stamps.items():
        layer = bytes(layers[path])
        entries.append(known.get(path) or Entry(path, stamp.size, root_of(layer, stamp.size, piece_length), layer))
    if scan(root) != stamps:
        raise MerkleError(f"{root}: files came, went or changed while the directory was read; nothing was written")
    return Manifest(piece_length, entries)


# Progress


class Progress:
    """Pieces proved so far, in a small file that a run that is killed leaves for the next, with lines for people.

    A file's pieces count only as long as its size, time and inode stay. A run that came to its end leaves the lines and no pieces, so that the next one
    reads everything again.
    """

    def __init__(
        self, path: str, manifest: Manifest, stamps: t.Mapping[str, Stamp], work: Work, write: bool = True
    ) -> None:
        """Take up what an earlier run left; without a path nothing is kept."""
        self.path, self.manifest, self.stamps, self.work, self.write = path, manifest, dict(stamps), work, write
        self.good: dict[str, bytearray] = {}
        self.lines: list[str] = []
        self.resumed = self.read = 0
        self.total = manifest.size()
        self.began = self.saved = work.clock()
        for entry in manifest.files:
            self.good[entry.path] = bytearray(piece_count(entry.size, manifest.piece_length))
        if path and os.path.lexists(path):
            self._take_up(_head(path, _load(path), STATE_FORMAT))
        if self.resumed:
            self.say(f"goes on; {self.resumed / 1e9:.1f} of {self.total / 1e9:.1f} GB were verified before")

    def _take_up(self, data: dict[str, t.Any]) -> None:
        files = data.get("files")
        if data.get("root") != self.manifest.root() or data.get("piece_length") != self.manifest.piece_length:
            return
        if not isinstance(files, dict):
            return
        for entry in self.manifest.files:
            kept, stamp, good = files.get(entry.path), self.stamps.get(entry.path), self.good[entry.path]
            if not isinstance(kept, dict) or stamp is None or kept.get("stamp") != list(stamp):
                continue
            try:
                bits = f"{int(kept.get('good', ''), 16):b}"[::-1]
            except (TypeError, ValueError):
                continue
            for piece, bit in zip(self.manifest.pieces_of(entry), bits):
                if bit == "1":
                    good[piece.number] = 1
                    self.resumed += piece.length
        lines = data.get("progress")
        self.lines = [line for line in lines if isinstance(line, str)] if isinstance(lines, list) else []

    def proved(self, piece: Piece) -> bool:
        """Whether an earlier run found the piece good."""
        return bool(self.good[piece.path][piece.number])

    def add(self, piece: Piece, good: bool) -> None:
        """A piece was read."""
        self.read += piece.length
        self.good[piece.path][piece.number] = good
        if self.path and self.work.clock() - self.saved >= SAVE_EVERY:
            self.report()
            self.save()

    def whole(self, path: str, stamp: Stamp) -> None:
        """A file was repaired: all of its pieces are good, as it is now."""
        self.stamps[path] = stamp
        self.good[path] = bytearray(b"\1" * len(self.good[path]))

    def say(self, text: str) -> None:
        """A line for people."""
        self.lines = [*self.lines, f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())} {text}"][-_LINES:]

    def report(self) -> None:
        """How far it is."""
        have = self.resumed + self.read
        speed = self.read / max(self.work.clock() - self.began, 0.001)
        left = max(self.total - have, 0) / max(speed, 1.0)
        self.say(
            f"{have / 1e9:.1f} of {self.total / 1e9:.1f} GB ({100 * have / max(self.total, 1):.0f} %), "
            f"{speed / 1e6:.0f} MB/s, about {left / 60:.0f} min left"
        )

    def save(self, finished: bool = False) -> None:
        """Write the file."""
        self.saved = self.work.clock()
        if not self.path or not self.write:
            return
        files = {}
        for path, good in self.good.items():
            if not finished and any(good) and path in self.stamps:
                bits = int("".join("1" if one else "0" for one in reversed(good)), 2)
                files[path] = {"stamp": list(self.stamps[path]), "good": f"{bits:x}"}
        data = {
            "format": STATE_FORMAT,
            "version": VERSION,
            "progress": self.lines,
            "finished": finished,
            "root": self.manifest.root(),
            "piece_length": self.manifest.piece_length,
            "files": files,
        }
        write_atomically(self.path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")

    @contextlib.contextmanager
    def kept(self) -> t.Iterator[None]:
        """Keep what was proved when something stops the work."""
        try:
            yield
        except BaseException as exc:
            self.say(f"stopped: {type(exc).__name__}")
            self.save()
            raise


# Verify


@dataclass
class Findings:
    """What separates the directory from the manifest."""

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    wrong_size: list[tuple[str, int, int]] = field(default_factory=list)  # path, expected, found
    damaged: list[Piece] = field(default_factory=list)

    def whole(self) -> bool:
        """Whether all that the manifest lists is as it says."""
        return not (self.missing or self.wrong_size or self.damaged)

    def sentence(self, total: int) -> str:
        """What is wrong, in words."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} missing ({few(self.missing)})")
        if self.extra:
            parts.append(f"{len(self.extra)} extra ({few(self.extra)})")
        if self.wrong_size:
            sizes = [f"{path} expected {expected} bytes, found {found}" for path, expected, found in self.wrong_size]
            parts.append(f"{len(sizes)} of wrong size ({few(sizes)})")
        if self.damaged:
            pieces = [f"{one.path} piece {one.number} at {one.offset}, {one.length} bytes" for one in self.damaged]
            parts.append(f"{len(pieces)} of {total} pieces damaged ({few(pieces)})")
        return "; ".join(parts)


def compare(manifest: Manifest, stamps: t.Mapping[str, Stamp]) -> Findings:
    """Names and sizes."""
    names = {entry.path for entry in manifest.files}
    found = Findings(extra=[path for path in stamps if path not in names])
    for entry in manifest.files:
        stamp = stamps.get(entry.path)
        if stamp is None:
            found.missing.append(entry.path)
        elif stamp.size != entry.size:
            found.wrong_size.append((entry.path, entry.size, stamp.size))
    return found


def verify(root: str, manifest: Manifest, progress: Progress, work: Work) -> Findings:
    """Names, sizes, and every byte that an earlier run that was killed has not proved."""
    stamps = progress.stamps
    found = compare(manifest, stamps)
    present = [entry for entry in manifest.files if entry.path in stamps]
    by_path = {entry.path: entry for entry in present}

    def act(piece: Piece, view: memoryview) -> bool:
        work.step("verify", piece)
        entry = by_path[piece.path]
        try:
            digest = _hash_unchanged(root, piece, stamps[piece.path], entry.size, manifest.piece_length, view, work)
        except OSError as exc:
            # A part of the drive that cannot be read any more is damage like any other.
            if exc.errno != errno.EIO:
                raise
            return False
        return digest == entry.layer[piece.number * _WIDTH : (piece.number + 1) * _WIDTH]

    def done(piece: Piece, good: bool) -> None:
        progress.add(piece, good)
        if not good:
            found.damaged.append(piece)

    todo = (piece for entry in present for piece in manifest.pieces_of(entry) if not progress.proved(piece))
    with progress.kept():
        in_threads(todo, act, done, work.workers(), _CHUNK)
    order = {entry.path: number for number, entry in enumerate(present)}
    found.damaged.sort(key=lambda piece: (order[piece.path], piece.number))
    return found


# Repair


@dataclass
class Repair:
    """What was repaired, and what could not be."""

    repaired: list[Piece] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    unrepaired: list[tuple[Piece, str]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    quarantined: list[tuple[str, str]] = field(default_factory=list)  # path, where it went
    changed: bool = False


@contextlib.contextmanager
def alone(root: str) -> t.Iterator[None]:
    """One repair of a directory at a time, where the file system can lock."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MerkleError(f"{root}: another run repairs this directory") from None
        except OSError as exc:
            if exc.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(handle)


def _write_at(handle: int, view: memoryview, offset: int) -> None:
    have = 0
    while have < len(view):
        have += os.pwrite(handle, view[have:], offset + have)


def _partial_name(path: str, names: t.Container[str]) -> str:
    name = path + PARTIAL
    while name in names:
        name += PARTIAL
    return name


class Repairer:
    """Takes pieces out of a source, one file after the other, the pieces of a file by threads."""

    def __init__(self, root: str, manifest: Manifest, source: str, progress: Progress, work: Work, write: bool) -> None:
        """Nothing is touched yet."""
        self.root, self.manifest, self.source = root, manifest, source
        self.progress, self.work, self.write = progress, work, write
        self.names = {entry.path for entry in manifest.files}
        self.result = Repair()

    def run(self, found: Findings) -> Repair:
        """Repair all that was found."""
        missing, sizes = set(found.missing), {path for path, _expected, _found in found.wrong_size}
        damaged: dict[str, list[Piece]] = {}
        for piece in found.damaged:
            damaged.setdefault(piece.path, []).append(piece)
        todo = [one for one in self.manifest.files if one.path in missing or one.path in sizes or one.path in damaged]
        if self.write:
            self._require_space(todo, missing)
        with self.progress.kept():
            for entry in todo:
                gone = entry.path in missing
                pieces = list(self.manifest.pieces_of(entry)) if gone else damaged.get(entry.path, [])
                try:
                    self._file(entry, pieces, gone)
                except OSError as exc:
                    self._give_up(entry, pieces, f"cannot be written: {exc.strerror or exc}")
                self.progress.save()
        return self.result

    def _require_space(self, todo: list[Entry], missing: set[str]) -> None:
        needed = 0
        for entry in todo:
            name = _partial_name(entry.path, self.names) if entry.path in missing else entry.path
            try:
                state = os.lstat(os.path.join(self.root, name))
                needed += max(entry.size - state.st_blocks * 512, 0)
            except OSError:
                needed += entry.size
        volume = os.statvfs(self.root)
        free = volume.f_bavail * volume.f_frsize
        if needed > free:
            raise MerkleError(
                f"{self.root}: no room for the repair: expected {needed} bytes free, found {free}; nothing was written"
            )

    def _file(self, entry: Entry, pieces: list[Piece], gone: bool) -> None:
        final = os.path.join(self.root, entry.path)
        why = self._in_the_way(entry.path) if gone else ""
        if why:
            self._give_up(entry, pieces, why)
            return
        name = os.path.join(self.root, _partial_name(entry.path, self.names)) if gone else final
        with contextlib.ExitStack() as stack:
            source = -1
            if pieces:
                try:
                    source = stack.enter_context(_opened(os.path.join(self.source, entry.path)))
                except OSError as exc:
                    self._give_up(entry, pieces, f"the source cannot be read: {exc.strerror}")
                    return
            target = self._target(stack, name, gone)
            bad = self._pieces(entry, pieces, source, target, gone)
            if bad:
                self.result.unrepaired += bad
                self.result.failed[entry.path] = bad[0][1]
            else:
                self.result.files.append(entry.path)
            if not self.write:
                return
            if not bad and os.fstat(target).st_size != entry.size:
                self.work.step("cut", entry.path)
                os.ftruncate(target, entry.size)
                self.result.changed = True
            if gone and not bad:
                os.fchmod(target, 0o644)
            os.fsync(target)
            if gone and bad and not os.fstat(target).st_size:
                os.unlink(name)
            if gone and not bad:
                self.work.step("rename", entry.path)
                if os.path.lexists(final):
                    raise MerkleError(
                        f"{final}: expected no such name, as at the start of this run, found one; {name} is complete"
                    )
                os.rename(name, final)
                self.result.changed = True
                _sync_directory(os.path.dirname(final))
            if not bad:
                self.progress.whole(entry.path, _stamp(target))

    def _give_up(self, entry: Entry, pieces: list[Piece], why: str) -> None:
        self.result.failed[entry.path] = why
        done = set(self.result.repaired)
        self.result.unrepaired += [(piece, why) for piece in pieces if piece not in done]

    def _in_the_way(self, path: str) -> str:
        """What keeps a file that is missing from being made."""
        if os.path.lexists(os.path.join(self.root, path)):
            return "a directory has its name"
        above = os.path.dirname(path)
        while above:
            full = os.path.join(self.root, above)
            if os.path.lexists(full) and not os.path.isdir(full):
                return f"{above} is a file, a directory is expected"
            above = os.path.dirname(above)
        return ""

    def _target(self, stack: contextlib.ExitStack, name: str, gone: bool) -> int:
        """The file to write, or in check mode to read if it is there."""
        if self.write:
            if gone:
                make_directory(os.path.dirname(name))
            return stack.enter_context(_opened(name, os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT if gone else 0)))
        if gone and not os.path.lexists(name):
            return -1
        return stack.enter_context(_opened(name, os.O_RDONLY | os.O_NOFOLLOW))

    def _pieces(
        self, entry: Entry, pieces: list[Piece], source: int, target: int, gone: bool
    ) -> list[tuple[Piece, str]]:
        """Prove each piece of the source in memory, write it, and read it back."""
        length = self.manifest.piece_length
        bad: list[tuple[Piece, str]] = []
        good: list[Piece] = []

        def hashed(piece: Piece, view: memoryview, drop: bool) -> bytes:
            return _hash_at(target, piece, entry.size, length, view, drop)

        def act(piece: Piece, view: memoryview) -> str | None:
            wanted = entry.layer[piece.number * _WIDTH : (piece.number + 1) * _WIDTH]
            if gone and target >= 0 and hashed(piece, view, False) == wanted:
                return None
            part = view[: piece.length]
            try:
                if _read_into(source, part, piece.offset) < piece.length:
                    return "the source ends before"
            except OSError as exc:
                return f"the source cannot be read: {exc.strerror}"
            if _fold(_leaves(part), _ZERO, _piece_height(entry.size, length)) != wanted:
                return "the source is damaged there as well"
            if self.write:
                self.work.step("write", piece)
                _write_at(target, part, piece.offset)
                self.work.step("written", piece)
            return ""

        def done(piece: Piece, why: str | None) -> None:
            if why:
                bad.append((piece, why))
            elif why is not None:
                good.append(piece)
                self.result.changed = True

        def read_back(piece: Piece, view: memoryview) -> bool:
            return hashed(piece, view, True) == entry.layer[piece.number * _WIDTH : (piece.number + 1) * _WIDTH]

        def judge(piece: Piece, right: bool) -> None:
            if right:
                self.result.repaired.append(piece)
            else:
                bad.append((piece, "was written, but reads back otherwise"))

        threads = self.work.workers()
        in_threads(pieces, act, done, min(threads, max(len(pieces), 1)), min(length, max(entry.size, _CHUNK)))
        good.sort()
        if self.write:
            os.fsync(target)
            in_threads(good, read_back, judge, min(threads, max(len(good), 1)), _CHUNK)
        else:
            self.result.repaired += good
        return sorted(bad)


def quarantine(root: str, paths: t.Iterable[str], folder: str, write: bool) -> list[tuple[str, str]]:
    """Move files out of the set, each to a name that is free."""
    moved = []
    for path in paths:
        target = os.path.join(folder, path)
        number = 0
        while os.path.lexists(target):
            number += 1
            target = os.path.join(folder, f"{path}.{number}")
        if write:
            make_directory(os.path.dirname(target))
            os.rename(os.path.join(root, path), target)
            _sync_directory(os.path.dirname(target))
        moved.append((path, target))
    return moved
