#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: service_unit
short_description: Keep a systemd unit running with the newest version of its files
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Starts a unit, and restarts it when a file that it reads was written after its process started.
  - That question is asked of the running process and not of the current run, so a restart that was due when a run was killed happens in the
    next one. A handler would have forgotten it.
  - Reloads systemd when it has not seen the newest unit file.
  - When the unit does not come up, the failure carries the last lines of its journal.
options:
  name:
    description: Name of the unit with its suffix.
    type: str
    required: true
  state:
    description: Whether it shall run.
    type: str
    default: started
    choices: [started, stopped]
  enabled:
    description: Whether it shall start at boot.
    type: bool
    default: true
  files:
    description: Files the process reads at its start, the unit file among them.
    type: list
    elements: path
    default: []
  due:
    description: In check mode, whether an earlier task of the run would have changed one of O(files).
    type: bool
    default: false
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Keep the engine running with its newest configuration
  gpufleet.deepseek.service_unit:
    name: deepseek-service.service
    files:
      - /etc/systemd/system/deepseek-service.service
      - /etc/gpufleet/deepseek_service/llama_cpp.json
"""

RETURN = r"""
action:
  description: What was done to the unit; empty for nothing.
  returned: success
  type: str
  sample: restart
reasons:
  description: Why it was done.
  returned: success
  type: list
  elements: str
  sample: [/etc/gpufleet/deepseek_service/llama_cpp.json is newer than the running process]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._service_unit import (
    UnitError,
    apply,
    decide,
    newer_files,
    show,
)


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Bring the unit into its state and report what that took."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C.UTF-8"}))

    wanted = module.params
    unit = show(run, wanted["name"])
    if not unit.loaded and not module.check_mode:
        run(["systemctl", "daemon-reload"])
        unit = show(run, wanted["name"])
    if not unit.loaded and wanted["state"] == "stopped":
        return {"changed": False, "action": "", "reasons": []}
    if not unit.loaded and not module.check_mode:
        if unit.masked:
            raise UnitError(
                f"{wanted['name']} is masked: expected a unit that can be started; systemctl unmask it first"
            )
        raise UnitError(f"{wanted['name']} is not known to systemd")
    newer = newer_files(wanted["files"], unit.started_at)
    if module.check_mode and wanted["due"]:
        newer = newer or ["a file that this run would write"]
    steps = decide(unit, wanted["state"], wanted["enabled"], newer)
    if not module.check_mode and (steps.changed or steps.reload):
        apply(run, wanted["name"], steps)
        after = show(run, wanted["name"])
        if wanted["state"] == "started" and not after.active:
            raise UnitError(f"{wanted['name']} does not stay up ({after.result})")
    return {
        "changed": steps.changed,
        "action": steps.action,
        "reasons": steps.reasons,
        "diff": {
            "before": f"active: {unit.active}\nenabled: {unit.enabled}\nnewest files: {not newer}\n",
            "after": f"active: {wanted['state'] == 'started'}\nenabled: {wanted['enabled']}\nnewest files: True\n",
            "before_header": wanted["name"],
            "after_header": wanted["name"],
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "default": "started", "choices": ["started", "stopped"]},
            "enabled": {"type": "bool", "default": True},
            "files": {"type": "list", "elements": "path", "default": []},
            "due": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except UnitError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
