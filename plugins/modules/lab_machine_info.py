#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_machine_info
short_description: Tell whether this machine can carry a lab
version_added: 1.0.0
description:
  - Looks at everything a lab needs of the machine it stands on - root, programs, kernel features, a free subnet, package sources, a
    name server, disk space - and at the lab's own values, and names all that is in the way at once.
  - Kernel features are tried out in namespaces of their own, which end with the module; nothing on the machine changes.
author:
  - gpufleet.deepseek contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
  - gpufleet.deepseek._lab
  - gpufleet.deepseek._lab.hosts
  - gpufleet.deepseek._lab.registries
options:
  bridge:
    description:
      - Name of the lab's bridge.
    type: str
    required: true
  subnet:
    description:
      - The lab's private IPv4 network.
    type: str
    required: true
  packages:
    description:
      - What the image of containers carries; says whether the cache has such an image.
    type: list
    elements: str
    default: []
  vm_packages:
    description:
      - What the image of virtual hosts carries; says whether the cache has such an image.
    type: list
    elements: str
    default: []
seealso:
  - module: gpufleet.deepseek.lab_hosts
  - module: gpufleet.deepseek.lab_vms
"""

EXAMPLES = r"""
- name: Look at the machine
  gpufleet.deepseek.lab_machine_info:
    lab: gpufleet
    state_dir: /var/lib/gpufleet-lab/gpufleet
    cache_dir: /var/cache/gpufleet-lab
    bridge: lab-gpufleet
    subnet: 10.77.0.0/24
    hosts:
      - name: gpu1
        address: 10.77.0.21
  register: machine

- name: Stop when something is in the way
  ansible.builtin.assert:
    that: machine.problems | length == 0
    fail_msg: "{{ machine.problems | join('\n') }}"
"""

RETURN = r"""
problems:
  description: Sentences, one for each thing that keeps a lab from working here.
  returned: always
  type: list
  elements: str
  sample: ["systemd-nspawn is missing: install the package systemd-container."]
warnings_found:
  description: Sentences about what works, but not as one may expect.
  returned: always
  type: list
  elements: str
  sample: []
pid1_systemd:
  description: Whether the machine is run by systemd, so that hosts become transient units.
  returned: always
  type: bool
  sample: true
cgroups:
  description: The machine's control groups - C(unified) (v2), C(hybrid) or C(legacy) (v1).
  returned: always
  type: str
  sample: unified
state_filesystem:
  description: Type of the file system O(state_dir) lies on.
  returned: always
  type: str
  sample: ext4
images_present:
  description: The kinds of hosts whose image the cache has already.
  returned: always
  type: list
  elements: str
  sample: [container]
hosts:
  description: O(hosts) with every default filled in.
  returned: always
  type: list
  elements: dict
  sample:
    - name: gpu1
      address: 10.77.0.21
      kind: container
      certificate: false
apt_sources:
  description: The C(deb) lines hosts will use.
  returned: always
  type: list
  elements: str
  sample: ["deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian bookworm main"]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import (
    _lab,
    _lab_image,
    _lab_machine,
    _lab_module,
    _lab_vm_image,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **_lab_module.LAB_SPEC,
            **_lab_module.REGISTRY_SPEC,
            "bridge": {"type": "str", "required": True},
            "subnet": {"type": "str", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "vm_packages": {"type": "list", "elements": "str", "default": []},
            **_lab_module.HOSTS_SPEC,
        },
        supports_check_mode=True,
    )
    commands = _lab.Commands(module.run_command)
    params = module.params
    lab = _lab_module.lab_of(params)
    settings = _lab_module.settings_of(params, params["subnet"], commands)
    images = {
        "container": _lab_image.image_of(params["suite"], params["packages"], settings.sources, commands),
        "vm": _lab_vm_image.image_of(params["suite"], params["vm_packages"], settings.sources, commands),
    }
    present = [kind for kind, image in images.items() if _lab_image.is_complete(_lab_image.image_dir(lab, image))]
    examination = _lab_machine.Examination(lab, params["bridge"], params["subnet"], params["hosts"], commands)
    report = examination.run(settings, present)
    module.exit_json(
        changed=False,
        problems=report.problems,
        warnings_found=report.warnings,
        images_present=present,
        apt_sources=settings.sources,
        hosts=params["hosts"],
        **report.facts,
    )


if __name__ == "__main__":
    main()
