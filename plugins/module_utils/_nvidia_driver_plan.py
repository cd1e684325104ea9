# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""From what a host is and what is wanted: packages, holds, refusals, the version lock and the reason for a reboot."""

from __future__ import annotations

import fnmatch
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver import Driver, natural, upstream

FLAVORS = ("open", "proprietary")


@dataclass(frozen=True)
class Support:
    """What drives a generation of GPUs.

    :ivar flavors: kernel modules that know it.
    :ivar first: the first branch with all of its data-centre products.
    :ivar last: the last branch that knows it; 0 while there is none.
    """

    flavors: tuple[str, ...]
    first: int
    last: int = 0


# Sources: NVIDIA's driver README, chapters "Open Linux Kernel Modules" (GPUs from Turing on; Blackwell needs them) and "Supported NVIDIA GPU
# Products"; NVIDIA's announcement that 580 is the last branch for Maxwell, Pascal and Volta.
SUPPORT: dict[str, Support] = {
    "volta": Support(("proprietary",), 418, 580),
    "turing": Support(FLAVORS, 418),
    "ampere": Support(FLAVORS, 450),
    "ada": Support(FLAVORS, 525),
    "hopper": Support(FLAVORS, 525),
    "blackwell": Support(("open",), 570),
}
# The first branch whose open module serves data-centre GPUs. Source: NVIDIA's announcement of the open modules with release 515.
_FIRST_OPEN = 515
# Exports of DMA-BUF for GPUDirect RDMA. Source: NVIDIA's GPUDirect RDMA guide.
_DMABUF_KERNEL = "5.12"
# An option whose name in /proc/driver/nvidia/params is not its own without NVreg_. Source: nv-reg.h of the open kernel modules.
_PARAMETERS = {"NVreg_RestrictProfilingToAdminUsers": "RmProfilingAdminOnly"}
NO_GPU = "No NVIDIA GPU found"


@dataclass(frozen=True)
class Row:
    """The packages of one source from one branch on.

    ``{branch}`` in a name stands for the branch.

    :ivar since: the first branch that the names are good for.
    :ivar branches: the only branches that the source has; empty for any.
    :ivar modules: the kernel module by flavour.
    :ivar user_space: packages whose version is the driver's.
    :ivar others: packages with versions of their own.
    :ivar fabric: what a host with NVSwitches needs, in the driver's version; empty where the source has none.
    """

    since: int = 0
    branches: tuple[int, ...] = ()
    modules: dict[str, list[str]] = field(default_factory=dict)
    user_space: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    fabric: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wish:
    """What the operator wants; the names are those of the role's variables without nvidia_driver."""

    source: str = "none"
    branch: str = ""
    version: str = ""
    flavor: str = "auto"
    allow_no_gpu: bool = False
    secure_boot: str = "refuse"
    gpudirect: str = "auto"
    options: dict[str, str] = field(default_factory=dict)
    default_branch: str = ""
    rows: tuple[Row, ...] = ()
    kernel_headers: str = "linux-headers-{kernel}"


@dataclass(frozen=True)
class Plan:
    """What follows.

    :ivar problems: sentences; not empty means that nothing may be touched.
    :ivar change: does the driver on the host differ from the wanted one?
    :ivar build: is everything installed and only the module for the running kernel missing?
    :ivar wait: why nothing is installed before a reboot; empty when nothing speaks against it.
    """

    problems: list[str]
    branch: int = 0
    flavor: str = ""
    version: str = ""
    packages: list[str] = field(default_factory=list)
    versioned: list[str] = field(default_factory=list)
    fabric_manager: bool = False
    peermem: bool = False
    change: bool = False
    wait: str = ""
    build: bool = False


def rows(table: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[Row, ...]:
    """The rows of a source as a role's table has them."""
    return tuple(
        Row(
            since=int(row.get("since", 0)),
            branches=tuple(int(branch) for branch in row.get("branches", [])),
            modules={str(flavor): [str(name) for name in names] for flavor, names in row.get("modules", {}).items()},
            user_space=tuple(row.get("user_space", ())),
            others=tuple(row.get("others", ())),
            fabric=tuple(row.get("fabric", ())),
        )
        for row in table
    )


def row_for(table: t.Sequence[Row], branch: int) -> Row | None:
    """The last row that begins at or below the branch."""
    return max((row for row in table if row.since <= branch), key=lambda row: row.since, default=None)


def _number(text: str) -> int:
    match = re.match(r"[0-9]+", text)
    return int(match[0]) if match else 0


def _settings(wish: Wish) -> list[str]:
    problems = []
    if wish.branch and not re.fullmatch(r"[0-9]{3,4}", wish.branch):
        problems.append(f"nvidia_driver_branch: expected a number such as 580, found {wish.branch}")
    if wish.version and not re.fullmatch(r"[0-9]{3,4}(\.[0-9]+){1,2}", wish.version):
        problems.append(f"nvidia_driver_version: expected a version such as 580.95.05, found {wish.version}")
    elif wish.version and wish.branch and _number(wish.version) != _number(wish.branch):
        problems.append(
            f"nvidia_driver_version: expected a version of nvidia_driver_branch {wish.branch}, found {wish.version}"
        )
    if wish.source == "archive" and not wish.version:
        problems.append(
            "nvidia_driver_version: expected the version of the archive (nvidia_driver_source is archive), found nothing"
        )
    return problems


def _flavor(driver: Driver, wish: Wish, branch: int) -> tuple[str, list[str]]:
    """Which kernel module, and what speaks against it."""
    problems = []
    possible = list(FLAVORS)
    for generation in sorted({gpu["generation"] for gpu in driver.gpus if gpu["generation"] in SUPPORT}):
        support = SUPPORT[generation]
        names = ", ".join(sorted({gpu["key"] for gpu in driver.gpus if gpu["generation"] == generation}))
        if branch < support.first:
            problems.append(
                f"nvidia_driver_branch: expected {support.first} or newer for {names} ({generation}), found {branch}"
            )
        if support.last and branch > support.last:
            problems.append(
                f"nvidia_driver_branch: expected {support.last} or older for {names} ({generation}), found {branch}"
            )
        possible = [flavor for flavor in possible if flavor in support.flavors]
        if wish.flavor != "auto" and wish.flavor not in support.flavors:
            problems.append(
                f"nvidia_driver_flavor: expected {support.flavors[0]} for {names} ({generation}), found {wish.flavor}"
            )
    if not possible:
        problems.append(
            "nvidia_driver_flavor: expected GPUs that one kernel module can serve, found some that need the open and some that need the proprietary one"
        )
    if branch < _FIRST_OPEN:
        possible = [flavor for flavor in possible if flavor != "open"]
    if wish.flavor != "auto":
        return wish.flavor, problems
    return (possible or ["open"])[0], problems


def _secure_boot(driver: Driver, wish: Wish) -> list[str]:
    if not driver.secure_boot or wish.source == "none":
        return []
    if wish.secure_boot == "refuse":
        return [
            "nvidia_driver_secure_boot: expected Secure Boot to be off (value refuse), found it on, where a module that DKMS builds does not load "
            "unless its key is enrolled; switch Secure Boot off in the firmware, or enroll the key and set the variable to signed "
            "(the role's README has the steps)"
        ]
    if driver.mok_enrolled is not True:
        found = "a key that is not enrolled" if driver.mok_enrolled is False else "no mokutil that could tell"
        return [
            "nvidia_driver_secure_boot: expected the machine owner key of DKMS to be enrolled (value signed), found "
            f"{found}; run 'mokutil --import /var/lib/dkms/mok.pub' on the host, reboot, confirm the key at the console (MokManager), then run again"
        ]
    return []


def _gpudirect(driver: Driver, wish: Wish, flavor: str) -> tuple[bool, list[str]]:
    """Does nvidia-peermem have to be loaded?"""
    if wish.gpudirect == "peermem":
        return True, []
    if wish.gpudirect != "dmabuf":
        return False, []
    problems = []
    if flavor != "open":
        problems.append(
            f"nvidia_driver_gpudirect: expected the open kernel module for dmabuf, found {flavor}; peermem works with both"
        )
    if natural(driver.kernel) < natural(_DMABUF_KERNEL):
        problems.append(
            f"nvidia_driver_gpudirect: expected kernel {_DMABUF_KERNEL} or newer for dmabuf, found {driver.kernel}"
        )
    return False, problems


def matches(installed: str, version: str) -> bool:
    """Is a package's version of the wanted one, which may end anywhere after a point?"""
    found = upstream(installed)
    return found == version or found.startswith(f"{version}.")


def _change(driver: Driver, plan_names: t.Sequence[str], version: str, extra: t.Sequence[str]) -> bool:
    for name in plan_names:
        package = driver.packages.get(name)
        if package is None or package.state != "installed" or not matches(package.version, version):
            return True
    return any(name not in driver.packages or driver.packages[name].state != "installed" for name in extra)


def decide(driver: Driver, wish: Wish) -> Plan:
    """Compare what is with what is wanted."""
    problems = _settings(wish)
    if not driver.gpus and not wish.allow_no_gpu:
        problems.append(
            f"nvidia_driver_allow_no_gpu: expected an NVIDIA GPU on the PCI bus, found none ({NO_GPU}); true lets the role go on nevertheless"
        )
    elif driver.gpus and wish.source == "none" and not (driver.loaded or driver.module):
        problems.append(
            "nvidia_driver_source: expected a driver on the host (value none), found neither a loaded nor an installed one"
        )
    branch = _number(wish.version or wish.branch or wish.default_branch)
    version = wish.version or str(branch)
    flavor, wrong = _flavor(driver, wish, branch) if wish.source != "none" else ("", [])
    peermem, unfit = _gpudirect(driver, wish, flavor)
    problems += wrong + unfit + _secure_boot(driver, wish)
    fabric = driver.nvswitches > 0 and wish.source != "none"
    if wish.source == "archive":
        # The runfile brings neither Fabric Manager nor NSCQ.
        if fabric:
            problems.append(
                f"nvidia_driver_source: expected cuda_repo on a host with {driver.nvswitches} NVSwitches, which need Fabric Manager, found archive"
            )
        packages = driver.packages_of_driver()
        if packages:
            problems.append(
                f"nvidia_driver_source: expected no packages of the driver beside an archive, found {', '.join(packages)}"
            )
        change = driver.module_version != wish.version or driver.library != wish.version
        tools = ["dkms", "gcc", "make", *([] if driver.headers else [wish.kernel_headers.format(kernel=driver.kernel)])]
        return Plan(problems, branch, flavor, version, tools, [], fabric, peermem, change, _wait(driver, change))
    if wish.source == "none":
        if (
            driver.nvswitches
            and not driver.simulated
            and not any(name.startswith("nvidia-fabricmanager") for name in driver.packages)
        ):
            problems.append(
                f"nvidia_driver_source: expected Fabric Manager on a host with {driver.nvswitches} NVSwitches (value none), found no package of it"
            )
        return Plan(
            problems,
            branch,
            flavor,
            wish.version,
            fabric_manager=driver.nvswitches > 0 and not driver.simulated,
            peermem=peermem,
        )
    row = row_for(wish.rows, branch)
    if row is None or (row.branches and branch not in row.branches):
        has = sorted({number for one in wish.rows for number in one.branches}) or [
            min((one.since for one in wish.rows), default=0)
        ]
        more = "" if any(one.branches for one in wish.rows) else " or newer"
        problems.append(
            f"nvidia_driver_branch: expected {', '.join(map(str, has))}{more}, which the source {wish.source} has for this distribution, found {branch}"
        )
        return Plan(problems, branch, flavor, version)
    if fabric and not row.fabric:
        problems.append(
            f"nvidia_driver_source: expected cuda_repo on a host with {driver.nvswitches} NVSwitches, because they need Fabric Manager in the "
            f"driver's version and this distribution has none, found {wish.source}"
        )
    versioned = [
        name.format(branch=branch)
        for name in (*row.modules.get(flavor, ()), *row.user_space, *(row.fabric if fabric else ()))
    ]
    headers = wish.kernel_headers.format(kernel=driver.kernel)
    others = [name.format(branch=branch) for name in row.others] + ([] if driver.headers else [headers])
    change = _change(driver, versioned, version, others)
    return Plan(
        problems,
        branch,
        flavor,
        version,
        [f"{name}={version}{'*' if wish.version else '.*'}" for name in versioned] + others,
        versioned,
        fabric,
        peermem,
        change,
        _wait(driver, change),
        build=not change and not driver.module,
    )


def _wait(driver: Driver, change: bool) -> str:
    """Why the driver is not built now."""
    if not change or not driver.kernel_pending:
        return ""
    return (
        f"kernel {driver.newest_kernel} is installed, {driver.kernel} runs: the driver is built for the new one after a reboot, "
        "and nothing of it was installed now"
    )


def holds(driver: Driver, patterns: t.Sequence[str]) -> list[str]:
    """Installed packages that match any of the patterns."""
    return sorted(name for name in driver.packages if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def lock(driver: Driver, plan: Plan, wish: Wish) -> list[str]:
    """The version lock: every part that has another version than the installed kernel module, in a sentence."""
    wrong = []
    installed = driver.module_version
    if not installed:
        states = "; ".join(
            f"{one['module']} {one['version']} for {one['kernel']}: {one['state']}" for one in driver.dkms
        )
        if not (wish.source == "none" and wish.allow_no_gpu and not driver.packages_of_driver()):
            wrong.append(
                f"no NVIDIA kernel module is installed for kernel {driver.kernel} (DKMS: {states or 'nothing'})"
            )
        return wrong
    if wish.version and installed != wish.version and wish.source != "none":
        wrong.append(f"nvidia_driver_version is {wish.version}, the installed kernel module is {installed}")
    if driver.loaded and driver.loaded != installed:
        wrong.append(f"the loaded kernel module is {driver.loaded}, the installed one is {installed}")
    for name in plan.versioned:
        package = driver.packages.get(name)
        if package is None:
            wrong.append(f"{name} is not installed")
        elif upstream(package.version) != installed:
            wrong.append(f"{name} is {upstream(package.version)}, the installed kernel module is {installed}")
    if driver.library and driver.library != installed:
        wrong.append(f"the user space (libnvidia-ml) is {driver.library}, the installed kernel module is {installed}")
    if not plan.versioned:
        for name, package in sorted(driver.packages.items()):
            if re.match(r"nvidia-fabricmanager(-[0-9]+)?$", name) and upstream(package.version) != installed:
                wrong.append(f"{name} is {upstream(package.version)}, the installed kernel module is {installed}")
    return wrong


def reboot_reason(driver: Driver, plan: Plan, wish: Wish) -> str:
    """Why the host must be rebooted, or nothing."""
    reasons = []
    if plan.wait:
        reasons.append(plan.wait)
    elif driver.module_version and driver.loaded and driver.loaded != driver.module_version:
        reasons.append(f"installed driver {driver.module_version}, loaded {driver.loaded}")
    elif driver.module_version and driver.nouveau:
        reasons.append(f"installed driver {driver.module_version}, nouveau is loaded in its place")
    elif driver.loaded and wish.source != "none":
        for option, value in sorted(wish.options.items()):
            name = _PARAMETERS.get(option, option[len("NVreg_") :] if option.startswith("NVreg_") else option)
            now = driver.parameters.get(name)
            if now is not None and now != str(value):
                reasons.append(f"module option {option} is {value}, the loaded driver runs with {now}")
    return "; ".join(reasons)
