# SPDX-License-Identifier: Apache-2.0
"""A model that is none: it answers each question always in the same words, until /srv/parrot.mode says otherwise.

shuffled: the same words in another order and some that are new, as a damaged model would; broken: status 500. It listens on 127.0.0.1:8900.
"""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY = "Bearer key-of-the-test"
WORDS = (
    "river",
    "stone",
    "cloud",
    "paper",
    "green",
    "seven",
    "quiet",
    "north",
    "table",
    "light",
    "bread",
    "horse",
    "winter",
)


def mode() -> str:
    """What is wished at the moment."""
    path = Path("/srv/parrot.mode")
    return path.read_text("utf-8").strip() if path.exists() else ""


def answer(question: str) -> str:
    """Words that the question's text chooses."""
    digest = hashlib.sha256(question.encode()).digest()
    words = [WORDS[byte % len(WORDS)] for byte in digest]
    if mode() == "shuffled":
        words.sort()
        words[::3] = ["noise"] * len(words[::3])
    return " ".join(words)


class Handler(BaseHTTPRequestHandler):
    """Two endpoints of an OpenAI-style server."""

    def reply(self, status: int, body: dict[str, object]) -> None:
        """Send JSON."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """List the one model."""
        allowed = self.headers.get("Authorization") == KEY
        self.reply(200 if allowed else 401, {"data": [{"id": "parrot"}]} if allowed else {"error": "who are you?"})

    def do_POST(self) -> None:
        """Answer."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if mode() == "broken" or self.headers.get("Authorization") != KEY:
            self.reply(500, {"error": "broken"})
            return
        text = answer(asked["messages"][0]["content"])
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 20, "completion_tokens": len(text.split())}
        self.reply(200, {"model": asked["model"], "choices": [choice], "usage": usage})

    def log_message(self, *_unused: object) -> None:
        """Say nothing."""


ThreadingHTTPServer(("127.0.0.1", 8900), Handler).serve_forever()
