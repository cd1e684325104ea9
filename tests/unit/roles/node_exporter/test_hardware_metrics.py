# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The program that reads drives and sensors, on what nvme-cli and ipmitool print."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
PROGRAM = ROOT / "roles/node_exporter/files/hardware_metrics.py"
SPEC = importlib.util.spec_from_file_location("hardware_metrics", PROGRAM)
assert SPEC
assert SPEC.loader
hardware = importlib.util.module_from_spec(SPEC)
sys.modules["hardware_metrics"] = hardware
SPEC.loader.exec_module(hardware)

# nvme-cli 2.4; large numbers are text in some releases.
SMART = """{"critical_warning":4,"temperature":310,"avail_spare":97,"spare_thresh":10,"percent_used":3,"endurance_grp_critical_warning_summary":0,
"data_units_read":"123456789","data_units_written":42,"media_errors":"2","num_err_log_entries":0,"power_on_hours":1234}"""
# ipmitool sensor, of a board by Supermicro.
SENSORS = """CPU1 Temp        | 45.000     | degrees C  | ok    | 0.000     | 0.000     | 0.000     | 93.000    | 98.000    | 98.000
FAN1             | 7700.000   | RPM        | ok    | 300.000   | 500.000   | 700.000   | 25300.000 | 25400.000 | 25500.000
FAN2             | 0.000      | RPM        | cr    | 300.000   | 500.000   | 700.000   | 25300.000 | 25400.000 | 25500.000
FAN3             | na         | RPM        | na    | 300.000   | 500.000   | 700.000   | 25300.000 | 25400.000 | 25500.000
12V              | 12.192     | Volts      | ok    | 10.173    | 10.299    | 10.740    | 12.945    | 13.260    | 13.386
PS1 Status       | 0x1        | discrete   | 0x0100| na        | na        | na        | na        | na        | na
"""


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, answers: dict[str, str]) -> int:
    """The program with tools that answer so."""
    monkeypatch.setattr(hardware, "ask", lambda *argv: answers.get(" ".join(argv), ""))
    for name in ("nvme0", "nvme1"):
        (folder / "sys/class/nvme" / name).mkdir(parents=True, exist_ok=True)
    code: int = hardware.main([kind, str(folder), "--sysfs", str(folder / "sys")])
    return code


def test_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value in its unit; a drive that does not answer is left out."""
    assert run(monkeypatch, tmp_path, "nvme", {"nvme smart-log /dev/nvme1 -o json": SMART}) == 0
    text = (tmp_path / "nvme.prom").read_text("utf-8")
    assert 'nvme_critical_warning_total{device="nvme1"} 4\n' in text
    assert 'nvme_temperature_celsius{device="nvme1"} 37\n' in text
    assert 'nvme_available_spare_ratio{device="nvme1"} 0.97\n' in text
    assert 'nvme_media_errors_total{device="nvme1"} 2\n' in text
    assert "nvme0" not in text
    assert [path.name for path in tmp_path.glob("*.prom*")] == ["nvme.prom"]


def test_the_rules_metrics_are_all_there() -> None:
    """What the alerts about drives read is what the program writes."""
    rules = (ROOT / "roles/prometheus/templates/etc/prometheus/rules.d/disks.yml.j2").read_text("utf-8")
    assert set(re.findall(r"\bnvme_[a-z_]+(?:total|ratio)\b", rules)) <= {row[0] for row in hardware.NVME}


def test_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers by unit, and the state; sensors without a number are left out."""
    assert run(monkeypatch, tmp_path, "ipmi", {"ipmitool sensor": SENSORS}) == 0
    text = (tmp_path / "ipmi.prom").read_text("utf-8")
    assert 'ipmi_temperature_celsius{sensor="CPU1 Temp"} 45\n' in text
    assert 'ipmi_voltage_volts{sensor="12V"} 12.192\n' in text
    assert 'ipmi_sensor_state{sensor="FAN2"} 2\n' in text
    assert "FAN3" not in text
    assert "PS1" not in text
    assert text.count("# TYPE ipmi_fan_speed_rpm gauge\n") == 1


def test_silence_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool that fails makes the file old, not empty."""
    (tmp_path / "ipmi.prom").write_text("ipmi_power_watts 1\n", encoding="utf-8")
    assert run(monkeypatch, tmp_path, "ipmi", {}) == 1
    assert (tmp_path / "ipmi.prom").read_text("utf-8") == "ipmi_power_watts 1\n"
