# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lab hosts of the kind C(container): systemd-nspawn on an overlay of the image.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_keys
from ansible_collections.gpufleet.deepseek.plugins.module_utils._lab_registry import (
    CA_BUNDLE,
    Settings,
    extra_certificates,
)

LINK = "host0"
NSPAWN_RUN = Path("/run/systemd/nspawn")
# systemd-nspawn says with this status that the host asked for a reboot.
REBOOT = 133

# Runs until the host is switched off, and starts it again when it asked for a reboot, as systemd does for a unit with
# RestartForceExitStatus=. Every host gets control groups of its own: without them several systemds would share one
# tree and end each other's processes. $1 the log, $2 the control groups (colon-separated), the rest nspawn's arguments.
LAUNCHER = """
exec >>"$1" 2>&1 </dev/null
IFS=:
for group in $2; do echo $$ >"$group/cgroup.procs"; done
unset IFS
shift 2
while :; do
  systemd-nspawn "$@"
  status=$?
  [ "$status" -eq 133 ] || exit "$status"
done
"""


@dataclass(frozen=True)
class Options:
    """What is the same for every host of a lab."""

    bridge: str
    subnet: str
    image: Path
    suite: str
    storage: str  # auto, overlay, copy
    boot_timeout: float
    systemd: bool
    unified_environment: str  # "", "0" or "1"


class HasBanner(Protocol):
    """What is known of a host of any kind: whether its sshd has answered."""

    banner: bool


@dataclass
class Seen:
    """One host as it is."""

    record: dict[str, Any] = field(default_factory=dict)
    supervisors: list[int] = field(default_factory=list)
    nspawn: list[int] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    leader: int | None = None
    roots: list[_lab.Mount] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    default_route: str = ""
    link_up: bool = False
    peer: int = 0
    peer_master: str = ""
    peer_up: bool = False
    banner: bool = False

    @property
    def alive(self) -> bool:
        """Running as it should: a host that lost its nspawn works on, but nobody would start it after a reboot."""
        return self.leader is not None and bool(self.nspawn)

    @property
    def anything(self) -> bool:
        return bool(self.supervisors or self.nspawn or self.members)


@dataclass
class Work:
    """What one host needs, in words (for people) and as data (for us)."""

    host: _lab.HostSpec
    seen: Seen
    steps: list[str] = field(default_factory=list)
    boot: bool = False
    repair: bool = False
    files: list[str] = field(default_factory=list)


def unified_environment(layout: str, has_cgroup2: bool) -> str:
    """The value of SYSTEMD_NSPAWN_UNIFIED_HIERARCHY.

    On a machine with only v2 nspawn has no choice. On the others it would look at the systemd inside the image and
    take v1 or a mix; systemd 256 and later refuse v1. So hosts always get v2 where the kernel has it.
    """
    if layout == "unified":
        return ""
    return "1" if has_cgroup2 else "0"


def nspawn_argv(lab: _lab.Lab, host: _lab.HostSpec, options: Options, root: Path) -> list[str]:
    """The arguments after `systemd-nspawn`."""
    return [
        "--quiet",
        "--boot",
        f"--directory={root}",
        f"--machine={lab.machine(host.name)}",
        f"--hostname={host.name}",
        f"--network-bridge={options.bridge}",
        "--register=no",
        "--keep-unit",
        "--settings=no",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--console=read-only",
    ]


def unit_argv(lab: _lab.Lab, host: _lab.HostSpec, options: Options, root: Path, log: Path) -> list[str]:
    """The command that starts a host on a machine whose PID 1 is systemd: a transient unit, no file left behind."""
    environment = []
    if options.unified_environment:
        environment = [f"--setenv=SYSTEMD_NSPAWN_UNIFIED_HIERARCHY={options.unified_environment}"]
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={lab.unit(host.name)}",
        f"--description=Host {host.name} of lab {lab.name}",
        "--slice=machine.slice",
        "--service-type=exec",
        "--property=Delegate=yes",
        "--property=KillMode=mixed",
        "--property=TasksMax=16384",
        "--property=DevicePolicy=auto",
        f"--property=RestartForceExitStatus={REBOOT}",
        f"--property=SuccessExitStatus={REBOOT}",
        f"--property=StandardOutput=append:{log}",
        f"--property=StandardError=append:{log}",
        *environment,
        "--",
        "systemd-nspawn",
        *nspawn_argv(lab, host, options, root),
    ]


def detached_argv(
    lab: _lab.Lab, host: _lab.HostSpec, options: Options, root: Path, log: Path, groups: Sequence[Path]
) -> list[str]:
    """The command that starts a host on any other machine: a session of its own, nothing held open."""
    return [
        *("setsid", "--fork", "sh", "-c", LAUNCHER, f"gpufleet-lab:{lab.name}:{host.name}"),
        *(str(log), ":".join(str(group) for group in groups)),
        *nspawn_argv(lab, host, options, root),
    ]


def network_file(host: _lab.HostSpec, subnet: str) -> str:
    return (
        f"[Match]\nName={LINK}\n\n[Network]\nAddress={host.address}/{_lab.network_of(subnet).prefixlen}\n"
        f"Gateway={_lab.gateway_of(subnet)}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nDHCP=no\n"
    )


def hosts_file(host: _lab.HostSpec, hosts: Sequence[_lab.HostSpec]) -> str:
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines.extend(f"{item.address} {item.name}" for item in hosts)
    return "".join(f"{line}\n" for line in lines)


def address_of(shown: str) -> tuple[list[str], bool, int]:
    """Addresses, whether the link is up, and the index of the other end, out of `ip -json addr show`."""
    links = json.loads(shown or "[]")
    link: dict[str, Any] = next((item for item in links if item), {})
    addresses = [
        f"{item['local']}/{item['prefixlen']}" for item in link.get("addr_info", []) if item.get("family") == "inet"
    ]
    return addresses, "UP" in link.get("flags", []), int(link.get("link_index") or 0)


def default_route_of(shown: str) -> str:
    routes = json.loads(shown or "[]")
    return next((str(item.get("gateway", "")) for item in routes if item.get("dst") == "default"), "")


def ssh_answers(address: str, timeout: float) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=timeout) as connection:
            connection.settimeout(timeout)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def expect_banners(hosts: Sequence[_lab.HostSpec], alive: Mapping[str, bool], seen: Mapping[str, HasBanner]) -> None:
    """A host that boots right now (an interrupted run began it) gets the time to finish."""
    end = time.monotonic() + 15
    waiting = [host for host in hosts if alive[host.name]]
    while waiting:
        for host in list(waiting):
            if ssh_answers(host.address, 1):
                seen[host.name].banner = True
                waiting.remove(host)
        if not waiting or time.monotonic() > end:
            return
        time.sleep(0.2)


class Containers:
    def __init__(self, lab: _lab.Lab, options: Options | None, commands: _lab.Commands) -> None:
        self.lab = lab
        self._options = options
        self.commands = commands
        self.warnings: list[str] = []
        self._hashes: dict[str, str] = {}

    @property
    def options(self) -> Options:
        if self._options is None:
            raise _lab.LabError("This step needs to know the lab's image and network.")
        return self._options

    # -- places

    def directory(self, host: str) -> Path:
        return self.lab.hosts_dir / host

    def root(self, host: str) -> Path:
        return self.directory(host) / "root"

    def record(self, host: str) -> dict[str, Any]:
        return _lab.host_record(self.directory(host))

    def known(self) -> list[str]:
        """Every host this lab has a trace of: directories, mounts, processes."""
        names: set[str] = set()
        if self.lab.hosts_dir.is_dir():
            places = (path for path in self.lab.hosts_dir.iterdir() if path.is_dir())
            names.update(path.name for path in places if _lab.host_record(path).get("kind", "container") == "container")
        for group in self.groups(""):
            if group.is_dir():
                names.update(path.name for path in group.iterdir() if path.is_dir())
        prefix = f"{self.lab.hosts_dir}/"
        for mount in _lab.mounts_below(self.lab.hosts_dir):
            names.add(mount.target.removeprefix(prefix).split("/")[0])
        for item in _lab.processes():
            for argument in item.argv:
                if argument.startswith(f"--directory={prefix}") and _lab.is_ours(item.pid):
                    names.add(argument.removeprefix(f"--directory={prefix}").split("/")[0])
        return sorted(names)

    def groups(self, host: str) -> list[Path]:
        return [root / self.lab.cgroup(host) for root in _lab.cgroup_roots()]

    # -- seeing

    def see(
        self, hosts: Sequence[_lab.HostSpec], table: list[_lab.Mount], procs: list[_lab.Process], deep: bool = True
    ) -> dict[str, Seen]:
        found = {}
        links: list[dict[str, Any]] | None = None
        for host in hosts:
            seen = Seen(record=self.record(host.name), roots=_lab.mounts_at(self.root(host.name), table))
            marker = f"--directory={self.root(host.name)}"
            for item in procs:
                if marker in item.argv and _lab.is_ours(item.pid):
                    name = os.path.basename(item.argv[0])
                    if name == "systemd-nspawn":
                        seen.nspawn.append(item.pid)
                    elif name in ("sh", "dash"):
                        seen.supervisors.append(item.pid)
            # Control groups know a host's processes even when its nspawn is gone; where systemd keeps them, parents do.
            seen.members = _lab.cgroup_members(self.groups(host.name))
            children = [item.pid for item in procs if item.ppid in seen.nspawn]
            seen.leader = next((pid for pid in [*children, *seen.members] if _lab.is_container_init(pid)), None)
            if deep and seen.leader is not None:
                if links is None:
                    links = json.loads(self.commands("ip", "-json", "link", "show") or "[]")
                self._see_network(host, seen, links)
            found[host.name] = seen
        return found

    def _inside(self, leader: int, *argv: str) -> tuple[int, str, str]:
        return self.commands.try_("nsenter", f"--target={leader}", "--net", "--", *argv)

    def _see_network(self, host: _lab.HostSpec, seen: Seen, links: list[dict[str, Any]]) -> None:
        if seen.leader is None:
            return
        rc, out, _err = self._inside(seen.leader, "ip", "-json", "addr", "show", "dev", LINK)
        if rc == 0:
            seen.addresses, seen.link_up, seen.peer = address_of(out)
        rc, out, _err = self._inside(seen.leader, "ip", "-json", "-4", "route", "show", "default")
        if rc == 0:
            seen.default_route = default_route_of(out)
        link = _lab.uplink_of(links, seen.peer)
        if link is not None:
            seen.peer_master = str(link.get("master", ""))
            seen.peer_up = "UP" in link.get("flags", [])

    def _network_good(self, host: _lab.HostSpec, seen: Seen) -> bool:
        prefix = _lab.network_of(self.options.subnet).prefixlen
        return (
            seen.addresses == [f"{host.address}/{prefix}"]
            and seen.link_up
            and seen.default_route == _lab.gateway_of(self.options.subnet)
            and seen.peer_master == self.options.bridge
            and seen.peer_up
        )

    # -- files inside a host

    def _certificate_files(self, root: Path, settings: Settings, old: str) -> dict[str, tuple[bytes, int]]:
        """What makes a host trust the machine's own authorities, also after its next update-ca-certificates."""
        files: dict[str, tuple[bytes, int]] = {}
        extra = extra_certificates("\n".join(settings.certificates), old)
        if not extra:
            return files
        for number, block in enumerate(extra):
            name = f"gpufleet-lab-{number:03d}"
            content = (block + "\n").encode()
            files[f"usr/local/share/ca-certificates/{name}.crt"] = (content, 0o644)
            if block not in self._hashes:
                self._hashes[block] = self.commands("openssl", "x509", "-noout", "-subject_hash", data=block).strip()
            files[f"etc/ssl/certs/{self._hashes[block]}.{90 + number}"] = (content, 0o644)
        bundle = old.rstrip("\n") + "\n" + "\n".join(extra) + "\n"
        files[CA_BUNDLE.lstrip("/")] = (bundle.encode(), 0o644)
        return files

    def registry_files(self, settings: Settings) -> dict[str, tuple[bytes, int]]:
        """Files that are written when a host is made and when the machine's own settings change, not otherwise."""
        image_root = self.options.image / "rootfs"
        files = dict(settings.files)
        files["etc/apt/sources.list"] = ("".join(f"{line}\n" for line in settings.sources).encode(), 0o644)
        for name, content in settings.keyrings.items():
            relative = name.lstrip("/")
            if not (image_root / relative).exists():
                files[relative] = (content, 0o644)
        bundle = image_root / CA_BUNDLE.lstrip("/")
        old = bundle.read_text(encoding="utf-8", errors="replace") if bundle.is_file() else ""
        files.update(self._certificate_files(image_root, settings, old))
        return files

    def identity_files(
        self, host: _lab.HostSpec, hosts: Sequence[_lab.HostSpec], settings: Settings
    ) -> dict[str, tuple[bytes, int]]:
        """Files that make the host the one the inventory means: always as they should be."""
        key = _lab_keys.host_key(self.lab, host.name)
        operator = self.lab.state_dir / "ssh" / "id_ed25519.pub"
        return {
            "etc/hostname": (f"{host.name}\n".encode(), 0o644),
            "etc/hosts": (hosts_file(host, hosts).encode(), 0o644),
            "etc/resolv.conf": (settings.resolv_conf.encode(), 0o644),
            "etc/systemd/network/10-gpufleet-lab.network": (network_file(host, self.options.subnet).encode(), 0o644),
            "etc/ssh/ssh_host_ed25519_key": (_lab.read_bytes(key) or b"", 0o600),
            "etc/ssh/ssh_host_ed25519_key.pub": (_lab.read_bytes(key.with_name(key.name + ".pub")) or b"", 0o644),
            "root/.ssh/authorized_keys": (_lab.read_bytes(operator) or b"", 0o600),
        }

    # -- deciding

    def plan(
        self, hosts: Sequence[_lab.HostSpec], all_hosts: Sequence[_lab.HostSpec], settings: Settings
    ) -> list[Work]:
        table, procs = _lab.mounts(), _lab.processes()
        seen = self.see(hosts, table, procs)
        registry = self.registry_files(settings) if (self.options.image / "rootfs").is_dir() else {}
        digests = {name: _digest(content, mode) for name, (content, mode) in registry.items()}
        expect_banners(hosts, {host.name: self._network_good(host, seen[host.name]) for host in hosts}, seen)
        return [self._plan_one(host, all_hosts, settings, seen[host.name], registry, digests) for host in hosts]

    def _plan_one(
        self,
        host: _lab.HostSpec,
        all_hosts: Sequence[_lab.HostSpec],
        settings: Settings,
        seen: Seen,
        registry: dict[str, tuple[bytes, int]],
        digests: dict[str, str],
    ) -> Work:
        work = Work(host, seen)
        suite = seen.record.get("suite", self.options.suite)
        if suite != self.options.suite:
            raise _lab.LabError(
                f"{host.name} was made from {suite}, and {self.options.suite} is asked for: take the lab down first"
                " (playbook lab_down.yml), or keep to its suite."
            )
        if not seen.record:
            work.steps.append("make the root file system")
        if not self._root_ready(host, seen):
            work.steps.append("mount the root file system")
        root = self.root(host.name)
        for name, (content, mode) in self.identity_files(host, all_hosts, settings).items():
            if not seen.roots and seen.record.get("storage") != "copy":
                break
            if not (root / name).parent.is_dir() or _lab.needs_write(root / name, content, mode):
                work.files.append(name)
        if seen.record and registry:
            recorded = seen.record.get("registry", {})
            work.files.extend(name for name, digest in digests.items() if recorded.get(name) != digest)
            work.files.extend(name for name in recorded if name not in digests)
        if work.files and seen.record:
            work.steps.append(f"write {', '.join('/' + name for name in work.files)}")
        if not seen.alive:
            work.boot = True
            work.steps.append("boot")
        elif not self._network_good(host, seen):
            work.repair = True
            work.steps.append(f"repair the network (found {', '.join(seen.addresses) or 'no address'})")
        elif not seen.banner:
            work.boot = True
            work.steps.append("boot again (no answer on port 22)")
        return work

    def _root_ready(self, host: _lab.HostSpec, seen: Seen) -> bool:
        if seen.record.get("storage") == "copy":
            return (self.root(host.name) / "usr").is_dir()
        lower = Path(seen.record.get("image", self.options.image)) / "rootfs"
        return len(seen.roots) == 1 and seen.roots[0].option("lowerdir") == str(lower)

    # -- doing

    def apply(self, works: Sequence[Work], all_hosts: Sequence[_lab.HostSpec], settings: Settings) -> None:
        registry = self.registry_files(settings)
        failures: list[str] = []
        booted: list[Work] = []
        for work in works:
            try:
                if work.boot or work.repair:
                    self.close_connections()
                if work.boot:
                    self.kill(work.host.name)
                    work.seen = self.see([work.host], _lab.mounts(), _lab.processes())[work.host.name]
                if not (work.seen.record and self._root_ready(work.host, work.seen)):
                    self._prepare_root(work)
                self._write_files(work, all_hosts, settings, registry)
                if work.boot:
                    self._start(work.host)
                    booted.append(work)
                elif work.repair:
                    self._repair_network(work.host, work.seen)
            except _lab.LabError as error:
                failures.append(f"{work.host.name}: {error}")
        failures.extend(self._wait_for(booted))
        broken = {text.partition(":")[0] for text in failures}
        repaired = [work for work in works if work.repair and work.host.name not in broken]
        for work in repaired:
            if not self._answers_within(work.host, 15):
                failures.append(f"{work.host.name}: its network was repaired, but nothing answers on port 22.")
        if failures:
            raise _lab.LabError(" ".join(failures))

    def _choose_storage(self, host: _lab.HostSpec) -> str:
        if self.options.storage != "auto":
            return self.options.storage
        directory = self.directory(host.name)
        for name in ("upper", "work", "root"):
            (directory / name).mkdir(exist_ok=True)
        rc, _out, err = self.commands.try_("unshare", "--mount", "--", *self._mount_argv(host, self.options.image))
        if rc == 0:
            return "overlay"
        self.warnings.append(
            f"{self.lab.state_dir} lies on {_lab.filesystem_of(self.lab.state_dir)}, which cannot carry an overlay"
            f" ({err.strip().splitlines()[-1] if err.strip() else rc}): {host.name} gets a full copy of the image."
        )
        return "copy"

    def _mount_argv(self, host: _lab.HostSpec, image: Path) -> list[str]:
        directory = self.directory(host.name)
        layers = f"lowerdir={image}/rootfs,upperdir={directory}/upper,workdir={directory}/work"
        return ["mount", "-t", "overlay", "-o", layers, f"gpufleet-lab-{self.lab.name}", str(self.root(host.name))]

    def _prepare_root(self, work: Work) -> None:
        host, directory, root = work.host, self.directory(work.host.name), self.root(work.host.name)
        record = work.seen.record
        image = Path(record.get("image", self.options.image))
        if not (image / "rootfs").is_dir():
            raise _lab.LabError(
                f"it was made from {image}, which is gone from the cache: take the lab down first (playbook lab_down.yml)."
            )
        self._unmount(root)
        if not record:
            # Nothing of an interrupted beginning is worth keeping.
            for name in ("upper", "work", "root"):
                shutil.rmtree(directory / name, ignore_errors=True)
        storage = record.get("storage") or self._choose_storage(host)
        if storage == "copy":
            if not (root / "usr").is_dir() or not record:
                shutil.rmtree(root, ignore_errors=True)
                partial = directory / "root.partial"
                shutil.rmtree(partial, ignore_errors=True)
                self.commands("cp", "--archive", "--reflink=auto", f"{image}/rootfs", str(partial))
                partial.rename(root)
        else:
            for name in ("upper", "work", "root"):
                (directory / name).mkdir(exist_ok=True)
            # The root of an overlay takes its mode from the upper directory.
            (directory / "upper").chmod(0o755)
            self.commands(*self._mount_argv(host, image))
        work.seen.record = {
            **record,
            "name": host.name,
            "suite": record.get("suite", self.options.suite),
            "image": str(image),
            "storage": storage,
            "machine_id": record.get("machine_id") or secrets.token_hex(16),
        }

    def _write_files(
        self,
        work: Work,
        all_hosts: Sequence[_lab.HostSpec],
        settings: Settings,
        registry: dict[str, tuple[bytes, int]],
    ) -> None:
        root = self.root(work.host.name)
        record = work.seen.record
        wanted = dict(self.identity_files(work.host, all_hosts, settings))
        recorded = record.get("registry", {})
        digests = {name: _digest(content, mode) for name, (content, mode) in registry.items()}
        wanted.update({name: registry[name] for name, digest in digests.items() if recorded.get(name) != digest})
        if "registry" not in record:
            wanted["etc/machine-id"] = (f"{record['machine_id']}\n".encode(), 0o444)
        for name, (content, mode) in wanted.items():
            path = root / name
            if not path.parent.is_dir():
                _lab.ensure_dir(path.parent, 0o700 if path.parent.name == ".ssh" else 0o755)
            path = _lab.inside(root, name)
            if _lab.needs_write(path, content, mode):
                _lab.write_file(path, content, mode)
        for name in recorded:
            if name not in digests:
                _lab.inside(root, name).unlink(missing_ok=True)
        new = {**record, "address": work.host.address, "registry": digests}
        if new != self.record(work.host.name):
            text = json.dumps(new, indent=2, sort_keys=True) + "\n"
            _lab.write_file(self.directory(work.host.name) / "host.json", text.encode(), 0o600)
        work.seen.record = new

    def _start(self, host: _lab.HostSpec) -> None:
        root, log = self.root(host.name), self.directory(host.name) / "console.log"
        _lab.write_file(log, b"", 0o600)
        if self.options.systemd:
            unit = self.lab.unit(host.name)
            self.commands.try_("systemctl", "reset-failed", unit)
            self.commands(*unit_argv(self.lab, host, self.options, root, log))
            return
        groups = []
        for group in self.groups(host.name):
            try:
                group.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue
            if not (group / "cpuset.cpus").exists() or self._fill_cpuset(group):
                groups.append(group)
        environ = {}
        if self.options.unified_environment:
            environ["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = self.options.unified_environment
        self.commands(*detached_argv(self.lab, host, self.options, root, log, groups), env=environ)

    def _fill_cpuset(self, group: Path) -> bool:
        """A new cpuset of control groups v1 is empty and takes no process: give it, and those above, everything."""
        if _lab.filesystem_of(group) == "cgroup2":
            return True
        chain = [group, group.parent, group.parent.parent]
        for level in reversed(chain):
            for name in ("cpuset.cpus", "cpuset.mems"):
                try:
                    if not (level / name).read_text(encoding="ascii").strip():
                        above = (level.parent / name).read_text(encoding="ascii")
                        (level / name).write_text(above, encoding="ascii")
                except OSError:
                    return False
        return True

    def _repair_network(self, host: _lab.HostSpec, seen: Seen) -> None:
        if seen.leader is None:
            return
        prefix = _lab.network_of(self.options.subnet).prefixlen
        links = json.loads(self.commands("ip", "-json", "link", "show") or "[]")
        link = _lab.uplink_of(links, seen.peer)
        if link is None:
            raise _lab.LabError("its network link is gone.")
        self.commands("ip", "link", "set", "dev", str(link["ifname"]), "master", self.options.bridge, "up")
        wanted = f"{host.address}/{prefix}"
        for argv in (
            *(("ip", "addr", "del", old, "dev", LINK) for old in seen.addresses if old != wanted),
            ("ip", "addr", "replace", wanted, "dev", LINK),
            ("ip", "link", "set", "dev", LINK, "up"),
            ("ip", "route", "replace", "default", "via", _lab.gateway_of(self.options.subnet), "dev", LINK),
        ):
            rc, _out, err = self._inside(seen.leader, *argv)
            if rc != 0:
                raise _lab.LabError(f"{' '.join(argv)} failed: {err.strip()}")

    def _answers_within(self, host: _lab.HostSpec, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not ssh_answers(host.address, 1):
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True

    def _wait_for(self, works: Sequence[Work]) -> list[str]:
        """Until every host lets the operator in and its systemd is done; sentences about those that do not."""
        end = time.monotonic() + self.options.boot_timeout
        failures = []
        waiting = list(works)
        while waiting and time.monotonic() < end:
            for work in list(waiting):
                if ssh_answers(work.host.address, 0.5):
                    waiting.remove(work)
            if waiting and time.monotonic() - (end - self.options.boot_timeout) > 2:
                seen = self.see([work.host for work in waiting], [], _lab.processes(), deep=False)
                for work in list(waiting):
                    now = seen[work.host.name]
                    if not now.anything:
                        waiting.remove(work)
                        failures.append(f"{work.host.name}: it ended while booting: {self.last_words(work.host.name)}")
            if waiting:
                time.sleep(0.1)
        failures.extend(
            f"{work.host.name}: no answer on port 22 within {self.options.boot_timeout:.0f} s:"
            f" {self.last_words(work.host.name)}"
            for work in waiting
        )
        failed = {text.partition(":")[0] for text in failures}
        for work in works:
            if work.host.name not in failed:
                failures.extend(self.login(work.host, max(5.0, end - time.monotonic())))
        return failures

    def login(self, host: _lab.HostSpec, seconds: float) -> list[str]:
        """A real login with the lab's key and the pinned host key; asks systemd whether it is done."""
        ssh = ("ssh", "-F", f"{self.lab.state_dir}/ssh/config", "-o", "BatchMode=yes", host.name)
        # Two questions in one login: is everything up, and if not, what is not?
        ask = "systemctl is-system-running --wait; systemctl list-units --failed --plain --no-legend"
        _rc, out, err = self.commands.try_("timeout", f"{seconds:.0f}", *ssh, ask)
        lines = out.split("\n")
        if lines[0] == "degraded":
            units = ", ".join(line.split()[0] for line in lines[1:] if line.split())
            self.warnings.append(f"{host.name} is up, but these units failed: {units}.")
            return []
        if lines[0] == "running":
            return []
        said = err.strip().splitlines()[-1] if err.strip() else f"systemd says {lines[0] or 'nothing'}"
        return [f"{host.name}: a login did not work out: {said} (log: {self.directory(host.name) / 'console.log'})"]

    def last_words(self, host: str) -> str:
        log = self.directory(host) / "console.log"
        lines = (_lab.read_bytes(log) or b"").decode(errors="replace").split("\n")
        text = " / ".join(line.strip() for line in lines if line.strip())[-400:]
        return f"{text or 'it said nothing'} (log: {log})"

    # -- ending

    def kill(self, host: str) -> None:
        """End a host's processes; its files stay."""
        for _attempt in range(20):
            seen = self.see([_lab.HostSpec(host, "")], [], _lab.processes(), deep=False)[host]
            # Supervisors first, or they would start it again; then the host's PID 1, whose end is the end of all in it.
            for pid in seen.supervisors:
                _lab.end(pid, signal.SIGKILL)
            if seen.leader is not None:
                _lab.end(seen.leader, signal.SIGKILL)
                _lab.wait_gone([seen.leader, *seen.nspawn], 3)
            for pid in (*seen.nspawn, *seen.members):
                _lab.end(pid, signal.SIGKILL)
            _lab.wait_gone([*seen.supervisors, *seen.nspawn, *seen.members], 3)
            if not seen.anything:
                break
        else:
            raise _lab.LabError(f"Processes of {host} do not end.")
        if _lab.pid1_is_systemd():
            self.commands.try_("systemctl", "stop", self.lab.unit(host))
            self.commands.try_("systemctl", "reset-failed", self.lab.unit(host))
        self._remove_groups(host)
        self._remove_leftovers(host)

    def _remove_leftovers(self, host: str) -> None:
        """What nspawn leaves when it did not end by itself.

        The link can outlive the host: an orphaned TCP connection holds its network for minutes.
        """
        machine = self.lab.machine(host)
        rc, out, _err = self.commands.try_("ip", "-json", "link", "show", "type", "veth")
        for link in json.loads(out or "[]") if rc == 0 else []:
            # The kernel's names end after 15 characters; systemd keeps the whole one beside it.
            if f"vb-{machine}" in (link.get("ifname"), *link.get("altnames", [])):
                self.commands.try_("ip", "link", "del", "dev", str(link["ifname"]))
        with contextlib.suppress(OSError):
            found = self.root(host).stat()
            (NSPAWN_RUN / "locks" / f"inode-{found.st_dev}:{found.st_ino}").unlink()
        for name in ("propagate", "unix-export"):
            place = NSPAWN_RUN / name / machine
            for mount in _lab.mounts_at(place):
                self.commands.try_("umount", "--lazy", mount.target)
            with contextlib.suppress(OSError):
                place.rmdir()
        (self.directory(host) / ".#root.lck").unlink(missing_ok=True)

    def stop(self, host: str, seconds: float) -> None:
        """Switch a host off in order, and by force when it takes too long."""
        seen = self.see([_lab.HostSpec(host, "")], [], _lab.processes(), deep=False)[host]
        if seen.leader is not None:
            # What systemd inside takes for: power off.
            _lab.end(seen.leader, signal.SIGRTMIN + 4)
            _lab.wait_gone([seen.leader, *seen.nspawn], seconds)
        self.kill(host)

    def _remove_groups(self, host: str) -> None:
        for group in self.groups(host):
            for path, _directories, _files in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            for above in (group.parent, group.parent.parent):
                with contextlib.suppress(OSError):
                    above.rmdir()

    def _unmount(self, root: Path) -> None:
        for mount in _lab.mounts_below(root):
            for argv in (("umount", mount.target), ("umount", "--lazy", mount.target)):
                if self.commands.try_(*argv)[0] == 0:
                    break
        if _lab.mounts_below(root):
            raise _lab.LabError(f"{root} stays mounted: something on this machine holds it.")

    def remove(self, host: str) -> None:
        self.kill(host)
        directory = self.directory(host)
        self._unmount(directory)
        if directory.is_dir():
            try:
                shutil.rmtree(directory)
            except PermissionError:
                # A host's root may have made something immutable.
                self.commands.try_("chattr", "-R", "-f", "-i", "-a", str(directory))
                shutil.rmtree(directory)

    def close_connections(self) -> None:
        """End ssh's shared connections to this lab's hosts: after a reboot they lead nowhere."""
        marker = f"ssh: {self.lab.control_dir}/"
        found = [
            item.pid
            for item in _lab.processes()
            if item.argv and item.argv[0].startswith(marker) and _lab.is_ours(item.pid)
        ]
        for pid in found:
            _lab.end(pid, signal.SIGTERM)
        for pid in _lab.wait_gone(found, 2):
            _lab.end(pid, signal.SIGKILL)
        if self.lab.control_dir.is_dir():
            for path in self.lab.control_dir.iterdir():
                with contextlib.suppress(OSError):
                    path.unlink()


def _digest(content: bytes, mode: int) -> str:
    return hashlib.sha256(content + f"{mode:o}".encode()).hexdigest()[:16]
