#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: weights_job
short_description: Start, join or stop a job that fills, publishes or serves a set of weights
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Starts the work as a unit of systemd, so that it outlives the connection. M(gpufleet.deepseek.weights_wait) watches it.
  - A job with the same configuration that runs already is joined. Another one of the same kind is stopped first; what it fetched stays.
  - The unit C(gpufleet-weights@.service) is installed by role model_store.
options:
  kind:
    description: What is to be done.
    type: str
    required: true
    choices:
      fill: Bring the set into place on this host.
      publish: Fetch a set, make its manifest and put it into the store. Its root need not be known.
      seed: Serve a set that is in place to other hosts, for a bounded time.
  state:
    description: Whether the job runs.
    type: str
    choices: [started, stopped]
    default: started
  config:
    description: What the job is to do; needed to start one. Role model_store writes it.
    type: dict
  secrets:
    description:
      - Keys for the source, C(huggingface_token), C(s3_access_key) and C(s3_secret_key).
      - They lie in O(run_dir), readable by root, until the job has read them, which is when it starts.
    type: dict
    default: {}
  run_dir:
    description: Directory in memory for O(secrets).
    type: path
    default: /run/gpufleet/weights
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.no_diff
"""

EXAMPLES = r"""
- name: Stop serving
  gpufleet.deepseek.weights_job:
    kind: seed
    state: stopped
"""

RETURN = r"""
action:
  description: What was done, V(start), V(join), V(stop) or V(none).
  returned: success
  type: str
  sample: start
job:
  description: Name of the job; the same for the same configuration.
  returned: when O(state=started)
  type: str
  sample: 5b1d3f8b6f3a7a0c
unit:
  description: The unit that runs it.
  returned: success
  type: str
  sample: gpufleet-weights@fill.service
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_control as control
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights import WeightsError


def main() -> None:
    """Bring the job into its state."""
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "required": True, "choices": ["fill", "publish", "seed"]},
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "config": {"type": "dict"},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "run_dir": {"type": "path", "default": "/run/gpufleet/weights"},
        },
        required_if=[("state", "started", ["config"])],
        supports_check_mode=True,
    )
    wanted = module.params

    def run(argv: list[str], data: str = "") -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, data=data or None))

    write = not module.check_mode
    unit = control.unit_of(wanted["kind"])
    try:
        if wanted["state"] == "stopped":
            stopped = control.stop(run, wanted["kind"], write)
            module.exit_json(changed=stopped, action="stop" if stopped else "none", unit=unit)
        secrets = {str(name): str(value or "") for name, value in wanted["secrets"].items()}
        action, name = control.start(run, wanted["kind"], wanted["config"], secrets, wanted["run_dir"], write)
    except (WeightsError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=action == "start", action=action, job=name, unit=unit)


if __name__ == "__main__":
    main()
