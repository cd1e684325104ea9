# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _service_unit as service_unit

RUNNING = """\
Result=success
ExecMainStartTimestampMonotonic=2000000000
InvocationID=5d5e
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
NeedDaemonReload=no
"""
UNKNOWN = """\
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
NeedDaemonReload=no
ExecMainStartTimestampMonotonic=0
"""


def test_a_running_unit() -> None:
    unit = service_unit.parse_show(RUNNING, wall=1_700_000_000.0, monotonic=2100.0)
    assert unit == service_unit.Unit(True, True, False, True, False, 1_699_999_900.0, "success", "5d5e")


def test_an_unknown_unit() -> None:
    unit = service_unit.parse_show(UNKNOWN, wall=1.0, monotonic=1.0)
    assert (unit.loaded, unit.active, unit.enabled, unit.started_at) == (False, False, False, 0.0)


def test_a_masked_unit() -> None:
    unit = service_unit.parse_show(UNKNOWN.replace("not-found", "masked"), wall=1.0, monotonic=1.0)
    assert (unit.loaded, unit.masked) == (False, True)
    assert not service_unit.parse_show(UNKNOWN, wall=1.0, monotonic=1.0).masked


def unit(**changes: Any) -> Any:
    running = service_unit.parse_show(RUNNING, wall=1_700_000_000.0, monotonic=2100.0)
    return dataclasses.replace(running, **changes)


@pytest.mark.parametrize(
    ("now", "state", "enabled", "newer", "enable", "action"),
    [
        (unit(), "started", True, [], None, ""),
        (unit(), "started", True, ["/etc/x"], None, "restart"),
        (unit(enabled=False), "started", True, [], True, ""),
        (unit(active=False), "started", True, ["/etc/x"], None, "start"),
        (unit(active=False, starting=True), "started", True, [], None, "start"),
        (unit(active=False, starting=True), "started", True, ["/etc/x"], None, "restart"),
        (unit(active=False, starting=True, stale=True), "started", True, [], None, "restart"),
        (unit(active=False, stale=True), "started", True, ["/etc/x"], None, "restart"),
        (unit(stale=True), "started", True, [], None, ""),
        (unit(), "stopped", False, ["/etc/x"], False, "stop"),
        (unit(active=False, enabled=False), "stopped", False, [], None, ""),
        (unit(active=False, starting=True, enabled=False), "stopped", False, [], None, "stop"),
    ],
)
def test_decisions(now: Any, state: Any, enabled: Any, newer: Any, enable: Any, action: Any) -> None:
    steps = service_unit.decide(now, state, enabled, newer)
    assert (steps.enable, steps.action) == (enable, action)
    assert steps.changed is (enable is not None or bool(action))
    assert bool(steps.reasons) is bool(action)


def test_only_files_written_after_the_start_count(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path, stamp in ((old, 100), (new, 300)):
        path.write_text("", encoding="utf-8")
        os.utime(path, (stamp, stamp))
    assert service_unit.newer_files([str(old), str(new), str(tmp_path / "missing")], 200.0) == [str(new)]


class FakeSystemd:
    """Records commands; the ones that begin like a key answer with its value."""

    def __init__(self, answers: Any = None) -> None:
        self.answers = answers or {}
        self.calls: list[Any] = []

    def __call__(self, argv: Any) -> Any:
        command = " ".join(argv)
        self.calls.append(command)
        for start, answer in self.answers.items():
            if command.startswith(start):
                return answer
        return 0, "", ""


def test_a_start_enables_reloads_and_forgets_old_failures() -> None:
    systemd = FakeSystemd()
    service_unit.apply(systemd, "a.service", service_unit.Steps(False, True, "start", ["x"]))
    assert systemd.calls == [
        "systemctl daemon-reload",
        "systemctl enable --quiet a.service",
        "systemctl reset-failed a.service",
        "systemctl start a.service",
    ]


def test_a_stale_unit_file_alone_is_only_reloaded() -> None:
    systemd = FakeSystemd()
    service_unit.apply(systemd, "a.service", service_unit.Steps(reload=True))
    assert systemd.calls == ["systemctl daemon-reload"]


def test_a_failed_start_carries_the_last_words() -> None:
    systemd = FakeSystemd({"systemctl start": (1, "", "Job failed"), "journalctl": (0, "no such model\n", "")})
    with pytest.raises(service_unit.UnitError, match="its last words: no such model"):
        service_unit.apply(systemd, "a.service", service_unit.Steps(action="start"))


def test_a_failed_start_without_a_journal() -> None:
    systemd = FakeSystemd({"systemctl start": (1, "", "Job failed"), "journalctl": (1, "", "")})
    with pytest.raises(service_unit.UnitError, match="Job failed"):
        service_unit.apply(systemd, "a.service", service_unit.Steps(action="start"))


def test_systemd_does_not_answer() -> None:
    with pytest.raises(service_unit.UnitError, match="no bus"):
        service_unit.show(FakeSystemd({"systemctl show": (1, "", "no bus")}), "a.service")
