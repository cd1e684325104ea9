# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Access to a host: begun, confirmed, undone, with a host of files and programs that answer from memory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _access_guard as access

RULES = "table inet gpufleet\n"


class Machine:
    """systemd, sshd and nft of a host."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[str] = []
        self.table = ""
        self.enabled = False
        self.broken: dict[str, str] = {}
        self.sshd = ""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        line = " ".join(argv)
        self.calls.append(line)
        for start, said in self.broken.items():
            if line.startswith(start):
                return 1, "", said
        if argv[:2] == ["systemctl", "is-enabled"]:
            return (0 if self.enabled else 1), "", ""
        if argv[:2] == ["systemctl", "enable"]:
            self.enabled = True
        if argv[:2] == ["sshd", "-T"]:
            drop_in = access.text_of(self.root / "00.conf").lower()
            return 0, self.sshd or f"port 22\n{drop_in}", ""
        if argv[:2] == ["nft", "-f"]:
            self.table = f"loaded {Path(argv[2]).read_text()}"
        if argv[:2] == ["nft", "delete"]:
            self.table = ""
        if argv[:3] == ["nft", "-s", "list"]:
            return (0 if self.table else 1), self.table, ""
        if argv[-1] == "rollback" and argv[0] != "systemd-run":
            self.calls.append("rolled back")
        return 0, "", ""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(access.shutil, "which", lambda name: f"/usr/sbin/{name}")
    return Machine(tmp_path)


def guard(
    machine: Machine,
    *,
    check: bool = False,
    rules: str = RULES,
    ports: tuple[int, ...] = (22,),
    ssh: dict[str, str] | None = None,
) -> access.Guard:
    root = machine.root
    wish = access.Wish(
        state_dir=str(root / "state"),
        helper="/helper",
        boot_unit="boot.service",
        ssh_file=str(root / "00.conf"),
        firewall_file=str(root / "fw.nft"),
        ssh_settings=ssh or {},
        ssh_config=str(root / "sshd_config"),
        ssh_ports=ports,
        firewall_rules=rules,
        header="managed",
    )
    return access.Guard(machine, wish, check)


def test_check_run_check_run(machine: Machine) -> None:
    settings = {"PasswordAuthentication": "no"}
    assert guard(machine, check=True, ssh=settings).begin().changed
    assert not (machine.root / "state").exists()
    begun = guard(machine, ssh=settings).begin()
    assert begun.changed
    assert begun.pending
    assert (machine.root / "00.conf").read_text() == "# managed\nPasswordAuthentication no\n"
    assert (machine.root / "state/pending").exists()
    assert guard(machine, check=True, ssh=settings).begin().reasons == ["an earlier change is not confirmed"]
    assert guard(machine, ssh=settings).confirm().changed
    assert not (machine.root / "state/pending").exists()
    for check in (True, False):
        after = guard(machine, check=check, ssh=settings).begin()
        assert (after.changed, after.pending) == (False, False)


def test_the_timer_runs_before_anything_is_replaced(machine: Machine) -> None:
    guard(machine, ssh={"PermitTunnel": "no"}).begin()
    timer = next(number for number, line in enumerate(machine.calls) if line.startswith("systemd-run"))
    assert timer < machine.calls.index("systemctl reload ssh.service")
    assert timer < machine.calls.index(f"nft -f {machine.root / 'fw.nft'}")
    assert "--on-active=60" in machine.calls[timer]
    assert machine.calls[timer].endswith("/helper rollback")


def test_without_a_timer_nothing_is_changed(machine: Machine) -> None:
    machine.broken = {"systemd-run": "no manager"}
    with pytest.raises(access.AccessError, match="nothing was changed: no manager"):
        guard(machine, ssh={"PermitTunnel": "no"}).begin()
    assert not (machine.root / "00.conf").exists()
    assert not (machine.root / "state/pending").exists()
    assert machine.table == ""


@pytest.mark.parametrize("broken", ["sshd -t -f", "nft -c -f"])
def test_refused_files_change_nothing(machine: Machine, broken: str) -> None:
    machine.broken = {broken: "line 2"}
    with pytest.raises(access.AccessError, match="nothing was changed: line 2"):
        guard(machine, ssh={"PermitTunnel": "no"}).begin()
    assert not (machine.root / "00.conf").exists()
    assert not any(line.startswith("systemd-run") for line in machine.calls)


@pytest.mark.parametrize("broken", ["systemctl reload ssh", "nft -f"])
def test_what_does_not_load_is_undone_at_once(machine: Machine, broken: str) -> None:
    machine.broken = {broken: "boom"}
    with pytest.raises(access.AccessError, match="boom; the host has its former settings again"):
        guard(machine, ssh={"PermitTunnel": "no"}).begin()
    assert "rolled back" in machine.calls


def test_another_file_of_sshd_wins(machine: Machine) -> None:
    machine.sshd = "port 22\npasswordauthentication yes\n"
    with pytest.raises(access.AccessError, match="PasswordAuthentication: expected no, found yes; the host has"):
        guard(machine, ssh={"PasswordAuthentication": "no"}).begin()


def test_the_port_of_sshd_must_stay_open(machine: Machine) -> None:
    machine.sshd = "port 2222\n"
    with pytest.raises(
        access.AccessError, match="sshd listens on port 2222, expected that the firewall opens it, found only 22"
    ):
        guard(machine).begin()
    assert guard(machine, ports=(22, 2222)).begin().pending


def test_a_change_that_was_undone_is_told(machine: Machine) -> None:
    guard(machine, ssh={"PermitTunnel": "no"}).begin()
    (machine.root / "state/pending").rename(machine.root / "state/rolled-back")
    with pytest.raises(access.AccessError, match="would have locked out this connection"):
        guard(machine).confirm()


def test_rules_that_somebody_flushed_come_back(machine: Machine) -> None:
    guard(machine).begin()
    guard(machine).confirm()
    machine.table = ""
    assert guard(machine).begin().reasons == ["the rules in the kernel are not those of the file"]
    assert machine.table


def test_the_firewall_goes_when_it_is_not_wanted(machine: Machine) -> None:
    guard(machine, ssh={"PermitTunnel": "no"}).begin()
    guard(machine, ssh={"PermitTunnel": "no"}).confirm()
    assert guard(machine, rules="", ssh={"PermitTunnel": "no"}).begin().pending
    assert machine.table == ""
    assert not (machine.root / "fw.nft").exists()


def test_remove(machine: Machine) -> None:
    guard(machine, ssh={"PermitTunnel": "no"}).begin()
    assert guard(machine, check=True).remove().changed
    assert (machine.root / "00.conf").exists()
    assert guard(machine).remove().changed
    assert not any((machine.root / name).exists() for name in ("00.conf", "fw.nft", "state"))
    assert machine.table == ""
    assert not guard(machine).remove().changed


def test_values_of_sshd() -> None:
    shown = "permitrootlogin without-password\nallowusers a\nallowusers b\nciphers x,y\n"
    assert access.ignored({"PermitRootLogin": "prohibit-password", "AllowUsers": "a b", "Ciphers": "x,y"}, shown) == []
    assert access.ignored({"AllowUsers": "a"}, shown) == ["AllowUsers: expected a, found a b"]
    assert access.ignored({"NotShown": "1"}, shown) == []


# -- the program that undoes a change, as the role puts it on a host

HELPER = Path(__file__).parents[4] / "roles/os_hardening/templates/access-guard.sh.j2"


def helper(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it with programs that write down what they were called with."""
    text = HELPER.read_text(encoding="utf-8")
    for name, value in {
        "__os_hardening_managed": "managed",
        "__os_hardening_access_dir": root / "state",
        "__os_hardening_ssh_file": root / "00.conf",
        "__os_hardening_ssh_unit": "ssh.service",
        "__os_hardening_firewall_file": root / "fw.nft",
    }.items():
        text = text.replace("{{ " + name + " }}", str(value))
    assert "{{" not in text
    (root / "helper").write_text(text, encoding="utf-8")
    tools = root / "bin"
    tools.mkdir(exist_ok=True)
    for tool in ("nft", "systemctl"):
        (tools / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >> {root}/calls\n', encoding="utf-8")
        (tools / tool).chmod(0o755)
    return subprocess.run(
        ["sh", str(root / "helper"), *words],
        env={"PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("verb", ["rollback", "boot"])
def test_an_unconfirmed_change_is_undone(tmp_path: Path, verb: str) -> None:
    (tmp_path / "state/previous").mkdir(parents=True)
    (tmp_path / "state/pending").write_text("now\n")
    (tmp_path / "state/previous/firewall").write_text("old rules\n")
    (tmp_path / "fw.nft").write_text("new rules\n")
    (tmp_path / "00.conf").write_text("new\n")
    assert helper(tmp_path, verb).returncode == 0
    assert (tmp_path / "fw.nft").read_text() == "old rules\n"
    assert not (tmp_path / "00.conf").exists()
    assert (tmp_path / "state/rolled-back").read_text() == "now\n"
    calls = (tmp_path / "calls").read_text()
    assert f"nft -f {tmp_path}/fw.nft\n" in calls
    assert ("systemctl reload ssh.service\n" in calls) == (verb == "rollback")


def test_a_confirmed_change_stays(tmp_path: Path) -> None:
    (tmp_path / "fw.nft").write_text("rules\n")
    assert helper(tmp_path, "rollback").returncode == 0
    assert not (tmp_path / "calls").exists()
    assert helper(tmp_path, "boot").returncode == 0
    assert (tmp_path / "calls").read_text() == f"nft -f {tmp_path}/fw.nft\n"
    assert helper(tmp_path).returncode == 2
