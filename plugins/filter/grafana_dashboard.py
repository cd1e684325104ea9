# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that makes Grafana's JSON of a dashboard; documented in the YAML file of the same name."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _grafana_dashboard as dashboards


def grafana_dashboard(data: t.Any, settings: t.Mapping[str, t.Any] | None = None) -> dict[str, t.Any]:
    """A dashboard as Grafana reads it. Settings are numbers, or texts that are numbers."""
    if not isinstance(data, t.Mapping):
        raise AnsibleFilterError(f"grafana_dashboard: expected a mapping, found {type(data).__name__}")
    try:
        return dashboards.grafana_dashboard(data, {name: float(value) for name, value in (settings or {}).items()})
    except (KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(f"grafana_dashboard: {data.get('title')}: {error}") from error


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"grafana_dashboard": grafana_dashboard}
