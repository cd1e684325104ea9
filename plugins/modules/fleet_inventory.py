#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_inventory
short_description: Check the variables of a whole inventory before anything is touched
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Reads the variables of every host that a fleet's roles will run on and compares them with the argument specs of these roles.
  - Finds missing required variables, wrong types, values that are no choice, templates that cannot be resolved, variables that
    have a role's prefix but are not known to it (with the name that comes nearest), empty groups, and two hosts with one address.
  - Runs on the controller, once, for all hosts; it never connects to one. All problems are reported together.
options:
  roles:
    description: For each inventory group, the list of this collection's roles that will run on its hosts.
    type: dict
    required: true
  required_groups:
    description: Groups that must have at least one host.
    type: list
    elements: str
    default: []
  unknown_variables:
    description: What to do about a variable that has a role's prefix and no place in its argument spec.
    type: str
    choices: [fail, warn, ignore]
    default: fail
  problems:
    description: V(fail) when something is wrong, or V(warn) about it and go on, for an inventory whose hosts are not there yet.
    type: str
    choices: [fail, warn]
    default: fail
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
attributes:
  action:
    description: Has a corresponding action plugin, so it runs on the controller.
    support: full
"""

EXAMPLES = r"""
- name: Check the inventory
  gpufleet.deepseek.fleet_inventory:
    required_groups: [gpu_hosts, gateways]
    roles:
      gpu_hosts: [fleet, node_exporter, deepseek_service]
      gateways: [fleet, node_exporter, gateway]
  run_once: true
"""

RETURN = r"""
msg:
  description: One line for each problem, naming host, variable, what was expected and what was found.
  returned: always
  type: str
  sample: "1 problem in the inventory; nothing was touched: gpu1: variable fleet_wieght is not known to role fleet; did you mean fleet_weight?"
hosts:
  description: The roles that will run on each host.
  returned: success
  type: dict
  sample: {gpu1: [fleet, node_exporter, deepseek_service]}
"""
