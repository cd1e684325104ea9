#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_info
short_description: See whether ports are taken and file systems have room
version_added: 1.0.0
description:
  - Answers two questions a role asks before it changes anything, in one round trip.
  - Is a TCP port already held by some other process, and is the address one of this host's own?
  - Do the file systems behind some paths have room for what is going to be written there?
  - Changes nothing.
author: gpufleet.deepseek maintainers (@gpufleet)
options:
  ports:
    description: Ports a service wants to listen on.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: Address the service binds to; a name is resolved on the host.
        type: str
        required: true
      port:
        description: TCP port.
        type: int
        required: true
      unit:
        description: The systemd unit that may hold the port already, because it is the service itself.
        type: str
        default: ""
  space:
    description: Room that is needed. Wishes on the same file system are added up.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: A directory that will be written to. It need not exist yet; its nearest existing parent counts.
        type: path
        required: true
      bytes:
        description: How much is going to be written.
        type: int
        required: true
      unless_exists:
        description: Nothing is needed when this file exists already.
        type: path
      unless_size:
        description: Together with O(space[].unless_exists), the size the file must have to count as existing.
        type: int
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
notes:
  - Run as root, or the names of other users' processes stay unknown.
"""

EXAMPLES = r"""
- name: Look at the port and the disk
  gpufleet.deepseek.preflight_info:
    ports:
      - address: "{{ fleet_address }}"
        port: 8000
        unit: deepseek-service.service
    space:
      - path: /srv/models
        bytes: 200000000
  register: before

- name: Stop when the port is taken
  ansible.builtin.assert:
    that: before.ports | map(attribute='held_by') | flatten | length == 0
"""

RETURN = r"""
ports:
  description: One entry for each port that was asked about, in the same order.
  returned: always
  type: list
  elements: dict
  contains:
    address:
      description: The address as it was given.
      type: str
      sample: 192.0.2.21
    port:
      description: The port as it was given.
      type: int
      sample: 8000
    local:
      description: Whether the address belongs to this host.
      type: bool
      sample: true
    held_by:
      description: Listeners that stand in the way; the unit itself is left out.
      type: list
      elements: dict
      contains:
        address:
          description: Address of the listener.
          type: str
          sample: 0.0.0.0
        pid:
          description: Process, V(0) when it cannot be seen.
          type: int
          sample: 4711
        process:
          description: Name of the process.
          type: str
          sample: python3
        unit:
          description: Its systemd unit.
          type: str
          sample: other.service
space:
  description: One entry for each file system.
  returned: always
  type: list
  elements: dict
  contains:
    paths:
      description: The paths that lie on it.
      type: list
      elements: str
      sample: [/srv/models]
    present:
      description: Those of the O(space[].unless_exists) files that exist, on which nothing is needed.
      type: list
      elements: str
      sample: [/srv/models/example.gguf]
    wanted_bytes:
      description: The sum of what is needed.
      type: int
      sample: 200000000
    free_bytes:
      description: What is free.
      type: int
      sample: 84000000000
    enough:
      description: Whether it fits.
      type: bool
      sample: true
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._preflight import (
    PreflightError,
    check_port,
    check_space,
)


def main() -> None:
    """Answer both questions."""
    module = AnsibleModule(
        argument_spec={
            "ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "unit": {"type": "str", "default": ""},
                },
            },
            "space": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "bytes": {"type": "int", "required": True},
                    "unless_exists": {"type": "path"},
                    "unless_size": {"type": "int"},
                },
            },
        },
        supports_check_mode=True,
    )
    try:
        ports = [check_port(want["address"], want["port"], want["unit"]) for want in module.params["ports"]]
        space = check_space(module.params["space"])
    except PreflightError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, ports=ports, space=space)


if __name__ == "__main__":
    main()
