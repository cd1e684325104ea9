# SPDX-License-Identifier: Apache-2.0
"""The quality probe with the real model behind the real gateway: the same release is well, damaged weights are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fleet import Fleet, metric, run_probe, wait_for

BASELINE = "playbooks/quality_baseline.yml"
GATE = "tests/faults/quality_gate.yml"
# Flips one bit in one of so many bytes of the second half of the file, where there are only weights.
DAMAGE = """
import glob, pathlib, random
source = pathlib.Path(glob.glob("/srv/models/weights/*/*.gguf")[0])
data = bytearray(source.read_bytes())
chosen = random.Random(7)
for place in range(len(data) // 2, len(data), STEP):
    data[place + chosen.randrange(STEP) if place + STEP < len(data) else place] ^= 1 << chosen.randrange(8)
pathlib.Path("/srv/damaged.gguf").write_bytes(data)
print(source)
"""


@pytest.fixture(name="damaged")
def make_damaged(fleet: Fleet) -> Iterator[None]:
    """Weights that were damaged on every GPU host, in the place of the good ones; put right again afterwards."""
    hosts = fleet.groups["gpu_hosts"]
    try:
        for host in hosts:
            source = fleet.ssh(host, f"python3 - <<'END'\n{DAMAGE.replace('STEP', '2000')}\nEND").stdout.strip()
            fleet.ssh(host, f"mount --bind /srv/damaged.gguf {source} && systemctl restart deepseek-service.service")
        wait_for("the gateway answers again", lambda: fleet.ask()[0] == 200, 90)
        yield
    finally:
        for host in hosts:
            fleet.ssh(host, "systemctl stop deepseek-service.service; umount /srv/models/weights/*/*.gguf", check=False)
            fleet.ssh(host, "rm -f /srv/damaged.gguf; systemctl start deepseek-service.service")
        wait_for("the gateway answers again", lambda: fleet.ask()[0] == 200, 90)


def test_a_baseline_and_a_run_of_the_same_release(fleet: Fleet) -> None:
    # An upgrade of an earlier run of the tests that failed as it should has asked for two hours without comparisons.
    fleet.ssh(fleet.groups["monitors"][0], "rm -f /var/lib/gpufleet/quality_probe/hold.json")
    run = fleet.play(BASELINE)
    assert run.rc == 0, run.output
    page = run_probe(fleet)
    assert metric(page, "baseline{") == [1]
    assert set(metric(page, "bad_runs")) == {0}
    assert metric(page, "error_runs") == [0]


def test_the_gate_of_an_upgrade_lets_the_same_release_pass(fleet: Fleet) -> None:
    run = fleet.play(GATE)
    assert run.rc == 0, run.output
    assert "was not compared" not in run.output


def test_damaged_weights_are_beyond_noise(fleet: Fleet, damaged: None) -> None:
    page = run_probe(fleet)
    assert metric(page, "bad_runs", 'language="en"') == [1]
    assert metric(page, "beyond_noise", 'language="en"', 'score="drift_bleu"') == [1]
    run = fleet.play(GATE)
    assert run.rc != 0
    assert "beyond noise: en exact is 0" in run.output.replace("\n", " ").replace("  ", "")


def test_it_is_over_with_the_next_run(fleet: Fleet) -> None:
    assert set(metric(run_probe(fleet), "bad_runs")) == {0}
