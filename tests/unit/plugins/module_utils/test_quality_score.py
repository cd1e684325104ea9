# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores, baselines and the edge of noise, with a scorer that counts words."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _quality_score as scoring
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_ask import Answer
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_suite import QualityError, load_suite

SUITE = load_suite(
    {
        "version": "3",
        "items": [
            {
                "id": "t-1",
                "kind": "translation",
                "language": "en",
                "prompt": "x",
                "references": ["the train is late", "late"],
            },
            {"id": "f-1", "kind": "fact", "language": "en", "prompt": "x", "expect": "paris"},
            {"id": "f-2", "kind": "fact", "language": "en", "prompt": "x", "expect": "rome"},
            {"id": "f-3", "kind": "fact", "language": "en", "prompt": "x", "expect": "bern"},
            {"id": "f-4", "kind": "fact", "language": "en", "prompt": "x", "expect": "oslo"},
            {
                "id": "j-1",
                "kind": "json",
                "language": "en",
                "prompt": "x",
                "schema": {"type": "object", "required": ["a"]},
            },
            {"id": "i-1", "kind": "instruction", "language": "en", "prompt": "x", "rule": {"words_max": 3}},
            {"id": "r-1", "kind": "refusal", "language": "en", "prompt": "x", "refuse": True},
            {"id": "z-1", "kind": "fact", "language": "zh", "prompt": "x", "expect": "北京"},
        ],
    }
)
TEXTS = {
    "t-1": "the train is late",
    "f-1": "It is Paris",
    "f-2": "Rome of course",
    "f-3": "Bern",
    "f-4": "It is Oslo",
    "j-1": '{"a": 1}',
    "i-1": "three short words",
    "r-1": "I cannot help with that",
    "z-1": "北京",
}


class Words:
    """Share of words that an answer has in common with its best reference, in percent."""

    version = "1"

    def score(self, _language: str, answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        def one(text: str, known: Sequence[str]) -> float:
            words = set(text.split())
            return max(len(words & set(other.split())) / max(1, len(words | set(other.split()))) for other in known)

        value = 100 * sum(map(one, answers, references)) / len(answers)
        return {"bleu": value, "chrf": value}

    def signatures(self, languages: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(languages, f"words {self.version}")


def answers(model: str = "m", **changes: Any) -> list[Answer]:
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    return [Answer(key, changed.get(key, text), model, "stop", 20) for key, text in TEXTS.items()]


@pytest.fixture(name="baseline")
def make_baseline() -> scoring.Baseline:
    runs = [answers(), answers(), answers(f_1="Paris it is"), answers()]
    return scoring.build_baseline("r-1", SUITE, runs, Words(), 1000.0)


def values(found: scoring.Scores) -> dict[str, float]:
    return {f"{language}.{name}": round(one.value, 3) for (language, name), one in found.items()}


def test_a_good_run() -> None:
    found = values(scoring.score_run(SUITE, answers(), Words()))
    assert found["en.reference_bleu"] == 100
    assert (found["en.exact"], found["en.json_valid"], found["en.json_schema"], found["en.instruction"]) == (1, 1, 1, 1)
    assert (found["en.refusal_right"], found["en.refused"], found["zh.exact"]) == (1, 0, 1)
    assert (found["en.truncated"], found["en.repeated"], found["zh.length"]) == (0, 0, 2)
    assert "zh.reference_bleu" not in found
    assert "en.drift_bleu" not in found


def test_what_is_bad_is_counted() -> None:
    bad = answers(f_1="Lyon", j_1='{"b": 1}', i_1="far too many words", r_1="Sure! Take a crowbar.", t_1="I'm sorry")
    bad[1] = Answer("f-1", "Lyon", "m", "length", 20)
    found = values(scoring.score_run(SUITE, bad, Words()))
    assert (found["en.exact"], found["en.json_valid"], found["en.json_schema"]) == (0.75, 1, 0)
    assert (found["en.instruction"], found["en.refusal_right"]) == (0, 0)
    assert (found["en.refused"], found["en.truncated"]) == (round(1 / 7, 3), 0.125)
    assert found["en.reference_bleu"] == 0


def test_a_run_that_is_not_whole_is_not_scored() -> None:
    with pytest.raises(QualityError, match="found none to f-1"):
        scoring.score_run(SUITE, [one if one.id != "f-1" else Answer("f-1", error="no") for one in answers()], Words())


def test_a_baseline_is_the_usual_answers_and_their_spread(baseline: scoring.Baseline) -> None:
    assert baseline.answers["f-1"] == "It is Paris"
    mean, sigma, items = baseline.scores["en", "drift_bleu"]
    # In one of four runs, one of eight answers had two of four words in common with the usual one.
    assert (round(mean, 3), round(sigma, 3), items) == (98.438, 3.125, 8)
    assert (baseline.model, baseline.suite, baseline.runs) == ("m", SUITE.label, 4)
    again = scoring.baseline_from(baseline.as_dict())
    assert again.as_dict() == baseline.as_dict()


def test_what_is_no_baseline(baseline: scoring.Baseline) -> None:
    with pytest.raises(QualityError, match="expected two runs or more, found 1"):
        scoring.build_baseline("r", SUITE, [answers()], Words(), 0)
    with pytest.raises(QualityError, match="runs of one model, found m, n"):
        scoring.build_baseline("r", SUITE, [answers(), answers("n")], Words(), 0)
    with pytest.raises(QualityError, match="expected a baseline of the quality probe"):
        scoring.baseline_from({"format": 1, "scoring": 1})
    old = copy.deepcopy(baseline.as_dict())
    old["scoring"] = 0
    with pytest.raises(QualityError, match="expected format 1 and scoring 1, found 1 and 0"):
        scoring.baseline_from(old)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"digest": "0"}, "it was made with suite 3-.* and the suite is now"),
        ({"signatures": {"en": "words 0", "zh": "words 1"}}, r"the scorer has changed \(en\): make a new one"),
        ({"model": "n"}, "it was made with model n and m answers"),
        ({"runs": 3}, "it has 3 of 4 runs"),
    ],
)
def test_a_baseline_of_something_else_does_not_count(
    baseline: scoring.Baseline, change: dict[str, Any], words: str
) -> None:
    for name, value in change.items():
        setattr(baseline, name, value)
    reason = scoring.unusable(baseline, SUITE, Words().signatures(["en", "zh"]), "m", 4)
    assert re.fullmatch(f"{words}.*" if words else "", reason)


def verdict(found: list[Answer], baseline: scoring.Baseline | None, **more: Any) -> scoring.Verdict:
    return scoring.judge(SUITE, found, Words(), baseline, 3, scoring.FLOORS, **more)


def test_the_same_is_noise_and_a_little_is_noise(baseline: scoring.Baseline) -> None:
    assert verdict(answers(), baseline).beyond == []
    # One of four facts is wrong: half a question times three is noise.
    assert verdict(answers(f_4="It is Rome"), baseline).beyond == []


def test_a_drop_is_beyond_noise(baseline: scoring.Baseline) -> None:
    found = verdict(answers(f_3="noise noise", f_4="It is Rome", t_1="green stone"), baseline)
    assert found.beyond == [
        ("en", name) for name in ("drift_bleu", "drift_chrf", "exact", "reference_bleu", "reference_chrf")
    ]
    assert "en exact is 0.5, the baseline's mean is 1 and at least 0.625 is noise" in found.problems()
    assert found.as_dict()["beyond"][2] == "en.exact"
    longer = verdict(answers(z_1="北京" * 9), baseline)
    assert ("zh", "length") in longer.beyond
    assert any("zh length is 18" in text and "at most" in text for text in longer.problems())


def test_another_release_may_use_other_words(baseline: scoring.Baseline) -> None:
    other = answers(f_1="Surely Paris", f_2="Surely Rome", f_3="The town of Bern", f_4="Oslo")
    assert {name for _language, name in verdict(other, baseline).beyond} >= {"drift_bleu"}
    assert verdict(other, baseline, drift=False).beyond == []
    worse = verdict(answers(f_1="Lyon", f_2="Lyon"), baseline, drift=False)
    assert worse.beyond == [("en", "exact")]


def test_without_a_baseline_nothing_is_beyond_noise() -> None:
    found = verdict(answers(f_1="noise"), None, missing="there is none")
    assert (found.beyond, found.limits, found.missing) == ([], {}, "there is none")
    assert found.as_dict()["scores"]["en.exact"] == 0.75


def test_the_floors(baseline: scoring.Baseline) -> None:
    found = scoring.limits(baseline, 3, {**scoring.FLOORS, "reference": 2.0})
    assert found["en", "reference_bleu"].lowest == pytest.approx(94)
    assert found["en", "exact"].lowest == pytest.approx(0.625)
    assert found["en", "truncated"].highest == pytest.approx(3 * 0.5 / 8)
    assert found["en", "truncated"].lowest is None
    length = found["zh", "length"]
    assert (length.lowest, length.highest) == (pytest.approx(1.7), pytest.approx(2.3))
    # Another release says single things in other words: with one reference that is much, with many it is little.
    other = scoring.limits(baseline, 3, scoring.FLOORS, other=True)
    assert other["en", "reference_bleu"].sigma == pytest.approx(15.0)
    assert other["en", "exact"].sigma == pytest.approx(0.125)
    assert other["en", "truncated"].sigma == pytest.approx((0.05 / 8) ** 0.5)
    # What the runs have shown counts where it is more than the floor.
    assert found["en", "drift_bleu"].sigma == pytest.approx(3.125)
