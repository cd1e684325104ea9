# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What follows from a host and a wish: packages, refusals, the version lock, the reason for a reboot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvidia_driver_plan as planning
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver import Driver, Package
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver_plan import (
    Wish,
    decide,
    lock,
    reboot_reason,
)

A100 = {"address": "0000:07:00.0", "device": "20b2", "key": "a100-sxm4-80gb", "generation": "ampere"}
V100 = {"address": "0000:08:00.0", "device": "1db5", "key": "v100-sxm2-32gb", "generation": "volta"}
B200 = {"address": "0000:09:00.0", "device": "2901", "key": "b200-sxm6-180gb", "generation": "blackwell"}
ROWS = planning.rows(
    [
        {
            "since": 570,
            "modules": {"open": ["nvidia-kernel-open-dkms"], "proprietary": ["nvidia-kernel-dkms"]},
            "user_space": ["nvidia-driver-cuda"],
            "others": ["nvidia-persistenced"],
            "fabric": ["nvidia-fabricmanager-{branch}"],
        },
        {
            "since": 580,
            "modules": {"open": ["nvidia-kernel-open-dkms"], "proprietary": ["nvidia-kernel-dkms"]},
            "user_space": ["nvidia-driver-cuda"],
            "others": ["nvidia-persistenced"],
            "fabric": ["nvidia-fabricmanager"],
        },
    ]
)
WISH = Wish(source="cuda_repo", version="580.95.05", rows=ROWS, default_branch="580")
HOST = Driver(gpus=[A100], kernel="6.1.0-50-amd64", kernels=["6.1.0-50-amd64"], headers=True)
NAMES = ("nvidia-kernel-open-dkms", "nvidia-driver-cuda", "nvidia-persistenced")


def installed(version: str, *names: str) -> dict[str, Package]:
    """Packages of one version."""
    return {name: Package(f"{version}-1", True, "installed") for name in names}


DONE = replace(
    HOST,
    packages=installed("580.95.05", *NAMES),
    module="nvidia",
    module_version="580.95.05",
    loaded="580.95.05",
    library="580.95.05",
)


def test_a_new_host() -> None:
    plan = decide(HOST, WISH)
    assert plan.problems == []
    assert plan.packages == [
        "nvidia-kernel-open-dkms=580.95.05*",
        "nvidia-driver-cuda=580.95.05*",
        "nvidia-persistenced",
    ]
    assert (plan.branch, plan.flavor, plan.change, plan.wait, plan.fabric_manager) == (580, "open", True, "", False)


def test_a_finished_host() -> None:
    plan = decide(DONE, WISH)
    assert not plan.change
    assert lock(DONE, plan, WISH) == []
    assert reboot_reason(DONE, plan, WISH) == ""


def test_a_module_that_was_not_built() -> None:
    host = replace(DONE, module="", module_version="", loaded="")
    assert decide(host, WISH).build
    assert not decide(DONE, WISH).build
    # The packages build it when they are installed.
    assert not decide(HOST, WISH).build


def test_headers_of_the_running_kernel() -> None:
    plan = decide(replace(HOST, headers=False), WISH)
    assert plan.packages[-1] == "linux-headers-6.1.0-50-amd64"


@pytest.mark.parametrize(
    ("version", "branch", "fabric"),
    [
        ("580.95.05", "", "nvidia-fabricmanager=580.95.05*"),
        ("", "570", "nvidia-fabricmanager-570=570.*"),
        ("", "", "nvidia-fabricmanager=580.*"),
    ],
)
def test_fabric_manager_by_branch(version: str, branch: str, fabric: str) -> None:
    plan = decide(replace(HOST, nvswitches=6), replace(WISH, version=version, branch=branch))
    assert plan.problems == []
    assert plan.fabric_manager
    assert fabric in plan.packages


def test_fabric_manager_where_the_source_has_none() -> None:
    rows = planning.rows([{"since": 535, "branches": [535], "modules": {"open": ["nvidia-open-kernel-dkms"]}}])
    plan = decide(replace(HOST, nvswitches=6), Wish(source="distro", rows=rows, default_branch="535"))
    assert "expected cuda_repo on a host with 6 NVSwitches" in plan.problems[0]


@pytest.mark.parametrize(
    ("gpus", "wish", "flavor", "words"),
    [
        ([A100], {}, "open", ""),
        ([A100], {"flavor": "proprietary"}, "proprietary", ""),
        ([V100], {}, "proprietary", ""),
        ([A100, V100], {}, "proprietary", ""),
        ([B200], {}, "open", ""),
        ([V100], {"flavor": "open"}, "open", "expected proprietary for v100-sxm2-32gb (volta), found open"),
        (
            [B200],
            {"flavor": "proprietary"},
            "proprietary",
            "expected open for b200-sxm6-180gb (blackwell), found proprietary",
        ),
        ([V100, B200], {}, "open", "some that need the open and some that need the proprietary one"),
        (
            [V100],
            {"version": "", "branch": "590"},
            "proprietary",
            "expected 580 or older for v100-sxm2-32gb (volta), found 590",
        ),
        (
            [B200],
            {"version": "", "branch": "550"},
            "open",
            "expected 570 or newer for b200-sxm6-180gb (blackwell), found 550",
        ),
    ],
)
def test_flavour_and_branch(gpus: list[dict[str, str]], wish: dict[str, Any], flavor: str, words: str) -> None:
    plan = decide(replace(HOST, gpus=gpus), replace(WISH, **wish))
    assert plan.flavor == flavor
    assert any(words in problem for problem in plan.problems) if words else plan.problems == []


@pytest.mark.parametrize(
    ("host", "wish", "words"),
    [
        ({"gpus": []}, {}, "expected an NVIDIA GPU on the PCI bus, found none (No NVIDIA GPU found)"),
        ({}, {"branch": "five"}, "expected a number such as 580, found five"),
        ({}, {"version": "580"}, "expected a version such as 580.95.05, found 580"),
        ({}, {"branch": "570"}, "expected a version of nvidia_driver_branch 570, found 580.95.05"),
        ({}, {"version": "", "branch": "535"}, "expected 570 or newer, which the source cuda_repo has"),
        ({}, {"source": "archive", "version": ""}, "expected the version of the archive"),
        ({"nvswitches": 6}, {"source": "archive"}, "expected cuda_repo on a host with 6 NVSwitches"),
        (
            {"packages": installed("1.2", "nvidia-smi")},
            {"source": "archive"},
            "expected no packages of the driver beside an archive, found nvidia-smi",
        ),
        ({}, {"source": "none"}, "expected a driver on the host (value none), found neither"),
        (
            {"loaded": "580.1.1", "nvswitches": 6},
            {"source": "none"},
            "expected Fabric Manager on a host with 6 NVSwitches",
        ),
        ({"secure_boot": True}, {}, "expected Secure Boot to be off (value refuse), found it on"),
        (
            {"secure_boot": True, "mok_enrolled": False},
            {"secure_boot": "signed"},
            "found a key that is not enrolled; run 'mokutil --import",
        ),
        ({"secure_boot": True}, {"secure_boot": "signed"}, "found no mokutil that could tell"),
        (
            {},
            {"gpudirect": "dmabuf", "flavor": "proprietary"},
            "expected the open kernel module for dmabuf, found proprietary",
        ),
        (
            {"kernel": "5.4.0-100-generic"},
            {"gpudirect": "dmabuf"},
            "expected kernel 5.12 or newer for dmabuf, found 5.4.0-100-generic",
        ),
    ],
)
def test_refusals(host: dict[str, Any], wish: dict[str, Any], words: str) -> None:
    problems = decide(replace(HOST, **host), replace(WISH, **wish)).problems
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("host", "wish"),
    [
        ({"gpus": []}, {"allow_no_gpu": True}),
        ({"gpus": []}, {"allow_no_gpu": True, "source": "none"}),
        ({"secure_boot": True, "mok_enrolled": True}, {"secure_boot": "signed"}),
        ({"secure_boot": None}, {}),
        ({}, {"gpudirect": "dmabuf"}),
    ],
)
def test_what_is_allowed(host: dict[str, Any], wish: dict[str, Any]) -> None:
    assert decide(replace(HOST, **host), replace(WISH, **wish)).problems == []


def test_peermem_only_where_asked() -> None:
    assert decide(HOST, replace(WISH, gpudirect="peermem")).peermem
    assert not decide(HOST, WISH).peermem


def test_a_kernel_that_waits() -> None:
    host = replace(HOST, kernels=["6.1.0-50-amd64", "6.1.0-51-amd64"])
    plan = decide(host, WISH)
    assert plan.wait.startswith("kernel 6.1.0-51-amd64 is installed, 6.1.0-50-amd64 runs")
    assert reboot_reason(host, plan, WISH) == plan.wait
    # With the driver in place there is nothing that would have to wait.
    assert decide(replace(DONE, kernels=host.kernels), WISH).wait == ""


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ({"loaded": "570.1.1"}, "the loaded kernel module is 570.1.1, the installed one is 580.95.05"),
        ({"library": "570.1.1"}, "the user space (libnvidia-ml) is 570.1.1, the installed kernel module is 580.95.05"),
        ({"packages": installed("580.95.05", "nvidia-kernel-open-dkms")}, "nvidia-driver-cuda is not installed"),
        (
            {"packages": {**DONE.packages, **installed("570.1.1", "nvidia-driver-cuda")}},
            "nvidia-driver-cuda is 570.1.1, the installed kernel module is 580.95.05",
        ),
        ({"module_version": "570.1.1"}, "nvidia_driver_version is 580.95.05, the installed kernel module is 570.1.1"),
        (
            {
                "module_version": "",
                "dkms": [
                    {"module": "nvidia", "version": "580.95.05", "kernel": "6.1.0-49-amd64", "state": "installed"}
                ],
            },
            "no NVIDIA kernel module is installed for kernel 6.1.0-50-amd64 (DKMS: nvidia 580.95.05 for 6.1.0-49-amd64: installed)",
        ),
    ],
)
def test_version_lock_names_each_mismatch(host: dict[str, Any], words: str) -> None:
    driver = replace(DONE, **host)
    assert words in lock(driver, decide(driver, WISH), WISH)


def test_version_lock_of_a_driver_that_others_manage() -> None:
    wish = Wish(source="none")
    driver = replace(DONE, packages=installed("570.1.1", "nvidia-fabricmanager-570"), nvswitches=1)
    assert lock(driver, decide(driver, wish), wish) == [
        "nvidia-fabricmanager-570 is 570.1.1, the installed kernel module is 580.95.05"
    ]
    empty = Driver(kernel="6.18.0")
    none = Wish(source="none", allow_no_gpu=True)
    assert lock(empty, decide(empty, none), none) == []


@pytest.mark.parametrize(
    ("host", "wish", "reason"),
    [
        ({"loaded": "570.1.1"}, {}, "installed driver 580.95.05, loaded 570.1.1"),
        ({"loaded": "", "nouveau": True}, {}, "installed driver 580.95.05, nouveau is loaded in its place"),
        ({"loaded": ""}, {}, ""),
        (
            {"parameters": {"RmProfilingAdminOnly": "1"}},
            {"options": {"NVreg_RestrictProfilingToAdminUsers": "0"}},
            "module option NVreg_RestrictProfilingToAdminUsers is 0, the loaded driver runs with 1",
        ),
        ({"parameters": {"EnableMSI": "1"}}, {"options": {"NVreg_EnableMSI": "1", "NVreg_Unknown": "2"}}, ""),
    ],
)
def test_reasons_for_a_reboot(host: dict[str, Any], wish: dict[str, Any], reason: str) -> None:
    driver, wanted = replace(DONE, **host), replace(WISH, **wish)
    assert reboot_reason(driver, decide(driver, wanted), wanted) == reason


def test_archive() -> None:
    wish = replace(WISH, source="archive")
    plan = decide(replace(HOST, headers=False), wish)
    assert plan.packages == ["dkms", "gcc", "make", "linux-headers-6.1.0-50-amd64"]
    assert plan.change
    assert not decide(replace(HOST, module_version="580.95.05", library="580.95.05"), wish).change


@pytest.mark.parametrize(
    ("version", "wanted", "same"),
    [
        ("580.95.05-1", "580.95.05", True),
        ("580.95.05-1", "580", True),
        ("5801.1-1", "580", False),
        ("580.95.051-1", "580.95.05", False),
    ],
)
def test_versions_that_match(version: str, wanted: str, same: bool) -> None:
    assert planning.matches(version, wanted) is same


def test_holds() -> None:
    assert planning.holds(DONE, ["nvidia-driver*", "nvidia-[!d]*"]) == [
        "nvidia-driver-cuda",
        "nvidia-kernel-open-dkms",
        "nvidia-persistenced",
    ]
