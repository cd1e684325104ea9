# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Facts that rules need and that ``hardware_info`` does not return as such: ``derived.NAME`` in a rule's path.

Each is a function of one host's structure that returns None when what it needs was not read. A user's rule may name any of them.
"""

from __future__ import annotations

import re
import typing as t
from collections import Counter
from dataclasses import dataclass

Facts = t.Mapping[str, t.Any]

# What to do about an XID, the number of an error that the NVIDIA driver logs. Source: the XID catalogue of leptonai/gpud (generated 2025-10-29), where
# the vendor's recommended action is listed for each number; the list is partial, so a number that is missing here is one to look at.
XID_ACTIONS: dict[str, tuple[int, ...]] = {
    "reset the GPU": (46, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158),
    "restart the host": (79,),
    "contact the vendor": (142,),
    "follow the vendor's workflow": (45, 48, 74),
    "restart the application": (13, 31, 94),
    "nothing": (43, 63, 92),
}
_ACTION_OF = {number: action for action, numbers in XID_ACTIONS.items() for number in numbers}
_BLOCKING = ("reset the GPU", "restart the host", "contact the vendor")

# Words of a kernel command line that differ between equal hosts: where the root file system is, which image was booted, addresses, names.
_OWN_WORDS = re.compile(
    r"^(BOOT_IMAGE|initrd|root|rootfstype|resume|resume_offset|ip|BOOTIF|hostname|systemd\.hostname|systemd\.machine_id"
    r"|rd\.\w[\w.]*(uuid|lv)|ds|cloud-init\S*)="
)


def _xids(facts: Facts, wanted: t.Callable[[str | None], bool]) -> list[str] | None:
    """The XIDs since boot whose action is wanted, as "79 (0000:07:00.0)"."""
    entries = facts.get("xids")
    if entries is None:
        # Without a GPU there is nobody who could report one, whether the kernel's log can be read or not.
        return [] if (facts.get("gpu") or {}).get("count") == 0 else None
    found = set()
    for entry in entries:
        if wanted(_ACTION_OF.get(entry.get("xid"))):
            place = entry.get("pci_address")
            found.add((entry.get("xid") or 0, f"{entry.get('xid')} ({place})" if place else str(entry.get("xid"))))
    return [text for _number, text in sorted(found)]


def _xid_block(facts: Facts) -> list[str] | None:
    return _xids(facts, lambda action: action in _BLOCKING)


def _xid_check(facts: Facts) -> list[str] | None:
    return _xids(facts, lambda action: action is None or action == "follow the vendor's workflow")


def _xid_application(facts: Facts) -> list[str] | None:
    return _xids(facts, lambda action: action == "restart the application")


def _driver_installed(facts: Facts) -> bool | None:
    if facts.get("gpu") is None or facts.get("source") == "declared":
        return None
    return facts.get("gpu_driver") is not None


def _driver_answers(facts: Facts) -> str | None:
    driver = facts.get("gpu_driver")
    if driver is None:
        return None
    return "yes" if driver.get("answers") else str(driver.get("error") or "no answer")


def _gpus_missing(facts: Facts) -> int | None:
    gpu = facts.get("gpu") or {}
    if gpu.get("count") is None or gpu.get("driver_count") is None:
        return None
    return int(gpu["count"] - gpu["driver_count"])


def _fabric_manager(facts: Facts) -> str | None:
    manager = facts.get("fabric_manager")
    if manager is None or facts.get("gpu_driver") is None:
        return None
    if not manager.get("needed"):
        return "not needed"
    if manager.get("installed_version") is None:
        return "not installed"
    active = manager.get("active")
    return None if active is None else "active" if active else "inactive"


def _fabric_manager_matches(facts: Facts) -> bool | None:
    manager = facts.get("fabric_manager")
    if manager is None or not manager.get("needed"):
        return None
    matches = manager.get("version_matches_driver")
    return None if matches is None else bool(matches)


def _dcgm(facts: Facts) -> str | None:
    dcgm = facts.get("dcgm")
    if dcgm is None:
        return None
    return str(dcgm.get("installed_version") or "not installed")


def _cpu_class(facts: Facts) -> str | None:
    model = (facts.get("cpu") or {}).get("model")
    if model is None:
        return None
    for pattern, word in (
        # Intel dropped the word Platinum with Xeon 6; 67xxP and 69xxP are the parts that took its place.
        (r"Xeon.*\bPlatinum\b|Xeon.*\b6[79]\d\d[PE]\b", "Xeon Platinum"),
        (r"Xeon.*\bMax\b", "Xeon Max"),
        (r"\bXeon\b", "Xeon"),
        (r"\bEPYC\b", "EPYC"),
        (r"Neoverse|Grace|Altra|\bARM\b", "Arm server"),
    ):
        if re.search(pattern, str(model), re.IGNORECASE):
            return word
    return "other"


def _kernel_cmdline(facts: Facts) -> list[str] | None:
    line = (facts.get("os") or {}).get("kernel_cmdline")
    if line is None:
        return None
    return [word for word in str(line).split() if not _OWN_WORDS.match(word)]


def _raid0_count(facts: Facts) -> int | None:
    storage = facts.get("storage")
    if storage is None or storage.get("raid0") is None or facts.get("source") == "declared":
        return None
    return len(storage["raid0"])


def _counted(names: t.Iterable[object]) -> list[str]:
    """Different names with how often each comes."""
    counts = Counter(str(name) for name in names)
    return [f"{counts[name]} x {name}" for name in sorted(counts)]


def _nic_models(facts: Facts) -> list[str] | None:
    nics = facts.get("nics")
    return None if nics is None else _counted(f"{nic.get('vendor_id')}:{nic.get('device_id')}" for nic in nics)


def _nvme_layout(facts: Facts) -> list[str] | None:
    disks = facts.get("nvme")
    if disks is None:
        return None
    return _counted(f"{disk.get('model')} {(disk.get('size_bytes') or 0) / 1e12:.2f} TB" for disk in disks)


def _rdma_adapters(facts: Facts) -> list[str] | None:
    adapters = facts.get("rdma")
    return None if adapters is None else _counted(adapter.get("board_id") for adapter in adapters)


def _pcie_narrow(facts: Facts) -> list[str] | None:
    """Network adapters and NVMe drives whose link has fewer lanes than it can have."""
    nics, disks = facts.get("nics"), facts.get("nvme")
    if nics is None and disks is None:
        return None
    found = []
    for device in [*(nics or ()), *(disks or ())]:
        link = device.get("pcie") or {}
        now, best = link.get("width"), link.get("width_max")
        if now is not None and best is not None and now < best:
            found.append(f"{device.get('name')} x{now} of x{best}")
    return sorted(found)


def _pcie_slow(facts: Facts) -> list[str] | None:
    """GPUs at work whose link runs below its best generation. An idle GPU lowers it to save power; one whose clock is up does not."""
    gpus = facts.get("gpus")
    if gpus is None:
        return None
    found, known = [], False
    for gpu in gpus:
        link, clocks = gpu.get("pcie") or {}, gpu.get("clocks") or {}
        now, best = link.get("gen"), link.get("gen_max")
        clock, top = clocks.get("sm_mhz"), clocks.get("sm_max_mhz")
        if now is None or best is None or clock is None or not top:
            continue
        known = True
        if now < best and clock > 0.6 * top:
            found.append(f"{gpu.get('pci_address')} gen {now} of {best}")
    return sorted(found) if known else None


def _remap_uncorrectable(facts: Facts) -> int | None:
    gpus = facts.get("gpus")
    if gpus is None:
        return None
    found = [(gpu.get("row_remap") or {}).get("uncorrectable") for gpu in gpus]
    known = [count for count in found if count is not None]
    return max(known) if known else None


@dataclass(frozen=True)
class Derived:
    """A computed fact: the section of facts that it needs, the function, and what it is."""

    section: str
    compute: t.Callable[[Facts], t.Any]
    description: str


DERIVED: dict[str, Derived] = {
    "driver_installed": Derived("gpu", _driver_installed, "the host has an NVIDIA driver, working or not"),
    "driver_answers": Derived("gpu", _driver_answers, "yes, or what the driver's tool says instead"),
    "gpus_missing": Derived("gpu", _gpus_missing, "GPUs on the PCI bus that the driver does not see"),
    "fabric_manager": Derived("gpu", _fabric_manager, "active, inactive, not installed, not needed"),
    "fabric_manager_matches": Derived(
        "gpu", _fabric_manager_matches, "Fabric Manager has the driver's version, where it is needed"
    ),
    "dcgm": Derived("gpu", _dcgm, "DCGM's version, or not installed"),
    "pcie_slow": Derived("gpu", _pcie_slow, "GPUs with their clock up whose link runs below its best generation"),
    "remap_uncorrectable": Derived(
        "gpu", _remap_uncorrectable, "most rows of one GPU remapped after uncorrectable errors"
    ),
    "xid_block": Derived(
        "xid", _xid_block, "XIDs since boot that ask for a reset, a restart of the host, or the vendor"
    ),
    "xid_check": Derived("xid", _xid_check, "XIDs since boot with a workflow of the vendor's, or not in the table"),
    "xid_application": Derived("xid", _xid_application, "XIDs since boot that an application caused or can outlive"),
    "cpu_class": Derived("cpu", _cpu_class, "Xeon Platinum, Xeon Max, Xeon, EPYC, Arm server, other"),
    "kernel_cmdline": Derived(
        "os", _kernel_cmdline, "words of the kernel command line without those that name this host's disks and image"
    ),
    "nic_models": Derived("network", _nic_models, "PCI ids of the Ethernet ports with their number"),
    "rdma_adapters": Derived("rdma", _rdma_adapters, "board ids of the RDMA adapters with their number"),
    "raid0_count": Derived("storage", _raid0_count, "RAID 0 arrays"),
    "nvme_layout": Derived("storage", _nvme_layout, "models and sizes of the NVMe drives with their number"),
    "pcie_narrow": Derived(
        "storage", _pcie_narrow, "network adapters and NVMe drives whose link has fewer lanes than it can have"
    ),
}
