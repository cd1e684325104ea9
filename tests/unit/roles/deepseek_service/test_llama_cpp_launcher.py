# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import json
import pathlib
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = pathlib.Path(__file__).resolve().parents[4] / "roles" / "deepseek_service"


@pytest.fixture(name="launcher", scope="module")
def load_launcher() -> Any:
    path = ROLE / "files" / "engines" / "llama_cpp" / "launcher.py"
    spec = importlib.util.spec_from_file_location("llama_cpp_launcher", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="config")
def make_config(tmp_path: Path) -> Any:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF....")
    return {
        "model_path": str(model),
        "model_name": "m",
        "parallel_requests": 4,
        "context_tokens": 4096,
        "threads": 0,
        "drain_seconds": 30,
        "options": {"batch_tokens": 512, "shared_context": True},
    }


@pytest.fixture(name="served")
def make_served(config: Any) -> Any:
    """The configuration as the server has it: with where it listens."""
    return {**config, "listen_address": "127.0.0.1", "port": 8000}


@pytest.fixture(name="run")
def make_run(launcher: Any, tmp_path: Path) -> Any:
    def run(config: Any, check: Any = "--check-settings") -> Any:
        (tmp_path / "config").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        return launcher.main([check, f"--config={tmp_path}/config"])

    return run


@pytest.fixture(name="host")
def make_host(launcher: Any, tmp_path: Path) -> Any:
    """What is no part of a release: where it listens, and the keys."""

    def check(listen: Any, keys: Any = "key-1\nkey-2\n") -> Any:
        (tmp_path / "listen").write_text(listen if isinstance(listen, str) else json.dumps(listen), encoding="utf-8")
        (tmp_path / "keys").write_text(keys, encoding="utf-8")
        return launcher.main(["--check-host", f"--listen={tmp_path}/listen", f"--keys={tmp_path}/keys"])

    return check


def test_a_good_configuration(run: Any, config: Any) -> None:
    assert run(config) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": "8"}, "threads: expected int, found '8'"),
        ({"threads": True}, "threads: expected int, found True"),
        ({"parallel_requests": 0}, "parallel_requests: expected 1 to 1024, found 0"),
        ({"port": 8000}, "unknown setting port"),
        ({"model_name": ""}, "model_name: must not be empty"),
        ({"sort": 1}, "unknown setting sort"),
        ({"options": {"btach_tokens": 1}}, "unknown options btach_tokens; known: batch_tokens"),
        ({"options": {"batch_tokens": 1}}, "options.batch_tokens: expected 32 to 65536, found 1"),
        ({"options": {"shared_context": 1}}, "options.shared_context: expected bool, found 1"),
        ({"options": []}, "options: expected dict"),
    ],
)
def test_a_wrong_setting(run: Any, config: Any, capsys: pytest.CaptureFixture[str], changes: Any, message: Any) -> None:
    assert run({**config, **changes}) == 78
    assert message in capsys.readouterr().err


def test_a_missing_setting(run: Any, config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    del config["threads"]
    assert run(config) == 78
    assert "missing setting threads" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_no_configuration_at_all(run: Any, text: Any) -> None:
    assert run(text) == 78


@pytest.mark.parametrize(
    ("listen", "message"),
    [
        ({"listen_address": "127.0.0.1"}, "missing setting port"),
        ({"listen_address": "127.0.0.1", "port": 0}, "port: expected 1 to 65535, found 0"),
        ({"listen_address": "", "port": 8000}, "listen_address: must not be empty"),
        ("[]", "the file must hold one JSON object"),
    ],
)
def test_a_wrong_place_to_listen(host: Any, capsys: pytest.CaptureFixture[str], listen: Any, message: Any) -> None:
    assert host(listen) == 78
    assert message in capsys.readouterr().err


def test_no_key_is_an_open_server(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    listen = {"listen_address": "127.0.0.1", "port": 8000}
    assert host(listen) == 0
    assert host(listen, keys="\n \n") == 78
    assert "holds none" in capsys.readouterr().err


def test_keys_of_a_file(launcher: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("new\n\nold\n", encoding="utf-8")
    assert launcher.read_keys(str(tmp_path / "keys")) == ["new", "old"]


def test_a_model_that_is_none(run: Any, config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config["model_path"] = __file__
    assert run(config, check="--check") == 78
    assert "is not a GGUF file" in capsys.readouterr().err


def test_the_one_model_of_a_directory(launcher: Any, tmp_path: Path) -> None:
    with pytest.raises(launcher.ConfigError, match=r"expected one model in GGUF format in .*, found 0 files"):
        launcher.find_model(str(tmp_path))
    (tmp_path / "a.gguf").touch()
    assert launcher.find_model(str(tmp_path)) == str(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").touch()
    with pytest.raises(launcher.ConfigError, match="found 2 files"):
        launcher.find_model(str(tmp_path))
    assert launcher.find_model(str(tmp_path / "b.gguf")) == str(tmp_path / "b.gguf")


def test_the_first_part_names_the_others(launcher: Any, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"m-0000{number}-of-00003.gguf").touch()
    assert launcher.find_model(str(tmp_path)) == str(tmp_path / "m-00001-of-00003.gguf")


def test_the_role_knows_the_same_options(launcher: Any) -> None:
    spec = yaml.safe_load((ROLE / "vars" / "engines" / "llama_cpp.yml").read_text(encoding="utf-8"))
    known = {
        name: (option["type"], option.get("min", 0), option.get("max", 1))
        for name, option in spec["__deepseek_service_engine_spec"]["options"].items()
    }
    assert known == {name: (kind.__name__, low, high) for name, (_field, kind, low, high) in launcher.OPTIONS.items()}


def test_requests_in_flight(launcher: Any) -> None:
    metrics = (
        "# TYPE llamacpp:requests_processing gauge\n"
        "llamacpp:requests_processing 2\n"
        "llamacpp:requests_deferred 1\n"
        "llamacpp:n_tokens_max 31\n"
    )
    assert launcher.requests_in_flight(metrics) == 3


def accept_all(listener: Any, answers: Any) -> None:
    """Accept by the descriptor's number each time, as the engine does."""
    number = listener.fileno()
    while True:
        view = socket.socket(fileno=number)
        try:
            connection, _peer = view.accept()
        except OSError:
            return
        finally:
            view.detach()
        answers.append(connection)


def test_stop_listening_refuses_new_connections_and_keeps_the_old(launcher: Any) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    accepted: Any = []
    threading.Thread(target=accept_all, args=(listener, accepted), daemon=True).start()
    old = socket.create_connection(("127.0.0.1", port))
    while not accepted:
        pass
    assert launcher.stop_listening("127.0.0.1", port) is True
    for _attempt in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            break
        except ConnectionResetError:  # it met the listener while this went away; the next one is refused
            continue
    else:
        pytest.fail("the port still accepts connections")
    accepted[0].sendall(b"rest")
    assert old.recv(4) == b"rest"
    assert launcher.stop_listening("127.0.0.1", port) is False


@pytest.mark.parametrize(("loads", "drained"), [([2, 1, 0, 0], True), ([1, 0, 1, 0, 0], True), ([1] * 50, False)])
def test_drain_waits_for_requests_but_not_for_ever(
    launcher: Any, served: Any, monkeypatch: pytest.MonkeyPatch, loads: Any, drained: Any
) -> None:
    monkeypatch.setattr(launcher, "stop_listening", lambda address, port: True)
    monkeypatch.setattr(launcher, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(launcher, "FLUSH_SECONDS", 0)
    served["drain_seconds"] = 0 if not drained else 30
    left = list(loads)

    def metrics() -> Any:
        return f"llamacpp:requests_processing {left.pop(0)}\n"

    assert launcher.drain(served, metrics, threading.Event()) is drained
    assert (left == []) is drained


def test_a_second_signal_ends_the_drain(launcher: Any, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "stop_listening", lambda address, port: False)
    hurry = threading.Event()
    hurry.set()
    assert launcher.drain(served, lambda: "llamacpp:requests_processing 1\n", hurry) is False


def test_a_port_that_is_taken(launcher: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(launcher.UnavailableError, match=f"cannot listen on 127.0.0.1 port {port}"):
            launcher.check_port("127.0.0.1", port)
    launcher.check_port("127.0.0.1", port)


def test_notify(launcher: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launcher.notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        launcher.notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_watchdog_interval(launcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert launcher.watchdog_interval() == 0
    monkeypatch.setenv("WATCHDOG_USEC", "300000000")
    assert launcher.watchdog_interval() == 100.0
