# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Who gets in: certificates of clients, keys; and which configurations do."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gatewaytools import Engine, Gateway, until
from sidecartools import HELPER, PROGRAM, Sidecar, chat_body, config

Start = Callable[..., Sidecar]
KEY = "sk-sidecar-0123456789abcdef"
OTHER_KEY = "sk-sidecar-fedcba9876543210"


def openssl(*words: str) -> None:
    """Run openssl."""
    subprocess.run(["openssl", *words], check=True, capture_output=True, stdin=subprocess.DEVNULL)


def certificate(folder: Path, name: str, authority: str = "") -> None:
    """A certificate for a name, its key, and both in one file; of its own authority when none is given."""
    key, made = folder / f"{name}.key", folder / f"{name}.crt"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    signer = ["-CA", str(folder / f"{authority}.crt"), "-CAkey", str(folder / f"{authority}.key")] if authority else []
    kind = (
        ["-addext", f"subjectAltName=DNS:{name}", "-addext", "basicConstraints=critical,CA:FALSE"] if authority else []
    )
    openssl(*new, "-subj", f"/CN={name}", *kind, *signer, "-keyout", str(key), "-out", str(made))
    (folder / f"{name}.pem").write_text(made.read_text("ascii") + key.read_text("ascii"), encoding="ascii")


@pytest.fixture(name="pki", scope="module")
def make_pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a host's certificate, those of two gateways, and a stranger's."""
    folder = tmp_path_factory.mktemp("pki")
    certificate(folder, "authority")
    for name in ("gpu1", "gw1", "gw2"):
        certificate(folder, name, "authority")
    certificate(folder, "other-authority")
    certificate(folder, "stranger", "other-authority")
    # Of another authority, with a name that may ask.
    (folder / "other").mkdir()
    for name in ("other-authority.crt", "other-authority.key"):
        shutil.copy(folder / name, folder / "other" / name)
    certificate(folder / "other", "gw1", "other-authority")
    return folder


def with_tls(folder: Path, pki: Path) -> Path:
    """The files of the sidecar."""
    folder.mkdir(parents=True)
    for source, name in (
        ("gpu1.crt", config.CERTIFICATE),
        ("gpu1.key", config.KEY),
        ("authority.crt", config.CLIENT_CA),
    ):
        shutil.copy(pki / source, folder / name)
    return folder


def client(pki: Path, pem: Path | None) -> ssl.SSLContext:
    """A client that knows the authority, with or without a certificate of its own."""
    made = ssl.create_default_context(cafile=str(pki / "authority.crt"))
    made.check_hostname = False
    if pem:
        made.load_cert_chain(pem)
    return made


def test_only_gateways_of_the_list_get_in(sidecar: Start, engine: Engine, pki: Path, tmp_path: Path) -> None:
    made = sidecar(engine, folder=with_tls(tmp_path / "tls", pki), tls=True, tls_client_names=["gw1"])
    assert made.chat(context=client(pki, pki / "gw1.pem")).status == 200
    before = engine.stats()["executions"]
    for pem in (None, pki / "gw2.pem", pki / "stranger.pem", pki / "other" / "gw1.pem"):
        with pytest.raises((ssl.SSLError, OSError)):
            made.chat(context=client(pki, pem))
        with pytest.raises((ssl.SSLError, OSError)):
            made.call("GET", "/health", context=client(pki, pem))
    assert made.stat("listener.127.0.0.1_[0-9]+.ssl.fail_verify_no_cert") >= 1
    assert made.stat("listener.127.0.0.1_[0-9]+.ssl.fail_verify_san") >= 1
    assert made.stat("listener.127.0.0.1_[0-9]+.ssl.fail_verify_error") >= 1
    # Nobody gets in without TLS either.
    with pytest.raises(Exception, match=r".+"):
        made.chat()
    assert engine.stats()["executions"] == before


def test_the_gateway_shows_its_certificate(
    sidecar: Start, gateway: Callable[..., Gateway], engine: Engine, pki: Path, tmp_path: Path
) -> None:
    made = sidecar(engine, folder=with_tls(tmp_path / "tls", pki), tls=True, tls_client_names=["gw1", "gw2"])

    def prepare(front: Gateway) -> None:
        front.client_pem, front.client_ca = pki / "gw1.pem", pki / "authority.crt"
        front.peers = front.default_peers()
        front.peers["pools"][0]["peers"][0]["sni"] = "gpu1"

    front = gateway([made], prepare)
    until(lambda: front.chat().status == 200, 20, "an answer through both")
    answer = front.chat(stream=True, max_tokens=20)
    assert answer.body.count(b"data: ") == 21


def test_a_key_for_an_engine_that_asks_for_none(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, api_keys=[KEY, OTHER_KEY])
    for key in (KEY, OTHER_KEY):
        assert made.chat(key).status == 200
    before = engine.stats()["executions"]
    for key in ("", "wrong", KEY[:-1], KEY + "x", KEY.upper()):
        answer = made.chat(key)
        assert answer.status == 401, key
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "x-engine-rejected" not in answer.headers
    assert engine.stats()["executions"] == before
    # Who looks after the health of engines has no key.
    assert made.call("GET", "/health").status == 200
    assert made.process
    assert KEY.encode() not in Path(f"/proc/{made.process.pid}/cmdline").read_bytes()
    assert KEY.encode() not in Path(f"/proc/{made.process.pid}/environ").read_bytes()
    assert KEY not in made.log()


def test_a_403_of_the_engine_stays_one(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, api_keys=[KEY])
    engine.control(status=403)
    answer = made.chat(KEY)
    assert (answer.status, answer.json()["mock"]) == (403, True)


# -- the judge of configurations


def judge(folder: Path, content: Any, *more: str, program: Path = PROGRAM) -> subprocess.CompletedProcess[str]:
    """What the helper says about a configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "envoy.json").write_text(json.dumps(content), encoding="utf-8")
    words = [
        "validate",
        f"--envoy={program}",
        f"--config={folder}/envoy.json",
        f"--files={folder}",
        "--instead-of=/run/there",
    ]
    return subprocess.run([sys.executable, str(HELPER), *words, *more], capture_output=True, text=True, check=False)


def everything(**changes: Any) -> Any:
    """A configuration with all parts."""
    made = Sidecar(
        Path("/run/there"),
        "x",
        8000,
        {"stats_port": 9146, "engine_grpc_port": 8001, "otlp_endpoint": "collector:4317", **changes},
        port=8080,
    )
    assert config.problems(made.values()) == []
    return config.bootstrap(made.values())


def test_a_good_configuration_is_accepted(tmp_path: Path, pki: Path) -> None:
    folder = with_tls(tmp_path / "tls", pki)
    done = judge(folder, everything(tls=True, tls_client_names=["gw1"], api_keys=[KEY]))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bad_ones_are_refused_in_words(tmp_path: Path, pki: Path) -> None:
    unknown = everything(api_keys=[KEY])
    unknown["static_resources"]["clusters"][0]["lb_polcy"] = "RANDOM"
    done = judge(tmp_path / "unknown", unknown)
    assert done.returncode == 1
    assert "lb_polcy" in done.stderr
    assert KEY not in done.stderr

    done = judge(tmp_path / "missing", everything(tls=True, tls_client_names=["gw1"]))
    assert done.returncode == 1
    assert "Invalid path" in done.stderr
    assert str(tmp_path / "missing") in done.stderr

    folder = with_tls(tmp_path / "pair", pki)
    shutil.copy(pki / "gw1.key", folder / config.KEY)
    done = judge(folder, everything(tls=True, tls_client_names=["gw1"]))
    assert done.returncode == 1
    assert "KEY_VALUES_MISMATCH" in done.stderr.upper() or "key" in done.stderr


def test_what_envoy_only_complains_about_is_refused_too(tmp_path: Path) -> None:
    old = everything()
    old["layered_runtime"] = {
        "layers": [{"name": "old", "static_layer": {"envoy.reloadable_features.no_such_guard_any_more": False}}]
    }
    plain = tmp_path / "old.json"
    plain.write_text(json.dumps(old), encoding="utf-8")
    accepted = subprocess.run(
        [str(PROGRAM), "--mode", "validate", "-c", str(plain)], capture_output=True, text=True, check=False
    )
    assert accepted.returncode == 0, (
        "Envoy refuses this by itself now: find another option that it only complains about"
    )
    done = judge(tmp_path / "old", old)
    assert done.returncode == 1
    assert "expected a configuration without complaints" in done.stderr
    assert "no_such_guard_any_more" in done.stderr


def test_without_envoy_there_is_no_judgement(tmp_path: Path) -> None:
    gone = tmp_path / "envoy"
    assert judge(tmp_path / "x", everything(), program=gone).returncode == 1
    assert judge(tmp_path / "x", everything(), "--missing-ok", program=gone).returncode == 0


# -- the proof at the end of the role


def ask(made: Sidecar, seconds: int = 20, **changes: Any) -> subprocess.CompletedProcess[str]:
    """What the role's proof says."""
    question = {
        "url": f"http://127.0.0.1:{made.port}",
        "admin": made.admin,
        "model": "mock",
        "path": "/v1/chat/completions",
        "api_key": KEY,
        "checks_key": True,
        "server": "",
        "certificate": "",
        "key": "",
        **changes,
    }
    words = [sys.executable, str(HELPER), "ask", f"--seconds={seconds}"]
    return subprocess.run(words, input=json.dumps(question), capture_output=True, text=True, check=False)


def test_the_proof_finds_what_is_wrong(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine, api_keys=[KEY])
    assert (done := ask(made)).returncode == 0, done.stderr
    assert "expected a token, found the status 401" in ask(made, api_key=OTHER_KEY).stderr
    open_door = sidecar(engine)
    assert "expected the status 401 without a key, found 200" in ask(open_door).stderr
    engine.control(status=500)
    assert "expected a token, found the status 500" in ask(made).stderr
    engine.end()
    until(lambda: not made.is_healthy(), 20, "the engine to be missed")
    assert "expected a healthy engine within 1 s" in ask(made, seconds=1).stderr


def test_the_proof_over_tls(sidecar: Start, engine: Engine, pki: Path, tmp_path: Path) -> None:
    made = sidecar(engine, folder=with_tls(tmp_path / "tls", pki), tls=True, tls_client_names=["gw1"])
    secure: dict[str, Any] = {
        "url": f"https://127.0.0.1:{made.port}",
        "server": (pki / "gpu1.crt").read_text("ascii"),
        "checks_key": False,
    }
    pair: dict[str, Any] = {
        "certificate": (pki / "gw1.crt").read_text("ascii"),
        "key": (pki / "gw1.key").read_text("ascii"),
    }
    assert (done := ask(made, **secure, **pair)).returncode == 0, done.stderr
    assert engine.stats()["executions"] == 1
    # Without a pair it still sees that the engine is healthy and that nobody gets in without one.
    assert (done := ask(made, **secure)).returncode == 0, done.stderr
    assert engine.stats()["executions"] == 1
    wrong: dict[str, Any] = {
        "certificate": (pki / "gw2.crt").read_text("ascii"),
        "key": (pki / "gw2.key").read_text("ascii"),
    }
    assert ask(made, seconds=1, **secure, **wrong).returncode == 1


def test_a_body_is_not_looked_into(sidecar: Start, engine: Engine) -> None:
    made = sidecar(engine)
    body = chat_body(messages=[{"role": "user", "content": "x" * 3_000_000}])
    assert made.call("POST", "/v1/chat/completions", body).status == 200
