# SPDX-License-Identifier: Apache-2.0
"""A fleet on lab hosts as the tests see it: run playbooks, talk to hosts, send traffic to the gateway."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(os.environ.get("GPUFLEET_ROOT") or Path(__file__).resolve().parents[2])


def tool(name: str) -> str:
    """Path of one of Ansible's programs: of the environment that runs the tests, or from PATH."""
    found = shutil.which(name, path=os.environ.get("GPUFLEET_BIN")) or shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name}: expected in GPUFLEET_BIN or PATH; ./dev/test faults sets them")
    return found


@dataclass(frozen=True)
class Run:
    """A finished ansible-playbook: exit status, output, and the recap by host."""

    rc: int
    output: str
    recap: dict[str, dict[str, int]]

    def changed(self) -> int:
        """Number of changed tasks on all hosts."""
        return sum(host["changed"] for host in self.recap.values())


def parse_recap(output: str) -> dict[str, dict[str, int]]:
    """Counters of each host in the last PLAY RECAP of an output."""
    recap: dict[str, dict[str, int]] = {}
    for line in output.rpartition("PLAY RECAP")[2].splitlines():
        match = re.match(r"(\S+)\s+: (ok=.*)", line)
        if match:
            recap[match[1]] = {key: int(n) for key, n in re.findall(r"(\w+)=(\d+)", match[2])}
    return recap


class Fleet:
    """The hosts of one lab inventory.

    :arg inventory: directory of the inventory.
    :arg variables: extra variables of every call, for example the lab's name.
    """

    def __init__(self, inventory: Path, **variables: t.Any) -> None:
        self.inventory = inventory
        self.variables = variables
        self.extra = ["-e", json.dumps(variables)] if variables else []
        listing = subprocess.run(
            [tool("ansible-inventory"), "-i", str(inventory), "--list", *self.extra],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.environment(),
        )
        # What an inventory plugin computed is marked as no template: {"__ansible_unsafe": value}.
        data = json.loads(listing.stdout, object_hook=lambda found: found.get("__ansible_unsafe", found))
        self.groups: dict[str, list[str]] = {
            name: sorted(group.get("hosts", [])) for name, group in data.items() if name != "_meta"
        }
        self.vars: dict[str, dict[str, t.Any]] = data["_meta"]["hostvars"]
        self.name: str = next(iter(self.vars.values()))["lab_name"]
        self.state = Path("/var/lib/gpufleet-lab") / self.name

    @staticmethod
    def environment() -> dict[str, str]:
        """Environment of every command: the checkout's configuration, plain output."""
        return {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
            "PYTHONUNBUFFERED": "1",
        }

    def command(self, playbook: str, *args: str) -> list[str]:
        """The argv that runs a playbook of the checkout on this fleet."""
        return [tool("ansible-playbook"), "-i", str(self.inventory), str(ROOT / playbook), *self.extra, *args]

    def play(self, playbook: str, *args: str, timeout: float = 900) -> Run:
        """Run a playbook to its end."""
        done = subprocess.run(
            self.command(playbook, *args),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=self.environment(),
            timeout=timeout,
        )
        return Run(done.returncode, done.stdout, parse_recap(done.stdout))

    def play_until(self, playbook: str, pattern: str, *args: str, timeout: float = 600) -> str:
        """Run a playbook and kill it, with all its workers, when its output shows the pattern.

        :returns: the output until then.
        :raises AssertionError: the playbook ended, or the time was over, before the pattern came.
        """
        process = subprocess.Popen(
            self.command(playbook, *args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=self.environment(),
            start_new_session=True,
        )
        timer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        seen: list[str] = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                seen.append(line)
                if re.search(pattern, line):
                    time.sleep(0.7)  # into the task, not just before it
                    os.killpg(process.pid, signal.SIGKILL)
                    return "".join(seen)
        finally:
            timer.cancel()
            process.wait()
        raise AssertionError(f"{playbook} ended before {pattern!r}:\n" + "".join(seen[-40:]))

    def ssh(self, host: str, command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a host as root."""
        return subprocess.run(
            [
                "ssh",
                "-F",
                str(self.state / "ssh" / "config"),
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=5",
                host,
                command,
            ],
            stdin=subprocess.DEVNULL,
            check=check,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def gateway_log(self, lines: int = 20) -> str:
        """The last lines of the first gateway's error log: why a request got no answer."""
        gateway = self.groups["gateways"][0]
        return self.ssh(gateway, f"date; tail -n {lines} /var/log/nginx/error.log", check=False).stdout

    @property
    def key(self) -> str:
        """The API key of this fleet."""
        return (self.state / "secrets" / "api_key").read_text(encoding="utf-8").strip()

    def ask_monitor(self, port: int, path: str, method: str = "GET") -> t.Any:
        """What Prometheus (9090) or Alertmanager (9093) of the first monitor answers to the lab's operator; None when that is nothing.

        :raises AssertionError: it refuses.
        :raises OSError: it does not answer.
        """
        password = (self.state / "secrets" / "prometheus_password").read_text(encoding="utf-8").strip()
        account = base64.b64encode(f"operator:{password}".encode()).decode()
        context = ssl.create_default_context(cafile=str(self.state / "pki" / "ca.crt"))
        monitor = self.vars[self.groups["monitors"][0]]["ansible_host"]
        connection = http.client.HTTPSConnection(monitor, port, timeout=20, context=context)
        try:
            connection.request(method, path, headers={"Authorization": f"Basic {account}"})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        assert response.status in (200, 204), f"{method} {path}: {response.status} {text}"
        return json.loads(text) if text else None

    def firing(self) -> set[str]:
        """Pages and tickets that fire, whoever is told."""
        alerts = self.ask_monitor(9090, "/api/v1/alerts")["data"]["alerts"]
        loud = [one["labels"] for one in alerts if one["state"] == "firing" and one["labels"].get("severity") != "info"]
        return {labels["alertname"] for labels in loud}

    def ask(self, stream: bool = False, max_tokens: int = 1, timeout: float = 60) -> tuple[int, str, str]:
        """Send one chat completion through the first gateway.

        :returns: status (0 when there was no answer), body, and the peer that answered.
        """
        gateway = self.vars[self.groups["gateways"][0]]["ansible_host"]
        context = ssl.create_default_context(cafile=str(self.state / "pki" / "ca.crt"))
        body = json.dumps(
            {
                "model": "smollm2-135m-instruct",
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": max_tokens,
                "stream": stream,
            }
        )
        connection = http.client.HTTPSConnection(gateway, 443, timeout=timeout, context=context)
        try:
            connection.request(
                "POST",
                "/v1/chat/completions",
                body,
                {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
            )
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace"), response.getheader("X-Gateway-Peer") or ""
        except (OSError, http.client.HTTPException) as exc:
            return 0, str(exc), ""
        finally:
            connection.close()


@dataclass
class Answer:
    """One request of a load: when it began (monotonic seconds), its status, who answered, and whether all of the answer came."""

    start: float
    status: int
    peer: str
    whole: bool


@dataclass
class Load:
    """A bounded stream of small requests from a few clients, each waiting for its answer and then for its pause."""

    fleet: Fleet
    clients: int = 4
    seconds: float = 20.0
    pause: float = 0.0
    stream: bool = False
    max_tokens: int = 1
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._end = time.monotonic() + self.seconds
        self._threads = [threading.Thread(target=self._client, daemon=True) for _unused in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        for thread in self._threads:
            thread.join(timeout=120)

    def _client(self) -> None:
        while time.monotonic() < self._end:
            start = time.monotonic()
            status, body, peer = self.fleet.ask(self.stream, self.max_tokens)
            whole = body.rstrip().endswith("data: [DONE]" if self.stream else "}")
            self.answers.append(Answer(start, status, peer, whole))
            time.sleep(self.pause)


def metric(page: str, name: str, *labels: str) -> list[float]:
    """Values of a metric of the quality probe whose labels hold all of these words."""
    lines = [line for line in page.splitlines() if line.startswith(f"gpufleet_quality_{name}")]
    return [float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in labels)]


def run_probe(fleet: Fleet) -> str:
    """One run of the quality probe, and its metrics."""
    host = fleet.groups["monitors"][0]
    return fleet.ssh(
        host,
        "systemctl start gpufleet-quality-probe.service && cat /var/lib/node_exporter/textfile/gpufleet_quality.prom",
        timeout=180,
    ).stdout


@contextmanager
def dropped(fleet: Fleet, *packets: str) -> Iterator[None]:
    """What one host of the lab sends to another and nft's expressions match is lost. What the controller sends is not: it mends the fault."""
    table = f"gpufleet_cut_{fleet.name}"
    rules = "".join(f"add rule bridge {table} forward {one} drop\n" for one in packets)
    text = (
        f"add table bridge {table}\nadd chain bridge {table} forward {{ type filter hook forward priority filter; }}\n"
    )
    try:
        subprocess.run(["nft", "-f", "-"], input=text + rules, text=True, check=True, timeout=20)
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "bridge", table], check=False, timeout=20)


def cut_off(fleet: Fleet, host: str) -> t.ContextManager[None]:
    """No other host reaches it, nor it them."""
    address = fleet.vars[host]["ansible_host"]
    return dropped(fleet, f"ip saddr {address}", f"ip daddr {address}")


def wait_for(what: str, condition: t.Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds.

    :raises AssertionError: it does not after so many seconds.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not after {seconds} s")
        time.sleep(0.5)
