# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's private network: a bridge, forwarding, and a table of packet filter rules of its own.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
TABLE_PREFIX = "gpufleet_lab_"
# An empty chain of this name says: forwarding was off before the labs. Like the setting itself, it is gone after a
# reboot of the machine, so the two never disagree.
MARK = "ip_forward_was_off"


@dataclass(frozen=True)
class Network:
    bridge: str
    subnet: str

    @property
    def address(self) -> str:
        return f"{_lab.gateway_of(self.subnet)}/{_lab.network_of(self.subnet).prefixlen}"


def render_table(lab: _lab.Lab, network: Network, mark: bool) -> str:
    lines = [
        f"table ip {lab.table} {{",
        *([f"\tchain {MARK} {{", "\t}"] if mark else []),
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


def wanted_expressions(network: Network, mark: bool) -> dict[str, Any]:
    subnet = _lab.network_of(network.subnet)

    def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
        return {"match": {"op": op, "left": left, "right": right}}

    source = {"payload": {"protocol": "ip", "field": "saddr"}}
    prefix = {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}
    chains: dict[str, Any] = {
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
    if mark:
        chains[MARK] = {"hook": [None, None, None, None], "rules": []}
    return chains


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
    """The machine's view: reads, and the few changes a lab needs."""

    def __init__(self, lab: _lab.Lab, network: Network, commands: _lab.Commands) -> None:
        self.lab = lab
        self.network = network
        self.commands = commands

    # -- reading

    def ruleset(self) -> dict[str, Any]:
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

    def other_labs(self, ruleset: dict[str, Any]) -> list[str]:
        tables = [item["table"]["name"] for item in ruleset.get("nftables", []) if "table" in item]
        return [name for name in tables if name.startswith(TABLE_PREFIX) and name != self.lab.table]

    def state(self) -> dict[str, Any]:
        bridge = self.bridge()
        ruleset = self.ruleset()
        chains = expressions(ruleset, self.lab.table)
        has_table = any(item.get("table", {}).get("name") == self.lab.table for item in ruleset.get("nftables", []))
        mark = MARK in chains
        allowed = {rule[:3] for rule in own_rules(ruleset, self.lab)}
        return {
            "bridge": bridge is not None,
            "up": bridge is not None and "UP" in bridge.get("flags", []),
            "addresses": sorted(
                f"{item['local']}/{item['prefixlen']}"
                for item in (bridge or {}).get("addr_info", [])
                if item.get("family") == "inet"
            ),
            "ip_forward": IP_FORWARD.read_text(encoding="ascii").strip() == "1",
            "table": has_table and chains == wanted_expressions(self.network, mark),
            "table_exists": has_table,
            "mark": mark,
            "blocked_by": [" ".join(chain) for chain in dropping_chains(ruleset) if chain not in allowed],
            "rules_elsewhere": len(own_rules(ruleset, self.lab)),
        }

    def wanted(self, before: dict[str, Any]) -> dict[str, Any]:
        return {
            **before,
            "bridge": True,
            "up": True,
            "addresses": [self.network.address],
            "ip_forward": True,
            "table": True,
            "table_exists": True,
            "mark": before["mark"] or not before["ip_forward"],
            "blocked_by": [],
            "rules_elsewhere": before["rules_elsewhere"] + 2 * len(before["blocked_by"]),
        }

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
        if not (before["table"] and before["mark"] == after["mark"]):
            # One transaction: the table is never half there. The mark comes before the setting it remembers.
            drop = f"add table ip {self.lab.table}\ndelete table ip {self.lab.table}\n"
            self.commands("nft", "-f", "-", data=drop + render_table(self.lab, self.network, after["mark"]))
        if not before["ip_forward"]:
            IP_FORWARD.write_text("1", encoding="ascii")
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
        others = self.other_labs(ruleset)
        if before["mark"] and others:
            # Another lab still needs forwarding: it takes over the duty to switch it off.
            script.append(f"add chain ip {others[0]} {MARK}")
        if before["table_exists"]:
            script.append(f"delete table ip {self.lab.table}")
        if before["mark"] and not others:
            IP_FORWARD.write_text("0", encoding="ascii")
        if script:
            self.commands("nft", "-f", "-", data="\n".join(script) + "\n")
        if before["bridge"]:
            self.commands("ip", "link", "del", "dev", self.network.bridge)
