# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Limits that nobody can overrun: exact counts from many connections at once, and nothing left behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from gatewaytools import KEY, MODEL, Engine, Gateway, Storm, sha, until

Start = Callable[..., Gateway]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_requests_are_admitted_exactly(gateway: Start, engines: list[Engine], workers: int, limit: int) -> None:
    storm = Storm(gateway(workers, rpm=limit), clients=128, seconds=4 if limit == 1000 else 1.5).run()
    admitted = storm.count(200)
    assert admitted == limit
    assert sum(engine.stats()["executions"] for engine in engines) == limit
    assert storm.count(429) == len(storm.results) - limit


@pytest.mark.parametrize("workers", [1, 4])
def test_tokens_never_pass_the_budget_and_nearly_all_of_it_is_used(
    gateway: Start, engines: list[Engine], workers: int
) -> None:
    for engine in engines:
        engine.control(fill=True, prompt_tokens=11)
    budget = 50_000
    limits = {"tpm": budget, "prompt_estimate": "bound"}
    storm = Storm(gateway(workers, **limits), seconds=4, fields={"max_tokens": 100}).run()
    used = sum(engine.stats()["tokens"] for engine in engines)
    assert used == storm.count(200) * 111
    assert used <= budget
    assert used >= 0.98 * budget


@pytest.mark.parametrize("workers", [1, 4])
def test_no_more_are_in_flight_than_allowed(gateway: Start, engines: list[Engine], workers: int) -> None:
    for engine in engines:
        engine.control(delay=0.02)
    made = gateway(workers, concurrency=6)
    storm = Storm(made, clients=64, seconds=2).run()
    # Both engines together: their high-water marks need not be of one moment, so the sum is a bound from above only.
    assert max(engine.stats()["max_in_flight"] for engine in engines) <= 6
    assert storm.count(200) > 100
    assert {result[2] for result in storm.results} == {200, 429}
    nothing_is_held(made)


def test_a_refusal_costs_no_quota_and_says_when_to_come_back(gateway: Start) -> None:
    made = gateway(rpm=5, tpm=1000)
    for _number in range(20):
        answer = made.chat(max_tokens=5000)
        assert answer.status == 429
        assert "retry-after" not in answer.headers
    assert made.chat(max_tokens=1).headers["x-ratelimit-remaining-requests"] == "4"
    for _number in range(4):
        assert made.chat(max_tokens=1).status == 200
    refused = made.chat(max_tokens=1)
    assert refused.status == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 62
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-limit-requests"] == "5"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


def test_a_window_slides(gateway: Start) -> None:
    """No trailing window sees more than the limit, whenever the bursts come."""

    def two_seconds(made: Gateway) -> None:
        made.policy["windows"] = {"requests_s": 2, "tokens_s": 2, "day_s": 86400, "buckets": 20}

    made = gateway(4, two_seconds, rpm=50)
    storm = Storm(made, clients=32, seconds=7).run()
    admitted = sorted((answered, sent) for sent, answered, status, _body in storm.results if status == 200)
    assert len(admitted) >= 100
    # Each was admitted at some moment between the two: 51 of them within two seconds for certain would be one too many.
    for place in range(len(admitted) - 50):
        group = admitted[place : place + 51]
        assert group[-1][0] - min(sent for _answered, sent in group) >= 2


def test_one_tenant_does_not_use_up_what_another_has(gateway: Start) -> None:
    other = "sk-other-0123456789"

    def two(made: Gateway) -> None:
        made.policy["tenants"].append(
            {"id": "other", "tier": "test", "keys_sha256": [sha(other)], "overrides": {"rpm": 3}, "models": []}
        )

    made = gateway(2, two, rpm=2)
    assert [made.chat().status for _number in range(3)] == [200, 200, 429]
    assert [made.chat(key=other).status for _number in range(4)] == [200, 200, 200, 429]


def nothing_is_held(made: Gateway, seconds: float = 10) -> None:
    """Every counter of what is in flight goes back to zero."""

    def free() -> bool:
        status = made.held()
        peers = [peer for pool in status["pools"] for peer in pool["peers"]]
        held = sum(peer["inflight"] + peer["tokens"] for peer in peers)
        return not held and all(tenant["concurrency"]["used"] == 0 for tenant in status["tenants"])

    until(free, seconds, "everything to be given back")


def abort(made: Gateway, stream: bool, after: float) -> None:
    """A client that goes away."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", made.port), timeout=5) as link:
        whole = head + body
        link.sendall(whole if after > 0 else whole[: random.SystemRandom().randrange(len(whole))])
        time.sleep(max(after, 0))


def test_nothing_is_left_after_a_storm(gateway: Start, engines: list[Engine]) -> None:
    """Answers, errors, timeouts, clients that go away, resets, killed workers and a reload, all at once."""
    made = gateway(3, concurrency=500, tpm=100_000_000)
    end = time.monotonic() + 8
    chaos = random.SystemRandom()

    def clients() -> None:
        while time.monotonic() < end:
            kind = chaos.random()
            with contextlib.suppress(OSError, http.client.HTTPException):
                if kind < 0.4:
                    made.chat(max_tokens=chaos.randrange(1, 20), stream=kind < 0.2)
                elif kind < 0.5:
                    made.call("POST", "/v1/chat/completions", b"{", KEY)
                else:
                    abort(made, kind < 0.8, chaos.choice([0, 0.01, 0.05, 0.2]))

    threads = [threading.Thread(target=clients) for _number in range(24)]
    for thread in threads:
        thread.start()
    settings: list[dict[str, Any]] = [
        {"chunk_delay": 0.05},
        {"delay": 0.3},
        {"status": 500},
        {"status": 200, "cut_after": 2},
        {"cut_after": 0, "drop": True},
        {"drop": False, "delay": 0, "status": 503},
        {"status": 200},
    ]
    for number, setting in enumerate(settings):
        for engine in engines:
            engine.control(**setting)
        time.sleep(0.5)
        if number in (1, 4):
            os.kill(made.worker_pids()[0], signal.SIGKILL)
        if number == 2:
            made.reload()
    for thread in threads:
        thread.join()
    nothing_is_held(made, 40)
    assert made.metric("gw_lua_errors_total") == 0
    assert "runtime error" not in made.log()
    until(lambda: made.chat(max_tokens=3).status == 200, 20, "the breakers to close")
