#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: load_test_info
short_description: Check a load test before anything is sent, and say what it would send
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Checks ladder, mix of requests, marks and numbers, and that the target is a gateway or an engine of the inventory. Sends nothing but look-ups of names.
  - Runs on the host that would send, because names may stand for other addresses elsewhere.
options:
  config:
    description: The settings, as role C(load_test) writes them.
    type: dict
    required: true
  python:
    description: The interpreter that is to run Locust.
    type: path
    default: /usr/bin/python3
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
seealso:
  - module: gpufleet.deepseek.load_test_wait
"""

EXAMPLES = r"""
- name: Check whom the load would reach, and what it would be
  gpufleet.deepseek.load_test_info:
    config: "{{ settings }}"
"""

RETURN = r"""
lines:
  description: What would be sent, line by line.
  returned: success
  type: list
  elements: str
  sample: ["target: https://192.0.2.10:443, which is gw1 (192.0.2.10), model deepseek-r1"]
target_host:
  description: The inventory host that would be asked.
  returned: success
  type: str
  sample: gw1
address:
  description: The address that connections would go to.
  returned: success
  type: str
  sample: 192.0.2.10
seconds:
  description: How long the ladder takes.
  returned: success
  type: float
  sample: 360
left_out:
  description: Steps beyond the bounds.
  returned: success
  type: list
  elements: str
  sample: ["500 users (load_test_max_users is 256)"]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _load_test_job as jobs
from ansible_collections.gpufleet.deepseek.plugins.module_utils._load_test import LoadTestError

_LEAST = (3, 11)


def _version(module: AnsibleModule) -> tuple[int, ...]:
    """Version of the interpreter; empty when it is not there."""
    code = "import sys; print(*sys.version_info[:2])"
    answer = t.cast(
        "tuple[int, str, str]", module.run_command([module.params["python"], "-c", code], handle_exceptions=False)
    )
    return tuple(int(word) for word in answer[1].split())


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "dict", "required": True},
            "python": {"type": "path", "default": "/usr/bin/python3"},
        },
        supports_check_mode=True,
    )
    try:
        found = _version(module)
    except (OSError, ValueError):
        found = ()
    shown = f"{found[0]}.{found[1]}" if len(found) > 1 else "none"
    if found < _LEAST:
        module.fail_json(
            msg=f"load_test_python: expected Python {_LEAST[0]}.{_LEAST[1]} or newer at {module.params['python']}, found {shown}"
        )
    try:
        config = jobs.complete(module.params["config"])
        checked = jobs.check(config)
    except LoadTestError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=False,
        lines=jobs.describe(config, checked),
        target_host=checked.target_host,
        address=checked.target.address,
        seconds=checked.seconds,
        left_out=checked.left_out,
    )


if __name__ == "__main__":
    main()
