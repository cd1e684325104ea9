# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The second entrance: the built collection, installed into an empty folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Call, Result


@pytest.fixture(scope="module")
def artifact(root: Path, call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that dev/test built; by hand it is built here."""
    given = os.environ.get("GPUFLEET_ARTIFACT")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("artifact")
    call("ansible-galaxy", "collection", "build", root, "--output-path", folder, cwd=folder)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(artifact: Path, call: Call, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install it where nothing else is, without a network; the variables that find it there."""
    folder = tmp_path_factory.mktemp("collections")
    env = {"ANSIBLE_COLLECTIONS_PATH": str(folder)}
    call(
        "ansible-galaxy",
        "collection",
        "install",
        artifact,
        "--collections-path",
        folder,
        "--offline",
        cwd=folder,
        env=env,
    )
    return env


def test_only_this_collection(installed: dict[str, str], call: Call, tmp_path: Path) -> None:
    """It needs no other collection."""
    listed = call("ansible-galaxy", "collection", "list", "--format", "json", cwd=tmp_path, env=installed)
    found = json.loads(listed.text[listed.text.index("{") :])
    assert list(found[f"{installed['ANSIBLE_COLLECTIONS_PATH']}/ansible_collections"]) == ["gpufleet.deepseek"]


@pytest.mark.parametrize("name", ["site", "plan", "hosts", "burn_in", "service", "gateway", "monitoring", "verify"])
def test_playbook_by_name(installed: dict[str, str], call: Call, tmp_path: Path, root: Path, name: str) -> None:
    """Every playbook of the flow can be called by its full name."""
    example = root / "inventories" / "example"
    call("ansible-playbook", "-i", example, f"gpufleet.deepseek.{name}", "--syntax-check", cwd=tmp_path, env=installed)


def test_documentation(installed: dict[str, str], call: Call, tmp_path: Path) -> None:
    """ansible-doc knows every role with its variables."""
    shown = call("ansible-doc", "--type", "role", "--json", "--list", cwd=tmp_path, env=installed)
    roles = json.loads(shown.text[shown.text.index("{") :])
    expected = {"fleet", "node_exporter", "deepseek_service", "gateway", "prometheus"}
    assert {f"gpufleet.deepseek.{name}" for name in expected} <= set(roles)


@pytest.mark.lab
@pytest.mark.parametrize("words", [["--check", "--diff"], []], ids=["check", "run"])
def test_site(
    installed: dict[str, str],
    call: Call,
    tmp_path: Path,
    inventory: Path,
    settled: Callable[[Result], None],
    words: list[str],
) -> None:
    """The whole site by its full name, from a foreign folder."""
    settled(call("ansible-playbook", "-i", inventory, "gpufleet.deepseek.site", *words, cwd=tmp_path, env=installed))
