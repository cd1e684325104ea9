# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Watching a job, and writing the reports, without a host."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.action import burn_in_report, burn_in_wait
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _job_watch


def action(module: Any, args: dict[str, Any], check: bool = False) -> Any:
    found = module.ActionModule.__new__(module.ActionModule)
    found._task = SimpleNamespace(args=args, check_mode=check, async_val=0, diff=False, action="x", ignore_errors=False)
    found._display = MagicMock()
    found._connection = MagicMock()
    return found


@pytest.fixture(autouse=True)
def _no_ansible_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActionBase, "run", lambda _self, _tmp=None, _task_vars=None: {})
    monkeypatch.setattr(_job_watch.time, "sleep", lambda _seconds: None)

    def validate(self: Any, argument_spec: dict[str, Any]) -> tuple[None, dict[str, Any]]:
        return None, {name: self._task.args.get(name, option.get("default")) for name, option in argument_spec.items()}

    monkeypatch.setattr(ActionBase, "validate_argument_spec", validate)


def status(state: str, seqs: range, **changes: Any) -> dict[str, str]:
    lines = [{"seq": seq, "text": f"line {seq}"} for seq in seqs]
    return {"stdout": json.dumps({"state": state, "job": "j", "verdict": "pass", "lines": lines, **changes})}


def watch(*answers: Any, check: bool = False, **args: Any) -> tuple[dict[str, Any], Any]:
    found = action(burn_in_wait, {"job": "j", **args}, check)
    found._low_level_execute_command = MagicMock(side_effect=list(answers))
    return found.run(None, {"inventory_hostname": "gpu1"}), found


def shown(found: Any) -> list[str]:
    return [call.args[0] for call in found._display.display.call_args_list]


def test_each_line_is_shown_once() -> None:
    result, found = watch(status("running", range(1, 3)), status("running", range(1, 3)), status("done", range(1, 5)))
    assert shown(found) == [f"[gpu1] line {seq}" for seq in range(1, 5)]
    assert (result["failed"], result["state"], result["verdict"], result["lines"][-1]) == (
        False,
        "done",
        "pass",
        "line 4",
    )
    asked = [call.args[0] for call in found._low_level_execute_command.call_args_list]
    assert [words.split("--after ")[1].split()[0] for words in asked] == ["0", "2", "2"]


def test_a_broken_connection_is_tried_again() -> None:
    result, found = watch(AnsibleConnectionFailure("gone"), status("done", range(1, 2)))
    assert (result["state"], found._connection.reset.call_count) == ("done", 1)
    with pytest.raises(AnsibleConnectionFailure):
        watch(*[AnsibleConnectionFailure("gone")] * 6)


def test_another_job() -> None:
    result, _unused = watch(status("running", range(0), job="k"))
    assert result["failed"]
    assert "expected the burn-in j, found k" in result["msg"]


def test_an_answer_that_is_none() -> None:
    result, _unused = watch({"stdout": "", "stderr": "python3: not found"})
    assert result["msg"] == "gpu1: the state of the burn-in cannot be read: python3: not found"


def test_waiting_has_an_end() -> None:
    result, _unused = watch(status("running", range(1, 2)), timeout=-1)
    assert result["failed"]
    assert "still runs after -1 s (burn_in_wait_timeout). It goes on" in result["msg"]


def test_check_mode_waits_for_nothing() -> None:
    result, found = watch(check=True)
    assert (result["failed"], found._low_level_execute_command.call_count) == (False, 0)


HOST = {
    "valid": True,
    "verdict": "pass",
    "reasons": [],
    "tests": [],
    "job": "j",
    "state": "done",
    "result": None,
    "changed": False,
    "invocation": {},
}


def test_reports_keep_the_hosts_of_earlier_runs(tmp_path: Path) -> None:
    folder, page = tmp_path / "burn_in", tmp_path / "burn_in.html"
    args = {"directory": str(folder), "page": str(page), "show": True}
    first = action(burn_in_report, {**args, "hosts": {"gpu1": HOST}}).run(None, {})
    assert (first["changed"], first["reports"]) == (True, [str(folder / "gpu1.json"), str(page)])
    assert sorted(json.loads((folder / "gpu1.json").read_text())) == [
        "host",
        "job",
        "reasons",
        "result",
        "state",
        "tests",
        "valid",
        "verdict",
    ]
    (folder / "else.json").write_text("[]")
    second = action(burn_in_report, {**args, "hosts": {"gpu2": HOST}}).run(None, {})
    assert second["changed"]
    assert "gpu1" in page.read_text()
    assert "gpu2" in page.read_text()
    again = action(burn_in_report, {**args, "hosts": {"gpu2": HOST}}).run(None, {})
    assert not again["changed"]


def test_check_mode_writes_nothing(tmp_path: Path) -> None:
    args = {"directory": str(tmp_path / "x"), "page": "", "show": False, "hosts": {"gpu1": HOST}}
    assert action(burn_in_report, args, check=True).run(None, {})["changed"]
    assert not (tmp_path / "x").exists()


def test_a_report_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = action(
        burn_in_report, {"directory": str(tmp_path / "file"), "page": "", "show": False, "hosts": {"gpu1": HOST}}
    )
    assert not found.run(None, {})["failed"]
    assert "cannot be written" in found._display.warning.call_args.args[0]
