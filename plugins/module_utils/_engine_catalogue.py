# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Engines and precisions: which engine runs which family of models in which precision on which GPU, and how well.

Adding an engine, or what it learnt to run, is adding lines to SUPPORT. The first line that fits wins when the engine or precision is ``auto`` and
several need the same number of hosts, so the order within a precision is the order of preference.
"""

from __future__ import annotations

from dataclasses import dataclass

# Where it matters, the sentence that people read when a combination is refused.
TENSORRT_LLM_AMPERE = "TensorRT-LLM does not run DeepSeek-V3/R1 on Ampere: its deepseek_v3 README says that SM80 and SM86 are not supported"


@dataclass(frozen=True)
class Precision:
    """How weights are stored and multiplied.

    :ivar name: as in variables.
    :ivar weight_bytes: bytes of a quantized weight with its scales.
    :ivar other_bytes: bytes of weights that stay unquantized (embeddings, output head).
    :ivar compute: which of a GPU's speeds counts: fp16, fp8 or int8 (twice fp16).
    :ivar group: tensor parallelism must cut intermediate sizes at multiples of this many weights; 1 means anywhere.
    :ivar note: what the bytes are made of.
    """

    name: str
    weight_bytes: float
    other_bytes: float
    compute: str
    group: int
    note: str


PRECISIONS: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision("bf16", 2.0, 2.0, "fp16", 1, "16 bits"),
        Precision("fp16", 2.0, 2.0, "fp16", 1, "16 bits"),
        Precision("fp8", 1.0 + 4.0 / (128 * 128), 2.0, "fp8", 128, "8 bits, a 32-bit scale for 128 x 128 weights"),
        Precision("int8", 1.0 + 4.0 / 4096, 2.0, "int8", 1, "8 bits, a scale for each channel"),
        Precision("awq", 0.5 + 2.5 / 128, 2.0, "fp16", 128, "4 bits, scale and zero point for groups of 128"),
        Precision("nvfp4", 0.5 + 1.0 / 16, 2.0, "fp8", 16, "4 bits, an 8-bit scale for groups of 16"),
        Precision("w4a8", 0.5 + 2.0 / 128, 2.0, "fp8", 128, "4-bit weights, 8-bit activations"),
        Precision("gguf", 0.625, 0.625, "fp16", 1, "Q4_1: 5 bits on average"),
    )
}
KV_BYTES = {"auto": 2.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0}


@dataclass(frozen=True)
class Support:
    """One thing that an engine can do.

    :ivar engine: name of the engine.
    :ivar family: family of models (see _model_catalogue).
    :ivar precision: name of the precision.
    :ivar architectures: GPU architectures, or cpu.
    :ivar nodes: the most hosts that one replica may span.
    :ivar memory_efficiency: share of the memory bandwidth that decoding reaches.
    :ivar compute_efficiency: share of the dense tensor speed that prefill reaches.
    :ivar layer_us: microseconds per layer and decode step beside memory traffic: launches, small kernels, all-reduce inside the host.
    :ivar chunked_prefill: long prompts can be cut into pieces.
    :ivar source: where support and efficiencies come from.
    """

    engine: str
    family: str
    precision: str
    architectures: tuple[str, ...]
    nodes: int
    memory_efficiency: float
    compute_efficiency: float
    layer_us: float
    chunked_prefill: bool
    source: str


_AMPERE_UP = ("sm80", "sm86", "sm89", "sm90", "sm100")
_CAL_AWQ = (
    "support: SGLang deepseek_v3 README. Efficiencies fitted to the card of cognitivecomputations/DeepSeek-R1-AWQ on 8xA100-80GB "
    "(46.8 tok/s at batch 1, 12.8 tok/s per request at batch 32, 2442 tok/s prefill)"
)
_CAL_DENSE = "support: supported-models and quantization pages of the engine. Efficiencies: see PUBLISHED in the tests and docs/models.md"

SUPPORT: tuple[Support, ...] = (
    # The full model
    Support("tensorrt_llm", "deepseek_v3", "fp8", ("sm90", "sm100"), 4, 0.55, 0.30, 120.0, True, "deepseek_v3 README"),
    Support("sglang", "deepseek_v3", "fp8", ("sm90", "sm100"), 4, 0.55, 0.30, 150.0, True, "SGLang docs: deepseek_v3"),
    Support("vllm", "deepseek_v3", "fp8", ("sm90", "sm100"), 4, 0.50, 0.30, 170.0, True, "vLLM docs: DeepSeek-V3"),
    Support("sglang", "deepseek_v3", "bf16", ("sm80", "sm90", "sm100"), 8, 0.45, 0.30, 250.0, True, "SGLang docs"),
    Support("sglang", "deepseek_v3", "int8", ("sm80", "sm89", "sm90"), 4, 0.40, 0.25, 250.0, True, "SGLang README"),
    Support("sglang", "deepseek_v3", "awq", ("sm80", "sm86", "sm89", "sm90"), 2, 0.24, 0.072, 275.0, False, _CAL_AWQ),
    Support("vllm", "deepseek_v3", "awq", ("sm80", "sm86", "sm89", "sm90"), 2, 0.24, 0.072, 275.0, False, _CAL_AWQ),
    Support("tensorrt_llm", "deepseek_v3", "nvfp4", ("sm100",), 1, 0.55, 0.35, 90.0, True, "deepseek_v3 README"),
    Support("tensorrt_llm", "deepseek_v3", "w4a8", ("sm90",), 1, 0.45, 0.25, 130.0, True, "deepseek_v3 README"),
    # V2-Lite
    Support("sglang", "deepseek_v2", "bf16", _AMPERE_UP, 1, 0.50, 0.30, 120.0, True, "SGLang docs: deepseek"),
    Support("vllm", "deepseek_v2", "bf16", _AMPERE_UP, 1, 0.50, 0.30, 130.0, True, "vLLM docs: supported models"),
    # Dense models: the distilled ones among them
    *(
        Support(engine, "dense", precision, architectures, nodes, memory, compute, layer, True, _CAL_DENSE)
        for precision, architectures, memory, compute in (
            ("bf16", _AMPERE_UP, 0.82, 0.55),
            ("fp16", ("sm70", "sm75", *_AMPERE_UP), 0.82, 0.55),
            ("fp8", ("sm89", "sm90", "sm100"), 0.75, 0.45),
            ("int8", _AMPERE_UP, 0.70, 0.40),
            ("awq", ("sm75", *_AMPERE_UP), 0.60, 0.35),
        )
        for engine, layer, nodes in (("tensorrt_llm", 35.0, 2), ("vllm", 45.0, 2), ("sglang", 45.0, 2))
        if not (engine == "tensorrt_llm" and precision == "int8")
    ),
    # A CPU
    Support(
        "llama_cpp",
        "dense",
        "gguf",
        ("cpu",),
        1,
        0.75,
        0.50,
        20.0,
        True,
        "measured: 80 tok/s on one core of a lab host",
    ),
)

ENGINES: tuple[str, ...] = tuple(dict.fromkeys(line.engine for line in SUPPORT))

# Microseconds per layer and decode step for the two all-reduces of tensor parallelism, beyond what layer_us holds (NVSwitch inside one host).
# Round figures for planning: PCIe hosts have no NVSwitch; across hosts each all-reduce crosses the RDMA network.
ALLREDUCE_US = {"nvlink": 0.0, "pcie": 80.0, "rdma": 120.0}


def lines(engine: str = "auto", family: str = "", precision: str = "auto", architecture: str = "") -> list[Support]:
    """The lines of SUPPORT that fit; auto and empty fit everything."""
    return [
        line
        for line in SUPPORT
        if engine in ("auto", line.engine)
        and family in ("", line.family)
        and precision in ("auto", line.precision)
        and (not architecture or architecture in line.architectures)
    ]
