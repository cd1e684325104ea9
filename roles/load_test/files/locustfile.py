# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The closed ladder for Locust: so many users at a time, each of whom asks again as soon as the answer is there.

Started by gpufleet_load_test.py, which names the files in the environment. Locust gives the users, the ladder's clock and its own report; what is judged
is measured by the collection's client, because Locust's time of a streamed answer ends with its headers.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import typing as t
from pathlib import Path

import gevent
from locust import LoadTestShape, User, events, task
from locust.env import Environment

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test as load
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_client as clients

JOB = json.loads(Path(os.environ["GPUFLEET_LOAD_TEST_JOB"]).read_text("utf-8"))
KEYS = list(json.loads(Path(JOB["keys"]).read_text("utf-8")).values())
TARGET = load.Target(**JOB["target"])
MIX = load.Mix(JOB["mix"])
LADDER = load.Ladder([load.Step(**step) for step in JOB["steps"]])
CONTEXT = clients.tls_context(JOB["ca_file"]) if TARGET.scheme == "https" else None


class State:
    """What all users share."""

    def __init__(self) -> None:
        self.recorder = load.Recorder(LADDER, time.monotonic())
        self.burn = load.Burn(JOB["abort_error_ratio"], JOB["abort_min_requests"], JOB["abort_window"])
        self.watch = load.HostWatch(JOB["min_memory_mib"], JOB["max_cpu_percent"])
        self.users = itertools.count()
        self.aborted = ""
        self.over = False
        self.busiest = 0.0


STATE = State()


def write_figures() -> None:
    """Leave what is known so far; the runner reads it while the test goes on."""
    now = time.monotonic()
    data = {"steps": STATE.recorder.summaries(now), "aborted": STATE.aborted, "busiest": round(STATE.busiest, 3)}
    place = Path(JOB["figures"])
    fresh = place.with_suffix(".new")
    fresh.write_text(json.dumps(data), "utf-8")
    fresh.replace(place)


def abort(environment: Environment, sentence: str) -> None:
    """End the test, now."""
    if not STATE.aborted and sentence:
        STATE.aborted = sentence
        STATE.over = True
        if environment.runner is not None:
            # Answers on their way are not waited for.
            environment.stop_timeout = 0
            gevent.spawn(environment.runner.quit)


def look_after(environment: Environment) -> None:
    """Once a second: the host, and how busy this process is."""
    before, busy = time.monotonic(), time.process_time()
    while True:
        gevent.sleep(1)
        now, used = time.monotonic(), time.process_time()
        STATE.busiest = max(STATE.busiest, (used - busy) / (now - before))
        before, busy = now, used
        meminfo = Path("/proc/meminfo").read_text("ascii")
        abort(environment, STATE.watch.look(meminfo, Path("/proc/stat").read_text("ascii")))
        write_figures()


@events.test_start.add_listener
def begin(environment: Environment, **_kwargs: t.Any) -> None:
    """The ladder's clock starts when Locust's does."""
    STATE.recorder.begin = time.monotonic()
    gevent.spawn(look_after, environment)


@events.quitting.add_listener
def end(environment: Environment, **_kwargs: t.Any) -> None:
    """The last word."""
    write_figures()


class Steps(LoadTestShape):
    """Locust asks each second how many users there shall be."""

    def tick(self) -> tuple[int, float] | None:
        """Users of the step that runs now, and how fast they come; None after the last one."""
        number = None if STATE.over else LADDER.at(self.get_run_time())
        if number is None:
            return None
        return LADDER.steps[number].users, JOB["spawn_per_second"]


class Asker(User):
    """One user of one tenant."""

    host = TARGET.url

    def on_start(self) -> None:
        """Take a key and a connection of one's own."""
        self.number = next(STATE.users)
        self.dice = load.Dice(f"{JOB['seed']}/{self.number}")
        self.asker = clients.Client(
            TARGET, KEYS[self.number % len(KEYS)], JOB["timeout"], on_text=STATE.recorder.text, context=CONTEXT
        )

    def on_stop(self) -> None:
        """Leave no connection."""
        self.asker.close()

    @task
    def ask(self) -> None:
        """Ask once, and tell Locust's report what was seen."""
        prepared = MIX.pick(self.dice, JOB["model"])
        step = STATE.recorder.sending(time.monotonic())
        if step is None or STATE.over:
            gevent.sleep(0.2)
            return
        answer = self.asker.send(prepared)
        STATE.recorder.take(step, answer)
        abort(self.environment, STATE.burn.add(time.monotonic(), answer))
        self.tell(answer)
        if answer.kind == "rejected":
            # As a client that behaves: not before the limiter said, but within the step.
            gevent.sleep(min(max(answer.retry_after, 0.1), JOB["retry_after_max"]))
        elif answer.kind == "error":
            gevent.sleep(0.2)
        if JOB["think_seconds"]:
            gevent.sleep(JOB["think_seconds"])

    def tell(self, answer: load.Answer) -> None:
        """Events for Locust's own report, in milliseconds."""
        fire = self.environment.events.request.fire
        whole = (answer.end - answer.due) * 1000
        context: dict[str, t.Any] = {"context": {}, "response_length": 0, "exception": None}
        if answer.kind == "error":
            fire(request_type="E2E", name=answer.name, response_time=whole, **{**context, "exception": answer.reason})
        elif answer.kind == "rejected":
            fire(request_type="REJECTED", name=answer.name, response_time=whole, **context)
        else:
            fire(request_type="E2E", name=answer.name, response_time=whole, **context)
            if answer.stream:
                fire(request_type="TTFT", name=answer.name, response_time=(answer.first - answer.due) * 1000, **context)
            if len(answer.stamps) > 1:
                mean = (answer.stamps[-1] - answer.stamps[0]) / (len(answer.stamps) - 1)
                fire(request_type="ITL", name=answer.name, response_time=mean * 1000, **context)
