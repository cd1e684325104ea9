# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Mock engines that all these tests share, and a gateway for each test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import gatewaytools
from gatewaytools import Engine, Gateway


def pytest_configure(config: pytest.Config) -> None:
    """The marker of tests that compare times: they need a machine that does nothing else."""
    config.addinivalue_line("markers", "timing: compares times")


@pytest.fixture(scope="session", name="mocks")
def make_mocks() -> Iterator[list[Engine]]:
    """Two engines, named a and b."""
    gatewaytools.lua_tools.prepare()
    made = [Engine("a"), Engine("b")]
    yield made
    for engine in made:
        engine.end()


@pytest.fixture(name="engines")
def reset_engines(mocks: list[Engine]) -> list[Engine]:
    """The two engines, well behaved and with counters at zero."""
    for engine in mocks:
        if engine.process.poll() is not None:
            engine.start()
        engine.control(
            delay=0,
            chunks=5,
            chunk_delay=0,
            drop=False,
            cut_after=0,
            status=200,
            retry_after=0,
            rejected=False,
            fill=False,
            prompt_tokens=0,
            continuous_usage=False,
            no_usage=False,
        )
        engine.reset()
    return mocks


@pytest.fixture(name="gateway")
def make_gateway(tmp_path: Path, engines: list[Engine]) -> Iterator[Callable[..., Gateway]]:
    """Start a gateway: options of Gateway, and the limits of its only tenant."""
    with ExitStack() as stack:
        count = 0

        def start(workers: int = 2, prepare: Callable[[Gateway], None] | None = None, **limits: Any) -> Gateway:
            nonlocal count
            count += 1
            made = Gateway(tmp_path / f"gateway{count}", engines, workers)
            stack.callback(made.stop)
            made.policy, made.peers = made.default_policy(**limits), made.default_peers()
            if prepare:
                prepare(made)
            return made.start()

        yield start
