# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A full engine, a dead one, a slow one, one that fails half-way: what a gateway is told, and what an engine sees."""

from __future__ import annotations

import http.client
import select
import threading
from collections.abc import Callable
from typing import Any

import pytest
from gatewaytools import Engine, Gateway, free_port, until
from sidecartools import Sidecar, chat_body, parallel

Start = Callable[..., Sidecar]


@pytest.mark.parametrize("warm", [False, True], ids=["no connection yet", "connections kept"])
def test_no_more_than_the_limit_gets_in_and_the_rest_is_told_so(sidecar: Start, engine: Engine, warm: bool) -> None:
    made = sidecar(engine, max_requests=5)
    if warm:
        engine.control(delay=0.5)
        assert {answer.status for answer in parallel(5, made.chat)} == {200}
        engine.reset()
    engine.control(delay=3)
    answers = parallel(8, made.chat)
    assert sorted(answer.status for answer in answers) == [200] * 5 + [503] * 3
    assert engine.stats()["executions"] == 5
    for answer in answers:
        if answer.status == 503:
            assert answer.headers["x-engine-rejected"] == "overflow"
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["content-type"] == "application/json"
            assert answer.json()["error"]["code"] == "overflow"
    engine.control(delay=0)
    assert made.chat().status == 200


def test_a_dead_engine_is_told_before_and_after_it_is_noticed(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, health={"interval_s": 3600, "unhealthy_interval_s": 1}, outlier={"connect_failures": 0})
    engine.end()
    # Nobody has looked yet: the connection is refused.
    answer = made.chat()
    assert (answer.status, answer.headers["x-engine-rejected"]) == (503, "unavailable")
    assert made.stat("cluster.engine.upstream_cx_connect_fail") > 0
    engine.start()
    assert made.chat().status == 200


def test_the_health_view_follows_the_engine(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine)
    for path in ("/health", "/healthz", "/health?x=1"):
        assert made.call("GET", path).status == 200
    engine.end()
    until(lambda: made.call("GET", "/health").status == 503, 30, "the health view to say no")
    answer = made.chat()
    assert (answer.status, answer.headers["x-engine-rejected"]) == (503, "unavailable")
    assert answer.json()["error"]["code"] == "unavailable"
    engine.start()
    until(lambda: made.call("GET", "/health").status == 200, 30, "the health view to say yes")
    # The thread that works hears of it a moment later than the one that looks.
    until(lambda: made.chat().status == 200, 5, "an answer")


def test_an_engine_that_starts_later_is_found(sidecar: Start, engine: Engine) -> None:
    engine.end()
    made = sidecar(engine, healthy=False)
    assert made.call("GET", "/health").status == 503
    assert made.chat().status == 503
    engine.start()
    until(made.is_healthy, 30, "the engine to be found")
    until(lambda: made.chat().status == 200, 5, "an answer")


def test_what_an_engine_may_have_begun_is_never_sent_again(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, retry={"tries": 3})
    engine.control(drop=True)
    answer = made.chat()
    assert answer.status == 502
    assert "x-engine-rejected" not in answer.headers
    assert answer.json()["error"]["code"] == "engine_failed"
    assert engine.stats()["executions"] == 1


def test_a_slow_engine_is_given_up_and_not_sent_again(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, stream_idle=1)
    engine.control(delay=20)
    answer = made.chat()
    assert answer.status == 504
    assert "x-engine-rejected" not in answer.headers
    assert answer.json()["error"]["code"] == "engine_timeout"
    assert engine.stats()["executions"] == 1


def test_a_stream_that_is_never_silent_outlives_the_bound_of_silence(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, stream_idle=2)
    engine.control(chunks=8, chunk_delay=0.5)
    answer = made.chat(stream=True)
    assert answer.status == 200
    assert answer.body.count(b"data: ") == 9
    assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_answer_of_the_engine_is_the_engines(sidecar: Start, engine: Engine, status: int) -> None:
    made = sidecar(engine)
    engine.control(status=status, retry_after=7)
    answer = made.chat()
    assert answer.status == status
    assert answer.headers["retry-after"] == "7"
    assert answer.json()["mock"] is True
    assert "x-engine-rejected" not in answer.headers
    assert engine.stats()["executions"] == 1


def test_failures_on_end_eject_the_engine(sidecar: Start, engine: Engine) -> None:
    made = sidecar(
        engine, outlier={"gateway_failures": 3, "ejection_s": 3600, "max_ejection_s": 3600}, health={"interval_s": 3600}
    )
    engine.control(status=503)
    for _number in range(3):
        assert made.chat().json()["mock"] is True
    # Envoy counts where a request is worked on and ejects in another thread: a request may come between the two.
    until(lambda: "x-engine-rejected" in made.chat().headers, 5, "the engine to be out")
    executions = engine.stats()["executions"]
    assert executions >= 3
    answer = made.chat()
    assert (answer.status, answer.headers["x-engine-rejected"]) == (503, "unavailable")
    assert engine.stats()["executions"] == executions
    assert made.call("GET", "/health").status == 503


def test_errors_that_a_prompt_can_cause_do_not_eject_it(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine)
    engine.control(status=500)
    for _number in range(20):
        assert made.chat().status == 500
    engine.control(status=200)
    assert made.chat().status == 200


def test_only_what_is_meant_for_clients_can_be_asked(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine)
    for path in ("/metrics", "/slots", "/mock/stats", "/", "/stats/prometheus", "/config_dump"):
        answer = made.call("GET", path)
        assert answer.status == 404, path
    assert made.call("GET", "/v1/models").status == 200


# -- through the Lua gateway


def spare(engines: list[Engine], made: Sidecar) -> list[Any]:
    """A sidecar and an engine as the two peers of a gateway."""
    return [made, engines[1]]


def test_a_gateway_takes_an_overflow_elsewhere_and_does_not_blame_the_engine(
    sidecar: Start, gateway: Callable[..., Gateway], engines: list[Engine]
) -> None:
    first, second = engines
    made = sidecar(first, max_requests=1)
    front = gateway(spare(engines, made))
    # The only place is taken by somebody else.
    first.control(delay=20)
    holder = http.client.HTTPConnection("127.0.0.1", made.port, timeout=60)
    holder.request("POST", "/v1/chat/completions", b'{"model": "mock"}')

    def taken() -> bool:
        if first.stats()["in_flight"] == 1:
            return True
        # Answered at once: it was turned away (an engine whose check is late on a busy machine). Say so, and ask again.
        if select.select([holder.sock], [], [], 0)[0]:
            answer = holder.getresponse()
            print(f"not taken: {answer.status} {answer.read()!r} {first.stats()}")
            holder.request("POST", "/v1/chat/completions", b'{"model": "mock"}')
        return False

    until(taken, 10, f"the place to be taken: {first.stats()}")
    for _number in range(12):
        assert front.chat().status == 200
    assert second.stats()["executions"] == 12
    assert first.stats()["executions"] == 1
    assert made.overflows() > 0
    assert front.metric("gw_breaker_transitions_total") == 0
    holder.close()


def test_a_gateway_takes_a_dead_engines_request_elsewhere(
    sidecar: Start, gateway: Callable[..., Gateway], engines: list[Engine]
) -> None:
    made = sidecar(engines[0])
    front = gateway(spare(engines, made))
    engines[0].end()
    for _number in range(12):
        assert front.chat().status == 200
    assert engines[1].stats()["executions"] == 12


def test_a_gateway_does_not_repeat_what_an_engine_has_begun(
    sidecar: Start, gateway: Callable[..., Gateway], engines: list[Engine]
) -> None:
    front = gateway([sidecar(engine) for engine in engines])
    for engine in engines:
        engine.control(drop=True)
    assert front.chat().status == 502
    assert sum(engine.stats()["executions"] for engine in engines) == 1


def test_clients_that_go_away_free_their_places(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, max_requests=2)
    engine.control(chunks=1000, chunk_delay=0.05)
    links = []
    for _number in range(2):
        link = made.connect()
        link.request("POST", "/v1/chat/completions", b'{"model": "mock", "stream": true}')
        link.getresponse()
        links.append(link)
    assert made.chat().status == 503
    for link in links:
        link.close()
        if link.sock:
            link.sock.close()
    engine.control(chunks=1)
    until(lambda: made.chat().status == 200, 20, "a free place")


def test_a_limit_of_connections_spares_the_way_of_the_metrics(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, max_connections=16, stats_port=free_port())
    held = [made.connect() for _number in range(16)]
    for link in held:
        link.connect()
    until(lambda: made.stat("http.engine.downstream_cx_active") >= 15, 10, "the connections")
    answer = made.call("GET", "/stats/prometheus", port=made.stats_port)
    assert answer.status == 200
    for link in held:
        link.close()


def test_a_burst_from_many_threads_never_exceeds_the_limit(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, max_requests=3)
    engine.control(delay=0.02)
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            made.call("POST", "/v1/chat/completions", chat_body())

    threads = [threading.Thread(target=client) for _number in range(12)]
    for thread in threads:
        thread.start()
    until(lambda: engine.stats()["executions"] >= 60, 60, "requests")
    stop.set()
    for thread in threads:
        thread.join()
    assert engine.stats()["max_in_flight"] <= 3
    assert made.overflows() > 0
