# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nic_offload as offload

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "nic_offload"
OFF = {"tx-checksumming": False, "rx-checksumming": False}
SHORT = {short: name for name, short in offload.GROUPS.items()}
# Kernel: who needs transmit checksums, and which single feature stands behind a line that has no members.
NEEDS_CHECKSUM = (
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-udp-segmentation",
)
LOST = list(NEEDS_CHECKSUM)


def text(name: str) -> str:
    return (FIXTURES / name).read_text("utf-8")


class FakePort:
    """Ports with the output of the real ethtool, and its rule that segmentation goes with the checksums."""

    def __init__(self, printed: dict[str, str]) -> None:
        self.lines = {port: [line.rstrip() for line in out.splitlines()] for port, out in printed.items()}
        self.wanted: dict[str, dict[str, bool]] = {port: {} for port in printed}
        self.calls: list[list[str]] = []
        self.stubborn: set[str] = set()

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        self.calls.append(argv)
        port = argv[2]
        if port not in self.lines:
            return 1, "", "netlink error: No such device"
        if argv[1] == "-k":
            return 0, "\n".join(self.lines[port]) + "\n", ""
        features = offload.parse_features("\n".join(self.lines[port]))
        for name, state in zip(argv[3::2], argv[4::2]):
            full = SHORT.get(name, name)
            for item in (full, *features[full].members):
                if not features[item].fixed and item not in self.stubborn:
                    self._set(port, item, state == "on")
        self._settle(port)
        return 0, "Actual changes:\n", ""

    def _set(self, port: str, name: str, on: bool, note: str = "") -> None:
        for index, line in enumerate(self.lines[port]):
            if line.strip().startswith(f"{name}: "):
                self.lines[port][index] = line.split(":")[0] + ": " + offload.word(on) + note

    def _settle(self, port: str) -> None:
        features = offload.parse_features("\n".join(self.lines[port]))
        checksums = any(
            features[name].on for name in features["tx-checksumming"].members if name.startswith("tx-checksum-ip")
        )
        for name, feature in features.items():
            if feature.members:
                on = any(features[member].on for member in feature.members)
                if not feature.fixed and name != "tcp-segmentation-offload":
                    self._set(port, name, on)
            if name in NEEDS_CHECKSUM and not feature.fixed:
                if feature.on and not checksums:
                    self._set(port, name, False, "" if feature.members else " [requested on]")
                if feature.requested and checksums:
                    self._set(port, name, True)
        again = offload.parse_features("\n".join(self.lines[port]))
        members = again["tcp-segmentation-offload"].members
        self._set(port, "tcp-segmentation-offload", any(again[member].on for member in members))
        self._set(port, "tx-checksumming", any(again[member].on for member in again["tx-checksumming"].members))


def tree(root: Path, *ports: str, address: str = "", rdma: str = "", rxe: str = "") -> None:
    for port in ports:
        base = root / "sys/class/net" / port
        base.mkdir(parents=True)
        (base / "address").write_text((address or "02:00:00:00:00:01") + "\n")
        (base / "addr_assign_type").write_text("0\n" if address else "1\n")
    if rdma:
        (root / "sys/class/infiniband/mlx5_0/device/net" / rdma).mkdir(parents=True)
    if rxe:
        (root / "sys/class/infiniband/rxe0").mkdir(parents=True)
        (root / "sys/class/infiniband/rxe0/parent").write_text(f"{rxe}\n")


def make(root: Path, fake: FakePort) -> offload.Host:
    return offload.Host(fake.run, str(root / "state"), str(root / "config"), str(root))


def test_what_ethtool_prints() -> None:
    features = offload.parse_features(text("veth_before.txt"))
    assert features["tx-checksumming"].on
    assert features["tx-checksumming"].members == (
        "tx-checksum-ipv4",
        "tx-checksum-ip-generic",
        "tx-checksum-ipv6",
        "tx-checksum-fcoe-crc",
        "tx-checksum-sctp",
    )
    assert features["tx-checksum-ipv4"].fixed
    assert not features["tx-checksum-ip-generic"].fixed
    after = offload.parse_features(text("veth_after.txt"))
    assert after["tx-tcp-segmentation"].requested is True
    assert offload.pending(features, OFF) == OFF
    assert offload.pending(after, OFF) == {}


def test_what_goes_off_with_checksums() -> None:
    before = offload.changeable(offload.parse_features(text("veth_before.txt")))
    after = offload.parse_features(text("veth_after.txt"))
    assert offload.taken_along(before, after, OFF) == LOST
    everything = text("veth_after.txt").replace("accecn-segmentation: on", "accecn-segmentation: off")
    everything = everything.replace("tcp-segmentation-offload: on", "tcp-segmentation-offload: off")
    gone = offload.taken_along(before, offload.parse_features(everything), OFF)
    assert gone == ["tcp-segmentation-offload", "tx-udp-segmentation"]


def test_the_command_uses_words_that_ethtool_takes() -> None:
    argv = offload.set_argv("eno1", {"tx-checksumming": False, "tx-nocache-copy": True})
    assert argv == ["ethtool", "-K", "eno1", "tx", "off", "tx-nocache-copy", "on"]


@pytest.mark.parametrize(
    ("printed", "lost", "single"),
    [
        ("veth_before.txt", LOST, "tx-checksum-ip-generic"),
        ("e1000e_before.txt", ["tcp-segmentation-offload"], "tx-tcp6-segmentation"),
    ],
)
def test_off_then_nothing_then_back(tmp_path: Path, printed: str, lost: list[str], single: str) -> None:
    fake = FakePort({"eno1": text(printed), "eno2": text(printed)})
    tree(tmp_path, "eno1", "eno2")
    host = make(tmp_path, fake)
    wish = offload.Wish(["eno1"], OFF)
    predicted = offload.ensure(host, wish, check=True)
    assert predicted.changed
    assert not (tmp_path / "state").exists()
    assert not any(argv[1] == "-K" for argv in fake.calls)
    done = offload.ensure(host, wish)
    assert done.changed
    assert done.said == [f"eno1: {', '.join(lost)} went off with rx-checksumming, tx-checksumming"]
    assert not host.read("eno1")["tx-checksumming"].on
    assert host.read("eno2")["tx-checksumming"].on
    kept = json.loads((tmp_path / "state/eno1.json").read_text())
    assert kept["features"][single] is True
    for check in (True, False):
        again = offload.ensure(host, wish, check=check)
        assert not again.changed
        assert again.said == done.said
    back = offload.ensure(host, offload.Wish([], OFF), check=True)
    assert back.changed
    assert (tmp_path / "state/eno1.json").exists()
    assert offload.ensure(host, offload.Wish([], OFF)).changed
    assert offload.parse_features(text(printed)) == host.read("eno1")
    assert list((tmp_path / "state").iterdir()) == []
    assert list((tmp_path / "config").iterdir()) == []
    assert not offload.ensure(host, offload.Wish([], OFF)).changed


def test_what_was_there_first_outlives_other_wishes(tmp_path: Path) -> None:
    fake = FakePort({"eno1": text("veth_before.txt")})
    tree(tmp_path, "eno1")
    host = make(tmp_path, fake)
    offload.ensure(host, offload.Wish(["eno1"], OFF))
    assert offload.ensure(host, offload.Wish(["eno1"], {**OFF, "generic-receive-offload": True})).changed
    assert host.read("eno1")["generic-receive-offload"].on
    offload.ensure(host, offload.Wish([], {}))
    assert offload.parse_features(text("veth_before.txt")) == host.read("eno1")


def test_rdma_ports_are_refused(tmp_path: Path) -> None:
    fake = FakePort({"eno1": text("veth_before.txt"), "eno2": text("veth_before.txt")})
    tree(tmp_path, "eno1", "eno2", rdma="eno1", rxe="eno2")
    host = make(tmp_path, fake)
    with pytest.raises(offload.OffloadError) as caught:
        offload.ensure(host, offload.Wish(["eno1", "eno2", "eno9"], OFF))
    assert "expected no RDMA port unless nic_offload_allow_rdma is true, found eno1 with mlx5_0" in str(caught.value)
    assert "found eno2 with rxe0" in str(caught.value)
    assert "expected interfaces of the host (eno1, eno2), found eno9" in str(caught.value)
    assert not any(argv[1] == "-K" for argv in fake.calls)
    assert offload.ensure(host, offload.Wish(["eno1"], OFF, allow_rdma=True)).changed


def test_unknown_names_and_stubborn_ports(tmp_path: Path) -> None:
    fake = FakePort({"eno1": text("veth_before.txt")})
    tree(tmp_path, "eno1")
    host = make(tmp_path, fake)
    with pytest.raises(
        offload.OffloadError, match="nic_offload_features: expected names that 'ethtool -k eno1' prints, found txx"
    ):
        offload.ensure(host, offload.Wish(["eno1"], {"txx": False}))
    fake.stubborn = {"rx-checksumming"}
    with pytest.raises(
        offload.OffloadError, match="eno1: expected rx-checksumming off after 'ethtool -K', found rx-checksumming on"
    ):
        offload.ensure(host, offload.Wish(["eno1"], OFF))


def test_fixed_features_are_reported(tmp_path: Path) -> None:
    printed = text("veth_before.txt").replace("rx-checksumming: on", "rx-checksumming: on [fixed]")
    fake = FakePort({"eno1": printed})
    tree(tmp_path, "eno1")
    report = offload.ensure(make(tmp_path, fake), offload.Wish(["eno1"], OFF))
    assert report.ports["eno1"]["fixed"] == ["rx-checksumming"]
    assert "eno1: the port does not let rx-checksumming be changed [fixed]" in report.said


def test_a_port_with_another_name_after_a_boot(tmp_path: Path) -> None:
    fake = FakePort({"eth0": text("veth_before.txt"), "lan1": text("veth_before.txt")})
    mac = "3c:fd:fe:00:00:01"
    tree(tmp_path, "eth0", address=mac)
    host = make(tmp_path, fake)
    offload.ensure(host, offload.Wish(["eth0"], OFF))
    (tmp_path / "sys/class/net/eth0").rename(tmp_path / "sys/class/net/lan1")
    assert host.read("lan1")["tx-checksumming"].on
    assert offload.at_boot(host, "lan1") == "lan1: set rx-checksumming off, tx-checksumming off"
    assert offload.at_boot(host, "lan1") == "lan1: found rx-checksumming off, tx-checksumming off"
    assert offload.at_boot(host, "lo") == "lo: nothing is wanted"
    # The inventory learns the new name: what was kept under the old one goes with it.
    wish = offload.Wish(["lan1"], OFF)
    assert offload.ensure(host, wish, check=True).changed
    assert offload.ensure(host, wish).changed
    assert not offload.ensure(host, wish).changed
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["lan1.json"]
    assert [path.name for path in (tmp_path / "config").iterdir()] == ["lan1.json"]
    offload.ensure(host, offload.Wish([], OFF))
    assert host.read("lan1")["tx-tcp-segmentation"].on


def test_another_port_under_the_old_name(tmp_path: Path) -> None:
    entries = {
        "eth0": {"interface": "eth0", "address": "aa:aa:aa:aa:aa:01", "features": OFF},
        "eth1": {"interface": "eth1", "address": "aa:aa:aa:aa:aa:02", "features": {}},
    }
    assert offload.match(entries, "eth0", "aa:aa:aa:aa:aa:02") == entries["eth1"]
    assert offload.match(entries, "eth0", "") == entries["eth0"]
    assert offload.match(entries, "eth5", "aa:aa:aa:aa:aa:05") is None


def test_a_port_that_is_gone(tmp_path: Path) -> None:
    fake = FakePort({"eno1": text("veth_before.txt")})
    tree(tmp_path, "eno1")
    host = make(tmp_path, fake)
    offload.ensure(host, offload.Wish(["eno1"], OFF))
    (tmp_path / "sys/class/net/eno1").rename(tmp_path / "gone")
    report = offload.ensure(host, offload.Wish([], OFF))
    assert report.said == ["eno1: is gone, nothing to put back"]
    assert host.kept() == {}


def test_a_run_killed_between_record_and_wish(tmp_path: Path) -> None:
    fake = FakePort({"eno1": text("veth_before.txt")})
    tree(tmp_path, "eno1")
    host = make(tmp_path, fake)
    host.keep("eno1", "", offload.changeable(host.read("eno1")))
    assert offload.ensure(host, offload.Wish(["eno1"], OFF)).changed
    host.forget("eno1")
    assert offload.ensure(host, offload.Wish([], OFF)).changed
    assert host.wishes() == {}


def test_without_ethtool(tmp_path: Path) -> None:
    tree(tmp_path, "eno1", "eno2", rdma="eno2")
    host = offload.Host(
        lambda argv: (127, "", "ethtool is not installed"), str(tmp_path / "s"), str(tmp_path / "c"), str(tmp_path)
    )
    assert offload.unknown(host, offload.Wish(["eno1"], OFF)).said == [
        "eno1: ethtool is not installed yet, its features are not known"
    ]
    with pytest.raises(offload.OffloadError, match="found eno2 with mlx5_0"):
        offload.unknown(host, offload.Wish(["eno2"], OFF))
    with pytest.raises(offload.OffloadError, match="found: ethtool is not installed"):
        offload.ensure(host, offload.Wish(["eno1"], OFF))
