# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Which run of Ansible this is, and whether another one of the same controller still lives. PRIVATE to the collection."""

from __future__ import annotations

import getpass
import os
import re
import socket
import typing as t
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+-]+")
_WORDS = 5


@dataclass(frozen=True)
class ControllerRun:
    """A process of Ansible on a controller, as far as it can be told from another one.

    :ivar boot, space: the boot and the process namespace in which the number means something; a dash where the system has none.
    :ivar started: in ticks after that boot, for numbers are given again.
    """

    controller: str
    boot: str
    space: str
    pid: int
    started: str

    def text(self) -> str:
        """One line that :func:`parse` reads."""
        return f"{self.controller} {self.boot} {self.space} {self.pid} {self.started}"


def parse(text: str) -> ControllerRun | None:
    """A run from its line; None for a line of another kind, such as a job of AWX."""
    words = text.split(" ")
    if len(words) != _WORDS or not words[3].isdigit():
        return None
    return ControllerRun(words[0], words[1], words[2], int(words[3]), words[4])


def _name(text: str) -> str:
    return _NOT_IN_NAMES.sub("-", text).strip("-._+") or "unknown"


def _started(pid: int, proc: Path) -> str:
    """When a process started; empty when there is none."""
    try:
        # The name of the program may have blanks and brackets in it; after its last bracket come plain words.
        words = (proc / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        # A process that has ended and that nobody has asked for does no work any more.
        return "" if words[0] in {"Z", "X"} else words[19]
    except (OSError, IndexError):
        return ""


def current(pid: int, proc: Path = _PROC) -> ControllerRun:
    """The run that the process with this number is."""
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text("utf-8").strip()
        space = os.readlink(proc / "self/ns/pid")
    except OSError:
        return ControllerRun(_name(socket.gethostname()), "-", "-", pid, "-")
    # A run that is killed leaves workers behind that finish what they are at.
    return ControllerRun(_name(socket.gethostname()), boot, space, pid, _started(pid, proc) or "gone")


def ended(other: ControllerRun, here: ControllerRun, proc: Path = _PROC) -> bool:
    """Whether another run has certainly ended. What cannot be seen from here has not."""
    if other.controller != here.controller or "-" in (other.boot, here.boot, other.started):
        return False
    if other.boot != here.boot:
        return True
    return other.space == here.space and _started(other.pid, proc) != other.started


def identity(pid: int, task_vars: t.Mapping[str, t.Any], proc: Path = _PROC) -> tuple[str, str]:
    """Owner and run: who works here, and in which process; in AWX its user and its job."""
    for product in ("awx", "tower"):
        job = str(task_vars.get(f"{product}_job_id") or "")
        if job:
            user = _name(str(task_vars.get(f"{product}_user_name") or "nobody"))
            return f"{user}@awx", f"AWX job {_name(job)} on {_name(socket.gethostname())}"
    here = current(pid, proc)
    return f"{_name(_account())}@{here.controller}", here.text()


def _account() -> str:
    """Who runs this, with the name from before sudo."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):
        return f"uid{os.getuid()}"
