# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the weights_wait module: see there for the documentation."""

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
                "kind": {"type": "str", "choices": ["fill", "publish", "seed"], "default": "fill"},
                "state_dir": {"type": "path", "default": "/var/lib/gpufleet/model_store"},
                "program": {"type": "path", "default": "/usr/local/lib/gpufleet/model_store/gpufleet_weights.py"},
                "timeout": {"type": "int", "default": 86400},
            }
        )
        host = str(self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "host"))
        result.update(changed=False, failed=False, state="running", root="", result={}, lines=[])
        if self._task.check_mode:
            return result

        def judge(status: dict[str, t.Any]) -> dict[str, t.Any]:
            found = {
                "state": status.get("state", "running"),
                "root": status.get("root", ""),
                "result": status.get("result") or {},
            }
            if found["state"] == "failed":
                found.update(failed=True, msg=f"{host}: {status.get('message')}")
            return found

        words = ["/usr/bin/python3", "-sB", args["program"], "status", "--state-dir", args["state_dir"]]
        words += ["--kind", args["kind"], "--job", args["job"], "--unit", f"gpufleet-weights@{args['kind']}.service"]
        return self.watch(
            host,
            words,
            args["timeout"],
            f"{host}: the job still runs after {args['timeout']} s (model_store_wait_timeout). It goes on; run again to watch it.",
            judge,
            f"{host}: the state of the job cannot be read",
            result,
        )
