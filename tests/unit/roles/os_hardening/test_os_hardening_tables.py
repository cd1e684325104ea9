# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables and templates of role os_hardening, for the distributions that no test host runs as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

ROLE = Path(__file__).parents[4] / "roles/os_hardening"
TABLES = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))
NEVER = [re.compile(one) for one in TABLES["__os_hardening_never_updated"]]

# Names of the distributions, of NVIDIA's CUDA repository and of its network repository.
HELD = [
    "linux-image-6.1.0-47-amd64",
    "linux-image-generic-hwe-22.04",
    "linux-headers-amd64",
    "linux-modules-nvidia-535-server-generic",
    "linux-libc-dev",
    "dkms",
    "nvidia-driver",
    "nvidia-open-580",
    "nvidia-headless-535-server",
    "nvidia-kernel-open-dkms",
    "nvidia-fabricmanager-535",
    "nvidia-imex",
    "nvidia-persistenced",
    "libnvidia-nscq-535",
    "libnvidia-compute-535-server",
    "nvidia-container-toolkit",
    "libnvidia-container1",
    "xserver-xorg-video-nvidia-535",
    "libxnvctrl0",
    "cuda-drivers-580",
    "cuda-toolkit-12-4",
    "cuda-compat-12-4",
    "libcuda1",
    "libcudart12",
    "libcublas-12-4",
    "libcudnn9-cuda-12",
    "libcufft-12-4",
    "libcufile-12-4",
    "libcusolver-12-4",
    "libcusparse-12-4",
    "libnpp-12-4",
    "libnvjitlink-12-4",
    "libnvjpeg-12-4",
    "libnvrtc12",
    "libnccl2",
    "libnccl-dev",
    "nsight-systems-2024.2.3",
    "tensorrt",
    "libnvinfer10",
    "datacenter-gpu-manager",
    "datacenter-gpu-manager-4-core",
    "gdrcopy",
    "gdrdrv-dkms",
    "libgdrapi",
    "rdma-core",
    "librdmacm1",
    "ibverbs-providers",
    "ibverbs-utils",
    "libibverbs1",
    "libibumad3",
    "libibmad5",
    "infiniband-diags",
    "opensm",
    "perftest",
    "srptools",
    "mlnx-ofed-kernel-dkms",
    "mlnx-tools",
    "mft",
    "kernel-mft-dkms",
    "mstflint",
    "ofed-scripts",
    "doca-ofed",
    "doca-host",
    "libucx0",
    "ucx",
    "openmpi-bin",
    "libopenmpi3",
    "knem",
    "xpmem",
    "firmware-misc-nonfree",
]
PATCHED = [
    "openssl",
    "libssl3",
    "openssh-server",
    "sudo",
    "systemd",
    "libc6",
    "curl",
    "python3",
    "nginx-core",
    "libnvme1",
    "nvme-cli",
    "mdadm",
    "xfsprogs",
    "ethtool",
    "chrony",
    "auditd",
    "bash",
    "apt",
    "dpkg",
    "intel-microcode",
    "amd64-microcode",
    "libmount1",
    "docbook-xml",
    "libnuma1",
    "libpam0g",
    "gnupg",
    "ca-certificates",
    "docker.io",
    "containerd",
    "podman",
]


@pytest.mark.parametrize("name", HELD)
def test_no_automatic_update_of(name: str) -> None:
    assert any(one.match(name) for one in NEVER)


@pytest.mark.parametrize("name", PATCHED)
def test_automatic_update_of(name: str) -> None:
    assert not any(one.match(name) for one in NEVER)


def render(name: str, values: dict[str, Any]) -> str:
    """A template as Ansible renders it."""
    environment = jinja2.Environment(
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape([], default_for_string=False),
    )
    # ansible.builtin.select with these tests is all that the templates take from Ansible.
    environment.tests["search"] = lambda value, pattern: bool(re.search(pattern, str(value)))
    text = (ROLE / "templates" / name).read_text(encoding="utf-8")
    return environment.from_string(text).render({"__os_hardening_managed": "managed", **DEFAULTS, **values})


@pytest.mark.parametrize(
    ("table", "origins"),
    [
        ("Debian_12", ["origin=Debian,codename=${distro_codename}-security,label=Debian-Security"]),
        ("Debian_13", ["origin=Debian,codename=${distro_codename}-security,label=Debian-Security"]),
        ("Ubuntu_22", ["origin=Ubuntu,archive=${distro_codename}-security,label=Ubuntu"]),
        ("Ubuntu_24", ["origin=Ubuntu,archive=${distro_codename}-security,label=Ubuntu"]),
    ],
)
def test_security_only(table: str, origins: list[str]) -> None:
    values = yaml.safe_load((ROLE / f"vars/{table}.yml").read_text(encoding="utf-8"))
    text = render("updates.j2", {**values, "__os_hardening_update_blacklist": ["linux-"]})
    found = re.findall(r'^    "(origin=.*)";$', text, re.MULTILINE)
    assert set(origins) <= set(found)
    assert all("ecurity" in one for one in found)
    for line in (
        'Package-Blacklist {\n    "linux-";\n};',
        'Automatic-Reboot "false"',
        'Remove-Unused-Kernel-Packages "false"',
    ):
        assert line in text


def test_nothing_that_a_host_needs_is_blacklisted() -> None:
    needed = re.compile(TABLES["__os_hardening_modules_needed"].replace(" ", "").strip())
    assert not [name for name in DEFAULTS["os_hardening_module_blacklist"] if needed.match(name)]
    for name in (
        "vfat",
        "squashfs",
        "overlay",
        "nvidia",
        "nvidia-uvm",
        "ib_core",
        "rdma_rxe",
        "mlx5_core",
        "nvme",
        "raid0",
        "nf_tables",
    ):
        assert needed.match(name)
    text = render("modprobe.conf.j2", {"__os_hardening_modules": DEFAULTS["os_hardening_module_blacklist"]})
    assert "install cramfs /bin/false\n" in text


def test_audit_never_stops_the_host() -> None:
    values = TABLES["__os_hardening_edits_audit"][0]["values"]
    assert not {"SUSPEND", "SINGLE", "HALT"} & set(map(str, values.values()))
    text = render("audit.rules.j2", {})
    assert "--backlog_wait_time 0\n" in text
    assert not re.search(r"^-f 2|^-e 2|execve", text, re.MULTILINE)


def test_rules_of_the_firewall() -> None:
    rules: list[dict[str, Any]] = [
        {"ports": [22], "proto": "tcp", "from": [], "comment": "ssh"},
        {"ports": [8000, "9000-9010"], "from": ["192.0.2.1", "2001:db8::/32"], "comment": "engine"},
    ]
    values = {"__os_hardening_rules": rules, "os_hardening_rails": ["rail0"], "__os_hardening_runtime": True}
    text = render("firewall.nft.j2", {**values, "__os_hardening_forward": True})
    assert '\t\ttcp dport { 22 } accept comment "ssh"\n' in text
    assert '\t\tip saddr @allow2_v4 tcp dport { 8000, 9000-9010 } accept comment "engine"\n' in text
    assert '\t\tip6 saddr @allow2_v6 tcp dport { 8000, 9000-9010 } accept comment "engine"\n' in text
    assert 'iifname "rail0" accept' in text
    assert "hook forward priority filter; policy accept;" in text
    assert "flush" not in text
    text = render("firewall.nft.j2", {**values, "__os_hardening_forward": False, "__os_hardening_runtime": False})
    assert "hook forward priority filter; policy drop;" in text
