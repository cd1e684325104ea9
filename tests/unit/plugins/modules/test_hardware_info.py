# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module hardware_info as Ansible calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware import SUBSETS
from ansible_collections.gpufleet.deepseek.plugins.modules import hardware_info
from ansible_collections.gpufleet.deepseek.tests.unit.fixtures.hardware import build


def run(capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
        hardware_info.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def snapshot(root: Path) -> dict[str, int]:
    """Everything below a directory with the time of its last change."""
    return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}


def test_check_run_check_run_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.build("lost", tmp_path)
    before = snapshot(tmp_path)
    results = [run(capsys, root=str(tmp_path), check=check) for check in (True, False, True, False)]
    assert all(result["changed"] is False for result in results)
    assert all(result["hardware"] == results[0]["hardware"] for result in results)
    assert results[0]["hardware"]["gpu"]["lost"] == ["0000:07:00.0"]
    assert snapshot(tmp_path) == before


def test_this_host(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, gather_subset=["!gpu"], timeout=5)
    assert result["hardware"]["source"] == "live"
    assert result["hardware"]["gpu"] is None
    assert result["hardware"]["memory"]["total_mib"] > 0


def test_stand_ins_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answer.xml").write_text(build.smi_xml(build.eight()))
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\ncase "$*" in "-q -x") cat {tmp_path}/answer.xml ;; *) exit 3 ;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    result = run(capsys, gather_subset=["gpu"], simulation=str(tmp_path / "none"))
    assert result["hardware"]["gpu"]["driver_count"] == 8
    assert result["hardware"]["gpu"]["topology_hash"] is None
    assert sorted((tmp_path / "calls").read_text().splitlines()) == ["-q -x", "nvlink -s", "topo -m"]


def test_a_tool_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    result = run(capsys, gather_subset=["gpu"], timeout=0.3, simulation=str(tmp_path / "none"))
    assert result["hardware"]["gpu_driver"]["answers"] is False
    assert result["hardware"]["unavailable"]["gpu"] == "the driver does not answer: nvidia-smi did not end within 0.3 s"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": "/no/such/tree"}, "root must be the directory of a recorded tree; /no/such/tree is no directory"),
        ({"timeout": 0}, "timeout must be more than 0 and at most 3600 seconds; it is 0"),
        ({"timeout": -1}, "timeout must be more than 0 and at most 3600 seconds; it is -1"),
        ({"timeout": 1e9}, "timeout must be more than 0 and at most 3600 seconds; it is 1e+09"),
        ({"gather_subset": ["gpus"]}, "it does not know gpus"),
    ],
)
def test_bad_input_is_one_sentence(options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, **options)
    assert result["failed"]
    assert message in result["msg"]
    assert "\n" not in result["msg"]


def documented(entry: dict[str, Any]) -> Any:
    """The keys below an entry of the documentation, as deep as it goes."""
    return {key: documented(value) for key, value in entry.get("contains", {}).items()}


def test_the_documentation_names_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hardware = run(capsys, root=str(build.build("a100_80gb_8", tmp_path)))["hardware"]
    tree = documented(yaml.safe_load(hardware_info.RETURN)["hardware"])
    assert set(tree) == set(hardware)
    for key, below in tree.items():
        value = hardware[key][0] if isinstance(hardware[key], list) and hardware[key] else hardware[key]
        if below and isinstance(value, dict):
            assert set(below) == set(value), key
            for deeper, names in below.items():
                if names:
                    assert set(names) == set(value[deeper]), f"{key}.{deeper}"
    names = re.findall(r"V\((\w+)\)", hardware_info.DOCUMENTATION)
    assert set(SUBSETS) <= set(names)
