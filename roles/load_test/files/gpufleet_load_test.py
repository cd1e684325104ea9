# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A load test as a job of the host: checks the target, runs Locust's ladder and the open loop, judges, compares, keeps the reports.

``run`` is what the unit gpufleet-load-test@.service starts; ``status`` waits for news and says by that that somebody watches; ``publish`` puts the
metrics where node_exporter reads them; ``plan`` says what would be sent. A run that is watched ends when nobody asks any more. Python 3.9 or newer.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import typing as t
from dataclasses import asdict
from importlib import metadata

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test as load
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_client as clients
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_job as jobs
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_judge as judges
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_open as loops
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._load_test_page import load_test_page

_TICK = 0.2
_NEWS = 10.0
_END_SECONDS = 10
_MOST_METRICS = 65536
_METRIC = re.compile(r"(# (HELP|TYPE) )?gpufleet_load_test_[a-z0-9_]+[ {][^\n]*")
_HERE = os.path.dirname(os.path.abspath(__file__))


class Run:
    """One run, from the first look to the reports."""

    def __init__(self, config: dict[str, t.Any], watched: bool) -> None:
        self.config, self.watched = config, watched
        self.directory = str(config["directory"])
        self.stop = threading.Event()
        self.why = ""
        self.lines: list[dict[str, t.Any]] = []
        self.started = time.time()
        self.name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(self.started))}-{os.getpid()}"
        self.folder = os.path.join(self.directory, "runs", self.name)

    # -- what others see -----------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line for those who watch, and for the journal."""
        print(text, flush=True)
        self.lines.append({"seq": len(self.lines) + 1, "text": text})
        self.tell("running")

    def tell(self, state: str, **more: t.Any) -> None:
        """Write the status."""
        status = {"job": self.name, "state": state, "lines": self.lines[-200:], **more}
        jobs.write_text(os.path.join(self.directory, "status.json"), json.dumps(status))

    def end(self, why: str) -> None:
        """Stop the load for this reason."""
        self.why = self.why or why
        self.stop.set()

    def watch(self) -> None:
        """End the run when nobody has asked for its status for too long."""
        path = os.path.join(self.directory, "watched")
        while not self.stop.wait(1):
            try:
                last = max(self.started, os.stat(path).st_mtime)
            except OSError:
                last = self.started
            if time.time() - last > self.config["lease_seconds"]:
                self.end(f"nobody watched the run for {self.config['lease_seconds']} s (load_test_lease_seconds)")

    # -- the work ------------------------------------------------------------------------------------------

    def run(self) -> int:
        """The exit code: 0 passed, 1 failed or ended early, 2 nothing was sent."""
        os.makedirs(self.folder, exist_ok=True)
        try:
            checked = jobs.check(self.config)
            keys = list(jobs.read_json(self.config["keys"]).values())
            if not keys:
                raise load.LoadTestError(f"load_test_tenants: expected keys in {self.config['keys']}, found none")
            for line in jobs.describe(self.config, checked):
                self.say(line)
            problem = clients.first_look(checked.target, keys[0], self.config["ca_file"])
            if problem:
                raise load.LoadTestError(problem)
        except load.LoadTestError as exc:
            self.tell("failed", message=f"nothing was sent: {exc}")
            print(exc, file=sys.stderr)
            os.rmdir(self.folder)
            return 2
        if self.watched:
            threading.Thread(target=self.watch, daemon=True).start()
        figures = self.ladder(checked)
        aborted = self.why or str(figures.get("aborted") or "")
        open_loop = None
        if not aborted and self.config["open_seconds"]:
            open_loop = self.open_loop(checked, keys, figures["steps"])
            aborted = self.why or str((open_loop or {}).get("aborted") or "")
        verdict = self.judge(checked, figures, open_loop if open_loop and open_loop["ok"] else None, aborted)
        self.keep(verdict)
        shown = {key: verdict[key] for key in ("state", "reasons", "warnings", "run", "url", "target_host")}
        table = {"columns": judges.COLUMNS, "rows": judges.rows_of(verdict)}
        self.tell("done", verdict={**shown, "losses": verdict["comparison"]["losses"], "folder": self.folder, **table})
        return 0 if verdict["state"] == "passed" else 1

    def ladder(self, checked: jobs.Checked) -> dict[str, t.Any]:
        """Run Locust to the end of the ladder."""
        config = self.config
        figures = os.path.join(self.folder, "figures.json")
        job = {
            **{key: config[key] for key in ("keys", "ca_file", "model", "spawn_per_second", "think_seconds")},
            **{key: config[key] for key in ("timeout", "retry_after_max", "abort_error_ratio", "abort_min_requests")},
            **{key: config[key] for key in ("abort_window", "min_memory_mib", "max_cpu_percent")},
            "mix": {"version": 1, "requests": checked.mix.entries},
            "steps": [asdict(step) for step in checked.steps],
            "target": asdict(checked.target),
            "seed": checked.shape(config),
            "figures": figures,
        }
        job_file = os.path.join(self.folder, "locust.json")
        jobs.write_text(job_file, json.dumps(job))
        argv = [
            sys.executable,
            "-sB",
            "-m",
            "locust",
            "--locustfile",
            os.path.join(_HERE, "locustfile.py"),
            "--headless",
        ]
        argv += ["--html", os.path.join(self.folder, "locust.html"), "--only-summary", "--loglevel", "WARNING"]
        argv += ["--stop-timeout", str(config["timeout"]), "--exit-code-on-error", "0"]
        environment = {
            **os.environ,
            "GPUFLEET_LOAD_TEST_JOB": job_file,
            "PYTHONPATH": _HERE,
            "HOME": self.folder,
        }
        log = os.path.join(self.folder, "locust.log")
        with open(log, "wb") as stream:
            child = subprocess.Popen(
                argv, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        self.follow(child, lambda: jobs.read_json(figures), checked.seconds + 2 * config["timeout"] + 30)
        found = jobs.read_json(figures)
        if not found.get("steps") and not self.why:
            with open(log, encoding="utf-8", errors="replace") as stream:
                words = " ".join(stream.read().split())[-300:]
            found = {"steps": [], "busiest": 0, "aborted": f"Locust ended without figures: {words}"}
        return {"steps": [], "busiest": 0, "aborted": "", **found}

    def follow(self, child: subprocess.Popen[bytes], news: t.Callable[[], dict[str, t.Any]], seconds: float) -> None:
        """Wait for a program that sends, say how it does, and end it when the run is to end."""
        until, next_news, told = time.monotonic() + seconds, time.monotonic() + _NEWS, 0
        while child.poll() is None:
            if self.stop.wait(_TICK) or time.monotonic() > until:
                self.why = self.why or f"the load did not end within {seconds:g} s"
                child.terminate()
                try:
                    child.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                return
            steps = news().get("steps") or []
            if steps and (len(steps) > told or time.monotonic() > next_news):
                next_news = time.monotonic() + _NEWS
                if len(steps) > told > 0:
                    self.say(_line(steps[told - 1]))
                elif len(steps) == told:
                    self.say(_line(steps[-1]) + " so far")
                told = len(steps)
        steps = news().get("steps") or []
        if steps:
            self.say(_line(steps[-1]))

    def open_loop(
        self, checked: jobs.Checked, keys: list[str], steps: list[dict[str, t.Any]]
    ) -> dict[str, t.Any] | None:
        """The step whose requests come at their own times."""
        config = self.config
        best = max((float(step["requests_per_second"]) for step in steps), default=0.0)
        rate = float(config["open_rate"]) or best * config["open_share"]
        if rate <= 0:
            self.say("open loop: left out, no step had an answer")
            return None
        self.say(f"open loop: {rate:.2f} requests per second for {config['open_seconds']} s ({config['open_tool']})")
        if config["open_tool"] == "k6":
            return self.k6(checked, rate)
        context = clients.tls_context(config["ca_file"]) if checked.target.scheme == "https" else None

        def make(number: int, on_text: t.Callable[[float], None]) -> clients.Client:
            key = keys[number % len(keys)]
            return clients.Client(checked.target, key, config["timeout"], on_text=on_text, context=context)

        burn = load.Burn(config["abort_error_ratio"], config["abort_min_requests"], config["abort_window"])
        loop = loops.OpenLoop(
            rate,
            config["open_seconds"],
            config["open_max_in_flight"],
            checked.mix,
            config["model"],
            burn,
            make,
            config["timeout"],
        )
        found = {"tool": "own", **loop.run(self.stop)}
        self.say(_line({**found, "users": f"open loop of {rate:.2f}/s"}))
        return found

    def k6(self, checked: jobs.Checked, rate: float) -> dict[str, t.Any] | None:
        """The same by k6."""
        config = self.config
        dice = load.Dice(checked.shape(config))
        bodies = [checked.mix.pick(dice, config["model"]).body.decode() for _number in range(100)]
        hosts = {} if checked.target.host == checked.target.address else {checked.target.host: checked.target.address}
        job = {
            "keys": config["keys"],
            "bodies": bodies,
            "hosts": hosts,
            "url": f"{checked.target.url}/v1/chat/completions",
            "per_minute": max(1, round(rate * 60)),
            "seconds": config["open_seconds"],
            "senders": config["open_max_in_flight"],
            "timeout": config["timeout"],
            "drain": config["timeout"],
            "most_errors": max(
                config["abort_min_requests"], int(rate * config["open_seconds"] * config["abort_error_ratio"])
            ),
        }
        job_file, summary = (os.path.join(self.folder, name) for name in ("k6.json", "k6-summary.json"))
        jobs.write_text(job_file, json.dumps(job))
        argv = [_k6(), "run", "--no-usage-report", "--quiet", f"--summary-export={summary}"]
        argv.append(os.path.join(_HERE, "open_loop.js"))
        environment = {**os.environ, "GPUFLEET_K6_JOB": job_file, "HOME": self.folder}
        if config["ca_file"]:
            environment["SSL_CERT_FILE"] = config["ca_file"]
        with open(os.path.join(self.folder, "k6.log"), "wb") as stream:
            child = subprocess.Popen(
                argv, env=environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        self.follow(child, dict, config["open_seconds"] + config["timeout"] + 30)
        told = jobs.read_json(summary)
        if not told.get("metrics"):
            self.say("open loop: k6 left no summary, see k6.log of the run")
            return None
        found = {"tool": "k6", **loops.k6_figures(told, rate, config["open_seconds"])}
        if child.returncode == 99:
            found["aborted"] = f"k6 ended early: more than {job['most_errors']} requests failed"
        self.say(_line({**found, "users": f"open loop of {rate:.2f}/s"}))
        return found

    def judge(
        self,
        checked: jobs.Checked,
        figures: dict[str, t.Any],
        open_loop: dict[str, t.Any] | None,
        aborted: str,
    ) -> dict[str, t.Any]:
        """The verdict."""
        config = self.config
        steps = judges.judge(figures["steps"], config["plan"], config["pass"], config["plan_slack"])
        if open_loop:
            own = {k: v for k, v in config["pass"].items() if k in ("error_ratio", "rejected_ratio")}
            marks = judges.marks_for(1, {}, own, 1.0)
            misses = judges.judge_step({**open_loop, "title": f"open loop of {open_loop['rate']:g}/s"}, marks)
            open_loop = {**open_loop, "judged": True, "passed": not misses, "misses": misses}
        shape = checked.shape(config)
        comparison = judges.compare(steps, jobs.last_of_shape(self.directory, shape), config["compare_percent"])
        state, reasons, warnings = judges.verdict_of(steps, open_loop, comparison, config["compare_action"], aborted)
        if figures["busiest"] > 0.9:
            warnings.append(
                f"the process that sends was {figures['busiest']:.0%} busy at its worst: times may be its own; send from a faster or an idle host"
            )
        finished = time.time()
        return {
            "schema": load.SCHEMA,
            "run": self.name,
            "kind": "watched" if self.watched else "scheduled",
            "state": state,
            "reasons": reasons,
            "warnings": warnings,
            "started_unix": round(self.started),
            "finished_unix": round(finished),
            "url": checked.target.url,
            "target_host": checked.target_host,
            "address": checked.target.address,
            "model": config["model"],
            "label": config["label"],
            "shape": shape,
            "plan": config["plan"],
            "pass": config["pass"],
            "steps": steps,
            "left_out": checked.left_out,
            "open_loop": open_loop,
            "comparison": comparison,
            "compare_percent": config["compare_percent"],
            "sender": {
                "host": config["host"],
                "busiest": figures["busiest"],
                "locust": _version("locust"),
                "mix": checked.mix.describe(),
            },
        }

    def keep(self, verdict: dict[str, t.Any]) -> None:
        """Write the reports and the metrics, drop old runs."""
        text = json.dumps(verdict, indent=2, sort_keys=True) + "\n"
        jobs.write_text(os.path.join(self.folder, "summary.html"), load_test_page(verdict))
        jobs.write_text(os.path.join(self.folder, "verdict.json"), text)
        jobs.write_text(os.path.join(self.directory, "metrics.prom"), judges.metrics_of(verdict))
        for name in ("locust.json", "figures.json", "k6.json"):
            path = os.path.join(self.folder, name)
            if os.path.exists(path):
                os.unlink(path)
        jobs.prune(self.directory, self.config["keep_runs"])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _line(step: dict[str, t.Any]) -> str:
    users = step["users"]
    who = users if isinstance(users, str) else f"{users} user{'s' if users > 1 else ''}"
    tokens = "" if step.get("tool") == "k6" else f"{step['tokens_per_second']:.1f} tokens/s, "
    ttft = f"first text p99 {step['ttft']['p99'] * 1000:.0f} ms, " if step["ttft"]["count"] else ""
    return f"{who}: {step['requests_per_second']:.2f} answers/s, {tokens}{ttft}{step['errors']} failed, {step['rejected']} rejected"


def command_run(config_file: str, kind: str) -> int:
    """Run once; a second run at the same time is refused."""
    os.umask(0o022)
    config = jobs.read_config(config_file)
    run = Run(config, kind == "watched")
    signal.signal(signal.SIGTERM, lambda _number, _frame: run.end("the run was stopped"))
    signal.signal(signal.SIGINT, lambda _number, _frame: run.end("the run was stopped"))
    lock = os.open(os.path.join(run.directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("another load test runs on this host", file=sys.stderr)
        return 2
    return run.run()


def ended(unit: str) -> bool:
    """Whether the unit is over, so that a status that says otherwise is one of a run that was killed."""
    done = subprocess.run(["/usr/bin/systemctl", "is-active", unit], capture_output=True, text=True, check=False)
    return done.stdout.strip() in ("inactive", "failed")


def locked(directory: str) -> bool:
    """Whether a run is alive: it holds a lock for as long as it lives."""
    try:
        handle = os.open(os.path.join(directory, "lock"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def command_status(directory: str, not_job: str, after: int, timeout: float, unit: str) -> int:
    """Print the status as soon as it has news, or when the time is up; asking keeps a watched run alive."""
    until = time.monotonic() + timeout
    watched = os.path.join(directory, "watched")
    while True:
        handle = os.open(watched, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        os.utime(handle)
        os.close(handle)
        over = bool(unit) and ended(unit)
        status = jobs.read_json(os.path.join(directory, "status.json"))
        if not status or (not_job and status.get("job") == not_job):
            status = {}
        if over and status.get("state", "running") == "running":
            words = "the run was ended from outside" if status else "the run did not begin"
            if locked(directory):
                words = "another load test runs on this host, by its timer"
            status = {
                "lines": [],
                "job": "",
                **status,
                "state": "failed",
                "message": f"{words}; journalctl -u {unit} tells more",
            }
        lines = status.get("lines") or []
        news = any(line["seq"] > after for line in lines)
        if news or status.get("state", "running") != "running" or time.monotonic() >= until:
            print(json.dumps(status))
            return 0
        time.sleep(_TICK)


def command_publish(directory: str, metrics_dir: str) -> int:
    """As root, after the run: put its metrics where node_exporter reads them. Takes nothing but a plain file with metrics of a load test."""
    if not os.path.isdir(metrics_dir):
        return 0
    try:
        handle = os.open(os.path.join(directory, "metrics.prom"), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return 0
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            print("metrics.prom: expected a plain file", file=sys.stderr)
            return 1
        text = stream.read(_MOST_METRICS).decode("utf-8")
    wrong = [line for line in text.splitlines() if not _METRIC.fullmatch(line)]
    if wrong:
        print(f"metrics.prom: expected metrics of a load test, found {wrong[0][:60]!r}", file=sys.stderr)
        return 1
    jobs.write_text(os.path.join(metrics_dir, "gpufleet_load_test.prom"), text)
    return 0


def command_plan(config_file: str, programs: bool) -> int:
    """Say what would be sent, and by what."""
    config = jobs.read_config(config_file)
    print("\n".join(jobs.describe(config, jobs.check(config))))
    if programs:
        if not jobs.read_json(config["keys"]):
            raise load.LoadTestError(
                f"load_test_tenants: expected keys that can be read in {config['keys']}, found none"
            )
        if _version("locust") == "unknown":
            raise load.LoadTestError(
                f"load_test_python: expected Locust in the environment of {sys.executable}, found none"
            )
        if config["open_tool"] == "k6" and not os.access(_k6(), os.X_OK):
            raise load.LoadTestError(f"load_test_open_tool: expected the program {_k6()}, found none")
    return 0


def _k6() -> str:
    return os.path.join(os.path.dirname(sys.executable), "k6")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="run a load test, in the foreground")
    one.add_argument("--config", required=True)
    one.add_argument("--kind", choices=("watched", "scheduled"), default="watched")
    one = commands.add_parser("status", help="print the status as JSON when it has news")
    one.add_argument("--directory", required=True)
    one.add_argument("--not-job", default="", help="a run that is not meant")
    one.add_argument("--after", type=int, default=0, help="number of the line that is known already")
    one.add_argument("--timeout", type=float, default=0.0)
    one.add_argument("--unit", default="", help="unit that runs it")
    one = commands.add_parser("publish", help="hand the metrics to node_exporter")
    one.add_argument("--directory", required=True)
    one.add_argument("--metrics-dir", required=True)
    one = commands.add_parser("plan", help="say what would be sent")
    one.add_argument("--config", required=True)
    one.add_argument("--programs", action="store_true", help="see whether keys, Locust and k6 are there as well")
    args = parser.parse_args()
    try:
        if args.command == "run":
            return command_run(args.config, args.kind)
        if args.command == "status":
            return command_status(args.directory, args.not_job, args.after, args.timeout, args.unit)
        if args.command == "publish":
            return command_publish(args.directory, args.metrics_dir)
        return command_plan(args.config, args.programs)
    except load.LoadTestError as exc:
        print(exc, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
