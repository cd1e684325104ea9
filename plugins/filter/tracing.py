# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters about the collector of spans; documented in the YAML files of the same names."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils._tracing import (
    collector_config,
    header_environment,
    problems,
)


def tracing_config(settings: t.Any) -> dict[str, t.Any]:
    """Turn checked settings into the configuration of the collector."""
    found = tracing_problems(settings)
    if found:
        raise AnsibleFilterError(f"tracing_config: {'; '.join(found)}")
    return collector_config(settings)


def tracing_headers(headers: t.Any) -> str:
    """Turn headers into the file of environment variables that the configuration refers to."""
    if not isinstance(headers, t.Mapping):
        raise AnsibleFilterError(f"tracing_headers: expected a mapping, found {type(headers).__name__}")
    return header_environment(headers)


def tracing_problems(settings: t.Any) -> list[str]:
    """Say what is wrong with the settings."""
    if not isinstance(settings, t.Mapping):
        raise AnsibleFilterError(f"tracing_problems: expected a mapping, found {type(settings).__name__}")
    try:
        return problems(settings)
    except KeyError as exc:
        raise AnsibleFilterError(f"tracing_problems: expected the setting {exc.args[0]}, found none") from exc


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {
            "tracing_config": tracing_config,
            "tracing_headers": tracing_headers,
            "tracing_problems": tracing_problems,
        }
