# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _rdma_host
from ansible_collections.gpufleet.deepseek.plugins.modules import rdma_host, rdma_info

TOOLS = {
    "rdma": """\
case "$*" in
"link add"*) mkdir -p {root}/sys/class/infiniband/$3 && echo "$7" > {root}/sys/class/infiniband/$3/parent ;;
"link delete"*) rm -r {root}/sys/class/infiniband/$3 ;;
*) echo "[]" ;;
esac
""",
    "modprobe": "exit 0\n",
    "modinfo": "exit 0\n",
    "systemd-detect-virt": "echo kvm\n",
    "systemctl": "echo infinity\n",
    "ip": "echo '[]'\n",
}


@pytest.fixture(name="root")
def small_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, body in TOOLS.items():
        (programs / name).write_text("#!/bin/sh\n" + body.format(root=tmp_path))
        (programs / name).chmod(0o755)
    (tmp_path / "sys/class/net/eth1").mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(_rdma_host, "Host", functools.partial(_rdma_host.Host, root=str(tmp_path)))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], module: Any, *, check: bool = False, **options: Any) -> dict[str, Any]:
    with patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": True}), pytest.raises(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_check_run_check_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"soft_roce": ["eth1"]}
    predicted = run(capsys, rdma_host, check=True, config=config)
    assert predicted["changed"]
    assert not (root / "sys/class/infiniband").exists()
    done = run(capsys, rdma_host, config=config)
    assert (
        done["settings"]
        == predicted["settings"]
        == [{"what": "soft RoCE on eth1", "found": "not bound", "wanted": "bound"}]
    )
    assert done["diff"]["after"] == "soft RoCE on eth1: bound\n"
    assert not run(capsys, rdma_host, check=True, config=config)["changed"]
    assert not run(capsys, rdma_host, config=config)["changed"]
    seen = run(capsys, rdma_info, config=config, judge_rails=True)
    assert not seen["changed"]
    assert seen["devices"][0]["soft"]
    assert (seen["virtualization"], seen["bare_metal"], seen["memlock"]) == ("kvm", False, "infinity")
    assert run(capsys, rdma_host, config={"soft_roce": []})["changed"]
    assert not run(capsys, rdma_host, config={"soft_roce": []})["changed"]


@pytest.mark.usefixtures("root")
def test_what_forbids_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    seen = run(capsys, rdma_info, config={"soft_roce": ["eth9"], "acs": "disabled"})
    assert len(seen["refusals"]) == 2
    assert run(capsys, rdma_host)["failed"]


def test_a_tool_that_fails_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "programs/rdma").write_text("#!/bin/sh\necho 'error: Operation not supported' >&2; exit 1\n")
    failed = run(capsys, rdma_host, config={"soft_roce": ["eth1"]})
    assert failed["failed"]
    assert "soft RoCE on eth1: expected bound, found not bound" in failed["msg"]
    assert "Operation not supported" in failed["msg"]
