# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""How worn the NVMe drives are on which a directory lies: a set of 700 GB is a good part of what a drive may be written in its life."""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_storage import read_health

_NVME = re.compile(r"(nvme\d+)(c\d+)?n\d+")


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def controllers(device: str, sys_dir: str = "/sys") -> set[str]:
    """NVMe controllers below a block device given as MAJOR:MINOR: through partitions, md and LVM."""
    found: set[str] = set()
    todo, seen = [os.path.realpath(f"{sys_dir}/dev/block/{device}")], set()
    while todo:
        place = todo.pop()
        if place in seen or not os.path.isdir(place):
            continue
        seen.add(place)
        match = _NVME.match(os.path.basename(place))
        if match:
            found.add(match[1])
            continue
        slaves = [os.path.realpath(f"{place}/slaves/{name}") for name in _names(f"{place}/slaves")]
        if slaves:
            todo += slaves
        elif os.path.exists(f"{place}/partition"):
            todo.append(os.path.dirname(place))
    return found


def wear(
    path: str,
    sys_dir: str = "/sys",
    health: t.Callable[[str], t.Mapping[str, int | None]] = read_health,
) -> dict[str, int]:
    """Wear in percent by drive, of those that tell. 100 is what the maker guarantees; a drive may go on beyond."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    number = os.stat(path).st_dev
    found = {}
    for name in sorted(controllers(f"{os.major(number)}:{os.minor(number)}", sys_dir)):
        percent = health(name).get("wear_percent")
        if percent is not None:
            found[name] = percent
    return found
