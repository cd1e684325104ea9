#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nic_offload
short_description: Switch features of Ethernet ports by ethtool, and put them back exactly as they were
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Sets features (offloads) of the named ports, reads them back, and fails when the port did not take what it was told.
  - Before the first change of a port the state of all its features is kept in O(state_dir). A port that is named no longer is put back to it.
  - What is wanted is written to O(config_dir), from where role nic_offload sets it again whenever the port appears.
  - A port is known by the address of its hardware where it has one, so another name in a later boot makes no difference.
  - Features that the driver holds (C([fixed])) are reported, and so is what goes off together with the features asked for.
  - Ports that carry RDMA are refused unless O(allow_rdma) is set. RDMA bypasses these features; switching them off there only costs CPU.
options:
  interfaces:
    description: Names of the ports. All other ports that an earlier run changed are put back.
    type: list
    elements: str
    default: []
  features:
    description: State by feature, named as C(ethtool -k) prints it.
    type: dict
    default: {tx-checksumming: false, rx-checksumming: false}
  allow_rdma:
    description: Permits ports that carry RDMA.
    type: bool
    default: false
  state_dir:
    description: Directory of what was there before the first change, a file for each port.
    type: path
    default: /var/lib/gpufleet/nic_offload
  config_dir:
    description: Directory of what is wanted at boot, a file for each port.
    type: path
    default: /etc/gpufleet/nic_offload
requirements:
  - ethtool on the host
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Let the CPU compute the checksums of eno1
  gpufleet.deepseek.nic_offload:
    interfaces: [eno1]

- name: Put every port back to what it was
  gpufleet.deepseek.nic_offload:
    interfaces: []
"""

RETURN = r"""
ports:
  description:
    - For each port what was C(set), which features are C(fixed) at another value than asked for, and which were C(taken_along).
  returned: success
  type: dict
  sample: {eno1: {set: {tx-checksumming: false}, fixed: [], taken_along: [tcp-segmentation-offload]}}
said:
  description: What the operator should know, in sentences.
  returned: success
  type: list
  elements: str
  sample: ["eno1: tcp-segmentation-offload went off with rx-checksumming, tx-checksumming"]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nic_offload as offload


def _features(given: dict[str, t.Any]) -> dict[str, bool]:
    """State by feature; on and off are as good as true and false."""
    try:
        return {str(name): bool(boolean(value)) for name, value in given.items()}
    except TypeError as exc:
        raise offload.OffloadError(f"features: expected on or off for each, found: {exc}") from exc


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "features": {"type": "dict", "default": {"tx-checksumming": False, "rx-checksumming": False}},
            "allow_rdma": {"type": "bool", "default": False},
            "state_dir": {"type": "path", "default": "/var/lib/gpufleet/nic_offload"},
            "config_dir": {"type": "path", "default": "/etc/gpufleet/nic_offload"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    installed = module.get_bin_path("ethtool") is not None

    def run(argv: list[str]) -> tuple[int, str, str]:
        if not installed:
            return 127, "", f"{argv[0]} is not installed"
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C"}))

    host = offload.Host(run, wanted["state_dir"], wanted["config_dir"])
    try:
        wish = offload.Wish(
            list(dict.fromkeys(wanted["interfaces"])), _features(wanted["features"]), wanted["allow_rdma"]
        )
        blind = module.check_mode and not installed
        report = offload.unknown(host, wish) if blind else offload.ensure(host, wish, module.check_mode)
    except offload.OffloadError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=report.changed,
        ports=report.ports,
        said=report.said,
        diff={
            "before": "".join(f"{line}\n" for line in report.before),
            "after": "".join(f"{line}\n" for line in report.after),
            "before_header": "features of ports",
            "after_header": "features of ports",
        },
    )


if __name__ == "__main__":
    main()
