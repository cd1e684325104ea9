# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Which run this is, and whether another one still lives, by real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _controller_run as runs


def test_a_process_has_ended_when_it_has(tmp_path: Path) -> None:
    here = runs.current(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        there = runs.current(process.pid)
        assert runs.parse(there.text()) == there
        assert not runs.ended(there, here)
        # The number was given again.
        assert runs.ended(replace(there, started="1"), here)
        process.kill()
        process.wait()
    assert runs.ended(there, here)
    # A worker that outlives its run says so of itself.
    orphan = runs.current(process.pid)
    assert orphan.started == "gone"
    assert runs.ended(orphan, here)
    # What cannot be seen from here may still live.
    assert not runs.ended(replace(there, controller="ops2"), here)
    assert not runs.ended(replace(there, space="pid:[1]"), here)
    assert not runs.ended(there, replace(here, boot="-"))
    # The controller was rebooted.
    assert runs.ended(replace(there, boot="another"), here)
    assert runs.current(os.getpid(), tmp_path) == replace(here, boot="-", space="-", started="-")


def test_a_process_that_only_waits_to_be_asked_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        there = runs.current(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert runs.ended(there, runs.current(os.getpid()))


@pytest.mark.parametrize("text", ["", "AWX job 41 on pod", "a b c d e", "a b c 1 2 3", "AWX job 41 on pod x"])
def test_a_line_of_another_kind_is_no_process(text: str) -> None:
    assert runs.parse(text) is None


def test_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "CORP\\alice")
    monkeypatch.setattr(runs.socket, "gethostname", lambda: "ops1.example")
    owner, run = runs.identity(os.getpid(), {})
    assert owner == "CORP-alice@ops1.example"
    assert run.startswith("ops1.example ")
    assert f" {os.getpid()} " in run
    awx = {"awx_job_id": 41, "awx_user_name": "bob", "tower_job_id": 41}
    assert runs.identity(1, awx) == ("bob@awx", "AWX job 41 on ops1.example")
    assert runs.identity(1, {"tower_job_id": "7"}) == ("nobody@awx", "AWX job 7 on ops1.example")
