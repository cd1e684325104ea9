# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Stands in for an engine: its metrics are for those who know the key."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Engine(BaseHTTPRequestHandler):
    """Answers as an engine does."""

    def do_GET(self) -> None:
        """Metrics, or a refusal."""
        known = self.headers.get("Authorization") == f"Bearer {Path(sys.argv[3]).read_text('utf-8').strip()}"
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        if known:
            self.wfile.write(b"molecule_engine_requests_total 1\n")


HTTPServer((sys.argv[1], int(sys.argv[2])), Engine).serve_forever()
