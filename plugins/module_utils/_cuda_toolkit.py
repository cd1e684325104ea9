# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""CUDA on a host: what is there, which driver a version needs, which packages it is made of."""

from __future__ import annotations

import fnmatch
import json
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Reader, Runner
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver import natural, parse_packages

# The driver that a toolkit came with, and the oldest that its programs run on ("minor version compatibility"; what the toolkit came with is needed
# for kernels that the driver translates from PTX). Source: CUDA Toolkit Release Notes, table "CUDA Toolkit and Corresponding Driver Versions",
# and CUDA Compatibility, table "CUDA Toolkit 11.x, 12.x, and 13.x Driver Version Ranges".
_TABLE = """
11.5 | 495.29.05 | 450.80.02
11.8 | 520.61.05 | 450.80.02
12.0 | 525.60.13 | 525.60.13
12.1 | 530.30.02 | 525.60.13
12.2 | 535.54.03 | 525.60.13
12.3 | 545.23.06 | 525.60.13
12.4 | 550.54.14 | 525.60.13
12.5 | 555.42.02 | 525.60.13
12.6 | 560.28.03 | 525.60.13
12.8 | 570.26    | 525.60.13
12.9 | 575.51.03 | 525.60.13
13.0 | 580.65.06 | 580
"""
DRIVERS: dict[str, tuple[str, str]] = {
    cells[0]: (cells[1], cells[2])
    for line in _TABLE.strip().splitlines()
    for cells in [[cell.strip() for cell in line.split("|")]]
}
# For versions that the table does not have yet.
_MAJOR = {"11": "450.80.02", "12": "525.60.13", "13": "580"}
_QUERY = "${binary:Package}\\t${Version}\\t${db:Status-Want}\\t${db:Status-Status}\\n"
_RUNTIME_PROGRAMS = {"docker": "dockerd", "podman": "podman", "containerd": "containerd"}
_BIN = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin")


@dataclass(frozen=True)
class Wish:
    """What the operator wants; the names are those of the role's variables."""

    source: str = "cuda_repo"
    version: str = ""
    package_set: str = "minimal"
    runtime: str = "none"
    rdma: bool = False
    default_version: str = ""
    packages: dict[str, list[str]] = field(default_factory=dict)
    planned_driver: str = ""
    home: str = ""


@dataclass(frozen=True)
class State:
    """What the host has.

    :ivar driver: version of the loaded driver, else of the installed user space.
    :ivar packages: name and version of installed packages.
    :ivar home: where /usr/local/cuda leads to; empty when it leads nowhere.
    :ivar nvcc: version of the compiler there.
    :ivar loaded: is a driver loaded?
    :ivar runtimes: programs of container runtimes that are there.
    :ivar cdi: text of the CDI specification.
    :ivar docker: does Docker know NVIDIA's runtime?
    :ivar containerd: does containerd?
    """

    driver: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    home: str = ""
    nvcc: str = ""
    loaded: bool = False
    runtimes: tuple[str, ...] = ()
    cdi: str = ""
    docker: bool = False
    containerd: bool = False
    dpkg_interrupted: bool = False


@dataclass(frozen=True)
class Plan:
    """What follows.

    :ivar problems: sentences; not empty means that nothing may be touched.
    :ivar notes: sentences that stop nothing.
    :ivar home: the toolkit's directory.
    :ivar packages: names, with a version where it matters.
    :ivar change: is a package missing or of another version?
    :ivar link: must /usr/local/cuda lead elsewhere?
    :ivar cdi: must the CDI specification be made?
    :ivar runtime: must the runtime be told?
    """

    problems: list[str]
    notes: list[str]
    version: str = ""
    home: str = ""
    packages: list[str] = field(default_factory=list)
    change: bool = False
    link: bool = False
    cdi: bool = False
    runtime: bool = False


def needs(version: str) -> tuple[str, str]:
    """The driver that a toolkit came with (empty when that is not known), and the oldest that it runs on."""
    return DRIVERS.get(version, ("", _MAJOR.get(version.split(".")[0], "")))


def nvcc_version(text: str) -> str:
    """The version in what ``nvcc --version`` prints."""
    match = re.search(r"release ([0-9]+\.[0-9]+)", text)
    return match[1] if match else ""


def names(wish: Wish, version: str) -> list[str]:
    """The packages, from the table of the source."""
    wanted = [*wish.packages.get(wish.package_set, ())]
    wanted += wish.packages.get("container", []) if wish.runtime != "none" else []
    wanted += wish.packages.get("rdma", []) if wish.rdma else []
    return [
        name.format(version=version, dashed=version.replace(".", "-"), major=version.split(".")[0]) for name in wanted
    ]


def _docker(text: str) -> bool:
    try:
        return "nvidia" in json.loads(text or "{}").get("runtimes", {})
    except (ValueError, AttributeError):
        return False


def read(reader: Reader, run: Runner, home: str) -> State:
    """Everything at once."""
    library = ""
    for folder in (
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib/x86_64-linux-gnu/nvidia/current",
    ):
        for name in reader.names(folder):
            match = re.fullmatch(r"libnvidia-ml\.so\.([0-9]+\.[0-9.]+)", name)
            library = match[1] if match else library
    loaded = re.search(
        r"Kernel Module\s+(?:for \S+\s+)?([0-9]+(?:\.[0-9]+)+)", reader.text("/proc/driver/nvidia/version") or ""
    )
    packages = parse_packages(run(["dpkg-query", "-W", "-f", _QUERY], reader.timeout).out)
    compiler = run([f"{home}/bin/nvcc", "--version"], reader.timeout) if reader.exists(f"{home}/bin/nvcc") else None
    link = reader.real("/usr/local/cuda")
    return State(
        driver=loaded[1] if loaded else library,
        packages={name: package.version for name, package in packages.items() if package.state == "installed"},
        home=link if reader.exists(link) else "",
        nvcc=nvcc_version(compiler.out) if compiler is not None else "",
        loaded=loaded is not None,
        runtimes=tuple(
            runtime
            for runtime, program in _RUNTIME_PROGRAMS.items()
            if any(reader.exists(f"{folder}/{program}") for folder in _BIN)
        ),
        cdi=reader.text("/etc/cdi/nvidia.yaml") or "",
        docker=_docker(reader.text("/etc/docker/daemon.json") or ""),
        containerd="nvidia" in (reader.text("/etc/containerd/config.toml") or ""),
        dpkg_interrupted=any(
            package.state in ("unpacked", "half-configured", "half-installed", "triggers-pending")
            for package in packages.values()
        )
        or any(name.isdigit() for name in reader.names("/var/lib/dpkg/updates")),
    )


def _driver(state: State, wish: Wish, version: str) -> tuple[list[str], list[str]]:
    own, least = needs(version)
    driver = state.driver or wish.planned_driver
    if not driver:
        return [], [f"no driver was found to compare CUDA {version} with; it needs {least or own} or newer"]
    if least and natural(driver) < natural(least):
        return [f"cuda_toolkit_version: expected a driver {least} or newer for CUDA {version}, found {driver}"], []
    if own and natural(driver) < natural(own):
        return [], [
            f"driver {driver} is older than {own}, which CUDA {version} came with: programs run, but kernels that must be translated from PTX do not"
        ]
    return [], []


def resolve(run: Runner, wanted: t.Sequence[str], timeout: float) -> list[str]:
    """Exact versions in place of patterns that begin with a star, which apt cannot read. What no list has stays as it is."""
    found = []
    for name in wanted:
        package, _sign, version = name.partition("=")
        exact = ""
        if version.startswith("*"):
            # The newest comes first.
            lines = run(["apt-cache", "madison", package], timeout).out.splitlines()
            has = [cells[1].strip() for cells in (line.split("|") for line in lines) if len(cells) > 1]
            exact = next((one for one in has if fnmatch.fnmatchcase(one, version)), "")
        found.append(f"{package}={exact}" if exact else name)
    return found


def _missing(state: State, wanted: t.Sequence[str]) -> bool:
    for name in wanted:
        package, _sign, version = name.partition("=")
        have = state.packages.get(package)
        if have is None or (version and not fnmatch.fnmatchcase(have, version)):
            return True
    return False


def decide(state: State, wish: Wish) -> Plan:
    """Compare what is with what is wanted."""
    version = wish.version or wish.default_version
    if wish.source == "none":
        return Plan([], [], version, wish.home)
    problems, notes = _driver(state, wish, version)
    if not re.fullmatch(r"[0-9]+\.[0-9]+", version):
        return Plan([f"cuda_toolkit_version: expected major and minor such as 12.9, found {version or 'nothing'}"], [])
    if wish.source == "distro" and version != wish.default_version:
        problems.append(
            f"cuda_toolkit_version: expected {wish.default_version}, the one that this distribution has (cuda_toolkit_source is distro), found {version}"
        )
    if wish.runtime != "none" and wish.runtime not in state.runtimes:
        problems.append(
            f"cuda_toolkit_container_runtime: expected {wish.runtime} to be installed, found {', '.join(state.runtimes) or 'no runtime'}"
        )
    wanted = names(wish, version)
    if wish.rdma and not wish.packages.get("rdma"):
        problems.append(
            f"cuda_toolkit_rdma: expected a source that has NCCL for this distribution, found {wish.source}"
        )
    home = wish.home or f"/usr/local/cuda-{version}"
    return Plan(
        problems,
        notes,
        version,
        home,
        wanted,
        change=_missing(state, wanted),
        link=state.home != home,
        cdi=wish.runtime != "none" and state.loaded and state.driver not in state.cdi,
        runtime=(wish.runtime == "docker" and not state.docker)
        or (wish.runtime == "containerd" and not state.containerd),
    )
