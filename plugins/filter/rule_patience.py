# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Alert rules that wait longer, or not as long."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

# Milliseconds of each unit of Prometheus' durations.
UNITS = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
    "y": 31_536_000_000,
}
WAIT = re.compile(r"^(\s+for: )((?:[0-9]+(?:ms|[smhdwy]))+)[ \t]*$", re.MULTILINE)


def milliseconds(duration: str) -> int:
    """A duration such as 1h30m in milliseconds."""
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(r"([0-9]+)(ms|[smhdwy])", duration))


def rule_patience(value: Any, factor: Any) -> str:
    """Multiply every for."""
    if not isinstance(value, str):
        raise AnsibleFilterError(f"rule_patience: expected the text of a rule file, found {type(value).__name__}")
    try:
        times = float(factor)
    except (TypeError, ValueError) as exc:
        raise AnsibleFilterError(f"rule_patience: expected a number, found {factor!r}") from exc
    if times <= 0:
        raise AnsibleFilterError(f"rule_patience: expected a number above 0, found {factor!r}")
    if times == 1:
        return value
    return WAIT.sub(lambda found: f"{found[1]}{max(1, round(milliseconds(found[2]) * times / 1000))}s", value)


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter functions by name."""
        return {"rule_patience": rule_patience}
