#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: weights_info
short_description: See whether a set of weights is in place, and whether there is room for it
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Looks at the store of weights of a host. Reads the manifest, names and sizes, and no weights.
  - Says what is wrong with the description of a model, before anything is touched.
options:
  models_dir:
    description: Directory that holds C(weights) and C(releases).
    type: path
    default: /srv/models
  state_dir:
    description: Directory with the results of verifications.
    type: path
    default: /var/lib/gpufleet/model_store
  model:
    description: The description of the model, with C(root) and C(source). See role model_store.
    type: dict
    required: true
  variable:
    description: Name of the variable that O(model) comes from, for RV(problems).
    type: str
    default: model_store_model
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: Look whether the set is there
  gpufleet.deepseek.weights_info:
    model:
      root: fe385c3fc4e7484695452c1062f5a04278c3421a8344f648c0fedd687a014d1b
      source: set
  register: there
"""

RETURN = r"""
problems:
  description: What is wrong with the description of the model, a sentence each.
  returned: success
  type: list
  elements: str
  sample: []
present:
  description: Whether the set is in place. Its bytes were proved when it was put there.
  returned: success
  type: bool
  sample: true
reason:
  description: Why it is not.
  returned: success
  type: str
  sample: the set is not on this host
signed:
  description: Whether a signature lies beside it. It is not checked here.
  returned: success
  type: bool
  sample: false
total_bytes:
  description: Bytes of the set, V(0) when it is not there.
  returned: success
  type: int
  sample: 98362432
partial_bytes:
  description: Bytes that an earlier run has fetched.
  returned: success
  type: int
  sample: 0
free_bytes:
  description: What is free on the file system of the models.
  returned: success
  type: int
  sample: 84000000000
wear:
  description: Wear in percent of each NVMe drive below the models, where the drives tell.
  returned: success
  type: dict
  sample: {nvme0: 3}
sets:
  description: Roots of all sets that are in place.
  returned: success
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights as weights
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights_wear import wear


def main() -> None:
    """Look, and report."""
    module = AnsibleModule(
        argument_spec={
            "models_dir": {"type": "path", "default": "/srv/models"},
            "state_dir": {"type": "path", "default": "/var/lib/gpufleet/model_store"},
            "model": {"type": "dict", "required": True},
            "variable": {"type": "str", "default": "model_store_model"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    models, root = wanted["models_dir"], wanted["model"].get("root")
    try:
        problems = weights.source_problems(wanted["model"], wanted["variable"])
        if isinstance(root, str) and weights.ROOT_PATTERN.fullmatch(root):
            found = weights.look(models, root, wanted["state_dir"])
        else:
            found = weights.Found("", reason="no root is given")
        free, _total = weights.room(models)
        worn = wear(models)
    except (weights.WeightsError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=False,
        problems=problems,
        present=found.present,
        reason=found.reason,
        signed=found.signed,
        total_bytes=found.total_bytes,
        partial_bytes=found.partial_bytes,
        free_bytes=free,
        wear=worn,
        sets=weights.sets(models),
    )


if __name__ == "__main__":
    main()
