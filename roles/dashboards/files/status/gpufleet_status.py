# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The status page of the fleet: made from Prometheus, and handed out.

gpufleet_status.py render --config FILE   ask Prometheus once and write index.html and status.json, each whole or not at all
gpufleet_status.py serve  --config FILE   hand these two files out, to the networks of the configuration; /health is 200 while the page is fresh
gpufleet_status.py check  --config FILE   is the configuration right?

Python's standard library only, 3.9 or later.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import ipaddress
import json
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import status_page
import status_source
import status_view

PAGE = "index.html"
DATA = "status.json"
MEMORY = "memory.json"
# What one client may take of the server.
CLIENT_SECONDS = 10.0
CLIENTS = 32


class ConfigError(Exception):
    """The configuration cannot be used; the text says why."""


@dataclass
class Config:
    """The file of the role."""

    directory: Path
    prometheus_url: str
    prometheus_username: str = ""
    prometheus_password_file: str = ""
    prometheus_ca_file: str = ""
    title: str = "Fleet"
    slo_percent: float = 99.9
    interval_seconds: int = 30
    stale_seconds: int = 180
    links: dict[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"
    port: int = 8095
    networks: list[str] = field(default_factory=list)
    tls_certificate: str = ""
    tls_key: str = ""

    @classmethod
    def read(cls, path: str) -> Config:
        """The configuration of a file.

        :raises ConfigError: it cannot be read, or says something that it may not.
        """
        try:
            found = json.loads(Path(path).read_text("utf-8"))
            config = cls(**{**found, "directory": Path(found["directory"])})
            for network in config.networks:
                ipaddress.ip_network(network)
            ipaddress.ip_address(config.address)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        return config


def write(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o640)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def recall(config: Config) -> dict[str, Any]:
    """What the last round left behind; nothing when that cannot be read."""
    try:
        found = json.loads((config.directory / MEMORY).read_text("utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def render(config: Config) -> str:
    """Ask, and write page and data.

    :returns: the sentence of the page.
    """
    now = time.time()
    memory = recall(config)
    try:
        password = ""
        if config.prometheus_password_file:
            password = Path(config.prometheus_password_file).read_text("utf-8").strip()
        source = status_source.Source(
            config.prometheus_url, config.prometheus_username, password, config.prometheus_ca_file
        )
        try:
            found = status_source.collect(source, now, memory)
        finally:
            source.close()
        view = status_view.view_of(found, now, config.slo_percent, config.stale_seconds)
        memory["last"] = view
    except (status_source.SourceError, OSError) as error:
        view = status_view.unknown_view(memory.get("last"), str(error), now, config.slo_percent)
    write(config.directory / PAGE, status_page.page(view, config.title, config.interval_seconds, config.links))
    write(config.directory / DATA, json.dumps(view, separators=(",", ":")) + "\n")
    write(config.directory / MEMORY, json.dumps(memory, separators=(",", ":")))
    return str(view["sentence"])


class Handler(http.server.BaseHTTPRequestHandler):
    """Two files and a health check; everything else is not there."""

    config: Config
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]
    server_version = "gpufleet-status"
    sys_version = ""
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        """Hand out a file."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """The same without the file."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        code, kind, text = self._found()
        content = text.encode()
        self.send_response(code)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": status_page.CSP,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Connection": "close",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        if body:
            self.wfile.write(content)

    def _allowed(self) -> bool:
        client = ipaddress.ip_address(self.client_address[0].partition("%")[0])
        if isinstance(client, ipaddress.IPv6Address) and client.ipv4_mapped:
            client = client.ipv4_mapped
        return any(client in network for network in self.networks)

    def _found(self) -> tuple[int, str, str]:
        if not self._allowed():
            return 403, "text/plain", "This page is for the networks of the fleet's operators.\n"
        path = self.path.partition("?")[0]
        name = {"/": PAGE, f"/{PAGE}": PAGE, f"/{DATA}": DATA, "/health": PAGE}.get(path)
        if name is None:
            return 404, "text/plain", "not found\n"
        try:
            file = self.config.directory / name
            age = time.time() - file.stat().st_mtime
            text = file.read_text("utf-8")
        except OSError:
            return 503, "text/plain", "The page has not been made yet.\n"
        old = age > 3 * self.config.interval_seconds
        if path == "/health":
            return (503, "text/plain", f"the page is {age:.0f} s old\n") if old else (200, "text/plain", "fresh\n")
        if name == DATA:
            return 200, "application/json", text
        return 200, "text/html", text.replace(status_page.AGE_MARK, status_page.age_note(age) if old else "", 1)

    def log_message(self, format: str, *args: Any) -> None:
        """Who looks at the page is not written down."""


class Server(http.server.ThreadingHTTPServer):
    """Bounded: who comes when all places are taken is let go at once."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, config: Config) -> None:
        self.address_family = socket.AF_INET6 if ":" in config.address else socket.AF_INET
        self._places = threading.BoundedSemaphore(CLIENTS)
        self._context: ssl.SSLContext | None = None
        if config.tls_certificate:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._context.load_cert_chain(config.tls_certificate, config.tls_key)
        networks = [ipaddress.ip_network(text) for text in config.networks]
        super().__init__(
            (config.address, config.port), type("Bound", (Handler,), {"config": config, "networks": networks})
        )

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread of its own, when there is a place."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The handshake belongs to the thread: a client that says nothing holds up nobody else."""
        try:
            request.settimeout(CLIENT_SECONDS)
            if self._context:
                request = self._context.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


def main(argv: list[str] | None = None) -> int:
    """One of the three jobs."""
    parser = argparse.ArgumentParser(description="The status page of the fleet.")
    parser.add_argument("job", choices=["render", "serve", "check"])
    parser.add_argument("--config", required=True)
    options = parser.parse_args(argv)
    try:
        config = Config.read(options.config)
    except ConfigError as error:
        print(f"gpufleet_status: {error}", file=sys.stderr)
        return 2
    if options.job == "render":
        print(render(config))
    elif options.job == "serve":
        with Server(config) as server:
            server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
