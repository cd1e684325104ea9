# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The first entrance: a fresh clone, and nothing installed but Ansible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Call, Result

PLAYS = ("Prepare the GPU hosts", "Judge what was seen")


def test_from_the_clone(clone: Path, call: Call) -> None:
    """In the clone the playbook and the example inventory are found by their short names."""
    listed = call("ansible-playbook", "-i", "inventories/example", "site.yml", "--list-tasks", cwd=clone)
    for play in PLAYS:
        assert play in listed.text


def test_from_elsewhere(clone: Path, call: Call, tmp_path: Path) -> None:
    """From another folder, with no ansible.cfg to find: the clone brings its own collection."""
    listed = call(
        "ansible-playbook", "-i", clone / "inventories" / "example", clone / "site.yml", "--list-tasks", cwd=tmp_path
    )
    for play in PLAYS:
        assert play in listed.text


@pytest.mark.parametrize("path", ["site.yml", "playbooks/site.yml", "playbooks/verify.yml"])
def test_syntax_with_its_own_settings(clone: Path, call: Call, path: str) -> None:
    """With the clone's ansible.cfg every playbook can be called by itself."""
    call("ansible-playbook", path, "--syntax-check", cwd=clone, env={"ANSIBLE_CONFIG": str(clone / "ansible.cfg")})


def test_example_inventory(clone: Path, call: Call) -> None:
    """The inventory that a user copies has the groups that the playbooks read."""
    shown = call("ansible-inventory", "-i", "inventories/example", "--graph", cwd=clone)
    for group in ("@gpu_hosts", "@gateways", "@monitors"):
        assert group in shown.text


@pytest.mark.lab
def test_run_from_elsewhere(clone: Path, call: Call, settled: Callable[[Result], None]) -> None:
    """The whole site from the root folder: the fleet is as it should be, so nothing changes."""
    result = call("ansible-playbook", "-i", clone / "inventories" / "lab", clone / "site.yml", cwd=Path("/"))
    settled(result)
