# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Values: when two are equal, and how they are shown to people."""

from __future__ import annotations

import json
import math
import re
import typing as t

Key = t.Any
"""Something hashable that is equal for equal values and only for these."""

_encode = json.JSONEncoder(sort_keys=True, default=str, check_circular=False).encode


BOOLS: dict[t.Any, Key] = {True: ("bool", True), False: ("bool", False), None: None}


def key_of(value: t.Any) -> Key:
    """A key that is equal for equal values: 1 and 1.0 are equal; 1, true and "1" are not; NaN equals NaN.

    Text and numbers are their own keys, which is what makes most columns cost nothing.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return BOOLS[value]
    if isinstance(value, (int, float)):
        return ("nan",) if math.isnan(value) else value
    return ("json", _encode(value) if value else "[]" if isinstance(value, (list, tuple)) else "{}")


def order_of(value: t.Any) -> tuple[int, t.Any]:
    """A sort key across types."""
    if value is None:
        return (0, 0)
    if isinstance(value, (int, float)):
        return (1, value if not math.isnan(value) else math.inf)
    return (2, value) if isinstance(value, str) else (3, json.dumps(value, sort_keys=True, default=str))


# What a terminal would obey, and what no encoding knows.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """A text without anything that is more than text."""
    return _UNPRINTABLE.sub("\ufffd", text)


def shown(value: t.Any, unit: str = "") -> str:
    """A value for people, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() else round(value, 4)
    if isinstance(value, (int, float)):
        if unit == "bytes":
            return f"{value / 1e12:.2f} TB" if abs(value) >= 1e12 else f"{value / 1e9:.1f} GB"
        return f"{value} {unit}".rstrip()
    if isinstance(value, str):
        return clean(" ".join(value.split())) + (f" {unit}" if unit and value else "") if value else "(empty)"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(one, unit) for one in value) if value else "none"
    if isinstance(value, t.Mapping):
        parts = (f"{clean(str(key))}={shown(value[key], unit)}" for key in sorted(value, key=str))
        return ", ".join(parts) if value else "none"
    return clean(str(value))


def contrast(value: t.Any, other: t.Any, unit: str = "") -> str:
    """A value next to another one: of long lists and mappings only what the other has not."""
    if isinstance(value, t.Mapping) and isinstance(other, t.Mapping):
        own = {key: one for key, one in value.items() if key not in other or key_of(other[key]) != key_of(one)}
        lacks = [str(key) for key in other if key not in value]
        text = shown(own, unit) if own else ""
        return (
            "; ".join(part for part in (text, f"no {', '.join(sorted(lacks))}" if lacks else "") if part) or "the same"
        )
    if long_lists(value, other):
        here, there = {key_of(one) for one in value}, {key_of(one) for one in other}
        own_items = [one for one in value if key_of(one) not in there]
        lacking = [one for one in other if key_of(one) not in here]
        parts = [
            f"with {shown(own_items, unit)}" if own_items else "",
            f"without {shown(lacking, unit)}" if lacking else "",
        ]
        return " and ".join(part for part in parts if part) or "in another order"
    return shown(value, unit)


def long_lists(value: t.Any, other: t.Any) -> bool:
    """Whether two values are lists that are better told by what differs."""
    return isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)) and max(len(value), len(other)) > 4


def name_list(names: t.Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
