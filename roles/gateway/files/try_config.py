# SPDX-License-Identifier: Apache-2.0
"""Start a gateway's configuration for a moment, where nobody sees it, and ask it: python3 try_config.py nginx.conf [nginx]

"nginx -t" does not run the Lua of a configuration, so a module that is missing would be found by a reload that fails. The copy
that is started listens on Unix sockets below a directory of its own, with one worker and without logs of others; its files,
its Lua and its shared memory are those of the real one. Prints why it is no good, and exits with 1, when it does not start,
does not answer, or has other limits or engines in use than its files say. Changes nothing.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LISTEN = re.compile(r"^(\s*)listen\s+[^\s;]+([^;]*);", re.MULTILINE)
# Parameters of "listen" that a Unix socket cannot have.
TCP_ONLY = {"reuseport", "ssl", "http2"}
SECONDS = 15.0


class Refused(Exception):
    """Why the configuration is no good."""


def scratch(text: str, folder: Path) -> str:
    """The same configuration on Unix sockets, s0 for the first server and so on, without TLS and without files of others."""
    sockets = iter(range(1000))

    def listen(found: re.Match[str]) -> str:
        words = [word for word in found[2].split() if word not in TCP_ONLY and "=" not in word]
        return " ".join([f"{found[1]}listen unix:{folder}/s{next(sockets)}", *words]) + ";"

    text = LISTEN.sub(listen, text)
    text = re.sub(r"^\s*http2 on;$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*)worker_processes [^;]*;", r"\1worker_processes 1;", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*)pid [^;]*;", rf"\1pid {folder}/pid;", text, flags=re.MULTILINE)
    text = re.sub(r"^(\s*)error_log [^;]*;", rf"\1error_log {folder}/error.log warn;", text, flags=re.MULTILINE)
    return re.sub(r"^(\s*)access_log /[^;]*;", r"\1access_log off;", text, flags=re.MULTILINE)


class Link(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(str(self.path))


def ask(path: Path, page: str) -> tuple[int, bytes]:
    """Status and body."""
    link = Link(path)
    try:
        link.request("GET", page)
        answer = link.getresponse()
        return answer.status, answer.read()
    finally:
        link.close()


def said(folder: Path, output: bytes = b"") -> str:
    """What nginx had to say, in one line without dates."""
    log = folder / "error.log"
    text = output.decode("utf-8", "replace") + (log.read_text("utf-8", "replace") if log.exists() else "")
    lines = [re.sub(r"^\S+ \S+ \[\w+\] \S+ (\*\d+ )?", "", line) for line in text.splitlines()]
    return " ".join(lines).replace(f"{folder}/", "")[-2000:]


def check(folder: Path) -> None:
    """Ask the copy until it answers well."""
    status, body = ask(folder / "s0", "/healthz")
    if status != 200:
        raise Refused(f"/healthz: expected status 200, found {status} and {body[:200]!r}")
    status, body = ask(folder / "s1", "/status.json")
    if status != 200:
        raise Refused(f"/status.json: expected status 200, found {status} and {body[:200]!r}")
    problem = json.loads(body)["config"].get("error")
    if problem:
        raise Refused(f"its limits and engines are not in use: {problem}")


def attempt(config: Path, nginx: str) -> None:
    """Start the copy, ask it, end it."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-gateway-") as name:
        folder = Path(name)
        # The worker is another user, and makes nothing there.
        folder.chmod(0o711)
        copy = folder / "nginx.conf"
        copy.write_text(scratch(config.read_text("utf-8"), folder), encoding="utf-8")
        with (folder / "output").open("wb") as output:
            words = [nginx, "-c", str(copy), "-g", "daemon off;"]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            end = time.monotonic() + SECONDS
            while True:
                if process.poll() is not None:
                    raise Refused(f"nginx ended: {said(folder, (folder / 'output').read_bytes())}")
                try:
                    return check(folder)
                except (OSError, http.client.HTTPException, ValueError, KeyError, Refused) as exc:
                    if time.monotonic() > end:
                        raise Refused(f"{exc}; {said(folder)}") from exc
                time.sleep(0.1)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def main() -> None:
    """Run nginx -t, then the copy."""
    # As the unit: a log file that the check creates is as private as one that nginx creates.
    os.umask(0o027)
    config, nginx = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "/usr/sbin/nginx"
    words = [nginx, "-t", "-q", "-c", str(config)]
    tested = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if tested.returncode != 0:
        sys.exit(tested.stderr.decode("utf-8", "replace").strip() or f"nginx -t: exit {tested.returncode}")
    try:
        attempt(config, nginx)
    except Refused as exc:
        sys.exit(f"the configuration was started for a try: {exc}")


if __name__ == "__main__":
    main()
