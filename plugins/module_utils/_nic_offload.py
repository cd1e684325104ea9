# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Features of Ethernet ports by ethtool: what was there first is kept, what is wanted is set and read back.

Role nic_offload leaves this very file on the host, where it sets the features again at boot: standard library only.
"""

from __future__ import annotations

import json
import os
import re
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

# What ethtool -k prints for several features of the kernel at once, and the word by which ethtool -K takes it.
GROUPS = {
    "rx-checksumming": "rx",
    "tx-checksumming": "tx",
    "scatter-gather": "sg",
    "tcp-segmentation-offload": "tso",
    "udp-fragmentation-offload": "ufo",
    "generic-segmentation-offload": "gso",
    "generic-receive-offload": "gro",
    "large-receive-offload": "lro",
    "rx-vlan-offload": "rxvlan",
    "tx-vlan-offload": "txvlan",
    "ntuple-filters": "ntuple",
    "receive-hashing": "rxhash",
}
_LINE = re.compile(r"^(?P<tab>\s*)(?P<name>[a-z0-9][a-z0-9.-]*): (?P<state>on|off)(?P<rest>.*)$")
# /sys/class/net/IF/addr_assign_type of an address that came with the hardware.
_BURNED_IN = "0"


class OffloadError(Exception):
    """What is wrong, in words for the operator."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


@dataclass(frozen=True)
class Feature:
    """One line of ``ethtool -k``."""

    on: bool
    fixed: bool = False
    requested: bool | None = None
    members: tuple[str, ...] = ()


Features = dict[str, Feature]


@dataclass
class Outcome:
    """What a run found and did on one port."""

    before: Features
    after: Features
    wanted: dict[str, bool] = field(default_factory=dict)
    fixed: list[str] = field(default_factory=list)
    taken_along: list[str] = field(default_factory=list)

    @property
    def changed(self) -> dict[str, bool]:
        """Features that are not as they were."""
        return {
            name: now.on for name, now in self.after.items() if name in self.before and self.before[name].on != now.on
        }


def word(on: bool) -> str:
    """As ethtool says it."""
    return "on" if on else "off"


def parse_features(text: str) -> Features:
    """Read ``ethtool -k``. A line that is set in belongs to the line above that is not."""
    found: dict[str, tuple[bool, bool, bool | None]] = {}
    members: dict[str, list[str]] = {}
    group = ""
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        name, rest = match["name"], match["rest"]
        asked = re.search(r"\[requested (on|off)\]", rest)
        found[name] = (match["state"] == "on", "[fixed]" in rest, asked[1] == "on" if asked else None)
        if match["tab"]:
            members.setdefault(group, []).append(name)
        else:
            group = name
    return {
        name: Feature(on, fixed, requested, tuple(members.get(name, ())))
        for name, (on, fixed, requested) in found.items()
    }


def satisfied(features: Features, name: str, on: bool) -> bool:
    """Is the feature as wanted, as far as the port lets it be?"""
    feature = features[name]
    free = [features[member] for member in feature.members if not features[member].fixed]
    # A group is on when one of its members is; which member that is depends on the port.
    if feature.members and not on:
        return all(not member.on for member in free)
    return feature.fixed or feature.on == on


def fixed_against(features: Features, name: str, on: bool) -> list[str]:
    """What of the feature the port holds at the other value."""
    feature = features[name]
    names = feature.members or (name,)
    if on and feature.members:
        return [name] if feature.fixed and not feature.on else []
    return [item for item in names if features[item].fixed and features[item].on != on]


def pending(features: Features, wanted: t.Mapping[str, bool]) -> dict[str, bool]:
    """What must be set."""
    return {name: on for name, on in wanted.items() if name in features and not satisfied(features, name, on)}


def differences(features: Features, kept: t.Mapping[str, bool]) -> dict[str, bool]:
    """Single features that are not as they were kept and can be set; groups follow from their members."""
    return {
        name: on
        for name, on in kept.items()
        if name in features and not features[name].members and not features[name].fixed and features[name].on != on
    }


def changeable(features: Features) -> dict[str, bool]:
    """The state of every single feature that can be set."""
    return {name: feature.on for name, feature in features.items() if not feature.members and not feature.fixed}


def set_argv(interface: str, values: t.Mapping[str, bool]) -> list[str]:
    """The command that sets features."""
    words = [part for name, on in values.items() for part in (GROUPS.get(name, name), word(on))]
    return ["ethtool", "-K", interface, *words]


def taken_along(before: t.Mapping[str, bool], features: Features, wanted: t.Mapping[str, bool]) -> list[str]:
    """What is off although nobody asked for that: segmentation needs checksums. Groups are named in place of their members."""
    asked = {item for name in wanted if name in features for item in (name, *features[name].members)}
    lost = [name for name, now in features.items() if before.get(name) and not now.on and name not in asked]
    group_of = {member: name for name, feature in features.items() for member in feature.members}
    named = []
    for name in lost:
        group = group_of.get(name, name)
        shown = group if not features[group].on else name
        if shown not in named:
            named.append(shown)
    return named


class Host:
    """The ports of one host, below a root that tests may choose."""

    def __init__(self, run: Run, state_dir: str, config_dir: str, root: str = "/") -> None:
        self.run = run
        self.root = Path(root)
        self.state_dir = Path(state_dir)
        self.config_dir = Path(config_dir)

    def _text(self, path: str) -> str:
        try:
            return (self.root / path).read_text("utf-8").strip()
        except OSError:
            return ""

    def interfaces(self) -> list[str]:
        """Names of all ports."""
        base = self.root / "sys/class/net"
        return sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []

    def address(self, interface: str) -> str:
        """The address that came with the hardware; empty for a port of software, whose address is a new one each time."""
        base = f"sys/class/net/{interface}"
        return self._text(f"{base}/address") if self._text(f"{base}/addr_assign_type") == _BURNED_IN else ""

    def rdma_devices(self, interface: str) -> list[str]:
        """RDMA devices on the port: of the same hardware, or bound to it (soft RoCE)."""
        base = self.root / "sys/class/infiniband"
        devices = sorted(base.iterdir()) if base.is_dir() else []
        return [
            path.name
            for path in devices
            if (path / "device/net" / interface).exists()
            or self._text(f"sys/class/infiniband/{path.name}/parent") == interface
        ]

    def read(self, interface: str) -> Features:
        """Ask ethtool."""
        code, out, err = self.run(["ethtool", "-k", interface])
        features = parse_features(out) if code == 0 else {}
        if not features:
            said = " ".join((err.strip() or out.strip()).split()) or "nothing"
            raise OffloadError(f"{interface}: expected features from 'ethtool -k {interface}', found: {said}")
        return features

    def set(self, interface: str, values: t.Mapping[str, bool]) -> str:
        """Set features; what ethtool says about it is worth something only when the read-back differs."""
        code, out, err = self.run(set_argv(interface, values))
        return "" if code == 0 else " ".join((err.strip() or out.strip()).split())

    def apply(self, interface: str, wanted: t.Mapping[str, bool], before: Features) -> Features:
        """Set what is not as wanted, and read back."""
        missing = pending(before, wanted)
        if not missing:
            return before
        said = self.set(interface, missing)
        after = self.read(interface)
        wrong = pending(after, wanted)
        if wrong:
            found = ", ".join(
                f"{name} {word(after[name].on)}{' (requested, but not given)' if after[name].requested is not None else ''}"
                for name in wrong
            )
            expected = ", ".join(f"{name} {word(on)}" for name, on in wrong.items())
            raise OffloadError(
                f"{interface}: expected {expected} after 'ethtool -K', found {found}{'; ethtool said: ' + said if said else ''}"
            )
        return after

    # What was there before the first change, and what is wanted at boot: one file for each port.

    @staticmethod
    def _load(directory: Path) -> dict[str, dict[str, t.Any]]:
        found = {}
        for path in sorted(directory.glob("*.json")) if directory.is_dir() else []:
            try:
                value = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(value, dict) and isinstance(value.get("features"), dict):
                found[path.name[: -len(".json")]] = value
        return found

    @staticmethod
    def _write(directory: Path, interface: str, value: dict[str, t.Any]) -> None:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = directory / f"{interface}.json"
        fresh = directory / f".{interface}.new"
        fresh.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")
        os.chmod(fresh, 0o644)
        os.replace(fresh, path)

    def kept(self) -> dict[str, dict[str, t.Any]]:
        """What was there first, by port."""
        return self._load(self.state_dir)

    def wishes(self) -> dict[str, dict[str, t.Any]]:
        """What is wanted at boot, by port."""
        return self._load(self.config_dir)

    def keep(self, interface: str, address: str, features: t.Mapping[str, bool]) -> None:
        """Keep what is there before the first change."""
        self._write(self.state_dir, interface, {"interface": interface, "address": address, "features": dict(features)})

    def wish(self, interface: str, address: str, features: t.Mapping[str, bool]) -> None:
        """Say what is wanted at boot."""
        self._write(
            self.config_dir, interface, {"interface": interface, "address": address, "features": dict(features)}
        )

    def forget_wish(self, interface: str) -> None:
        """Want nothing at boot any more."""
        path = self.config_dir / f"{interface}.json"
        if path.exists():
            path.unlink()

    def forget(self, interface: str) -> None:
        """Forget what was there first: it is there again."""
        path = self.state_dir / f"{interface}.json"
        if path.exists():
            path.unlink()

    def port_of(self, entry: dict[str, t.Any]) -> str:
        """The port that an entry speaks of, under the name it has now; empty when it is gone."""
        names = self.interfaces()
        address = entry.get("address", "")
        if address:
            for name in names:
                if self.address(name) == address:
                    return name
        interface = str(entry.get("interface", ""))
        return interface if interface in names else ""


def match(entries: t.Mapping[str, dict[str, t.Any]], interface: str, address: str) -> dict[str, t.Any] | None:
    """The entry of a port: the one of its hardware, else the one of its name."""
    if address:
        for entry in entries.values():
            if entry.get("address") == address:
                return entry
    return entries.get(interface)


@dataclass
class Wish:
    """What the role asks for."""

    interfaces: list[str]
    features: dict[str, bool]
    allow_rdma: bool = False


@dataclass
class Report:
    """What a run did, or would do."""

    changed: bool = False
    ports: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


def problems(host: Host, wish: Wish, ask: bool = True) -> list[str]:
    """What forbids the run, before anything is touched. Without ethtool only what the kernel shows is looked at."""
    found = []
    names = host.interfaces()
    for interface in wish.interfaces:
        if interface not in names:
            found.append(
                f"nic_offload_interfaces: expected interfaces of the host ({', '.join(names)}), found {interface}"
            )
            continue
        rdma = host.rdma_devices(interface)
        if rdma and not wish.allow_rdma:
            found.append(
                f"nic_offload_interfaces: expected no RDMA port unless nic_offload_allow_rdma is true, "
                f"found {interface} with {', '.join(rdma)}"
            )
            continue
        features = host.read(interface) if ask else {}
        unknown = sorted(set(wish.features) - set(features))
        if unknown and ask:
            found.append(
                f"nic_offload_features: expected names that 'ethtool -k {interface}' prints, found {', '.join(unknown)}"
            )
    return found


def _turn(host: Host, wish: Wish, interface: str, check: bool, report: Report) -> None:
    """Bring one port to what is wanted."""
    kept = host.kept()
    address = host.address(interface)
    now = host.read(interface)
    first = match(kept, interface, address)
    renamed = first is not None and first["interface"] != interface
    entry = {"interface": interface, "address": address, "features": wish.features}
    remembered = first is not None and not renamed and host.wishes().get(interface) == entry
    missing = pending(now, wish.features)
    before = dict(first["features"]) if first is not None else changeable(now)
    after = now
    if not check:
        if first is None or renamed:
            host.keep(interface, address, before)
        if renamed and first is not None:
            host.forget_wish(first["interface"])
            host.forget(first["interface"])
        if not remembered:
            host.wish(interface, address, wish.features)
        after = host.apply(interface, wish.features, now)
    report.changed = report.changed or bool(missing) or not remembered
    held = [item for name, on in wish.features.items() for item in fixed_against(now, name, on)]
    lost = taken_along(before, after, wish.features)
    changes = Outcome(now, after).changed if not check else missing
    report.ports[interface] = {"set": changes, "fixed": held, "taken_along": lost}
    report.before += [f"{interface} {name}: {word(now[name].on)}" for name in changes]
    report.after += [f"{interface} {name}: {word(on)}" for name, on in changes.items()]
    if not remembered:
        report.after.append(f"{interface}: kept over reboots")
    if held:
        report.said.append(f"{interface}: the port does not let {', '.join(held)} be changed [fixed]")
    if lost:
        report.said.append(f"{interface}: {', '.join(lost)} went off with {', '.join(sorted(wish.features))}")


def _give_back(host: Host, name: str, entry: dict[str, t.Any], check: bool, report: Report) -> None:
    """Put one port back to what was there first."""
    interface = host.port_of(entry)
    report.changed = True
    report.before.append(f"{name}: kept over reboots")
    if not interface:
        report.said.append(f"{name}: is gone, nothing to put back")
    else:
        now = host.read(interface)
        values = differences(now, entry["features"])
        report.ports[interface] = {"set": values, "fixed": [], "taken_along": []}
        report.before += [f"{interface} {item}: {word(now[item].on)}" for item in values]
        report.after += [f"{interface} {item}: {word(on)}" for item, on in values.items()]
        if not check:
            # No wish any more, so that a port that comes again now stays as it is.
            host.forget_wish(name)
            said = host.set(interface, values) if values else ""
            wrong = differences(host.read(interface), entry["features"])
            if wrong:
                raise OffloadError(
                    f"{interface}: expected {', '.join(f'{item} {word(on)}' for item, on in wrong.items())} as before the first "
                    f"change, found the opposite{'; ethtool said: ' + said if said else ''}"
                )
    if not check:
        host.forget_wish(name)
        host.forget(name)


def ensure(host: Host, wish: Wish, check: bool = False) -> Report:
    """Bring the named ports to what is wanted, and every other port of an earlier run back to what it was."""
    found = problems(host, wish)
    if found:
        raise OffloadError("; ".join(found))
    report = Report()
    for interface in wish.interfaces:
        _turn(host, wish, interface, check, report)
    # A port that has another name now was taken over above; in check mode it is still there under the old one.
    for name, entry in host.kept().items():
        if name not in wish.interfaces and host.port_of(entry) not in wish.interfaces:
            _give_back(host, name, entry, check, report)
    # A wish without a record is what a killed run left.
    for name in host.wishes():
        if name not in wish.interfaces and name not in host.kept() and not check:
            host.forget_wish(name)
            report.changed = True
    return report


def unknown(host: Host, wish: Wish) -> Report:
    """What can be said in check mode on a host that has no ethtool yet."""
    found = problems(host, wish, ask=False)
    if found:
        raise OffloadError("; ".join(found))
    said = [f"{name}: ethtool is not installed yet, its features are not known" for name in wish.interfaces]
    return Report(changed=bool(said), said=said, after=[f"{name}: features as wanted" for name in wish.interfaces])


def at_boot(host: Host, interface: str) -> str:
    """Set the features of one port that has just appeared; what was done, in words."""
    entry = match(host.wishes(), interface, host.address(interface))
    if entry is None:
        return f"{interface}: nothing is wanted"
    now = host.read(interface)
    wanted = {name: bool(on) for name, on in entry["features"].items() if name in now}
    after = host.apply(interface, wanted, now)
    shown = ", ".join(f"{name} {word(after[name].on)}" for name in wanted)
    return f"{interface}: {'set' if pending(now, wanted) else 'found'} {shown}"
