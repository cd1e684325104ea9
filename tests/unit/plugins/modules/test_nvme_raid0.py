# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module nvme_raid0 on a host of paper."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import nvme_raid0
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.nvme_world import World, sig


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(nvme_raid0, "Machine", lambda run: world.machine())
    return world


def run(capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any) -> dict[str, Any]:
    arguments = {
        "label": "gpu1",
        "prefix": "nvme_raid_",
        **options,
        "_ansible_check_mode": check,
        "_ansible_diff": True,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        nvme_raid0.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_check_run_check_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    predicted = run(capsys, check=True)
    assert predicted["changed"]
    assert not world.changes
    done = run(capsys)
    assert done["changed"]
    assert done["array"]["device"] == "/dev/md127"
    assert "/srv/models xfs defaults,noatime,nofail,x-systemd.device-timeout=180s 0 0" in world.read("etc/fstab")
    assert not run(capsys, check=True)["changed"]
    assert not run(capsys)["changed"]
    taken = run(capsys, state="absent")
    assert taken["changed"]
    assert not run(capsys, state="absent")["changed"]
    assert world.arrays


def test_a_refusal_names_the_host_the_drive_and_the_variable(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    disk = world.disks["nvme0n1"]
    disk.sigs = [sig("xfs", "1", "data")]
    failed = run(capsys)
    assert failed["failed"]
    assert failed["msg"].startswith(f"gpu1: {disk.name} (/dev/nvme0n1, 3.84 TB) carries data: an xfs file system")
    assert "nvme_raid_confirm_wipe" in failed["msg"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "Models"}, "nvme_raid_name: expected up to 12"),
        ({"chunk_kib": 96}, "nvme_raid_chunk_kib: expected a power of two from 4, found 96"),
        ({"mount": "/srv/my models"}, "nvme_raid_mount: expected an absolute path without blanks"),
        ({"mount": "/"}, "nvme_raid_mount: expected an absolute path"),
        ({"models": ["("]}, "nvme_raid_models: expected regular expressions"),
        ({"devices": ["/dev/nvme0n1"]}, "found /dev/nvme0n1"),
        ({"confirm_wipe": ["nvme0n1"]}, "found nvme0n1"),
        ({"exclude": ["sda1"]}, "found sda1"),
        ({"destroy": ["../../sda"]}, "found ../../sda"),
    ],
)
def test_bad_values(world: World, capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: str) -> None:
    failed = run(capsys, **options)
    assert failed["failed"]
    assert words in failed["msg"]
    assert not world.calls


def test_the_runner_survives_missing_programs() -> None:
    class Module:
        def run_command(self, argv: list[str], **options: Any) -> tuple[int, str, str]:
            # Written to a program that has ended already it would be EPIPE.
            assert "data" not in options
            if argv == ["missing"]:
                raise OSError(2, "No such file or directory")
            return 0, "out", ""

    answer = nvme_raid0._runner(Module())
    assert answer(["there"]) == (0, "out", "")
    assert answer(["missing"]) == (127, "", "missing cannot be run: No such file or directory")


def test_a_program_that_asks_finds_no_answer() -> None:
    with open("/dev/zero", "rb") as endless:
        before = os.dup(0)
        os.dup2(endless.fileno(), 0)
        try:
            nvme_raid0._no_input()
            assert os.read(0, 1) == b""
        finally:
            os.dup2(before, 0)
            os.close(before)
