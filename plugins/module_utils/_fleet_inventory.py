# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check the variables of a whole inventory against the argument specs of roles. PRIVATE to the collection."""

from __future__ import annotations

import difflib
import re
import typing as t
from dataclasses import dataclass, field

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

# Keys of a role's argument spec that only document: the validator of modules does not know them.
_DOC_KEYS = frozenset({"description", "version_added", "short_description", "author"})


def validator_spec(options: t.Mapping[str, t.Mapping[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """Turn the C(options) of a role's argument spec into an argument spec of modules.

    :arg options: as in meta/argument_specs.yml.
    :returns: the same without documentation keys; suboptions as C(options), to any depth. Defaults are left out:
        a default is a template that only a play can resolve, and the role itself applies it.
    """
    spec: dict[str, dict[str, t.Any]] = {}
    for name, option in options.items():
        entry = {key: value for key, value in option.items() if key not in _DOC_KEYS and key != "default"}
        if isinstance(entry.get("options"), t.Mapping):
            entry["options"] = validator_spec(entry["options"])
        spec[name] = entry
    return spec


@dataclass(frozen=True)
class RoleSpecs:
    """The options of every role of the collection, by role name."""

    options: t.Mapping[str, t.Mapping[str, t.Mapping[str, t.Any]]]

    def owner(self, variable: str) -> str | None:
        """Name of the role whose prefix the variable has; of C(gateway) and C(gateway_x) the longer one."""
        owners = [role for role in self.options if variable.startswith(role + "_")]
        return max(owners, key=len) if owners else None

    def suggestion(self, variable: str) -> str | None:
        """The known variable that comes nearest, or None."""
        role = self.owner(variable)
        close = difflib.get_close_matches(variable, list(self.options[role]) if role else [], n=1, cutoff=0.75)
        if not close:
            close = difflib.get_close_matches(
                variable, [name for opts in self.options.values() for name in opts], n=1, cutoff=0.85
            )
        return close[0] if close else None


@dataclass
class Report:
    """What was found: problems stop the run, warnings do not. One sentence each."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_host(
    host: str,
    roles: t.Sequence[str],
    variables: t.Mapping[str, t.Any],
    specs: RoleSpecs,
    unknown: str = "fail",
) -> Report:
    """Check one host.

    :arg host: its inventory name, for the sentences.
    :arg roles: the roles that will run there; their required variables must be there, with the right types.
    :arg variables: the host's variables, templates resolved; a value that could not be resolved is an Exception.
    :arg unknown: C(fail), C(warn) or C(ignore) a variable that has a role's prefix and no place in its spec.
    :returns: sentences that name host, variable, what was expected and what was found.
    """
    report = Report()
    for name in sorted(variables):
        value = variables[name]
        role = specs.owner(name)
        if role is None:
            continue
        if name not in specs.options[role]:
            if unknown == "ignore":
                continue
            near = specs.suggestion(name)
            sentence = f"{host}: variable {name} is not known to role {role}" + (
                f"; did you mean {near}?" if near else ""
            )
            (report.problems if unknown == "fail" else report.warnings).append(sentence)
        elif isinstance(value, Exception):
            report.problems.append(f"{host}: variable {name} cannot be resolved: {value}")
    for role in roles:
        spec = validator_spec(specs.options[role])
        given = {
            name: variables[name] for name in spec if name in variables and not isinstance(variables[name], Exception)
        }
        broken = {name for name in spec if isinstance(variables.get(name), Exception)}
        for name in broken:
            spec.pop(name)
        result = ArgumentSpecValidator(spec).validate(given)
        for message in result.error_messages:
            report.problems.append(f"{host}: role {role}: {_sentence(message, given)}")
    return report


# How the validator of modules says that a value has the wrong type.
_TYPE_ERROR = re.compile(
    r"(?:argument|Elements value for option) '(?P<name>[^']+)'.*?is of type (?P<found>[\w.]+) "
    r"and we were unable to convert to (?P<expected>\w+):",
    re.DOTALL,
)
_SECRET = re.compile(r"key|password|secret|token|users", re.IGNORECASE)


def _sentence(message: str, given: t.Mapping[str, t.Any]) -> str:
    """Put the validator's message in words of an inventory: variable, expected, found."""
    if message.startswith("missing required arguments: "):
        return "missing required variable " + message.removeprefix("missing required arguments: ")
    match = _TYPE_ERROR.search(message)
    if match is None:
        return message
    name, expected = match["name"], match["expected"]
    found = match["found"].replace("_AnsibleTagged", "")
    shown = "" if name not in given or _SECRET.search(name) else f" {str(given[name])[:80]!r}"
    return f"variable {name}: expected {expected}, found {found}{shown}"


def check_topology(groups: t.Mapping[str, t.Sequence[str]], required: t.Sequence[str]) -> list[str]:
    """Sentences about groups that must have hosts and have none."""
    return [
        f"group {name} has no hosts in this inventory; expected at least one"
        for name in required
        if not groups.get(name)
    ]


def check_addresses(addresses: t.Mapping[str, str]) -> list[str]:
    """Sentences about addresses that two hosts share: a peer counted twice, or a service bound twice.

    :arg addresses: fleet address by host name.
    """
    by_address: dict[str, list[str]] = {}
    for host, address in addresses.items():
        by_address.setdefault(address, []).append(host)
    return [
        f"hosts {', '.join(sorted(hosts))} have the same fleet_address {address}; expected one address per host"
        for address, hosts in sorted(by_address.items())
        if len(hosts) > 1
    ]
