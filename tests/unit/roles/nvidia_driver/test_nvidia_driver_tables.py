# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The role's package tables and templates, for distributions and sources that no test host has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvidia_driver_plan as planning
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver import Driver
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver_plan import Wish, decide

ROLE = Path(__file__).resolve().parents[4] / "roles" / "nvidia_driver"
A100 = {"address": "0000:07:00.0", "device": "20b2", "key": "a100-sxm4-80gb", "generation": "ampere"}
HGX = Driver(gpus=[A100], nvswitches=6, kernel="5.15.0-100-generic", headers=True)


def table(distribution: str) -> dict[str, Any]:
    """What differs between distributions."""
    found: dict[str, Any] = yaml.safe_load((ROLE / "vars" / f"{distribution}.yml").read_text("utf-8"))
    return found


def packages(distribution: str, source: str, branch: str, flavor: str = "auto", host: Driver = HGX) -> list[str]:
    """What a host gets; empty when it is refused."""
    known = table(distribution)
    wish = Wish(
        source=source,
        branch=branch,
        flavor=flavor,
        default_branch=known["__nvidia_driver_default_branches"][source],
        rows=planning.rows(known["__nvidia_driver_packages"][source]),
    )
    plan = decide(host, wish)
    return [] if plan.problems else plan.packages


# Names as NVIDIA's driver installation guide, its table of renamed packages for 590, and Ubuntu's archive have them.
@pytest.mark.parametrize(
    ("distribution", "source", "branch", "names"),
    [
        (
            "Debian_12",
            "cuda_repo",
            "",
            "nvidia-kernel-open-dkms=580.* nvidia-driver-cuda=580.* nvidia-persistenced=580.* nvidia-fabricmanager=580.* libnvidia-nscq=580.*",
        ),
        (
            "Debian_13",
            "cuda_repo",
            "590",
            "nvidia-kernel-open-dkms=590.* nvidia-driver-cuda=590.* nvidia-persistenced=590.* nvidia-fabricmanager=590.* libnvidia-nscq=590.*",
        ),
        (
            "Debian_12",
            "cuda_repo",
            "570",
            "nvidia-kernel-open-dkms=570.* nvidia-driver-cuda=570.* nvidia-persistenced=570.* nvidia-fabricmanager-570=570.* libnvidia-nscq-570=570.*",
        ),
        (
            "Ubuntu_22",
            "cuda_repo",
            "550",
            "nvidia-dkms-550-open=550.* nvidia-utils-550=550.* nvidia-compute-utils-550=550.* libnvidia-compute-550=550.* "
            "nvidia-fabricmanager-550=550.* libnvidia-nscq-550=550.*",
        ),
        (
            "Ubuntu_24",
            "cuda_repo",
            "",
            "nvidia-dkms-580-open=580.* nvidia-utils-580=580.* nvidia-compute-utils-580=580.* libnvidia-compute-580=580.* "
            "nvidia-fabricmanager=580.* libnvidia-nscq=580.*",
        ),
        (
            "Ubuntu_24",
            "cuda_repo",
            "590",
            "nvidia-dkms-open=590.* nvidia-utils=590.* nvidia-compute-utils=590.* libnvidia-compute=590.* nvidia-fabricmanager=590.* libnvidia-nscq=590.*",
        ),
        (
            "Ubuntu_22",
            "distro",
            "535",
            "nvidia-dkms-535-server-open=535.* nvidia-utils-535-server=535.* nvidia-compute-utils-535-server=535.* libnvidia-compute-535-server=535.* "
            "nvidia-fabricmanager-535=535.* libnvidia-nscq-535=535.*",
        ),
        # Debian has no Fabric Manager.
        ("Debian_12", "distro", "", ""),
        ("Debian_13", "distro", "", ""),
        ("Ubuntu_22", "distro", "470", ""),
    ],
)
def test_packages_of_an_hgx_host(distribution: str, source: str, branch: str, names: str) -> None:
    assert packages(distribution, source, branch) == names.split()


@pytest.mark.parametrize(
    ("distribution", "flavor", "names"),
    [
        (
            "Debian_12",
            "auto",
            "nvidia-open-kernel-dkms=535.* nvidia-smi=535.* libcuda1=535.* nvidia-persistenced nvidia-modprobe",
        ),
        (
            "Debian_12",
            "proprietary",
            "nvidia-kernel-dkms=535.* nvidia-smi=535.* libcuda1=535.* nvidia-persistenced nvidia-modprobe",
        ),
        (
            "Debian_13",
            "auto",
            "nvidia-open-kernel-dkms=550.* nvidia-smi=550.* libcuda1=550.* nvidia-persistenced nvidia-modprobe",
        ),
    ],
)
def test_debians_own_driver(distribution: str, flavor: str, names: str) -> None:
    host = Driver(gpus=[A100], kernel="6.1.0-50-amd64", headers=True)
    assert packages(distribution, "distro", "", flavor, host) == names.split()


@pytest.mark.parametrize("distribution", ["Debian_12", "Debian_13", "Ubuntu_22", "Ubuntu_24", "unsupported"])
def test_every_distribution_says_the_same_things(distribution: str) -> None:
    assert sorted(table(distribution)) == sorted(table("Debian_12"))


def test_every_package_of_the_tables_is_held() -> None:
    patterns = yaml.safe_load((ROLE / "vars/main.yml").read_text("utf-8"))["__nvidia_driver_patterns"]
    names = {
        name.split("=")[0]
        for distribution in ("Debian_12", "Debian_13", "Ubuntu_22", "Ubuntu_24")
        for source in ("cuda_repo", "distro")
        for branch in ("535", "550", "570", "580", "590")
        for flavor in ("open", "proprietary")
        for host in (HGX, Driver(gpus=[A100], kernel="x", headers=True))
        for name in packages(distribution, source, branch, flavor, host)
    }
    assert len(names) > 25
    installed = Driver(packages={name: planning_package() for name in names})
    assert planning.holds(installed, patterns) == sorted(names)
    # What role cuda_toolkit holds itself.
    others = [
        "nvidia-container-toolkit",
        "libnvidia-container1",
        "libnvidia-container-tools",
        "nvidia-cuda-toolkit",
        "libnvidia-ml-dev",
        "cuda-nvcc-12-9",
    ]
    assert planning.holds(Driver(packages={name: planning_package() for name in others}), patterns) == []


def planning_package() -> Any:
    """A package of some version."""
    from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver import Package

    return Package("1", False, "installed")


def render(name: str, **values: Any) -> str:
    """A template as Ansible would render it, without Ansible."""
    environment = SandboxedEnvironment(trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["dict2items"] = lambda mapping: [{"key": key, "value": value} for key, value in mapping.items()]
    return environment.from_string((ROLE / "templates/etc" / name).read_text("utf-8")).render(values)


def test_sources_of_nvidias_repository() -> None:
    text = render(
        "apt/sources.list.d/gpufleet-cuda.sources.j2",
        nvidia_driver_cuda_repo_url="https://mirror.example/cuda/repos/ubuntu2404/x86_64",
        __nvidia_driver_cuda_keyring="/etc/apt/keyrings/gpufleet-cuda.asc",
    )
    assert text.splitlines()[1:] == [
        "Types: deb",
        "URIs: https://mirror.example/cuda/repos/ubuntu2404/x86_64",
        "Suites: /",
        "Signed-By: /etc/apt/keyrings/gpufleet-cuda.asc",
    ]


def test_sources_of_the_distribution() -> None:
    known = table("Debian_13")
    text = render(
        "apt/sources.list.d/gpufleet-nvidia-driver.sources.j2",
        nvidia_driver_distro_url="http://deb.debian.org/debian",
        **known,
    )
    assert "Suites: trixie trixie-updates\nComponents: contrib non-free non-free-firmware\n" in text


@pytest.mark.parametrize(("version", "pin"), [("580.95.05", "580.95.05*"), ("", "580.*")])
def test_pins(version: str, pin: str) -> None:
    text = render(
        "apt/preferences.d/gpufleet-nvidia-driver.j2",
        __nvidia_driver_pins_driver=True,
        __nvidia_driver_patterns=["nvidia-driver*", "libnvidia-[!cm]*"],
        __nvidia_driver_plan={},
        __nvidia_driver={"plan": {"version": version or "580"}},
        nvidia_driver_version=version,
        nvidia_driver_hold_kernel=True,
        nvidia_driver_source="cuda_repo",
        **table("Ubuntu_24"),
    )
    records = [dict(line.split(": ", 1) for line in record.splitlines()) for record in text.strip().split("\n\n")]
    assert [record["Pin"] for record in records] == [f"version {pin}", "release a=now", "release l=NVIDIA CUDA"]
    assert records[1]["Package"].split()[0] == "linux-generic*"
    assert [record["Pin-Priority"] for record in records] == ["1001", "1001", "600"]


@pytest.mark.parametrize("driver", [True, False])
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("source", ["cuda_repo", "distro", "none"])
def test_every_record_of_the_pins_has_a_package(driver: bool, kernel: bool, source: str) -> None:
    """Anything else makes the file invalid, and every apt of the host fails."""
    text = render(
        "apt/preferences.d/gpufleet-nvidia-driver.j2",
        __nvidia_driver_pins_driver=driver,
        __nvidia_driver_patterns=["nvidia-driver*"],
        __nvidia_driver={"plan": {"version": "580"}},
        nvidia_driver_version="",
        nvidia_driver_hold_kernel=kernel,
        nvidia_driver_source=source,
        **table("Debian_12"),
    )
    for record in text.strip().split("\n\n") if text.strip() else []:
        assert [line.split(":")[0] for line in record.splitlines()] == ["Explanation", "Package", "Pin", "Pin-Priority"]


def test_module_options() -> None:
    text = render(
        "modprobe.d/gpufleet-nvidia-driver.conf.j2",
        nvidia_driver_module_options={"NVreg_B": "2", "NVreg_A": "1"},
        __nvidia_driver_modules=["nvidia", "nvidia-current"],
    )
    assert text.splitlines()[1:] == [
        "blacklist nouveau",
        "options nouveau modeset=0",
        "options nvidia NVreg_A=1",
        "options nvidia-current NVreg_A=1",
        "options nvidia NVreg_B=2",
        "options nvidia-current NVreg_B=2",
    ]


def test_units() -> None:
    drop_in = render(
        "systemd/system/nvidia-persistenced.service.d/gpufleet.conf.j2",
        __nvidia_driver_persistence_user="nvidia-persistenced",
    )
    assert (
        "ExecStart=\nExecStart=/usr/bin/nvidia-persistenced --user nvidia-persistenced --persistence-mode --verbose\n"
        in drop_in
    )
    assert "ConditionPathExists=/dev/nvidia-nvswitch0" in render(
        "systemd/system/nvidia-fabricmanager.service.d/gpufleet.conf.j2"
    )
    assert "WantedBy=multi-user.target" in render("systemd/system/nvidia-persistenced.service.j2")
    assert render("modules-load.d/gpufleet-nvidia-peermem.conf.j2").splitlines()[1:] == ["ib_core", "nvidia-peermem"]
