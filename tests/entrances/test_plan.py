# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Planning on a laptop: the example inventory, declared hardware, no host in reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Call, Result


def plan(clone: Path, call: Call, tmp_path: Path, *extra: str, code: int = 0) -> Result:
    """Run plan.yml on the example inventory, reports into a folder of the test."""
    words = [word for pair in extra for word in ("-e", pair)]
    return call(
        *(
            "ansible-playbook",
            "-i",
            clone / "inventories" / "example",
            clone / "playbooks" / "plan.yml",
            "-e",
            f"fleet_report_dir={tmp_path}/out",
        ),
        *words,
        cwd=tmp_path,
        env={"ANSIBLE_CONFIG": str(clone / "ansible.cfg")},
        code=code,
        timeout=120,
    )


def test_a_buyer_plans_before_there_is_a_host(clone: Path, call: Call, tmp_path: Path) -> None:
    """A table on the screen, plan.json and plan.html; nothing is reached, nothing changes."""
    result = plan(clone, call, tmp_path)
    assert "sglang with awq weights, tensor parallel 8, 5 replicas on 5 hosts" in result.text
    for host, numbers in result.recap().items():
        assert (numbers["changed"], numbers["failed"], numbers["unreachable"]) == (0, 0, 0), host
    found = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))
    assert (found["verdict"], found["engine"], found["hardware_source"]) == ("ok", "sglang", "declared")
    assert found["peers"]["gpu1"]["weight"] == 3
    page = (tmp_path / "out" / "plan.html").read_text(encoding="utf-8")
    assert "KV cache 27.5 GiB" in page
    assert "<script" not in page
    assert "http://" not in page


def test_check_mode_writes_no_report(clone: Path, call: Call, tmp_path: Path) -> None:
    """A check run shows the same plan."""
    words = [
        "ansible-playbook",
        "-i",
        clone / "inventories" / "example",
        clone / "playbooks" / "plan.yml",
        "--check",
        "--diff",
    ]
    result = call(
        *words,
        "-e",
        f"fleet_report_dir={tmp_path}/out",
        cwd=tmp_path,
        env={"ANSIBLE_CONFIG": str(clone / "ansible.cfg")},
    )
    assert "5 replicas on 5 hosts" in result.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("fleet_model=deepseek-r2", "model 'deepseek-r2' is not in the catalogue; known: deepseek-r1"),
        ("fleet_precision=fp8", "Weights alone would take 671 GB in fp8"),
        ("fleet_engine=tensorrt_llm", "TensorRT-LLM does not run DeepSeek-V3/R1 on Ampere"),
        ("fleet_tensor_parallel=7", "tensor parallel 7 does not divide the model's 128 attention heads"),
        ('{"fleet_targets": {"requests_per_second": 3000, "prompt_tokens": 256}}', "take 1500 hosts of this kind"),
        ('{"fleet_targets": {"qps": 3}}', "qps"),
        ('{"fleet_declared_hardware": {"gpu": "a100", "gpus": 8}}', "'a100' is not in the catalogue"),
        ("fleet_hardware_source=recorded", "gpu1.json, found no such file"),
        ("fleet_context_tokens=-5", "context_tokens: expected 0 to"),
        ("fleet_model_config=/nowhere/config.json", "config /nowhere/config.json: expected a readable JSON file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_touched(
    clone: Path, call: Call, tmp_path: Path, extra: str, says: str
) -> None:
    """One clear sentence, and an exit code."""
    result = plan(clone, call, tmp_path, extra, code=2)
    assert says in " ".join(result.text.split())
    assert "Traceback" not in result.text


def test_site_goes_no_further_than_the_plan(clone: Path, call: Call, tmp_path: Path) -> None:
    """Nobody changes hosts by a plan that was made without looking at them."""
    words = [
        "ansible-playbook",
        "-i",
        clone / "inventories" / "example",
        clone / "site.yml",
        "-e",
        f"fleet_report_dir={tmp_path}/out",
    ]
    result = call(*words, cwd=tmp_path, code=2, timeout=120)
    assert "fleet_hardware_source: expected live before hosts are changed, found declared" in " ".join(
        result.text.split()
    )
    assert "Prepare the GPU hosts" not in result.text
