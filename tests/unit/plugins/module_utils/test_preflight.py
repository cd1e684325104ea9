# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _preflight as preflight

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 1F00630A:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 40211 1 0 100 0 0 10 0
   1: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 40212 1 0 100 0 0 10 0
   2: 1F00630A:1F40 0A00630A:D2F0 01 00000000:00000000 00:00000000 00000000   998        0 40213 1 0 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 511 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 512 1 0 100 0 0 10 0
   2: B80D0120000000000000000001000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 513 1 0 100 0 0 10 0
"""


def test_listeners_of_both_families() -> None:
    assert preflight.parse_listeners(TCP) == [
        preflight.Listener("10.99.0.31", 8000, "40211"),
        preflight.Listener("127.0.0.1", 22, "40212"),
    ]
    assert preflight.parse_listeners(TCP6) == [
        preflight.Listener("::", 80, "511"),
        preflight.Listener("127.0.0.1", 8080, "512"),
        preflight.Listener("2001:db8::1", 443, "513"),
    ]


@pytest.mark.parametrize(
    ("held", "address", "port", "expected"),
    [
        ("10.99.0.31", "10.99.0.31", 8000, True),
        ("10.99.0.31", "10.99.0.31", 8001, False),
        ("127.0.0.1", "10.99.0.31", 8000, False),
        ("0.0.0.0", "10.99.0.31", 8000, True),
        ("::", "10.99.0.31", 8000, True),
        ("127.0.0.1", "0.0.0.0", 8000, True),
    ],
)
def test_conflicts(held: Any, address: Any, port: Any, expected: Any) -> None:
    assert preflight.conflicts(preflight.Listener(held, 8000, "1"), address, port) is expected


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/deepseek-service.service\n", "deepseek-service.service"),
        ("12:memory:/\n1:name=systemd:/system.slice/nginx.service\n", "nginx.service"),
        ("0::/machine.slice/libpod-1.scope/container/system.slice/a.service\n", "a.service"),
        ("0::/system.slice/a.service/worker\n", "a.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("0::/\n", ""),
    ],
)
def test_unit_of_a_process(text: Any, unit: Any) -> None:
    assert preflight.parse_unit(text) == unit


def test_a_real_listener_is_found_with_its_process() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        found = preflight.check_port("127.0.0.1", port, "")
        assert found["local"] is True
        assert [entry["pid"] for entry in found["held_by"]] == [os.getpid()]
    assert preflight.check_port("localhost", port, "")["held_by"] == []


def test_a_holder_that_is_the_unit_itself_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "listeners", lambda: [preflight.Listener("127.0.0.1", 8000, "9")])
    monkeypatch.setattr(preflight, "holders", lambda inodes: {"9": preflight.Holder(7, "python", "mine.service")})
    assert preflight.check_port("127.0.0.1", 8000, "mine.service")["held_by"] == []
    assert preflight.check_port("127.0.0.1", 8000, "other.service")["held_by"] == [
        {"address": "127.0.0.1", "pid": 7, "process": "python", "unit": "mine.service"}
    ]


def test_an_address_of_another_host() -> None:
    assert preflight.check_port("192.0.2.1", 8000, "")["local"] is False


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(preflight.PreflightError, match="neither an IP address nor a name"):
        preflight.resolve("no-such-host.invalid")


def test_space_is_added_up_per_file_system(tmp_path: Path) -> None:
    present = tmp_path / "there"
    present.write_bytes(b"1234")
    wants = [
        {"path": str(tmp_path / "a" / "b"), "bytes": 10},
        {"path": str(tmp_path / "c"), "bytes": 20},
        {"path": str(tmp_path), "bytes": 40, "unless_exists": str(present), "unless_size": 4},
    ]
    (disk,) = preflight.check_space(wants)
    assert disk["wanted_bytes"] == 30
    assert disk["enough"] is True
    assert disk["present"] == [str(present)]
    assert disk["paths"] == [str(tmp_path / "a" / "b"), str(tmp_path / "c"), str(tmp_path)]


def test_a_file_of_another_size_is_not_there(tmp_path: Path) -> None:
    present = tmp_path / "there"
    present.write_bytes(b"1234")
    want = {"path": str(tmp_path), "bytes": 40, "unless_exists": str(present), "unless_size": 5}
    assert preflight.check_space([want])[0]["wanted_bytes"] == 40


def test_too_little_space(tmp_path: Path) -> None:
    (disk,) = preflight.check_space([{"path": str(tmp_path), "bytes": 1 << 60}])
    assert disk["enough"] is False
