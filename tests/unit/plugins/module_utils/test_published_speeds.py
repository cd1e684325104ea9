# SPDX-License-Identifier: Apache-2.0
"""What the planner estimates, against figures that others have published."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._engine_catalogue import lines
from ansible_collections.gpufleet.deepseek.plugins.module_utils._published_speeds import estimate

FIGURES: list[dict[str, t.Any]] = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "published_speeds.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure["name"])
def test_an_estimate_is_within_a_factor_of_two_or_explained(
    figure: dict[str, t.Any], capsys: pytest.CaptureFixture[str]
) -> None:
    estimated = estimate(figure)
    factor = estimated / figure["published"]
    with capsys.disabled():
        print(
            f"\n  {figure['name']}: published {figure['published']:g}, estimated {estimated:.4g}, {factor - 1:+.0%} ({figure['source']})",
            end="",
        )
    if "explained" in figure:
        assert not 0.5 <= factor <= 2, "the explanation is no longer needed"
        assert len(figure["explained"]) > 40
    elif figure.get("fitted"):
        assert 0.85 <= factor <= 1.15
    else:
        assert 0.5 <= factor <= 2


def test_the_figure_that_matters_most_is_in_the_table() -> None:
    """The full model as AWQ on eight A100: the only published figure for it."""
    found = [
        f
        for f in FIGURES
        if f.get("model") == "deepseek-r1" and f["gpu"] == "a100-sxm4-80gb" and f["precision"] == "awq"
    ]
    assert {f["published"] for f in found} == {46.8, 12.8, 2442}
    assert lines("sglang", "deepseek_v3", "awq", "sm80")
