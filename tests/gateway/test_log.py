# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The log's line for a request, and the name that a request has in it, at the engine and in traces."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
from gatewaytools import CLIENT, KEY, MODEL, TRACE, Engine, Gateway, headers_seen, until

Start = Callable[..., Gateway]


@pytest.fixture(name="logged")
def make_logged(gateway: Start) -> Gateway:
    """A gateway that writes its log."""

    def prepare(made: Gateway) -> None:
        made.access_log = True

    return gateway(1, prepare)


def lines(made: Gateway, number: int) -> list[dict[str, Any]]:
    """The log, once it has so many lines: nginx keeps them for up to a second."""
    path = made.folder / "access.log"
    until(lambda: path.exists() and len(path.read_text("utf-8").splitlines()) >= number, 15, f"{number} lines")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def engine_saw(engines: list[Engine]) -> str:
    """The request id that came last, at whichever engine; both are as new afterwards."""
    found = headers_seen(engines)["x-request-id"]
    for engine in engines:
        engine.reset()
    return found


def test_a_request_has_one_name(logged: Gateway, engines: list[Engine]) -> None:
    given: list[dict[str, str]] = [
        {},
        {"traceparent": f"00-{TRACE}-{CLIENT}-01"},
        {"traceparent": f"00-{TRACE}-{CLIENT}-01"},
        {"traceparent": "00-0000-1-zz"},
        {"X-Request-Id": "of.the-client_1"},
        {"X-Request-Id": "of.the-client_1", "traceparent": f"00-{TRACE}-{CLIENT}-01"},
        {"X-Request-Id": "no id\\"},
        {"X-Request-Id": "short"},
    ]
    seen = []
    for headers in given:
        assert logged.chat(headers=headers).status == 200
        seen.append(engine_saw(engines))
    found = lines(logged, len(given))
    assert [line["request_id"] for line in found] == seen
    made = [name for name in seen if name != "of.the-client_1"]
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in made)
    assert len(set(made)) == len(made) == 6
    assert seen[4:6] == ["of.the-client_1", "of.the-client_1"]
    # Whoever has the name of a request that began a trace has that of the trace; requests of a client's trace differ.
    assert [found[0]["trace"], found[3]["trace"]] == [seen[0], seen[3]]
    assert [line["trace"] for line in (found[1], found[2], found[5])] == [TRACE] * 3
    assert TRACE not in seen


def test_a_line_says_what_was_asked_and_no_key(logged: Gateway, engines: list[Engine]) -> None:
    asked = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "the-prompt-of-this-test"}]}
    path = "/v1/chat/completions"
    key = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for where in (path, f"{path}?key=geheim-1&a=?", f"{path}?"):
        assert logged.call("POST", where, asked, headers=key).status == 200
    assert logged.call("GET", "/v1/models?geheim-2", headers=key).status == 200
    assert logged.call("PURGE", "/v1/models", headers=key).status == 405
    assert logged.call("POST", "/v1/embeddings?geheim-3", {"model": "nobody", "input": "x"}, headers=key).status == 404
    engines[0].control(status=500)
    engines[1].control(status=500)
    assert logged.call("POST", path, asked, headers=key).status == 500
    with socket.create_connection(("127.0.0.1", logged.port), timeout=10) as link:
        link.sendall(b"nonsense geheim-4\r\n\r\n")
        while link.recv(4096):
            pass
    text = json.dumps(found := lines(logged, 8))
    assert [(line["method"], line["path"], line["status"]) for line in found] == [
        ("POST", path, 200),
        ("POST", path, 200),
        ("POST", path, 200),
        ("GET", "/v1/models", 200),
        ("PURGE", "/v1/models", 405),
        ("POST", "/v1/embeddings", 404),
        ("POST", path, 500),
        ("", "", 400),
    ]
    assert [line["tenant"] for line in found] == ["tenant"] * 7 + [""]
    assert [line["tokens"] != "" for line in found] == [True] * 3 + [False] * 3 + [True, False]
    assert "geheim" not in text
    assert KEY not in text
    assert "the-prompt-of-this-test" not in text
