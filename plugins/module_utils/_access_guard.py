# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no stability promise.
"""Change who may reach a host without locking anyone out: every change is undone by a timer unless a new connection confirms it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

TABLE = ("inet", "gpufleet")
TIMER = "gpufleet-access-rollback"
# sshd prints an older word for some values.
_ALIASES = {"without-password": "prohibit-password"}


class AccessError(Exception):
    """Access cannot be changed as wanted, in words for the operator."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


@dataclass(frozen=True)
class Wish:
    """What is wanted, and where it lives."""

    state_dir: str
    helper: str
    boot_unit: str
    ssh_file: str
    firewall_file: str
    ssh_settings: t.Mapping[str, str] = field(default_factory=dict)
    ssh_config: str = "/etc/ssh/sshd_config"
    ssh_unit: str = "ssh.service"
    ssh_ports: tuple[int, ...] = (22,)
    firewall_rules: str = ""
    header: str = ""
    seconds: int = 60

    @property
    def ssh_text(self) -> str:
        """The drop-in of sshd; empty for none."""
        if not self.ssh_settings:
            return ""
        comment = "".join(f"# {line}\n" for line in self.header.splitlines())
        return comment + "".join(f"{key} {value}\n" for key, value in self.ssh_settings.items())

    def path(self, name: str) -> Path:
        """A file of the guard's own."""
        return Path(self.state_dir, name)


@dataclass
class Outcome:
    """What was found and done."""

    changed: bool = False
    pending: bool = False
    reasons: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)


def text_of(path: str | Path) -> str:
    """The text of a file; nothing where there is none."""
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return ""


def save(path: str | Path, text: str, mode: int) -> None:
    """Write a file, and its name, so that both are there after a power cut."""
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.gpufleet-new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(mode)
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def put(path: str, text: str, mode: int) -> None:
    """Write a file, or take it away when there is nothing to be in it."""
    if text:
        save(path, text, mode)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def words(value: str) -> list[str]:
    """The words of a value, to compare what was written with what sshd understood."""
    return sorted(_ALIASES.get(word, word) for word in value.lower().replace(",", " ").split())


def effective(text: str) -> dict[str, str]:
    """The output of 'sshd -T': all values of a key, joined."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, _blank, value = line.strip().partition(" ")
        found[key] = f"{found[key]} {value}" if key in found else value
    return found


def ignored(settings: t.Mapping[str, str], text: str) -> list[str]:
    """Settings that sshd does not follow, because another file says something else first."""
    found = effective(text)
    return [
        f"{key}: expected {value}, found {found[key.lower()]}"
        for key, value in settings.items()
        if key.lower() in found and words(found[key.lower()]) != words(value)
    ]


class Guard:
    """Access to one host."""

    def __init__(self, run: Run, wish: Wish, check: bool) -> None:
        """Take the wish; nothing is read yet."""
        self.run = run
        self.wish = wish
        self.check = check

    def _must(self, argv: list[str], what: str) -> str:
        code, out, err = self.run(argv)
        if code != 0:
            raise AccessError(f"{what}: {' '.join((err.strip() or out.strip()).split())}")
        return out

    def _sshd(self) -> str:
        code, out, err = self.run(["sshd", "-T", "-C", "user=root,host=localhost,addr=127.0.0.1"])
        if code != 0:
            raise AccessError(
                f"sshd cannot read its own configuration, nothing was changed: {err.strip() or out.strip()}"
            )
        return out

    def _live(self) -> str:
        code, out, _err = self.run(["nft", "-s", "list", "table", *TABLE])
        return out if code == 0 else ""

    @contextlib.contextmanager
    def _alone(self) -> t.Iterator[None]:
        self.wish.path("lock").parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.wish.path("lock").open("a", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _stop_timer(self) -> None:
        self.run(["systemctl", "stop", f"{TIMER}.timer"])
        self.run(["systemctl", "reset-failed", f"{TIMER}.timer", f"{TIMER}.service"])

    def differences(self) -> list[str]:
        """Why the host has to change."""
        wish, found = self.wish, []
        if text_of(wish.ssh_file) != wish.ssh_text:
            found.append(f"{wish.ssh_file} differs")
        if text_of(wish.firewall_file) != wish.firewall_rules:
            found.append(f"{wish.firewall_file} differs")
        elif wish.firewall_rules and (not self._live() or self._live() != text_of(wish.path("firewall.listing"))):
            found.append("the rules in the kernel are not those of the file")
        elif not wish.firewall_rules and shutil.which("nft") and self._live():
            found.append("the kernel has rules, none are wanted")
        if wish.path("pending").exists():
            found.append("an earlier change is not confirmed")
        return found

    def check_ports(self) -> None:
        """The firewall must leave open what sshd listens on."""
        if not self.wish.firewall_rules or not (self.wish.ssh_settings or shutil.which("sshd")):
            return
        if self.check and shutil.which("sshd") is None:
            return
        ports = [int(port) for port in effective(self._sshd()).get("port", "22").split()]
        closed = [port for port in ports if port not in self.wish.ssh_ports]
        if closed:
            raise AccessError(
                f"sshd listens on port {', '.join(map(str, closed))}, expected that the firewall opens it, found only "
                f"{', '.join(map(str, self.wish.ssh_ports))}; nothing was changed"
            )

    def _judge(self, text: str, argv: list[str], what: str) -> None:
        handle, candidate = tempfile.mkstemp(prefix="gpufleet-access-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            self._must([*argv, candidate], what)
        finally:
            os.unlink(candidate)

    def validate(self) -> None:
        """Let sshd and nft judge the new files before they are in place."""
        wish = self.wish
        if wish.ssh_settings and text_of(wish.ssh_file) != wish.ssh_text and shutil.which("sshd"):
            # The first value of a keyword wins, so the whole configuration behind ours is what sshd would read.
            whole = wish.ssh_text + text_of(wish.ssh_config)
            self._judge(whole, ["sshd", "-t", "-f"], "sshd refuses the new settings, nothing was changed")
        if wish.firewall_rules and shutil.which("nft"):
            self._judge(wish.firewall_rules, ["nft", "-c", "-f"], "nft refuses the new rules, nothing was changed")
        if wish.firewall_rules and not self.check and not shutil.which("nft"):
            raise AccessError("expected the program nft (package nftables), found none; nothing was changed")

    def _arm(self) -> None:
        wish = self.wish
        self._stop_timer()
        with self._alone():
            fresh = not wish.path("pending").exists()
            if fresh:
                previous = wish.path("previous")
                shutil.rmtree(previous, ignore_errors=True)
                for name, path in (("ssh", wish.ssh_file), ("firewall", wish.firewall_file)):
                    if text_of(path):
                        save(previous / name, text_of(path), os.stat(path).st_mode & 0o777)
                save(wish.path("pending"), f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n", 0o600)
        code, out, err = self.run(
            [
                "systemd-run",
                "--quiet",
                f"--unit={TIMER}",
                f"--on-active={wish.seconds}",
                "--timer-property=AccuracySec=1s",
                wish.helper,
                "rollback",
            ]
        )
        if code != 0:
            if fresh:
                wish.path("pending").unlink()
            said = " ".join((err.strip() or out.strip()).split())
            raise AccessError(f"the timer that would undo the change cannot be started, nothing was changed: {said}")

    def _switch(self) -> None:
        wish = self.wish
        put(wish.ssh_file, wish.ssh_text, 0o600)
        if self.run(["systemctl", "is-active", "--quiet", wish.ssh_unit])[0] == 0:
            self._must(["sshd", "-t"], "sshd refuses its configuration")
            self._must(["systemctl", "reload", wish.ssh_unit], "sshd does not reload")
        wrong = ignored(wish.ssh_settings, self._sshd()) if wish.ssh_settings else []
        if wrong:
            raise AccessError(
                f"another file of {Path(wish.ssh_file).parent} or {wish.ssh_config} wins: {'; '.join(wrong)}"
            )
        put(wish.firewall_file, wish.firewall_rules, 0o600)
        if wish.firewall_rules:
            self._must(["nft", "-f", wish.firewall_file], "the rules cannot be loaded")
            save(wish.path("firewall.listing"), self._live(), 0o600)
        elif shutil.which("nft") and self._live():
            self._must(["nft", "delete", "table", *TABLE], "the rules cannot be taken away")

    def begin(self) -> Outcome:
        """Put the new settings to work under the timer. Without a difference nothing happens."""
        wish = self.wish
        self.check_ports()
        reasons = self.differences()
        out = Outcome(changed=bool(reasons), pending=bool(reasons), reasons=reasons)
        for path, after in ((wish.ssh_file, wish.ssh_text), (wish.firewall_file, wish.firewall_rules)):
            if text_of(path) != after:
                out.diff.append({"before": text_of(path), "after": after, "before_header": path, "after_header": path})
        guarded = bool(wish.ssh_settings or wish.firewall_rules)
        if guarded and self.run(["systemctl", "is-enabled", "--quiet", wish.boot_unit])[0] != 0:
            out.changed = True
            out.reasons.append(f"{wish.boot_unit} is not enabled")
            if not self.check:
                self._must(["systemctl", "enable", "--quiet", wish.boot_unit], f"{wish.boot_unit} cannot be enabled")
        if not reasons:
            wrong = ignored(wish.ssh_settings, self._sshd()) if wish.ssh_settings else []
            if wrong:
                raise AccessError(f"sshd does not follow {wish.ssh_file}: {'; '.join(wrong)}")
            return out
        self.validate()
        if not self.check:
            self._arm()
            try:
                self._switch()
            except AccessError as exc:
                self.run([wish.helper, "rollback"])
                self._stop_timer()
                raise AccessError(f"{exc}; the host has its former settings again") from exc
        return out

    def confirm(self) -> Outcome:
        """Keep the change: the caller has come over a new connection."""
        wish = self.wish
        if self.check:
            return Outcome(changed=wish.path("pending").exists())
        with self._alone():
            if not wish.path("pending").exists():
                when = text_of(wish.path("rolled-back")).strip() or "before"
                raise AccessError(
                    f"no new connection came within {wish.seconds} seconds of the change of {when}, so it was undone: the settings for ssh or the "
                    "firewall would have locked out this connection"
                )
            wish.path("pending").unlink()
            with contextlib.suppress(FileNotFoundError):
                wish.path("rolled-back").unlink()
            shutil.rmtree(wish.path("previous"), ignore_errors=True)
        self._stop_timer()
        # From now on the unit shows the rules' state, and reloads them when nftables.service drops everything.
        self._must(["systemctl", "restart", wish.boot_unit], f"{wish.boot_unit} does not start")
        return Outcome(changed=True)

    def remove(self) -> Outcome:
        """Take both away, with the guard's own state."""
        wish = self.wish
        there = [path for path in (wish.ssh_file, wish.firewall_file, wish.state_dir) if os.path.exists(path)]
        out = Outcome(changed=bool(there), reasons=[f"{path} is there" for path in there])
        for path in (wish.ssh_file, wish.firewall_file):
            if text_of(path):
                out.diff.append({"before": text_of(path), "after": "", "before_header": path, "after_header": path})
        if self.check or not there:
            return out
        self._stop_timer()
        self.run(["systemctl", "disable", "--now", "--quiet", wish.boot_unit])
        put(wish.ssh_file, "", 0o600)
        put(wish.firewall_file, "", 0o600)
        if self.run(["systemctl", "is-active", "--quiet", wish.ssh_unit])[0] == 0:
            self._must(["systemctl", "reload", wish.ssh_unit], "sshd does not reload")
        if shutil.which("nft") and self._live():
            self._must(["nft", "delete", "table", *TABLE], "the rules cannot be taken away")
        shutil.rmtree(wish.state_dir, ignore_errors=True)
        return out
