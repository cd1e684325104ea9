# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Run named steps a few at a time, each with its own log and time limit, and end with one summary.

A step is a callable that gets a :class:`Run`. It calls commands through ``run.cmd(...)``, whose output goes to the
step's log. Raising :class:`Failure` (or a command that ends non-zero) fails the step, :class:`Skip` leaves it out.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TELLING = re.compile(
    r"(fatal: |FAILED!|UNREACHABLE!|\bERROR\b|^E  |Error: |^FAILED |^ERROR |error: |In .* line \d+:|Traceback|AssertionError"
    r"|still changes|^FAULT )"
)
# What Ansible prints while it waits, as it should.
QUIET = re.compile(r"FAILED - RETRYING")
# A recap of Ansible with a failed or an unreachable host, and what stands beside the error and says nothing more.
RECAP_FAILED = re.compile(r"ok=\d+ .*(failed|unreachable)=[1-9]")
EXPECTED = re.compile(r"^[ │|]*(ok|skipping|included): |^[ │|]*(delta|start|end): ")
TAIL_LINES = 25
DECISIVE = 24
AFTER = 3
TAIL_WIDTH = 220
LABEL_WIDTH = 70
HEARTBEAT = 120.0
GRACE = 20.0


class Failure(Exception):
    """The step did what it should, and found something wrong."""


class Skip(Exception):
    """The step does not apply on this machine."""


class Stopped(Exception):
    """The user stopped the whole run."""


@dataclass
class Step:
    """One check: what it is called, what it does, what must have passed before it, and how long it may take.

    One that ``waits`` most of its time, for hosts and clocks, may run beside as many of the others as there are jobs.
    """

    name: str
    action: Callable[[Run], None]
    group: str
    timeout: float = 600.0
    needs: tuple[str, ...] = ()
    lane: str = ""
    waits: bool = False
    result: str = ""
    seconds: float = 0.0
    reason: str = ""
    log: Path | None = None


@dataclass
class Finalizer:
    """Something that must be undone however the run ends."""

    name: str
    action: Callable[[Run], None]
    timeout: float = 300.0


@dataclass
class Run:
    """What a running step sees: its log, its deadline, and a way to call commands."""

    name: str
    log: IO[str]
    deadline: float
    stop: threading.Event
    process: subprocess.Popen[bytes] | None = None
    notes: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Write a line into the step's log."""
        self.log.write(text.rstrip("\n") + "\n")
        self.log.flush()

    def left(self) -> float:
        """Seconds until the step's time is up."""
        return self.deadline - time.monotonic()

    def cmd(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        check: bool = True,
    ) -> int:
        """Run a command in its own process group; its output goes to the log."""
        words = [str(word) for word in argv]
        self.say(f"$ {' '.join(words)}")
        start = time.monotonic()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(env) if env is not None else None,
            start_new_session=True,
        )
        self.process = process
        try:
            code = self._wait(process)
        finally:
            self.process = None
            self.log.seek(0, os.SEEK_END)
        self.say(f"[exit {code} after {time.monotonic() - start:.1f} s]")
        if check and code != 0:
            raise Failure(f"exit {code}: {label(words)}")
        return code

    def retry(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        tries: int = 4,
        cwd: Path | None = None,
    ) -> None:
        """Run a command that talks to a registry: try again, with longer and longer breaks."""
        for attempt in range(1, tries + 1):
            if self.cmd(argv, env=env, cwd=cwd, check=False) == 0:
                return
            if attempt < tries:
                pause = 5.0 * 2 ** (attempt - 1)
                self.say(f"try {attempt} of {tries} failed; again in {pause:.0f} s")
                if self.stop.wait(pause):
                    raise Stopped
        raise Failure(f"failed {tries} times: {label([str(word) for word in argv])}")

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            try:
                return process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                pass
            if self.stop.is_set():
                end_group(process)
                raise Stopped
            if self.left() <= 0:
                end_group(process)
                raise Failure("time is up")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the command's process group to end, and make sure that it does."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM:
            # The leader is gone; children that outlived it are not waited for, only ended.
            time.sleep(0.2)


def label(words: Sequence[str]) -> str:
    """A command in short: its name and its first words."""
    short = [Path(word).name if word.startswith("/") else word for word in words]
    text = " ".join(short)
    return text if len(text) <= LABEL_WIDTH else text[: LABEL_WIDTH - 3] + "..."


def telling_lines(path: Path) -> list[str]:
    """The lines of a log that a person would look for first: the errors, then the end."""
    lines = [ANSI.sub("", line).rstrip()[:TAIL_WIDTH] for line in path.read_text("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line.strip()]
    if len(lines) <= TAIL_LINES:
        return lines
    first = {line: number for number, line in reversed(list(enumerate(lines)))}
    found = [number for line, number in first.items() if TELLING.search(line) and not QUIET.search(line)]
    found.sort()
    wanted: list[int] = []
    for number in found:
        # One error after another: each needs only its own line.
        end_of = next((other for other in found if number < other < number + AFTER), min(number + AFTER, len(lines)))
        wanted += [other for other in range(number, end_of) if other not in wanted and first[lines[other]] == other]
    end = range(len(lines) - TAIL_LINES // 3, len(lines))
    early = [number for number in wanted if number < end[0]][: TAIL_LINES - len(end)]
    if not early:
        return lines[-TAIL_LINES:]
    return [*(lines[number] for number in early), "...", *(lines[number] for number in end)]


def decisive_lines(path: Path) -> list[str]:
    """Of a log with a failed play, the task that ended it; of another log, the first of its telling lines.

    Scenarios that test bad input are full of errors that were expected: the one that counts is the last before the recap.
    """
    lines = [ANSI.sub("", line).rstrip()[:TAIL_WIDTH] for line in path.read_text("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line.strip(" │|*")]
    recap = next((number for number, line in enumerate(lines) if RECAP_FAILED.search(line)), None)
    if recap is None:
        return telling_lines(path)[:DECISIVE]
    begin = next((number for number in range(recap, -1, -1) if "TASK [" in lines[number]), 0)
    end = next((number for number in range(begin, recap) if "PLAY RECAP" in lines[number]), recap)
    wanted = [line for line in lines[begin:end] if not EXPECTED.search(line)]
    return wanted[:DECISIVE]


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60:d}:{int(seconds) % 60:02d}"


class Runner:
    """Runs steps in their order, some at a time and one more that waits, never two of one lane at once."""

    def __init__(self, steps: Iterable[Step], finalizers: Iterable[Finalizer], logs: Path, jobs: int = 2) -> None:
        """Take the steps in the order in which they should start."""
        self.steps = list(steps)
        self.finalizers = list(finalizers)
        self.logs = logs
        self.jobs = jobs
        self.stop = threading.Event()
        self.changed = threading.Condition()
        self.began = time.monotonic()
        self.running: dict[str, float] = {}
        self.width = max((len(step.name) for step in self.steps), default=10)
        logs.mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        """Run everything; the exit code is 0 only when nothing failed."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            workers = [threading.Thread(target=self._work, daemon=True) for _number in range(self.jobs + 1)]
            for worker in workers:
                worker.start()
            beat = time.monotonic()
            while any(worker.is_alive() for worker in workers):
                for worker in workers:
                    worker.join(timeout=0.25)
                if time.monotonic() - beat > HEARTBEAT:
                    beat = time.monotonic()
                    self._heartbeat()
        finally:
            self._finalize()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self._summary()

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self.stop.is_set():
            self._print("stop ", f"signal {number}: ending the running steps, then cleaning up")
        self.stop.set()

    def _print(self, word: str, text: str) -> None:
        with self.changed:
            print(f"{clock(time.monotonic() - self.began):>6}  {word:<5}  {text}", flush=True)

    def _heartbeat(self) -> None:
        with self.changed:
            now = time.monotonic()
            old = [f"{name} ({clock(now - start)})" for name, start in self.running.items() if now - start > HEARTBEAT]
        if old:
            self._print("...", "still running: " + ", ".join(old))

    def _next(self) -> Step | None:
        """The first step that may start now; waits for one. None: nothing is left to start."""
        with self.changed:
            while True:
                waiting = [step for step in self.steps if not step.result and step.name not in self.running]
                if not waiting or self.stop.is_set():
                    return None
                state = {step.name: step.result for step in self.steps}
                running = [step for step in self.steps if step.name in self.running]
                lanes = {step.lane for step in running if step.lane}
                full = sum(not step.waits for step in running) >= self.jobs
                for step in waiting:
                    broken = [name for name in step.needs if state.get(name, "ok") not in ("", "ok")]
                    if broken:
                        step.result, step.reason = "blocked", f"needs {', '.join(broken)}"
                        self._print("skip", f"{step.name:<{self.width}}  {step.reason}")
                        self.changed.notify_all()
                        break
                    busy = step.lane in lanes
                    if step.lane:
                        # The next of a lane is its first that waits: one that may start earlier does not overtake it.
                        lanes.add(step.lane)
                    if busy or (full and not step.waits) or any(not state.get(name, "ok") for name in step.needs):
                        continue
                    self.running[step.name] = time.monotonic()
                    return step
                else:
                    self.changed.wait(timeout=1.0)

    def _work(self) -> None:
        while True:
            step = self._next()
            if step is None:
                return
            self._print("start", step.name)
            self._execute(step)
            with self.changed:
                self._report(step)
                del self.running[step.name]
                self.changed.notify_all()

    def _execute(self, step: Step) -> None:
        step.log = self.logs / (re.sub(r"[^A-Za-z0-9.]+", "-", step.name).strip("-") + ".log")
        start = time.monotonic()
        result = "ok"
        with step.log.open("w", encoding="utf-8") as log:
            run = Run(step.name, log, start + step.timeout, self.stop)
            try:
                step.action(run)
            except Failure as error:
                result, step.reason = "failed", str(error)
                run.say(f"FAILED: {error}")
            except Skip as error:
                result, step.reason = "skipped", str(error)
                run.say(f"skipped: {error}")
            except Stopped:
                result, step.reason = "stopped", "stopped by a signal"
            except Exception:
                result, step.reason = "failed", "the check itself broke"
                run.say(traceback.format_exc())
            if run.notes and not step.reason:
                step.reason = "; ".join(run.notes)
        step.seconds = time.monotonic() - start
        with self.changed:
            step.result = result

    def _report(self, step: Step) -> None:
        words = {"ok": "ok", "failed": "FAIL", "skipped": "skip", "stopped": "stop"}
        text = f"{step.name:<{self.width}}  {step.seconds:6.1f} s"
        if step.reason:
            text += f"  {step.reason}"
        lines = [text]
        if step.result == "failed" and step.log:
            lines += [f"         | {line}" for line in telling_lines(step.log)]
            lines.append(f"         log: {step.log}")
        with self.changed:
            self._print(words[step.result], lines[0])
            for line in lines[1:]:
                print(line, flush=True)

    def _finalize(self) -> None:
        for finalizer in self.finalizers:
            self._print("start", finalizer.name)
            path = self.logs / (re.sub(r"[^A-Za-z0-9.]+", "-", finalizer.name) + ".log")
            start = time.monotonic()
            step = Step(finalizer.name, finalizer.action, "cleanup", log=path)
            with path.open("w", encoding="utf-8") as log:
                try:
                    # A fresh stop event: cleaning up goes on after Ctrl-C.
                    finalizer.action(Run(finalizer.name, log, start + finalizer.timeout, threading.Event()))
                    step.result = "ok"
                except Skip as error:
                    step.result, step.reason = "skipped", str(error)
                except Exception as error:
                    step.result, step.reason = "failed", str(error)
                    log.write(traceback.format_exc())
            step.seconds = time.monotonic() - start
            self._report(step)
            self.steps.append(step)

    def _summary(self) -> int:
        for step in self.steps:
            if not step.result:
                step.result, step.reason = "stopped", "not started"
        count = {
            word: sum(step.result == word for step in self.steps)
            for word in ("ok", "failed", "skipped", "blocked", "stopped")
        }
        print(f"\nSummary after {clock(time.monotonic() - self.began)} min (logs: {self.logs})", flush=True)
        for step in self.steps:
            print(f"  {step.result:<8}{step.name:<{self.width}}  {step.seconds:7.1f} s  {step.reason}".rstrip())
        failed = [step for step in self.steps if step.result == "failed"]
        for step in failed:
            print(f"failed: {step.name}: {step.log}")
            # Once more at the very end, which is what is left of a long output.
            for line in decisive_lines(step.log) if step.log and step.log.exists() else []:
                print(f"  | {line}")
        left_out = count["skipped"] + count["blocked"] + count["stopped"]
        print(f"{count['ok']} passed, {count['failed']} failed" + (f", {left_out} skipped" if left_out else ""))
        sys.stdout.flush()
        if self.stop.is_set():
            return 130
        return 1 if failed or count["blocked"] else 0
