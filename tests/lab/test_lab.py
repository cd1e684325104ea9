# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The lab's hard cases: it heals, survives being killed, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from labtools import ROOT, Lab, cmdlines, command, descendants

HOSTS = ["gw1", "gpu1"]


@pytest.fixture
def up(lab: Lab) -> Lab:
    """The lab, up and healthy: brought up when the test before took it down or left it ill."""
    if not all(lab.answers(host) for host in HOSTS):
        lab.up()
    return lab


# -- up --------------------------------------------------------------------------------------------------------------


def test_a_check_run_on_nothing(lab: Lab) -> None:
    lab.play("lab_up", "--check", "--diff")
    assert lab.traces() == []


def test_hosts_are_real(up: Lab) -> None:
    up.healthy(HOSTS)
    for host, address in (("gw1", "10.78.1.10"), ("gpu1", "10.78.1.21")):
        assert f"inet {address}/24" in up.ssh(host, "ip addr show host0")
        assert up.ssh(host, "cat /proc/1/comm") == "systemd"
    assert "1 received" in up.ssh("gpu1", "ping -c 1 -W 2 gw1")


def test_a_second_run_changes_nothing(up: Lab) -> None:
    assert up.up() == 0
    assert up.up("--check", "--diff") == 0


def test_ansible_reaches_the_hosts_with_pinned_keys(up: Lab) -> None:
    tool = up.argv("x")[0].replace("ansible-playbook", "ansible")
    words = [
        "-i",
        "inventories/lab",
        "-e",
        f"lab_name={up.name}",
        "-e",
        f"lab_subnet={up.subnet}",
        "-e",
        "lab_monitor_count=0",
    ]
    done = command(tool, "all", "-m", "ansible.builtin.ping", *words, "-e", "lab_gpu_count=1")
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("SUCCESS") == 2


def test_a_host_with_another_key_is_refused(up: Lab) -> None:
    known = up.state / "known_hosts"
    good = known.read_text()
    gw1, gpu1 = good.splitlines()
    swapped = [f"{gw1.split()[0]} {' '.join(gpu1.split()[1:])}", gpu1]
    try:
        known.write_text("\n".join(swapped) + "\n")
        done = command("ssh", "-F", str(up.state / "ssh/config"), "-o", "BatchMode=yes", "gw1", "true")
        assert done.returncode == 255
        assert "verification failed" in done.stderr
        # And the lab puts its own file right again.
        assert up.up() == 1
        assert known.read_text() == good
    finally:
        known.write_text(good)


def test_secrets_are_for_root_only(up: Lab) -> None:
    for name in (
        "ssh/id_ed25519",
        "secrets/api_key",
        "secrets/prometheus_password",
        "pki/ca.key",
        "pki/gw1.key",
        "known_hosts",
    ):
        assert (up.state / name).stat().st_mode & 0o777 == 0o600, name


def test_a_certificate_follows_its_host(up: Lab) -> None:
    certificate, key = up.state / "pki/gw1.crt", up.state / "pki/gw1.key"
    shown = command("openssl", "x509", "-in", str(certificate), "-noout", "-ext", "subjectAltName").stdout
    assert "DNS:gw1" in shown
    assert "IP Address:10.78.1.10" in shown
    assert command("openssl", "verify", "-CAfile", str(up.state / "pki/ca.crt"), str(certificate)).returncode == 0
    command("openssl", "genpkey", "-algorithm", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key))
    changed, text = up.play("lab_up", "--diff")
    assert changed == 1
    assert "certificate of gw1: does not belong to its key" in text
    assert up.up() == 0


# -- healing ---------------------------------------------------------------------------------------------------------


def test_a_dead_host_is_booted_again(up: Lab) -> None:
    other = up.boot_id("gw1")
    up.ssh("gpu1", "echo kept >/srv/file; sync")
    for pid in up.pids("gpu1"):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert up.up() == 1
    up.healthy(HOSTS)
    assert up.ssh("gpu1", "cat /srv/file") == "kept"
    assert up.boot_id("gw1") == other


def test_a_wrong_address_is_repaired_in_the_running_host(up: Lab) -> None:
    before = up.boot_id("gpu1")
    script = (
        "ip addr flush dev host0 scope global; ip addr add 10.78.1.99/24 dev host0; ip route add default via 10.78.1.98"
    )
    command("ssh", "-F", str(up.state / "ssh/config"), "gpu1", f"nohup sh -c '{script}' >/dev/null 2>&1 &", seconds=30)
    time.sleep(0.5)
    assert up.up() == 1
    assert up.boot_id("gpu1") == before
    assert up.ssh("gpu1", "ip -4 -o addr show host0 | wc -l") == "1"
    assert "1 received" in up.ssh("gpu1", "ping -c 1 -W 2 gw1")


@pytest.mark.parametrize("what", ["bridge", "table", "rule", "veth"])
def test_the_network_is_made_again(up: Lab, what: str) -> None:
    before = up.boot_id("gpu1")
    table = f"gpufleet_lab_{up.name}"
    if what == "bridge":
        command("ip", "link", "del", f"lab-{up.name}")
    elif what == "table":
        command("nft", "delete", "table", "ip", table)
    elif what == "rule":
        command("nft", "flush", "chain", "ip", table, "postrouting")
    else:
        links = json.loads(command("ip", "-json", "link", "show", "master", f"lab-{up.name}").stdout)
        command("ip", "link", "set", links[0]["ifname"], "nomaster")
    assert up.up() >= 1
    assert up.up() == 0
    assert up.boot_id("gpu1") == before
    assert "1 received" in up.ssh("gpu1", "ping -c 1 -W 2 gw1")
    assert "masquerade" in command("nft", "list", "table", "ip", table).stdout


def test_a_silent_sshd_is_booted_again(up: Lab) -> None:
    command(
        "ssh",
        "-F",
        str(up.state / "ssh/config"),
        "gpu1",
        "nohup systemctl stop ssh.service >/dev/null 2>&1 &",
        seconds=30,
    )
    time.sleep(1)
    assert up.up() == 1
    up.healthy(["gpu1"])


def test_stale_mounts_are_sorted_out(up: Lab) -> None:
    root = up.state / "hosts/gpu1/root"
    for pid in up.pids("gpu1"):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    command("mount", "-t", "tmpfs", "stale", str(root))
    assert up.up() == 1
    up.healthy(["gpu1"])
    for pid in up.pids("gpu1"):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    command("umount", str(root))
    assert up.up() == 1
    up.healthy(["gpu1"])


def test_a_host_can_reboot(up: Lab) -> None:
    before = up.boot_id("gpu1")
    command("ssh", "-F", str(up.state / "ssh/config"), "gpu1", "systemctl reboot", seconds=30)
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        done = command(
            "ssh", "-F", str(up.state / "ssh/config"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=1", "gpu1", "true"
        )
        if done.returncode == 0 and up.boot_id("gpu1") != before:
            break
        time.sleep(0.3)
    else:
        pytest.fail("the host did not come back")
    up.healthy(["gpu1"])
    assert up.up() == 0


def test_identity_and_registries_are_put_back(up: Lab) -> None:
    up.ssh("gpu1", "echo wrong >/etc/hostname; rm /etc/resolv.conf; : >/root/.ssh/authorized_keys")
    assert up.up() == 1
    assert up.ssh("gpu1", "cat /etc/hostname; test -s /etc/resolv.conf && echo there").split() == ["gpu1", "there"]


def test_systemds_do_not_share_control_groups(up: Lab) -> None:
    """A service of one host is not in the tree of another: each sees only its own sshd."""
    for host in HOSTS:
        assert up.ssh(host, "systemctl show -P NRestarts ssh.service") == "0"
        listed = up.ssh(host, "cat /sys/fs/cgroup/system.slice/ssh.service/cgroup.procs | grep -cx 0 || true")
        assert listed == "0", f"{host} sees processes of others in its control groups"


# -- other hosts -----------------------------------------------------------------------------------------------------


def test_more_hosts_by_a_variable_and_fewer_again(up: Lab) -> None:
    more = [word.replace("lab_gpu_count=1", "lab_gpu_count=2") for word in up.extra]
    bigger = Lab(up.name, up.subnet, more)
    # Certificates and names of the others change, too: /etc/hosts knows the new one.
    assert bigger.up() == 2
    bigger.healthy([*HOSTS, "gpu2"])
    assert "gpu2" in up.ssh("gw1", "cat /etc/hosts")
    shown = command(*[word.replace("-playbook", "-inventory") for word in up.argv("x")[:1]], "-i", "inventories/lab", "--graph",
                    "-e", f"lab_name={up.name}", "-e", f"lab_subnet={up.subnet}").stdout  # fmt: skip
    assert "gpu2" in shown, "an inventory that is not told a number serves what runs"
    changed, text = up.play("lab_up")
    assert "gpu2: running, but not in lab_hosts" in text
    assert changed >= 1  # the others forget its name
    assert up.pids("gpu2")
    assert up.up("-e", "lab_remove_unlisted=true") == 1
    assert not up.pids("gpu2")
    assert not (up.state / "hosts/gpu2").exists()


def test_two_labs_side_by_side(up: Lab) -> None:
    second = Lab("labtestb", "10.78.12.0/24", ["-e", "lab_gpu_count=0", "-e", "lab_monitor_count=0"])
    try:
        second.up()
        second.healthy(["gw1"])
        assert second.ssh("gw1", "ip -4 -o addr show host0").split()[3] == "10.78.12.10/24"
        up.healthy(HOSTS)
    finally:
        second.down()
    assert second.traces() == []
    up.healthy(HOSTS)


def test_a_copy_instead_of_an_overlay(lab: Lab) -> None:
    copy = Lab(
        "labtestc", "10.78.5.0/24", ["-e", "lab_gpu_count=0", "-e", "lab_monitor_count=0", "-e", "lab_storage=copy"]
    )
    try:
        copy.up()
        copy.healthy(["gw1"])
        assert copy.up() == 0
        assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{copy.state}/" in line]
    finally:
        copy.down()
    assert copy.traces() == []


def test_an_overlay_that_cannot_be_becomes_a_copy(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A state directory that is itself on an overlay, as inside most containers."""
    base = tmp_path_factory.mktemp("overlay")
    for name in ("l", "u", "w", "m"):
        (base / name).mkdir()
    command(
        "mount",
        "-t",
        "overlay",
        "-o",
        f"lowerdir={base}/l,upperdir={base}/u,workdir={base}/w",
        "gftest",
        str(base / "m"),
    )
    words = ["-e", "lab_gpu_count=0", "-e", "lab_monitor_count=0", "-e", f"lab_state_dir={base}/m/state"]
    nested = Lab("labtestd", "10.78.6.0/24", words)
    try:
        _changed, text = nested.play("lab_up")
        assert "which cannot carry an overlay" in " ".join(text.split())
        assert nested.up() == 0
    finally:
        nested.down()
        command("umount", str(base / "m"))
    assert nested.traces() == []


@pytest.mark.long
def test_another_release(lab: Lab) -> None:
    other = Lab(
        "labteste",
        "10.78.7.0/24",
        ["-e", "lab_gpu_count=0", "-e", "lab_monitor_count=0", "-e", "lab_image_suite=trixie"],
    )
    try:
        other.up()
        other.healthy(["gw1"])
        assert other.ssh("gw1", ". /etc/os-release; echo $VERSION_CODENAME") == "trixie"
        code, text = other.try_play("lab_up", "-e", "lab_image_suite=bookworm")
        assert code != 0
        assert "gw1 was made from trixie, and bookworm is asked for" in " ".join(text.split())
        other.healthy(["gw1"])
    finally:
        other.down()


# -- what is wrong is said before anything is touched ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-e", "lab_name=Wrong_Name"], ["lab_name: expected a letter"]),
        (
            ["-e", '{"lab_hosts": [{"name": "a", "address": "10.78.9.9"}]}'],
            ["a: its address 10.78.9.9 lies outside lab_subnet"],
        ),
        (
            ["-e", '{"lab_hosts": [{"name": "a", "address": "10.78.1.9", "kind": "vm"}], "lab_vm_memory_mb": 100}'],
            ["lab_vm_memory_mb: expected at least 512, found 100"],
        ),
        (
            ["-e", '{"lab_hosts": [{"name": "%s", "address": "10.78.1.9"}]}' % ("a" * 60)],
            ["a host's name has at most 48 characters"],
        ),
        (
            ["-e", '{"lab_hosts": [{"name": "a", "address": "10.78.1.9", "kind": "box"}]}'],
            ["value of kind must be one of: container, vm"],
        ),
        (["-e", "lab_subnet=10.78.1.7/24"], ["lab_subnet: expected an IPv4 network"]),
        (
            ["-e", '{"lab_hosts": [{"name": "A", "address": "1.2.3.4"}, {"name": "b", "address": "10.78.1.1"}]}'],
            [
                "A: a host's name is made of lower-case",
                "A: its address 1.2.3.4 lies outside",
                "b: its address 10.78.1.1 is taken by this machine",
            ],
        ),
    ],
)
def test_wrong_values(lab: Lab, words: list[str], expected: list[str]) -> None:
    lab.down()
    code, text = lab.try_play("lab_up", *words)
    assert code != 0
    for sentence in expected:
        assert sentence in " ".join(text.split())
    assert lab.traces() == []


def test_a_subnet_somebody_uses(lab: Lab) -> None:
    command("ip", "link", "add", "gftestlink", "type", "bridge")
    command("ip", "addr", "add", "10.78.1.77/24", "dev", "gftestlink")
    try:
        code, text = lab.try_play("lab_up")
        assert code != 0
        assert "lab_subnet 10.78.1.0/24 is in use: gftestlink has 10.78.1.77/24" in " ".join(text.split())
    finally:
        command("ip", "link", "del", "gftestlink")
    assert lab.traces() == []


def test_a_missing_program(lab: Lab, tmp_path: Path) -> None:
    """Without nft and mmdebstrap in PATH, both are named."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for path in Path(folder).iterdir() if Path(folder).is_dir() else []:
            if path.name not in ("nft", "mmdebstrap") and not (tools / path.name).is_symlink():
                (tools / path.name).symlink_to(path)
    # PATH alone does not hide them (modules also look in sbin): a mount table of its own does.
    hide = "mount --bind /dev/null /usr/sbin/nft && mount --bind /dev/null /usr/bin/mmdebstrap"
    words = " ".join(f"'{word}'" for word in lab.argv("lab_up"))
    done = command("unshare", "--mount", "sh", "-c", f"{hide} && exec {words}", ANSIBLE_NOCOLOR="1")
    assert done.returncode != 0
    text = " ".join(done.stdout.split())
    assert "nft is missing: install the package nftables." in text
    assert "mmdebstrap is missing: install the package mmdebstrap." in text
    assert lab.traces() == []


def test_not_root(lab: Lab, tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in lab.argv("lab_up"))
    env: dict[str, Any] = {
        "HOME": "/tmp",
        "ANSIBLE_LOCAL_TEMP": "/tmp/gftest-nobody",
        "ANSIBLE_REMOTE_TEMP": "/tmp/gftest-nobody",
        "ANSIBLE_NOCOLOR": "1",
    }
    done = command("setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", f"exec {words}", **env)
    command("rm", "-rf", "/tmp/gftest-nobody")
    if "Permission denied" in done.stderr and not done.stdout:
        pytest.skip("the checkout or its Python is not readable for others")
    assert done.returncode != 0
    assert "A lab needs root on this machine" in " ".join(done.stdout.split())
    assert lab.traces() == []


# -- killed in the middle ----------------------------------------------------------------------------------------------


def kill_when(lab: Lab, marker: str, delay: float, whole: bool, *words: str) -> None:
    """Start lab_up, and kill it (with its workers and modules, or alone) so many seconds after it says something."""
    started = subprocess.Popen(
        lab.argv("lab_up", *words), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "ANSIBLE_NOCOLOR": "1"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert started.stdout is not None
    for line in started.stdout:
        if marker in line:
            break
    time.sleep(delay)
    # Workers and modules have sessions of their own; what a module started (mmdebstrap, say) is left running.
    pids = (
        [pid for pid, argv in descendants(started.pid) if any("ansible" in word.lower() for word in argv)]
        if whole
        else []
    )
    for pid in [started.pid, *pids]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    started.wait()
    started.stdout.close()


POINTS = [
    ("Make the bridge", 0.3, True, "up"),
    ("Make keys", 0.4, True, "down"),
    ("Run the hosts", 0.5, True, "up"),
    ("Run the hosts", 1.0, False, "down"),
    ("Run the hosts", 1.2, True, "down"),
    ("Run the hosts", 2.0, False, "up"),
]


@pytest.mark.parametrize(("marker", "delay", "whole", "then"), POINTS)
def test_killed_in_the_middle(lab: Lab, marker: str, delay: float, whole: bool, then: str) -> None:
    lab.down()
    kill_when(lab, marker, delay, whole)
    if then == "up":
        lab.up()
        lab.healthy(HOSTS)
        assert lab.up() == 0
    lab.down()
    lab.wait_for_no_module()
    assert lab.traces() == []


def builders(cache: Path) -> list[int]:
    """Processes of a build in this cache: all of them carry its directory in their environment."""
    found = []
    for pid in cmdlines():
        with contextlib.suppress(OSError):
            if f"GPUFLEET_LAB_BUILD={cache}/".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


@pytest.mark.parametrize("whole", [pytest.param(True, marks=pytest.mark.long), False])
def test_killed_while_the_image_is_made(lab: Lab, tmp_path_factory: pytest.TempPathFactory, whole: bool) -> None:
    cache = Path(f"/var/tmp/gftest-cache-{int(whole)}")
    command("rm", "-rf", str(cache))
    words = [
        "-e",
        f"lab_cache_dir={cache}",
        "-e",
        '{"lab_image_packages": ["systemd-sysv", "openssh-server", "python3", "udev"]}',
    ]
    lab.down(*words)
    kill_when(lab, "Make the image", 8, whole, *words)
    assert builders(cache), "the build had not begun"
    lab.down(*words)
    assert builders(cache) == []
    assert not list((cache / "images").glob(".partial-*"))
    if whole:
        kill_when(lab, "Make the image", 5, whole, *words)
        lab.up("--tags", "lab_preflight,lab_install", *words)
        assert len(list((cache / "images").glob("bookworm-*/image.json"))) == 1
        assert lab.up("--tags", "lab_preflight,lab_install", *words) == 0
    lab.down("-e", "lab_purge_cache=true", *words)
    assert not cache.exists()
    assert lab.traces() == []


# -- down --------------------------------------------------------------------------------------------------------------


def test_down_leaves_nothing_and_is_idempotent(up: Lab) -> None:
    up.ssh(
        "gpu1",
        "chattr +i /etc/motd 2>/dev/null || true; mkdir -p /srv/deep/er; dd if=/dev/zero of=/srv/big bs=1M count=20 2>/dev/null",
    )
    assert up.down("--check") > 0
    up.healthy(HOSTS)
    assert up.down() > 0
    assert up.traces() == []
    assert up.down() == 0


def test_files_that_are_not_the_labs_stay(lab: Lab) -> None:
    lab.up()
    own = lab.state / "mine.txt"
    own.write_text("mine")
    code, text = lab.try_play("lab_down")
    assert code != 0
    assert "is not all the lab's: mine.txt" in " ".join(text.split())
    assert own.read_text() == "mine"
    own.unlink()
    lab.down()
    assert lab.traces() == []
