# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import nic_offload

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "nic_offload"
# A stand-in with a state file: loopback is the port that every machine has.
ETHTOOL = """\
#!/bin/sh
if [ "$1" = -K ]; then cp "{after}" "{now}"; fi
if [ "$1" = -K ] && [ "$4" = on ]; then cp "{before}" "{now}"; fi
cat "{now}"
"""


@pytest.fixture(name="ethtool")
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    now = tmp_path / "now.txt"
    now.write_text((FIXTURES / "veth_before.txt").read_text())
    program = tmp_path / "bin" / "ethtool"
    program.parent.mkdir()
    program.write_text(ETHTOOL.format(before=FIXTURES / "veth_before.txt", after=FIXTURES / "veth_after.txt", now=now))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def run(capsys: pytest.CaptureFixture[str], root: Path, *, check: bool = False, **options: Any) -> dict[str, Any]:
    arguments = {
        "state_dir": str(root / "state"),
        "config_dir": str(root / "config"),
        **options,
        "_ansible_check_mode": check,
        "_ansible_diff": True,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        nic_offload.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.usefixtures("ethtool")
def test_check_run_check_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted = run(capsys, tmp_path, check=True, interfaces=["lo"])
    assert predicted["changed"]
    assert "lo tx-checksumming: off" in predicted["diff"]["after"]
    done = run(capsys, tmp_path, interfaces=["lo"], features={"tx-checksumming": "off", "rx-checksumming": False})
    assert done["changed"]
    assert "tx-tcp-segmentation" in done["ports"]["lo"]["taken_along"]
    assert not run(capsys, tmp_path, check=True, interfaces=["lo"])["changed"]
    assert not run(capsys, tmp_path, interfaces=["lo"])["changed"]
    assert run(capsys, tmp_path, check=True)["changed"]
    assert run(capsys, tmp_path)["changed"]
    assert not run(capsys, tmp_path)["changed"]


def test_bad_settings_and_no_ethtool(tmp_path: Path, capsys: pytest.CaptureFixture[str], ethtool: Path) -> None:
    assert (
        "expected on or off" in run(capsys, tmp_path, interfaces=["lo"], features={"tx-checksumming": "maybe"})["msg"]
    )
    assert "found nope9" in run(capsys, tmp_path, interfaces=["nope9"])["msg"]
    ethtool.unlink()
    if not Path("/sbin/ethtool").exists() and not Path("/usr/sbin/ethtool").exists():
        assert run(capsys, tmp_path, check=True, interfaces=["lo"])["changed"]
        assert "ethtool is not installed" in run(capsys, tmp_path, interfaces=["lo"])["msg"]
