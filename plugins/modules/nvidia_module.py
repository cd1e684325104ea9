#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_module
short_description: Load the kernel module of the NVIDIA driver, or say why it does not load
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Loads the module when the driver is not loaded.
  - When that fails, the reason is looked for in what modprobe and the kernel said, and given as one sentence - no NVIDIA GPU, a key that the kernel does not
    trust, another version, nouveau.
options:
  name:
    description: Name of the module, such as V(nvidia) or V(nvidia-current-open).
    type: str
    default: nvidia
  allow_no_gpu:
    description: Accept that it does not load because the host has no NVIDIA GPU; the result says so in RV(reason).
    type: bool
    default: false
  timeout:
    description: Seconds that loading may take.
    type: float
    default: 120
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.no_diff
"""

EXAMPLES = r"""
- name: Load the driver
  gpufleet.deepseek.nvidia_module:
    name: nvidia
"""

RETURN = r"""
loaded:
  description: Is the driver loaded now?
  returned: success
  type: bool
  sample: true
reason:
  description: Why it is not; empty when it is, and in check mode.
  returned: success
  type: str
  sample: No NVIDIA GPU found
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import ModuleRunner
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_module import LOADED, find, load


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "nvidia"},
            "allow_no_gpu": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 120.0},
        },
        supports_check_mode=True,
    )
    wanted: dict[str, t.Any] = module.params
    if os.path.exists(LOADED):
        module.exit_json(changed=False, loaded=True, reason="")
    if module.check_mode:
        # Without a GPU it does not load, and nothing changes.
        module.exit_json(changed=not wanted["allow_no_gpu"], loaded=False, reason="")
    answer = load(ModuleRunner(module.run_command, find), wanted["name"], wanted["timeout"])
    if answer.reason and not (answer.no_gpu and wanted["allow_no_gpu"]):
        module.fail_json(msg=f"the kernel module {wanted['name']} does not load: {answer.reason}", reason=answer.reason)
    module.exit_json(changed=not answer.reason, loaded=not answer.reason, reason=answer.reason)


if __name__ == "__main__":
    main()
