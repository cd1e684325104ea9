# SPDX-License-Identifier: Apache-2.0
"""A mock OpenAI-style engine for tests: standard library only, says "mock" in every answer.

It counts what it executes, so that a test can prove that a request ran exactly once, and it misbehaves on
demand: slow answers, slow chunks, a connection dropped after the request was read, an error status.

    engine.py --listen 127.0.0.1 --port 8001 --name a

  GET  /health                 200
  GET  /v1/models              one model, "mock"
  POST /v1/chat/completions    JSON, or server-sent events with "stream": true
  POST /v1/completions         the same
  GET  /metrics, /slots        present because real engines have them and a gateway must not show them
  GET  /mock/stats             the counters as JSON
  POST /mock/control           JSON object that changes settings while the engine runs (see Settings)
  POST /mock/reset             counters back to zero
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import socket
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclasses.dataclass
class Settings:
    """What the mock does; every field can be changed with POST /mock/control."""

    delay: float = 0.0  # seconds before an answer (or the first chunk)
    chunks: int = 5  # chunks of a stream
    chunk_delay: float = 0.05  # seconds between chunks
    drop: bool = False  # read the request, count it, close the connection without an answer
    cut_after: int = 0  # close a stream after so many chunks (0: never)
    status: int = 200  # answer completions with this status
    retry_after: int = 0  # Retry-After header of an error answer (0: none)
    rejected: bool = False  # an error answer says that the work was refused (X-Engine-Rejected)
    fill: bool = False  # an answer without a stream uses max_tokens, too, and reports that usage
    prompt_tokens: int = 0  # tokens that a prompt is said to have (0: a quarter of the body's bytes)
    continuous_usage: bool = False  # each event of a stream says what has been used so far
    no_usage: bool = False  # answers do not say what they used
    close_after_stream: float = (
        0.0  # so many seconds after a stream, close the connection that was to be kept: llama.cpp does (0: never)
    )


class Counters:
    """What happened so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, int] = {}
        self._request_ids: dict[str, int] = {}
        self._headers: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        with self._lock:
            in_flight = self._values.get("in_flight", 0)
            names = (
                "connections",
                "executions",
                "streams",
                "dropped",
                "aborted",
                "in_flight",
                "max_in_flight",
                "unauthorized",
                "tokens",
            )
            self._values = dict.fromkeys(names, 0)
            self._values["in_flight"] = in_flight
            self._request_ids = {}
            self._headers = {}

    def add(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._values[name] += amount
            self._values["max_in_flight"] = max(self._values["max_in_flight"], self._values["in_flight"])

    def saw(self, request_id: str) -> None:
        if request_id:
            with self._lock:
                self._request_ids[request_id] = self._request_ids.get(request_id, 0) + 1

    def keep(self, headers: dict[str, str]) -> None:
        """Headers of the request that came last; of a key, its hash."""
        kept = {name.lower(): value for name, value in headers.items()}
        if "authorization" in kept:
            kept["authorization"] = hashlib.sha256(kept["authorization"].encode()).hexdigest()
        with self._lock:
            self._headers = kept

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            repeated = {key: count for key, count in self._request_ids.items() if count > 1}
            seen = {"request_ids": len(self._request_ids), "repeated_request_ids": repeated}
            return {**self._values, **seen, "last_headers": self._headers}


class Engine(ThreadingHTTPServer):
    """The server with its settings and counters."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], name: str, api_key: str, keepalive: float, settings: Settings) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.engine_name = name
        self.api_key = api_key
        self.keepalive = keepalive
        self.settings = settings
        self.counters = Counters()
        super().__init__(address, Handler)

    def speak_tls(self, pem: str, client_ca: str) -> None:
        """Answer with the certificate and key of a file, and only to those who show a certificate of the authority.

        :arg pem: file with certificate and key.
        :arg client_ca: file with the authority of clients' certificates.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(pem)
        # The handshake is the thread's of the connection: a client that is slow holds up nobody.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away is not worth a traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Engine
    protocol_version = "HTTP/1.1"
    server_version = "gpufleet-mock-engine"
    sys_version = ""
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.keepalive)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.counters.add("connections")

    def log_message(self, format: str, *args: Any) -> None:
        """The counters are the log."""

    # -- answers ---------------------------------------------------------------------------------------

    def _head(self, status: int, content_type: str, length: int | None, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("X-Mock-Engine", self.server.engine_name)
        for key, value in (extra or {}).items():
            self.send_header(key, value)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            # The client asked for it.
            self.send_header("Connection", "close")
        self.end_headers()

    def _json(self, status: int, payload: Any, extra: dict[str, str] | None = None) -> None:
        body = json.dumps(payload).encode()
        self._head(status, "application/json", len(body), extra)
        self.wfile.write(body)
        self.wfile.flush()

    def _error(self, status: int, message: str, extra: dict[str, str] | None = None) -> None:
        error = {"message": message, "type": "mock_error", "param": None, "code": status}
        self._json(status, {"error": error, "mock": True}, extra)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # -- requests --------------------------------------------------------------------------------------

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = self.server.engine_name
        if path == "/health":
            self._json(200, {"status": "ok", "mock": True})
        elif path == "/mock/stats":
            self._json(200, {"engine": name, "mock": True, **self.server.counters.snapshot()})
        elif path == "/metrics":
            count = self.server.counters.snapshot()["executions"]
            body = f'mock_engine_executions_total{{engine="{name}"}} {count}\n'.encode()
            self._head(200, "text/plain; version=0.0.4", len(body))
            self.wfile.write(body)
        elif path == "/slots":
            self._json(200, [{"id": 0, "mock": True}])
        elif path == "/v1/models":
            if self._authorized():
                self._json(200, {"object": "list", "data": [{"id": "mock", "object": "model", "owned_by": "mock"}]})
        else:
            self._error(404, f"mock engine {name}: no such path")

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        if path == "/mock/control":
            for key, value in json.loads(body).items():
                if key not in Settings.__dataclass_fields__:
                    self._error(400, f"no such setting: {key}")
                    return
                setattr(self.server.settings, key, value)
            self._json(200, dataclasses.asdict(self.server.settings))
        elif path == "/mock/reset":
            self.server.counters.reset()
            self._json(200, {"mock": True})
        elif path in ("/v1/chat/completions", "/v1/completions"):
            if self._authorized():
                self._complete(body)
        else:
            self._error(404, f"mock engine {self.server.engine_name}: no such path")

    def _authorized(self) -> bool:
        if not self.server.api_key or self.headers.get("Authorization") == f"Bearer {self.server.api_key}":
            return True
        self.server.counters.add("unauthorized")
        self._error(401, "wrong or missing API key")
        return False

    def _complete(self, body: bytes) -> None:
        counters, settings = self.server.counters, self.server.settings
        try:
            request = json.loads(body)
        except ValueError:
            self._error(400, "the body is not JSON")
            return
        counters.add("executions")
        counters.saw(self.headers.get("X-Request-Id", ""))
        counters.keep(dict(self.headers.items()))
        counters.add("in_flight")
        try:
            if settings.delay:
                time.sleep(settings.delay)
            if settings.drop:
                counters.add("dropped")
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif settings.status != 200:
                extra = {"Retry-After": str(settings.retry_after)} if settings.retry_after else {}
                if settings.rejected:
                    extra["X-Engine-Rejected"] = "overflow"
                self._error(settings.status, "an error made on purpose", extra)
            elif request.get("stream"):
                self._stream(request, len(body))
            else:
                self._json(200, self._completion(request, len(body)))
        except OSError:
            counters.add("aborted")
            self.close_connection = True
        finally:
            counters.add("in_flight", -1)

    def _usage(self, size: int, completion: int) -> dict[str, int]:
        """What an answer used; counted here, so that a test can compare it with a budget."""
        prompt = self.server.settings.prompt_tokens or size // 4
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _completion(self, request: dict[str, Any], size: int) -> dict[str, Any]:
        name, settings = self.server.engine_name, self.server.settings
        usage = self._usage(size, int(request.get("max_tokens") or 4) if settings.fill else 4)
        self.server.counters.add("tokens", usage["total_tokens"])
        return {
            "id": f"mock-{name}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.get("model", "mock"),
            "system_fingerprint": f"mock-{name}",
            "mock": True,
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": f"mock answer of {name}"},
                }
            ],
            **({} if settings.no_usage else {"usage": usage}),
        }

    def _stream(self, request: dict[str, Any], size: int) -> None:
        counters, settings, name = self.server.counters, self.server.settings, self.server.engine_name
        counters.add("streams")
        total = int(request.get("max_tokens") or settings.chunks)
        self._head(200, "text/event-stream", None, {"Cache-Control": "no-cache"})
        base = {"id": f"mock-{name}", "object": "chat.completion.chunk", "model": "mock", "mock": True}
        wants_usage = not settings.no_usage and (request.get("stream_options") or {}).get("include_usage")
        counters.add("tokens", self._usage(size, 0)["total_tokens"])
        for number in range(total):
            if settings.cut_after and number >= settings.cut_after:
                counters.add("dropped")
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            event = {**base, "choices": [{"index": 0, "delta": {"content": f"token{number} "}, "finish_reason": None}]}
            if wants_usage:
                event["usage"] = self._usage(size, number + 1) if settings.continuous_usage else None
            counters.add("tokens")
            self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            if settings.chunk_delay and number + 1 < total:
                time.sleep(settings.chunk_delay)
        if wants_usage:
            usage = self._usage(size, total)
            self._chunk(b"data: " + json.dumps({**base, "choices": [], "usage": usage}).encode() + b"\n\n")
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
        if settings.close_after_stream:
            time.sleep(settings.close_after_stream)
            self.close_connection = True


def main() -> None:
    parser = argparse.ArgumentParser(description="mock OpenAI-style engine for tests")
    parser.add_argument("--listen", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--name", default="mock")
    parser.add_argument("--api-key-file", default="", help="file with the key that clients must present")
    parser.add_argument("--tls", default="", help="file with certificate and key: speak TLS")
    parser.add_argument("--client-ca", default="", help="file with the authority of the clients, needed with --tls")
    parser.add_argument(
        "--keepalive", type=float, default=5.0, help="seconds an idle connection stays open (uvicorn: 5)"
    )
    for field in dataclasses.fields(Settings):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(field.default), default=field.default)
    args = parser.parse_args()
    api_key = ""
    if args.api_key_file:
        with open(args.api_key_file, encoding="utf-8") as handle:
            api_key = handle.read().strip()
    settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
    engine = Engine((args.listen, args.port), args.name, api_key, args.keepalive, settings)
    if args.tls:
        engine.speak_tls(args.tls, args.client_ca)
    print(f"mock engine {args.name} on {args.listen}:{engine.server_address[1]}", flush=True)
    engine.serve_forever()


if __name__ == "__main__":
    main()
