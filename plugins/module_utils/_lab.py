# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every lab module needs: names and paths, commands, locks, files, processes, mounts.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Run = Callable[..., "tuple[int, str, str]"]

LAB_NAME = re.compile(r"^[a-z][a-z0-9]{0,10}$")
HOST_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
# systemd takes machine names of at most 64 characters; the lab's name and a dash come first.
HOST_NAME_MAX = 48


class LabError(Exception):
    """Something a user can act on: the text is the whole message."""


@dataclass(frozen=True)
class HostSpec:
    """One host as the inventory wants it."""

    name: str
    address: str


@dataclass(frozen=True)
class Lab:
    """The names and places of one lab."""

    name: str
    state_dir: Path
    cache_dir: Path

    @property
    def hosts_dir(self) -> Path:
        return self.state_dir / "hosts"

    @property
    def images_dir(self) -> Path:
        return self.cache_dir / "images"

    @property
    def lock_file(self) -> Path:
        return self.cache_dir / f"{self.name}.lock"

    @property
    def table(self) -> str:
        return f"gpufleet_lab_{self.name}"

    @property
    def control_dir(self) -> Path:
        """Where ssh keeps the sockets of its shared connections to the lab's hosts."""
        return self.state_dir / "ssh" / "cp"

    def machine(self, host: str) -> str:
        return f"{self.name}-{host}"

    def unit(self, host: str) -> str:
        return f"gpufleet-lab-{self.name}-{host}.service"

    def cgroup(self, host: str) -> str:
        return f"gpufleet-lab/{self.name}/{host}"


@dataclass(frozen=True)
class Process:
    pid: int
    ppid: int
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Mount:
    target: str
    fstype: str
    source: str
    options: str

    def option(self, name: str) -> str | None:
        for item in self.options.split(","):
            key, _sign, value = item.partition("=")
            if key == name:
                return value
        return None


class Commands:
    """Runs programs; a failure is a LabError that says which one and why."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def try_(self, *argv: str, data: str | None = None, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Status, output, errors; a program that is not there is status 127, as in a shell."""
        environ = {"LC_ALL": "C", "LANGUAGE": "C", **(env or {})}
        try:
            return self._run(list(argv), data=data, environ_update=environ, handle_exceptions=False)
        except FileNotFoundError:
            return 127, "", f"{argv[0]}: not found"

    def __call__(self, *argv: str, data: str | None = None, env: dict[str, str] | None = None) -> str:
        rc, out, err = self.try_(*argv, data=data, env=env)
        if rc != 0:
            raise LabError(f"{' '.join(argv)} failed ({rc}): {(err or out).strip()[-800:]}")
        return out


# -- addresses -------------------------------------------------------------------------------------------------------


def network_of(subnet: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(subnet, strict=True)


def gateway_of(subnet: str) -> str:
    """The machine's own address in the lab: the first of the subnet."""
    return str(network_of(subnet).network_address + 1)


# -- files -----------------------------------------------------------------------------------------------------------


def read_bytes(path: Path) -> bytes | None:
    """The content of a regular file; None when there is none (a symbolic link counts as none)."""
    if path.is_symlink() or not path.is_file():
        return None
    return path.read_bytes()


def needs_write(path: Path, content: bytes, mode: int) -> bool:
    return read_bytes(path) != content or (path.stat().st_mode & 0o7777) != mode


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step; a symbolic link of that name is replaced, never followed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def ensure_dir(path: Path, mode: int) -> bool:
    """Make a directory (and parents, 0755) with exactly this mode; say whether anything changed."""
    changed = False
    if not path.is_dir():
        path.mkdir(parents=True)
        changed = True
    if (path.stat().st_mode & 0o7777) != mode:
        path.chmod(mode)
        changed = True
    return changed


def inside(root: Path, relative: str) -> Path:
    """A path inside a host's root whose directory is really there, not behind a link that leads out."""
    path = root / relative
    parent = path.parent.resolve()
    if parent != root.resolve() and root.resolve() not in parent.parents:
        raise LabError(f"{path} leads out of the host's root: something in that host replaced a directory by a link.")
    return parent / path.name


# -- locks -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, wait: float, what: str, note: str = "") -> Iterator[None]:
    """Hold an exclusive lock; the file says who holds it. The kernel lets go when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + wait
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            if time.monotonic() > end:
                raise LabError(
                    f"{what} is being changed by another process ({holder or 'unknown'}) since more than {wait:.0f} s."
                ) from None
            time.sleep(0.1)
            continue
        # Someone may have removed the file between open and flock: then this lock guards nothing.
        try:
            same = os.fstat(handle).st_ino == os.stat(path).st_ino
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {note}\n".encode(), 0)
        yield
        os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def lock_holder(path: Path) -> tuple[int, str] | None:
    """Who holds the lock now: pid and note. None when it is free."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _space, note = os.pread(handle, 200, 0).decode(errors="replace").strip().partition(" ")
            return (int(pid), note) if pid.isdigit() else None
        return None
    finally:
        os.close(handle)


# -- processes -------------------------------------------------------------------------------------------------------


def process(pid: int) -> Process | None:
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[0] == "Z":
        return None
    parts = argv.decode(errors="replace").split("\0")
    return Process(pid, int(fields[1]), tuple(parts[:-1] if parts[-1] == "" else parts))


def processes() -> list[Process]:
    found = (process(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [item for item in found if item is not None]


def is_ours(pid: int) -> bool:
    """In this process's own PID namespace: a lab inside a container has the same names as ours, and is none of our business."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:  # it ended while we looked
        return False


def uplink_of(links: Sequence[Mapping[str, Any]], index: int) -> Mapping[str, Any] | None:
    """The machine's end of a host's virtual cable, by its index; never any other link, such as the machine's own way out.

    An index says nothing by itself: in another network namespace the same number is another link. Only what systemd-nspawn
    names for a bridge (vb-...), with its other end in another namespace, can be it.
    """
    for link in links:
        if link.get("ifindex") == index and "link_netnsid" in link and str(link.get("ifname", "")).startswith("vb-"):
            return link
    return None


def is_container_init(pid: int) -> bool:
    """A process that is PID 1 to itself and something else to us."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == "1"


def cgroup_members(groups: Sequence[Path]) -> list[int]:
    """Every process in these control groups and those below them."""
    found: set[int] = set()
    for group in groups:
        for path, _directories, _files in os.walk(group):
            with contextlib.suppress(OSError):
                text = Path(path, "cgroup.procs").read_text(encoding="ascii")
                found.update(int(pid) for pid in text.split() if pid != "0")
    return sorted(found)


def end(pid: int, signal: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal)


def wait_gone(pids: Sequence[int], seconds: float) -> list[int]:
    """Wait until none of these is left; return those that stayed."""
    limit = time.monotonic() + seconds
    left = [pid for pid in pids if process(pid) is not None]
    while left and time.monotonic() < limit:
        time.sleep(0.02)
        left = [pid for pid in left if process(pid) is not None]
    return left


def pid1_is_systemd() -> bool:
    """The machine is run by systemd: units can be asked for (the same test as sd_booted)."""
    return Path("/run/systemd/system").is_dir()


# -- records and machines --------------------------------------------------------------------------------------------


def host_record(directory: Path) -> dict[str, Any]:
    """What the lab has written down about one of its hosts; empty when there is nothing that can be read."""
    with contextlib.suppress(ValueError):
        parsed = json.loads(read_bytes(directory / "host.json") or b"{}")
        return parsed if isinstance(parsed, dict) else {}
    return {}


def qmp(path: Path, commands: Sequence[str], seconds: float = 5) -> None:
    """Tell QEMU something by its control socket, and wait until it has said yes to each."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        with connection.makefile("rwb") as stream:
            stream.readline()
            for command in commands:
                stream.write(json.dumps({"execute": command}).encode() + b"\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline() or b'{"return": {}}')):
                    if "error" in answer:
                        raise LabError(f"QEMU refuses {command}: {answer['error'].get('desc')}")


# -- mounts ----------------------------------------------------------------------------------------------------------

_ESCAPE = re.compile(r"\\([0-7]{3})")


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)


def parse_mountinfo(text: str) -> list[Mount]:
    found = []
    for line in text.splitlines():
        left, _dash, right = line.partition(" - ")
        fields, rest = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        options = ",".join([fields[5], rest[2]])
        found.append(Mount(_unescape(fields[4]), rest[0], _unescape(rest[1]), _unescape(options)))
    return found


def mounts() -> list[Mount]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))


def mounts_at(target: Path, table: list[Mount] | None = None) -> list[Mount]:
    """The mounts on exactly this directory, the lowest first."""
    return [item for item in (mounts() if table is None else table) if item.target == str(target)]


def mounts_below(directory: Path, table: list[Mount] | None = None) -> list[Mount]:
    """The mounts on or below this directory, the deepest first."""
    prefix = f"{directory}/"
    found = [
        item
        for item in (mounts() if table is None else table)
        if item.target == str(directory) or item.target.startswith(prefix)
    ]
    return list(reversed(found))


def filesystem_of(path: Path, table: list[Mount] | None = None) -> str:
    """The type of the file system a path lies on, or would lie on once made."""
    path = Path(os.path.realpath(path))
    best = Mount("/", "unknown", "", "")
    for item in mounts() if table is None else table:
        root = item.target.rstrip("/") + "/"
        if (str(path) + "/").startswith(root) and len(item.target) >= len(best.target):
            best = item
    return best.fstype


def cgroup_layout(table: list[Mount] | None = None) -> str:
    """C(unified), C(hybrid) (v1 with a v2 mount beside it) or C(legacy)."""
    table = mounts() if table is None else table
    at_root = [item for item in table if item.target == "/sys/fs/cgroup"]
    if at_root and at_root[-1].fstype == "cgroup2":
        return "unified"
    return "hybrid" if any(item.fstype == "cgroup2" for item in table) else "legacy"


def cgroup_roots(table: list[Mount] | None = None) -> list[Path]:
    table = mounts() if table is None else table
    return [Path(item.target) for item in table if item.fstype in ("cgroup", "cgroup2")]
