# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module fleet_lock on real files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import fleet_lock


def run(capsys: pytest.CaptureFixture[str], root: Path, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    wish = {"owner": "alice@ops1", "run": "one", "purpose": "upgrade.yml", "directory": str(root), **options}
    with (
        patch_module_args({**wish, "_ansible_check_mode": check, "_ansible_diff": True}),
        pytest.raises(SystemExit),
    ):
        fleet_lock.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory of locks that is not there yet."""
    return tmp_path / "gpufleet" / "locks"


def test_check_run_check_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted = run(capsys, root, check=True)
    assert predicted["changed"]
    assert not root.exists()
    before = os.umask(0o077)
    try:
        done = run(capsys, root)
    finally:
        os.umask(before)
    assert done["changed"]
    assert done["holder"]["owner"] == "alice@ops1"
    assert done["diff"]["before"] == ""
    assert done["diff"]["after"].startswith("alice@ops1 (upgrade.yml), since 20")
    assert (root / "releases.json").stat().st_mode & 0o777 == 0o644
    assert root.stat().st_mode & 0o777 == root.parent.stat().st_mode & 0o777 == 0o755
    assert not run(capsys, root, check=True)["changed"]
    assert not run(capsys, root)["changed"]

    assert run(capsys, root, check=True, state="released")["changed"]
    assert (root / "releases.json").exists()
    gone = run(capsys, root, state="released")
    assert (gone["changed"], gone["holder"]) == (True, {})
    assert gone["diff"]["after"] == ""
    assert not run(capsys, root, check=True, state="released")["changed"]
    assert not run(capsys, root, state="released")["changed"]
    assert not (root / "releases.json").exists()


def test_another_run_is_refused_and_told_who_has_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = run(capsys, root)
    others: list[dict[str, Any]] = [{"owner": "bob@ops2"}, {"run": "two"}]
    for other in others:
        refused = run(capsys, root, **other)
        assert refused["failed"]
        assert refused["msg"] == f"the lock on releases belongs to {mine['holder']['words']}"
        assert refused["other"] == mine["holder"]
        # In check mode it is said and is no failure.
        seen = run(capsys, root, check=True, **other)
        assert not seen.get("failed")
        assert (seen["changed"], seen["other"]) == (False, mine["holder"])
        # What is not theirs they cannot give back.
        assert not run(capsys, root, state="released", **other)["changed"]
    assert not run(capsys, root)["changed"]
    # Another thing is locked by itself.
    assert run(capsys, root, name="drivers", owner="bob@ops2")["changed"]


def test_take_over_takes_it_and_removes_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = run(capsys, root)
    taken = run(capsys, root, owner="bob@ops2", take_over=True)
    assert (taken["changed"], taken["how"], taken["displaced"]) == (True, "take_over", mine["holder"])
    assert run(capsys, root)["failed"], "who has lost it must not go on"
    assert run(capsys, root, state="released", take_over=True)["changed"]
    assert not (root / "releases.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../a"}, "name: expected"),
        ({"owner": "a b"}, "owner: expected"),
        ({"owner": ""}, "owner: expected"),
        ({"run": ""}, "run: expected"),
        ({"purpose": " "}, "purpose: expected"),
        ({"purpose": None}, "purpose"),
        ({"seconds": 59}, "seconds: expected 60 to 604800, found 59"),
    ],
)
def test_refused(root: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: str) -> None:
    result = run(capsys, root, **options)
    assert result["failed"]
    assert words in result["msg"]
    assert not root.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2}',
        '{"format": 1, "owner": "a"}',
        '{"format": 1, "owner": "a", "run": "b", "purpose": "c", "since": "x", "until": 1}',
        '{"format": 1, "owner": "a", "run": "b", "purpose": "c", "since": 1, "until": 1e12}',
        '{"format": 1, "owner": "a", "run": "b", "purpose": "c", "since": 1, "until": NaN}',
    ],
)
def test_a_file_that_cannot_be_read_is_a_lock(root: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    root.mkdir(parents=True)
    (root / "releases.json").write_text(text)
    for state in ("held", "released"):
        result = run(capsys, root, state=state)
        assert result["failed"]
        assert "expected a lock as this module writes it" in result["msg"]
    assert (root / "releases.json").read_text() == text
