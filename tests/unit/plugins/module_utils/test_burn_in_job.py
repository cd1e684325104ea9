# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in_job as jobs


class Systemd:
    """Answers commands, and does what a start or a stop would do to the directory."""

    def __init__(self, directory: Path, code: int = 0, job: str = "new") -> None:
        self.directory, self.code, self.job = directory, code, job
        self.said: list[list[str]] = []

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        self.said.append(argv)
        if argv[:2] == ["systemctl", "is-active"]:
            states = {"busy.service": "active", "soon.service": "activating"}
            return 3, "".join(f"{states.get(unit, 'inactive')}\n" for unit in argv[2:]), ""
        if argv[:2] == ["systemctl", "start"] and self.code == 0 and self.job:
            status(self.directory, state="done", job=self.job)
        return (self.code, "", "it is masked") if argv[1] in ("start", "stop") else (0, "", "")


def status(directory: Path, **data: object) -> None:
    (directory / "status.json").write_text(json.dumps(data), encoding="utf-8")


def test_states_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.job_of(str(tmp_path)) == jobs.Job("none", "", {})
    status(tmp_path, state="done", job="a")
    assert jobs.job_of(str(tmp_path)).state == "done"
    status(tmp_path, state="running", job="b")
    assert jobs.job_of(str(tmp_path)).state == "interrupted"
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (jobs.job_of(str(tmp_path)).state, jobs.job_of(str(tmp_path)).job) == ("running", "b")
        status(tmp_path, state="done", job="b")
        # A new runner that has not written yet: not the job of before.
        assert (jobs.job_of(str(tmp_path)).state, jobs.job_of(str(tmp_path)).job) == ("running", "")
        monkeypatch.setattr(jobs, "_NAME_SECONDS", 0.2)
        assert jobs.name_of_running(str(tmp_path)) == ""
        status(tmp_path, state="running", job="c")
        assert jobs.name_of_running(str(tmp_path)) == "c"
        status(tmp_path, state="done", job="b")
    assert jobs.job_of(str(tmp_path)).state == "done"


def test_broken_files_are_no_files(tmp_path: Path) -> None:
    for text in ("", "[]", '{"a":'):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert jobs.read_json(str(tmp_path / "x.json")) is None
    assert jobs.read_json(str(tmp_path / "missing.json")) is None


def test_busy_units(tmp_path: Path) -> None:
    run = Systemd(tmp_path)
    assert jobs.busy_units(run, ["a.service", "busy.service", "soon.service"]) == ["busy.service", "soon.service"]
    assert jobs.busy_units(run, []) == []
    assert len(run.said) == 1


def test_start_gives_the_name_of_the_new_job(tmp_path: Path) -> None:
    status(tmp_path, state="done", job="old")
    run = Systemd(tmp_path)
    assert jobs.start(run, str(tmp_path)) == "new"
    assert run.said == [
        ["systemctl", verb, *names]
        for verb, names in (("daemon-reload", []), ("reset-failed", [jobs.UNIT]), ("start", [jobs.UNIT]))
    ]


def test_start_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(jobs.JobError, match="does not start: it is masked"):
        jobs.start(Systemd(tmp_path, code=1), str(tmp_path))
    monkeypatch.setattr(jobs, "_START_SECONDS", 0.1)
    with pytest.raises(jobs.JobError, match="no job came of it"):
        jobs.start(Systemd(tmp_path, job=""), str(tmp_path))


def test_stop(tmp_path: Path) -> None:
    jobs.stop(Systemd(tmp_path), str(tmp_path))
    with pytest.raises(jobs.JobError, match="does not stop"):
        jobs.stop(Systemd(tmp_path, code=1), str(tmp_path))


def test_sizes() -> None:
    assert [jobs.parse_size(text) for text in ("8M", "10g", "512", "1k", "x", "", "G")] == [
        8388608,
        10737418240,
        512,
        1024,
        0,
        0,
        0,
    ]


def test_room(tmp_path: Path) -> None:
    assert jobs.room_problem(str(tmp_path / "not" / "there"), 1) == ""
    found = jobs.room_problem(f"{tmp_path}/models", 10**18)
    assert found.startswith(
        f"burn_in_fio_size: expected at least 1000000000.0 GB free below {tmp_path}/models (burn_in_fio_directory), found "
    )
