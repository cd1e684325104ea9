# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Standards: the rules that the hosts of a fleet are compared by, and the language in which a rule names a fact.

A path is dotted names: ``gpu.count``. A name that has other characters is quoted in brackets: ``sysctl["vm.swappiness"]``. ``[]`` is each
element of a list: ``gpus[].vbios`` is, for one host, the sorted list of the different values that its GPUs have. ``derived.NAME`` is a fact
that :mod:`_homogeneity_derived` computes.
"""

from __future__ import annotations

import difflib
import math
import re
import typing as t
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_derived import DERIVED

SEVERITIES = ("block", "warn", "info")
COMPARES = ("majority", "golden", "minimum", "maximum", "tolerance", "forbidden")
# The keys that only some kinds of comparison have.
_KEYS_OF = {
    "majority": {"uniform"},
    "golden": {"value"},
    "minimum": {"value"},
    "maximum": {"value"},
    "tolerance": {"tolerance", "center"},
    "forbidden": {"patterns", "extra_patterns"},
}
_COMMON_KEYS = {"path", "severity", "compare", "title", "unit", "remedy", "optional", "source"}
_ALL_KEYS = _COMMON_KEYS.union(*_KEYS_OF.values())

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BRACKET = re.compile(r"""\[\s*(?:"([^"]*)"|'([^']*)')\s*\]|(\[\])""")

Step = t.Optional[str]
"""A key, or None for each element."""


class RuleError(ValueError):
    """A standard, an inline rule or a golden file is not what it should be; the text is one sentence that names it."""


@dataclass(frozen=True)
class Pattern:
    """A regular expression of a value that must not be, and why."""

    regex: re.Pattern[str]
    why: str = ""


@dataclass(frozen=True)
class Rule:
    """What one fact must be.

    :ivar steps: the path as keys and, for each element, None.
    :ivar value: of golden, minimum, maximum.
    :ivar tolerance: percent around the centre.
    :ivar center: ``majority`` (the median where there is none) or ``median``.
    :ivar uniform: all elements of one host must be equal as well.
    :ivar optional: a value that cannot be read is no finding.
    """

    path: str
    severity: str
    compare: str
    steps: tuple[Step, ...] = ()
    value: t.Any = None
    tolerance: float = 0.0
    center: str = "majority"
    patterns: tuple[Pattern, ...] = ()
    uniform: bool = False
    optional: bool = False
    unit: str = ""
    title: str = ""
    remedy: str = ""
    source: str = ""

    @property
    def each(self) -> bool:
        """Whether the host's value is a list of the different values of elements."""
        return None in self.steps

    @property
    def name(self) -> str:
        """Title and path, for sentences."""
        return f"{self.title} ({self.path})" if self.title and self.title != self.path else self.path


@dataclass(frozen=True)
class Standard:
    """A named set of rules."""

    name: str
    description: str
    source: str
    rules: tuple[Rule, ...]


def parse_path(text: str) -> tuple[Step, ...]:
    """The steps of a path.

    :raises RuleError: when it is no path, with the place where it stops being one.
    """
    steps: list[Step] = []
    place = 0
    while place < len(text):
        if steps or place:
            bracket = _BRACKET.match(text, place)
            if bracket:
                steps.append(
                    None if bracket.group(3) else bracket.group(1) if bracket.group(1) is not None else bracket.group(2)
                )
                place = bracket.end()
                continue
            if text[place] != ".":
                break
            place += 1
        name = _NAME.match(text, place)
        if not name:
            break
        steps.append(name.group())
        place = name.end()
    else:
        if steps:
            return tuple(steps)
    raise RuleError(
        f"path {text!r} cannot be read from character {place + 1} on; expected names with dots between them, "
        'name[] for each element, name["key.with.dots"]'
    )


def path_text(steps: t.Sequence[Step]) -> str:
    """The one way in which a path is written."""
    text = ""
    for step in steps:
        if step is None:
            text += "[]"
        elif _NAME.fullmatch(step):
            text += ("." if text else "") + step
        else:
            text += f'["{step}"]' if '"' not in step else f"['{step}']"
    return text


def is_number(value: object) -> bool:
    """A number that can be compared: no bool, no NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def load_standard(data: object, where: str) -> Standard:
    """A standard out of what its YAML file says.

    :arg where: name of the file, for messages.
    :raises RuleError: with one sentence that names file, rule and key.
    """
    if not isinstance(data, t.Mapping):
        raise RuleError(
            f"{where}: expected a mapping with name, description, source and rules, found {type_word(data)}"
        )
    unknown = sorted(set(data) - {"name", "description", "source", "rules"})
    if unknown:
        raise RuleError(
            f"{where}: unknown key {unknown[0]!r}{_nearest(unknown[0], ('name', 'description', 'source', 'rules'))}"
        )
    name = data.get("name")
    if not isinstance(name, str) or not name:
        raise RuleError(f"{where}: name is missing")
    rules = data.get("rules")
    if not isinstance(rules, t.Sequence) or isinstance(rules, str) or not rules:
        raise RuleError(f"{where}: rules must be a list with at least one rule, found {type_word(rules)}")
    raw = _merge([], rules, where)
    return Standard(
        str(name),
        str(data.get("description") or ""),
        str(data.get("source") or ""),
        tuple(_rule(one, where) for one in raw),
    )


def extend_standard(data: object, extra: t.Sequence[object], where: str, extra_where: str = "rules") -> Standard:
    """A standard with a user's rules merged into it by path.

    A rule for a path that is there changes the keys it has and keeps the others; ``severity: off`` takes the rule away; ``extra_patterns``
    adds to the patterns. A rule for a new path must be whole.

    :arg data: the standard's file as read.
    :arg extra: the user's rules.
    :raises RuleError: with one sentence.
    """
    base = load_standard(data, where)
    if not extra or not isinstance(data, t.Mapping):
        return base
    raw = _merge(_merge([], data["rules"], where), extra, extra_where)
    return replace(base, rules=tuple(_rule(one, extra_where) for one in raw))


def _merge(old: list[dict[str, t.Any]], new: t.Sequence[object], where: str) -> list[dict[str, t.Any]]:
    """Rules as mappings, the new ones over the old ones, in the order in which paths first came."""
    merged = {one["path"]: dict(one) for one in old}
    seen: set[str] = set()
    for number, one in enumerate(new, 1):
        if not isinstance(one, t.Mapping):
            raise RuleError(f"{where}: rule {number}: expected a mapping with path, found {type_word(one)}")
        path = one.get("path")
        if not isinstance(path, str) or not path:
            raise RuleError(f"{where}: rule {number}: path is missing")
        unknown = sorted(str(key) for key in one if key not in _ALL_KEYS)
        if unknown:
            raise RuleError(f"{where}: rule {path}: unknown key {unknown[0]!r}{_nearest(unknown[0], _ALL_KEYS)}")
        try:
            path = path_text(parse_path(path))
        except RuleError as exc:
            raise RuleError(f"{where}: rule {number}: {exc}") from exc
        if path in seen:
            raise RuleError(f"{where}: rule {path}: there are two rules for this path")
        seen.add(path)
        # YAML reads a bare off as false.
        if one.get("severity") is False or one.get("severity") == "off":
            if path not in merged:
                raise RuleError(
                    f"{where}: rule {path}: severity off takes a rule away, and the standard has none for this path"
                    + _nearest(path, merged)
                )
            del merged[path]
            continue
        before = merged.get(path, {})
        if "compare" in one and one["compare"] != before.get("compare"):
            before = {key: value for key, value in before.items() if key in _COMMON_KEYS}
        together = {**before, **one, "path": path}
        if "extra_patterns" in one and "patterns" in together:
            added = one["extra_patterns"]
            if isinstance(added, t.Sequence) and not isinstance(added, str):
                together["patterns"] = [*together["patterns"], *added]
                del together["extra_patterns"]
        merged[path] = together
    return list(merged.values())


def _rule(raw: t.Mapping[str, t.Any], where: str) -> Rule:
    """A checked rule."""
    path = raw["path"]
    head = f"{where}: rule {path}"
    for key, words in (("severity", SEVERITIES), ("compare", COMPARES)):
        if key not in raw:
            raise RuleError(f"{head}: {key} is missing; one of {', '.join(words)}")
        if raw[key] not in words:
            raise RuleError(f"{head}: {key} is {raw[key]!r}; expected one of {', '.join(words)}")
    compare = str(raw["compare"])
    misplaced = sorted(set(raw) - _COMMON_KEYS - _KEYS_OF[compare])
    if misplaced:
        raise RuleError(f"{head}: {misplaced[0]} has no meaning with compare {compare}")
    for key in ("title", "unit", "remedy", "source"):
        if not isinstance(raw.get(key, ""), str):
            raise RuleError(f"{head}: {key} must be text, found {type_word(raw[key])}")
    for key in ("optional", "uniform"):
        if not isinstance(raw.get(key, False), bool):
            raise RuleError(f"{head}: {key} must be true or false, found {raw[key]!r}")
    steps = parse_path(path)
    if steps[0] == "derived" and (len(steps) < 2 or steps[1] not in DERIVED):
        known = ", ".join(f"derived.{name}" for name in sorted(DERIVED))
        raise RuleError(f"{head}: no such derived fact; there are {known}")
    if raw.get("uniform") and None not in steps:
        raise RuleError(f"{head}: uniform compares the elements of a list, and the path has no []")
    if compare in ("golden", "minimum", "maximum") and raw.get("value") is None:
        raise RuleError(f"{head}: compare {compare} needs a value")
    if compare in ("minimum", "maximum") and not is_number(raw["value"]):
        raise RuleError(f"{head}: value of compare {compare} must be a number, found {raw['value']!r}")
    tolerance = raw.get("tolerance", 0)
    if compare == "tolerance" and ("tolerance" not in raw or not is_number(tolerance) or not 0 <= tolerance <= 100):
        raise RuleError(
            f"{head}: compare tolerance needs tolerance, a percentage from 0 to 100, found {raw.get('tolerance')!r}"
        )
    center = raw.get("center", "majority")
    if center not in ("majority", "median"):
        raise RuleError(f"{head}: center is {center!r}; expected majority or median")
    return Rule(
        path=path,
        severity=str(raw["severity"]),
        compare=compare,
        steps=steps,
        value=raw.get("value"),
        tolerance=float(tolerance),
        center=str(center),
        patterns=_patterns(raw, head) if compare == "forbidden" else (),
        uniform=raw.get("uniform", False),
        optional=raw.get("optional", False),
        unit=str(raw.get("unit", "")),
        title=str(raw.get("title", "")) or path,
        remedy=str(raw.get("remedy", "")),
        source=str(raw.get("source", "")),
    )


def _patterns(raw: t.Mapping[str, t.Any], head: str) -> tuple[Pattern, ...]:
    """Compiled patterns of a forbidden rule: texts, or mappings with pattern and why."""
    listed = raw.get("patterns")
    if not isinstance(listed, t.Sequence) or isinstance(listed, str) or not listed:
        raise RuleError(f"{head}: compare forbidden needs patterns, a list of regular expressions")
    found = []
    for one in listed:
        text, why = (one.get("pattern"), one.get("why", "")) if isinstance(one, t.Mapping) else (one, "")
        if not isinstance(text, str) or not isinstance(why, str):
            raise RuleError(f"{head}: a pattern is text, or a mapping with pattern and why; found {one!r}")
        try:
            found.append(Pattern(re.compile(text), why))
        except re.error as exc:
            raise RuleError(f"{head}: pattern {text!r} is no regular expression: {exc}") from exc
    return tuple(found)


def _nearest(word: str, words: t.Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {near[0]}?" if near else ""


def type_word(value: object) -> str:
    """A type in words of YAML."""
    if value is None:
        return "nothing"
    for kind, word in (
        (bool, "a boolean"),
        (str, "text"),
        (int, "a number"),
        (float, "a number"),
        (t.Mapping, "a mapping"),
    ):
        if isinstance(value, kind):
            return word
    return "a list" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
