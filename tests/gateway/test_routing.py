# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Which engine gets a request: by weight, by prompt, by what failed before, and by what the operator says."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from gatewaytools import CLIENT, TRACE, Engine, Gateway, Storm, headers_seen, until

Start = Callable[..., Gateway]


def executions(engines: list[Engine]) -> list[int]:
    """How many requests each has worked on."""
    return [engine.stats()["executions"] for engine in engines]


def weights(made: Gateway, *wanted: int) -> None:
    """The peers' weights."""
    for peer, weight in zip(made.peers["pools"][0]["peers"], wanted):
        peer["weight"] = weight
    # A mock that is slow on a busy machine is not sick.
    made.policy["health"]["timeout_ms"] = 30000


@pytest.mark.parametrize("clients", [1, 64])
def test_requests_follow_the_weights(gateway: Start, engines: list[Engine], clients: int) -> None:
    # So long that it is the delay, and not who gets the processor, that says how fast an engine is.
    for engine in engines:
        engine.control(delay=0.1 if clients > 1 else 0.005)
    Storm(gateway(2, lambda made: weights(made, 3, 2)), clients=clients, seconds=4).run()
    first, second = executions(engines)
    total = first + second
    assert total > 200
    # Chi-square with one degree of freedom: 10.83 is passed by chance once in a thousand.
    expected = (total * 0.6, total * 0.4)
    assert (first - expected[0]) ** 2 / expected[0] + (second - expected[1]) ** 2 / expected[1] < 10.83


def test_a_prompt_stays_with_its_engine(gateway: Start, engines: list[Engine]) -> None:
    def prefix(made: Gateway) -> None:
        made.policy["affinity"] = {"mode": "prefix", "bytes": 1024, "max_load_factor": 1.25}

    made = gateway(2, prefix)
    used = set()
    for number in range(8):
        before = executions(engines)
        # A conversation grows at its end.
        for turn in range(4):
            made.chat(messages=[{"role": "user", "content": f"prompt {number} {'and so on ' * (110 + turn)}"}])
        gained = tuple(now - then for now, then in zip(executions(engines), before))
        assert gained in ((4, 0), (0, 4))
        used.add(gained)
    assert len(used) == 2
    # The other worker hands its counts over once a second.
    until(lambda: made.metric("gw_affinity_total", result="hit") == 32, 5, "the metric")


def test_a_short_prompt_goes_by_load(gateway: Start, engines: list[Engine]) -> None:
    """It has no beginning that stays the same when it grows."""

    def prefix(made: Gateway) -> None:
        made.policy["affinity"] = {"mode": "prefix", "bytes": 1024, "max_load_factor": 1.25}

    made = gateway(1, prefix)
    for _again in range(8):
        made.chat(messages=[{"role": "user", "content": "hello"}])
    assert executions(engines) == [4, 4]


def test_draining_is_a_change_of_a_file(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(2)
    made.peers["pools"][0]["peers"][0]["state"] = "drain"
    made.write()
    until(lambda: made.held()["pools"][0]["peers"][0]["state"] == "drain", 5, "the new peers")
    time.sleep(1.1)  # the other worker may be a second later
    before = executions(engines)
    for _number in range(10):
        assert made.chat().status == 200
    assert executions(engines) == [before[0], before[1] + 10]
    made.peers["pools"][0]["peers"][0]["state"] = "up"
    made.write()
    until(lambda: made.chat().status == 200 and executions(engines)[0] > before[0], 10, "the peer to come back")


def test_a_breaker_opens_probes_and_closes(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(1)
    engines[0].control(status=500)

    def state() -> Any:
        return {peer["name"]: peer for peer in made.held()["pools"][0]["peers"]}["a"]["breaker"]

    until(lambda: made.chat().status and state() == "open", 10, "the breaker to open")
    before = executions(engines)[0]
    answers = [made.chat().status for _number in range(5)]
    assert answers == [200] * 5
    assert executions(engines)[0] == before
    engines[0].control(status=200)
    until(lambda: made.chat().status == 200 and state() == "closed", 20, "the breaker to close")
    assert made.metric("gw_breaker_transitions_total", peer="a", to="open") == 1
    assert made.metric("gw_breaker_transitions_total", peer="a", to="closed") == 1


@pytest.mark.timing
def test_a_peer_that_comes_back_begins_slowly(gateway: Start, engines: list[Engine]) -> None:
    def slow(made: Gateway) -> None:
        made.policy["slow_start"] = {"window_s": 8, "min_percent": 10, "aggression": 1}

    made = gateway(1, slow)
    engines[0].control(status=500)

    def peers() -> dict[str, Any]:
        return {peer["name"]: peer for peer in made.held()["pools"][0]["peers"]}

    until(lambda: made.chat().status and peers()["a"]["breaker"] == "open", 10, "the breaker to open")
    engines[0].control(status=200)
    until(lambda: made.chat().status == 200 and peers()["a"]["breaker"] == "closed", 20, "the breaker to close")
    begin = time.monotonic()
    shares = []
    while time.monotonic() - begin < 9:
        shares.append(peers()["a"]["share"])
        time.sleep(0.5)
    assert shares[0] < 0.35
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_one_trace_from_client_to_engine(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(1)
    given = {"traceparent": f"00-{TRACE}-{CLIENT}-01", "tracestate": "vendor=1"}
    made.chat(headers=given)
    seen = headers_seen(engines)
    assert re.fullmatch(rf"00-{TRACE}-[0-9a-f]{{16}}-01", seen["traceparent"])
    assert CLIENT not in seen["traceparent"]
    assert seen["tracestate"] == "vendor=1"
    for engine in engines:
        engine.reset()
    made.chat(headers={"traceparent": "00-0000-1-zz"})
    fresh = [engine.stats()["last_headers"].get("traceparent", "") for engine in engines]
    assert any(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-9a-f]", found) for found in fresh)
