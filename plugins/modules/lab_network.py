#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_network
short_description: Give a lab its private network
version_added: 1.0.0
description:
  - A bridge with the first address of the subnet and an nftables table of the lab's own that lets hosts out (masquerade) and lets
    forwarded packets pass.
  - Raises the kernel settings hosts need - forwarding of IPv4 packets, and the number of inotify instances of a user (all hosts are root
    to the kernel).
  - Where another chain drops forwarded packets by default, as Docker's and ufw's do, two rules that carry the lab's name are put in
    front of it.
  - Taking the network away removes all of that. The last lab that goes puts the kernel settings back.
author:
  - gpufleet.deepseek contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
  - gpufleet.deepseek._lab
options:
  state:
    description:
      - Whether the network is to be there.
    type: str
    choices: [present, absent]
    default: present
  bridge:
    description:
      - Name of the bridge, at most 15 characters.
    type: str
    required: true
  subnet:
    description:
      - The private IPv4 network. Required when O(state=present).
    type: str
  wait:
    description:
      - Seconds to wait for another process that changes this lab.
    type: float
    default: 180
"""

EXAMPLES = r"""
- name: Give the lab its network
  gpufleet.deepseek.lab_network:
    lab: gpufleet
    state_dir: /var/lib/gpufleet-lab/gpufleet
    cache_dir: /var/cache/gpufleet-lab
    bridge: lab-gpufleet
    subnet: 10.77.0.0/24
"""

RETURN = r"""
address:
  description: The machine's own address in the lab, with its prefix length.
  returned: when O(state=present)
  type: str
  sample: 10.77.0.1/24
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_module, _lab_network

# What stays when the network goes.
NOTHING = {"bridge": False, "up": False, "addresses": [], "table": False, "table_exists": False}


def run(module: AnsibleModule, lab: _lab.Lab, commands: _lab.Commands) -> dict[str, Any]:
    params = module.params
    # Removing needs no subnet: any will do.
    network = _lab_network.Network(params["bridge"], params["subnet"] or "192.168.0.0/24")
    # A lab may be taken down on a machine that never had one, and lacks what one needs.
    nft = params["state"] == "present" or module.get_bin_path("nft") is not None
    machine = _lab_network.Machine(lab, network, commands, nft)
    before = machine.state()
    if params["state"] == "present":
        after = machine.wanted(before)
        changed = after != before
        if changed and not module.check_mode:
            machine.apply(before, after)
            after = machine.state()
            if machine.wanted(after) != after:
                raise _lab.LabError(f"The network of lab {lab.name} did not become what was asked for: {after}.")
        for text in dict.fromkeys(machine.warnings):
            module.warn(text)
        result: dict[str, Any] = {"address": network.address}
    else:
        abandoned = before["remembered"] and not machine.other_labs()
        changed = before["bridge"] or before["table_exists"] or before["rules_elsewhere"] > 0 or abandoned
        after = {**before, **NOTHING, "rules_elsewhere": 0} if changed else before
        if changed and not module.check_mode:
            machine.remove(before)
            after = machine.state()
        result = {}
    return {"changed": changed, "diff": {"before": before, "after": after}, **result}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **_lab_module.LAB_SPEC,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "bridge": {"type": "str", "required": True},
            "subnet": {"type": "str"},
            "wait": {"type": "float", "default": 180},
        },
        required_if=[("state", "present", ["subnet"])],
        supports_check_mode=True,
    )
    lab = _lab_module.lab_of(module.params)
    try:
        with _lab_module.exclusive(module, lab):
            result = run(module, lab, _lab.Commands(module.run_command))
    except _lab.LabError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
