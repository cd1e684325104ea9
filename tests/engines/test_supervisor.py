# SPDX-License-Identifier: Apache-2.0
"""The supervisor of the GPU engines against the stand-in of each: real processes, real sockets, no GPU."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import typing as t
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SUPERVISOR = ROOT / "roles" / "deepseek_service" / "files" / "engines" / "supervisor.py"
KEY = "0123456789abcdef-first"
PATIENCE = 60.0
ENGINES: dict[str, dict[str, t.Any]] = {
    "tensorrt_llm": {
        "file": {"max_batch_size": 64, "return_perf_metrics": True},
        "keys": {"how": "none"},
        "token_path": "/health_generate",
        "metrics_path": "/prometheus/metrics",
        "token_metrics": ["trtllm_generation_tokens_total", "generation_tokens_total"],
        "request_metrics": ["trtllm_num_requests_running", "num_requests_running"],
        "drain": "wait",
    },
    "sglang": {
        "file": {"served-model-name": "m", "enable-metrics": True},
        "keys": {"how": "file", "name": "api-key"},
        "token_path": "/v1/chat/completions",
        "metrics_path": "/metrics",
        "token_metrics": ["sglang:generation_tokens_total", "sglang:prompt_tokens_total"],
        "request_metrics": ["sglang:num_running_reqs", "sglang:num_queue_reqs"],
        "drain": "signal",
    },
    "vllm": {
        "file": {"served-model-name": ["m"], "shutdown-timeout": 20},
        "keys": {"how": "file", "name": "api-key", "many": True},
        "token_path": "/v1/chat/completions",
        "metrics_path": "/metrics",
        "token_metrics": ["vllm:generation_tokens_total", "vllm:prompt_tokens_total"],
        "request_metrics": ["vllm:num_requests_running", "vllm:num_requests_waiting"],
        "drain": "signal",
    },
}


def load(name: str, path: Path) -> t.Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="supervisor", scope="module")
def load_supervisor() -> t.Any:
    return load("engine_supervisor", SUPERVISOR)


@pytest.fixture(name="installed", scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-ins as an installed engine has them: programs in bin, modules beside it."""
    place = tmp_path_factory.mktemp("engines")
    wheels = load("standin_wheels", ROOT / "tests" / "mock" / "standin_wheels.py")
    for engine in ENGINES:
        with zipfile.ZipFile(wheels.wheel(place, engine, "1")) as archive:
            archive.extractall(place / "lib")
    programs = place / "bin"
    programs.mkdir()
    for name, engine in (("vllm", "vllm"), ("trtllm-serve", "tensorrt_llm")):
        path = programs / name
        path.write_text(f"#!{sys.executable}\nimport sys\nfrom {engine} import run\nsys.exit(run())\n", "utf-8")
        path.chmod(0o755)
    return place


class Journal:
    """What the supervisor told systemd."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                self.lines += self.socket.recv(65536).decode().splitlines()
            except OSError:
                return


class World:
    """A directory with an engine's files, and the running supervisors of it."""

    def __init__(self, path: Path, installed: Path) -> None:
        self.path, self.installed = path, installed
        self.journal = Journal(path / "notify")
        self.control_file = path / "control.json"
        self.running: list[subprocess.Popen[str]] = []
        (path / "model").mkdir()
        (path / "model" / "config.json").write_text("{}", "utf-8")
        (path / "run").mkdir(mode=0o700)
        self.port = free_port()
        self.listen: dict[str, t.Any] = {"listen_address": "127.0.0.1", "port": self.port}

    def control(self, **settings: t.Any) -> None:
        new = self.control_file.with_suffix(".new")
        new.write_text(json.dumps(settings), "utf-8")
        new.rename(self.control_file)

    def config(self, engine: str, file: dict[str, t.Any] | None = None, **changes: t.Any) -> dict[str, t.Any]:
        facts = ENGINES[engine]
        path = self.path / f"{changes.get('role', 'single')}.yml"
        path.write_text(yaml.safe_dump({**facts["file"], **(file or {})}), "utf-8")
        where = ["--config", str(path), "--host", "@ADDRESS@", "--port", "@PORT@"]
        model, programs = str(self.path / "model"), self.installed / "bin"
        argv = {
            "tensorrt_llm": [str(programs / "trtllm-serve"), model, *where],
            "sglang": [sys.executable, "-m", "sglang.launch_server", "--model-path", model, *where],
            "vllm": [str(programs / "vllm"), "serve", model, *where],
        }[engine]
        base = {
            "engine": engine,
            "model_name": "m",
            "role": "single",
            "leader": {},
            "argv": argv,
            "environment": {
                "PYTHONPATH": str(self.installed / "lib"),
                "ENGINE_STANDIN_CONTROL": str(self.control_file),
            },
            "engine_file": str(path),
            "health_path": "/health",
            "start_seconds": 60,
            "drain_seconds": 30,
            "stop_seconds": 5,
            "stuck_seconds": 0,
            "retry_seconds": 0,
            "retry_most_seconds": 0,
        }
        return {**base, **{key: value for key, value in facts.items() if key != "file"}, **changes}

    def start(
        self, config: dict[str, t.Any], keys: str = f"{KEY}\n", watchdog: float = 0.0, check: str = ""
    ) -> subprocess.Popen[str]:
        name = config["role"]
        (self.path / f"{name}.json").write_text(json.dumps(config), "utf-8")
        (self.path / "keys").write_text(keys, "utf-8")
        (self.path / "listen").write_text(json.dumps(self.listen), "utf-8")
        environment = {
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": str(self.path / "notify"),
            "RUNTIME_DIRECTORY": str(self.path / "run"),
        }
        if watchdog:
            environment["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        files = [f"--config={self.path}/{name}.json", f"--listen={self.path}/listen", f"--keys={self.path}/keys"]
        argv = [sys.executable, "-I", str(SUPERVISOR), *files]
        with (self.path / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [*argv, *([check] if check else [])], env=environment, stdout=log, stderr=log, text=True
            )
        self.running.append(process)
        return process

    def log(self, name: str = "single") -> str:
        return (self.path / f"{name}.log").read_text("utf-8")

    def until(self, what: t.Callable[[], t.Any], message: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not what():
            if time.monotonic() > deadline:
                logs = "".join(path.read_text("utf-8") for path in self.path.glob("*.log"))
                pytest.fail(f"{message}\n{self.journal.lines}\n{logs}")
            time.sleep(0.05)

    def told(self, text: str) -> bool:
        return any(text in line for line in self.journal.lines)

    def ready(self, process: subprocess.Popen[str]) -> None:
        self.until(lambda: self.told("READY=1") or process.poll() is not None, "not ready")
        assert process.poll() is None, self.log()

    def ends(self, process: subprocess.Popen[str]) -> int:
        return process.wait(PATIENCE)

    def ask(self, method: str, path: str, body: object = None, key: str = KEY) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, json.dumps(body) if body else None, {"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def stream(self, tokens: int) -> tuple[threading.Thread, list[bytes]]:
        found: list[bytes] = []

        def run() -> None:
            body = {"model": "m", "stream": True, "max_tokens": tokens, "messages": []}
            # An engine that is killed cuts what it has begun.
            with contextlib.suppress(http.client.HTTPException, OSError):
                found.append(self.ask("POST", "/v1/chat/completions", body)[1])

        thread = threading.Thread(target=run)
        thread.start()
        return thread, found

    def requests(self, engine: str) -> float:
        facts = ENGINES[engine]
        status, text = self.ask("GET", facts["metrics_path"])
        assert status == 200
        rows = [line.split() for line in text.decode().splitlines() if not line.startswith("#")]
        return sum(float(row[-1]) for row in rows if row[0].partition("{")[0] in facts["request_metrics"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(name="world")
def make_world(tmp_path: Path, installed: Path) -> t.Iterator[World]:
    world = World(tmp_path, installed)
    yield world
    for process in world.running:
        if process.poll() is None:
            process.terminate()
            process.terminate()
    for process in world.running:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    world.journal.socket.close()


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]


# -- the start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_ready_after_a_token_and_gone_after_sigterm(world: World, engine: str) -> None:
    process = world.start(world.config(engine))
    world.ready(process)
    assert world.told(f"STATUS=serving m on 127.0.0.1 port {world.port}")
    tokens = ENGINES[engine]["token_metrics"][0]
    (line,) = [
        text
        for text in world.ask("GET", ENGINES[engine]["metrics_path"])[1].decode().splitlines()
        if text.startswith(tokens)
    ]
    assert float(line.split()[-1]) >= 1
    process.send_signal(signal.SIGTERM)
    assert world.ends(process) == 0
    assert "drain: done" in world.log()
    assert world.told("STOPPING=1")
    with pytest.raises(OSError, match="refused"):
        world.ask("GET", "/health")


@pytest.mark.parametrize("engine", ENGINES)
def test_not_ready_while_the_model_loads(world: World, engine: str) -> None:
    world.control(ready_after=-1)
    process = world.start(world.config(engine))
    world.until(lambda: world.told("/health does not answer 200"), "no status")
    assert not world.told("READY=1")
    world.control()
    world.ready(process)


def test_never_ready(world: World) -> None:
    world.control(ready_after=-1)
    process = world.start(world.config("vllm", start_seconds=2))
    assert world.ends(process) == 69
    assert "start: not ready within 2 s: /health does not answer 200" in world.log()
    assert not world.told("READY=1")


@pytest.mark.parametrize("engine", ENGINES)
def test_healthy_is_not_ready(world: World, engine: str) -> None:
    world.control(nonsense=True)
    process = world.start(world.config(engine, start_seconds=3))
    assert world.ends(process) == 69
    assert not world.told("READY=1")
    expected = "/health_generate answers 500" if engine == "tensorrt_llm" else "answers what is no completion"
    assert f"not ready within 3 s: {ENGINES[engine]['token_path']} " in world.log()
    assert expected in world.log()


@pytest.mark.parametrize(("engine", "code"), [("tensorrt_llm", 69), ("sglang", 78), ("vllm", 78)])
def test_an_option_that_the_engine_does_not_know(world: World, engine: str, code: int) -> None:
    process = world.start(world.config(engine, {"no-such-option": 1}))
    assert world.ends(process) == code
    assert "before it was ready" in world.log()
    assert "no-such-option" in world.log()


def test_a_model_that_is_none(world: World) -> None:
    (world.path / "model" / "config.json").unlink()
    assert world.ends(world.start(world.config("vllm"))) == 69
    assert "holds no config.json" in world.log()


def test_a_port_that_is_taken(world: World) -> None:
    with socket.create_server(("127.0.0.1", world.port)):
        assert world.ends(world.start(world.config("vllm"))) == 69
    assert f"cannot listen on 127.0.0.1 port {world.port}" in world.log()


def test_stopped_while_it_loads(world: World) -> None:
    world.control(ready_after=-1)
    process = world.start(world.config("sglang"))
    world.until(lambda: world.told("does not answer"), "not started")
    process.send_signal(signal.SIGTERM)
    assert world.ends(process) == 0


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_keys_are_in_no_argument_list_no_log_and_no_file_that_stays(world: World, engine: str) -> None:
    world.control(print_keys=True)
    process = world.start(world.config(engine))
    world.ready(process)
    assert world.ask("POST", "/v1/chat/completions", {"model": "m", "messages": []}, key="wrong")[0] == 401
    assert world.ask("POST", "/v1/chat/completions", {"model": "m", "messages": []})[0] == 200
    for pid in (process.pid, *children_of(process.pid)):
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert "'keys': ['***']" in world.log()
    assert KEY not in world.log()
    files = [path for path in world.path.rglob("*") if path.is_file() and path.name != "keys"]
    assert not [path for path in files if KEY in path.read_text("utf-8", "replace")]


def test_the_file_with_the_key_is_for_the_engine_alone(world: World) -> None:
    world.control(ready_after=-1)
    world.start(world.config("vllm"))
    world.until(lambda: list((world.path / "run").glob("engine-*/single.yml")), "no file")
    (path,) = (world.path / "run").glob("engine-*/single.yml")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert KEY in path.read_text("utf-8")


def test_a_key_in_the_environment(world: World) -> None:
    process = world.start(world.config("vllm", keys={"how": "environment", "name": "VLLM_API_KEY"}))
    world.ready(process)
    assert world.ask("GET", "/v1/models", key="wrong")[0] == 401
    assert world.ask("GET", "/v1/models")[0] == 200


def test_two_keys_where_the_engine_takes_them(world: World) -> None:
    process = world.start(world.config("vllm"), keys=f"{KEY}\nanother-key-0123456789\n")
    world.ready(process)
    assert world.ask("GET", "/v1/models", key="another-key-0123456789")[0] == 200


def test_two_keys_where_it_takes_one(world: World) -> None:
    assert world.ends(world.start(world.config("sglang"), keys=f"{KEY}\nanother\n")) == 78
    assert "sglang takes one" in world.log()
    assert "another\n" not in world.log()


# -- life -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_signs_of_life_while_idle_and_while_it_works(world: World, engine: str) -> None:
    world.control(token_seconds=0.05)
    process = world.start(world.config(engine), watchdog=1.5)
    world.ready(process)
    world.until(lambda: world.journal.lines.count("WATCHDOG=1") >= 2, "no sign of life while idle")
    thread, found = world.stream(60)
    world.until(lambda: world.requests(engine) > 0, "no request")
    before = world.journal.lines.count("WATCHDOG=1")
    thread.join()
    assert world.journal.lines.count("WATCHDOG=1") > before
    assert b"[DONE]" in found[0]
    assert not world.told("no sign of life")


@pytest.mark.parametrize("engine", ENGINES)
def test_no_sign_of_life_when_it_hangs_with_requests_though_it_is_healthy(world: World, engine: str) -> None:
    process = world.start(world.config(engine), watchdog=1.5)
    world.ready(process)
    world.control(hang=True)
    thread, found = world.stream(5)
    world.until(lambda: world.told("STATUS=no sign of life: 1 requests and no token more than"), "not noticed")
    assert world.ask("GET", "/health")[0] == 200
    count = world.journal.lines.count("WATCHDOG=1")
    time.sleep(2.0)
    assert world.journal.lines.count("WATCHDOG=1") == count
    # It is systemd that ends it; until then it may come back.
    assert process.poll() is None
    world.control()
    world.until(lambda: world.journal.lines.count("WATCHDOG=1") > count, "no sign of life after it came back")
    thread.join()
    assert b"[DONE]" in found[0]


def test_stuck_without_systemd_ends_itself(world: World) -> None:
    process = world.start(world.config("vllm", stuck_seconds=3))
    world.ready(process)
    world.control(hang=True, ignore_term=True)
    thread, _found = world.stream(5)
    assert world.ends(process) == 69
    assert "serve: stuck for 3 s; ending it" in world.log()
    thread.join()


def test_unhealthy_and_idle_is_no_sign_of_life(world: World) -> None:
    process = world.start(world.config("sglang"), watchdog=1.5)
    world.ready(process)
    world.control(unhealthy=True)
    world.until(
        lambda: world.told("no sign of life: it has no requests and /health does not answer 200"), "not noticed"
    )


def test_old_names_of_metrics_count_as_well(world: World) -> None:
    world.control(old_names=True)
    process = world.start(world.config("tensorrt_llm"), watchdog=1.5)
    world.ready(process)
    world.control(old_names=True, hang=True)
    world.stream(2)
    world.until(lambda: world.told("1 requests and no token more than"), "not noticed")
    world.control(old_names=True)


def test_without_metrics_it_must_generate(world: World) -> None:
    world.control(metrics=False)
    process = world.start(world.config("vllm"), watchdog=1.5)
    world.ready(process)
    world.until(lambda: world.journal.lines.count("WATCHDOG=1") >= 2, "no sign of life")
    world.control(metrics=False, nonsense=True)
    world.until(
        lambda: world.told("no sign of life: /v1/chat/completions answers what is no completion"), "not noticed"
    )


def test_the_queue_of_tensorrt_llm_is_never_read(world: World) -> None:
    process = world.start(world.config("tensorrt_llm"), watchdog=1.0)
    world.ready(process)
    world.until(lambda: world.journal.lines.count("WATCHDOG=1") >= 3, "no sign of life")
    assert json.loads(world.ask("GET", "/standin/drained")[1])["drained"] == 0
    process.send_signal(signal.SIGTERM)
    assert world.ends(process) == 0


def test_it_dies(world: World) -> None:
    process = world.start(world.config("vllm"))
    world.ready(process)
    world.control(die_after=0.1)
    assert world.ends(process) == 69
    assert "serve: the engine ended with exit code 3" in world.log()
    assert "simulated: CUDA error" in world.log()


def test_pauses_grow_with_bad_ends_and_a_good_end_is_forgotten(world: World) -> None:
    world.control(die_after=0.1)
    config = world.config("vllm", retry_seconds=1, retry_most_seconds=2)
    for _number in range(4):
        assert world.ends(world.start(config)) == 69
    waits = [line for line in world.log().splitlines() if line.startswith("start: the engine ended badly")]
    assert waits == [
        "start: the engine ended badly 2 times; waiting 1 s",
        "start: the engine ended badly 3 times; waiting 2 s",
    ]
    assert world.told("EXTEND_TIMEOUT_USEC=")
    world.control()
    process = world.start(config)
    world.ready(process)
    process.send_signal(signal.SIGTERM)
    assert world.ends(process) == 0
    assert not (world.path / "run" / "restarts.json").exists()


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_running_stream_ends_before_the_engine_does(world: World, engine: str) -> None:
    world.control(token_seconds=0.05)
    process = world.start(world.config(engine))
    world.ready(process)
    thread, found = world.stream(60)
    world.until(lambda: world.requests(engine) > 0, "no request")
    process.send_signal(signal.SIGTERM)
    assert world.ends(process) == 0
    thread.join()
    assert b"simulated59 " in found[0]
    assert b"[DONE]" in found[0]
    assert "drain: done" in world.log()


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_new_requests_are_refused_while_it_drains(world: World, engine: str) -> None:
    world.control(token_seconds=0.05)
    process = world.start(world.config(engine))
    world.ready(process)
    thread, found = world.stream(60)
    world.until(lambda: world.requests(engine) > 0, "no request")
    process.send_signal(signal.SIGTERM)
    world.until(lambda: world.told("STOPPING=1"), "no drain")
    world.until(lambda: world.ask("GET", "/health")[0] == 503, "still healthy")
    assert world.ask("POST", "/v1/chat/completions", {"model": "m", "messages": []})[0] == 503
    thread.join()
    assert b"[DONE]" in found[0]
    assert world.ends(process) == 0


@pytest.mark.parametrize("hurry", [False, True])
def test_a_stream_that_does_not_end(world: World, hurry: bool) -> None:
    process = world.start(world.config("tensorrt_llm", drain_seconds=600 if hurry else 2, stop_seconds=1))
    world.ready(process)
    world.control(hang=True, ignore_term=True)
    thread, _found = world.stream(5)
    world.until(lambda: world.requests("tensorrt_llm") > 0, "no request")
    (engine,) = children_of(process.pid)
    process.send_signal(signal.SIGTERM)
    if hurry:
        world.until(lambda: world.told("STOPPING=1"), "no drain")
        process.send_signal(signal.SIGTERM)
    assert world.ends(process) == 0
    assert "drain: given up" in world.log()
    assert "the engine did not end within 1 s" in world.log()
    assert not Path(f"/proc/{engine}").exists()
    thread.join()


# -- several hosts ----------------------------------------------------------------------------------------------------


def replica(world: World, engine: str) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    meet = free_port()
    if engine == "sglang":
        files = [{"nnodes": 2, "node-rank": rank, "dist-init-addr": f"127.0.0.1:{meet}"} for rank in (0, 1)]
    else:
        files = [{"nnodes": 2, "node-rank": rank, "master-addr": "127.0.0.1", "master-port": meet} for rank in (0, 1)]
    leader = {"address": "127.0.0.1", "port": meet}
    return (
        world.config(engine, files[0], role="leader", leader=leader),
        world.config(engine, files[1], role="worker", leader=leader),
    )


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_a_leader_and_its_worker(world: World, engine: str) -> None:
    lead, work = replica(world, engine)
    worker = world.start(work)
    world.until(lambda: world.told("STATUS=starting worker of 127.0.0.1: the leader at 127.0.0.1 port"), "no status")
    assert not world.told("READY=1")
    leader = world.start(lead)
    world.until(lambda: world.journal.lines.count("READY=1") == 2, "not both ready")
    assert world.told("STATUS=serving worker of 127.0.0.1")
    assert world.ask("GET", "/v1/models")[0] == 200
    leader.send_signal(signal.SIGTERM)
    assert world.ends(leader) == 0
    # Without its leader the worker's process ends, and its unit starts again to wait for the next one.
    assert world.ends(worker) == 69
    assert "the leader is gone" in world.log("worker")


def test_a_worker_goes_at_once(world: World) -> None:
    lead, work = replica(world, "sglang")
    leader, worker = world.start(lead), world.start(work)
    world.until(lambda: world.journal.lines.count("READY=1") == 2, "not both ready")
    worker.send_signal(signal.SIGTERM)
    assert world.ends(worker) == 0
    assert world.ends(leader) == 69


# -- bad files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 8000}, "unknown setting port"),
        ({"drain_seconds": "30"}, "drain_seconds: expected int, found '30'"),
        ({"stop_seconds": 0}, "stop_seconds: expected 1 to 3600, found 0"),
        ({"role": "boss"}, "role: expected single, leader, worker; found 'boss'"),
        ({"drain": "never"}, "drain: expected signal, wait; found 'never'"),
        ({"argv": []}, "argv: must not be empty"),
        ({"argv": [1]}, "argv: expected texts, found 1"),
        ({"environment": {"A": 1}}, "environment: expected texts, found 1"),
        ({"keys": {"how": "argv"}}, "keys.how: expected file, environment, none; found 'argv'"),
        ({"keys": {"how": "file"}}, "keys.name: must not be empty"),
        ({"leader": {"address": "x"}}, "leader: expected address and port"),
        ({"colour": 1}, "unknown setting colour"),
    ],
)
def test_a_wrong_setting(world: World, changes: dict[str, t.Any], message: str) -> None:
    config = {**world.config("vllm"), **changes}
    assert world.ends(world.start(config, check="--check-settings")) == 78
    assert message in world.log(config["role"])


def test_what_check_looks_at(world: World) -> None:
    config = world.config("vllm")
    assert world.ends(world.start(config, check="--check")) == 0
    # What is checked has no name yet: the engine's file lies beside the configuration, not where it will be.
    assert world.ends(world.start({**config, "engine_file": "/none/single.yml"}, check="--check")) == 0
    assert world.ends(world.start({**config, "engine_file": f"{world.path}/none.yml"}, check="--check")) == 78
    assert world.ends(world.start({**config, "argv": ["/none/vllm"]}, check="--check")) == 69
    assert world.ends(world.start({**config, "argv": ["/none/vllm"]}, check="--check-settings")) == 0
    assert "/none/vllm is not there" in world.log()
    assert "none.yml cannot be read" in world.log()


@pytest.mark.parametrize(
    ("listen", "keys", "code", "message"),
    [
        ({}, f"{KEY}\n", 0, ""),
        ({}, "\n", 78, "keys holds none"),
        ({"port": "8000"}, f"{KEY}\n", 78, "port: expected int, found '8000'"),
        ({"port": 0}, f"{KEY}\n", 78, "port: expected 1 to 65535, found 0"),
        ({"listen_address": ""}, f"{KEY}\n", 78, "listen_address: must not be empty"),
        ({"colour": 1}, f"{KEY}\n", 78, "unknown setting colour"),
    ],
)
def test_what_check_host_looks_at(world: World, listen: dict[str, t.Any], keys: str, code: int, message: str) -> None:
    # A release is no business of this check: there may be none yet.
    world.listen.update(listen)
    assert world.ends(world.start({"role": "single"}, keys=keys, check="--check-host")) == code
    assert message in world.log()


def test_an_engine_without_keys_stays_on_loopback(world: World) -> None:
    world.listen["listen_address"] = "0.0.0.0"
    assert world.ends(world.start(world.config("tensorrt_llm"))) == 78
    assert "tensorrt_llm checks no keys; expected 127.0.0.1 or ::1, found 0.0.0.0" in world.log()


def test_samples_of_metrics(supervisor: t.Any) -> None:
    text = '# HELP a b\na{x="1 2"} 3\na{x="}"} 4.5\nab 100\nb NaN-ish\na_total 7\n'
    assert supervisor.total(text, ["a"]) == 7.5
    assert supervisor.total(text, ["a", "a_total"]) == 14.5
    assert supervisor.total(text, ["b"]) is None
    assert supervisor.total("", ["a"]) is None


def test_where_it_is_asked(supervisor: t.Any) -> None:
    assert [supervisor.own_address(text) for text in ("0.0.0.0", "::", "10.0.0.1", "gpu1")] == [
        "127.0.0.1",
        "::1",
        "10.0.0.1",
        "gpu1",
    ]
