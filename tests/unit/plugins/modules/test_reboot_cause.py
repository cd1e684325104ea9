# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module reboot_cause on real files, and reboot_info, which reads them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _reboot_cause
from ansible_collections.gpufleet.deepseek.plugins.modules import reboot_cause, reboot_info


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of marks that is not there yet."""
    root = tmp_path / "gpufleet" / "reboot-required.d"
    monkeypatch.setattr(_reboot_cause, "MARKS", root)
    monkeypatch.setattr(_reboot_cause, "DISTRIBUTION", tmp_path / "reboot-required")
    return root


def run(capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    with (
        patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": True}),
        pytest.raises(SystemExit),
    ):
        reboot_cause.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_check_run_check_run(marks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish: dict[str, Any] = {"name": "nvidia_driver", "reason": "kernel 6.1.0-40 is installed, 6.1.0-38 runs"}
    predicted = run(capsys, check=True, **wish)
    assert predicted["changed"]
    assert not marks.exists()
    before = os.umask(0o077)
    try:
        done = run(capsys, **wish)
    finally:
        os.umask(before)
    assert done["changed"]
    assert done["diff"] == predicted["diff"]
    mark = marks / "nvidia_driver.reason"
    assert done["path"] == str(mark)
    assert mark.read_text() == "kernel 6.1.0-40 is installed, 6.1.0-38 runs\n"
    assert mark.stat().st_mode & 0o777 == 0o644
    assert marks.stat().st_mode & 0o777 == marks.parent.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in marks.iterdir()] == ["nvidia_driver.reason"]
    assert not run(capsys, check=True, **wish)["changed"]
    assert not run(capsys, **wish)["changed"]


def test_absent_takes_only_its_own_mark(marks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, name="a", reason="one")
    run(capsys, name="b", reason="two")
    assert run(capsys, name="a", state="absent", reason="given in any case", check=True)["changed"]
    assert (marks / "a.reason").exists()
    assert run(capsys, name="a", state="absent", reason="given in any case")["changed"]
    assert [path.name for path in marks.iterdir()] == ["b.reason"]
    assert not run(capsys, name="a", state="absent", check=True)["changed"]
    assert not run(capsys, name="a", state="absent")["changed"]


def test_absent_on_a_host_without_marks(marks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not run(capsys, name="a", state="absent")["changed"]
    assert not marks.exists()


def test_a_new_reason_replaces_the_old_one(marks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, name="a", reason="one")
    (marks / ".a.reason.new").write_text("left by a killed run")
    changed = run(capsys, name="a", reason="two\n  lines")
    assert changed["changed"]
    assert (changed["diff"]["before"], changed["diff"]["after"]) == ("one\n", "two lines\n")
    assert [path.name for path in marks.iterdir()] == ["a.reason"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../a", "reason": "x"}, "name: expected"),
        ({"name": "A", "reason": "x"}, "name: expected"),
        ({"name": "a", "reason": "  "}, "reason: expected words"),
        ({"name": "a"}, "reason"),
    ],
)
def test_refused(marks: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: str) -> None:
    result = run(capsys, **options)
    assert result["failed"]
    assert words in result["msg"]
    assert not marks.exists()


def asked(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What reboot_info finds."""
    with patch_module_args({}), pytest.raises(SystemExit):
        reboot_info.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert not result["changed"]
    causes: dict[str, str] = result["causes"]
    return causes


def test_info_names_every_cause(marks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(capsys) == {}
    run(capsys, name="b", reason="two")
    run(capsys, name="a", reason="one")
    (marks / ".c.reason.new").write_text("left by a killed run")
    assert asked(capsys) == {"a": "one", "b": "two"}


def test_info_reads_the_mark_of_the_distribution(marks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distribution = marks.parents[1] / "reboot-required"
    distribution.write_text("*** System restart required ***\n")
    assert asked(capsys) == {"distribution": "asked for by a package"}
    (distribution.parent / "reboot-required.pkgs").write_text("libc6\nlinux-image-6.1.0-40-amd64\nlibc6\n")
    assert asked(capsys) == {"distribution": "asked for by libc6, linux-image-6.1.0-40-amd64"}
