# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the load_test_wait module: see there for the documentation."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._job_watch import JobWatch


class ActionModule(JobWatch):
    """Asks the host for news until the run has ended, and shows each line once."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Watch the run to its end."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _unused, args = self.validate_argument_spec(
            argument_spec={
                "directory": {"type": "path", "default": "/var/lib/gpufleet/load_test"},
                "program": {"type": "path", "default": "/usr/local/lib/gpufleet/load_test/gpufleet_load_test.py"},
                "unit": {"type": "str", "default": "gpufleet-load-test@watched.service"},
                "not_job": {"type": "str", "default": ""},
                "timeout": {"type": "int", "default": 3600},
            }
        )
        host = str(self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "host"))
        result.update(changed=False, failed=False, state="running", verdict={}, lines=[])
        if self._task.check_mode:
            return result

        parent = os.getppid()

        def judge(status: dict[str, t.Any]) -> dict[str, t.Any]:
            if os.getppid() != parent:
                # The playbook was killed and left this process behind: the load must not go on for it.
                return {"failed": True, "msg": f"load test on {host}: nobody waits for it any more"}
            found = {"state": status.get("state", "running"), "verdict": status.get("verdict") or {}}
            if found["state"] == "failed":
                found.update(failed=True, msg=f"load test on {host}: {status.get('message')}")
            return found

        words = ["/usr/bin/python3", "-sB", args["program"], "status", "--directory", args["directory"]]
        words += ["--unit", args["unit"], "--not-job", args["not_job"]]
        return self.watch(
            host,
            words,
            args["timeout"],
            f"load test on {host}: it still runs after {args['timeout']} s; systemctl stop {args['unit']} ends it",
            judge,
            f"load test on {host}: its state cannot be read",
            result,
        )
