# SPDX-License-Identifier: Apache-2.0
"""Ask a gateway, on its own host, what a client would ask, and see which engines can be reached.

The one argument is a JSON object: address, port, name, tls, ca_pem, status, config_id, limits_id, peers, timeout.
Prints a JSON object: problems (sentences), unreachable (peers), protocol (of TLS). Changes nothing.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import socket
import ssl
import sys
import time
from typing import Any


def connect(wanted: dict[str, Any]) -> http.client.HTTPConnection:
    """Open a connection to the listener; with TLS, the certificate must be good for the name."""
    raw = socket.create_connection((wanted["address"], wanted["port"]), timeout=5)
    if wanted["tls"]:
        context = ssl.create_default_context(cadata=wanted["ca_pem"] or None)
        # Python 3.13 refuses authorities without a key usage extension; other clients, and older versions, do not.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        try:
            raw = context.wrap_socket(raw, server_hostname=wanted["name"])
        except OSError:
            raw.close()
            raise
    connection = http.client.HTTPConnection(wanted["name"], wanted["port"])
    connection.sock = raw
    return connection


def ask(connection: http.client.HTTPConnection, path: str) -> tuple[int, http.client.HTTPMessage, Any]:
    """Status, headers and JSON of an answer; None for a body that is not JSON."""
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    try:
        return response.status, response.headers, json.loads(body)
    except ValueError:
        return response.status, response.headers, None


def check_listener(wanted: dict[str, Any]) -> tuple[list[str], str]:
    """What is wrong with the answers, and the version of TLS."""
    where = f"{wanted['name']} at {wanted['address']} port {wanted['port']}"
    connection = connect(wanted)
    protocol = connection.sock.version() if isinstance(connection.sock, ssl.SSLSocket) else ""
    problems = []
    with connection.sock:
        status, headers, body = ask(connection, "/healthz")
        if status != 200 or body != {"status": "ok"}:
            problems.append(f"{where}: /healthz: expected status 200 and ok, found status {status} and {body!r}")
        if not headers.get("X-Request-Id"):
            problems.append(f"{where}: /healthz: expected a header X-Request-Id, found none")
        if wanted["limits_id"]:
            status, _headers, body = ask(connection, "/v1/models")
            if status != 401 or not isinstance(body, dict) or "error" not in body:
                problems.append(
                    f"{where}: /v1/models without a key: expected status 401 and a JSON error, found status {status} and {body!r}"
                )
        for path in ("/no-such-path", "/metrics"):
            status, _headers, body = ask(connection, path)
            if status != 404 or not isinstance(body, dict) or body.get("error", {}).get("code") != "not_found":
                problems.append(
                    f"{where}: {path}: expected status 404 and a JSON error, found status {status} and {body!r}"
                )
    return problems, protocol or ""


def check_running(wanted: dict[str, Any]) -> list[str]:
    """Whether the running nginx has the wanted configuration, its peers included."""
    host, _colon, port = wanted["status"].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    try:
        _status, headers, _body = ask(connection, "/running")
    finally:
        connection.close()
    found = headers.get("X-Config-Id", "none")
    if found != wanted["config_id"]:
        return [f"nginx: expected to run configuration {wanted['config_id'][:12]}, found {found[:12]}"]
    return check_limits(host, int(port), wanted["limits_id"]) if wanted["limits_id"] else []


def check_limits(host: str, port: int, wanted: str) -> list[str]:
    """Whether each worker uses the limits and engines that were written: they take them one by one, within a second."""
    workers = 1
    seen = 0
    while seen < 4 * workers:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", "/status.json")
            found = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if found["config"].get("error"):
            return [f"nginx: expected to use the written limits and engines, found: {found['config']['error']}"]
        if found["config"]["id"] != wanted:
            return [f"nginx: expected to use limits and engines {wanted}, found {found['config']['id']}"]
        workers = min(32, int(found["workers"]["expected"]))
        seen += 1
    return []


def reachable(peer: dict[str, Any]) -> bool:
    """Whether the engine's port accepts a connection."""
    try:
        socket.create_connection((peer["address"], int(peer["port"])), timeout=1).close()
    except OSError:
        return False
    return True


def main() -> None:
    wanted = json.loads(sys.argv[1])
    deadline = time.monotonic() + wanted["timeout"]
    while True:
        try:
            problems, protocol = check_listener(wanted)
            problems += check_running(wanted)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            problems, protocol = [f"{wanted['name']} at {wanted['address']} port {wanted['port']}: {exc}"], ""
        if not problems or time.monotonic() >= deadline:
            break
        time.sleep(0.5)
    peers = [peer for peer in wanted["peers"] if peer.get("state", "up") == "up"]
    with concurrent.futures.ThreadPoolExecutor(max_workers=32) as pool:
        answers = list(pool.map(reachable, peers))
    unreachable = [peer["name"] for peer, good in zip(peers, answers) if not good]
    print(json.dumps({"problems": problems, "unreachable": unreachable, "protocol": protocol}))


if __name__ == "__main__":
    main()
