# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Marks of a needed reboot: one file for each cause, on a file system that a reboot empties."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MARKS = Path("/run/gpufleet/reboot-required.d")
SUFFIX = ".reason"
# What Debian's packages leave behind when they want a reboot.
DISTRIBUTION = Path("/run/reboot-required")

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class CauseError(Exception):
    """The wish cannot be met; the text says why."""


@dataclass(frozen=True)
class Mark:
    """One cause as it lies on the host and as it shall be. None is no mark."""

    path: Path
    before: str | None
    after: str | None

    @property
    def changed(self) -> bool:
        """Is there anything to write or to remove?"""
        return self.before != self.after


def mark(root: Path, name: str, reason: str | None) -> Mark:
    """Compare a cause with its mark.

    :arg root: the directory of marks.
    :arg name: who asks, as a rule a role.
    :arg reason: why, in one line; None when there is no cause any more.
    """
    if not _NAME.fullmatch(name):
        raise CauseError(
            f"name: expected 1 to 64 lower-case letters, digits, dots, dashes and underscores, found {name!r}"
        )
    words = None
    if reason is not None:
        words = " ".join(reason.split())
        if not words:
            raise CauseError("reason: expected words that say why the host must be rebooted, found none")
    path = root / f"{name}{SUFFIX}"
    try:
        before: str | None = path.read_bytes().decode("utf-8", "replace").rstrip("\n")
    except FileNotFoundError:
        before = None
    return Mark(path, before, words)


def write(wanted: Mark) -> None:
    """Leave or remove the mark. It appears whole or not at all, readable by everybody whatever the umask is."""
    if wanted.after is None:
        wanted.path.unlink()
        return
    for folder in (wanted.path.parent.parent, wanted.path.parent):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
    # The dot and the other suffix keep a file that a killed run left from being taken for a mark.
    temporary = wanted.path.with_name(f".{wanted.path.name}.new")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(f"{wanted.after}\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(0o644)
    temporary.replace(wanted.path)


def causes(root: Path, distribution: Path) -> dict[str, str]:
    """Every cause on the host with its reason.

    :arg root: the directory of marks.
    :arg distribution: the mark of Debian's packages, with the names of the packages beside it in a file that ends in C(.pkgs).
    """
    found = {
        path.name[: -len(SUFFIX)]: " ".join(path.read_bytes().decode("utf-8", "replace").split())
        for path in sorted(root.glob(f"*{SUFFIX}"))
        if not path.name.startswith(".")
    }
    if distribution.exists():
        packages = distribution.with_name(f"{distribution.name}.pkgs")
        names = sorted(set(packages.read_text("utf-8").split())) if packages.exists() else []
        found["distribution"] = f"asked for by {', '.join(names)}" if names else "asked for by a package"
    return found
