# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Watching a load test, without a host."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.action import load_test_wait


@pytest.fixture(autouse=True)
def _no_ansible_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActionBase, "run", lambda _self, _tmp=None, _task_vars=None: {})

    def validate(self: Any, argument_spec: dict[str, Any]) -> tuple[None, dict[str, Any]]:
        return None, {name: self._task.args.get(name, option.get("default")) for name, option in argument_spec.items()}

    monkeypatch.setattr(ActionBase, "validate_argument_spec", validate)


def watch(*answers: dict[str, Any], check: bool = False, **args: Any) -> tuple[dict[str, Any], Any]:
    """Let the plugin ask a host that gives these answers."""
    found: Any = load_test_wait.ActionModule.__new__(load_test_wait.ActionModule)
    found._task = SimpleNamespace(args=args, check_mode=check, delegate_to=None, async_val=0)
    found._display, found._connection = MagicMock(), MagicMock()
    told = [{"stdout": json.dumps(answer)} for answer in answers]
    found._low_level_execute_command = MagicMock(side_effect=told)
    return found.run(None, {"inventory_hostname": "mon1"}), found


def test_a_verdict_comes_back_whatever_it_is() -> None:
    running = {"state": "running", "job": "2", "lines": [{"seq": 1, "text": "1 user"}]}
    done = {**running, "state": "done", "verdict": {"state": "failed", "reasons": ["slow"]}}
    result, found = watch({}, running, done, not_job="1")
    assert (result["failed"], result["state"], result["verdict"]["state"]) == (False, "done", "failed")
    assert [call.args[0] for call in found._display.display.call_args_list] == ["[mon1] 1 user"]
    assert "--not-job 1" in found._low_level_execute_command.call_args_list[0].args[0]


def test_a_run_that_sent_nothing_fails_and_check_mode_asks_nobody() -> None:
    result, _found = watch({"state": "failed", "message": "nothing was sent: no", "lines": []})
    assert (result["failed"], result["msg"]) == (True, "load test on mon1: nothing was sent: no")
    result, found = watch(check=True)
    assert (result["failed"], found._low_level_execute_command.call_count) == (False, 0)


def test_a_process_that_was_left_behind_stops_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = iter([10, 10, 1])
    monkeypatch.setattr(load_test_wait.os, "getppid", lambda: next(parents))
    running = {"state": "running", "job": "2", "lines": []}
    result, _found = watch(running, running, running)
    assert (result["failed"], result["msg"]) == (True, "load test on mon1: nobody waits for it any more")
