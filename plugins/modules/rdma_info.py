#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: rdma_info
short_description: Read what a host has of RDMA, and compare it with what is wanted
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Reads RDMA devices, the kind of machine, the limit of locked memory and what a reboot is due for.
  - Says what forbids a configuration, before anything is touched, and what is wrong with the rails of a host that is prepared.
options:
  config:
    description: The configuration, as M(gpufleet.deepseek.rdma_host) takes it.
    type: dict
    default: {}
  kernel_arguments:
    description: Words that the running kernel should have been booted with.
    type: list
    elements: str
    default: []
  judge_rails:
    description: Whether addresses, MTU, link and GIDs of the rails are looked at. They come with the settings, so not before them.
    type: bool
    default: false
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: See whether soft RoCE can be had
  gpufleet.deepseek.rdma_info:
    config: {soft_roce: [eth1]}
  register: rdma
  failed_when: rdma.refusals | length > 0
"""

RETURN = r"""
refusals:
  description: What forbids the configuration on this host, in sentences.
  returned: success
  type: list
  elements: str
  sample: []
findings:
  description: What is wrong with the rails, in sentences.
  returned: success
  type: list
  elements: str
  sample: ["rdma_peers: expected MTU 9000 on eth1 of rail0, found 1500"]
notes:
  description: What the operator should know although nothing is wrong.
  returned: success
  type: list
  elements: str
  sample: []
virtualization:
  description: C(none) on bare metal, else the kind of virtual machine or container.
  returned: success
  type: str
  sample: none
bare_metal:
  description: Whether the host owns its PCIe bridges.
  returned: success
  type: bool
  sample: true
grub:
  description: Whether the host boots by GRUB.
  returned: success
  type: bool
  sample: true
devices:
  description: RDMA devices, each with C(name), C(driver), C(netdev), C(layer), C(state) and whether it is C(soft).
  returned: success
  type: list
  elements: dict
  sample: [{name: mlx5_0, driver: mlx5_core, netdev: eth1, layer: Ethernet, state: ACTIVE, soft: false}]
memlock:
  description: Locked memory that systemd gives services.
  returned: success
  type: str
  sample: infinity
reboot_reasons:
  description: Why the host must be rebooted; empty when it need not be.
  returned: success
  type: list
  elements: str
  sample: [the kernel was booted without iommu=pt]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _rdma_host as rdma


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "config": {"type": "dict", "default": {}},
            "kernel_arguments": {"type": "list", "elements": "str", "default": []},
            "judge_rails": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )

    def run(argv: list[str]) -> tuple[int, str, str]:
        if module.get_bin_path(argv[0]) is None:
            return 127, "", f"{argv[0]} is not installed"
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C"}))

    host, config = rdma.Host(run), module.params["config"]
    try:
        module.exit_json(
            changed=False,
            refusals=host.refusals(config),
            findings=host.rail_findings(config) if module.params["judge_rails"] else [],
            notes=rdma.notes(host, config),
            virtualization=host.virtualization,
            bare_metal=host.bare_metal,
            grub=host.has("update-grub"),
            devices=[
                {
                    "name": device.name,
                    "driver": device.driver,
                    "netdev": device.netdev,
                    "layer": device.layer,
                    "state": device.state,
                    "soft": device.soft,
                }
                for device in host.devices()
            ],
            memlock=host.memlock(),
            reboot_reasons=host.reboot_reasons(module.params["kernel_arguments"]),
        )
    except (rdma.RdmaError, ValueError) as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
