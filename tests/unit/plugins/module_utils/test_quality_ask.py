# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Asking, within a budget, a server that is real and a model that is none."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _quality_ask as asking
from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import Endpoint, ProbeError
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_suite import Item, QualityError, load_suite

SUITE = load_suite(
    {
        "version": "1",
        "items": [
            {
                "id": f"q-{n}",
                "kind": "fact",
                "language": "en",
                "prompt": f"question {n}",
                "expect": "x",
                "max_tokens": 8,
            }
            for n in range(4)
        ],
    }
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the test wants: a body, or a status for the next requests of a prompt."""

    failing: ClassVar[dict[str, list[int]]] = {}
    asked: ClassVar[list[dict[str, Any]]] = []

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        allowed = self.headers.get("Authorization") == "Bearer a-key"
        self.reply(200 if allowed else 401, {"data": [{"id": "m"}]} if allowed else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        prompt = body["messages"][0]["content"]
        if self.failing.get(prompt):
            self.reply(self.failing[prompt].pop(0), {"error": "no"})
            return
        choice = {"message": {"content": f"<think>hm</think>answer to {prompt}"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        self.reply(200, {"model": "m-1", "choices": [choice], "usage": usage})

    def log_message(self, *_unused: object) -> None:
        """Say nothing."""


@pytest.fixture(name="endpoint")
def make_endpoint() -> Iterator[Endpoint]:
    Handler.asked, Handler.failing = [], {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Endpoint(f"http://127.0.0.1:{server.server_port}", "a-key", timeout=5)
    server.shutdown()
    server.server_close()


def test_every_question_is_asked_the_same_way(endpoint: Endpoint) -> None:
    budget = asking.Budget(10000, 60)
    answers = asking.ask_suite([endpoint], "", SUITE, budget, 2, thinking=100, extra={"cache_prompt": False, "seed": 1})
    assert [one.id for one in answers] == [item.id for item in SUITE.items]
    assert {(one.model, one.finish, one.tokens, one.error) for one in answers} == {("m-1", "stop", 15, "")}
    assert answers[3].text == "answer to question 3"
    assert (budget.used, budget.requests) == (60, 4)
    wishes = {
        (one["model"], one["temperature"], one["seed"], one["max_tokens"], one["stream"]) for one in Handler.asked
    }
    assert wishes == {("m", 0, asking.SEED, 108, False)}
    assert all(one["cache_prompt"] is False for one in Handler.asked)
    assert asking.answers_from([one.as_dict() for one in answers]) == answers


def test_a_second_try_goes_to_the_next_gateway(endpoint: Endpoint) -> None:
    nobody = Endpoint("http://127.0.0.1:9", "a-key", timeout=2)
    answers = asking.ask_suite([nobody, endpoint], "m", SUITE, asking.Budget(10000, 60), 1)
    assert [one.error for one in answers] == [""] * 4
    Handler.failing = {"question 1": [500], "question 2": [429, 429]}
    answers = asking.ask_suite([endpoint], "m", SUITE, asking.Budget(10000, 60), 1)
    assert [bool(one.error) for one in answers] == [False, False, True, False]
    assert "expected status 200, found 429" in answers[2].error


def test_tokens_and_time_are_bounded(endpoint: Endpoint) -> None:
    most = asking.most_tokens(SUITE.items[0], 0)
    budget = asking.Budget(most + 20, 60)
    answers = asking.ask_suite([endpoint], "m", SUITE, budget, 1)
    # 15 of the tokens were used by each answer, and what was set aside for the rest was given back.
    assert [bool(one.error) for one in answers] == [False, False, True, True]
    assert "the run's tokens are used up" in answers[2].error
    assert budget.used == 30
    late = asking.ask_suite([endpoint], "m", SUITE, asking.Budget(10000, 0), 2)
    assert {one.error for one in late} == {"the time for the run is up"}
    assert len(Handler.asked) == 2


def test_nobody_lists_a_model(endpoint: Endpoint) -> None:
    stranger = Endpoint(endpoint.url, "another", timeout=5)
    with pytest.raises(ProbeError, match="expected status 200, found 401"):
        asking.first_model([stranger])
    answers = asking.ask_suite([stranger], "", SUITE, asking.Budget(10000, 60), 1)
    assert all("found 401" in one.error for one in answers)


@pytest.mark.parametrize(
    ("body", "text", "error"),
    [
        ({"choices": [{"message": {"content": None}, "finish_reason": "length"}]}, "", ""),
        ({"choices": []}, "", "expected a completion"),
        ([], "", "expected a completion"),
    ],
)
def test_strange_answers(body: Any, text: str, error: str) -> None:
    found = asking.read_answer(Item("a", "fact", "en", "x" * 30), json.dumps(body).encode())
    assert found.text == text
    assert error in found.error
    assert bool(found.error) == bool(error)
    if not error:
        assert (found.finish, found.tokens) == ("length", 10)


def test_answers_that_are_none() -> None:
    with pytest.raises(QualityError, match="expected a list of answers"):
        asking.answers_from([{"word": 1}])
