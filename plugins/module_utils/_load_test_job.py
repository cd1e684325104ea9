# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""The load test as a job: its settings checked as a whole, its files, what it would send in words."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import typing as t
from dataclasses import asdict, dataclass

from ansible_collections.gpufleet.deepseek.plugins.module_utils._load_test import (
    Ladder,
    LoadTestError,
    Mix,
    Resolve,
    Step,
    Target,
    bounded,
    check_target,
    digest_of,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._load_test_judge import check_pass, marks_for, plan_of

# Least and most of each number; a fraction is allowed where the least is one.
RANGES: dict[str, tuple[float, float]] = {
    "max_users": (1, 10000),
    "max_minutes": (0.1, 240.0),
    "spawn_per_second": (0.1, 1000.0),
    "think_seconds": (0.0, 3600.0),
    "timeout": (1, 3600),
    "retry_after_max": (0.1, 60.0),
    "abort_error_ratio": (0.0, 1.0),
    "abort_min_requests": (1, 100000),
    "abort_window": (1, 600),
    "min_memory_mib": (0, 1048576),
    "max_cpu_percent": (0, 100),
    "plan_slack": (1.0, 100.0),
    "open_seconds": (0, 3600),
    "open_rate": (0.0, 100000.0),
    "open_share": (0.01, 10.0),
    "open_max_in_flight": (1, 2000),
    "compare_percent": (0.1, 1000.0),
    "keep_runs": (1, 1000),
    "lease_seconds": (30, 3600),
}


@dataclass(frozen=True)
class Checked:
    """Settings that can be used."""

    target: Target
    target_host: str
    steps: list[Step]
    left_out: list[str]
    mix: Mix

    @property
    def seconds(self) -> float:
        """How long the ladder takes."""
        return Ladder(self.steps).seconds

    def shape(self, config: t.Mapping[str, t.Any]) -> str:
        """What must be equal for two runs to be compared: who was asked what, by how many, for how long."""
        steps = [asdict(step) for step in self.steps]
        return digest_of(self.target.url, config["model"], steps, self.mix.entries, config["think_seconds"])


def resolve(name: str) -> list[str]:
    """All addresses of a name, as this host knows them."""
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})


def check(config: t.Mapping[str, t.Any], look_up: Resolve = resolve) -> Checked:
    """Check all settings; sends nothing but name look-ups.

    :arg config: what the role writes to C(job.json).
    :raises LoadTestError: one sentence for each thing that is wrong.
    """
    problems = [
        f"load_test_{name}: expected a number from {least} to {most}, found {config.get(name)!r}"
        for name, (least, most) in RANGES.items()
        if not _is_number(config.get(name)) or not least <= config[name] <= most
    ]
    if config.get("open_tool") not in ("own", "k6"):
        problems.append(f"load_test_open_tool: expected own or k6, found {config.get('open_tool')!r}")
    if config.get("compare_action") not in ("warn", "fail"):
        problems.append(f"load_test_compare_action: expected warn or fail, found {config.get('compare_action')!r}")
    if not config.get("model"):
        problems.append("load_test_model: expected the name of a model, found nothing")
    if problems:
        raise LoadTestError("; ".join(problems))
    kept: tuple[list[Step], list[str]] = ([], [])
    mix = target = None
    try:
        kept = bounded(config["steps"], config["max_users"], config["max_minutes"], config["open_seconds"])
    except LoadTestError as exc:
        problems.append(str(exc))
    try:
        mix = Mix.of_text(config["mix"])
    except LoadTestError as exc:
        problems.append(str(exc))
    try:
        check_pass(config["pass"])
    except LoadTestError as exc:
        problems.append(str(exc))
    try:
        target = check_target(config["url"], config["allowed"], look_up, config.get("connect_host") or "")
    except LoadTestError as exc:
        problems.append(str(exc))
    if problems or mix is None or target is None:
        raise LoadTestError("; ".join(problems))
    return Checked(target[0], target[1], kept[0], kept[1], mix)


def complete(config: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The settings with what the judge needs of the plan.

    :arg config: with C(fleet_plan), of which C(model), C(fleet) and C(speed) count, and C(first_token_ms).
    """
    return {**config, "plan": plan_of(config["fleet_plan"], float(config["first_token_ms"]))}


def read_config(path: str) -> dict[str, t.Any]:
    """The settings of a file; mix, keys and certificates lie beside it.

    :raises LoadTestError: the file or the mix cannot be read.
    """
    config = read_json(path)
    folder = os.path.dirname(os.path.abspath(path))
    try:
        with open(os.path.join(folder, "mix.json"), encoding="utf-8") as file:
            config["mix"] = file.read()
    except OSError as exc:
        raise LoadTestError(f"load_test_mix: {exc}") from exc
    if "url" not in config:
        raise LoadTestError(f"{path}: expected the settings of a load test, found none")
    config["keys"] = os.path.join(folder, "keys.json")
    config["ca_file"] = os.path.join(folder, "ca.crt") if config["own_ca"] else ""
    return complete(config)


def _is_number(value: t.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def describe(config: t.Mapping[str, t.Any], checked: Checked) -> list[str]:
    """What would be sent, line by line."""
    judged = [
        step.users
        for step in checked.steps
        if marks_for(step.users, config["plan"], config["pass"], config["plan_slack"])
    ]
    ladder = ", ".join(f"{step.users} x {step.seconds} s" for step in checked.steps)
    lines = [
        f"target: {checked.target.url}, which is {checked.target_host} ({checked.target.address}), model {config['model']}",
        f"ladder: {ladder}; {checked.seconds:g} s in all",
        "judged: "
        + (f"steps of up to {max(judged)} users" if judged else "no step")
        + f", marks from {'the plan and ' if config['plan'] else ''}load_test_pass",
    ]
    lines += [f"left out: {text}" for text in checked.left_out]
    if config["open_seconds"]:
        rate = (
            f"{config['open_rate']:g}" if config["open_rate"] else f"{config['open_share']:.0%} of the fastest step's"
        )
        lines.append(
            f"then {config['open_seconds']} s of an open loop at {rate} requests per second, at most {config['open_max_in_flight']} in flight "
            f"({config['open_tool']})"
        )
    lines += [f"request {line}" for line in checked.mix.describe()]
    lines.append(
        f"ends by itself when more than {config['abort_error_ratio']:.1%} of at least {config['abort_min_requests']} answers within "
        f"{config['abort_window']} s fail, and in any case after {config['max_minutes']:g} minutes"
    )
    return lines


# -- files -------------------------------------------------------------------------------------------------------------------------------------


def write_text(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file at once or not at all."""
    handle, name = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_json(path: str) -> dict[str, t.Any]:
    """The JSON object of a file, empty when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def runs_of(directory: str) -> list[str]:
    """Names of the runs that are kept, the oldest first."""
    try:
        names = os.listdir(os.path.join(directory, "runs"))
    except OSError:
        return []
    return sorted(name for name in names if os.path.isfile(os.path.join(directory, "runs", name, "verdict.json")))


def last_of_shape(directory: str, shape: str) -> dict[str, t.Any] | None:
    """The verdict of the last run of this shape that came to its end."""
    for name in reversed(runs_of(directory)):
        found = read_json(os.path.join(directory, "runs", name, "verdict.json"))
        if found.get("shape") == shape and found.get("state") in ("passed", "failed"):
            return found
    return None


def prune(directory: str, keep: int) -> None:
    """Keep the newest runs; what a killed one left goes as well."""
    folder = os.path.join(directory, "runs")
    kept = set(runs_of(directory)[-keep:])
    for name in os.listdir(folder):
        if name not in kept:
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
