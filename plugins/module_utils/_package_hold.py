# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Put installed packages on hold, or take the hold away, many in one call."""

from __future__ import annotations

import fnmatch
import typing as t

QUERY = "${binary:Package}\\t${db:Status-Want}\\t${db:Status-Status}\\n"


class HoldError(Exception):
    """dpkg did not do it, in words for the operator."""


class Run(t.Protocol):
    """Runs one command with something on its standard input: exit code, output and errors out."""

    def __call__(self, argv: list[str], data: str = "") -> tuple[int, str, str]:
        """Run the command."""


def selections(run: Run) -> dict[str, str]:
    """What dpkg is to do with each installed package: install, hold."""
    code, out, err = run(["dpkg-query", "-W", "-f", QUERY])
    if code != 0:
        raise HoldError(f"dpkg-query failed: {err.strip() or out.strip()}")
    found = {}
    for line in out.splitlines():
        cells = line.split("\t")
        if len(cells) == 3 and cells[2] not in ("not-installed", "config-files"):
            found[cells[0]] = cells[1]
    return found


def matching(now: t.Mapping[str, str], patterns: t.Sequence[str]) -> list[str]:
    """The installed packages that any of the patterns means, without their architecture."""
    names = {name.split(":")[0] for name in now}
    return sorted(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def changes(now: t.Mapping[str, str], patterns: t.Sequence[str], held: bool) -> list[str]:
    """The packages whose selection has to change."""
    wanted = "hold" if held else "install"
    return sorted(
        name
        for name, selection in now.items()
        if selection in ("hold", "install")
        and selection != wanted
        and any(fnmatch.fnmatchcase(name.split(":")[0], pattern) for pattern in patterns)
    )


def select(run: Run, names: t.Sequence[str], held: bool) -> None:
    """Tell dpkg."""
    wanted = "hold" if held else "install"
    code, out, err = run(["dpkg", "--set-selections"], "".join(f"{name} {wanted}\n" for name in names))
    if code != 0:
        raise HoldError(f"dpkg --set-selections failed: {err.strip() or out.strip()}")
