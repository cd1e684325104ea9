# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The Pythons of this machine, and one virtual environment for each supported ansible-core."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steps import Run

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
REQUIREMENTS = ROOT / "dev" / "requirements-test.txt"

# Settings of a person's own Ansible that would change what is tested.
FOREIGN = re.compile(r"^(ANSIBLE_|MOLECULE_|VIRTUAL_ENV$|PYTHONPATH$|PYTHONHOME$|PYENV_VERSION$)")


@dataclass(frozen=True)
class Core:
    """A supported ansible-core and the Pythons its controller runs on, the preferred one first."""

    name: str
    version: str
    pythons: tuple[str, ...]


CORES = (
    Core("2.19", "2.19.14", ("3.11", "3.12", "3.13")),
    Core("2.21", "2.21.5", ("3.12", "3.13", "3.14")),
)


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one ansible-core."""

    core: Core
    python: Path
    python_version: str
    path: Path
    full: bool

    def bin(self, name: str) -> Path:
        """The path of a program in it."""
        return self.path / "bin" / name

    def env(self, **extra: str) -> dict[str, str]:
        """Process variables: this environment first in PATH, nobody's own Ansible settings."""
        result = {key: value for key, value in os.environ.items() if not FOREIGN.match(key)}
        result["PATH"] = f"{self.path / 'bin'}:{result.get('PATH', '/usr/bin:/bin')}"
        result["VIRTUAL_ENV"] = str(self.path)
        result["LC_ALL"] = "C.UTF-8"
        result["ANSIBLE_NOCOLOR"] = "1"
        result["NO_COLOR"] = "1"
        result["PYTHONDONTWRITEBYTECODE"] = "1"
        result.update(extra)
        return result


def find_pythons() -> dict[str, Path]:
    """Every CPython 3.x of the machine that can make a virtual environment: the distribution's own come first."""
    folders = ["/usr/bin", "/usr/local/bin", *os.environ.get("PATH", "").split(os.pathsep)]
    roots = [Path(os.environ.get("PYENV_ROOT", "")), Path.home() / ".pyenv", Path("/opt/pyenv")]
    for root in roots:
        if (root / "versions").is_dir():
            folders += sorted((str(path / "bin") for path in (root / "versions").iterdir()), reverse=True)
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder or "/shims" in folder or not Path(folder).is_dir():
            continue
        for path in sorted(Path(folder).glob("python3.*")):
            version = path.name[len("python") :]
            if re.fullmatch(r"3\.\d+", version) and version not in found and works(path, version):
                found[version] = path
    return found


def works(python: Path, version: str) -> bool:
    """Can it make a virtual environment with pip in it?"""
    code = "import ensurepip, ssl, sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == version


def choose() -> tuple[list[Environment], list[tuple[Core, str]]]:
    """An environment for each core that this machine has a Python for; the first has all the tools, the others the few they need."""
    pythons = find_pythons()
    chosen: list[Environment] = []
    missing: list[tuple[Core, str]] = []
    for core in CORES:
        version = next((item for item in core.pythons if item in pythons), "")
        if not version:
            missing.append((core, f"no Python {' or '.join(core.pythons)} on this machine"))
            continue
        path = CACHE / f"test-core{core.name}-py{version}"
        chosen.append(Environment(core, pythons[version], version, path, full=not chosen))
    return chosen, missing


def prepare(environment: Environment, run: Run) -> None:
    """Make the environment, or leave it as it is when it was made from the same list."""
    wanted = "\n".join(
        [environment.core.version, str(environment.python), str(environment.full), REQUIREMENTS.read_text("utf-8")]
    )
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    mark = environment.path / ".made-from"
    if mark.is_file() and mark.read_text("utf-8") == digest and environment.bin("ansible-playbook").exists():
        run.notes.append("kept")
        return
    shutil.rmtree(environment.path, ignore_errors=True)
    run.cmd([environment.python, "-m", "venv", environment.path])
    packages = ["-r", str(REQUIREMENTS)] if environment.full else ["-c", str(REQUIREMENTS), "pytest", "PyYAML"]
    pip: list[str | Path] = [
        environment.bin("python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--no-input",
    ]
    run.retry([*pip, f"ansible-core=={environment.core.version}", *packages], env=environment.env())
    mark.write_text(digest, encoding="utf-8")
