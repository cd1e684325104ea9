# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The load test's client against the gateway's limits: what a limit rejects is counted as rejected, and nothing else is."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gatewaytools import KEY, MODEL, Engine, Gateway

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test as load
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_client as clients
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_open as loops

MIX = load.Mix({"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 5}]})


def test_limits_are_seen_as_rejections_and_engines_work_only_for_what_was_admitted(
    gateway: Callable[..., Gateway], engines: list[Engine]
) -> None:
    for engine in engines:
        engine.control(delay=0.1, chunk_delay=0.01)
    made = gateway(2, concurrency=2)
    target = load.Target("http", "127.0.0.1", made.port, "", "127.0.0.1")

    def make(_number: int, on_text: Callable[[float], None]) -> clients.Client:
        return clients.Client(target, KEY, 10, on_text=on_text)

    loop = loops.OpenLoop(60, 2, 32, MIX, MODEL, load.Burn(0.01, 1, 10), make, drain=10)
    found = loop.run(threading.Event())
    assert not found["aborted"]
    assert found["errors"] == found["unfinished"] == found["never_sent"] == 0
    assert found["ok"] > 5
    assert found["rejected"] > 20
    assert found["ok"] == sum(engine.stats()["executions"] for engine in engines) == found["statuses"]["200"]
    assert found["ttft"]["p50"] >= 0.1
