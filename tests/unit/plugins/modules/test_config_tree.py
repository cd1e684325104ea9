# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module config_tree on real files."""

from __future__ import annotations

import grp
import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import config_tree

OWNER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name
ACCEPT = ["/bin/sh", "-c", "test -s %s/main.yml"]
REFUSE = ["/bin/sh", "-c", "echo 'line 3 of %s/main.yml is wrong' >&2; exit 1"]


def run(capsys: pytest.CaptureFixture[str], path: Path, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    arguments = {
        "path": str(path),
        "owner": OWNER,
        "group": GROUP,
        **options,
        "_ansible_check_mode": check,
        "_ansible_diff": True,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        config_tree.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_check_run_check_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "etc"
    wish: dict[str, Any] = {
        "files": {"main.yml": "a: 1\n", "rules.d/x.yml": "{{ $labels.host }}\n"},
        "secret_files": {"secrets/key": "very-secret-value"},
        "validate": [ACCEPT],
    }
    predicted = run(capsys, root, check=True, **wish)
    assert predicted["changed"]
    assert not root.exists()
    done = run(capsys, root, **wish)
    assert done["changed"]
    assert done["written"] == predicted["written"] == ["main.yml", "rules.d/x.yml", "secrets/key"]
    assert (root / "rules.d/x.yml").read_text() == "{{ $labels.host }}\n"
    assert (root / "secrets/key").stat().st_mode & 0o777 == 0o640
    assert (root / "secrets").stat().st_mode & 0o777 == 0o750
    assert not run(capsys, root, check=True, **wish)["changed"]
    assert not run(capsys, root, **wish)["changed"]
    assert sorted(path.name for path in root.iterdir()) == [".config_tree.json", "main.yml", "rules.d", "secrets"]


def test_a_secret_is_in_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("very-secret-value", "another-secret"):
        shown = json.dumps(run(capsys, tmp_path, secret_files={"key": value}))
        assert value not in shown
        assert "very-secret-value" not in shown
    gone = run(capsys, tmp_path)
    assert gone["removed"] == ["key"]
    assert "another-secret" not in json.dumps(gone)


def test_refused_files_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, tmp_path, files={"main.yml": "a: 1\n", "old.yml": "x\n"})
    for check in (True, False):
        refused = run(capsys, tmp_path, check=check, files={"main.yml": "a: 2\n"}, validate=[ACCEPT, REFUSE])
        assert refused["failed"]
        assert f"line 3 of {tmp_path}/main.yml is wrong" in refused["msg"]
        assert "nothing was changed" in refused["msg"]
    assert (tmp_path / "main.yml").read_text() == "a: 1\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".config_tree.json", "main.yml", "old.yml"]


def test_a_missing_checker_stops_a_run_and_no_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish: dict[str, Any] = {"files": {"main.yml": "a\n"}, "validate": [["/nonexistent/checker", "%s"]]}
    assert run(capsys, tmp_path, check=True, **wish)["changed"]
    stopped = run(capsys, tmp_path, **wish)
    assert stopped["failed"]
    assert "/nonexistent/checker is not installed" in stopped["msg"]
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_stay_and_ours_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rules.d").mkdir()
    (tmp_path / "rules.d/foreign.yml").write_text("theirs\n")
    run(capsys, tmp_path, files={"rules.d/a.yml": "1\n", "rules.d/b.yml": "1\n"})
    done = run(
        capsys, tmp_path, files={"rules.d/a.yml": "1\n"}, validate=[["/bin/sh", "-c", "test -s %s/rules.d/foreign.yml"]]
    )
    assert done["removed"] == ["rules.d/b.yml"]
    assert sorted(path.name for path in (tmp_path / "rules.d").iterdir()) == ["a.yml", "foreign.yml"]


def test_modes_heal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish: dict[str, Any] = {"files": {"d/a": "1\n"}, "mode": "0600", "directory_mode": "0700"}
    run(capsys, tmp_path, **wish)
    (tmp_path / "d/a").chmod(0o666)
    (tmp_path / "d").chmod(0o777)
    assert run(capsys, tmp_path, check=True, **wish)["changed"]
    assert run(capsys, tmp_path, **wish)["changed"]
    assert (tmp_path / "d/a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert not run(capsys, tmp_path, **wish)["changed"]


def test_a_killed_run_is_finished_by_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish: dict[str, Any] = {"files": {"a": "1\n", "b": "1\n"}}
    run(capsys, tmp_path, files={"a": "0\n", "c": "0\n"})
    # Killed between two files: the manifest is the union, one file is new, the stage is left behind.
    (tmp_path / ".config_tree.json").write_text('["a", "b", "c"]')
    (tmp_path / "a").write_text("1\n")
    (tmp_path / ".config_tree.k1ll3d").mkdir()
    done = run(capsys, tmp_path, **wish)
    assert (done["written"], done["removed"]) == (["b"], ["c"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".config_tree.json", "a", "b"]
    assert not run(capsys, tmp_path, **wish)["changed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"files": {"../x": "1"}}, "plain path"),
        ({"files": {"x": 1}}, "must be a string"),
        ({"files": {"x": "1"}, "secret_files": {"x": "2"}}, "both files and secret_files"),
    ],
)
def test_a_wrong_wish_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: str
) -> None:
    result = run(capsys, tmp_path, **options)
    assert result["failed"]
    assert words in result["msg"]


def test_check_mode_on_a_fresh_host_needs_no_accounts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("0")
    assert run(capsys, tmp_path, check=True, files={"a": "1"}, group="nosuchgroup")["changed"]
