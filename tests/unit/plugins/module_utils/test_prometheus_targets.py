# SPDX-License-Identifier: Apache-2.0
"""Judging the targets of a Prometheus server."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._prometheus_targets import judge_targets


def answer(*targets: tuple[str, str, str]) -> str:
    return json.dumps(
        {
            "status": "success",
            "data": {
                "activeTargets": [
                    {
                        "labels": {"job": job},
                        "health": health,
                        "lastError": error,
                        "scrapeUrl": f"http://192.0.2.1/{job}",
                    }
                    for job, health, error in targets
                ]
            },
        }
    )


def test_all_up() -> None:
    found = judge_targets(
        answer(("node", "up", ""), ("node", "up", ""), ("engine", "up", "")), {"node": 2, "engine": 1}
    )
    assert (found.total, found.up, found.problems) == (3, 3, [])
    assert found.summary() == "3 of 3 targets up (engine 1, node 2)"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (
            ("engine", "down", "connection refused"),
            "target http://192.0.2.1/engine of job engine is down: connection refused",
        ),
        (("engine", "unknown", ""), "target http://192.0.2.1/engine of job engine is unknown: not scraped yet"),
    ],
)
def test_a_target_that_is_not_up_is_named(target: tuple[str, str, str], sentence: str) -> None:
    assert judge_targets(answer(target), {"engine": 1}).problems == [sentence]


def test_a_job_with_too_few_targets_is_named() -> None:
    assert judge_targets(answer(), {"engine": 2}).problems == ["job engine: expected 2 targets, found 0"]


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"data": []}', "<html>"])
def test_another_answer_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        judge_targets(body, {})


def test_types() -> None:
    found: dict[str, t.Any] = vars(judge_targets(answer(("node", "up", "")), {}))
    assert found == {"total": 1, "up": 1, "jobs": {"node": 1}, "problems": []}
