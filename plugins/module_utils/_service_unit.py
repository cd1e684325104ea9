# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Keep a systemd unit running with the newest version of the files it reads."""

from __future__ import annotations

import os
import time
import typing as t
from dataclasses import dataclass, field

_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "NeedDaemonReload",
    "ExecMainStartTimestampMonotonic",
    "Result",
    "InvocationID",
)
_JOURNAL_LINES = 15


class UnitError(Exception):
    """The unit is not as it should be, in words for the operator."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


@dataclass(frozen=True)
class Unit:
    """What systemd knows about a unit."""

    loaded: bool
    active: bool
    starting: bool
    enabled: bool
    stale: bool
    started_at: float
    result: str = ""
    invocation: str = ""
    masked: bool = False


@dataclass(frozen=True)
class Steps:
    """What has to be done to a unit, and why."""

    reload: bool = False
    enable: bool | None = None
    action: str = ""
    reasons: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Is there anything to do? A reload of systemd alone changes no service."""
        return self.enable is not None or bool(self.action)


def parse_show(text: str, wall: float, monotonic: float) -> Unit:
    """Read the output of systemctl show; clocks turn its monotonic time into wall time."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    stamp = int(values.get("ExecMainStartTimestampMonotonic") or 0)
    return Unit(
        loaded=values.get("LoadState") == "loaded",
        active=values.get("ActiveState") == "active",
        starting=values.get("ActiveState") in ("activating", "reloading"),
        enabled=values.get("UnitFileState") == "enabled",
        stale=values.get("NeedDaemonReload") == "yes",
        started_at=wall - (monotonic - stamp / 1e6) if stamp else 0.0,
        result=values.get("Result", ""),
        invocation=values.get("InvocationID", ""),
        masked=values.get("LoadState") == "masked",
    )


def newer_files(files: t.Sequence[str], started_at: float) -> list[str]:
    """Name the files that were written after the service started."""
    return [path for path in files if os.path.exists(path) and os.stat(path).st_mtime > started_at]


def decide(unit: Unit, state: str, enabled: bool, newer: t.Sequence[str]) -> Steps:
    """Compare what is with what shall be."""
    enable = enabled if unit.enabled != enabled else None
    if state == "stopped":
        busy = unit.active or unit.starting
        return Steps(unit.stale, enable, "stop" if busy else "", ["it is running"] if busy else [])
    reasons = [f"{path} is newer than the running process" for path in newer]
    if unit.active:
        return Steps(unit.stale, enable, "restart" if reasons else "", reasons)
    if unit.starting and not reasons and not unit.stale:
        return Steps(unit.stale, enable, "start", ["its start is not finished"])
    # What systemd starts by itself after a failure, now or in a moment, is what it read from the older file: a start would wait for that one, and fail with it.
    return Steps(unit.stale, enable, "restart" if unit.starting or unit.stale else "start", ["it is not running"])


def show(run: Run, name: str) -> Unit:
    """Ask systemd about the unit."""
    argv = ["systemctl", "show", name, f"--property={','.join(_PROPERTIES)}"]
    code, out, err = run(argv)
    if code != 0:
        raise UnitError(f"cannot ask systemd about {name}: {err.strip() or out.strip()}")
    return parse_show(out, time.time(), time.clock_gettime(time.CLOCK_MONOTONIC))


def journal(run: Run, name: str) -> str:
    """The last words of the unit."""
    argv = ["journalctl", f"--unit={name}", "--no-pager", "--output=cat", f"--lines={_JOURNAL_LINES}"]
    code, out, _err = run(argv)
    return out.strip() if code == 0 else ""


def _must(run: Run, argv: list[str], name: str) -> None:
    code, out, err = run(argv)
    if code != 0:
        said = journal(run, name)
        reason = f"its last words: {said}" if said else err.strip() or out.strip()
        raise UnitError(f"'{' '.join(argv)}' failed; {reason}")


def apply(run: Run, name: str, steps: Steps) -> None:
    """Do what was decided."""
    if steps.reload or steps.changed:
        _must(run, ["systemctl", "daemon-reload"], name)
    if steps.enable is not None:
        _must(run, ["systemctl", "enable" if steps.enable else "disable", "--quiet", name], name)
    if steps.action in ("start", "restart"):
        run(["systemctl", "reset-failed", name])
    if steps.action:
        _must(run, ["systemctl", steps.action, name], name)
