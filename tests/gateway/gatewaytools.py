# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A gateway of its own on loopback: the distribution's nginx, the role's templates and Lua, mock engines behind it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import lua_tools

ROOT = Path(os.environ.get("GPUFLEET_ROOT") or Path(__file__).resolve().parents[2])
ROLE = ROOT / "roles" / "gateway"

KEY = "sk-test-0123456789abcdef"
MODEL = "mock"
# A trace of a client, and its span in it.
TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# Every limit off.
FREE: dict[str, Any] = {
    "rpm": 0,
    "burst_rps": 0,
    "tpm": 0,
    "tpd": 0,
    "concurrency": 0,
    "max_tokens": 100000,
    "default_max_tokens": 16,
    "max_body": 4 * 1024 * 1024,
    "max_stream_seconds": 600,
    "priority": "standard",
    "queue_ms": 0,
    "prompt_estimate": "typical",
}

# Sizes of the shared dicts.
MEMORY = {
    "rate": "32m",
    "slots": "4m",
    "ledger": "4m",
    "breaker": "2m",
    "strikes": "2m",
    "metrics": "8m",
    "conf": "8m",
}


def sha(key: str) -> str:
    """What the gateway knows of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(question: Any, seconds: float = 10, what: str = "it to become true") -> Any:
    """Ask until the answer is true, and return it."""
    limit = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < limit, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The processes that a process has made: the workers of an nginx."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Engine:
    """A mock engine in a process of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Run it, for the first time or after its end."""
        argv = [sys.executable, str(ROOT / "tests/mock/engine.py"), "--port", str(self.port), "--name", self.name]
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until(self.answers, 60, f"engine {self.name}")

    def answers(self) -> bool:
        """Does it accept connections?"""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the engine itself."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as link:
            link.request(method, path, json.dumps(body) if body is not None else None)
            return json.loads(link.getresponse().read())

    def control(self, **settings: Any) -> None:
        """Change what it does."""
        self.call("POST", "/mock/control", settings)

    def stats(self) -> dict[str, Any]:
        """What happened to it."""
        return dict(self.call("GET", "/mock/stats"))

    def reset(self) -> None:
        """Counters to zero."""
        self.call("POST", "/mock/reset", {})

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait(10)


def headers_seen(engines: list[Engine]) -> dict[str, str]:
    """Those of the request that came last, at the one engine that has had any since all were reset."""
    (found,) = [seen for seen in (engine.stats()["last_headers"] for engine in engines) if seen]
    return dict(found)


@dataclass
class Gateway:
    """One nginx with the role's Lua."""

    folder: Path
    engines: list[Engine]
    workers: int = 2
    policy: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, str] = field(default_factory=lambda: dict(MEMORY))
    port: int = 0
    metrics_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    # Certificate and key for engines in one file, and their authority in another; without them, plain HTTP.
    client_pem: Path | None = None
    client_ca: Path | None = None
    # Port of a collector on loopback, and what differs from the role's defaults; without a port, no spans.
    collector: int = 0
    tracing: dict[str, Any] = field(default_factory=dict)
    # A line of the role's log for each request, in access.log.
    access_log: bool = False

    # -- files

    def tier(self, **limits: Any) -> dict[str, Any]:
        """A tier without limits but for those given."""
        return {**FREE, **limits}

    def write(self, **changes: Any) -> None:
        """Write both files, each at once, and with an id that follows from what it says."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.policy = {**self.policy, **changes}
        for name, content in (("policy", self.policy), ("peers", self.peers)):
            body = {key: value for key, value in content.items() if key != "id"}
            digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            path = self.folder / f"{name}.json"
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps({"id": digest, **body}), encoding="utf-8")
            fresh.replace(path)

    def default_peers(self) -> dict[str, Any]:
        """All engines in one pool."""
        peers = [
            {
                "name": engine.name,
                "address": "127.0.0.1",
                "port": engine.port,
                "weight": 1,
                "capacity_tokens": 10_000_000,
                "max_inflight": 100_000,
                "region": "default",
                "state": "up",
                "sni": "",
            }
            for engine in self.engines
        ]
        pool = {"name": MODEL, "aliases": ["alias"], "default": False, "context_tokens": 131072, "peers": peers}
        return {
            "version": 1,
            "local_region": "default",
            "regions": {"default": {"priority": 0}},
            "pools": [pool],
        }

    def default_policy(self, **limits: Any) -> dict[str, Any]:
        """One tenant, and every limit off but for those given."""
        return {
            "version": 1,
            "tiers": {"test": self.tier(**limits)},
            "tenants": [{"id": "tenant", "tier": "test", "keys_sha256": [sha(KEY)], "overrides": {}, "models": []}],
            "token_cost": {"prompt": 1, "cached_prompt": 1, "completion": 1},
            "windows": {"requests_s": 60, "tokens_s": 60, "day_s": 86400, "buckets": 60},
            "breaker": {
                "window_s": 10,
                "min_requests": 20,
                "error_rate": 0.5,
                "consecutive": 5,
                "open_base_s": 1,
                "open_max_s": 8,
                "half_open_probes": 2,
                "success_needed": 3,
            },
            "slow_start": {"window_s": 0, "min_percent": 10, "aggression": 1},
            "retry": {"budget_percent": 10, "floor": 3, "max_tries": 2, "max_first_try_ms": 2000},
            "affinity": {"mode": "off", "bytes": 4096, "max_load_factor": 1.25},
            "shed": {
                "thresholds": {"batch": 0.7, "standard": 0.9, "premium": 1.0},
                "max_waiters": {"batch": 64, "standard": 256, "premium": 512},
                "ttft_target_ms": 0,
            },
            "health": {"path": "/health", "interval_s": 1, "timeout_ms": 1000, "fall": 2, "rise": 1},
            "stream": {"first_byte_s": 60, "gap_s": 30},
            "auth": {"strikes": 1000, "strike_window_s": 60},
            "operator_networks": ["127.0.0.0/8"],
        }

    def render(self) -> Path:
        """nginx.conf with the role's own parts for the Lua balancer."""
        loader = jinja2.FileSystemLoader(ROLE / "templates")
        env = jinja2.Environment(
            loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=jinja2.select_autoescape()
        )
        env.filters["bool"] = bool
        # Debian's packages, unpacked: its Lua libraries lie below that tree.
        share = lua_tools.PREFIX / "usr/share/lua/5.1"
        values = {
            "__gateway_lua_dir": f"{ROLE / 'files' / 'lua'}/?.lua;{share}",
            "__gateway_policy_file": str(self.folder / "policy.json"),
            "__gateway_peers_file": str(self.folder / "peers.json"),
            "__gateway_lua_id": "test",
            "__gateway_engine_key_file": str(self.folder / "engine.conf"),
            "gateway_peer_tls": self.client_pem is not None,
            "__gateway_peer_tls_file": str(self.client_pem),
            "__gateway_peer_tls_ca_file": str(self.client_ca),
            "gateway_lua_memory": self.memory,
            "gateway_upstream_keepalive": 256,
            "gateway_upstream_keepalive_timeout": 2,
            "gateway_tries_timeout": 10,
            "gateway_connect_timeout": 2,
            "gateway_send_timeout": 30,
            "gateway_read_timeout": 60,
            "gateway_balancer": "lua",
            "__gateway_peer_variable": "gw_peer",
            "__gateway_tracing": bool(self.collector),
            "__gateway_tracing_host": "127.0.0.1",
            "__gateway_tracing_port": self.collector,
            "__gateway_tracing_path": "/v1/traces",
            "gateway_tracing_timeout_ms": 2000,
            "gateway_tracing_sampling_percent": 100,
            "gateway_tracing_follow_clients": True,
            "gateway_tracing_errors": True,
            "gateway_tracing_queue": 4096,
            "gateway_tracing_batch": 128,
            "gateway_tracing_service_name": "gateway",
            "inventory_hostname": "gw1",
            "fleet_region": "eu",
            **self.tracing,
        }
        parts = {
            name: env.get_template(f"etc/nginx/balancers/lua/{name}.conf.j2").render(values)
            for name in ("http", "location", "metrics")
        }
        parts.update(
            {
                name: env.get_template(f"etc/nginx/parts/{name}.conf.j2").render(values)
                for name in ("request", "log_format", "proxy")
            }
        )
        modules = lua_tools.PREFIX / "usr/lib/nginx/modules"
        text = f"""
load_module {modules}/ndk_http_module.so;
load_module {modules}/ngx_http_lua_module.so;
daemon off;
user root;
worker_processes {self.workers};
pcre_jit on;
worker_shutdown_timeout 60s;
pid {self.folder}/nginx.pid;
error_log {self.folder}/error.log notice;
events {{ worker_connections 4096; }}
http {{
    client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy; fastcgi_temp_path {self.folder}/f;
    uwsgi_temp_path {self.folder}/u; scgi_temp_path {self.folder}/s;
    uninitialized_variable_warn off;
{parts["request"]}
{parts["log_format"]}
    access_log {f"{self.folder}/access.log gateway buffer=64k flush=1s" if self.access_log else "off"};
    client_max_body_size 16m; client_body_buffer_size 1m;
    keepalive_requests 1000000;
    lua_package_cpath "{lua_tools.library()}/lua/5.1/?.so;;";
{parts["http"]}
    server {{
        listen 127.0.0.1:{self.port} reuseport backlog=4096;
        location /v1/ {{
            proxy_pass {"https" if self.client_pem else "http"}://engines;
            proxy_http_version 1.1;
{parts["proxy"]}
{parts["location"]}
        }}
    }}
    server {{
        listen 127.0.0.1:{self.metrics_port};
        access_log off;
{parts["metrics"]}
    }}
}}
"""
        # The engine's own key would be in it.
        (self.folder / "engine.conf").write_text("", encoding="utf-8")
        path = self.folder / "nginx.conf"
        path.write_text(text, encoding="utf-8")
        return path

    # -- life

    def start(self, **limits: Any) -> Gateway:
        """Start it and wait until it answers."""
        self.port, self.metrics_port = free_port(), free_port()
        self.policy = self.policy or self.default_policy(**limits)
        self.peers = self.peers or self.default_peers()
        self.write()
        argv = [str(lua_tools.program("nginx")), "-p", str(self.folder), "-c", str(self.render())]
        env = {**os.environ, **lua_tools.variables()}
        with (self.folder / "stderr").open("wb") as errors:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=env)
        until(self.alive, 60, "nginx")
        return self

    def alive(self) -> bool:
        """Does it answer? When it has ended, say why."""
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError):
            return self.call("GET", "/metrics", port=self.metrics_port).status == 200
        return False

    def log(self) -> str:
        """What nginx said."""
        found = [
            path.read_text("utf-8", "replace")
            for path in (self.folder / "stderr", self.folder / "error.log")
            if path.exists()
        ]
        return "\n".join(found)[-6000:]

    def stop(self) -> None:
        """End it."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(20)

    def reload(self) -> None:
        """As systemctl reload nginx."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def worker_pids(self) -> list[int]:
        """The workers that there are."""
        assert self.process is not None
        return children(self.process.pid)

    # -- requests

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str = "",
        headers: dict[str, str] | None = None,
        port: int = 0,
        seconds: float = 30,
    ) -> Answer:
        """One request on a connection of its own."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=seconds)) as link:
            words = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            link.request(method, path, data, {**words, **(headers or {})})
            answer = link.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def chat(self, key: str = KEY, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
        """One completion."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **fields}
        return self.call("POST", "/v1/chat/completions", body, key, headers)

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of that name with these labels."""
        text = self.call("GET", "/metrics", port=self.metrics_port).body.decode()
        total = 0.0
        for line in text.splitlines():
            if line.startswith((f"{name} ", f"{name}{{")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rpartition(" ")[2])
        return total

    def held(self) -> dict[str, Any]:
        """What is in flight, as the status page has it."""
        return dict(self.call("GET", "/status.json", port=self.metrics_port).json())


@dataclass
class Storm:
    """Many clients at once, each with one connection: what they were told, each with when it was sent and answered."""

    gateway: Gateway
    clients: int = 128
    seconds: float = 3.0
    key: str = KEY
    fields: dict[str, Any] = field(default_factory=dict)
    results: list[tuple[float, float, int, bytes]] = field(default_factory=list)

    def run(self) -> Storm:
        """Send until the time is over."""
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **self.fields}).encode()
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        end = time.monotonic() + self.seconds
        lock = threading.Lock()

        def client() -> None:
            link = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=30)
            mine = []
            while time.monotonic() < end:
                sent = time.monotonic()
                try:
                    link.request("POST", "/v1/chat/completions", body, head)
                    answer = link.getresponse()
                    content = answer.read()
                    mine.append((sent, time.monotonic(), answer.status, content))
                except (OSError, http.client.HTTPException):
                    link.close()
                    mine.append((sent, time.monotonic(), 0, b""))
            link.close()
            with lock:
                self.results.extend(mine)

        threads = [threading.Thread(target=client) for _number in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def count(self, status: int) -> int:
        """How many had that status."""
        return sum(1 for _sent, _answered, found, _body in self.results if found == status)
