# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the fleet_report module: see there for the documentation."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.module_utils._table import render_table


class ActionModule(ActionBase):
    """Shows a table for people in the middle of a play's output."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Display the table and return its lines."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _unused, args = self.validate_argument_spec(
            argument_spec={
                "title": {"type": "str", "required": True},
                "columns": {"type": "list", "elements": "str", "required": True},
                "rows": {"type": "list", "elements": "list", "required": True},
                "notes": {"type": "list", "elements": "str", "default": []},
            }
        )
        for row in args["rows"]:
            if len(row) != len(args["columns"]):
                result.update(failed=True, msg=f"row {row} has {len(row)} cells; expected {len(args['columns'])}")
                return result
        lines = render_table(args["columns"], [[str(cell) for cell in row] for row in args["rows"]])
        lines += ["  " + note for note in args["notes"]]
        # Workers have no stdio of their own since ansible-core 2.19; Display reaches the screen and AWX's events.
        self._display.display("\n" + "\n".join([args["title"], *lines]))
        result.update(changed=False, failed=False, table=lines)
        return result
