# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""A few small files in different directories, in one call."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Steps:
    """What has to be done, and how the files were before.

    :ivar write: paths whose content or mode differs.
    :ivar remove: paths that must not be there.
    :ivar before: content of each path in the two lists; None for one that is not there.
    """

    write: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    before: dict[str, str | None] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Is there anything to do?"""
        return bool(self.write or self.remove)


def content(path: Path) -> str | None:
    """What a file says, or None."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return None


def compare(files: t.Mapping[str, str], absent: t.Sequence[str], mode: int) -> Steps:
    """Compare what is with what shall be."""
    steps = Steps()
    for name, text in sorted(files.items()):
        path = Path(name)
        now = content(path)
        if now != text or path.is_symlink() or path.stat().st_mode & 0o7777 != mode:
            steps.write.append(name)
            steps.before[name] = now
    for name in absent:
        path = Path(name)
        if path.is_symlink() or path.exists():
            steps.remove.append(name)
            steps.before[name] = content(path)
    return steps


def write(path: Path, text: str, mode: int) -> None:
    """Put a file in its place at once, never half of it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Directories of .d files read what ends as their files do; this one does not.
    aside = path.with_name(f".{path.name}.gpufleet-new")
    aside.write_bytes(text.encode())
    aside.chmod(mode)
    aside.replace(path)


def apply(steps: Steps, files: t.Mapping[str, str], mode: int) -> None:
    """Do what was decided."""
    for name in steps.write:
        write(Path(name), files[name], mode)
    for name in steps.remove:
        Path(name).unlink()


def diff(steps: Steps, files: t.Mapping[str, str]) -> list[dict[str, str]]:
    """One entry for each file."""
    return [
        {
            "before_header": name,
            "after_header": name,
            "before": steps.before[name] or "",
            "after": files.get(name, "") if name in steps.write else "",
        }
        for name in (*steps.write, *steps.remove)
    ]
