# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Ask an engine known questions, measure how it answers, and compare that with how another release answered. PRIVATE to the collection."""

from __future__ import annotations

import http.client
import json
import re
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import Endpoint


class CanaryError(Exception):
    """A wish that cannot be met; the text names the option, what was expected and what was found."""


@dataclass(frozen=True)
class Question:
    """One question, and the regular expression that must be found in its answer."""

    prompt: str
    expect: str
    max_tokens: int = 64


@dataclass(frozen=True)
class Answer:
    """One answer as the client saw it.

    :ivar error: why there is no whole answer; empty when there is one.
    :ivar text: the answer, with what a reasoning model thought before it.
    :ivar ttft: seconds until the first text.
    :ivar seconds: seconds until the end.
    :ivar tokens: tokens as the engine counts them, else chunks with text.
    """

    question: Question
    error: str = ""
    text: str = ""
    ttft: float = 0.0
    seconds: float = 0.0
    tokens: int = 0

    @property
    def right(self) -> bool:
        """Whether the answer is one that was expected."""
        return not self.error and re.search(self.question.expect, self.text, re.IGNORECASE) is not None

    @property
    def itl(self) -> float:
        """Mean seconds from one token to the next."""
        return (self.seconds - self.ttft) / (self.tokens - 1) if self.tokens > 1 else 0.0


@dataclass(frozen=True)
class Limits:
    """How much worse than the baseline is still well.

    :ivar latency_ratio: by how much the median times may grow.
    :ivar slack_seconds: what they may grow by in any case; small times are mostly noise.
    :ivar error_percent: share of the requests that may fail.
    """

    latency_ratio: float = 1.5
    slack_seconds: float = 0.25
    error_percent: float = 0.0


@dataclass
class Measurement:
    """What was seen. Times are medians in seconds."""

    requests: int = 0
    errors: int = 0
    wrong: int = 0
    ttft_seconds: float = 0.0
    itl_seconds: float = 0.0
    answer_seconds: float = 0.0
    tokens_per_second: float = 0.0
    samples: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, t.Any]:
        """For a result, and for a later comparison."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.requests - self.errors} of {self.requests} requests answered, {self.wrong} wrong; first token after"
            f" {self.ttft_seconds * 1000:.0f} ms, then one each {self.itl_seconds * 1000:.1f} ms"
        )


def questions(found: t.Sequence[t.Mapping[str, t.Any]]) -> list[Question]:
    """Questions from the option, checked."""
    result = []
    for number, one in enumerate(found):
        prompt, expect = str(one.get("prompt") or ""), str(one.get("expect") or "")
        if not prompt or not expect:
            raise CanaryError(f"questions[{number}]: expected prompt and expect, found {dict(one)}")
        try:
            re.compile(expect)
        except re.error as exc:
            raise CanaryError(
                f"questions[{number}].expect: expected a regular expression, found {expect!r} ({exc})"
            ) from exc
        tokens = one.get("max_tokens") or 64
        if isinstance(tokens, bool) or not str(tokens).isdigit():
            raise CanaryError(f"questions[{number}].max_tokens: expected a whole number from 1, found {tokens!r}")
        result.append(Question(prompt, expect, int(tokens)))
    return result


def ask(endpoint: Endpoint, model: str, question: Question) -> Answer:
    """Ask once, as a stream, on a connection of its own."""
    start = time.monotonic()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question.prompt}],
        "max_tokens": question.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = endpoint.connect()
    try:
        connection.request("POST", "/v1/chat/completions", body=json.dumps(body).encode(), headers=endpoint.headers())
        response = connection.getresponse()
        if response.status != 200:
            said = " ".join(response.read()[:200].decode(errors="replace").split())
            return Answer(question, error=f"status {response.status}: {said}")
        return _read(response, question, start)
    except (OSError, http.client.HTTPException) as exc:
        return Answer(question, error=f"{type(exc).__name__}: {exc}")
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, question: Question, start: float) -> Answer:
    parts: list[str] = []
    first, counted = 0.0, 0
    while True:
        line = response.readline()
        if not line:
            return Answer(question, error=f"the stream ended after {len(parts)} chunks, without data: [DONE]")
        text = line.decode(errors="replace").strip()
        if not text.startswith("data:"):
            continue
        if text[5:].strip() == "[DONE]":
            break
        part, usage, error = _event(text[5:].strip())
        if error:
            return Answer(question, error=error)
        counted = usage or counted
        if part:
            parts.append(part)
            first = first or time.monotonic() - start
    seconds = time.monotonic() - start
    if not parts:
        return Answer(question, error="the stream had no text")
    return Answer(question, "", "".join(parts), first, seconds, counted or len(parts))


def _event(text: str) -> tuple[str, int, str]:
    """Text, tokens counted so far and error of one event."""
    try:
        event = json.loads(text)
    except ValueError:
        return "", 0, f"expected JSON in the stream, found {text[:80]!r}"
    if not isinstance(event, dict):
        return "", 0, f"expected an object in the stream, found {text[:80]!r}"
    if event.get("error"):
        return "", 0, f"the stream reported {str(event['error'])[:200]}"
    usage = event.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else 0
    choices = event.get("choices")
    delta = choices[0].get("delta") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    delta = delta if isinstance(delta, dict) else {}
    part = f"{delta.get('reasoning_content') or ''}{delta.get('content') or ''}"
    return part, count if isinstance(count, int) else 0, ""


def _median(values: t.Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if not ordered:
        return 0.0
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def measure(answers: t.Sequence[Answer]) -> Measurement:
    """Sum up answers. Those that failed have no times."""
    good = [one for one in answers if not one.error]
    found = Measurement(requests=len(answers), errors=len(answers) - len(good))
    found.wrong = sum(not one.right for one in good)
    found.ttft_seconds = _median([one.ttft for one in good])
    found.itl_seconds = _median([one.itl for one in good if one.tokens > 1])
    found.answer_seconds = _median([one.seconds for one in good])
    found.tokens_per_second = 1 / found.itl_seconds if found.itl_seconds > 0 else 0.0
    seen: dict[str, str] = {}
    for one in good:
        seen.setdefault(one.question.prompt, one.text)
    found.samples = [text[:200] for text in seen.values()]
    return found


def problems(
    answers: t.Sequence[Answer], found: Measurement, limits: Limits, baseline: t.Mapping[str, t.Any]
) -> list[str]:
    """What is not as it should be, a sentence each.

    :arg baseline: as_dict() of a measurement of the release before; empty for none. One without a good answer is none.
    """
    result: list[str] = []
    errors = [one.error for one in answers if one.error]
    if errors and 100.0 * len(errors) / len(answers) > limits.error_percent:
        result.append(
            f"{len(errors)} of {found.requests} requests failed, at most {limits.error_percent:g} % may; the first: {errors[0]}"
        )
    named: set[str] = set()
    for one in answers:
        if not one.error and not one.right and one.question.prompt not in named:
            named.add(one.question.prompt)
            result.append(
                f"{one.question.prompt!r}: expected an answer with {one.question.expect!r}, found {one.text[:200]!r}"
            )
    usable = bool(baseline) and int(baseline.get("requests", 0)) > int(baseline.get("errors", 0))
    if usable and found.requests > found.errors:
        for name, what in (("ttft_seconds", "the first token"), ("itl_seconds", "each further token")):
            before, now = float(baseline.get(name, 0.0)), float(getattr(found, name))
            most = before * limits.latency_ratio + limits.slack_seconds
            if before > 0 and now > most:
                result.append(
                    f"{what} takes {now * 1000:.0f} ms, it took {before * 1000:.0f} ms before; at most {most * 1000:.0f} ms are allowed"
                )
    return result


def run(endpoint: Endpoint, model: str, asked: t.Sequence[Question], requests: int, parallel: int) -> list[Answer]:
    """Ask the questions one after the other and again, until there are so many requests, several at a time."""
    with ThreadPoolExecutor(max_workers=max(1, min(parallel, requests))) as pool:
        return list(pool.map(lambda number: ask(endpoint, model, asked[number % len(asked)]), range(requests)))
