# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A lab that only these tests use, beside anybody else's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from labtools import Lab


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes long, and runs when the part is asked for")
    config.addinivalue_line("markers", "machine: a whole machine that systemd runs, with a lab inside it")


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    assert os.geteuid() == 0, "the tests of the lab need root"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    made = Lab("labtest", "10.78.1.0/24", ["-e", "lab_gpu_count=1", "-e", "lab_monitor_count=0"])
    made.down()
    yield made
    made.down()
    assert made.traces() == []
