# SPDX-License-Identifier: Apache-2.0
"""Start an inference engine as a child, tell systemd when it is ready and that it gets on, and drain it on SIGTERM.

Ready is an engine that is healthy and has generated a token. Alive is one whose tokens rise while it works on requests, or that is idle and healthy;
nothing else is a sign of life. A worker of a replica over several hosts answers nobody: it is ready when its process lives and reaches its leader.

Keys never stand in an argument list: the engine gets them in a private copy of its file or in its environment, and they are struck out of what it prints.

Exit codes: 0 after a drain, 69 when the port is taken, the engine did not get ready, died or got stuck, 78 when the configuration is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78
# What argparse and click end with when they do not know an option.
EXIT_USAGE = 2
POLL_SECONDS = 0.5
ASK_SECONDS = 5.0
# A first token may wait behind a full batch of prompts.
TOKEN_SECONDS = 120.0
LIFE_SECONDS = 10.0
WATCHDOG_SHARE = 3
STRUCK = b"***"
LONGEST_ANSWER = 8 << 20

# Settings of the file: type, smallest, largest. A bool is no int here.
SETTINGS: dict[str, tuple[type, float, float]] = {
    "engine": (str, 0, 0),
    "model_name": (str, 0, 0),
    "role": (str, 0, 0),
    "leader": (dict, 0, 0),
    "argv": (list, 0, 0),
    "environment": (dict, 0, 0),
    "engine_file": (str, 0, 0),
    "keys": (dict, 0, 0),
    "health_path": (str, 0, 0),
    "token_path": (str, 0, 0),
    "metrics_path": (str, 0, 0),
    "token_metrics": (list, 0, 0),
    "request_metrics": (list, 0, 0),
    "drain": (str, 0, 0),
    "start_seconds": (int, 1, 86400),
    "drain_seconds": (int, 0, 86400),
    "stop_seconds": (int, 1, 3600),
    "stuck_seconds": (int, 0, 86400),
    "retry_seconds": (int, 0, 3600),
    "retry_most_seconds": (int, 0, 86400),
}
# Where it listens is no part of a release: equal hosts have equal releases. The command has these words in their place.
LISTEN: dict[str, tuple[type, float, float]] = {
    "listen_address": (str, 0, 0),
    "port": (int, 1, 65535),
}
ADDRESS, PORT = "@ADDRESS@", "@PORT@"
ROLES = ("single", "leader", "worker")
# How the engine gets the keys: in its file, in an environment variable, or not at all.
KEY_WAYS = ("file", "environment", "none")
# On SIGTERM the engine itself ends its requests and takes no new ones; or it is left alone until it has none.
DRAINS = ("signal", "wait")


class ConfigError(Exception):
    """The configuration cannot be used."""


class UnavailableError(Exception):
    """Something outside of the configuration is in the way."""


# -- settings ---------------------------------------------------------------------------------------------------------


def _check_value(name: str, value: object, kind: type, low: float, high: float) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name}: expected {kind.__name__}, found {value!r}")
    if kind is int and not low <= t.cast("int", value) <= high:
        raise ConfigError(f"{name}: expected {low:g} to {high:g}, found {value}")


def _check_word(name: str, value: str, words: t.Sequence[str]) -> None:
    if value not in words:
        raise ConfigError(f"{name}: expected {', '.join(words)}; found {value!r}")


def _check_texts(name: str, values: t.Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, str) or "\0" in value:
            raise ConfigError(f"{name}: expected texts, found {value!r}")


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
    _check_word("role", config["role"], ROLES)
    _check_word("drain", config["drain"], DRAINS)
    _check_word("keys.how", str(config["keys"].get("how")), KEY_WAYS)
    for name in ("argv", "token_metrics", "request_metrics"):
        _check_texts(name, config[name])
    _check_texts("environment", config["environment"].values())
    if not config["argv"]:
        raise ConfigError("argv: must not be empty")
    leader = config["leader"]
    if leader and (not isinstance(leader.get("address"), str) or not isinstance(leader.get("port"), int)):
        raise ConfigError(f"leader: expected address and port, found {leader!r}")
    if config["keys"]["how"] != "none" and not config["keys"].get("name"):
        raise ConfigError("keys.name: must not be empty")
    return config


def load_config(path: str) -> dict[str, t.Any]:
    """Read and check the configuration file."""
    try:
        return check_config(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as exc:
        raise ConfigError(str(exc)) from exc


def load_listen(path: str) -> dict[str, t.Any]:
    """Read and check the file that says where to listen."""
    try:
        listen = _check_settings(json.loads(Path(path).read_text(encoding="utf-8")), LISTEN)
    except (OSError, ValueError) as exc:
        raise ConfigError(str(exc)) from exc
    if not listen["listen_address"]:
        raise ConfigError("listen_address: must not be empty")
    return listen


def placed(config: t.Mapping[str, t.Any], listen: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The configuration of this host: it says where to listen, and so does its command."""
    address, port = listen["listen_address"], str(listen["port"])
    # Whoever reaches an engine that knows no keys may use it.
    if config["keys"]["how"] == "none" and config["role"] != "worker" and not is_loopback(address):
        raise ConfigError(
            f"listen_address: {config['engine']} checks no keys; expected 127.0.0.1 or ::1, found {address}"
        )
    argv = [word.replace(ADDRESS, address).replace(PORT, port) for word in config["argv"]]
    return {**config, **listen, "argv": argv}


def is_loopback(address: str) -> bool:
    """Whether only this host reaches an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def read_key_lines(path: str) -> list[str]:
    """Read the accepted API keys, one on each line. No key at all would mean an open server."""
    try:
        keys = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except OSError as exc:
        raise ConfigError(f"API keys: {exc}") from exc
    keys = [key for key in keys if key]
    if not keys:
        raise ConfigError(f"API keys: {path} holds none")
    return keys


def read_keys(path: str, config: t.Mapping[str, t.Any]) -> list[str]:
    """The keys that the engine is given."""
    ways = config["keys"]
    if ways["how"] == "none" or config["role"] == "worker":
        return []
    keys = read_key_lines(path)
    if len(keys) > 1 and not ways.get("many"):
        raise ConfigError(f"API keys: {config['engine']} takes one, {path} holds {len(keys)}")
    return keys


def check_programs(config: t.Mapping[str, t.Any], engine_file: str) -> None:
    """Say in words what the start would fail with."""
    program = config["argv"][0]
    if not shutil.which(program):
        raise UnavailableError(f"the engine cannot be started: {program} is not there or cannot be executed")
    if engine_file and not os.access(engine_file, os.R_OK):
        raise ConfigError(f"engine_file: {engine_file} cannot be read")


def default_path(name: str) -> str:
    """Where systemd puts a credential of the unit."""
    return os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", "."), name)


# -- systemd ----------------------------------------------------------------------------------------------------------


def notify(message: str) -> None:
    """Tell systemd something about this service."""
    target = os.environ.get("NOTIFY_SOCKET", "")
    if not target:
        return
    if target.startswith("@"):
        target = "\0" + target[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel, contextlib.suppress(OSError):
        channel.sendto(message.encode(), target)


def watchdog_seconds() -> float:
    """How long systemd waits for a sign of life; 0 when it waits for none."""
    return int(os.environ.get("WATCHDOG_USEC", "0") or "0") / 1e6


def say(message: str) -> None:
    """A line of our own in the journal."""
    print(message, flush=True)


class Restarts:
    """Longer and longer pauses before an engine that ends badly is started again, with every version of systemd and in a container.

    The file lies in the unit's runtime directory, which lasts from a crash to the next start; a start that finds it knows that
    the one before did not end by itself.
    """

    def __init__(self, directory: str, first: float, most: float) -> None:
        """No directory, no memory."""
        self.path = Path(directory) / "restarts.json" if directory else None
        self.first, self.most = first, most
        self.failures = 0

    def begin(self) -> float:
        """Note the start; how many seconds to wait before it."""
        if self.path is None:
            return 0.0
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            self.failures = int(json.loads(self.path.read_text(encoding="utf-8"))["failures"]) + 1
        self._write()
        # The first restart comes at once.
        return min(self.first * 2.0 ** min(self.failures - 2, 30), self.most) if self.failures > 1 else 0.0

    def good(self) -> None:
        """It has served long enough: what was before does not count any more."""
        if self.failures:
            self.failures = 0
            self._write()

    def end(self) -> None:
        """It was told to stop."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _write(self) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.write_text(json.dumps({"failures": self.failures}), encoding="utf-8")


# -- asking the engine ------------------------------------------------------------------------------------------------


def own_address(address: str) -> str:
    """Where a server that listens on all addresses is asked."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(address).is_unspecified:
            return "::1" if ":" in address else "127.0.0.1"
    return address


class Asked(t.NamedTuple):
    """An answer of the engine; status 0 when there was none."""

    status: int
    body: bytes


class Engine:
    """The child's HTTP side."""

    def __init__(self, config: t.Mapping[str, t.Any], keys: t.Sequence[str]) -> None:
        """Nothing is asked yet."""
        self.config = config
        self.headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}

    def ask(self, path: str, body: object = None, seconds: float = ASK_SECONDS) -> Asked:
        """GET, or POST with a body. No proxy, no redirect, no exception."""
        address = own_address(self.config["listen_address"])
        connection = http.client.HTTPConnection(address, self.config["port"], timeout=seconds)
        try:
            if body is None:
                connection.request("GET", path, headers=self.headers)
            else:
                text = json.dumps(body).encode()
                connection.request("POST", path, text, {"Content-Type": "application/json", **self.headers})
            answer = connection.getresponse()
            return Asked(answer.status, answer.read(LONGEST_ANSWER))
        except (OSError, http.client.HTTPException, ValueError):
            return Asked(0, b"")
        finally:
            connection.close()

    def healthy(self) -> bool:
        """It says so itself."""
        return self.ask(self.config["health_path"]).status == 200

    def generates(self, seconds: float = TOKEN_SECONDS) -> str:
        """Let it generate one token; why that failed, or nothing."""
        path = self.config["token_path"]
        if not path.endswith("/completions"):
            status = self.ask(path, seconds=seconds).status
            return "" if status == 200 else f"{path} answers {status or 'nothing'}"
        message = {"role": "user", "content": "Hello"}
        body = {"model": self.config["model_name"], "max_tokens": 1, "temperature": 0, "messages": [message]}
        answer = self.ask(path, body, seconds)
        if answer.status != 200:
            return f"{path} answers {answer.status or 'nothing'}"
        try:
            tokens = json.loads(answer.body)["usage"]["completion_tokens"]
        except (ValueError, KeyError, TypeError):
            return f"{path} answers what is no completion"
        return "" if isinstance(tokens, int) and tokens > 0 else f"{path} generates no token"

    def counts(self) -> tuple[float | None, float | None]:
        """Tokens so far and requests at this moment; None for what its metrics do not say."""
        if not self.config["metrics_path"]:
            return None, None
        answer = self.ask(self.config["metrics_path"])
        if answer.status != 200:
            return None, None
        text = answer.body.decode("utf-8", "replace")
        return total(text, self.config["token_metrics"]), total(text, self.config["request_metrics"])


SAMPLE = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{.*\})?\s+(\S+)")


def total(text: str, names: t.Sequence[str]) -> float | None:
    """Add up the samples of some metrics, whatever their labels; None when there are none of them."""
    found: float | None = None
    for line in text.splitlines():
        match = SAMPLE.match(line)
        if match and match.group(1) in names:
            with contextlib.suppress(ValueError):
                found = (found or 0.0) + float(match.group(2))
    return found


class Life:
    """Whether the engine gets on."""

    def __init__(self, engine: Engine) -> None:
        """Nothing was seen yet."""
        self.engine = engine
        self.tokens: float | None = None
        self.busy = False

    def sign(self) -> str:
        """Look once: why there is no sign of life, or nothing when there is one."""
        tokens, requests = self.engine.counts()
        if tokens is None or requests is None:
            # An engine without these metrics must show what it can do.
            return self.engine.generates(ASK_SECONDS * 2)
        before, was_busy = self.tokens, self.busy
        self.tokens, self.busy = tokens, requests > 0
        if not self.busy:
            return (
                ""
                if self.engine.healthy()
                else f"it has no requests and {self.engine.config['health_path']} does not answer 200"
            )
        if before is None or tokens != before or not was_busy:
            return ""
        # Some engines count a request's tokens when it ends, and one may last: a token of our own shows whether the engine still works.
        why = self.engine.generates(ASK_SECONDS * 2)
        if why:
            # What the question itself was counted as is no progress.
            self.tokens = self.engine.counts()[0]
        return f"{requests:g} requests and no token more than {tokens:g}, and {why}" if why else ""


# -- the child --------------------------------------------------------------------------------------------------------


def private_file(config: t.Mapping[str, t.Any], keys: t.Sequence[str]) -> tuple[list[str], str]:
    """The engine's file with the keys in it, readable by nobody else, and the command that names it."""
    ways = config["keys"]
    value = json.dumps(list(keys)) if ways.get("many") else json.dumps(keys[0])
    text = Path(config["engine_file"]).read_text(encoding="utf-8")
    directory = tempfile.mkdtemp(prefix="engine-", dir=os.environ.get("RUNTIME_DIRECTORY") or None)
    path = os.path.join(directory, os.path.basename(config["engine_file"]))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as stream:
        stream.write(f"{text.rstrip()}\n{ways['name']}: {value}\n")
    return [path if word == config["engine_file"] else word for word in config["argv"]], path


def pump(source: t.IO[bytes], target: t.IO[bytes], secrets: t.Sequence[bytes]) -> None:
    """Pass lines on, without the keys: engines print their settings when they start."""
    for line in iter(lambda: source.readline(65536), b""):
        for secret in secrets:
            line = line.replace(secret, STRUCK)
        with contextlib.suppress(OSError, ValueError):
            target.write(line)
            target.flush()


class Child:
    """The engine's processes: a group of their own."""

    def __init__(self, config: t.Mapping[str, t.Any], keys: t.Sequence[str]) -> None:
        """Start it."""
        argv, self.key_file = list(config["argv"]), ""
        environment = {**os.environ, **caches(), **config["environment"]}
        # The engine must not speak to systemd in our name.
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"):
            environment.pop(name, None)
        if keys and config["keys"]["how"] == "file":
            argv, self.key_file = private_file(config, keys)
        elif keys and config["keys"]["how"] == "environment":
            environment[config["keys"]["name"]] = keys[0]
        try:
            self.process = subprocess.Popen(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as exc:
            self.forget_keys()
            raise UnavailableError(f"the engine cannot be started: {exc}") from exc
        secrets = [key.encode() for key in keys]
        pipes = ((self.process.stdout, sys.stdout.buffer), (self.process.stderr, sys.stderr.buffer))
        self.pumps = [threading.Thread(target=pump, args=(*pair, secrets), daemon=True) for pair in pipes]
        for thread in self.pumps:
            thread.start()

    def forget_keys(self) -> None:
        """The engine has read them."""
        if self.key_file:
            shutil.rmtree(os.path.dirname(self.key_file), ignore_errors=True)
            self.key_file = ""

    def ended(self) -> str:
        """How it ended, or nothing while it lives."""
        code = self.process.poll()
        if code is None:
            return ""
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def tell(self, number: int) -> None:
        """A signal for its first process."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def tell_all(self, number: int) -> None:
        """A signal for all of its processes."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within a time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, seconds))
        return self.process.poll() is not None

    def stop(self, seconds: float) -> None:
        """End it: asked, then not asked. Children of its that outlived it end too."""
        self.tell_all(signal.SIGTERM)
        if not self.wait(seconds):
            say(f"stop: the engine did not end within {seconds:g} s")
        self.tell_all(signal.SIGKILL)
        self.wait(seconds)
        self.forget_keys()
        for thread in self.pumps:
            thread.join(1.0)


def caches() -> dict[str, str]:
    """Where engines keep what they compiled, from one start to the next."""
    base = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if not base:
        return {}
    names = {
        "HOME": "",
        "XDG_CACHE_HOME": "cache",
        "HF_HOME": "huggingface",
        "TRITON_CACHE_DIR": "triton",
        "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
        "VLLM_CACHE_ROOT": "vllm",
        "SGLANG_CACHE_DIR": "sglang",
        "FLASHINFER_WORKSPACE_BASE": "flashinfer",
        "CUDA_CACHE_PATH": "cuda",
    }
    return {name: os.path.join(base, part) if part else base for name, part in names.items()}


def check_port(address: str, port: int) -> None:
    """Say in words what the engine would report as a failed start."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as exc:
            raise UnavailableError(f"cannot listen on {address} port {port}: {exc.strerror}") from exc


# -- the service ------------------------------------------------------------------------------------------------------


class Service:
    """One engine from its start to its end."""

    def __init__(self, config: dict[str, t.Any], keys: list[str]) -> None:
        """Nothing is started yet."""
        self.config, self.keys = config, keys
        self.engine = Engine(config, keys)
        self.stopping, self.hurry = threading.Event(), threading.Event()
        self.restarts = Restarts(
            os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0], config["retry_seconds"], config["retry_most_seconds"]
        )

    @property
    def where(self) -> str:
        """What is served where, in words."""
        if self.config["role"] == "worker":
            return f"worker of {self.config['leader'].get('address', 'its leader')}"
        return f"{self.config['model_name']} on {self.config['listen_address']} port {self.config['port']}"

    def on_signal(self, _number: int, _frame: object) -> None:
        """The first one asks for a drain, the second one ends it."""
        (self.hurry if self.stopping.is_set() else self.stopping).set()

    def run(self) -> int:
        """Start, serve, end."""
        signal.signal(signal.SIGTERM, self.on_signal)
        signal.signal(signal.SIGINT, self.on_signal)
        if self.config["role"] != "worker":
            check_port(self.config["listen_address"], self.config["port"])
        if not self.pause(self.restarts.begin()):
            self.restarts.end()
            return 0
        child = Child(self.config, self.keys)
        try:
            code = self.until_ready(child)
            if code is None:
                code = self.until_stopped(child)
            if code is None:
                self.drain(child)
                code = 0
        finally:
            child.stop(self.config["stop_seconds"])
        # A wrong configuration and an asked-for end are no reason to wait at the next start.
        if code in (0, EXIT_CONFIG):
            self.restarts.end()
        return code

    def pause(self, seconds: float) -> bool:
        """Wait before a start that follows bad ends; False when told to stop meanwhile."""
        if seconds:
            say(f"start: the engine ended badly {self.restarts.failures} times; waiting {seconds:g} s")
            extra = int((seconds + self.config["start_seconds"] + 15) * 1e6)
            notify(f"EXTEND_TIMEOUT_USEC={extra}\nSTATUS=waiting {seconds:g} s before the next start")
        return not self.stopping.wait(seconds)

    def until_ready(self, child: Child) -> int | None:
        """Wait for the first token: None when it came, the exit code when there is none to wait for."""
        deadline = time.monotonic() + self.config["start_seconds"]
        reason = ""
        notify(f"STATUS=starting {self.where}")
        while not self.stopping.wait(POLL_SECONDS):
            ended = child.ended()
            if ended:
                say(f"start: the engine ended with {ended} before it was ready")
                return EXIT_CONFIG if child.process.returncode == EXIT_USAGE else EXIT_UNAVAILABLE
            why = self.not_ready(deadline)
            if not why:
                child.forget_keys()
                notify(f"READY=1\nSTATUS=serving {self.where}")
                say(f"start: ready, {self.where}")
                return None
            if why != reason:
                reason = why
                notify(f"STATUS=starting {self.where}: {why}")
            if time.monotonic() >= deadline:
                say(f"start: not ready within {self.config['start_seconds']} s: {why}")
                return EXIT_UNAVAILABLE
        return 0

    def not_ready(self, deadline: float) -> str:
        """Why it is not ready yet, or nothing."""
        leader = self.config["leader"]
        if self.config["role"] == "worker":
            if not leader:
                return ""
            try:
                socket.create_connection((leader["address"], leader["port"]), ASK_SECONDS).close()
            except OSError as exc:
                return f"the leader at {leader['address']} port {leader['port']}: {exc}"
            return ""
        if not self.engine.healthy():
            return f"{self.config['health_path']} does not answer 200"
        return self.engine.generates(max(1.0, min(TOKEN_SECONDS, deadline - time.monotonic())))

    def until_stopped(self, child: Child) -> int | None:
        """Pass on signs of life: None when told to stop, the exit code when the engine ended or got stuck."""
        watched = watchdog_seconds()
        limit = 0.0 if watched else float(self.config["stuck_seconds"])
        interval = min((watched or limit or 3600.0) / WATCHDOG_SHARE, LIFE_SECONDS)
        started = alive = looked = time.monotonic()
        life, reason = Life(self.engine), ""
        while not self.stopping.wait(min(POLL_SECONDS, interval)):
            ended = child.ended()
            if ended:
                say(f"serve: the engine ended with {ended}")
                notify(f"STATUS=the engine ended with {ended}")
                return EXIT_UNAVAILABLE
            now = time.monotonic()
            if now - looked < interval:
                continue
            why = "" if self.config["role"] == "worker" else life.sign()
            looked = time.monotonic()
            if why:
                if why != reason:
                    say(f"serve: no sign of life: {why}")
                    notify(f"STATUS=no sign of life: {why}")
                if limit and looked - alive > limit:
                    say(f"serve: stuck for {limit:g} s; ending it")
                    child.tell_all(signal.SIGKILL)
                    return EXIT_UNAVAILABLE
            else:
                if reason:
                    say("serve: alive again")
                    notify(f"STATUS=serving {self.where}")
                alive = looked
                notify("WATCHDOG=1")
                if alive - started > max(self.config["retry_most_seconds"], 60):
                    self.restarts.good()
            reason = why
        return None

    def drain(self, child: Child) -> None:
        """Let requests in flight end, at most the configured time."""
        notify("STOPPING=1\nSTATUS=draining")
        if self.config["role"] == "worker":
            return
        deadline = time.monotonic() + self.config["drain_seconds"]
        by_signal = self.config["drain"] == "signal"
        if by_signal:
            child.tell(signal.SIGTERM)
        idle = 0
        while idle < 2 and time.monotonic() < deadline and not self.hurry.wait(POLL_SECONDS):
            notify("WATCHDOG=1")
            if child.ended():
                break
            if by_signal:
                continue
            requests = self.engine.counts()[1]
            # An engine that does not say what it works on gets the whole time.
            idle = idle + 1 if requests == 0 else 0
        done = idle >= 2 or bool(child.ended())
        say("drain: done" if done else f"drain: given up after {self.config['drain_seconds']} s or a second signal")


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Read the command line and go."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default=default_path("config"), help="configuration file (JSON)")
    parser.add_argument(
        "--listen", default="", help="file that says where to listen (JSON); without it, the unit's credential"
    )
    parser.add_argument("--keys", default="", help="file with the accepted API keys; without it, the unit's credential")
    parser.add_argument(
        "--check", action="store_true", help="check the configuration, the engine's file and its program, then end"
    )
    parser.add_argument("--check-settings", action="store_true", help="check the configuration, then end")
    parser.add_argument("--check-host", action="store_true", help="check the files for --listen and --keys, then end")
    options = parser.parse_args(arguments)
    listen_file, key_file = options.listen or default_path("listen"), options.keys or default_path("api_keys")
    try:
        if options.check_host:
            load_listen(listen_file)
            read_key_lines(key_file)
            return 0
        config = load_config(options.config)
        if options.check_settings:
            return 0
        if options.check:
            # A release is checked before it has its name: its files lie beside each other, not yet where they say.
            check_programs(config, str(Path(options.config).with_name(Path(config["engine_file"]).name)))
            return 0
        check_programs(config, config["engine_file"])
        config = placed(config, load_listen(listen_file))
        return Service(config, read_keys(key_file, config)).run()
    except ConfigError as exc:
        print(f"configuration: {exc}", file=sys.stderr, flush=True)
        return EXIT_CONFIG
    except UnavailableError as exc:
        print(str(exc), file=sys.stderr, flush=True)
        return EXIT_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
