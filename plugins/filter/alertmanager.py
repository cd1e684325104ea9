# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of role alertmanager, and what is wrong with its settings."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils._alertmanager import Builder, problems


def alertmanager_config(value: t.Any, version: str, directory: str) -> dict[str, t.Any]:
    """What is to be written for this version of Alertmanager."""
    try:
        builder = Builder(value, version, directory)
        return {**builder.build()._asdict(), "receivers": builder.receivers_of()}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise AnsibleFilterError(f"alertmanager_config: expected settings without problems, found {exc!r}") from exc


def alertmanager_problems(value: t.Any) -> list[str]:
    """A sentence for each setting that cannot work."""
    if not isinstance(value, t.Mapping):
        raise AnsibleFilterError("alertmanager_problems: expected a dictionary of settings")
    return problems(value)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filter functions by name."""
        return {"alertmanager_config": alertmanager_config, "alertmanager_problems": alertmanager_problems}
