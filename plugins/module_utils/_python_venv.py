# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Build a virtual environment beside its place and move it there when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import typing as t
from dataclasses import dataclass

MARKER = ".complete.json"
_SHOWN_LINES = 8


class VenvError(Exception):
    """The environment cannot be built, in words for the operator."""


class Run(t.Protocol):
    """Runs one command: argv and environment in, exit code, output and errors out."""

    def __call__(self, argv: list[str], environ: dict[str, str]) -> tuple[int, str, str]:
        """Run the command."""


@dataclass(frozen=True)
class Wanted:
    """A virtual environment with exactly these requirements."""

    path: str
    python: str
    requirements: str
    index_url: str = ""

    @property
    def digest(self) -> str:
        """One value that changes when the content would."""
        return hashlib.sha256(self.requirements.encode()).hexdigest()

    @property
    def pins(self) -> list[str]:
        """Name the requirements without their hashes."""
        lines = (line.strip().rstrip("\\").strip() for line in self.requirements.splitlines())
        return [line.split(" --hash=")[0] for line in lines if line and not line.startswith(("#", "-"))]


def interpreter(python: str) -> str:
    """The real file behind a Python command; it changes with an upgrade of the distribution."""
    found = python if os.path.isabs(python) else shutil.which(python)
    if not found or not os.path.exists(found):
        raise VenvError(f"{python} is not on this host")
    return os.path.realpath(found)


def read_marker(path: str) -> dict[str, t.Any]:
    """What the environment was built from; empty when it is not there or not complete."""
    try:
        with open(os.path.join(path, MARKER), encoding="utf-8") as stream:
            marker = json.load(stream)
    except (OSError, ValueError):
        return {}
    if not isinstance(marker, dict) or not os.path.exists(os.path.join(path, "bin", "python")):
        return {}
    return marker


def is_current(wanted: Wanted) -> bool:
    """Is the environment complete, from these requirements and for this interpreter?"""
    marker = read_marker(wanted.path)
    return marker.get("digest") == wanted.digest and marker.get("python") == interpreter(wanted.python)


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_SHOWN_LINES:])


def _move_scripts(building: str, path: str) -> None:
    """Scripts name the interpreter by its full path: make it the final one."""
    folder = os.path.join(building, "bin")
    for name in os.listdir(folder):
        script = os.path.join(folder, name)
        if os.path.islink(script) or not os.path.isfile(script):
            continue
        with open(script, "rb") as stream:
            content = stream.read()
        moved = content.replace(building.encode(), path.encode())
        if moved != content:
            with open(script, "wb") as stream:
                stream.write(moved)


def build(wanted: Wanted, run: Run) -> None:
    """Build the environment; what is in place stays until the new one is complete."""
    parent, name = os.path.split(wanted.path)
    building = os.path.join(parent, f".{name}.building")
    replaced = os.path.join(parent, f".{name}.replaced")
    os.umask(0o022)
    os.makedirs(parent, exist_ok=True)
    for leftover in (building, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        code, out, err = run([wanted.python, "-m", "venv", building], {"LC_ALL": "C.UTF-8"})
        if code != 0:
            raise VenvError(f"cannot create {wanted.path} with {wanted.python}: {_tail(out + err)}")
        scratch = os.path.join(building, "tmp")
        os.mkdir(scratch)
        listing = os.path.join(building, "requirements.txt")
        with open(listing, "w", encoding="utf-8") as stream:
            stream.write(wanted.requirements)
        argv = [os.path.join(building, "bin", "python"), "-m", "pip", "install", "--quiet", "--no-input"]
        argv += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--retries=5"]
        argv += ["--disable-pip-version-check", f"--requirement={listing}"]
        if wanted.index_url:
            argv.append(f"--index-url={wanted.index_url}")
        code, out, err = run(argv, {"LC_ALL": "C.UTF-8", "TMPDIR": scratch})
        if code != 0 and "No space left on device" in err:
            raise VenvError(f"the file system of {parent} ran full; nothing was changed")
        if code != 0:
            raise VenvError(f"cannot install {', '.join(wanted.pins)}: {_tail(err or out)}")
        shutil.rmtree(scratch)
        _move_scripts(building, wanted.path)
        with open(os.path.join(building, MARKER), "w", encoding="utf-8") as stream:
            json.dump({"digest": wanted.digest, "python": interpreter(wanted.python), "pins": wanted.pins}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if os.path.lexists(wanted.path):
            os.rename(wanted.path, replaced)
        os.rename(building, wanted.path)
    except OSError as exc:
        raise VenvError(f"cannot build {wanted.path}: {exc}") from exc
    finally:
        for leftover in (building, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
