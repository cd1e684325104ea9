#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver_info
short_description: Read what the NVIDIA driver of a host consists of, and decide what is missing
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Reads in one call - GPUs and NVSwitches on the PCI bus, the loaded and the installed kernel module, packages and holds, DKMS, the running and the
    pending kernel and its headers, Secure Boot and its key, nouveau.
  - From that and from what is wanted follow packages, refusals in sentences, the version lock (the loaded module, the installed one, Fabric Manager
    and user space have one version) and the reason for a reboot.
options:
  source:
    description: Where the driver comes from. V(none) manages none and still reads and compares.
    type: str
    choices: [cuda_repo, distro, archive, none]
    default: none
  branch:
    description: Branch of the driver, such as V(580). Empty for O(default_branch).
    type: str
    default: ""
  version:
    description: Version of the driver, such as V(580.95.05). Empty for any of the branch.
    type: str
    default: ""
  flavor:
    description: Kernel module. V(auto) takes the open one where every GPU of the host has it.
    type: str
    choices: [auto, open, proprietary]
    default: auto
  allow_no_gpu:
    description: Whether a host without an NVIDIA GPU may have the driver.
    type: bool
    default: false
  secure_boot:
    description: V(refuse) refuses a host with Secure Boot, V(signed) wants the key of DKMS to be enrolled there.
    type: str
    choices: [refuse, signed]
    default: refuse
  gpudirect:
    description: How network cards reach the memory of GPUs.
    type: str
    choices: [auto, dmabuf, peermem, none]
    default: auto
  module_options:
    description: Options of the kernel module by name.
    type: dict
    default: {}
  default_branch:
    description: Branch for an empty O(branch).
    type: str
    default: ""
  packages:
    description: The package table of the source, rows with C(since), C(branches), C(modules), C(user_space), C(others) and C(fabric).
    type: list
    elements: dict
    default: []
  kernel_headers:
    description: Name of the package with the headers of C({kernel}).
    type: str
    default: linux-headers-{kernel}
  hold:
    description: Patterns of package names; the installed ones that match are returned as RV(holds).
    type: list
    elements: str
    default: []
  units:
    description: Patterns of systemd units that use the GPUs; the active ones are returned.
    type: list
    elements: str
    default: []
  options_file:
    description: File with the module's options, whose age is compared with the initramfs.
    type: str
    default: ""
  root:
    description: Directory of a recorded tree to read in place of this host.
    type: path
    default: ""
  simulation:
    description: Directory of the simulated GPU view of a lab host.
    type: path
    default: /var/lib/gpufleet/simulated
  timeout:
    description: Seconds for each tool.
    type: float
    default: 60
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: Read the driver
  gpufleet.deepseek.nvidia_driver_info:
  register: driver

- name: Say what does not fit together
  ansible.builtin.debug:
    var: driver.version_lock
"""

RETURN = r"""
driver:
  description: What was found.
  returned: success
  type: dict
  sample:
    gpus: [{address: "0000:07:00.0", device: 20b2, key: a100-sxm4-80gb, generation: ampere}]
    nvswitches: 6
    kernel: 6.1.0-50-amd64
    kernel_pending: false
    newest_kernel: 6.1.0-50-amd64
    headers: true
    loaded: 580.95.05
    module: nvidia
    module_version: 580.95.05
    nouveau: false
    secure_boot: false
    dpkg_interrupted: false
plan:
  description: What follows from the wishes - C(problems), C(packages) with versions, C(change), C(wait), C(build), C(fabric_manager), C(flavor), C(branch).
  returned: success
  type: dict
  sample: {problems: [], branch: 580, flavor: open, change: false, wait: "", fabric_manager: true}
version_lock:
  description: One sentence for each part whose version differs; empty when all agree.
  returned: success
  type: list
  elements: str
  sample: ["the loaded kernel module is 570.172.08, the installed one is 580.95.05"]
reboot_reason:
  description: Why the host must be rebooted, or empty.
  returned: success
  type: str
  sample: installed driver 580.95.05, loaded 570.172.08
holds:
  description: Installed packages that match O(hold).
  returned: success
  type: list
  elements: str
  sample: [nvidia-driver-cuda, linux-image-amd64]
held:
  description: Those of them that are on hold.
  returned: success
  type: list
  elements: str
  sample: [nvidia-driver-cuda]
"""

import dataclasses
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvidia_driver_plan as planning
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import ModuleRunner, Reader
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_driver import Probe
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_module import find


def report(module: AnsibleModule) -> dict[str, t.Any]:
    """Read the host and decide."""
    given = module.params
    reader = Reader(given["root"], given["simulation"], None, given["timeout"])
    driver = Probe(reader, ModuleRunner(module.run_command, find)).read(given["units"], given["options_file"])
    wish = planning.Wish(
        source=given["source"],
        branch=given["branch"],
        version=given["version"],
        flavor=given["flavor"],
        allow_no_gpu=given["allow_no_gpu"],
        secure_boot=given["secure_boot"],
        gpudirect=given["gpudirect"],
        options={str(name): str(value) for name, value in given["module_options"].items()},
        default_branch=given["default_branch"],
        rows=planning.rows(given["packages"]),
        kernel_headers=given["kernel_headers"],
    )
    plan = planning.decide(driver, wish)
    held = planning.holds(driver, given["hold"])
    return {
        "driver": {
            **dataclasses.asdict(driver),
            "kernel_pending": driver.kernel_pending,
            "newest_kernel": driver.newest_kernel,
        },
        "plan": dataclasses.asdict(plan),
        "version_lock": planning.lock(driver, plan, wish),
        "reboot_reason": planning.reboot_reason(driver, plan, wish),
        "holds": held,
        "held": [name for name in held if driver.packages[name].held],
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "default": "none", "choices": ["cuda_repo", "distro", "archive", "none"]},
            "branch": {"type": "str", "default": ""},
            "version": {"type": "str", "default": ""},
            "flavor": {"type": "str", "default": "auto", "choices": ["auto", "open", "proprietary"]},
            "allow_no_gpu": {"type": "bool", "default": False},
            "secure_boot": {"type": "str", "default": "refuse", "choices": ["refuse", "signed"]},
            "gpudirect": {"type": "str", "default": "auto", "choices": ["auto", "dmabuf", "peermem", "none"]},
            "module_options": {"type": "dict", "default": {}},
            "default_branch": {"type": "str", "default": ""},
            "packages": {"type": "list", "elements": "dict", "default": []},
            "kernel_headers": {"type": "str", "default": "linux-headers-{kernel}"},
            "hold": {"type": "list", "elements": "str", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
            "options_file": {"type": "str", "default": ""},
            "root": {"type": "path", "default": ""},
            "simulation": {"type": "path", "default": "/var/lib/gpufleet/simulated"},
            "timeout": {"type": "float", "default": 60.0},
        },
        supports_check_mode=True,
    )
    root = module.params["root"]
    if root and not os.path.isdir(root):
        module.fail_json(msg=f"root must be the directory of a recorded tree; {root} is no directory")
    module.exit_json(changed=False, **report(module))


if __name__ == "__main__":
    main()
