# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""The hardware of a host as one structure: what each section is made of, and why one of them is missing."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_host as host
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_network as network
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_nvidia as nvidia
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_pci as pci
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_storage as storage
from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import (
    GPU_CLASSES,
    NVIDIA,
    NVSWITCHES,
    Gpu,
    by_name,
    by_pci,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Reader

SCHEMA = 1
# What can be asked for, and the keys of the structure that it fills.
SUBSETS: dict[str, tuple[str, ...]] = {
    "gpu": ("gpu", "gpus", "gpu_driver", "fabric_manager", "dcgm"),
    "cpu": ("cpu",),
    "memory": ("memory",),
    "board": ("board",),
    "network": ("nics", "network"),
    "rdma": ("rdma",),
    "storage": ("nvme", "storage", "block"),
    "os": ("os", "iommu", "pci", "clock", "sysctl"),
    "xid": ("xids",),
}
_PROC = "/proc/driver/nvidia"
_NO_DRIVER = re.compile(r"couldn't communicate with the NVIDIA driver|driver not loaded|NVIDIA-SMI has failed", re.I)
_MISMATCH = re.compile(r"driver/library version mismatch", re.IGNORECASE)
_NO_DEVICES = re.compile(r"no devices were found", re.IGNORECASE)
_FOREIGN_DRIVERS = ("vfio-pci", "nouveau", "pci-stub", "pciback")
_DRIVER_KEYS = (
    "uuid",
    "serial",
    "vbios",
    "inforom",
    "board_part_number",
    "gsp_firmware",
    "ecc",
    "row_remap",
    "retired_pages",
    "mig",
    "persistence",
    "power_limit_w",
    "power_limit_default_w",
    "power_limit_max_w",
    "clocks",
    "temperature_c",
    "throttle_reasons",
)


class HardwareError(Exception):
    """A question that has no answer, in words for the operator."""


def choose(wanted: t.Sequence[str]) -> list[str]:
    """The subsets behind ``gather_subset``: names add, ``!name`` takes away, ``all`` is all; only taking away begins with all."""
    names = [name.strip() for name in wanted if name.strip()]
    wrong = sorted({name for name in names if name.lstrip("!") not in ("all", *SUBSETS)})
    if wrong:
        raise HardwareError(
            f"gather_subset knows {', '.join(SUBSETS)} and all, each also with ! before it; it does not know {', '.join(wrong)}"
        )
    chosen: set[str] = set() if any(not name.startswith("!") for name in names) else set(SUBSETS)
    for name in names:
        if not name.startswith("!"):
            chosen |= set(SUBSETS) if name == "all" else {name}
    for name in names:
        if name.startswith("!"):
            chosen -= set(SUBSETS) if name == "!all" else {name[1:]}
    return [name for name in SUBSETS if name in chosen]


def one_of(values: t.Iterable[str | None]) -> str | None:
    """The one value that all share; ``mixed`` for several, None when any is not known or there are none."""
    found = set(values)
    if len(found) > 1:
        return "mixed"
    return found.pop() if found else None


@dataclass
class _Driver:
    """What the driver's side of the host says, before it is laid beside the bus."""

    smi: nvidia.SmiLog
    asked: bool
    answers: bool
    error: str
    loaded: str | None
    installed: str | None
    open_modules: bool | None
    views: dict[str, dict[str, t.Any]] = field(default_factory=dict)

    @property
    def present(self) -> bool:
        """Is there any trace of a driver?"""
        return self.asked or self.loaded is not None or self.installed is not None


def _module_file(reader: Reader) -> str | None:
    """The installed kernel module, by the kernel's own index of modules."""
    folder = f"/lib/modules/{reader.text('/proc/sys/kernel/osrelease')}"
    index = reader.text(f"{folder}/modules.dep") or ""
    match = re.search(r"^(\S*/nvidia(?:-current(?:-open)?)?\.ko(?:\.\w+)?):", index, re.MULTILINE)
    if match is None:
        return None
    return match[1] if match[1].startswith("/") else f"{folder}/{match[1]}"


def _modinfo(reader: Reader) -> str:
    """What is known about the installed module: from a recorded tool, else its file, else (it is compressed) the tool."""
    said = reader.recorded("modinfo")
    if said is not None:
        return said.out if said.answered else ""
    path = _module_file(reader)
    if path is None:
        return ""
    if path.endswith(".ko"):
        with reader.parts(path) as file:
            found = nvidia.modinfo_section(file.data(0, 64), file.data) if file is not None else None
        if found is not None:
            return found
    said = reader.command("modinfo")
    return said.out if said.answered else ""


def _simulated_path(reader: Reader, path: str) -> str:
    return f"{reader.simulation}{path}" if reader.simulation else path


def _driver(reader: Reader) -> _Driver:
    loaded, is_open = nvidia.parse_loaded(reader.text(_simulated_path(reader, f"{_PROC}/version")) or "")
    if reader.simulation:
        installed = nvidia.parse_version(reader.text(f"{reader.simulation}/modinfo_version") or "")
        licensed = None
    else:
        installed, licensed = nvidia.parse_modinfo(_modinfo(reader))
    said = reader.command("nvidia_smi_xml")
    smi = nvidia.parse_smi_xml(said.out, said.err)
    nothing = _NO_DEVICES.search(f"{said.out}\n{said.err}") is not None and not smi.gpus
    answers = not said.problem and (smi.complete or nothing)
    error = ""
    if not answers:
        error = said.problem or smi.message or said.failure("nvidia-smi")
        if not said.problem and not said.out.strip() and not said.err.strip():
            error = f"nvidia-smi said nothing and ended with exit code {said.rc}"
    elif nothing or smi.handles:
        error = smi.message
    driver = _Driver(smi, not said.missing, answers, error, loaded, installed, is_open if loaded else licensed)
    order = nvidia.indices(smi)
    for position, view in enumerate(smi.gpus):
        place = view["pci_address"]
        if place:
            driver.views[place] = {**view, "index": order.get(place, position)}
    return driver


def _without_driver(reader: Reader, place: str) -> dict[str, t.Any]:
    """The driver's part of a GPU that it does not answer for: the little that /proc knows."""
    known = nvidia.parse_information(reader.text(_simulated_path(reader, f"{_PROC}/gpus/{place}/information")) or "")
    empty: dict[str, t.Any] = dict.fromkeys(_DRIVER_KEYS)
    empty["ecc"] = nvidia.no_ecc()
    empty["clocks"] = dict.fromkeys(("sm_mhz", "memory_mhz", "sm_max_mhz", "memory_max_mhz"))
    empty["throttle_reasons"] = []
    return {**empty, **{key: known.get(key) for key in ("uuid", "vbios", "gsp_firmware", "name")}}


def _missing_state(reader: Reader, driver: _Driver, device: pci.Device, problem: nvidia.HandleError | None) -> str:
    """Why a GPU on the bus has no answer from the driver."""
    if problem is not None:
        return problem.state
    bound = reader.target(f"{device.path}/driver")
    if bound in _FOREIGN_DRIVERS:
        return "no_driver"
    if driver.answers or driver.smi.gpus:
        return "lost"
    if driver.loaded is not None:
        return "error"
    if not driver.asked or _NO_DRIVER.search(driver.error):
        return "no_driver"
    return "error"


def _gpu(reader: Reader, driver: _Driver, device: pci.Device, names: t.Mapping[str, str]) -> dict[str, t.Any]:
    """One GPU on the bus."""
    view = driver.views.get(device.address)
    problem = next((handle for handle in driver.smi.handles if handle.address == device.address), None)
    known = by_pci(device.vendor, device.device) or by_name((view or {}).get("name") or "")
    usual = known.name if known else f"NVIDIA device {device.vendor}:{device.device}"
    link = pci.link(reader, device.path)
    sub = [pci.identifier(reader.text(f"{device.path}/subsystem_{name}")) for name in ("vendor", "device")]
    if view is not None:
        state, index = view["state"], view["index"]
        side = {key: view[key] for key in _DRIVER_KEYS}
        link = {key: value if value is not None else view["pcie"][key] for key, value in link.items()}
    else:
        state, side = _missing_state(reader, driver, device, problem), _without_driver(reader, device.address)
        index = nvidia.indices(driver.smi).get(device.address)
    if pci.is_gone(reader, device.path):
        state = "lost"
    name = (view or side).get("name") or names.get(device.device) or usual
    side.pop("name", None)
    memory = (view or {}).get("memory_mib")
    return {
        "index": index,
        "pci_address": device.address,
        "vendor_id": device.vendor,
        "device_id": device.device,
        "subsystem_id": ":".join(sub) if all(sub) else (view or {}).get("subsystem_id") or None,
        "name": name,
        "catalogue": known.key if known else None,
        "architecture": known.architecture if known else None,
        "memory_mib": memory if memory is not None else (known.memory_mib if known else None),
        "numa_node": pci.numa_node(reader, device.path),
        "pcie": link,
        "state": state,
        **side,
        "nvlink": None,
    }


def _hidden(driver: _Driver, seen: t.Collection[str]) -> list[pci.Device]:
    """GPUs that the driver knows and the bus does not show, as in a container without its part of sysfs."""
    return [
        pci.Device(place, f"{pci.DEVICES}/{place}", view["vendor_id"] or NVIDIA, view["device_id"], GPU_CLASSES[1])
        for place, view in driver.views.items()
        if place not in seen
    ]


def _summary(
    driver: _Driver, gpus: t.Sequence[dict[str, t.Any]], on_bus: int, switches: int, topology: str | None
) -> dict[str, t.Any]:
    products: list[Gpu | None] = [by_name(gpu["catalogue"] or "") for gpu in gpus]
    sizes = [gpu["memory_mib"] for gpu in gpus if gpu["memory_mib"] is not None]
    unknown = {f"{gpu['vendor_id']}:{gpu['device_id']}" for gpu in gpus if gpu["catalogue"] is None}
    return {
        "count": on_bus,
        "driver_count": sum(1 for gpu in gpus if gpu["pci_address"] in driver.views and gpu["state"] != "lost")
        if driver.answers or driver.smi.gpus
        else None,
        "product": one_of(gpu["name"] for gpu in gpus) or "",
        "catalogue": one_of(gpu["catalogue"] for gpu in gpus),
        "architecture": one_of(gpu["architecture"] for gpu in gpus),
        "generation": one_of(product.generation if product else None for product in products),
        "memory_mib": min(sizes, default=None),
        "nvswitch_count": switches,
        "lost": [gpu["pci_address"] for gpu in gpus if gpu["state"] == "lost"],
        "unknown_pci_ids": sorted(unknown),
        "topology_hash": topology,
        "mig_enabled": sum(1 for gpu in gpus if gpu["mig"]),
    }


def _driver_section(reader: Reader, driver: _Driver) -> dict[str, t.Any] | None:
    if not driver.present:
        return None
    versions = {version for version in (driver.loaded, driver.installed) if version}
    said = driver.smi.driver_version
    mismatch: bool | None = None
    if _MISMATCH.search(driver.error) or len(versions) > 1 or (driver.loaded and said and driver.loaded != said):
        mismatch = True
    elif driver.loaded and (driver.installed or said):
        mismatch = False
    return {
        "version": said or driver.loaded,
        "loaded_version": driver.loaded,
        "installed_version": driver.installed,
        "open_modules": driver.open_modules,
        "cuda_version": driver.smi.cuda_version,
        "answers": driver.answers,
        "error": driver.error,
        "mismatch": mismatch,
        "peermem_loaded": any(reader.exists(f"/sys/module/{name}") for name in ("nvidia_peermem", "nv_peer_mem")),
    }


def _fabric_manager(reader: Reader, version: str | None, states: t.Any, switches: int) -> dict[str, t.Any]:
    if reader.simulation:
        lines = (reader.text(f"{reader.simulation}/fabric_manager") or "").splitlines()
        said = dict(line.partition("=")[::2] for line in lines)
        installed = said.get("version", "").strip() or None
        active: bool | None = said["active"].strip().lower() == "true" if "active" in said else None
    else:
        answer = reader.command("nv_fabricmanager")
        installed = nvidia.parse_version(answer.out) if answer.answered else None
        active = host.is_active(states, "nvidia-fabricmanager.service")
    return {
        "installed_version": installed,
        "active": active,
        "version_matches_driver": installed == version if installed and version else None,
        "needed": switches > 0,
    }


def _gpu_reason(driver: _Driver, count: int) -> str:
    """Why the driver's side is empty or not whole; nothing when it is."""
    if driver.answers or not (count or driver.present):
        return ""
    return f"the driver does not answer: {driver.error}"


def gather_gpu(reader: Reader, found: t.Sequence[pci.Device]) -> tuple[dict[str, t.Any], str, bool]:
    """Section gpu, why it is not whole, and whether the driver's answer was simulated."""
    driver = _driver(reader)
    devices = [device for device in found if device.vendor == NVIDIA and device.kind.startswith(GPU_CLASSES)]
    # A virtual function is a share of a GPU that is on the bus already.
    devices = [device for device in devices if not reader.exists(f"{device.path}/physfn")]
    switches = sum(1 for device in found if device.vendor == NVIDIA and device.device in NVSWITCHES)
    on_bus = len(devices)
    devices += _hidden(driver, {device.address for device in devices})
    names = {view["device_id"]: view["name"] for view in driver.views.values() if view["name"]}
    gpus = [_gpu(reader, driver, device, names) for device in sorted(devices, key=lambda device: device.address)]
    topology = None
    if driver.views:
        said = reader.command("nvidia_smi_nvlink")
        links = nvidia.parse_nvlink(said.out)
        for gpu in gpus:
            known = by_name(gpu["catalogue"] or "")
            gpu["nvlink"] = nvidia.nvlink_of(links, gpu["uuid"], gpu["index"], known.nvlinks if known else 0)
        topology = nvidia.topology_hash(nvidia.parse_topology(reader.command("nvidia_smi_topo").out))
    section = _driver_section(reader, driver)
    states = host.unit_states(reader.command("systemctl"))
    dcgm = reader.command("dcgmi")
    answer = {
        "gpu": _summary(driver, gpus, on_bus or len(gpus), switches, topology),
        "gpus": gpus,
        "gpu_driver": section,
        "fabric_manager": _fabric_manager(reader, section["version"] if section else None, states, switches),
        "dcgm": {
            "installed_version": nvidia.parse_version(dcgm.out) if dcgm.answered else None,
            "active": host.is_active(states, "nvidia-dcgm.service", "dcgm.service"),
        },
    }
    return answer, _gpu_reason(driver, len(gpus)), driver.smi.simulated


class Gatherer:
    """Fills the structure, section by section.

    :arg reader: the host.
    :arg subsets: what to gather.
    """

    def __init__(self, reader: Reader, subsets: t.Sequence[str]) -> None:
        self.reader = reader
        self.subsets = list(subsets)
        self.unavailable: dict[str, str] = {}
        self.simulated = bool(reader.simulation)
        self._devices: list[pci.Device] | None = None

    def devices(self) -> list[pci.Device]:
        """The bus, read once."""
        if self._devices is None:
            self._devices = pci.devices(self.reader)
        return self._devices

    def start(self) -> None:
        """Begin the tools and questions that take time, so that they run beside each other and the rest."""
        reader = self.reader
        if "gpu" in self.subsets:
            reader.start("nvidia_smi_xml", "nvidia_smi_topo", "nvidia_smi_nvlink", "nv_fabricmanager", "dcgmi")
        if {"gpu", "os"} & set(self.subsets):
            reader.start("systemctl")
        if "storage" in self.subsets:
            storage.start_health(reader)

    def _gpu(self) -> tuple[dict[str, t.Any], str]:
        answer, reason, simulated = gather_gpu(self.reader, self.devices())
        self.simulated = self.simulated or simulated
        return answer, reason

    def _cpu(self) -> tuple[dict[str, t.Any], str]:
        section, reason = host.cpu(self.reader)
        return {"cpu": section}, reason

    def _memory(self) -> tuple[dict[str, t.Any], str]:
        section, reason = host.memory(self.reader)
        return {"memory": section}, reason

    def _board(self) -> tuple[dict[str, t.Any], str]:
        section, reason = host.board(self.reader)
        return {"board": section}, reason

    def _network(self) -> tuple[dict[str, t.Any], str]:
        ports, reason = network.nics(self.reader)
        if ports is None:
            return {"nics": None, "network": None}, reason
        return {"nics": ports, "network": network.summary(ports, network.rdma(self.reader))}, ""

    def _rdma(self) -> tuple[dict[str, t.Any], str]:
        return {"rdma": network.rdma(self.reader)}, ""

    def _storage(self) -> tuple[dict[str, t.Any], str]:
        return storage.sections(self.reader)

    def _os(self) -> tuple[dict[str, t.Any], str]:
        fabric, reason = pci.fabric(self.reader, self.devices())
        said = self.reader.command("systemctl")
        return {
            "os": host.operating_system(self.reader),
            "iommu": host.iommu(self.reader),
            "pci": fabric,
            "clock": host.clock(self.reader, host.unit_states(said)),
            "sysctl": host.sysctls(self.reader),
        }, f"ACS and payload sizes are not known: {reason}" if reason else ""

    def _xid(self) -> tuple[dict[str, t.Any], str]:
        text, reason = host.kernel_log(self.reader)
        return {"xids": None if text is None else nvidia.parse_xids(text)}, reason

    def _section(self, name: str) -> dict[str, t.Any]:
        work: t.Callable[[], tuple[dict[str, t.Any], str]] = getattr(self, f"_{name}")
        try:
            answer, reason = work()
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as exc:
            # What nobody foresaw in a file or an answer costs its section, never the whole.
            answer, reason = {}, f"it could not be understood ({type(exc).__name__}: {exc})"
        if reason:
            self.unavailable[name] = reason
        return {key: answer.get(key) for key in SUBSETS[name]}

    def gather(self) -> dict[str, t.Any]:
        """The whole structure."""
        self.start()
        empty: dict[str, t.Any] = dict.fromkeys(key for keys in SUBSETS.values() for key in keys)
        sections: dict[str, t.Any] = {}
        # The GPU tools take longest: they are asked for last, and have run all the while.
        for name in sorted(self.subsets, key=lambda subset: subset == "gpu"):
            sections.update(self._section(name))
        return {
            "schema": SCHEMA,
            "source": "live" if self.reader.live else "recorded",
            "simulated": self.simulated,
            "subsets": self.subsets,
            "unavailable": {name: self.unavailable[name] for name in SUBSETS if name in self.unavailable},
            **empty,
            **sections,
        }


def gather(reader: Reader, wanted: t.Sequence[str]) -> dict[str, t.Any]:
    """The hardware of a host.

    :arg reader: the host.
    :arg wanted: as option ``gather_subset``.
    """
    return Gatherer(reader, choose(wanted)).gather()
