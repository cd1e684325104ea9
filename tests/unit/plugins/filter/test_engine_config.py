# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter import engine_config as plugin

SCHEMA: dict[str, t.Any] = {"engine": "sglang", "version": "1", "dashes": True, "keys": {"tp-size": {"type": "int"}}}
SETTINGS = {"model_name": "m", "listen_address": "127.0.0.1", "weights": "/w", "config_dir": "/c"}


def test_the_names_of_the_filters() -> None:
    assert set(plugin.FilterModule().filters()) == {
        "engine_config",
        "engine_config_problems",
        "engine_image_problems",
    }


def test_problems() -> None:
    assert plugin.engine_config_problems({"tp-size": 8}, SCHEMA) == []
    assert plugin.engine_config_problems({"tp-size": "8"}, SCHEMA, "file.yml") == [
        "sglang file.yml at tp-size: expected a whole number, found '8'."
    ]


@pytest.mark.parametrize("schema", [None, {}, {"engine": "x"}])
def test_what_is_no_schema(schema: t.Any) -> None:
    with pytest.raises(AnsibleFilterError, match="expected the schema of an engine"):
        plugin.engine_config_problems({}, schema)


def test_a_schema_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "1.yml"
    path.write_text("engine: sglang\nversion: '1'\nkeys: {tp-size: {type: int}}\n", "utf-8")
    assert plugin.engine_config_problems({"tp-size": 8}, str(path)) == []
    with pytest.raises(
        AnsibleFilterError, match=r"deepseek_service_engine_version: expected a version with a schema \(1\), found 2"
    ):
        plugin.engine_config_problems({}, str(tmp_path / "2.yml"))


def test_an_engine_that_has_no_such_file() -> None:
    with pytest.raises(AnsibleFilterError, match="engine: expected one of tensorrt_llm, sglang, vllm, found llama_cpp"):
        plugin.engine_config({}, "llama_cpp", "gpu1", SCHEMA, SETTINGS)


def test_settings_that_nobody_knows_and_settings_that_are_missing() -> None:
    with pytest.raises(AnsibleFilterError, match="found colour"):
        plugin.engine_config({}, "sglang", "gpu1", SCHEMA, {**SETTINGS, "colour": "red"})
    with pytest.raises(AnsibleFilterError, match="model_name"):
        plugin.engine_config({}, "sglang", "gpu1", SCHEMA, {})


def test_a_host_without_a_plan_is_a_sentence_and_no_error() -> None:
    found = plugin.engine_config(None, "sglang", "gpu1", SCHEMA, SETTINGS)
    assert found["problems"][0].startswith("fleet_plan: expected a plan for sglang, found none")


DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "image", ["registry.example/vllm/vllm-openai", "registry.example:5000/engine", "localhost/gpufleet/llama_cpp"]
)
def test_an_image_by_its_digest(image: str) -> None:
    assert plugin.engine_image_problems(image, DIGEST) == []


@pytest.mark.parametrize(
    ("image", "digest", "sentence"),
    [
        ("registry.example/vllm:v1", DIGEST, "deepseek_service_image: expected a name without a tag"),
        ("registry.example:5000/vllm:latest", DIGEST, "found registry.example:5000/vllm:latest"),
        (f"registry.example/vllm@{DIGEST}", DIGEST, "expected a name without a tag"),
        (
            "vllm",
            DIGEST,
            "deepseek_service_image: expected REGISTRY/NAME, such as registry.example/vllm/vllm-openai, found vllm.",
        ),
        ("", DIGEST, "found nothing."),
        ("registry.example/vllm --privileged", DIGEST, "expected REGISTRY/NAME"),
        ("registry.example/vllm", "", "deepseek_service_image_digest: expected sha256: and 64 hexadecimal digits"),
        ("registry.example/vllm", DIGEST.upper(), "in lower case"),
    ],
)
def test_an_image_that_may_be_another_one_tomorrow(image: str, digest: str, sentence: str) -> None:
    (found,) = plugin.engine_image_problems(image, digest)
    assert sentence in found
