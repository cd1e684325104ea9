# SPDX-License-Identifier: Apache-2.0
"""From hardware facts, live or declared, to what the planner needs."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._declared_hardware import DeclaredError, expand
from ansible_collections.gpufleet.deepseek.plugins.module_utils._plan_hosts import (
    HardwareError,
    check_overrides,
    plan_host,
)

A100 = {"gpu": "a100-sxm4-80gb", "gpus": 8, "rdma_gbps": 200, "rdma_ports": 8}
OVERRIDE: dict[str, t.Any] = {
    "name": "New GPU",
    "architecture": "sm90",
    "generation": "hopper",
    "memory_mib": 100000,
    "bandwidth_gbs": 3000,
    "fp16_tflops": 900,
    "fp8_tflops": 1800,
    "form": "sxm",
}


def changed(**gpu: t.Any) -> dict[str, t.Any]:
    hardware = expand(A100)
    hardware["gpu"].update(gpu)
    return hardware


def test_declared_gpus_are_planned_with() -> None:
    host = plan_host("gpu1", expand(A100), region="eu", weight=3)
    assert (host.problem, host.product, host.generation, host.devices) == ("", "a100-sxm4-80gb", "ampere", 8)
    assert (host.rdma, host.weight, host.region) == (True, 3, "eu")
    assert host.device is not None
    assert (host.device.memory_bytes, host.device.link) == (81920 * 2**20, "nvlink")


def test_declared_hardware_says_what_is_not_known() -> None:
    hardware = expand({"gpu": "NVIDIA L40S", "gpus": 4})
    assert (hardware["source"], hardware["gpu"]["catalogue"]) == ("declared", "l40s")
    assert hardware["nvme"] is None
    assert "declared" in hardware["unavailable"]["nvme"]
    assert "gpu" not in hardware["unavailable"]


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ("8 A100", "expected a mapping"),
        ({"gpu": "a100", "gpus": 8}, "'a100' is not in the catalogue; known: a10, a100-pcie-40gb"),
        ({"gpu": "l4"}, "gpus: expected 1 to 64 with a gpu"),
        ({"gpus": 8}, "gpu: expected a product"),
        ({**A100, "gpus": -1}, "gpus: expected a whole number from 0 to 64, found -1"),
        ({**A100, "gpus": "8"}, "found '8'"),
        ({**A100, "memory": 1}, "unknown memory; known: gpu, gpus"),
    ],
)
def test_declared_nonsense(declared: t.Any, says: str) -> None:
    with pytest.raises(DeclaredError) as caught:
        expand(declared)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("hardware", "says"),
    [
        (None, "no hardware facts"),
        ({"schema": 99}, "version 99, this release reads version 1"),
        (
            {**expand(A100), "gpu": None, "unavailable": {"gpu": "nvidia-smi timed out after 10 s"}},
            "timed out after 10 s",
        ),
        (expand({}), "it has no GPU"),
        (changed(lost=["0000:07:00.0"]), "1 of its 8 GPUs do not answer (0000:07:00.0)"),
        (
            changed(unknown_pci_ids=["10de:ffff"]),
            "PCI id 10de:ffff is not in the catalogue; describe it in fleet_gpu_overrides",
        ),
        (changed(catalogue="mixed"), "of different products"),
        (changed(catalogue=None, product="NVIDIA X1"), "'NVIDIA X1' is not in the catalogue"),
        (changed(mig_enabled=2), "MIG is on for 2"),
    ],
)
def test_what_stands_against_a_host(hardware: t.Any, says: str) -> None:
    host = plan_host("gpu1", hardware, region="eu")
    assert says in host.problem
    assert host.device is None


def test_a_gpu_that_the_operator_describes() -> None:
    hardware = changed(unknown_pci_ids=["10de:ffff"])
    hardware["gpus"] = [{"vendor_id": "10de", "device_id": "ffff"}] * 8
    host = plan_host("gpu1", hardware, region="eu", overrides={"10de:ffff": OVERRIDE})
    assert (host.problem, host.product, host.devices) == ("", "New GPU", 8)
    assert host.device is not None
    assert host.device.bandwidth == 3e12


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("x", "expected a mapping"),
        ({**OVERRIDE, "vram": 1}, "unknown vram"),
        ({k: v for k, v in OVERRIDE.items() if k != "form"}, "form: expected a str, found None"),
        ({**OVERRIDE, "memory_mib": 0}, "memory_mib: expected a int, found 0"),
        ({**OVERRIDE, "bandwidth_gbs": -1}, "bandwidth_gbs"),
    ],
)
def test_overrides_are_checked(given: t.Any, says: str) -> None:
    with pytest.raises(HardwareError) as caught:
        check_overrides({"10de:ffff": given})
    assert "fleet_gpu_overrides[10de:ffff]" in str(caught.value)
    assert says in str(caught.value)


def test_a_cpu_host() -> None:
    host = plan_host("gpu1", expand({"cores": 2, "memory_gib": 8}), region="eu", use_gpus=False)
    assert (host.problem, host.product) == ("", "cpu")
    assert host.device is not None
    assert host.device.bandwidth == 20e9
    assert "not known" in plan_host("gpu1", {"schema": 1}, region="eu", use_gpus=False).problem
