# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the part of the Hugging Face hub that lists and gives files: huggingface_hub.py ADDRESS PORT DIRECTORY REVISION TOKEN."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import sys
import urllib.parse
from pathlib import Path

ADDRESS, PORT, FOLDER, REVISION, TOKEN = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5]
REPO = "example/test"


def listing() -> list[dict[str, object]]:
    """What the hub says about each file; large ones have a checksum."""
    found: list[dict[str, object]] = []
    for path in sorted(FOLDER.rglob("*")):
        name = str(path.relative_to(FOLDER))
        if path.is_dir():
            found.append({"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
            continue
        size = path.stat().st_size
        one: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": "0" * 40}
        if size > 1 << 20:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            one["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
        found.append(one)
    return found


class Handler(http.server.BaseHTTPRequestHandler):
    """Two questions: the list, and a file."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with the token only."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, b"")
        elif path.startswith(f"/api/models/{REPO}/tree/{REVISION}"):
            self.answer(200, json.dumps(listing()).encode())
        elif path.startswith(f"/{REPO}/resolve/{REVISION}/"):
            data = (FOLDER / path.split("/", 5)[5]).read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            begin = int(asked[1]) if asked else 0
            self.answer(
                206 if asked else 200, data[begin:], f"bytes {begin}-{len(data) - 1}/{len(data)}" if asked else ""
            )
        else:
            self.answer(404, b"")

    def answer(self, status: int, body: bytes, part: str = "") -> None:
        """Send it."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer((ADDRESS, PORT), Handler).serve_forever()
