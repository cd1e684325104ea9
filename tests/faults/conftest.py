# SPDX-License-Identifier: Apache-2.0
"""The fleet that the faults happen to: the lab's, converged; and a second, small one that is built under fire."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fleet import ROOT, Fleet  # the helper lies beside the tests, not in a package


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The lab of dev/lab, with its site converged and well."""
    one = Fleet(Path(os.environ.get("GPUFLEET_LAB_INVENTORY") or ROOT / "inventories" / "lab"))
    run = one.play("playbooks/verify.yml")
    assert run.rc == 0, run.output
    return one


@pytest.fixture(scope="session")
def new_fleet() -> Iterator[Fleet]:
    """A lab of its own with one GPU host, up and empty; gone afterwards."""
    one = Fleet(ROOT / "inventories" / "lab", lab_name="gffault", lab_subnet="10.75.0.0/24", lab_gpu_count="1")
    try:
        run = one.play("playbooks/lab_up.yml")
        assert run.rc == 0, run.output
        yield one
    finally:
        run = one.play("playbooks/lab_down.yml")
        assert run.rc == 0, run.output
