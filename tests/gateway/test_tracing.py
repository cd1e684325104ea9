# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Spans of the gateway at a real receiver, which reads them with OpenTelemetry's own messages."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import otlp_collector
import pytest
from gatewaytools import CLIENT, KEY, MODEL, TRACE, Engine, Gateway, until
from otlp_collector import Collector, Span

Start = Callable[..., Gateway]
PROMPT = "the-prompt-of-this-test"


@pytest.fixture(name="collector")
def make_collector() -> Iterator[Collector]:
    """A receiver of spans."""
    with otlp_collector.running() as made:
        yield made


def traced(collector: Collector, **tracing: Any) -> Callable[[Gateway], None]:
    """A gateway that sends spans there."""

    def prepare(made: Gateway) -> None:
        made.collector, made.tracing = collector.http, tracing

    return prepare


def parts(spans: list[Span]) -> tuple[Span, list[Span]]:
    """The gateway's own span, and those of the engines that it asked, in order."""
    (server,) = [span for span in spans if span.kind == 2]
    return server, sorted((span for span in spans if span.kind == 3), key=lambda span: span.begin)


def servers(number: int) -> Callable[[list[Span]], bool]:
    """Are there so many requests?"""
    return lambda spans: sum(span.kind == 2 for span in spans) == number


def told(engine: Engine) -> str:
    """The traceparent that an engine has got."""
    return str((engine.stats()["last_headers"] or {}).get("traceparent", ""))


def test_a_request_is_a_span_with_one_below_it_for_the_engine(
    gateway: Start, engines: list[Engine], collector: Collector
) -> None:
    made = gateway(1, traced(collector, gateway_tracing_sampling_percent=0))
    given = {"traceparent": f"00-{TRACE}-{CLIENT}-01", "tracestate": "vendor=1"}
    answer = made.chat(headers=given, messages=[{"role": "user", "content": PROMPT}])
    assert answer.status == 200
    server, tries = parts(collector.until(lambda spans: len(spans) == 2))
    (last,) = tries
    assert (server.trace, server.parent) == (TRACE, CLIENT)
    assert (last.trace, last.parent) == (TRACE, server.id)
    heard = [told(engine) for engine in engines]
    assert f"00-{TRACE}-{last.id}-01" in heard
    usage = answer.json()["usage"]
    wanted = {
        "resource.service.name": "gateway",
        "resource.host.name": "gw1",
        "resource.gpufleet.region": "eu",
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": MODEL,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gpufleet.tenant": "tenant",
        "gpufleet.tier": "test",
        "gpufleet.stream": False,
        "gpufleet.tokens_charged": usage["total_tokens"],
        "gpufleet.peer": engines[heard.index(f"00-{TRACE}-{last.id}-01")].name,
    }
    assert server.attributes == wanted
    assert not server.failed
    assert abs(server.end / 1e9 - time.time()) < 60
    # Neither the prompt, nor the answer, nor the key is in what was sent.
    text = answer.json()["choices"][0]["message"]["content"]
    assert text
    for secret in (PROMPT, text, KEY):
        assert secret.encode() not in b"".join(collector.bodies)
    until(lambda: made.metric("gw_spans_sent_total") == 2, 5, "the metric")


def test_a_second_try_is_a_span_of_its_own(gateway: Start, engines: list[Engine], collector: Collector) -> None:
    made = gateway(1, traced(collector))
    engines[0].control(status=503, rejected=True)
    wanted = [{"role": "user", "content": PROMPT * 1000}]
    seen: list[Span] = []
    # The picker begins with the other one half of the time.
    for number in range(1, 21):
        assert made.chat(messages=wanted).status == 200
        collector.until(servers(number))
        seen = next((found for found in (collector.of(span.trace) for span in collector.spans) if len(found) == 3), [])
        if seen:
            break
    server, (first, second) = parts(seen)
    assert (first.parent, second.parent) == (server.id, server.id)
    assert (first.attributes["gpufleet.peer"], second.attributes["gpufleet.peer"]) == ("a", "b")
    assert (first.message, first.attributes["http.response.status_code"]) == ("rejected", 503)
    assert not second.failed
    assert second.attributes["http.request.resend_count"] == 1
    assert not server.failed
    # Each engine was told of its own span.
    assert told(engines[0]) == f"00-{server.trace}-{first.id}-03"
    assert told(engines[1]) == f"00-{server.trace}-{second.id}-03"
    assert engines[1].stats()["last_headers"]["content-length"] == engines[0].stats()["last_headers"]["content-length"]


def test_who_is_recorded(gateway: Start, engines: list[Engine], collector: Collector) -> None:
    made = gateway(1, traced(collector, gateway_tracing_sampling_percent=0))

    def ask(number: int, flags: str, key: str = KEY) -> int:
        return made.chat(key, {"traceparent": f"00-{number:032x}-{CLIENT}-{flags}"}).status

    assert made.chat().status == 200
    assert ask(1, "00") == 200
    # 2 says that all bits of the trace's id are random.
    assert {told(engine)[-2:] for engine in engines} <= {"", "00", "02"}
    # A stranger cannot fill the collector.
    assert ask(2, "01", "sk-wrong-wrong-wrong") == 401
    assert made.call("GET", "/v1/models", key=KEY, headers={"traceparent": f"00-{3:032x}-{CLIENT}-01"}).status == 200
    # What failed is recorded though it was not to be; the engine was told that it is not.
    for engine in engines:
        engine.control(status=500)
    assert ask(4, "00") == 500
    spans = collector.until(lambda found: len(found) == 3)
    assert {int(span.trace, 16) for span in spans} == {3, 4}
    server, (last,) = parts(collector.of(f"{4:032x}"))
    assert (server.failed, server.message, last.message) == (True, "engine_error", "status")
    assert collector.of(f"{3:032x}")[0].name == "GET /v1/models"


def test_a_stream_that_breaks_off_says_so(gateway: Start, engines: list[Engine], collector: Collector) -> None:
    made = gateway(1, traced(collector))
    for engine in engines:
        engine.control(chunks=10, cut_after=3)
    with contextlib.suppress(http.client.IncompleteRead):
        made.chat(stream=True)
    server, (last,) = parts(collector.until(lambda spans: len(spans) == 2))
    assert (server.attributes["http.response.status_code"], server.message, last.message) == (200, "stall", "stall")
    assert server.attributes["gpufleet.stream"] is True
    assert 0 <= server.attributes["gpufleet.ttft_seconds"] < 10


def test_a_collector_that_is_sick_costs_spans_and_nothing_else(gateway: Start, collector: Collector) -> None:
    made = gateway(1, traced(collector, gateway_tracing_queue=4, gateway_tracing_batch=2))
    collector.pause.clear()
    for _number in range(20):
        assert made.chat().status == 200
    # Two requests are on their way to a collector that says nothing, four wait.
    lost = until(lambda: made.metric("gw_spans_dropped_total", reason="queue_full"), 10, "a full queue")
    assert 20 <= lost <= 36
    collector.pause.set()
    kept = 40 - lost
    until(lambda: made.metric("gw_spans_sent_total") >= kept, 20, "the rest to be sent")
    # A refusal is final: the collector would say the same again.
    collector.status = 400
    assert made.chat().status == 200
    until(lambda: made.metric("gw_spans_dropped_total", reason="refused") == 2, 20, "the refusal")


def test_a_stream_that_outlives_a_reload_has_its_span(
    gateway: Start, engines: list[Engine], collector: Collector
) -> None:
    made = gateway(1, traced(collector))
    for engine in engines:
        engine.control(chunks=20, chunk_delay=0.1)
    link = http.client.HTTPConnection("127.0.0.1", made.port, timeout=30)
    body = json.dumps({"model": MODEL, "stream": True, "messages": [{"role": "user", "content": PROMPT}]})
    link.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
    answer = link.getresponse()
    old = made.worker_pids()
    # What waits when a worker begins to drain is not lost either.
    for engine in engines:
        engine.control(chunk_delay=0)
    assert made.chat(headers={"traceparent": f"00-{TRACE}-{CLIENT}-01"}).status == 200
    made.reload()
    until(lambda: set(made.worker_pids()) - set(old), 10, "a new worker")
    assert b"[DONE]" in answer.read()
    link.close()
    spans = collector.until(lambda spans: len(spans) == 4)
    server, tries = parts([span for span in spans if span.trace != TRACE])
    assert (server.failed, len(tries)) == (False, 1)
    assert len(collector.of(TRACE)) == 2
