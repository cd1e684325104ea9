# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts a lab has, and their addresses: arithmetic only.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab


@dataclass(frozen=True)
class Group:
    """Hosts of one group: prefix1, prefix2, ..., at the listed places of the subnet, in order."""

    name: str
    prefix: str
    count: int
    places: tuple[int, ...]
    variable: str = ""
    kind: str = ""
    parents: tuple[str, ...] = ()

    def hosts(self, subnet: str, count: int) -> list[_lab.HostSpec]:
        if count > len(self.places):
            raise _lab.LabError(
                f"{self.variable or self.name}: expected at most {len(self.places)} hosts, found {count}: the group's"
                " addresses in the lab's inventory end there."
            )
        network = _lab.network_of(subnet)
        return [
            _lab.HostSpec(f"{self.prefix}{number}", str(network.network_address + self.places[number - 1]))
            for number in range(1, count + 1)
        ]


def parse_places(name: str, ranges: Iterable[Any]) -> tuple[int, ...]:
    """C(["10-12", 20]) means 10, 11, 12, 20."""
    places: list[int] = []
    for item in ranges:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(item).strip())
        if match is None:
            raise _lab.LabError(f"{name}: expected a number or a range such as 10-19 in addresses, found {item!r}.")
        first = int(match.group(1))
        places.extend(range(first, int(match.group(2) or first) + 1))
    return tuple(places)


def parse_group(name: str, item: Mapping[str, Any]) -> Group:
    unknown = set(item) - {"prefix", "count", "addresses", "variable", "kind", "parents"}
    if unknown or "prefix" not in item or "addresses" not in item:
        raise _lab.LabError(
            f"{name}: expected prefix, addresses, and perhaps count, variable, kind and parents; found {', '.join(sorted(item))}."
        )
    places = parse_places(name, item["addresses"])
    kind = str(item.get("kind", ""))
    if kind not in ("", "container", "vm"):
        raise _lab.LabError(f"{name}: expected container or vm in kind, found {kind!r}.")
    count = count_of(name, item.get("count", 1))
    parents = tuple(str(parent) for parent in item.get("parents", []))
    return Group(name, str(item["prefix"]), count, places, str(item.get("variable", "")), kind, parents)


def count_of(name: str, value: Any) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdigit():
        raise _lab.LabError(f"{name}: expected a number of hosts, found {value!r}.")
    return int(text)


def running_count(group: Group, running: Iterable[str]) -> int:
    """How far the numbers of this group's hosts go among those the lab has now."""
    numbers = (re.fullmatch(re.escape(group.prefix) + r"(\d+)", name) for name in running)
    return max((int(match.group(1)) for match in numbers if match), default=0)
