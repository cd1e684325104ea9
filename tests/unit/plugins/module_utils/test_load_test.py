# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The load test without a network: ladder, mix, target, figures, marks, comparison, page."""

from __future__ import annotations

import json
import math
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test as load
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_job as jobs
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_judge as judges
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_open as loops
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._load_test_page import load_test_page

ROOT = Path(__file__).resolve().parents[4]
ROLE_MIX = (ROOT / "roles" / "load_test" / "files" / "mix.json").read_text("utf-8")
FLEET = {"gw1": "192.0.2.10", "gpu1": "gpu1.example.com"}
NAMES = {
    "gpu1.example.com": ["192.0.2.21", "2001:db8::21"],
    "llm.example.com": ["192.0.2.10"],
    "elsewhere.example.com": ["192.0.2.10", "203.0.113.5"],
    "balancer.example.com": ["203.0.113.9"],
}
# Two replicas of at most 16 requests; a decode step takes 10, 20 and 25 ms.
PLAN = judges.plan_of(
    {
        "model": {"name": "m"},
        "fleet": {"replicas": 2, "requests_at_a_time": 32},
        "speed": {
            "first_token_seconds": 0.2,
            "prompt_tokens": 1024,
            "answer_tokens": 100,
            "by_batch": [
                {"batch": 1, "tokens_per_second_per_request": 100, "requests_per_second": 0.8},
                {"batch": 8, "tokens_per_second_per_request": 50, "requests_per_second": 3.0},
                {"batch": 16, "tokens_per_second_per_request": 40, "requests_per_second": 5.0},
            ],
        },
    },
    300,
)


def look_up(name: str) -> list[str]:
    """Names without DNS."""
    if name not in NAMES:
        raise OSError("no such name")
    return NAMES[name]


def answer(kind: str = "ok", stamps: list[float] | None = None, due: float = 0.0, **more: Any) -> load.Answer:
    """An answer that was due at a time, with texts at others."""
    times = stamps or []
    end = times[-1] if times else due + 1
    return load.Answer("chat", bool(times), due, due, kind=kind, status=200, end=end, stamps=times, **more)


def figures(users: int = 4, **changes: Any) -> dict[str, Any]:
    """The figures of one step."""
    times = {"count": 100, "mean": 0.2, "p50": 0.2, "p90": 0.25, "p99": 0.3, "max": 0.4}
    found: dict[str, Any] = {
        "users": users,
        "planned_seconds": 10,
        "seconds": 10.0,
        "requests": 100,
        "ok": 100,
        "rejected": 0,
        "errors": 0,
        "unfinished": 0,
        "error_ratio": 0.0,
        "rejected_ratio": 0.0,
        "error_reasons": {},
        "statuses": {"200": 100},
        "requests_per_second": 10.0,
        "tokens_per_second": 1000.0,
        "tokens_per_event": 1.0,
        "ttft": dict(times),
        "itl": {"count": 900, "mean": 0.01, "p50": 0.01, "p90": 0.01, "p99": 0.015, "max": 0.02},
        "e2e": dict(times),
    }
    return {**found, **changes}


def test_the_ladder_stays_within_its_bounds_and_says_what_it_leaves_out() -> None:
    steps = [{"users": users, "seconds": 30} for users in (1, 2, 500, 4, 8)]
    kept, left_out = load.bounded(steps, 100, 2, reserved=30)
    assert [step.users for step in kept] == [1, 2, 4]
    assert left_out == ["500 users (load_test_max_users is 100)", "8 users (load_test_max_minutes is 2)"]
    ladder = load.Ladder(kept)
    assert [ladder.at(second) for second in (0, 29.9, 30, 89.9, 90)] == [0, 0, 1, 2, None]
    assert (ladder.lasted(1, 45), ladder.lasted(1, 500), ladder.lasted(2, 10)) == (15, 30, 0)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([], "at least one step"),
        ([{"users": 500, "seconds": 30}], "500 users (load_test_max_users is 10)"),
        ([{"users": 1, "seconds": 3600}], "load_test_max_minutes is 1"),
        ([{"users": 0, "seconds": 3}], "whole numbers from 1, in step 1"),
        ([{"users": True, "seconds": 3}], "whole numbers from 1"),
        ([{"users": 1, "seconds": 3, "rate": 1}], "users and seconds"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(steps: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(load.LoadTestError, match=re.escape(words)):
        load.bounded(steps, 10, 1)


def test_the_mix_of_the_role_sends_what_it_says_and_the_same_each_time() -> None:
    mix = load.Mix.of_text(ROLE_MIX)
    dice = load.Dice("a")
    sent = [mix.pick(dice, "m") for _number in range(4000)]
    again = load.Dice("a")
    assert [mix.pick(again, "m") for _number in range(50)] == sent[:50]
    shares = {entry["name"]: sum(one.name == entry["name"] for one in sent) / len(sent) for entry in mix.entries}
    for entry, weight in zip(mix.entries, mix.weights):
        assert shares[entry["name"]] == pytest.approx(weight / sum(mix.weights), abs=0.03)
    bodies = [json.loads(one.body) for one in sent]
    prompts = [body["messages"][0]["content"] for body in bodies]
    assert len(set(prompts)) == len(prompts)
    words = [len(text.split()) for one, text in zip(sent, prompts) if one.name == "long-prompt"]
    assert min(words) >= 300
    assert max(words) > 650
    assert all(
        body["stream"] == one.stream and ("stream_options" in body) == one.stream for body, one in zip(bodies, sent)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "expected JSON"),
        ("[]", 'expected {"version": 1'),
        ('{"version": 1, "requests": []}', "at least one request"),
        ('{"version": 1, "requests": [{"name": "a", "max_tokens": 4}]}', "requests[0].prompts"),
        ('{"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 0}]}', "requests[0].max_tokens"),
        ('{"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 1, "stream": 2}]}', "share"),
        ('{"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 1, "colour": 2}]}', "found colour"),
        ('{"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 1, "weight": 0}]}', "weight"),
        (
            '{"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 1, "filler_words": [9, 1]}]}',
            "filler",
        ),
    ],
)
def test_a_mix_that_says_nothing_clear_is_refused(text: str, words: str) -> None:
    with pytest.raises(load.LoadTestError, match=re.escape(words)):
        load.Mix.of_text(text)


def test_only_gateways_and_engines_of_the_inventory_are_asked() -> None:
    target, host = load.check_target("https://llm.example.com", FLEET, look_up)
    assert (target.address, target.port, host, target.url) == ("192.0.2.10", 443, "gw1", "https://llm.example.com:443")
    target, host = load.check_target("http://[2001:db8::21]:8000/base/", FLEET, look_up)
    assert (target.url, host) == ("http://[2001:db8::21]:8000/base", "gpu1")
    target, host = load.check_target("https://balancer.example.com", FLEET, look_up, "gw1")
    assert (target.host, target.address) == ("balancer.example.com", "192.0.2.10")
    for url, words in {
        "https://203.0.113.5": "203.0.113.5, which is none of them; nothing was sent",
        "https://elsewhere.example.com": "with the address 203.0.113.5",
        "https://unknown.example.com": "can be resolved",
        "ftp://192.0.2.10": "expected http://HOST",
        "https://user:word@192.0.2.10": "expected http://HOST",
        "https://192.0.2.10:99999": "expected http://HOST",
    }.items():
        with pytest.raises(load.LoadTestError, match=re.escape(words)):
            load.check_target(url, FLEET, look_up)
    with pytest.raises(load.LoadTestError, match="load_test_connect_host"):
        load.check_target("https://balancer.example.com", FLEET, look_up, "mon1")


def test_percentiles_are_within_one_percent() -> None:
    times = load.Histogram()
    values = [math.exp(number / 200) / 1000 for number in range(1, 1001)]
    for value in values:
        times.add(value)
    for percent in (50, 90, 99):
        true = values[math.ceil(len(values) * percent / 100) - 1]
        assert times.percentile(percent) == pytest.approx(true, rel=0.0101)
    assert times.percentile(100) == max(values)
    assert load.Histogram().summary() == {"count": 0}


def test_requests_belong_to_the_step_they_were_sent_in_and_tokens_to_the_one_they_came_in() -> None:
    recorder = load.Recorder(load.Ladder([load.Step(1, 10), load.Step(2, 10)]), 100.0)
    step = recorder.sending(109.0)
    assert step == 0
    for moment in (109.5, 109.8, 110.5, 111.0):
        recorder.text(moment)
    recorder.take(0, answer(stamps=[109.5, 109.8, 110.5, 111.0], due=109.0, tokens=8))
    assert recorder.sending(112.0) == 1
    recorder.take(1, answer("rejected", due=112.0))
    assert recorder.sending(113.0) == 1
    recorder.take(1, answer("error", due=113.0, reason="status 500"))
    assert recorder.sending(114.0) == 1
    assert recorder.sending(121.0) is None
    one, two = recorder.summaries(120.0)
    assert (one["requests"], one["ok"], one["requests_per_second"]) == (1, 1, 0)
    # Eight tokens came in four events: each event counts twice.
    assert (one["tokens_per_second"], two["tokens_per_second"]) == (0.4, 0.2)
    assert one["ttft"]["p99"] == pytest.approx(0.5)
    assert one["itl"]["count"] == 3
    assert (two["rejected"], two["errors"], two["unfinished"], two["error_ratio"]) == (1, 1, 1, 1.0)
    assert two["error_reasons"] == {"status 500": 1}


def test_errors_end_the_test_and_rejections_do_not() -> None:
    burn = load.Burn(0.2, 10, 5)
    for second in range(100):
        assert not burn.add(second / 10, answer("rejected"))
    for second in range(100, 120):
        assert not burn.add(second / 10, answer("error" if second % 7 == 0 else "ok"))
    found = ""
    for second in range(120, 140):
        found = found or burn.add(second / 10, answer("error", reason="status 500"))
    assert "load_test_abort_error_ratio" in found
    assert "status 500" in found


def test_the_host_that_sends_is_watched() -> None:
    watch = load.HostWatch(256, 90)
    plenty, little = "MemAvailable: 900000 kB\n", "MemTotal: 9 kB\nMemAvailable:  10240 kB\n"
    assert "10 MiB" in watch.look(little, "cpu 0 0 0 0 0 0 0 0\n")
    said = [watch.look(plenty, f"cpu {100 * n} 0 0 {n} 0 0 0 0\n") for n in range(1, 6)]
    assert [bool(text) for text in said] == [False, False, False, True, True]
    assert not load.HostWatch(0, 0).look(little, "cpu 1 1 1 1 1 1 1 1\n")


def test_marks_come_from_the_plan_and_the_operator_replaces_them() -> None:
    one = judges.marks_for(2, PLAN, {}, 2.0)
    assert one["ttft_p99_seconds"] == (0.3, "fleet_targets")
    assert one["itl_p99_seconds"][0] == pytest.approx(0.02)
    assert one["min_tokens_per_second"][0] == pytest.approx(2 * 0.8 * 100 / 2)
    many = judges.marks_for(20, PLAN, {"itl_p99_seconds": 0.1}, 2.0)
    assert many["ttft_p99_seconds"][0] == pytest.approx(0.2 * 10 * 2)
    assert many["itl_p99_seconds"] == (0.1, "load_test_pass")
    assert many["min_tokens_per_second"][0] == pytest.approx(2 * 3.0 * 100 / 2)
    assert judges.marks_for(33, PLAN, {}, 2.0) == {}
    assert judges.marks_for(33, PLAN, {"max_users": 40}, 2.0)
    assert list(judges.marks_for(500, {}, {}, 2.0)) == ["error_ratio"]
    assert judges.plan_of({"verdict": "refused"}, 0) == {}
    with pytest.raises(load.LoadTestError, match="found speed"):
        judges.check_pass({"speed": 1})
    with pytest.raises(load.LoadTestError, match="expected a number from 0"):
        judges.check_pass({"error_ratio": "1 %"})


def test_a_step_that_misses_says_which_mark_what_was_expected_and_what_was_found() -> None:
    own = {"ttft_p99_seconds": 0.25, "min_tokens_per_second": 2000, "max_users": 8}
    slow = figures(8, errors=5, error_ratio=0.05, error_reasons={"status 500": 5})
    found = judges.judge([figures(4), slow, figures(16), figures(2, seconds=3.0)], {}, own, 2.0)
    assert [(step["judged"], step["passed"]) for step in found] == [
        (True, False),
        (True, False),
        (False, True),
        (False, True),
    ]
    said = [miss["sentence"] for step in found for miss in step["misses"]]
    assert said == [
        "step of 4 users: ttft_p99_seconds: expected at most 250 ms (from load_test_pass), found 300 ms",
        "the fastest step (4 users): min_tokens_per_second: expected at least 2000 tokens/s (from load_test_pass), found 1000 tokens/s",
        "step of 8 users: error_ratio: expected at most 1 % (from default), found 5 % (status 500)",
        "step of 8 users: ttft_p99_seconds: expected at most 250 ms (from load_test_pass), found 300 ms",
    ]
    none = judges.judge([figures(1, ok=0, errors=0, rejected=100)], {}, {}, 2.0)
    assert "expected answers, found none (100 rejected" in none[0]["misses"][0]["sentence"]


def test_the_last_run_of_the_shape_is_compared_step_by_step(tmp_path: Path) -> None:
    steps = judges.judge([figures(4), figures(8)], {}, {}, 2.0)
    for name, shape, state in (("1", "a", "passed"), ("2", "b", "passed"), ("3", "a", "failed"), ("4", "a", "aborted")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "verdict.json").write_text(json.dumps({"run": name, "shape": shape, "state": state, "steps": steps}))
    (tmp_path / "runs" / "0").mkdir()
    last = jobs.last_of_shape(str(tmp_path), "a")
    assert last is not None
    assert last["run"] == "3"
    assert jobs.last_of_shape(str(tmp_path), "c") is None
    now = judges.judge([figures(4, tokens_per_second=850.0), figures(8, tokens_per_second=950.0)], {}, {}, 2.0)
    found = judges.compare(now, last, 10)
    assert found["with"] == "3"
    assert found["losses"] == ["4 users: tokens_per_second was 1000 tokens/s and is 850 tokens/s, -15 %"]
    assert judges.verdict_of(now, None, found, "warn", "")[0] == "passed"
    state, reasons, _warnings = judges.verdict_of(now, None, found, "fail", "")
    assert (state, len(reasons)) == ("failed", 1)
    assert judges.verdict_of(now, None, found, "warn", "stopped")[0] == "aborted"
    jobs.prune(str(tmp_path), 2)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["3", "4"]


class Slow:
    """A service that takes one request at a time, 50 ms each."""

    busy = threading.Lock()

    def __init__(self, on_text: Any) -> None:
        self.on_text = on_text

    def send(self, prepared: load.Prepared, due: float | None = None) -> load.Answer:
        now = loops.time.monotonic()
        with self.busy:
            threading.Event().wait(0.05)
        end = loops.time.monotonic()
        self.on_text(end)
        return load.Answer(prepared.name, True, due or now, now, "ok", status=200, end=end, stamps=[end])

    def close(self) -> None:
        """Nothing is open."""


def test_the_open_loop_counts_from_when_a_request_was_due() -> None:
    assert len(loops.due_times(50, 20, load.Dice("x"))) == pytest.approx(1000, rel=0.1)
    mix = load.Mix.of_text(ROLE_MIX)
    # Twice as many as can be served, and two senders: most of the waiting happens before the sending.
    loop = loops.OpenLoop(40, 1, 2, mix, "m", load.Burn(0.1, 20, 10), lambda _n, told: Slow(told), drain=10)
    found = loop.run(threading.Event())
    assert found["senders"] == 2
    assert found["ok"] == found["requests"] > 20
    assert found["e2e"]["max"] > found["e2e_from_sent"]["max"] > 0.05
    assert found["late"]["max"] > found["e2e_from_sent"]["max"]
    assert found["never_sent"] == 0
    assert found["seconds"] == 1


def test_a_few_requests_at_the_beginning_do_not_shorten_the_open_loop() -> None:
    mix = load.Mix.of_text(ROLE_MIX)
    loop = loops.OpenLoop(2, 2, 2, mix, "m", load.Burn(0.1, 20, 10), lambda _n, told: Slow(told), drain=10)
    found = loop.run(threading.Event())
    assert found["seconds"] == 2
    assert found["requests_per_second"] <= found["requests"] / 2


def test_what_k6_says_becomes_the_same_figures() -> None:
    summary = {
        "metrics": {
            "http_reqs": {"count": 50},
            "answers_ok": {"count": 40},
            "answers_rejected": {"count": 8},
            "answers_error": {"count": 2},
            "dropped_iterations": {"count": 3},
            "http_req_duration": {"avg": 120.0, "med": 100.0, "p(90)": 200.0, "p(99)": 300.0, "max": 400.0},
        }
    }
    found = loops.k6_figures(summary, 5.0, 10)
    assert (found["ok"], found["rejected"], found["errors"], found["never_sent"]) == (40, 8, 2, 3)
    assert (found["e2e"]["p99"], found["requests_per_second"]) == (0.3, 4.0)
    assert found["ttft"] == {"count": 0}


def verdict(**changes: Any) -> dict[str, Any]:
    """A whole verdict."""
    steps = judges.judge([figures(1), figures(4, tokens_per_second=500.0)], {}, {"ttft_p99_seconds": 0.1}, 2.0)
    found: dict[str, Any] = {
        "schema": 1,
        "run": "20261129T220026Z",
        "state": "failed",
        "reasons": [miss["sentence"] for step in steps for miss in step["misses"]],
        "warnings": ["<slow>"],
        "started_unix": 1795990000,
        "finished_unix": 1795990017,
        "url": "https://192.0.2.10:443",
        "target_host": "gw1",
        "model": "m",
        "label": "lab",
        "shape": "abc",
        "steps": steps,
        "left_out": [],
        "open_loop": None,
        "comparison": judges.compare(steps, {"run": "r0", "steps": steps}, 10),
        "compare_percent": 10,
        "sender": {"host": "mon1", "busiest": 0.1, "locust": "2.47.0", "mix": ["chat"]},
    }
    return {**found, **changes}


def test_metrics_and_page_say_what_the_verdict_says() -> None:
    text = judges.metrics_of(verdict())
    assert "gpufleet_load_test_passed 0\n" in text
    assert 'gpufleet_load_test_ttft_seconds{users="4",quantile="0.99"} 0.3\n' in text
    assert text.count("# TYPE gpufleet_load_test_tokens_per_second gauge") == 1
    page = load_test_page(verdict())
    assert "expected at most 100 ms (from load_test_pass), found 300 ms" in page
    assert "&lt;slow&gt;" in page
    assert "Compared with run r0" in page
    assert page.count("<svg") == 6
    assert "http://" not in page.replace("http://www.w3.org", "")
    k6 = {"tool": "k6", **loops.k6_figures({"metrics": {}}, 5.0, 10), "judged": True, "passed": True, "misses": []}
    assert "Sent by k6" in load_test_page(verdict(open_loop=k6, steps=[], comparison=judges.compare([], None, 10)))
