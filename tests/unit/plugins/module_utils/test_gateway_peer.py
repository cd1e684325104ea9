# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A peer is held, waited for, proved and let in again; nginx and the network are played by the test."""

from __future__ import annotations

import hashlib
import json
import stat
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_peer as peers
from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peer import (
    Gateway,
    GatewayPeerError,
    Peer,
    Probes,
    Wish,
)

TEXT = """# gpufleet.deepseek gateway
http {
    upstream engines {
        zone engines 256k;
        server 10.77.0.21:8000 weight=3 max_fails=3 fail_timeout=10s;  # gpu1, up
        server 10.77.0.22:8000 weight=2 max_fails=3 fail_timeout=10s max_conns=9;  # gpu2, up
        server [fd00::23]:8000 weight=1 max_fails=3 fail_timeout=10s down;  # gpu3, drain
    }
    server {
        listen 127.0.0.1:8090;
        location = /running {
            add_header X-Config-Id @config_id@;
        }
    }
}
"""


def rendered(text: str) -> str:
    """The text as role gateway writes it: with the hash of itself."""
    return text.replace("@config_id@", hashlib.sha256(text.encode()).hexdigest())


def held(name: str, text: str = TEXT) -> str:
    """The text with one peer held, as the template of the role has it."""
    return rendered(text.replace(f";  # {name}, up", f" down;  # {name}, held"))


@dataclass
class Host:
    """A gateway host: files, an nginx that runs what it read last, a network."""

    root: Path
    dead: set[str] = field(default_factory=set)
    refuses: bool = False
    sockets: list[int] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    ran: list[list[str]] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.config = self.root / "nginx.conf"
        self.holds = self.root / "etc" / "gateway" / "holds"
        self.weights = self.root / "etc" / "gateway" / "weights"
        self.config.write_text(rendered(TEXT))
        self.runs = peers.read_config(self.config).id

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        """nginx -t, a reload, ss."""
        self.ran.append(argv)
        if argv[0] == "ss":
            count = self.sockets.pop(0) if self.sockets else 0
            line = '0 0 10.77.0.10:40000 10.77.0.21:8000 users:(("nginx",pid=7,fd=9))\n'
            return 0, line * count + '0 0 10.77.0.10:1 10.77.0.21:8000 users:(("prometheus",pid=8,fd=9))\n', ""
        if argv[0] == "systemctl":
            self.runs = peers.read_config(self.config).id
        if self.refuses and argv[0] == "/bin/sh":
            return 1, "", "nginx: [emerg] wrong\n"
        return 0, "", ""

    def gateway(self, state: str, *, check: bool = False, **options: t.Any) -> Gateway:
        """The module's work with this host's answers."""

        def sleep(seconds: float) -> None:
            self.now += seconds

        wish: dict[str, t.Any] = {"name": "gpu1", "owner": "hosts.yml", "reason": "reboot", **options}
        places: dict[str, t.Any] = {"config": self.config, "holds": self.holds, "weights": self.weights}
        probes = Probes(
            accepts=lambda peer: peer.name not in self.dead,
            healthy=lambda _peer, _path: self.health.pop(0) if self.health else "",
            running_id=lambda _port: self.runs,
            status=self.status,
            clock=lambda: self.now,
            sleep=sleep,
        )
        return Gateway(self.run, Wish(state=state, **places, **wish), probes, check)

    def status(self, _port: int) -> dict[str, t.Any] | None:
        """The page of the other balancer."""
        raise ValueError("HTTP status 404")

    def drain(self, **options: t.Any) -> peers.Outcome:
        """Hold the peer."""
        gateway = self.gateway("drained", **options)
        outcome = gateway.drain("2026-01-02 03:04:05 UTC")
        gateway.wait_taken(outcome)
        return outcome

    def admit(self, **options: t.Any) -> peers.Outcome:
        """Prove the peer and release the hold."""
        gateway = self.gateway("admitted", **options)
        gateway.prove()
        outcome = gateway.admit()
        gateway.wait_taken(outcome)
        return outcome

    def weigh(self, weight: int, now: str = "2026-01-02 03:04:05 UTC", **options: t.Any) -> peers.Outcome:
        """Change the weight."""
        gateway = self.gateway("weighed", weight=weight, **options)
        outcome = gateway.weigh(now)
        gateway.wait_taken(outcome)
        return outcome

    def override(self) -> dict[str, t.Any]:
        """The weight that is kept, empty when none is."""
        path = self.weights / "gpu1.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A gateway with three peers."""
    return Host(tmp_path)


def test_check_run_check_run(host: Host) -> None:
    predicted = host.drain(check=True)
    assert predicted.changed
    assert (host.config.read_text(), host.holds.exists(), host.ran) == (rendered(TEXT), False, [])
    done = host.drain()
    assert (done.changed, done.state, done.held_by, done.known) == (True, "held", ["hosts.yml"], True)
    assert (done.before, done.after) == (predicted.before, predicted.after)
    assert done.after == "held\nheld by hosts.yml: reboot\n"
    assert host.config.read_text() == held("gpu1")
    assert host.runs == peers.read_config(host.config).id
    assert not host.drain(check=True).changed
    assert not host.drain().changed

    assert host.admit(check=True).changed
    assert host.config.read_text() == held("gpu1")
    back = host.admit()
    assert (back.changed, back.state, back.held_by) == (True, "up", [])
    assert host.config.read_text() == rendered(TEXT)
    assert list(host.holds.iterdir()) == []
    assert not host.admit(check=True).changed
    assert not host.admit().changed


def test_the_hold_says_who_and_why(host: Host) -> None:
    host.drain(reason="reboot\n (a: b)")
    path = host.holds / "gpu1.json"
    assert json.loads(path.read_text()) == {
        "peer": "gpu1",
        "holds": [
            {"owner": "hosts.yml", "reason": "reboot (a: b)", "since": "2026-01-02 03:04:05 UTC", "served": True}
        ],
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(host.config.stat().st_mode) == 0o644


def test_nginx_judges_before_anything_is_replaced(host: Host) -> None:
    host.refuses = True
    with pytest.raises(GatewayPeerError, match=r"the old one stays: nginx: \[emerg\] wrong"):
        host.drain()
    assert host.config.read_text() == rendered(TEXT)
    assert [path.name for path in host.root.iterdir() if path.is_file()] == ["nginx.conf"]
    # The hold was written first; the next run takes it up.
    host.refuses = False
    assert host.drain().changed
    assert host.config.read_text() == held("gpu1")


def test_a_run_that_was_killed_before_the_reload(host: Host) -> None:
    host.drain()
    host.runs = "of the old configuration"
    host.ran.clear()
    assert host.drain(check=True).changed
    assert host.drain().changed
    assert host.ran == [["systemctl", "reload", "nginx.service"]]
    assert not host.drain().changed


def test_a_run_that_was_killed_before_the_hold_was_deleted(host: Host) -> None:
    host.drain()
    host.config.write_text(rendered(TEXT))
    host.runs = peers.read_config(host.config).id
    assert host.admit().changed
    assert list(host.holds.iterdir()) == []
    assert host.config.read_text() == rendered(TEXT)


def test_an_operators_hold_outlives_ours(host: Host) -> None:
    host.drain(owner="alice", reason="fans")
    assert host.drain().held_by == ["alice", "hosts.yml"]
    back = host.admit(health_path="/health")
    assert (back.changed, back.state, back.held_by) == (True, "held", ["alice"])
    assert not host.admit().changed
    assert host.config.read_text() == held("gpu1")
    assert host.admit(owner="alice").state == "up"


def test_the_inventory_keeps_a_peer_out(host: Host) -> None:
    """gpu3 drains in the inventory; gpu1 does since it is held."""
    assert host.drain(name="gpu3").state == "drain"
    assert host.admit(name="gpu3").state == "drain"
    assert host.config.read_text() == rendered(TEXT)
    host.drain()
    assert host.admit(peer_state="down").state == "down"
    assert host.config.read_text() == rendered(TEXT.replace(";  # gpu1, up", " down;  # gpu1, down"))


def test_without_a_gateway_the_hold_waits_for_one(host: Host) -> None:
    host.config.write_text("# the distribution's own\nhttp {}\n")
    done = host.drain(name="gpu9", floor=50)
    assert (done.changed, done.known, done.state) == (True, False, "")
    assert (host.holds / "gpu9.json").exists()
    assert host.ran == []
    host.config.unlink()
    assert host.admit(name="gpu9", health_path="/health").changed
    assert not host.admit(name="gpu9").changed


@pytest.mark.parametrize(
    ("together", "dead", "floor", "words"),
    [
        ([], set(), 33, ""),
        ([], set(), 34, "without gpu1 the weight of the peers that serve is 2 of 6 (33 percent); expected at least 34"),
        (["gpu1", "gpu2"], set(), 1, "without gpu1, gpu2 the weight of the peers that serve is 0 of 6 (0 percent)"),
        ([], {"gpu2"}, 1, "Not serving already: gpu3 is drain; gpu2 accepts no connection"),
        (["gpu2"], set(), 0, ""),
        # Who serves nobody takes nothing away.
        ([], {"gpu1", "gpu2"}, 33, ""),
        (["gpu2"], {"gpu1", "gpu2"}, 100, ""),
    ],
)
def test_the_capacity_floor(host: Host, together: list[str], dead: set[str], floor: int, words: str) -> None:
    host.dead = dead
    if not words:
        assert host.drain(together=together, floor=floor).changed
        return
    for check in (True, False):
        with pytest.raises(GatewayPeerError) as caught:
            host.drain(together=together, floor=floor, check=check)
        assert words in str(caught.value)
    assert not host.holds.exists()
    assert host.config.read_text() == rendered(TEXT)


def test_a_held_peer_may_be_drained_again_whatever_the_floor_is(host: Host) -> None:
    host.drain()
    assert not host.drain(floor=100).changed


def test_waiting_for_requests_in_flight(host: Host) -> None:
    host.sockets = [2, 1, 0, 1]
    outcome = host.drain()
    host.gateway("drained", wait=60).wait_idle(outcome)
    assert (outcome.idle, outcome.connections, outcome.waited) == (True, 0, 6)
    host.sockets = [1] * 20
    host.gateway("drained", wait=5).wait_idle(outcome)
    assert (outcome.idle, outcome.connections, outcome.waited) == (False, 1, 5)
    assert next(word for word in host.ran if word[0] == "ss")[-1] == "10.77.0.21:8000"


def test_the_engine_must_answer_before_its_host_is_let_in(host: Host) -> None:
    host.drain()
    host.health = ["HTTP status 503"] * 3
    host.admit(health_path="/health", wait=10)
    assert host.now >= 3
    host.drain()
    host.health = ["Connection refused"] * 20
    with pytest.raises(GatewayPeerError, match=r"http://10.77.0.21:8000/health within 5 s, found Connection refused"):
        host.admit(health_path="/health", wait=5)
    assert host.config.read_text() == held("gpu1")
    assert (host.holds / "gpu1.json").exists()


def test_an_engine_that_did_not_serve_has_nothing_to_prove(host: Host) -> None:
    host.dead = {"gpu1"}
    host.drain()
    host.health = ["Connection refused"] * 20
    assert host.admit(health_path="/health", wait=5).state == "up"
    assert host.now == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "../x"}, "name: expected"),
        ({"owner": "two words"}, "owner: expected"),
        ({"reason": " "}, "reason: expected"),
    ],
)
def test_refused(host: Host, options: dict[str, str], words: str) -> None:
    with pytest.raises(GatewayPeerError, match=words):
        host.drain(**options)


def test_a_hold_that_nobody_can_read_is_left_alone(host: Host) -> None:
    host.drain()
    (host.holds / "gpu1.json").write_text("{")
    with pytest.raises(GatewayPeerError, match="delete the file when nobody holds the peer"):
        host.admit()
    assert host.config.read_text() == held("gpu1")


def test_the_address_of_a_peer() -> None:
    assert Peer("a", "[fd00::23]:8000", 1, "up").address == ("fd00::23", 8000)
    assert Peer("a", "10.0.0.1:80", 1, "up").address == ("10.0.0.1", 80)


def test_one_at_a_time(tmp_path: Path, host: Host) -> None:
    probes = host.gateway("drained").probes
    with (
        peers.locked(tmp_path / "lock", probes),
        pytest.raises(GatewayPeerError, match="another run"),
        peers.locked(tmp_path / "lock", probes, seconds=2),
    ):
        pass


def weighed(weight: int, text: str = TEXT) -> str:
    """The text with another weight of gpu1."""
    return rendered(text.replace("21:8000 weight=3", f"21:8000 weight={weight}"))


def test_weights_check_run_check_run(host: Host) -> None:
    predicted = host.weigh(1, check=True)
    assert predicted.changed
    assert (host.config.read_text(), host.weights.exists(), host.ran) == (rendered(TEXT), False, [])
    done = host.weigh(1)
    assert (done.changed, done.known, done.state, done.weight, done.planned) == (True, True, "up", 1, 3)
    assert (done.before, done.after) == (predicted.before, predicted.after)
    assert done.before == "weight 3\n"
    assert done.after == "weight 1\nweight 1 instead of 3 by hosts.yml: reboot\n"
    assert host.config.read_text() == weighed(1)
    assert host.runs == peers.read_config(host.config).id
    assert host.override() == {
        "peer": "gpu1",
        "weight": 1,
        "owner": "hosts.yml",
        "reason": "reboot",
        "since": "2026-01-02 03:04:05 UTC",
        "planned": 3,
    }
    assert stat.S_IMODE((host.weights / "gpu1.json").stat().st_mode) == 0o644
    assert not host.weigh(1, check=True).changed
    assert not host.weigh(1, now="later").changed

    assert host.weigh(0, check=True).changed
    assert host.config.read_text() == weighed(1)
    back = host.weigh(0, reason="")
    assert (back.changed, back.weight, back.planned, back.after) == (True, 3, 3, "weight 3\n")
    assert host.config.read_text() == rendered(TEXT)
    assert list(host.weights.iterdir()) == []
    assert not host.weigh(0, check=True).changed
    assert not host.weigh(0).changed


def test_the_planned_weight_outlives_several_others(host: Host) -> None:
    host.weigh(1)
    done = host.weigh(9, owner="alice", reason="as a trial", now="later")
    assert (done.changed, done.weight, done.planned) == (True, 9, 3)
    assert (host.override()["owner"], host.override()["since"], host.override()["planned"]) == ("alice", "later", 3)
    # The same weight for another reason is written down, and changes nothing in nginx.
    host.ran.clear()
    assert host.weigh(9, owner="alice", reason="for good").changed
    assert host.ran == []
    assert host.weigh(0).weight == 3


def test_a_weight_and_a_hold_know_nothing_of_each_other(host: Host) -> None:
    host.drain()
    assert host.weigh(7).state == "held"
    assert host.config.read_text() == held("gpu1", TEXT.replace("21:8000 weight=3", "21:8000 weight=7"))
    assert host.admit().weight == 7
    assert host.config.read_text() == weighed(7)


def test_weights_of_a_run_that_was_killed(host: Host) -> None:
    """After it wrote the weight down and before nginx had it; and before it forgot the weight."""
    host.weigh(1)
    host.config.write_text(rendered(TEXT))
    assert host.weigh(1).changed
    assert host.config.read_text() == weighed(1)
    assert host.override()["planned"] == 3
    host.config.write_text(rendered(TEXT))
    host.runs = peers.read_config(host.config).id
    assert host.weigh(0).changed
    assert (host.config.read_text(), host.override()) == (rendered(TEXT), {})


def test_a_weight_that_nginx_refuses(host: Host) -> None:
    host.refuses = True
    with pytest.raises(GatewayPeerError, match="with gpu1 weighed, so the old one stays: nginx:"):
        host.weigh(1)
    assert host.config.read_text() == rendered(TEXT)
    host.refuses = False
    assert host.weigh(0).changed
    assert host.override() == {}


def test_a_weight_for_nobody_is_not_kept(host: Host) -> None:
    done = host.weigh(5, name="gpu9")
    assert (done.changed, done.known, done.weight, host.weights.exists()) == (False, False, 0, False)
    host.weigh(1)
    host.config.unlink()
    assert host.weigh(0).changed
    assert host.override() == {}


@pytest.mark.parametrize(
    ("weight", "reason", "words"),
    [
        (-1, "x", "weight: expected a whole number from 1 to 256, or 0 for the planned weight, found -1"),
        (257, "x", "found 257"),
        (1, " ", "reason: expected words"),
    ],
)
def test_refused_weights(host: Host, weight: int, reason: str, words: str) -> None:
    with pytest.raises(GatewayPeerError, match=words):
        host.weigh(weight, reason=reason)
    assert not host.weights.exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight": "x"}'])
def test_a_weight_that_nobody_can_read_is_left_alone(host: Host, text: str) -> None:
    host.weigh(1)
    (host.weights / "gpu1.json").write_text(text)
    with pytest.raises(GatewayPeerError, match=r"delete the file and run gateway\.yml"):
        host.weigh(0)
    assert host.config.read_text() == weighed(1)


def test_openresty_is_found_where_the_role_has_put_it(tmp_path: Path) -> None:
    wish = peers.Wish(name="gpu1", state="drained", owner="alice")
    assert peers.flavored(wish, tmp_path) is wish
    config = tmp_path / "conf" / "nginx.conf"
    config.parent.mkdir()
    config.write_text("# somebody else's\n")
    assert peers.flavored(wish, tmp_path) is wish
    config.write_text(f"{peers.MARK}\n")
    found = peers.flavored(wish, tmp_path)
    assert (found.config, found.binary, found.unit) == (config, tmp_path / "sbin/nginx", "openresty.service")
