# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The lock on a host: time that runs out, runs that ended, and processes that come at the same instant."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _fleet_lock as locks

# A taker of its own process: it waits for the gun, tries once, says whether it won, and keeps what it has.
TAKER = """
import sys
from pathlib import Path
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _fleet_lock as locks
wishes = [locks.Wish(Path(sys.argv[2]), f"lock{n}", sys.argv[1], "run", "race") for n in range(int(sys.argv[3]))]
print("ready", flush=True)
sys.stdin.readline()
print("".join("-" if locks.hold(wish).other else "+" for wish in wishes), flush=True)
"""


@pytest.fixture
def alice(tmp_path: Path) -> locks.Wish:
    """What one person wants."""
    return locks.Wish(tmp_path / "locks", "releases", "alice@ops1", "one", "upgrade.yml", 600)


def test_of_processes_that_come_at_the_same_instant_one_wins_each_lock(tmp_path: Path) -> None:
    folder, rounds, owners = tmp_path / "locks", 200, ("alice", "bob", "carol")
    search = next(path for path in sys.path if (Path(path) / "ansible_collections" / "gpufleet").is_dir())
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", TAKER, owner, str(folder), str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": search, "PATH": "/usr/bin:/bin"},
        )
        for owner in owners
    ]
    try:
        for taker in takers:
            assert taker.stdout is not None
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            assert taker.stdin is not None
            taker.stdin.write("\n")
            taker.stdin.flush()
        outcome = {
            owner: taker.communicate(timeout=120)[0].strip() for owner, taker in zip(owners, takers, strict=True)
        }
    finally:
        for taker in takers:
            taker.kill()
            taker.wait()
    assert {len(found) for found in outcome.values()} == {rounds}
    for number in range(rounds):
        winners = [owner for owner, found in outcome.items() if found[number] == "+"]
        there = locks.read(folder / f"lock{number}.json")
        assert there is not None
        assert winners == [there.owner]


def test_who_waits_for_the_flock_sees_what_was_written_before(alice: locks.Wish) -> None:
    bob = replace(alice, owner="bob@ops2")
    found: list[locks.Outcome] = []
    with locks._alone(alice):
        thread = threading.Thread(target=lambda: found.append(locks.hold(bob)))
        thread.start()
        locks._write(locks.path_of(alice), locks.Lock("alice@ops1", "one", "upgrade.yml", 1.0, 1e10))
        assert not found
    thread.join(timeout=30)
    assert found[0].other is not None
    assert found[0].other.owner == "alice@ops1"


def test_the_same_run_gets_more_time_and_never_less(alice: locks.Wish) -> None:
    locks.hold(alice, lambda: 1000.0)
    more = locks.hold(alice, lambda: 1300.0)
    assert more.holder is not None
    assert (more.changed, more.holder.since, more.holder.until) == (False, 1000.0, 1900.0)
    less = locks.hold(replace(alice, seconds=60), lambda: 1310.0)
    assert less.holder is not None
    assert less.holder.until == 1900.0
    assert locks.read(locks.path_of(alice)) == less.holder


def test_when_its_time_has_run_out_anybody_may_take_it(alice: locks.Wish) -> None:
    bob = replace(alice, owner="bob@ops2")
    locks.hold(alice, lambda: 1000.0)
    early = locks.hold(bob, lambda: 1599.0)
    assert early.other is not None
    seen = locks.hold(bob, lambda: 1600.0, check_mode=True)
    assert (seen.changed, seen.how) == (True, "its time had run out")
    late = locks.hold(bob, lambda: 1600.0)
    assert late.displaced is not None
    assert (late.changed, late.displaced.owner, late.how) == (True, "alice@ops1", "its time had run out")
    # Whose time had run out finds that out when it asks for more.
    assert locks.hold(alice, lambda: 1601.0).other is not None


def test_a_run_that_ended_is_succeeded_only_by_its_owner_and_only_if_it_is_still_there(alice: locks.Wish) -> None:
    locks.hold(alice)
    bob = replace(alice, owner="bob@ops2", succeeds="one")
    assert locks.hold(bob).other is not None
    next_run = replace(alice, run="two", succeeds="one")
    done = locks.hold(next_run)
    assert (done.changed, done.how) == (True, "its run has ended")
    # Another one looked at the same time and comes second.
    assert locks.hold(replace(alice, run="three", succeeds="one")).other is not None


def test_a_staged_file_of_a_killed_run_is_no_lock(alice: locks.Wish) -> None:
    alice.directory.mkdir(parents=True)
    (alice.directory / ".releases.json.new").write_text('{"form')
    assert locks.hold(alice).changed
    assert json.loads(locks.path_of(alice).read_text())["owner"] == "alice@ops1"
    assert not (alice.directory / ".releases.json.new").exists()
