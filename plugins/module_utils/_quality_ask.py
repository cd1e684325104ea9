# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Ask an OpenAI-compatible endpoint the questions of the quality probe, within a budget of tokens and time. PRIVATE to the collection."""

from __future__ import annotations

import http.client
import json
import threading
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import Endpoint, ProbeError
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_suite import (
    Item,
    QualityError,
    Suite,
    spoken,
)

# The same number for ever: engines that sample although the temperature is 0 do it the same way each time.
SEED = 7
_ANSWER_BYTES = 1048576


@dataclass(frozen=True)
class Answer:
    """What came back for one item.

    :ivar text: the answer without thoughts; empty when there is an error.
    :ivar model: as the engine calls itself.
    :ivar finish: finish_reason; length means that it was cut.
    :ivar tokens: of prompt and answer, as the engine counts them; none when the request was refused.
    :ivar error: why there is no answer; empty when there is one.
    """

    id: str
    text: str = ""
    model: str = ""
    finish: str = ""
    tokens: int = 0
    error: str = ""

    def as_dict(self) -> dict[str, t.Any]:
        """For a file or a result."""
        return asdict(self)


def answers_from(found: t.Any) -> list[Answer]:
    """Answers from as_dict() of each.

    :raises QualityError: it is something else.
    """
    try:
        return [Answer(**one) for one in found]
    except TypeError as exc:
        raise QualityError(f"answers: expected a list of answers, found {found!r:.80}") from exc


class Budget:
    """Tokens that may still be used, and the time at which nothing is begun any more.

    :arg tokens: of prompts and answers together. What a request may need at most is set aside before it is sent.
    :arg seconds: wall time for all of it.
    """

    def __init__(self, tokens: int, seconds: float) -> None:
        self._lock = threading.Lock()
        self._left = tokens
        self._until = time.monotonic() + seconds
        self.used = 0
        self.requests = 0

    def take(self, tokens: int) -> str:
        """Set tokens aside; why not, or nothing."""
        with self._lock:
            if time.monotonic() >= self._until:
                return "the time for the run is up"
            if tokens > self._left:
                return f"the run's tokens are used up: {tokens} were needed, {self._left} are left"
            self._left -= tokens
            self.requests += 1
            return ""

    def settle(self, taken: int, used: int) -> None:
        """Give back what was not used."""
        with self._lock:
            self._left += taken - used
            self.used += used

    @property
    def seconds_left(self) -> float:
        """Seconds until the end, never less than one: a read must be given some time."""
        return max(1.0, self._until - time.monotonic())


def most_tokens(item: Item, thinking: int) -> int:
    """Tokens that one item needs at most: its prompt (a byte is a token at worst, and a template adds some) and its answer."""
    return len(item.prompt.encode()) + 64 + item.max_tokens + thinking


def ask_suite(
    endpoints: t.Sequence[Endpoint],
    model: str,
    suite: Suite,
    budget: Budget,
    parallel: int,
    thinking: int = 0,
    extra: t.Mapping[str, t.Any] | None = None,
) -> list[Answer]:
    """Ask every item once, and once more where there was no answer; in the order of the suite.

    :arg endpoints: asked in turn; the second try goes to the next one.
    :arg model: empty for the first one that is listed.
    :arg thinking: tokens that a reasoning model may think in addition to each answer.
    :arg extra: more keys of each request, for what only one engine knows.
    """
    if not model:
        try:
            model = first_model(endpoints)
        except ProbeError as exc:
            return [Answer(item.id, error=str(exc)) for item in suite.items]

    def ask(number: int) -> Answer:
        item = suite.items[number]
        answer = Answer(item.id)
        for attempt in range(2):
            endpoint = endpoints[(number + attempt) % len(endpoints)]
            most = most_tokens(item, thinking)
            refusal = budget.take(most)
            if refusal:
                return Answer(item.id, error=answer.error or refusal)
            answer = _ask_one(endpoint, model, item, thinking, budget.seconds_left, extra or {})
            budget.settle(most, min(most, answer.tokens))
            if not answer.error:
                break
        return answer

    with ThreadPoolExecutor(max_workers=max(1, min(parallel, len(suite.items)))) as pool:
        return list(pool.map(ask, range(len(suite.items))))


def first_model(endpoints: t.Sequence[Endpoint]) -> str:
    """The first model that an endpoint lists.

    :raises ProbeError: none of them lists one.
    """
    problem = ""
    for endpoint in endpoints:
        status, body, problem = _request(endpoint, "GET", "/v1/models", b"", endpoint.timeout)
        if status == 200:
            try:
                return str(json.loads(body)["data"][0]["id"])
            except (ValueError, LookupError, TypeError):
                problem = f"{endpoint.url}/v1/models: expected a list of models, found {body[:80]!r}"
        elif not problem:
            problem = f"{endpoint.url}/v1/models: expected status 200, found {status}"
    raise ProbeError(problem)


def _request(endpoint: Endpoint, method: str, path: str, body: bytes, timeout: float) -> tuple[int, bytes, str]:
    limited = Endpoint(
        endpoint.url, endpoint.api_key, endpoint.ca_pem, endpoint.validate_certs, min(timeout, endpoint.timeout)
    )
    try:
        connection = limited.connect()
        try:
            connection.request(method, path, body=body or None, headers=limited.headers())
            response = connection.getresponse()
            return response.status, response.read(_ANSWER_BYTES), ""
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError, ProbeError) as exc:
        return 0, b"", f"{endpoint.url}: {type(exc).__name__}: {exc}"


def _ask_one(
    endpoint: Endpoint, model: str, item: Item, thinking: int, seconds: float, extra: t.Mapping[str, t.Any]
) -> Answer:
    wish = {
        **extra,
        "model": model,
        "messages": [{"role": "user", "content": item.prompt}],
        "max_tokens": item.max_tokens + thinking,
        "temperature": 0,
        "seed": SEED,
        "stream": False,
    }
    status, body, problem = _request(endpoint, "POST", "/v1/chat/completions", json.dumps(wish).encode(), seconds)
    if problem:
        # What an answer that did not come has cost is not known: the most that it can be.
        return Answer(item.id, tokens=most_tokens(item, thinking), error=problem)
    if status != 200:
        said = " ".join(body[:160].decode(errors="replace").split())
        return Answer(item.id, error=f"{endpoint.url}: expected status 200, found {status}: {said}")
    return read_answer(item, body)


def read_answer(item: Item, body: bytes) -> Answer:
    """An answer from the body of a completion; an empty text is an answer, and a bad one."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        content = message.get("content")
        text = spoken(content if isinstance(content, str) else "")
        usage = found.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0) + int(usage.get("completion_tokens") or 0)
        finish, model = str(choice.get("finish_reason") or ""), str(found.get("model") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return Answer(item.id, error=f"expected a completion, found {body[:80].decode(errors='replace')!r}")
    # An engine that counts nothing: a token has three bytes or more.
    tokens = tokens or (len(item.prompt.encode()) + len(text.encode())) // 3
    return Answer(item.id, text, model, finish, tokens)
