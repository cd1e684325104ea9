# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Check the configuration of an engine against the schema of its version.

A schema is data (roles/deepseek_service/files/engines/ENGINE/schemas/VERSION.yml). A rule of it knows these words:

- ``type``: str, int, float, bool, list or dict. A whole number is a float too; true and false are no numbers.
- ``choices``: the words or numbers that are allowed.
- ``min``, ``max``: bounds that may be reached; ``above``, ``below``: bounds that may not.
- ``items``: the rule of each item of a list.
- ``keys``: the keys of a mapping, which then has no others; ``required`` of them must be there; of each of ``exclusive`` at most one.
- ``nullable``: null is allowed.
- ``any_of``: one of these rules must fit.

A rule without a word allows everything.
"""

from __future__ import annotations

import difflib
import typing as t

_NAMES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
_MOST_CHOICES = 12
_LONGEST = 60


def _is(value: object, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    wanted: dict[str, type] = {"str": str, "list": list, "dict": dict}
    return isinstance(value, wanted[kind])


def _shown(value: object) -> str:
    """A value as it would stand in YAML, short enough for a sentence."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, (str, list, dict)) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _bounds(rule: t.Mapping[str, t.Any]) -> str:
    words = [
        (f"at least {rule['min']}" if "max" not in rule else f"from {rule['min']} to {rule['max']}")
        if "min" in rule
        else "",
        f"at most {rule['max']}" if "max" in rule and "min" not in rule else "",
        f"above {rule['above']}" if "above" in rule else "",
        f"below {rule['below']}" if "below" in rule else "",
    ]
    return " and ".join(word for word in words if word)


def expected(rule: t.Mapping[str, t.Any]) -> str:
    """What a rule allows, in words."""
    if "any_of" in rule:
        text = " or ".join(dict.fromkeys(expected(part) for part in rule["any_of"]))
    elif "choices" in rule:
        choices = [str(choice) for choice in rule["choices"]]
        text = f"one of {', '.join(choices[:_MOST_CHOICES])}"
        if len(choices) > _MOST_CHOICES:
            text += f" and {len(choices) - _MOST_CHOICES} more"
    else:
        text = " ".join(part for part in (_NAMES.get(rule.get("type", ""), "a value"), _bounds(rule)) if part)
    return f"{text} or null" if rule.get("nullable") else text


def _fits_bounds(value: t.Any, rule: t.Mapping[str, t.Any]) -> bool:
    return (
        ("min" not in rule or value >= rule["min"])
        and ("max" not in rule or value <= rule["max"])
        and ("above" not in rule or value > rule["above"])
        and ("below" not in rule or value < rule["below"])
    )


def _check(value: object, rule: t.Mapping[str, t.Any], where: str) -> list[str]:
    """Sentences about one value: ``where: expected ..., found ...``."""
    if value is None and (rule.get("nullable") or not rule):
        return []
    if "any_of" in rule:
        outcomes = [_check(value, part, where) for part in rule["any_of"]]
        if not all(outcomes):
            return []
        # The alternative of the right type knows best what is wrong.
        of_type = [found for found, part in zip(outcomes, rule["any_of"]) if _is(value, part.get("type", "str"))]
        deeper = [found for found in of_type if found and not found[0].startswith(f"{where}: ")]
        return deeper[0] if deeper else [f"{where}: expected {expected(rule)}, found {_shown(value)}"]
    kind = rule.get("type")
    if (kind and not _is(value, kind)) or ("choices" in rule and value not in rule["choices"]):
        return [f"{where}: expected {expected(rule)}, found {_shown(value)}"]
    if kind in ("int", "float") and not _fits_bounds(value, rule):
        return [f"{where}: expected {expected(rule)}, found {_shown(value)}"]
    if isinstance(value, list) and "items" in rule:
        return [line for number, item in enumerate(value) for line in _check(item, rule["items"], f"{where}[{number}]")]
    if isinstance(value, dict) and "keys" in rule:
        return _mapping(value, rule, where)
    return []


def _mapping(value: t.Mapping[t.Any, t.Any], rule: t.Mapping[str, t.Any], where: str) -> list[str]:
    keys = rule["keys"]
    found = []
    for name in sorted(value, key=str):
        inner = f"{where}.{name}"
        found += _check(value[name], keys[name], inner) if name in keys else [f"{inner}: {_unknown(str(name), keys)}"]
    found += [
        f"{where}.{name}: expected {expected(keys[name])}, found nothing"
        for name in rule.get("required", [])
        if name not in value
    ]
    for names in rule.get("exclusive", []):
        given = [name for name in names if value.get(name)]
        if len(given) > 1:
            found.append(f"{where}: expected one of {' and '.join(names)}, found both")
    return found


def _unknown(name: str, known: t.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.75)
    return f"expected a key that this version knows, found {name}" + (f"; did you mean {near[0]}?" if near else "")


def spelled(config: t.Mapping[t.Any, t.Any], schema: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The configuration with its own keys spelled as the engine's file wants them: with dashes or with underscores."""
    old, new = ("_", "-") if schema.get("dashes") else ("-", "_")
    return {str(name).replace(old, new): value for name, value in config.items()}


def problems(config: object, schema: t.Mapping[str, t.Any], file_name: str = "engine.yml") -> list[str]:
    """What is wrong with a configuration, in sentences that name the engine, the file and the key; nothing when all is well."""
    name = f"{schema['engine']} {file_name}"
    if not isinstance(config, dict):
        return [f"{name}: expected a mapping, found {_shown(config)}."]
    known, found = schema["keys"], []
    for key in sorted(config, key=str):
        where, text = f"{name} at {key}", str(key)
        # The old names are known by either spelling: they come from articles.
        other = text.replace("_", "-") if schema.get("dashes") else text.replace("-", "_")
        other = other.strip("-_")
        if text in known:
            found += _check(config[key], known[text], where)
        elif other in schema["removed"]:
            found.append(
                f"{where}: expected a key of version {schema['version']}, found {key}: {schema['removed'][other]}"
            )
        elif other in schema["elsewhere"]:
            found.append(f"{where}: expected no such key in this file, found {key}: {schema['elsewhere'][other]}")
        else:
            found.append(f"{where}: {_unknown(text, known)}")
    for names in schema.get("exclusive", []):
        if len([key for key in names if config.get(key)]) > 1:
            found.append(f"{name}: expected one of {' and '.join(names)}, found both")
    return [f"{sentence}." if not sentence.endswith("?") else sentence for sentence in found]
