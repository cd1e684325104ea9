# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Module load_test_info: check, run, check, run; what is wrong is said in one message."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import load_test_info

CONFIG: dict[str, Any] = {
    "url": "http://192.0.2.21:8000",
    "allowed": {"gw1": "192.0.2.10", "gpu1": "192.0.2.21"},
    "connect_host": "",
    "model": "m",
    "mix": '{"version": 1, "requests": [{"name": "a", "prompts": ["x"], "max_tokens": 5}]}',
    "steps": [{"users": 1, "seconds": 10}, {"users": 500, "seconds": 10}],
    "max_users": 8,
    "max_minutes": 1.0,
    "spawn_per_second": 10.0,
    "think_seconds": 0.0,
    "timeout": 5,
    "retry_after_max": 1.0,
    "pass": {},
    "fleet_plan": {},
    "first_token_ms": 0.0,
    "plan_slack": 2.0,
    "abort_error_ratio": 0.1,
    "abort_min_requests": 20,
    "abort_window": 10,
    "min_memory_mib": 0,
    "max_cpu_percent": 0,
    "open_seconds": 0,
    "open_rate": 0.0,
    "open_share": 0.8,
    "open_max_in_flight": 8,
    "open_tool": "own",
    "compare_percent": 10.0,
    "compare_action": "warn",
    "keep_runs": 2,
    "lease_seconds": 30,
}


def run(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], check: bool = False, python: str = ""
) -> dict[str, Any]:
    """One run of the module and what it says."""
    arguments = {"config": {**CONFIG, **changes}, "python": python or sys.executable, "_ansible_check_mode": check}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        load_test_info.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_check_run_check_run(capsys: pytest.CaptureFixture[str]) -> None:
    seen = [run(capsys, {}, check) for check in (True, False, True, False)]
    assert all(one == seen[0] for one in seen)
    assert not seen[0]["changed"]
    assert (seen[0]["target_host"], seen[0]["address"], seen[0]["seconds"]) == ("gpu1", "192.0.2.21", 10)
    assert seen[0]["left_out"] == ["500 users (load_test_max_users is 8)"]
    assert seen[0]["lines"][0] == "target: http://192.0.2.21:8000, which is gpu1 (192.0.2.21), model m"


def test_what_is_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, {"url": "http://192.0.2.99", "steps": [], "mix": "{", "pass": {"speed": 1}})["msg"]
    for words in ("192.0.2.99, which is none of them", "load_test_steps:", "load_test_mix:", "load_test_pass:"):
        assert words in found
    assert "load_test_timeout: expected a number from 1 to 3600, found 0" in run(capsys, {"timeout": 0})["msg"]
    assert "load_test_open_tool: expected own or k6" in run(capsys, {"open_tool": "ab"})["msg"]
    assert (
        "expected Python 3.11 or newer at /nowhere/python, found none"
        in run(capsys, {}, python="/nowhere/python")["msg"]
    )
