# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Processors, memory, board, operating system, clock, kernel settings, and the kernel's log."""

from __future__ import annotations

import ctypes
import os
import re
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Output, Reader, integer

_CPU = "/sys/devices/system/cpu"
_NODES = "/sys/devices/system/node"
_DMI = "/sys/class/dmi/id"
_TABLES = "/sys/firmware/dmi/tables/DMI"
_EFI = "/sys/firmware/efi"
_GROUPS = "/sys/kernel/iommu_groups"
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
# The settings that are compared between hosts: memory, network, limits, what disturbs long computations.
SYSCTLS = (
    "fs.aio-max-nr",
    "fs.file-max",
    "fs.nr_open",
    "kernel.numa_balancing",
    "kernel.panic",
    "kernel.pid_max",
    "kernel.sched_autogroup_enabled",
    "net.core.default_qdisc",
    "net.core.netdev_max_backlog",
    "net.core.rmem_default",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_default",
    "net.core.wmem_max",
    "net.ipv4.conf.all.arp_announce",
    "net.ipv4.conf.all.arp_ignore",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mtu_probing",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "vm.dirty_background_ratio",
    "vm.dirty_ratio",
    "vm.max_map_count",
    "vm.min_free_kbytes",
    "vm.nr_hugepages",
    "vm.overcommit_memory",
    "vm.swappiness",
    "vm.zone_reclaim_mode",
)
# What a hypervisor calls its machines in DMI, in small letters. Source: the strings that systemd-detect-virt knows, too.
_HYPERVISORS = (
    ("qemu", "kvm"),
    ("kvm", "kvm"),
    ("openstack", "kvm"),
    ("amazon ec2", "amazon"),
    ("google", "google"),
    ("vmware", "vmware"),
    ("microsoft", "microsoft"),
    ("xen", "xen"),
    ("innotek", "oracle"),
    ("parallels", "parallels"),
    ("bochs", "bochs"),
)
# SMBIOS 3: size in MB (bit 15: in KB), 0 none, 0xffff unknown, 0x7fff see the extended field.
_MEMORY_DEVICE = 17
_END_OF_TABLE = 127
_TIME_ERROR = 5


def _cpu_fields(text: str) -> list[dict[str, str]]:
    """A mapping for each processor in /proc/cpuinfo."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        fields = {key.strip(): value.strip() for key, _c, value in (line.partition(":") for line in block.splitlines())}
        if fields.get("processor", "").isdigit():
            found.append(fields)
    return found


def parse_cpuinfo(text: str) -> dict[str, t.Any] | None:
    """Model, counts and microcode in /proc/cpuinfo; counts are None where the architecture does not say. None for no processor."""
    found = _cpu_fields(text)
    if not found:
        return None
    first = found[0]
    packages = {fields["physical id"] for fields in found if "physical id" in fields}
    cores = {
        (fields["physical id"], fields["core id"]) for fields in found if {"physical id", "core id"} <= set(fields)
    }
    return {
        "model": " ".join(first.get("model name", first.get("cpu", "")).split()) or None,
        "vendor": first.get("vendor_id") or first.get("CPU implementer") or None,
        "sockets": len(packages) or None,
        "cores": len(cores) or None,
        "threads": len(found),
        "microcode": first.get("microcode"),
        "flags": frozenset(first.get("flags", first.get("Features", "")).split()),
    }


def _topology(reader: Reader) -> tuple[int | None, int | None]:
    """Sockets and cores from sysfs, for architectures whose cpuinfo does not say."""
    cores = set()
    for name in reader.names(_CPU):
        if re.fullmatch(r"cpu\d+", name):
            package = reader.text(f"{_CPU}/{name}/topology/physical_package_id")
            core = reader.text(f"{_CPU}/{name}/topology/core_id")
            if package is not None and core is not None:
                cores.add((package, core))
    return len({package for package, _core in cores}) or None, len(cores) or None


def _governor(reader: Reader) -> str | None:
    """The governor of all processors; several are joined by commas."""
    policies = [name for name in reader.names(f"{_CPU}/cpufreq") if name.startswith("policy")]
    found = {reader.text(f"{_CPU}/cpufreq/{name}/scaling_governor") for name in policies}
    found.add(reader.text(f"{_CPU}/cpu0/cpufreq/scaling_governor"))
    return ",".join(sorted(name for name in found if name)) or None


def machine(reader: Reader) -> str | None:
    """The architecture: x86_64, aarch64 ..."""
    if reader.live:
        return os.uname().machine
    said = reader.recorded("uname")
    words = said.out.split() if said is not None and said.answered else []
    known = [word for word in words if word in ("x86_64", "aarch64", "ppc64le", "s390x", "riscv64")]
    return known[0] if known else reader.word("/proc/sys/kernel/arch")


def cpu(reader: Reader) -> tuple[dict[str, t.Any] | None, str]:
    """The processors, or None and why."""
    said = parse_cpuinfo(reader.text("/proc/cpuinfo") or "")
    if said is None:
        return None, "/proc/cpuinfo cannot be read"
    flags = said.pop("flags")
    if said["sockets"] is None or said["cores"] is None:
        said["sockets"], said["cores"] = _topology(reader)
    active = reader.text(f"{_CPU}/smt/active")
    many = said["cores"] is not None and said["threads"] > said["cores"]
    nodes = [name for name in reader.names(_NODES) if re.fullmatch(r"node\d+", name)]
    return {
        **said,
        "smt": active == "1" if active in ("0", "1") else many,
        "numa_nodes": len(nodes) or 1,
        "governor": _governor(reader),
        "architecture": machine(reader),
        "flags_avx512": any(flag.startswith("avx512") for flag in flags),
    }, ""


def parse_meminfo(text: str) -> dict[str, int]:
    """The figures of /proc/meminfo in KiB."""
    found = {}
    for line in text.splitlines():
        key, _colon, value = line.partition(":")
        number = integer(value)
        if number is not None:
            found[key.strip()] = number
    return found


def parse_dmidecode(text: str) -> list[tuple[int, int | None]]:
    """Size in MiB and speed in MT/s of each DIMM that is there, from ``dmidecode -t memory``."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        if not re.search(r"^\s*Memory Device\s*$", block, re.MULTILINE):
            continue
        fields = {key.strip(): value.strip() for key, _c, value in (line.partition(":") for line in block.splitlines())}
        size = re.match(r"(\d+)\s*(kB|MB|GB|TB|MiB|GiB|TiB)", fields.get("Size", ""))
        if size is None:
            continue
        scale = {"k": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}[size[2][0]]
        speed = integer(fields.get("Configured Memory Speed") or fields.get("Configured Clock Speed"))
        found.append((int(int(size[1]) * scale), speed if speed is not None else integer(fields.get("Speed"))))
    return found


def parse_smbios(table: bytes) -> list[tuple[int, int | None]]:
    """The same from the tables themselves, as /sys/firmware/dmi/tables/DMI holds them."""
    found = []
    place = 0
    while place + 4 <= len(table):
        kind, length = table[place], table[place + 1]
        if length < 4:
            break
        data = table[place : place + length]
        if kind == _MEMORY_DEVICE and length >= 0x15:
            size = _dimm_size(data)
            if size:
                found.append((size, _dimm_speed(data)))
        end = table.find(b"\0\0", place + length)
        if kind == _END_OF_TABLE or end < 0:
            break
        place = end + 2
    return found


def _dimm_size(data: bytes) -> int:
    size = int.from_bytes(data[0x0C:0x0E], "little")
    if size == 0x7FFF and len(data) >= 0x20:
        return int.from_bytes(data[0x1C:0x20], "little") & 0x7FFFFFFF
    if size in (0, 0xFFFF):
        return 0
    return (size & 0x7FFF) // 1024 if size & 0x8000 else size


def _dimm_speed(data: bytes) -> int | None:
    """The configured speed, or else the possible one."""
    for place, longer in ((0x20, 0x58), (0x15, 0x54)):
        speed = int.from_bytes(data[place : place + 2], "little") if len(data) >= place + 2 else 0
        if speed == 0xFFFF:
            speed = int.from_bytes(data[longer : longer + 4], "little") if len(data) >= longer + 4 else 0
        if speed:
            return speed
    return None


def _dimms(reader: Reader) -> tuple[list[tuple[int, int | None]] | None, str]:
    said = reader.recorded("dmidecode")
    if said is not None and said.answered:
        return parse_dmidecode(said.out), ""
    table = reader.data(_TABLES)
    if table is not None:
        return parse_smbios(table), ""
    if reader.live and os.geteuid() != 0:
        return None, "the DIMMs are listed for root only"
    if reader.live and not reader.exists(_TABLES):
        said = reader.command("dmidecode")
        if said.answered and "Memory Device" in said.out:
            return parse_dmidecode(said.out), ""
        return None, "the DIMMs are not known: no SMBIOS tables are shown to this host"
    return None, f"the DIMMs are not known: {_TABLES} cannot be read"


def memory(reader: Reader) -> tuple[dict[str, t.Any] | None, str]:
    """Memory, swap, huge pages, DIMMs; or None and why."""
    info = parse_meminfo(reader.text("/proc/meminfo") or "")
    if "MemTotal" not in info:
        return None, "/proc/meminfo cannot be read"
    dimms, reason = _dimms(reader)
    sizes: dict[str, int] = {}
    for size, _speed in dimms or []:
        sizes[str(size)] = sizes.get(str(size), 0) + 1
    pages = {}
    for name in reader.names("/sys/kernel/mm/hugepages"):
        match = re.fullmatch(r"hugepages-(\d+)kB", name)
        if match is not None:
            pages[match[1]] = reader.number(f"/sys/kernel/mm/hugepages/{name}/nr_hugepages") or 0
    return {
        "total_mib": info["MemTotal"] // 1024,
        "dimm_count": None if dimms is None else len(dimms),
        "dimm_size_mib": None if dimms is None else sizes,
        "dimm_speed_mts": None if dimms is None else sorted({speed for _size, speed in dimms if speed}),
        "swap_mib": info.get("SwapTotal", 0) // 1024,
        "hugepages": pages,
    }, reason


def _bmc(reader: Reader) -> str | None:
    """Firmware of the management controller, when the kernel talks to it."""
    platform = "/sys/devices/platform"
    places = [f"{platform}/{name}" for name in reader.names(platform) if name.startswith("ipmi_bmc")]
    places += [f"/sys/class/ipmi/{name}/device/bmc" for name in reader.names("/sys/class/ipmi")]
    return next((text for text in (reader.word(f"{place}/firmware_revision") for place in places) if text), None)


def board(reader: Reader) -> tuple[dict[str, t.Any] | None, str]:
    """Vendor, product, BIOS, BMC; or None and why."""
    if not reader.names(_DMI):
        return None, f"{_DMI} is not there: the machine, or the container, has no DMI"
    names = {
        "vendor": "sys_vendor",
        "product": "product_name",
        "serial": "product_serial",
        "board_product": "board_name",
        "bios_vendor": "bios_vendor",
        "bios_version": "bios_version",
        "bios_date": "bios_date",
    }
    found = {key: reader.word(f"{_DMI}/{name}") for key, name in names.items()}
    hidden = found["serial"] is None and reader.live and os.geteuid() != 0
    return {**found, "bmc_version": _bmc(reader)}, "the serial number is shown to root only" if hidden else ""


def parse_os_release(text: str) -> dict[str, str]:
    """Read /etc/os-release."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            found[key] = re.sub(r"\\([\\\"'$`])", r"\1", value.strip().strip("\"'"))
    return found


def _secure_boot(reader: Reader) -> bool | None:
    data = reader.data(f"{_EFI}/efivars/{_SECURE_BOOT}")
    if data:
        return data[-1] == 1
    # A machine that shows its firmware and no EFI was started by a BIOS, which has no such thing.
    return False if reader.exists("/sys/firmware/acpi") and not reader.exists(_EFI) else None


def virtualization(vendor: str, product: str, hypervisor: bool) -> str | None:
    """The hypervisor below the host, or None on bare metal."""
    text = f"{vendor} {product}".lower()
    known = next((name for word, name in _HYPERVISORS if word in text), None)
    # Bare metal of a cloud carries its name without the processor's flag; Microsoft makes laptops, too.
    return (known or "vm") if hypervisor else None


def _container(reader: Reader) -> bool:
    places = ("/run/systemd/container", "/.dockerenv", "/run/.containerenv")
    return any(reader.exists(place) for place in places)


def _glibc(reader: Reader) -> str | None:
    if reader.live:
        try:
            text = os.confstr("CS_GNU_LIBC_VERSION") or ""
        except (OSError, ValueError):
            text = ""
    else:
        said = reader.recorded("getconf_glibc")
        text = said.out if said is not None and said.answered else ""
    match = re.search(r"\b(\d+\.\d+)\b", text)
    return match[1] if match else None


def operating_system(reader: Reader) -> dict[str, t.Any]:
    """Distribution, kernel, virtualization."""
    release = parse_os_release(reader.text("/etc/os-release") or reader.text("/usr/lib/os-release") or "")
    said = parse_cpuinfo(reader.text("/proc/cpuinfo") or "")
    vendor, product = reader.text(f"{_DMI}/sys_vendor") or "", reader.text(f"{_DMI}/product_name") or ""
    return {
        "distribution": release.get("NAME") or None,
        "version": release.get("VERSION_ID") or None,
        "codename": release.get("VERSION_CODENAME") or None,
        "kernel": reader.word("/proc/sys/kernel/osrelease"),
        "kernel_cmdline": reader.word("/proc/cmdline"),
        "architecture": machine(reader),
        "container": _container(reader),
        "virtualization": virtualization(vendor, product, said is not None and "hypervisor" in said["flags"]),
        "secure_boot": _secure_boot(reader),
        "glibc": _glibc(reader),
    }


def iommu(reader: Reader) -> dict[str, t.Any]:
    """Is there an IOMMU, and does it translate?"""
    groups = reader.names(_GROUPS)
    kinds = {reader.text(f"{_GROUPS}/{group}/type") for group in groups}
    kinds.discard(None)
    mode: str | None = None
    if not groups:
        mode = "off"
    elif kinds & {"DMA", "DMA-FQ"}:
        mode = "translated"
    elif "identity" in kinds or re.search(r"\biommu(\.passthrough=1|=pt)\b", reader.text("/proc/cmdline") or ""):
        mode = "passthrough"
    return {"enabled": bool(groups), "mode": mode, "groups": len(groups)}


def sysctls(reader: Reader) -> dict[str, str]:
    """The settings of the list that this kernel has, blanks made one."""
    found = {}
    for name in SYSCTLS:
        text = reader.text(f"/proc/sys/{name.replace('.', '/')}")
        if text is not None:
            found[name] = " ".join(text.split())
    return found


def parse_units(text: str) -> dict[str, str]:
    """State of each unit in ``systemctl show --property=Id,ActiveState``."""
    found = {}
    for block in re.split(r"\n\s*\n", text):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        if fields.get("Id"):
            found[fields["Id"].strip()] = fields.get("ActiveState", "").strip()
    return found


def unit_states(said: Output) -> dict[str, str] | None:
    """The same, or None without systemd."""
    return (parse_units(said.out) or None) if said.answered else None


def is_active(states: t.Mapping[str, str] | None, *units: str) -> bool | None:
    """Does one of these units run? None when nobody can say."""
    return None if states is None else any(states.get(unit) == "active" for unit in units)


def parse_timedatectl(text: str) -> bool | None:
    """Is the clock synchronized, from ``timedatectl`` or ``timedatectl show``? None when it does not say."""
    match = re.search(r"(?:NTPSynchronized=|System clock synchronized:|NTP synchronized:)\s*(yes|no)\b", text)
    return match[1] == "yes" if match else None


def parse_chronyc(text: str) -> bool | None:
    """The same from ``chronyc tracking``."""
    match = re.search(r"^Leap status\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    return match[1] != "Not synchronised" if match else None


def _kernel_clock() -> bool | None:
    """What the kernel knows about its clock: adjtimex, asked without changing anything."""
    room = ctypes.create_string_buffer(512)
    try:
        state = int(ctypes.CDLL(None).adjtimex(room))
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def clock(reader: Reader, states: t.Mapping[str, str] | None) -> dict[str, t.Any]:
    """Is the clock kept by somebody, and by whom?"""
    synchronized: bool | None = None
    if reader.live:
        synchronized = _kernel_clock()
    else:
        for slug, parse in (("timedatectl", parse_timedatectl), ("chronyc", parse_chronyc)):
            said = reader.recorded(slug)
            if synchronized is None and said is not None and said.answered:
                synchronized = parse(said.out)
    sources = (
        ("chrony", ("chronyd.service", "chrony.service")),
        ("systemd-timesyncd", ("systemd-timesyncd.service",)),
        ("ntpd", ("ntpd.service", "ntp.service", "ntpsec.service")),
    )
    source = next((name for name, units in sources if is_active(states, *units)), None)
    return {"synchronized": synchronized, "source": source}


def parse_kmsg(text: str) -> str:
    """The messages of /dev/kmsg, a line each, without priorities and fields."""
    return "\n".join(line.partition(";")[2] for line in text.splitlines() if line[:1].isdigit() and ";" in line)


def _kmsg() -> str | None:
    """The kernel's ring buffer; None when it may not be read."""
    try:
        descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    parts = []
    try:
        while True:
            try:
                part = os.read(descriptor, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # the record was overwritten meanwhile: the next one follows
                continue
            if not part:
                break
            parts.append(part)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return parse_kmsg(b"".join(parts).decode("utf-8", "replace"))


def kernel_log(reader: Reader) -> tuple[str | None, str]:
    """The kernel's messages since the start, as far as it keeps them; or None and why."""
    if reader.simulation:
        return reader.text(f"{reader.simulation}/kmsg") or "", ""
    text = _kmsg() if reader.live else None
    if text is not None:
        return text, ""
    said = reader.command("dmesg")
    if said.answered:
        return said.out, ""
    if reader.live and os.geteuid() != 0:
        return None, "the kernel log is shown to root only"
    return None, f"the kernel log cannot be read: {said.failure('dmesg')}"
