# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What role os_hardening does that needs a kernel of its own: audit, clock, modules, limits, a boot and a power cut."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hosttools import Hosts

GROUPS = "kernel kernel_hardening ssh accounting time"
FIREWALL = "/etc/gpufleet/os_hardening/firewall.nft"
ACCESS = "/var/lib/gpufleet/os_hardening/access"
# Nobody new comes in; the answer of who wrote them goes out.
RULES = """table inet gpufleet
delete table inet gpufleet
table inet gpufleet {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established accept
  }
}
"""


def settings(vms: Hosts) -> dict[str, Any]:
    """As an inventory would say it. An emulated host takes its time to answer; its image masks the timers of apt."""
    return {
        "os_hardening_updates_timers": False,
        "os_hardening_rollback_seconds": 180,
        "os_hardening_fleet_allow": [{"ports": [5201], "proto": "tcp", "from": [vms.subnet], "comment": "test"}],
    }


def scan(vms: Hosts, host: str) -> None:
    """Begin a scan of what a container cannot show. All groups of tests take minutes on an emulated host; molecule runs those."""
    command = "lynis audit system --quick --no-colors --quiet --report-file /var/tmp/lynis.dat --tests-from-group"
    vms.ssh(
        host,
        f"rm -f /var/tmp/lynis.dat /var/tmp/lynis.done; systemd-run --quiet --collect sh -c '{command} \"{GROUPS}\"; touch /var/tmp/lynis.done'",
    )


def score(vms: Hosts, host: str) -> int:
    """The hardening index of the scan, when it is done."""
    vms.ssh(host, "timeout 300 sh -c 'until [ -e /var/tmp/lynis.done ]; do sleep 1; done'", 400)
    found = vms.ssh(host, "sed -n s/^hardening_index=//p /var/tmp/lynis.dat; rm /var/tmp/lynis.dat /var/tmp/lynis.done")
    return int(found)


@pytest.fixture(scope="module")
def hardened(vms: Hosts) -> Any:
    """One host, hardened, while the scanner looks at its twin; afterwards as it was."""
    host, twin = vms.names[0], vms.names[1]
    scan(vms, twin)
    sysctl = vms.ssh(host, "sysctl -a 2>/dev/null | grep -E '^(kernel|net.ipv4.conf.(all|default)|fs.prot)' | sort")
    try:
        vms.role("os_hardening", hosts=host, variables=settings(vms)).ok()
        scan(vms, host)
        yield {"host": host, "twin": twin}
    finally:
        vms.role("os_hardening", hosts=host, variables=settings(vms), tasks_from="remove.yml").ok()
    after = vms.ssh(host, "sysctl -a 2>/dev/null | grep -E '^(kernel|net.ipv4.conf.(all|default)|fs.prot)' | sort")
    moving = ("kernel.random", "kernel.ns_last_pid", "kernel.pty.nr", "kernel.tainted", "kernel.perf_")
    keep = [[line for line in text.splitlines() if not line.startswith(moving)] for text in (sysctl, after)]
    assert keep[0] == keep[1]
    assert (
        vms.ssh(
            host, "nft list tables; ls -d /var/lib/gpufleet/os_hardening /etc/gpufleet/os_hardening 2>/dev/null; true"
        )
        == ""
    )


def test_everything_is_in_force(vms: Hosts, hardened: dict[str, Any]) -> None:
    host = hardened["host"]
    words = vms.ssh(
        host,
        "auditctl -l | grep -c gpufleet; auditctl -s | grep -w backlog_wait_time; systemctl is-active auditd chrony;"
        "grep -E '^(disk_full|admin_space_left|space_left|disk_error|max_log_file)_action' /etc/audit/auditd.conf | tr -d ' ';"
        "cat /proc/sys/kernel/dmesg_restrict /proc/sys/net/ipv4/conf/all/rp_filter /proc/sys/net/ipv4/conf/all/accept_redirects"
        " /proc/sys/net/ipv4/tcp_timestamps /proc/sys/kernel/kexec_load_disabled /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
    ).split("\n")
    assert int(words[0]) >= 20, words
    assert words[1] == "backlog_wait_time 0"
    assert words[2:4] == ["active", "active"]
    assert not any(line.endswith(("SUSPEND", "SINGLE", "HALT")) for line in words[4:9]), words
    assert words[9:] == ["1", "2", "0", "1", "0", "86400"]


def test_a_blacklisted_module_is_refused_and_efi_loads(vms: Hosts, hardened: dict[str, Any]) -> None:
    host = hardened["host"]
    assert vms.try_ssh(host, "modprobe cramfs || modprobe dccp || modprobe tipc").returncode != 0
    vms.ssh(
        host,
        "modprobe vfat && modprobe squashfs && modprobe overlay && modprobe ib_core && grep -q '^vfat' /proc/modules",
    )


def test_a_service_gets_the_limits(vms: Hosts, hardened: dict[str, Any]) -> None:
    host = hardened["host"]
    assert vms.ssh(host, "systemd-run --quiet --pipe --wait sh -c 'ulimit -n; ulimit -l; ulimit -c'").split() == [
        "1048576",
        "unlimited",
        "0",
    ]
    assert vms.ssh(host, "ulimit -n; ulimit -l").split() == ["1048576", "unlimited"]


def test_a_second_run_changes_nothing(vms: Hosts, hardened: dict[str, Any]) -> None:
    vms.role("os_hardening", hosts=hardened["host"], variables=settings(vms)).unchanged()


def test_the_scanner_is_content(vms: Hosts, hardened: dict[str, Any]) -> None:
    before, after = score(vms, hardened["twin"]), score(vms, hardened["host"])
    print(f"Lynis, groups {GROUPS}: {before} before, {after} after")
    assert after >= before + 15


def test_a_power_cut_before_the_confirmation(vms: Hosts, hardened: dict[str, Any]) -> None:
    """The host boots with what was confirmed last, and with the kernel's settings."""
    host = hardened["host"]
    good = vms.ssh(host, f"cat {FIREWALL}; nft -s list table inet gpufleet")
    begun = vms.module(
        host,
        "access_guard",
        {
            "state": "begun",
            "ssh_file": "/etc/ssh/sshd_config.d/00-gpufleet.conf",
            "ssh_settings": {"AllowUsers": "nobody"},
            "firewall_file": FIREWALL,
            "firewall_rules": RULES,
            "helper": "/usr/local/lib/gpufleet/access-guard",
            "boot_unit": "gpufleet-access.service",
            "state_dir": ACCESS,
            "rollback_seconds": 900,
        },
    )
    assert begun.get("pending"), begun
    # Nobody can come in: the rules drop new connections, sshd refuses everybody. The disk gets what was written.
    time.sleep(2)
    reset(vms, host)
    assert vms.ssh(host, f"cat {FIREWALL}; nft -s list table inet gpufleet") == good
    words = vms.ssh(
        host,
        f"ls {ACCESS}; sshd -T | grep -c allowusers; cat /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established;"
        "systemctl is-active gpufleet-access auditd chrony; auditctl -l | grep -c gpufleet",
    ).split()
    assert "pending" not in words
    assert "rolled-back" in words
    assert words[-6:-4] == ["0", "86400"], words
    assert words[-4:-1] == ["active", "active", "active"]
    assert int(words[-1]) >= 20


def reset(vms: Hosts, host: str) -> None:
    """Cut the power of a host that cannot be asked for anything, and wait until it can."""
    arguments = {"lab": vms.name, "state_dir": str(vms.state), "cache_dir": "/var/cache/gpufleet-lab"}
    vms._local("lab_vms", {**arguments, "state": "reset", "only": [host]})
    vms.wait_for_boot(host, "")
