# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The same for the Lua gateway: its file, its checker, workers that take the file one after the other, its status page."""

from __future__ import annotations

import datetime
import http.server
import json
import ssl
import stat
import threading
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_peer as peers
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_policy
from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peer import GatewayPeerError
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.test_gateway_peer import Host

POLICY = "a" * 64


def content(states: str = "up up drain", weight: int = 3) -> dict[str, t.Any]:
    """Two pools, gpu1 in both."""
    first, second, third = (
        {
            "name": f"gpu{number}",
            "address": address,
            "port": 8000,
            "weight": share,
            "capacity_tokens": 1000,
            "max_inflight": 8,
            "region": "eu",
            "state": state,
            "sni": "",
        }
        for number, (address, share, state) in enumerate(
            zip(("10.77.0.21", "10.77.0.22", "fd00::23"), (weight, 2, 1), states.split()), start=1
        )
    )
    return {
        "version": 1,
        "local_region": "eu",
        "regions": {"eu": {"priority": 0}},
        "pools": [
            {
                "name": "r1",
                "aliases": ["b\u00e4r"],
                "default": True,
                "context_tokens": 9,
                "peers": [first, second, third],
            },
            {"name": "v3", "aliases": [], "default": False, "context_tokens": 9, "peers": [first, second]},
        ],
    }


def written(states: str = "up up drain", weight: int = 3) -> str:
    """peers.json as the role writes it."""
    return _gateway_policy.text(_gateway_policy.document(content(states, weight)))


@dataclass
class Worker:
    """Looks for new files once a second."""

    looks: float
    uses: str = ""


@dataclass
class LuaHost(Host):
    """A gateway host with the Lua balancer."""

    workers: list[Worker] = field(default_factory=lambda: [Worker(0.3), Worker(0.9)])
    inflight: list[int] = field(default_factory=list)
    stuck: bool = False
    error: str = ""
    answers: list[str] = field(default_factory=list)
    listens: bool = True
    asked: int = 0

    def __post_init__(self) -> None:
        folder = self.root / "etc" / "gateway"
        folder.mkdir(parents=True)
        self.config = self.root / "nginx.conf"
        self.holds, self.weights = folder / "holds", folder / "weights"
        self.peers, self.policy = folder / "peers.json", folder / "policy.json"
        self.config.write_text(
            f"""# gpufleet.deepseek gateway
http {{
    init_by_lua_block {{
        gateway.init({{
            policy = "{self.policy}",
            peers = "{self.peers}",
            connect_s = 2,
        }})
    }}
    upstream engines {{
        server 0.0.0.1;
    }}
}}
"""
        )
        self.policy.write_text(f'{{\n  "id": "{POLICY}",\n  "version": 1\n}}\n')
        self.peers.write_text(written())
        self.peers.chmod(0o640)
        for worker in self.workers:
            worker.uses = self.on_disk()

    def on_disk(self) -> str:
        """What workers call the files."""
        return f"{POLICY[:12]}-{json.loads(self.peers.read_text())['id'][:12]}"

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        """gwcheck, and ss."""
        if argv[0] == "ss":
            return super().run(argv)
        self.ran.append(argv)
        assert argv[:3] == ["/usr/local/bin/gwcheck", "both", str(self.policy)]
        assert json.loads(Path(argv[3]).read_text())["version"] == 1
        return (1, "", f"{argv[3]}: peers.pools: wrong\n") if self.refuses else (0, "", "")

    def status(self, _port: int) -> dict[str, t.Any] | None:
        """One worker answers, and then another."""
        self.asked += 1
        if not self.listens:
            return None
        if self.answers:
            raise ValueError(self.answers.pop(0))
        for worker in self.workers:
            if self.now >= worker.looks and not self.stuck:
                worker.uses, worker.looks = self.on_disk(), self.now + 1
        one = self.workers[self.asked % len(self.workers)]
        count = self.inflight.pop(0) if self.inflight else 0
        row = {"name": "gpu1", "inflight": count}
        return {
            "config": {"id": one.uses, "error": self.error or None},
            "workers": {"running": 2, "expected": len(self.workers)},
            "pools": [{"peers": [row, {"name": "gpu2", "inflight": 7}]}, {"peers": [row]}],
        }

    def all_use(self) -> bool:
        """Whether every worker uses what is on disk."""
        return {worker.uses for worker in self.workers} == {self.on_disk()}


@pytest.fixture
def host(tmp_path: Path) -> LuaHost:
    """A gateway with two pools."""
    return LuaHost(tmp_path)


def test_check_run_check_run(host: LuaHost) -> None:
    nginx = host.config.read_text()
    predicted = host.drain(check=True)
    assert predicted.changed
    assert (host.peers.read_text(), host.holds.exists(), host.ran, host.asked) == (written(), False, [], 0)
    done = host.drain()
    assert (done.changed, done.state, done.held_by, done.known, done.weight) == (True, "held", ["hosts.yml"], True, 3)
    assert (
        (done.before, done.after)
        == (predicted.before, predicted.after)
        == ("up\n", "held\nheld by hosts.yml: reboot\n")
    )
    assert host.peers.read_text() == written("drain up drain")
    assert host.all_use()
    assert not host.drain(check=True).changed
    assert not host.drain().changed

    assert host.admit(check=True).changed
    assert host.peers.read_text() == written("drain up drain")
    back = host.admit()
    assert (back.changed, back.state, back.held_by) == (True, "up", [])
    assert host.peers.read_text() == written()
    assert list(host.holds.iterdir()) == []
    assert host.all_use()
    assert not host.admit(check=True).changed
    assert not host.admit().changed
    # nginx is never asked and never reloaded, and its file stays.
    assert {argv[0] for argv in host.ran} == {"/usr/local/bin/gwcheck"}
    assert host.config.read_text() == nginx


def test_weights_check_run_check_run(host: LuaHost) -> None:
    assert host.weigh(1, check=True).changed
    assert (host.peers.read_text(), host.weights.exists(), host.asked) == (written(), False, 0)
    done = host.weigh(1)
    assert (done.changed, done.state, done.weight, done.planned) == (True, "up", 1, 3)
    assert host.peers.read_text() == written(weight=1)
    assert host.override()["planned"] == 3
    assert host.all_use()
    assert not host.weigh(1, check=True).changed
    assert not host.weigh(1).changed
    host.drain()
    assert host.weigh(2).state == "held"
    assert host.peers.read_text() == written("drain up drain", weight=2)

    assert host.weigh(0, check=True).changed
    back = host.weigh(0)
    assert (back.changed, back.weight, back.planned) == (True, 3, 3)
    assert host.admit().state == "up"
    assert (host.peers.read_text(), host.override()) == (written(), {})
    assert not host.weigh(0).changed


def test_the_file_keeps_its_owner_and_mode_and_how_it_is_written(host: LuaHost) -> None:
    before = host.peers.stat()
    host.drain()
    after = host.peers.stat()
    assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid) == (0o640, before.st_uid, before.st_gid)
    assert sorted(path.name for path in host.peers.parent.iterdir()) == ["holds", "peers.json", "policy.json"]
    # What says the same stays as somebody has written it.
    host.peers.write_text(json.dumps(json.loads(host.peers.read_text())))
    before_text = host.peers.read_text()
    assert not host.drain().changed
    assert host.peers.read_text() == before_text


def test_gwcheck_judges_before_anything_is_replaced(host: LuaHost) -> None:
    host.refuses = True
    with pytest.raises(
        GatewayPeerError,
        match=r"gwcheck does not accept .* with gpu1 drained, so the old one stays: .*peers\.pools: wrong",
    ):
        host.drain()
    assert host.peers.read_text() == written()
    assert sorted(path.name for path in host.peers.parent.iterdir()) == ["holds", "peers.json", "policy.json"]
    # The hold was written first; the next run takes it up.
    host.refuses = False
    done = host.drain()
    assert (done.changed, done.state) == (True, "held")
    assert host.peers.read_text() == written("drain up drain")


def test_a_run_that_was_killed(host: LuaHost) -> None:
    """After the hold, before the file; after the file, before the workers used it; after the file, before the hold was deleted."""
    host.drain()
    host.peers.write_text(written())
    assert host.drain().changed
    assert host.peers.read_text() == written("drain up drain")

    for worker in host.workers:
        worker.uses, worker.looks = "old", host.now + 0.5
    assert not host.drain().changed
    assert host.all_use()

    host.peers.write_text(written())
    done = host.admit()
    assert (done.changed, done.state) == (True, "up")
    assert (host.peers.read_text(), list(host.holds.iterdir())) == (written(), [])


def test_an_operators_hold_outlives_ours(host: LuaHost) -> None:
    host.drain(owner="alice", reason="fans")
    assert host.drain().held_by == ["alice", "hosts.yml"]
    back = host.admit(health_path="/health")
    assert (back.changed, back.state, back.held_by) == (True, "held", ["alice"])
    assert not host.admit().changed
    assert host.peers.read_text() == written("drain up drain")
    assert host.admit(owner="alice").state == "up"


def test_the_inventory_keeps_a_peer_out(host: LuaHost) -> None:
    """gpu3 drains in the inventory, so a hold changes nothing in the file."""
    assert host.drain(name="gpu3", peer_state="drain").state == "drain"
    assert host.drain(name="gpu3", peer_state="drain").state == "drain"
    assert host.admit(name="gpu3", peer_state="drain").state == "drain"
    assert host.peers.read_text() == written()
    # Nobody held it, so nothing is released.
    done = host.admit(name="gpu3")
    assert (done.changed, done.state) == (False, "drain")
    host.drain()
    assert host.admit(peer_state="down").state == "down"
    assert host.peers.read_text() == written("down up drain")
    host.drain()
    assert host.admit().state == "down"


def test_without_a_gateway_the_hold_waits_for_one(host: LuaHost) -> None:
    done = host.drain(name="gpu9", floor=50)
    assert (done.changed, done.known, done.state, host.asked) == (True, False, "", 0)
    assert host.admit(name="gpu9", health_path="/health").changed
    assert host.peers.read_text() == written()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "found no file; run gateway.yml"),
        ("{", "found something else"),
        ("[]", "found something else"),
        ('{"pools": [{"name": "r1", "peers": [{"name": "gpu1"}]}]}', "found something else ('address')"),
    ],
)
def test_a_file_that_is_not_the_roles_is_left_alone(host: LuaHost, text: str | None, words: str) -> None:
    if text is None:
        host.peers.unlink()
    else:
        host.peers.write_text(text)
    for change in (host.drain, host.admit):
        with pytest.raises(GatewayPeerError) as caught:
            change()
        assert words in str(caught.value)
        assert str(host.peers) in str(caught.value)
    assert not host.holds.exists()


@pytest.mark.parametrize(
    ("together", "dead", "floor", "words"),
    [
        ([], set(), 33, ""),
        # 2 of 6 in the one pool, 2 of 5 in the other.
        (
            [],
            set(),
            40,
            "without gpu1 the weight of the peers that serve in pool r1 is 2 of 6 (33 percent); expected at least 40",
        ),
        (
            ["gpu2"],
            set(),
            1,
            "serve in pool r1 is 0 of 6 (0 percent); expected at least 1 percent. Not serving already: gpu3 is drain;",
        ),
        (["gpu2"], set(), 1, "without gpu1, gpu2 the weight of the peers that serve in pool v3 is 0 of 5 (0 percent)"),
        (
            [],
            {"gpu2"},
            1,
            "in pool v3 is 0 of 5 (0 percent); expected at least 1 percent. Not serving already: gpu2 accepts no connection",
        ),
        ([], {"gpu1", "gpu2"}, 33, ""),
    ],
)
def test_the_capacity_floor_of_each_pool(
    host: LuaHost, together: list[str], dead: set[str], floor: int, words: str
) -> None:
    host.dead = dead
    if not words:
        assert host.drain(together=together, floor=floor).changed
        return
    for check in (True, False):
        with pytest.raises(GatewayPeerError) as caught:
            host.drain(together=together, floor=floor, check=check)
        assert words in str(caught.value)
    assert not host.holds.exists()
    assert host.peers.read_text() == written()


def test_a_pool_that_keeps_enough_is_not_named(host: LuaHost) -> None:
    with pytest.raises(GatewayPeerError) as caught:
        host.drain(floor=40)
    assert "v3" not in str(caught.value)


def test_a_weight_that_was_set_counts_for_the_floor(host: LuaHost) -> None:
    host.weigh(1)
    assert host.drain(floor=50).changed


def test_all_workers_must_use_the_file(host: LuaHost) -> None:
    host.workers = [Worker(0.1 * number, host.on_disk()) for number in range(10)]
    host.drain()
    assert host.all_use()
    assert 2 <= host.now <= 4
    # Nothing was written: as many answers as there are workers, and no waiting.
    before, host.asked = host.now, 0
    host.drain()
    assert (host.now, host.asked) == (before, 10)


def test_what_others_write_meanwhile_is_right_as_well(host: LuaHost) -> None:
    gateway = host.gateway("drained")
    outcome = gateway.drain("now")
    sleep = gateway.probes.sleep

    def others(seconds: float) -> None:
        host.peers.write_text(written("drain up drain", weight=int(host.now * 100) + 4))
        sleep(seconds)

    gateway.probes.sleep = others
    gateway.wait_taken(outcome)
    assert host.now < 5


@pytest.mark.parametrize(
    ("trouble", "words", "seconds"),
    [
        ({"stuck": True}, f"found {POLICY[:12]}-", 15),
        ({"error": "peers.json cannot be read"}, "refused: peers.json cannot be read", 3),
        ({"answers": ["HTTP status 404"] * 99}, "found HTTP status 404", 15),
    ],
)
def test_workers_that_do_not_use_the_file(host: LuaHost, trouble: dict[str, t.Any], words: str, seconds: int) -> None:
    for name, value in trouble.items():
        setattr(host, name, value)
    with pytest.raises(GatewayPeerError) as caught:
        host.drain()
    assert words in str(caught.value)
    assert f"{host.peers} is written, and the gateway does not use it after {seconds} s" in str(caught.value)
    assert f"expected configuration {host.on_disk()} at http://127.0.0.1:8090/status.json" in str(caught.value)
    # The next run finds the same: it is asked, and not remembered.
    if "answers" not in trouble:
        with pytest.raises(GatewayPeerError):
            host.drain()
    host.stuck, host.error, host.answers = False, "", []
    assert not host.drain().changed


def test_an_error_of_the_file_before_and_a_lost_answer_are_no_failure(host: LuaHost) -> None:
    host.answers = ["timed out", "HTTP status 502"]
    assert host.drain().changed
    gateway = host.gateway("admitted")
    outcome = gateway.admit()
    host.error = "of the old file"
    sleep = gateway.probes.sleep

    def mended(seconds: float) -> None:
        sleep(seconds)
        host.error = ""

    gateway.probes.sleep = mended
    gateway.wait_taken(outcome)
    assert host.all_use()


def test_an_nginx_that_does_not_run_is_not_waited_for(host: LuaHost) -> None:
    host.listens = False
    outcome = host.drain()
    assert (outcome.changed, host.now) == (True, 0)
    assert host.peers.read_text() == written("drain up drain")
    # It may run with its page at another port: connections tell.
    host.sockets = [1, 0]
    host.gateway("drained", wait=60).wait_idle(outcome)
    assert (outcome.idle, outcome.connections, outcome.waited) == (True, 0, 3)


def test_waiting_for_requests_in_flight(host: LuaHost) -> None:
    outcome = host.drain()
    host.inflight = [2, 1, 0, 1]
    host.gateway("drained", wait=60).wait_idle(outcome)
    assert (outcome.idle, outcome.connections, outcome.waited, outcome.left) == (True, 0, 6, "")
    host.inflight = [3] * 20
    host.gateway("drained", wait=5).wait_idle(outcome)
    assert (outcome.idle, outcome.connections, outcome.waited) == (False, 3, 5)
    assert outcome.left == "3 requests of the gateway are left after 5 s; they are cut when the host stops serving"
    # A peer in two pools is one engine: 3, not 6. Sockets are not looked at.
    assert {argv[0] for argv in host.ran} == {"/usr/local/bin/gwcheck"}


def test_a_status_that_says_nothing_is_not_idle(host: LuaHost) -> None:
    outcome = host.drain()
    host.answers = ["timed out"] * 2
    host.gateway("drained", wait=60).wait_idle(outcome)
    assert (outcome.idle, outcome.waited) == (True, 4)
    host.answers = ["HTTP status 500"] * 99
    with pytest.raises(
        GatewayPeerError, match=r"gpu1 is drained, and nobody knows what is in flight: .* found HTTP status 500"
    ):
        host.gateway("drained", wait=5).wait_idle(outcome)
    with pytest.raises(ValueError, match="no status"):
        peers.in_flight({"pools": [{}]}, "gpu1")


def test_the_engine_must_answer_before_its_host_is_let_in(host: LuaHost) -> None:
    host.drain()
    host.health = ["HTTP status 503"] * 3
    before = host.now
    host.admit(health_path="/health", wait=10)
    assert host.now >= before + 3
    host.drain()
    host.health = ["Connection refused"] * 20
    with pytest.raises(GatewayPeerError, match=r"http://10.77.0.21:8000/health within 5 s, found Connection refused"):
        host.admit(health_path="/health", wait=5)
    assert host.peers.read_text() == written("drain up drain")
    assert (host.holds / "gpu1.json").exists()


def test_the_addresses_of_peers(host: LuaHost) -> None:
    config = peers.read_config(host.config)
    assert [(peer.name, peer.address) for peer in config.peers] == [
        ("gpu1", ("10.77.0.21", 8000)),
        ("gpu2", ("10.77.0.22", 8000)),
        ("gpu3", ("fd00::23", 8000)),
    ]
    assert [pool.name for pool in config.pools] == ["r1", "v3"]
    assert config.id == host.on_disk()
    # Somebody wrote the id elsewhere.
    host.policy.write_text('{"version": 1, "id": "' + "b" * 64 + '"}')
    assert config.id.startswith("b" * 12 + "-")
    host.policy.write_text("{}")
    with pytest.raises(GatewayPeerError, match="expected a JSON object with an id"):
        assert config.id


def test_engines_behind_tls(host: LuaHost) -> None:
    text = host.config.read_text()
    host.config.write_text(
        text.replace("upstream", "proxy_ssl_certificate /a.pem;\nproxy_ssl_trusted_certificate /b.pem;\nupstream")
    )
    host.peers.write_text(host.peers.read_text().replace('"sni": ""', '"sni": "gpu"'))
    peer = peers.read_config(host.config).peers[0]
    assert peer.identity == peers.Identity("gpu", "/a.pem", "/b.pem")
    assert "No such file" in peers.healthy(peer, "/health")


def certificate(folder: Path, name: str) -> Path:
    """A file with a certificate that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + secret)
    return path


def test_an_engine_behind_tls_is_asked_with_the_gateways_certificate(tmp_path: Path) -> None:
    engine, gateway = certificate(tmp_path, "gpu1"), certificate(tmp_path, "gw1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(engine)
    context.load_verify_locations(gateway)
    context.verify_mode = ssl.CERT_REQUIRED

    def ask(name: str, pair: Path, authority: Path) -> str:
        identity = peers.Identity(name, str(pair), str(authority))
        return peers.healthy(peers.Peer("gpu1", f"127.0.0.1:{port}", 1, "drain", identity), "/health")

    with page(200, b"", context) as port:
        assert ask("gpu1", gateway, engine) == ""
        assert "not valid for" in ask("gpu2", gateway, engine)
        assert "CERTIFICATE_VERIFY_FAILED" in ask("gpu1", gateway, gateway)
        assert ask("gpu1", engine, engine) != ""
        assert peers.healthy(peers.Peer("gpu1", f"127.0.0.1:{port}", 1, "drain"), "/health") != ""
    with page(503, b"") as port:
        assert peers.healthy(peers.Peer("gpu1", f"127.0.0.1:{port}", 1, "drain"), "/health") == "HTTP status 503"


@contextmanager
def page(answer: int, body: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on loopback, and its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: t.Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def finish_request(self, request: t.Any, client_address: t.Any) -> None:
            if context:
                request = context.wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)

        def handle_error(self, request: t.Any, client_address: t.Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "body", "words"),
    [
        (404, b"{}", "HTTP status 404"),
        (200, b"<html>", "no JSON"),
        (200, b"[]", "no status"),
        (200, b'{"config": 1}', "no status"),
    ],
)
def test_what_is_no_status_page(answer: int, body: bytes, words: str) -> None:
    with page(answer, body) as port, pytest.raises(ValueError, match=words):
        peers.status(port)


def test_a_status_page_and_none() -> None:
    with page(200, b'{"config": {}, "pools": []}') as port:
        assert peers.status(port) == {"config": {}, "pools": []}
    assert peers.status(port) is None
