# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Rails of RDMA hosts: whether their addresses can work together, and who measures with whom."""

from __future__ import annotations

import ipaddress
import typing as t
from dataclasses import dataclass

Interface = t.Union[ipaddress.IPv4Interface, ipaddress.IPv6Interface]
_ONLY = "rail0"


@dataclass(frozen=True)
class Rail:
    """One port of a host and the network it is in."""

    host: str
    name: str
    place: Interface
    mtu: int
    bounded: bool


def rails_of(peer: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """A peer's rails; one that names none has one, at its address."""
    rails = list(peer.get("rails") or [])
    return rails or ([{"name": _ONLY, "address": peer["address"]}] if peer.get("address") else [])


def _read(peers: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[list[Rail], list[str]]:
    rails, problems = [], []
    for peer in peers:
        host = str(peer.get("name", "?"))
        for rail in rails_of(peer):
            text = str(rail.get("address", ""))
            try:
                place = ipaddress.ip_interface(text)
            except ValueError:
                problems.append(
                    f"rdma_peers: expected an address with its prefix length for {rail.get('name', '?')} of {host}, "
                    f"found {text or 'nothing'}"
                )
                continue
            rails.append(Rail(host, str(rail.get("name", _ONLY)), place, int(rail.get("mtu") or 0), "/" in text))
    return rails, problems


def _addresses(rails: t.Sequence[Rail]) -> list[str]:
    seen: dict[t.Any, Rail] = {}
    found = []
    for rail in rails:
        other = seen.setdefault(rail.place.ip, rail)
        if other is not rail:
            found.append(
                f"rdma_peers: expected every address once, found {rail.place.ip} for {other.name} of {other.host} "
                f"and {rail.name} of {rail.host}"
            )
    return found


def _overlap(one: Rail, two: Rail) -> bool:
    return (
        one.bounded
        and two.bounded
        and one.place.version == two.place.version
        and one.place.network.overlaps(t.cast("t.Any", two.place.network))
    )


def _networks(rails: t.Sequence[Rail], loose: bool) -> list[str]:
    """Rails of different names: each in a network of its own, or all in one with a loose rp_filter."""
    found: list[tuple[set[str], str]] = []
    for index, one in enumerate(rails):
        for two in rails[index + 1 :]:
            if one.name == two.name or not _overlap(one, two):
                continue
            if one.place.network != two.place.network:
                what = f"expected networks that do not overlap, found {one.place.network} and {two.place.network}"
            elif not loose:
                what = (
                    f"expected a network for each rail, or rdma_rp_filter_loose: true, found {one.place.network} twice"
                )
            else:
                continue
            sentence = f"rdma_peers: {what} ({one.name} of {one.host}, {two.name} of {two.host})"
            # One sentence for two rails, not one for every pair of hosts.
            if not any({one.name, two.name} == item[0] for item in found):
                found.append(({one.name, two.name}, sentence))
    return [item[1] for item in found]


def _along(rails: t.Sequence[Rail], routed: bool) -> list[str]:
    """The same rail on all hosts: one network, one MTU."""
    found = []
    first: dict[str, Rail] = {}
    for rail in rails:
        other = first.setdefault(rail.name, rail)
        if other is rail:
            continue
        if rail.mtu != other.mtu:
            found.append(
                f"rdma_peers: expected one mtu along {rail.name}, found {other.mtu or 'none'} on {other.host} "
                f"and {rail.mtu or 'none'} on {rail.host}"
            )
        if not routed and rail.bounded and other.bounded and rail.place.network != other.place.network:
            found.append(
                f"rdma_peers: expected one network along {rail.name}, or rdma_rails_routed: true, "
                f"found {other.place.network} on {other.host} and {rail.place.network} on {rail.host}"
            )
    names = {name: first[name].host for name in first}
    for host in dict.fromkeys(rail.host for rail in rails):
        own = {rail.name for rail in rails if rail.host == host}
        found += [
            f"rdma_peers: expected the rails of {names[name]} on {host} too, found none named {name}"
            for name in names
            if name not in own
        ]
    return found


def rail_problems(
    peers: t.Sequence[t.Mapping[str, t.Any]], name: str, loose: bool = False, routed: bool = False
) -> list[str]:
    """What is wrong with the rails, in sentences; empty when they can work."""
    if not peers:
        return []
    names = [str(peer.get("name", "")) for peer in peers]
    problems = []
    if name not in names:
        problems.append(f"rdma_peers: expected an entry named {name}, found {', '.join(names)}")
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        problems.append(f"rdma_peers: expected every name once, found {', '.join(twice)} again")
        return problems
    rails, unread = _read(peers)
    return problems + unread + _addresses(rails) + _networks(rails, loose) + _along(rails, routed)


def partner(peers: t.Sequence[t.Mapping[str, t.Any]], name: str, pairing: str = "ring") -> dict[str, t.Any]:
    """Whom a host measures with: so many measurements as hosts (ring) or half of that (pairs), never all with all.

    It is the one before, since a rolling run has prepared that one already.
    """
    names = [str(peer.get("name", "")) for peer in peers]
    if name not in names or len(names) < 2:
        return {}
    place = names.index(name)
    last = len(names) - 1
    if pairing == "ring" or place % 2 == 1 or (place == last and place % 2 == 0):
        # Two hosts are one pair, whoever asks; a ring of two measures both ways.
        peer = peers[place - 1]
        return {"name": names[place - 1], "rails": rails_of(peer)}
    return {}
