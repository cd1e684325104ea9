#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: file_set
short_description: Write a few small files in different directories, in one call
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - For the drop-ins of one matter, which lie in many directories (modprobe.d, modules-load.d, preferences.d, units). For one directory of its own use
    M(gpufleet.deepseek.config_tree).
  - Each file is replaced at once. Not for secrets, the content shows in the diff.
options:
  files:
    description: Content of each file, by its absolute path. Missing directories are created.
    type: dict
    default: {}
  absent:
    description: Absolute paths of files that shall not be there.
    type: list
    elements: path
    default: []
  mode:
    description: Mode of the files, as a quoted octal number.
    type: str
    default: "0644"
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Keep nouveau away from the GPUs
  gpufleet.deepseek.file_set:
    files:
      /etc/modprobe.d/gpufleet-nouveau.conf: "blacklist nouveau\n"
    absent: [/etc/modules-load.d/nouveau.conf]
"""

RETURN = r"""
written:
  description: Paths that were written, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/modprobe.d/gpufleet-nouveau.conf]
removed:
  description: Paths that were removed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: []
"""

import re

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _file_set as file_set


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "dict", "default": {}},
            "absent": {"type": "list", "elements": "path", "default": []},
            "mode": {"type": "str", "default": "0644"},
        },
        supports_check_mode=True,
    )
    files = {str(path): str(text) for path, text in module.params["files"].items()}
    absent = module.params["absent"]
    if not re.fullmatch(r"0?[0-7]{3}", module.params["mode"]):
        module.fail_json(msg=f"mode: expected a quoted octal number such as 0644, found {module.params['mode']}")
    wrong = [path for path in (*files, *absent) if not path.startswith("/")] + [
        path for path in files if path in absent
    ]
    if wrong:
        module.fail_json(
            msg=f"files and absent: expected absolute paths, each in one of the two, found {', '.join(wrong)}"
        )
    mode = int(module.params["mode"], 8)
    steps = file_set.compare(files, absent, mode)
    if steps.changed and not module.check_mode:
        try:
            file_set.apply(steps, files, mode)
        except OSError as exc:
            module.fail_json(msg=f"cannot write {exc.filename}: {exc.strerror}")
    module.exit_json(changed=steps.changed, written=steps.write, removed=steps.remove, diff=file_set.diff(steps, files))


if __name__ == "__main__":
    main()
