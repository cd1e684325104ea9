# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter fleet_addresses; documented in the YAML file of the same name."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peers import host_addresses


def fleet_addresses(hosts: t.Any, hostvars: t.Any) -> list[str]:
    """The addresses by which the fleet's hosts reach these hosts."""
    addresses, problems = host_addresses(hosts, hostvars)
    if problems:
        raise AnsibleFilterError(f"fleet_addresses: {'; '.join(problems)}")
    return addresses


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"fleet_addresses": fleet_addresses}
