# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the fleet_lock module: see there for the documentation. It says who asks, and whether the run that has the lock still lives."""

from __future__ import annotations

import multiprocessing
import os
import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _controller_run as runs


class ActionModule(ActionBase):
    """Runs the module, and once more when the lock that it found is one that a killed run left."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Take the lock or give it back."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        # A worker is a child of ansible-playbook, which is the run. Who started it stays the same when that one is killed; the system's word does not.
        parent = multiprocessing.parent_process()
        pid = (parent.pid if parent else None) or os.getppid()
        owner, run = runs.identity(pid, task_vars or {})
        args = dict(self._task.args)
        args["owner"] = str(args.get("owner") or "") or owner
        args["run"] = str(args.get("run") or "") or run
        result.update(self._ask(args, task_vars))
        other = result.get("other") or {}
        if args.get("state", "held") != "held" or other.get("owner") != args["owner"]:
            return result
        there = runs.parse(str(other["run"]))
        if there and runs.ended(there, runs.current(pid)):
            # The module compares once more: somebody may have been quicker.
            result = self._ask({**args, "succeeds": other["run"]}, task_vars)
        elif there and result.get("failed"):
            result["msg"] = f"{result['msg']}: process {there.pid} on {there.controller}"
        return result

    def _ask(self, args: dict[str, t.Any], task_vars: dict[str, t.Any] | None) -> dict[str, t.Any]:
        found: dict[str, t.Any] = self._execute_module(
            module_name="gpufleet.deepseek.fleet_lock", module_args=args, task_vars=task_vars
        )
        return found
