# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the burn_in_wait module: see there for the documentation."""

from __future__ import annotations

import json
import shlex
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

# How long the host waits for news before it answers all the same, and how often a broken connection is tried again.
_POLL_SECONDS = 15
_RETRIES = 6
_RETRY_SECONDS = 10


class ActionModule(ActionBase):
    """Asks the host for news until the job has ended, and shows each line once."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

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
        until = time.monotonic() + args["timeout"]
        seen = 0
        while True:
            status = self._ask(args, seen)
            if "problem" in status:
                result.update(failed=True, msg=f"{host}: the state of the burn-in cannot be read: {status['problem']}")
                return result
            if status.get("job") not in ("", args["job"]):
                result.update(
                    failed=True,
                    msg=f"{host}: expected the burn-in {args['job']}, found {status.get('job')}: somebody started another one",
                )
                return result
            for line in status.get("lines") or []:
                if line["seq"] > seen:
                    seen = line["seq"]
                    text = str(line["text"])
                    result["lines"].append(text)
                    # Workers have no stdio of their own since ansible-core 2.19; Display reaches the screen and AWX's events.
                    self._display.display(f"[{host}] {text}")
            result.update(state=status.get("state"), verdict=status.get("verdict") or "")
            if result["state"] != "running":
                return result
            if time.monotonic() > until:
                result.update(
                    failed=True,
                    msg=f"{host}: the burn-in {args['job']} still runs after {args['timeout']} s (burn_in_wait_timeout). It goes on; run again to watch it.",
                )
                return result

    def _ask(self, args: dict[str, t.Any], seen: int) -> dict[str, t.Any]:
        """The status from the host, or ``problem``."""
        words = ["/usr/bin/python3", args["program"], "status", "--directory", args["directory"], "--job", args["job"]]
        command = shlex.join([*words, "--after", str(seen), "--timeout", str(_POLL_SECONDS)])
        for attempt in range(1, _RETRIES + 1):
            try:
                answer = self._low_level_execute_command(command)
            except AnsibleConnectionFailure:
                # Hours of load are not lost to a moment without network.
                if attempt == _RETRIES:
                    raise
                self._connection.reset()
                time.sleep(_RETRY_SECONDS)
                continue
            try:
                status = json.loads(answer.get("stdout") or "")
            except ValueError:
                return {"problem": (answer.get("stderr") or answer.get("stdout") or "no answer").strip()[-300:]}
            return status if isinstance(status, dict) else {"problem": "no answer"}
        return {"problem": "no answer"}
