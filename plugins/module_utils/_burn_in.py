# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""The proof that a host may serve: what the tests measured, laid beside what was wanted, on the hardware that is there now.

A result keeps measurements, not verdicts: whether they are good enough is decided each time by the marks of the day, so a changed mark needs no
new run. A changed parameter of a test, a swapped part or another driver does.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

SCHEMA = 1
# In the order in which they run; the health of the hardware is judged when all load is over.
TESTS = ("dcgmi", "nvbandwidth", "nccl", "gpu_stress", "rdma", "memory", "fio", "hardware")
WORDS = {
    "dcgmi": "DCGM diagnostic",
    "nvbandwidth": "copies between host and GPU",
    "nccl": "all-reduce over all GPUs",
    "gpu_stress": "equal sums on all GPUs under load",
    "rdma": "RDMA writes",
    "memory": "main memory",
    "fio": "disk of the models",
    "hardware": "hardware after the load",
}
Data = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Mark:
    """One pass mark.

    :ivar key: its name; the role's variable is ``burn_in_`` and this.
    :ivar test: the test whose measurement it judges.
    :ivar value: name of the measurement.
    :ivar words: what that is, for sentences.
    :ivar unit: its unit, may be empty.
    :ivar how: ``min`` and ``max`` (0 in a ``min`` judges nothing), ``equal``, or ``none_of`` for a list of names that must not occur.
    """

    key: str
    test: str
    value: str
    words: str
    unit: str = ""
    how: str = "min"


MARKS = (
    Mark("nvbandwidth_h2d_gbs_min", "nvbandwidth", "h2d_gbs", "host to device", "GB/s"),
    Mark("nvbandwidth_d2h_gbs_min", "nvbandwidth", "d2h_gbs", "device to host", "GB/s"),
    Mark("nccl_busbw_gbs_min", "nccl", "busbw_gbs", "all-reduce bus bandwidth", "GB/s"),
    Mark("gpu_stress_speed_ratio_min", "gpu_stress", "speed_ratio", "speed against the middle GPU"),
    Mark("rdma_write_gbps_min", "rdma", "write_gbps", "RDMA write", "Gb/s"),
    Mark("fio_read_mbs_min", "fio", "read_mbs", "sequential read", "MB/s"),
    Mark("fio_write_mbs_min", "fio", "write_mbs", "sequential write", "MB/s"),
    Mark("gpu_count", "hardware", "gpu_count", "GPUs that answer", how="equal"),
    Mark("gpu_pcie_width_min", "hardware", "gpu_pcie_width", "PCIe lanes"),
    Mark("nvlink_inactive_max", "hardware", "nvlink_inactive", "inactive NVLinks", how="max"),
    Mark(
        "sram_uncorrected_max",
        "hardware",
        "sram_uncorrected",
        "uncorrected errors in on-chip memory since the driver was loaded",
        how="max",
    ),
    Mark("row_remap_problems_max", "hardware", "row_remap_problems", "pending or failed row remaps", how="max"),
    Mark("xids_blocking", "hardware", "xids", "XID", how="none_of"),
    Mark("rdma_port_gbps_min", "hardware", "rdma_port_gbps", "rate of the RDMA port", "Gb/s"),
)


def _figure(value: t.Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check(mark: Mark, wanted: t.Any, label: str, found: t.Any) -> dict[str, t.Any]:
    """One mark against one measurement."""
    words = f"{label}: {mark.words}" if label else mark.words
    unit = f" {mark.unit}" if mark.unit else ""
    if mark.how == "equal":
        good, expected = found == wanted, f"{_figure(wanted)}{unit}"
    elif mark.how == "max":
        good, expected = found <= wanted, f"at most {_figure(wanted)}{unit}"
    else:
        good, expected = found >= wanted, f"at least {_figure(wanted)}{unit}"
    return {
        "what": words,
        "device": label,
        "variable": f"burn_in_{mark.key}",
        "expected": expected,
        "found": f"{_figure(found)}{unit}",
        "ok": good,
    }


def _none_of(mark: Mark, unwanted: t.Sequence[t.Any], found: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """Names that must not occur; a label begins with the name: ``79 on 0000:07:00.0``."""
    names = {str(name) for name in unwanted}
    bad = [
        f"{label} ({_figure(count)} times)" for label, count in sorted(found.items()) if label.split(" ")[0] in names
    ]
    return [
        {
            "what": mark.words,
            "device": "",
            "variable": f"burn_in_{mark.key}",
            "expected": "none that blocks",
            "found": ", ".join(bad) or "none",
            "ok": not bad,
        }
    ]


def checks(name: str, values: Data, marks: Data) -> list[dict[str, t.Any]]:
    """Every mark of a test against what it measured; a mark without a measurement is no check."""
    found: list[dict[str, t.Any]] = []
    for mark in MARKS:
        if mark.test != name or mark.value not in values or mark.key not in marks:
            continue
        wanted, measured = marks[mark.key], values[mark.value]
        if mark.how == "none_of":
            found += _none_of(mark, wanted, measured)
        elif mark.how != "min" or wanted:
            each = measured.items() if isinstance(measured, t.Mapping) else [("", measured)]
            found += [_check(mark, wanted, label, value) for label, value in each]
    return found


def judge(name: str, entry: Data, marks: Data) -> dict[str, t.Any]:
    """The verdict on one test.

    :arg entry: what the runner kept: ``outcome`` (measured, not_run), ``reason``, ``measured``, ``errors``, ``notes`` and more.
    :returns: ``status`` (pass, fail, not_run), ``checks`` and ``sentences``.
    """
    if entry.get("outcome") != "measured":
        return {
            "name": name,
            "status": "not_run",
            "checks": [],
            "sentences": [f"{name}: not run: {entry.get('reason') or 'no reason given'}"],
        }
    seen = checks(name, entry.get("measured") or {}, marks)
    sentences = [f"{name}: {error}" for error in entry.get("errors") or []]
    sentences += [
        f"{name}: {check['what']}: expected {check['expected']} ({check['variable']}), found {check['found']}"
        for check in seen
        if not check["ok"]
    ]
    return {"name": name, "status": "fail" if sentences else "pass", "checks": seen, "sentences": sentences}


# --- the hardware --------------------------------------------------------------------------------------------------------------------------


def fingerprint(hardware: Data) -> dict[str, t.Any]:
    """What a result is bound to: each part by the name that moves with it, and the driver.

    A part that gives no such name is known by its place, so that one that has lost its voice is a difference, too.
    """
    gpus = {
        gpu.get("uuid") or f"no UUID at {gpu.get('pci_address')}": str(gpu.get("serial") or "")
        for gpu in hardware.get("gpus") or []
    }
    drives = {
        drive.get("serial") or f"no serial number at {drive.get('pci_address') or drive.get('name')}": str(
            drive.get("model") or ""
        )
        for drive in hardware.get("nvme") or []
    }
    nics = {
        nic.get("mac") or f"no address of {nic.get('name')}": str(nic.get("name") or "")
        for nic in hardware.get("nics") or []
        if nic.get("pci_address")
    }
    nics.update(
        {
            device["node_guid"]: str(device.get("name") or "")
            for device in hardware.get("rdma") or []
            if device.get("node_guid") and device.get("pci_address")
        }
    )
    driver = hardware.get("gpu_driver") or {}
    return {
        "gpus": gpus,
        "nvme": drives,
        "nics": nics,
        "driver": driver.get("loaded_version") or driver.get("version") or "",
    }


_KINDS = (("gpus", "GPU"), ("nvme", "NVMe drive"), ("nics", "network port"))


def differences(then: Data, now: Data) -> list[str]:
    """Sentences about what is other hardware than at the time of the result."""
    found = []
    for key, word in _KINDS:
        before, after = then.get(key) or {}, now.get(key) or {}
        found += [
            f"{word} {_part(name, before[name])} was tested and is gone" for name in sorted(set(before) - set(after))
        ]
        found += [f"{word} {_part(name, after[name])} was never tested" for name in sorted(set(after) - set(before))]
    if (then.get("driver") or "") != (now.get("driver") or ""):
        found.append(f"the driver was {then.get('driver') or 'none'} and is {now.get('driver') or 'none'}")
    return found


def _part(name: str, more: str) -> str:
    return f"{name} ({more})" if more else name


def health(hardware: Data, before: Data | None = None) -> dict[str, t.Any]:
    """The measurements of test ``hardware``: outcome, values and errors from the facts of a host after the load.

    :arg before: the facts before the load, for what happened meanwhile.
    """
    gpus, gpu = hardware.get("gpus") or [], hardware.get("gpu") or {}
    values: dict[str, t.Any] = {"gpu_count": gpu.get("driver_count") or 0}
    errors, notes = [], []
    if gpus:
        values.update(_gpu_values(gpus))
        states = [
            f"GPU {one.get('pci_address')} is {one.get('state')}"
            for one in gpus
            if one.get("state") not in ("ok", None)
        ]
        errors += states
    driver = hardware.get("gpu_driver") or {}
    if driver.get("mismatch"):
        seen = [f"{word} {driver.get(f'{word}_version')}" for word in ("loaded", "installed")]
        errors.append(f"parts of the driver do not match: {', '.join(seen)}, in use {driver.get('version')}")
    manager = hardware.get("fabric_manager") or {}
    if manager.get("needed"):
        if not manager.get("active"):
            errors.append("Fabric Manager is not active, and the host has NVSwitches")
        if manager.get("version_matches_driver") is False:
            errors.append(f"Fabric Manager is {manager.get('installed_version')}, the driver {driver.get('version')}")
    payload = (hardware.get("pci") or {}).get("max_payload_mismatch") or []
    errors += [f"PCI device {place} is set to another payload than its path carries" for place in payload]
    counts = _xids(hardware)
    if hardware.get("xids") is not None:
        values["xids"] = counts
        new = {label: count - _xids(before).get(label, 0) for label, count in counts.items()} if before else {}
        notes += [
            f"XID {label} came up {more} times during the burn-in" for label, more in sorted(new.items()) if more > 0
        ]
    elif gpus:
        notes.append("the kernel's log could not be read: XIDs are not judged")
    ports = {
        f"{device.get('name')} port {port.get('port')}": port.get("rate_gbps") or 0.0
        for device in hardware.get("rdma") or []
        for port in device.get("ports") or []
        if port.get("state") == "ACTIVE" and device.get("pci_address")
    }
    if ports:
        values["rdma_port_gbps"] = ports
    if before is not None:
        errors += [f"during the burn-in: {line}" for line in differences(fingerprint(before), fingerprint(hardware))]
    return {"outcome": "measured", "reason": "", "measured": values, "errors": errors, "notes": notes}


def _gpu_values(gpus: t.Sequence[Data]) -> dict[str, dict[str, t.Any]]:
    """What is judged of each GPU; a value that the GPU does not have is left out."""
    found: dict[str, dict[str, t.Any]] = {
        "gpu_pcie_width": {},
        "nvlink_inactive": {},
        "sram_uncorrected": {},
        "row_remap_problems": {},
    }
    for one in gpus:
        label = f"GPU {one.get('index') if one.get('index') is not None else one.get('pci_address')}"
        ecc, remap, link = one.get("ecc") or {}, one.get("row_remap"), one.get("nvlink")
        for key, value in (
            ("gpu_pcie_width", (one.get("pcie") or {}).get("width")),
            ("nvlink_inactive", link.get("inactive") if link else None),
            ("sram_uncorrected", ecc.get("sram_uncorrected_volatile")),
            ("row_remap_problems", int(bool(remap.get("pending"))) + int(bool(remap.get("failed"))) if remap else None),
        ):
            if value is not None:
                found[key][label] = value
    return {key: values for key, values in found.items() if values}


def _xids(hardware: Data | None) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in (hardware or {}).get("xids") or []:
        label = f"{entry.get('xid')} on {entry.get('pci_address')}"
        found[label] = found.get(label, 0) + int(entry.get("count") or 0)
    return found


def serials(hardware: Data) -> dict[str, t.Any]:
    """Names and serial numbers for the archive: what was in the host."""
    return {
        "board": (hardware.get("board") or {}).get("serial"),
        "gpus": [
            {key: gpu.get(key) for key in ("index", "pci_address", "name", "uuid", "serial", "vbios", "inforom")}
            for gpu in hardware.get("gpus") or []
        ],
        "nvme": [
            {key: one.get(key) for key in ("name", "model", "serial", "firmware")} for one in hardware.get("nvme") or []
        ],
        "nics": [
            {key: one.get(key) for key in ("name", "mac", "firmware", "driver")}
            for one in hardware.get("nics") or []
            if one.get("pci_address")
        ],
        "rdma": [
            {key: one.get(key) for key in ("name", "node_guid", "firmware", "board_id")}
            for one in hardware.get("rdma") or []
        ],
    }


def versions(hardware: Data) -> dict[str, str]:
    """Versions of the software that the hardware was tested with."""
    driver, system = hardware.get("gpu_driver") or {}, hardware.get("os") or {}
    found = {
        "driver": driver.get("version"),
        "cuda": driver.get("cuda_version"),
        "dcgm": (hardware.get("dcgm") or {}).get("installed_version"),
        "fabric_manager": (hardware.get("fabric_manager") or {}).get("installed_version"),
        "kernel": system.get("kernel"),
        "system": f"{system.get('distribution')} {system.get('version')}" if system.get("distribution") else None,
        "bios": (hardware.get("board") or {}).get("bios_version"),
    }
    return {key: str(value) for key, value in found.items() if value}


# --- the whole -----------------------------------------------------------------------------------------------------------------------------


def _parameter_differences(then: Data, now: Data) -> list[str]:
    return [
        f"{key} {then.get(key, 'not set')!r} instead of {now.get(key, 'not set')!r}"
        for key in sorted(set(then) | set(now))
        if then.get(key) != now.get(key)
    ]


def assess(result: Data | None, config: Data, now: Data | None) -> dict[str, t.Any]:
    """Whether a result proves the host of today.

    :arg result: what the runner stored, or None.
    :arg config: what is wanted: ``tests`` with ``params`` for each, ``marks``, ``allow_not_run`` and ``allow_simulated``.
    :arg now: the fingerprint of today; None when it shall not be compared (on the host, right after the run).
    :returns: ``valid``, ``verdict`` (pass, fail, not_run, void, none), ``reasons`` and ``tests`` as they are judged now.
    """
    if not result:
        return {
            "valid": False,
            "verdict": "none",
            "tests": [],
            "reasons": ["no burn-in has run to its end on this host"],
        }
    when = result.get("finished") or "an unknown time"
    if result.get("schema") != SCHEMA:
        return {
            "valid": False,
            "verdict": "void",
            "tests": [],
            "reasons": [f"the result of {when} has a form that is not known here"],
        }
    entries = {entry.get("name"): entry for entry in result.get("tests") or []}
    void, failed, missing, tests = [], [], [], []
    for name in TESTS:
        if name not in config["tests"]:
            continue
        entry = entries.get(name)
        if entry is None:
            void.append(f"{name}: was not asked for in the burn-in of {when}")
            continue
        other = _parameter_differences(entry.get("params") or {}, config["tests"][name].get("params") or {})
        if other:
            void.append(f"{name}: was run on {when} with {', '.join(other)}")
        judged = judge(name, entry, config.get("marks") or {})
        tests.append(judged)
        if judged["status"] == "fail":
            failed += judged["sentences"]
        elif judged["status"] == "not_run" and name not in (config.get("allow_not_run") or []):
            missing.append(f"{judged['sentences'][0]} (expected a run, or {name} in burn_in_allow_not_run)")
    if now is not None:
        void += [f"{line} (burn-in of {when})" for line in differences(result.get("fingerprint") or {}, now)]
    if result.get("simulated") and not config.get("allow_simulated"):
        who = ", ".join(result.get("simulated_by") or []) or "some tools"
        void.append(f"the burn-in of {when} is simulated ({who}), which burn_in_allow_simulated does not allow")
    verdict = "fail" if failed else "not_run" if missing else "void" if void else "pass"
    return {"valid": verdict == "pass", "verdict": verdict, "reasons": failed + missing + void, "tests": tests}


def summary(entry: Data, verdict: Data) -> str:
    """One line about a finished test: the worst measurement beside its mark, or why there is none."""
    if verdict["status"] != "pass":
        more = len(verdict["sentences"]) - 1
        return str(verdict["sentences"][0]) + (f" (and {more} more)" if more > 0 else "")
    seen = verdict["checks"]
    told = [f"{check['what']} {check['found']}, {check['expected']} wanted" for check in seen[:2]]
    if not told:
        values = entry.get("measured") or {}
        told = [f"{key} {_figure(value)}" for key, value in values.items() if not isinstance(value, t.Mapping)][:3]
    return f"{verdict['name']}: passed" + (f": {'; '.join(told)}" if told else "")


def duration(seconds: float) -> str:
    """A time for people."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )
