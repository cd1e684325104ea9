# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""How much memory a model takes on each GPU, and how fast a replica is: arithmetic only.

Memory of a GPU, in bytes::

    usable      = total * memory_utilization
    weights     = (quantized * weight_bytes + unquantized * other_bytes) / (tp * pp) + replicated * weight_bytes / pp
    runtime     = 1.5 GiB for driver context and NCCL, and 200 MB for each captured graph
    activations = max_num_tokens * 2 * (6 * hidden + 2 * intermediate of a token / tp) + max_batch * vocabulary * 4
    kv          = usable - weights - runtime - activations

Speed of a replica, a roofline with a stated efficiency. A decode step for ``b`` sequences of ``n`` tokens takes::

    bytes   = weights that b tokens touch / tp + b * n * bytes of a token's KV on one GPU
    touched = dense weights + output head + expert weights * (1 - (1 - experts_per_token / experts) ** b)
    step    = max(bytes / (bandwidth * memory_efficiency), 2 * active * b / (tp * flops * compute_efficiency))
              + layers * (layer_us + allreduce_us)

and prefill runs at ``tp * flops * compute_efficiency / (2 * active)`` tokens per second. Attention's own arithmetic, speculative decoding and prefix
caching are left out: the first makes long prompts slower, the others make real services faster.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.deepseek.plugins.module_utils._engine_catalogue import (
    ALLREDUCE_US,
    KV_BYTES,
    PRECISIONS,
    Support,
)

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import ModelShape

GIB = 1024**3
RUNTIME_BYTES = 1.5 * GIB
GRAPH_BYTES = 200e6  # TensorRT-LLM's documentation: a captured graph can take up to 200 MB
CPU_BANDWIDTH_GBS = 10.0  # one core of a shared lab host; see Device.of_cpu


@dataclass(frozen=True)
class Device:
    """What computes: one GPU of a replica, or the CPU of a host.

    :ivar name: name for people.
    :ivar architecture: sm80 ... or cpu.
    :ivar memory_bytes: memory in all.
    :ivar bandwidth: bytes per second.
    :ivar fp16_flops: dense 16-bit operations per second.
    :ivar fp8_flops: dense 8-bit floating point operations per second, 0 without.
    :ivar link: nvlink, pcie or cpu: how tensor-parallel ranks of one host talk.
    """

    name: str
    architecture: str
    memory_bytes: float
    bandwidth: float
    fp16_flops: float
    fp8_flops: float
    link: str

    def flops(self, compute: str) -> float:
        """Operations per second for a precision's kind of arithmetic."""
        if compute == "fp8" and self.fp8_flops:
            return self.fp8_flops
        return self.fp16_flops * (2.0 if compute == "int8" else 1.0)

    @classmethod
    def of_cpu(cls, cores: int, memory_bytes: float, bandwidth_gbs: float = 0.0) -> Device:
        """A host's CPU. Per core 10 GB/s and 100 GFLOPS; a socket's memory channels end the growth at 200 GB/s."""
        cores = max(1, cores)
        bandwidth = bandwidth_gbs or min(CPU_BANDWIDTH_GBS * cores, 200.0)
        return cls(f"CPU, {cores} cores", "cpu", memory_bytes, bandwidth * 1e9, 100e9 * cores, 0.0, "cpu")


@dataclass(frozen=True)
class Layout:
    """How a model is cut: tensor, pipeline and expert parallel sizes, and the hosts that one replica spans."""

    tensor_parallel: int
    pipeline_parallel: int
    expert_parallel: int
    hosts: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, and the tokens that the KV cache of the replica holds."""

    total: float
    usable: float
    weights: float
    runtime: float
    activations: float
    kv: float
    kv_bytes_per_token: float

    @property
    def kv_tokens(self) -> int:
        """Tokens in the KV cache; 0 when not even the weights fit."""
        return max(0, int(self.kv / self.kv_bytes_per_token))

    @property
    def needed(self) -> float:
        """What must fit beside the KV cache."""
        return self.weights + self.runtime + self.activations


def memory_of(
    model: ModelShape,
    precision: str,
    device: Device,
    layout: Layout,
    *,
    max_batch: int,
    max_num_tokens: int,
    graphs: int,
    utilization: float,
    kv_dtype: str,
) -> Memory:
    """Memory of one GPU of a replica (see the module's text for the formulas)."""
    p = PRECISIONS[precision]
    tp, pp = layout.tensor_parallel, layout.pipeline_parallel
    linear = model.parameters - model.unquantized_parameters - model.replicated_parameters
    weights = (linear * p.weight_bytes + model.unquantized_parameters * p.other_bytes) / (tp * pp)
    weights += model.replicated_parameters * p.weight_bytes / pp
    width = model.intermediate * max(1, model.experts_per_token)
    activations = max_num_tokens * 2.0 * (6 * model.hidden + 2 * width / tp) + max_batch * model.vocabulary * 4.0
    runtime = RUNTIME_BYTES + graphs * GRAPH_BYTES if device.architecture != "cpu" else 64e6
    usable = device.memory_bytes * utilization
    shards = min(tp, model.kv_heads) if model.kv_sharded else 1
    kv_token = model.kv_bytes_per_token(KV_BYTES[kv_dtype]) / shards / pp
    return Memory(
        device.memory_bytes,
        usable,
        weights,
        runtime,
        activations,
        usable - weights - runtime - activations,
        kv_token,
    )


@dataclass(frozen=True)
class Speed:
    """Times of one replica."""

    model: ModelShape
    support: Support
    device: Device
    layout: Layout
    memory: Memory

    def step_seconds(self, batch: int, tokens: int) -> float:
        """Seconds of one decode step.

        :arg batch: sequences in the batch.
        :arg tokens: tokens of context of each.
        """
        m, p, tp = self.model, PRECISIONS[self.support.precision], self.layout.tensor_parallel
        head = m.vocabulary * m.hidden
        dense = m.parameters - m.expert_parameters - m.unquantized_parameters
        touched = 1.0 - (1.0 - m.experts_per_token / m.experts) ** batch if m.experts else 0.0
        weights = (dense + m.expert_parameters * touched) * p.weight_bytes + head * p.other_bytes
        kv = batch * tokens * self.memory.kv_bytes_per_token * self.layout.pipeline_parallel
        memory = (weights / tp + kv) / (self.device.bandwidth * self.support.memory_efficiency)
        compute = 2.0 * m.active_parameters * batch / (tp * self._flops())
        return max(memory, compute) + self._overhead()

    def prefill_tokens_per_second(self) -> float:
        """Tokens of prompt per second."""
        return self.layout.tensor_parallel * self._flops() / (2.0 * self.model.active_parameters)

    def first_token_seconds(self, tokens: int) -> float:
        """Seconds to the first token of an idle replica for a prompt of that many tokens."""
        floor = self.step_seconds(1, 0)
        return max(tokens / self.prefill_tokens_per_second() + self._overhead(), floor)

    def requests_per_second(self, batch: int, prompt: int, answer: int) -> float:
        """Requests per second of a replica that always works on ``batch`` of them."""
        seconds = answer * self.step_seconds(batch, prompt + answer // 2)
        seconds += batch * prompt / self.prefill_tokens_per_second()
        return batch / seconds

    def answer_seconds(self, batch: int, prompt: int, answer: int) -> float:
        """Mean seconds of a whole answer when ``batch`` requests are worked on at a time."""
        return batch / self.requests_per_second(batch, prompt, answer)

    def _flops(self) -> float:
        return self.device.flops(PRECISIONS[self.support.precision].compute) * self.support.compute_efficiency

    def _overhead(self) -> float:
        extra = 0.0
        if self.layout.tensor_parallel > 1:
            extra = ALLREDUCE_US["rdma" if self.layout.hosts > 1 else self.device.link]
        return self.model.layers * (self.support.layer_us + extra) * 1e-6
