# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Clients that people have: OpenAI's Python package, and curl."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
from gatewaytools import KEY, MODEL, Engine, Gateway, headers_seen

Start = Callable[..., Gateway]


def client(made: Gateway, key: str = KEY, retries: int = 0) -> openai.OpenAI:
    """OpenAI's client at this gateway."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{made.port}/v1", api_key=key, max_retries=retries, timeout=30)


def question(text: str = "Say something") -> Any:
    """One message of a person."""
    return [{"role": "user", "content": text}]


def test_models_and_an_answer(gateway: Start) -> None:
    asked = client(gateway(2))
    assert [model.id for model in asked.models.list()] == [MODEL, "alias"]
    for name in (MODEL, "alias"):
        answer = asked.chat.completions.create(model=name, messages=question(), max_tokens=8)
        assert answer.choices[0].message.content
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0
    with_format = asked.chat.completions.create(
        model=MODEL, messages=question(), max_tokens=8, response_format={"type": "json_object"}
    )
    assert with_format.model == MODEL


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream(gateway: Start, engines: list[Engine], usage: bool) -> None:
    for engine in engines:
        engine.control(chunks=7)
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    made = gateway(1)
    stream: Any = client(made).chat.completions.create(
        model=MODEL, messages=question(), max_tokens=7, stream=True, **options
    )
    events = list(stream)
    assert sum(bool(event.choices and event.choices[0].delta.content) for event in events) == 7
    assert [event.usage is not None for event in events].count(True) == (1 if usage else 0)
    assert made.metric("gw_usage_missing_total") == 0


def test_tools_reach_the_engine(gateway: Start, engines: list[Engine]) -> None:
    tool: Any = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    asked = client(gateway(1))
    answer = asked.chat.completions.create(
        model=MODEL, messages=question("Weather?"), max_tokens=8, tools=[tool], tool_choice="auto"
    )
    assert answer.choices
    seen = headers_seen(engines)
    sent = {"model": MODEL, "messages": question("Weather?"), "max_tokens": 8, "tools": [tool], "tool_choice": "auto"}
    # The body as the package writes it, and as it came: nothing was lost on the way.
    assert int(seen["content-length"]) == len(json.dumps(sent, separators=(",", ":")))


def test_errors_are_those_of_the_package(gateway: Start) -> None:
    made = gateway(1, max_tokens=100)
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        client(made, key="sk-wrong-0123456789").models.list()
    assert wrong_key.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as no_model:
        client(made).chat.completions.create(model="nothing", messages=question())
    assert no_model.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_much:
        client(made).chat.completions.create(model=MODEL, messages=question(), max_tokens=101)
    assert too_much.value.param == "max_tokens"


def test_a_limit_is_an_error_with_what_is_left(gateway: Start) -> None:
    asked = client(gateway(1, rpm=1))
    first = asked.chat.completions.with_raw_response.create(model=MODEL, messages=question(), max_tokens=1)
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as limit:
        asked.chat.completions.create(model=MODEL, messages=question(), max_tokens=1)
    assert limit.value.code == "rate_limit_exceeded"
    assert 1 <= int(limit.value.response.headers["retry-after"]) <= 62


def test_its_own_retries_carry_it_through_a_limit(gateway: Start) -> None:
    """It waits for as long as Retry-After says: nothing fails, and no more is admitted than the limit."""
    made = gateway(2, burst_rps=3)
    asked = client(made, retries=10)
    failed: list[Exception] = []

    def ask() -> None:
        try:
            asked.chat.completions.create(model=MODEL, messages=question(), max_tokens=1)
        except openai.OpenAIError as exc:
            failed.append(exc)

    threads = [threading.Thread(target=ask) for _number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert made.metric("gw_rejected_total", reason="burst_rps") > 0


def test_curl(gateway: Start, engines: list[Engine]) -> None:
    for engine in engines:
        engine.control(chunks=4)
    made = gateway(1)
    url = f"http://127.0.0.1:{made.port}/v1"
    words = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "20",
        "--header",
        f"Authorization: Bearer {KEY}",
    ]

    def curl(*more: str) -> str:
        return subprocess.run(
            [*words, *more], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
        ).stdout

    assert json.loads(curl(f"{url}/models"))["data"][0]["id"] == MODEL
    body = {"model": MODEL, "messages": question(), "max_tokens": 4}
    # curl says that this is a form; the gateway looks at the body.
    assert json.loads(curl(f"{url}/chat/completions", "--data", json.dumps(body)))["choices"]
    stream = curl(f"{url}/chat/completions", "--no-buffer", "--data", json.dumps({**body, "stream": True}))
    assert stream.count("data: ") == 5
    assert stream.rstrip().endswith("data: [DONE]")
    # A body that curl asks leave for before it sends it.
    large = {**body, "messages": question("x" * 2_000_000)}
    answer = subprocess.run(
        [*words, "--header", "Expect: 100-continue", f"{url}/chat/completions", "--data-binary", "@-"],
        input=json.dumps(large),
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(answer.stdout)["choices"]
