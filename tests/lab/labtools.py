# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""One lab, driven as a user drives it, and everything on this machine that belongs to it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(os.environ.get("GPUFLEET_ROOT") or Path(__file__).resolve().parents[2])
RECAP = re.compile(r"^localhost\s*: ok=\d+\s+changed=(\d+)\s+unreachable=\d+\s+failed=(\d+)", re.MULTILINE)


def command(*argv: str, seconds: float = 300, cwd: str = str(ROOT), **env: str) -> subprocess.CompletedProcess[str]:
    # An input of its own: ssh makes the one that it is given non-blocking, and Ansible refuses such a one.
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **env},
        cwd=cwd,
        check=False,
    )


def cmdlines() -> dict[int, list[str]]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
    return found


def descendants(pid: int) -> list[tuple[int, list[str]]]:
    """A process's children, their children and so on, with their arguments."""
    parents = {}
    found = cmdlines()
    for child in found:
        try:
            parents[child] = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in family} - family
        if not more:
            return [(child, found[child]) for child in family - {pid}]
        family |= more


@dataclass
class Lab:
    """One lab, driven as a user drives it."""

    name: str
    subnet: str
    extra: list[str] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return Path("/var/lib/gpufleet-lab") / self.name

    def argv(self, playbook: str, *words: str) -> list[str]:
        tools = os.environ.get("GPUFLEET_BIN") or os.path.dirname(shutil.which("ansible-playbook") or "")
        given = ["-e", f"lab_name={self.name}", "-e", f"lab_subnet={self.subnet}", *self.extra, *words]
        return [f"{tools}/ansible-playbook", "-i", "inventories/lab", f"playbooks/{playbook}.yml", *given]

    def play(self, playbook: str, *words: str) -> tuple[int, str]:
        """Run it; the number of changes, and what it said. It must succeed."""
        code, text = self.try_play(playbook, *words)
        assert code == 0, text[-4000:]
        found = RECAP.findall(text)
        return int(found[-1][0]), text

    def try_play(self, playbook: str, *words: str) -> tuple[int, str]:
        done = command(*self.argv(playbook, *words), seconds=900, ANSIBLE_NOCOLOR="1")
        return done.returncode, done.stdout + done.stderr

    def up(self, *words: str) -> int:
        return self.play("lab_up", *words)[0]

    def down(self, *words: str) -> int:
        return self.play("lab_down", *words)[0]

    def ssh(self, host: str, *words: str) -> str:
        done = command("ssh", "-F", str(self.state / "ssh/config"), "-o", "BatchMode=yes", host, *words, seconds=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def answers(self, host: str) -> bool:
        ssh = ("ssh", "-F", str(self.state / "ssh/config"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=1")
        return command(*ssh, host, "true", seconds=30).returncode == 0

    def boot_id(self, host: str) -> str:
        """Changes with every boot of a host: the start of its PID 1."""
        return self.ssh(host, "stat -c %Z /proc/1; cat /proc/1/stat | cut -d' ' -f22")

    def pids(self, host: str) -> list[int]:
        marker = f"--directory={self.state}/hosts/{host}/root"
        return [pid for pid, argv in cmdlines().items() if marker in argv]

    def traces(self) -> list[str]:
        """Everything on this machine that belongs to the lab."""
        found = [f"file {self.state}"] if self.state.exists() else []
        found += [f"link {path.name}" for path in Path("/sys/class/net").iterdir() if self.name in path.name]
        text = command("nft", "list", "ruleset").stdout
        found += [
            f"nft {line.strip()}"
            for line in text.splitlines()
            if f"lab_{self.name}" in line or f"lab-{self.name}" in line
        ]
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        found += [f"mount {line.split()[4]}" for line in mounts.splitlines() if f"{self.state}/" in line]
        for pid, argv in cmdlines().items():
            if any(f"{self.state}/" in word or f"gpufleet-lab:{self.name}:" in word for word in argv):
                found.append(f"process {pid} {' '.join(argv)[:80]}")
        for group in Path("/sys/fs/cgroup").glob(f"**/gpufleet-lab/{self.name}"):
            found.append(f"cgroup {group}")
        return found

    def healthy(self, hosts: list[str]) -> None:
        for host in hosts:
            assert self.ssh(host, "hostname") == host
            assert self.ssh(host, "systemctl is-system-running --wait") == "running"

    def wait_for_no_module(self, seconds: float = 60) -> None:
        """Until what a killed ansible-playbook left running of this lab's modules has ended."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if not any("AnsiballZ_lab_" in word for argv in cmdlines().values() for word in argv):
                return
            time.sleep(0.2)
