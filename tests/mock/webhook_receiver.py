# SPDX-License-Identifier: Apache-2.0
"""Takes what Alertmanager sends to a web hook: each notification becomes a line of JSON in a file.

webhook_receiver.py ADDRESS PORT FILE [SECONDS]   port 0 for any free one; ends after SECONDS (default 3600)

The first line that it prints is its address and port. A line of the file holds ``at`` (seconds since 1970), ``path`` and ``body``, the notification as
it came. Bounded: a body of more than 1 MiB is refused, and so is everything once the file has 64 MiB.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGEST_BODY = 1 << 20
LARGEST_FILE = 64 << 20


class Receiver(ThreadingHTTPServer):
    """The server, and the file that it writes to."""

    daemon_threads = True

    def __init__(self, address: str, port: int, path: Path) -> None:
        super().__init__((address, port), Handler)
        self.path = path
        self.lock = threading.Lock()

    def keep(self, path: str, body: object) -> bool:
        """Append a notification; False when the file is full."""
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            if file.tell() > LARGEST_FILE:
                return False
            file.write(json.dumps({"at": time.time(), "path": path, "body": body}) + "\n")
            return True


class Handler(BaseHTTPRequestHandler):
    """One notification."""

    server: Receiver
    timeout = 10

    def do_POST(self) -> None:
        """Keep it."""
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST_BODY:
            self.answer(413)
            return
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            self.answer(400)
            return
        self.answer(200 if self.server.keep(self.path, body) else 507)

    def answer(self, status: int) -> None:
        """A status and nothing else."""
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The file says it all."""


def main() -> int:
    """Serve for so long."""
    if len(sys.argv) not in (4, 5):
        print(__doc__, file=sys.stderr)
        return 2
    server = Receiver(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    timer = threading.Timer(float(sys.argv[4]) if len(sys.argv) == 5 else 3600, server.shutdown)
    timer.daemon = True
    timer.start()
    address, port = server.server_address[:2]
    print(f"{address!s} {port}", flush=True)
    server.serve_forever(poll_interval=0.2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
