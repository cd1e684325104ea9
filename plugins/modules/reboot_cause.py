#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: reboot_cause
short_description: Say why a host must be rebooted, or that it need not be
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Keeps one mark for each cause of a reboot in C(/run/gpufleet/reboot-required.d). It reboots nothing.
  - The marks lie on a file system that a reboot empties. A run that was killed loses none, and a reboot answers all of them, whoever did it.
  - A role runs this in every run with what it computes from the host's state, and notifies C(fleet node reboot).
options:
  name:
    description: Who asks, as a rule the name of the role. Lower-case letters, digits, dots, dashes and underscores.
    type: str
    required: true
  reason:
    description: Why, in one line for the operator. Required when O(state=present).
    type: str
  state:
    description: Whether there is a cause.
    type: str
    default: present
    choices: [present, absent]
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Say whether the host must be rebooted
  gpufleet.deepseek.reboot_cause:
    name: nvidia_driver
    reason: driver 535.261.03 is installed, none is loaded
    state: "{{ 'present' if driver_waits else 'absent' }}"
  notify: fleet node reboot
"""

RETURN = r"""
path:
  description: The file of the mark.
  returned: success
  type: str
  sample: /run/gpufleet/reboot-required.d/nvidia_driver.reason
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _reboot_cause as cause


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Leave, change or remove the mark, and report it."""
    present = module.params["state"] == "present"
    wanted = cause.mark(cause.MARKS, module.params["name"], module.params["reason"] if present else None)
    if wanted.changed and not module.check_mode:
        cause.write(wanted)
    return {
        "changed": wanted.changed,
        "path": str(wanted.path),
        "diff": {
            "before": "" if wanted.before is None else f"{wanted.before}\n",
            "after": "" if wanted.after is None else f"{wanted.after}\n",
            "before_header": str(wanted.path),
            "after_header": str(wanted.path),
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "reason": {"type": "str"},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
        },
        required_if=[("state", "present", ["reason"])],
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except (cause.CauseError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
