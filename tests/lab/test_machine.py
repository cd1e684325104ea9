# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A fresh Debian that systemd runs, with control groups v2 and a network of its own: a privileged container, and a lab inside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from labtools import ROOT, Lab, command

BRIDGE = "gfmachine"
SUBNET = "10.78.201"
LEFT = r"""
ip -br link | grep -E 'lab-|vb-' ; nft list ruleset | grep gpufleet; grep gpufleet-lab/ /proc/self/mountinfo | grep hosts
ls -d /var/lib/gpufleet-lab/* /run/gpufleet-lab 2>/dev/null; systemctl list-units 'gpufleet*' --all --no-legend
ls /run/systemd/nspawn/propagate /run/systemd/nspawn/unix-export 2>/dev/null | grep gpufleet-; pgrep -a nspawn; pgrep -f 'ss[h]: /var/lib/gpufleet'; true
"""


@dataclass
class Machine:
    address: str
    place: Path

    def run(self, script: str, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        options = [
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            f"UserKnownHostsFile={self.place}/known_hosts",
        ]
        return command("ssh", "-i", f"{self.place}/key", *options, f"root@{self.address}", script, seconds=seconds)

    def must(self, script: str, seconds: float = 600) -> str:
        done = self.run(script, seconds)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout


def sh(script: str) -> None:
    done = command("sh", "-ec", script)
    assert done.returncode == 0, done.stderr


SUITES = ["bookworm", "trixie"]


@pytest.fixture(scope="module", params=SUITES)
def machine(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Machine]:
    suite = request.param
    number = 2 + SUITES.index(suite)
    lab.up("--tags", "lab_preflight,lab_install", "-e", f"lab_image_suite={suite}")
    # SUITE-DIGEST is an image of container hosts; images of other kinds have the kind's name between the two.
    images = Path("/var/cache/gpufleet-lab/images").glob(f"{suite}-{'[0-9a-f]' * 12}/image.json")
    image = max(images, key=lambda path: path.stat().st_mtime).parent / "rootfs"
    place = Path(f"/var/tmp/gftest-machine-{suite}")
    name, address = f"gfmachine-{suite}", f"{SUBNET}.{number}"
    stop(place, name)
    root = place / "root"
    for part in ("upper", "work", "root", "state", "cache", "checkout"):
        (place / part).mkdir(parents=True)
    # A clone of what is in the tree, as somebody else would get it.
    files = command("git", "ls-files", "-z").stdout.split("\0")
    for item in filter(None, files):
        target = place / "checkout" / item
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / item).exists():
            shutil.copy2(ROOT / item, target, follow_symlinks=False)
    sh(
        f"""
        ln -s {image} {place}/lower
        mount -t overlay -o lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work gfmachine {root}
        ip link show {BRIDGE} >/dev/null 2>&1 || ip link add {BRIDGE} type bridge
        ip addr replace {SUBNET}.1/24 dev {BRIDGE}; ip link set {BRIDGE} up
        nft add table ip {BRIDGE}
        nft 'add chain ip {BRIDGE} out {{ type nat hook postrouting priority 100; }}; flush chain ip {BRIDGE} out'
        nft add rule ip {BRIDGE} out ip saddr {SUBNET}.0/24 oifname != {BRIDGE} masquerade
        ssh-keygen -q -t ed25519 -N '' -f {place}/key
        ssh-keygen -q -t ed25519 -N '' -f {root}/etc/ssh/ssh_host_ed25519_key
        echo "{address} $(cut -d' ' -f1,2 {root}/etc/ssh/ssh_host_ed25519_key.pub)" >{place}/known_hosts
        mkdir -p {root}/root/.ssh {root}/var/lib/gpufleet-lab {root}/var/cache/gpufleet-lab {root}/src
        chmod 700 {root}/root/.ssh; cp {place}/key.pub {root}/root/.ssh/authorized_keys
        cp --remove-destination /etc/resolv.conf {root}/etc/resolv.conf
        echo {name} >{root}/etc/hostname
        printf '[Match]\\nName=host0\\n[Network]\\nAddress={address}/24\\nGateway={SUBNET}.1\\nLinkLocalAddressing=no\\n' \
          >{root}/etc/systemd/network/10-host0.network
        """
    )
    # The machine's own registry settings, by the code that gives them to lab hosts.
    registries(lab, root, suite)
    # Control groups of its own in the hierarchies systemd uses.
    joined = []
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _source, mount, kind, options, *_rest = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options):
            Path(mount, name).mkdir(exist_ok=True)
            joined.append(f"echo $$ >{mount}/{name}/cgroup.procs")
    binds = f"--bind={place}/state:/var/lib/gpufleet-lab --bind={place}/cache:/var/cache/gpufleet-lab --bind={place}/checkout:/src"
    launch = (
        f"{'; '.join(joined)}; SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 exec systemd-nspawn --quiet --boot "
        f"--directory={root} --machine={name} --register=no --keep-unit --resolv-conf=off --capability=all --network-bridge={BRIDGE} "
        f"--system-call-filter='@mount @privileged @keyring' {binds} >{place}/log 2>&1 </dev/null"
    )
    sh(f"setsid --fork sh -c '{launch.replace(chr(39), chr(39) + chr(92) + chr(39) + chr(39))}'")
    made = Machine(address, place)
    try:
        limit = time.monotonic() + 60
        while made.run("systemctl is-system-running --wait", 30).returncode != 0:
            if time.monotonic() > limit:
                pytest.skip(f"no privileged container here: {(place / 'log').read_text(errors='replace')[-500:]}")
            time.sleep(0.5)
        yield made
    finally:
        made.run("/src/dev/lab down", 120)
        stop(place, name)


def registries(lab: Lab, root: Path, suite: str) -> None:
    """Copy what a lab host has: apt sources and settings, pip's settings, authorities."""
    donor = Lab(
        "labtestf",
        "10.78.8.0/24",
        ["-e", "lab_gpu_count=0", "-e", "lab_monitor_count=0", "-e", f"lab_image_suite={suite}"],
    )
    donor.up()
    try:
        overlay = donor.state / "hosts/gw1/upper"
        for name in ("etc/apt", "etc/ssl", "etc/pip.conf", "etc/environment", "usr/local/share/ca-certificates"):
            if (overlay / name).exists():
                command("cp", "-a", "--parents", f"./{name}", str(root), cwd=str(overlay))
    finally:
        donor.down()


def stop(place: Path, name: str) -> None:
    marker = f"--machine={name}"
    script = f"""
    for pid in $(pgrep -f -- '{marker}' || true); do [ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null || true; done
    for group in /sys/fs/cgroup/{name} /sys/fs/cgroup/*/{name}; do
      [ -d "$group" ] || continue
      for procs in $(find "$group" -name cgroup.procs); do for pid in $(cat "$procs"); do kill -9 "$pid" 2>/dev/null || true; done; done
    done
    sleep 1
    for group in /sys/fs/cgroup/{name} /sys/fs/cgroup/*/{name}; do [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {{}} + || true; done
    ip link del 've-{name}' 2>/dev/null || true
    ! mountpoint -q {place}/root || umount {place}/root || umount -l {place}/root
    rm -rf {place}
    rmdir /run/systemd/nspawn/propagate/{name} 2>/dev/null || true
    """
    sh(script)
    if not list(Path("/var/tmp").glob("gftest-machine-*")):
        command("ip", "link", "del", BRIDGE)
        command("nft", "delete", "table", "ip", BRIDGE)


@pytest.mark.machine
def test_dev_lab_from_nothing(machine: Machine) -> None:
    """A shell and apt are all there is: no venv module, no nspawn, no nft."""
    assert machine.must("cat /proc/1/comm; stat -f -c %T /sys/fs/cgroup").split() == ["systemd", "cgroup2fs"]
    assert machine.run("command -v systemd-nspawn || command -v nft || python3 -c 'import ensurepip'").returncode != 0
    machine.must("sysctl -qw net.ipv4.ip_forward=0")
    text = machine.must("/src/dev/lab up --no-site", 900)
    assert "ansible-core" in text
    assert "All of it took" in text
    # The command that started them has ended, and so has its session: the hosts run on, each as a unit.
    units = machine.must("systemctl list-units 'gpufleet-lab-gpufleet-*' --no-legend --plain")
    assert units.count("active running") == 4
    status = machine.run("/src/dev/lab status")
    assert status.stdout.count(" running") == 4, status.stdout
    assert machine.must("/src/dev/lab ssh gpu1 hostname").strip() == "gpu1"
    assert "ssh: hosts" not in machine.must("/src/dev/lab help")
    assert machine.must("sysctl -n net.ipv4.ip_forward").strip() == "1"


@pytest.mark.machine
def test_it_heals_there_too(machine: Machine) -> None:
    machine.must(
        "systemctl kill --signal=KILL gpufleet-lab-gpufleet-gpu1.service; ip link del lab-gpufleet; nft flush ruleset"
    )
    machine.must("/src/dev/lab up --no-site")
    assert machine.must("systemctl is-active gpufleet-lab-gpufleet-gpu1.service").strip() == "active"
    assert "1 received" in machine.must("/src/dev/lab ssh gpu1 ping -c 1 -W 2 gw1")
    # A reboot from inside: systemd starts the unit again.
    machine.run("/src/dev/lab ssh gpu2 systemctl reboot")
    time.sleep(1)
    machine.must("for i in $(seq 60); do /src/dev/lab ssh gpu2 true && exit 0; sleep 0.5; done; exit 1")
    machine.must("/src/dev/lab up --no-site")
    assert "changed=0 " in machine.must("cat /src/.cache/logs/lab-up-gpufleet.log")


@pytest.mark.machine
def test_behind_a_firewall_that_drops_what_is_forwarded(machine: Machine) -> None:
    """Docker and ufw set such a policy: hosts get through, and the rules go with the lab."""
    machine.must(
        "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'"
    )
    assert machine.run("/src/dev/lab ssh gpu1 ping -c 1 -W 1 " + SUBNET + ".1").returncode != 0
    machine.must("/src/dev/lab up --no-site")
    assert "1 received" in machine.must("/src/dev/lab ssh gpu1 ping -c 1 -W 2 " + SUBNET + ".1")
    rules = json.loads(machine.must("nft -j list chain ip filter FORWARD"))
    assert sum("rule" in item for item in rules["nftables"]) == 2


@pytest.mark.machine
def test_down_leaves_nothing_there(machine: Machine) -> None:
    second = "/src/dev/lab up --no-site --name two --subnet 10.78.2.0/24 -e lab_gpu_count=0 -e lab_monitor_count=0"
    machine.must(second)
    machine.must("/src/dev/lab down")
    assert machine.must("sysctl -n net.ipv4.ip_forward").strip() == "1", "the other lab still needs it"
    assert machine.must("/src/dev/lab ssh --name two gw1 hostname").strip() == "gw1"
    machine.must("/src/dev/lab down --name two --purge")
    assert machine.must("sysctl -n net.ipv4.ip_forward").strip() == "0"
    assert machine.must(LEFT).strip() == ""
    assert machine.must("ls -A /var/cache/gpufleet-lab").strip() == ""
    assert "rule" not in machine.must("nft list chain ip filter FORWARD")
    assert "accept" not in machine.must("nft list chain ip filter FORWARD")
