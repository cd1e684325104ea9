# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of a run of the quality probe, the baseline of a release, and what is beyond its noise. PRIVATE to the collection.

BLEU and chrF come from a scorer that is handed in, so that everything else works without sacrebleu.
"""

from __future__ import annotations

import math
import typing as t
from collections import Counter
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_ask import Answer, answers_from
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_suite import (
    Item,
    QualityError,
    Suite,
    fits,
    follows,
    parse_json,
    refused,
    repeats,
    right,
)

FORMAT = 1
# Counted up when this file scores the same answers differently: older baselines are then no baselines.
SCORING = 1
# Of each score, what is bad: less, more, or a change either way.
LESS = (
    "reference_bleu",
    "reference_chrf",
    "drift_bleu",
    "drift_chrf",
    "exact",
    "json_valid",
    "json_schema",
    "instruction",
    "refusal_right",
)
MORE = ("refused", "truncated", "repeated")
BOTH = ("length",)
NAMES = (*LESS, *MORE, *BOTH)
# How far releases that are equally good differ in one question, as standard deviations: points of BLEU and chrF, and the share of questions of which one is
# right and the other wrong. Measured once: an engine that had just been started gave a translation in other words, and its BLEU and chrF fell by
# 11 and 34 points.
OTHER_REFERENCE = 15.0
OTHER_SHARE = 0.05
FLOORS = {"drift": 2.0, "reference": 0.5, "items": 0.5, "length": 0.05}


class Scorer(t.Protocol):
    """Corpus scores from 0 to 100."""

    def score(
        self, language: str, answers: t.Sequence[str], references: t.Sequence[t.Sequence[str]]
    ) -> t.Mapping[str, float]:
        """BLEU and chrF of answers, each with one or more references."""

    def signatures(self, languages: t.Sequence[str]) -> dict[str, str]:
        """What makes scores comparable: sacrebleu's signatures of both scores by language."""


@dataclass(frozen=True)
class Score:
    """One number and how many items it comes from: BLEU and chrF from 0 to 100, shares from 0 to 1, length in characters."""

    value: float
    items: int


Scores = dict[tuple[str, str], Score]


@dataclass(frozen=True)
class Limit:
    """What a score was in the runs of the baseline, and where noise ends; None for no limit on that side."""

    mean: float
    sigma: float
    lowest: float | None
    highest: float | None

    def broken_by(self, value: float) -> bool:
        """Whether a value is beyond noise."""
        slack = 1e-9 * max(1.0, abs(self.mean))
        return (self.lowest is not None and value < self.lowest - slack) or (
            self.highest is not None and value > self.highest + slack
        )


@dataclass
class Baseline:
    """How a release answers when all is well.

    :ivar answers: the most frequent answer to each item; drift is measured against them.
    :ivar scores: mean, sigma and count of items by language and score.
    """

    release: str
    model: str
    suite: str
    digest: str
    signatures: dict[str, str]
    runs: int
    answers: dict[str, str]
    scores: dict[tuple[str, str], tuple[float, float, int]]
    created: float = 0.0

    def as_dict(self) -> dict[str, t.Any]:
        """For a file."""
        return {
            "format": FORMAT,
            "scoring": SCORING,
            "release": self.release,
            "model": self.model,
            "suite": self.suite,
            "digest": self.digest,
            "signatures": self.signatures,
            "created": self.created,
            "runs": self.runs,
            "scores": {
                f"{language}.{name}": {"mean": round(mean, 4), "sigma": round(sigma, 4), "n": self.runs, "items": items}
                for (language, name), (mean, sigma, items) in sorted(self.scores.items())
            },
            "answers": self.answers,
        }


def baseline_from(found: t.Any) -> Baseline:
    """A baseline from as_dict().

    :raises QualityError: it is something else, or of another format.
    """
    try:
        if (found["format"], found["scoring"]) != (FORMAT, SCORING):
            raise QualityError(
                f"baseline: expected format {FORMAT} and scoring {SCORING}, found {found['format']} and {found['scoring']}"
            )
        scores = {}
        for key, one in found["scores"].items():
            language, name = key.split(".", 1)
            scores[language, name] = (float(one["mean"]), float(one["sigma"]), int(one["items"]))
        return Baseline(
            str(found["release"]),
            str(found["model"]),
            str(found["suite"]),
            str(found["digest"]),
            dict(found["signatures"]),
            int(found["runs"]),
            {str(key): str(text) for key, text in found["answers"].items()},
            scores,
            float(found["created"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise QualityError(
            f"baseline: expected a baseline of the quality probe, found something else ({exc!r})"
        ) from exc


def unusable(baseline: Baseline, suite: Suite, signatures: t.Mapping[str, str], model: str, runs: int) -> str:
    """Why a baseline says nothing about a run; nothing when it does.

    :arg model: that answered the run; empty when none did.
    :arg runs: how many runs it must have.
    """
    if baseline.digest != suite.digest:
        return f"it was made with suite {baseline.suite} and the suite is now {suite.label}: make a new one"
    if baseline.signatures != dict(signatures):
        changed = sorted(key for key, text in signatures.items() if baseline.signatures.get(key) != text)
        return f"the scorer has changed ({', '.join(changed)}): make a new one"
    if model and baseline.model != model:
        return f"it was made with model {baseline.model} and {model} answers"
    if baseline.runs < runs:
        return f"it has {baseline.runs} of {runs} runs"
    return ""


def score_run(
    suite: Suite, answers: t.Sequence[Answer], scorer: Scorer, baseline_answers: t.Mapping[str, str] | None = None
) -> Scores:
    """All scores of a run in which every item was answered.

    :arg baseline_answers: by item, for drift; without them there is none.
    :raises QualityError: an item was not answered.
    """
    by_id = {answer.id: answer for answer in answers if not answer.error}
    missing = [item.id for item in suite.items if item.id not in by_id]
    if missing:
        raise QualityError(f"expected an answer to every item, found none to {', '.join(missing[:5])}")
    result: Scores = {}
    for language in suite.languages:
        items = [item for item in suite.items if item.language == language]
        given = [by_id[item.id] for item in items]
        for name, value, count in _counted(items, given, language):
            result[language, name] = Score(value, count)
        written = [(item, answer) for item, answer in zip(items, given) if item.references]
        if written:
            found = scorer.score(
                language, [answer.text for _item, answer in written], [item.references for item, _answer in written]
            )
            for name, value in found.items():
                result[language, f"reference_{name}"] = Score(value, len(written))
        if baseline_answers is not None:
            found = scorer.score(
                language, [answer.text for answer in given], [[baseline_answers[item.id]] for item in items]
            )
            for name, value in found.items():
                result[language, f"drift_{name}"] = Score(value, len(items))
    return result


def _counted(items: t.Sequence[Item], given: t.Sequence[Answer], language: str) -> t.Iterator[tuple[str, float, int]]:
    pairs = list(zip(items, given))

    def share(name: str, found: t.Sequence[bool]) -> t.Iterator[tuple[str, float, int]]:
        if found:
            yield name, sum(found) / len(found), len(found)

    yield from share("exact", [right(item, one.text) for item, one in pairs if item.expect])
    parsed = [(item, *parse_json(one.text)) for item, one in pairs if item.kind == "json"]
    yield from share("json_valid", [valid for _item, valid, _value in parsed])
    yield from share("json_schema", [valid and fits(value, item.schema) for item, valid, value in parsed])
    yield from share("instruction", [follows(one.text, item.rule) for item, one in pairs if item.kind == "instruction"])
    yield from share(
        "refusal_right", [refused(one.text) == item.refuse for item, one in pairs if item.kind == "refusal"]
    )
    # Of the questions that nobody has a reason to decline.
    yield from share("refused", [refused(one.text) for item, one in pairs if not item.refuse])
    yield from share("truncated", [one.finish == "length" for one in given])
    yield from share("repeated", [repeats(one.text, language) for one in given])
    yield "length", sum(len(one.text) for one in given) / len(given), len(given)


def build_baseline(
    release: str, suite: Suite, runs: t.Sequence[t.Sequence[Answer]], scorer: Scorer, created: float
) -> Baseline:
    """A baseline from the answers of runs of one release.

    :raises QualityError: there are fewer than two runs, or one of them lacks an answer.
    """
    if len(runs) < 2:
        raise QualityError(f"baseline: expected two runs or more, found {len(runs)}")
    seen: dict[str, Counter[str]] = {item.id: Counter() for item in suite.items}
    models: Counter[str] = Counter()
    for run in runs:
        for answer in run:
            seen[answer.id][answer.text] += 1
            models[answer.model] += 1
    if len(models) != 1:
        raise QualityError(f"baseline: expected runs of one model, found {', '.join(sorted(models))}")
    usual = {key: texts.most_common(1)[0][0] for key, texts in seen.items()}
    all_scores = [score_run(suite, run, scorer, usual) for run in runs]
    scores = {}
    for key in all_scores[0]:
        values = [one[key].value for one in all_scores]
        mean = sum(values) / len(values)
        sigma = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
        scores[key] = (mean, sigma, all_scores[0][key].items)
    model = next(iter(models))
    return Baseline(
        release, model, suite.label, suite.digest, scorer.signatures(suite.languages), len(runs), usual, scores, created
    )


def limits(
    baseline: Baseline, sigmas: float, floors: t.Mapping[str, float], other: bool = False
) -> dict[tuple[str, str], Limit]:
    """Where noise ends for each score.

    :arg sigmas: how many standard deviations are noise.
    :arg floors: smallest sigma: drift and reference in points of BLEU and chrF, items in items of a share, length as a share of the mean.
    :arg other: whether another release is compared with the baseline: what it says in other words is noise as well, the less the more questions there are.
    """
    result = {}
    for (language, name), (mean, sigma, items) in baseline.scores.items():
        if name == "length":
            least = floors["length"] * mean
        elif name.startswith("drift_"):
            least = floors["drift"]
        elif name.startswith("reference_"):
            least = max(floors["reference"], OTHER_REFERENCE / math.sqrt(items) if other else 0.0)
        else:
            least = max(floors["items"] / items, math.sqrt(OTHER_SHARE / items) if other else 0.0)
        width = sigmas * max(sigma, least)
        result[language, name] = Limit(
            mean,
            max(sigma, least),
            mean - width if name not in MORE else None,
            mean + width if name not in LESS else None,
        )
    return result


@dataclass
class Verdict:
    """A run beside its baseline.

    :ivar beyond: scores beyond noise.
    :ivar missing: why there is no comparison; empty when there is one.
    """

    scores: Scores
    limits: dict[tuple[str, str], Limit] = field(default_factory=dict)
    beyond: list[tuple[str, str]] = field(default_factory=list)
    missing: str = ""

    def problems(self) -> list[str]:
        """What is beyond noise, a sentence each."""
        found = []
        for key in self.beyond:
            limit = self.limits[key]
            edge = limit.lowest if limit.lowest is not None and self.scores[key].value < limit.mean else limit.highest
            side = "at least" if edge == limit.lowest else "at most"
            found.append(
                f"{key[0]} {key[1]} is {self.scores[key].value:.4g}, the baseline's mean is {limit.mean:.4g} and {side} {edge:.4g} is noise"
            )
        return found

    def as_dict(self) -> dict[str, t.Any]:
        """For a file or a result."""
        return {
            "scores": {
                f"{language}.{name}": round(one.value, 4) for (language, name), one in sorted(self.scores.items())
            },
            "beyond": [".".join(key) for key in self.beyond],
            "missing": self.missing,
            "problems": self.problems(),
        }


def judge(
    suite: Suite,
    answers: t.Sequence[Answer],
    scorer: Scorer,
    baseline: Baseline | None,
    sigmas: float,
    floors: t.Mapping[str, float],
    missing: str = "",
    drift: bool = True,
) -> Verdict:
    """Score a run and compare it with a baseline.

    :arg missing: why there is no baseline, when there is none.
    :arg drift: whether the answers must be like those of the baseline, and as long: not when another release is asked.
    """
    if baseline is None:
        return Verdict(score_run(suite, answers, scorer), missing=missing or "there is no baseline")
    scores = score_run(suite, answers, scorer, baseline.answers)
    found = limits(baseline, sigmas, floors, other=not drift)
    if not drift:
        found = {key: limit for key, limit in found.items() if key[1] != "length" and not key[1].startswith("drift_")}
    beyond = [key for key in sorted(found) if key in scores and found[key].broken_by(scores[key].value)]
    return Verdict(scores, found, beyond)


__all__ = [
    "FLOORS",
    "NAMES",
    "Baseline",
    "Limit",
    "Score",
    "Scorer",
    "Scores",
    "Verdict",
    "answers_from",
    "baseline_from",
    "build_baseline",
    "judge",
    "limits",
    "score_run",
    "unusable",
]
