# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The load on GPUs, with a library in the place of PyTorch whose devices can be told to miscalculate."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FILE = Path(__file__).resolve().parents[4] / "roles" / "burn_in" / "files" / "gpu_stress.py"
spec = importlib.util.spec_from_file_location("gpu_stress", FILE)
assert spec
assert spec.loader
gpu_stress = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_stress)


class Tensor:
    """A number on a device."""

    def __init__(self, library: Torch, value: int, device: str = "cpu") -> None:
        self.library, self.value, self.device = library, value, device

    def to(self, device: str) -> Tensor:
        return Tensor(self.library, self.value, device)

    def __matmul__(self, other: Tensor) -> Tensor:
        self.library.products[self.device] = self.library.products.get(self.device, 0) + 1
        wrong = self.library.wrong.get(self.device, {}).get(self.library.products[self.device], 0)
        return Tensor(self.library, self.value * other.value + wrong, self.device)


class Torch:
    """The little of PyTorch that the script uses."""

    bfloat16 = "bfloat16"
    __version__ = "2.5.1"
    version = SimpleNamespace(cuda="12.4")

    def __init__(self, wrong: dict[str, dict[int, int]] | None = None) -> None:
        self.wrong = wrong or {}
        self.products: dict[str, int] = {}

    def manual_seed(self, seed: int) -> None:
        self.seed = seed

    def randn(self, *_size: int, dtype: str) -> Tensor:
        assert dtype == self.bfloat16
        return Tensor(self, self.seed)

    def equal(self, one: Tensor, other: Tensor) -> bool:
        assert one.device == other.device
        return one.value == other.value


def run(torch: Any, *devices: str) -> dict[str, Any]:
    found: dict[str, Any] = gpu_stress.stress(torch, list(devices), 0.05, 64, 1)
    return found


def test_devices_that_agree() -> None:
    found = run(Torch(), "a", "b", "c")
    assert found["rounds"] > 1
    assert found["mismatches"] == []
    assert sorted(found["tflops"]) == ["0", "1", "2"]
    assert found["versions"] == {"torch": "2.5.1", "cuda_runtime": "12.4"}


def test_one_wrong_product_is_seen_by_both_neighbours_and_by_the_device_itself() -> None:
    found = run(Torch({"b": {2: 1}}), "a", "b", "c")
    assert found["mismatches"] == [
        "round 2: b differs from its own first product",
        "round 2: b differs from a",
        "round 2: c differs from b",
    ]


def test_a_device_that_is_wrong_from_the_beginning() -> None:
    always = dict.fromkeys(range(1, 10**5), 5)
    found = run(Torch({"c": always}), "a", "b", "c")
    assert found["mismatches"][:2] == ["round 1: c differs from b", "round 1: a differs from c"]
    assert len(found["mismatches"]) == gpu_stress.MOST_MISMATCHES


def test_one_device_alone_is_compared_with_itself() -> None:
    assert run(Torch(), "a")["mismatches"] == []
    assert run(Torch({"a": {3: 1}}), "a")["mismatches"] == ["round 3: a differs from its own first product"]
