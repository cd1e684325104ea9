# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""What the tools of a burn-in print, as numbers and sentences.

Each parser takes what one tool printed and its exit code, and never fails: what it does not understand is a sentence, too. Whether a number is
good enough is not decided here, only whether the tool itself says that something is wrong.
"""

from __future__ import annotations

import json
import math
import re
import typing as t
from dataclasses import dataclass, field

Value = t.Union[float, "dict[str, float]"]
_MOST_SENTENCES = 20


@dataclass
class Reading:
    """What a tool said.

    :ivar values: measurements by name: a number, or a number for each device.
    :ivar errors: what it found wrong, or why it did not come to an end.
    :ivar notes: what a person should know although it is no failure.
    :ivar versions: of the tool and of what it reports.
    :ivar nothing: why nothing was tested at all; empty when something was.
    """

    values: dict[str, Value] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    nothing: str = ""


def number(value: t.Any) -> float | None:
    """A number that a tool wrote as a number or as text, else None."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def last_words(out: str, err: str) -> str:
    """The last line that a tool wrote, for a sentence about its failure."""
    for text in (err, out):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1][:200]
    return "it said nothing"


def ended(tool: str, rc: int, out: str, err: str) -> list[str]:
    """The sentence about an exit code that is not 0."""
    return [] if rc == 0 else [f"{tool} ended with exit code {rc}: {last_words(out, err)}"]


def _json(text: str) -> t.Any:
    """The JSON object in an output that may have lines of text around it; None when there is none."""
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        return json.loads(text[start : end + 1])
    except ValueError:
        return None


def _list(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else []


def _texts(entries: t.Any) -> list[str]:
    """The words of DCGM's warnings and infos, which are texts in some versions and objects or one object in others."""
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict):
            entry = entry.get("warning") or entry.get("message") or entry.get("info") or ""
        if isinstance(entry, str) and entry.strip():
            found.append(entry.strip())
    return found


def _dcgm_where(result: t.Mapping[str, t.Any]) -> str:
    """The devices of one result: ``gpu_ids`` up to DCGM 3, an entity since DCGM 4."""
    if result.get("entity_id") is not None:
        return f"{result.get('entity_group', 'entity')} {result['entity_id']}"
    ids = result.get("gpu_ids", result.get("gpu_id"))
    return f"GPU {ids}" if ids not in (None, "") else ""


def parse_dcgmi(rc: int, out: str, err: str) -> Reading:
    """Output of ``dcgmi diag -r LEVEL -j``.

    Its shape is declared unstable: every key is looked for, none is relied on. The exit code is not 0 for mere warnings, so it counts only
    when there is no result in the output.
    """
    reading = Reading()
    data = _json(out)
    root: t.Any = None
    if isinstance(data, dict):
        known = [data[key] for key in ("DCGM Diagnostic", "DCGM GPU Diagnostic") if isinstance(data.get(key), dict)]
        root = known[0] if known else data
        for place in [part for part in (root, data.get("metadata")) if isinstance(part, dict)]:
            for key, name in (("version", "dcgm"), ("DCGM Version", "dcgm"), ("Driver Version Detected", "driver")):
                if isinstance(place.get(key), str):
                    reading.versions[name] = place[key]
    if not isinstance(root, dict):
        reading.errors = ended("dcgmi", rc, out, err) or ["dcgmi printed no JSON"]
        return reading
    if root.get("runtime_error"):
        reading.errors.append(f"dcgmi could not run the diagnostic: {root['runtime_error']}")
    categories = root.get("test_categories")
    tests = [test for part in _list(categories) if isinstance(part, dict) for test in _list(part.get("tests"))]
    tests += _list(root.get("tests"))
    counts = {"pass": 0, "fail": 0, "warn": 0, "skip": 0}
    for test in tests:
        if isinstance(test, dict):
            _dcgm_test(test, counts, reading)
    reading.values = {f"tests_{word}": float(count) for word, count in counts.items()}
    if not any(counts.values()) and not reading.errors:
        reading.errors = ended("dcgmi", rc, out, err) or ["dcgmi reported no test"]
    elif counts["skip"] and not counts["pass"] + counts["fail"] + counts["warn"]:
        reading.nothing = "dcgmi skipped every test"
    reading.errors = reading.errors[:_MOST_SENTENCES]
    reading.notes = reading.notes[:_MOST_SENTENCES]
    return reading


_DCGM_WORDS = {"pass": "pass", "fail": "fail", "warn": "warn", "warning": "warn", "skip": "skip", "skipped": "skip"}


def _dcgm_test(test: t.Mapping[str, t.Any], counts: dict[str, int], reading: Reading) -> None:
    """One test of the diagnostic with a result for each device."""
    name = str(test.get("name") or test.get("test_name") or "unnamed test")
    results = [result for result in _list(test.get("results")) if isinstance(result, dict)]
    summary = test.get("test_summary")
    if not results:
        results = [dict(summary if isinstance(summary, dict) else test)]
    elif isinstance(summary, dict) and _status(summary) == "fail" and all(_status(r) != "fail" for r in results):
        results.append(summary)
    for result in results:
        status = _status(result)
        where = " ".join(word for word in (name, _dcgm_where(result)) if word)
        said = "; ".join(_texts(result.get("warnings")))
        if status not in counts:
            reading.errors.append(
                f"{where}: DCGM says '{result.get('status', 'nothing')}'" + (f": {said}" if said else "")
            )
            continue
        counts[status] += 1
        if status == "fail":
            reading.errors.append(f"{where} failed: {said or 'DCGM gives no reason'}")
        elif said:
            # Some versions let a test pass that could not get its memory: the warning must not be lost.
            reading.notes.append(f"{where} ({status}): {said}")
        elif status == "warn":
            reading.notes.append(f"{where}: DCGM warns without saying of what")


def _status(result: t.Mapping[str, t.Any]) -> str:
    word = str(result.get("status", "")).strip().lower()
    return _DCGM_WORDS.get(word, word)


_NVBANDWIDTH = {"host_to_device_memcpy_ce": "h2d_gbs", "device_to_host_memcpy_ce": "d2h_gbs"}


def parse_nvbandwidth(rc: int, out: str, err: str) -> Reading:
    """Output of ``nvbandwidth -j`` for the copies between host and device: GB/s for each GPU."""
    reading = Reading(errors=ended("nvbandwidth", rc, out, err))
    data = _json(out)
    body = data.get("nvbandwidth") if isinstance(data, dict) else None
    if not isinstance(body, dict):
        reading.errors = reading.errors or ["nvbandwidth printed no JSON"]
        return reading
    for key, name in (
        ("version", "nvbandwidth"),
        ("Driver Version", "driver"),
        ("CUDA Runtime Version", "cuda_runtime"),
    ):
        if body.get(key) not in (None, ""):
            reading.versions[name] = str(body[key])
    if body.get("error"):
        reading.errors.append(f"nvbandwidth says: {body['error']}")
    for case in _list(body.get("testcases")):
        if not isinstance(case, dict) or case.get("name") not in _NVBANDWIDTH:
            continue
        # One row, the host's; a column for each GPU. Numbers are texts.
        cells = [cell for row in _list(case.get("bandwidth_matrix")) for cell in _list(row)]
        found = {f"GPU {index}": value for index, value in enumerate(map(number, cells)) if value is not None}
        if case.get("status") != "Passed" or not found:
            why = case.get("error") or case.get("status") or "no numbers"
            reading.errors.append(f"nvbandwidth {case['name']}: {why}")
        if found:
            reading.values[_NVBANDWIDTH[case["name"]]] = found
    missing = [case for case, name in _NVBANDWIDTH.items() if name not in reading.values]
    if missing and not reading.errors:
        reading.errors.append(f"nvbandwidth reported nothing for {', '.join(missing)}")
    return reading


def parse_nccl(rc: int, out: str, err: str) -> Reading:
    """Output of ``all_reduce_perf``."""
    reading = Reading(errors=ended("all_reduce_perf", rc, out, err))
    version = re.search(r"nccl-tests version (\S+).*?nccl-library=(\d+)", out)
    if version:
        reading.versions = {"nccl_tests": version[1], "nccl": version[2]}
    ranks = set(re.findall(r"^#?\s*Rank\s+(\d+)\s", out, re.MULTILINE))
    if ranks:
        reading.values["ranks"] = float(len(ranks))
    average = re.search(r"Avg bus bandwidth\s*:\s*([0-9.eE+-]+)", out)
    value = number(average[1]) if average else None
    if value is not None:
        reading.values["busbw_gbs"] = value
    elif not reading.errors:
        reading.errors.append("all_reduce_perf printed no average bus bandwidth")
    wrong = re.search(r"Out of bounds values\s*:\s*(\d+)\s+(\w+)", out)
    if wrong and (wrong[1] != "0" or wrong[2] != "OK"):
        reading.errors.append(f"all_reduce_perf found {wrong[1]} wrong results in the data")
    return reading


def parse_ib_write_bw(rc: int, out: str, err: str) -> Reading:
    """Output of ``ib_write_bw --report_gbits``: the average of the largest message, Gb/s."""
    reading = Reading(errors=ended("ib_write_bw", rc, out, err))
    found: list[tuple[float, float]] = []
    for line in out.splitlines():
        words = line.split()
        if len(words) >= 4 and words[0].isdigit() and words[1].isdigit():
            average = number(words[3])
            if average is not None:
                found.append((float(words[0]), average))
    if not found:
        data = _json(out)
        results = data.get("results") if isinstance(data, dict) else None
        average = number(results.get("BW_average")) if isinstance(results, dict) else None
        if average is not None:
            found.append((0.0, average))
    if found:
        reading.values["write_gbps"] = max(found)[1]
    elif not reading.errors:
        reading.errors.append("ib_write_bw printed no bandwidth")
    return reading


def parse_fio(rc: int, out: str, err: str) -> Reading:
    """Output of ``fio --output-format=json`` with one job that writes and one that reads what was written and compares it."""
    reading = Reading()
    data = _json(out)
    if not isinstance(data, dict):
        reading.errors = ended("fio", rc, out, err) or ["fio printed no JSON"]
        return reading
    if isinstance(data.get("fio version"), str):
        reading.versions["fio"] = data["fio version"]
    for job in _list(data.get("jobs")):
        if not isinstance(job, dict):
            continue
        if job.get("error"):
            damaged = re.search(r"verify failed at file (\S+) offset (\d+)", err + out)
            why = (
                f"{damaged[1]} reads back other data than was written, at offset {damaged[2]}"
                if damaged
                else last_words("", err)
            )
            reading.errors.append(f"fio job {job.get('jobname')}: error {job['error']}: {why}")
        for way in ("read", "write"):
            part = job.get(way)
            if not isinstance(part, dict):
                continue
            speed, volume = number(part.get("bw_bytes")), number(part.get("io_bytes"))
            if speed is None and number(part.get("bw")) is not None:
                speed = t.cast(float, number(part.get("bw"))) * 1024
            if volume and speed is not None:
                reading.values[f"{way}_mbs"] = round(speed / 1e6, 1)
    reading.errors = reading.errors or ended("fio", rc, out, err)
    missing = [way for way in ("write", "read") if f"{way}_mbs" not in reading.values]
    if missing and not reading.errors:
        reading.errors.append(f"fio reported no {' and no '.join(missing)} speed")
    return reading


def parse_stressapptest(rc: int, out: str, err: str) -> Reading:
    """Output of ``stressapptest``."""
    reading = Reading()
    version = re.search(r"SAT revision (\S+?),", out)
    if version:
        reading.versions["stressapptest"] = version[1]
    speed = re.search(r"^Stats: Memory Copy: \S+ at ([0-9.]+)MB/s", out, re.MULTILINE)
    value = number(speed[1]) if speed else None
    if value is not None:
        reading.values["copy_mbs"] = value
    done = re.search(r"with (\d+) hardware incidents, (\d+) errors", out)
    if done and (done[1] != "0" or done[2] != "0"):
        reading.errors.append(f"stressapptest found {done[1]} hardware incidents and {done[2]} errors in memory")
    if not re.search(r"^Status: PASS", out, re.MULTILINE) and not reading.errors:
        reading.errors = ended("stressapptest", rc, out, err) or ["stressapptest did not say that memory passed"]
    return reading


def parse_memtester(rc: int, out: str, err: str) -> Reading:
    """Output of ``memtester SIZE LOOPS``: the exit code is a set of bits, the words say which pattern failed."""
    reading = Reading()
    version = re.search(r"memtester version (\S+)", out)
    if version:
        reading.versions["memtester"] = version[1]
    got = re.search(r"got\s+(\d+)MB", out)
    if got:
        reading.values["tested_mb"] = float(got[1])
    for found in re.findall(r"FAILURE: ([^\r\n]+)", out + err)[:_MOST_SENTENCES]:
        reading.errors.append(f"memtester: {found.strip()}")
    if rc != 0 and not reading.errors:
        said = {1: "it could not get or lock the memory", 2: "stuck address line", 4: "a pattern failed"}
        reading.errors = [f"memtester: {words}" for bit, words in said.items() if rc & bit] or ended(
            "memtester", rc, out, err
        )
    if not reading.errors and not re.search(r"^Done\.", out, re.MULTILINE):
        reading.errors = ["memtester did not come to its end"]
    return reading


def parse_gpu_stress(rc: int, out: str, err: str) -> Reading:
    """Output of this role's ``gpu_stress.py``: one JSON object, the last line."""
    reading = Reading(errors=ended("gpu_stress", rc, out, err))
    lines = [line for line in out.splitlines() if line.startswith("{")]
    data = _json(lines[-1]) if lines else None
    if not isinstance(data, dict):
        reading.errors = reading.errors or ["gpu_stress printed no JSON"]
        return reading
    reading.versions = {str(key): str(value) for key, value in (data.get("versions") or {}).items()}
    speeds = {
        f"GPU {key}": value
        for key, value in ((key, number(speed)) for key, speed in (data.get("tflops") or {}).items())
        if value is not None
    }
    rounds = number(data.get("rounds"))
    if rounds is not None:
        reading.values["rounds"] = rounds
    if speeds:
        ordered = sorted(speeds.values())
        middle = ordered[len(ordered) // 2]
        reading.values["tflops"] = speeds
        # Against the middle one, so that it needs no table of products.
        reading.values["speed_ratio"] = {
            key: round(value / middle, 3) if middle else 0.0 for key, value in speeds.items()
        }
    for entry in _list(data.get("mismatches"))[:_MOST_SENTENCES]:
        reading.errors.append(f"silent data corruption: {entry}")
    if data.get("error"):
        reading.errors.append(f"gpu_stress: {data['error']}")
    if not rounds and not reading.errors:
        reading.errors.append("gpu_stress finished no round")
    return reading
