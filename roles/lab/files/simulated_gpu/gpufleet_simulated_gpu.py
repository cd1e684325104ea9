# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Gives a lab host a view of GPUs that it does not have, and breaks them in chosen ways.

It writes the state that the stand-in of nvidia-smi prints, and the PCI devices, driver files and kernel messages that go with it, below
/var/lib/gpufleet/simulated. The first line it prints is "changed" or "unchanged". Exit codes: 0 done, 1 the files could not be written,
2 a wrong argument.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

SCHEMA = 1
DIRECTORY = "/var/lib/gpufleet/simulated"
DATA = "/usr/local/share/gpufleet-simulated-gpu.json"
# Where the host's own log takes entries. A view in another directory is a test's, and no matter of this host's log.
JOURNAL = "/run/systemd/journal/socket"
# Marks an entry that no kernel wrote; role gpu_exporter counts it beside those of the kernel on a simulated host.
JOURNAL_MARK = "GPUFLEET_SIMULATED=1"
# Link speeds as the kernel writes them, by PCIe generation.
SPEEDS = {3: "8.0 GT/s PCIe", 4: "16.0 GT/s PCIe", 5: "32.0 GT/s PCIe"}
# What a fault is, and the arguments it takes; "gpu" is --gpu.
FAULTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ecc": ("uncorrected ECC errors since the last reset", ("gpu", "count", "location")),
    "ecc_corrected": ("corrected ECC errors since the last reset", ("gpu", "count", "location")),
    "row_remap_pending": ("a remapped row waits for a reset", ("gpu",)),
    "row_remap_failed": ("a row could not be remapped", ("gpu",)),
    "xid": ("the driver's message NUMBER in the kernel log", ("gpu", "count", "value")),
    "lost": ("the GPU fell off the bus", ("gpu",)),
    "x8": ("its PCIe link runs at half its width", ("gpu",)),
    "nvlink_down": ("an NVLink is inactive", ("gpu", "link")),
    "nvlink_errors": ("an NVLink counts CRC errors", ("gpu", "count", "link")),
    "vbios": ("it has the VBIOS VERSION", ("gpu", "value")),
    "mig_on": ("MIG is on", ("gpu",)),
    "throttle": ("its clocks are held down", ("gpu", "reason")),
    "requires_reset": ("it does not work until it is reset", ("gpu",)),
    "driver_mismatch": ("the installed driver is VERSION, the loaded one is not", ("value",)),
    "driver_not_loaded": ("the driver is installed and not loaded", ()),
    "fabric_manager_down": ("Fabric Manager is installed and not active", ()),
}
VALUES = {"xid": "NUMBER", "vbios": "VERSION", "driver_mismatch": "VERSION"}
REASONS = (
    "sw_power_cap",
    "hw_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "sw_thermal_slowdown",
    "sync_boost",
)
# The hardware's slowdowns always come with the sum of them.
WITH_SLOWDOWN = ("hw_thermal_slowdown", "hw_power_brake_slowdown")
# Driver messages that come with a fault.
FAULT_XIDS = {
    "ecc": 94,
    "row_remap_pending": 63,
    "row_remap_failed": 64,
    "lost": 79,
    "nvlink_down": 74,
    "requires_reset": 119,
}
MESSAGES = {
    13: "Graphics Exception: simulated",
    31: "MMU Fault: simulated",
    48: "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer",
    63: "Row Remapper: New row marked for remapping, reset gpu to activate.",
    64: "Row Remapper: Failed to mark a row for remapping.",
    74: "NVLink: fatal error detected on link",
    79: "GPU has fallen off the bus.",
    94: "Contained: an uncorrectable ECC error, simulated",
    95: "Uncontained: an uncorrectable ECC error, simulated",
    119: "Timeout waiting for RPC from GSP!",
}


class Wrong(Exception):
    """One sentence for whoever typed the command."""


# -- data --------------------------------------------------------------------------------------------------------------


def directory() -> Path:
    """Where the view lies."""
    return Path(os.environ.get("GPUFLEET_SIMULATED_DIR") or DIRECTORY)


def read_json(path: Path) -> Any:
    """A file of data."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Wrong(f"{path}: {error.strerror}.") from None
    except ValueError as error:
        raise Wrong(f"{path} is not JSON: {error}.") from None


def data() -> tuple[dict[str, Any], dict[str, Any]]:
    """Products and profiles by name: the files beside this one, or the one file that the lab installs."""
    beside = Path(__file__).resolve().parent
    if (beside / "products.json").is_file():
        products = read_json(beside / "products.json")
        profiles = [read_json(path) for path in sorted((beside / "profiles").glob("*.json"))]
    else:
        installed = read_json(Path(DATA))
        products, profiles = installed["products"], installed["profiles"]
    return products["products"], {profile["name"]: profile for profile in profiles}


def expand(name: str, seed: str) -> dict[str, Any]:
    """The state of a host that has this profile and no fault."""
    products, profiles = data()
    if name not in profiles:
        raise Wrong(f"there is no profile {name!r}; there are: {', '.join(sorted(profiles))}.")
    profile = profiles[name]
    gpus = []
    for index, gpu in enumerate(profile["gpus"]):
        if gpu["product"] not in products:
            raise Wrong(f"profile {name}: GPU {index} is a {gpu['product']!r}, which products.json does not have.")
        digest = hashlib.sha256(f"{seed}/{gpu['product']}/{gpu['pci_address']}".encode()).hexdigest()
        parts = (digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:32])
        gpus.append(
            {
                "index": index,
                **gpu,
                "uuid": "GPU-" + "-".join(parts),
                "serial": f"165{int(digest[32:], 16) % 10**10:010d}",
            }
        )
    return {
        "schema": SCHEMA,
        "simulated": True,
        "profile": name,
        "seed": seed,
        "driver": profile["driver"],
        "fabric_manager": profile["fabric_manager"],
        "cpu_affinity": profile["cpu_affinity"],
        "nvswitches": profile["nvswitches"],
        "products": {gpu["product"]: products[gpu["product"]] for gpu in profile["gpus"]},
        "gpus": gpus,
        "persistence": [profile["persistence"]] * len(gpus),
        "faults": [],
    }


def load() -> dict[str, Any]:
    """The state that lies there."""
    path = directory() / "state.json"
    if not path.exists():
        raise Wrong(f"{path} does not exist: run gpufleet-simulated-gpu apply PROFILE first.")
    state = read_json(path)
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise Wrong(f"{path} is not of schema {SCHEMA}: run gpufleet-simulated-gpu apply PROFILE.")
    return state


# -- from the state to the files ---------------------------------------------------------------------------------------


def faults_of(state: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The faults of one kind."""
    return [fault for fault in state["faults"] if fault["fault"] == kind]


def device_files(
    vendor_device: str, subsystem: str, pci_class: str, numa: int, link: tuple[str, str, str, str]
) -> dict[str, str]:
    """The files of a PCI device in sysfs: link is speed and width now, speed and width at most."""
    sub_vendor, sub_device = subsystem.split(":")
    speed, width, speed_max, width_max = link
    return {
        "vendor": "0x10de",
        "device": f"0x{vendor_device}",
        "subsystem_vendor": f"0x{sub_vendor}",
        "subsystem_device": f"0x{sub_device}",
        "class": pci_class,
        "numa_node": str(numa),
        "current_link_speed": speed,
        "current_link_width": width,
        "max_link_speed": speed_max,
        "max_link_width": width_max,
    }


def pci_files(state: dict[str, Any]) -> dict[str, str]:
    """GPUs and NVSwitches, as the kernel shows them."""
    found: dict[str, str] = {}
    lost = {fault["gpu"] for fault in faults_of(state, "lost")}
    narrow = {fault["gpu"] for fault in faults_of(state, "x8")}
    for gpu in state["gpus"]:
        product = state["products"][gpu["product"]]
        speed = SPEEDS[product["pcie_gen"]]
        now = (speed, "8" if gpu["index"] in narrow else "16")
        if gpu["index"] in lost:
            # All bits of the link's register read as one.
            now = ("Unknown", "63")
        files = device_files(
            product["device"], product["subsystem"], product["pci_class"], gpu["numa_node"], (*now, speed, "16")
        )
        found.update({f"sys/bus/pci/devices/{gpu['pci_address']}/{name}": text for name, text in files.items()})
    for switch in state["nvswitches"]:
        link = (SPEEDS[4], "2", SPEEDS[4], "2")
        files = device_files(switch["device"], switch["subsystem"], "0x068000", switch["numa_node"], link)
        found.update({f"sys/bus/pci/devices/{switch['pci_address']}/{name}": text for name, text in files.items()})
    return found


def kernel_messages(state: dict[str, Any], fault: dict[str, Any]) -> list[str]:
    """What the driver writes into the kernel log when a fault happens."""
    kind = fault["fault"]
    xid = fault["value"] if kind == "xid" else FAULT_XIDS.get(kind)
    if xid is None:
        return []
    address = state["gpus"][fault["gpu"]]["pci_address"]
    message = MESSAGES.get(xid, "simulated")
    if kind == "nvlink_down":
        message += f" {fault['link']}"
    line = f"NVRM: Xid (PCI:{address[:-2]}): {xid}, pid='<unknown>', name=<unknown>, {message}"
    lines = [line] * (fault["count"] if kind == "xid" else 1)
    if xid == 79:
        lines.append(f"NVRM: GPU {address}: GPU has fallen off the bus.")
    return lines


def kernel_log(state: dict[str, Any]) -> str:
    """What the driver wrote into the kernel log, in the order it happened."""
    return "".join(
        f"[{fault['uptime']:12.6f}] {line}\n" for fault in state["faults"] for line in kernel_messages(state, fault)
    )


def tell_journal(lines: list[str]) -> None:
    """The same into the host's journal, one entry for each line. A host without a journal has a kernel log of its own only."""
    path = os.environ.get("GPUFLEET_SIMULATED_JOURNAL") or ("" if os.environ.get("GPUFLEET_SIMULATED_DIR") else JOURNAL)
    if not path or not lines:
        return
    fields = ("PRIORITY=3", "SYSLOG_FACILITY=0", "SYSLOG_IDENTIFIER=kernel", JOURNAL_MARK)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
        for line in lines:
            channel.sendto("".join(f"{field}\n" for field in (f"MESSAGE={line}", *fields)).encode(), path)


def files_of(state: dict[str, Any]) -> dict[str, str]:
    """Every file of the view with its text; state.json is the last."""
    version = state["driver"]["version"]
    mismatch = faults_of(state, "driver_mismatch")
    kind = "Open Kernel Module" if state["driver"]["open_modules"] else "Kernel Module"
    found = {"SIMULATED": f"gpufleet.deepseek lab: profile {state['profile']}. This host has no GPU.\n"}
    found.update({name: f"{text}\n" for name, text in pci_files(state).items()})
    if not faults_of(state, "driver_not_loaded"):
        found["proc/driver/nvidia/version"] = (
            f"NVRM version: NVIDIA UNIX {kind} for x86_64  {version}  Release Build  (gpufleet simulated)\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
        )
    found["modinfo_version"] = f"{mismatch[0]['value'] if mismatch else version}\n"
    if state["fabric_manager"]:
        found["fabric_manager"] = (
            f"version={version}\nactive={str(not faults_of(state, 'fabric_manager_down')).lower()}\n"
        )
    log = kernel_log(state)
    if log:
        found["kmsg"] = log
    found["state.json"] = json.dumps(state, indent=2) + "\n"
    return found


def read_text(path: Path) -> str | None:
    """What a file says, None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def write_text(path: Path, text: str) -> None:
    """A file is replaced as a whole."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """A file, or a directory with all that is in it; a link is not followed."""
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            remove(entry)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def extras(root: Path, wanted: set[str]) -> list[Path]:
    """What lies there and does not belong there, the topmost of each."""
    folders = {str(parent) for name in wanted for parent in Path(name).parents}
    found: list[Path] = []

    def look(folder: Path) -> None:
        for entry in sorted(folder.iterdir()):
            name = str(entry.relative_to(root))
            if name == ".lock" or (name in wanted and (entry.is_file() or entry.is_symlink())):
                continue
            if name in folders and entry.is_dir() and not entry.is_symlink():
                look(entry)
            else:
                found.append(entry)

    if root.is_dir():
        look(root)
    return found


def settle(state: dict[str, Any], check: bool, diff: bool) -> bool:
    """Make the files what the state says; whether something was, or would be, changed."""
    root, files = directory(), files_of(state)
    surplus = extras(root, set(files))
    stale = {name: text for name, text in files.items() if read_text(root / name) != text}
    changed = bool(surplus or stale)
    print("changed" if changed else "unchanged")
    if diff:
        show_diff(root, stale, surplus)
    if check or not changed:
        return changed
    for path in surplus:
        remove(path)
    for name, text in stale.items():
        path = root / name
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_text(path, text)
    return changed


def show_diff(root: Path, stale: dict[str, str], surplus: list[Path]) -> None:
    """What would become of the files, before it happens."""
    gone = {str(path.relative_to(root)): "" for path in surplus}
    for name, text in sorted({**stale, **gone}.items()):
        old = (read_text(root / name) or "").splitlines()
        if name in gone and not old:
            print(f"--- {root / name}\n+++ /dev/null")
        for line in difflib.unified_diff(old, text.splitlines(), str(root / name), str(root / name), lineterm="", n=1):
            print(line)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One process at a time changes the view, nvidia-smi -pm and -r among them."""
    directory().mkdir(mode=0o755, parents=True, exist_ok=True)
    with (directory() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# -- faults ------------------------------------------------------------------------------------------------------------


def uptime() -> float:
    """Seconds since the host booted: the kernel log's clock."""
    try:
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 0.0


def chosen_gpus(state: dict[str, Any], words: str) -> list[int]:
    """--gpu: a number, several with commas, or all."""
    last = len(state["gpus"]) - 1
    if words == "all":
        return list(range(last + 1))
    found = []
    for word in words.split(","):
        if not re.fullmatch(r"[0-9]{1,4}", word) or int(word) > last:
            raise Wrong(f"--gpu: expected 0 to {last} or all, found {word!r}.")
        found.append(int(word))
    return sorted(set(found))


def checked_value(state: dict[str, Any], kind: str, value: str | None) -> Any:
    """The NUMBER or VERSION of a fault."""
    if kind not in VALUES:
        if value is not None:
            raise Wrong(f"{kind} takes no value, found {value!r}.")
        return None
    if value is None:
        raise Wrong(f"{kind} wants a {VALUES[kind]}.")
    if kind == "xid":
        if not re.fullmatch(r"[0-9]{1,3}", value) or int(value) == 0:
            raise Wrong(f"xid: expected a number from 1 to 999, found {value!r}.")
        return int(value)
    if kind == "vbios":
        if not re.fullmatch(r"[0-9A-Fa-f]{2}(\.[0-9A-Fa-f]{2}){4}", value):
            raise Wrong(f"vbios: expected a version like 92.00.45.00.03, found {value!r}.")
        return value.upper()
    if not re.fullmatch(r"[0-9]{3,4}(\.[0-9]{1,3}){1,2}", value):
        raise Wrong(f"driver_mismatch: expected a version like 550.90.07, found {value!r}.")
    if value == state["driver"]["version"]:
        raise Wrong(f"driver_mismatch: {value} is the loaded driver; name another version.")
    return value


def possible(state: dict[str, Any], kind: str, gpu: int | None, link: int) -> None:
    """A fault that the product cannot have."""
    if kind == "fabric_manager_down" and not state["fabric_manager"]:
        raise Wrong(f"profile {state['profile']} has no Fabric Manager.")
    if gpu is None:
        return
    product = state["products"][state["gpus"][gpu]["product"]]
    if kind == "mig_on" and not product["mig"]:
        raise Wrong(f"GPU {gpu} is an {product['name']}, which has no MIG.")
    if kind in ("nvlink_down", "nvlink_errors") and not 0 <= link < product["nvlinks"]:
        have = f"links 0 to {product['nvlinks'] - 1}" if product["nvlinks"] else "no NVLink"
        raise Wrong(f"GPU {gpu} is an {product['name']} with {have}; --link is {link}.")


def make_fault(kind: str, gpu: int | None, value: Any, given: argparse.Namespace) -> dict[str, Any]:
    """One entry of the list of faults."""
    takes = FAULTS[kind][1]
    fault: dict[str, Any] = {"fault": kind}
    if gpu is not None:
        fault["gpu"] = gpu
    if "count" in takes:
        fault["count"] = 1 if given.count is None else given.count
    if "location" in takes:
        fault["location"] = given.location or "dram"
    if "link" in takes:
        fault["link"] = given.link or 0
    if "reason" in takes:
        reason = given.reason or "hw_thermal_slowdown"
        fault["reasons"] = sorted({reason, "hw_slowdown"} if reason in WITH_SLOWDOWN else {reason})
    if value is not None:
        fault["value"] = value
    if kind in ("xid", *FAULT_XIDS):
        fault["uptime"] = round(uptime(), 6)
    return fault


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two entries are one fault: the time it came is not asked."""
    return {**one, "uptime": 0} == {**other, "uptime": 0}


# What happens again each time; another fault is there or is not.
EVENTS = ("xid", "ecc_corrected", "nvlink_errors")
# One GPU has one of these at a time, the host one driver.
SINGLE = ("vbios", "driver_mismatch", "throttle")


def inject(given: argparse.Namespace) -> int:
    """Add a fault; one that is there is not added again, unless it is an event."""
    kind = given.fault
    if kind not in FAULTS:
        raise Wrong(f"there is no fault {kind!r}; there are: {', '.join(FAULTS)}.")
    takes = FAULTS[kind][1]
    for option in ("gpu", "count", "location", "link", "reason"):
        if getattr(given, option) is not None and option not in takes:
            raise Wrong(f"{kind} takes no --{option}.")
    if given.count is not None and not 1 <= given.count <= 1_000_000:
        raise Wrong(f"--count: expected 1 to 1000000, found {given.count}.")
    with locked():
        state = load()
        value = checked_value(state, kind, given.value)
        gpus: list[int] | list[None] = (
            chosen_gpus(state, "0" if given.gpu is None else given.gpu) if "gpu" in takes else [None]
        )
        happened: list[str] = []
        for gpu in gpus:
            possible(state, kind, gpu, given.link or 0)
            fault = make_fault(kind, gpu, value, given)
            if kind not in EVENTS and any(same(fault, known) for known in state["faults"]):
                continue
            if kind in SINGLE:
                state["faults"] = [
                    known for known in state["faults"] if (known["fault"], known.get("gpu")) != (kind, gpu)
                ]
            state["faults"].append(fault)
            happened += kernel_messages(state, fault)
        settle(state, check=False, diff=False)
    tell_journal(happened)
    return 0


def heal(given: argparse.Namespace) -> int:
    """Take faults away: all, those of a kind, those of some GPUs."""
    if given.fault is not None and given.fault not in FAULTS:
        raise Wrong(f"there is no fault {given.fault!r}; there are: {', '.join(FAULTS)}.")
    with locked():
        state = load()
        gpus = chosen_gpus(state, given.gpu) if given.gpu is not None else None
        state["faults"] = [
            fault
            for fault in state["faults"]
            if (given.fault is not None and fault["fault"] != given.fault)
            or (gpus is not None and fault.get("gpu") not in gpus)
        ]
        settle(state, check=False, diff=False)
    return 0


# -- apply and show ----------------------------------------------------------------------------------------------------


def apply(given: argparse.Namespace) -> int:
    """The view of a profile. Faults and persistence mode of the same profile stay: healing is a command of its own."""
    wanted = expand(given.profile, given.seed)
    if given.check:
        settle(keep(wanted), check=True, diff=given.diff)
        return 0
    with locked():
        settle(keep(wanted), check=False, diff=given.diff)
    return 0


def keep(wanted: dict[str, Any]) -> dict[str, Any]:
    """The state to be, with what was done to the one that lies there; one that cannot be read is replaced."""
    try:
        old = load()
        if old["profile"] == wanted["profile"] and len(old["persistence"]) == len(wanted["gpus"]):
            wanted["persistence"] = [bool(mode) for mode in old["persistence"]]
            trial = {**wanted, "faults": old["faults"]}
            files_of(trial)
            wanted["faults"] = old["faults"]
    except (Wrong, KeyError, TypeError, IndexError, AttributeError):
        wanted["faults"] = []
    return wanted


def show(given: argparse.Namespace) -> int:
    """What the host has, and what is wrong with it."""
    state = load()
    if given.json:
        print(json.dumps(state, indent=2))
        return 0
    print(f"profile  {state['profile']} (seed {state['seed']!r}, simulated)\ndriver   {state['driver']['version']}")
    for gpu in state["gpus"]:
        name = state["products"][gpu["product"]]["name"]
        print(f"GPU {gpu['index']}    {gpu['pci_address']}  {name}  serial {gpu['serial']}  {gpu['uuid']}")
    if not state["faults"]:
        print("faults   none")
    for fault in state["faults"]:
        details = " ".join(
            f"{key}={','.join(value) if isinstance(value, list) else value}"
            for key, value in fault.items()
            if key not in ("fault", "uptime")
        )
        print(f"fault    {fault['fault']} {details}".rstrip())
    return 0


def list_profiles(_given: argparse.Namespace) -> int:
    """The profiles there are."""
    for name, profile in sorted(data()[1].items()):
        print(f"{name:<20} {profile['description']}")
    return 0


# -- the command line --------------------------------------------------------------------------------------------------


class Arguments(argparse.ArgumentParser):
    """A wrong argument is one sentence."""

    def error(self, message: str) -> NoReturn:
        raise Wrong(f"{message} (try: gpufleet-simulated-gpu --help).")


def parser() -> Arguments:
    """The command line."""
    options = Arguments(
        prog="gpufleet-simulated-gpu", description=__doc__.split("\n\n", maxsplit=1)[0], allow_abbrev=False
    )
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND")
    wide = argparse.RawDescriptionHelpFormatter
    faults = "faults:\n" + "\n".join(
        f"  {name + ' ' + VALUES.get(name, ''):<24}{what}" for name, (what, _takes) in FAULTS.items()
    )
    one = commands.add_parser("apply", help="give this host the GPUs of a profile", allow_abbrev=False)
    one.add_argument("profile", metavar="PROFILE", help="see: gpufleet-simulated-gpu profiles")
    one.add_argument("--seed", default="", help="makes serial numbers and UUIDs, normally the host's name")
    one.add_argument("--check", action="store_true", help="only say whether something would change")
    one.add_argument("--diff", action="store_true", help="print what changes in the files")
    one.set_defaults(run=apply)
    one = commands.add_parser("show", help="what this host has, and its faults", allow_abbrev=False)
    one.add_argument("--json", action="store_true")
    one.set_defaults(run=show)
    one = commands.add_parser("profiles", help="the profiles there are", allow_abbrev=False)
    one.set_defaults(run=list_profiles)
    one = commands.add_parser("inject", help="break something", epilog=faults, formatter_class=wide, allow_abbrev=False)
    one.add_argument("fault", metavar="FAULT")
    one.add_argument("value", metavar="VALUE", nargs="?", help="of xid, vbios and driver_mismatch")
    one.add_argument("--gpu", metavar="N", help="a number, several with commas, or all (default 0)")
    one.add_argument("--count", type=int, help="of xid, ecc, ecc_corrected and nvlink_errors: how many (default 1)")
    one.add_argument("--link", type=int, help="of nvlink_down and nvlink_errors (default 0)")
    one.add_argument("--location", choices=("dram", "sram"), help="of ecc and ecc_corrected (default dram)")
    one.add_argument("--reason", choices=REASONS, help="of throttle (default hw_thermal_slowdown)")
    one.set_defaults(run=inject)
    one = commands.add_parser("heal", help="take faults away", epilog=faults, formatter_class=wide, allow_abbrev=False)
    one.add_argument("fault", metavar="FAULT", nargs="?", help="only this kind (default: all)")
    one.add_argument("--gpu", metavar="N", help="only of these GPUs")
    one.set_defaults(run=heal)
    return options


def main(words: list[str]) -> int:
    """The exit code."""
    try:
        given = parser().parse_args(words)
        code: int = given.run(given)
    except Wrong as wrong:
        print(f"gpufleet-simulated-gpu: {wrong}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"gpufleet-simulated-gpu: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 1
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        print(
            f"gpufleet-simulated-gpu: {directory()}/state.json is broken ({error!r}): run gpufleet-simulated-gpu apply PROFILE.",
            file=sys.stderr,
        )
        return 2
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
