# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Can this machine carry a lab? Looks, touches nothing, and names everything that is in the way.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab
from ansible_collections.gpufleet.deepseek.plugins.module_utils._lab_registry import Settings

# Program and the Debian package that carries it.
TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setsid": "util-linux",
    "mount": "mount",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "openssl": "openssl",
}

# What virtual hosts need besides.
VM_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "grub-mkimage": "grub-common",
    "mkfs.ext4": "e2fsprogs",
}
GRUB_FILE = ("/usr/lib/grub/i386-pc/boot.img", "grub-pc-bin")

# Tried in a network of its own that is gone when the command ends.
PROBES = {
    "network namespaces": "true",
    "bridges": "ip link add labprobe type bridge",
    "veth pairs": "ip link add labprobe type veth peer name labprobf",
    "nftables with NAT": (
        "printf 'table ip labprobe { chain a { type nat hook postrouting priority 100; masquerade; }; "
        "chain b { type filter hook forward priority 0; accept; }; }' | nft -f -"
    ),
}
# Tried in a mount table of its own, likewise.
OVERLAY_PROBE = (
    "mount -t tmpfs labprobe /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/m && "
    "mount -t overlay -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w labprobe /mnt/m"
)

# By kind of host.
IMAGE_BYTES = {"container": 1 << 30, "vm": 6 << 30}
HOST_BYTES = {"container": 256 << 20, "vm": 1 << 30}


@dataclass
class Report:
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def check_names(name: str, hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    problems = []
    if not _lab.LAB_NAME.match(name):
        problems.append(
            f"lab_name: expected a letter, then at most 10 letters and digits, all lower case; found {name!r}."
        )
    seen: dict[str, str] = {}
    for host in hosts:
        title = str(host["name"])
        if len(title) > _lab.HOST_NAME_MAX:
            problems.append(
                f"{title}: a host's name has at most {_lab.HOST_NAME_MAX} characters, this has {len(title)}."
            )
        elif not _lab.HOST_NAME.match(title):
            problems.append(f"{title}: a host's name is made of lower-case letters, digits and dashes.")
        if title in seen:
            problems.append(f"{title}: the name stands twice in lab_hosts.")
        seen[title] = ""
    return problems


def check_kinds(hosts: Sequence[Mapping[str, Any]], architecture: str) -> list[str]:
    """Sentences about hosts this machine's processor cannot be."""
    virtual = [str(host["name"]) for host in hosts if host["kind"] == "vm"]
    if not virtual or architecture == "x86_64":
        return []
    return [f"{', '.join(virtual)}: hosts of the kind vm need a machine of x86_64, this is one of {architecture}."]


def check_addresses(subnet: str, hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    try:
        network = _lab.network_of(subnet)
    except ValueError as error:
        return [f"lab_subnet: expected an IPv4 network such as 10.77.0.0/24, found {subnet!r} ({error})."]
    if not 16 <= network.prefixlen <= 28:
        return [f"lab_subnet: expected a network between /16 and /28, found {subnet}."]
    if not network.is_private:
        return [f"lab_subnet: expected a private network, found {subnet}."]
    problems = []
    gateway = _lab.gateway_of(subnet)
    owner: dict[str, str] = {gateway: "this machine's end of the bridge", str(network.broadcast_address): "broadcast"}
    for host in hosts:
        text = str(host["address"])
        try:
            address = ipaddress.IPv4Address(text)
        except ValueError:
            problems.append(f"{host['name']}: expected an IPv4 address (ansible_host), found {text!r}.")
            continue
        if address not in network or address == network.network_address:
            problems.append(f"{host['name']}: its address {text} lies outside lab_subnet {subnet}.")
        elif text in owner:
            problems.append(f"{host['name']}: its address {text} is taken by {owner[text]}.")
        else:
            owner[text] = str(host["name"])
    return problems


def check_places(places: Mapping[str, Path]) -> list[str]:
    return [
        f"{name}: expected an absolute path of at least two levels without spaces, commas and colons, found {path}."
        for name, path in places.items()
        # Overlay options and nspawn's arguments give commas and colons a meaning of their own.
        if not path.is_absolute() or len(path.parts) < 3 or any(char in str(path) for char in " ,:\\\n")
    ]


def foreign_uses(subnet: str, own_link: str, addresses: Sequence[Mapping[str, Any]]) -> list[str]:
    """Links other than the lab's that hold an address in the subnet, or whose subnet holds the lab's."""
    network = _lab.network_of(subnet)
    problems = []
    for link in addresses:
        if not link or link.get("ifname") == own_link:
            continue
        for item in link.get("addr_info", []):
            if item.get("family") != "inet":
                continue
            other = ipaddress.IPv4Interface(f"{item['local']}/{item['prefixlen']}").network
            if other.overlaps(network):
                problems.append(
                    f"lab_subnet {subnet} is in use: {link['ifname']} has {item['local']}/{item['prefixlen']}."
                    " Choose another lab_subnet."
                )
    return problems


def foreign_routes(subnet: str, own_link: str, routes: Sequence[Mapping[str, Any]]) -> list[str]:
    network = _lab.network_of(subnet)
    problems = []
    for route in routes:
        text = str(route.get("dst", "default"))
        if route.get("dev") == own_link or text == "default":
            continue
        try:
            other = ipaddress.IPv4Network(text)
        except ValueError:
            continue
        # A broad route (10.0.0.0/8 through a VPN) is no obstacle: the lab's own is more precise.
        if other.prefixlen >= network.prefixlen and other.subnet_of(network):
            problems.append(f"lab_subnet {subnet} is in use: there is a route to {text} through {route.get('dev')}.")
    return problems


class Examination:
    def __init__(
        self,
        lab: _lab.Lab,
        bridge: str,
        subnet: str,
        hosts: Sequence[Mapping[str, Any]],
        commands: _lab.Commands,
    ) -> None:
        self.lab = lab
        self.bridge = bridge
        self.subnet = subnet
        self.hosts = hosts
        self.commands = commands
        self.report = Report()

    def run(self, settings: Settings | None, present: Collection[str]) -> Report:
        """Look at everything. O(present) are the kinds of hosts whose image is in the cache."""
        report = self.report
        report.problems.extend(check_names(self.lab.name, self.hosts))
        report.problems.extend(check_kinds(self.hosts, os.uname().machine))
        addresses = check_addresses(self.subnet, self.hosts)
        report.problems.extend(addresses)
        report.problems.extend(check_places({"lab_state_dir": self.lab.state_dir, "lab_cache_dir": self.lab.cache_dir}))
        missing = self._tools()
        root = os.geteuid() == 0
        if not root:
            report.problems.append("A lab needs root on this machine (namespaces, mounts, a bridge): run it as root.")
        elif not missing & {"unshare", "ip", "nft", "mount"}:
            self._kernel()
        subnet_usable = not any(text.startswith("lab_subnet") for text in addresses)
        if subnet_usable and "ip" not in missing:
            self._network()
        if settings is not None:
            self._settings(settings)
        self._space(present)
        table = _lab.mounts()
        layout = _lab.cgroup_layout(table)
        if not _lab.cgroup_roots(table):
            report.problems.append("No control groups are mounted under /sys/fs/cgroup: systemd-nspawn cannot work.")
        report.facts.update(
            {
                "pid1_systemd": _lab.pid1_is_systemd(),
                "cgroups": layout,
                "state_filesystem": _lab.filesystem_of(self.lab.state_dir, table),
            }
        )
        return report

    def _tools(self) -> set[str]:
        path = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
        wanted = dict(TOOLS)
        virtual = any(host["kind"] == "vm" for host in self.hosts)
        if virtual:
            wanted.update(VM_TOOLS)
        missing = {tool for tool in wanted if shutil.which(tool, path=path) is None}
        for tool in sorted(missing):
            self.report.problems.append(f"{tool} is missing: install the package {wanted[tool]}.")
        if virtual and not os.path.exists(GRUB_FILE[0]):
            self.report.problems.append(f"{GRUB_FILE[0]} is missing: install the package {GRUB_FILE[1]}.")
        if virtual and not os.path.exists("/dev/net/tun"):
            self.report.problems.append("/dev/net/tun is missing: this kernel has no tap devices for virtual hosts.")
        return missing

    def _kernel(self) -> None:
        for feature, script in PROBES.items():
            rc, _out, err = self.commands.try_("unshare", "--net", "--", "sh", "-c", script)
            if rc != 0:
                self.report.problems.append(f"This kernel does not let us use {feature}: {_last(err)}.")
                if script == "true":
                    break
        rc, _out, err = self.commands.try_("unshare", "--mount", "--", "sh", "-c", OVERLAY_PROBE)
        if rc != 0:
            self.report.problems.append(f"This kernel does not let us use overlay file systems: {_last(err)}.")

    def _network(self) -> None:
        rc, out, _err = self.commands.try_("ip", "-json", "-details", "addr", "show")
        links: list[dict[str, Any]] = json.loads(out or "[]") if rc == 0 else []
        self.report.problems.extend(foreign_uses(self.subnet, self.bridge, links))
        for link in links:
            if link.get("ifname") == self.bridge and link.get("linkinfo", {}).get("info_kind") != "bridge":
                self.report.problems.append(f"A link named {self.bridge} is there, and it is no bridge.")
        rc, out, _err = self.commands.try_("ip", "-json", "-4", "route", "show")
        routes: list[dict[str, Any]] = json.loads(out or "[]") if rc == 0 else []
        used_by_links = any("is in use" in text for text in self.report.problems)
        if not used_by_links:
            self.report.problems.extend(foreign_routes(self.subnet, self.bridge, routes))

    def _settings(self, settings: Settings) -> None:
        self.report.warnings.extend(settings.warnings)
        if not settings.sources:
            self.report.problems.append(
                "This machine's apt knows no Debian archive lab hosts could use: set lab_apt_sources, for example to"
                " 'deb http://mirror.example/debian bookworm main'."
            )
        for line in settings.sources:
            for word in line.partition("signed-by=")[2].partition("]")[0].split()[0:1]:
                for name in word.split(","):
                    if name.startswith("/") and name not in settings.keyrings:
                        self.report.problems.append(f"The keyring {name}, which an apt source names, is missing.")
        if not settings.resolv_conf:
            self.report.problems.append(
                "This machine's resolv.conf names only loopback addresses, which lab hosts cannot reach:"
                " set lab_nameservers."
            )

    def _space(self, present: Collection[str]) -> None:
        new = [host for host in self.hosts if not (self.lab.hosts_dir / str(host["name"])).is_dir()]
        images = sum(IMAGE_BYTES[kind] for kind in {str(host["kind"]) for host in self.hosts} if kind not in present)
        needs = {self.lab.state_dir: sum(HOST_BYTES[str(host["kind"])] for host in new), self.lab.cache_dir: images}
        by_device: dict[int, tuple[Path, int]] = {}
        for path, size in needs.items():
            place = path
            while not place.exists():
                place = place.parent
            device = place.stat().st_dev
            by_device[device] = (place, by_device.get(device, (place, 0))[1] + size)
        for place, size in by_device.values():
            free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
            if free < size:
                self.report.problems.append(
                    f"The file system of {place} has {free >> 20} MiB free, and the lab needs {size >> 20} MiB there."
                )


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].rstrip(".") if lines else "no reason given"
