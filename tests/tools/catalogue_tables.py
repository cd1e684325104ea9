# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Write the tables of docs/models.md from the catalogues, or with --check say whether they are up to date.

PYTHONPATH=collections python3 tests/tools/catalogue_tables.py            write docs/models.md
PYTHONPATH=collections python3 tests/tools/catalogue_tables.py --check    exit with 1 when the file differs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ansible_collections.gpufleet.deepseek.plugins.module_utils._engine_catalogue import (
    PRECISIONS,
    SUPPORT,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import GPUS
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import CATALOGUE, known
from ansible_collections.gpufleet.deepseek.plugins.module_utils._published_speeds import estimate

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "models.md"
FIGURES = ROOT / "tests" / "unit" / "fixtures" / "published_speeds.json"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a column whose name ends in # is set right."""
    heads = [column.rstrip("#") for column in columns]
    rule = ["---:" if column.endswith("#") else "---" for column in columns]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows])


def models() -> str:
    """The models."""
    rows = []
    for name in CATALOGUE:
        entry, shape = CATALOGUE[name], known(name)
        rows.append(
            [
                f"`{name}`",
                f"{shape.parameters / 1e9:.3g}",
                f"{shape.active_parameters / 1e9:.3g}",
                f"{shape.kv_bytes_per_token() / 1024:.1f}",
                "MLA" if not shape.kv_sharded else f"GQA, {shape.kv_heads} of {shape.heads}",
                f"{shape.max_context:,}",
                shape.native_precision,
                entry.repository or entry.source,
            ]
        )
    columns = [
        "model",
        "parameters, 10^9#",
        "active, 10^9#",
        "KV KiB per token#",
        "attention",
        "context#",
        "published as",
        "weights",
    ]
    return table(columns, rows)


def gpus() -> str:
    """The GPUs."""
    return table(
        ["GPU", "product", "PCI ids", "SM", "MiB#", "GB/s#", "FP16 TFLOPS#", "FP8 TFLOPS#", "NVLink GB/s#", "source"],
        [
            [
                f"`{gpu.key}`",
                gpu.name,
                ", ".join(f"10de:{device}" for device in gpu.device_ids),
                gpu.architecture,
                f"{gpu.memory_mib:,}",
                f"{gpu.bandwidth_gbs:g}",
                f"{gpu.fp16_tflops:g}",
                f"{gpu.fp8_tflops:g}" if gpu.fp8_tflops else "none",
                f"{gpu.nvlink_gbs}" if gpu.nvlink_gbs else "none",
                gpu.source,
            ]
            for gpu in GPUS.values()
        ],
    )


def engines() -> str:
    """What runs where."""
    return table(
        [
            "family",
            "weights",
            "engine",
            "GPUs",
            "hosts per replica, at most#",
            "memory efficiency#",
            "compute efficiency#",
            "µs per layer#",
        ],
        [
            [
                line.family,
                line.precision,
                line.engine,
                ", ".join(line.architectures),
                str(line.nodes),
                f"{line.memory_efficiency:.2f}",
                f"{line.compute_efficiency:.3g}",
                f"{line.layer_us:g}",
            ]
            for line in SUPPORT
        ],
    )


def precisions() -> str:
    """Bytes of a weight."""
    return table(
        ["weights", "bytes of a weight#", "made of"],
        [[p.name, f"{p.weight_bytes:.4g}", p.note] for p in PRECISIONS.values()],
    )


def published() -> str:
    """Estimates against published figures."""
    rows = []
    for figure in json.loads(FIGURES.read_text(encoding="utf-8")):
        value = estimate(figure)
        unit = {"first_token_seconds": "s", "step_seconds": "s per token"}.get(figure["what"], "tokens/s")
        rows.append(
            [
                figure["name"],
                f"{figure['gpus']} x {figure['gpu']}",
                f"{figure['published']:g} {unit}",
                f"{value:.0f}" if value >= 100 else f"{value:.3g}",
                f"{value / figure['published'] - 1:+.0%}",
                ("fitted to it; " if figure.get("fitted") else "")
                + figure["source"]
                + (f". {figure['explained']}" if "explained" in figure else ""),
            ]
        )
    return table(["figure", "on", "published#", "estimated#", "error#", "source"], rows)


def document() -> str:
    """The whole file."""
    return f"""# Models, GPUs and engines that the planner knows

Written by `tests/tools/catalogue_tables.py` from `plugins/module_utils/_model_catalogue.py`, `_gpu_catalogue.py` and `_engine_catalogue.py`. To add a
model, a GPU or what an engine can do, add a line there and run `PYTHONPATH=collections python3 tests/tools/catalogue_tables.py`;
`./dev/test lint` checks that this page is up to date.

## Models

Parameters and KV cache are computed from each model's config.json, by the code that reads a config.json of yours (`fleet_model_config`).

{models()}

## GPUs

Speeds are dense. A GPU that is missing can be described in the inventory (`fleet_gpu_overrides`).

{gpus()}

## Engines

A combination that is not listed is refused. The order within a family is the order of preference.

{engines()}

{precisions()}

## Estimates against published figures

The efficiencies of the full model as AWQ are fitted to the one published set of figures for eight A100; those of dense models were chosen with the
figures below in view. What was not fitted, and all that is not listed here, is an estimate: prove it with a load test before you promise it.

{published()}
"""


def main() -> int:
    """Write or compare."""
    text = document()
    if "--check" in sys.argv[1:]:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            print(f"{TARGET.relative_to(ROOT)}: differs from the catalogues; run tests/tools/catalogue_tables.py")
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
