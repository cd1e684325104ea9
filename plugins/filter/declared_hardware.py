# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter declared_hardware; documented in the YAML file of the same name."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils._declared_hardware import DeclaredError, expand


def declared_hardware(declared: t.Any) -> dict[str, t.Any]:
    """Turn a few words about hardware into the structure of hardware_info."""
    try:
        return expand(declared)
    except DeclaredError as exc:
        raise AnsibleFilterError(str(exc)) from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"declared_hardware": declared_hardware}
