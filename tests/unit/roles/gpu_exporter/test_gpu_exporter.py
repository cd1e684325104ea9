# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The counters file against what reads its metrics, the table of XIDs, and the page of simulated GPUs."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[4]
FILES = ROOT / "roles/gpu_exporter/files"
LAB = ROOT / "roles/lab/files/simulated_gpu"
RULES = ROOT / "roles/prometheus/templates/etc/prometheus/rules.d"
# The former name of a field of the counters file: the rules take whichever there is.
FORMER = {"DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"}
# Whatever names a metric of dcgm-exporter: rules, dashboards, the status page.
READERS = sorted(
    path
    for role in ("prometheus", "dashboards", "load_test", "quality_probe")
    for path in (ROOT / "roles" / role).rglob("*")
    if path.suffix in (".j2", ".json", ".py", ".yml") and "DCGM_" in path.read_text("utf-8")
)


def load(path: Path) -> ModuleType:
    """A program as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


exporter = load(FILES / "simulated_gpu_exporter.py")
COUNTERS = exporter.read_counters((FILES / "dcgm_counters.csv").read_text("utf-8"))
FIELDS = [
    line.split(",")[1]
    for line in (FILES / "dcgm_fields.csv").read_text("utf-8").splitlines()
    if not line.startswith("#")
]


def test_every_counter_is_a_known_field_and_there_once() -> None:
    """dcgm-exporter refuses a file that names what DCGM does not have."""
    names = [counter.field for counter in COUNTERS]
    assert len(names) == len(set(names))
    assert set(names) <= set(FIELDS)
    assert len(FIELDS) == len(set(FIELDS))
    assert all(counter.help.endswith(".") for counter in COUNTERS)


@pytest.mark.parametrize("path", READERS, ids=lambda path: str(path.relative_to(ROOT / "roles")))
def test_what_is_read_is_collected(path: Path) -> None:
    """An alert or a panel on a field that nobody collects would be silent for ever."""
    used = set(re.findall(r"\bDCGM_[A-Z0-9_]+\b", path.read_text("utf-8")))
    assert used <= {counter.field for counter in COUNTERS} | FORMER


def test_the_simulated_page_knows_every_counter() -> None:
    """A new line of the counters file wants a value on the page."""
    known = {*exporter.VALUES, *exporter.EVENTS}
    assert {counter.field for counter in COUNTERS if counter.kind != "label"} == known


def test_each_xid_has_one_action_and_a_line_in_the_runbook() -> None:
    """The alerts by action, the alert for the rest and the runbook's table are of the same XIDs."""
    text = (RULES / "gpu.yml.j2").read_text("utf-8")
    classes = {
        name: words.split("|")
        for name, words in re.findall(r'alert: (GpuXid\w+)\n\s+expr: gpu:xid:recent\{xid=~"([\d|]+)"\}', text)
    }
    rest = re.search(r'gpu:xid:recent\{xid!~"([\d|]+)"\}', text)
    assert rest
    acted = [xid for words in classes.values() for xid in words]
    assert len(acted) == len(set(acted))
    # These follow others or say nothing by themselves.
    assert set(rest[1].split("|")) - set(acted) == {"45", "121", "154"}
    table = dict.fromkeys(acted, "")
    for line in (ROOT / "docs/runbooks/gpu.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and re.match(r"\d", cells[1]):
            table.update(dict.fromkeys(cells[1].split(", "), cells[4].strip("`")))
    assert {xid: table[xid] for xid in acted} == {xid: name for name, words in classes.items() for xid in words}


@pytest.mark.parametrize(
    ("line", "pci", "xid"),
    [
        (
            "NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            "0000:65:00",
            "79",
        ),
        ("NVRM: Xid (PCI:0000:1b:00): 13, pid=1234, Graphics SM Warp Exception", "0000:1b:00", "13"),
        ("NVRM: Xid (PCI:0000:07:00 GPU-I:05): 94, pid=99, Contained", "0000:07:00", "94"),
    ],
)
def test_mtail_reads_the_drivers_lines(line: str, pci: str, xid: str) -> None:
    """The expression of the counter, which Python and mtail read alike."""
    pattern = re.search(r"^/(.*)/ \{$", (FILES / "xid.mtail").read_text("utf-8"), re.MULTILINE)
    assert pattern
    found = re.search(pattern[1], line)
    assert found
    assert found.groupdict() == {"pci": pci, "xid": xid}


class Host:
    """A host with simulated GPUs and its page."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.setenv("GPUFLEET_SIMULATED_DIR", str(folder))
        self.stand_in = exporter.load_stand_in(str(LAB / "nvidia_smi.py"))
        self.command("apply", "a100_sxm4_80gb_8", "--seed", "here")

    def command(self, *words: str, **more: str) -> None:
        """gpufleet-simulated-gpu."""
        subprocess.run(
            [sys.executable, "-I", "-S", str(LAB / "gpufleet_simulated_gpu.py"), *words],
            check=True,
            capture_output=True,
            timeout=60,
            env={**os.environ, **more},
        )

    def page(self, later: float = 0) -> dict[str, float]:
        """Values of the page by name and the labels that tell series apart, so many seconds from now."""
        text = exporter.page(COUNTERS, self.stand_in, exporter.uptime_now() + later, "here")
        found = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            series, value = line.rsplit(" ", 1)
            labels = dict(re.findall(r'(\w+)="([^"]*)"', series))
            assert labels["simulated"] == "true"
            kept = [labels[name] for name in ("gpu", "xid", "health_watch") if name in labels]
            found[" ".join([series.partition("{")[0], *kept])] = float(value)
        return found


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host without faults."""
    return Host(tmp_path / "view", monkeypatch)


def test_a_healthy_host(host: Host) -> None:
    """Eight GPUs, and nothing that an alert would wait for."""
    page = host.page()
    assert page["gpufleet_simulated_gpus"] == 8
    assert page["DCGM_FI_DEV_GPU_TEMP 7"] == 31
    assert page["DCGM_FI_DEV_FABRIC_MANAGER_STATUS 0"] == 3
    assert not [name for name in page if name.startswith("DCGM_EXP_XID_ERRORS_COUNT")]
    assert not [name for name in page if name.startswith("DCGM_EXP_GPU_HEALTH_STATUS") and page[name]]


@pytest.mark.parametrize(
    ("fault", "series", "value"),
    [
        ("ecc --count 3", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL 0", 3),
        ("ecc --count 3", "DCGM_EXP_XID_ERRORS_COUNT 0 94", 1),
        ("ecc_corrected --count 20000", "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL 0", 20000),
        ("row_remap_pending", "DCGM_FI_DEV_ROW_REMAP_PENDING 0", 1),
        ("row_remap_failed", "DCGM_FI_DEV_ROW_REMAP_FAILURE 0", 1),
        ("xid 31 --count 2 --gpu 4", "DCGM_EXP_XID_ERRORS_COUNT 4 31", 2),
        ("xid 31 --gpu 4", "DCGM_FI_DEV_XID_ERRORS 4", 31),
        ("x8", "DCGM_FI_DEV_PCIE_LINK_WIDTH 0", 8),
        ("nvlink_down", "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL 0", 1),
        ("nvlink_errors --count 200", "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL 0", 200),
        ("throttle", "DCGM_FI_DEV_CLOCKS_EVENT_REASONS 0", 0x48),
        ("throttle", "DCGM_EXP_GPU_HEALTH_STATUS 0 THERMAL", 10),
        ("fabric_manager_down", "DCGM_FI_DEV_FABRIC_MANAGER_STATUS 5", 4),
        ("lost --gpu 3", "gpufleet_simulated_gpus", 7),
        ("lost --gpu 3", "DCGM_EXP_XID_ERRORS_COUNT 3 79", 1),
        ("driver_not_loaded", "gpufleet_simulated_gpus", 0),
    ],
)
def test_a_fault_is_on_the_page(host: Host, fault: str, series: str, value: float) -> None:
    """What nvidia-smi tells is what the page tells, and healing ends it."""
    host.command("inject", *fault.split())
    assert host.page()[series] == value
    host.command("heal")
    assert host.page().get(series) != value


def test_a_lost_gpu_and_an_old_xid_leave_the_page(host: Host) -> None:
    """A GPU that is gone has no temperature; an XID counts for five minutes."""
    host.command("inject", "lost", "--gpu", "3")
    assert "DCGM_FI_DEV_GPU_TEMP 3" not in host.page()
    assert "DCGM_EXP_XID_ERRORS_COUNT 3 79" not in host.page(later=301)


def test_a_host_without_a_view_has_no_gpu(host: Host) -> None:
    """The page is there, so that its absence means something else."""
    (host.folder / "state.json").unlink()
    assert host.page() == {"gpufleet_simulated_gpus": 0}


def test_xids_are_told_to_the_journal(host: Host, tmp_path: Path) -> None:
    """One entry for each line, marked as simulated; a fault that is there already is not told again."""
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal.setblocking(False)
        for _time in range(2):
            host.command("inject", "lost", "--gpu", "3", GPUFLEET_SIMULATED_JOURNAL=path)
        entries = [journal.recv(4096).decode().splitlines() for _line in range(2)]
        with pytest.raises(BlockingIOError):
            journal.recv(4096)
    assert entries[0][0].startswith("MESSAGE=NVRM: Xid (PCI:0000:4e:00): 79, ")
    assert "GPUFLEET_SIMULATED=1" in entries[0]


@pytest.mark.parametrize("text", ["DCGM_FI_DEV_GPU_TEMP, gauge", "DCGM_FI_DEV_GPU_TEMP, histogram, Help."])
def test_a_damaged_counters_file_is_refused(text: str) -> None:
    """The role tries the file with the program before it takes the old one's place."""
    with pytest.raises(ValueError, match="line 1: expected FIELD"):
        exporter.read_counters(text)
