# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Load the NVIDIA kernel module, and turn what the kernel says into one sentence."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Runner

LOADED = "/proc/driver/nvidia/version"
# A shell without login has a short PATH.
FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_LINES = 40
# Words of the kernel's log and of modprobe, and what they mean.
_REASONS = (
    (r"No NVIDIA GPU found", "No NVIDIA GPU found"),
    (
        r"Key was rejected|Required key not available|Loading of unsigned module is rejected",
        "the kernel trusts no key that signed it (Secure Boot)",
    ),
    (r"already been? (?:bound|probed)|nouveau", "another driver holds the GPU (nouveau)"),
    (r"API mismatch|has the version", "kernel module and user space have different versions"),
    (r"RmInitAdapter failed|fallen off the bus", "the GPU does not answer"),
    (r"No such device", "No NVIDIA GPU found"),
    (r"version magic|disagrees about version of symbol|Unknown symbol", "it was built for another kernel"),
)


@dataclass(frozen=True)
class Answer:
    """How loading went.

    :ivar reason: why it failed; empty when it did not.
    :ivar no_gpu: is the reason that there is no GPU?
    """

    reason: str = ""
    no_gpu: bool = False


def find(tool: str) -> str | None:
    """The path of a tool, or None."""
    return shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", ""), *FOLDERS)))


def reason(modprobe: str, log: str) -> str:
    """What the words of modprobe and of the kernel's log mean.

    :arg modprobe: what modprobe said.
    :arg log: what the kernel said about it.
    """
    for pattern, sentence in _REASONS:
        if re.search(pattern, log) or re.search(pattern, modprobe):
            return sentence
    lines = [line.strip() for line in [*modprobe.splitlines(), *reversed(log.splitlines())] if line.strip()]
    return lines[0] if lines else "modprobe gave no reason"


def load(run: Runner, name: str, timeout: float) -> Answer:
    """Load it; what the kernel says meanwhile is read from its log."""
    before = run(["dmesg"], timeout)
    said = run(["modprobe", name], timeout)
    if said.answered:
        return Answer()
    after = run(["dmesg"], timeout)
    seen = len(before.out.splitlines())
    fresh = after.out.splitlines()
    # A ring that has turned over is read from its end.
    lines = fresh[seen:] if len(fresh) > seen else fresh[-_LINES:]
    log = "\n".join(line for line in lines if re.search(r"NVRM|nvidia|nouveau|[Mm]odule|PKCS", line))
    found = reason(said.problem or said.err or said.out, log)
    return Answer(found, found == "No NVIDIA GPU found")
