# SPDX-License-Identifier: Apache-2.0
"""Schemas of engine versions: the shipped ones, and what checking against one says."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _engine_schema as schemas

ROOT = Path(__file__).resolve().parents[4]
SHIPPED = sorted((ROOT / "roles" / "deepseek_service" / "files" / "engines").glob("*/schemas/*.yml"))
WORDS = {
    *("type", "choices", "min", "max", "above", "below", "items", "keys"),
    *("required", "exclusive", "nullable", "any_of"),
}
SCHEMA: dict[str, t.Any] = {
    "engine": "example",
    "version": "1.0",
    "dashes": False,
    "removed": {"old_name": "new_name replaced it"},
    "elsewhere": {"port": "it is on the command line"},
    "exclusive": [["name", "share"]],
    "keys": {
        "name": {"type": "str", "choices": ["a", "b"]},
        "share": {"type": "float", "above": 0, "max": 1},
        "size": {"type": "int", "min": 1},
        "wait": {"type": "float", "below": 10},
        "on": {"type": "bool"},
        "sizes": {"type": "list", "items": {"type": "int", "min": 1}},
        "maybe": {"type": "int", "nullable": True},
        "either": {"any_of": [{"type": "int", "min": 0}, {"type": "str", "choices": ["auto"]}]},
        "parts": {"any_of": [{"type": "list", "items": {"type": "int"}}, {"type": "str"}]},
        "anything": {},
        "inner": {
            "type": "dict",
            "keys": {"left": {"type": "int"}, "right": {"type": "int"}, "needed": {"type": "bool"}},
            "required": ["needed"],
            "exclusive": [["left", "right"]],
        },
    },
}


def sentences(**config: t.Any) -> list[str]:
    return schemas.problems(config, SCHEMA)


def test_what_is_right() -> None:
    assert not sentences(
        share=1, size=1, wait=-3.5, on=True, sizes=[1, 2], maybe=None, either="auto", parts=[1], anything=[{}]
    )
    assert not sentences(name="a", either=3, maybe=4, parts="x", anything=None, inner={"needed": False, "left": 1})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "c"}, "example engine.yml at name: expected one of a, b, found 'c'."),
        ({"name": None}, "example engine.yml at name: expected one of a, b, found null."),
        ({"share": 0}, "example engine.yml at share: expected a number at most 1 and above 0, found 0."),
        ({"share": True}, "example engine.yml at share: expected a number at most 1 and above 0, found true."),
        ({"wait": 10}, "example engine.yml at wait: expected a number below 10, found 10."),
        ({"size": 1.5}, "example engine.yml at size: expected a whole number at least 1, found 1.5."),
        ({"size": "1"}, "example engine.yml at size: expected a whole number at least 1, found '1'."),
        ({"on": "true"}, "example engine.yml at on: expected true or false, found 'true'."),
        ({"sizes": [1, 2, 0]}, "example engine.yml at sizes[2]: expected a whole number at least 1, found 0."),
        ({"sizes": 16}, "example engine.yml at sizes: expected a list, found 16."),
        ({"maybe": "x"}, "example engine.yml at maybe: expected a whole number or null, found 'x'."),
        ({"either": -1}, "example engine.yml at either: expected a whole number at least 0 or one of auto, found -1."),
        ({"parts": ["x"]}, "example engine.yml at parts[0]: expected a whole number, found 'x'."),
        ({"inner": {}}, "example engine.yml at inner.needed: expected true or false, found nothing."),
        ({"inner": {"needed": True, "lfet": 1}}, "found lfet; did you mean left?"),
        (
            {"inner": {"needed": True, "left": 1, "right": 2}},
            "example engine.yml at inner: expected one of left and right, found both.",
        ),
        ({"name": "a", "share": 0.5}, "example engine.yml: expected one of name and share, found both."),
        ({"old_name": 1}, "example engine.yml at old_name: expected a key of version 1.0, found old_name: new_name"),
        ({"--old-name": 1}, "found --old-name: new_name replaced it."),
        ({"port": 1}, "example engine.yml at port: expected no such key in this file, found port: it is on the"),
        (
            {"siez": 1},
            "example engine.yml at siez: expected a key that this version knows, found siez; did you mean size?",
        ),
    ],
)
def test_what_is_wrong(config: dict[str, t.Any], sentence: str) -> None:
    found = schemas.problems(config, SCHEMA)
    assert len(found) == 1
    assert sentence in found[0]


def test_all_problems_at_once_in_an_order_of_their_own() -> None:
    one = schemas.problems({"size": 0, "name": "c", "inner": {"x": 1}}, SCHEMA)
    two = schemas.problems({"inner": {"x": 1}, "name": "c", "size": 0}, SCHEMA)
    assert one == two
    assert len(one) == 4


@pytest.mark.parametrize("config", [[], None, "text"])
def test_no_mapping_at_all(config: t.Any) -> None:
    assert "expected a mapping, found" in schemas.problems(config, SCHEMA)[0]


def test_the_value_of_a_secret_is_never_shown() -> None:
    sglang = yaml.safe_load(next(path for path in SHIPPED if "sglang" in path.parts).read_text("utf-8"))
    for name in ("api-key", "api_key", "admin-api-key", "api-keyy"):
        (found,) = schemas.problems({name: "a-secret-of-somebody"}, sglang)
        assert "a-secret" not in found


def _rules(rule: dict[str, t.Any]) -> t.Iterator[dict[str, t.Any]]:
    yield rule
    inner = [*rule.get("keys", {}).values(), *rule.get("any_of", []), *([rule["items"]] if "items" in rule else [])]
    for entry in inner:
        yield from _rules(entry)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_shipped_schema(path: Path) -> None:
    schema = yaml.safe_load(path.read_text("utf-8"))
    assert (schema["engine"], schema["version"]) == (path.parts[-3], path.stem)
    assert set(schema) <= {"engine", "version", "source", "dashes", "removed", "elsewhere", "exclusive", "keys"}
    assert not set(schema["keys"]) & (set(schema["removed"]) | set(schema["elsewhere"]))
    assert {"host", "port", "model"} <= set(schema["elsewhere"])
    wrong = "_" if schema["dashes"] else "-"
    assert not [name for name in schema["keys"] if wrong in name]
    for name, top in schema["keys"].items():
        for rule in _rules(top):
            assert set(rule) <= WORDS, name
            assert rule.get("type", "str") in ("str", "int", "float", "bool", "list", "dict"), name
            assert set(rule.get("required", [])) <= set(rule.get("keys", {})), name


def test_every_gpu_engine_has_one() -> None:
    assert {path.parts[-3] for path in SHIPPED} == {"tensorrt_llm", "sglang", "vllm"}


def test_the_articles_flags_are_refused_everywhere() -> None:
    for path in SHIPPED:
        schema = yaml.safe_load(path.read_text("utf-8"))
        for name in ("fp16", "--fp16", "strict_types", "--strict_types"):
            (found,) = schemas.problems({name: True}, schema)
            assert "dtype" in found
