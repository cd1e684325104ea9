# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What the unit of the Envoy sidecar and its role need beside Envoy itself: standard library only.

sidecar.py validate --envoy PROGRAM --config FILE --files DIR --instead-of DIR   judge a configuration and the files it names
sidecar.py wait     --admin SOCKET --seconds 20                                  until Envoy takes requests
sidecar.py drain    --admin SOCKET --grace 5 --seconds 60                        until nothing is in flight, or the time is up
sidecar.py ask      --seconds 60 < question.json                                 a real token, the health view, a wrong key
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path
from typing import Any

# What Envoy only logs while it accepts a file: an option that it no longer has, or will not have for long.
COMPLAINT = re.compile(r"envoy_bug|envoy bug|deprecated", re.IGNORECASE)
HEAD = re.compile(r"^\[[^\]]*\]\[\d+\]\[\w+\]\[\w+\]\s*(\[[^\]]*\]\s*)?")
BEARER = re.compile(r"Bearer [A-Za-z0-9._~+/=-]+")
ACTIVE = re.compile(r"^http\.engine\.downstream_(rq|cx)_active: (\d+)$", re.MULTILINE)
# Nothing must be in flight so many times on end.
QUIET = 3
# Seconds for gateways to close connections on which nothing is in flight: they may be sending on one right now. nginx keeps them for 4 s.
LINGER = 6.0
PAUSE = 0.2


class SidecarError(Exception):
    """What is wrong, in words for the operator."""


class Admin(http.client.HTTPConnection):
    """The admin interface, which listens on a socket of the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def admin(path: str, method: str, target: str) -> tuple[int, str]:
    """Ask the admin interface: status and text."""
    with contextlib.closing(Admin(path)) as link:
        link.request(method, target, headers={"Content-Length": "0"} if method == "POST" else {})
        answer = link.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")


def validate(envoy: str, config: Path, files: Path, instead_of: str, missing_ok: bool) -> None:
    """Let Envoy itself judge the configuration, with the new files in the place where the unit will have them."""
    if not os.access(envoy, os.X_OK):
        if missing_ok:
            return
        raise SidecarError(f"expected the program {envoy}, found nothing that can be run")
    text = config.read_text("utf-8").replace(f"{instead_of}/", f"{files}/")
    with tempfile.TemporaryDirectory(prefix="envoy-validate-") as folder:
        copy = Path(folder) / "envoy.json"
        copy.write_text(text, "utf-8")
        argv = [envoy, "--mode", "validate", "-c", str(copy), "--log-level", "info"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        except subprocess.TimeoutExpired as exc:
            raise SidecarError("expected a judgement within 60 s, found none") from exc
    told = BEARER.sub("Bearer (not shown)", done.stdout + done.stderr)
    said = [line.replace(str(copy), config.name) for line in told.splitlines()]
    complaints = [HEAD.sub("", line) for line in said if COMPLAINT.search(line)]
    if done.returncode != 0:
        reasons = [HEAD.sub("", line) for line in said if "][critical]" in line or "][error]" in line] or said[-3:]
        raise SidecarError("; ".join(dict.fromkeys(reasons)))
    if complaints:
        raise SidecarError(f"expected a configuration without complaints, found {'; '.join(dict.fromkeys(complaints))}")


def wait(path: str, seconds: float) -> None:
    """Until Envoy says that it takes requests."""
    end = time.monotonic() + seconds
    said = "nothing"
    while time.monotonic() < end:
        try:
            status, text = admin(path, "GET", "/ready")
            said = text.strip()
            if status == 200:
                check_listeners(path)
                return
        except (OSError, http.client.HTTPException) as exc:
            said = str(exc)
        time.sleep(PAUSE)
    raise SidecarError(f"expected an Envoy that takes requests after {seconds:g} s, found {said}")


def check_listeners(path: str) -> None:
    """Every listener of the configuration has its port."""
    _status, text = admin(
        path, "GET", "/stats?filter=listener_manager.(listener_create_failure|total_listeners_active)"
    )
    if re.search(r"listener_create_failure: [1-9]", text):
        raise SidecarError("expected all ports to be free, found one that is taken")


def drain(path: str, grace: float, seconds: float) -> None:
    """Say no where gateways look, then take nothing new, then wait for what is in flight."""
    try:
        admin(path, "POST", "/healthcheck/fail")
        time.sleep(grace)
        admin(path, "POST", "/drain_listeners")
        begin = time.monotonic()
        quiet = 0
        while quiet < QUIET:
            text = admin(path, "GET", "/stats?filter=^http.engine.downstream_(rq|cx)_active$")[1]
            count = {kind: int(number) for kind, number in ACTIVE.findall(text)}
            requests, links = count.get("rq", 0), count.get("cx", 0)
            gone = time.monotonic() - begin
            if requests and gone >= seconds:
                print(f"{requests} requests are cut after {seconds:g} s", file=sys.stderr)
                return
            quiet = 0 if requests or (links and gone < min(LINGER, seconds)) else quiet + 1
            time.sleep(PAUSE)
    except (OSError, http.client.HTTPException) as exc:
        # It has ended by itself.
        print(f"nothing to drain: {exc}", file=sys.stderr)


class Client:
    """Somebody who asks the sidecar."""

    def __init__(self, question: dict[str, Any], folder: Path) -> None:
        self.question = question
        parts = urllib.parse.urlsplit(question["url"])
        self.host, self.port = parts.hostname or "", parts.port or 0
        self.folder = folder
        self.tls = parts.scheme == "https"

    def context(self, own: bool) -> ssl.SSLContext:
        """Trusts the certificate that the role has put there, and nothing else."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        made.load_verify_locations(cadata=self.question["server"])
        if own:
            pair = self.folder / "pair.pem"
            with open(os.open(pair, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                file.write(f"{self.question['certificate']}\n{self.question['key']}\n")
            made.load_cert_chain(pair)
        return made

    def ask(self, method: str, path: str, body: Any = None, key: str = "", own: bool = True) -> tuple[int, bytes]:
        """One request: status and body."""
        link: http.client.HTTPConnection
        if self.tls:
            link = http.client.HTTPSConnection(self.host, self.port, timeout=120, context=self.context(own))
        else:
            link = http.client.HTTPConnection(self.host, self.port, timeout=120)
        with contextlib.closing(link):
            headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
            link.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = link.getresponse()
            return answer.status, answer.read()


def refuses_strangers(client: Client) -> None:
    """Without a certificate there is no answer."""
    try:
        status, _body = client.ask("GET", "/health", own=False)
    except (OSError, http.client.HTTPException):
        return
    raise SidecarError(f"expected no answer without a client's certificate, found the status {status}")


def engine_is_healthy(path: str) -> bool:
    """As Envoy sees it."""
    _status, text = admin(path, "GET", "/stats?filter=^cluster.engine.membership_healthy$")
    return text.strip().endswith(": 1")


def ask(question: dict[str, Any], seconds: float) -> None:
    """The health view, a token, and nothing for those who may not ask."""
    with tempfile.TemporaryDirectory(prefix="sidecar-ask-") as folder:
        client = Client(question, Path(folder))
        may_ask = not client.tls or bool(question["certificate"])
        end = time.monotonic() + seconds
        while True:
            try:
                healthy = client.ask("GET", "/health")[0] == 200 if may_ask else engine_is_healthy(question["admin"])
                said = "the status 503"
            except (OSError, http.client.HTTPException) as exc:
                healthy, said = False, str(exc)
            if healthy:
                break
            if time.monotonic() > end:
                raise SidecarError(f"expected a healthy engine within {seconds:g} s, found {said}")
            time.sleep(1)
        if client.tls:
            refuses_strangers(client)
        if not may_ask:
            return
        body = {"model": question["model"], "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
        status, answer = client.ask("POST", question["path"], body, question["api_key"])
        try:
            tokens = int(json.loads(answer)["usage"]["completion_tokens"])
        except (ValueError, KeyError, TypeError):
            tokens = 0
        if status != 200 or tokens < 1:
            raise SidecarError(
                f"expected a token, found the status {status} and {answer[:300].decode('utf-8', 'replace')}"
            )
        for key in ("", "wrong-wrong-wrong-wrong"):
            if question["checks_key"]:
                status, _answer = client.ask("POST", question["path"], body, key)
                if status != 401:
                    raise SidecarError(
                        f"expected the status 401 {'with a wrong' if key else 'without a'} key, found {status}"
                    )


def main() -> int:
    """Read the arguments and do it."""
    parser = argparse.ArgumentParser(description="Beside the Envoy sidecar.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("validate")
    one.add_argument("--envoy", required=True)
    one.add_argument("--config", type=Path, required=True)
    one.add_argument("--files", type=Path, required=True)
    one.add_argument("--instead-of", required=True)
    one.add_argument("--missing-ok", action="store_true", help="no complaint when Envoy is not there yet")
    one.add_argument("--quiet", action="store_true", help="the default")
    for name in ("wait", "drain"):
        one = commands.add_parser(name)
        one.add_argument("--admin", required=True)
        one.add_argument("--seconds", type=float, required=True)
        one.add_argument("--grace", type=float, default=0)
    one = commands.add_parser("ask")
    one.add_argument("--seconds", type=float, required=True)
    args = parser.parse_args()
    try:
        if args.command == "validate":
            validate(args.envoy, args.config, args.files, args.instead_of, args.missing_ok)
        elif args.command == "wait":
            wait(args.admin, args.seconds)
        elif args.command == "drain":
            drain(args.admin, args.grace, args.seconds)
        else:
            ask(json.load(sys.stdin), args.seconds)
    except (SidecarError, OSError, http.client.HTTPException) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
