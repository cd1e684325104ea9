# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Two virtual hosts that only these tests use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

import hosttools
from hosttools import Hosts


def with_driver() -> dict[str, Any]:
    """The role's own packages, with two kernels that the distribution's driver builds for, and that driver.

    Hosts start with the older one; the driver's module is built for both, at the machine's own speed: ten minutes of two processors, once.
    """
    path = hosttools.ROOT / "roles/lab/defaults/main.yml"
    packages = yaml.safe_load(path.read_text(encoding="utf-8"))["lab_vm_packages"]
    kernels = [
        f"linux-{kind}-6.1.0-{number}-amd64" for number in hosttools.kernels()[-2:] for kind in ("image", "headers")
    ]
    return {
        "lab_apt_sources": hosttools.apt_sources(),
        "lab_vm_packages": [name for name in packages if name != "linux-image-amd64"],
        "lab_vm_extra_packages": kernels + hosttools.DRIVER_PACKAGES,
        "lab_image_timeout": 1800,
    }


@pytest.fixture(scope="module")
def vms() -> Iterator[Hosts]:
    """Two of them for each file of tests."""
    with hosttools.standing(with_driver() if os.environ.get("GPUFLEET_HOSTS_DRIVER") == "1" else {}) as made:
        yield made
