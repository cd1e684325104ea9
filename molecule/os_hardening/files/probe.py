# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What a neighbour can reach on a host, and whether a long prompt and a long stream pass.

probe.py ports HOST:PORT ...       prints those that accept a connection, one a line
probe.py stream HOST PORT SECONDS  sends 128 KiB, then reads a stream that is silent for so long; prints a JSON object
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time


def ports(places: list[str]) -> None:
    """Knock at each."""
    for place in places:
        host, port = place.rsplit(":", 1)
        try:
            socket.create_connection((host, int(port)), timeout=1.5).close()
        except OSError:
            continue
        print(place)


def stream(host: str, port: int, seconds: float) -> None:
    """One request as long as a prompt may be, one answer as slow as it may be."""
    client = http.client.HTTPConnection(host, port, timeout=seconds + 30)
    client.request("POST", "/mock/control", json.dumps({"chunks": 2, "chunk_delay": seconds}))
    client.getresponse().read()
    begun = time.monotonic()
    body = {"model": "mock", "stream": True, "messages": [{"role": "user", "content": "x" * 128 * 1024}]}
    client.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = client.getresponse().read().decode()
    print(json.dumps({"done": "[DONE]" in answer, "seconds": round(time.monotonic() - begun, 1)}))


if __name__ == "__main__":
    if sys.argv[1] == "ports":
        ports(sys.argv[2:])
    else:
        stream(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
