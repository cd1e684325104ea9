# SPDX-License-Identifier: Apache-2.0
"""site.yml that is killed on new hosts, and the run after that."""

from __future__ import annotations

import pytest
from fleet import Fleet

pytestmark = pytest.mark.own_lab


@pytest.mark.parametrize(
    "point",
    [
        r"TASK .*node_exporter.*install",
        r"TASK .*deepseek_service.*(venv|packages of the engine|environment)",
        r"TASK .*deepseek_service.*model",
        r"TASK .*gateway.*configure",
    ],
)
def test_site_yml_is_killed(new_fleet: Fleet, point: str) -> None:
    """SIGKILL to site.yml and its workers on hosts that have nothing yet; each later point begins where the last one ended."""
    new_fleet.play_until("site.yml", point)


def test_the_run_after_the_kills_converges_and_the_next_changes_nothing(new_fleet: Fleet) -> None:
    """No half-installed thing is taken for a whole one."""
    run = new_fleet.play("site.yml")
    assert run.rc == 0, run.output
    run = new_fleet.play("site.yml")
    assert run.rc == 0, run.output
    assert run.changed() == 0, run.output
    run = new_fleet.play("site.yml", "--check", "--diff")
    assert (run.rc, run.changed()) == (0, 0), run.output
    assert new_fleet.ask()[0] == 200
