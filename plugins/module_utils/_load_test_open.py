# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""The open-loop step: requests come at their own times, as from a crowd that does not wait for the others' answers.

A closed ladder asks more slowly when the service is slow, and so hides the queue. Here every request has a time at which it is due, and its times count
from there: when all senders are busy, the waiting is in the figures.
"""

from __future__ import annotations

import queue
import threading
import time
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._load_test import (
    Answer,
    Burn,
    Dice,
    Histogram,
    Ladder,
    Mix,
    Prepared,
    Recorder,
    Step,
)

_DONE = -1.0


class Sender(t.Protocol):
    """What sends one request: C(_load_test_client.Client), or a test's."""

    def send(self, prepared: Prepared, due: float | None = None) -> Answer:
        """Send it and read the answer."""

    def close(self) -> None:
        """End the connection."""


def due_times(rate: float, seconds: float, dice: Dice) -> list[float]:
    """Seconds after the start at which requests are due: independent of each other, so many per second on average."""
    found, now = [], dice.interval(rate)
    while now < seconds:
        found.append(now)
        now += dice.interval(rate)
    return found


class OpenLoop:
    """One open-loop step.

    :arg rate: requests per second.
    :arg seconds: how long requests are due; answers are waited for after that.
    :arg senders: the most that are in flight at a time. A request that finds them all busy is sent late, and its times say so.
    :arg make: makes a sender; told what to call at each text.
    :arg drain: seconds after the last due time in which answers may still come.
    """

    def __init__(
        self,
        rate: float,
        seconds: int,
        senders: int,
        mix: Mix,
        model: str,
        burn: Burn,
        make: t.Callable[[int, t.Callable[[float], None]], Sender],
        drain: float,
        seed: str = "open loop",
    ) -> None:
        self.rate, self.seconds, self.mix, self.model, self.burn, self.drain = rate, seconds, mix, model, burn, drain
        self.dice = Dice(seed)
        self.make = make
        self.senders = senders
        self.from_sent, self.late = Histogram(), Histogram()
        self.aborted = ""
        self.never_sent = 0
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[float, Prepared | None]] = queue.Queue()
        self._over = threading.Event()

    def run(self, stop: threading.Event) -> dict[str, t.Any]:
        """Send, wait for the answers, and return the figures."""
        begin = time.monotonic()
        self.recorder = Recorder(Ladder([Step(1, self.seconds)]), begin)
        threads: list[threading.Thread] = []
        idle = threading.Semaphore(0)
        self._idle = idle
        due: float = begin
        for offset in due_times(self.rate, self.seconds, self.dice):
            due = begin + offset
            if stop.wait(max(0.0, due - time.monotonic())) or self._over.is_set():
                break
            # A new sender only when no other one is free.
            if not idle.acquire(blocking=False) and len(threads) < self.senders:
                thread = threading.Thread(target=self._work, args=(len(threads),), daemon=True)
                threads.append(thread)
                thread.start()
            self._queue.put((due, self.mix.pick(self.dice, self.model)))
        # The step has its whole time, also after the last request was due: else its answers per second would be too many.
        while time.monotonic() < begin + self.seconds and not self._over.is_set() and not stop.wait(0.05):
            continue
        ended = min(time.monotonic(), begin + self.seconds)
        self._finish(threads, stop)
        figures = self.recorder.summaries(ended)[0]
        figures.pop("users")
        return {
            "rate": round(self.rate, 3),
            **figures,
            "never_sent": self.never_sent,
            "e2e_from_sent": self.from_sent.summary(),
            "late": self.late.summary(),
            "senders": len(threads),
            "aborted": self.aborted,
        }

    def _finish(self, threads: list[threading.Thread], stop: threading.Event) -> None:
        for _thread in threads:
            self._queue.put((_DONE, None))
        until = time.monotonic() + self.drain
        for thread in threads:
            while thread.is_alive() and time.monotonic() < until and not stop.is_set() and not self._over.is_set():
                thread.join(0.1)
        self._over.set()
        with self._lock:
            while not self._queue.empty():
                _due, prepared = self._queue.get_nowait()
                self.never_sent += prepared is not None

    def _work(self, number: int) -> None:
        sender = self.make(number, self.recorder.text)
        while True:
            due, prepared = self._queue.get()
            if prepared is None or self._over.is_set():
                self.never_sent += prepared is not None
                sender.close()
                return
            # The step is that of the time when it was due, also for one that is sent late.
            step = self.recorder.sending(due)
            answer = sender.send(prepared, due)
            with self._lock:
                self.recorder.take(step or 0, answer)
                self.late.add(answer.sent - answer.due)
                if answer.kind == "ok":
                    self.from_sent.add(answer.end - answer.sent)
                said = self.burn.add(time.monotonic(), answer)
            if said:
                self.aborted = said
                self._over.set()
            self._idle.release()


def k6_figures(summary: t.Mapping[str, t.Any], rate: float, seconds: int) -> dict[str, t.Any]:
    """The figures of k6's summary, as far as k6 has them: it times headers and the whole answer, and no text within a stream.

    :arg summary: what C(--summary-export) wrote; times there are milliseconds.
    """

    def count(name: str) -> int:
        return int(summary["metrics"].get(name, {}).get("count", 0))

    def times(name: str) -> dict[str, float]:
        values = summary["metrics"].get(name, {})
        shown = {"mean": "avg", "p50": "med", "p90": "p(90)", "p99": "p(99)", "max": "max"}
        found = {key: round(float(values[word]) / 1000, 4) for key, word in shown.items() if word in values}
        return {"count": count("http_reqs"), **found} if found else {"count": 0}

    sent, ok, rejected, errors = (
        count(name) for name in ("http_reqs", "answers_ok", "answers_rejected", "answers_error")
    )
    finished = ok + rejected + errors
    return {
        "rate": round(rate, 3),
        "seconds": float(seconds),
        "planned_seconds": seconds,
        "requests": sent,
        "ok": ok,
        "rejected": rejected,
        "errors": errors,
        "unfinished": max(0, sent - finished),
        "never_sent": count("dropped_iterations"),
        "error_ratio": round(errors / (ok + errors), 5) if ok + errors else 0.0,
        "rejected_ratio": round(rejected / finished, 5) if finished else 0.0,
        "error_reasons": {"see k6's own summary": errors} if errors else {},
        "statuses": {},
        "requests_per_second": round(ok / seconds, 3),
        "tokens_per_second": 0.0,
        "tokens_per_event": 1.0,
        "ttft": {"count": 0},
        "itl": {"count": 0},
        "e2e": times("http_req_duration"),
        "headers": times("http_req_waiting"),
        "aborted": "",
    }
