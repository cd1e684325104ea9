# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""A client that measures what it is answered: time to the first text, time between texts, time of the whole answer.

The clock starts before the connection is made. Locust's own response time of a streamed answer ends with its headers, long before the first text: it is
not used. The connection goes to the address that was checked, whatever the name stands for by then.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import time
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._load_test import Answer, Prepared, Target

_CHAT = "/v1/chat/completions"
_MOST_ERROR_BYTES = 65536


class _NoAnswer(Exception):
    """An answer that is not what was asked for."""


def text_of(event: t.Any) -> bool:
    """Whether an event carries text: an answer's or, of a model that thinks aloud, a thought's."""
    choices = event.get("choices") if isinstance(event, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return False
    delta = choices[0].get("delta") or {}
    return bool(delta.get("content") or delta.get("reasoning_content") or choices[0].get("text"))


def used_tokens(event: t.Any) -> int:
    """Completion tokens that an answer or an event says it used, 0 when it does not say."""
    usage = event.get("usage") if isinstance(event, dict) else None
    value = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0


def seconds_of(header: str | None) -> float | None:
    """Seconds of a Retry-After header; None without one. A date counts as one second, for it says no number."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        return 1.0


class Client:
    """One user: one connection that is used again and again.

    :arg target: where to.
    :arg key: sent as a bearer token when not empty; it appears in no result.
    :arg timeout: seconds for a whole answer.
    :arg ca_file: certificates to trust; empty for the system's.
    :arg on_text: called with the time at each event with text.
    """

    def __init__(
        self,
        target: Target,
        key: str,
        timeout: float,
        ca_file: str = "",
        on_text: t.Callable[[float], None] | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.target, self.timeout, self.on_text = target, timeout, on_text
        self.context = context or (tls_context(ca_file) if target.scheme == "https" else None)
        self.headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def connect(self, until: float) -> http.client.HTTPConnection:
        """Open a connection to the checked address."""
        sock = socket.create_connection((self.target.address, self.target.port), timeout=_left(until))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_hostname=self.target.host)
        made = http.client.HTTPConnection(self.target.host, self.target.port)
        # Never by itself: it would look the name up again.
        made.auto_open = 0
        made.sock = sock
        self._connection = made
        return made

    def _ask(self, prepared: Prepared, until: float) -> http.client.HTTPResponse:
        connection = self._connection
        used_before = connection is not None and connection.sock is not None
        for last in (not used_before, True):
            if connection is None or connection.sock is None:
                connection = self.connect(until)
            connection.sock.settimeout(_left(until))
            try:
                connection.request("POST", self.target.path + _CHAT, body=prepared.body, headers=self.headers)
                return connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                # A kept connection that the other side had closed: nothing was answered, so ask once on a new one.
                self.close()
                connection = None
                if last:
                    raise
        raise _NoAnswer("no answer")

    def send(self, prepared: Prepared, due: float | None = None) -> Answer:
        """Send one request and read its answer to the end. Never raises for what the other side does: the answer says it."""
        now = time.monotonic()
        answer = Answer(prepared.name, prepared.stream, now if due is None else due, now)
        until = now + self.timeout
        try:
            response = self._ask(prepared, until)
            answer.status = response.status
            if response.status != 200:
                self._refused(response, answer)
            elif prepared.stream:
                self._stream(response, answer, until)
            else:
                self._whole(response, answer)
        except (TimeoutError, socket.timeout):
            answer.reason = f"no whole answer within {self.timeout:g} s"
        except _NoAnswer as exc:
            answer.reason = str(exc)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            answer.reason = f"{type(exc).__name__}: {exc}"[:120]
        answer.end = time.monotonic()
        if answer.kind == "error":
            self.close()
        return answer

    def _refused(self, response: http.client.HTTPResponse, answer: Answer) -> None:
        body = response.read(_MOST_ERROR_BYTES)
        wait = seconds_of(response.getheader("Retry-After"))
        if response.status in (429, 503) and wait is not None:
            answer.kind, answer.retry_after = "rejected", wait
        else:
            said = body[:200].decode(errors="replace").replace("\n", " ")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said = str(json.loads(body)["error"]["message"])
            answer.reason = f"status {response.status}: {said}"[:120]
        if not response.isclosed():
            self.close()

    def _whole(self, response: http.client.HTTPResponse, answer: Answer) -> None:
        data = json.loads(response.read())
        if not isinstance(data, dict) or not data.get("choices"):
            raise _NoAnswer("an answer without choices")
        answer.tokens = used_tokens(data)
        answer.kind = "ok"

    def _stream(self, response: http.client.HTTPResponse, answer: Answer, until: float) -> None:
        while True:
            line = response.readline()
            now = time.monotonic()
            if not line:
                raise _NoAnswer("the stream ended without [DONE]")
            if now > until:
                raise TimeoutError
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                break
            event = json.loads(data)
            if isinstance(event, dict) and event.get("error"):
                raise _NoAnswer(f"an error within the stream: {event['error']}"[:120])
            answer.tokens = used_tokens(event) or answer.tokens
            if text_of(event):
                answer.stamps.append(now)
                if self.on_text:
                    self.on_text(now)
        response.read()
        if not answer.stamps:
            raise _NoAnswer("a stream without text")
        answer.kind = "ok"


def tls_context(ca_file: str) -> ssl.SSLContext:
    """A context that checks names and certificates; one is enough for all users."""
    return ssl.create_default_context(cafile=ca_file or None)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def first_look(target: Target, key: str, ca_file: str, timeout: float = 15.0) -> str:
    """Ask for the models before any load is sent: a sentence when the target does not serve this key, else nothing."""
    client = Client(target, key, timeout, ca_file)
    where = f"{target.url}/v1/models"
    try:
        connection = client.connect(time.monotonic() + timeout)
        connection.request("GET", target.path + "/v1/models", headers=client.headers)
        response = connection.getresponse()
        response.read(_MOST_ERROR_BYTES)
    except (OSError, http.client.HTTPException) as exc:
        return f"{where}: expected the models, found {type(exc).__name__}: {exc}"
    finally:
        client.close()
    return "" if response.status == 200 else f"{where}: expected status 200, found {response.status}"
