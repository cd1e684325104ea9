# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rails of RDMA hosts, for role rdma."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _rdma_rails as rails


def _peers(value: object) -> list[t.Mapping[str, t.Any]]:
    if not isinstance(value, list) or any(not isinstance(peer, t.Mapping) for peer in value):
        raise AnsibleFilterError("expected a list of peers, each with name and rails")
    return value


def rdma_rail_problems(peers: object, name: str, loose: bool = False, routed: bool = False) -> list[str]:
    """What is wrong with the rails, in sentences."""
    return rails.rail_problems(_peers(peers), name, loose, routed)


def rdma_partner(peers: object, name: str, pairing: str = "ring") -> dict[str, t.Any]:
    """Whom a host measures with."""
    if pairing not in ("ring", "pairs"):
        raise AnsibleFilterError(f"expected ring or pairs, found {pairing}")
    return rails.partner(_peers(peers), name, pairing)


def rdma_rails_of(peers: object, name: str) -> list[dict[str, t.Any]]:
    """The rails of one host."""
    found = [peer for peer in _peers(peers) if peer.get("name") == name]
    return rails.rails_of(found[0]) if found else []


class FilterModule:
    """Filters of role rdma."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Names and functions."""
        return {
            "rdma_rail_problems": rdma_rail_problems,
            "rdma_partner": rdma_partner,
            "rdma_rails_of": rdma_rails_of,
        }
