# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The runner as it stands on a host: a directory of its own, run as a program, with tools that print what was captured."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
FILES = ROOT / "roles" / "burn_in" / "files"
UTILS = ROOT / "plugins" / "module_utils"
FIXTURES = ROOT / "tests" / "unit" / "fixtures" / "burn_in"
SHARED = ("_burn_in*.py", "_hardware*.py", "_gpu_catalogue.py")


class Host:
    """A host in a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.state = place / "state"
        self.bin = place / "bin"
        self.bin.mkdir()
        (place / "metrics").mkdir()
        library = place / "library"
        modules = library / "ansible_collections" / "gpufleet" / "deepseek" / "plugins" / "module_utils"
        modules.mkdir(parents=True)
        (library / "ansible_collections" / "__init__.py").touch()
        for pattern in SHARED:
            for path in UTILS.glob(pattern):
                shutil.copy(path, modules)
        for name in ("gpufleet_burn_in.py", "gpu_stress.py"):
            shutil.copy(FILES / name, library)
        self.program = library / "gpufleet_burn_in.py"
        self.config: dict[str, Any] = {
            "directory": str(self.state),
            "search_dirs": [str(self.bin)],
            "heartbeat": 1,
            "metrics_dir": str(place / "metrics"),
            "simulation": str(place / "simulated"),
            "test_timeout": 20,
            "allow_not_run": [],
            "allow_simulated": False,
            "marks": {"fio_read_mbs_min": 100.0, "gpu_count": 0},
            "tests": {},
        }

    def tool(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def want(self, name: str, **params: Any) -> None:
        self.config["tests"][name] = {"params": params}

    def start(self) -> subprocess.Popen[str]:
        config = self.place / "job.json"
        config.write_text(json.dumps(self.config), encoding="utf-8")
        argv = [sys.executable, "-s", str(self.program), "run", "--config", str(config)]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", env={"PATH": "/usr/bin:/bin"}
        )

    def run(self) -> dict[str, Any]:
        process = self.start()
        said, _unused = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return self.result()

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "result.json").read_text(encoding="utf-8"))
        return found

    def status(self, *more: str) -> dict[str, Any]:
        argv = [sys.executable, "-s", str(self.program), "status", "--directory", str(self.state), *more]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def until_running(self, test: str) -> dict[str, Any]:
        for _attempt in range(100):
            status = self.status()
            if status["state"] == "running" and status.get("test") == test:
                return status
            time.sleep(0.05)
        raise AssertionError(f"{test} did not begin: {status}")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    found = Host(tmp_path)
    found.tool("fio", f"cat {FIXTURES / 'fio.json'}")
    found.want("fio", directory=str(tmp_path / "srv" / "models"), size="8M", block_size="1M", io_depth=4, direct=True)
    return found


def test_a_job_from_its_beginning_to_its_end(host: Host) -> None:
    host.tool("stressapptest", f"cat {FIXTURES / 'stressapptest.txt'}")
    host.want("memory", tool="stressapptest", seconds=1, megabytes=16)
    host.want("hardware")
    host.config["marks"]["gpu_count"] = 0
    found = host.run()
    tests = {entry["name"]: entry for entry in found["tests"]}
    assert list(tests) == ["memory", "fio", "hardware"]
    assert tests["fio"]["measured"]["read_mbs"] == 932.1
    assert tests["memory"]["command"][1:] == ["-M", "16", "-s", "1", "-W"]
    assert tests["fio"]["params"] == host.config["tests"]["fio"]["params"]
    assert (found["simulated"], found["simulated_by"]) == (False, [])
    # What was made for the test is gone.
    assert not (host.place / "srv").exists()
    status = host.status()
    assert (status["state"], status["job"], status["done"], status["total"]) == ("done", found["job"], 3, 3)
    assert any(
        "fio: passed: sequential read 932.1 MB/s, at least 100 MB/s wanted" in line["text"] for line in status["lines"]
    )
    assert [line["seq"] for line in status["lines"]] == list(range(1, status["seq"] + 1))
    metrics = (host.place / "metrics" / "gpufleet_burn_in.prom").read_text(encoding="ascii")
    assert "\ngpufleet_burn_in_running 0\n" in metrics
    assert f"\ngpufleet_burn_in_passed {int(found['verdict'] == 'pass')}\n" in metrics


def test_a_stand_in_is_labelled(host: Host) -> None:
    host.tool("fio", f"# gpufleet.deepseek: simulated, prints what was captured\ncat {FIXTURES / 'fio.json'}")
    found = host.run()
    assert (found["simulated"], found["simulated_by"]) == (True, ["fio"])
    assert found["verdict"] == "void"


def test_a_value_below_its_mark(host: Host) -> None:
    host.config["marks"]["fio_read_mbs_min"] = 2000.0
    found = host.run()
    assert found["verdict"] == "fail"
    assert (
        "expected at least 2000 MB/s (burn_in_fio_read_mbs_min), found 932.1 MB/s" in host.status()["lines"][-2]["text"]
    )


def test_a_tool_that_is_not_there(host: Host) -> None:
    host.want("memory", tool="no-such-memory-tester", seconds=1, megabytes=16)
    found = host.run()
    assert found["verdict"] == "not_run"
    assert found["tests"][0]["reason"] == "no-such-memory-tester is not installed"


def test_a_tool_that_does_not_end(host: Host) -> None:
    host.tool("fio", "sleep 300 & sleep 300")
    host.config["test_timeout"] = 1.5
    found = host.run()
    assert found["verdict"] == "fail"
    assert "did not end within 1 s and was stopped" in found["tests"][0]["errors"][0]
    assert any("fio: has run for 1 s of at most 1 s" in line["text"] for line in host.status()["lines"])


def test_a_job_that_is_stopped_leaves_no_process_and_no_result(host: Host) -> None:
    host.run()
    marker = host.place / "child"
    host.tool("fio", f"sh -c 'echo $$ > {marker}; exec sleep 300' & sleep 300")
    process = host.start()
    running = host.until_running("fio")
    while not marker.exists() or not marker.read_text(encoding="ascii").strip():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    child = Path("/proc") / marker.read_text(encoding="ascii").strip()
    for _attempt in range(50):
        if not child.exists():
            break
        time.sleep(0.1)
    assert not child.exists()
    status = host.status()
    assert (status["state"], status["job"]) == ("cancelled", running["job"])
    assert not (host.state / "result.json").exists()
    assert (host.state / "previous.json").exists()


def test_a_runner_that_dies_is_known_to_be_dead(host: Host) -> None:
    host.tool("fio", "exec sleep 3")
    process = host.start()
    host.until_running("fio")
    assert host.status("--after", "999", "--timeout", "0.3")["state"] == "running"
    process.kill()
    process.wait(10)
    assert host.status()["state"] == "interrupted"


def test_only_one_job_at_a_time(host: Host) -> None:
    host.tool("fio", "sleep 300")
    first = host.start()
    host.until_running("fio")
    second = host.start()
    said, _unused = second.communicate(timeout=20)
    assert (second.returncode, said.strip()) == (3, "another burn-in runs")
    first.terminate()
    assert first.wait(20) == 0


def test_a_host_without_gpus_runs_none_of_their_tests(host: Host) -> None:
    del host.config["tests"]["fio"]
    host.want("dcgmi", level=1, extra_args=[])
    host.want("nccl", size="4G", iterations=5, extra_args=[])
    host.want("rdma", devices=[], seconds=1, gpu_memory=True, extra_args=[])
    found = host.run()
    assert [entry["outcome"] for entry in found["tests"]] == ["not_run"] * 3
    assert "needs at least 2" in found["tests"][1]["reason"]


def test_a_configuration_that_cannot_be_read(host: Host) -> None:
    done = subprocess.run(
        [sys.executable, "-s", str(host.program), "run", "--config", str(host.place / "missing.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "expected a configuration in JSON" in done.stderr
