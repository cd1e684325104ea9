# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Virtual hosts for the tests of host preparation, driven as an operator drives them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("GPUFLEET_ROOT") or Path(__file__).resolve().parents[2])
# Another lab beside it, for somebody who works on a test: GPUFLEET_HOSTS_LAB=NAME,SUBNET,RAIL_SUBNET.
LAB = os.environ.get("GPUFLEET_HOSTS_LAB") or "gfhosts,10.78.4.0/24,172.30.78.0/24"
ANSI = re.compile(r"\x1b\[[0-9;]*m")
RECAP = re.compile(r"^(\S+)\s*: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
# Debian's open kernel module 535.261.03 builds for kernels of Debian 12 up to this one (seen: 6.1.0-56 fails, -50 works).
NEWEST_KERNEL_FOR_535 = 50
DRIVER_PACKAGES = [
    "nvidia-open-kernel-dkms",
    "nvidia-smi",
    "nvidia-persistenced",
    "nvidia-modprobe",
    "libcuda1",
    "lynis",
]


def tool(name: str) -> str:
    """A program of the environment that the tests run in."""
    folder = os.environ.get("GPUFLEET_BIN") or os.path.dirname(shutil.which("ansible-playbook") or "")
    return f"{folder}/{name}"


def run(argv: list[str], seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """A command in the checkout, without colours, and with an input of its own: ssh makes the one it is given non-blocking."""
    env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_INJECT_FACT_VARS": "false"}
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        env=env,
        check=False,
    )


@dataclass
class Result:
    """What a play said and did."""

    rc: int
    text: str
    changed: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def ok(self) -> Result:
        """The play must have succeeded."""
        assert self.rc == 0, self.text[-6000:]
        return self

    def refused(self, *words: str) -> Result:
        """The play must have failed, with all of these words."""
        flat = " ".join(self.text.split())
        assert self.rc != 0, f"it succeeded: {self.text[-3000:]}"
        missing = [word for word in words if word not in flat]
        assert not missing, f"not said: {missing}\n{self.text[-4000:]}"
        return self

    def unchanged(self) -> Result:
        """The play must have succeeded and changed nothing anywhere."""
        self.ok()
        assert self.changed, f"no recap: {self.text[-3000:]}"
        assert not any(self.changed.values()), f"{self.changed}\n{self.text[-6000:]}"
        return self


@dataclass
class Hosts:
    """A lab of virtual hosts."""

    name: str
    subnet: str
    rail_subnet: str
    count: int = 2
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """Where the lab keeps its state."""
        return Path("/var/lib/gpufleet-lab") / self.name

    @property
    def names(self) -> list[str]:
        """The hosts."""
        return [f"vm{number}" for number in range(1, self.count + 1)]

    def number(self, host: str) -> int:
        """The host's place in both subnets."""
        return 50 + self.names.index(host)

    def address(self, host: str) -> str:
        """The host's address."""
        return f"{self.subnet.rpartition('.')[0]}.{self.number(host)}"

    def rail(self, host: str) -> str:
        """The host's address on the rail."""
        return f"{self.rail_subnet.rpartition('.')[0]}.{self.number(host)}"

    def serial(self, host: str, drive: str) -> str:
        """Serial number of a drive: nvme0 to nvme3, data."""
        return f"{self.name[:6]}-{host}-{drive}"

    # -- the lab itself

    def variables(self) -> list[str]:
        """Extra variables of every play."""
        own = {
            "lab_name": self.name,
            "lab_subnet": self.subnet,
            "lab_vm_rail_subnet": self.rail_subnet,
            "lab_gateway_count": 0,
            "lab_gpu_count": 0,
            "lab_monitor_count": 0,
            "lab_vm_count": self.count,
            **self.extra,
        }
        return ["-e", json.dumps(own)]

    def up(self) -> Result:
        """Make the hosts, or heal them."""
        return self.playbook("playbooks/lab_up.yml", seconds=1800)

    def down(self) -> Result:
        """Remove them."""
        return self.playbook("playbooks/lab_down.yml").ok()

    # -- plays

    def playbook(
        self, path: str, *words: str, variables: dict[str, Any] | None = None, seconds: float = 1500
    ) -> Result:
        """Run a playbook of the collection with the lab's inventory."""
        argv = [tool("ansible-playbook"), "-i", "inventories/lab", path, *self.variables()]
        argv += ["-e", json.dumps(variables)] if variables else []
        return self._finish(run([*argv, *words], seconds))

    def role(
        self,
        *roles: str,
        hosts: str = "vm_hosts",
        variables: dict[str, Any] | None = None,
        words: tuple[str, ...] = (),
        tasks_from: str = "main.yml",
        seconds: float = 1500,
    ) -> Result:
        """Run roles, one after the other, on hosts of the lab: C(words) are options such as C(--check)."""
        tasks = [
            {
                "name": f"Run {name}",
                "ansible.builtin.include_role": {"name": f"gpufleet.deepseek.{name}", "tasks_from": tasks_from},
            }
            for name in roles
        ]
        play = [{"name": "Run roles", "hosts": hosts, "gather_facts": False, "tasks": tasks}]
        # Not among the lab's files: a killed test must not keep it from being taken down.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "play.yml")
            path.write_text(json.dumps(play), encoding="utf-8")
            return self.playbook(str(path), *words, variables=variables, seconds=seconds)

    def module(
        self, host: str, name: str, arguments: dict[str, Any] | None = None, check: bool = False
    ) -> dict[str, Any]:
        """Run one module of the collection on one host; what it returned."""
        argv = [tool("ansible"), "-i", "inventories/lab", host, "-m", f"gpufleet.deepseek.{name}", *self.variables()]
        argv += ["-a", json.dumps(arguments)] if arguments else []
        argv += ["--check"] if check else []
        done = run([*argv, "-o"])
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{host} |"))
        found: dict[str, Any] = json.loads(line[line.index("{") :])
        return found

    @staticmethod
    def _finish(done: subprocess.CompletedProcess[str]) -> Result:
        text = ANSI.sub("", done.stdout + done.stderr)
        rows = RECAP.findall(text[text.rfind("PLAY RECAP") :])
        changed = {host: int(changed) for host, _ok, changed, _unreachable, _failed in rows}
        failed = {host: int(failed) + int(unreachable) for host, _ok, _changed, unreachable, failed in rows}
        return Result(done.returncode, text, changed, failed)

    # -- one host

    def try_ssh(self, host: str, command: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """A shell command on a host, whatever comes of it."""
        return run(
            [
                "ssh",
                "-F",
                str(self.state / "ssh/config"),
                "-o",
                "BatchMode=yes",
                "-o",
                "ConnectTimeout=20",
                host,
                command,
            ],
            seconds,
        )

    def ssh(self, host: str, command: str, seconds: float = 300) -> str:
        """A shell command on a host that must succeed; what it printed."""
        done = self.try_ssh(host, command, seconds)
        assert done.returncode == 0, f"{host}: {command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()

    def boot_id(self, host: str) -> str:
        """Changes with every boot."""
        return self.ssh(host, "cat /proc/sys/kernel/random/boot_id")

    def wait_for_boot(self, host: str, old: str, seconds: float = 600) -> None:
        """Until the host runs another boot than that, and its systemd is done."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            done = self.try_ssh(host, "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait", 120)
            lines = done.stdout.split()
            if len(lines) > 1 and lines[0] != old:
                return
            time.sleep(1)
        raise AssertionError(f"{host} does not come back")

    def cut_power(self, *hosts: str) -> None:
        """Reset processors: what a kernel had not written is lost. Waits until all are back."""
        before = {host: self.boot_id(host) for host in hosts}
        for host in hosts:
            arguments = {"lab": self.name, "state_dir": str(self.state), "cache_dir": "/var/cache/gpufleet-lab"}
            self._local("lab_vms", {**arguments, "state": "reset", "only": [host]})
        for host in hosts:
            self.wait_for_boot(host, before[host])

    def reboot(self, *hosts: str) -> None:
        """Reboot in order, all at the same time. Waits until all are back."""
        before = {host: self.boot_id(host) for host in hosts}
        for host in hosts:
            self.try_ssh(host, "systemctl reboot")
        for host in hosts:
            self.wait_for_boot(host, before[host])

    @staticmethod
    def _local(module: str, arguments: dict[str, Any]) -> None:
        done = run([tool("ansible"), "localhost", "-m", f"gpufleet.deepseek.{module}", "-a", json.dumps(arguments)])
        assert done.returncode == 0, done.stdout + done.stderr


def apt_sources() -> list[str]:
    """The machine's package sources, and of the release itself the components that carry the driver.

    Not those of its security archive: that has a newer user space at times than the open module, and apt can install neither.
    """
    arguments = {
        "lab": "gfsources",
        "state_dir": "/var/lib/gpufleet-lab/gfsources",
        "cache_dir": "/var/cache/gpufleet-lab",
        "bridge": "lab-gfsources",
        "subnet": "10.79.250.0/24",
    }
    done = run(
        [tool("ansible"), "localhost", "-o", "-m", "gpufleet.deepseek.lab_machine_info", "-a", json.dumps(arguments)]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])
    return [re.sub(r"( [a-z]+ main)$", r"\1 contrib non-free non-free-firmware", line) for line in found["apt_sources"]]


def kernels() -> list[int]:
    """Numbers of the 6.1 kernels that the archive has with their headers and that the driver builds for, the oldest first."""
    done = run(["apt-cache", "search", "--names-only", r"^linux-(image|headers)-6\.1\.0-[0-9]+-amd64$"])
    numbers = {
        kind: {int(number) for number in re.findall(rf"^linux-{kind}-6\.1\.0-(\d+)-amd64 ", done.stdout, re.MULTILINE)}
        for kind in ("image", "headers")
    }
    return sorted(number for number in numbers["image"] & numbers["headers"] if number <= NEWEST_KERNEL_FOR_535)


@contextmanager
def standing(extra: dict[str, Any], count: int = 2) -> Iterator[Hosts]:
    """Hosts that are up, and new: about a minute from an image that is there. C(extra) are variables of the lab.

    With GPUFLEET_KEEP_HOSTS=1, for somebody who works on a test, what stands is used and left standing.
    """
    assert os.geteuid() == 0, "hosts need root"
    name, subnet, rail_subnet = LAB.split(",")
    made = Hosts(name, subnet, rail_subnet, count, extra)
    keep = os.environ.get("GPUFLEET_KEEP_HOSTS") == "1"
    # One run of tests at a time works on these hosts.
    Path("/run/gpufleet-lab").mkdir(exist_ok=True)
    with Path(f"/run/gpufleet-lab/tests-{made.name}.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not keep:
            made.down()
        try:
            made.up().ok()
            yield made
        finally:
            if not keep:
                made.down()
