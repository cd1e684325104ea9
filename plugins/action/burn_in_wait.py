# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the burn_in_wait module: see there for the documentation."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._job_watch import JobWatch


class ActionModule(JobWatch):
    """Asks the host for news until the job has ended, and shows each line once."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Watch the job to its end."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _unused, args = self.validate_argument_spec(
            argument_spec={
                "job": {"type": "str", "required": True},
                "directory": {"type": "path", "default": "/var/lib/gpufleet/burn_in"},
                "program": {"type": "path", "default": "/usr/local/lib/gpufleet/burn_in/gpufleet_burn_in.py"},
                "timeout": {"type": "int", "default": 14400},
            }
        )
        host = str((task_vars or {}).get("inventory_hostname", "host"))
        result.update(changed=False, failed=False, state="running", verdict="", lines=[])
        if self._task.check_mode:
            return result

        def judge(status: dict[str, t.Any]) -> dict[str, t.Any]:
            if status.get("job") not in ("", args["job"]):
                other = f"{host}: expected the burn-in {args['job']}, found {status.get('job')}: somebody started another one"
                return {"failed": True, "msg": other}
            return {"state": status.get("state"), "verdict": status.get("verdict") or ""}

        words = ["/usr/bin/python3", args["program"], "status", "--directory", args["directory"], "--job", args["job"]]
        return self.watch(
            host,
            words,
            args["timeout"],
            f"{host}: the burn-in {args['job']} still runs after {args['timeout']} s (burn_in_wait_timeout). It goes on; run again to watch it.",
            judge,
            f"{host}: the state of the burn-in cannot be read",
            result,
        )
