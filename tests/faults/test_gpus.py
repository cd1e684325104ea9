# SPDX-License-Identifier: Apache-2.0
"""GPUs that break, on lab hosts with simulated GPUs: the plan stops before anything is touched and says what it is."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet

COMPARE = """
- hosts: gpu_hosts
  gather_facts: false
  tasks:
    - gpufleet.deepseek.hardware_info:
      register: found
    - ansible.builtin.set_fact:
        fleet_hardware: "{{ found.hardware }}"
    - gpufleet.deepseek.fleet_homogeneity:
        standard: a100_80gb_8
        allow_simulated: true
        fail_on: never
        show: false
        report_json: "{{ report }}"
      run_once: true
"""


@pytest.fixture(scope="module")
def gpus(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with eight simulated A100-80GB in each GPU host; gone afterwards."""
    run = fleet.play("playbooks/lab_simulated_gpu.yml", "-e", "lab_simulated_gpu_profile=a100_sxm4_80gb_8")
    assert run.rc == 0, run.output
    try:
        yield fleet
    finally:
        run = fleet.play("playbooks/lab_simulated_gpu.yml", "-e", '{"lab_simulated_gpu_profile": ""}')
        assert run.rc == 0, run.output


@pytest.fixture
def healed(gpus: Fleet) -> Iterator[Fleet]:
    """Whatever a test breaks is whole afterwards."""
    yield gpus
    gpus.ssh("gpu2", "gpufleet-simulated-gpu heal")


def compared(fleet: Fleet, folder: Path) -> dict[str, t.Any]:
    """What the comparison by the A100 standard says, host by host."""
    playbook, report = folder / "compare.yml", folder / "report.json"
    playbook.write_text(COMPARE, encoding="utf-8")
    run = fleet.play(str(playbook), "-e", f"report={report}")
    assert run.rc == 0, run.output
    found: dict[str, t.Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def paths(report: dict[str, t.Any], host: str) -> dict[str, str]:
    """Fact and severity of each finding of a host."""
    return {finding["path"]: finding["severity"] for finding in report["hosts"][host]["findings"]}


def test_site_stops_before_anything_is_touched_and_goes_on_when_it_is_healed(healed: Fleet, tmp_path: Path) -> None:
    reports = ("-e", f"fleet_report_dir={tmp_path}")
    assert healed.ssh("gpu2", "gpufleet-simulated-gpu inject vbios 92.00.45.00.01 --gpu all").returncode == 0
    assert healed.ssh("gpu2", "gpufleet-simulated-gpu inject lost --gpu 3").returncode == 0
    run = healed.play("site.yml", *reports)
    assert run.rc != 0
    assert run.changed() == 0
    text = " ".join(run.output.split())
    assert "gpu2: GPUs that do not answer (gpu.lost) is 0000:4e:00.0; expected none" in text
    assert "VBIOS (gpus[].vbios) is 92.00.45.00.01" in text
    assert "Prepare the GPU hosts" not in run.output
    page = (tmp_path / "homogeneity.html").read_text(encoding="utf-8")
    assert "0000:4e:00.0" in page
    assert "Simulated" in page

    assert healed.ssh("gpu2", "gpufleet-simulated-gpu heal").returncode == 0
    run = healed.play("site.yml", *reports)
    assert run.rc == 0, run.output
    assert run.changed() == 0
    assert json.loads((tmp_path / "homogeneity.json").read_text(encoding="utf-8"))["verdict"] == "pass"


def test_a_plan_for_simulated_gpus_says_so(gpus: Fleet, tmp_path: Path) -> None:
    """The full model is planned for the engine that runs it on such GPUs, and what that engine would be told is accepted."""
    run = gpus.play("playbooks/plan.yml", "-e", f"fleet_report_dir={tmp_path}", "-e", "fleet_model=deepseek-r1")
    assert "Plan for deepseek-r1 (simulated GPUs):" in run.output
    assert run.rc == 0, run.output
    assert "sglang" in run.output
    plan = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert (plan["simulated"], plan["hardware_source"], plan["verdict"]) == (True, "live", "ok")
    assert [replica["hosts"] for replica in plan["replicas"]] == [["gpu1"], ["gpu2"]]

    run = gpus.play(
        "playbooks/plan.yml", "-e", "fleet_report_dir=", "-e", "fleet_model=deepseek-r1", "-e", "fleet_precision=fp8"
    )
    assert run.rc != 0
    assert "Weights alone would take 671 GB in fp8" in " ".join(run.output.split())


def test_simulated_gpus_block_where_they_are_not_allowed(gpus: Fleet, tmp_path: Path) -> None:
    run = gpus.play("playbooks/plan.yml", "-e", f"fleet_report_dir={tmp_path}", "-e", "fleet_allow_simulated=false")
    assert run.rc != 0
    assert "simulated" in run.output


def test_recorded_facts_plan_as_live_ones(gpus: Fleet, tmp_path: Path) -> None:
    wish = ("-e", f"fleet_report_dir={tmp_path}", "-e", "fleet_model=deepseek-r1")
    gpus.play("playbooks/plan.yml", *wish, "-e", "fleet_hardware_record=true")
    live = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert sorted(path.name for path in (tmp_path / "hardware").iterdir()) == ["gpu1.json", "gpu2.json"]
    run = gpus.play("playbooks/plan.yml", *wish, "-e", "fleet_hardware_source=recorded")
    assert run.rc == 0, run.output
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8")) == live

    old = json.loads((tmp_path / "hardware" / "gpu2.json").read_text(encoding="utf-8"))
    (tmp_path / "hardware" / "gpu2.json").write_text(json.dumps({**old, "schema": 0}), encoding="utf-8")
    run = gpus.play("playbooks/plan.yml", *wish, "-e", "fleet_hardware_source=recorded")
    assert run.rc != 0
    assert "gpu2" in run.output


FAULTS = (
    ("ecc", "gpus[].ecc.volatile_uncorrected", "block"),
    ("row_remap_pending", "gpus[].row_remap.pending", "block"),
    ("row_remap_failed", "gpus[].row_remap.failed", "block"),
    ("xid 79", "derived.xid_block", "block"),
    ("x8", "gpus[].pcie.width", "block"),
    ("nvlink_down", "gpus[].nvlink.inactive", "block"),
    ("driver_mismatch 550.90.07", "gpu_driver.mismatch", "block"),
    ("fabric_manager_down", "derived.fabric_manager", "block"),
    ("throttle", "gpus[].throttle_reasons[]", "warn"),
    ("requires_reset", "gpus[].state", "block"),
)


def test_gpus_without_a_fault_have_none_of_these_findings(healed: Fleet, tmp_path: Path) -> None:
    """What the next tests find is what they have made."""
    report = compared(healed, tmp_path)
    found = {path for host in ("gpu1", "gpu2") for path in paths(report, host)}
    assert found.isdisjoint({path for _fault, path, _severity in FAULTS})


@pytest.mark.parametrize(("fault", "path", "severity"), FAULTS)
def test_each_fault_is_found_on_its_host(healed: Fleet, tmp_path: Path, fault: str, path: str, severity: str) -> None:
    assert healed.ssh("gpu2", f"gpufleet-simulated-gpu inject {fault}").returncode == 0
    report = compared(healed, tmp_path)
    assert paths(report, "gpu2").get(path) == severity
    assert path not in paths(report, "gpu1")


def test_the_playbook_of_the_lab_is_idempotent(gpus: Fleet) -> None:
    run = gpus.play("playbooks/lab_simulated_gpu.yml", "-e", "lab_simulated_gpu_profile=a100_sxm4_80gb_8", "--diff")
    assert run.rc == 0, run.output
    assert run.changed() == 0
