# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Jaeger's program, which cannot be had here: its commands, its ports and the answers that the role asks for, and none of its work.

jaeger validate --config=FILE     is it a configuration?
jaeger --config=FILE              take spans over OTLP as JSON, show them, and the metrics, where the configuration says
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TRACES: dict[str, Any] = {}
# What went on to somebody else: the value of each header, as the environment has it.
HEADERS = sorted(value for name, value in os.environ.items() if name.startswith("TRACING_HEADER_"))


def fail(words: str) -> None:
    """End with a sentence."""
    sys.exit(f"Error: {words}")


def read(argv: list[str]) -> str:
    """The configuration, if it is one."""
    path = next((word.partition("=")[2] for word in argv if word.startswith("--config=")), "")
    text = Path(path).read_text("utf-8")
    for part in ("receivers:", "processors:", "exporters:", "service:"):
        if not re.search(rf"^{part}$", text, re.MULTILINE):
            fail(f"the configuration has no {part[:-1]}")
    return text


class Handler(BaseHTTPRequestHandler):
    """All ports answer the same; the role asks each for what is its own."""

    def answer(self, status: int, text: str) -> None:
        """Send it."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        """A message of spans."""
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in message["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    TRACES[span["traceId"]] = span
        self.answer(200, '{"partialSuccess":{}}')

    def do_GET(self) -> None:
        """A trace, or metrics."""
        trace = self.path.rpartition("/")[2]
        if self.path.startswith("/api/traces/"):
            found = trace in TRACES
            self.answer(200 if found else 404, json.dumps({"data": [TRACES.get(trace)]}))
        else:
            self.answer(200, f"otelcol_receiver_accepted_spans_total {len(TRACES)}\nstandin_headers {len(HEADERS)}\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Judge, or serve until the end."""
    if sys.argv[1:2] == ["validate"]:
        read(sys.argv[2:])
        return
    text = read(sys.argv[1:])
    places = [
        (host, int(port)) for host, port in re.findall(r"^\s+endpoint: '?([0-9.]+):([0-9]+)'?$", text, re.MULTILINE)
    ]
    places += [(host, int(port)) for host, port in re.findall(r"host: ([0-9.]+)\s+port: ([0-9]+)", text)]
    folder = re.search(r"keys: (\S+)", text)
    if folder:
        Path(folder[1]).mkdir(parents=True, exist_ok=True)
        Path(folder[1], "MANIFEST").write_text("stand-in\n", "utf-8")
    for place in places:
        server = ThreadingHTTPServer(place, Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
