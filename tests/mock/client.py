# SPDX-License-Identifier: Apache-2.0
"""A client for tests of a gateway: standard library only. Prints one JSON object.

client.py load   --url https://10.0.0.10 --ca ca.crt --requests 500 --concurrency 8
client.py load   --url ... --seconds 20          (until the time is over; every failure with its moment)
client.py stream --url ... --chunks 10           (when each chunk arrived)
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
import threading
import time
import urllib.parse
from typing import Any


class Client:
    """Connections to one gateway, one per thread."""

    def __init__(self, url: str, ca: str, key: str, name: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.host, self.tls = parts.hostname or "", parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.context = ssl.create_default_context(cafile=ca or None) if self.tls else None
        self.headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        if name:
            self.headers["Host"] = name

    def connect(self) -> http.client.HTTPConnection:
        if self.context:
            return http.client.HTTPSConnection(self.host, self.port, timeout=60, context=self.context)
        return http.client.HTTPConnection(self.host, self.port, timeout=60)


def load(client: Client, args: argparse.Namespace) -> dict[str, Any]:
    """Non-streaming completions from several threads, each with one connection that it keeps.

    A server may close a kept connection at any moment, a reloading nginx does. A request that met the end of a connection
    that had served others, with no byte of an answer, is sent once more on a new one, as clients do (RFC 9112, 9.3.1);
    `resent` counts them. Whether an engine had seen such a request is for the test to ask the engines.
    """
    lock = threading.Lock()
    begin = time.monotonic()
    state: dict[str, Any] = {"sent": 0, "resent": 0}
    status: dict[str, int] = {}
    peers: dict[str, int] = {}
    failures: list[dict[str, Any]] = []
    times: list[float] = []
    body = json.dumps(
        {"model": args.model, "messages": [{"role": "user", "content": "x" * args.size}], "max_tokens": 1}
    )

    def work(number: int) -> None:
        connection = client.connect()
        served = 0
        while True:
            with lock:
                over = state["sent"] >= args.requests if args.requests else time.monotonic() - begin >= args.seconds
                if over:
                    break
                state["sent"] += 1
                request_id = f"load-{os.getpid()}-{number}-{state['sent']}"
            start = time.monotonic()
            peer = ""
            try:
                headers = {**client.headers, "X-Request-Id": request_id}
                try:
                    connection.request("POST", "/v1/chat/completions", body, headers)
                    response = connection.getresponse()
                except (http.client.RemoteDisconnected, ConnectionError, ssl.SSLEOFError):
                    if not served:
                        raise
                    connection.close()
                    connection, served = client.connect(), 0
                    with lock:
                        state["resent"] += 1
                    connection.request("POST", "/v1/chat/completions", body, headers)
                    response = connection.getresponse()
                payload = response.read()
                served += 1
                outcome = str(response.status)
                peer = response.headers.get("X-Gateway-Peer", "")
                if outcome == "200":
                    json.loads(payload)
            except (OSError, http.client.HTTPException, ValueError) as exc:
                outcome = type(exc).__name__
                connection.close()
                connection, served = client.connect(), 0
            took = time.monotonic() - start
            with lock:
                status[outcome] = status.get(outcome, 0) + 1
                times.append(took)
                if outcome == "200":
                    peers[peer] = peers.get(peer, 0) + 1
                else:
                    failure = {"outcome": outcome, "peer": peer, "request_id": request_id}
                    failures.append(
                        {**failure, "sent_at": round(start - begin, 3), "ended_at": round(start - begin + took, 3)}
                    )
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(args.concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times.sort()
    count = len(times)
    return {
        "requests": count,
        "status": status,
        "resent": state["resent"],
        "peers": peers,
        "failures": failures[:50],
        "p50_ms": round(1000 * times[count // 2], 1) if count else None,
        "p99_ms": round(1000 * times[min(count - 1, count * 99 // 100)], 1) if count else None,
        "max_ms": round(1000 * times[-1], 1) if count else None,
        "per_second": round(count / (time.monotonic() - begin), 1),
    }


def stream(client: Client, args: argparse.Namespace) -> dict[str, Any]:
    """One streamed completion; the arrival of each event in seconds after the request."""
    body = {"model": args.model, "messages": [], "stream": True, "max_tokens": args.chunks}
    connection = client.connect()
    connection.connect()
    begin = time.monotonic()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), client.headers)
    response = connection.getresponse()
    arrivals: list[float] = []
    last = b""
    try:
        while line := response.readline():
            if line.startswith(b"data: "):
                arrivals.append(round(time.monotonic() - begin, 3))
                last = line.strip()
    except (OSError, http.client.HTTPException) as exc:
        last = type(exc).__name__.encode()
    gaps = [round(later - earlier, 3) for earlier, later in zip(arrivals, arrivals[1:])]
    return {
        "status": response.status,
        "peer": response.headers.get("X-Gateway-Peer", ""),
        "events": len(arrivals),
        "done": last == b"data: [DONE]",
        "last": last.decode(errors="replace"),
        "first": arrivals[0] if arrivals else None,
        # The last gap is that of [DONE], which follows its predecessor at once.
        "gaps": gaps[:-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="client for tests of a gateway")
    parser.add_argument("mode", choices=["load", "stream"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--ca", default="", help="file with the authority that signed the gateway's certificate")
    parser.add_argument("--host-name", default="", help="value of the Host header")
    parser.add_argument("--model", default="mock")
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--size", type=int, default=16, help="bytes of the prompt")
    parser.add_argument("--chunks", type=int, default=10)
    args = parser.parse_args()
    client = Client(args.url, args.ca, os.environ.get("GATEWAY_API_KEY", ""), args.host_name)
    print(json.dumps({"load": load, "stream": stream}[args.mode](client, args)))


if __name__ == "__main__":
    main()
