# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""CUDA on a host: which driver a version needs, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _cuda_toolkit as cuda
from ansible_collections.gpufleet.deepseek.plugins.module_utils._cuda_toolkit import State, Wish, decide
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Output, Reader
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver import natural

PACKAGES = {
    "minimal": ["cuda-libraries-{dashed}", "cuda-nvcc-{dashed}"],
    "full": ["cuda-toolkit-{dashed}"],
    "container": ["nvidia-container-toolkit"],
    "rdma": ["libnccl2=*+cuda{major}.*"],
}
WISH = Wish(packages=PACKAGES, default_version="12.9")
HOME = "/usr/local/cuda-12.9"
DONE = State(
    driver="580.95.05",
    packages={"cuda-libraries-12-9": "12.9.1-1", "cuda-nvcc-12-9": "12.9.86-1"},
    home=HOME,
    nvcc="12.9",
    loaded=True,
)


def test_table_of_drivers() -> None:
    for version, (own, least) in cuda.DRIVERS.items():
        assert natural(least) <= natural(own), version
        assert cuda.needs(version) == (own, least)
    assert cuda.needs("12.11") == ("", "525.60.13")
    assert cuda.needs("14.0") == ("", "")


@pytest.mark.parametrize(
    ("version", "driver", "words"),
    [
        ("13.0", "575.51.03", "expected a driver 580 or newer for CUDA 13.0, found 575.51.03"),
        ("12.9", "520.61.05", "expected a driver 525.60.13 or newer for CUDA 12.9, found 520.61.05"),
        ("11.8", "535.261.03", ""),
        ("13.0", "580.95.05", ""),
    ],
)
def test_driver_and_version(version: str, driver: str, words: str) -> None:
    problems = decide(State(driver=driver), replace(WISH, version=version)).problems
    assert any(words in problem for problem in problems) if words else problems == []


def test_older_driver_of_the_same_major_is_a_note() -> None:
    plan = decide(replace(DONE, driver="535.261.03"), WISH)
    assert plan.problems == []
    assert "older than 575.51.03, which CUDA 12.9 came with" in plan.notes[0]


def test_a_driver_that_is_only_planned() -> None:
    assert decide(State(), replace(WISH, version="13.0", planned_driver="570")).problems
    assert decide(State(), replace(WISH, version="13.0", planned_driver="580.95.05")).problems == []
    assert "no driver was found" in decide(State(), WISH).notes[0]


def test_a_finished_host() -> None:
    plan = decide(DONE, WISH)
    assert (plan.problems, plan.change, plan.link, plan.cdi, plan.runtime) == ([], False, False, False, False)
    assert plan.home == HOME


def test_a_new_host() -> None:
    plan = decide(State(), replace(WISH, package_set="full", rdma=True))
    assert plan.packages == ["cuda-toolkit-12-9", "libnccl2=*+cuda12.*"]
    assert (plan.change, plan.link) == (True, True)


@pytest.mark.parametrize(("version", "missing"), [("2.27.5-1+cuda12.9", False), ("2.27.5-1+cuda13.0", True)])
def test_nccl_of_the_right_cuda(version: str, missing: bool) -> None:
    state = replace(DONE, packages={**DONE.packages, "libnccl2": version})
    assert decide(state, replace(WISH, rdma=True)).change is missing


def test_nccl_is_looked_up_in_the_lists() -> None:
    text = " libnccl2 | 2.27.7-1+cuda13.0 | https://x  Packages\n libnccl2 | 2.27.5-1+cuda12.9 | https://x  Packages\n"
    asked = []

    def run(argv: Sequence[str], timeout: float) -> Output:
        asked.append(list(argv))
        return Output(0, text if argv[-1] == "libnccl2" else "")

    wanted = ["cuda-nvcc-12-9", "libnccl2=*+cuda12.*", "libnccl-dev=*+cuda12.*"]
    assert cuda.resolve(run, wanted, 1) == ["cuda-nvcc-12-9", "libnccl2=2.27.5-1+cuda12.9", "libnccl-dev=*+cuda12.*"]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("state", "wish", "words"),
    [
        ({}, {"version": "12"}, "expected major and minor such as 12.9, found 12"),
        (
            {},
            {"source": "distro", "version": "12.8", "default_version": "11.8"},
            "expected 11.8, the one that this distribution has",
        ),
        ({"runtimes": ("podman",)}, {"runtime": "docker"}, "expected docker to be installed, found podman"),
        (
            {},
            {"rdma": True, "source": "distro", "packages": {"minimal": ["nvidia-cuda-toolkit"]}},
            "expected a source that has NCCL",
        ),
    ],
)
def test_refusals(state: dict[str, Any], wish: dict[str, Any], words: str) -> None:
    problems = decide(replace(DONE, **state), replace(WISH, **wish)).problems
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("state", "runtime", "found"),
    [
        ({"runtimes": ("docker",)}, "docker", (True, True)),
        ({"runtimes": ("docker",), "docker": True, "cdi": "version 580.95.05"}, "docker", (False, False)),
        ({"runtimes": ("podman",), "cdi": "version 570.1.1"}, "podman", (True, False)),
        ({"runtimes": ("containerd",), "loaded": False}, "containerd", (False, True)),
    ],
)
def test_containers(state: dict[str, Any], runtime: str, found: tuple[bool, bool]) -> None:
    plan = decide(replace(DONE, **state), replace(WISH, runtime=runtime))
    assert (plan.cdi, plan.runtime) == found


def test_nothing_is_managed_with_none() -> None:
    plan = decide(State(), Wish(source="none"))
    assert (plan.problems, plan.notes, plan.change, plan.link) == ([], [], False, False)


def test_reading_a_host(tmp_path: Path) -> None:
    for path, text in {
        "/usr/local/cuda-12.9/bin/nvcc": "",
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n",
        "/usr/bin/dockerd": "",
        "/etc/docker/daemon.json": '{"runtimes": {"nvidia": {}}}',
        "/var/lib/dpkg/updates/0001": "",
    }.items():
        target = tmp_path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (tmp_path / "usr/local/cuda").symlink_to("cuda-12.9")

    def run(argv: Sequence[str], timeout: float) -> Output:
        if argv[0] == "dpkg-query":
            return Output(0, "cuda-nvcc-12-9\t12.9.86-1\thold\tinstalled\n")
        return Output(0, "Cuda compilation tools, release 12.9, V12.9.86\n")

    state = cuda.read(Reader(str(tmp_path)), run, HOME)
    assert state == State(
        driver="580.95.05",
        packages={"cuda-nvcc-12-9": "12.9.86-1"},
        home=HOME,
        nvcc="12.9",
        loaded=True,
        runtimes=("docker",),
        docker=True,
        dpkg_interrupted=True,
    )


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"runtimes": {}}'])
def test_docker_without_the_runtime(tmp_path: Path, text: str) -> None:
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "etc/docker/daemon.json").write_text(text, encoding="utf-8")
    assert not cuda.read(Reader(str(tmp_path)), lambda _argv, _timeout: Output(0, ""), HOME).docker
