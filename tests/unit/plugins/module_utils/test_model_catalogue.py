# SPDX-License-Identifier: Apache-2.0
"""Models and GPUs of the catalogues, and config.json files of others."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gpu_catalogue as gpus
from ansible_collections.gpufleet.deepseek.plugins.module_utils._engine_catalogue import PRECISIONS, SUPPORT
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import (
    CATALOGUE,
    FAMILIES,
    ModelError,
    known,
    shape_of,
)

R1 = CATALOGUE["deepseek-r1"].config
LLAMA = CATALOGUE["deepseek-r1-distill-llama-8b"].config


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_parameters_computed_from_the_config_are_those_its_publisher_names(name: str) -> None:
    entry, shape = CATALOGUE[name], known(name)
    assert shape.parameters / 1e9 == pytest.approx(entry.published[0], rel=0.01)
    # Publishers leave embeddings out of the active parameters, or not.
    assert shape.active_parameters / 1e9 == pytest.approx(entry.published[1], rel=0.12)
    assert entry.source


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("deepseek-r1", (512 + 64) * 61),  # MLA: latent vector and rotary key
        ("deepseek-v2-lite", (512 + 64) * 27),
        ("deepseek-r1-distill-llama-70b", 2 * 8 * 128 * 80),  # GQA: keys and values of 8 heads
        ("deepseek-r1-distill-qwen-7b", 2 * 4 * 128 * 28),
        ("smollm2-135m-instruct", 2 * 3 * 64 * 30),
    ],
)
def test_kv_cache_of_a_token(name: str, values: int) -> None:
    shape = known(name)
    assert shape.kv_values_per_token == values
    assert shape.kv_bytes_per_token() == 2 * values
    assert shape.kv_bytes_per_token(1.0) == values
    assert shape.kv_sharded is ("kv_lora_rank" not in CATALOGUE[name].config)


def test_a_mixture_of_experts_uses_few_of_its_parameters() -> None:
    shape = known("deepseek-r1")
    assert shape.expert_parameters == 3 * 7168 * 2048 * 256 * 58
    assert shape.active_parameters < shape.parameters / 15
    assert (shape.experts, shape.experts_per_token) == (256, 8)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "model_type: expected"),
        ({**LLAMA, "model_type": "bert"}, "found 'bert'"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size is missing"),
        ({**LLAMA, "num_hidden_layers": -1}, "num_hidden_layers: expected a whole number from 1 to 2048, found -1"),
        ({**LLAMA, "num_hidden_layers": "32"}, "found '32'"),
        ({**LLAMA, "num_hidden_layers": True}, "found True"),
        ({**LLAMA, "vocab_size": 10**12}, "vocab_size"),
        ({**LLAMA, "num_key_value_heads": 7}, "no multiple of num_key_value_heads 7"),
        ({**LLAMA, "hidden_size": 4097}, "no multiple of num_attention_heads"),
        ({**R1, "num_experts_per_tok": 512}, "num_experts_per_tok 512 exceeds n_routed_experts 256"),
        ({k: v for k, v in R1.items() if k != "qk_rope_head_dim"}, "qk_rope_head_dim is missing"),
        ({**R1, "moe_intermediate_size": 0}, "moe_intermediate_size"),
    ],
)
def test_a_config_that_lies_is_refused_with_its_key(config: dict[str, t.Any], says: str) -> None:
    with pytest.raises(ModelError, match=r"^mine: config\.json: ") as caught:
        shape_of("mine", config)
    assert says in str(caught.value)


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="deepseek-r1, deepseek-r1-distill-llama-70b"):
        known("deepseek-r2")


@pytest.mark.parametrize(
    ("extra", "precision"),
    [
        ({}, "bf16"),
        ({"torch_dtype": "float16"}, "fp16"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "gptq"}}, "awq"),
        ({"quantization_config": "broken"}, "bf16"),
    ],
)
def test_precision_of_the_published_weights(extra: dict[str, t.Any], precision: str) -> None:
    assert shape_of("mine", {**LLAMA, **extra}).native_precision == precision


def test_gpus_have_one_entry_for_each_device_id() -> None:
    ids = [device for gpu in gpus.GPUS.values() for device in gpu.device_ids]
    assert len(ids) == len(set(ids)) >= 29
    for gpu in gpus.GPUS.values():
        assert gpu.source
        assert 10000 < gpu.memory_mib < 400000
        assert 200 <= gpu.bandwidth_gbs <= 10000
        assert gpu.fp8_tflops == 0 or gpu.architecture >= "sm89" or gpu.architecture == "sm100"
        assert gpu.form in ("sxm", "pcie")
        assert all(len(device) == 4 and int(device, 16) for device in gpu.device_ids)


@pytest.mark.parametrize(
    ("vendor", "device", "key"),
    [
        ("0x10de", "0x20b2", "a100-sxm4-80gb"),
        ("10DE", "20B0", "a100-sxm4-40gb"),
        ("10de", "2330", "h100-sxm5-80gb"),
        ("10de", "26b9", "l40s"),
        ("10de", "ffff", None),
        ("1002", "20b2", None),
    ],
)
def test_a_gpu_by_its_pci_id(vendor: str, device: str, key: str | None) -> None:
    found = gpus.by_pci(vendor, device)
    assert (found.key if found else None) == key


def test_a_gpu_by_key_or_by_the_name_of_its_driver() -> None:
    assert gpus.by_name("A100-SXM4-80GB") is gpus.by_name("nvidia a100-sxm4-80gb") is gpus.GPUS["a100-sxm4-80gb"]
    assert gpus.by_name("Radeon") is None


def test_the_engine_table_speaks_of_things_that_exist() -> None:
    architectures = {gpu.architecture for gpu in gpus.GPUS.values()} | {"cpu"}
    for line in SUPPORT:
        assert line.precision in PRECISIONS
        assert line.family in set(FAMILIES.values())
        assert set(line.architectures) <= architectures
        assert 0 < line.memory_efficiency < 1
        assert 0 < line.compute_efficiency < 1
        assert line.source
    assert len({(line.engine, line.family, line.precision) for line in SUPPORT}) == len(SUPPORT)
    # The vendor's word: no full model on Ampere in TensorRT-LLM.
    assert not [
        x for x in SUPPORT if x.engine == "tensorrt_llm" and x.family == "deepseek_v3" and "sm80" in x.architectures
    ]
