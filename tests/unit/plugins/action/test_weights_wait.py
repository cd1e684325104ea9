# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Watching a job on weights, without a host."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.action import weights_wait
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _job_watch


@pytest.fixture(autouse=True)
def _no_ansible_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActionBase, "run", lambda _self, _tmp=None, _task_vars=None: {})
    monkeypatch.setattr(_job_watch.time, "sleep", lambda _seconds: None)

    def validate(self: Any, argument_spec: dict[str, Any]) -> tuple[None, dict[str, Any]]:
        return None, {name: self._task.args.get(name, option.get("default")) for name, option in argument_spec.items()}

    monkeypatch.setattr(ActionBase, "validate_argument_spec", validate)


def watch(*answers: Any, check: bool = False, delegate: str | None = None, **args: Any) -> tuple[dict[str, Any], Any]:
    """Let the plugin ask a host that gives these answers."""
    found: Any = weights_wait.ActionModule.__new__(weights_wait.ActionModule)
    found._task = SimpleNamespace(args={"job": "j", **args}, check_mode=check, delegate_to=delegate, async_val=0)
    found._display, found._connection = MagicMock(), MagicMock()
    found._low_level_execute_command = MagicMock(side_effect=list(answers))
    return found.run(None, {"inventory_hostname": "gpu1"}), found


def status(state: str, seqs: range, **changes: Any) -> dict[str, str]:
    """What the program on the host prints."""
    lines = [{"seq": seq, "text": f"line {seq}"} for seq in seqs]
    return {"stdout": json.dumps({"state": state, "job": "j", "root": "r", "lines": lines, "result": {}, **changes})}


def test_each_line_is_shown_once_with_its_host() -> None:
    result, found = watch(status("running", range(1, 3)), status("running", range(1, 3)), status("done", range(1, 4)))
    assert [call.args[0] for call in found._display.display.call_args_list] == [f"[gpu1] line {n}" for n in (1, 2, 3)]
    assert (result["failed"], result["state"], result["root"]) == (False, "done", "r")
    asked = [call.args[0] for call in found._low_level_execute_command.call_args_list]
    assert [words.split("--after ")[1].split()[0] for words in asked] == ["0", "2", "2"]
    assert "--unit gpufleet-weights@fill.service" in asked[0]


def test_a_job_that_failed_fails_with_its_last_words() -> None:
    result, _found = watch(status("failed", range(1, 2), message="no room"), delegate="store1")
    assert (result["failed"], result["msg"]) == (True, "store1: no room")


def test_a_broken_connection_is_tried_again_and_then_given_up() -> None:
    result, found = watch(AnsibleConnectionFailure("gone"), status("done", range(1, 2)))
    assert (result["state"], found._connection.reset.call_count) == ("done", 1)
    with pytest.raises(AnsibleConnectionFailure):
        watch(*[AnsibleConnectionFailure("gone")] * 6)


def test_waiting_is_bounded_and_the_job_goes_on() -> None:
    result, _found = watch(status("running", range(1, 2)), timeout=-1)
    assert result["failed"]
    assert "model_store_wait_timeout" in result["msg"]
    assert "It goes on" in result["msg"]


def test_a_host_that_talks_nonsense_is_named() -> None:
    result, _found = watch({"stdout": "", "stderr": "No module named x"})
    assert result["msg"] == "gpu1: the state of the job cannot be read: No module named x"


def test_check_mode_asks_nobody() -> None:
    result, found = watch(check=True)
    assert (result["failed"], result["state"]) == (False, "running")
    assert not found._low_level_execute_command.called
