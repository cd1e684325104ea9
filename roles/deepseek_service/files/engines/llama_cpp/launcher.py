# SPDX-License-Identifier: Apache-2.0
"""Start llama.cpp's HTTP server from a configuration file, tell systemd when it is ready, and drain it on SIGTERM.

Exit codes: 0 after a drain, 69 when the port is taken or the model cannot be loaded, 78 when the configuration is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import typing as t
import urllib.error
import urllib.request
from pathlib import Path

EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78
GGUF_MAGIC = b"GGUF"
POLL_SECONDS = 0.1
FLUSH_SECONDS = 0.3
WATCHDOG_SHARE = 3

# Settings of the file: type, smallest, largest. A bool is no int here.
SETTINGS: dict[str, tuple[type, float, float]] = {
    "model_path": (str, 0, 0),
    "model_name": (str, 0, 0),
    "parallel_requests": (int, 1, 1024),
    "context_tokens": (int, 256, 16777216),
    "threads": (int, 0, 1024),
    "drain_seconds": (int, 0, 86400),
    "options": (dict, 0, 0),
}
# Where it listens is no part of a release: equal hosts have equal releases.
LISTEN: dict[str, tuple[type, float, float]] = {
    "listen_address": (str, 0, 0),
    "port": (int, 1, 65535),
}
# Options of the engine: field of CommonParams, type, smallest, largest.
OPTIONS: dict[str, tuple[str, type, float, float]] = {
    "batch_tokens": ("n_batch", int, 32, 65536),
    "micro_batch_tokens": ("n_ubatch", int, 32, 65536),
    "http_threads": ("n_threads_http", int, -1, 4096),
    "prompt_cache_mib": ("cache_ram_mib", int, 0, 1048576),
    "shared_context": ("kv_unified", bool, 0, 1),
    "read_timeout_seconds": ("timeout_read", int, 1, 86400),
    "write_timeout_seconds": ("timeout_write", int, 1, 86400),
    "stream_ping_seconds": ("sse_ping_interval", int, 1, 3600),
    "log_verbosity": ("verbosity", int, 0, 4),
}


class ConfigError(Exception):
    """The configuration cannot be used."""


class UnavailableError(Exception):
    """Something outside of the configuration is in the way."""


def _check_value(name: str, value: object, kind: type, low: float, high: float) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name}: expected {kind.__name__}, found {value!r}")
    if kind is int and not low <= t.cast("int", value) <= high:
        raise ConfigError(f"{name}: expected {low:g} to {high:g}, found {value}")
    if kind is str and not value:
        raise ConfigError(f"{name}: must not be empty")


def _check_settings(config: object, settings: dict[str, tuple[type, float, float]]) -> dict[str, t.Any]:
    if not isinstance(config, dict):
        raise ConfigError("the file must hold one JSON object")
    problems = [f"unknown setting {name}" for name in sorted(set(config) - set(settings))]
    problems += [f"missing setting {name}" for name in sorted(set(settings) - set(config))]
    if problems:
        raise ConfigError(", ".join(problems))
    for name, (kind, low, high) in settings.items():
        _check_value(name, config[name], kind, low, high)
    return config


def check_config(found: object) -> dict[str, t.Any]:
    """Accept a configuration only if every setting is there, known, of the right type and in range."""
    config = _check_settings(found, SETTINGS)
    options = config["options"]
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ConfigError(f"unknown options {', '.join(unknown)}; known: {', '.join(OPTIONS)}")
    for name, value in options.items():
        _field, option_kind, low, high = OPTIONS[name]
        _check_value(f"options.{name}", value, option_kind, low, high)
    return config


def find_model(path: str) -> str:
    """The model file: the path itself, or the one GGUF file of a directory. Of a model in several files the first names the others."""
    place = Path(path)
    if not place.is_dir():
        return path
    found = sorted(str(one) for one in place.rglob("*.gguf"))
    first = [one for one in found if "-00001-of-" in one]
    if len(found) == 1 or len(first) == 1:
        return (first or found)[0]
    raise ConfigError(f"model_path: expected one model in GGUF format in {path}, found {len(found)} files")


def check_model(path: str) -> None:
    """Accept a model file only if it can be read and is in GGUF format."""
    try:
        with open(path, "rb") as stream:
            magic = stream.read(len(GGUF_MAGIC))
    except OSError as exc:
        raise ConfigError(f"model_path: {exc}") from exc
    if magic != GGUF_MAGIC:
        raise ConfigError(f"model_path: {path} is not a GGUF file")


def load_config(path: str) -> dict[str, t.Any]:
    """Read and check the configuration file."""
    try:
        return check_config(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        raise ConfigError(str(exc)) from exc


def load_listen(path: str) -> dict[str, t.Any]:
    """Read and check the file that says where to listen."""
    try:
        return _check_settings(json.loads(Path(path).read_text(encoding="utf-8")), LISTEN)
    except (OSError, ValueError) as exc:
        raise ConfigError(str(exc)) from exc


def read_keys(path: str) -> list[str]:
    """Read the accepted API keys, one on each line. No key at all would mean an open server."""
    try:
        keys = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except OSError as exc:
        raise ConfigError(f"API keys: {exc}") from exc
    keys = [key for key in keys if key]
    if not keys:
        raise ConfigError(f"API keys: {path} holds none")
    return keys


def default_path(name: str) -> str:
    """Where systemd puts a credential of the unit."""
    return os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", "."), name)


def check_port(address: str, port: int) -> None:
    """Say in words what the engine would report as a failed start."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as exc:
            raise UnavailableError(f"cannot listen on {address} port {port}: {exc.strerror}") from exc


def notify(message: str) -> None:
    """Tell systemd something about this service."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if not target:
        return
    if target.startswith("@"):
        target = "\0" + target[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(message.encode(), target)


def load_engine() -> t.Any:
    """Import the engine; it is a large library with needs of its own."""
    try:
        import xllamacpp
    except ImportError as exc:
        raise UnavailableError(f"the engine cannot be loaded: {exc}") from exc
    return xllamacpp


def make_params(engine: t.Any, config: dict[str, t.Any], keys: list[str]) -> t.Any:
    """Fill the engine's parameters."""
    params = engine.CommonParams()
    params.model.path = config["model_path"]
    params.model_alias = {config["model_name"]}
    # One address until the release of September 2026, several since.
    if hasattr(params, "hostnames"):
        params.hostnames = [config["listen_address"]]
    else:
        params.hostname = config["listen_address"]
    params.port = config["port"]
    params.n_parallel = config["parallel_requests"]
    params.n_ctx = config["context_tokens"]
    threads = config["threads"] or len(os.sched_getaffinity(0))
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.api_keys = keys
    params.endpoint_metrics = True
    params.endpoint_slots = False
    params.ui = False
    params.cache_ram_mib = 0
    params.verbosity = 2
    for name, value in config["options"].items():
        setattr(params, OPTIONS[name][0], value)
    return params


def requests_in_flight(metrics: str) -> int:
    """Add up the requests that are worked on and those that wait for a slot."""
    total = 0
    for line in metrics.splitlines():
        name, _blank, value = line.partition(" ")
        if name in ("llamacpp:requests_processing", "llamacpp:requests_deferred"):
            total += int(float(value))
    return total


def listening_inodes(table: str, port: int) -> set[str]:
    """Find the listening sockets of a port in the text of /proc/net/tcp."""
    inodes = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
            inodes.add(fields[9])
    return inodes


def stop_listening(address: str, port: int) -> bool:
    """Close the listening socket under the server while it goes on with the requests it has.

    The server has no call for this, and it cuts every stream when its own listener fails. So the listener's descriptor is
    replaced by a socket that nobody can reach; one last connection wakes the accept call that still holds the old one.
    """
    inodes: set[str] = set()
    for name in ("tcp", "tcp6"):
        table = Path(f"/proc/self/net/{name}")
        if table.exists():
            inodes |= listening_inodes(table.read_text(encoding="ascii"), port)
    closed = False
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if link.startswith("socket:[") and link[8:-1] in inodes:
            blind = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            blind.bind("")
            blind.listen(1)
            os.dup2(blind.detach(), int(descriptor))
            closed = True
    if closed:
        with contextlib.suppress(OSError):
            socket.create_connection((address, port), timeout=1).close()
    return closed


def drain(config: dict[str, t.Any], metrics: t.Callable[[], str], hurry: threading.Event) -> bool:
    """Take no new connections and wait for the requests in flight, at most the configured time."""
    if not stop_listening(config["listen_address"], config["port"]):
        print("drain: the listening socket was not found; new connections are still accepted", flush=True)
    deadline = time.monotonic() + config["drain_seconds"]
    idle_polls = 0
    while idle_polls < 2:
        in_flight = requests_in_flight(metrics())
        idle_polls = 0 if in_flight else idle_polls + 1
        if in_flight and time.monotonic() >= deadline:
            print(f"drain: {in_flight} requests did not end within {config['drain_seconds']} s", flush=True)
            return False
        if hurry.wait(POLL_SECONDS):
            return False
    time.sleep(FLUSH_SECONDS)
    return True


def wait_ready(address: str, port: int, attempts: int = 600) -> None:
    """Return when /health answers 200."""
    host = f"[{address}]" if ":" in address else address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _attempt in range(attempts):
        try:
            with opener.open(f"http://{host}:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(POLL_SECONDS)
    raise UnavailableError("the model is loaded but /health does not answer 200")


def watchdog_interval() -> float:
    """Seconds between signs of life; systemd asks for one at least every WATCHDOG_USEC."""
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6 / WATCHDOG_SHARE


def serve(config: dict[str, t.Any], keys: list[str]) -> int:
    """Run the server until SIGTERM or SIGINT."""
    engine = load_engine()
    address, port = config["listen_address"], config["port"]
    check_port(address, port)
    # Until the model is loaded a signal simply ends the process: there is nothing to drain.
    try:
        server = engine.Server(make_params(engine, config, keys))
    except RuntimeError as exc:
        raise UnavailableError(f"the engine did not start: {exc}") from exc
    stopping, hurry = threading.Event(), threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        (hurry if stopping.is_set() else stopping).set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    wait_ready(address, port)
    notify(f"READY=1\nSTATUS=serving {config['model_name']} on {address} port {port}")
    interval = watchdog_interval()
    while not stopping.wait(interval or None):
        # The answer comes from the engine's own loop: a loop that hangs gives no sign of life.
        server.handle_metrics()
        notify("WATCHDOG=1")
    notify("STOPPING=1\nSTATUS=draining")
    drained = drain(config, server.handle_metrics, hurry)
    print("drain: done" if drained else "drain: given up", flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    # The engine's own end would wait for streams without a limit.
    os._exit(0)


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Read the command line and go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=default_path("config"), help="configuration file (JSON)")
    parser.add_argument(
        "--listen", default="", help="file that says where to listen (JSON); without it, the unit's credential"
    )
    parser.add_argument("--keys", default="", help="file with the accepted API keys; without it, the unit's credential")
    parser.add_argument(
        "--check", action="store_true", help="check the configuration, the model and the engine, then end"
    )
    parser.add_argument("--check-settings", action="store_true", help="check the configuration, then end")
    parser.add_argument("--check-host", action="store_true", help="check the files for --listen and --keys, then end")
    options = parser.parse_args(arguments)
    try:
        if options.check_host:
            load_listen(options.listen or default_path("listen"))
            read_keys(options.keys or default_path("api_keys"))
            return 0
        config = load_config(options.config)
        if options.check_settings:
            return 0
        config["model_path"] = find_model(config["model_path"])
        check_model(config["model_path"])
        if options.check:
            # Another version of the engine may lack what is set here.
            try:
                make_params(load_engine(), {**config, "listen_address": "127.0.0.1", "port": 1}, [])
            except AttributeError as exc:
                raise ConfigError(f"the engine of this version cannot be set so: {exc}") from exc
            return 0
        config.update(load_listen(options.listen or default_path("listen")))
        return serve(config, read_keys(options.keys or default_path("api_keys")))
    except ConfigError as exc:
        print(f"configuration: {exc}", file=sys.stderr, flush=True)
        return EXIT_CONFIG
    except UnavailableError as exc:
        print(str(exc), file=sys.stderr, flush=True)
        return EXIT_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
