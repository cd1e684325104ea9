# SPDX-License-Identifier: Apache-2.0
"""The fleet that the faults happen to: the lab's, converged; and a second, small one that is built under fire."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from alerts import QUICK, Pages  # the helpers lie beside the tests, not in a package
from fleet import ROOT, Fleet


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers."""
    config.addinivalue_line("markers", "long: takes some minutes, and runs when the faults are asked for")
    config.addinivalue_line("markers", "own_lab: makes a lab for itself, and can run beside the others")


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """The lab of dev/lab, with its site converged and well; another one by GPUFLEET_LAB_NAME and GPUFLEET_LAB_SUBNET."""
    names = {"lab_name": "GPUFLEET_LAB_NAME", "lab_subnet": "GPUFLEET_LAB_SUBNET"}
    chosen = {name: os.environ[key] for name, key in names.items() if os.environ.get(key)}
    one = Fleet(Path(os.environ.get("GPUFLEET_LAB_INVENTORY") or ROOT / "inventories" / "lab"), **chosen)
    run = one.play("playbooks/verify.yml")
    assert run.rc == 0, run.output
    return one


@pytest.fixture(scope="module")
def pages(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """The lab's alerts come to a web hook, quickly; afterwards the lab's own settings hold again.

    A tenth of the patience: what a cause comes before what follows by must be more than a scrape and an evaluation.
    """
    settings = {**QUICK, "prometheus_alert_patience": 0.1}
    with Pages(fleet, tmp_path_factory.mktemp("pages"), settings) as one:
        yield one


@pytest.fixture(scope="session")
def new_fleet() -> Iterator[Fleet]:
    """A lab of its own with one GPU host, up and empty; gone afterwards.

    Or one that somebody has made, whose hosts are up and have nothing yet, and who takes it down: GPUFLEET_NEW_LAB=NAME,SUBNET.
    """
    given = os.environ.get("GPUFLEET_NEW_LAB")
    if given:
        name, subnet = given.split(",")
        yield Fleet(ROOT / "inventories" / "lab", lab_name=name, lab_subnet=subnet)
        return
    one = Fleet(ROOT / "inventories" / "lab", lab_name="gffault", lab_subnet="10.75.0.0/24", lab_gpu_count="1")
    try:
        run = one.play("playbooks/lab_up.yml")
        assert run.rc == 0, run.output
        yield one
    finally:
        run = one.play("playbooks/lab_down.yml")
        assert run.rc == 0, run.output
