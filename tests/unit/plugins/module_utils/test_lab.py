# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import (
    _lab,
    _lab_container,
    _lab_image,
    _lab_inventory,
    _lab_keys,
    _lab_machine,
    _lab_network,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._lab_registry import Settings

MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 22 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
40 22 0:40 / /srv/a\\040b rw - overlay overlay rw,lowerdir=/c/images/x-1/rootfs,upperdir=/s/u,workdir=/s/w
41 40 0:41 / /srv/a\\040b/deep rw - tmpfs tmpfs rw
"""
UNIFIED = "22 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
LEGACY = (
    "30 22 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
)

HOSTS = [_lab.HostSpec("gw1", "10.77.0.10"), _lab.HostSpec("gpu1", "10.77.0.21")]


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    return _lab.Lab("gftest", tmp_path / "state", tmp_path / "cache")


class Replies:
    """Stands in for run_command: answers by the beginning of a command, and remembers what was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[Any] = []

    def __call__(self, argv: Any, data: Any = None, environ_update: Any = None, handle_exceptions: Any = True) -> Any:
        self.asked.append(argv)
        if argv[0] == "missing":
            raise FileNotFoundError(argv[0])
        return self.answers.get(argv[0], (0, "", ""))


def data(host: Any, kind: Any = "container") -> Any:
    return {"name": host.name, "address": host.address, "kind": kind}


# -- _lab ------------------------------------------------------------------------------------------------------------


def test_mounts_are_read_with_their_escapes() -> None:
    table = _lab.parse_mountinfo(MOUNTINFO)
    assert [item.target for item in table][-2:] == ["/srv/a b", "/srv/a b/deep"]
    assert table[4].option("lowerdir") == "/c/images/x-1/rootfs"
    assert table[4].option("nothing") is None
    assert [item.target for item in _lab.mounts_below(Path("/srv/a b"), table)] == ["/srv/a b/deep", "/srv/a b"]
    assert _lab.mounts_below(Path("/srv/a"), table) == []
    assert len(_lab.mounts_at(Path("/srv/a b"), table)) == 1


def test_the_file_system_of_a_path() -> None:
    table = _lab.parse_mountinfo(MOUNTINFO)
    assert _lab.filesystem_of(Path("/srv/a b/deep/er"), table) == "tmpfs"
    assert _lab.filesystem_of(Path("/srv/a b/x"), table) == "overlay"
    assert _lab.filesystem_of(Path("/srv"), table) == "ext4"


@pytest.mark.parametrize(("text", "layout"), [(MOUNTINFO, "hybrid"), (UNIFIED, "unified"), (LEGACY, "legacy")])
def test_control_groups(text: Any, layout: Any) -> None:
    assert _lab.cgroup_layout(_lab.parse_mountinfo(text)) == layout


def test_commands_say_what_failed() -> None:
    commands = _lab.Commands(Replies(nft=(1, "", "Error: no\n")))
    with pytest.raises(_lab.LabError, match=r"nft -f - failed \(1\): Error: no"):
        commands("nft", "-f", "-", data="x")
    assert commands.try_("missing")[0] == 127


def test_files_are_replaced_and_links_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere"
    secret.write_text("keep")
    link = tmp_path / "link"
    link.symlink_to(secret)
    assert _lab.needs_write(link, b"keep", 0o644)
    _lab.write_file(link, b"new", 0o600)
    assert not link.is_symlink()
    assert secret.read_text() == "keep"
    assert not _lab.needs_write(link, b"new", 0o600)
    assert _lab.needs_write(link, b"new", 0o644)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link"]


def test_a_host_cannot_lead_us_out_of_its_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    assert _lab.inside(root, "etc/hostname") == root / "etc/hostname"
    (root / "etc").rmdir()
    (root / "etc").symlink_to("/etc")
    with pytest.raises(_lab.LabError, match="leads out"):
        _lab.inside(root, "etc/hostname")


def test_one_holder_of_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "x" / "lock"
    assert _lab.lock_holder(path) is None
    with _lab.locked(path, 1, "The lab", "gftest"):
        assert _lab.lock_holder(path) == (os.getpid(), "gftest")
        with (
            pytest.raises(
                _lab.LabError, match=rf"The lab is being changed by another process \({os.getpid()} gftest\)"
            ),
            _lab.locked(path, 0, "The lab"),
        ):
            pass
    assert _lab.lock_holder(path) is None


def test_processes_are_seen() -> None:
    own = _lab.process(os.getpid())
    assert own is not None
    assert own.ppid == os.getppid()
    assert own.argv
    assert own.pid in [item.pid for item in _lab.processes()]
    assert _lab.process(0) is None


# -- the machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnet", "address", "expected"),
    [
        ("10.77.0.0/24", "10.77.0.21", ""),
        ("10.77.0.0/24", "10.77.1.21", "gpu1: its address 10.77.1.21 lies outside lab_subnet 10.77.0.0/24."),
        ("10.77.0.0/24", "10.77.0.1", "gpu1: its address 10.77.0.1 is taken by this machine's end of the bridge."),
        ("10.77.0.0/24", "10.77.0.10", "gpu1: its address 10.77.0.10 is taken by gw1."),
        ("10.77.0.0/24", "10.77.0.255", "gpu1: its address 10.77.0.255 is taken by broadcast."),
        ("10.77.0.0/24", "gpu1", "gpu1: expected an IPv4 address (ansible_host), found 'gpu1'."),
        ("10.77.0.5/24", "10.77.0.21", "lab_subnet: expected an IPv4 network"),
        ("198.18.0.0/8", "10.77.0.21", "lab_subnet: expected"),
        ("8.8.8.0/24", "8.8.8.8", "lab_subnet: expected a private network, found 8.8.8.0/24."),
    ],
)
def test_addresses(subnet: Any, address: Any, expected: Any) -> None:
    found = _lab_machine.check_addresses(subnet, [data(HOSTS[0]), {"name": "gpu1", "address": address}])
    assert len(found) == (1 if expected else 0)
    assert not expected or found[0].startswith(expected)


@pytest.mark.parametrize(
    ("name", "host", "expected"),
    [
        ("gftest", "gpu1", ""),
        ("GFtest", "gpu1", "lab_name: expected a letter"),
        ("averylongname", "gpu1", "lab_name: expected a letter"),
        ("gftest", "g" * 49, "a host's name has at most 48 characters, this has 49."),
        ("gftest", "gpu_1", "gpu_1: a host's name is made of"),
    ],
)
def test_names(name: Any, host: Any, expected: Any) -> None:
    found = _lab_machine.check_names(name, [{"name": host}])
    assert len(found) == (1 if expected else 0)
    assert not expected or expected in found[0]


def test_a_name_may_stand_once() -> None:
    assert _lab_machine.check_names("gftest", [{"name": "a"}, {"name": "a"}]) == [
        "a: the name stands twice in lab_hosts."
    ]


def test_virtual_hosts_need_this_processor() -> None:
    hosts = [data(HOSTS[0]), data(HOSTS[1], "vm")]
    assert _lab_machine.check_kinds(hosts, "x86_64") == []
    assert _lab_machine.check_kinds(hosts[:1], "aarch64") == []
    assert _lab_machine.check_kinds(hosts, "aarch64") == [
        "gpu1: hosts of the kind vm need a machine of x86_64, this is one of aarch64."
    ]


@pytest.mark.parametrize(("path", "good"), [("/var/lib/x", True), ("/x", False), ("var/x", False), ("/var/a,b", False)])
def test_places(path: Any, good: Any) -> None:
    assert (_lab_machine.check_places({"lab_state_dir": Path(path)}) == []) is good


def test_a_subnet_somebody_else_uses() -> None:
    links = [
        {"ifname": "lab-gftest", "addr_info": [{"family": "inet", "local": "10.77.0.1", "prefixlen": 24}]},
        {"ifname": "eth1", "addr_info": [{"family": "inet", "local": "10.77.0.77", "prefixlen": 16}]},
        {"ifname": "eth0", "addr_info": [{"family": "inet6", "local": "fe80::1", "prefixlen": 64}]},
        {},
    ]
    assert _lab_machine.foreign_uses("10.77.0.0/24", "lab-gftest", links) == [
        "lab_subnet 10.77.0.0/24 is in use: eth1 has 10.77.0.77/16. Choose another lab_subnet."
    ]
    assert _lab_machine.foreign_uses("10.78.0.0/24", "lab-gftest", links[:1]) == []


def test_routes_into_the_subnet() -> None:
    routes = [
        {"dst": "default", "dev": "eth0"},
        {"dst": "10.0.0.0/8", "dev": "tun0"},
        {"dst": "10.77.0.0/24", "dev": "lab-gftest"},
        {"dst": "10.77.0.128/25", "dev": "tun0"},
    ]
    found = _lab_machine.foreign_routes("10.77.0.0/24", "lab-gftest", routes)
    assert found == ["lab_subnet 10.77.0.0/24 is in use: there is a route to 10.77.0.128/25 through tun0."]


def test_everything_that_is_missing_is_named_at_once(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _lab_machine.shutil, "which", lambda tool, path: None if tool in ("nft", "mmdebstrap") else tool
    )
    monkeypatch.setattr(_lab_machine.os, "geteuid", lambda: 1000)
    examination = _lab_machine.Examination(
        lab, "lab-gftest", "10.77.0.0/24", [data(HOSTS[0])], _lab.Commands(Replies())
    )
    report = examination.run(Settings(), [])
    text = "\n".join(report.problems)
    assert "mmdebstrap is missing: install the package mmdebstrap." in text
    assert "nft is missing: install the package nftables." in text
    assert "needs root" in text
    assert "set lab_apt_sources" in text
    assert "set lab_nameservers" in text


def test_a_kernel_without_bridges(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lab_machine.shutil, "which", lambda tool, path: tool)
    monkeypatch.setattr(_lab_machine.os, "geteuid", lambda: 0)

    def run(argv: Any, data: Any = None, environ_update: Any = None, handle_exceptions: Any = True) -> Any:
        if "type bridge" in argv[-1]:
            return 2, "", "RTNETLINK answers: Operation not supported.\n"
        return 0, "[]", ""

    settings = Settings(sources=["deb http://mirror.example bookworm main"], resolv_conf="nameserver 192.0.2.1\n")
    report = _lab_machine.Examination(lab, "lab-x", "10.77.0.0/24", [data(HOSTS[0])], _lab.Commands(run)).run(
        settings, ["container"]
    )
    assert report.problems == ["This kernel does not let us use bridges: RTNETLINK answers: Operation not supported."]


# -- the network -----------------------------------------------------------------------------------------------------

NETWORK = _lab_network.Network("lab-gftest", "10.77.0.0/24")


def listing(lab: Any, bridge: Any = "lab-gftest") -> Any:
    chain = {"family": "ip", "table": lab.table}
    match = {
        "match": {
            "op": "==",
            "left": {"payload": {"protocol": "ip", "field": "saddr"}},
            "right": {"prefix": {"addr": "10.77.0.0", "len": 24}},
        }
    }
    out = {"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": bridge}}
    return {
        "nftables": [
            {"table": {"family": "ip", "name": lab.table, "handle": 1}},
            {
                "chain": {
                    **chain,
                    "name": "postrouting",
                    "handle": 1,
                    "type": "nat",
                    "hook": "postrouting",
                    "prio": 100,
                    "policy": "accept",
                }
            },
            {"rule": {**chain, "chain": "postrouting", "handle": 3, "expr": [match, out, {"masquerade": None}]}},
            {
                "chain": {
                    **chain,
                    "name": "forward",
                    "handle": 2,
                    "type": "filter",
                    "hook": "forward",
                    "prio": 0,
                    "policy": "accept",
                }
            },
            *(
                {
                    "rule": {
                        **chain,
                        "chain": "forward",
                        "handle": 4,
                        "expr": [
                            {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": bridge}},
                            {"accept": None},
                        ],
                    }
                }
                for key in ("iifname", "oifname")
            ),
            {
                "chain": {
                    "family": "ip",
                    "table": "filter",
                    "name": "FORWARD",
                    "type": "filter",
                    "hook": "forward",
                    "prio": 0,
                    "policy": "drop",
                }
            },
            {
                "rule": {
                    "family": "ip",
                    "table": "filter",
                    "chain": "FORWARD",
                    "handle": 9,
                    "comment": lab.table,
                    "expr": [],
                }
            },
        ]
    }


def test_the_table_is_compared_rule_by_rule(lab: Any) -> None:
    wanted = _lab_network.wanted_expressions(NETWORK)
    assert _lab_network.expressions(listing(lab), lab.table) == wanted
    assert _lab_network.expressions(listing(lab, "other"), lab.table) != wanted
    assert _lab_network.expressions({}, lab.table) == {}


def test_chains_that_drop_what_hosts_send(lab: Any) -> None:
    assert _lab_network.dropping_chains(listing(lab)) == [("ip", "filter", "FORWARD")]
    assert _lab_network.own_rules(listing(lab), lab) == [("ip", "filter", "FORWARD", 9)]


def test_a_machine_without_nft_has_no_rules(lab: Any) -> None:
    def run(argv: list[str], **_unused: Any) -> tuple[int, str, str]:
        assert argv[0] != "nft"
        return 0, "[]", ""

    machine = _lab_network.Machine(lab, NETWORK, _lab.Commands(run), nft=False)
    state = machine.state()
    assert (state["bridge"], state["table_exists"], state["rules_elsewhere"]) == (False, False, 0)
    assert machine.other_labs() == []


def test_the_rules_name_bridge_and_subnet(lab: Any) -> None:
    text = _lab_network.render_table(lab, NETWORK)
    assert 'ip saddr 10.77.0.0/24 oifname != "lab-gftest" masquerade' in text
    assert text.startswith("table ip gpufleet_lab_gftest {")
    assert NETWORK.address == "10.77.0.1/24"


def test_settings_are_remembered_once_and_for_this_boot(tmp_path: Path) -> None:
    path = tmp_path / "run" / "settings.json"
    assert _lab_network.read_found(path) == {}
    _lab_network.remember({"ip_forward": 0}, path)
    _lab_network.remember({"ip_forward": 1, "inotify_instances": 128}, path)
    assert _lab_network.read_found(path) == {"ip_forward": 0, "inotify_instances": 128}
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "boot": "another"}))
    assert _lab_network.read_found(path) == {}
    _lab_network.forget(path)
    assert not path.parent.exists()


def test_a_setting_one_may_not_change(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value"
    path.write_text("128\n")
    monkeypatch.setattr(_lab_network.os, "access", lambda place, how: False)
    machine = _lab_network.Machine(lab, NETWORK, _lab.Commands(Replies()))
    assert machine._can(_lab_network.Setting("inotify_instances", path, 4096, False)) is False
    assert "cannot be changed from here" in machine.warnings[0]
    with pytest.raises(_lab.LabError, match="set it on the machine itself"):
        machine._can(_lab_network.Setting("ip_forward", path, 4096, True))


# -- the image -------------------------------------------------------------------------------------------------------


def image(**changes: Any) -> Any:
    given = {
        "suite": "bookworm",
        "packages": ("b", "a"),
        "sources": ("deb http://m bookworm main",),
        "architecture": "amd64",
    }
    return _lab_image.Image(**{**given, **changes})


def test_the_same_ingredients_give_the_same_image() -> None:
    assert image().name == image(packages=("a", "b")).name
    assert image().name.startswith("bookworm-")
    others = [image(suite="trixie"), image(packages=("a",)), image(sources=()), image(architecture="arm64")]
    assert len({item.key for item in [image(), *others]}) == 5


def test_how_mmdebstrap_is_called(tmp_path: Path) -> None:
    argv = _lab_image.build_argv(image(), tmp_path / "root", ["deb http://m bookworm main"], tmp_path / "seed", 600)
    assert argv[:4] == ["timeout", "--kill-after=10", "600", "mmdebstrap"]
    assert "--include=b,a" in argv
    assert f'--setup-hook=cp -a "{tmp_path}/seed/." "$1/"' in argv
    assert argv[-3:] == ["bookworm", str(tmp_path / "root"), "deb http://m bookworm main"]


def test_a_failing_build_is_tried_again_and_leaves_nothing(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lab_image.os, "geteuid", lambda: 0)
    replies = Replies(timeout=(25, "", "E: unable to fetch\nE: apt-get failed\n"))
    with pytest.raises(_lab.LabError, match=r"in 2 attempts: E: unable to fetch E: apt-get failed"):
        _lab_image.build(lab, image(), Settings(), _lab.Commands(replies), attempts=2, delay=0, timeout=9, wait=1)
    assert [argv[0] for argv in replies.asked].count("timeout") == 2
    assert sorted(path.name for path in lab.images_dir.iterdir()) == [".lock", f"{image().name}.log"]
    assert not _lab_image.is_complete(_lab_image.image_dir(lab, image()))


def test_a_build_that_hangs_is_ended(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lab_image.os, "geteuid", lambda: 0)
    commands = _lab.Commands(Replies(timeout=(124, "", "I: downloading packages\n")))
    with pytest.raises(_lab.LabError, match="it did not end within 9 s; the last it said: I: downloading packages"):
        _lab_image.build(lab, image(), Settings(), commands, attempts=1, delay=0, timeout=9, wait=1)


def test_an_image_in_use_stays(lab: Any) -> None:
    for name in ("bookworm-1", "trixie-2"):
        (lab.images_dir / name / "rootfs").mkdir(parents=True)
    mount = _lab.Mount("/x", "overlay", "o", f"rw,lowerdir={lab.images_dir}/bookworm-1/rootfs,upperdir=/u")
    assert _lab_image.in_use(lab, [mount]) == {"bookworm-1"}


# -- keys ------------------------------------------------------------------------------------------------------------


def test_known_hosts_and_ssh_configuration(lab: Any) -> None:
    assert _lab_keys.render_known_hosts([(HOSTS[0], "ssh-ed25519 AAAA")]) == "gw1,10.77.0.10 ssh-ed25519 AAAA\n"
    text = _lab_keys.render_ssh_config(lab, HOSTS)
    assert "Host gpu1\n    HostName 10.77.0.21\n" in text
    assert "StrictHostKeyChecking yes" in text
    assert f"UserKnownHostsFile {lab.state_dir}/known_hosts" in text


def test_names_in_a_certificate() -> None:
    text = "X509v3 Subject Alternative Name: \n    DNS:gw1, IP Address:10.77.0.10\n"
    assert _lab_keys.parse_alt_names(text) == {"gw1", "10.77.0.10"}


def test_what_is_missing_at_first(lab: Any) -> None:
    plan = _lab_keys.Keys(lab, _lab.Commands(Replies())).plan(HOSTS, ["gw1"])
    assert plan.notes == [
        "operator key",
        "host key of gw1",
        "host key of gpu1",
        "CA: missing",
        "certificate of gw1: the CA is new",
        "secret api_key",
        "secret prometheus_password",
    ]
    assert {mode for _content, mode in plan.files.values()} == {0o600}
    assert plan.directories[lab.state_dir / "secrets"] == 0o700


# -- containers ------------------------------------------------------------------------------------------------------


def options(**changes: Any) -> Any:
    given = {
        "bridge": "lab-gftest",
        "subnet": "10.77.0.0/24",
        "image": Path("/c/images/bookworm-1"),
        "suite": "bookworm",
        "storage": "auto",
        "boot_timeout": 60,
        "systemd": False,
        "unified_environment": "1",
    }
    return _lab_container.Options(**{**given, **changes})


@pytest.mark.parametrize(
    ("layout", "kernel", "expected"),
    [("unified", True, ""), ("hybrid", True, "1"), ("legacy", True, "1"), ("legacy", False, "0")],
)
def test_hosts_get_control_groups_v2_where_the_kernel_has_them(layout: Any, kernel: Any, expected: Any) -> None:
    assert _lab_container.unified_environment(layout, kernel) == expected


def test_a_host_is_a_transient_unit_where_systemd_runs_the_machine(lab: Any) -> None:
    argv = _lab_container.unit_argv(lab, HOSTS[1], options(), Path("/s/root"), Path("/s/log"))
    at = argv.index("--")
    assert argv[0] == "systemd-run"
    for word in (
        "--unit=gpufleet-lab-gftest-gpu1.service",
        "--slice=machine.slice",
        "--property=Delegate=yes",
        "--property=KillMode=mixed",
        "--property=RestartForceExitStatus=133",
        "--property=StandardOutput=append:/s/log",
        "--setenv=SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
    ):
        assert word in argv[:at]
    assert argv[at + 1] == "systemd-nspawn"
    for word in (
        "--directory=/s/root",
        "--machine=gftest-gpu1",
        "--hostname=gpu1",
        "--network-bridge=lab-gftest",
        "--keep-unit",
    ):
        assert word in argv[at:]
    assert not any(
        "UNIFIED" in word
        for word in _lab_container.unit_argv(lab, HOSTS[1], options(unified_environment=""), Path("/r"), Path("/l"))
    )


def test_elsewhere_it_is_a_session_of_its_own(lab: Any) -> None:
    groups = [Path("/sys/fs/cgroup/a"), Path("/sys/fs/cgroup/b")]
    argv = _lab_container.detached_argv(lab, HOSTS[1], options(), Path("/s/root"), Path("/s/log"), groups)
    assert argv[:4] == ["setsid", "--fork", "sh", "-c"]
    assert argv[5:8] == ["gpufleet-lab:gftest:gpu1", "/s/log", "/sys/fs/cgroup/a:/sys/fs/cgroup/b"]
    assert "--directory=/s/root" in argv


def test_addresses_out_of_ip() -> None:
    shown = '[{},{"ifname":"host0","link_index":44,"flags":["UP"],"addr_info":[{"family":"inet","local":"10.77.0.21","prefixlen":24},{"family":"inet6"}]}]'
    assert _lab_container.address_of(shown) == (["10.77.0.21/24"], True, 44)
    assert _lab_container.address_of("") == ([], False, 0)
    assert _lab_container.default_route_of('[{"dst":"default","gateway":"10.77.0.1"}]') == "10.77.0.1"
    assert _lab_container.default_route_of("[]") == ""


def test_what_a_host_knows_of_itself_and_others() -> None:
    text = _lab_container.network_file(HOSTS[1], "10.77.0.0/24")
    assert "Address=10.77.0.21/24\nGateway=10.77.0.1\n" in text
    assert _lab_container.hosts_file(HOSTS[1], HOSTS).endswith("10.77.0.10 gw1\n10.77.0.21 gpu1\n")


@pytest.fixture
def containers(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two hosts that are up and well; tests spoil one thing each."""
    given = options(image=lab.images_dir / "bookworm-1")
    (given.image / "rootfs").mkdir(parents=True)
    box = _lab_container.Containers(lab, given, _lab.Commands(Replies()))
    settings = Settings(sources=["deb http://m bookworm main"], resolv_conf="nameserver 192.0.2.1\n")
    seen = {}
    for number, host in enumerate(HOSTS):
        directory = lab.hosts_dir / host.name
        root = directory / "root"
        root.mkdir(parents=True)
        for name, (content, mode) in box.identity_files(host, HOSTS, settings).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            _lab.write_file(root / name, content, mode)
        digests = {name: _lab_container._digest(*item) for name, item in box.registry_files(settings).items()}
        record = {
            "name": host.name,
            "suite": "bookworm",
            "image": str(given.image),
            "storage": "overlay",
            "registry": digests,
        }
        (directory / "host.json").write_text(json.dumps(record))
        mount = _lab.Mount(str(root), "overlay", "o", f"lowerdir={given.image}/rootfs")
        seen[host.name] = _lab_container.Seen(
            record=record,
            supervisors=[100 + number],
            nspawn=[200 + number],
            leader=300 + number,
            roots=[mount],
            addresses=[f"{host.address}/24"],
            default_route="10.77.0.1",
            link_up=True,
            peer=7,
            peer_master="lab-gftest",
            peer_up=True,
        )
    monkeypatch.setattr(box, "see", lambda *args, **kwargs: seen)
    monkeypatch.setattr(_lab_container, "ssh_answers", lambda address, timeout: True)
    return box, settings, seen


def steps(containers: Any) -> Any:
    box, settings, _seen = containers
    return {work.host.name: work.steps for work in box.plan(HOSTS, HOSTS, settings) if work.steps}


def test_nothing_to_do(containers: Any) -> None:
    assert steps(containers) == {}


def test_a_dead_host_boots(containers: Any) -> None:
    containers[2]["gpu1"].leader = None
    assert steps(containers) == {"gpu1": ["boot"]}


def test_a_wrong_address_is_repaired_without_a_boot(containers: Any) -> None:
    containers[2]["gpu1"].addresses = ["10.77.0.99/24"]
    assert steps(containers) == {"gpu1": ["repair the network (found 10.77.0.99/24)"]}


@pytest.mark.parametrize(
    ("name", "value"), [("default_route", ""), ("link_up", False), ("peer_master", ""), ("peer_up", False)]
)
def test_a_broken_link_is_repaired(containers: Any, name: Any, value: Any) -> None:
    setattr(containers[2]["gw1"], name, value)
    assert steps(containers) == {"gw1": ["repair the network (found 10.77.0.10/24)"]}


def test_a_silent_host_boots_again(containers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lab_container, "ssh_answers", lambda address, timeout: address != "10.77.0.21")
    monkeypatch.setattr(_lab_container.time, "monotonic", iter(range(0, 10000, 10)).__next__)
    monkeypatch.setattr(_lab_container.time, "sleep", lambda seconds: None)
    assert steps(containers) == {"gpu1": ["boot again (no answer on port 22)"]}


def test_a_stale_mount_is_replaced(containers: Any) -> None:
    seen = containers[2]["gpu1"]
    seen.leader = None
    seen.roots = [_lab.Mount(seen.roots[0].target, "overlay", "o", "lowerdir=/gone/rootfs")]
    assert steps(containers) == {"gpu1": ["mount the root file system", "boot"]}


def test_identity_is_written_back(containers: Any) -> None:
    box = containers[0]
    (box.root("gpu1") / "etc/hostname").write_text("other\n")
    (box.root("gpu1") / "etc/resolv.conf").unlink()
    assert steps(containers) == {"gpu1": ["write /etc/hostname, /etc/resolv.conf"]}


def test_a_change_of_the_machines_mirrors_reaches_running_hosts(containers: Any) -> None:
    containers[1].sources.append("deb http://second bookworm main")
    assert steps(containers) == {name: ["write /etc/apt/sources.list"] for name in ("gw1", "gpu1")}


def test_a_host_of_another_release_is_not_converted(containers: Any) -> None:
    containers[2]["gpu1"].record["suite"] = "trixie"
    with pytest.raises(_lab.LabError, match="gpu1 was made from trixie, and bookworm is asked for"):
        steps(containers)


def test_a_new_host_is_made(containers: Any) -> None:
    containers[2]["gpu1"] = _lab_container.Seen()
    assert steps(containers) == {"gpu1": ["make the root file system", "mount the root file system", "boot"]}


# -- the inventory ---------------------------------------------------------------------------------------------------

GROUP = {"prefix": "gpu", "count": 2, "addresses": ["21-22", 100], "variable": "lab_gpu_count"}


def test_hosts_and_addresses() -> None:
    group = _lab_inventory.parse_group("gpu_hosts", GROUP)
    assert group.places == (21, 22, 100)
    assert [(host.name, host.address) for host in group.hosts("10.78.0.0/24", 3)] == [
        ("gpu1", "10.78.0.21"),
        ("gpu2", "10.78.0.22"),
        ("gpu3", "10.78.0.100"),
    ]
    with pytest.raises(_lab.LabError, match="lab_gpu_count: expected at most 3 hosts, found 4"):
        group.hosts("10.78.0.0/24", 4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"addresses": ["a-b"]}, "expected a number or a range"),
        ({"count": "two"}, "expected a number of hosts, found 'two'"),
        ({"colour": "red"}, "expected prefix, addresses"),
    ],
)
def test_a_wrong_inventory_file(change: Any, text: Any) -> None:
    with pytest.raises(_lab.LabError, match=text):
        _lab_inventory.parse_group("gpu_hosts", {**GROUP, **change})


def test_the_hosts_that_run_count() -> None:
    group = _lab_inventory.parse_group("gpu_hosts", GROUP)
    assert _lab_inventory.running_count(group, ["gw1", "gpu1", "gpu12", "gpux"]) == 12
    assert _lab_inventory.running_count(group, []) == 0


def test_the_end_of_a_cable_is_never_the_way_out_of_the_machine() -> None:
    """The same index is another link in another network namespace: eth0 once ended up on the bridge."""
    links = [
        {"ifindex": 4, "ifname": "eth0"},
        {"ifindex": 5, "ifname": "vb-not-a-pair"},
        {"ifindex": 6, "ifname": "veth0", "link_netnsid": 1},
        {"ifindex": 7, "ifname": "vb-gpufleet-gw1", "link_netnsid": 1},
    ]
    assert [_lab.uplink_of(links, index) for index in (0, 4, 5, 6)] == [None] * 4
    assert _lab.uplink_of(links, 7) == links[3]


def test_only_processes_of_this_namespace_are_ours() -> None:
    assert _lab.is_ours(os.getpid())
    assert not _lab.is_ours(2**22 + 1), "no such process"
