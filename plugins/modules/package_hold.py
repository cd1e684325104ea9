#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: package_hold
short_description: Put installed packages on hold, many in one call
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - A package on hold is not upgraded, downgraded or removed by apt and by unattended-upgrades unless somebody insists.
  - Looks at all installed packages whose names match, in one call and not in one for each package.
options:
  patterns:
    description: Names of packages; C(*), C(?) and C([...]) stand for characters. Those that are not installed are left alone.
    type: list
    elements: str
    required: true
  state:
    description: Whether they shall be on hold.
    type: str
    default: held
    choices: [held, released]
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Keep driver and kernel as they are
  gpufleet.deepseek.package_hold:
    patterns: ["nvidia-*", "libnvidia-*", "linux-image-*"]
"""

RETURN = r"""
names:
  description: Packages whose hold was set or taken away, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [linux-image-amd64, nvidia-driver-cuda]
matched:
  description: All installed packages that match, changed or not.
  returned: success
  type: list
  elements: str
  sample: [linux-image-amd64, nvidia-driver-cuda, nvidia-persistenced]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _package_hold as hold


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Set the holds and report them."""

    def run(argv: list[str], data: str = "") -> tuple[int, str, str]:
        return t.cast(
            "tuple[int, str, str]", module.run_command(argv, data=data or None, environ_update={"LC_ALL": "C.UTF-8"})
        )

    held = module.params["state"] == "held"
    now = hold.selections(run)
    names = hold.changes(now, module.params["patterns"], held)
    if names and not module.check_mode:
        hold.select(run, names, held)
    before, after = ("install", "hold") if held else ("hold", "install")
    return {
        "changed": bool(names),
        "names": names,
        "matched": hold.matching(now, module.params["patterns"]),
        "diff": {
            "before": "".join(f"{name} {before}\n" for name in names),
            "after": "".join(f"{name} {after}\n" for name in names),
            "before_header": "dpkg selections",
            "after_header": "dpkg selections",
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "patterns": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "default": "held", "choices": ["held", "released"]},
        },
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except hold.HoldError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
