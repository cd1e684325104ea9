# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import (
    _lab,
    _lab_container,
    _lab_image,
    _lab_inventory,
    _lab_vm,
    _lab_vm_image,
)

HOST = _lab.HostSpec("vm1", "10.77.0.50")


@pytest.fixture
def lab(tmp_path: Path) -> _lab.Lab:
    return _lab.Lab("gftest", tmp_path / "state", tmp_path / "cache")


def options(**changes: Any) -> _lab_vm.Options:
    values: dict[str, Any] = {
        "bridge": "lab-gftest",
        "subnet": "10.77.0.0/24",
        "image": Path("/cache/images/bookworm-vm-1"),
        "suite": "bookworm",
        "boot_timeout": 600,
        "systemd": False,
        "accel": "tcg",
        "cpus": 2,
        "memory_mb": 1536,
        "nvme_count": 4,
        "nvme_mb": 1024,
        "rail_subnet": "172.30.77.0/24",
    }
    return _lab_vm.Options(**{**values, **changes})


def machines(lab: _lab.Lab, **changes: Any) -> _lab_vm.Machines:
    return _lab_vm.Machines(lab, options(**changes), _lab.Commands(lambda *_a, **_k: (0, "", "")))


def test_names_stay_the_same_and_differ_where_they_must() -> None:
    macs = {_lab_vm.mac_of(lab, host, card) for lab in ("a", "b") for host in ("vm1", "vm2") for card in (0, 1)}
    assert len(macs) == 8
    assert all(mac.startswith("52:54:00:") for mac in macs)
    taps = {_lab_vm.tap_of(lab, host, card) for lab in ("a", "b") for host in ("vm1", "vm2") for card in (0, 1)}
    assert len(taps) == 8
    assert all(len(tap) <= 15 for tap in taps)
    assert _lab_vm.serial_of("gpufleetlong", "a-long-name-1", "nvme3") == "gpufle-name-1-nvme3"
    assert len(_lab_vm.serial_of("gpufleetlong", "a-long-name-1", "nvme10")) <= 20


def test_the_rail_has_the_same_place() -> None:
    assert _lab_vm.rail_address("10.77.0.50", "10.77.0.0/24", "172.30.77.0/24") == "172.30.77.50/24"
    assert _lab_vm.rail_address("10.77.0.50", "10.77.0.0/24", "") == ""
    with pytest.raises(_lab.LabError, match="has no place number 50"):
        _lab_vm.rail_address("10.77.0.50", "10.77.0.0/24", "172.30.77.0/27")


def test_network_by_mac() -> None:
    files = _lab_vm.network_files("gftest", HOST, options())
    lan = files["etc/systemd/network/10-gpufleet-lab.network"][0].decode()
    assert f"MACAddress={_lab_vm.mac_of('gftest', 'vm1', 0)}" in lan
    assert "Address=10.77.0.50/24\nGateway=10.77.0.1" in lan
    assert "Name=" not in lan
    rail = files["etc/systemd/network/11-gpufleet-lab-rail.network"][0].decode()
    assert "Address=172.30.77.50/24" in rail
    assert "Gateway" not in rail
    without = _lab_vm.network_files("gftest", HOST, options(rail_subnet=""))
    assert b"\nAddress=" not in without["etc/systemd/network/11-gpufleet-lab-rail.network"][0]


def test_the_seed_is_the_same_for_the_same_files_and_has_parents() -> None:
    files = {"root/.ssh/authorized_keys": (b"key\n", 0o600), "etc/hostname": (b"vm1\n", 0o644)}
    first = _lab_vm.seed_tar(files)
    assert first == _lab_vm.seed_tar(files)
    assert first != _lab_vm.seed_tar({**files, "etc/hostname": (b"vm2\n", 0o644)})
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        assert tar.getmember("root/.ssh").mode == 0o700
        assert tar.getmember("root/.ssh/authorized_keys").mode == 0o600
        assert tar.getnames()[-1] == "var/lib/gpufleet-lab/seed"
        digest = tar.extractfile("var/lib/gpufleet-lab/seed")
        assert digest is not None
        assert len(digest.read().strip()) == 64


def test_the_command(lab: _lab.Lab) -> None:
    argv = _lab_vm.qemu_argv(lab, HOST, options(), Path("/state/hosts/vm1"), "tcg")
    text = " ".join(argv)
    assert argv[0] == "qemu-system-x86_64"
    assert "-machine q35,accel=tcg -cpu max -smp 2 -m 1536" in text
    assert text.count("-device nvme,") == 5
    assert "serial=gftest-vm1-nvme0" in text
    assert "serial=gftest-vm1-data" in text
    assert text.count("-device e1000e,") == 2
    assert "file=/cache/images/bookworm-vm-1/boot.img,if=none,id=boot,format=raw,readonly=on" in text
    assert "-cpu host" in " ".join(_lab_vm.qemu_argv(lab, HOST, options(), Path("/s"), "kvm"))


def test_what_a_new_host_needs(lab: _lab.Lab) -> None:
    work = machines(lab)._plan_one(HOST, _lab_vm.Seen(), {})
    assert work.boot
    assert work.steps == ["make root.qcow2, nvme0.img, nvme1.img, nvme2.img, nvme3.img, data.img", "boot"]


def healthy(lab: _lab.Lab) -> tuple[_lab_vm.Machines, _lab_vm.Seen]:
    """A host that runs as it should."""
    found = machines(lab)
    directory = found.directory("vm1")
    directory.mkdir(parents=True)
    for name in ("root.qcow2", "nvme0.img", "nvme1.img", "nvme2.img", "nvme3.img", "data.img"):
        (directory / name).write_bytes(b"")
    found._write_record(HOST, {})
    return found, _lab_vm.Seen(record=found.record("vm1"), qemu=[1], banner=True)


def test_what_a_running_host_needs(lab: _lab.Lab) -> None:
    found, seen = healthy(lab)
    assert found._plan_one(HOST, seen, {}).steps == []
    files = {"etc/hostname": (b"vm1\n", 0o644)}
    assert found._plan_one(HOST, seen, files).steps == ["write the seed", "boot again"]
    (found.directory("vm1") / "seed.img").write_bytes(_lab_vm.seed_tar(files))
    assert found._plan_one(HOST, seen, files).steps == []
    seen.banner = False
    assert found._plan_one(HOST, seen, files).steps == ["boot again (no answer on port 22)"]
    seen.qemu = []
    assert found._plan_one(HOST, seen, files).steps == ["boot"]


def test_another_shape_and_another_suite(lab: _lab.Lab) -> None:
    found, seen = healthy(lab)
    larger = machines(lab, memory_mb=2048)
    assert larger._plan_one(HOST, seen, {}).steps == ["boot again with 2 processors and 2048 MiB"]
    with pytest.raises(_lab.LabError, match="vm1 was made from bookworm, and trixie is asked for"):
        machines(lab, suite="trixie")._plan_one(HOST, seen, {})
    assert found.known() == ["vm1"]


def test_each_kind_knows_its_own_hosts(lab: _lab.Lab) -> None:
    found, _seen = healthy(lab)
    (lab.hosts_dir / "gpu1").mkdir()
    containers = _lab_container.Containers(lab, None, _lab.Commands(lambda *_a, **_k: (0, "", "")))
    assert "vm1" not in containers.known()
    assert "gpu1" in containers.known()
    assert found.known() == ["vm1"]


def test_an_image_that_is_gone(lab: _lab.Lab) -> None:
    with pytest.raises(_lab.LabError, match="gone from the cache: take the lab down first"):
        machines(lab)._make_disks(_lab_vm.Work(HOST, _lab_vm.Seen()))


@pytest.mark.parametrize(("note", "result"), [({"works": True}, "kvm"), ({"works": False}, "tcg")])
def test_kvm_is_probed_once_per_boot(
    lab: _lab.Lab, monkeypatch: pytest.MonkeyPatch, note: dict[str, Any], result: str
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: True)
    lab.cache_dir.mkdir(parents=True)
    tries = []

    def probe(_self: Any) -> bool:
        tries.append(1)
        return bool(note["works"])

    monkeypatch.setattr(_lab_vm.Machines, "_boots_on_kvm", probe)
    assert machines(lab, accel="auto").accelerator() == result
    assert machines(lab, accel="auto").accelerator() == result
    assert len(tries) == 1
    assert json.loads((lab.cache_dir / "kvm.json").read_text(encoding="utf-8"))["works"] is note["works"]
    assert machines(lab, accel="tcg").accelerator() == "tcg"


def test_no_device_no_probe(lab: _lab.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert machines(lab, accel="auto").accelerator() == "tcg"


class Monitor(threading.Thread):
    """Stands in for QEMU's control socket."""

    def __init__(self, path: Path, answers: list[bytes]) -> None:
        super().__init__(daemon=True)
        self.answers = answers
        self.heard: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.start()

    def run(self) -> None:
        connection = self.socket.accept()[0]
        with connection, connection.makefile("rwb") as stream:
            stream.write(b'{"QMP": {}}\n')
            stream.flush()
            for answer in self.answers:
                self.heard.append(json.loads(stream.readline())["execute"])
                stream.write(answer)
                stream.flush()


def test_qmp(tmp_path: Path) -> None:
    event = b'{"event": "RESET"}\n'
    monitor = Monitor(tmp_path / "a", [b'{"return": {}}\n', event + b'{"return": {}}\n'])
    _lab.qmp(tmp_path / "a", ("qmp_capabilities", "system_reset"))
    monitor.join(5)
    assert monitor.heard == ["qmp_capabilities", "system_reset"]


def test_qmp_refuses(tmp_path: Path) -> None:
    Monitor(tmp_path / "a", [b'{"error": {"desc": "not now"}}\n'])
    with pytest.raises(_lab.LabError, match="QEMU refuses system_reset: not now"):
        _lab.qmp(tmp_path / "a", ("system_reset",))


def test_kinds_have_images_of_their_own() -> None:
    commands = _lab.Commands(lambda *_a, **_k: (0, "amd64\n", ""))
    container = _lab_image.image_of("bookworm", ["a"], ["deb x"], commands)
    disk = _lab_vm_image.image_of("bookworm", ["a"], ["deb x"], commands)
    assert container.name.startswith("bookworm-")
    assert disk.name.startswith("bookworm-vm-")
    assert container.key != disk.key


def test_a_disk_needs_a_kernel(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    with pytest.raises(_lab.LabError, match="has no /vmlinuz: add a kernel to lab_vm_packages"):
        _lab_vm_image.finish(tmp_path, _lab.Commands(lambda *_a, **_k: (0, "", "")))


def test_hosts_start_with_the_oldest_kernel(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    for name in ("6.1.0-9-amd64", "6.1.0-47-amd64", "6.1.0-50-amd64"):
        (tmp_path / "boot" / f"vmlinuz-{name}").touch()
    for link in ("vmlinuz", "initrd.img"):
        (tmp_path / link).symlink_to("boot/newest")
    _lab_vm_image.start_with_the_oldest_kernel(tmp_path)
    assert os.readlink(tmp_path / "vmlinuz") == "boot/vmlinuz-6.1.0-9-amd64"
    assert os.readlink(tmp_path / "initrd.img") == "boot/initrd.img-6.1.0-9-amd64"


def test_groups_have_kinds_and_parents() -> None:
    group = _lab_inventory.parse_group(
        "vm_hosts", {"prefix": "vm", "addresses": ["50-59"], "count": 0, "kind": "vm", "parents": ["gpu_hosts"]}
    )
    assert (group.kind, group.parents, group.count) == ("vm", ("gpu_hosts",), 0)
    with pytest.raises(_lab.LabError, match="expected container or vm in kind"):
        _lab_inventory.parse_group("x", {"prefix": "x", "addresses": [1], "kind": "zone"})
