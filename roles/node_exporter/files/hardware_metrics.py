# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Metrics that node_exporter cannot read as the user that it is: NVMe drives by nvme-cli, sensors of the BMC by ipmitool.

Run as root by gpufleet-node-metrics@KIND.timer. Writes KIND.prom into node_exporter's directory for metrics from files, as a whole. What a tool
does not answer is not in the file; when none of them answers, the file of the last time stays and its age tells (node_textfile_mtime_seconds).
Exit code 1: the tool gave nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Kelvin of 0 degrees Celsius, as nvme-cli counts them.
ZERO_CELSIUS = 273
# Name, factor, key of "nvme smart-log -o json", help.
NVME = (
    ("nvme_critical_warning_total", 1, "critical_warning", "Bits of the drive's critical warning."),
    ("nvme_available_spare_ratio", 0.01, "avail_spare", "Spare blocks that are left (0 to 1)."),
    ("nvme_available_spare_threshold_ratio", 0.01, "spare_thresh", "Spare blocks at which the drive warns (0 to 1)."),
    (
        "nvme_percentage_used_ratio",
        0.01,
        "percent_used",
        "Writes that the maker promises and that are used (1 is all).",
    ),
    ("nvme_media_errors_total", 1, "media_errors", "Errors in which data could not be given back."),
    ("nvme_num_err_log_entries_total", 1, "num_err_log_entries", "Entries in the drive's log of errors."),
    ("nvme_power_on_hours_total", 1, "power_on_hours", "Hours of the drive's life."),
    ("nvme_data_units_written_total", 1, "data_units_written", "Data that was written, in units of 512000 bytes."),
    ("nvme_data_units_read_total", 1, "data_units_read", "Data that was read, in units of 512000 bytes."),
)
# By the unit that ipmitool prints.
IPMI = {
    "degrees C": ("ipmi_temperature_celsius", "Temperature (in degrees Celsius)."),
    "RPM": ("ipmi_fan_speed_rpm", "Speed of a fan (in turns per minute)."),
    "Volts": ("ipmi_voltage_volts", "Voltage (in V)."),
    "Watts": ("ipmi_power_watts", "Power (in W)."),
    "Amps": ("ipmi_current_amperes", "Current (in A)."),
}
# What ipmitool says of a sensor with thresholds.
STATES = {"ok": 0, "nc": 1, "cr": 2, "nr": 3}

Families = dict[str, tuple[str, list[tuple[str, str, float]]]]


def add(families: Families, name: str, what: str, label: tuple[str, str], value: float) -> None:
    """A series under its family."""
    families.setdefault(name, (what, []))[1].append((*label, value))


def page(families: Families) -> str:
    """The text of a .prom file."""
    lines = []
    for name, (what, found) in families.items():
        lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge"]
        for key, word, value in found:
            escaped = word.replace("\\", r"\\").replace('"', r"\"")
            lines.append(f'{name}{{{key}="{escaped}"}} {value:.10g}')
    return "".join(f"{line}\n" for line in lines)


def read_nvme(families: Families, device: str, answer: Mapping[str, object]) -> None:
    """One drive's health, as nvme-cli prints it; some releases print large numbers as text."""
    values: dict[str, float] = {}
    for key, value in answer.items():
        if isinstance(value, (int, float, str)):
            try:
                values[key] = float(value)
            except ValueError:
                continue
    if "temperature" in values:
        kelvin = values["temperature"]
        add(
            families,
            "nvme_temperature_celsius",
            "Temperature (in degrees Celsius).",
            ("device", device),
            kelvin - ZERO_CELSIUS,
        )
    for name, factor, key, what in NVME:
        if key in values:
            add(families, name, what, ("device", device), values[key] * factor)


def read_ipmi(families: Families, text: str) -> None:
    """The table of "ipmitool sensor"; a sensor without a number is left out."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 4 or cells[2] not in IPMI:
            continue
        try:
            value = float(cells[1])
        except ValueError:
            continue
        name, what = IPMI[cells[2]]
        add(families, name, what, ("sensor", cells[0]), value)
        if cells[3] in STATES:
            add(
                families,
                "ipmi_sensor_state",
                "State of a sensor: 0 well 1 not critical 2 critical 3 not recoverable.",
                ("sensor", cells[0]),
                STATES[cells[3]],
            )


def ask(*argv: str) -> str:
    """What a tool says; nothing when it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return ""
    if done.returncode:
        print(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}", file=sys.stderr)
        return ""
    return done.stdout


def collect(kind: str, sysfs: Path) -> Families:
    """All of a kind."""
    families: Families = {}
    if kind == "ipmi":
        read_ipmi(families, ask("ipmitool", "sensor"))
        return families
    for controller in sorted((sysfs / "class" / "nvme").glob("nvme*")):
        text = ask("nvme", "smart-log", f"/dev/{controller.name}", "-o", "json")
        try:
            answer = json.loads(text or "{}")
        except ValueError:
            print(f"nvme smart-log /dev/{controller.name}: not JSON", file=sys.stderr)
            continue
        read_nvme(families, controller.name, answer)
    return families


def main(words: list[str]) -> int:
    """The exit code."""
    options = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    options.add_argument("kind", choices=("nvme", "ipmi"))
    options.add_argument("directory", type=Path)
    options.add_argument("--sysfs", type=Path, default=Path("/sys"))
    given = options.parse_args(words)
    text = page(collect(given.kind, given.sysfs))
    if not text:
        return 1
    # A name that the exporter does not read, until it is complete.
    new = given.directory / f".{given.kind}.prom.new"
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    os.replace(new, given.directory / f"{given.kind}.prom")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
