# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Modules nvidia_driver_info, nvidia_module and cuda_toolkit_info as Ansible calls them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import cuda_toolkit_info, nvidia_driver_info, nvidia_module


def run(
    module: ModuleType, capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any
) -> dict[str, Any]:
    """One run of a module and what it says."""
    with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_recorded_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, text in {
        "sys/bus/pci/devices/0000:07:00.0/vendor": "0x10de",
        "sys/bus/pci/devices/0000:07:00.0/device": "0x20b2",
        "sys/bus/pci/devices/0000:07:00.0/class": "0x030200",
        "proc/sys/kernel/osrelease": "6.1.0-50-amd64",
        "commands/dpkg_query": "nvidia-smi\t535.261.03-1\thold\tinstalled\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    table = [
        {
            "since": 535,
            "branches": [535],
            "modules": {"open": ["nvidia-open-kernel-dkms"]},
            "user_space": ["nvidia-smi"],
        }
    ]
    for check in (True, False):
        said = run(
            nvidia_driver_info,
            capsys,
            check=check,
            root=str(tmp_path),
            source="distro",
            default_branch="535",
            packages=table,
            hold=["nvidia-*"],
        )
        assert not said["changed"]
        assert said["plan"]["problems"] == []
        assert said["plan"]["packages"] == [
            "nvidia-open-kernel-dkms=535.*",
            "nvidia-smi=535.*",
            "linux-headers-6.1.0-50-amd64",
        ]
        assert said["holds"] == said["held"] == ["nvidia-smi"]
        assert said["driver"]["gpus"][0]["key"] == "a100-sxm4-80gb"
        assert "no NVIDIA kernel module is installed for kernel 6.1.0-50-amd64" in said["version_lock"][0]


def test_a_tree_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no directory" in run(nvidia_driver_info, capsys, root="/does/not/exist")["msg"]


@pytest.fixture(name="modprobe")
def fake_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A host whose modprobe does as it is told."""
    behaviour: dict[str, Any] = {
        "rc": 1,
        "err": "modprobe: ERROR: could not insert 'nvidia': No such device",
        "calls": [],
    }
    monkeypatch.setattr(nvidia_module, "LOADED", str(tmp_path / "version"))
    monkeypatch.setattr(nvidia_module, "find", lambda tool: f"/sbin/{tool}")

    def run_command(_module: AnsibleModule, argv: list[str], **_more: Any) -> tuple[int, str, str]:
        behaviour["calls"].append(argv)
        return (0, "", "") if argv[0].endswith("dmesg") else (behaviour["rc"], "", behaviour["err"])

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    return behaviour


def test_module_without_a_gpu(modprobe: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(nvidia_module, capsys)["msg"] == "the kernel module nvidia does not load: No NVIDIA GPU found"
    said = run(nvidia_module, capsys, allow_no_gpu=True)
    assert (said["changed"], said["loaded"], said["reason"]) == (False, False, "No NVIDIA GPU found")
    modprobe["err"] = "Key was rejected by service"
    assert "Secure Boot" in run(nvidia_module, capsys, allow_no_gpu=True)["msg"]


def test_module_check_run_check_run(
    modprobe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modprobe["rc"] = 0
    predicted = run(nvidia_module, capsys, check=True, name="nvidia-current-open")
    assert predicted["changed"]
    assert modprobe["calls"] == []
    assert run(nvidia_module, capsys, name="nvidia-current-open")["loaded"]
    assert ["/sbin/modprobe", "nvidia-current-open"] in modprobe["calls"]
    (tmp_path / "version").write_text("NVRM", encoding="utf-8")
    for check in (True, False):
        assert not run(nvidia_module, capsys, check=check)["changed"]


def test_cuda(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run_command(_module: AnsibleModule, argv: list[str], **_more: Any) -> tuple[int, str, str]:
        return 0, "cuda-nvcc-12-9\t12.9.86-1\tinstall\tinstalled\n", ""

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    said = run(
        cuda_toolkit_info,
        capsys,
        source="cuda_repo",
        default_version="12.9",
        packages={"minimal": ["cuda-nvcc-{dashed}"]},
        home="/nowhere",
    )
    assert (said["changed"], said["plan"]["change"], said["plan"]["link"]) == (False, False, True)
    assert said["state"]["packages"] == {"cuda-nvcc-12-9": "12.9.86-1"}
