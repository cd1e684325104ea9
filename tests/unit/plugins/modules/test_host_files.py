# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module host_files on real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _host_files as files
from ansible_collections.gpufleet.deepseek.plugins.modules import host_files


def run(capsys: pytest.CaptureFixture[str], root: Path, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    arguments = {
        "record": str(root / "state/files.json"),
        **options,
        "_ansible_check_mode": check,
        "_ansible_diff": True,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        host_files.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture
def wish(tmp_path: Path) -> dict[str, Any]:
    """Something of each kind, and what was there before."""
    (tmp_path / "issue").write_text("Debian\n")
    (tmp_path / "auditd.conf").write_text("# comment\nnum_logs = 5\ndisk_full_action = SUSPEND\n")
    (tmp_path / "crontab").write_text("")
    (tmp_path / "crontab").chmod(0o644)
    log = tmp_path / "log"
    return {
        "files": [
            {
                "path": str(tmp_path / "a/95-x.conf"),
                "content": "x\n",
                "then": ["second"],
                "validate": ["grep", "-q", "x", "%s"],
            },
            {"path": str(tmp_path / "issue"), "content": "Authorized\n", "mode": "0640", "then": ["first"]},
        ],
        "edits": [
            {
                "path": str(tmp_path / "auditd.conf"),
                "values": {"disk_full_action": "ROTATE", "max_log_file": 64},
                "then": ["second"],
            },
            {"path": str(tmp_path / "nothing.conf"), "values": {"a": 1}},
        ],
        "limits": {str(tmp_path / "crontab"): "0600", str(tmp_path / "none"): "0600"},
        "actions": {
            "first": [["sh", "-c", f"echo first >> {log}"]],
            "second": [["sh", "-c", f"echo second >> {log}"], ["true"]],
        },
    }


def test_check_run_check_run_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], wish: dict[str, Any]) -> None:
    predicted = run(capsys, tmp_path, check=True, **wish)
    assert predicted["changed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["auditd.conf", "crontab", "issue"]
    done = run(capsys, tmp_path, **wish)
    for key in ("written", "tightened", "ran", "missing"):
        assert done[key] == predicted[key]
    assert done["ran"] == ["first", "second"]
    assert done["missing"] == [str(tmp_path / "nothing.conf")]
    assert (tmp_path / "log").read_text() == "first\nsecond\n"
    assert (tmp_path / "auditd.conf").read_text() == (
        "# comment\nnum_logs = 5\ndisk_full_action = ROTATE\nmax_log_file = 64\n"
    )
    assert (tmp_path / "crontab").stat().st_mode & 0o777 == 0o600
    for check in (True, False):
        assert not run(capsys, tmp_path, check=check, **wish)["changed"]
    actions = {"actions": wish["actions"], "state": "absent"}
    assert run(capsys, tmp_path, check=True, **actions)["changed"]
    gone = run(capsys, tmp_path, **actions)
    assert gone["ran"] == ["first", "second"]
    assert (tmp_path / "issue").read_text() == "Debian\n"
    assert (tmp_path / "auditd.conf").read_text() == "# comment\nnum_logs = 5\ndisk_full_action = SUSPEND\n"
    assert (tmp_path / "crontab").stat().st_mode & 0o777 == 0o644
    assert not (tmp_path / "a/95-x.conf").exists()
    assert not (tmp_path / "state/files.json").exists()
    assert not run(capsys, tmp_path, **actions)["changed"]


def test_a_refused_file_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wish: dict[str, Any]
) -> None:
    wish["files"][0]["content"] = "y\n"
    for check in (True, False):
        assert "nothing was changed" in run(capsys, tmp_path, check=check, **wish)["msg"]
    assert (tmp_path / "issue").read_text() == "Debian\n"
    wish["files"][0]["validate"] = ["/no/such/checker", "%s"]
    assert run(capsys, tmp_path, check=True, **wish)["changed"]
    assert "is not installed" in run(capsys, tmp_path, **wish)["msg"]


def test_a_command_that_failed_is_owed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wish: dict[str, Any]
) -> None:
    good = wish["actions"]["second"]
    wish["actions"]["second"] = [["false"]]
    assert "will be tried again" in run(capsys, tmp_path, **wish)["msg"]
    wish["actions"]["second"] = good
    again = run(capsys, tmp_path, **wish)
    assert again["changed"]
    assert (again["written"], again["ran"]) == ([], ["second"])
    assert not run(capsys, tmp_path, **wish)["changed"]


def test_what_is_no_longer_wanted_goes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wish: dict[str, Any]
) -> None:
    run(capsys, tmp_path, **wish)
    wish["files"].pop(0)
    wish["edits"][0]["values"].pop("max_log_file")
    wish["limits"] = {}
    less = run(capsys, tmp_path, **wish)
    assert less["removed"] == [str(tmp_path / "a/95-x.conf"), str(tmp_path / "crontab")]
    assert "max_log_file" not in (tmp_path / "auditd.conf").read_text()
    assert not run(capsys, tmp_path, **wish)["changed"]


def test_edits_of_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str], wish: dict[str, Any]) -> None:
    run(capsys, tmp_path, **wish)
    path = tmp_path / "auditd.conf"
    path.write_text(path.read_text() + "admin = 1\n")
    run(capsys, tmp_path, actions=wish["actions"], state="absent")
    assert path.read_text() == "# comment\nnum_logs = 5\ndisk_full_action = SUSPEND\nadmin = 1\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [("A 1\nB\t2\n", "2"), ("B = 2", "2"), ("B=2\n", "2"), ("#B 3\nBB 4\n", None), ("", None), ("B 1\nB 2\n", "2")],
)
def test_value_of(text: str, value: str | None) -> None:
    assert files.value_of(text, "B") == value


def test_set_value() -> None:
    assert files.set_value("#B 3\nA 1", "B", "2", "\t") == "#B 3\nA 1\nB\t2\n"
    assert files.set_value("B 1\nA 1\n", "B", None, " ") == "A 1\n"


def test_something_else_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").symlink_to("/etc/passwd")
    wish: dict[str, Any] = {"files": [{"path": str(tmp_path / "x"), "content": "a"}]}
    assert "expected a regular file" in run(capsys, tmp_path, **wish)["msg"]


def test_odd_wishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish: dict[str, Any] = {"files": [{"path": str(tmp_path / "x"), "content": "a", "then": ["none"]}]}
    assert "found 'none'" in run(capsys, tmp_path, **wish)["msg"]
    wish["files"][0].update(mode="rw", then=[])
    assert "quoted octal" in run(capsys, tmp_path, **wish)["msg"]
