# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""The burn-in as a job of the host: whether one runs, and what is to be done about it."""

from __future__ import annotations

import fcntl
import json
import os
import time
import typing as t
from dataclasses import dataclass, field

UNIT = "gpufleet-burn-in.service"
_START_SECONDS = 20.0
_NAME_SECONDS = 5.0


class JobError(Exception):
    """The job cannot be started or stopped, in words for the operator."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


def read_json(path: str) -> dict[str, t.Any] | None:
    """The JSON object of a file, or None when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def is_running(directory: str) -> bool:
    """Whether a runner is alive: it holds a lock on a file for as long as it lives, so no crash and no reboot can leave a lie behind."""
    try:
        descriptor = os.open(f"{directory}/lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@dataclass(frozen=True)
class Job:
    """The last job of the host.

    :ivar state: none, running, done, cancelled, failed, or interrupted (its runner died without a last word).
    """

    state: str
    job: str
    status: dict[str, t.Any] = field(default_factory=dict)


def job_of(directory: str) -> Job:
    """What the status file and the lock say together."""
    running = is_running(directory)
    status = read_json(f"{directory}/status.json") or {}
    state = str(status.get("state") or "none")
    if running:
        # Between the lock and the first status of a new job the old status is still there.
        fresh = state == "running"
        return Job("running", str(status.get("job") or "") if fresh else "", status if fresh else {})
    return Job("interrupted" if state == "running" else state, str(status.get("job") or ""), status)


def name_of_running(directory: str) -> str:
    """The name of the job that runs; one that began this very moment has none yet."""
    until = time.monotonic() + _NAME_SECONDS
    while True:
        job = job_of(directory)
        if job.job or job.state != "running" or time.monotonic() >= until:
            return job.job
        time.sleep(0.1)


def busy_units(run: Run, units: t.Sequence[str]) -> list[str]:
    """Those of the units that are active."""
    if not units:
        return []
    _code, out, _err = run(["systemctl", "is-active", *units])
    return [unit for unit, state in zip(units, out.split()) if state in ("active", "activating", "reloading")]


def room_problem(directory: str, wanted_bytes: int) -> str:
    """A sentence when the disk test has no room, else nothing."""
    place = directory
    while not os.path.isdir(place):
        place = os.path.dirname(place.rstrip("/")) or "/"
    values = os.statvfs(place)
    free = values.f_bavail * values.f_frsize
    if free >= wanted_bytes:
        return ""
    return f"burn_in_fio_size: expected at least {wanted_bytes / 1e9:.1f} GB free below {directory} (burn_in_fio_directory), found {free / 1e9:.1f} GB"


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M or 10G, powers of 1024 as fio and NCCL read them; 0 for what is none."""
    units = {"k": 1, "m": 2, "g": 3, "t": 4}
    word = text.strip().lower()
    power = units.get(word[-1:], 0)
    digits = word[:-1] if power else word
    return int(digits) * 1024**power if digits.isdigit() else 0


def start(run: Run, directory: str) -> str:
    """Start the unit and wait until its job has a name."""
    before = job_of(directory).job
    # A run that was killed after it wrote the unit has told nobody.
    run(["systemctl", "daemon-reload"])
    run(["systemctl", "reset-failed", UNIT])
    code, out, err = run(["systemctl", "start", UNIT])
    if code != 0:
        raise JobError(f"{UNIT} does not start: {err.strip() or out.strip()}")
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        now = job_of(directory)
        if now.job and now.job != before:
            return now.job
        time.sleep(0.2)
    _code, said, _err = run(["journalctl", f"--unit={UNIT}", "--no-pager", "--output=cat", "--lines=10"])
    raise JobError(
        f"{UNIT} was started and no job came of it within {_START_SECONDS:g} s; its last words: {said.strip() or 'none'}"
    )


def stop(run: Run, directory: str) -> None:
    """Stop the running job and everything that it started."""
    code, out, err = run(["systemctl", "stop", UNIT])
    if code != 0 or is_running(directory):
        raise JobError(f"{UNIT} does not stop: {err.strip() or out.strip() or 'it still runs'}")
