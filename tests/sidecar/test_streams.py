# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Streams as they come, the drain, gRPC, traces."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from gatewaytools import Engine, Gateway, free_port, until
from sidecartools import HELPER, Led, Sidecar, helper

Start = Callable[..., Sidecar]


def test_a_stream_is_the_engines_byte_for_byte(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine)
    engine.control(chunks=200, continuous_usage=True)
    fields: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    through = made.chat(**fields)
    direct = Sidecar(made.folder, "direct", 0, port=engine.port).chat(**fields)
    assert through.body == direct.body
    assert through.body.count(b"data: ") == 202
    kept = [{name: value.strip() for name, value in one.headers.items() if name != "date"} for one in (through, direct)]
    assert kept[0] == kept[1]


def test_an_engine_that_closes_after_a_stream_costs_nobody_a_request(sidecar: Start, engine: Engine) -> None:
    """llama.cpp promises to keep the connection, and closes it: the next request must not be sent on it."""
    made = sidecar(engine, engine_keepalive=0)
    engine.control(chunks=2, chunk_delay=0, close_after_stream=0.05)
    assert [made.chat(stream=stream).status for _unused in range(10) for stream in (True, False)] == [200] * 20


def begin(made: Sidecar) -> http.client.HTTPResponse:
    """A stream that has begun."""
    link = made.connect()
    link.request("POST", "/v1/chat/completions", b'{"stream": true}')
    return link.getresponse()


def test_an_event_is_not_held_back(sidecar: Start, led: Led) -> None:
    answer = begin(sidecar(led))
    # The engine sends an event only after the one before it was read here.
    for number in range(50):
        led.step()
        assert answer.readline() == b"data: event %d\n" % number
        assert answer.readline() == b"\n"
    led.end()
    assert answer.read() == b"data: [DONE]\n\n"


def drain(made: Sidecar, seconds: float, grace: float = 0) -> subprocess.Popen[str]:
    """The unit's ExecStop."""
    words = [sys.executable, str(HELPER), "drain", f"--admin={made.admin}", f"--grace={grace}", f"--seconds={seconds}"]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def refused(made: Sidecar) -> bool:
    """Does nobody listen any more?"""
    try:
        socket.create_connection(("127.0.0.1", made.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_drain_lets_streams_end_and_takes_nothing_new(sidecar: Start, led: Led) -> None:
    made = sidecar(led)
    answer = begin(made)
    led.step()
    assert answer.readline() == b"data: event 0\n"
    draining = drain(made, 120)
    until(lambda: refused(made), 20, "the listener to be gone")
    assert draining.poll() is None
    for _number in range(3):
        led.step()
    led.end()
    assert answer.read().endswith(b"data: [DONE]\n\n")
    assert draining.wait(60) == 0
    assert draining.stderr
    assert draining.stderr.read() == ""
    made.stop()
    assert made.process
    assert made.process.returncode == 0


def test_the_health_view_says_no_while_requests_are_still_taken(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine)
    draining = drain(made, 5, grace=600)
    until(lambda: made.call("GET", "/health").status == 503, 20, "the health view to say no")
    answer = made.chat()
    assert answer.status == 200
    # Whoever holds a connection learns that it is the last request on it.
    assert answer.headers["connection"] == "close"
    draining.kill()
    draining.wait(10)


def test_who_sends_on_a_connection_of_before_is_still_served(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine)
    with contextlib.closing(made.connect()) as link:
        for last in (False, True):
            link.request("POST", "/v1/chat/completions", b'{"model": "mock"}')
            answer = link.getresponse()
            answer.read()
            assert answer.status == 200
            assert (answer.headers.get("connection") == "close") is last
            if not last:
                draining = drain(made, 120)
                until(lambda: refused(made), 20, "the listener to be gone")
    assert draining.wait(60) == 0


def test_a_restart_behind_a_gateway_loses_nothing(
    sidecar: Start, gateway: Callable[..., Gateway], engines: list[Engine]
) -> None:
    made = [sidecar(engine) for engine in engines]
    front = gateway(made)
    found: dict[int, int] = {}
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            status = front.chat().status
            found[status] = found.get(status, 0) + 1

    threads = [threading.Thread(target=client) for _number in range(4)]
    for thread in threads:
        thread.start()
    before = [engine.stats()["executions"] for engine in engines]
    # The gateways' time to look away is the role's default.
    assert drain(made[0], 60, grace=5).wait(120) == 0
    made[0].stop()
    port = made[0].port
    between = engines[1].stats()["executions"]
    until(lambda: engines[1].stats()["executions"] > between + 20, 30, "requests without the first")
    made[0].start(port=port)
    again = engines[0].stats()["executions"]
    until(lambda: engines[0].stats()["executions"] > again + 20, 60, "requests of the first")
    stop.set()
    for thread in threads:
        thread.join()
    assert list(found) == [200]
    assert [engine.stats()["executions"] for engine in engines] > before


def test_a_drain_is_bounded(sidecar: Start, led: Led) -> None:
    made = sidecar(led)
    answer = begin(made)
    led.step()
    answer.readline()
    draining = drain(made, 0.5)
    assert draining.wait(60) == 0
    assert draining.stderr
    assert draining.stderr.read() == "1 requests are cut after 0.5 s\n"


def test_a_drain_of_nobody_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, str(HELPER), "drain", "--admin=/nowhere/admin.sock", "--seconds=1"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing to drain" in done.stderr


# -- gRPC


class Raw(grpc.GenericRpcHandler):
    """Methods that take and give bytes."""

    def __init__(self, unary: dict[str, Any], streams: dict[str, Any] | None = None) -> None:
        self.unary, self.streams = unary, streams or {}

    def service(self, handler_call_details: Any) -> Any:
        """The method of a name."""
        name = handler_call_details.method
        if name in self.unary:
            return grpc.unary_unary_rpc_method_handler(self.unary[name])
        if name in self.streams:
            return grpc.unary_stream_rpc_method_handler(self.streams[name])
        return None


class GrpcEngine:
    """A gRPC engine with the standard health service: SERVING is 1, NOT_SERVING 2."""

    def __init__(self) -> None:
        self.serving = True
        self.asked = 0
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        unary = {"/grpc.health.v1.Health/Check": self.check, "/test.Engine/Echo": self.echo}
        self.server.add_generic_rpc_handlers((Raw(unary, {"/test.Engine/Count": self.count}),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def check(self, _request: bytes, _context: Any) -> bytes:
        """HealthCheckResponse."""
        return b"\x08\x01" if self.serving else b"\x08\x02"

    def echo(self, request: bytes, _context: Any) -> bytes:
        """The request."""
        self.asked += 1
        return request

    def count(self, request: bytes, _context: Any) -> Iterator[bytes]:
        """So many answers."""
        for number in range(int(request)):
            yield b"%d" % number


@pytest.fixture(name="grpc_engine")
def make_grpc_engine() -> Iterator[GrpcEngine]:
    """A gRPC engine."""
    made = GrpcEngine()
    yield made
    made.server.stop(0)


def heard(echo: Callable[..., bytes]) -> bool:
    """Is there an answer? The thread that works hears of a healthy engine a moment later than the one that looks."""
    try:
        return echo(b"again", timeout=20) == b"again"
    except grpc.RpcError:
        return False


def test_grpc_and_its_health(sidecar: Start, engine: Engine, grpc_engine: GrpcEngine) -> None:
    made = sidecar(engine, engine_grpc_port=grpc_engine.port)
    until(lambda: made.call("GET", "/health").status == 200, 20, "both to be healthy")
    with grpc.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        echo = channel.unary_unary("/test.Engine/Echo")
        until(lambda: heard(echo), 10, "an answer")
        assert echo(b"hello", timeout=20) == b"hello"
        assert list(channel.unary_stream("/test.Engine/Count")(b"20", timeout=20)) == [b"%d" % n for n in range(20)]
        # Plain requests go where they went.
        assert made.chat().json()["mock"] is True
        grpc_engine.serving = False
        until(lambda: made.call("GET", "/health").status == 503, 20, "the health view to say no")
        before = grpc_engine.asked
        with pytest.raises(grpc.RpcError) as caught:
            echo(b"hello", timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert (
            dict(caught.value.initial_metadata() or caught.value.trailing_metadata())["x-engine-rejected"]
            == "unavailable"
        )
        assert grpc_engine.asked == before
        grpc_engine.serving = True
        until(lambda: made.call("GET", "/health").status == 200, 20, "the health view to say yes")
        until(lambda: heard(echo), 10, "an answer")


# -- traces and metrics


class Collector:
    """Takes traces: OTLP over gRPC."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.lock = threading.Lock()
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers(
            (Raw({"/opentelemetry.proto.collector.trace.v1.TraceService/Export": self.export}),)
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def export(self, request: bytes, _context: Any) -> bytes:
        """An empty ExportTraceServiceResponse."""
        with self.lock:
            self.got.append(request)
        return b""

    def has(self, *words: bytes) -> bool:
        """Was there an export with all these bytes?"""
        with self.lock:
            return any(all(word in one for word in words) for one in self.got)


def test_a_trace_goes_on_through_the_sidecar(sidecar: Start, engine: Engine) -> None:
    collector = Collector()
    made = sidecar(engine, otlp_endpoint=f"127.0.0.1:{collector.port}", otlp_service_name="beside-gpu1")
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    assert (
        made.call("POST", "/v1/chat/completions", {"model": "mock"}, traceparent=f"00-{trace}-{span}-01").status == 200
    )
    handed = engine.stats()["last_headers"]["traceparent"].split("-")
    assert handed[1] == trace
    assert handed[2] != span
    until(lambda: collector.has(bytes.fromhex(trace), bytes.fromhex(span), b"beside-gpu1"), 30, "the trace")
    until(lambda: collector.has(bytes.fromhex(handed[2])), 30, "the span that the engine was told")
    # Who is not to be traced is not.
    other = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    made.call("POST", "/v1/chat/completions", {"model": "mock"}, traceparent=f"00-{other}-{span}-00")
    last = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
    made.call("POST", "/v1/chat/completions", {"model": "mock"}, traceparent=f"00-{last}-{span}-01")
    until(lambda: collector.has(bytes.fromhex(last)), 30, "the last trace")
    assert not collector.has(bytes.fromhex(other))
    collector.server.stop(0)


def test_a_collector_that_is_gone_disturbs_nobody(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, otlp_endpoint=f"127.0.0.1:{free_port()}")
    for _number in range(20):
        assert made.chat().status == 200


def test_prometheus_sees_the_sidecar_and_the_engine_and_nothing_else(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, stats_port=free_port())
    made.chat()
    text = made.call("GET", "/stats/prometheus", port=made.stats_port).body.decode()
    assert 'envoy_cluster_upstream_rq_total{envoy_cluster_name="engine"} 1' in text
    assert "envoy_cluster_circuit_breakers_default_remaining_rq" in text
    assert b"mock_engine_executions_total" in made.call("GET", "/metrics", port=made.stats_port).body
    for method, path in (
        ("GET", "/config_dump"),
        ("GET", "/stats"),
        ("GET", "/"),
        ("GET", "/v1/models"),
        ("POST", "/stats/prometheus"),
        ("POST", "/quitquitquit"),
        ("POST", "/healthcheck/fail"),
    ):
        assert made.call(method, path, port=made.stats_port).status == 404, path


def test_the_admin_interface_is_only_its_owners(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine)
    place = made.folder / "admin.sock"
    assert place.stat().st_mode & 0o777 == 0o600
    assert helper.admin(str(place), "GET", "/ready")[0] == 200
    assert made.process
    # Its only ports are those of the configuration.
    shown = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    ports = {line.split()[3].rpartition(":")[2] for line in shown.splitlines() if f"pid={made.process.pid}," in line}
    assert ports == {str(made.port)}
    with contextlib.closing(made.connect()) as link:
        link.request("GET", "/config_dump")
        assert link.getresponse().status == 404
