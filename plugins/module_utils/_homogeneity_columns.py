# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Read facts from many hosts at once: a column for each rule, in it a key for each host's value."""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_derived import DERIVED
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_rules import Rule, Step
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_values import BOOLS, Key, key_of, order_of

_CHUNK = 100
"""Hosts that are read at a time."""
_MISSING: t.Any = object()


@dataclass
class _Column:
    """Values of one path for all hosts.

    :ivar flat: the values, host after host.
    :ivar spans: which of them are a host's; None when each host has exactly one. A host's span is None when its list is no list.
    """

    flat: list[t.Any]
    spans: list[tuple[int, int] | None] | None = None


class _Columns:
    """Reads paths from all hosts, each prefix once."""

    def __init__(self, rows: list[t.Mapping[str, t.Any]]) -> None:
        self._rows = rows
        self._known: dict[tuple[Step, ...], _Column] = {(): _Column(t.cast("list[t.Any]", rows))}

    def get(self, steps: tuple[Step, ...]) -> _Column:
        """The column of a path. Prefixes stay in memory, they are shared by many rules; the values of a whole path do not."""
        if steps in self._known:
            return self._known[steps]
        if steps[0] == "derived" and len(steps) == 2:
            return _Column(_derive(self._rows, steps[1] or ""))
        parent = self._known[()] if len(steps) == 1 else self._prefix(steps[:-1])
        if steps[-1] is None:
            return _elements(parent)
        return _Column(_look_up(parent.flat, steps[-1]), parent.spans)

    def _prefix(self, steps: tuple[Step, ...]) -> _Column:
        if steps not in self._known:
            self._known[steps] = self.get(steps)
        return self._known[steps]


def _look_up(values: list[t.Any], key: str) -> list[t.Any]:
    """values[i][key] for all i; None stays None, no such key is _MISSING."""
    try:
        return [value[key] for value in values]
    except (KeyError, TypeError, IndexError):
        pass
    return [
        value.get(key, _MISSING) if isinstance(value, t.Mapping) else None if value is None else _MISSING
        for value in values
    ]


def _elements(parent: _Column) -> _Column:
    """The elements of lists. A GPU that is lost is left out: it has no values, and a rule of its own names it."""
    flat: list[t.Any] = []
    spans: list[tuple[int, int] | None] = []
    for value in parent.flat:
        if isinstance(value, (list, tuple)):
            start = len(flat)
            flat.extend(value)
            first = value[0] if value else None
            if isinstance(first, dict) and "state" in first and any(_is_lost(one) for one in value):
                flat[start:] = [one for one in value if not _is_lost(one)]
            spans.append((start, len(flat)))
        else:
            spans.append(None)
    if parent.spans is None:
        return _Column(flat, spans)
    outer: list[tuple[int, int] | None] = []
    for span in parent.spans:
        inner = [one for one in spans[span[0] : span[1]] if one is not None] if span else []
        if span is None or (not inner and span[1] > span[0]):
            outer.append(None)
        else:
            outer.append((inner[0][0], inner[-1][1]) if inner else (0, 0))
    return _Column(flat, outer)


def _is_lost(element: t.Any) -> bool:
    return isinstance(element, dict) and element.get("state") == "lost"


def _derive(rows: list[t.Mapping[str, t.Any]], name: str) -> list[t.Any]:
    derived = DERIVED.get(name)
    if derived is None:
        return [_MISSING] * len(rows)
    values = []
    for row in rows:
        try:
            values.append(derived.compute(row))
        except (AttributeError, KeyError, TypeError, ValueError):
            values.append(None)  # the facts have another shape there: nothing that could be read
    return values


_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "bool"),
    (int, "plain"),
    (float, "float"),
    (str, "plain"),
    (type(None), "null"),
)


def _kind(kind: type) -> str:
    return next((word for base, word in _KINDS if issubclass(kind, base)), "other")


def _keys(values: list[t.Any]) -> tuple[list[Key], dict[Key, t.Any], int]:
    """Keys of values, the value of each key, and how many values were missing."""
    kinds = {_kind(kind) for kind in set(map(type, values))}
    missing = 0
    if "other" in kinds:
        missing = sum(value is _MISSING for value in values)
        if missing:
            values = [None if value is _MISSING else value for value in values]
            kinds = {_kind(kind) for kind in set(map(type, values))}
    if kinds <= {"plain", "float", "null"}:
        different = set(values)
        if "float" not in kinds or not any(isinstance(value, float) and math.isnan(value) for value in different):
            return values, {value: value for value in different}, missing
    if kinds <= {"bool", "null"}:
        return [BOOLS[value] for value in values], {key: value for value, key in BOOLS.items()}, missing
    keys = [key_of(value) for value in values]
    return keys, dict(zip(keys, values)), missing


@dataclass
class KeyColumn:
    """The key of each host's value.

    :ivar keys: by host; of a path with [] a tuple of the keys of its different elements, in order.
    :ivar value_of: what a key stands for: of a path with [], for the keys of elements.
    :ivar missing: hosts whose facts do not have the path at all.
    """

    rule: Rule
    keys: list[Key] = field(default_factory=list)
    value_of: dict[Key, t.Any] = field(default_factory=dict)
    missing: int = 0
    _known: dict[tuple[Key, ...], Key] = field(default_factory=dict)

    def extend(self, columns: _Columns) -> None:
        """Read the rule's path from more hosts."""
        column = columns.get(self.rule.steps)
        flat, value_of, missing = _keys(column.flat)
        self.value_of.update(value_of)
        if column.spans is None:
            self.missing += missing
            self.keys += flat
            return
        if missing and missing == len(flat):
            self.missing += len(column.spans)
        known = self._known
        for span in column.spans:
            if span is None:
                self.keys.append(None)
                continue
            found = tuple(flat[span[0] : span[1]])
            if found not in known:
                known[found] = _different(found, self.value_of, self.rule.optional)
            self.keys.append(known[found])

    def value(self, key: Key) -> t.Any:
        """What a host's key stands for."""
        return [self.value_of[one] for one in key] if self.rule.each else self.value_of[key]


def _different(found: tuple[Key, ...], value_of: t.Mapping[Key, t.Any], optional: bool) -> Key:
    """The different keys in order; None when no element has a value."""
    keys = set(found)
    if None in keys and (optional or len(keys) == 1):
        keys.discard(None)
        if not keys:
            return None
    return tuple(sorted(keys, key=lambda key: order_of(value_of[key])))


def labelled(structure: t.Mapping[str, t.Any], steps: tuple[Step, ...]) -> t.Iterator[tuple[str, Key]]:
    """Each element's value with the element's name, for one host."""
    at: list[tuple[str, t.Any]] = [("", structure)]
    for step in steps:
        following: list[tuple[str, t.Any]] = []
        for label, value in at:
            if step is not None:
                following.append((label, value.get(step) if isinstance(value, t.Mapping) else None))
            elif isinstance(value, (list, tuple)):
                for number, one in enumerate(value):
                    name = f"{number}"
                    if isinstance(one, t.Mapping):
                        if _is_lost(one):
                            continue
                        name = str(
                            one.get("name")
                            if "mac" in one or "model" in one or "ports" in one
                            else one.get("pci_address") or number
                        )
                    following.append((label or name, one))
        at = following
    for label, value in at:
        yield label, key_of(value)


def read_columns(usable: t.Mapping[str, t.Any], names: list[str], rules: t.Iterable[Rule]) -> list[KeyColumn]:
    """The column of each rule. It is read some hosts at a time: what the next rule needs is then still in the processor's cache."""
    columns = [KeyColumn(rule) for rule in rules]
    for start in range(0, len(names), _CHUNK):
        some = _Columns([usable[name] for name in names[start : start + _CHUNK]])
        for column in columns:
            column.extend(some)
    return columns
