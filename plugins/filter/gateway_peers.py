# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters about the engines behind a gateway; documented in the YAML files of the same names."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peers import (
    answering_hosts,
    peer_problems,
    peers_from_inventory,
)


def gateway_peers(hosts: t.Any, hostvars: t.Any, port: int = 8000) -> list[dict[str, t.Any]]:
    """Turn inventory host names into the list that the gateway role wants."""
    peers, problems = peers_from_inventory(hosts, hostvars, port)
    if problems:
        raise AnsibleFilterError(f"gateway_peers: {'; '.join(problems)}")
    return peers


def gateway_peer_hosts(hosts: t.Any, plan: t.Any) -> list[dict[str, t.Any]]:
    """Choose the hosts that answer requests according to a plan."""
    try:
        return answering_hosts(hosts, plan)
    except ValueError as exc:
        raise AnsibleFilterError(f"gateway_peer_hosts: {exc}") from exc


def gateway_peer_problems(given: t.Any, hostvars: t.Any = None, tls: bool | None = None) -> list[str]:
    """Say what is wrong with a list of peers, or with the hosts of which it would be made."""
    return peer_problems(given) if hostvars is None else peers_from_inventory(given, hostvars, 8000, tls)[1]


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {
            "gateway_peers": gateway_peers,
            "gateway_peer_hosts": gateway_peer_hosts,
            "gateway_peer_problems": gateway_peer_problems,
        }
