#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: rdma_host
short_description: Bring the RDMA settings of a host where they shall be, and read them back
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Binds soft RoCE to ports, makes RoCE ports of ConnectX adapters lossless (trust, PFC, DSCP, ECN, traffic class), switches ACS of PCIe bridges
    off, sets the max read request and relaxed ordering of adapters, and loosens C(rp_filter) for rails in one network.
  - Every value is read before and after. PCIe settings are left alone anywhere but on bare metal.
  - All of it is forgotten by the kernel with a reboot or a new link; role rdma installs a unit that does the same then.
options:
  config:
    description:
      - What is wanted. Keys are C(soft_roce) (list of ports), C(roce) (C(enabled), C(interfaces), C(dscp), C(priority), C(ecn)), C(acs) (C(auto),
        C(disabled) or C(kept)), C(max_read_request) (bytes, 0 for leaving it alone), C(relaxed_ordering) (true, false or null), C(rp_filter_loose),
        C(rails) (list of C(name), C(address), C(mtu)).
      - What is left out is left alone. Soft RoCE that an earlier run bound to a port which is not named any more is taken away.
    type: dict
    required: true
requirements:
  - iproute2 for soft RoCE, mlnx_qos for lossless RoCE, pciutils for PCIe settings
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Bind soft RoCE to a port
  gpufleet.deepseek.rdma_host:
    config:
      soft_roce: [eth1]

- name: Make the RoCE ports lossless
  gpufleet.deepseek.rdma_host:
    config:
      roce: {enabled: true, dscp: 26, priority: 3, ecn: true}
"""

RETURN = r"""
settings:
  description: What was changed, or would be in check mode, each with C(what), C(found) and C(wanted).
  returned: success
  type: list
  elements: dict
  sample: [{what: eth1 trust, found: pcp, wanted: dscp}]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _rdma_host as rdma


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"config": {"type": "dict", "required": True}}, supports_check_mode=True)

    def run(argv: list[str]) -> tuple[int, str, str]:
        if module.get_bin_path(argv[0]) is None:
            return 127, "", f"{argv[0]} is not installed"
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C"}))

    host, config = rdma.Host(run), module.params["config"]
    try:
        due = host.due(config) if module.check_mode else host.apply(config)
    except rdma.RdmaError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=bool(due),
        settings=[{"what": one.what, "found": one.found, "wanted": one.wanted} for one in due],
        diff={
            "before": "".join(f"{one.what}: {one.found}\n" for one in due),
            "after": "".join(f"{one.what}: {one.wanted}\n" for one in due),
            "before_header": "RDMA settings",
            "after_header": "RDMA settings",
        },
    )


if __name__ == "__main__":
    main()
