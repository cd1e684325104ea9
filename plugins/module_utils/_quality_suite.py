# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The frozen questions of the quality probe, and what can be said of one answer by itself. PRIVATE to the collection."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t
from dataclasses import dataclass, field

KINDS = ("translation", "text", "fact", "arithmetic", "json", "instruction", "refusal")
LANGUAGES = ("en", "zh")
MAX_TOKENS = 4096
_RULES = ("match", "lines", "words_max", "characters_max")
_NEEDS = {
    "translation": "references",
    "text": "references",
    "fact": "expect",
    "arithmetic": "expect",
    "json": "schema",
    "instruction": "rule",
    "refusal": "refuse",
}
_THOUGHTS = re.compile(r"\A\s*(<think>)?.*?</think>\s*", re.DOTALL)
_OPEN_THOUGHTS = re.compile(r"\A\s*<think>.*\Z", re.DOTALL)
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
# How models decline, at the beginning of an answer; a helpful answer that mentions limits further on is none.
_REFUSAL = re.compile(
    r"\b(i['\u2019]?m|i am) (really |very )?(sorry|not able|unable)\b|\bi (can['\u2019]?t|cannot|can not|won['\u2019]?t|will not|must decline)\b"
    r"|\bas an ai\b|\bunable to (help|assist|provide)\b|\bagainst the law\b|\billegal\b"
    r"|抱歉|对不起|很遗憾|无法(提供|协助|帮助|回答)|不能(提供|协助|帮助|回答|告诉)|违法|非法|犯罪",
    re.IGNORECASE,
)
_REFUSAL_BEGINNING = 160
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


class QualityError(Exception):
    """Something that the probe cannot work with; the text names it, what was expected and what was found."""


@dataclass(frozen=True)
class Item:
    """One question.

    :ivar language: of the answer; it chooses the tokenizer.
    :ivar references: written answers, for translation and text.
    :ivar expect: regular expression that a right answer has, for fact and arithmetic.
    :ivar schema: JSON schema (the words that fits() knows), for json.
    :ivar rule: match (regular expression for the whole answer), lines, words_max or characters_max, for instruction.
    :ivar refuse: whether the model shall decline, for refusal.
    """

    id: str
    kind: str
    language: str
    prompt: str
    max_tokens: int = 64
    references: tuple[str, ...] = ()
    expect: str = ""
    schema: t.Any = None
    rule: t.Mapping[str, t.Any] = field(default_factory=dict)
    refuse: bool = False


@dataclass(frozen=True)
class Suite:
    """The questions that are asked.

    :ivar version: as the file says it.
    :ivar digest: hash of version and questions; two suites with the same digest are the same.
    """

    version: str
    items: tuple[Item, ...]
    digest: str

    @property
    def label(self) -> str:
        """Name for metrics and people: version and the beginning of the hash."""
        return f"{self.version}-{self.digest[:8]}"

    @property
    def languages(self) -> list[str]:
        """The languages of the answers, in order."""
        return sorted({item.language for item in self.items})

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers together at most."""
        return sum(item.max_tokens for item in self.items)


def load_suite(found: t.Any, only: t.Sequence[str] = ()) -> Suite:
    """A suite from its file's content, checked.

    :arg only: ids of the items to keep; empty for all.
    :raises QualityError: a value is not what it must be, or an id is not there.
    """
    if not isinstance(found, dict) or not isinstance(found.get("items"), list) or not found.get("version"):
        raise QualityError("suite: expected a mapping with version and items, found something else")
    items = [_item(number, one) for number, one in enumerate(found["items"])]
    names = [item.id for item in items]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise QualityError(f"suite: expected ids that differ, found {', '.join(doubled)} twice")
    unknown = [name for name in only if name not in names]
    if unknown:
        raise QualityError(f"items: expected ids of the suite, found {', '.join(unknown)}")
    if only:
        items = [item for item in items if item.id in set(only)]
    if not items:
        raise QualityError("suite: expected at least one item, found none")
    kept = [one for one in found["items"] if one["id"] in {item.id for item in items}]
    text = json.dumps([str(found["version"]), kept], sort_keys=True, ensure_ascii=False)
    return Suite(str(found["version"]), tuple(items), hashlib.sha256(text.encode()).hexdigest())


def _item(number: int, one: t.Any) -> Item:
    where = f"suite.items[{number}]"
    if not isinstance(one, dict) or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", str(one.get("id", ""))):
        raise QualityError(f"{where}.id: expected lower-case letters, digits and dashes, found {one!r:.80}")
    where = f"suite item {one['id']}"
    unknown = sorted(set(one) - set(Item.__dataclass_fields__))
    if unknown:
        raise QualityError(f"{where}: expected keys of an item, found {', '.join(unknown)}")
    for name, allowed in (("kind", KINDS), ("language", LANGUAGES)):
        if one.get(name) not in allowed:
            raise QualityError(f"{where}.{name}: expected one of {', '.join(allowed)}, found {one.get(name)!r}")
    if not isinstance(one.get("prompt"), str) or not one["prompt"].strip():
        raise QualityError(f"{where}.prompt: expected a text, found {one.get('prompt')!r}")
    tokens = one.get("max_tokens", 64)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MAX_TOKENS:
        raise QualityError(f"{where}.max_tokens: expected a whole number from 1 to {MAX_TOKENS}, found {tokens!r}")
    needed = _NEEDS[one["kind"]]
    if one.get(needed) in (None, "", [], {}):
        raise QualityError(f"{where}: expected {needed}, because its kind is {one['kind']}, found none")
    _check_patterns(where, one)
    return Item(**{**one, "references": tuple(str(text) for text in one.get("references", ()))})


def _check_patterns(where: str, one: t.Mapping[str, t.Any]) -> None:
    rule = one.get("rule", {})
    if not isinstance(rule, dict) or any(name not in _RULES for name in rule):
        raise QualityError(f"{where}.rule: expected a mapping with {', '.join(_RULES)}, found {rule!r}")
    for name, pattern in (("expect", one.get("expect", "")), ("rule.match", rule.get("match", ""))):
        try:
            re.compile(str(pattern))
        except re.error as exc:
            raise QualityError(f"{where}.{name}: expected a regular expression, found {pattern!r} ({exc})") from exc


def spoken(text: str) -> str:
    """An answer without what a reasoning model thought before it."""
    if "</think>" in text:
        return _THOUGHTS.sub("", text, count=1).strip()
    return _OPEN_THOUGHTS.sub("", text).strip()


def refused(text: str) -> bool:
    """Whether an answer declines."""
    return _REFUSAL.search(text[:_REFUSAL_BEGINNING]) is not None


def parse_json(text: str) -> tuple[bool, t.Any]:
    """Whether an answer is JSON and nothing else, but for a code fence round it, and its value."""
    fenced = _FENCE.match(text)
    try:
        return True, json.loads(fenced.group(1) if fenced else text)
    except ValueError:
        return False, None


def fits(value: t.Any, schema: t.Mapping[str, t.Any]) -> bool:
    """Whether a value fits a JSON schema of type, enum, required, properties, items, minItems, maxItems, minimum, maximum."""
    kind = schema.get("type")
    if kind and not (isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))):
        return False
    if "enum" in schema and not any(type(value) is type(one) and value == one for one in schema["enum"]):
        return False
    if isinstance(value, dict):
        inner = schema.get("properties", {})
        return all(name in value for name in schema.get("required", ())) and all(
            fits(value[name], inner[name]) for name in inner if name in value
        )
    if isinstance(value, list):
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)) and all(
            fits(one, schema.get("items", {})) for one in value
        )
    if isinstance(value, (int, float)):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return True


def follows(text: str, rule: t.Mapping[str, t.Any]) -> bool:
    """Whether an answer does what it was told: all of the rule's words must hold."""
    lines = [line for line in text.splitlines() if line.strip()]
    return (
        bool(text.strip())
        and ("match" not in rule or re.fullmatch(rule["match"], text) is not None)
        and ("lines" not in rule or len(lines) == rule["lines"])
        and ("words_max" not in rule or len(text.split()) <= rule["words_max"])
        and ("characters_max" not in rule or len("".join(text.split())) <= rule["characters_max"])
    )


def repeats(text: str, language: str) -> bool:
    """Whether an answer goes round in circles: of its runs of four words (characters in Chinese) fewer than half are different.

    Answers of fewer than 24 words or characters are too short to say.
    """
    units = list("".join(text.split())) if language == "zh" else text.split()
    if len(units) < 24:
        return False
    runs = [tuple(units[start : start + 4]) for start in range(len(units) - 3)]
    return len(set(runs)) < len(runs) / 2


def right(item: Item, text: str) -> bool:
    """Whether a fact or a sum is right."""
    return re.search(item.expect, text, re.IGNORECASE) is not None
