# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter fleet_openings; documented in the YAML file of the same name."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils._fleet_openings import Openings


def fleet_openings(host: t.Any, groups: t.Any, hostvars: t.Any) -> list[dict[str, t.Any]]:
    """The ports that a host must open, and to whom."""
    if host not in hostvars:
        raise AnsibleFilterError(f"fleet_openings: expected a host of the inventory, found {host!r}")
    openings = Openings(str(host), groups, hostvars)
    rules = openings.rules()
    if openings.problems:
        raise AnsibleFilterError(f"fleet_openings: {'; '.join(dict.fromkeys(openings.problems))}")
    return rules


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"fleet_openings": fleet_openings}
