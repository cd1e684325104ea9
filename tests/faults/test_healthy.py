# SPDX-License-Identifier: Apache-2.0
"""Nobody is told anything while a fleet is well: an hour of steady load with the settings of production, and the dead man's switch alone speaks.

GPUFLEET_HEALTHY_MINUTES is for how long (60).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import quote

import pytest
from alerts import FIRING, Pages
from fleet import Fleet, Load, metric, run_probe, wait_for

pytestmark = pytest.mark.long

MINUTES = float(os.environ.get("GPUFLEET_HEALTHY_MINUTES", "60"))
# Seconds between two runs of the quality probe, which come besides those of its timer.
PROBE_SECONDS = 300
# Seconds without Watchdog after which a dead man's switch may page.
SILENCE = 300


@pytest.fixture(scope="module", name="told")
def make_told(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """All that the lab's Alertmanager tells, with every wait as it is in production."""
    with Pages(fleet, tmp_path_factory.mktemp("healthy"), settings={}, seconds=int(MINUTES * 60) + 3600) as one:
        yield one


def test_nobody_is_told_anything_while_all_is_well(fleet: Fleet, told: Pages) -> None:
    """Completions, streams, runs of the quality probe, and no alert but Watchdog; no request fails.

    The lab's hosts have this machine's clock. Where nothing sets that right, they say so after a quarter of an hour, and it is true.
    """
    # What an earlier test has asked of the probe, and the answers that it is to compare with.
    fleet.ssh(fleet.groups["monitors"][0], "rm -f /var/lib/gpufleet/quality_probe/hold.json")
    run = fleet.play("playbooks/quality_baseline.yml")
    assert run.rc == 0, run.output
    expected = {"Watchdog"}
    query = quote("node_timex_sync_status == 0")
    if fleet.ask_monitor(9090, f"/api/v1/query?query={query}")["data"]["result"]:
        expected.add("ClockNotSynchronised")
    # XIDs go on for a quarter of an hour.
    wait_for("the alerts of earlier tests are over", lambda: fleet.firing() <= expected, 1200)
    told.mark()
    end = time.monotonic() + MINUTES * 60
    probes: list[tuple[float, float]] = []
    plain = Load(fleet, clients=1, seconds=MINUTES * 60, pause=2, max_tokens=16)
    streams = Load(fleet, clients=1, seconds=MINUTES * 60, pause=2, max_tokens=32, stream=True)
    with plain, streams:
        while time.monotonic() < end:
            page = run_probe(fleet)
            probes.append((metric(page, "error_runs")[0], max(metric(page, "bad_runs"))))
            time.sleep(max(0.0, min(PROBE_SECONDS, end - time.monotonic())))

    seen = Counter((one.name, one.host, one.state, one.labels.get("severity", "")) for one in told.told())
    print(
        f"{MINUTES:g} minutes: {len(plain.answers)} completions, {len(streams.answers)} streams, {len(probes)} runs of the probe"
    )
    print("told: " + "; ".join(f"{' '.join(filter(None, what))}: {times}" for what, times in sorted(seen.items())))
    print(f"runs of the probe with errors: {[one for one in probes if any(one)]}")
    failed = [answer for answer in (*plain.answers, *streams.answers) if answer.status != 200 or not answer.whole]
    assert failed == []
    assert len(plain.answers) > MINUTES * 5
    assert len(streams.answers) > MINUTES * 5
    assert not any(errors for errors, _bad in probes)
    assert {name for name, _host, state, _severity in seen if state == FIRING} - expected == set()
    heard = [told.since, *(one.at for one in told.told() if one.name == "Watchdog"), time.time()]
    assert max(later - earlier for earlier, later in pairwise(heard)) < SILENCE
