# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: lab
short_description: The hosts of a lab, any number of them
version_added: 1.0.0
description:
  - Serves groups of numbered hosts with fixed addresses inside the lab's subnet.
  - How many hosts a group has is said by an extra variable (C(-e lab_gpu_count=8)) or, without one, by the lab that stands and by this
    file, whichever has more. So a playbook sees the hosts that C(lab_up) made without being told their number again.
  - C(-e lab_name=...) and C(-e lab_subnet=...) move the whole inventory to another lab.
author:
  - gpufleet.deepseek contributors (@gpufleet)
options:
  plugin:
    description: Marks the file as one of this plugin.
    type: str
    required: true
    choices: [gpufleet.deepseek.lab]
  lab_name:
    description: Name of the lab. The extra variable C(lab_name) wins.
    type: str
    default: gpufleet
    env:
      - name: GPUFLEET_LAB_NAME
  lab_subnet:
    description: The lab's IPv4 network. The extra variable C(lab_subnet) wins.
    type: str
    default: 10.77.0.0/24
    env:
      - name: GPUFLEET_LAB_SUBNET
  state_dir:
    description: Where labs keep their state, each in a directory of its name. The extra variable C(lab_state_dir) names this lab's.
    type: path
    default: /var/lib/gpufleet-lab
  kind:
    description: The C(lab_kind) of every host.
    type: str
    choices: [container, vm]
    default: container
  groups:
    description:
      - The groups. Each has a C(prefix) for its hosts' names, C(addresses) (numbers and ranges within the subnet, taken in order), a
        C(count), and the name of the extra C(variable) that overrides the count. A C(kind) of its own wins over O(kind); C(parents) are
        the groups that it belongs to.
    type: dict
    required: true
"""

EXAMPLES = r"""
---
plugin: gpufleet.deepseek.lab
groups:
  gateways:
    prefix: gw
    count: 1
    variable: lab_gateway_count
    addresses: [10-19]
  gpu_hosts:
    prefix: gpu
    count: 2
    variable: lab_gpu_count
    addresses: [21-29, 100-239]
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_inventory


def running_hosts(directory: Path) -> list[str]:
    """Names of the hosts a lab has now; none where we may not look."""
    try:
        return [path.name for path in (directory / "hosts").iterdir() if (path / "host.json").is_file()]
    except OSError:
        return []


class InventoryModule(BaseInventoryPlugin):
    NAME = "gpufleet.deepseek.lab"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith((".yml", ".yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        extra = self._vars or {}
        try:
            self._serve(extra)
        except (_lab.LabError, ValueError) as error:
            raise AnsibleParserError(f"The lab's inventory cannot be made: {error}") from error

    def _serve(self, extra: dict[str, Any]) -> None:
        name = str(extra.get("lab_name", self.get_option("lab_name")))
        subnet = str(extra.get("lab_subnet", self.get_option("lab_subnet")))
        state = Path(str(extra.get("lab_state_dir", Path(self.get_option("state_dir")) / name)))
        running = running_hosts(state)
        self.inventory.set_variable("all", "lab_name", name)
        self.inventory.set_variable("all", "lab_subnet", subnet)
        for title, item in self.get_option("groups").items():
            group = _lab_inventory.parse_group(title, item)
            self.inventory.add_group(title)
            for parent in group.parents:
                self.inventory.add_group(parent)
                self.inventory.add_child(parent, title)
            if group.variable in extra:
                count = _lab_inventory.count_of(group.variable, extra[group.variable])
            else:
                count = max(group.count, _lab_inventory.running_count(group, running))
            for host in group.hosts(subnet, count):
                self.inventory.add_host(host.name, group=title)
                self.inventory.set_variable(host.name, "ansible_host", host.address)
                self.inventory.set_variable(host.name, "lab_kind", group.kind or self.get_option("kind"))
