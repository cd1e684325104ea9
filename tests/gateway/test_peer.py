# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Module gateway_peer at a live Lua gateway: its own code writes peers.json, asks the role's gwcheck, and believes only what the workers say."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gatewaytools import KEY, MODEL, ROLE, Engine, Gateway, children, lua_tools, until

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_peer as peers

Start = Callable[..., Gateway]


class Operator:
    """Runs the module's code at one gateway, with the test's paths."""

    def __init__(self, made: Gateway) -> None:
        self.gateway = made
        self.config = made.folder / "marked.conf"
        # The role's configuration begins so; that of these tests is their own.
        text = (made.folder / "nginx.conf").read_text("utf-8")
        self.config.write_text(f"{peers.MARK}\n{text}", encoding="utf-8")
        self.peers = made.folder / "peers.json"
        self.kept = made.folder / "etc" / "gateway"

    @staticmethod
    def run(argv: list[str]) -> tuple[int, str, str]:
        """A command, where the distribution's packages are unpacked."""
        env = {**os.environ, **lua_tools.variables()}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout, done.stderr

    def __call__(self, state: str, **options: Any) -> peers.Outcome:
        """What the module does."""
        wish = {"name": "a", "owner": "alice", "reason": "a test", **options}
        one = peers.Gateway(
            self.run,
            peers.Wish(
                state=state,
                config=self.config,
                holds=self.kept / "holds",
                weights=self.kept / "weights",
                status_port=self.gateway.metrics_port,
                checker=(str(lua_tools.luajit()), str(ROLE / "files" / "gwcheck.lua")),
                **wish,
            ),
        )
        if state == "admitted":
            one.prove()
        with peers.locked(self.gateway.folder / "lock", one.probes):
            outcome = {"drained": lambda: one.drain("now"), "admitted": one.admit, "weighed": lambda: one.weigh("now")}[
                state
            ]()
        one.wait_taken(outcome)
        if state == "drained":
            one.wait_idle(outcome)
        return outcome

    def rows(self, name: str = "a") -> list[dict[str, Any]]:
        """What the gateway says about a peer, in each pool."""
        pools = self.gateway.held()["pools"]
        return [peer for pool in pools for peer in pool["peers"] if peer["name"] == name]


class Streams:
    """Streams that begin now, and what became of them."""

    def __init__(self, made: Gateway, count: int, tokens: int) -> None:
        self.bodies: list[bytes] = []
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": tokens}

        def client() -> None:
            self.bodies.append(made.call("POST", "/v1/chat/completions", body, KEY).body)

        self.threads = [threading.Thread(target=client) for _number in range(count)]
        for thread in self.threads:
            thread.start()

    def whole(self) -> int:
        """Wait for their ends; how many have one."""
        for thread in self.threads:
            thread.join()
        return sum(body.rstrip().endswith(b"data: [DONE]") for body in self.bodies)


def executions(engines: list[Engine]) -> list[int]:
    """How many requests each has worked on."""
    return [engine.stats()["executions"] for engine in engines]


def two_pools(made: Gateway) -> None:
    """Engine a is in a second pool, too."""
    first = made.peers["pools"][0]
    made.peers["pools"].append({**first, "name": "other", "aliases": [], "peers": [dict(first["peers"][0])]})


def test_drained_under_streams_and_admitted(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(4)
    operator = Operator(made)
    for engine in engines:
        engine.control(chunk_delay=0.1)
    streams = Streams(made, 12, 60)
    until(lambda: sum(executions(engines)) == 12 and executions(engines)[0] > 0, 10, "the streams")
    begin = time.monotonic()
    outcome = operator("drained", wait=30)
    assert (outcome.changed, outcome.state, outcome.idle, outcome.connections) == (True, "held", True, 0)
    # Each stream takes six seconds, and none was cut.
    assert outcome.waited >= 2
    assert time.monotonic() - begin > 5
    assert streams.whole() == 12
    assert [row["state"] for row in operator.rows()] == ["drain"]

    before = executions(engines)
    for _number in range(40):
        assert made.chat().status == 200
    assert executions(engines) == [before[0], before[1] + 40]
    assert not operator("drained", wait=30).changed

    outcome = operator("admitted", health_path="/health", wait=10)
    assert (outcome.changed, outcome.state, outcome.held_by) == (True, "up", [])
    for _number in range(40):
        assert made.chat().status == 200
    assert executions(engines)[0] > before[0]
    assert not operator("admitted").changed
    # No worker was replaced: nginx was not reloaded.
    assert made.process is not None
    assert len(children(made.process.pid)) == 4
    assert "reconfiguring" not in made.log()


def test_what_is_left_when_the_time_is_over(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(2)
    operator = Operator(made)
    for engine in engines:
        engine.control(chunk_delay=0.1)
    streams = Streams(made, 8, 100)
    until(lambda: sum(executions(engines)) == 8 and executions(engines)[0] > 0, 10, "the streams")
    outcome = operator("drained", wait=3)
    assert (outcome.idle, outcome.connections) == (False, operator.rows()[0]["inflight"])
    assert 0 < outcome.connections < 8
    assert f"{outcome.connections} requests of the gateway are left after 3 s" in outcome.left
    assert streams.whole() == 8


def test_as_soon_as_the_module_is_done_every_worker_knows(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(8, two_pools)
    operator = Operator(made)
    for _round in range(2):
        operator("drained")
        before = executions(engines)
        for _number in range(60):
            made.chat()
        assert executions(engines)[0] == before[0]
        assert [row["state"] for row in operator.rows()] == ["drain", "drain"]
        operator("admitted")
        assert [row["state"] for row in operator.rows()] == ["up", "up"]


def test_weighed(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(2, two_pools)
    operator = Operator(made)
    outcome = operator("weighed", weight=256)
    assert (outcome.changed, outcome.weight, outcome.planned) == (True, 256, 1)
    assert [row["weight"] for row in operator.rows()] == [256, 256]
    before = executions(engines)
    for _number in range(100):
        made.chat()
    assert executions(engines)[0] - before[0] > 90
    assert not operator("weighed", weight=256).changed
    outcome = operator("weighed", weight=0)
    assert (outcome.changed, outcome.weight) == (True, 1)
    assert [row["weight"] for row in operator.rows()] == [1, 1]
    assert not operator("weighed", weight=0).changed


def test_the_floor_of_each_pool(gateway: Start) -> None:
    operator = Operator(gateway(1, two_pools))
    with pytest.raises(peers.GatewayPeerError, match=r"without a the weight .* in pool other is 0 of 1 \(0 percent\)"):
        operator("drained", floor=33)
    assert [row["state"] for row in operator.rows()] == ["up", "up"]
    # b is only in the other one.
    assert operator("drained", name="b", floor=33).changed


def test_broken_files_change_nothing(gateway: Start, engines: list[Engine]) -> None:
    made = gateway(2)
    operator = Operator(made)
    policy = made.folder / "policy.json"
    good_peers, good_policy = operator.peers.read_text("utf-8"), policy.read_text("utf-8")

    # Half of a file: nobody knows what was meant.
    operator.peers.write_text(good_peers[:99], encoding="utf-8")
    with pytest.raises(peers.GatewayPeerError, match="expected the peers as role gateway writes them"):
        operator("drained")
    assert not operator.kept.exists()
    operator.peers.write_text(good_peers, encoding="utf-8")

    # Well-formed and wrong: the program of the role says so, in the words that the workers have for it.
    wrong = json.loads(good_policy)
    wrong["windows"]["buckets"] = 0
    policy.write_text(json.dumps(wrong), encoding="utf-8")
    with pytest.raises(peers.GatewayPeerError, match=r"gwcheck does not accept .* policy\.windows\.buckets: expected"):
        operator("drained")
    assert operator.peers.read_text("utf-8") == good_peers
    assert list(made.folder.glob(".peers.json*")) == []
    assert made.chat().status == 200
    policy.write_text(good_policy, encoding="utf-8")
    assert operator("drained").state == "held"

    # Changed behind the module's back: what is on disk is not what runs.
    policy.write_text(json.dumps({**wrong, "id": "f" * 64}), encoding="utf-8")
    with pytest.raises(peers.GatewayPeerError, match=r"does not use it .* refused: policy\.windows\.buckets: expected"):
        operator("drained")
    assert made.chat().status == 200
    policy.write_text(good_policy, encoding="utf-8")
    assert operator("admitted", health_path="/health", wait=5).state == "up"


def test_an_engine_that_does_not_answer_stays_out(gateway: Start, engines: list[Engine]) -> None:
    operator = Operator(gateway(1))
    operator("drained")
    engines[0].end()
    with pytest.raises(peers.GatewayPeerError, match="a stays drained: expected its engine to answer at http://127"):
        operator("admitted", health_path="/health", wait=2)
    assert [row["state"] for row in operator.rows()] == ["drain"]
    engines[0].start()
    assert operator("admitted", health_path="/health", wait=10).state == "up"


def test_without_nginx_the_next_one_reads_the_file(gateway: Start, tmp_path: Path) -> None:
    made = gateway(1)
    operator = Operator(made)
    made.stop()
    begin = time.monotonic()
    assert operator("drained").state == "held"
    assert time.monotonic() - begin < 2
    assert json.loads(operator.peers.read_text("utf-8"))["pools"][0]["peers"][0]["state"] == "drain"
