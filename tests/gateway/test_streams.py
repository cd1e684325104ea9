# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What a client gets: streams to the byte, one execution for each request, engines that fail, a configuration that changes."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from gatewaytools import KEY, MODEL, Engine, Gateway, Storm, until

Start = Callable[..., Gateway]


def only(made: Gateway, name: str) -> None:
    """The other engine drains."""
    for peer in made.peers["pools"][0]["peers"]:
        peer["state"] = "up" if peer["name"] == name else "drain"


def direct(engine: Engine, body: dict[str, Any]) -> bytes:
    """The same request at the engine itself."""
    link = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=10)
    link.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return link.getresponse().read()


@pytest.mark.parametrize("continuous", [False, True])
def test_a_stream_passes_to_the_byte(gateway: Start, engines: list[Engine], continuous: bool) -> None:
    made = gateway(1, lambda one: only(one, "a"))
    engines[0].control(continuous_usage=continuous, prompt_tokens=9)
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "max_tokens": 12,
    }
    asked = {**body, "stream_options": {"include_usage": True}}
    got = made.call("POST", "/v1/chat/completions", asked, KEY).body
    assert hashlib.sha256(got).hexdigest() == hashlib.sha256(direct(engines[0], asked)).hexdigest()
    # A client that did not ask gets the stream that it would have had, although the gateway asked for it.
    got = made.call("POST", "/v1/chat/completions", body, KEY).body
    assert got == direct(engines[0], body)
    assert b"usage" not in got
    assert made.metric("gw_tokens_total", kind="completion") == 24
    assert made.metric("gw_tokens_total", kind="prompt") == 18


def test_an_engine_that_closes_after_a_stream_costs_nobody_a_request(gateway: Start, engines: list[Engine]) -> None:
    """llama.cpp promises to keep the connection, and closes it: the next request must not be sent on it."""
    made = gateway(1, lambda one: only(one, "a"))
    engines[0].control(close_after_stream=0.05, chunk_delay=0)
    body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    found = []
    for _unused in range(10):
        for stream in (True, False):
            found.append(made.call("POST", "/v1/chat/completions", {**body, "stream": stream}, KEY).status)
    assert found == [200] * 20


@pytest.mark.timing
def test_chunks_come_as_they_are_made(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(1, lambda one: only(one, "a"))
    engines[0].control(chunk_delay=0.1)
    link = http.client.HTTPConnection("127.0.0.1", made.port, timeout=10)
    body = {"model": MODEL, "messages": [], "stream": True, "max_tokens": 8}
    link.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {KEY}"})
    answer = link.getresponse()
    moments = []
    while line := answer.readline():
        if b"token" in line:
            moments.append(time.monotonic())
    gaps = [later - first for first, later in zip(moments, moments[1:])]
    assert len(moments) == 8
    assert all(gap > 0.05 for gap in gaps)
    assert moments[-1] - moments[0] < 0.7 + 0.5


def test_a_client_that_goes_away_ends_the_work_and_is_charged(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(1, lambda one: only(one, "a"), tpm=100_000)
    engines[0].control(chunk_delay=0.05)
    link = http.client.HTTPConnection("127.0.0.1", made.port, timeout=10)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 300}], "stream": True, "max_tokens": 1000}
    link.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {KEY}"})
    answer = link.getresponse()
    for _number in range(20):
        answer.readline()
    answer.close()
    link.close()
    until(lambda: engines[0].stats()["aborted"] == 1 and engines[0].stats()["in_flight"] == 0, 10, "the engine to stop")
    used = until(lambda: made.held()["tenants"][0]["tpm"]["used"], 5, "a charge")
    # The prompt and the ten chunks or so that came, and far from the thousand that were reserved.
    assert 100 <= used <= 300
    assert made.metric("gw_usage_missing_total", cause="cut") == 1


def test_a_request_runs_once(gateway: Start, engines: list[Engine]) -> None:
    made = gateway()
    for engine in engines:
        engine.control(drop=True)
    answer = made.chat()
    assert answer.status == 502
    assert answer.json()["error"]["code"] == "bad_gateway"
    assert sum(engine.stats()["executions"] for engine in engines) == 1


def test_an_engine_that_refuses_the_work_is_passed_over(gateway: Start, engines: list[Engine]) -> None:
    made = gateway()
    engines[0].control(status=503, rejected=True)
    answers = [made.chat() for _number in range(6)]
    assert [answer.status for answer in answers] == [200] * 6
    assert engines[1].stats()["executions"] == 6


def test_an_engine_that_is_gone_is_passed_over_and_left_alone(gateway: Start, engines: list[Engine]) -> None:
    made = gateway()
    engines[0].end()
    storm = Storm(made, clients=8, seconds=4).run()
    assert storm.count(200) == len(storm.results) > 50
    peers = {peer["name"]: peer for peer in made.held()["pools"][0]["peers"]}
    assert not peers["a"]["well"] or peers["a"]["breaker"] == "open"


def test_what_no_engine_can_take_is_said(gateway: Start) -> None:
    def nobody(made: Gateway) -> None:
        for peer in made.peers["pools"][0]["peers"]:
            peer["state"] = "drain"

    answer = gateway(1, nobody).chat()
    assert answer.status == 503
    assert answer.json()["error"]["code"] == "unavailable"
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"max_tokens": 10**6}, 400, "invalid_request_error"),
        ({"max_tokens": "many"}, 400, "invalid_request_error"),
        ({"stream": "yes"}, 400, "invalid_request_error"),
        ({"model": "alias"}, 200, ""),
    ],
)
def test_requests_that_make_no_sense(gateway: Start, fields: dict[str, Any], status: int, code: str) -> None:
    answer = gateway(1).chat(**fields)
    assert answer.status == status
    assert code == (answer.json().get("error") or {"code": ""})["code"]


def test_paths_keys_and_bodies(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(1, max_body=2000)
    assert made.call("POST", "/v1/chat/completions", {"model": MODEL}).status == 401
    assert made.chat(key="sk-somebody-elses").status == 401
    assert made.call("GET", "/v1/chat/completions", key=KEY).status == 405
    assert made.call("POST", "/v1/files", {}, KEY).status == 404
    assert made.chat(messages=[{"role": "user", "content": "x" * 3000}]).status == 413
    assert made.call("POST", "/v1/chat/completions", b"", KEY).status == 411
    names = [entry["id"] for entry in made.call("GET", "/v1/models", key=KEY).json()["data"]]
    assert names == [MODEL, "alias"]
    assert sum(engine.stats()["executions"] for engine in engines) == 0


def test_keys_are_not_guessed(gateway: Start) -> None:
    def few(made: Gateway) -> None:
        made.policy["auth"] = {"strikes": 5, "strike_window_s": 60}

    made = gateway(2, few)
    answers = [made.chat(key=f"sk-guess-{number:08}").status for number in range(12)]
    assert answers.count(401) == 5
    assert answers.count(429) == 7
    # Nobody learns from a right guess either.
    assert made.chat().status == 429


def test_a_stream_has_an_end(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(1, lambda one: only(one, "a"), max_stream_seconds=1)
    engines[0].control(chunk_delay=0.05)
    answer = made.chat(stream=True, max_tokens=1000)
    assert b'"code":"stream_timeout"' in answer.body
    assert b"[DONE]" not in answer.body
    until(lambda: engines[0].stats()["in_flight"] == 0, 10, "the engine to stop")


def test_a_new_configuration_is_used_within_seconds(gateway: Start) -> None:
    made = gateway(2, rpm=1)
    assert [made.chat().status for _number in range(2)] == [200, 429]
    made.write(tiers={"test": made.tier(rpm=4)})
    until(lambda: made.chat().status == 200, 5, "the new limit")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("policy", "{", "policy: is not a JSON object"),
        ("policy", '{"version": 1}', "policy.tiers"),
        ("peers", "[]", "peers"),
    ],
)
def test_a_bad_configuration_changes_nothing(gateway: Start, name: str, text: str, words: str) -> None:
    made = gateway(1)
    assert made.metric("gw_config_reload_success") == 1
    (made.folder / f"{name}.json").write_text(text, encoding="utf-8")
    until(lambda: made.metric("gw_config_reload_success") == 0, 5, "the metric")
    assert made.chat().status == 200
    assert words in made.held()["config"]["error"]
    made.reload()
    time.sleep(1)
    assert made.chat().status == 200
    made.write()
    until(lambda: made.metric("gw_config_reload_success") == 1, 5, "the metric")


def test_a_reload_cuts_no_stream(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(2)
    for engine in engines:
        engine.control(chunk_delay=0.1)
    answers: list[bytes] = []

    def read() -> None:
        answers.append(made.chat(stream=True, max_tokens=30).body)

    threads = [threading.Thread(target=read) for _number in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    made.reload()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert all(answer.endswith(b"data: [DONE]\n\n") and answer.count(b"token") == 30 for answer in answers)
    until(lambda: made.held()["tenants"][0]["concurrency"]["used"] == 0, 5, "everything to be given back")
    # What the old workers counted while they drained is not lost with them.
    until(lambda: made.metric("gw_requests_total", code="200") == 20, 5, "the metric")
    assert made.metric("gw_tokens_total", kind="completion") == 600


def test_the_pages_say_what_is_true(gateway: Start) -> None:
    made = gateway(1, rpm=10)
    made.chat()
    page = made.call("GET", "/", port=made.metrics_port)
    assert page.headers["content-type"].startswith("text/html")
    assert b"tenant" in page.body
    assert b"mock" in page.body
    assert KEY.encode() not in page.body
    assert made.held()["tenants"][0]["rpm"] == {"limit": 10, "used": 1, "share": 0.1}
    # A list of models says nothing of the engines, and is not counted.
    assert made.call("GET", "/v1/models", key=KEY).status == 200
    assert made.metric("gw_requests_total", code="200", tenant="tenant") == 1
