# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The quality probe on its host: settings, state, baselines, metrics, the table for people. PRIVATE to the collection."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils._completion_probe import Endpoint
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_ask import (
    Answer,
    Budget,
    answers_from,
    ask_suite,
    most_tokens,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_score import (
    FLOORS,
    Baseline,
    Scorer,
    Verdict,
    baseline_from,
    build_baseline,
    judge,
    unusable,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_suite import QualityError, Suite, load_suite
from ansible_collections.gpufleet.deepseek.plugins.module_utils._table import render_table

# What the host has when nobody has said which release serves.
UNNAMED = "unnamed"
METRICS_FILE = "gpufleet_quality.prom"
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_DAY = 86400


@dataclass(frozen=True)
class Settings:
    """What config.json says. Times in seconds, tokens of prompts and answers together."""

    urls: list[str]
    model: str = ""
    items: list[str] = field(default_factory=list)
    parallel: int = 2
    timeout: float = 60.0
    run_seconds: float = 600.0
    thinking_tokens: int = 0
    extra: dict[str, t.Any] = field(default_factory=dict)
    run_tokens: int = 20000
    day_tokens: int = 400000
    baseline_runs: int = 20
    baseline_days: int = 3
    sigmas: float = 3.0
    floors: dict[str, float] = field(default_factory=lambda: dict(FLOORS))
    stale_seconds: float = 5400.0
    metrics_dir: str = "/var/lib/node_exporter/textfile"


def read_json(path: str) -> t.Any:
    """The content of a JSON file; None when it is not there.

    :raises QualityError: it is not JSON.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return None
    except ValueError as exc:
        raise QualityError(f"{path}: expected JSON, found something else ({exc})") from exc


def write_text(path: str, text: str, mode: int) -> None:
    """Write a file beside its place and move it there: readers see the old one or the new one."""
    folder, name = os.path.split(path)
    handle, made = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        os.replace(made, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(made)
        raise


def load_settings(found: t.Any) -> Settings:
    """Settings from config.json, checked.

    :raises QualityError: a value is not what it must be.
    """
    if not isinstance(found, dict) or set(found) - set(Settings.__dataclass_fields__):
        extra = sorted(set(found) - set(Settings.__dataclass_fields__)) if isinstance(found, dict) else "no mapping"
        raise QualityError(f"config.json: expected the settings of the quality probe, found {extra}")
    settings = Settings(**{**found, "floors": {**FLOORS, **found.get("floors", {})}})
    if not settings.urls:
        raise QualityError("urls: expected at least one gateway, found none")
    unknown = sorted(set(settings.floors) - set(FLOORS))
    if unknown or any(not isinstance(one, (int, float)) or one <= 0 for one in settings.floors.values()):
        raise QualityError(f"floors: expected {', '.join(FLOORS)} with numbers above 0, found {settings.floors}")
    return settings


def run_needs(suite: Suite, thinking: int) -> int:
    """Tokens that a run takes at most when every answer comes at once."""
    return sum(most_tokens(item, thinking) for item in suite.items)


@dataclass(frozen=True)
class Places:
    """Where everything lies."""

    config_dir: str = "/etc/gpufleet/quality_probe"
    state_dir: str = "/var/lib/gpufleet/quality_probe"

    def config(self, name: str) -> str:
        """A file of the configuration."""
        return os.path.join(self.config_dir, name)

    def state(self, name: str) -> str:
        """A file of the state."""
        return os.path.join(self.state_dir, name)


class Probe:
    """The probe as it is configured on this host.

    :arg scorer: of BLEU and chrF.
    :arg now: the clock, seconds since 1970.
    """

    def __init__(self, places: Places, scorer: Scorer, now: t.Callable[[], float] = time.time) -> None:
        self.places = places
        self.scorer = scorer
        self.now = now
        self.settings = load_settings(read_json(places.config("config.json")))
        self.suite = load_suite(read_json(places.config("suite.json")), self.settings.items)
        self.signatures = scorer.signatures(self.suite.languages)
        needs = run_needs(self.suite, self.settings.thinking_tokens)
        for name, found in (("run_tokens", self.settings.run_tokens), ("day_tokens", self.settings.day_tokens)):
            if found < needs:
                raise QualityError(
                    f"{name}: expected at least {needs}, what a run of {len(self.suite.items)} items may need, found {found}"
                )

    # What is known.

    @property
    def release(self) -> str:
        """The release that serves, as the playbooks have said it."""
        name = str((read_json(self.places.state("release.json")) or {}).get("release") or UNNAMED)
        return check_release(name)

    @property
    def held(self) -> str:
        """Why runs are not compared for a while; nothing when they are. A hold ends when another release serves."""
        hold = read_json(self.places.state("hold.json")) or {}
        if hold.get("release") != self.release or float(hold.get("until", 0)) <= self.now():
            return ""
        return "hosts are being changed to another release"

    def hold(self, seconds: float) -> None:
        """Compare nothing for so many seconds, or until another release serves."""
        write_text(
            self.places.state("hold.json"), json.dumps({"release": self.release, "until": self.now() + seconds}), 0o640
        )

    def baseline(self, release: str, model: str = "") -> tuple[Baseline | None, str]:
        """The baseline of a release, or why there is none that counts."""
        found = read_json(self.places.state(f"baselines/{check_release(release)}.json"))
        if found is None:
            return None, "there is no baseline of this release"
        try:
            baseline = baseline_from(found)
        except QualityError as exc:
            return None, str(exc)
        reason = unusable(baseline, self.suite, self.signatures, model, self.settings.baseline_runs)
        return (None, reason) if reason else (baseline, "")

    def tokens_today(self) -> int:
        """Tokens that were used since midnight UTC."""
        day = read_json(self.places.state("day.json")) or {}
        return int(day.get("tokens", 0)) if day.get("day") == self._day() else 0

    def _day(self) -> int:
        return int(self.now() // _DAY)

    def _spend(self, tokens: int) -> None:
        write_text(
            self.places.state("day.json"),
            json.dumps({"day": self._day(), "tokens": self.tokens_today() + tokens}),
            0o640,
        )

    # What is done.

    def endpoints(self) -> list[Endpoint]:
        """The gateways, with the probe's key and the authority that they are checked by."""
        with open(self.places.config("secrets/api_key"), encoding="utf-8") as stream:
            key = stream.read().strip()
        ca_pem = ""
        with contextlib.suppress(FileNotFoundError), open(self.places.config("ca.crt"), encoding="utf-8") as stream:
            ca_pem = stream.read()
        return [Endpoint(url.rstrip("/"), key, ca_pem, timeout=self.settings.timeout) for url in self.settings.urls]

    def ask(self) -> tuple[list[Answer], Budget]:
        """Ask every item, within what is left of the day."""
        settings = self.settings
        left = min(settings.run_tokens, settings.day_tokens - self.tokens_today())
        budget = Budget(left, settings.run_seconds)
        answers = ask_suite(
            self.endpoints(),
            settings.model,
            self.suite,
            budget,
            settings.parallel,
            settings.thinking_tokens,
            settings.extra,
        )
        self._spend(budget.used)
        return answers, budget

    def affordable(self) -> str:
        """Why a run cannot be paid today; nothing when it can."""
        needs = run_needs(self.suite, self.settings.thinking_tokens)
        left = self.settings.day_tokens - self.tokens_today()
        return (
            ""
            if left >= needs
            else f"the day's tokens are used up: a run may need {needs}, {left} of {self.settings.day_tokens} are left"
        )

    def run(self) -> dict[str, t.Any]:
        """One run: ask, score, compare, publish. The state afterwards."""
        state = read_json(self.places.state("state.json")) or {}
        release, began = self.release, self.now()
        if (state.get("release"), state.get("suite")) != (release, self.suite.label):
            state = {"release": release, "suite": self.suite.label, "since": began}
        reason = self.affordable()
        state["exhausted"] = reason
        if not reason:
            answers, budget = self.ask()
            self._take_up(state, answers, budget, began)
            self._keep_answers(state, answers)
        write_text(self.places.state("state.json"), json.dumps(state), 0o640)
        self.publish(state)
        return state

    def _take_up(self, state: dict[str, t.Any], answers: t.Sequence[Answer], budget: Budget, began: float) -> None:
        errors = [answer for answer in answers if answer.error]
        state["run"] = {
            "time": self.now(),
            "seconds": round(self.now() - began, 3),
            "requests": budget.requests,
            "tokens": budget.used,
            "errors": len(errors),
            "error": f"{errors[0].id}: {errors[0].error}" if errors else "",
        }
        state["error_runs"] = state.get("error_runs", 0) + 1 if errors else 0
        if errors:
            return
        model = answers[0].model
        baseline, missing = self.baseline(state["release"], model)
        if self.held:
            baseline, missing = None, self.held
        verdict = judge(self.suite, answers, self.scorer, baseline, self.settings.sigmas, self.settings.floors, missing)
        before = state.get("bad_runs", {})
        bad = {key[0] for key in verdict.beyond}
        state["bad_runs"] = {one: before.get(one, 0) + 1 if one in bad else 0 for one in self.suite.languages}
        state["scored"] = {
            "time": self.now(),
            "model": model,
            "suite": self.suite.label,
            "baseline_runs": baseline.runs if baseline else 0,
            "limits": {
                ".".join(key): [limit.mean, limit.sigma, limit.lowest, limit.highest]
                for key, limit in sorted(verdict.limits.items())
            },
            **verdict.as_dict(),
        }

    def _keep_answers(self, state: t.Mapping[str, t.Any], answers: t.Sequence[Answer]) -> None:
        kept = {
            "release": state["release"],
            "time": state["run"]["time"],
            "answers": [one.as_dict() for one in answers],
        }
        write_text(self.places.state("answers.json"), json.dumps(kept, ensure_ascii=False), 0o640)

    def publish(self, state: t.Mapping[str, t.Any]) -> None:
        """Write the metrics."""
        path = os.path.join(self.settings.metrics_dir, METRICS_FILE)
        write_text(path, metrics(state, self.settings, self.suite, self.tokens_today()), 0o644)

    def make_baseline(self, seconds: float, report: t.Callable[[str], None]) -> dict[str, t.Any]:
        """Make runs until there are enough for a baseline or the time is up; go on where an earlier call stopped.

        :arg seconds: after which no run is begun any more.
        :returns: complete, made (runs of this call), runs, wanted, problem.
        """
        release, wanted = self.release, self.settings.baseline_runs
        if self.held:
            return self._progress(0, 0, self.held)
        if release in (UNNAMED, "mixed"):
            return self._progress(
                0, 0, f"expected one release that serves, found {release} (quality_probe_release names it)"
            )
        baseline, _missing = self.baseline(release)
        if baseline is not None:
            return self._progress(0, baseline.runs, "", complete=True)
        runs = self._kept_runs(release)
        made, until = 0, time.monotonic() + seconds
        while len(runs) < wanted and (made == 0 or time.monotonic() < until):
            problem = self.affordable()
            if problem:
                return self._progress(made, len(runs), problem)
            answers, _budget = self.ask()
            errors = [answer for answer in answers if answer.error]
            if errors:
                return self._progress(
                    made, len(runs), f"{len(errors)} items were not answered; {errors[0].id}: {errors[0].error}"
                )
            if runs and answers[0].model != runs[0][0].model:
                return self._progress(
                    made,
                    len(runs),
                    f"expected answers of {runs[0][0].model}, as in the runs before, found {answers[0].model}",
                )
            self._keep_run(release, answers)
            runs.append(answers)
            made += 1
            report(f"run {len(runs)} of {wanted}")
        if len(runs) < wanted:
            return self._progress(made, len(runs), "")
        done = build_baseline(release, self.suite, runs, self.scorer, self.now())
        write_text(
            self.places.state(f"baselines/{release}.json"),
            json.dumps(done.as_dict(), indent=1, ensure_ascii=False) + "\n",
            0o640,
        )
        return self._progress(made, len(runs), "", complete=True)

    def _progress(self, made: int, runs: int, problem: str, complete: bool = False) -> dict[str, t.Any]:
        return {
            "complete": complete,
            "made": made,
            "runs": runs,
            "wanted": self.settings.baseline_runs,
            "problem": problem,
            "release": self.release,
        }

    def _kept_runs(self, release: str) -> list[list[Answer]]:
        """Runs for the baseline of a release that were made with the same questions and scorer."""
        runs = []
        with (
            contextlib.suppress(FileNotFoundError),
            open(self.places.state(f"runs/{release}.jsonl"), encoding="utf-8") as stream,
        ):
            for line in stream:
                # A line that was cut by a killed run.
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    if found["digest"] == self.suite.digest and found["signatures"] == self.signatures:
                        runs.append(answers_from(found["answers"]))
        return runs[-self.settings.baseline_runs :]

    def _keep_run(self, release: str, answers: t.Sequence[Answer]) -> None:
        path = self.places.state(f"runs/{release}.jsonl")
        line = json.dumps(
            {
                "time": self.now(),
                "digest": self.suite.digest,
                "signatures": self.signatures,
                "answers": [one.as_dict() for one in answers],
            },
            ensure_ascii=False,
        )
        with open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640), "rb+") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, end - 1))
            # After a line that was cut, a new one.
            cut = end > 0 and stream.read(1) != b"\n"
            stream.write((b"\n" if cut else b"") + line.encode() + b"\n")

    def forget_baseline(self) -> bool:
        """Remove baseline and runs of the release that serves, for new ones. Whether there was anything."""
        removed = False
        for name in (f"baselines/{self.release}.json", f"runs/{self.release}.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.places.state(name))
                removed = True
        return removed

    def judge(self, release: str, answers: t.Sequence[Answer], drift: bool) -> Verdict:
        """Compare answers that somebody else has asked for with the baseline of a release."""
        baseline, missing = self.baseline(release)
        return judge(
            self.suite, answers, self.scorer, baseline, self.settings.sigmas, self.settings.floors, missing, drift
        )

    def table(self) -> str:
        """The last run beside its baseline, for people."""
        state = read_json(self.places.state("state.json")) or {}
        _baseline, missing = self.baseline(self.release)
        missing = self.held or missing
        return table(state, self.release, self.suite, missing, self.tokens_today(), self.settings.day_tokens)


def check_release(name: str) -> str:
    """The name of a release, which becomes a file name.

    :raises QualityError: it is none.
    """
    if not _RELEASE.fullmatch(name):
        raise QualityError(f"release: expected letters, digits and . _ + - (128 at most), found {name!r}")
    return name


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


class _Page:
    """Metrics in Prometheus' text form."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, words: str, *samples: tuple[str, float]) -> None:
        """A gauge with its samples: labels in braces, value. Without samples nothing is written."""
        if samples:
            self._lines += [f"# HELP gpufleet_quality_{name} {words}", f"# TYPE gpufleet_quality_{name} gauge"]
            self._lines += [f"gpufleet_quality_{name}{labels} {value:.10g}" for labels, value in samples]

    def text(self) -> str:
        """The page."""
        return "\n".join(self._lines) + "\n"


def metrics(state: t.Mapping[str, t.Any], settings: Settings, suite: Suite, tokens_today: int) -> str:
    """The page for node_exporter. No word of a question or an answer is on it."""
    scored, run, release = state.get("scored") or {}, state.get("run") or {}, state["release"]
    page = _Page()
    same = {"release": release, "model": scored.get("model", ""), "suite": suite.label}
    who = _labels(**same)
    usable = 1.0 if scored.get("baseline_runs") else 0.0
    page.add("baseline", "1 when a baseline of the release counts.", (who, usable))
    page.add(
        "baseline_due_timestamp_seconds",
        "When a baseline should be there.",
        (who, state["since"] + settings.baseline_days * _DAY),
    )
    page.add("stale_seconds", "After how many seconds a score is too old.", ("", settings.stale_seconds))
    page.add("day_tokens", "Tokens since midnight UTC.", ("", tokens_today))
    page.add("day_tokens_limit", "Tokens that a day may have.", ("", settings.day_tokens))
    page.add(
        "exhausted",
        "1 when the last run was left out for want of tokens.",
        ("", 1.0 if state.get("exhausted") else 0.0),
    )
    page.add("error_runs", "Runs in a row in which a question was not answered.", ("", state.get("error_runs", 0)))
    for name, words in (
        ("time", "When the last run ended."),
        ("seconds", "How long the last run took."),
        ("requests", "Requests of the last run."),
        ("tokens", "Tokens of the last run."),
        ("errors", "Questions of the last run that were not answered."),
    ):
        shown = {"time": "run_timestamp_seconds"}.get(name, f"run_{name}")
        page.add(shown, words, *([("", float(run[name]))] if name in run else []))
    if not scored:
        return page.text()
    page.add("scored_timestamp_seconds", "When the scores were made.", (who, scored["time"]))
    labels = {
        key: _labels(**same, language=key.partition(".")[0], score=key.partition(".")[2])
        for key in {**scored["scores"], **scored["limits"]}
    }
    page.add(
        "score",
        "BLEU and chrF from 0 to 100, shares from 0 to 1, length in characters.",
        *((labels[key], value) for key, value in scored["scores"].items()),
    )
    for place, name, words in (
        (0, "baseline_mean", "Mean of the score in the baseline."),
        (1, "baseline_sigma", "Standard deviation of the score in the baseline, or its floor."),
        (2, "lowest", "Lowest score that is noise."),
        (3, "highest", "Highest score that is noise."),
    ):
        found = [(labels[key], limit[place]) for key, limit in scored["limits"].items() if limit[place] is not None]
        page.add(name, words, *found)
    page.add(
        "beyond_noise",
        "1 when the score is beyond noise.",
        *((labels[key], 1.0 if key in scored["beyond"] else 0.0) for key in scored["limits"]),
    )
    page.add(
        "bad_runs",
        "Runs in a row in which a score of the language was beyond noise.",
        *((_labels(**same, language=language), float(count)) for language, count in state.get("bad_runs", {}).items()),
    )
    return page.text()


def table(
    state: t.Mapping[str, t.Any], release: str, suite: Suite, missing: str, tokens_today: int, day_tokens: int
) -> str:
    """The last run beside the baseline, as text."""
    run, scored = state.get("run") or {}, state.get("scored") or {}

    def when(stamp: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stamp))

    lines = [f"release   {release}", f"suite     {suite.label}, {len(suite.items)} items"]
    if run:
        lines.append(
            f"last run  {when(run['time'])}, {run['seconds']:.1f} s, {run['requests']} requests, {run['tokens']} tokens, {run['errors']} errors"
        )
        lines += [f"          {run['error']}"] if run["error"] else []
    lines.append(f"today     {tokens_today} of {day_tokens} tokens")
    if state.get("exhausted"):
        lines.append(f"          {state['exhausted']}")
    lines.append(f"baseline  {missing or 'counts'}")
    if not scored or state.get("release") != release:
        return "\n".join([*lines, "No run of this release was scored yet.", ""])
    lines += [f"scored    {when(scored['time'])}, model {scored['model']}", ""]
    rows = []
    for key, value in scored["scores"].items():
        language, _dot, name = key.partition(".")
        mean, sigma, lowest, highest = scored["limits"].get(key, [None] * 4)
        edges = [f"{sign} {edge:.3f}" for sign, edge in ((">=", lowest), ("<=", highest)) if edge is not None]
        shown = ["-" if one is None else f"{one:.3f}" for one in (mean, sigma)]
        rows.append(
            [
                language,
                name,
                f"{value:.3f}",
                *shown,
                " ".join(edges) or "-",
                "BEYOND" if key in scored["beyond"] else "",
            ]
        )
    lines += render_table(["language", "score", "now", "mean", "sigma", "noise", "verdict"], rows)
    return "\n".join([*lines, ""])
