#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: burn_in_info
short_description: Tell whether a burn-in proves the hardware that is in the host now
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Reads the result that the last burn-in left on the host, judges its measurements by the marks that are wanted now, and compares the
    hardware of the host with the hardware that was tested.
  - A GPU, an NVMe drive or a network port that was swapped, added or lost, and another driver, make the result void.
  - Changes nothing and starts nothing.
options:
  config:
    description:
      - What is wanted, as role C(burn_in) makes it. Keys are C(tests) (for each its C(params)), C(marks), C(allow_not_run) and C(allow_simulated).
      - Without it, what the last burn-in was started with counts.
    type: dict
  config_file:
    description: Where that lies on the host.
    type: path
    default: /etc/gpufleet/burn_in/job.json
  directory:
    description: Where status and result lie on the host.
    type: path
    default: /var/lib/gpufleet/burn_in
  simulation:
    description: Where hosts of the lab keep their simulated GPUs.
    type: path
    default: /var/lib/gpufleet/simulated
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
seealso:
  - module: gpufleet.deepseek.hardware_info
  - module: gpufleet.deepseek.burn_in_job
"""

EXAMPLES = r"""
- name: Look at the last burn-in
  gpufleet.deepseek.burn_in_info:
  register: burn_in

- name: Stop when it does not prove the host
  ansible.builtin.assert:
    that: burn_in.valid
    fail_msg: "{{ inventory_hostname }}: {{ burn_in.reasons | join('; ') }}"
"""

RETURN = r"""
valid:
  description: Whether the result proves the host as it is now.
  returned: success
  type: bool
  sample: false
verdict:
  description:
    - V(pass); V(fail) (a measurement is below its mark, or a tool found an error); V(not_run) (a test did not run and that was not allowed);
      V(void) (other hardware or other parameters than were tested); V(none) (there is no result).
  returned: success
  type: str
  sample: void
reasons:
  description: Why it is not valid, each a sentence.
  returned: success
  type: list
  elements: str
  sample: ["GPU GPU-6ec3c8a1-0d4c-4f6e-a6c5-0f6b1f2d0000 (1563221020001) was never tested (burn-in of 2026-11-29T01:00:00Z)"]
tests:
  description: Each test that is wanted, with its C(status), its C(checks) (what, expected, found, ok) and its C(sentences).
  returned: success
  type: list
  elements: dict
  sample: []
job:
  description: Name of the last job; empty without one.
  returned: success
  type: str
  sample: 20261129T010000Z-4711
state:
  description: State of the last job, V(none), V(running), V(done), V(cancelled), V(failed), or V(interrupted) when it died without a last word.
  returned: success
  type: str
  sample: done
result:
  description: The stored result, with measurements, versions, serial numbers and times; V(null) without one.
  returned: success
  type: dict
  sample: {}
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._burn_in import assess, fingerprint
from ansible_collections.gpufleet.deepseek.plugins.module_utils._burn_in_job import job_of, read_json
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware import gather
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import ModuleRunner, Reader

# A shell without login has a short PATH.
FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
SUBSETS = ["gpu", "network", "rdma", "storage"]


def find(tool: str) -> str | None:
    """The path of a tool, or None."""
    return shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", ""), *FOLDERS)))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "dict"},
            "config_file": {"type": "path", "default": "/etc/gpufleet/burn_in/job.json"},
            "directory": {"type": "path", "default": "/var/lib/gpufleet/burn_in"},
            "simulation": {"type": "path", "default": "/var/lib/gpufleet/simulated"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    config = wanted["config"] or read_json(wanted["config_file"]) or {"tests": {}}
    if not isinstance(config.get("tests"), dict):
        module.fail_json(msg="config: expected a mapping with the key tests")
    job = job_of(wanted["directory"])
    result = read_json(f"{wanted['directory']}/result.json")
    now = None
    if result is not None:
        reader = Reader("", wanted["simulation"], ModuleRunner(module.run_command, find), 30.0)
        now = fingerprint(gather(reader, SUBSETS))
    answer = assess(result, config, now)
    if result is None and job.state == "running":
        answer["reasons"] = [f"the burn-in {job.job} is still running"]
    elif result is None and job.state in ("cancelled", "failed", "interrupted"):
        answer["reasons"] = [f"the burn-in {job.job} did not come to its end ({job.state})"]
    module.exit_json(changed=False, failed=False, job=job.job, state=job.state, result=result, **answer)


if __name__ == "__main__":
    main()
