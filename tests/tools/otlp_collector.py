# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A collector for tests: takes spans over OTLP, as gRPC, and as protobuf or JSON over HTTP, and reads them with OpenTelemetry's own messages.

otlp_collector.py ADDRESS     listen there on 4317 and 4318, and print each span as a line of JSON: for a lab, with fleet_tracing_address
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
# Ids are hexadecimal in OTLP's JSON, and base64 in that of protobuf.
IDS = {"traceId", "spanId", "parentSpanId"}


@dataclass(frozen=True)
class Span:
    """One span, as tests look at it."""

    service: str
    trace: str
    id: str
    parent: str
    name: str
    kind: int
    begin: int
    end: int
    failed: bool
    message: str
    attributes: dict[str, Any] = field(default_factory=dict)


def _value(found: Any) -> Any:
    """The value of an attribute."""
    kind = found.WhichOneof("value")
    return getattr(found, kind) if kind else None


def _attributes(found: Any) -> dict[str, Any]:
    return {item.key: _value(item.value) for item in found}


def _binary_ids(node: Any) -> Any:
    """Ids as protobuf's JSON wants them."""
    if isinstance(node, dict):
        return {
            key: base64.b64encode(bytes.fromhex(value)).decode() if key in IDS else _binary_ids(value)
            for key, value in node.items()
        }
    return [_binary_ids(item) for item in node] if isinstance(node, list) else node


def read(body: bytes, kind: str) -> list[Span]:
    """The spans of a message.

    :arg body: the message.
    :arg kind: its content type, ``application/json`` or ``application/x-protobuf``.
    :raises ValueError: it is none that a collector would take.
    """
    message = ExportTraceServiceRequest()
    if kind == "application/json":
        json_format.ParseDict(_binary_ids(json.loads(body)), message)
    else:
        message.ParseFromString(body)
    spans = []
    for resource in message.resource_spans:
        service = _attributes(resource.resource.attributes).get("service.name", "")
        for scope in resource.scope_spans:
            spans += [
                Span(
                    service,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.name,
                    span.kind,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == 2,
                    span.status.message,
                    {
                        **{f"resource.{k}": v for k, v in _attributes(resource.resource.attributes).items()},
                        **_attributes(span.attributes),
                    },
                )
                for span in scope.spans
            ]
    for span in spans:
        if len(span.trace) != 32 or len(span.id) != 16 or len(span.parent) not in (0, 16) or span.end < span.begin:
            raise ValueError(f"expected a span with good ids and times, found {span}")
    return spans


class Collector:
    """Listens on two ports, ``http`` and ``grpc``. ``status`` is what it answers over HTTP, ``reject`` how many spans it then refuses.

    :arg address: where; loopback unless said otherwise.
    :arg ports: for HTTP and for gRPC; 0 for any.
    """

    def __init__(self, address: str = "127.0.0.1", ports: tuple[int, int] = (0, 0)) -> None:
        self.spans: list[Span] = []
        self.problems: list[str] = []
        self.bodies: list[bytes] = []
        self.status = 200
        self.reject = 0
        self.pause = threading.Event()
        self.pause.set()
        self.http_server = ThreadingHTTPServer((address, ports[0]), self._handler())
        self.http_server.daemon_threads = True
        self.http = int(self.http_server.server_address[1])
        threading.Thread(target=self.http_server.serve_forever, daemon=True).start()
        self.grpc_server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(self._export)
        self.grpc_server.add_generic_rpc_handlers((_Service({METHOD: handler}),))
        self.grpc = int(self.grpc_server.add_insecure_port(f"{address}:{ports[1]}"))
        self.grpc_server.start()

    def take(self, body: bytes, kind: str) -> None:
        """Read a message, or say why not."""
        self.bodies.append(body)
        try:
            self.spans += read(body, kind)
        except Exception as exc:
            self.problems.append(f"{type(exc).__name__}: {exc}")
            raise

    def _export(self, body: bytes, _context: Any) -> bytes:
        self.take(body, "application/x-protobuf")
        return bytes(ExportTraceServiceResponse().SerializeToString())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            """OTLP over HTTP."""

            def do_POST(self) -> None:
                """One message."""
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.pause.wait(30)
                status, kind = collector.status, self.headers["Content-Type"]
                if self.path != "/v1/traces":
                    status = 404
                if status == 200:
                    try:
                        collector.take(body, kind)
                    except Exception:
                        status = 400
                answer = ExportTraceServiceResponse()
                answer.partial_success.rejected_spans = collector.reject
                text = json_format.MessageToJson(answer).encode() if status == 200 else b"no"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler

    def until(self, question: Callable[[list[Span]], Any], seconds: float = 20, what: str = "the spans") -> list[Span]:
        """Wait until the spans are as the question wants them, and return them all."""
        limit = time.monotonic() + seconds
        while not question(list(self.spans)):
            assert not self.problems, self.problems
            assert time.monotonic() < limit, f"waited {seconds} s for {what}, found {self.spans}"
            time.sleep(0.05)
        return list(self.spans)

    def of(self, trace: str) -> list[Span]:
        """The spans of a trace."""
        return [span for span in self.spans if span.trace == trace]

    def close(self) -> None:
        """Take nothing more."""
        self.http_server.shutdown()
        self.http_server.server_close()
        self.grpc_server.stop(0)


class _Service(grpc.GenericRpcHandler):
    """A service by the names of its methods, with messages as bytes."""

    def __init__(self, methods: dict[str, Any]) -> None:
        self.methods = methods

    def service(self, handler_call_details: Any) -> Any:
        """Who answers a call."""
        return self.methods.get(handler_call_details.method)


@contextlib.contextmanager
def running() -> Iterator[Collector]:
    """A collector for a while."""
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()


def main() -> None:
    """Print what comes until it is stopped."""
    collector = Collector(sys.argv[1], (4318, 4317))
    shown = 0
    while True:
        for span in collector.spans[shown:]:
            shown += 1
            print(json.dumps(asdict(span)), flush=True)
        for problem in collector.problems:
            print(problem, file=sys.stderr, flush=True)
        collector.problems.clear()
        time.sleep(0.2)


if __name__ == "__main__":
    main()
