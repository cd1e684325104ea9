# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lab hosts of the kind C(vm): QEMU, with a kernel, NVMe drives and network cards of their own.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import json
import os
import shutil
import signal
import tarfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_container, _lab_vm_image
from ansible_collections.gpufleet.deepseek.plugins.module_utils._lab_registry import Settings

QEMU = "qemu-system-x86_64"
KIND = "vm"
# PCI slots of the network cards; inside, the slots make their names.
LAN, RAIL = ("enp0s16", 0x10), ("enp0s17", 0x11)
# What a kernel says first. A processor that hangs says nothing.
FIRST_WORDS = b"Linux version"
PROBE_SECONDS = 25.0
DATA_FILE = "models/keep-me.txt"
DATA_TEXT = "This file lies on a drive that no role may touch.\n"
DATA_LABEL = "keepme"
MINIMUM_MEMORY = 512


@dataclass(frozen=True)
class Options:
    """What is the same for every host of a lab."""

    bridge: str
    subnet: str
    image: Path
    suite: str
    boot_timeout: float
    systemd: bool
    accel: str  # auto, kvm, tcg
    cpus: int
    memory_mb: int
    nvme_count: int
    nvme_mb: int
    rail_subnet: str


@dataclass
class Seen:
    """One host as it is."""

    record: dict[str, Any] = field(default_factory=dict)
    qemu: list[int] = field(default_factory=list)
    argv: tuple[str, ...] = ()
    banner: bool = False


@dataclass
class Work:
    """What one host needs, in words (for people) and as data (for us)."""

    host: _lab.HostSpec
    seen: Seen
    steps: list[str] = field(default_factory=list)
    boot: bool = False


def mac_of(lab: str, host: str, card: int) -> str:
    """An address of QEMU's own range that stays the same, and is another for every card on the machine."""
    digest = hashlib.sha256(f"{lab}/{host}/{card}".encode()).hexdigest()
    return f"52:54:00:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"


def tap_of(lab: str, host: str, card: int) -> str:
    """Name of the machine's end of a card: at most 15 characters."""
    return f"lv{zlib.crc32(f'{lab}/{host}'.encode()):08x}n{card}"


def serial_of(lab: str, host: str, drive: str) -> str:
    """Serial number of a drive: at most 20 characters, the host's end of the name where it is long."""
    return f"{lab[:6]}-{host[-6:]}-{drive}"[:20]


def rail_address(address: str, subnet: str, rail_subnet: str) -> str:
    """The host's address on the rail: its place in the lab's subnet, in the rail's."""
    if not rail_subnet:
        return ""
    place = int(ipaddress.IPv4Address(address)) - int(_lab.network_of(subnet).network_address)
    rail = _lab.network_of(rail_subnet)
    if place >= rail.num_addresses - 1:
        raise _lab.LabError(f"lab_vm_rail_subnet {rail_subnet} has no place number {place}, which {address} needs.")
    return f"{rail.network_address + place}/{rail.prefixlen}"


def network_files(lab: str, host: _lab.HostSpec, options: Options) -> dict[str, tuple[bytes, int]]:
    """How the host's own network manager sets up its two cards."""
    lan = _lab_container.network_file(host, options.subnet).replace(
        f"Name={_lab_container.LINK}", f"MACAddress={mac_of(lab, host.name, 0)}"
    )
    files = {"etc/systemd/network/10-gpufleet-lab.network": (lan.encode(), 0o644)}
    address = rail_address(host.address, options.subnet, options.rail_subnet)
    rail = (
        f"[Match]\nMACAddress={mac_of(lab, host.name, 1)}\n\n[Link]\nRequiredForOnline=no\n\n[Network]\n"
        + (f"Address={address}\n" if address else "")
        + "LinkLocalAddressing=no\nIPv6AcceptRA=no\nDHCP=no\n"
    )
    files["etc/systemd/network/11-gpufleet-lab-rail.network"] = (rail.encode(), 0o644)
    return files


def seed_tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """The seed disk: a tar archive of the files that make a host itself, and a digest of them all, the last."""
    digest = hashlib.sha256()
    for name, (content, mode) in sorted(files.items()):
        digest.update(f"{name} {mode:o} {hashlib.sha256(content).hexdigest()}\n".encode())
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        wanted = {**files, "var/lib/gpufleet-lab/seed": (f"{digest.hexdigest()}\n".encode(), 0o644)}
        made: set[str] = set()
        for name, (content, mode) in wanted.items():
            for parent in reversed(Path(name).parents[:-1]):
                if str(parent) not in made:
                    made.add(str(parent))
                    folder = tarfile.TarInfo(str(parent))
                    folder.type, folder.mode = tarfile.DIRTYPE, 0o700 if parent.name == ".ssh" else 0o755
                    tar.addfile(folder)
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def qemu_argv(lab: _lab.Lab, host: _lab.HostSpec, options: Options, directory: Path, accel: str) -> list[str]:
    """The whole command that is a host."""
    argv = [
        QEMU,
        *("-name", f"guest={lab.machine(host.name)},process={lab.machine(host.name)[:15]}"),
        *("-machine", f"q35,accel={accel}", "-cpu", "host" if accel == "kvm" else "max"),
        *("-smp", str(options.cpus), "-m", str(options.memory_mb)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"),
        *("-qmp", f"unix:{directory}/qmp.sock,server=on,wait=off"),
        *("-serial", f"file:{directory}/console.log", "-pidfile", f"{directory}/qemu.pid"),
        *("-device", "virtio-rng-pci"),
        *("-drive", f"file={options.image}/boot.img,if=none,id=boot,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=boot,bootindex=1"),
        *("-drive", f"file={directory}/root.qcow2,if=none,id=root,format=qcow2,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=root,bootindex=2"),
        *("-drive", f"file={directory}/seed.img,if=none,id=seed,format=raw,readonly=on"),
        *("-device", f"virtio-blk-pci,drive=seed,serial={_lab_vm_image.SEED_SERIAL}"),
    ]
    for number, (card, slot) in enumerate((LAN, RAIL)):
        tap = tap_of(lab.name, host.name, number)
        argv += ["-netdev", f"tap,id={card},ifname={tap},script={directory}/ifup,downscript=no"]
        mac = mac_of(lab.name, host.name, number)
        argv += ["-device", f"e1000e,netdev={card},mac={mac},addr={slot:#x},romfile="]
    for drive in drives(options):
        argv += ["-drive", f"file={directory}/{drive}.img,if=none,id={drive},format=raw,cache=unsafe,discard=unmap"]
        argv += ["-device", f"nvme,drive={drive},serial={serial_of(lab.name, host.name, drive)}"]
    return argv


def drives(options: Options) -> list[str]:
    """The NVMe drives: empty ones, and one more that carries a file system with a file on it."""
    return [*(f"nvme{number}" for number in range(options.nvme_count)), "data"]


class Machines:
    """The virtual hosts of one lab."""

    def __init__(self, lab: _lab.Lab, options: Options | None, commands: _lab.Commands) -> None:
        self.lab = lab
        self._options = options
        self.commands = commands
        self.warnings: list[str] = []

    @property
    def options(self) -> Options:
        if self._options is None:
            raise _lab.LabError("This step needs to know the lab's image and network.")
        return self._options

    # -- places and seeing

    def directory(self, host: str) -> Path:
        return self.lab.hosts_dir / host

    def record(self, host: str) -> dict[str, Any]:
        record = _lab.host_record(self.directory(host))
        return record if record.get("kind") == KIND else {}

    def known(self) -> list[str]:
        """Every virtual host this lab has a trace of: directories, processes."""
        names: set[str] = set()
        if self.lab.hosts_dir.is_dir():
            names.update(
                path.name for path in self.lab.hosts_dir.iterdir() if _lab.host_record(path).get("kind") == KIND
            )
        for item in _lab.processes():
            names.update(self._host_of(item))
        return sorted(names)

    def _host_of(self, item: _lab.Process) -> list[str]:
        """The host a process is, or none."""
        prefix, suffix = f"{self.lab.hosts_dir}/", "/qemu.pid"
        if not item.argv or os.path.basename(item.argv[0]) != QEMU or not _lab.is_ours(item.pid):
            return []
        found = [word for word in item.argv if word.startswith(prefix) and word.endswith(suffix)]
        return [word.removeprefix(prefix).removesuffix(suffix) for word in found]

    def see(self, hosts: Sequence[_lab.HostSpec]) -> dict[str, Seen]:
        found = {host.name: Seen(record=self.record(host.name)) for host in hosts}
        for item in _lab.processes():
            for name in self._host_of(item):
                if name in found:
                    found[name].qemu.append(item.pid)
                    found[name].argv = item.argv
        return found

    # -- KVM

    def accelerator(self) -> str:
        """What hosts run on. That /dev/kvm opens proves little: only a kernel that boots on it does."""
        if self.options.accel != "auto":
            return self.options.accel
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "tcg"
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        note = self.lab.cache_dir / "kvm.json"
        with contextlib.suppress(ValueError, OSError):
            known = json.loads(note.read_text(encoding="utf-8"))
            if known.get("boot_id") == boot_id:
                return "kvm" if known.get("works") else "tcg"
        works = self._boots_on_kvm()
        _lab.write_file(note, json.dumps({"boot_id": boot_id, "works": works}).encode(), 0o644)
        return "kvm" if works else "tcg"

    def _boots_on_kvm(self) -> bool:
        """Let the image's kernel say its first words on KVM."""
        place = self.lab.cache_dir / f".kvm-probe-{os.getpid()}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        console, pidfile = place / "console.log", place / "qemu.pid"
        argv = [
            *(
                QEMU,
                "-machine",
                "q35,accel=kvm",
                "-cpu",
                "host",
                "-m",
                str(MINIMUM_MEMORY),
                "-nodefaults",
                "-display",
                "none",
            ),
            *("-serial", f"file:{console}", "-pidfile", str(pidfile), "-daemonize", "-snapshot", "-no-reboot"),
            *("-drive", f"file={self.options.image}/boot.img,if=none,id=boot,format=raw"),
            *("-device", "virtio-blk-pci,drive=boot,bootindex=1"),
            *("-drive", f"file={self.options.image}/root.img,if=none,id=root,format=raw"),
            *("-device", "virtio-blk-pci,drive=root,bootindex=2"),
        ]
        try:
            if self.commands.try_(*argv)[0] != 0:
                return False
            end = time.monotonic() + PROBE_SECONDS
            while time.monotonic() < end:
                if FIRST_WORDS in (_lab.read_bytes(console) or b""):
                    return True
                time.sleep(0.2)
            return False
        finally:
            text = (_lab.read_bytes(pidfile) or b"").decode().strip()
            if text.isdigit():
                _lab.end(int(text), signal.SIGKILL)
                _lab.wait_gone([int(text)], 5)
            shutil.rmtree(place, ignore_errors=True)

    # -- deciding

    def files(
        self, host: _lab.HostSpec, everyone: Sequence[_lab.HostSpec], settings: Settings
    ) -> dict[str, tuple[bytes, int]]:
        """Everything that makes the host the one the inventory means."""
        shared = _lab_container.Options(
            bridge=self.options.bridge,
            subnet=self.options.subnet,
            image=self.options.image,
            suite=self.options.suite,
            storage="",
            boot_timeout=self.options.boot_timeout,
            systemd=self.options.systemd,
            unified_environment="",
        )
        containers = _lab_container.Containers(self.lab, shared, self.commands)
        files = {**containers.registry_files(settings), **containers.identity_files(host, everyone, settings)}
        files.update(network_files(self.lab.name, host, self.options))
        return files

    def plan(self, hosts: Sequence[_lab.HostSpec], everyone: Sequence[_lab.HostSpec], settings: Settings) -> list[Work]:
        seen = self.see(hosts)
        _lab_container.expect_banners(hosts, {name: bool(item.qemu) for name, item in seen.items()}, seen)
        # In a check run of a first run there is no image yet, and nothing to compare with.
        there = (self.options.image / "root.img").is_file()
        return [
            self._plan_one(host, seen[host.name], self.files(host, everyone, settings) if there else {})
            for host in hosts
        ]

    def _plan_one(self, host: _lab.HostSpec, seen: Seen, files: Mapping[str, tuple[bytes, int]]) -> Work:
        work, directory, record = Work(host, seen), self.directory(host.name), seen.record
        suite = record.get("suite", self.options.suite)
        if suite != self.options.suite:
            raise _lab.LabError(
                f"{host.name} was made from {suite}, and {self.options.suite} is asked for: take the lab down first"
                " (playbook lab_down.yml), or keep to its suite."
            )
        missing = [
            name
            for name in ("root.qcow2", *(f"{drive}.img" for drive in drives(self.options)))
            if not (directory / name).is_file()
        ]
        if missing:
            work.steps.append(f"make {', '.join(missing)}")
        if files and _lab.read_bytes(directory / "seed.img") != seed_tar(files):
            work.steps.append("write the seed")
        if not seen.qemu:
            work.steps.append("boot")
        elif work.steps:
            work.steps.append("boot again")
        elif record.get("shape") != self._shape():
            work.steps.append(f"boot again with {self.options.cpus} processors and {self.options.memory_mb} MiB")
        elif not seen.banner:
            work.steps.append("boot again (no answer on port 22)")
        work.boot = bool(work.steps)
        return work

    def _shape(self) -> dict[str, Any]:
        return {
            "cpus": self.options.cpus,
            "memory_mb": self.options.memory_mb,
            "nvme_count": self.options.nvme_count,
            "bridge": self.options.bridge,
        }

    # -- doing

    def apply(self, works: Sequence[Work], everyone: Sequence[_lab.HostSpec], settings: Settings) -> None:
        failures: list[str] = []
        booted: list[Work] = []
        accel = self.accelerator()
        for work in works:
            try:
                if work.seen.qemu:
                    # A host that answers gets the time to write what it has; one that does not is dead anyway.
                    self.stop(work.host.name, 60 if work.seen.banner else 0)
                self._make_disks(work)
                self._write_seed(work.host, everyone, settings)
                self._start(work.host, accel)
                booted.append(work)
            except _lab.LabError as error:
                failures.append(f"{work.host.name}: {error}")
        containers = _lab_container.Containers(self.lab, None, self.commands)
        containers.close_connections()
        failures.extend(self._wait_for([work.host for work in booted], containers))
        self.warnings.extend(containers.warnings)
        if failures:
            raise _lab.LabError(" ".join(failures))

    def _make_disks(self, work: Work) -> None:
        directory = self.directory(work.host.name)
        record = work.seen.record
        image = Path(record.get("image", self.options.image))
        if not (image / "root.img").is_file():
            raise _lab.LabError(
                f"it was made from {image}, which is gone from the cache: take the lab down first (playbook lab_down.yml)."
            )
        _lab.ensure_dir(directory, 0o700)
        root = directory / "root.qcow2"
        if not root.is_file():
            part = directory / "root.qcow2.partial"
            self.commands("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", f"{image}/root.img", str(part))
            part.rename(root)
        for drive in drives(self.options):
            path = directory / f"{drive}.img"
            if not path.is_file():
                part = path.with_suffix(".partial")
                with part.open("wb") as file:
                    file.truncate(self.options.nvme_mb << 20)
                if drive == "data":
                    self._fill_data(directory, part)
                part.rename(path)
        self._write_record(work.host, {**record, "image": str(image)})

    def _fill_data(self, directory: Path, path: Path) -> None:
        content = directory / "data.partial.d"
        shutil.rmtree(content, ignore_errors=True)
        file = content / DATA_FILE
        file.parent.mkdir(parents=True)
        file.write_text(DATA_TEXT, encoding="utf-8")
        self.commands("mkfs.ext4", "-q", "-F", "-L", DATA_LABEL, "-d", str(content), str(path))
        shutil.rmtree(content)

    def _write_record(self, host: _lab.HostSpec, record: Mapping[str, Any]) -> None:
        new = {
            **record,
            "kind": KIND,
            "name": host.name,
            "address": host.address,
            "suite": record.get("suite", self.options.suite),
            "shape": self._shape(),
        }
        if new != self.record(host.name):
            text = json.dumps(new, indent=2, sort_keys=True) + "\n"
            _lab.write_file(self.directory(host.name) / "host.json", text.encode(), 0o600)

    def _write_seed(self, host: _lab.HostSpec, everyone: Sequence[_lab.HostSpec], settings: Settings) -> None:
        # The host's private key is in it.
        content = seed_tar(self.files(host, everyone, settings))
        _lab.write_file(self.directory(host.name) / "seed.img", content, 0o600)

    def _start(self, host: _lab.HostSpec, accel: str) -> None:
        directory = self.directory(host.name)
        script = f'#!/bin/sh\nset -e\nip link set dev "$1" master {self.options.bridge}\nip link set dev "$1" up\n'
        _lab.write_file(directory / "ifup", script.encode(), 0o755)
        _lab.write_file(directory / "console.log", b"", 0o600)
        argv = qemu_argv(self.lab, host, self.options, directory, accel)
        if self.options.systemd:
            unit = self.lab.unit(host.name)
            self.commands.try_("systemctl", "reset-failed", unit)
            self.commands(
                *(
                    "systemd-run",
                    "--quiet",
                    "--collect",
                    f"--unit={unit}",
                    "--slice=machine.slice",
                    "--service-type=exec",
                ),
                *(f"--description=Host {host.name} of lab {self.lab.name}", "--", *argv),
            )
            return
        self.commands(*argv, "-daemonize")

    def _wait_for(self, hosts: Sequence[_lab.HostSpec], containers: _lab_container.Containers) -> list[str]:
        """Until every host lets the operator in and its systemd is done; sentences about those that do not."""
        end = time.monotonic() + self.options.boot_timeout
        waiting, failures = list(hosts), []
        while waiting and time.monotonic() < end:
            seen = self.see(waiting)
            for host in list(waiting):
                if not seen[host.name].qemu:
                    waiting.remove(host)
                    failures.append(f"{host.name}: it ended while booting: {containers.last_words(host.name)}")
                elif _lab_container.ssh_answers(host.address, 2):
                    waiting.remove(host)
            time.sleep(0.3)
        failures.extend(
            f"{host.name}: no answer on port 22 within {self.options.boot_timeout:.0f} s: {containers.last_words(host.name)}"
            for host in waiting
        )
        failed = {text.partition(":")[0] for text in failures}
        for host in hosts:
            if host.name not in failed:
                failures.extend(containers.login(host, max(30.0, end - time.monotonic())))
        return failures

    # -- ending

    def stop(self, host: str, seconds: float) -> None:
        """Switch a host off in order, and by force when it takes too long."""
        pids = self.see([_lab.HostSpec(host, "")])[host].qemu
        if pids and seconds:
            self._press_power_button(host)
            _lab.wait_gone(pids, seconds)
        self.kill(host)

    def _press_power_button(self, host: str) -> None:
        words = ("qmp_capabilities", "system_powerdown")
        with contextlib.suppress(OSError):
            _lab.qmp(self.directory(host) / "qmp.sock", words)

    def kill(self, host: str) -> None:
        """End a host's process; its disks stay."""
        for _attempt in range(10):
            pids = self.see([_lab.HostSpec(host, "")])[host].qemu
            if not pids:
                break
            for pid in pids:
                _lab.end(pid, signal.SIGKILL)
            _lab.wait_gone(pids, 5)
        else:
            raise _lab.LabError(f"The process of {host} does not end.")
        if _lab.pid1_is_systemd():
            self.commands.try_("systemctl", "stop", self.lab.unit(host))
            self.commands.try_("systemctl", "reset-failed", self.lab.unit(host))
        for name in ("qmp.sock", "qemu.pid"):
            (self.directory(host) / name).unlink(missing_ok=True)

    def remove(self, host: str) -> None:
        self.kill(host)
        if self.directory(host).is_dir():
            shutil.rmtree(self.directory(host))

    def reset(self, host: str) -> None:
        """Cut the host's power for a moment: what its kernel had not written is lost."""
        pids = self.see([_lab.HostSpec(host, "")])[host].qemu
        if not pids:
            raise _lab.LabError(f"{host} does not run.")
        _lab.qmp(self.directory(host) / "qmp.sock", ("qmp_capabilities", "system_reset"))
