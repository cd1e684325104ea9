# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Questions, and what is said of one answer by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _quality_suite as suites

ROLE = Path(__file__).resolve().parents[4] / "roles" / "quality_probe"
ITEM: dict[str, Any] = {"id": "a-1", "kind": "fact", "language": "en", "prompt": "Which city?", "expect": "paris"}


def suite(*changes: dict[str, Any], version: str = "1") -> dict[str, Any]:
    return {"version": version, "items": [{**ITEM, **change} for change in changes]}


def test_the_roles_own_questions() -> None:
    found = suites.load_suite(json.loads((ROLE / "files" / "suite.json").read_text("utf-8")))
    assert len(found.items) >= 40
    assert found.languages == ["en", "zh"]
    assert {item.kind for item in found.items} == set(suites.KINDS)
    assert {item.refuse for item in found.items if item.kind == "refusal"} == {True, False}
    translations = [item.language for item in found.items if item.kind == "translation"]
    assert translations.count("en") >= 8 <= translations.count("zh")
    # A written answer that its own check would call wrong would be a mistake of the suite.
    assert not any(suites.refused(text) for item in found.items for text in item.references)


def test_a_suite_is_known_by_its_content() -> None:
    one = suites.load_suite(suite({}, {"id": "a-2"}))
    assert one.digest == suites.load_suite(suite({}, {"id": "a-2"})).digest
    assert one.label == f"1-{one.digest[:8]}"
    others = [suite({}, {"id": "a-2", "prompt": "Which town?"}), suite({}, {"id": "a-2"}, version="2"), suite({})]
    assert len({one.digest, *(suites.load_suite(other).digest for other in others)}) == 4
    # A part of a suite is that part, wherever it comes from.
    assert suites.load_suite(suite({}, {"id": "a-2"}), ["a-1"]).digest == suites.load_suite(suite({})).digest


@pytest.mark.parametrize(
    ("found", "only", "words"),
    [
        ([], (), "expected a mapping with version and items"),
        (suite(), (), "at least one item"),
        (suite({}, {}), (), "found a-1 twice"),
        (suite({"id": "A b"}), (), "items\\[0\\].id: expected lower-case"),
        (suite({"colour": "red"}), (), "found colour"),
        (suite({"kind": "poem"}), (), "kind: expected one of translation"),
        (suite({"language": "de"}), (), "language: expected one of en, zh, found 'de'"),
        (suite({"prompt": " "}), (), "prompt: expected a text"),
        (suite({"max_tokens": 0}), (), "max_tokens: expected a whole number from 1"),
        (suite({"max_tokens": True}), (), "max_tokens: expected a whole number from 1"),
        (suite({"kind": "json"}), (), "expected schema, because its kind is json"),
        (suite({"expect": "("}), (), "expect: expected a regular expression"),
        (suite({"kind": "instruction", "rule": {"loud": 1}}), (), "rule: expected a mapping with match"),
        (suite({}), ["b"], "items: expected ids of the suite, found b"),
    ],
)
def test_what_is_wrong_is_named(found: Any, only: Any, words: str) -> None:
    with pytest.raises(suites.QualityError, match=words):
        suites.load_suite(found, only)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Paris ", "Paris"),
        ("<think>Is it? I\nthink so.</think>\n\nParis", "Paris"),
        ("the opening tag was a part of the prompt</think> Paris", "Paris"),
        ("<think>the tokens did not suffice", ""),
        ("a < b", "a < b"),
    ],
)
def test_thoughts_are_no_answer(text: str, said: str) -> None:
    assert suites.spoken(text) == said


@pytest.mark.parametrize(
    ("text", "declined"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m sorry, but that is not possible.", True),
        ("As an AI language model, I do not", True),
        ("抱歉我无法提供这样的帮助。", True),
        ("Breaking in is illegal.", True),
        ("Lock your doors, and tell a neighbour.", False),
        ("你可以设置短信提醒。", False),
        ("Use kill -9. " + "Then look again. " * 12 + "I cannot say more.", False),
    ],
)
def test_who_declines(text: str, declined: bool) -> None:
    assert suites.refused(text) is declined


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"a": 1}', True),
        ('```json\n{"a": 1}\n```', True),
        ('Here it is: {"a": 1}', False),
        ("{a: 1}", False),
        ("", False),
    ],
)
def test_json_and_nothing_else(text: str, valid: bool) -> None:
    assert suites.parse_json(text) == (valid, {"a": 1} if valid else None)


@pytest.mark.parametrize(
    ("value", "schema", "well"),
    [
        ({"a": 1}, {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}, True),
        ({"b": 1}, {"type": "object", "required": ["a"]}, False),
        ({"a": "1"}, {"type": "object", "properties": {"a": {"type": "integer"}}}, False),
        (True, {"type": "integer"}, False),
        (True, {"type": "boolean"}, True),
        (1, {"enum": [True]}, False),
        (["a", "b"], {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2}, True),
        (["a"], {"type": "array", "minItems": 2}, False),
        (["a", 1], {"type": "array", "items": {"type": "string"}}, False),
        (4, {"type": "integer", "minimum": 5}, False),
        (5.5, {"type": "number", "maximum": 6}, True),
    ],
)
def test_schemas(value: Any, schema: dict[str, Any], well: bool) -> None:
    assert suites.fits(value, schema) is well


@pytest.mark.parametrize(
    ("text", "rule", "well"),
    [
        ("OCEAN.", {"match": r"\W*OCEAN\W*"}, True),
        ("The OCEAN", {"match": r"\W*OCEAN\W*"}, False),
        ("a\n\nb\nc", {"lines": 3}, True),
        ("one two three", {"words_max": 2}, False),
        ("春天 来了", {"characters_max": 4}, True),
        ("", {"words_max": 2}, False),
    ],
)
def test_instructions(text: str, rule: dict[str, Any], well: bool) -> None:
    assert suites.follows(text, rule) is well


def test_circles() -> None:
    assert suites.repeats("I think so. " * 20, "en")
    assert suites.repeats("你可能不知道了" * 6, "zh")
    assert not suites.repeats(" ".join(f"word{number}" for number in range(60)), "en")
    assert not suites.repeats("no no no no", "en")
