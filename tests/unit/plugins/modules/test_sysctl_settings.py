# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module sysctl_settings on a tree that looks like a host's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _sysctl_settings as sysctl
from ansible_collections.gpufleet.deepseek.plugins.modules import sysctl_settings

KERNEL = {
    "kernel/dmesg_restrict": "0\n",
    "kernel/printk": "4\t4\t1\t7\n",
    "net/ipv4/ip_forward": "1\n",
    "net/ipv4/conf/all/rp_filter": "0\n",
    "net/ipv4/conf/all/accept_redirects": "0\n",
}
WISH = {"kernel.dmesg_restrict": 1, "net.ipv4.conf.all.rp_filter": 2, "kernel.printk": "4 4  1 7", "kernel.nothing": 1}


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with a kernel of files."""
    for name, value in KERNEL.items():
        path = tmp_path / "proc/sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    (tmp_path / "etc/sysctl.d").mkdir(parents=True)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], host: Path, *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    arguments = {
        "root": str(host),
        "path": str(host / "etc/sysctl.d/95-test.conf"),
        "record": str(host / "var/record.json"),
        **options,
        "_ansible_check_mode": check,
        "_ansible_diff": True,
    }
    with patch_module_args(arguments), pytest.raises(SystemExit):
        sysctl_settings.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def value(host: Path, name: str) -> str:
    return (host / "proc/sys" / name).read_text().strip()


def test_check_run_check_run_and_back(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predicted = run(capsys, host, check=True, settings=WISH)
    assert predicted["changed"]
    assert not (host / "etc/sysctl.d/95-test.conf").exists()
    assert value(host, "kernel/dmesg_restrict") == "0"
    done = run(capsys, host, settings=WISH)
    assert done["applied"] == predicted["applied"] == ["kernel.dmesg_restrict", "net.ipv4.conf.all.rp_filter"]
    assert done["missing"] == ["kernel.nothing"]
    assert value(host, "net/ipv4/conf/all/rp_filter") == "2"
    assert "kernel.printk = 4 4 1 7\n" in (host / "etc/sysctl.d/95-test.conf").read_text()
    for check in (True, False):
        assert not run(capsys, host, check=check, settings=WISH)["changed"]
    assert run(capsys, host, check=True, state="absent")["changed"]
    gone = run(capsys, host, state="absent")
    assert gone["restored"] == ["kernel.dmesg_restrict", "net.ipv4.conf.all.rp_filter"]
    assert value(host, "net/ipv4/conf/all/rp_filter") == "0"
    assert list((host / "etc/sysctl.d").iterdir()) == list((host / "var").iterdir()) == []
    assert not run(capsys, host, state="absent")["changed"]


def test_a_key_that_leaves_gets_its_value_back(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, host, settings=WISH)
    less = run(capsys, host, settings={"kernel.dmesg_restrict": 1})
    assert less["restored"] == ["net.ipv4.conf.all.rp_filter"]
    assert value(host, "net/ipv4/conf/all/rp_filter") == "0"
    assert not run(capsys, host, settings={"kernel.dmesg_restrict": 1})["changed"]


def test_what_cannot_be_written_is_reported(
    host: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctl, "writable", lambda _root, key: not key.startswith("kernel."))
    for _run in range(2):
        done = run(capsys, host, settings=WISH)
        assert done["read_only"] == ["kernel.dmesg_restrict"]
        assert "failed" not in done
    assert not done["changed"]


def test_a_setting_that_another_one_moves_is_set_again(
    host: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = sysctl.write

    def as_the_kernel(root: Path, key: str, new: str) -> bool:
        if key == "net.ipv4.conf.all.rp_filter" and value(host, "net/ipv4/conf/all/rp_filter") != new:
            (host / "proc/sys/net/ipv4/conf/all/accept_redirects").write_text("1\n")
        return write(root, key, new)

    monkeypatch.setattr(sysctl, "write", as_the_kernel)
    wish = {"net.ipv4.conf.all.accept_redirects": 0, "net.ipv4.conf.all.rp_filter": 2}
    assert "net.ipv4.conf.all.accept_redirects" in run(capsys, host, settings=wish)["applied"]
    assert not run(capsys, host, settings=wish)["changed"]


def test_a_value_that_does_not_stay_is_an_error(
    host: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysctl, "write", lambda _root, _key, _new: True)
    assert "expected '1' after writing it, found '0'" in run(capsys, host, settings={"kernel.dmesg_restrict": 1})["msg"]


def test_forwarding_comes_first() -> None:
    names = ["net.ipv4.conf.all.accept_redirects", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]
    assert sysctl.ordered(dict.fromkeys(names, 0))[:2] == ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]


def test_a_later_file_is_named(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / "etc/sysctl.d/99-site.conf").write_text("# x\n-net.ipv4.ip_forward=0\nkernel.dmesg_restrict = 1\n")
    (host / "etc/sysctl.d/10-site.conf").write_text("net.ipv4.ip_forward = 0\n")
    done = run(capsys, host, settings={"net.ipv4.ip_forward": 1, "kernel.dmesg_restrict": True})
    assert len(done["conflicts"]) == 1
    assert done["conflicts"][0].endswith("99-site.conf: net.ipv4.ip_forward = 0, expected 1")


@pytest.mark.parametrize("wish", [{"../etc": 1}, {"net": 1}, {"net.*.x": 1}, {"net.x": ""}, {"net.x": [1]}])
def test_odd_wishes(host: Path, capsys: pytest.CaptureFixture[str], wish: dict[str, Any]) -> None:
    assert run(capsys, host, settings=wish)["failed"]


def test_slashes_keep_dots() -> None:
    assert sysctl.place(Path("/"), "net/ipv4/conf/eth0.5/rp_filter") == Path("/proc/sys/net/ipv4/conf/eth0.5/rp_filter")
