#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: sysctl_settings
short_description: Keep a set of kernel settings in a drop-in and in force, with the way back
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Writes one file of C(sysctl.d), writes each value that differs to the kernel, and reads it back.
  - What a key was before the first change is remembered, and is put back when the key leaves O(settings) or O(state=absent).
  - A key that the kernel does not have, or that a container may not write, is reported and does not fail the host. The file names it anyway, so
    that it counts where it can.
  - Warns of other files of C(sysctl.d) that are read later and say something else.
options:
  path:
    description: The drop-in. Its name decides when it is read at boot; the last file wins.
    type: path
    required: true
  settings:
    description: Value by name, with dots, or with slashes where a name has a dot in it.
    type: dict
    default: {}
  record:
    description: File that remembers the former values.
    type: path
    required: true
  header:
    description: Comment at the top of the drop-in.
    type: str
    default: Managed by Ansible.
  state:
    description: Whether the settings shall be there. With V(absent) the file goes and the former values come back.
    type: str
    default: present
    choices: [present, absent]
  root:
    description: Where C(/proc) and C(/etc) are. For tests.
    type: path
    default: /
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Keep timestamps on and reverse paths loose
  gpufleet.deepseek.sysctl_settings:
    path: /etc/sysctl.d/95-site.conf
    record: /var/lib/site/sysctl.json
    settings:
      net.ipv4.tcp_timestamps: 1
      net.ipv4.conf.all.rp_filter: 2
"""

RETURN = r"""
applied:
  description: Keys that got another value, or would in check mode.
  returned: success
  type: list
  elements: str
  sample: [net.ipv4.conf.all.rp_filter]
restored:
  description: Keys that got their former value back.
  returned: success
  type: list
  elements: str
  sample: []
read_only:
  description: Keys with another value than the wanted one that this host does not let anyone write.
  returned: success
  type: list
  elements: str
  sample: [kernel.dmesg_restrict]
missing:
  description: Keys that the running kernel does not have.
  returned: success
  type: list
  elements: str
  sample: [kernel.yama.ptrace_scope]
conflicts:
  description: Files that are read later at boot and set a key to something else.
  returned: success
  type: list
  elements: str
  sample: ["/etc/sysctl.d/99-site.conf: net.ipv4.ip_forward = 0, expected 1"]
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _sysctl_settings as sysctl


def _differences(result: sysctl.Outcome, settings: dict[str, object], path: str) -> list[dict[str, str]]:
    """The drop-in, and the values that move in the kernel."""
    before = "".join(f"{key} = {result.before[key]}\n" for key in result.applied if key in result.before)
    after = "".join(f"{key} = {sysctl.normal(settings[key])}\n" for key in result.applied if key in settings)
    return [
        {"before": result.file_before, "after": result.file_after, "before_header": path, "after_header": path},
        {"before": before, "after": after, "before_header": "/proc/sys", "after_header": "/proc/sys"},
    ]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "settings": {"type": "dict", "default": {}},
            "record": {"type": "path", "required": True},
            "header": {"type": "str", "default": "Managed by Ansible."},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    root, drop_in, record = Path(wanted["root"]), Path(wanted["path"]), Path(wanted["record"])
    try:
        if wanted["state"] == "present":
            result = sysctl.present(root, drop_in, record, wanted["settings"], wanted["header"], module.check_mode)
        else:
            result = sysctl.absent(root, drop_in, record, module.check_mode)
    except sysctl.SysctlError as exc:
        module.fail_json(msg=str(exc))
    for line in result.conflicts:
        module.warn(f"read later at boot, and wins: {line}")
    module.exit_json(
        changed=result.changed,
        applied=sorted(result.applied),
        restored=sorted(result.restored),
        read_only=sorted(result.read_only),
        missing=sorted(result.absent),
        conflicts=result.conflicts,
        diff=_differences(result, wanted["settings"], wanted["path"]),
    )


if __name__ == "__main__":
    main()
