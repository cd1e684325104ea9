#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: reboot_info
short_description: Tell whether a host must be rebooted, and why
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Reads the marks that M(gpufleet.deepseek.reboot_cause) leaves, and the distribution's own C(/run/reboot-required).
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
options: {}
seealso:
  - module: gpufleet.deepseek.reboot_cause
"""

EXAMPLES = r"""
- name: Look for causes of a reboot
  gpufleet.deepseek.reboot_info:
  register: reboot
"""

RETURN = r"""
causes:
  description: Reasons by cause. Empty when no reboot is due. C(distribution) stands for the distribution's own mark.
  returned: success
  type: dict
  sample:
    nvidia_driver: driver 535.261.03 is installed, none is loaded
    distribution: asked for by linux-image-6.1.0-40-amd64
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _reboot_cause as cause


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    try:
        found = cause.causes(cause.MARKS, cause.DISTRIBUTION)
    except OSError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, causes=found)


if __name__ == "__main__":
    main()
