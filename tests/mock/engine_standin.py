# SPDX-License-Identifier: Apache-2.0
"""Stand-in for TensorRT-LLM, SGLang and vLLM: their command lines, files, endpoints and metrics, and no model.

Every answer says "simulated"; of the world it knows what role deepseek_service asks (deepseek_service_smoke).
It refuses what the engine refuses: unknown options and keys, a directory without a model, a wrong key. Its lists of options
were read from the engines' own wheels (engine_options.json), not from the schemas of the role; that of TensorRT-LLM was written by hand.

    trtllm-serve MODEL --config FILE --host ADDRESS --port PORT
    python3 -m sglang.launch_server --config FILE --model-path MODEL --host ADDRESS --port PORT
    vllm serve MODEL --config FILE --host ADDRESS --port PORT

A JSON file named by ENGINE_STANDIN_CONTROL (or /etc/gpufleet/engine_standin.json) makes it misbehave; it is read again for every question:

    ready_after    seconds until it is healthy (-1: never)
    die_after      seconds until it ends with exit code 3 (0: never)
    ignore_term    SIGTERM does nothing
    hang           requests are taken and no token comes any more
    nonsense       answers are no completions
    stupid         answers are completions, and wrong
    unhealthy      /health answers 503
    metrics        false: the metrics are not there
    old_names      TensorRT-LLM's metrics have no prefix
    token_seconds  time for a token
    print_keys     what the engine knows is printed when it starts, as SGLang does
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import yaml

CONTROL = "/etc/gpufleet/engine_standin.json"
# What the role asks before it ends.
ANSWERS = {"capital of France": "Paris", "2 + 2": "4"}


@dataclasses.dataclass
class Metrics:
    """Names of what an engine counts."""

    path: str
    tokens: str
    prompt_tokens: str
    running: str
    waiting: str
    labels: str


METRICS = {
    "tensorrt_llm": Metrics(
        "/prometheus/metrics",
        "trtllm_generation_tokens_total",
        "trtllm_prompt_tokens_total",
        "trtllm_num_requests_running",
        "trtllm_num_requests_waiting",
        "",
    ),
    "sglang": Metrics(
        "/metrics",
        "sglang:generation_tokens_total",
        "sglang:prompt_tokens_total",
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        '{model_name="simulated"}',
    ),
    "vllm": Metrics(
        "/metrics",
        "vllm:generation_tokens_total",
        "vllm:prompt_tokens_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        '{engine="0",model_name="simulated"}',
    ),
}


@dataclasses.dataclass
class Wanted:
    """What the engine was told."""

    engine: str
    model: str
    host: str
    port: int
    names: list[str]
    keys: list[str]
    shutdown_timeout: float
    metrics: bool
    nodes: int = 1
    rank: int = 0
    meet: str = ""


def refuse(message: str, code: int) -> NoReturn:
    """End as the engine would."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


class Control:
    """The file that makes it misbehave."""

    def __init__(self) -> None:
        """Now is the start."""
        self.path = Path(os.environ.get("ENGINE_STANDIN_CONTROL", CONTROL))
        self.started = time.monotonic()

    def get(self, name: str, default: Any) -> Any:
        """A setting as it is now."""
        try:
            return json.loads(self.path.read_text("utf-8")).get(name, default)
        except (OSError, ValueError):
            return default

    @property
    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started


# -- command lines ----------------------------------------------------------------------------------------------------


def _known(engine: str) -> dict[str, Any]:
    """What the list says: options of a command line, or the keys of a file; a mapping has exactly the keys in it, null stands for anything."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("engine_options.json").read_text("utf-8"))
    return dict(found[engine])


def _options(engine: str) -> argparse.ArgumentParser:
    known = _known(engine)["options"]
    parser = argparse.ArgumentParser(prog=engine, allow_abbrev=False)
    for name, how in known.items():
        if how == "flag":
            parser.add_argument(f"--{name}", action="store_true")
        elif how == "list":
            parser.add_argument(f"--{name}", nargs="+")
        else:
            parser.add_argument(f"--{name}")
    return parser


def _file(path: str) -> dict[str, Any]:
    if not path.endswith((".yml", ".yaml")):
        refuse(f"the configuration file must be YAML: {path}", 1)
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, yaml.YAMLError) as exc:
        refuse(str(exc), 1)
    if not isinstance(content, dict):
        refuse("the configuration file must hold a mapping", 1)
    return content


def _as_words(content: dict[str, Any], no_words: set[str]) -> list[str]:
    """Keys of the file as options of the command line, as both engines do it."""
    words: list[str] = []
    for key, value in content.items():
        if isinstance(value, bool):
            words += [f"--{key}"] if value else [f"--no-{key}"] if f"no-{key}" in no_words else []
        elif isinstance(value, list):
            words += [f"--{key}", *map(str, value)] if value else []
        else:
            words += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    return {word[2:] for action in parser._actions for word in action.option_strings if word.startswith("--no-")}


def _pull(words: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], dict[str, Any]]:
    """The command line without ``--config``, and what the file says."""
    if "--config" not in words:
        return words, {}
    at = words.index("--config")
    if at + 1 == len(words):
        refuse("no config file specified", 1)
    return words[:at] + words[at + 2 :], _file(words[at + 1])


def read_sglang(words: list[str]) -> Wanted:
    """``python3 -m sglang.launch_server``."""
    parser = _options("sglang")
    rest, content = _pull(words, parser)
    # A store_true that is false is left out.
    found = parser.parse_args(_as_words(content, set()) + rest)
    if not (found.model_path or found.model):
        refuse("the following arguments are required: --model-path/--model", 2)
    model = found.model_path or found.model
    return Wanted(
        "sglang",
        model,
        found.host or "127.0.0.1",
        int(found.port or 30000),
        [found.served_model_name or model],
        [found.api_key] if found.api_key else [],
        86400.0,
        bool(found.enable_metrics),
        int(found.nnodes or 1),
        int(found.node_rank or 0),
        found.dist_init_addr or "",
    )


def read_vllm(words: list[str]) -> Wanted:
    """``vllm serve MODEL``."""
    if not words or words[0] != "serve":
        refuse("argument subparser: invalid choice", 2)
    parser = _options("vllm")
    parser.add_argument("model_tag", nargs="?")
    rest, content = _pull(words[1:], parser)
    tag, rest = (rest[:1], rest[1:]) if rest and not rest[0].startswith("-") else ([], rest)
    spelled = [word.replace("_", "-") if word.startswith("--") else word for word in _as_words(content, _flags(parser))]
    found = parser.parse_args([*tag, *spelled, *rest])
    model = found.model_tag or found.model
    if not model:
        refuse("no model specified", 2)
    keys = found.api_key or [os.environ.get("VLLM_API_KEY", "")]
    keys = keys if isinstance(keys, list) else [keys]
    names = found.served_model_name or [model]
    return Wanted(
        "vllm",
        model,
        found.host or "127.0.0.1",
        0 if found.headless else int(found.port or 8000),
        names if isinstance(names, list) else [names],
        [key for key in keys if key],
        float(found.shutdown_timeout or 0),
        not found.disable_log_stats,
        int(found.nnodes or 1),
        int(found.node_rank or 0),
        f"{found.master_addr}:{found.master_port}" if found.master_addr else "",
    )


def _strict(content: dict[str, Any], known: dict[str, Any], where: str = "") -> list[str]:
    """Extra inputs, as pydantic finds them."""
    found = []
    for key, value in content.items():
        if key not in known:
            found.append(f"{where}{key}: Extra inputs are not permitted")
        elif isinstance(known[key], dict) and isinstance(value, dict):
            found += _strict(value, known[key], f"{where}{key}.")
    return found


def read_tensorrt_llm(words: list[str]) -> Wanted:
    """``trtllm-serve MODEL``."""
    parser = argparse.ArgumentParser(prog="trtllm-serve", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--config", "--extra_llm_api_options", default="")
    found = parser.parse_args(words[1:] if words[:1] == ["serve"] else words)
    content = _file(found.config) if found.config else {}
    extra = _strict(content, _known("tensorrt_llm")["keys"])
    graphs = content.get("cuda_graph_config") or {}
    if graphs.get("batch_sizes") and graphs.get("max_batch_size"):
        extra.append("Please don't set both cuda_graph_config.batch_sizes and cuda_graph_config.max_batch_size")
    if extra:
        refuse(f"{len(extra)} validation errors for TorchLlmArgs: {'; '.join(extra)}", 1)
    return Wanted(
        "tensorrt_llm",
        found.model,
        found.host,
        found.port,
        [Path(found.model).name],
        [],
        0.0,
        bool(content.get("return_perf_metrics")),
    )


READERS = {"sglang": read_sglang, "vllm": read_vllm, "tensorrt_llm": read_tensorrt_llm}


# -- the server -------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Counters and settings of one engine."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, wanted: Wanted, control: Control, joined: threading.Event) -> None:
        """Listen."""
        self.address_family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
        self.wanted, self.control, self.joined = wanted, control, joined
        self.lock = threading.Lock()
        self.tokens = self.prompt_tokens = self.running = self.drained = 0
        self.draining = False
        super().__init__((wanted.host, wanted.port), Handler)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        with self.lock:
            setattr(self, name, getattr(self, name) + amount)

    def up(self) -> bool:
        """Loaded, healthy and taking requests."""
        after = float(self.control.get("ready_after", 0))
        loaded = after >= 0 and self.control.age >= after and self.joined.is_set()
        return loaded and not self.draining and not self.control.get("unhealthy", False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away is not worth a traceback."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "gpufleet-engine-standin"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, status: int, content: Any) -> None:
        self._send(status, json.dumps({**content, "simulated": True}).encode())

    def _allowed(self, path: str) -> bool:
        keys, guarded = self.server.wanted.keys, path.startswith("/v1")
        if self.server.wanted.engine == "sglang":
            guarded = not path.startswith(("/health", "/metrics"))
        scheme, _blank, key = self.headers.get("Authorization", "").partition(" ")
        if not keys or not guarded or (scheme.lower() == "bearer" and key in keys):
            return True
        self._json(401, {"error": "Unauthorized"})
        return False

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        wanted = server.wanted
        if not self._allowed(path):
            return
        if path == "/health":
            self._send(200 if server.up() else 503, b"")
        elif path == "/health_generate" and wanted.engine != "vllm":
            done = server.up() and not server.control.get("nonsense", False) and self._token()
            self._send(200 if done else 500, b"")
        elif path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in wanted.names]})
        elif path == "/metrics" and wanted.engine == "tensorrt_llm":
            # Reading it takes the entries out of the queue: whoever did has broken the one reader that there may be.
            server.count("drained")
            self._send(200, b"[]")
        elif path == METRICS[wanted.engine].path and wanted.metrics and server.control.get("metrics", True):
            self._send(200, self._metrics().encode(), "text/plain; version=0.0.4")
        elif path == "/standin/drained":
            self._json(200, {"drained": server.drained})
        else:
            self._json(404, {"error": f"no such path: {path}"})

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if not self._allowed(path):
            return
        if path not in ("/v1/chat/completions", "/v1/completions"):
            self._json(404, {"error": f"no such path: {path}"})
        elif not self.server.up():
            self._json(503, {"error": "not ready"})
        else:
            try:
                request = json.loads(body)
            except ValueError:
                self._json(400, {"error": "the body is not JSON"})
                return
            model = request.get("model")
            if self.server.wanted.engine == "vllm" and model not in self.server.wanted.names:
                self._json(404, {"error": f"The model `{model}` does not exist."})
                return
            self._complete(request)

    def _metrics(self) -> str:
        server, names = self.server, METRICS[self.server.wanted.engine]
        values = {
            names.tokens: server.tokens,
            names.prompt_tokens: server.prompt_tokens,
            names.running: server.running,
            names.waiting: 0,
        }
        old = server.control.get("old_names", False)
        return "".join(
            f"# TYPE {name} untyped\n{name.removeprefix('trtllm_') if old else name}{names.labels} {float(value)}\n"
            for name, value in values.items()
        )

    def _token(self) -> bool:
        """One step of a request: waits as long as the engine hangs."""
        time.sleep(float(self.server.control.get("token_seconds", 0.01)))
        while self.server.control.get("hang", False):
            time.sleep(0.05)
        self.server.count("tokens")
        return True

    def _words(self, request: dict[str, Any], count: int) -> list[str]:
        """The answer, a word for each token."""
        asked = json.dumps(request.get("messages") or request.get("prompt") or "")
        words = [] if self.server.control.get("stupid", False) else [ANSWERS[one] for one in ANSWERS if one in asked]
        return (words + [f"simulated{number}" for number in range(count)])[:count]

    def _complete(self, request: dict[str, Any]) -> None:
        server = self.server
        server.count("running")
        server.count("prompt_tokens", 8)
        try:
            if server.control.get("nonsense", False):
                self._send(200, b"<html>simulated</html>", "text/html")
            elif request.get("stream"):
                self._stream(request)
            else:
                count = int(request.get("max_tokens") or 4)
                for _number in range(count):
                    self._token()
                usage = {"prompt_tokens": 8, "completion_tokens": count, "total_tokens": 8 + count}
                message = {"role": "assistant", "content": " ".join(self._words(request, count))}
                choice = {"index": 0, "finish_reason": "length", "message": message}
                answer = {"id": "simulated", "object": "chat.completion", "model": request.get("model")}
                self._json(200, {**answer, "choices": [choice], "usage": usage})
        except OSError:
            self.close_connection = True
        finally:
            server.count("running", -1)

    def _stream(self, request: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in self._words(request, int(request.get("max_tokens") or 4)):
            self._token()
            choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
            event = json.dumps({"object": "chat.completion.chunk", "choices": [choice], "simulated": True})
            self._chunk(f"data: {event}\n\n".encode())
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


# -- a replica of several hosts -----------------------------------------------------------------------------------------


def lead(wanted: Wanted, joined: threading.Event) -> None:
    """Wait for the workers; one that goes away takes the replica with it."""
    host, _colon, port = wanted.meet.rpartition(":")
    place = socket.create_server((host.strip("[]"), int(port)), reuse_port=False)
    lock, members = threading.Lock(), [0]

    def member(connection: socket.socket) -> None:
        # A look whether the port is open says nothing.
        if connection.recv(16) != b"worker\n":
            return
        with lock:
            members[0] += 1
            if members[0] == wanted.nodes - 1:
                joined.set()
        with contextlib.suppress(OSError):
            connection.recv(1)
        print("simulated: a worker is gone", file=sys.stderr, flush=True)
        os._exit(1)

    while True:
        connection, _peer = place.accept()
        threading.Thread(target=member, args=(connection,), daemon=True).start()


def work(wanted: Wanted) -> NoReturn:
    """Join the leader and stay as long as it does. No requests are answered here."""
    host, _colon, port = wanted.meet.rpartition(":")
    while True:
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            break
        except OSError:
            time.sleep(0.2)
    connection.settimeout(None)
    connection.sendall(b"worker\n")
    with contextlib.suppress(OSError):
        connection.recv(1)
    print("simulated: the leader is gone", file=sys.stderr, flush=True)
    sys.exit(1)


def mortal(control: Control) -> None:
    """Die when the time has come."""
    while True:
        after = float(control.get("die_after", 0))
        if after and control.age >= after:
            print("simulated: CUDA error", file=sys.stderr, flush=True)
            os._exit(3)
        time.sleep(0.05)


def serve(wanted: Wanted, control: Control) -> int:
    """Answer until SIGTERM."""
    joined, stopping = threading.Event(), threading.Event()

    def on_term(_number: int, _frame: object) -> None:
        if not control.get("ignore_term", False):
            stopping.set()

    signal.signal(signal.SIGTERM, on_term)
    if wanted.nodes > 1:
        threading.Thread(target=lead, args=(wanted, joined), daemon=True).start()
    else:
        joined.set()
    server = Server(wanted, control, joined)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    print(f"simulated {wanted.engine} on {wanted.host} port {wanted.port}", flush=True)
    while not stopping.wait(0.05):
        pass
    server.draining = True
    deadline = time.monotonic() + wanted.shutdown_timeout
    while server.running and time.monotonic() < deadline:
        time.sleep(0.02)
    return 0


def main(engine: str, words: list[str]) -> int:
    """Be that engine."""
    wanted, control = READERS[engine](words), Control()
    if not (Path(wanted.model) / "config.json").is_file():
        refuse(f"{wanted.model} holds no config.json", 1)
    if control.get("print_keys", False):
        print(f"server_args={dataclasses.asdict(wanted)}", flush=True)
    threading.Thread(target=mortal, args=(control,), daemon=True).start()
    if wanted.rank:
        work(wanted)
    return serve(wanted, control)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
