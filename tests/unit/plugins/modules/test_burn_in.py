# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules burn_in_info and burn_in_job as Ansible calls them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in as proof
from ansible_collections.gpufleet.deepseek.plugins.modules import burn_in_info, burn_in_job

HARDWARE: dict[str, Any] = {"gpus": [{"uuid": "GPU-0", "serial": "156"}], "gpu_driver": {"version": "550.1"}}
CONFIG: dict[str, Any] = {
    "tests": {"memory": {"params": {"seconds": 1}}},
    "marks": {},
    "allow_not_run": [],
    "allow_simulated": False,
}


class Host:
    """The directory of a host, and what is in the host."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.place, self.capsys = place, capsys
        self.hardware: dict[str, Any] = dict(HARDWARE)
        self.calls: list[str] = []
        self.busy: list[str] = []
        for module in (burn_in_info, burn_in_job):
            monkeypatch.setattr(module, "gather", lambda _reader, _subsets: self.hardware)
        monkeypatch.setattr(
            burn_in_job.jobs, "busy_units", lambda _run, units: [unit for unit in units if unit in self.busy]
        )
        monkeypatch.setattr(burn_in_job.jobs, "start", lambda _run, _directory: self._call("start"))
        monkeypatch.setattr(burn_in_job.jobs, "stop", lambda _run, _directory: self._call("stop"))

    def _call(self, word: str) -> str:
        self.calls.append(word)
        return "new"

    def write(self, name: str, data: dict[str, Any]) -> None:
        (self.place / name).write_text(json.dumps(data), encoding="utf-8")

    def passed(self, **changes: Any) -> None:
        entry = {"name": "memory", "outcome": "measured", "measured": {}, "errors": [], "params": {"seconds": 1}}
        data = {
            "schema": 1,
            "job": "old",
            "finished": "2026-11-29T01:00:00Z",
            "fingerprint": proof.fingerprint(HARDWARE),
            "tests": [entry],
        }
        self.write("result.json", {**data, **changes})
        self.write("status.json", {"state": "done", "job": "old"})

    def ask(self, module: ModuleType, *, check: bool = False, **options: Any) -> dict[str, Any]:
        args = {"directory": str(self.place), "simulation": "", **options, "_ansible_check_mode": check}
        with patch_module_args(args), pytest.raises(SystemExit):
            module.main()
        found: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return found

    def job(self, **options: Any) -> dict[str, Any]:
        return self.ask(burn_in_job, **{"config": CONFIG, **options})


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path, monkeypatch, capsys)


def test_a_bare_host(host: Host) -> None:
    found = host.ask(burn_in_info, config=CONFIG)
    assert (found["valid"], found["verdict"], found["state"], found["result"]) == (False, "none", "none", None)
    assert found["changed"] is False


def test_a_proved_host(host: Host) -> None:
    host.passed()
    found = host.ask(burn_in_info, config=CONFIG)
    assert (found["valid"], found["reasons"], found["job"]) == (True, [], "old")
    host.write("job.json", CONFIG)
    assert host.ask(burn_in_info, config_file=str(host.place / "job.json"))["valid"]


def test_another_gpu(host: Host) -> None:
    host.passed()
    host.hardware = {**HARDWARE, "gpus": [{"uuid": "GPU-9", "serial": "999"}]}
    found = host.ask(burn_in_info, config=CONFIG)
    assert found["verdict"] == "void"
    assert found["reasons"] == [
        "GPU GPU-0 (156) was tested and is gone (burn-in of 2026-11-29T01:00:00Z)",
        "GPU GPU-9 (999) was never tested (burn-in of 2026-11-29T01:00:00Z)",
    ]


def test_a_job_that_left_no_result(host: Host) -> None:
    host.write("status.json", {"state": "cancelled", "job": "x"})
    assert host.ask(burn_in_info, config=CONFIG)["reasons"] == ["the burn-in x did not come to its end (cancelled)"]
    host.write("status.json", {"state": "running", "job": "x"})
    assert host.ask(burn_in_info, config=CONFIG)["reasons"] == ["the burn-in x did not come to its end (interrupted)"]


def test_a_config_without_tests(host: Host) -> None:
    assert "expected a mapping with the key tests" in host.ask(burn_in_info, config={"marks": {}})["msg"]


def test_check_run_check_run(host: Host) -> None:
    found = host.job(check=True)
    assert (found["changed"], found["action"], found["job"], host.calls) == (True, "start", "", [])
    found = host.job()
    assert (found["changed"], found["action"], found["job"], host.calls) == (True, "start", "new", ["start"])
    assert found["reasons"] == ["no burn-in has run to its end on this host"]
    host.passed()
    for check in (True, False):
        found = host.job(check=check)
        assert (found["changed"], found["action"], found["job"]) == (False, "none", "old")
    assert host.calls == ["start"]


def test_force(host: Host) -> None:
    host.passed()
    found = host.job(force=True)
    assert (found["action"], found["reasons"]) == ("start", ["burn_in_force is set"])


def test_a_running_job_is_joined_even_by_force(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burn_in_job.jobs, "is_running", lambda _directory: True)
    host.write("status.json", {"state": "running", "job": "now"})
    host.busy = ["engine.service"]
    for force in (False, True):
        found = host.job(force=force, conflicting_units=["engine.service"])
        assert (found["changed"], found["action"], found["job"]) == (False, "join", "now")
    assert host.calls == []


def test_a_service_that_uses_the_gpus(host: Host) -> None:
    host.busy = ["engine.service"]
    found = host.job(conflicting_units=["engine.service", "other.service"])
    assert found["failed"]
    assert "the GPUs that engine.service uses (burn_in_conflicting_units)" in found["msg"]
    host.passed()
    # A proved host is not in its way.
    assert host.job(conflicting_units=["engine.service"])["action"] == "none"
    assert host.calls == []


def test_a_disk_without_room(host: Host) -> None:
    config = {**CONFIG, "tests": {"fio": {"params": {"directory": str(host.place), "size": "900000T"}}}}
    assert "burn_in_fio_size: expected at least" in host.job(config=config)["msg"]


def test_stop(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    found = host.ask(burn_in_job, state="stopped")
    assert (found["changed"], found["action"]) == (False, "none")
    monkeypatch.setattr(burn_in_job.jobs, "is_running", lambda _directory: True)
    host.write("status.json", {"state": "running", "job": "now"})
    found = host.ask(burn_in_job, state="stopped", check=True)
    assert (found["changed"], found["action"], host.calls) == (True, "stop", [])
    found = host.ask(burn_in_job, state="stopped")
    assert (found["changed"], found["job"], host.calls) == (True, "now", ["stop"])
