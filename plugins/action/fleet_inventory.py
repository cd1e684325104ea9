# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the fleet_inventory module: see there for the documentation."""

from __future__ import annotations

import typing as t
from pathlib import Path

import yaml
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.module_utils._fleet_inventory import (
    Report,
    RoleSpecs,
    check_addresses,
    check_host,
    check_topology,
)


class ActionModule(ActionBase):
    """Compares hostvars with the argument specs of the collection's roles; never connects to a host."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return the roles of each host, or fail with all problems in one message."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _unused, args = self.validate_argument_spec(
            argument_spec={
                "roles": {"type": "dict", "required": True},
                "required_groups": {"type": "list", "elements": "str", "default": []},
                "unknown_variables": {"type": "str", "choices": ["fail", "warn", "ignore"], "default": "fail"},
                "problems": {"type": "str", "choices": ["fail", "warn"], "default": "fail"},
            }
        )
        variables = task_vars or {}
        groups: dict[str, list[str]] = variables["groups"]
        specs = RoleSpecs(_role_options(Path(__file__).resolve().parents[2] / "roles"))

        report = Report(problems=check_topology(groups, args["required_groups"]))
        roles_of: dict[str, list[str]] = {}
        for group, roles in args["roles"].items():
            for role in roles:
                if role not in specs.options:
                    report.problems.append(f"playbook: role {role} has no argument spec in this collection")
                    continue
                for host in groups.get(group, []):
                    if role not in roles_of.setdefault(host, []):
                        roles_of[host].append(role)

        addresses: dict[str, str] = {}
        for host in sorted(roles_of):
            found = _resolve(variables["hostvars"][host], specs)
            one = check_host(host, roles_of[host], found, specs, args["unknown_variables"])
            report.problems.extend(one.problems)
            report.warnings.extend(one.warnings)
            addresses[host] = str(found.get("fleet_address", found.get("ansible_host", host)))
        report.problems.extend(check_addresses(addresses))

        if args["problems"] == "warn":
            report.warnings += _together(report.problems)
            report.problems = []
        result.update(
            changed=False,
            failed=bool(report.problems),
        )
        for warning in report.warnings:
            self._display.warning(warning)
        if report.problems:
            count = len(report.problems)
            head = f"{count} problem{'s' if count > 1 else ''} in the inventory; nothing was touched:"
            result["msg"] = "\n  - ".join([head, *report.problems])
        else:
            result["hosts"] = roles_of
            result["msg"] = f"{len(roles_of)} hosts checked, no problem"
        return result


def _together(problems: list[str]) -> list[str]:
    """What is wrong with several hosts in the same way, said once."""
    hosts: dict[str, list[str]] = {}
    for problem in problems:
        host, _colon, text = problem.partition(": ")
        hosts.setdefault(text, []).append(host)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}" for text, names in hosts.items()
    ]


def _role_options(root: Path) -> dict[str, dict[str, t.Any]]:
    """Options of the entry point main of every role below root, by role name."""
    options: dict[str, dict[str, t.Any]] = {}
    for path in sorted(root.glob("*/meta/argument_specs.yml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        options[path.parent.parent.name] = data.get("argument_specs", {}).get("main", {}).get("options", {}) or {}
    return options


def _resolve(hostvars: t.Mapping[str, t.Any], specs: RoleSpecs) -> dict[str, t.Any]:
    """The host's variables that matter here, templates resolved; an unresolvable one is its Exception."""
    found: dict[str, t.Any] = {}
    for name in list(hostvars):
        if name != "ansible_host" and specs.owner(name) is None:
            continue
        try:
            found[name] = hostvars[name]
        except Exception as exc:  # templates fail in many ways, each of which is the finding
            found[name] = exc
    return found
