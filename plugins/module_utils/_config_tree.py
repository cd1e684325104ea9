# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""A directory of configuration files that belong together: compare, stage beside it, replace one by one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MANIFEST = ".config_tree.json"
STAGE_PREFIX = ".config_tree."


class TreeError(Exception):
    """The wish cannot be met; the text says why."""


@dataclass(frozen=True)
class TreePlan:
    """What separates the directory from the wish."""

    write: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    before: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.write or self.remove)


def check_names(names: list[str]) -> None:
    """Names are plain paths below the directory, and no file is also a directory."""
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or str(PurePosixPath(name)) != name:
            raise TreeError(
                f"file name {name!r}: expected a plain path relative to the directory, such as 'rules.d/fleet.yml'"
            )
        if parts[0].startswith(STAGE_PREFIX) or name == MANIFEST:
            raise TreeError(f"file name {name!r}: names that begin with {STAGE_PREFIX!r} are kept for the module")
        for parent in PurePosixPath(name).parents:
            if str(parent) in names:
                raise TreeError(f"file name {name!r}: {str(parent)!r} is wanted as a file too")


def directories(names: list[str]) -> list[str]:
    """The directories below the root that hold the files, parents first."""
    found = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    return sorted(found - {"."})


def read_manifest(root: Path) -> list[str]:
    """The names that earlier runs wrote; a manifest that cannot be read names none."""
    try:
        names = json.loads((root / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return []
    if not isinstance(names, list):
        return []
    good = []
    for name in names:
        if isinstance(name, str):
            try:
                check_names([name])
            except TreeError:
                continue
            good.append(name)
    return good


def write_manifest(root: Path, names: list[str]) -> None:
    """Remember the names, atomically."""
    temporary = root / f"{STAGE_PREFIX}manifest"
    temporary.write_text(json.dumps(sorted(names)) + "\n", "utf-8")
    temporary.chmod(0o644)
    temporary.replace(root / MANIFEST)


def _read(path: Path) -> str | None:
    if path.is_symlink() or not path.is_file():
        return None
    # What is no UTF-8 is not ours and gets replaced; the diff shows it as well as it can.
    return path.read_bytes().decode("utf-8", "surrogateescape")


def compare(root: Path, wanted: dict[str, str]) -> TreePlan:
    """Which files to write, and which of an earlier run's files to remove."""
    before = {}
    write = []
    for name, content in sorted(wanted.items()):
        path = root / name
        if path.is_dir() and not path.is_symlink():
            raise TreeError(f"{path} is a directory, a file is wanted")
        now = _read(path)
        if now is not None:
            before[name] = now
        if now != content:
            write.append(name)
    remove = []
    for name in read_manifest(root):
        path = root / name
        if name not in wanted and (path.is_symlink() or path.is_file()):
            remove.append(name)
            before[name] = _read(path) or ""
    return TreePlan(write, sorted(remove), before)


def stage(root: Path, target: Path, wanted: dict[str, str], remove: list[str]) -> None:
    """Put the whole tree as it will be into target: wanted files as copies, the files of others as links."""
    for name, content in wanted.items():
        path = target / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", newline=""
        ) as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    gone = {*wanted, *remove, MANIFEST}
    if not root.is_dir():
        return
    for where, folders, files in os.walk(root):
        below = Path(where).relative_to(root)
        folders[:] = [folder for folder in folders if not (str(below) == "." and folder.startswith(STAGE_PREFIX))]
        for file in files:
            name = str(below / file)
            if name in gone or (str(below) == "." and file.startswith(STAGE_PREFIX)):
                continue
            (target / below).mkdir(mode=0o700, parents=True, exist_ok=True)
            (target / name).symlink_to(Path(where) / file)


def clean_stages(root: Path) -> None:
    """Drop what a run that was killed left behind."""
    if not root.is_dir():
        return
    for path in root.glob(f"{STAGE_PREFIX}*"):
        if path.name == MANIFEST:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
