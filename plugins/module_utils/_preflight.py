# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""What can be known about a host before anything is touched: listening ports and room on file systems."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import typing as t
from dataclasses import dataclass

PROC = "/proc"
_LISTEN = "0A"
_UNIT = re.compile(r"/([^/\s]+\.(?:service|scope))(?=[/\s]|$)")


class PreflightError(Exception):
    """A question that has no answer, in words for the operator."""


@dataclass(frozen=True)
class Listener:
    """One listening TCP socket."""

    address: str
    port: int
    inode: str


@dataclass(frozen=True)
class Holder:
    """The process behind a listening socket, as far as it can be seen."""

    pid: int
    name: str
    unit: str


def _address(text: str) -> str:
    """Turn the kernel's hexadecimal form (host byte order, word by word) into the usual one."""
    raw = bytes.fromhex(text)
    packed = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    address = ipaddress.ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def parse_listeners(table: str) -> list[Listener]:
    """Read the listening sockets out of the text of /proc/net/tcp or /proc/net/tcp6."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        address, _colon, port = fields[1].rpartition(":")
        found.append(Listener(_address(address), int(port, 16), fields[9]))
    return found


def parse_unit(cgroups: str) -> str:
    """Name the systemd unit in the text of /proc/PID/cgroup; empty when there is none."""
    names = _UNIT.findall(cgroups)
    return names[-1] if names else ""


def _is_wildcard(address: str) -> bool:
    """Does a socket on this address listen on every address of the host?"""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:  # a host name, or ss's star, which it prints for both families at once
        return address == "*"


def conflicts(listener: Listener, address: str, port: int) -> bool:
    """Would a new socket on this address and port collide with the listener?"""
    if listener.port != port:
        return False
    return listener.address == address or _is_wildcard(listener.address) or _is_wildcard(address)


def resolve(address: str) -> str:
    """Turn a host name into the address a service would bind to."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        pass
    try:
        return str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as exc:
        raise PreflightError(f"{address} is neither an IP address nor a name this host can resolve: {exc}") from exc


def is_local(address: str) -> bool:
    """Does this host own the address?"""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as exc:
            if exc.errno == errno.EADDRNOTAVAIL:
                return False
            raise
    return True


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def _links(folder: str) -> t.Iterator[str]:
    """Targets of the links in a folder; what vanishes meanwhile or must not be seen is left out."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            yield os.readlink(f"{folder}/{name}")


def listeners() -> list[Listener]:
    """All listening TCP sockets of this host."""
    return [entry for name in ("tcp", "tcp6") for entry in parse_listeners(_read(f"{PROC}/net/{name}"))]


def holders(inodes: t.Collection[str]) -> dict[str, Holder]:
    """Find the processes that hold these sockets; needs root to see other users' processes."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, Holder] = {}
    for pid in os.listdir(PROC):
        if not pid.isdigit():
            continue
        for link in _links(f"{PROC}/{pid}/fd"):
            if link in wanted:
                name = _read(f"{PROC}/{pid}/comm").strip()
                found[wanted[link]] = Holder(int(pid), name, parse_unit(_read(f"{PROC}/{pid}/cgroup")))
    return found


def check_port(address: str, port: int, unit: str) -> dict[str, t.Any]:
    """Report who holds a port; a holder that is the unit itself does not count."""
    bound = resolve(address)
    taken = [entry for entry in listeners() if conflicts(entry, bound, port)]
    known = holders({entry.inode for entry in taken}) if taken else {}
    held_by = []
    for entry in taken:
        holder = known.get(entry.inode)
        if unit and holder is not None and holder.unit == unit:
            continue
        held_by.append(
            {
                "address": entry.address,
                "pid": holder.pid if holder else 0,
                "process": holder.name if holder else "",
                "unit": holder.unit if holder else "",
            }
        )
    return {"address": address, "port": port, "local": is_local(bound), "held_by": held_by}


def nearest_existing(path: str) -> str:
    """The path itself or its nearest parent that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    return path


def _present(path: str, size: int | None) -> bool:
    try:
        state = os.stat(path)
    except OSError:
        return False
    return size is None or state.st_size == size


def check_space(wants: t.Sequence[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Add up, file system by file system, what is wanted and what is free."""
    totals: dict[int, dict[str, t.Any]] = {}
    for want in wants:
        there = bool(want.get("unless_exists")) and _present(want["unless_exists"], want.get("unless_size"))
        base = nearest_existing(want["path"])
        fresh: dict[str, t.Any] = {"paths": [], "present": [], "wanted_bytes": 0, "free_bytes": 0}
        entry = totals.setdefault(os.stat(base).st_dev, fresh)
        room = os.statvfs(base)
        entry["free_bytes"] = room.f_bavail * room.f_frsize
        entry["paths"].append(want["path"])
        if there:
            entry["present"].append(want["unless_exists"])
        else:
            entry["wanted_bytes"] += want["bytes"]
    return [dict(entry, enough=entry["wanted_bytes"] <= entry["free_bytes"]) for entry in totals.values()]
