# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""From what is known about a host's hardware to what the planner needs."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import GPUS, Gpu
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_fit import PlanHost
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_speed import Device

SCHEMA = 1
_OVERRIDE = {
    "name": str,
    "architecture": str,
    "generation": str,
    "memory_mib": int,
    "bandwidth_gbs": float,
    "fp16_tflops": float,
    "fp8_tflops": float,
    "form": str,
}
_OVERRIDE_HELP = "fleet_gpu_overrides: {'VENDOR:DEVICE': {name, architecture, generation, memory_mib, bandwidth_gbs, fp16_tflops, fp8_tflops, form}}"


class HardwareError(Exception):
    """Hardware facts that cannot be planned with, in words for the operator."""


def check_overrides(overrides: t.Mapping[str, t.Any]) -> None:
    """Refuse overrides that are not complete.

    :raises HardwareError: names the PCI id, the key, what was expected and what was found.
    """
    for pci, given in overrides.items():
        if not isinstance(given, t.Mapping):
            raise HardwareError(f"fleet_gpu_overrides[{pci}]: expected a mapping, found {given!r}")
        for key in sorted(set(given) - set(_OVERRIDE)):
            raise HardwareError(f"fleet_gpu_overrides[{pci}]: unknown {key}; known: {', '.join(_OVERRIDE)}")
        for key, kind in _OVERRIDE.items():
            value = given.get(key)
            good = (
                isinstance(value, str)
                if kind is str
                else isinstance(value, (int, float)) and not isinstance(value, bool)
            )
            if not good or (kind is not str and (float(value or 0) < 0 or (key != "fp8_tflops" and not value))):
                raise HardwareError(f"fleet_gpu_overrides[{pci}].{key}: expected a {kind.__name__}, found {value!r}")


def gpu_device(product: Gpu, memory_mib: int = 0) -> Device:
    """A GPU of the catalogue for the planner; memory_mib is what the driver says, when it was asked."""
    return Device(
        product.name,
        product.architecture,
        float(memory_mib or product.memory_mib) * 2**20,
        product.bandwidth_gbs * 1e9,
        product.fp16_tflops * 1e12,
        product.fp8_tflops * 1e12,
        "nvlink" if product.form == "sxm" and product.nvlinks else "pcie",
    )


def plan_host(
    name: str,
    hardware: t.Any,
    *,
    region: str,
    weight: int = 0,
    use_gpus: bool = True,
    overrides: t.Mapping[str, t.Any] | None = None,
) -> PlanHost:
    """A host for the planner; what stands against planning with it is in ``problem``.

    :arg name: inventory name.
    :arg hardware: the structure of hardware_info, or nothing.
    :arg region: fleet_region.
    :arg weight: fleet_weight when the operator set it, else 0.
    :arg use_gpus: plan with the GPUs; else with the CPU.
    :arg overrides: values of GPUs that the catalogue does not know, by PCI id.
    """

    def problem(text: str) -> PlanHost:
        return PlanHost(name, region, None, "", "", 0, False, weight, text)

    if not isinstance(hardware, t.Mapping):
        return problem("there are no hardware facts of it")
    if hardware.get("schema") != SCHEMA:
        return problem(
            f"its hardware facts have version {hardware.get('schema')!r}, this release reads version {SCHEMA}; gather them again"
        )
    if not use_gpus:
        return _cpu_host(name, hardware, region, weight, problem)
    gpu = hardware.get("gpu")
    if not isinstance(gpu, t.Mapping):
        reason = (hardware.get("unavailable") or {}).get("gpu", "they were not gathered")
        return problem(f"its GPUs are not known: {reason}")
    count = int(gpu.get("count") or 0)
    if not count:
        return problem("it has no GPU")
    if gpu.get("lost"):
        return problem(f"{len(gpu['lost'])} of its {count} GPUs do not answer ({', '.join(map(str, gpu['lost']))})")
    known = overrides or {}
    ids = [f"{g.get('vendor_id')}:{g.get('device_id')}" for g in hardware.get("gpus") or []]
    if ids and len(set(ids)) == 1 and ids[0] in known:
        o = known[ids[0]]
        device = Device(
            o["name"],
            o["architecture"],
            float(o["memory_mib"]) * 2**20,
            float(o["bandwidth_gbs"]) * 1e9,
            float(o["fp16_tflops"]) * 1e12,
            float(o["fp8_tflops"]) * 1e12,
            "nvlink" if o["form"] == "sxm" else "pcie",
        )
        return PlanHost(name, region, device, o["name"], o["generation"], count, _rdma(hardware), weight)
    if gpu.get("unknown_pci_ids"):
        pci = ", ".join(map(str, gpu["unknown_pci_ids"]))
        return problem(f"its GPU with PCI id {pci} is not in the catalogue; describe it in {_OVERRIDE_HELP}")
    if gpu.get("catalogue") == "mixed":
        products = sorted({str(g.get("name")) for g in hardware.get("gpus") or []})
        return problem(f"its GPUs are of different products: {', '.join(products)}")
    product = GPUS.get(str(gpu.get("catalogue")))
    if product is None:
        return problem(
            f"its GPU {gpu.get('product') or gpu.get('catalogue')!r} is not in the catalogue; describe it in {_OVERRIDE_HELP}"
        )
    if gpu.get("mig_enabled"):
        return problem(f"MIG is on for {gpu['mig_enabled']} of its GPUs; the planner needs whole GPUs")
    device = gpu_device(product, int(gpu.get("memory_mib") or product.memory_mib))
    return PlanHost(name, region, device, product.key, product.generation, count, _rdma(hardware), weight)


def _rdma(hardware: t.Mapping[str, t.Any]) -> bool:
    return bool((hardware.get("network") or {}).get("rdma_ports_active"))


def _cpu_host(
    name: str,
    hardware: t.Mapping[str, t.Any],
    region: str,
    weight: int,
    problem: t.Callable[[str], PlanHost],
) -> PlanHost:
    cpu, memory = hardware.get("cpu"), hardware.get("memory")
    if not isinstance(cpu, t.Mapping) or not isinstance(memory, t.Mapping) or not memory.get("total_mib"):
        return problem("its CPU and memory are not known")
    cores = int(cpu.get("cores") or cpu.get("threads") or 1)
    device = Device.of_cpu(cores, float(memory["total_mib"]) * 2**20)
    return PlanHost(name, region, device, "cpu", "cpu", 1, _rdma(hardware), weight)
