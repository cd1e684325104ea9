# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Ask an OpenAI-compatible endpoint real questions and measure the answers. PRIVATE to the collection."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import typing as t
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit


class ProbeError(Exception):
    """An answer that is not what was asked for; the text says what was expected and what was found."""


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    :ivar url: base, such as https://192.0.2.10:8443, without a path.
    :ivar api_key: sent as a bearer token when not empty.
    :ivar ca_pem: certificates to trust in PEM form; empty for the system's.
    :ivar timeout: seconds for a connection and for each read.
    """

    url: str
    api_key: str = ""
    ca_pem: str = ""
    validate_certs: bool = True
    timeout: float = 60.0

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection of its own for one request, as a new client would."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ProbeError(f"url: expected http://HOST[:PORT] or https://HOST[:PORT], found {self.url!r}")
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.timeout)
        context = ssl.create_default_context(cadata=self.ca_pem or None)
        if not self.validate_certs:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=self.timeout, context=context)

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return headers


@dataclass
class ProbeResult:
    """All that was measured; seconds are wall time as the client saw it."""

    models: list[str] = field(default_factory=list)
    model: str = ""
    answer: str = ""
    answer_seconds: float = 0.0
    completion_tokens: int = 0
    stream_chunks: int = 0
    stream_seconds: float = 0.0
    ttft_seconds: float = 0.0
    peers: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for people."""
        peers = ", ".join(f"{name} {n}" for name, n in self.peers.items())
        return (
            f"{self.model}: {self.completion_tokens} tokens in {self.answer_seconds:.2f} s; "
            f"stream of {self.stream_chunks} chunks, first after {self.ttft_seconds:.2f} s"
        ) + (f"; answered by {peers}" if peers else "")

    def as_dict(self) -> dict[str, t.Any]:
        """For the module's result; times in seconds, rounded to the millisecond."""
        return {
            **{k: round(v, 3) if isinstance(v, float) else v for k, v in vars(self).items()},
            "summary": self.summary(),
        }


def chat_body(model: str, prompt: str, max_tokens: int, stream: bool) -> bytes:
    """The request of one chat completion, at temperature 0."""
    return json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": stream,
        }
    ).encode()


def probe(endpoint: Endpoint, model: str, prompt: str, max_tokens: int, requests: int, peer_header: str) -> ProbeResult:
    """List the models, ask once for JSON, once for a stream, then C(requests) times for one token each.

    :arg model: empty for the first one that is listed.
    :arg peer_header: the response header in which a gateway tells an operator which peer answered.
    :raises ProbeError: an answer is not what was asked for.
    :raises OSError: no connection, no trust, no answer in time.
    """
    result = ProbeResult()
    result.models = _models(endpoint)
    result.model = model or result.models[0]
    if result.model not in result.models:
        raise ProbeError(f"/v1/models: expected {result.model}, found {', '.join(result.models)}")
    _json_completion(endpoint, result, prompt, max_tokens)
    _stream_completion(endpoint, result, prompt, max_tokens)
    measure_peers(endpoint, result, requests, peer_header)
    return result


def measure_peers(endpoint: Endpoint, result: ProbeResult, requests: int, peer_header: str) -> None:
    """Send requests of one token each and count who answered them, and how."""
    peers: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for _unused in range(requests):
        status, headers, _body = _ask(endpoint, "POST", "/v1/chat/completions", chat_body(result.model, "Hi", 1, False))
        statuses[str(status)] += 1
        peer = headers.get(peer_header.lower(), "")
        if peer:
            peers[peer] += 1
    result.peers, result.statuses = dict(sorted(peers.items())), dict(sorted(statuses.items()))


def _ask(endpoint: Endpoint, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    connection = endpoint.connect()
    try:
        connection.request(method, path, body=body, headers=endpoint.headers())
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def _expect_json(path: str, status: int, body: bytes) -> dict[str, t.Any]:
    shown = body[:200].decode(errors="replace")
    if status != 200:
        raise ProbeError(f"{path}: expected status 200, found {status}: {shown}")
    try:
        data = json.loads(body)
    except ValueError as exc:
        raise ProbeError(f"{path}: expected JSON, found {shown!r}") from exc
    if not isinstance(data, dict):
        raise ProbeError(f"{path}: expected a JSON object, found {shown!r}")
    return data


def _models(endpoint: Endpoint) -> list[str]:
    status, _headers, body = _ask(endpoint, "GET", "/v1/models")
    data = _expect_json("/v1/models", status, body)
    models = [str(entry.get("id")) for entry in data.get("data", []) if isinstance(entry, dict) and entry.get("id")]
    if not models:
        raise ProbeError("/v1/models: expected at least one model, found none")
    return models


def _json_completion(endpoint: Endpoint, result: ProbeResult, prompt: str, max_tokens: int) -> None:
    path = "/v1/chat/completions"
    start = time.monotonic()
    status, _headers, body = _ask(endpoint, "POST", path, chat_body(result.model, prompt, max_tokens, False))
    result.answer_seconds = time.monotonic() - start
    data = _expect_json(path, status, body)
    try:
        result.answer = str(data["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError) as exc:
        raise ProbeError(f"{path}: expected choices[0].message.content, found keys {sorted(data)}") from exc
    if not result.answer.strip():
        raise ProbeError(f"{path}: expected an answer with text, found an empty one")
    usage = data.get("usage") or {}
    result.completion_tokens = int(usage.get("completion_tokens") or 0)


def _stream_completion(endpoint: Endpoint, result: ProbeResult, prompt: str, max_tokens: int) -> None:
    path = "/v1/chat/completions (stream)"
    start = time.monotonic()
    connection = endpoint.connect()
    try:
        body = chat_body(result.model, prompt, max_tokens, True)
        connection.request("POST", "/v1/chat/completions", body=body, headers=endpoint.headers())
        response = connection.getresponse()
        if response.status != 200:
            found = response.read()[:200].decode(errors="replace")
            raise ProbeError(f"{path}: expected status 200, found {response.status}: {found}")
        done = False
        while not done:
            line = response.readline()
            if not line:
                raise ProbeError(f"{path}: expected data: [DONE], found the end after {result.stream_chunks} chunks")
            text = line.decode(errors="replace").strip()
            if not text.startswith("data:"):
                continue
            done = text[5:].strip() == "[DONE]"
            if not done and _has_text(text[5:]):
                result.stream_chunks += 1
                if result.stream_chunks == 1:
                    result.ttft_seconds = time.monotonic() - start
        result.stream_seconds = time.monotonic() - start
    finally:
        connection.close()
    if result.stream_chunks == 0:
        raise ProbeError(f"{path}: expected chunks with text, found none")


def _has_text(event: str) -> bool:
    try:
        return bool(json.loads(event)["choices"][0]["delta"].get("content"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return False


def share_problems(peers: t.Mapping[str, int], weights: t.Mapping[str, int], tolerance: float) -> list[str]:
    """Sentences about peers whose share of the answers is not their weight's share.

    :arg peers: answers by peer name.
    :arg weights: weight by name, of the peers that should answer.
    :arg tolerance: allowed absolute difference of shares, between 0 and 1.
    """
    total, weight_sum = sum(peers.values()), sum(weights.values())
    problems = [
        f"peer {name} answered {n} requests; expected none of it" for name, n in peers.items() if name not in weights
    ]
    for name, weight in weights.items():
        share = peers.get(name, 0) / total if total else 0.0
        expected = weight / weight_sum
        if peers.get(name, 0) == 0:
            problems.append(f"peer {name} answered 0 of {total} requests; expected about {round(expected * total)}")
        elif abs(share - expected) > tolerance:
            problems.append(
                f"peer {name} answered {share:.0%} of {total} requests; expected {expected:.0%} +- {tolerance:.0%} by weight"
            )
    return problems
