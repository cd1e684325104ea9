# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What each test of the runner runs, on hardware that is described and with tools that print what was captured."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
FIXTURES = ROOT / "tests" / "unit" / "fixtures" / "burn_in"
spec = importlib.util.spec_from_file_location(
    "gpufleet_burn_in", ROOT / "roles" / "burn_in" / "files" / "gpufleet_burn_in.py"
)
assert spec
assert spec.loader
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)

GPUS = [
    {"index": index, "pci_address": f"0000:0{index}:00.0", "numa_node": index // 4, "state": "ok"} for index in range(8)
]
RDMA = [
    {
        "name": "mlx5_0",
        "pci_address": "0000:0c:00.0",
        "numa_node": 1,
        "ports": [{"port": 1, "state": "ACTIVE"}, {"port": 2, "state": "DOWN"}],
    },
    {"name": "rxe0", "pci_address": None, "numa_node": None, "ports": [{"port": 1, "state": "ACTIVE"}]},
]


class Bench:
    """The tests of a host, with tools in a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.hardware: dict[str, Any] = {"gpus": GPUS, "rdma": RDMA}
        (place / "bin").mkdir()
        (place / "logs").mkdir()
        programs = runner.Programs([str(place / "bin")], place / "logs", 60.0, lambda _text: None)
        self.tests = runner.Tests(
            programs, self.hardware, lambda: {**self.hardware, "gpu": {"driver_count": 8}, "simulated": True}
        )

    def tool(self, name: str, fixture: str = "", code: str = "") -> None:
        path = self.place / "bin" / name
        end = f"cat {FIXTURES / fixture}" if fixture else "exit 0"
        path.write_text(f'#!/bin/sh\necho "$*" >> {self.place}/calls\n{code}\n{end}\n', encoding="utf-8")
        path.chmod(0o755)

    def calls(self) -> list[str]:
        return (self.place / "calls").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(runner, "SERVER_HEAD_START", 0.3)
    return Bench(tmp_path)


def test_dcgmi(bench: Bench) -> None:
    bench.tool("dcgmi", "dcgmi_4_pass.json")
    entry = bench.tests.dcgmi({"level": 3, "extra_args": ["-p", "memory.x=1"]}, 10.0)
    assert bench.calls() == ["diag -r 3 -j -p memory.x=1"]
    assert (entry["outcome"], entry["errors"], entry["measured"]["tests_pass"]) == ("measured", [], 56.0)


def test_nvbandwidth(bench: Bench) -> None:
    bench.tool("nvbandwidth", "nvbandwidth.json")
    entry = bench.tests.nvbandwidth({"extra_args": []}, 10.0)
    assert bench.calls() == ["-j -t host_to_device_memcpy_ce device_to_host_memcpy_ce"]
    assert len(entry["measured"]["d2h_gbs"]) == 8


def test_nccl_must_have_used_all_gpus(bench: Bench) -> None:
    bench.tool("all_reduce_perf", "nccl.txt")
    params = {"size": "4G", "iterations": 20, "extra_args": []}
    assert bench.tests.nccl(params, 10.0)["errors"] == []
    assert bench.calls() == ["-b 4G -e 4G -g 8 -n 20"]
    bench.hardware["gpus"] = GPUS[:4]
    assert bench.tests.nccl(params, 10.0)["errors"] == ["all_reduce_perf ran over 8 GPUs, the host has 4"]
    bench.hardware["gpus"] = GPUS[:1]
    with pytest.raises(runner.NotRun, match="has 1 GPU, this test needs at least 2"):
        bench.tests.nccl(params, 10.0)


def test_gpu_stress(bench: Bench) -> None:
    bench.tool(
        "python-with-torch", code='[ "$1" = -c ] && exit 0\necho \'{"rounds": 3, "tflops": {"0": 260, "1": 261}}\''
    )
    entry = bench.tests.gpu_stress({"python": "python-with-torch", "seconds": 5, "size": 64}, 10.0)
    assert entry["errors"] == ["gpu_stress ran on 2 GPUs, the host has 8"]
    assert entry["command"][1:] == [str(runner.HERE / "gpu_stress.py"), "--seconds", "5", "--size", "64"]
    bench.tool("python-without", code="echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1")
    with pytest.raises(runner.NotRun, match="cannot import torch: ModuleNotFoundError"):
        bench.tests.gpu_stress({"python": "python-without", "seconds": 5, "size": 64}, 10.0)


def rdma(**changes: Any) -> dict[str, Any]:
    return {"devices": [], "seconds": 1, "gpu_memory": True, "extra_args": ["-x", "3"], **changes}


def test_rdma_uses_the_gpu_that_is_near(bench: Bench) -> None:
    server = 'case "$*" in *127.0.0.1) ;; *--help*) echo "  --use_cuda=<id>"; exit 0 ;; *) sleep 300 ;; esac'
    bench.tool("ib_write_bw", "ib_write_bw.txt", server)
    entry = bench.tests.rdma(rdma(), 10.0)
    assert (entry["errors"], entry["measured"]) == ([], {"write_gbps": {"mlx5_0 port 1": 196.18}})
    words = "-d mlx5_0 -i 1 -F --report_gbits -D 1 -p 18600 --use_cuda=4 -x 3"
    assert bench.calls() == ["--help", words, f"{words} 127.0.0.1"]


def test_rdma_that_cannot_reach_gpu_memory_was_not_run(bench: Bench) -> None:
    bench.tool("ib_write_bw", "ib_write_bw.txt")
    with pytest.raises(runner.NotRun, match="built without CUDA; burn_in_rdma_gpu_memory: false"):
        bench.tests.rdma(rdma(), 10.0)


def test_rdma_devices(bench: Bench) -> None:
    bench.tool("ib_write_bw", "ib_write_bw.txt", 'case "$*" in *127.0.0.1) ;; *) sleep 300 ;; esac')
    entry = bench.tests.rdma(rdma(devices=["rxe0"], gpu_memory=False), 10.0)
    assert list(entry["measured"]["write_gbps"]) == ["rxe0 port 1"]
    with pytest.raises(runner.NotRun, match="burn_in_rdma_devices: mlx5_9 has no active port"):
        bench.tests.rdma(rdma(devices=["mlx5_9"]), 10.0)
    bench.hardware["rdma"] = RDMA[1:]
    with pytest.raises(runner.NotRun, match="no RDMA device with an active port"):
        bench.tests.rdma(rdma(), 10.0)


def test_rdma_that_fails_names_the_port(bench: Bench) -> None:
    bench.tool("ib_write_bw", code="echo 'Unable to create QP.' >&2; exit 1")
    entry = bench.tests.rdma(rdma(gpu_memory=False), 10.0)
    assert entry["errors"] == ["mlx5_0 port 1: ib_write_bw ended with exit code 1: Unable to create QP."]


def test_memory_takes_most_of_what_is_free_and_leaves_some(bench: Bench) -> None:
    bench.tool("memtester", "memtester.txt")
    entry = bench.tests.memory({"tool": "memtester", "seconds": 1, "megabytes": 0}, 10.0)
    assert bench.calls() == [f"{entry['measured']['tested_mb']:.0f}M 1"]
    assert entry["errors"] == []


def test_fio_leaves_a_directory_that_was_there(bench: Bench) -> None:
    bench.tool("fio", "fio.json")
    models = bench.place / "models"
    models.mkdir()
    params = {"directory": str(models), "size": "8M", "block_size": "1M", "io_depth": 4, "direct": False}
    bench.tests.fio(params, 10.0)
    assert models.is_dir()
    assert "--direct=0 --verify=crc32c" in bench.calls()[0]


def test_hardware_is_labelled_when_it_is_simulated(bench: Bench) -> None:
    entry = bench.tests.hardware({}, 10.0)
    assert (entry["simulated"], entry["measured"]["gpu_count"]) == (True, 8)


@pytest.mark.parametrize(
    ("test", "params"),
    [
        ("dcgmi", {"level": 1, "extra_args": []}),
        ("nvbandwidth", {"extra_args": []}),
        ("nccl", {"size": "4G", "iterations": 1, "extra_args": []}),
    ],
)
def test_a_tool_that_is_not_there(bench: Bench, test: str, params: dict[str, Any]) -> None:
    with pytest.raises(runner.NotRun, match="is not installed"):
        getattr(bench.tests, test)(params, 10.0)
