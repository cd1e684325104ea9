#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_image
short_description: Make the root file system lab hosts start from
version_added: 1.0.0
description:
  - Makes a Debian root file system with C(mmdebstrap) and keeps it in the cache, under a name made of its suite and a digest of its
    packages and package sources. One image serves every host of every lab on the machine.
  - An image appears in one step, when it is complete. What an interrupted build left is removed by the next one.
author:
  - gpufleet.deepseek contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.no_diff
  - gpufleet.deepseek._lab
  - gpufleet.deepseek._lab.registries
options:
  state:
    description:
      - With V(present) the image is made unless it is there.
      - With V(unbuilt) a build this lab began and left behind is ended and its directory removed; complete images stay.
      - With V(absent) every image no host stands on is removed, too.
    type: str
    choices: [present, unbuilt, absent]
    default: present
  kind:
    description:
      - What hosts are made of it. V(container) is a root file system; V(vm) a disk with the same and a kernel that is among O(packages).
    type: str
    choices: [container, vm]
    default: container
  packages:
    description:
      - Packages in the image, besides the essential ones and apt.
    type: list
    elements: str
    default: []
  attempts:
    description:
      - How often to try when a download fails.
    type: int
    default: 3
  delay:
    description:
      - Seconds between two attempts.
    type: float
    default: 5
  timeout:
    description:
      - Seconds one attempt may take before it counts as failed.
    type: int
    default: 600
  wait:
    description:
      - Seconds to wait for another build to end.
    type: float
    default: 900
seealso:
  - module: gpufleet.deepseek.lab_hosts
  - module: gpufleet.deepseek.lab_vms
"""

EXAMPLES = r"""
- name: Make an image of Debian 13
  gpufleet.deepseek.lab_image:
    lab: gpufleet
    state_dir: /var/lib/gpufleet-lab/gpufleet
    cache_dir: /var/cache/gpufleet-lab
    suite: trixie
    packages: [systemd-sysv, openssh-server, python3, python3-apt, iproute2, ca-certificates]
"""

RETURN = r"""
path:
  description: The image's directory; C(rootfs) in it is the root file system, or C(root.img) the disk.
  returned: when O(state=present)
  type: str
  sample: /var/cache/gpufleet-lab/images/bookworm-0123456789ab
seconds:
  description: How long the build took, 0 when there was none.
  returned: when O(state=present)
  type: float
  sample: 27.3
removed:
  description: What was removed from the cache.
  returned: when O(state=absent)
  type: list
  elements: str
  sample: [bookworm-0123456789ab]
kept:
  description: Images that stayed because a host of some lab stands on them.
  returned: when O(state=absent)
  type: list
  elements: str
  sample: []
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_image, _lab_module, _lab_vm_image


def run(module: AnsibleModule, commands: _lab.Commands) -> dict[str, Any]:
    params = module.params
    lab = _lab_module.lab_of(params)
    if params["state"] != "present":
        changed = _lab_image.stop_builder(lab, commands, module.check_mode)
        if params["state"] == "unbuilt":
            return {"changed": changed}
        gone, kept = _lab_image.purge(lab, commands, module.check_mode)
        return {"changed": changed or bool(gone), "removed": gone, "kept": kept}
    settings = _lab_module.settings_of(params, "", commands)
    makes_disk = params["kind"] == "vm"
    image_of = _lab_vm_image.image_of if makes_disk else _lab_image.image_of
    image = image_of(params["suite"], params["packages"], settings.sources, commands)
    path = _lab_image.image_dir(lab, image)
    result: dict[str, Any] = {"path": str(path), "seconds": 0.0}
    if module.check_mode:
        return {**result, "changed": not _lab_image.is_complete(path)}
    started = time.monotonic()
    more: dict[str, Any] = {key: params[key] for key in ("attempts", "delay", "timeout", "wait")}
    if makes_disk:
        more["seed_files"] = _lab_vm_image.seed_files()
        more["then"] = lambda directory: _lab_vm_image.finish(directory, commands)
    if _lab_image.build(lab, image, settings, commands, **more):
        return {**result, "changed": True, "seconds": round(time.monotonic() - started, 1)}
    return {**result, "changed": False}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **_lab_module.LAB_SPEC,
            **_lab_module.REGISTRY_SPEC,
            "state": {"type": "str", "choices": ["present", "unbuilt", "absent"], "default": "present"},
            "kind": {"type": "str", "choices": ["container", "vm"], "default": "container"},
            "packages": {"type": "list", "elements": "str", "default": []},
            "attempts": {"type": "int", "default": 3},
            "delay": {"type": "float", "default": 5},
            "timeout": {"type": "int", "default": 600},
            "wait": {"type": "float", "default": 900},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module, _lab.Commands(module.run_command)))
    except _lab.LabError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
