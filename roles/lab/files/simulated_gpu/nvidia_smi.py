# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""nvidia-smi of a lab host that has no GPU: it prints what the state file says, in the layout of driver series 550.

gpufleet-simulated-gpu writes that file. Exit codes are those of the real tool: 2 bad arguments, 4 not root, 6 no such GPU, 9 no driver,
15 a GPU is lost, 18 the driver is of another version.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import html
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, NoReturn

SCHEMA = 1
DIRECTORY = "/var/lib/gpufleet/simulated"
MARK = "gpufleet.deepseek lab"
NOTICE = f"Simulated by {MARK}: this host has no GPU, nothing here computes."
NA = "N/A"
RESET = "GPU requires reset"
REASONS = (
    # name, label, how deep the label stands
    ("gpu_idle", "Idle", 0),
    ("applications_clocks_setting", "Applications Clocks Setting", 0),
    ("sw_power_cap", "SW Power Cap", 0),
    ("hw_slowdown", "HW Slowdown", 0),
    ("hw_thermal_slowdown", "HW Thermal Slowdown", 1),
    ("hw_power_brake_slowdown", "HW Power Brake Slowdown", 1),
    ("sync_boost", "Sync Boost", 0),
    ("sw_thermal_slowdown", "SW Thermal Slowdown", 0),
    ("display_clocks_setting", "Display Clock Setting", 0),
)
# Bits of NVML's clock event reasons.
REASON_BITS = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clocks_setting": 0x100,
}


class Stop(Exception):
    """The tool ends here, with this sentence and this exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


# -- the state --------------------------------------------------------------------------------------------------------


def directory() -> Path:
    """Where the state lies."""
    return Path(os.environ.get("GPUFLEET_SIMULATED_DIR") or DIRECTORY)


def load() -> dict[str, Any]:
    """The state, or one sentence that says why there is none."""
    path = directory() / "state.json"
    advice = "run: gpufleet-simulated-gpu apply PROFILE"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Stop(9, f"nvidia-smi ({NOTICE}) {path}: {error.strerror}; {advice}") from None
    except ValueError:
        raise Stop(9, f"nvidia-smi ({NOTICE}) {path} is not JSON; {advice}") from None
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise Stop(9, f"nvidia-smi ({NOTICE}) {path} is not of schema {SCHEMA}; {advice}")
    return state


@contextlib.contextmanager
def changing() -> Iterator[dict[str, Any]]:
    """The state to be changed by one process at a time; it is replaced as a whole at the end."""
    path = directory() / "state.json"
    with (directory() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = load()
        yield state
        text = json.dumps(state, indent=2) + "\n"
        if text == path.read_text(encoding="utf-8"):
            return
        new = path.with_name(f".state.json.{os.getpid()}")
        try:
            new.write_text(text, encoding="utf-8")
            new.chmod(0o644)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)


@dataclass
class Gpu:
    """One GPU as it is now: what it is, and what the faults made of it."""

    index: int
    pci: str
    uuid: str
    serial: str
    numa: int
    switch: int
    bridge: int | None
    product: dict[str, Any]
    vbios: str
    persistence: bool
    lost: bool = False
    reset: bool = False
    mig: bool = False
    width: int = 16
    reasons: set[str] = field(default_factory=lambda: {"gpu_idle"})
    ecc: dict[str, int] = field(default_factory=dict)
    remapped: int = 0
    remap_pending: bool = False
    remap_failed: bool = False
    links_down: set[int] = field(default_factory=set)
    link_errors: dict[int, int] = field(default_factory=dict)

    @property
    def bus_id(self) -> str:
        """As NVML writes it: eight digits of domain, capitals."""
        return f"0000{self.pci}".upper()

    @property
    def throttled(self) -> bool:
        """Whether something slows it down."""
        return bool(self.reasons - {"gpu_idle"})

    def alive(self, value: object, unit: str = "") -> str:
        """What only a working GPU can say."""
        return RESET if self.reset else measured(value, unit)


def measured(value: object, unit: str = "") -> str:
    """A value with its unit, N/A where there is none."""
    if value is None:
        return NA
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{text} {unit}" if unit else text


def gpus_of(state: dict[str, Any]) -> list[Gpu]:
    """All GPUs, with the faults applied to them."""
    found = []
    for entry in state["gpus"]:
        product = state["products"][entry["product"]]
        gpu = Gpu(
            index=entry["index"],
            pci=entry["pci_address"],
            uuid=entry["uuid"],
            serial=entry["serial"],
            numa=entry["numa_node"],
            switch=entry["pcie_switch"],
            bridge=entry.get("nvlink_bridge"),
            product=product,
            vbios=product["vbios"],
            persistence=state["persistence"][entry["index"]],
        )
        for fault in state["faults"]:
            if fault.get("gpu") == gpu.index:
                apply_fault(gpu, fault)
        found.append(gpu)
    return found


def apply_fault(gpu: Gpu, fault: dict[str, Any]) -> None:
    """What one fault does to its GPU; a reset took some of it back."""
    kind, after_reset = fault["fault"], fault.get("after_reset", False)
    if kind in ("ecc", "ecc_corrected"):
        for scope in ("aggregate",) if after_reset else ("aggregate", "volatile"):
            name = f"{scope}_{fault['location']}{'_corrected' if kind == 'ecc_corrected' else ''}"
            gpu.ecc[name] = gpu.ecc.get(name, 0) + fault["count"]
    elif kind == "row_remap_pending":
        gpu.remapped += 1
        gpu.remap_pending = gpu.remap_pending or not after_reset
    elif kind == "row_remap_failed":
        gpu.remap_failed = True
    elif kind == "lost":
        gpu.lost = True
    elif kind == "requires_reset":
        gpu.reset = True
    elif kind == "x8":
        gpu.width = 8
    elif kind == "nvlink_down":
        gpu.links_down.add(fault["link"])
    elif kind == "nvlink_errors":
        gpu.link_errors[fault["link"]] = gpu.link_errors.get(fault["link"], 0) + fault["count"]
    elif kind == "vbios":
        gpu.vbios = fault["value"]
    elif kind == "mig_on":
        gpu.mig = True
    elif kind == "throttle":
        gpu.reasons = (gpu.reasons - {"gpu_idle"}) | set(fault["reasons"])


def driver_trouble(state: dict[str, Any]) -> None:
    """Stop where the driver would not answer."""
    for fault in state["faults"]:
        if fault["fault"] == "driver_not_loaded":
            raise Stop(
                9,
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
                "Make sure that the latest NVIDIA driver is installed and running.\n",
            )
    for fault in state["faults"]:
        if fault["fault"] == "driver_mismatch":
            raise Stop(
                18,
                "Failed to initialize NVML: Driver/library version mismatch\n"
                f"NVML library version: {short_version(fault['value'])}",
            )


def short_version(version: str) -> str:
    """NVML calls itself by two numbers."""
    return ".".join(version.split(".")[:2])


def lost_sentence(gpu: Gpu) -> str:
    """What every call says of a GPU that fell off the bus."""
    return (
        f"Unable to determine the device handle for GPU{gpu.pci.upper()}: "
        "GPU is lost.  Reboot the system to recover this GPU"
    )


def select(gpus: list[Gpu], wanted: str | None) -> list[Gpu]:
    """The GPUs that -i names by index, UUID, serial number or PCI address."""
    if wanted is None:
        return gpus
    found = []
    for word in wanted.split(","):
        hits = [gpu for gpu in gpus if word.strip().lower() in names_of(gpu)]
        if not hits:
            raise Stop(6, "No devices were found")
        found += [gpu for gpu in hits if gpu not in found]
    return sorted(found, key=lambda gpu: gpu.index)


def names_of(gpu: Gpu) -> set[str]:
    """Everything that means this GPU."""
    pci = gpu.pci.lower()
    return {str(gpu.index), gpu.uuid.lower(), gpu.serial, pci, f"0000{pci}", pci.partition(":")[2]}


# -- the report: -q and -q -x come from one tree -----------------------------------------------------------------------


@dataclass
class Node:
    """One entry: its XML tag, its label in the text ("" where it stands in one of the two only), and a value or entries below it."""

    tag: str
    label: str
    value: str = ""
    below: list[Node] = field(default_factory=list)
    text: str = ""  # the value in the text, where it is another one
    empty: bool = False  # an element without anything in it


def one(tag: str, label: str, value: object, text: str = "") -> Node:
    """An entry with a value."""
    return Node(tag, label, str(value), text=text)


def group(tag: str, label: str, *below: Node) -> Node:
    """An entry with entries."""
    return Node(tag, label, below=list(below))


def all_na(tag: str, label: str, *names: tuple[str, str]) -> Node:
    """An entry whose entries are all N/A."""
    return group(tag, label, *(one(name, text, NA) for name, text in names))


def yes(value: bool) -> str:
    """Yes or No."""
    return "Yes" if value else "No"


def enabled(value: bool) -> str:
    """Enabled or Disabled."""
    return "Enabled" if value else "Disabled"


def active(value: bool) -> str:
    """Active or Not Active."""
    return "Active" if value else "Not Active"


def identity(gpu: Gpu, state: dict[str, Any]) -> list[Node]:
    """What a GPU is."""
    product = gpu.product
    mig = enabled(gpu.mig) if product["mig"] else NA
    inforom = product["inforom"]
    hopper = product["temperature_as_tlimit"]
    return [
        one("product_name", "Product Name", product["name"]),
        one("product_brand", "Product Brand", "NVIDIA"),
        one("product_architecture", "Product Architecture", product["architecture"]),
        one("display_mode", "Display Mode", "Enabled"),
        one("display_active", "Display Active", "Disabled"),
        one("persistence_mode", "Persistence Mode", enabled(gpu.persistence)),
        one("addressing_mode", "Addressing Mode", "None"),
        group("mig_mode", "MIG Mode", one("current_mig", "Current", mig), one("pending_mig", "Pending", mig)),
        one("mig_devices", "", "\n\t\t\tNone\n\t\t"),
        one("accounting_mode", "Accounting Mode", "Disabled"),
        one("accounting_mode_buffer_size", "Accounting Mode Buffer Size", 4000),
        all_na("driver_model", "Driver Model", ("current_dm", "Current"), ("pending_dm", "Pending")),
        one("serial", "Serial Number", gpu.serial),
        one("uuid", "GPU UUID", gpu.uuid),
        one("minor_number", "Minor Number", gpu.index),
        one("vbios_version", "VBIOS Version", gpu.vbios),
        one("multigpu_board", "MultiGPU Board", "No"),
        one("board_id", "Board ID", f"0x{int(gpu.pci[5:7], 16) << 8:x}"),
        one("board_part_number", "Board Part Number", product["board_part_number"]),
        one("gpu_part_number", "GPU Part Number", product["gpu_part_number"]),
        one("gpu_fru_part_number", "FRU Part Number", NA),
        one("gpu_module_id", "Module ID", gpu.index + 1),
        group(
            "inforom_version",
            "Inforom Version",
            one("img_version", "Image Version", inforom["image"]),
            one("oem_object", "OEM Object", inforom["oem"]),
            one("ecc_object", "ECC Object", inforom["ecc"]),
            one("pwr_object", "Power Management Object", NA),
        ),
        all_na(
            "inforom_bbx_flush",
            "Inforom BBX Object Flush",
            ("latest_timestamp", "Latest Timestamp"),
            ("latest_duration", "Latest Duration"),
        ),
        all_na("gpu_operation_mode", "GPU Operation Mode", ("current_gom", "Current"), ("pending_gom", "Pending")),
        one("c2c_mode", "GPU C2C Mode", "Disabled" if hopper and product["nvlinks"] else NA),
        group(
            "gpu_virtualization_mode",
            "GPU Virtualization Mode",
            one("virtualization_mode", "Virtualization Mode", "None"),
            one("host_vgpu_mode", "Host VGPU Mode", NA),
            one("vgpu_heterogeneous_mode", "vGPU Heterogeneous Mode", NA),
        ),
        group(
            "gpu_reset_status",
            "GPU Reset Status",
            one("reset_required", "Reset Required", yes(gpu.reset)),
            one("drain_and_reset_recommended", "Drain and Reset Recommended", yes(gpu.reset or gpu.remap_pending)),
        ),
        one("gsp_firmware_version", "GSP Firmware Version", state["driver"]["version"]),
        all_na("ibmnpu", "IBMNPU", ("relaxed_ordering_mode", "Relaxed Ordering Mode")),
    ]


def pci(gpu: Gpu) -> list[Node]:
    """Where a GPU is, and its link."""
    product = gpu.product
    bus, device = gpu.pci[5:7].upper(), gpu.pci[8:10].upper()
    ident = f"{product['device']}10DE".upper()
    vendor, sub = product["subsystem"].upper().split(":")
    gen = product["pcie_gen"]
    return [
        group(
            "pci",
            "PCI",
            one("pci_bus", "Bus", bus, text=f"0x{bus}"),
            one("pci_device", "Device", device, text=f"0x{device}"),
            one("pci_domain", "Domain", gpu.pci[:4], text=f"0x{gpu.pci[:4]}"),
            one("pci_base_class", "Base Classcode", "3", text="0x3"),
            one("pci_sub_class", "Sub Classcode", "2", text="0x2"),
            one("pci_device_id", "Device Id", ident, text=f"0x{ident}"),
            one("pci_bus_id", "Bus Id", gpu.bus_id),
            one("pci_sub_system_id", "Sub System Id", f"{sub}{vendor}", text=f"0x{sub}{vendor}"),
            group(
                "pci_gpu_link_info",
                "GPU Link Info",
                group(
                    "pcie_gen",
                    "PCIe Generation",
                    one("max_link_gen", "Max", gen),
                    one("current_link_gen", "Current", gen),
                    one("device_current_link_gen", "Device Current", gen),
                    one("max_device_link_gen", "Device Max", gen),
                    one("max_host_link_gen", "Host Max", gen),
                ),
                group(
                    "link_widths",
                    "Link Width",
                    one("max_link_width", "Max", "16x"),
                    one("current_link_width", "Current", f"{gpu.width}x"),
                ),
            ),
            all_na("pci_bridge_chip", "Bridge Chip", ("bridge_chip_type", "Type"), ("bridge_chip_fw", "Firmware")),
            one("replay_counter", "Replays Since Reset", 0),
            one("replay_rollover_counter", "Replay Number Rollovers", 0),
            one("tx_util", "Tx Throughput", gpu.alive(0, "KB/s")),
            one("rx_util", "Rx Throughput", gpu.alive(0, "KB/s")),
            one("atomic_caps_inbound", "Atomic Caps Inbound", NA),
            one("atomic_caps_outbound", "Atomic Caps Outbound", NA),
        )
    ]


def activity(gpu: Gpu) -> list[Node]:
    """What a GPU does: nothing."""
    product = gpu.product
    memory, bar1 = product["memory_mib"], product["bar1_mib"]
    reasons = [
        Node(f"clocks_event_reason_{name}", "    " * deep + label, gpu.alive(active(name in gpu.reasons)))
        for name, label, deep in REASONS
    ]
    amounts = (("total", "Total"), ("used", "Used"), ("free", "Free"))
    counters = (
        ("session_count", "Active Sessions"),
        ("average_fps", "Average FPS"),
        ("average_latency", "Average Latency"),
    )
    utilization = (
        ("gpu_util", "Gpu"),
        ("memory_util", "Memory"),
        ("encoder_util", "Encoder"),
        ("decoder_util", "Decoder"),
        ("jpeg_util", "JPEG"),
        ("ofa_util", "OFA"),
    )
    # With MIG on, the whole GPU's utilization is not available.
    busy = NA if gpu.mig else gpu.alive(0, "%")
    return [
        one("fan_speed", "Fan Speed", NA),
        one("performance_state", "Performance State", gpu.alive("P0")),
        group("clocks_event_reasons", "Clocks Event Reasons", *reasons),
        one("sparse_operation_mode", "Sparse Operation Mode", NA),
        group(
            "fb_memory_usage",
            "FB Memory Usage",
            one("total", "Total", measured(memory, "MiB")),
            one("reserved", "Reserved", measured(product["reserved_mib"], "MiB")),
            one("used", "Used", measured(0, "MiB")),
            one("free", "Free", measured(memory - product["reserved_mib"], "MiB")),
        ),
        group(
            "bar1_memory_usage",
            "BAR1 Memory Usage",
            one("total", "Total", measured(bar1, "MiB")),
            one("used", "Used", measured(1, "MiB")),
            one("free", "Free", measured(bar1 - 1, "MiB")),
        ),
        group(
            "cc_protected_memory_usage",
            "Conf Compute Protected Memory Usage",
            *(one(tag, label, measured(0, "MiB")) for tag, label in amounts),
        ),
        one("compute_mode", "Compute Mode", "Default"),
        group("utilization", "Utilization", *(one(tag, label, busy) for tag, label in utilization)),
        group("encoder_stats", "Encoder Stats", *(one(tag, label, 0) for tag, label in counters)),
        group("fbc_stats", "FBC Stats", *(one(tag, label, 0) for tag, label in counters)),
    ]


def health(gpu: Gpu) -> list[Node]:
    """ECC, retired pages and remapped rows."""
    errors: list[Node] = []
    for scope, label in (("volatile", "Volatile"), ("aggregate", "Aggregate")):
        sram, dram = gpu.ecc.get(f"{scope}_sram", 0), gpu.ecc.get(f"{scope}_dram", 0)
        below = [
            one("sram_correctable", "SRAM Correctable", gpu.alive(gpu.ecc.get(f"{scope}_sram_corrected", 0))),
            one("sram_uncorrectable_parity", "SRAM Uncorrectable Parity", gpu.alive(sram)),
            one("sram_uncorrectable_secded", "SRAM Uncorrectable SEC-DED", gpu.alive(0)),
            one("dram_correctable", "DRAM Correctable", gpu.alive(gpu.ecc.get(f"{scope}_dram_corrected", 0))),
            one("dram_uncorrectable", "DRAM Uncorrectable", gpu.alive(dram)),
        ]
        if scope == "aggregate":
            below.append(one("sram_threshold_exceeded", "SRAM Threshold Exceeded", gpu.alive(yes(sram > 4))))
        errors.append(group(scope, label, *below))
    sources = (
        ("sram_l2", "SRAM L2"),
        ("sram_sm", "SRAM SM"),
        ("sram_microcontroller", "SRAM Microcontroller"),
        ("sram_pcie", "SRAM PCIE"),
        ("sram_other", "SRAM Other"),
    )
    spent = gpu.ecc.get("aggregate_sram", 0)
    errors.append(
        group(
            "aggregate_uncorrectable_sram_sources",
            "Aggregate Uncorrectable SRAM Sources",
            *(one(tag, label, gpu.alive(spent if tag == "sram_sm" else 0)) for tag, label in sources),
        )
    )
    banks = gpu.product["remap_banks"]
    levels = {"max": banks - gpu.remapped, "high": gpu.remapped, "partial": 0, "low": 0, "none": 0}
    if gpu.remap_failed:
        levels.update(max=banks - gpu.remapped - 1, none=1)
    histogram = [
        one(f"row_remapper_histogram_{name}", name.capitalize(), gpu.alive(f"{count} bank(s)"))
        for name, count in levels.items()
    ]
    retired = [one("retired_count", "", NA), one("retired_pagelist", "", NA)]
    return [
        group(
            "ecc_mode", "ECC Mode", one("current_ecc", "Current", "Enabled"), one("pending_ecc", "Pending", "Enabled")
        ),
        group("ecc_errors", "ECC Errors", *errors),
        group(
            "retired_pages",
            "Retired Pages",
            Node("multiple_single_bit_retirement", "Single Bit ECC", below=retired, text=NA),
            Node("double_bit_retirement", "Double Bit ECC", below=retired, text=NA),
            one("pending_blacklist", "Pending Page Blacklist", NA),
            one("pending_retirement", "", NA),
        ),
        group(
            "remapped_rows",
            "Remapped Rows",
            one("remapped_row_corr", "Correctable Error", gpu.alive(0)),
            one("remapped_row_unc", "Uncorrectable Error", gpu.alive(gpu.remapped)),
            one("remapped_row_pending", "Pending", gpu.alive(yes(gpu.remap_pending))),
            one("remapped_row_failure", "Remapping Failure Occurred", gpu.alive(yes(gpu.remap_failed))),
            group("row_remapper_histogram", "Bank Remap Availability Histogram", *histogram),
        ),
    ]


def temperature(gpu: Gpu) -> Node:
    """Temperatures: limits as such, or as distances on products that tell it so."""
    degrees = gpu.product["temperature_c"]
    limits = (
        ("max", "Shutdown", "shutdown"),
        ("slow", "Slowdown", "slowdown"),
        ("max_gpu", "Max Operating", "limit"),
    )
    distance = gpu.product["temperature_as_tlimit"]
    infix, word = ("_tlimit", "T.Limit Temp") if distance else ("", "Temp")
    return group(
        "temperature",
        "Temperature",
        one("gpu_temp", "GPU Current Temp", gpu.alive(heat(gpu), "C")),
        one("gpu_temp_tlimit", "GPU T.Limit Temp", gpu.alive(87 - heat(gpu) if distance else None, "C")),
        *(
            one(f"gpu_temp_{tag}{infix}_threshold", f"GPU {label} {word}", measured(degrees[key], "C"))
            for tag, label, key in limits
        ),
        one("gpu_target_temperature", "GPU Target Temperature", NA),
        one("memory_temp", "Memory Current Temp", gpu.alive(degrees["memory"], "C")),
        one(
            f"gpu_temp_max_mem{infix}_threshold",
            f"Memory Max Operating {word}",
            measured(degrees["memory_limit"], "C"),
        ),
    )


def heat(gpu: Gpu) -> int:
    """The temperature now."""
    return (
        90 if {"hw_thermal_slowdown", "sw_thermal_slowdown"} & gpu.reasons else int(gpu.product["temperature_c"]["gpu"])
    )


def power(gpu: Gpu) -> list[Node]:
    """Power: of the GPU, and of what does not measure it."""
    watts = gpu.product["power_w"]
    names = (
        ("power_draw", "Power Draw"),
        ("current_power_limit", "Current Power Limit"),
        ("requested_power_limit", "Requested Power Limit"),
        ("default_power_limit", "Default Power Limit"),
        ("min_power_limit", "Min Power Limit"),
        ("max_power_limit", "Max Power Limit"),
    )
    keys = ("idle", "default", "default", "default", "min", "max")
    values = [measured(float(watts[key]), "W") for key in keys]
    values[0] = gpu.alive(float(watts["idle"]), "W")
    state = one("power_state", "", gpu.alive("P0"))
    return [
        group(
            "gpu_power_readings",
            "GPU Power Readings",
            state,
            *(one(tag, label, value) for (tag, label), value in zip(names, values)),
        ),
        all_na("gpu_memory_power_readings", "GPU Memory Power Readings ", ("power_draw", "Power Draw")),
        group("module_power_readings", "Module Power Readings", state, *(one(tag, label, NA) for tag, label in names)),
    ]


def clocks(gpu: Gpu) -> list[Node]:
    """Clocks, now and at most."""
    mhz = gpu.product["clocks_mhz"]
    kinds = (
        ("graphics", "Graphics", "sm"),
        ("sm", "SM", "sm"),
        ("mem", "Memory", "memory"),
        ("video", "Video", "video"),
    )
    top = [one("graphics_clock", "Graphics", measured(mhz["sm_max"], "MHz"))]
    chosen = [*top, one("mem_clock", "Memory", measured(mhz["memory_max"], "MHz"))]
    return [
        group(
            "clocks",
            "Clocks",
            *(one(f"{tag}_clock", label, gpu.alive(mhz[f"{key}_idle"], "MHz")) for tag, label, key in kinds),
        ),
        group("applications_clocks", "Applications Clocks", *chosen),
        group("default_applications_clocks", "Default Applications Clocks", *chosen),
        all_na("deferred_clocks", "Deferred Clocks", ("mem_clock", "Memory")),
        group(
            "max_clocks",
            "Max Clocks",
            *(one(f"{tag}_clock", label, measured(mhz[f"{key}_max"], "MHz")) for tag, label, key in kinds),
        ),
        group("max_customer_boost_clocks", "Max Customer Boost Clocks", *top),
        all_na(
            "clock_policy", "Clock Policy", ("auto_boost", "Auto Boost"), ("auto_boost_default", "Auto Boost Default")
        ),
    ]


def fabric(gpu: Gpu, state: dict[str, Any]) -> Node:
    """The place in the NVLink fabric, on products that register with Fabric Manager."""
    where, result = NA, NA
    if gpu.product["fabric_state"]:
        down = any(fault["fault"] == "fabric_manager_down" for fault in state["faults"])
        where, result = ("In Progress", NA) if down else ("Completed", "Success")
    return group(
        "fabric",
        "Fabric",
        one("state", "State", where),
        one("status", "Status", result),
        one("cliqueId", "CliqueId", NA),
        one("clusterUuid", "ClusterUUID", NA),
        group("health", "Health", one("bandwidth", "Bandwidth", NA)),
    )


def report(gpu: Gpu, state: dict[str, Any]) -> list[Node]:
    """Everything about one GPU, in the tool's order."""
    mhz = gpu.product["clocks_mhz"]
    return [
        *identity(gpu, state),
        *pci(gpu),
        *activity(gpu),
        *health(gpu),
        temperature(gpu),
        group(
            "supported_gpu_target_temp",
            "",
            one("gpu_target_temp_min", "", NA),
            one("gpu_target_temp_max", "", NA),
        ),
        *power(gpu),
        *clocks(gpu),
        group("voltage", "Voltage", one("graphics_volt", "Graphics", NA)),
        fabric(gpu, state),
        group(
            "supported_clocks",
            "",
            group(
                "supported_mem_clock",
                "",
                one("value", "", measured(mhz["memory_max"], "MHz")),
                *(
                    one("supported_graphics_clock", "", measured(clock, "MHz"))
                    for clock in range(mhz["sm_max"], mhz["sm_idle"] - 1, -15)
                ),
            ),
        ),
        Node("processes", "Processes", empty=True, text="None"),
        Node("accounted_processes", "", empty=True),
    ]


def as_xml(nodes: list[Node], depth: int) -> Iterator[str]:
    """The entries as XML."""
    tabs = "\t" * depth
    for node in nodes:
        if node.empty:
            yield f"{tabs}<{node.tag}>\n{tabs}</{node.tag}>"
        elif node.below:
            yield f"{tabs}<{node.tag}>"
            yield from as_xml(node.below, depth + 1)
            yield f"{tabs}</{node.tag}>"
        else:
            yield f"{tabs}<{node.tag}>{html.escape(node.value, quote=False)}</{node.tag}>"


def line(label: str, value: object, depth: int = 0) -> str:
    """One line of the text: the colon stands in one column."""
    return f"{'    ' * depth + label:<42}: {value}"


def as_text(nodes: list[Node], depth: int) -> Iterator[str]:
    """The entries as text."""
    for node in nodes:
        if not node.label:
            continue
        if node.below and not node.text:
            yield "    " * depth + node.label
            yield from as_text(node.below, depth + 1)
        else:
            yield line(node.label, node.text or node.value, depth)


DISPLAYS = {
    "MEMORY": ("fb_memory_usage", "bar1_memory_usage", "cc_protected_memory_usage"),
    "UTILIZATION": ("utilization", "encoder_stats", "fbc_stats"),
    "ECC": ("ecc_mode", "ecc_errors"),
    "TEMPERATURE": ("temperature",),
    "POWER": ("gpu_power_readings", "gpu_memory_power_readings", "module_power_readings"),
    "CLOCK": (
        "clocks",
        "applications_clocks",
        "default_applications_clocks",
        "deferred_clocks",
        "max_clocks",
        "clock_policy",
    ),
    "COMPUTE": ("compute_mode",),
    "PIDS": ("processes",),
    "PERFORMANCE": ("performance_state", "clocks_event_reasons", "sparse_operation_mode"),
    "PAGE_RETIREMENT": ("retired_pages",),
    "ROW_REMAPPER": ("remapped_rows",),
    "RESET_STATUS": ("gpu_reset_status",),
    "VOLTAGE": ("voltage",),
}


def displayed(nodes: list[Node], kinds: str | None) -> list[Node]:
    """The entries that -d asks for."""
    if kinds is None:
        return nodes
    wanted: set[str] = set()
    for kind in kinds.upper().split(","):
        if kind not in DISPLAYS:
            raise Stop(2, f"{kind} is not simulated as a display type. Simulated are: {', '.join(DISPLAYS)}")
        wanted |= set(DISPLAYS[kind])
    return [node for node in nodes if node.tag in wanted]


def clock_time() -> str:
    """Now, as the tool writes it."""
    return time.strftime("%a %b %e %H:%M:%S %Y")


def show_query(state: dict[str, Any], gpus: list[Gpu], xml: bool, kinds: str | None) -> int:
    """-q, and -q -x."""
    chosen = [gpu for gpu in gpus if not gpu.lost]
    trees = {gpu.index: displayed(report(gpu, state), kinds) for gpu in chosen}
    driver, total = state["driver"], len(state["gpus"])
    if xml:
        print('<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">')
        print(f"<!-- simulated: {MARK} -->\n<nvidia_smi_log>")
        head = [
            one("timestamp", "", clock_time()),
            one("driver_version", "", driver["version"]),
            one("cuda_version", "", driver["cuda"]),
            one("attached_gpus", "", total),
        ]
        print("\n".join(as_xml(head, 1)))
        for gpu in chosen:
            print(f'\t<gpu id="{gpu.bus_id}">')
            print("\n".join(as_xml(trees[gpu.index], 2)))
            print("\t</gpu>\n")
        print("</nvidia_smi_log>")
    else:
        print("\n==============NVSMI LOG==============\n")
        print(line("Simulated", f"Yes, {MARK}: this host has no GPU"))
        print(line("Timestamp", clock_time()))
        print(line("Driver Version", driver["version"]))
        print(line("CUDA Version", driver["cuda"]))
        print("\n" + line("Attached GPUs", total))
        for gpu in chosen:
            print(f"GPU {gpu.bus_id}")
            print("\n".join(as_text(trees[gpu.index], 1)) + "\n")
    return tell_lost(gpus, sys.stderr if xml else sys.stdout)


def tell_lost(gpus: list[Gpu], stream: Any = None) -> int:
    """Name the GPUs that are gone, after what the others said."""
    lost = [gpu for gpu in gpus if gpu.lost]
    for gpu in lost:
        print(lost_sentence(gpu), file=stream or sys.stdout)
    return 15 if lost else 0


# -- CSV ---------------------------------------------------------------------------------------------------------------

# The fields of --query-gpu: other names of it, and what it is.
FIELDS: dict[str, tuple[str, str]] = {
    "timestamp": ("", "When the query was made."),
    "driver_version": ("", "The version of the driver."),
    "count": ("", "How many GPUs there are."),
    "name": ("gpu_name", "The product's name."),
    "serial": ("gpu_serial", "The serial number."),
    "uuid": ("gpu_uuid", "The unique id."),
    "index": ("", "The number of the GPU, from zero."),
    "pci.bus_id": ("gpu_bus_id", "The PCI address."),
    "pci.domain": ("", "Its domain."),
    "pci.bus": ("", "Its bus."),
    "pci.device": ("", "Its device."),
    "pci.device_id": ("", "The PCI device and vendor id."),
    "pci.sub_device_id": ("", "The PCI subsystem id."),
    "pcie.link.gen.current": ("pcie.link.gen.gpucurrent", "The link's generation now."),
    "pcie.link.gen.max": ("", "The link's generation at most."),
    "pcie.link.gen.gpumax": ("", "The GPU's generation at most."),
    "pcie.link.gen.hostmax": ("", "The host's generation at most."),
    "pcie.link.width.current": ("", "The link's width now."),
    "pcie.link.width.max": ("", "The link's width at most."),
    "display_mode": ("", "Whether a display may be attached."),
    "display_active": ("", "Whether one is."),
    "persistence_mode": ("", "Whether the driver stays loaded without clients."),
    "addressing_mode": ("", "The addressing mode."),
    "accounting.mode": ("", "Whether accounting is on."),
    "vbios_version": ("", "The version of the VBIOS."),
    "inforom.img": ("inforom.image", "The version of the InfoROM image."),
    "inforom.oem": ("", "The version of its OEM object."),
    "inforom.ecc": ("", "The version of its ECC object."),
    "inforom.pwr": ("inforom.power", "The version of its power object."),
    "gsp.mode.current": ("", "Whether the GSP is in use."),
    "reset_status.reset_required": ("", "Whether the GPU requires a reset."),
    "reset_status.drain_and_reset_recommended": ("", "Whether it should be drained and reset."),
    "fan.speed": ("", "Speed of the fan."),
    "pstate": ("", "The performance state."),
    "clocks_event_reasons.active": ("clocks_throttle_reasons.active", "Bits of the active clock event reasons."),
    **{
        f"clocks_event_reasons.{name}": (f"clocks_throttle_reasons.{name}", f"Whether this one is active: {label}.")
        for name, label, _deep in REASONS
        if name != "display_clocks_setting"
    },
    "memory.total": ("", "Memory of the GPU."),
    "memory.reserved": ("", "Memory that the driver keeps."),
    "memory.used": ("", "Memory in use."),
    "memory.free": ("", "Memory that is free."),
    "compute_mode": ("", "The compute mode."),
    "compute_cap": ("", "The compute capability."),
    "utilization.gpu": ("", "How busy the GPU is."),
    "utilization.memory": ("", "How busy its memory is."),
    "encoder.stats.sessionCount": ("", "Encoder sessions."),
    "ecc.mode.current": ("", "Whether ECC is on."),
    "ecc.mode.pending": ("", "Whether it will be after a reset."),
    **{
        f"ecc.errors.{kind}.{scope}.{place}": ("", f"ECC errors: {kind}, {scope}, {place}.")
        for kind in ("corrected", "uncorrected")
        for scope in ("volatile", "aggregate")
        for place in (
            "device_memory",
            "dram",
            "sram",
            "register_file",
            "l1_cache",
            "l2_cache",
            "texture_memory",
            "total",
        )
    },
    "retired_pages.single_bit_ecc.count": ("retired_pages.sbe", "Retired pages, single bit."),
    "retired_pages.double_bit.count": ("retired_pages.dbe", "Retired pages, double bit."),
    "retired_pages.pending": ("", "Whether pages wait for it."),
    "remapped_rows.correctable": ("", "Rows remapped after correctable errors."),
    "remapped_rows.uncorrectable": ("", "Rows remapped after uncorrectable errors."),
    "remapped_rows.pending": ("", "Whether a remapping waits for a reset."),
    "remapped_rows.failure": ("", "Whether a remapping failed."),
    "temperature.gpu": ("", "Temperature of the GPU."),
    "temperature.gpu.tlimit": ("", "Distance to the temperature limit."),
    "temperature.memory": ("", "Temperature of the memory."),
    "power.management": ("", "Whether power management is on."),
    "power.draw": ("power.draw.average", "Power drawn."),
    "power.draw.instant": ("", "Power drawn at this moment."),
    "power.limit": ("", "The power limit."),
    "enforced.power.limit": ("", "The power limit that counts."),
    "power.default_limit": ("", "The power limit of the product."),
    "power.min_limit": ("", "The least one can set."),
    "power.max_limit": ("", "The most one can set."),
    "clocks.current.graphics": ("clocks.gr", "Graphics clock."),
    "clocks.current.sm": ("clocks.sm", "SM clock."),
    "clocks.current.memory": ("clocks.mem", "Memory clock."),
    "clocks.current.video": ("clocks.video", "Video clock."),
    "clocks.applications.graphics": ("clocks.applications.gr", "Graphics clock that applications asked for."),
    "clocks.applications.memory": ("clocks.applications.mem", "Memory clock that applications asked for."),
    "clocks.max.graphics": ("clocks.max.gr", "Graphics clock at most."),
    "clocks.max.sm": ("", "SM clock at most."),
    "clocks.max.memory": ("clocks.max.mem", "Memory clock at most."),
    "mig.mode.current": ("", "Whether MIG is on."),
    "mig.mode.pending": ("", "Whether it will be after a reset."),
    "fabric.state": ("", "State of the NVLink fabric."),
    "fabric.status": ("", "How joining it ended."),
}
ALIASES = {alias: name for name, (alias, _what) in FIELDS.items() if alias}
UNITS = {
    "memory": "MiB",
    "utilization": "%",
    "fan.speed": "%",
    "power.draw": "W",
    "power.limit": "W",
    "enforced.power.limit": "W",
    "power.default_limit": "W",
    "power.min_limit": "W",
    "power.max_limit": "W",
    "clocks.current": "MHz",
    "clocks.applications": "MHz",
    "clocks.max": "MHz",
}


def unit_of(name: str) -> str:
    """The unit of a field, in the header as well."""
    return next((unit for start, unit in UNITS.items() if name == start or name.startswith(f"{start}.")), "")


def field_value(name: str, gpu: Gpu, state: dict[str, Any], nodes: list[Node]) -> object:
    """The value of a field; None is N/A. Fields that stand in the report as well are taken from it."""
    place = REPORT_FIELDS.get(name)
    if place:
        return in_report(nodes, place)
    product = gpu.product
    if name.startswith("ecc.errors."):
        return ecc_value(name, gpu)
    if name.startswith("clocks_event_reasons."):
        reason = name.split(".")[1]
        if reason == "active":
            return gpu.alive(f"0x{sum(REASON_BITS[active] for active in gpu.reasons):016x}")
        return gpu.alive(active(reason in gpu.reasons))
    simple: dict[str, Callable[[], object]] = {
        "timestamp": lambda: time.strftime("%Y/%m/%d %H:%M:%S") + f".{int(time.time() * 1000) % 1000:03d}",
        "driver_version": lambda: state["driver"]["version"],
        "count": lambda: len(state["gpus"]),
        "index": lambda: gpu.index,
        "pci.domain": lambda: f"0x{gpu.pci[:4]}",
        "pci.bus": lambda: f"0x{gpu.pci[5:7].upper()}",
        "pci.device": lambda: f"0x{gpu.pci[8:10].upper()}",
        "pci.device_id": lambda: f"0x{product['device']}10DE".upper().replace("0X", "0x"),
        "pci.sub_device_id": lambda: "0x" + "".join(reversed(product["subsystem"].upper().split(":"))),
        "pcie.link.width.current": lambda: gpu.width,
        "pcie.link.width.max": lambda: 16,
        "compute_cap": lambda: product["compute_capability"],
        "gsp.mode.current": lambda: "Enabled",
        "power.management": lambda: "Enabled",
    }
    return simple[name]()


def ecc_value(name: str, gpu: Gpu) -> object:
    """A counter of ECC errors: the parts that these products do not count are N/A."""
    _ecc, _errors, kind, scope, place = name.split(".")
    if place in ("register_file", "l1_cache", "l2_cache", "texture_memory"):
        return None
    suffix = "_corrected" if kind == "corrected" else ""
    sram, dram = gpu.ecc.get(f"{scope}_sram{suffix}", 0), gpu.ecc.get(f"{scope}_dram{suffix}", 0)
    return gpu.alive({"device_memory": dram, "dram": dram, "sram": sram, "total": sram + dram}[place])


REPORT_FIELDS = {
    "name": "product_name",
    "serial": "serial",
    "uuid": "uuid",
    "pci.bus_id": "pci/pci_bus_id",
    "pcie.link.gen.current": "pci/pci_gpu_link_info/pcie_gen/current_link_gen",
    "pcie.link.gen.max": "pci/pci_gpu_link_info/pcie_gen/max_link_gen",
    "pcie.link.gen.gpumax": "pci/pci_gpu_link_info/pcie_gen/max_device_link_gen",
    "pcie.link.gen.hostmax": "pci/pci_gpu_link_info/pcie_gen/max_host_link_gen",
    "display_mode": "display_mode",
    "display_active": "display_active",
    "persistence_mode": "persistence_mode",
    "addressing_mode": "addressing_mode",
    "accounting.mode": "accounting_mode",
    "vbios_version": "vbios_version",
    "inforom.img": "inforom_version/img_version",
    "inforom.oem": "inforom_version/oem_object",
    "inforom.ecc": "inforom_version/ecc_object",
    "inforom.pwr": "inforom_version/pwr_object",
    "reset_status.reset_required": "gpu_reset_status/reset_required",
    "reset_status.drain_and_reset_recommended": "gpu_reset_status/drain_and_reset_recommended",
    "fan.speed": "fan_speed",
    "pstate": "performance_state",
    "memory.total": "fb_memory_usage/total",
    "memory.reserved": "fb_memory_usage/reserved",
    "memory.used": "fb_memory_usage/used",
    "memory.free": "fb_memory_usage/free",
    "compute_mode": "compute_mode",
    "utilization.gpu": "utilization/gpu_util",
    "utilization.memory": "utilization/memory_util",
    "encoder.stats.sessionCount": "encoder_stats/session_count",
    "ecc.mode.current": "ecc_mode/current_ecc",
    "ecc.mode.pending": "ecc_mode/pending_ecc",
    "retired_pages.single_bit_ecc.count": "retired_pages/multiple_single_bit_retirement/retired_count",
    "retired_pages.double_bit.count": "retired_pages/double_bit_retirement/retired_count",
    "retired_pages.pending": "retired_pages/pending_retirement",
    "remapped_rows.correctable": "remapped_rows/remapped_row_corr",
    "remapped_rows.uncorrectable": "remapped_rows/remapped_row_unc",
    "remapped_rows.pending": "remapped_rows/remapped_row_pending",
    "remapped_rows.failure": "remapped_rows/remapped_row_failure",
    "temperature.gpu": "temperature/gpu_temp",
    "temperature.gpu.tlimit": "temperature/gpu_temp_tlimit",
    "temperature.memory": "temperature/memory_temp",
    "power.draw": "gpu_power_readings/power_draw",
    "power.draw.instant": "gpu_power_readings/power_draw",
    "power.limit": "gpu_power_readings/requested_power_limit",
    "enforced.power.limit": "gpu_power_readings/current_power_limit",
    "power.default_limit": "gpu_power_readings/default_power_limit",
    "power.min_limit": "gpu_power_readings/min_power_limit",
    "power.max_limit": "gpu_power_readings/max_power_limit",
    "clocks.current.graphics": "clocks/graphics_clock",
    "clocks.current.sm": "clocks/sm_clock",
    "clocks.current.memory": "clocks/mem_clock",
    "clocks.current.video": "clocks/video_clock",
    "clocks.applications.graphics": "applications_clocks/graphics_clock",
    "clocks.applications.memory": "applications_clocks/mem_clock",
    "clocks.max.graphics": "max_clocks/graphics_clock",
    "clocks.max.sm": "max_clocks/sm_clock",
    "clocks.max.memory": "max_clocks/mem_clock",
    "mig.mode.current": "mig_mode/current_mig",
    "mig.mode.pending": "mig_mode/pending_mig",
    "fabric.state": "fabric/state",
    "fabric.status": "fabric/status",
}


def in_report(nodes: list[Node], place: str) -> str:
    """The value at a place of the report."""
    tag, _slash, rest = place.partition("/")
    node = next(node for node in nodes if node.tag == tag)
    return in_report(node.below, rest) if rest else node.value


def formats_of(words: str | None) -> set[str]:
    """What --format says; csv must be in it."""
    if words is None:
        raise Stop(2, "Missing or invalid --format= option: csv[,noheader][,nounits] is required with a query.")
    formats = set(words.split(","))
    unknown = formats - {"csv", "noheader", "nounits"}
    if unknown or "csv" not in formats:
        raise Stop(2, f"--format={words} is not valid: csv[,noheader][,nounits] is required with a query.")
    return formats


def show_csv(state: dict[str, Any], gpus: list[Gpu], wanted: str, words: str | None) -> int:
    """--query-gpu."""
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in FIELDS and name not in ALIASES:
            raise Stop(2, f'Field "{name}" is not a valid field to query.\n')
    formats = formats_of(words)
    if "noheader" not in formats:
        units = [unit_of(ALIASES.get(name, name)) for name in names]
        print(", ".join(f"{name} [{unit}]" if unit else name for name, unit in zip(names, units)))
    for gpu in gpus:
        if gpu.lost:
            print(lost_sentence(gpu))
            continue
        nodes = report(gpu, state)
        values = [(name, field_value(name, gpu, state, nodes)) for name in (ALIASES.get(name, name) for name in names)]
        print(", ".join(cell(name, value, "nounits" in formats) for name, value in values))
    return 15 if any(gpu.lost for gpu in gpus) else 0


def cell(name: str, found: object, bare: bool) -> str:
    """One value of the CSV."""
    value = measured(found)
    if value in (NA, RESET):
        return f"[{value}]"
    unit = unit_of(name)
    if not unit:
        # The report has units where the CSV has none.
        return re.sub(r"^(-?\d+) C$", r"\1", value)
    number = value[: -len(unit) - 1] if value.endswith(f" {unit}") else value
    return number if bare else f"{number} {unit}"


def show_fields() -> int:
    """--help-query-gpu."""
    print(f'List of valid properties to query for the switch "--query-gpu=" ({NOTICE})\n')
    for name, (alias, what) in FIELDS.items():
        print(f'"{name}"' + (f' or "{alias}"' if alias else "") + f"\n{what}\n")
    return 0


def show_apps(wanted: str, words: str | None) -> int:
    """--query-compute-apps: nothing ever runs here."""
    known = {"timestamp", "gpu_name", "gpu_bus_id", "gpu_serial", "gpu_uuid", "pid", "process_name", "name"}
    units = {"used_memory": "used_gpu_memory [MiB]", "used_gpu_memory": "used_gpu_memory [MiB]"}
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in known and name not in units:
            raise Stop(2, f'Field "{name}" is not a valid field to query.\n')
    if "noheader" not in formats_of(words):
        print(", ".join(units.get(name, name) for name in names))
    return 0


# -- the other views ---------------------------------------------------------------------------------------------------


def show_list(gpus: list[Gpu]) -> int:
    """-L."""
    for gpu in gpus:
        if gpu.lost:
            print(lost_sentence(gpu))
        else:
            print(f"GPU {gpu.index}: {gpu.product['name']} (UUID: {gpu.uuid})")
    return 15 if any(gpu.lost for gpu in gpus) else 0


def show_version(state: dict[str, Any]) -> int:
    """--version."""
    driver = state["driver"]
    print(f"NVIDIA-SMI version  : {driver['version']}\nNVML version        : {short_version(driver['version'])}")
    print(f"DRIVER version      : {driver['version']}\nCUDA Version        : {driver['cuda']}")
    print(f"SIMULATED           : {MARK}")
    return 0


def show_table(state: dict[str, Any], gpus: list[Gpu]) -> int:
    """What one sees without arguments."""
    driver = state["driver"]
    rule = f"+{'-' * 41}+{'-' * 24}+{'-' * 22}+"
    print(f"{clock_time()}       \n{NOTICE}\n+{'-' * 89}+")
    version = driver["version"]
    print(f"| NVIDIA-SMI {version:<23}Driver Version: {version:<15}CUDA Version: {driver['cuda']:<9}|")
    print(f"|{rule[1:-1]}|")
    print("| GPU  Name                 Persistence-M | Bus-Id          Disp.A | Volatile Uncorr. ECC |")
    print("| Fan  Temp   Perf          Pwr:Usage/Cap |           Memory-Usage | GPU-Util  Compute M. |")
    print(f"|{'':41}|{'':24}|               MIG M. |")
    print(f"|{'=' * 41}+{'=' * 24}+{'=' * 22}|")
    for gpu in gpus:
        if gpu.lost:
            continue
        product = gpu.product
        broken = gpu.reset
        errors = "ERR!" if broken else str(gpu.ecc.get("volatile_sram", 0) + gpu.ecc.get("volatile_dram", 0))
        degrees = "ERR!" if broken else f"{heat(gpu)}C"
        draw = "ERR!" if broken else f"{round(product['power_w']['idle'])}W"
        mode = "On" if gpu.persistence else "Off"
        util = "N/A" if gpu.mig else ("ERR!" if broken else "0%")
        mig = enabled(gpu.mig) if product["mig"] else NA
        print(f"|{gpu.index:>4}  {product['name']:<31}{mode:<3} |   {gpu.bus_id} Off |{errors:>21} |")
        left = f"{'N/A':>4} {degrees:>5}    {'P0':<2}{draw:>16} /{product['power_w']['default']:>5}W "
        print(f"|{left}|{0:>8}MiB /{product['memory_mib']:>7}MiB |{util:>8}{'Default':>13} |")
        print(f"|{'':41}|{'':24}|{mig:>21} |\n{rule}")
    print(f"{'':89}\n+{'-' * 89}+")
    print(f"| {'Processes:':<88}|")
    print("|  GPU   GI   CI        PID   Type   Process name                              GPU Memory |")
    print("|        ID   ID                                                               Usage      |")
    print(f"|{'=' * 89}|\n|{'  No running processes found':<89}|\n+{'-' * 89}+")
    return tell_lost(gpus)


def connection(first: Gpu, second: Gpu, state: dict[str, Any]) -> str:
    """How two GPUs are connected."""
    if first.index == second.index:
        return " X "
    links = min(gpu.product["nvlinks"] - len(gpu.links_down) for gpu in (first, second))
    same_product = first.product is second.product
    bridged = first.bridge is not None and first.bridge == second.bridge
    if same_product and links > 0 and (state["nvswitches"] or bridged):
        return f"NV{links}"
    if first.numa != second.numa:
        return "SYS"
    return "PXB" if first.switch == second.switch else "NODE"


LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
"""


def show_topology(state: dict[str, Any], gpus: list[Gpu]) -> int:
    """topo -m; the header is underlined as the tool underlines it."""
    there = [gpu for gpu in gpus if not gpu.lost]
    columns = [f"GPU{gpu.index}" for gpu in there] + ["CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]
    print("\t\033[4m" + "\t".join(columns) + "\033[0m")
    for gpu in there:
        cells = [connection(gpu, other, state) for other in there]
        affinity = state["cpu_affinity"][str(gpu.numa)]
        print(f"GPU{gpu.index}\t" + "\t".join(cells) + f"\t{affinity}\t{gpu.numa}\t\tN/A")
    print(LEGEND)
    return tell_lost(gpus)


def show_nvlinks(gpus: list[Gpu], errors: bool) -> int:
    """nvlink -s: the links and their speed; nvlink -e: their errors."""
    for gpu in gpus:
        if gpu.lost:
            continue
        print(f"GPU {gpu.index}: {gpu.product['name']} (UUID: {gpu.uuid})")
        for link in range(gpu.product["nvlinks"]):
            down = link in gpu.links_down
            if errors:
                print(f"\t Link {link}: Replay Errors: {6 if down else 0}")
                print(f"\t Link {link}: Recovery Errors: {1 if down else 0}")
                print(f"\t Link {link}: CRC Errors: {(25 if down else 0) + gpu.link_errors.get(link, 0)}\n")
            else:
                print(f"\t Link {link}: " + ("<inactive>" if down else f"{gpu.product['nvlink_gb_per_s']} GB/s"))
    return tell_lost(gpus)


# -- what changes something --------------------------------------------------------------------------------------------


def need_root(what: str) -> None:
    """Only root changes a GPU."""
    if os.geteuid() != 0:
        raise Stop(4, f"{what}: Insufficient Permissions\nTerminating early due to previous error.")


def set_persistence(wanted: str | None, value: str) -> int:
    """-pm."""
    modes = {"0": False, "disabled": False, "1": True, "enabled": True}
    if value.lower() not in modes:
        raise Stop(2, f'"{value}" is not a valid persistence mode: 0 or 1 is.')
    on = modes[value.lower()]
    with changing() as state:
        driver_trouble(state)
        chosen = select(gpus_of(state), wanted)
        for gpu in chosen:
            if gpu.lost:
                continue
            need_root(f"Unable to set persistence mode for GPU {gpu.bus_id}")
            if state["persistence"][gpu.index] == on:
                print(f"Persistence mode is already {enabled(on)} for GPU {gpu.bus_id}.")
            else:
                state["persistence"][gpu.index] = on
                print(f"{enabled(on)} persistence mode for GPU {gpu.bus_id}.")
        code = tell_lost(chosen)
    print("All done.")
    return code


def reset_gpus(wanted: str | None) -> int:
    """-r: volatile counters, a pending remap and the need of a reset are gone afterwards; what is broken stays so."""
    with changing() as state:
        driver_trouble(state)
        chosen = select(gpus_of(state), wanted)
        for gpu in chosen:
            if gpu.lost:
                continue
            need_root(f"GPU Reset couldn't run for GPU {gpu.bus_id}")
            kept = []
            for fault in state["faults"]:
                if fault.get("gpu") == gpu.index:
                    if fault["fault"] in ("requires_reset", "nvlink_errors"):
                        continue
                    if fault["fault"] in ("ecc", "ecc_corrected", "row_remap_pending"):
                        fault["after_reset"] = True
                kept.append(fault)
            state["faults"] = kept
            print(f"GPU {gpu.bus_id} was successfully reset.")
        code = tell_lost(chosen)
    print("All done.")
    return code


# -- the command line --------------------------------------------------------------------------------------------------


class Arguments(argparse.ArgumentParser):
    """The tool's own sentence for arguments that are wrong."""

    def error(self, message: str) -> NoReturn:
        raise Stop(2, f"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n({message})")


def parser() -> Arguments:
    """What is simulated of the command line."""
    options = Arguments(
        prog="nvidia-smi",
        description=NOTICE,
        epilog="Also: nvidia-smi topo -m; nvidia-smi nvlink -s|-e [-i ID]. Nothing else is simulated.",
        allow_abbrev=False,
    )
    add = options.add_argument
    add("-L", "--list-gpus", action="store_true", help="name the GPUs")
    add("-i", "--id", metavar="ID", help="by index, UUID, serial number or PCI address; several with commas")
    add("-q", "--query", action="store_true", help="everything about the GPUs")
    add("-x", "--xml-format", action="store_true", help="with -q: as XML")
    add("-d", "--display", metavar="TYPES", help=f"with -q: only {', '.join(DISPLAYS)}")
    add("--query-gpu", metavar="FIELDS", help="these fields as CSV")
    add("--query-compute-apps", metavar="FIELDS", help="processes as CSV: there is never one")
    add("--format", metavar="FORMAT", help="csv[,noheader][,nounits]")
    add("--help-query-gpu", action="store_true", help="the fields of --query-gpu")
    add("--version", action="store_true", help="the versions")
    add("-pm", "--persistence-mode", metavar="MODE", help="0 or 1")
    add("-r", "--gpu-reset", action="store_true", help="reset the GPUs of -i, or all")
    return options


def subcommand(words: list[str]) -> int:
    """topo and nvlink."""
    options = Arguments(prog=f"nvidia-smi {words[0]}", description=NOTICE, allow_abbrev=False)
    options.add_argument("-i", "--id", metavar="ID")
    views = options.add_mutually_exclusive_group(required=True)
    if words[0] == "topo":
        views.add_argument("-m", "--matrix", action="store_true")
    else:
        views.add_argument("-s", "--status", action="store_true")
        views.add_argument("-e", "--errorcounters", action="store_true")
    given = options.parse_args(words[1:])
    state = load()
    driver_trouble(state)
    chosen = select(gpus_of(state), given.id)
    return show_topology(state, chosen) if words[0] == "topo" else show_nvlinks(chosen, given.errorcounters)


def run(words: list[str]) -> int:
    """Do what the command line says."""
    if words[:1] in (["topo"], ["nvlink"]):
        return subcommand(words)
    given = parser().parse_args(words)
    if given.help_query_gpu:
        return show_fields()
    if given.persistence_mode is not None:
        return set_persistence(given.id, given.persistence_mode)
    if given.gpu_reset:
        return reset_gpus(given.id)
    state = load()
    driver_trouble(state)
    if given.version:
        return show_version(state)
    gpus = select(gpus_of(state), given.id)
    if given.list_gpus:
        return show_list(gpus)
    if given.query_gpu is not None:
        return show_csv(state, gpus, given.query_gpu, given.format)
    if given.query_compute_apps is not None:
        return show_apps(given.query_compute_apps, given.format)
    if given.query or given.xml_format:
        if all(gpu.lost for gpu in gpus):
            return tell_lost(gpus)
        return show_query(state, gpus, given.xml_format, given.display)
    return show_table(state, gpus)


def main(words: list[str]) -> int:
    """The exit code."""
    try:
        return run(words)
    except Stop as stop:
        print(stop)
        return stop.code
    except OSError as error:
        print(f"nvidia-smi ({NOTICE}) {error.filename}: {error.strerror}")
        return 4
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        print(
            f"nvidia-smi ({NOTICE}) {directory()}/state.json is broken ({error!r}); run: gpufleet-simulated-gpu apply PROFILE"
        )
        return 9


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
