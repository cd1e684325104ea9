# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Watch a job on a host that goes on by itself: each of its lines on the screen once, until it ends. PRIVATE to the collection."""

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


class JobWatch(ActionBase):
    """What action plugins that wait for a job have in common."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def watch(
        self,
        host: str,
        words: t.Sequence[str],
        timeout: float,
        too_long: str,
        judge: t.Callable[[dict[str, t.Any]], dict[str, t.Any]],
        unreadable: str,
        result: dict[str, t.Any],
    ) -> dict[str, t.Any]:
        """Ask the host for news until the job has ended.

        :arg words: the program on the host that tells the status, and its arguments but for --after and --timeout.
        :arg timeout: seconds after which to stop waiting.
        :arg too_long: what is said then.
        :arg judge: what a status means for the result; one with C(failed) ends the watch, and so does a C(state) other than running.
        :arg unreadable: what is said before the reason why there is no status.
        """
        until = time.monotonic() + timeout
        seen = 0
        while True:
            status = self._ask(words, seen)
            if "problem" in status:
                result.update(failed=True, msg=f"{unreadable}: {status['problem']}")
                return result
            found = judge(status)
            if found.get("failed") and "state" not in found:
                # Not this job's status: its lines are not shown.
                result.update(found)
                return result
            for line in status.get("lines") or []:
                if line["seq"] > seen:
                    seen = line["seq"]
                    text = str(line["text"])
                    result["lines"].append(text)
                    # Workers have no stdio of their own since ansible-core 2.19; Display reaches the screen and AWX's events.
                    self._display.display(f"[{host}] {text}")
            result.update(found)
            if result["state"] != "running":
                return result
            if time.monotonic() > until:
                result.update(failed=True, msg=too_long)
                return result

    def _ask(self, words: t.Sequence[str], seen: int) -> dict[str, t.Any]:
        """The status from the host, or ``problem``."""
        command = shlex.join([*words, "--after", str(seen), "--timeout", str(_POLL_SECONDS)])
        for attempt in range(1, _RETRIES + 1):
            try:
                answer = self._low_level_execute_command(command)
            except AnsibleConnectionFailure:
                # Hours of work are not lost to a moment without network.
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
