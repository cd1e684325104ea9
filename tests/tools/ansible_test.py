# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""``ansible-test`` on the installed artifact, on machines that reach a package index and little else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from environments import CACHE, Environment, find_pythons
from steps import Failure, Run, Stopped

HOME = CACHE / "ansible-test" / "home"

# How pip says that it could not reach its index, and ansible-test that it gave up.
STUMBLED = re.compile(r"after connection broken by .*A command failed with status", re.DOTALL)

# ansible-test makes its own virtual environments without pip and fetches a bootstrap script for it. Python has one on
# board; this stands where ansible-test keeps the fetched script, and takes the same arguments.
STAND_IN = '''\
"""Install pip from the copy that Python carries, then the version that was asked for."""

import subprocess
import sys

NOT_PIP = ("--no-setuptools", "--no-wheel")

# In a process of its own: it hides pip's settings from the process that it runs in.
subprocess.check_call([sys.executable, "-m", "ensurepip"])
wanted = [word for word in sys.argv[1:] if word not in NOT_PIP]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install"] + wanted))
'''


def pip_version(environment: Environment) -> str:
    """The pip that this core's ansible-test wants."""
    for path in environment.path.glob("lib/python3.*/site-packages/ansible_test/_internal/python_requirements.py"):
        found = re.search(r"\bpip='([0-9.]+)'", path.read_text("utf-8"))
        if found:
            return found.group(1)
    raise Failure("cannot tell which pip this ansible-test wants")


def write_pip_settings(environment: Environment) -> None:
    """Hand the machine's pip settings (index, certificates) on: ansible-test drops the variables that carry them."""
    done = subprocess.run(
        [environment.bin("python"), "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        env=environment.env(),
        timeout=60,
        check=True,
    )
    # Lines such as global.index-url='...' and :env:.cert='...'; what a variable says counts more.
    order = sorted(done.stdout.splitlines(), key=lambda line: line.startswith(":env:"))
    found = re.findall(r"^(?:global|install|user|:env:)\.([a-z-]+)='(.*)'$", "\n".join(order), re.MULTILINE)
    settings = {
        key: value.replace("\\n", "\n    ") for key, value in found if key not in ("config-file", "require-virtualenv")
    }
    target = HOME / ".config" / "pip" / "pip.conf"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()), encoding="utf-8")


def test_environment(environment: Environment) -> dict[str, str]:
    """Process variables for ansible-test: a home of its own, and every Python of the machine within reach."""
    stand_in = HOME / ".ansible" / "test" / "cache" / f"get_pip_{pip_version(environment).replace('.', '_')}.py"
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    stand_in.write_text(STAND_IN, encoding="utf-8")
    write_pip_settings(environment)
    links = CACHE / "ansible-test" / "pythons"
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    for version, path in find_pythons().items():
        (links / f"python{version}").symlink_to(path)
    env = environment.env(HOME=str(HOME))
    env["PATH"] = f"{env['PATH']}{os.pathsep}{links}"
    return env


def call(environment: Environment, artifact: Path, run: Run, *words: str) -> None:
    """Run ansible-test in a fresh copy of the installed artifact; again when it was a package index that stumbled.

    The copy is outside the checkout: below a git repository ansible-test would only see what that repository tracks.
    """
    log = Path(run.log.name)
    argv: list[str | Path] = [environment.bin("ansible-test"), *words, "--color", "no"]
    for pause in (20.0, 60.0, 0.0):
        seen = log.stat().st_size
        with tempfile.TemporaryDirectory(prefix="gpufleet-ansible-test-") as folder:
            shutil.copytree(artifact, Path(folder) / "ansible_collections", symlinks=True)
            where = Path(folder) / "ansible_collections" / "gpufleet" / "deepseek"
            code = run.cmd(argv, env=test_environment(environment), cwd=where, check=False)
        said = log.read_bytes()[seen:].decode("utf-8", "replace")
        if not code:
            break
        if not pause or not STUMBLED.search(said):
            raise Failure(f"exit {code}: ansible-test {' '.join(words)}")
        run.say(f"the package index stumbled; again in {pause:.0f} s")
        if run.stop.wait(pause):
            raise Stopped
    if "All targets skipped" in said:
        raise Failure("ansible-test found nothing to test")
