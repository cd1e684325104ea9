# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""What the planner would have said about a published figure: used by its test and by the table in docs/models.md."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._engine_catalogue import lines
from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import GPUS
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import known, shape_of
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_speed import Device, Layout, Speed, memory_of
from ansible_collections.gpufleet.deepseek.plugins.module_utils._plan_hosts import gpu_device

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)


def estimate(figure: t.Mapping[str, t.Any]) -> float:
    """The planner's value for a figure.

    :arg figure: ``model`` of the catalogue or ``config`` (sizes of a Llama), ``gpu``, ``gpus``, ``engine``, ``precision``, ``what`` and its arguments
      ``batch``, ``tokens``, ``prompt``, ``answer``.
    """
    model = (
        known(figure["model"])
        if "model" in figure
        else shape_of("llama", {"model_type": "llama", **dict(zip(_SIZES, figure["config"]))})
    )
    device = Device.of_cpu(1, 8 * 2.0**30) if figure["gpu"] == "cpu" else gpu_device(GPUS[figure["gpu"]])
    line = lines(figure["engine"], model.family, figure["precision"], device.architecture)[0]
    layout = Layout(figure["gpus"], 1, 1, 1)
    memory = memory_of(
        model,
        line.precision,
        device,
        layout,
        max_batch=64,
        max_num_tokens=8192,
        graphs=5,
        utilization=0.9,
        kv_dtype="auto",
    )
    speed = Speed(model, line, device, layout, memory)
    what = figure["what"]
    if what == "prefill_tokens_per_second":
        return speed.prefill_tokens_per_second()
    if what == "first_token_seconds":
        return speed.first_token_seconds(figure["tokens"])
    if what == "step_seconds":
        return speed.step_seconds(figure["batch"], figure["tokens"])
    if what == "tokens_per_second_per_request":
        return 1 / speed.step_seconds(figure["batch"], figure["tokens"])
    # Prefill included, as a client of a busy server sees it.
    return speed.requests_per_second(figure["batch"], figure["prompt"], figure["answer"]) * float(figure["answer"])
