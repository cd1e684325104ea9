# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the burn_in_report module: see there for the documentation."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.module_utils._table import render_table
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._burn_in_page import burn_in_page, burn_in_rows
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._report_file import ReportError, write_report

_KEPT = ("valid", "verdict", "reasons", "tests", "job", "state", "result")


class ActionModule(ActionBase):
    """Writes the reports; never connects to a host."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Write the files, then the page of all of them."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _unused, args = self.validate_argument_spec(
            argument_spec={
                "directory": {"type": "path", "required": True},
                "page": {"type": "str", "default": ""},
                "hosts": {"type": "dict", "default": {}},
                "show": {"type": "bool", "default": True},
            }
        )
        check = bool(self._task.check_mode)
        result.update(changed=False, failed=False, reports=[])
        hosts = {
            str(name): {"host": str(name), **{key: value for key, value in dict(found).items() if key in _KEPT}}
            for name, found in args["hosts"].items()
        }
        folder = Path(args["directory"]).expanduser()
        files = [
            (str(folder / f"{name}.json"), json.dumps(found, indent=2, sort_keys=True) + "\n")
            for name, found in hosts.items()
        ]
        try:
            for path, text in files:
                result["changed"] |= write_report(path, text, check)
                result["reports"].append(path)
            if args["page"]:
                result["changed"] |= write_report(args["page"], burn_in_page({**_read(folder), **hosts}), check)
                result["reports"].append(args["page"])
        except ReportError as exc:
            # The proof lies on the host; a report that cannot be written must not stop the rollout.
            self._display.warning(str(exc))
        if args["show"] and hosts:
            lines = render_table(["host", "burn-in", "finished", "took", "tests"], burn_in_rows(hosts))
            self._display.display("\n" + "\n".join(["Burn-in:", *lines]))
        return result


def _read(folder: Path) -> dict[str, dict[str, t.Any]]:
    """What earlier runs left; a file that is none of ours is passed over."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(data, dict) and "verdict" in data and "tests" in data:
            found[path.stem] = data
    return found
