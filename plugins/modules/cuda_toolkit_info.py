#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_toolkit_info
short_description: Read what a host has of CUDA, and decide what is missing
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Reads the driver, the CUDA packages, where C(/usr/local/cuda) leads to, container runtimes and the CDI specification in one call.
  - Compares the wanted version of CUDA with the driver, by NVIDIA's table of minimum drivers.
options:
  source:
    description: Where CUDA comes from.
    type: str
    choices: [cuda_repo, distro, none]
    default: none
  version:
    description: Version such as V(12.9). Empty for O(default_version).
    type: str
    default: ""
  default_version:
    description: Version for an empty O(version).
    type: str
    default: ""
  package_set:
    description: Libraries and compiler, or everything.
    type: str
    choices: [minimal, full]
    default: minimal
  container_runtime:
    description: Runtime whose containers use the GPUs.
    type: str
    choices: [none, docker, podman, containerd]
    default: none
  rdma:
    description: Whether NCCL and gdrcopy are wanted.
    type: bool
    default: false
  packages:
    description: The package table of the source, with C(minimal), C(full), C(container) and C(rdma).
    type: dict
    default: {}
  planned_driver:
    description: Version or branch of the driver, for a host that has none yet.
    type: str
    default: ""
  home:
    description: Directory of the toolkit. Empty for C(/usr/local/cuda-VERSION).
    type: str
    default: ""
  timeout:
    description: Seconds for each tool.
    type: float
    default: 60
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: Read what there is of CUDA
  gpufleet.deepseek.cuda_toolkit_info:
  register: cuda
"""

RETURN = r"""
state:
  description: What the host has - C(driver), C(home), C(nvcc), C(loaded), C(runtimes).
  returned: success
  type: dict
  sample: {driver: 580.95.05, home: /usr/local/cuda-12.9, nvcc: "12.9", loaded: true, runtimes: [podman]}
plan:
  description: What follows - C(problems), C(notes), C(version), C(home), C(packages), C(change), C(link), C(cdi), C(runtime).
  returned: success
  type: dict
  sample: {problems: [], notes: [], version: "12.9", home: /usr/local/cuda-12.9, change: false, link: false, cdi: false, runtime: false}
"""

import dataclasses

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _cuda_toolkit as cuda
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import ModuleRunner, Reader
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_module import find


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "default": "none", "choices": ["cuda_repo", "distro", "none"]},
            "version": {"type": "str", "default": ""},
            "default_version": {"type": "str", "default": ""},
            "package_set": {"type": "str", "default": "minimal", "choices": ["minimal", "full"]},
            "container_runtime": {
                "type": "str",
                "default": "none",
                "choices": ["none", "docker", "podman", "containerd"],
            },
            "rdma": {"type": "bool", "default": False},
            "packages": {"type": "dict", "default": {}},
            "planned_driver": {"type": "str", "default": ""},
            "home": {"type": "str", "default": ""},
            "timeout": {"type": "float", "default": 60.0},
        },
        supports_check_mode=True,
    )
    given = module.params
    wish = cuda.Wish(
        source=given["source"],
        version=given["version"],
        package_set=given["package_set"],
        runtime=given["container_runtime"],
        rdma=given["rdma"],
        default_version=given["default_version"],
        packages={str(name): [str(package) for package in packages] for name, packages in given["packages"].items()},
        planned_driver=given["planned_driver"],
        home=given["home"],
    )
    run = ModuleRunner(module.run_command, find)
    home = given["home"] or f"/usr/local/cuda-{given['version'] or given['default_version']}"
    state = cuda.read(Reader("", "", None, given["timeout"]), run, home)
    plan = cuda.decide(state, wish)
    said = dataclasses.asdict(state)
    said["packages"] = {
        name: version
        for name, version in state.packages.items()
        if any(name == one.split("=")[0] for one in plan.packages)
    }
    resolved = cuda.resolve(run, plan.packages, given["timeout"]) if plan.change else plan.packages
    module.exit_json(changed=False, state=said, plan={**dataclasses.asdict(plan), "packages": resolved})


if __name__ == "__main__":
    main()
