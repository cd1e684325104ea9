# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The role's package tables and templates, for distributions and sources that no test host has."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from ansible_collections.gpufleet.deepseek.plugins.module_utils._cuda_toolkit import DRIVERS, Wish, names

ROLE = Path(__file__).resolve().parents[4] / "roles" / "cuda_toolkit"
DISTRIBUTIONS = ("Debian_12", "Debian_13", "Ubuntu_22", "Ubuntu_24")


def table(name: str) -> dict[str, Any]:
    """One file of the role's vars."""
    found: dict[str, Any] = yaml.safe_load((ROLE / "vars" / f"{name}.yml").read_text("utf-8"))
    return found


@pytest.mark.parametrize("distribution", [*DISTRIBUTIONS, "unsupported"])
def test_every_distribution_says_the_same_things(distribution: str) -> None:
    assert sorted(table(distribution)) == sorted(table("Debian_12"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_default_versions_have_a_minimum_driver(distribution: str) -> None:
    versions = table(distribution)["__cuda_toolkit_default_versions"]
    assert {versions["cuda_repo"], versions["distro"]} <= {*DRIVERS, "11.5"}


@pytest.mark.parametrize(
    ("version", "wish", "found"),
    [
        ("12.9", {}, "cuda-libraries-12-9 cuda-nvcc-12-9 cuda-cudart-dev-12-9"),
        ("13.0", {"package_set": "full"}, "cuda-toolkit-13-0"),
        (
            "12.8",
            {"package_set": "full", "runtime": "docker", "rdma": True},
            "cuda-toolkit-12-8 nvidia-container-toolkit libnccl2=*+cuda12.* libnccl-dev=*+cuda12.* libgdrapi gdrdrv-dkms",
        ),
    ],
)
def test_packages_of_nvidias_repository(version: str, wish: dict[str, Any], found: str) -> None:
    packages = table("main")["__cuda_toolkit_cuda_repo"]
    assert names(Wish(packages=packages, **wish), version) == found.split()
    # These two would bring a driver of their own choice.
    assert not {"cuda", "cuda-runtime"} & {
        name.rsplit("-", 2)[0] for name in names(Wish(packages=packages, **wish), version)
    }


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_packages_are_held(distribution: str) -> None:
    packages = [
        *table(distribution)["__cuda_toolkit_distro"]["full"],
        *table(distribution)["__cuda_toolkit_distro"]["rdma"],
    ]
    packages += names(Wish(packages=table("main")["__cuda_toolkit_cuda_repo"], runtime="podman", rdma=True), "12.9")
    patterns = table("main")["__cuda_toolkit_holds"]
    loose = [name for name in packages if not any(fnmatchcase(name.split("=")[0], pattern) for pattern in patterns)]
    assert loose == []


def test_holds_of_the_two_roles_do_not_overlap() -> None:
    driver = yaml.safe_load((ROLE.parent / "nvidia_driver/vars/main.yml").read_text("utf-8"))[
        "__nvidia_driver_patterns"
    ]
    for name in (
        "cuda-drivers",
        "nvidia-driver-cuda",
        "libcuda1",
        "libnvidia-ml1",
        "nvidia-smi",
        "libnvidia-compute-580",
    ):
        assert any(fnmatchcase(name, pattern) for pattern in driver)
    for name in ("nvidia-driver-cuda", "libcuda1", "libnvidia-ml1", "nvidia-smi", "libnvidia-compute-580"):
        assert not any(fnmatchcase(name, pattern) for pattern in table("main")["__cuda_toolkit_holds"])


def render(name: str, **values: Any) -> str:
    """A template as Ansible would render it, without Ansible."""
    environment = SandboxedEnvironment(trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string((ROLE / "templates/etc" / name).read_text("utf-8")).render(values)


def test_both_roles_write_the_same_sources() -> None:
    ours = render(
        "apt/sources.list.d/gpufleet-cuda.sources.j2", cuda_toolkit_repo_url="https://x", __cuda_toolkit_keyring="/k"
    )
    theirs = (ROLE.parent / "nvidia_driver/templates/etc/apt/sources.list.d/gpufleet-cuda.sources.j2").read_text(
        "utf-8"
    )
    environment = SandboxedEnvironment(keep_trailing_newline=True)
    assert ours == environment.from_string(theirs).render(
        nvidia_driver_cuda_repo_url="https://x", __nvidia_driver_cuda_keyring="/k"
    )


def test_environment() -> None:
    link = {
        "__cuda_toolkit_link": "/usr/local/cuda",
        "__cuda_toolkit_env": "/etc/gpufleet/cuda.env",
        "__cuda_toolkit": {"plan": {"version": "12.9"}},
    }
    profile = render("profile.d/gpufleet-cuda.sh.j2", **link)
    assert "PATH=/usr/local/cuda/bin:$PATH\n" in profile
    unit = render("gpufleet/cuda.env.j2", **link)
    assert "CUDA_HOME=/usr/local/cuda\nCUDA_VERSION=12.9\nPATH=/usr/local/cuda/bin:" in unit
    # Units expand nothing in an environment file.
    assert "$" not in unit


def test_sources_of_the_container_toolkit() -> None:
    text = render(
        "apt/sources.list.d/gpufleet-container-toolkit.sources.j2",
        cuda_toolkit_container_repo_url="https://y",
        __cuda_toolkit_container_keyring="/k",
    )
    assert text.splitlines()[1:] == ["Types: deb", "URIs: https://y", "Suites: /", "Signed-By: /k"]
