# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in of dcgm-exporter: takes the real one's flags, reads the counters file, and serves a series for each of its lines."""

from __future__ import annotations

import argparse
import http.server
from pathlib import Path


class Page(http.server.BaseHTTPRequestHandler):
    """GET of anything."""

    text = ""

    def do_GET(self) -> None:
        """The page."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.text.encode())


def main() -> None:
    """Serve for ever; a flag that the real one does not have ends it."""
    options = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("collectors", "address", "collect-interval", "xid-count-window-size", "remote-hostengine-info"):
        options.add_argument(f"--{name}", required=True)
    options.add_argument("--web-config-file")
    given = options.parse_args()
    lines = [
        line.split(",") for line in Path(given.collectors).read_text("utf-8").splitlines() if line and line[0] != "#"
    ]
    Page.text = "".join(f'{line[0]}{{gpu="0"}} 0\n' for line in lines if line[1].strip() != "label")
    Page.text += f'standin{{interval="{given.collect_interval}",window="{given.xid_count_window_size}",engine="{given.remote_hostengine_info}"}} 1\n'
    host, _, port = given.address.rpartition(":")
    http.server.HTTPServer((host, int(port)), Page).serve_forever()


if __name__ == "__main__":
    main()
