# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The controller's side of a lock: what it tells the module, and what it makes of a lock that is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.action import fleet_lock
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _controller_run as runs


@pytest.fixture(autouse=True)
def _no_ansible_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ActionBase, "run", lambda _self, _tmp=None, _task_vars=None: {})


@pytest.fixture
def other_run() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def ask(*answers: dict[str, Any], **args: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Let the plugin ask a host that gives these answers.

    :returns: the result, and the options of each run of the module.
    """
    found: Any = fleet_lock.ActionModule.__new__(fleet_lock.ActionModule)
    found._task = SimpleNamespace(args={"purpose": "test", **args}, check_mode=False)
    found._execute_module = MagicMock(side_effect=list(answers))
    result = found.run(None, {})
    return result, [call.kwargs["module_args"] for call in found._execute_module.call_args_list]


def refused(owner: str, run: str) -> dict[str, Any]:
    """What the module says of a lock of somebody else."""
    return {"failed": True, "msg": "locked", "other": {"owner": owner, "run": run}}


def mine() -> tuple[str, str]:
    """Owner and run of the process that started this one, as a worker has them."""
    return runs.identity(os.getppid(), {})


def test_the_module_is_told_who_asks() -> None:
    result, asked = ask({"changed": True, "other": {}})
    assert result["changed"]
    assert [(one["owner"], one["run"]) for one in asked] == [mine()]
    _result, asked = ask({"changed": True, "other": {}}, owner="alice")
    assert (asked[0]["owner"], asked[0]["run"]) == ("alice", mine()[1])


def test_the_run_is_who_started_the_worker(monkeypatch: pytest.MonkeyPatch, other_run: subprocess.Popen[bytes]) -> None:
    # After the end of the run the system says that init is the parent, and init lives for ever.
    monkeypatch.setattr(fleet_lock.multiprocessing, "parent_process", lambda: SimpleNamespace(pid=other_run.pid))
    _result, asked = ask({"changed": True, "other": {}})
    assert asked[0]["run"] == runs.current(other_run.pid).text()


def test_a_run_that_lives_is_named_and_not_succeeded(other_run: subprocess.Popen[bytes]) -> None:
    result, asked = ask(refused(mine()[0], runs.current(other_run.pid).text()))
    assert len(asked) == 1
    assert result["failed"]
    assert f"process {other_run.pid} on " in result["msg"]


def test_a_run_that_was_killed_is_succeeded(other_run: subprocess.Popen[bytes]) -> None:
    there = runs.current(other_run.pid).text()
    other_run.kill()
    other_run.wait()
    result, asked = ask(refused(mine()[0], there), {"changed": True, "other": {}})
    assert result == {"changed": True, "other": {}}
    assert asked[1]["succeeds"] == there
    # Of another owner, of AWX, and when it is given back, nobody is succeeded.
    assert len(ask(refused("bob@ops2", there))[1]) == 1
    assert len(ask(refused(mine()[0], "AWX job 41 on pod"))[1]) == 1
    assert len(ask(refused(mine()[0], there), state="released")[1]) == 1
