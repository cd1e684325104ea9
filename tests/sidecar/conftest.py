# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Mock engines that all these tests share, and sidecars and gateways for each test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from sidecartools import Led, Sidecar  # isort: skip
from gatewaytools import Engine, Gateway, until

CALM: dict[str, Any] = {
    "delay": 0,
    "chunks": 5,
    "chunk_delay": 0,
    "drop": False,
    "cut_after": 0,
    "status": 200,
    "retry_after": 0,
    "rejected": False,
    "fill": False,
    "prompt_tokens": 0,
    "continuous_usage": False,
    "no_usage": False,
}


@pytest.fixture(scope="session", name="mocks")
def make_mocks() -> Iterator[list[Engine]]:
    """Two engines, named a and b."""
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
        engine.control(**CALM)
        # What a test before it has left at work there would count here.
        until(lambda engine=engine: engine.stats()["in_flight"] == 0, 60, "the requests of an earlier test to end")
        engine.reset()
    return mocks


@pytest.fixture(name="engine")
def one_engine(engines: list[Engine]) -> Engine:
    """The first of the two."""
    return engines[0]


@pytest.fixture(name="sidecar")
def make_sidecar(tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Start a sidecar before an engine (anything with a port), with settings of its own."""
    with ExitStack() as stack:
        count = 0

        def start(engine: Any, healthy: bool = True, folder: Path | None = None, **settings: Any) -> Sidecar:
            nonlocal count
            count += 1
            place = folder or tmp_path / f"sidecar{count}"
            made = Sidecar(place, getattr(engine, "name", f"led{count}"), engine.port, settings)
            stack.callback(made.stop)
            return made.start(healthy)

        yield start


@pytest.fixture(name="led")
def make_led() -> Iterator[Led]:
    """An engine that is led by the hand."""
    made = Led()
    yield made
    made.close()


@pytest.fixture(name="gateway")
def make_gateway(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start a Lua gateway whose peers are sidecars."""
    import lua_tools

    lua_tools.prepare()
    with ExitStack() as stack:

        def start(peers: list[Any], prepare: Callable[[Gateway], None] | None = None) -> Gateway:
            made = Gateway(tmp_path / "gateway", peers, 1)
            stack.callback(made.stop)
            made.policy, made.peers = made.default_policy(), made.default_peers()
            if prepare:
                prepare(made)
            return made.start()

        yield start
