# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Engines that send in odd pieces, and clients that send anything."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gatewaytools import KEY, MODEL, Engine, Gateway, free_port

Start = Callable[..., Gateway]
USAGE = (
    b'"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":3}}'
)
EVENTS = [
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"a \\"usage\\":{\\"prompt_tokens\\":99} b"}}],"usage":null}\n\n',
    b": ping\n\n",
    b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"\xe4\xbd\xa0\xe5\xa5\xbd"}}],"usage":null}\n\n',
    b'data: {"id":"c","choices":[],' + USAGE + b"}\n\n",
    b"data: [DONE]\n\n",
]
STREAM = b"".join(EVENTS)
# What a client that did not ask for usage would have had from the engine.
PLAIN = b"".join(event.replace(b',"usage":null', b"") for event in EVENTS if USAGE not in event)


class Splitter:
    """An engine that sends one stream in two pieces, cut where it is told."""

    def __init__(self) -> None:
        self.port = free_port()
        self.cut = 0
        # What it was asked last.
        self.body = b""
        self.server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """One connection after the other."""
        while True:
            try:
                link, _address = self.server.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), link:
                self.answer(link)

    def answer(self, link: socket.socket) -> None:
        """Read a request and send the stream."""
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        while b"\r\n\r\n" not in data:
            part = link.recv(65536)
            if not part:
                return
            data += part
        head, _blank, body = data.partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        while len(body) < length:
            body += link.recv(65536)
        self.body = body
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        link.sendall(STREAM[: self.cut])
        time.sleep(0.002)
        link.sendall(STREAM[self.cut :])


@pytest.fixture(name="splitter")
def make_splitter() -> Iterator[Splitter]:
    made = Splitter()
    yield made
    made.server.close()


def only(splitter: Splitter) -> Callable[[Gateway], None]:
    """A pool with that engine alone."""

    def change(made: Gateway) -> None:
        peer = made.peers["pools"][0]["peers"][0]
        made.peers["pools"][0]["peers"] = [{**peer, "name": "splitter", "port": splitter.port}]

    return change


@pytest.mark.parametrize("asked", [False, True])
def test_usage_is_found_wherever_tcp_splits_a_stream(gateway: Start, splitter: Splitter, asked: bool) -> None:
    made = gateway(1, only(splitter), tpm=10_000_000)
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "max_tokens": 50,
    }
    if asked:
        body["stream_options"] = {"include_usage": True}
    for cut in range(1, len(STREAM)):
        splitter.cut = cut
        answer = made.call("POST", "/v1/chat/completions", body, KEY)
        assert answer.body == (STREAM if asked else PLAIN), f"cut at {cut}"
    count = len(STREAM) - 1
    assert made.metric("gw_tokens_total", kind="prompt") == 7 * count
    assert made.metric("gw_tokens_total", kind="completion") == 2 * count
    # Exactly what was used, and nothing of what had been reserved, counts.
    assert made.held()["tenants"][0]["tpm"]["used"] == 9 * count


def pieces_of(data: bytes, count: int) -> Iterator[bytes]:
    """The data in so many pieces, with a pause between them."""
    size = len(data) // count + 1
    for start in range(0, len(data), size):
        yield data[start : start + size]
        time.sleep(0.02)


# Bytes around what is scanned where it lies, what is kept in memory, and what goes into a file.
@pytest.mark.parametrize("size", [60_000, 66_000, 300_000, 1_500_000])
@pytest.mark.parametrize("sent", ["whole", "in pieces", "chunked"])
def test_large_bodies_reach_the_engine_as_they_are(gateway: Start, splitter: Splitter, size: int, sent: str) -> None:
    def named(made: Gateway) -> None:
        only(splitter)(made)
        made.peers["pools"][0]["aliases"] = ["another-name"]

    made = gateway(1, named, tpm=10**8, max_body=4 * 1024 * 1024)
    splitter.cut = len(STREAM) // 2
    # Half of it one string, with all that ends one or seems to; half of it many small ones.
    long = 'a "quoted" \\ {word} \u00e9\n' * (size // 2 // 24)
    small = [{"role": "user", "content": f'number "{number}"'} for number in range(size // 2 // 46)]
    whole = {
        "messages": [{"role": "system", "content": long}, *small],
        "model": MODEL,
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    bare = {"messages": whole["messages"], "model": "another-name", "stream": True}
    for request in (whole, bare):
        data = json.dumps(request, ensure_ascii=False).encode()
        assert size * 0.9 < len(data) < size * 1.2
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        if sent != "chunked":
            headers["Content-Length"] = str(len(data))
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", made.port, timeout=30)) as link:
            body = data if sent == "whole" else pieces_of(data, 5)
            link.request("POST", "/v1/chat/completions", body, headers, encode_chunked=sent == "chunked")
            answer = link.getresponse()
            content = answer.read()
        assert (answer.status, content) == (200, STREAM if request is whole else PLAIN)
        if request is whole:
            assert splitter.body == data
        else:
            # What the gateway adds stands in front; all else but the name is what the client has sent.
            assert splitter.body.endswith(data[1:].replace(b"another-name", MODEL.encode()))
            assert json.loads(splitter.body) == {
                **bare,
                "model": MODEL,
                "max_tokens": made.policy["tiers"]["test"]["default_max_tokens"],
                "stream_options": {"include_usage": True},
            }
    assert made.metric("gw_lua_errors_total") == 0


@pytest.mark.parametrize("size", [60_000, 300_000])
def test_what_is_wrong_with_a_large_body_is_named(gateway: Start, splitter: Splitter, size: int) -> None:
    made = gateway(1, only(splitter), max_body=4 * 1024 * 1024, tpm=10**8)
    start = '{"model": "' + MODEL + '", "prompt": "' + "x" * size + '"'
    for body, words in (
        (start + ', "n": 01}', f"a number is malformed at byte {len(start) + 8}"),
        (start, f"at byte {len(start) + 1}"),
        (start + ', "model": "other"}', f"model: given twice, the second time at byte {len(start) + 12}"),
        (start + ', "max_tokens": 0}', "max_tokens: expected a whole number from 1"),
    ):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", made.port, timeout=30)) as link:
            link.request("POST", "/v1/completions", body.encode(), {"Authorization": f"Bearer {KEY}"})
            answer = link.getresponse()
            said = json.loads(answer.read())["error"]["message"]
        assert answer.status == 400
        assert words in said
    assert splitter.body == b""


def test_anything_may_be_sent(gateway: Start, engines: list[Engine]) -> None:
    """Bodies with errors at random places end in an answer that says so, never in an error of the gateway."""
    made = gateway(2, max_body=20_000)
    chance = random.SystemRandom()
    good = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": 'a "quoted" [word] {here}'}],
            "stream": False,
            "max_tokens": 5,
            "stream_options": {"include_usage": True},
            "n": 1,
        }
    ).encode()
    statuses: dict[int, int] = {}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", made.port, timeout=10)) as link:
        for _number in range(3000):
            body = bytearray(good)
            for _change in range(chance.randrange(1, 4)):
                place = chance.randrange(len(body))
                kind = chance.randrange(3)
                if kind == 0:
                    body[place] = chance.randrange(256)
                elif kind == 1:
                    del body[place]
                else:
                    body[place:place] = chance.choice([b'"', b"{", b"}", b"[", b"\\", b"\0", b"1e999", b',"n":2'])
            link.request("POST", "/v1/chat/completions", bytes(body), {"Authorization": f"Bearer {KEY}"})
            answer = link.getresponse()
            content = answer.read()
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            if answer.status != 200:
                assert json.loads(content)["error"]["message"]
    assert set(statuses) <= {200, 400, 404}, statuses
    assert statuses[400] > 500
    assert made.metric("gw_lua_errors_total") == 0
    assert "runtime error" not in made.log()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        "Bearer " + "x" * 5000,
        "Bearer a b c d e f g h",
        "Bearer \x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f",
    ],
)
def test_odd_keys_are_refused(gateway: Start, value: str) -> None:
    answer = gateway(1).call(
        "POST", "/v1/chat/completions", {"model": MODEL, "messages": []}, headers={"Authorization": value}
    )
    assert answer.status == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
