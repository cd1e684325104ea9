# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The program as it stands on a host, with a stand-in for Locust, and the client against the mock engine on loopback."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test as load
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_client as clients

ROOT = Path(__file__).resolve().parents[4]
FILES = ROOT / "roles" / "load_test" / "files"
# What the stand-in for Locust leaves; "wait" makes it go on until it is ended.
LOCUST = """
import json, os, signal, sys, time
job = json.load(open(os.environ["GPUFLEET_LOAD_TEST_JOB"]))
keys = json.load(open(job["keys"]))
assert not any(key in " ".join(sys.argv) for key in keys.values())
times = {"count": 9, "mean": 0.1, "p50": 0.1, "p90": 0.1, "p99": 0.2, "max": 0.2}
steps = [{"users": s["users"], "planned_seconds": s["seconds"], "seconds": float(s["seconds"]), "requests": 9, "ok": 9, "rejected": 0,
    "errors": 0, "unfinished": 0, "error_ratio": 0.0, "rejected_ratio": 0.0, "error_reasons": {}, "statuses": {"200": 9},
    "requests_per_second": 0.0 if job["model"] == "still" else 20.0, "tokens_per_second": 90.0, "tokens_per_event": 1.0,
    "ttft": times, "itl": times, "e2e": times}
    for s in job["steps"]]
json.dump({"steps": steps, "aborted": "", "busiest": 0.95}, open(job["figures"], "w"))
while job["model"] == "wait":
    time.sleep(0.05)
"""


def mock_engine() -> ModuleType:
    """The mock engine, which lies outside of every package."""
    spec = importlib.util.spec_from_file_location("mock_engine", ROOT / "tests" / "mock" / "engine.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


class Mock:
    """The mock engine in a thread: ansible-test runs each test in a process of its own, and nothing of it may outlive that."""

    def __init__(self) -> None:
        engine = mock_engine()
        self.server = engine.Engine(("127.0.0.1", 0), "mock", "", 5.0, engine.Settings(chunk_delay=0.02))
        self.port = int(self.server.server_address[1])
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def control(self, **settings: Any) -> None:
        connection = clients.http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("POST", "/mock/control", json.dumps(settings))
        assert connection.getresponse().status == 200
        connection.close()


@pytest.fixture(name="mock")
def start_mock() -> Iterator[Mock]:
    """One for each test."""
    made = Mock()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(name="engine")
def well_behaved(mock: Mock) -> Mock:
    """The mock without faults."""
    mock.control(delay=0, status=200, retry_after=0, cut_after=0, drop=False)
    return mock


def ask(engine: Mock, stream: bool = True, timeout: float = 5, texts: list[float] | None = None) -> load.Answer:
    """One request with the role's client."""
    mix = load.Mix({"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 5, "stream": stream}]})
    target = load.Target("http", "127.0.0.1", engine.port, "", "127.0.0.1")
    client = clients.Client(target, "key", timeout, on_text=None if texts is None else texts.append)
    answer = client.send(mix.pick(load.Dice("x"), "mock"))
    client.close()
    return answer


def test_the_client_times_texts_and_not_headers(engine: Mock) -> None:
    engine.control(delay=0.1)
    texts: list[float] = []
    found = ask(engine, texts=texts)
    assert (found.kind, found.status, found.tokens, len(found.stamps)) == ("ok", 200, 5, 5)
    assert texts == found.stamps
    assert found.sent + 0.1 <= found.first < found.end
    assert found.end - found.first >= 4 * 0.02
    plain = ask(engine, stream=False)
    assert (plain.kind, plain.stamps, plain.tokens) == ("ok", [], 4)


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"status": 429, "retry_after": 3}, "rejected", ""),
        ({"status": 503, "retry_after": 3}, "rejected", ""),
        ({"status": 429}, "error", "status 429: an error made on purpose"),
        ({"status": 500, "retry_after": 3}, "error", "status 500"),
        ({"cut_after": 2}, "error", ""),
        ({"drop": True}, "error", "RemoteDisconnected"),
        ({"delay": 2}, "error", "no whole answer within 0.5 s"),
    ],
)
def test_rejections_are_no_errors_and_errors_no_answers(
    engine: Mock, settings: dict[str, Any], kind: str, words: str
) -> None:
    engine.control(**settings)
    found = ask(engine, timeout=0.5)
    assert found.kind == kind
    assert words in found.reason
    assert found.retry_after == (3 if kind == "rejected" else 0)


class Host:
    """A host in a directory."""

    def __init__(self, place: Path, port: int) -> None:
        self.state, self.metrics, self.etc = place / "state", place / "metrics", place / "etc"
        library = place / "library"
        for name in ("module_utils", "plugin_utils"):
            target = library / "ansible_collections" / "gpufleet" / "deepseek" / "plugins" / name
            target.mkdir(parents=True)
            for pattern in ("_load_test*.py", "_page.py"):
                for path in (ROOT / "plugins" / name).glob(pattern):
                    shutil.copy(path, target)
        (library / "ansible_collections" / "__init__.py").touch()
        for folder in (self.state, self.metrics, self.etc):
            folder.mkdir()
        for name in ("gpufleet_load_test.py", "locustfile.py"):
            shutil.copy(FILES / name, library)
        (library / "locust.py").write_text(LOCUST, encoding="utf-8")
        self.program = library / "gpufleet_load_test.py"
        (self.etc / "keys.json").write_text('{"fleet": "secret-of-the-test"}')
        mix = {"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 5}]}
        (self.etc / "mix.json").write_text(json.dumps(mix))
        self.config: dict[str, Any] = {
            "directory": str(self.state),
            "host": "mon1",
            "label": "",
            "url": f"http://127.0.0.1:{port}",
            "allowed": {"gpu1": "127.0.0.1"},
            "connect_host": "",
            "own_ca": False,
            "model": "mock",
            "steps": [{"users": 1, "seconds": 5}, {"users": 2, "seconds": 5}],
            "max_users": 10,
            "max_minutes": 1.0,
            "spawn_per_second": 10.0,
            "think_seconds": 0.0,
            "timeout": 5,
            "retry_after_max": 1.0,
            "pass": {"itl_p99_seconds": 0.5},
            "fleet_plan": {},
            "first_token_ms": 0.0,
            "plan_slack": 2.0,
            "abort_error_ratio": 0.1,
            "abort_min_requests": 20,
            "abort_window": 10,
            "min_memory_mib": 0,
            "max_cpu_percent": 0,
            "open_seconds": 1,
            "open_rate": 10.0,
            "open_share": 0.8,
            "open_max_in_flight": 8,
            "open_tool": "own",
            "compare_percent": 10.0,
            "compare_action": "warn",
            "keep_runs": 2,
            "lease_seconds": 30,
        }

    def call(self, *words: str) -> list[str]:
        """The command line of the program."""
        (self.etc / "job.json").write_text(json.dumps(self.config))
        return [sys.executable, "-sB", str(self.program), *words]

    def run(self) -> subprocess.CompletedProcess[str]:
        argv = self.call("run", "--config", str(self.etc / "job.json"))
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/")

    def status(self, *more: str) -> dict[str, Any]:
        argv = self.call("status", "--directory", str(self.state), *more)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(name="host")
def make_host(tmp_path: Path, engine: Mock) -> Host:
    """A host whose target is the mock."""
    return Host(tmp_path, engine.port)


def test_a_run_from_its_beginning_to_its_end(host: Host) -> None:
    done = host.run()
    assert done.returncode == 0, done.stderr
    status = host.status()
    verdict = status["verdict"]
    assert (status["state"], verdict["state"], verdict["target_host"]) == ("done", "passed", "gpu1")
    assert "95% busy" in verdict["warnings"][0]
    folder = Path(verdict["folder"])
    assert sorted(path.name for path in folder.iterdir()) == ["locust.log", "summary.html", "verdict.json"]
    kept = json.loads((folder / "verdict.json").read_text())
    assert kept["open_loop"]["ok"] == kept["open_loop"]["requests"] > 0
    assert "secret-of-the-test" not in done.stdout + done.stderr + "".join(
        path.read_text() for path in folder.iterdir()
    )
    host.config["pass"] = {"itl_p99_seconds": 0.1}
    again = host.run()
    assert again.returncode == 1
    found = host.status("--not-job", "another")["verdict"]
    assert "expected at most 100 ms (from load_test_pass), found 200 ms" in found["reasons"][0]
    published = subprocess.run(
        host.call("publish", "--directory", str(host.state), "--metrics-dir", str(host.metrics)), timeout=30, check=True
    )
    assert published.returncode == 0
    assert "gpufleet_load_test_passed 0" in (host.metrics / "gpufleet_load_test.prom").read_text()


def test_nothing_is_sent_to_a_target_outside_of_the_inventory_or_without_answers(host: Host, engine: Mock) -> None:
    host.config["allowed"] = {"gw1": "192.0.2.10"}
    done = host.run()
    assert done.returncode == 2
    assert "127.0.0.1, which is none of them; nothing was sent" in host.status()["message"]
    host.config.update(allowed={"gw1": "127.0.0.1"}, url=f"http://127.0.0.1:{engine.port}/nothing")
    assert host.run().returncode == 2
    assert "expected status 200, found 404" in host.status()["message"]
    assert not list((host.state / "runs").iterdir())


def test_without_an_answer_per_second_there_is_no_open_loop(host: Host) -> None:
    host.config.update(model="still", open_rate=0.0)
    assert host.run().returncode == 0
    verdict = host.status()["verdict"]
    assert (verdict["state"], verdict["reasons"], len(verdict["rows"])) == ("passed", [], 2)


def test_a_run_that_is_stopped_leaves_no_load_behind(host: Host) -> None:
    host.config["model"] = "wait"
    process = subprocess.Popen(
        host.call("run", "--config", str(host.etc / "job.json")),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for _attempt in range(200):
        if any("2 users" in line["text"] for line in host.status().get("lines", [])):
            break
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    process.send_signal(signal.SIGTERM)
    said, _unused = process.communicate(timeout=30)
    assert process.returncode == 1, said
    assert not Path(f"/proc/{children[0]}").exists()
    verdict = host.status()["verdict"]
    assert (verdict["state"], verdict["reasons"][0]) == ("aborted", "the run was stopped")


def test_metrics_that_are_none_are_not_published(host: Host) -> None:
    argv = host.call("publish", "--directory", str(host.state), "--metrics-dir", str(host.metrics))
    (host.state / "metrics.prom").write_text("node_load1 0\n")
    assert subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 1
    (host.state / "metrics.prom").unlink()
    (host.state / "metrics.prom").symlink_to("/etc/hostname")
    assert subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 1
    assert not list(host.metrics.iterdir())
