# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters about the Envoy beside an engine; documented in the YAML files of the same names."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils._envoy_sidecar import bootstrap, problems


def envoy_sidecar_config(settings: t.Any) -> dict[str, t.Any]:
    """Turn checked settings into the configuration of Envoy."""
    found = envoy_sidecar_problems(settings)
    if found:
        raise AnsibleFilterError(f"envoy_sidecar_config: {'; '.join(found)}")
    return bootstrap(settings)


def envoy_sidecar_problems(settings: t.Any) -> list[str]:
    """Say what is wrong with the settings."""
    if not isinstance(settings, t.Mapping):
        raise AnsibleFilterError(f"envoy_sidecar_problems: expected a mapping, found {type(settings).__name__}")
    try:
        return problems(settings)
    except KeyError as exc:
        raise AnsibleFilterError(f"envoy_sidecar_problems: expected the setting {exc.args[0]}, found none") from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"envoy_sidecar_config": envoy_sidecar_config, "envoy_sidecar_problems": envoy_sidecar_problems}
