# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The probe on its host: budget, baselines, holds, metrics, the table; with a model that the test plays."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _quality_probe as probes
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_ask import Answer, Budget
from ansible_collections.gpufleet.deepseek.plugins.module_utils._quality_suite import QualityError, Suite

ITEMS = [
    {"id": f"f-{n}", "kind": "fact", "language": "en", "prompt": f"q {n}", "expect": "right", "max_tokens": 8}
    for n in range(6)
]


class Scorer:
    """Share of answers that are a reference, in percent."""

    version = "1"

    def score(self, _language: str, answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        value = 100 * sum(text in known for text, known in zip(answers, references)) / len(answers)
        return {"bleu": value, "chrf": value}

    def signatures(self, languages: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(languages, f"same {self.version}")


class Site:
    """A host with a probe, and the model behind it.

    :ivar says: the answer to everything; empty for no answer.
    :ivar tokens: of one answer.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places = probes.Places(str(root / "etc"), str(root / "state"))
        self.metrics = root / "prom" / probes.METRICS_FILE
        self.says, self.model, self.tokens, self.clock = "right", "m", 10, 1_000_000.0
        self.scorer = Scorer()
        for folder in ("etc/secrets", "state/baselines", "state/runs", "prom"):
            (root / folder).mkdir(parents=True)
        (root / "etc/secrets/api_key").write_text("a-key\n")
        self.configure()
        self.release("r-1")
        monkeypatch.setattr(probes, "ask_suite", self.ask)

    def configure(self, questions: Sequence[dict[str, Any]] = ITEMS, **settings: Any) -> None:
        found = {
            "urls": ["http://127.0.0.1:9"],
            "metrics_dir": str(self.metrics.parent),
            "baseline_runs": 3,
            **settings,
        }
        Path(self.places.config("config.json")).write_text(json.dumps(found))
        Path(self.places.config("suite.json")).write_text(json.dumps({"version": "1", "items": questions}))

    def release(self, name: str) -> None:
        Path(self.places.state("release.json")).write_text(json.dumps({"release": name}))

    def ask(self, _endpoints: object, _model: str, suite: Suite, budget: Budget, *_more: object) -> list[Answer]:
        budget.used, budget.requests = self.tokens * len(suite.items), len(suite.items)
        error = "" if self.says else "status 500"
        return [Answer(item.id, self.says, self.model, "stop", self.tokens, error) for item in suite.items]

    def probe(self) -> probes.Probe:
        return probes.Probe(self.places, self.scorer, lambda: self.clock)

    def run(self) -> dict[str, Any]:
        self.clock += 60
        return self.probe().run()

    def baseline(self, seconds: float = 600) -> dict[str, Any]:
        return self.probe().make_baseline(seconds, lambda _line: None)

    def metric(self, name: str, **labels: str) -> float | None:
        for line in self.metrics.read_text().splitlines():
            if line.startswith(f"gpufleet_quality_{name}") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                return float(line.rpartition(" ")[2])
        return None


@pytest.fixture(name="site")
def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_without_a_baseline_nobody_is_told(site: Site) -> None:
    site.says = "noise"
    state = site.run()
    assert state["scored"]["missing"] == "there is no baseline of this release"
    assert site.metric("baseline", release="r-1", model="m") == 0
    assert site.metric("baseline_due_timestamp_seconds") == site.clock + 3 * 86400
    assert site.metric("score", score="exact", language="en") == 0
    assert site.metric("bad_runs", language="en") == 0
    assert site.metric("lowest") is None
    assert oct(site.metrics.stat().st_mode)[-3:] == "644"
    assert oct(Path(site.places.state("answers.json")).stat().st_mode)[-3:] == "640"


def test_a_drop_counts_from_run_to_run_and_is_over_at_once(site: Site) -> None:
    assert site.baseline() == {
        "complete": True, "made": 3, "runs": 3, "wanted": 3, "problem": "", "release": "r-1"
    }  # fmt: skip
    assert site.baseline()["made"] == 0
    seen = []
    for says in ("right", "noise", "noise", "right"):
        site.says = says
        site.run()
        seen.append((site.metric("bad_runs", language="en"), site.metric("beyond_noise", score="drift_bleu")))
    assert seen == [(0, 0), (1, 1), (2, 1), (0, 0)]
    assert site.metric("baseline_mean", score="exact") == 1
    assert site.metric("lowest", score="drift_bleu") == 94
    # What was asked and answered is in no metric.
    assert "right" not in site.metrics.read_text().replace("refusal_right", "")


def test_no_answer_is_no_score_and_keeps_the_last_one(site: Site) -> None:
    site.baseline()
    site.run()
    scored = site.metric("scored_timestamp_seconds")
    site.says = ""
    site.run()
    state = site.run()
    assert state["run"]["error"] == "f-0: status 500"
    assert (site.metric("error_runs"), site.metric("run_errors")) == (2, 6)
    assert site.metric("scored_timestamp_seconds") == scored
    assert site.metric("score", score="exact") == 1
    assert "6 errors" in site.probe().table()
    site.says = "right"
    site.run()
    assert site.metric("error_runs") == 0


def test_a_day_has_so_many_tokens(site: Site) -> None:
    needs = probes.run_needs(site.probe().suite, 0)
    site.configure(day_tokens=needs + 100, run_tokens=needs)
    for exhausted in (0, 0, 1):
        site.run()
        assert site.metric("exhausted") == exhausted
    assert site.metric("day_tokens") == 120
    assert "the day's tokens are used up" in site.baseline()["problem"]
    site.clock += 86400
    site.run()
    assert (site.metric("exhausted"), site.metric("day_tokens")) == (0, 60)


def test_a_baseline_goes_on_where_it_stopped(site: Site) -> None:
    first = site.baseline(seconds=0)
    assert (first["complete"], first["made"], first["runs"]) == (False, 1, 1)
    # A run that was killed while it wrote.
    with Path(site.places.state("runs/r-1.jsonl")).open("a") as stream:
        stream.write('{"digest": "0a')
    site.says = ""
    assert "6 items were not answered" in site.baseline()["problem"]
    site.says, site.model = "right", "n"
    assert "expected answers of m, as in the runs before, found n" in site.baseline()["problem"]
    site.model = "m"
    last = site.baseline()
    assert (last["complete"], last["made"], last["runs"]) == (True, 2, 3)
    assert site.probe().forget_baseline() is True
    assert site.probe().forget_baseline() is False
    assert site.baseline(seconds=0)["runs"] == 1


@pytest.mark.parametrize("release", ["mixed", "unnamed"])
def test_a_baseline_is_one_of_one_release(site: Site, release: str) -> None:
    site.release(release)
    assert f"found {release}" in site.baseline()["problem"]


def test_other_questions_or_another_scorer_need_another_baseline(site: Site) -> None:
    site.baseline()
    site.scorer.version = "2"
    assert "the scorer has changed (en)" in site.run()["scored"]["missing"]
    assert "the scorer has changed" in site.probe().table()
    site.scorer.version = "1"
    site.configure(questions=ITEMS[:5])
    assert "the suite is now" in site.run()["scored"]["missing"]
    assert site.metric("baseline") == 0
    # Runs with other questions are no part of the new one.
    assert site.baseline()["made"] == 3


def test_while_hosts_are_changed_nothing_is_compared(site: Site) -> None:
    site.baseline()
    site.probe().hold(7200)
    site.says = "other"
    assert site.run()["scored"]["missing"] == "hosts are being changed to another release"
    assert site.metric("baseline") == 0
    assert site.baseline()["problem"] == "hosts are being changed to another release"
    # The upgrade failed, and nobody said anything: after its time the hold is over.
    site.clock += 7200
    assert site.run()["bad_runs"] == {"en": 1}
    site.probe().hold(7200)
    site.release("r-2")
    state = site.run()
    assert state["scored"]["missing"] == "there is no baseline of this release"
    assert site.metric("bad_runs", release="r-2") == 0


def test_what_a_person_sees(site: Site) -> None:
    assert "No run of this release was scored yet." in site.probe().table()
    site.baseline()
    site.says = "noise"
    site.run()
    text = site.probe().table()
    assert re.search(r"en +exact +0\.000 +1\.000 +0\.083 +>= 0\.750 +BEYOND", text)
    assert "baseline  counts" in text


def test_an_upgrade_asks_for_a_verdict(site: Site) -> None:
    site.baseline()
    other = [Answer(f"f-{n}", "the right one", "m-2", "stop", 5) for n in range(6)]
    assert site.probe().judge("r-1", other, drift=False).beyond == []
    wrong = [Answer(f"f-{n}", "noise", "m-2", "stop", 5) for n in range(6)]
    assert site.probe().judge("r-1", wrong, drift=False).beyond == [("en", "exact")]
    assert site.probe().judge("r-0", wrong, drift=False).missing == "there is no baseline of this release"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"urls": []}, "urls: expected at least one gateway"),
        ({"colour": 1}, "expected the settings of the quality probe, found"),
        ({"floors": {"drift": 0}}, "floors: expected drift"),
        ({"run_tokens": 100}, "run_tokens: expected at least"),
        ({"day_tokens": 100}, "day_tokens: expected at least"),
        ({"items": ["f-9"]}, "expected ids of the suite, found f-9"),
    ],
)
def test_settings_that_cannot_work(site: Site, settings: dict[str, Any], words: str) -> None:
    site.configure(**settings)
    with pytest.raises(QualityError, match=words):
        site.probe()


def test_files_that_are_damaged(site: Site) -> None:
    Path(site.places.state("state.json")).write_text("{")
    with pytest.raises(QualityError, match="expected JSON"):
        site.run()
    site.release("../../etc")
    with pytest.raises(QualityError, match="release: expected letters"):
        _unused = site.probe().release
