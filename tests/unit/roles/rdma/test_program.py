# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The programs that roles rdma and nic_offload leave on hosts, beside the code that they use, with stand-ins for the tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
WRITE_BW = (ROOT / "tests/unit/fixtures/rdma/ib_write_bw.txt").read_text("utf-8")


def stand_in(directory: Path, name: str, body: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{body}\n")
    (directory / name).chmod(0o755)


def install(directory: Path, role: str, program: str, code: str) -> Path:
    directory.mkdir()
    shutil.copy(ROOT / "roles" / role / "files" / program, directory / program)
    shutil.copy(ROOT / "plugins/module_utils" / f"_{code}.py", directory / f"{code}.py")
    return directory / program


def call(program: Path, *words: str, tools: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "GPUFLEET_RDMA_LOCK": str(tools / "lock")}
    return subprocess.run(
        [sys.executable, str(program), *words], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(name="program")
def install_rdma(tmp_path: Path) -> Path:
    return install(tmp_path / "lib", "rdma", "gpufleet_rdma.py", "rdma_host")


def configuration(tmp_path: Path, **more: object) -> str:
    path = tmp_path / "rdma.json"
    test = {"port": 18515, "seconds": 1, "size": 65536, "attempts": 2, "pause": 0}
    path.write_text(json.dumps({"soft_roce": [], "acs": "kept", "test": test, **more}))
    return str(path)


def test_apply_says_what_it_did(program: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    stand_in(tools, "systemd-detect-virt", "echo kvm")
    done = call(program, "apply", configuration(tmp_path, soft_roce=["nope9"]), tools=tools)
    assert (done.returncode, done.stdout) == (0, "everything is as wanted\n")
    assert not list(program.parent.glob("__pycache__"))


def test_apply_fails_when_something_does_not_hold(program: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    for name in ("rdma", "modprobe"):
        stand_in(tools, name, "echo 'no such thing' >&2; exit 1")
    stand_in(tools, "systemd-detect-virt", "echo kvm")
    done = call(program, "apply", configuration(tmp_path, soft_roce=["lo"]), tools=tools)
    assert done.returncode == 1
    assert "soft RoCE on lo: expected bound, found not bound" in done.stderr


def test_measure_reports_every_rail(program: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    (tmp_path / "out.txt").write_text(WRITE_BW)
    stand_in(tools, "ip", "echo '[]'")
    stand_in(tools, "rping", "exit 0")
    stand_in(tools, "ib_write_bw", f"cat {tmp_path}/out.txt")
    config = configuration(
        tmp_path,
        rails=[{"name": "rail0", "address": "10.1.0.11/24"}],
        partner={
            "name": "gpu2",
            "rails": [{"name": "rail0", "address": "10.1.0.12/24"}, {"name": "rail9", "address": "10.9.0.1/24"}],
        },
    )
    done = call(program, "measure", config, tools=tools)
    assert done.returncode == 0
    first, second = json.loads(done.stdout)
    assert first["said"] == "rail0: no RDMA device at 10.1.0.11/24"
    assert second["said"] == "no rail rail9 here"
    assert first["sentence"] == "rail0 to gpu2: 0.00 Gb/s, rping did not answer"


def test_wrong_words(program: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    assert call(program, tools=tools).returncode == 2
    assert call(program, "apply", str(tmp_path / "none.json"), tools=tools).returncode == 1


def test_features_of_a_port_that_appears(tmp_path: Path) -> None:
    program = install(tmp_path / "lib", "nic_offload", "gpufleet_nic_offload.py", "nic_offload")
    tools = tmp_path / "tools"
    fixtures = ROOT / "tests/unit/fixtures/nic_offload"
    now = tmp_path / "now.txt"
    now.write_text((fixtures / "veth_before.txt").read_text())
    # The program sets a path of its own; the stand-in is found through it only here.
    code = program.read_text().replace('PATH = "', f'PATH = "{tools}:')
    program.write_text(code)
    stand_in(tools, "ethtool", f'[ "$1" = -k ] || cp {fixtures}/veth_after.txt {now}\ncat {now}')
    (tmp_path / "config").mkdir()
    wish = {"interface": "lo", "address": "", "features": {"tx-checksumming": False}}
    (tmp_path / "config/lo.json").write_text(json.dumps(wish))
    words = ["lo", str(tmp_path / "state"), str(tmp_path / "config")]
    done = call(program, *words, tools=tools)
    assert (done.returncode, done.stdout) == (0, "lo: set tx-checksumming off\n")
    assert call(program, *words, tools=tools).stdout == "lo: found tx-checksumming off\n"
    stand_in(tools, "ethtool", f"cat {fixtures}/veth_before.txt")
    failed = call(program, *words, tools=tools)
    assert failed.returncode == 1
    assert "lo: expected tx-checksumming off" in failed.stderr
    assert call(program, "lo", tools=tools).returncode == 2
    assert os.access(program, os.R_OK)
