# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: modules quality_answers and quality_verdict, as Ansible calls them."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import quality_answers, quality_verdict

SUITE = {
    "version": "1",
    "items": [{"id": f"f-{n}", "kind": "fact", "language": "en", "prompt": f"q {n}", "expect": "x"} for n in range(3)],
}


def run(module: Any, capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of a module and what it says."""
    with patch_module_args({**options, "_ansible_check_mode": check}), pytest.raises(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


class Handler(http.server.BaseHTTPRequestHandler):
    """An engine that answers everything, or nothing."""

    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"message": {"content": "x"}, "finish_reason": "stop"}
        data = json.dumps({"model": "m", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_unused: object) -> None:
        """Say nothing."""


@pytest.fixture(name="url")
def make_url() -> Iterator[str]:
    Handler.status = 200
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_answers_four_times(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    wish = {"url": url, "api_key": "secret-key", "model": "m", "suite": SUITE, "items": ["f-0", "f-2"]}
    results = [run(quality_answers, capsys, check=check, **wish) for check in (True, False, True, False)]
    assert all(result["changed"] is False for result in results)
    assert [one["id"] for one in results[0]["answers"]] == ["f-0", "f-2"]
    assert results[0]["tokens"] == 8
    assert "secret-key" not in json.dumps(results)


def test_an_engine_that_does_not_answer(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    Handler.status = 503
    result = run(quality_answers, capsys, url=url, model="m", suite=SUITE)
    assert result["failed"]
    assert "3 of 3 questions were not answered; f-0: " in result["msg"]
    assert "found 503" in result["msg"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [({"parallel": 0}, "parallel: expected a whole number from 1 to 32, found 0"), ({"items": ["f-9"]}, "found f-9")],
)
def test_wishes_that_cannot_be(url: str, capsys: pytest.CaptureFixture[str], wish: Any, words: str) -> None:
    result = run(quality_answers, capsys, url=url, model="m", suite=SUITE, **wish)
    assert result["failed"]
    assert words in result["msg"]


def program(folder: Path, output: str, code: int = 0) -> list[str]:
    """A program that keeps what it is asked and says the same each time."""
    script = folder / "program"
    (folder / "says").write_text(output)
    script.write_text(f'#!/bin/sh\ncat > {folder}/asked\necho "$@" > {folder}/words\ncat {folder}/says\nexit {code}\n')
    script.chmod(0o755)
    return [str(script), "--flag"]


def say(problems: list[str]) -> str:
    return json.dumps(
        {"scores": {"en.exact": 0.5}, "beyond": ["en.exact"] * len(problems), "missing": "", "problems": problems}
    )


def test_a_verdict_four_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish = {
        "argv": program(tmp_path, say([])),
        "release": "r-1",
        "answers": [{"id": "f-0", "text": "x"}],
        "drift": False,
    }
    results = [run(quality_verdict, capsys, check=check, **wish) for check in (True, False, True, False)]
    assert all((result["changed"], result["problems"]) == (False, []) for result in results)
    assert (tmp_path / "words").read_text().split() == ["--flag", "judge"]
    assert json.loads((tmp_path / "asked").read_text()) == {
        "release": "r-1",
        "answers": [{"id": "f-0", "text": "x"}],
        "drift": False,
    }


def test_worse_than_noise_fails_unless_it_is_only_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = program(tmp_path, say(["en exact is 0.5"]))
    result = run(quality_verdict, capsys, argv=argv, release="r-1", answers=[])
    assert result["failed"]
    assert result["msg"] == "the answers are worse than those of r-1, beyond noise: en exact is 0.5"
    assert not run(quality_verdict, capsys, argv=argv, release="r-1", answers=[], fail=False).get("failed")


@pytest.mark.parametrize(("output", "code"), [("no json", 0), ("[]", 0), ("suite: wrong", 2)])
def test_a_program_that_has_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, code: int
) -> None:
    result = run(quality_verdict, capsys, argv=program(tmp_path, output, code), release="r-1", answers=[])
    assert result["failed"]
    assert f"found exit code {code}: {output}" in result["msg"]
