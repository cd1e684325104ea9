# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Engines that speak TLS and demand a certificate: requests and health checks show one, and look at the engine's."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gatewaytools import Engine, Gateway, free_port, until

Start = Callable[..., Gateway]


def openssl(*words: str) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *words], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def certificate(folder: Path, name: str, authority: str = "") -> Path:
    """A certificate for a name with its key, in one file; of its own authority when none is given."""
    key, made, whole = folder / f"{name}.key", folder / f"{name}.crt", folder / f"{name}.pem"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    signer = ["-CA", str(folder / f"{authority}.crt"), "-CAkey", str(folder / f"{authority}.key")] if authority else []
    kind = (
        ["-addext", f"subjectAltName=DNS:{name}", "-addext", "basicConstraints=critical,CA:FALSE"] if authority else []
    )
    openssl(*new, "-subj", f"/CN={name}", *kind, *signer, "-keyout", str(key), "-out", str(made))
    whole.write_text(made.read_text("ascii") + key.read_text("ascii"), encoding="ascii")
    return whole


class Front:
    """TLS in front of an engine: whoever has no certificate of the authority is sent away."""

    def __init__(self, engine: Engine, pem: Path, authority: Path) -> None:
        self.engine = engine
        self.refused = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pem)
        self.context.load_verify_locations(authority)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.port = free_port()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        """Until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                link, _address = self.listener.accept()
                threading.Thread(target=self.serve, args=(link,), daemon=True).start()

    def serve(self, link: socket.socket) -> None:
        """One connection, both ways."""
        try:
            inside = self.context.wrap_socket(link, server_side=True)
        except (ssl.SSLError, OSError):
            self.refused += 1
            return
        outside = socket.create_connection(("127.0.0.1", self.engine.port))

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    sink.sendall(data)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

        threading.Thread(target=pump, args=(inside, outside), daemon=True).start()
        pump(outside, inside)
        inside.close()
        outside.close()


@pytest.fixture(name="pki")
def make_pki(tmp_path: Path) -> Path:
    """An authority, certificates of two engines and of the gateway, and a stranger's."""
    folder = tmp_path / "pki"
    folder.mkdir()
    certificate(folder, "authority")
    for name in ("engine-a", "engine-b", "gateway"):
        certificate(folder, name, "authority")
    certificate(folder, "other-authority")
    certificate(folder, "stranger", "other-authority")
    return folder


@pytest.fixture(name="fronts")
def make_fronts(engines: list[Engine], pki: Path) -> Iterator[list[Front]]:
    """Both engines behind TLS, with names of their own."""
    made = [Front(engine, pki / f"engine-{engine.name}.pem", pki / "authority.crt") for engine in engines]
    yield made
    for front in made:
        front.listener.close()


def behind_tls(fronts: list[Front], pki: Path, client: str, names: list[str]) -> Callable[[Gateway], None]:
    """A gateway whose peers are the fronts, each with the name that its certificate is expected to have."""

    def prepare(made: Gateway) -> None:
        made.client_pem, made.client_ca = pki / f"{client}.pem", pki / "authority.crt"
        made.peers = made.default_peers()
        for peer, front, name in zip(made.peers["pools"][0]["peers"], fronts, names):
            peer.update(port=front.port, sni=name)

    return prepare


def well(made: Gateway) -> dict[str, bool]:
    """What the health checks say."""
    page = made.call("GET", "/status.json", port=made.metrics_port).json()
    return {peer["name"]: peer["status"] != "sick" for peer in page["pools"][0]["peers"]}


def test_both_sides_show_who_they_are(gateway: Start, engines: list[Engine], fronts: list[Front], pki: Path) -> None:
    made = gateway(2, behind_tls(fronts, pki, "gateway", ["engine-a", "engine-b"]))
    assert [made.chat().status for _again in range(20)] == [200] * 20
    assert all(engine.stats()["executions"] > 0 for engine in engines)
    # Some checks later both are well still.
    until(lambda: made.metric("gw_peer_up", peer="a") == 1, what="the checks")
    assert well(made) == {"a": True, "b": True}
    assert [front.refused for front in fronts] == [0, 0]


def test_an_engine_with_another_name_gets_nothing(
    gateway: Start, engines: list[Engine], fronts: list[Front], pki: Path
) -> None:
    made = gateway(1, behind_tls(fronts, pki, "gateway", ["engine-a", "somebody-else"]))
    until(lambda: well(made) == {"a": True, "b": False}, 15, "the checks to find the wrong name")
    assert [made.chat().status for _again in range(10)] == [200] * 10
    assert engines[1].stats()["executions"] == 0


def test_a_stranger_is_sent_away(gateway: Start, engines: list[Engine], fronts: list[Front], pki: Path) -> None:
    made = gateway(1, behind_tls(fronts, pki, "stranger", ["engine-a", "engine-b"]))
    until(lambda: well(made) == {"a": False, "b": False}, 15, "the checks to fail")
    answer = made.chat()
    assert (answer.status, answer.json()["error"]["code"]) == (503, "unavailable"), answer
    assert [engine.stats()["executions"] for engine in engines] == [0, 0]
    assert all(front.refused > 0 for front in fronts)


def test_what_old_workers_found_without_tls_says_nothing_after_the_change_to_it(
    gateway: Start, engines: list[Engine], fronts: list[Front], pki: Path
) -> None:
    def patient(made: Gateway) -> None:
        # Whoever is found sick stays so for the time of this test.
        made.policy["health"]["rise"] = 100

    made = gateway(2, patient)
    # As the role does: the peers are in use within a second, and nginx reloads afterwards.
    behind_tls(fronts, pki, "gateway", ["engine-a", "engine-b"])(made)
    made.write()
    until(lambda: well(made) == {"a": False, "b": False}, 15, "the checks without TLS")
    assert made.chat().status == 503
    old = set(made.worker_pids())
    made.render()
    made.reload()
    until(lambda: old.isdisjoint(made.worker_pids()), 15, "the old workers to end")
    assert well(made) == {"a": True, "b": True}
    assert [made.chat().status for _again in range(10)] == [200] * 10
