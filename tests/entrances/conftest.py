# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the three entrances share: where things are, and how somebody else would call Ansible."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("GPUFLEET_ROOT") or Path(__file__).resolve().parents[2])
RECAP = re.compile(r"^(\S+)\s*: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker: pytest is strict about markers here."""
    config.addinivalue_line("markers", "lab: needs the hosts of the lab")


@dataclass(frozen=True)
class Result:
    """What one command did."""

    code: int
    text: str

    def recap(self) -> dict[str, dict[str, int]]:
        """The last play recap, host by host."""
        at = self.text.rfind("PLAY RECAP")
        assert at >= 0, f"no recap in:\n{self.text[-3000:]}"
        found = RECAP.findall(self.text[at:])
        keys = ("ok", "changed", "unreachable", "failed")
        return {host: dict(zip(keys, map(int, numbers), strict=True)) for host, *numbers in found}


Call = Callable[..., Result]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout under test."""
    return ROOT


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with ansible-playbook and its companions."""
    found = os.environ.get("GPUFLEET_BIN") or os.path.dirname(shutil.which("ansible-playbook") or "")
    assert found, "no ansible-playbook: run these by dev/test entrances"
    return Path(found)


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> dict[str, str]:
    """The variables of somebody who has Ansible and nothing of ours: no settings, no ansible.cfg anywhere."""
    config = tmp_path_factory.mktemp("stranger") / "empty.cfg"
    config.write_text("[defaults]\n", encoding="utf-8")
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "GPUFLEET_", "PYTHONPATH"))
    }
    return {
        **kept,
        "PATH": f"{tools}:{kept.get('PATH', '/usr/bin:/bin')}",
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture(scope="session")
def call(stranger: dict[str, str]) -> Call:
    """Run a command somewhere, and expect it to succeed."""

    def run(
        *argv: str | Path, cwd: Path, env: Mapping[str, str] | None = None, code: int = 0, timeout: int = 900
    ) -> Result:
        words = [str(word) for word in argv]
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**stranger, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        print(f"$ {' '.join(words)}  (in {cwd})\n{done.stdout}")
        assert done.returncode == code, f"exit {done.returncode}, expected {code}:\n{done.stdout[-4000:]}"
        return Result(done.returncode, done.stdout)

    return run


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory, call: Call) -> Path:
    """A fresh clone; by dev/test of a snapshot of the tree, by hand of the last commit."""
    source = Path(os.environ.get("GPUFLEET_SNAPSHOT") or ROOT)
    target = tmp_path_factory.mktemp("clone") / "deepseek"
    call("git", "clone", "--quiet", source, target, cwd=target.parent)
    return target


@pytest.fixture(scope="session")
def inventory() -> Path:
    """The inventory of the lab."""
    return Path(os.environ.get("GPUFLEET_LAB_INVENTORY") or ROOT / "inventories" / "lab")


@pytest.fixture(scope="session")
def lab_settings(root: Path) -> dict[str, str]:
    """The inventory of the lab is a plugin of the collection: what reads it alone needs the checkout's settings."""
    return {"ANSIBLE_CONFIG": str(root / "ansible.cfg")}


@pytest.fixture(scope="session")
def fleet_hosts(inventory: Path, call: Call, lab_settings: dict[str, str]) -> set[str]:
    """The hosts that site.yml works on."""
    words = ("ansible", "-i", inventory, "gpu_hosts:gateways:monitors", "--list-hosts")
    listed = call(*words, cwd=Path("/"), env=lab_settings)
    found = {line.strip() for line in listed.text.splitlines() if line.startswith("    ")}
    assert len(found) >= 4, f"expected a gateway, two GPU hosts and a monitor, found {found}"
    return found


@pytest.fixture(scope="session")
def settled(fleet_hosts: set[str]) -> Callable[[Result], None]:
    """Expect that a run reached every host, failed nowhere and changed nothing."""

    def check(result: Result) -> None:
        recap = result.recap()
        assert fleet_hosts <= set(recap)
        for host, count in recap.items():
            assert (count["changed"], count["unreachable"], count["failed"]) == (0, 0, 0), f"{host}: {count}"

    return check
