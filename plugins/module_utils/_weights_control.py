# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Start, join and stop the jobs that work on weights, as units of systemd."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_job as jobs
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights import WeightsError


class Run(t.Protocol):
    """Runs one command: argv and what it reads in, exit code, output and errors out."""

    def __call__(self, argv: list[str], data: str = "") -> tuple[int, str, str]:
        """Run the command."""


def unit_of(kind: str) -> str:
    """The unit that runs jobs of a kind."""
    return f"gpufleet-weights@{kind}.service"


def is_running(run: Run, kind: str) -> bool:
    """Whether a job of that kind runs."""
    _code, out, _err = run(["systemctl", "is-active", unit_of(kind)])
    return out.strip() in ("active", "activating", "deactivating", "reloading")


def job_path(state_dir: str, kind: str) -> str:
    """The file that says what a job is to do."""
    return os.path.join(state_dir, "jobs", f"{kind}.json")


def running_job(state_dir: str, kind: str) -> str:
    """The name of the job in that file."""
    try:
        with open(job_path(state_dir, kind), encoding="utf-8") as stream:
            return str(json.load(stream).get("job") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def name_of(kind: str, config: t.Mapping[str, t.Any]) -> str:
    """The same name for the same work, so that a second run joins the first."""
    return hashlib.sha256(json.dumps([kind, dict(config)], sort_keys=True).encode()).hexdigest()[:16]


def _write(path: str, data: t.Mapping[str, t.Any]) -> None:
    """A file of root alone."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fresh = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as stream:
        json.dump(data, stream, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)


def start(
    run: Run, kind: str, config: t.Mapping[str, t.Any], secrets: t.Mapping[str, str], run_dir: str, write: bool
) -> tuple[str, str]:
    """Start a job, or join it where the same one runs. Returns what was done and its name."""
    state_dir = str(config["state_dir"])
    name = name_of(kind, config)
    if is_running(run, kind):
        if running_job(state_dir, kind) == name and jobs.read_status(state_dir, kind).get("state") != "failed":
            return "join", name
        if write:
            _must(run, ["systemctl", "stop", unit_of(kind)])
    if not write:
        return "start", name
    _write(job_path(state_dir, kind), {**config, "kind": kind, "job": name})
    keys = {one: value for one, value in secrets.items() if value}
    path = os.path.join(run_dir, f"{kind}.json")
    if keys:
        _write(path, keys)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(jobs.status_path(state_dir, kind))
    # A run that was killed may have written the unit and not told systemd.
    _must(run, ["systemctl", "daemon-reload"])
    run(["systemctl", "reset-failed", unit_of(kind)])
    try:
        _must(run, ["systemctl", "start", unit_of(kind)])
    except WeightsError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        raise
    return "start", name


def stop(run: Run, kind: str, write: bool) -> bool:
    """Stop the job of a kind; tells whether one ran."""
    if not is_running(run, kind):
        return False
    if write:
        _must(run, ["systemctl", "stop", unit_of(kind)])
    return True


def _must(run: Run, argv: list[str]) -> None:
    code, out, err = run(argv)
    if code:
        raise WeightsError(f"'{' '.join(argv)}' failed: {err.strip() or out.strip()}")
