# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A real engine in podman on a kernel of its own: the same unit and the same proof as in molecule's scenario engines_podman."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hosttools import Hosts, Result, standing

HOST = "vm1"
VARIABLES: dict[str, Any] = {
    "engines_podman_host": HOST,
    # What an emulated processor takes.
    "deepseek_service_start_timeout": 900,
    "deepseek_service_smoke": [{"prompt": "Which city is the capital of France?", "expect": "Paris"}],
    # Its disk is small.
    "model_store_margin_gib": 0,
}


@pytest.fixture(scope="module", name="podman")
def make_podman() -> Iterator[Hosts]:
    """One virtual host with podman in its image, and a container that the engine's image is made in."""
    packages = ["podman", "crun", "python3-venv"]
    with standing({"lab_gpu_count": 1, "lab_vm_extra_packages": packages, "lab_vm_memory_mb": 3072}, count=1) as made:
        made.playbook("molecule/engines_podman/virtual_host.yml").ok()
        yield made


def converge(podman: Hosts, *words: str) -> Result:
    """Run the scenario's play on the virtual host."""
    return podman.playbook("molecule/engines_podman/converge.yml", *words, variables=VARIABLES, seconds=3000)


def test_an_engine_serves_from_podman(podman: Hosts) -> None:
    converge(podman).ok()
    # Layers of an overlay that the kernel has, which a host in a container has not.
    store = json.loads(podman.ssh(HOST, "podman info --format json"))["store"]
    assert store["graphDriverName"] == "overlay"
    assert podman.ssh(HOST, "podman ps --quiet | wc -l") == "1"


def test_a_second_run_changes_nothing(podman: Hosts) -> None:
    converge(podman).unchanged()
    converge(podman, "--check").unchanged()


def test_it_comes_back_after_a_reboot(podman: Hosts) -> None:
    podman.reboot(HOST)
    podman.ssh(
        HOST,
        "for number in $(seq 300); do systemctl is-active -q deepseek-service && exit 0; sleep 2; done; systemctl status deepseek-service; exit 1",
        seconds=900,
    )


def test_it_is_ready_watched_without_rights_and_leaves_nothing(podman: Hosts) -> None:
    podman.playbook("molecule/engines_podman/verify.yml", variables=VARIABLES, seconds=3000).ok()
