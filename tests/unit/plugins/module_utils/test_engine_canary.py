# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _engine_canary as canary
from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import Endpoint

FRANCE = canary.Question("Which city is the capital of France?", "paris")
SUM = canary.Question("What is 2 + 2?", "4|four")


class Handler(http.server.BaseHTTPRequestHandler):
    """An engine that says what the test wants: lines of an event stream, or a status."""

    script: ClassVar[dict[str, Any]] = {}
    asked: ClassVar[list[tuple[dict[str, Any], str]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append((body, self.headers.get("Authorization", "")))
        found = self.script[body["messages"][0]["content"]]
        if isinstance(found, int):
            self.send_response(found)
            self.end_headers()
            self.wfile.write(b"no")
            return
        self.send_response(200)
        self.end_headers()
        for line in found:
            self.wfile.write(f"data: {line}\n\n".encode())

    def log_message(self, *_unused: object) -> None:
        """Say nothing."""


@pytest.fixture(name="endpoint")
def make_endpoint() -> Iterator[Endpoint]:
    Handler.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Endpoint(f"http://127.0.0.1:{server.server_port}", "a-key", timeout=5)
    server.shutdown()
    server.server_close()


def words(*texts: str, usage: int = 0, kind: str = "content") -> list[str]:
    events = [json.dumps({"choices": [{"delta": {kind: text}}]}) for text in texts]
    if usage:
        events.append(json.dumps({"choices": [], "usage": {"completion_tokens": usage}}))
    return [*events, "[DONE]"]


def test_an_answer_is_read_and_measured(endpoint: Endpoint) -> None:
    Handler.script = {FRANCE.prompt: words("It is ", "Paris", usage=7)}
    answer = canary.ask(endpoint, "m", FRANCE)
    assert (answer.error, answer.text, answer.tokens, answer.right) == ("", "It is Paris", 7, True)
    assert 0 < answer.ttft <= answer.seconds
    body, key = Handler.asked[0]
    assert key == "Bearer a-key"
    assert (body["temperature"], body["stream"], body["max_tokens"]) == (0, True, 64)


def test_thoughts_are_a_part_of_the_answer(endpoint: Endpoint) -> None:
    Handler.script = {FRANCE.prompt: words("that is PARIS", kind="reasoning_content")}
    answer = canary.ask(endpoint, "m", FRANCE)
    assert (answer.text, answer.tokens, answer.right) == ("that is PARIS", 1, True)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (503, "status 503: no"),
        (words("Par")[:-1], "the stream ended after 1 chunks, without data: \\[DONE\\]"),
        (["[DONE]"], "the stream had no text"),
        (["{nonsense"], "expected JSON in the stream, found '{nonsense'"),
        (["[1]"], "expected an object in the stream"),
        ([json.dumps({"error": {"message": "out of memory"}})], "the stream reported .*out of memory"),
    ],
)
def test_what_is_no_answer(endpoint: Endpoint, script: Any, error: str) -> None:
    Handler.script = {FRANCE.prompt: script}
    answer = canary.ask(endpoint, "m", FRANCE)
    assert not answer.right
    assert re.search(error, answer.error), answer.error


def test_nobody_listens() -> None:
    answer = canary.ask(Endpoint("http://127.0.0.1:1", timeout=2), "m", FRANCE)
    assert "refused" in answer.error


def test_the_questions_are_asked_in_turn(endpoint: Endpoint) -> None:
    Handler.script = {FRANCE.prompt: words("Paris"), SUM.prompt: words("5")}
    answers = canary.run(endpoint, "m", [FRANCE, SUM], 5, 3)
    assert [one.question for one in answers] == [FRANCE, SUM, FRANCE, SUM, FRANCE]
    found = canary.measure(answers)
    assert (found.requests, found.errors, found.wrong, found.samples) == (5, 0, 2, ["Paris", "5"])
    assert canary.problems(answers, found, canary.Limits(), {}) == [
        "'What is 2 + 2?': expected an answer with '4|four', found '5'"
    ]


def answers(ttft: float, itl: float, count: int = 4, errors: int = 0) -> list[canary.Answer]:
    good = canary.Answer(FRANCE, "", "Paris", ttft, ttft + 10 * itl, 11)
    return [good] * (count - errors) + [canary.Answer(FRANCE, "status 500: no")] * errors


def judge(before: list[canary.Answer], after: list[canary.Answer], **limits: float) -> list[str]:
    baseline = canary.measure(before).as_dict()
    return canary.problems(after, canary.measure(after), canary.Limits(**limits), baseline)


def test_slower_than_before_is_named_with_all_its_numbers() -> None:
    assert judge(answers(0.2, 0.02), answers(0.54, 0.02)) == []
    assert judge(answers(0.2, 0.02), answers(0.9, 0.02)) == [
        "the first token takes 900 ms, it took 200 ms before; at most 550 ms are allowed"
    ]
    assert judge(answers(0.2, 0.02), answers(0.2, 0.04), slack_seconds=0.0) == [
        "each further token takes 40 ms, it took 20 ms before; at most 30 ms are allowed"
    ]


def test_a_baseline_without_an_answer_compares_nothing() -> None:
    assert judge(answers(9.0, 9.0, errors=4), answers(3.0, 1.0)) == []
    assert canary.problems(answers(3.0, 1.0), canary.measure(answers(3.0, 1.0)), canary.Limits(), {}) == []


def test_errors_up_to_a_share() -> None:
    some = answers(0.1, 0.01, count=10, errors=1)
    assert judge(answers(0.1, 0.01), some, error_percent=10.0) == []
    assert judge(answers(0.1, 0.01), some) == ["1 of 10 requests failed, at most 0 % may; the first: status 500: no"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"prompt": "p"}], "questions\\[0\\]: expected prompt and expect"),
        ([{"prompt": "p", "expect": "("}], "questions\\[0\\].expect: expected a regular expression, found '\\('"),
        (
            [{"prompt": "p", "expect": "x", "max_tokens": "many"}],
            "questions\\[0\\].max_tokens: expected a whole number",
        ),
    ],
)
def test_questions_that_are_none(given: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(canary.CanaryError, match=words):
        canary.questions(given)
