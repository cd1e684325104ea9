#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: weights_prune
short_description: Remove sets of weights that no release needs
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Removes sets that no C(release.json) below C(releases) names as its C(weights_root), what was left of their transfers, and nothing else.
  - Refuses while a release is being staged, and when a release cannot be read, because it may need any set.
  - A file that another set has too, by a hard link, stays for that one.
options:
  models_dir:
    description: Directory that holds C(weights) and C(releases).
    type: path
    default: /srv/models
  keep:
    description: Roots that stay, whatever the releases say. The wanted set is one.
    type: list
    elements: str
    required: true
  keep_newest:
    description: How many more sets that nobody needs stay, the newest ones.
    type: int
    default: 0
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Remove what no release needs
  gpufleet.deepseek.weights_prune:
    keep: ["{{ model_store_model.root }}"]
"""

RETURN = r"""
removed:
  description: Directories that were removed, or would be in check mode, with the bytes that came free.
  returned: success
  type: dict
  sample: {}
kept:
  description: Roots that stay, with the reason.
  returned: success
  type: dict
  sample: {}
freed_bytes:
  description: Bytes that came free.
  returned: success
  type: int
  sample: 0
"""

import contextlib
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights as weights


def main() -> None:
    """Plan, and remove."""
    module = AnsibleModule(
        argument_spec={
            "models_dir": {"type": "path", "default": "/srv/models"},
            "keep": {"type": "list", "elements": "str", "required": True},
            "keep_newest": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        for root in wanted["keep"]:
            weights.check_root(root)
        plan = weights.plan_prune(wanted["models_dir"], wanted["keep"], wanted["keep_newest"])
        if not module.check_mode:
            for path in plan.remove:
                root = os.path.basename(path).partition(".")[0]
                with contextlib.ExitStack() as stack:
                    # A job that fills this set now holds the lock; then nothing is removed.
                    stack.enter_context(weights.alone(wanted["models_dir"], root))
                    if os.path.lexists(path):
                        weights.remove_set(path)
    except (weights.WeightsError, OSError) as exc:
        module.fail_json(msg=str(exc))
    before = "".join(f"{path}\n" for path in plan.remove)
    module.exit_json(
        changed=bool(plan.remove),
        removed=plan.remove,
        kept=plan.keep,
        freed_bytes=plan.freed,
        diff={"before": before, "after": "", "before_header": "sets", "after_header": "sets"},
    )


if __name__ == "__main__":
    main()
