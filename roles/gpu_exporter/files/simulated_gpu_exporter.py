# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A page as dcgm-exporter serves it, of GPUs that do not exist.

It reads the state that the stand-in of nvidia-smi prints, with the stand-in's own code, at each request: a fault that
gpufleet-simulated-gpu injects is in both. Which metrics there are, their types and their help come from the counters file of dcgm-exporter.
Every series has the label simulated="true". Without a state the page has no GPU, as that of an exporter whose driver does not answer.
"""

from __future__ import annotations

import argparse
import http.server
import importlib.machinery
import importlib.util
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

NVIDIA_SMI = "/usr/local/bin/nvidia-smi"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# dcgm-exporter's own default: XIDs of the last five minutes.
XID_WINDOW_MS = 300_000
# XIDs that come with a fault, as gpufleet-simulated-gpu writes them into the kernel log.
FAULT_XIDS = {
    "ecc": 94,
    "row_remap_pending": 63,
    "row_remap_failed": 64,
    "lost": 79,
    "nvlink_down": 74,
    "requires_reset": 119,
}
# DCGM's verdicts of a GPU's health.
PASS, WARN, FAIL = 0, 10, 20


@dataclass(frozen=True)
class Counter:
    """A line of the counters file."""

    field: str
    kind: str
    help: str


def read_counters(text: str) -> list[Counter]:
    """The lines of a counters file that are not comments.

    :raises ValueError: a line has not two commas, or a type that Prometheus does not know.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 3 or parts[1] not in ("gauge", "counter", "label"):
            raise ValueError(f"line {number}: expected FIELD, gauge|counter|label, HELP; found {line!r}")
        found.append(Counter(*parts))
    return found


def load_stand_in(path: str) -> Any:
    """The stand-in of nvidia-smi as a module: it knows what each fault does to a GPU."""
    sys.dont_write_bytecode = True
    loader = importlib.machinery.SourceFileLoader("gpufleet_nvidia_smi", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    if spec is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their own module.
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Moment:
    """What a value is made of, besides the GPU: the host's state and the seconds since it booted."""

    state: Mapping[str, Any]
    stand_in: Any
    uptime: float

    def faults(self, gpu: Any, kind: str) -> list[Mapping[str, Any]]:
        """The faults of one kind that a GPU has."""
        return [fault for fault in self.state["faults"] if fault["fault"] == kind and fault.get("gpu") == gpu.index]

    def xids(self, gpu: Any) -> list[tuple[float, int, int]]:
        """Uptime, number and count of each XID of a GPU, in the order they came."""
        found = []
        for fault in self.state["faults"]:
            number = fault["value"] if fault["fault"] == "xid" else FAULT_XIDS.get(fault["fault"])
            if number is not None and fault.get("gpu") == gpu.index:
                # The count of another fault is that of its errors, which come with one XID.
                found.append((float(fault["uptime"]), int(number), fault["count"] if fault["fault"] == "xid" else 1))
        return found

    def recent_xids(self, gpu: Any) -> dict[int, int]:
        """How often each XID came within the window."""
        found: dict[int, int] = {}
        for at, number, count in self.xids(gpu):
            # Seconds of another boot count from another beginning.
            if 0 <= self.uptime - at <= XID_WINDOW_MS / 1000:
                found[number] = found.get(number, 0) + count
        return found

    def fabric(self) -> int:
        """DCGM's state of Fabric Manager."""
        if not self.state["fabric_manager"]:
            return 0
        return 4 if any(fault["fault"] == "fabric_manager_down" for fault in self.state["faults"]) else 3


def links_total(gpu: Any, of_one_that_is_down: int) -> int:
    """An error counter of all links: those that are down bring some, injected errors the rest."""
    return len(gpu.links_down) * of_one_that_is_down


def ecc_total(gpu: Any, scope: str, suffix: str) -> int:
    """ECC errors of both memories."""
    return sum(int(gpu.ecc.get(f"{scope}_{place}{suffix}", 0)) for place in ("sram", "dram"))


def held_back_ns(gpu: Any, now: Moment, *reasons: str) -> int:
    """Nanoseconds for which one of the reasons has held down the clock. A fault without a time has been there since boot."""
    if not set(reasons) & gpu.reasons:
        return 0
    began = [float(fault.get("uptime", 0.0)) for fault in now.faults(gpu, "throttle")]
    return int(max(0.0, now.uptime - min(began, default=0.0)) * 1e9)


def health(gpu: Any) -> dict[str, int]:
    """Verdicts by DCGM's watch."""
    memory = FAIL if gpu.remap_failed or ecc_total(gpu, "volatile", "") else WARN if gpu.remap_pending else PASS
    return {
        "PCIE": WARN if gpu.width < 16 else PASS,
        "NVLINK": FAIL if gpu.links_down else PASS,
        "MEM": memory,
        "THERMAL": WARN if {"hw_thermal_slowdown", "sw_thermal_slowdown"} & gpu.reasons else PASS,
        "POWER": WARN if "hw_power_brake_slowdown" in gpu.reasons else PASS,
    }


Value = Callable[[Any, Moment], float]


def idle(_gpu: Any, _now: Moment) -> float:
    """What nothing uses."""
    return 0


# A value of each field. What is not here has no series, and the unit tests want one for each line of the role's counters file.
VALUES: dict[str, Value] = {
    "DCGM_FI_DEV_GPU_UTIL": idle,
    "DCGM_FI_DEV_MEM_COPY_UTIL": idle,
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": idle,
    "DCGM_FI_PROF_SM_ACTIVE": idle,
    "DCGM_FI_PROF_SM_OCCUPANCY": idle,
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": idle,
    "DCGM_FI_PROF_DRAM_ACTIVE": idle,
    "DCGM_FI_PROF_PCIE_TX_BYTES": idle,
    "DCGM_FI_PROF_PCIE_RX_BYTES": idle,
    "DCGM_FI_PROF_NVLINK_TX_BYTES": idle,
    "DCGM_FI_PROF_NVLINK_RX_BYTES": idle,
    "DCGM_FI_DEV_FB_TOTAL": lambda gpu, _now: gpu.product["memory_mib"],
    "DCGM_FI_DEV_FB_FREE": lambda gpu, _now: gpu.product["memory_mib"] - gpu.product["reserved_mib"],
    "DCGM_FI_DEV_FB_USED": idle,
    "DCGM_FI_DEV_FB_RESERVED": lambda gpu, _now: gpu.product["reserved_mib"],
    "DCGM_FI_DEV_SM_CLOCK": lambda gpu, _now: gpu.product["clocks_mhz"]["sm_idle"],
    "DCGM_FI_DEV_MEM_CLOCK": lambda gpu, _now: gpu.product["clocks_mhz"]["memory_idle"],
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": lambda gpu, now: sum(now.stand_in.REASON_BITS[name] for name in gpu.reasons),
    "DCGM_FI_DEV_POWER_VIOLATION": lambda gpu, now: held_back_ns(gpu, now, "sw_power_cap", "hw_power_brake_slowdown"),
    "DCGM_FI_DEV_THERMAL_VIOLATION": lambda gpu, now: held_back_ns(
        gpu, now, "hw_thermal_slowdown", "sw_thermal_slowdown"
    ),
    "DCGM_FI_DEV_SYNC_BOOST_VIOLATION": lambda gpu, now: held_back_ns(gpu, now, "sync_boost"),
    "DCGM_FI_DEV_BOARD_LIMIT_VIOLATION": idle,
    "DCGM_FI_DEV_LOW_UTIL_VIOLATION": idle,
    "DCGM_FI_DEV_RELIABILITY_VIOLATION": idle,
    "DCGM_FI_DEV_GPU_TEMP": lambda gpu, now: now.stand_in.heat(gpu),
    "DCGM_FI_DEV_MEMORY_TEMP": lambda gpu, _now: gpu.product["temperature_c"]["memory"],
    "DCGM_FI_DEV_POWER_USAGE": lambda gpu, _now: gpu.product["power_w"]["idle"],
    "DCGM_FI_DEV_POWER_MGMT_LIMIT": lambda gpu, _now: gpu.product["power_w"]["default"],
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": lambda gpu, now: int(gpu.product["power_w"]["idle"] * now.uptime * 1000),
    "DCGM_FI_DEV_XID_ERRORS": lambda gpu, now: max(now.xids(gpu), default=(0.0, 0, 0))[1],
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": lambda gpu, _now: ecc_total(gpu, "volatile", "_corrected"),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": lambda gpu, _now: ecc_total(gpu, "volatile", ""),
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": lambda gpu, _now: ecc_total(gpu, "aggregate", "_corrected"),
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": lambda gpu, _now: ecc_total(gpu, "aggregate", ""),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": lambda gpu, _now: gpu.remapped,
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": idle,
    "DCGM_FI_DEV_ROW_REMAP_PENDING": lambda gpu, _now: gpu.remap_pending,
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": lambda gpu, _now: gpu.remap_failed,
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": idle,
    "DCGM_FI_DEV_PCIE_LINK_GEN": lambda gpu, _now: gpu.product["pcie_gen"],
    "DCGM_FI_DEV_PCIE_MAX_LINK_GEN": lambda gpu, _now: gpu.product["pcie_gen"],
    "DCGM_FI_DEV_PCIE_LINK_WIDTH": lambda gpu, _now: gpu.width,
    "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH": lambda _gpu, _now: 16,
    "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": idle,
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": lambda gpu, _now: (
        links_total(gpu, 25) + sum(gpu.link_errors.values())
    ),
    "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": idle,
    "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": lambda gpu, _now: links_total(gpu, 6),
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": lambda gpu, _now: links_total(gpu, 1),
    "DCGM_FI_DEV_PERSISTENCE_MODE": lambda gpu, _now: gpu.persistence,
    "DCGM_FI_DEV_FABRIC_MANAGER_STATUS": lambda _gpu, now: now.fabric(),
}
# Fields whose series have more labels than the GPU's.
EVENTS = ("DCGM_EXP_XID_ERRORS_COUNT", "DCGM_EXP_GPU_HEALTH_STATUS")


def escape(text: str) -> str:
    """A label's value, as Prometheus reads it."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def labels_of(gpu: Any, names: Mapping[str, str], hostname: str) -> dict[str, str]:
    """The labels that dcgm-exporter gives a GPU, those of the counters file, and the mark."""
    return {
        "gpu": str(gpu.index),
        "UUID": gpu.uuid,
        "pci_bus_id": gpu.bus_id,
        "device": f"nvidia{gpu.index}",
        "modelName": gpu.product["name"],
        "hostname": hostname,
        **names,
        "simulated": "true",
    }


def series(name: str, labels: Mapping[str, str], value: float) -> str:
    """One line of the page."""
    text = ",".join(f'{key}="{escape(word)}"' for key, word in labels.items())
    number = float(value)
    return f"{name}{{{text}}} {int(number) if math.isfinite(number) and number.is_integer() else number}"


def events(counter: Counter, gpu: Any, now: Moment) -> Iterator[tuple[dict[str, str], float]]:
    """More labels and value of each series of a field in EVENTS."""
    if counter.field == "DCGM_EXP_XID_ERRORS_COUNT":
        for number, count in sorted(now.recent_xids(gpu).items()):
            yield {"window_size_in_ms": str(XID_WINDOW_MS), "xid": str(number)}, count
    elif not gpu.lost:
        for watch, verdict in health(gpu).items():
            yield {"health_watch": watch}, verdict


def page(counters: list[Counter], stand_in: Any, uptime: float, hostname: str) -> str:
    """The whole page."""
    lines = []
    try:
        state = stand_in.load()
        stand_in.driver_trouble(state)
        gpus = stand_in.gpus_of(state)
    except stand_in.Stop:
        state, gpus = {"faults": [], "fabric_manager": False}, []
    now = Moment(state, stand_in, uptime)
    known = {"DCGM_FI_DRIVER_VERSION": state.get("driver", {}).get("version", "")}
    names = {counter.field: known.get(counter.field, "") for counter in counters if counter.kind == "label"}
    for counter in counters:
        if counter.kind == "label" or counter.field not in (*VALUES, *EVENTS):
            continue
        found = []
        for gpu in gpus:
            labels = labels_of(gpu, names, hostname)
            if counter.field in EVENTS:
                found += [series(counter.field, {**labels, **more}, value) for more, value in events(counter, gpu, now)]
            elif not gpu.lost and not (gpu.reset and counter.field.startswith("DCGM_FI_PROF_")):
                found.append(series(counter.field, labels, VALUES[counter.field](gpu, now)))
        if found:
            lines += [
                f"# HELP {counter.field} Simulated: {counter.help}",
                f"# TYPE {counter.field} {counter.kind}",
                *found,
            ]
    lines += [
        "# HELP gpufleet_simulated_gpus GPUs of this host that do not exist and are shown.",
        "# TYPE gpufleet_simulated_gpus gauge",
        f'gpufleet_simulated_gpus{{simulated="true"}} {sum(not gpu.lost for gpu in gpus)}',
    ]
    return "".join(f"{line}\n" for line in lines)


def uptime_now() -> float:
    """Seconds since the host booted: the clock of the faults."""
    try:
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return time.monotonic()


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /metrics and /health."""

    counters: list[Counter]
    stand_in: Any
    timeout = 10

    def do_GET(self) -> None:
        """The page, as of now."""
        path = self.path.partition("?")[0]
        if path == "/health":
            self.answer(200, "OK\n")
        elif path == "/metrics":
            self.answer(200, page(self.counters, self.stand_in, uptime_now(), socket.gethostname()))
        else:
            self.answer(404, "/metrics is the page.\n")

    def answer(self, status: int, text: str) -> None:
        """Send a text."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """The Server header."""
        return "gpufleet-simulated-gpu-exporter"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """A scrape is no news."""


class Server(http.server.ThreadingHTTPServer):
    """IPv4 or IPv6, by the address."""

    daemon_threads = True

    def __init__(self, address: str, port: int, handler: type[Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), handler)


def main(words: list[str]) -> int:
    """Serve until the process is ended. Exit code 2: what it needs is not there."""
    options = argparse.ArgumentParser(prog="simulated_gpu_exporter", description=__doc__.split("\n\n", maxsplit=1)[0])
    options.add_argument("--counters", required=True, help="counters file of dcgm-exporter")
    options.add_argument("--nvidia-smi", default=NVIDIA_SMI, help="stand-in of nvidia-smi (default %(default)s)")
    options.add_argument("--address", default="127.0.0.1")
    options.add_argument("--port", type=int, default=9400)
    options.add_argument("--once", action="store_true", help="print the page and end")
    given = options.parse_args(words)
    try:
        counters = read_counters(Path(given.counters).read_text(encoding="utf-8"))
        stand_in = load_stand_in(given.nvidia_smi)
    except (OSError, ValueError, ImportError) as error:
        print(f"simulated_gpu_exporter: {error}", file=sys.stderr)
        return 2
    if given.once:
        sys.stdout.write(page(counters, stand_in, uptime_now(), socket.gethostname()))
        return 0
    handler = type("Serving", (Handler,), {"counters": counters, "stand_in": stand_in})
    with Server(given.address, given.port, handler) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(sys.argv[1:]))
