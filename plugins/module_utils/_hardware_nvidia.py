# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""What NVIDIA's tools print: parsers on text, which take every layout from driver 418 to 580 and whatever is cut off or broken."""

from __future__ import annotations

import hashlib
import re
import typing as t
from dataclasses import dataclass, field
from xml.parsers import expat

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_pci import address, lanes
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import integer

SIMULATED = "simulated: gpufleet.deepseek lab"
# In the place of a value. Square brackets around them come and go with the driver's version.
_NOTHING = re.compile(
    r"\[?\s*(n/?a|not supported|not available|not active|none|err!|unknown error|gpu is lost|gpu requires reset|requested"
    r" functionality has been deprecated|insufficient permissions|\?+|)\s*\]?$",
    re.IGNORECASE,
)
_LOST = re.compile(r"gpu is lost|fallen off the bus", re.IGNORECASE)
_RESET = re.compile(r"requires? reset", re.IGNORECASE)
_UNKNOWN = re.compile(r"unknown error", re.IGNORECASE)
_HANDLE = re.compile(
    r"unable to determine the device handle for gpu\s*(?:(\d{1,3}):?(?=\s|$))?\s*"
    r"([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])?\s*:?\s*(.*)",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_STARTS = ("<!--", "<!DOCTYPE", "<nvidia_smi_log")
_DEPTH = 64
_GPU_NAME = re.compile(r"GPU\d+")
_XID = re.compile(r"NVRM:.*?\bXid\s*\((?:PCI:)?([0-9a-fA-F:.]+)\):\s*(\d+)(.*)")
_LINK = re.compile(r"\s*Link\s+\d+:\s*(.*)")
_HEADING = re.compile(r"GPU\s+(\d+):\s*(.*?)(?:\s*\(UUID:\s*([^)]*)\))?\s*$")


@dataclass
class Node:
    """An element of the answer."""

    tag: str
    attributes: dict[str, str]
    text: str = ""
    children: list[Node] = field(default_factory=list)

    def find(self, path: str) -> Node | None:
        """The first element of that path, or None."""
        node: Node | None = self
        for tag in path.split("/"):
            node = next((child for child in node.children if child.tag == tag), None) if node is not None else None
        return node

    def raw(self, *paths: str) -> str | None:
        """The text of the first of these paths that exists, or None."""
        for path in paths:
            node = self.find(path)
            if node is not None:
                return node.text.strip()
        return None

    def value(self, *paths: str) -> str | None:
        """The text of the first of these paths that holds a value, or None."""
        for path in paths:
            text = self.raw(path)
            if text is not None and not _NOTHING.match(text):
                return text
        return None

    def walk(self, without: t.Container[str] = ()) -> t.Iterator[Node]:
        """This element and all below it, without those of some names."""
        yield self
        for child in self.children:
            if child.tag not in without:
                yield from child.walk(without)


@dataclass(frozen=True)
class HandleError:
    """A GPU that the driver knows and cannot reach."""

    index: int | None
    address: str | None
    message: str

    @property
    def state(self) -> str:
        """The state of such a GPU."""
        return "requires_reset" if _RESET.search(self.message) else "lost"


@dataclass
class SmiLog:
    """The answer to ``nvidia-smi -q -x``.

    :ivar complete: the document is whole.
    :ivar gpus: one mapping for each GPU that is whole.
    :ivar handles: GPUs without an answer.
    :ivar message: what was said instead of, or beside the document; one line.
    """

    complete: bool = False
    simulated: bool = False
    driver_version: str | None = None
    cuda_version: str | None = None
    gpus: list[dict[str, t.Any]] = field(default_factory=list)
    handles: list[HandleError] = field(default_factory=list)
    message: str = ""


class _Builder:
    """Makes elements of expat's events, and keeps what is whole when the document is not."""

    def __init__(self) -> None:
        self.top = Node("", {})
        self.simulated = False
        self._open = [self.top]

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= _DEPTH:
            raise ValueError("the elements are nested too deep")
        self._open.append(Node(tag, attributes))

    def end(self, _tag: str) -> None:
        node = self._open.pop()
        self._open[-1].children.append(node)

    def data(self, text: str) -> None:
        self._open[-1].text += text

    def comment(self, text: str) -> None:
        self.simulated = self.simulated or SIMULATED in text

    def entity(self, *_arguments: t.Any) -> None:
        raise ValueError("it declares entities, which nvidia-smi never does")

    def whole(self) -> list[Node]:
        """The elements below the open ones, from the outermost."""
        return [child for node in self._open for child in node.children]


def _document(text: str) -> tuple[list[Node], bool, bool, str]:
    """The elements of a document, whether it is whole and simulated, and what is wrong with it."""
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.CommentHandler = builder.comment
    parser.EntityDeclHandler = builder.entity
    problem = ""
    try:
        parser.Parse(text, True)
    except expat.ExpatError as exc:
        problem = f"the XML of nvidia-smi breaks off or is damaged: {exc}"
    except ValueError as exc:
        problem = f"the XML of nvidia-smi is not as it should be: {exc}"
    top = builder.top.find("nvidia_smi_log")
    return (top.children if top else builder.whole()), not problem and top is not None, builder.simulated, problem


def readable(line: str) -> str:
    """A line as a person can read it; what is no text says so."""
    words = " ".join(line.split())
    odd = sum(1 for letter in words if not letter.isprintable() or letter == "\ufffd")
    return "nvidia-smi printed what is no text" if odd * 10 > len(words) else words[:300]


def parse_handles(text: str) -> list[HandleError]:
    """The GPUs that nvidia-smi has no handle for, from the lines around its answer."""
    found = []
    for line in text.splitlines():
        match = _HANDLE.search(line)
        if match is not None:
            found.append(
                HandleError(
                    int(match[1]) if match[1] else None,
                    address(match[2]) if match[2] else None,
                    " ".join(match[3].split()) or "no reason given",
                )
            )
    return found


def number(text: str | None) -> float | None:
    """The number at the beginning of a value such as ``400.00 W``, or None."""
    match = re.match(r"\s*(-?[0-9]+(?:\.[0-9]+)?)(?![0-9a-fA-Fx.])", text or "")
    return float(match[1]) if match else None


def _whole(text: str | None) -> int | None:
    found = number(text)
    return None if found is None else int(found)


def _switch(text: str | None, on: str, off: str) -> bool | None:
    return {on: True, off: False}.get((text or "").lower())


def _total(values: t.Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _uncorrected_sram(node: Node | None) -> int | None:
    """Uncorrectable errors of on-chip memory: one counter up to driver 535, two from 550 on."""
    if node is None:
        return None
    names = ("sram_uncorrectable", "sram_uncorrectable_parity", "sram_uncorrectable_secded")
    return _total(_whole(node.value(name)) for name in names)


_COUNTERS = ("corrected", "uncorrected", "sram_uncorrected", "sram_corrected", "dram_corrected")


def _counters(node: Node | None) -> dict[str, int | None]:
    """Counters of one period, of either layout: by kind of memory (Ampere and later) or by number of bits (before)."""
    if node is None:
        return dict.fromkeys(_COUNTERS)
    if node.find("single_bit") is not None or node.find("double_bit") is not None:
        found: dict[str, int | None] = {}
        for bits, word in (("single_bit", "corrected"), ("double_bit", "uncorrected")):
            whole = _whole(node.value(f"{bits}/total"))
            dram = _whole(node.value(f"{bits}/device_memory"))
            found[word] = whole
            found[f"dram_{word}"] = dram
            found[f"sram_{word}"] = whole - dram if whole is not None and dram is not None else None
        found.pop("dram_uncorrected")
        return found
    sram, dram = _whole(node.value("sram_correctable")), _whole(node.value("dram_correctable"))
    sram_bad, dram_bad = _uncorrected_sram(node), _whole(node.value("dram_uncorrectable"))
    return {
        "corrected": _total((sram, dram)),
        "uncorrected": _total((sram_bad, dram_bad)),
        "sram_uncorrected": sram_bad,
        "sram_corrected": sram,
        "dram_corrected": dram,
    }


def _ecc(gpu: Node) -> dict[str, t.Any]:
    now, ever = _counters(gpu.find("ecc_errors/volatile")), _counters(gpu.find("ecc_errors/aggregate"))

    def lasting(name: str) -> int | None:
        return ever[name] if ever[name] is not None else now[name]

    return {
        "enabled": _switch(gpu.value("ecc_mode/current_ecc"), "enabled", "disabled"),
        "pending": _switch(gpu.value("ecc_mode/pending_ecc"), "enabled", "disabled"),
        "volatile_corrected": now["corrected"],
        "volatile_uncorrected": now["uncorrected"],
        "aggregate_corrected": ever["corrected"],
        "aggregate_uncorrected": ever["uncorrected"],
        "sram_uncorrected_volatile": now["sram_uncorrected"],
        "sram_uncorrected_aggregate": ever["sram_uncorrected"],
        "sram_corrected": lasting("sram_corrected"),
        "dram_corrected": lasting("dram_corrected"),
    }


def no_ecc() -> dict[str, t.Any]:
    """The same for a GPU without an answer."""
    return _ecc(Node("gpu", {}))


def _row_remap(gpu: Node) -> dict[str, t.Any] | None:
    found = {
        "correctable": _whole(gpu.value("remapped_rows/remapped_row_corr")),
        "uncorrectable": _whole(gpu.value("remapped_rows/remapped_row_unc")),
        "pending": _switch(gpu.value("remapped_rows/remapped_row_pending"), "yes", "no"),
        "failed": _switch(gpu.value("remapped_rows/remapped_row_failure"), "yes", "no"),
    }
    return found if any(value is not None for value in found.values()) else None


def _retired_pages(gpu: Node) -> dict[str, t.Any] | None:
    pages = "retired_pages"
    found = {
        "single_bit": _whole(gpu.value(f"{pages}/multiple_single_bit_retirement/retired_count")),
        "double_bit": _whole(gpu.value(f"{pages}/double_bit_retirement/retired_count")),
        "pending": _switch(
            gpu.value(f"{pages}/pending_retirement", f"{pages}/pending_blacklist", f"{pages}/pending_page_blacklist"),
            "yes",
            "no",
        ),
    }
    return found if any(value is not None for value in found.values()) else None


def _throttle(gpu: Node) -> list[str]:
    """Active reasons under their names of any version, without the one that only says the GPU has nothing to do."""
    found = set()
    for block in ("clocks_throttle_reasons", "clocks_event_reasons"):
        node = gpu.find(block)
        for child in node.walk() if node is not None else ():
            if child.text.strip().lower() == "active":
                found.add(re.sub(r"^clocks?_(throttle|event)_reasons?_", "", child.tag))
    return sorted(found - {"gpu_idle", "idle"})


def _state(gpu: Node) -> str:
    """What the values say about the GPU as a whole."""
    # Names of processes are whatever their users like.
    texts = [node.text for node in gpu.walk(("processes", "accounted_processes")) if node.text]
    if any(_LOST.search(text) for text in texts):
        return "lost"
    if _switch(gpu.value("gpu_reset_status/reset_required"), "yes", "no") or any(_RESET.search(text) for text in texts):
        return "requires_reset"
    if (gpu.value("gpu_recovery_action") or "").lower() in ("reset", "gpu reset", "drain and reset"):
        return "requires_reset"
    unknown = sum(1 for text in texts if _UNKNOWN.search(text))
    vital = (gpu.raw("uuid") or "", gpu.raw("fb_memory_usage/total") or "")
    if unknown > 2 or any(_UNKNOWN.search(text) for text in vital):
        return "lost"
    return "error" if unknown or any("err!" in text.lower() for text in texts) else "ok"


def _identity(text: str | None) -> tuple[str, str]:
    """Vendor and device of ``20B210DE`` (the device comes first); empty without."""
    match = re.search(r"(?:0x)?([0-9a-fA-F]{4})([0-9a-fA-F]{4})$", text or "")
    return (match[2].lower(), match[1].lower()) if match else ("", "")


def gpu_view(gpu: Node) -> dict[str, t.Any]:
    """What the driver says about one GPU."""
    vendor, device = _identity(gpu.value("pci/pci_device_id"))
    sub_vendor, sub_device = _identity(gpu.value("pci/pci_sub_system_id"))
    info = "pci/pci_gpu_link_info"
    return {
        "pci_address": address(gpu.value("pci/pci_bus_id") or gpu.attributes.get("id", "")),
        "vendor_id": vendor,
        "device_id": device,
        "subsystem_id": f"{sub_vendor}:{sub_device}" if sub_vendor else "",
        "name": gpu.value("product_name"),
        "memory_mib": _whole(gpu.value("fb_memory_usage/total")),
        "pcie": {
            "width": lanes(gpu.value(f"{info}/link_widths/current_link_width")),
            "width_max": lanes(gpu.value(f"{info}/link_widths/max_link_width")),
            "gen": integer(gpu.value(f"{info}/pcie_gen/current_link_gen")),
            "gen_max": integer(gpu.value(f"{info}/pcie_gen/max_device_link_gen", f"{info}/pcie_gen/max_link_gen")),
        },
        "state": _state(gpu),
        "uuid": gpu.value("uuid"),
        "serial": gpu.value("serial"),
        "vbios": gpu.value("vbios_version"),
        "inforom": gpu.value("inforom_version/img_version"),
        "board_part_number": gpu.value("board_part_number"),
        "gsp_firmware": gpu.value("gsp_firmware_version"),
        "ecc": _ecc(gpu),
        "row_remap": _row_remap(gpu),
        "retired_pages": _retired_pages(gpu),
        "mig": _switch(gpu.value("mig_mode/current_mig"), "enabled", "disabled"),
        "persistence": _switch(gpu.value("persistence_mode"), "enabled", "disabled"),
        "power_limit_w": number(
            gpu.value(
                "gpu_power_readings/current_power_limit",
                "gpu_power_readings/power_limit",
                "power_readings/current_power_limit",
                "power_readings/power_limit",
                "power_readings/enforced_power_limit",
            )
        ),
        "power_limit_default_w": number(
            gpu.value("gpu_power_readings/default_power_limit", "power_readings/default_power_limit")
        ),
        "power_limit_max_w": number(gpu.value("gpu_power_readings/max_power_limit", "power_readings/max_power_limit")),
        "clocks": {
            "sm_mhz": _whole(gpu.value("clocks/sm_clock")),
            "memory_mhz": _whole(gpu.value("clocks/mem_clock")),
            "sm_max_mhz": _whole(gpu.value("max_clocks/sm_clock")),
            "memory_max_mhz": _whole(gpu.value("max_clocks/mem_clock")),
        },
        "temperature_c": _whole(gpu.value("temperature/gpu_temp")),
        "throttle_reasons": _throttle(gpu),
    }


def parse_smi_xml(text: str, errors: str = "") -> SmiLog:
    """Read the answer to ``nvidia-smi -q -x``, or what came in its place.

    :arg text: standard output.
    :arg errors: standard error.
    """
    text = _CONTROL.sub("", re.sub(r"<\?xml[^>]*\?>", "", text))
    begins = min((place for place in (text.find(start) for start in _STARTS) if place >= 0), default=len(text))
    end = text.rfind("</nvidia_smi_log>")
    ends = end + len("</nvidia_smi_log>") if end > begins else len(text)
    around = "\n".join((errors, text[:begins], text[ends:]))
    log = SmiLog(handles=parse_handles(around))
    log.message = next((readable(line) for line in around.splitlines() if line.strip()), "")
    if begins == len(text):
        return log
    nodes, log.complete, log.simulated, problem = _document(text[begins:ends])
    if problem:
        log.message = problem
    top = Node("nvidia_smi_log", {}, children=nodes)
    log.driver_version, log.cuda_version = top.value("driver_version"), top.value("cuda_version")
    log.gpus = [gpu_view(node) for node in nodes if node.tag == "gpu"]
    return log


def indices(log: SmiLog) -> dict[str, int]:
    """The driver's index of each GPU by address: it counts all that it knows in the order of the bus, also those without an answer."""
    known = {view["pci_address"] for view in log.gpus} | {handle.address for handle in log.handles}
    found = {place: index for index, place in enumerate(sorted(place for place in known if place))}
    # A GPU named by its number alone shifts those behind it.
    for handle in sorted((h for h in log.handles if h.address is None), key=lambda h: h.index or 0):
        if handle.index is not None:
            found = {place: index + (index >= handle.index) for place, index in found.items()}
    return found


def parse_nvlink(text: str) -> dict[str, dict[str, t.Any]]:
    """Read ``nvidia-smi nvlink -s``: active and inactive links and their speed, by UUID, or by index where it prints none."""
    found: dict[str, dict[str, t.Any]] = {}
    speeds: list[float] = []
    current: dict[str, t.Any] | None = None
    for line in _ANSI.sub("", text).splitlines():
        heading = _HEADING.match(line)
        if heading is not None:
            current = {"active": 0, "inactive": 0, "speed_gbps": None, "all_inactive": False}
            speeds = []
            found[(heading[3] or heading[1]).strip()] = current
            continue
        if current is None:
            continue
        if re.search(r"all links are inactive", line, re.IGNORECASE):
            current["all_inactive"] = True
        match = _LINK.match(line)
        if match is None:
            continue
        speed = re.match(r"([0-9]+(?:\.[0-9]+)?)\s*GB/s", match[1])
        if speed is not None:
            current["active"] += 1
            speeds.append(float(speed[1]) * 8)
            current["speed_gbps"] = round(min(speeds), 3)
        else:
            current["inactive"] += 1
    return found


def nvlink_of(links: t.Mapping[str, dict[str, t.Any]], uuid: str | None, index: int | None, usual: int) -> t.Any:
    """The links of one GPU; None when it has none.

    :arg usual: how many links such a product has, for the answer that all are down without counting them.
    """
    found = links.get(uuid or "") or links.get(str(index))
    if found is None:
        return None
    inactive = found["inactive"] or (usual if found["all_inactive"] else 0)
    if not found["active"] and not inactive and not found["all_inactive"]:
        return None
    return {"active": found["active"], "inactive": inactive, "speed_gbps": found["speed_gbps"]}


def parse_topology(text: str) -> list[list[str]] | None:
    """The GPU part of ``nvidia-smi topo -m``: a row for each GPU, in order, without names; None when there is no matrix."""
    lines = _ANSI.sub("", text).splitlines()
    width = 0
    rows = []
    for line in lines:
        words = line.split()
        if not words:
            continue
        if not width:
            # The heading: GPU0, GPU1 ... come first; later columns may be named "GPU NUMA ID".
            while width < len(words) and _GPU_NAME.fullmatch(words[width]):
                width += 1
            continue
        if _GPU_NAME.fullmatch(words[0]):
            rows.append(words[1 : 1 + width])
    if not rows or len(rows) != width or any(len(row) != width for row in rows):
        return None
    return rows


def topology_hash(matrix: t.Sequence[t.Sequence[str]] | None) -> str | None:
    """A short name for a matrix: equal for equal hosts."""
    if matrix is None:
        return None
    return hashlib.sha256("\n".join(" ".join(row) for row in matrix).encode()).hexdigest()[:16]


def parse_loaded(text: str) -> tuple[str | None, bool | None]:
    """Version of the loaded module and whether it is the open one, from /proc/driver/nvidia/version."""
    line = next((line for line in text.splitlines() if "NVRM version" in line), "")
    match = re.search(r"Kernel Module(?:\s+for\s+\S+)?\s+([0-9]+(?:\.[0-9]+)+)", line)
    if match is None:
        return None, None
    return match[1], "Open Kernel Module" in line


def parse_modinfo(text: str) -> tuple[str | None, bool | None]:
    """Version and openness of the installed module, from ``modinfo nvidia`` or the strings of its section .modinfo."""
    version = re.search(r"^version[:=]\s*([0-9]+(?:\.[0-9]+)+)\s*$", text, re.MULTILINE)
    licence = re.search(r"^license[:=]\s*(.+?)\s*$", text, re.MULTILINE)
    return (version[1] if version else None), ("GPL" in licence[1] if licence else None)


def modinfo_section(head: bytes, read: t.Callable[[int, int], bytes]) -> str | None:
    """The strings of the section .modinfo of a kernel module (ELF, 64 bits, little-endian), a line each; None when it is no such file.

    :arg head: its first 64 bytes.
    :arg read: gives so many bytes from an offset.
    """
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return None

    def at(data: bytes, offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    table, size, count, names = at(head, 0x28, 8), at(head, 0x3A, 2), at(head, 0x3C, 2), at(head, 0x3E, 2)
    if size < 64 or names >= count:
        return None
    headers = read(table, size * count)
    if len(headers) < size * count:
        return None
    rows = [headers[i * size : (i + 1) * size] for i in range(count)]
    strings = read(at(rows[names], 0x18, 8), min(at(rows[names], 0x20, 8), 1 << 20))
    for row in rows:
        begin = at(row, 0, 4)
        if strings[begin : strings.find(b"\0", begin)] == b".modinfo":
            data = read(at(row, 0x18, 8), min(at(row, 0x20, 8), 1 << 20))
            return data.decode("utf-8", "replace").replace("\0", "\n")
    return None


def parse_information(text: str) -> dict[str, str]:
    """UUID, VBIOS and firmware from /proc/driver/nvidia/gpus/ADDRESS/information, which answers without nvidia-smi."""
    names = {"gpu uuid": "uuid", "video bios": "vbios", "gpu firmware": "gsp_firmware", "model": "name"}
    found = {}
    for line in text.splitlines():
        key, _colon, value = line.partition(":")
        name = names.get(key.strip().lower())
        if name and "?" not in value and value.strip().lower() != "unknown" and not _NOTHING.match(value.strip()):
            found[name] = value.strip()
    return found


def parse_version(text: str) -> str | None:
    """The first version number in what a tool says about itself."""
    match = re.search(r"\b([0-9]+\.[0-9]+(?:\.[0-9]+)*)\b", text)
    return match[1] if match else None


def parse_xids(text: str) -> list[dict[str, t.Any]]:
    """The Xid errors of a kernel log, the same error of the same GPU once with its count and its first line."""
    found: dict[tuple[int, str], dict[str, t.Any]] = {}
    for line in text.splitlines():
        match = _XID.search(line)
        if match is None:
            continue
        place = address(match[1])
        entry = found.setdefault(
            (int(match[2]), place or ""),
            {"xid": int(match[2]), "count": 0, "pci_address": place, "message": line[match.start() :].strip()[:300]},
        )
        entry["count"] += 1
    return [found[key] for key in sorted(found)]
