# SPDX-License-Identifier: Apache-2.0
"""The probe against a real HTTP server whose answers are set by each test."""

from __future__ import annotations

import json
import threading
import time
import typing as t
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import (
    Endpoint,
    ProbeError,
    probe,
    share_problems,
)


class Server(ThreadingHTTPServer):
    """Answers like an engine; the attributes say how."""

    daemon_threads = True
    models: tuple[str, ...] = ("m1",)
    content = "Hello"
    stream_end = "data: [DONE]\n\n"
    status = 200
    key = "secret"
    served = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: t.Any) -> None:
        """Silence."""

    def _send(self, status: int, body: str, kind: str = "application/json") -> None:
        self.server.served += 1
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("X-Gateway-Peer", "gpu1" if self.server.served % 5 < 3 else "gpu2")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": name} for name in self.server.models]}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {self.server.key}":
            self._send(401, '{"error": "who are you"}')
        elif asked["stream"]:
            # Times are told in milliseconds: one that is there.
            time.sleep(0.003)
            event = "data: " + json.dumps({"choices": [{"delta": {"content": "x"}}]}) + "\n\n"
            self._send(200, event * 3 + self.server.stream_end, "text/event-stream")
        else:
            message = {"choices": [{"message": {"content": self.server.content}}], "usage": {"completion_tokens": 4}}
            self._send(self.server.status, json.dumps(message))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def ask(server: Server, key: str = "secret", model: str = "", requests: int = 0) -> dict[str, t.Any]:
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}", key, timeout=5)
    return probe(endpoint, model, "Hi", 8, requests, "X-Gateway-Peer").as_dict()


def test_a_good_endpoint_is_measured(server: Server) -> None:
    found = ask(server, requests=10)
    assert (found["model"], found["answer"], found["completion_tokens"], found["stream_chunks"]) == (
        "m1",
        "Hello",
        4,
        3,
    )
    assert found["peers"] == {"gpu1": 6, "gpu2": 4}
    assert found["statuses"] == {"200": 10}
    assert 0 < found["ttft_seconds"] <= found["stream_seconds"]
    assert "answered by gpu1 6, gpu2 4" in found["summary"]


def test_a_wrong_key(server: Server) -> None:
    with pytest.raises(ProbeError, match=r"expected status 200, found 401: .*who are you"):
        ask(server, key="wrong")


def test_no_model(server: Server) -> None:
    server.models = ()
    with pytest.raises(ProbeError, match="expected at least one model"):
        ask(server)


def test_another_model(server: Server) -> None:
    with pytest.raises(ProbeError, match="expected m2, found m1"):
        ask(server, model="m2")


def test_an_empty_answer(server: Server) -> None:
    server.content = " "
    with pytest.raises(ProbeError, match="found an empty one"):
        ask(server)


def test_a_stream_that_is_cut(server: Server) -> None:
    server.stream_end = ""
    with pytest.raises(ProbeError, match=r"expected data: \[DONE\], found the end after 3 chunks"):
        ask(server)


def test_an_engine_that_fails(server: Server) -> None:
    server.status = 502
    with pytest.raises(ProbeError, match="expected status 200, found 502"):
        ask(server)


@pytest.mark.parametrize("url", ["ftp://x", "gateway", "https://"])
def test_a_bad_url(url: str) -> None:
    with pytest.raises(ProbeError, match="url: expected http"):
        probe(Endpoint(url), "", "Hi", 1, 0, "X")


def test_shares() -> None:
    weights = {"gpu1": 3, "gpu2": 2}
    assert share_problems({"gpu1": 12, "gpu2": 8}, weights, 0.1) == []
    assert share_problems({"gpu1": 20}, weights, 0.5) == ["peer gpu2 answered 0 of 20 requests; expected about 8"]
    assert share_problems({"gpu1": 18, "gpu2": 2}, weights, 0.1) == [
        "peer gpu1 answered 90% of 20 requests; expected 60% +- 10% by weight",
        "peer gpu2 answered 10% of 20 requests; expected 40% +- 10% by weight",
    ]
    assert share_problems({"gpu3": 1, "gpu1": 1}, {"gpu1": 1}, 0.6) == [
        "peer gpu3 answered 1 requests; expected none of it"
    ]
    assert len(share_problems({}, weights, 0.1)) == 2
