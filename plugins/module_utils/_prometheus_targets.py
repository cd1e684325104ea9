# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Judge the targets of a Prometheus server. PRIVATE to the collection."""

from __future__ import annotations

import json
import typing as t
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Targets:
    """The active targets of one Prometheus server."""

    total: int = 0
    up: int = 0
    jobs: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line for people."""
        jobs = ", ".join(f"{job} {n}" for job, n in self.jobs.items())
        return f"{self.up} of {self.total} targets up" + (f" ({jobs})" if jobs else "")


def judge_targets(body: str, expected: t.Mapping[str, int]) -> Targets:
    """Read an answer of /api/v1/targets.

    :arg body: JSON text of the answer.
    :arg expected: number of targets that must be up, by job.
    :returns: counts, and a sentence for each target that is not up and each job with another number of targets.
    :raises ValueError: the text is not such an answer.
    """
    data = json.loads(body)
    try:
        active: list[dict[str, t.Any]] = data["data"]["activeTargets"]
    except (KeyError, TypeError) as exc:
        raise ValueError("expected data.activeTargets in the answer of /api/v1/targets") from exc
    result = Targets(total=len(active))
    jobs: Counter[str] = Counter()
    for target in active:
        job = str(target.get("labels", {}).get("job", "?"))
        jobs[job] += 1
        if target.get("health") == "up":
            result.up += 1
        else:
            why = target.get("lastError") or "not scraped yet"
            result.problems.append(
                f"target {target.get('scrapeUrl', '?')} of job {job} is {target.get('health')}: {why}"
            )
    result.jobs = dict(sorted(jobs.items()))
    for job, count in sorted(expected.items()):
        if jobs[job] != count:
            result.problems.append(f"job {job}: expected {count} targets, found {jobs[job]}")
    return result
