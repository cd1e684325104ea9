# SPDX-License-Identifier: Apache-2.0
"""Two readings of the engines' wheels: the schemas of the role, by syntax trees, and the options of the stand-ins, by text patterns."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[4]
ENGINES = ROOT / "roles" / "deepseek_service" / "files" / "engines"
LIST = ROOT / "tests" / "mock" / "engine_options.json"
# Registered, but the file cannot hold them: another file, and names that are kept to say that they went away.
COMMAND_LINE_ONLY = {
    "sglang": {
        *("config", "disable-cuda-graph", "enable-dp-attention"),
        *("enable-flashinfer-allreduce-fusion", "monokernel-backend"),
    },
    "vllm": {"config"},
}


def schema(engine: str) -> dict[str, t.Any]:
    (path,) = (ENGINES / engine / "schemas").glob("*.yml")
    return t.cast("dict[str, t.Any]", yaml.safe_load(path.read_text("utf-8")))


@pytest.fixture(name="listed", scope="module")
def read_list() -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", json.loads(LIST.read_text("utf-8")))


@pytest.mark.parametrize("engine", COMMAND_LINE_ONLY)
def test_both_readings_found_the_same_options(listed: dict[str, t.Any], engine: str) -> None:
    known, options = schema(engine), listed[engine]["options"]
    assert listed[engine]["version"] == known["version"]
    names = {name for name in options if not (name.startswith("no-") and name[3:] in options)}
    in_schema = {
        name for name in {*known["keys"], *known["elsewhere"]} if not (name.startswith("no-") and name[3:] in options)
    }
    assert names - in_schema == COMMAND_LINE_ONLY[engine]
    assert not in_schema - names


@pytest.mark.parametrize("engine", COMMAND_LINE_ONLY)
def test_both_readings_agree_on_what_takes_no_value(listed: dict[str, t.Any], engine: str) -> None:
    options = listed[engine]["options"]
    wrong = [
        name
        for name, rule in schema(engine)["keys"].items()
        if name in options and (rule.get("type") == "bool") != (options[name] == "flag")
    ]
    assert wrong == []


def _paths(keys: dict[str, t.Any], where: str = "") -> set[str]:
    found = set()
    for name, inner in keys.items():
        found.add(f"{where}{name}")
        nested = inner.get("keys", {}) if "type" in (inner or {}) or "any_of" in (inner or {}) else inner
        found |= _paths(nested or {}, f"{where}{name}.")
    return found


def test_the_stand_in_of_tensorrt_llm_knows_the_keys_of_the_schema(listed: dict[str, t.Any]) -> None:
    stand_in = _paths({name: inner or {} for name, inner in listed["tensorrt_llm"]["keys"].items()})
    in_schema = _paths(schema("tensorrt_llm")["keys"])
    # The stand-in looks into fewer mappings.
    unlooked = {"attention_dp_config", "cache_transceiver_config", "peft_cache_config"}
    missing = {path for path in in_schema - stand_in if path.partition(".")[0] not in unlooked}
    assert missing == set()
    assert stand_in - in_schema == set()
