# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Load all GPUs with the same work and compare what they get, bit by bit.

Every GPU multiplies the same two matrices in bfloat16 for the given time. After each round the product goes to the neighbour, which compares it
with its own: GPUs of one product get the very same bits, so a difference is a wrong sum that nothing else reported. Each GPU is compared with its own
first round, too, which tells the two of a pair apart. Needs PyTorch. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import typing as t

MOST_MISMATCHES = 20


def stress(torch: t.Any, devices: list[str], seconds: float, size: int, inner: int) -> dict[str, t.Any]:
    """Run the rounds.

    :arg torch: the library.
    :arg devices: names such as ``cuda:0``.
    :arg inner: products in a round.
    """
    torch.manual_seed(20260101)
    left = torch.randn(size, size, dtype=torch.bfloat16)
    right = torch.randn(size, size, dtype=torch.bfloat16)
    sides = [(left.to(device), right.to(device)) for device in devices]
    first: list[t.Any] = []
    mismatches: list[str] = []
    busy = [0.0] * len(devices)
    rounds = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until and len(mismatches) < MOST_MISMATCHES:
        events = [_marks(torch, device) for device in devices]
        products = []
        # Queue everything before waiting for anything: all GPUs draw their power at the same time.
        for position, (a, b) in enumerate(sides):
            events[position][0]()
            for _turn in range(inner):
                product = a @ b
            events[position][1]()
            products.append(product)
        for position, device in enumerate(devices):
            busy[position] += events[position][2]()
            if first and not torch.equal(products[position], first[position]):
                mismatches.append(f"round {rounds + 1}: {device} differs from its own first product")
        for position, device in enumerate(devices):
            other = (position + 1) % len(devices)
            if other != position and not torch.equal(products[other].to(device), products[position]):
                mismatches.append(f"round {rounds + 1}: {devices[other]} differs from {device}")
        first = first or products
        rounds += 1
    work = 2.0 * size**3 * inner * rounds / 1e12
    return {
        "rounds": rounds,
        "tflops": {str(position): round(work / spent, 1) for position, spent in enumerate(busy) if spent > 0},
        "mismatches": mismatches,
        "versions": {"torch": str(torch.__version__), "cuda_runtime": str(getattr(torch.version, "cuda", None))},
    }


def _marks(torch: t.Any, device: str) -> tuple[t.Callable[[], None], t.Callable[[], None], t.Callable[[], float]]:
    """Begin, end and length of a device's work; a GPU works on after the call that gave it the work."""
    if not device.startswith("cuda"):
        times: list[float] = []
        return (
            lambda: times.append(time.monotonic()),
            lambda: times.append(time.monotonic()),
            lambda: times[1] - times[0],
        )
    stream = torch.cuda.current_stream(device)
    with torch.cuda.device(device):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def length() -> float:
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000.0

    return (lambda: begin.record(stream), lambda: end.record(stream), length)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--size", type=int, default=16384, help="rows of the square matrices")
    parser.add_argument("--inner", type=int, default=20, help="products in a round")
    parser.add_argument("--devices", default="", help="names with commas; all GPUs by default")
    args = parser.parse_args()
    torch = importlib.import_module("torch")
    devices = [name for name in args.devices.split(",") if name] or [
        f"cuda:{n}" for n in range(torch.cuda.device_count())
    ]
    if not devices:
        print(json.dumps({"error": "PyTorch sees no GPU", "rounds": 0}))
        return 1
    try:
        found = stress(torch, devices, args.seconds, args.size, args.inner)
    except RuntimeError as exc:
        # CUDA's errors come this way: out of memory, a GPU that fell off the bus.
        print(json.dumps({"error": str(exc).splitlines()[0][:300], "rounds": 0}))
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
