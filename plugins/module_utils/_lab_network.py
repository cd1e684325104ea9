# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's private network: a bridge, a table of packet filter rules of its own, and the kernel settings hosts need.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab

TABLE_PREFIX = "gpufleet_lab_"
# What kernel settings were before the first lab of this boot, for the last one to put back.
FOUND = Path("/run/gpufleet-lab/settings.json")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Setting:
    """A kernel setting of the whole machine that must have at least this value while labs are there."""

    name: str
    path: Path
    least: int
    needed: bool

    def read(self) -> int:
        return int(self.path.read_text(encoding="ascii").split()[0])


SETTINGS = (
    Setting("ip_forward", Path("/proc/sys/net/ipv4/ip_forward"), 1, True),
    # All hosts count as one user, root, and every systemd, journald and dbus takes some: 128 are enough for six hosts.
    Setting("inotify_instances", Path("/proc/sys/fs/inotify/max_user_instances"), 4096, False),
)


@dataclass(frozen=True)
class Network:
    bridge: str
    subnet: str

    @property
    def address(self) -> str:
        return f"{_lab.gateway_of(self.subnet)}/{_lab.network_of(self.subnet).prefixlen}"


def read_found(path: Path = FOUND) -> dict[str, int]:
    """Remembered values; none when they were remembered before the machine's last boot."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = json.loads(_lab.read_bytes(path) or b"{}")
        if found["boot"] == BOOT_ID.read_text(encoding="ascii").strip():
            return {str(name): int(value) for name, value in found["settings"].items()}
    return {}


def remember(values: dict[str, int], path: Path = FOUND) -> None:
    """Keep values that are not remembered yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"boot": BOOT_ID.read_text(encoding="ascii").strip(), "settings": {**values, **read_found(path)}}
    _lab.write_file(path, (json.dumps(content) + "\n").encode(), 0o644)


def forget(path: Path = FOUND) -> None:
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def render_table(lab: _lab.Lab, network: Network) -> str:
    lines = [
        f"table ip {lab.table} {{",
        "\tchain postrouting {",
        "\t\ttype nat hook postrouting priority 100; policy accept;",
        f'\t\tip saddr {network.subnet} oifname != "{network.bridge}" masquerade',
        "\t}",
        "\tchain forward {",
        "\t\ttype filter hook forward priority 0; policy accept;",
        f'\t\tiifname "{network.bridge}" accept',
        f'\t\toifname "{network.bridge}" accept',
        "\t}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def expressions(listing: dict[str, Any], table: str) -> dict[str, Any]:
    """What a `nft -j list table` says, without handles: comparable between two places."""
    chains: dict[str, Any] = {}
    for item in listing.get("nftables", []):
        chain = item.get("chain")
        if chain and chain.get("table") == table:
            chains[chain["name"]] = {
                "hook": [chain.get(key) for key in ("type", "hook", "prio", "policy")],
                "rules": [],
            }
    for item in listing.get("nftables", []):
        rule = item.get("rule")
        if rule and rule.get("table") == table and rule["chain"] in chains:
            chains[rule["chain"]]["rules"].append(rule.get("expr"))
    return chains


def wanted_expressions(network: Network) -> dict[str, Any]:
    subnet = _lab.network_of(network.subnet)

    def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
        return {"match": {"op": op, "left": left, "right": right}}

    source = {"payload": {"protocol": "ip", "field": "saddr"}}
    prefix = {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}
    return {
        "postrouting": {
            "hook": ["nat", "postrouting", 100, "accept"],
            "rules": [
                [
                    match(source, prefix),
                    match({"meta": {"key": "oifname"}}, network.bridge, "!="),
                    {"masquerade": None},
                ]
            ],
        },
        "forward": {
            "hook": ["filter", "forward", 0, "accept"],
            "rules": [
                [match({"meta": {"key": key}}, network.bridge), {"accept": None}] for key in ("iifname", "oifname")
            ],
        },
    }


def dropping_chains(listing: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Other people's chains that drop forwarded packets by default (Docker, ufw): family, table, chain."""
    found = []
    for item in listing.get("nftables", []):
        chain = item.get("chain", {})
        if (
            chain.get("hook") == "forward"
            and chain.get("policy") == "drop"
            and chain.get("family") in ("ip", "inet")
            and not chain["table"].startswith(TABLE_PREFIX)
        ):
            found.append((chain["family"], chain["table"], chain["name"]))
    return found


def own_rules(listing: dict[str, Any], lab: _lab.Lab) -> list[tuple[str, str, str, int]]:
    """Rules with this lab's comment in other people's chains: family, table, chain, handle."""
    found = []
    for item in listing.get("nftables", []):
        rule = item.get("rule", {})
        if rule.get("comment") == lab.table:
            found.append((rule["family"], rule["table"], rule["chain"], rule["handle"]))
    return found


class Machine:
    """The machine's view: reads, and the few changes a lab needs.

    :arg nft: whether the machine has nft. One that lacks it has no rules of a lab.
    """

    def __init__(self, lab: _lab.Lab, network: Network, commands: _lab.Commands, nft: bool = True) -> None:
        self.lab = lab
        self.network = network
        self.commands = commands
        self.nft = nft
        self.warnings: list[str] = []

    # -- reading

    def ruleset(self) -> dict[str, Any]:
        if not self.nft:
            return {}
        parsed: dict[str, Any] = json.loads(self.commands("nft", "-j", "list", "ruleset") or "{}")
        return parsed

    def links(self) -> list[dict[str, Any]]:
        parsed: list[dict[str, Any]] = json.loads(self.commands("ip", "-json", "-details", "addr", "show") or "[]")
        return parsed

    def bridge(self) -> dict[str, Any] | None:
        found = [link for link in self.links() if link.get("ifname") == self.network.bridge]
        if not found:
            return None
        kind = found[0].get("linkinfo", {}).get("info_kind", "no kind")
        if kind != "bridge":
            raise _lab.LabError(f"A link named {self.network.bridge} is there, and it is no bridge ({kind}).")
        return found[0]

    def other_labs(self) -> list[str]:
        tables = [item["table"]["name"] for item in self.ruleset().get("nftables", []) if "table" in item]
        return [name for name in tables if name.startswith(TABLE_PREFIX) and name != self.lab.table]

    def state(self) -> dict[str, Any]:
        bridge = self.bridge()
        ruleset = self.ruleset()
        chains = expressions(ruleset, self.lab.table)
        has_table = any(item.get("table", {}).get("name") == self.lab.table for item in ruleset.get("nftables", []))
        allowed = {rule[:3] for rule in own_rules(ruleset, self.lab)}
        return {
            "bridge": bridge is not None,
            "up": bridge is not None and "UP" in bridge.get("flags", []),
            "addresses": sorted(
                f"{item['local']}/{item['prefixlen']}"
                for item in (bridge or {}).get("addr_info", [])
                if item.get("family") == "inet"
            ),
            "settings": {setting.name: setting.read() for setting in SETTINGS},
            "table": has_table and chains == wanted_expressions(self.network),
            "table_exists": has_table,
            "blocked_by": [" ".join(chain) for chain in dropping_chains(ruleset) if chain not in allowed],
            "rules_elsewhere": len(own_rules(ruleset, self.lab)),
            "remembered": FOUND.exists(),
        }

    def wanted(self, before: dict[str, Any]) -> dict[str, Any]:
        low = [
            setting for setting in SETTINGS if before["settings"][setting.name] < setting.least and self._can(setting)
        ]
        return {
            **before,
            "bridge": True,
            "up": True,
            "addresses": [self.network.address],
            "settings": {**before["settings"], **{setting.name: setting.least for setting in low}},
            "table": True,
            "table_exists": True,
            "blocked_by": [],
            "rules_elsewhere": before["rules_elsewhere"] + 2 * len(before["blocked_by"]),
            "remembered": before["remembered"] or bool(low),
        }

    def _can(self, setting: Setting) -> bool:
        """A container may see a machine's setting without being allowed to change it."""
        if os.access(setting.path, os.W_OK):
            return True
        text = f"{setting.path} has {setting.read()}, a lab wants {setting.least}, and it cannot be changed from here"
        if setting.needed:
            raise _lab.LabError(f"{text}: set it on the machine itself.")
        self.warnings.append(f"{text}: with more than a few hosts, some will lack what it limits.")
        return False

    # -- changing

    def apply(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        bridge = self.network.bridge
        if not before["bridge"]:
            self.commands("ip", "link", "add", "name", bridge, "type", "bridge")
        for address in before["addresses"]:
            if address not in after["addresses"]:
                self.commands("ip", "addr", "del", address, "dev", bridge)
        if after["addresses"][0] not in before["addresses"]:
            self.commands("ip", "addr", "add", after["addresses"][0], "dev", bridge)
        if not before["up"]:
            self.commands("ip", "link", "set", "dev", bridge, "up")
        if not before["table"]:
            # One transaction: the table is never half there.
            drop = f"add table ip {self.lab.table}\ndelete table ip {self.lab.table}\n"
            self.commands("nft", "-f", "-", data=drop + render_table(self.lab, self.network))
        raised = [item for item in SETTINGS if before["settings"][item.name] != after["settings"][item.name]]
        if raised:
            remember({setting.name: before["settings"][setting.name] for setting in raised})
        for setting in raised:
            setting.path.write_text(str(after["settings"][setting.name]), encoding="ascii")
        for chain in before["blocked_by"]:
            for key in ("iifname", "oifname"):
                rule = f'insert rule {chain} {key} "{bridge}" accept comment "{self.lab.table}"\n'
                self.commands("nft", "-f", "-", data=rule)

    def remove(self, before: dict[str, Any]) -> None:
        ruleset = self.ruleset()
        script = [
            f"delete rule {family} {table} {chain} handle {handle}"
            for family, table, chain, handle in own_rules(ruleset, self.lab)
        ]
        if before["table_exists"]:
            script.append(f"delete table ip {self.lab.table}")
        if script:
            self.commands("nft", "-f", "-", data="\n".join(script) + "\n")
        if before["bridge"]:
            self.commands("ip", "link", "del", "dev", self.network.bridge)
        if not self.other_labs():
            found = read_found()
            for setting in SETTINGS:
                # Somebody else's later choice stays.
                if setting.name in found and setting.read() == setting.least:
                    setting.path.write_text(str(found[setting.name]), encoding="ascii")
            forget()
