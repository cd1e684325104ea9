# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module file_set on real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import file_set


def run(capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    with (
        patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": True}),
        pytest.raises(SystemExit),
    ):
        file_set.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_check_run_check_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, old = tmp_path / "a.d/one.conf", tmp_path / "b.d/two.conf", tmp_path / "old.conf"
    old.write_text("old\n", encoding="utf-8")
    wish: dict[str, Any] = {
        "files": {str(first): "one\n", str(second): "two\n"},
        "absent": [str(old), str(tmp_path / "none")],
    }
    predicted = run(capsys, check=True, **wish)
    assert predicted["changed"]
    assert not first.exists()
    done = run(capsys, **wish)
    assert done["diff"] == predicted["diff"]
    assert done["written"] == [str(first), str(second)]
    assert done["removed"] == [str(old)]
    assert first.read_text() == "one\n"
    assert first.stat().st_mode & 0o777 == 0o644
    assert not old.exists()
    assert [path.name for path in first.parent.iterdir()] == ["one.conf"]
    assert not run(capsys, check=True, **wish)["changed"]
    assert not run(capsys, **wish)["changed"]


def test_content_mode_and_links_are_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere, link, loose = tmp_path / "elsewhere", tmp_path / "link.conf", tmp_path / "loose.conf"
    elsewhere.write_text("x\n", encoding="utf-8")
    link.symlink_to(elsewhere)
    loose.write_text("x\n", encoding="utf-8")
    loose.chmod(0o666)
    done = run(capsys, files={str(link): "x\n", str(loose): "x\n"}, mode="0640")
    assert done["written"] == [str(link), str(loose)]
    assert not link.is_symlink()
    assert loose.stat().st_mode & 0o777 == 0o640
    assert elsewhere.read_text() == "x\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"files": {"relative": "x"}}, "expected absolute paths"),
        ({"files": {"/x/y": "x"}, "absent": ["/x/y"]}, "each in one of the two, found /x/y"),
        ({"mode": "rw"}, "expected a quoted octal number such as 0644, found rw"),
        ({"files": {"/proc/version/x": "x"}}, "cannot write"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: str) -> None:
    said = run(capsys, **options)
    assert said["failed"]
    assert words in said["msg"]
