#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_peer
short_description: Take a peer out of a gateway and let it in again
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Runs on a gateway host. Holds one of its peers, so that it gets no new request, and waits until those in flight have ended.
  - Each hold has an owner and a reason and lies in C(/etc/gpufleet/gateway/holds). The role P(gpufleet.deepseek.gateway#role) leaves a peer that
    is held out of service, whoever runs it. A peer is let in when its last hold is released; nobody releases the hold of another owner.
  - The new configuration is checked by nginx before it takes the old one's place, and nginx is reloaded, which cuts no stream.
  - A peer that the gateway does not have yet, and a host without a gateway, are no error. The hold is kept for the time when there is one.
options:
  name:
    description: Name of the peer, as in C(gateway_peers).
    type: str
    required: true
  state:
    description:
      - V(drained) holds the peer and waits until nginx has no connection to it.
      - V(admitted) releases the hold of O(owner) when the peer answers again.
    type: str
    choices: [drained, admitted]
    required: true
  owner:
    description: Whose hold it is, a word such as C(hosts.yml) or the name of a person.
    type: str
    required: true
  reason:
    description: Why, for those who find the peer out of service. Required when O(state=drained).
    type: str
  peer_state:
    description: What the inventory says about the peer. Without a hold it has this state, so V(drain) and V(down) are never let in.
    type: str
    choices: [up, drain, down]
    default: up
  together:
    description: Peers that are drained at the same time, for O(capacity_floor).
    type: list
    elements: str
    default: []
  capacity_floor:
    description:
      - Percent of the weight of all peers that must go on serving. Draining is refused when less would be left.
      - A peer that accepts no connection does not count as serving. V(0) refuses nothing.
    type: int
    default: 0
  wait:
    description:
      - Seconds. With O(state=drained) the longest wait for requests in flight; when it is over, RV(idle) is false and a warning says so.
      - With O(state=admitted) the longest wait for the engine; when it is over, the module fails and the peer stays drained.
    type: int
    default: 0
  health_path:
    description:
      - Page of the engine that must answer 200 before the peer is admitted. Empty asks nothing.
      - A peer that accepted no connection when it was drained is not asked, for it had nothing to prove.
    type: str
    default: ""
  status_port:
    description: Loopback port of the gateway's status page, C(gateway_status_port).
    type: int
    default: 8090
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
notes:
  - Works with the balancer C(native) of the role, nginx as Debian and Ubuntu package it.
seealso:
  - plugin: gpufleet.deepseek.gateway_peers
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Take gpu2 out of service while its fans are replaced
  gpufleet.deepseek.gateway_peer:
    name: gpu2
    state: drained
    owner: alice
    reason: fans are replaced
    capacity_floor: 33
    wait: 600
  delegate_to: gw1

- name: Let it in again when its engine answers
  gpufleet.deepseek.gateway_peer:
    name: gpu2
    state: admitted
    owner: alice
    health_path: /health
    wait: 600
  delegate_to: gw1
"""

RETURN = r"""
known:
  description: Whether the gateway has such a peer.
  returned: success
  type: bool
peer_state:
  description: State of the peer afterwards, C(up), C(drain), C(down) or C(held); empty when the gateway has no such peer.
  returned: success
  type: str
  sample: held
held_by:
  description: Owners of the holds that are left.
  returned: success
  type: list
  elements: str
  sample: [hosts.yml]
idle:
  description: Whether nginx has no connection to the peer. Counted only when O(wait) is greater than 0.
  returned: success
  type: bool
connections:
  description: Connections of nginx to the peer.
  returned: success
  type: int
waited:
  description: Seconds that were waited.
  returned: success
  type: int
"""

import contextlib
import datetime
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_peer as peers


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Hold or release, wait, report."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C.UTF-8"}))

    wanted = module.params
    gateway = peers.Gateway(
        run,
        peers.Wish(
            name=wanted["name"],
            state=wanted["state"],
            owner=wanted["owner"],
            reason=wanted["reason"] or "",
            peer_state=wanted["peer_state"],
            together=wanted["together"],
            floor=wanted["capacity_floor"],
            wait=wanted["wait"],
            health_path=wanted["health_path"],
            status_port=wanted["status_port"],
        ),
        check=module.check_mode,
    )
    waited = gateway.prove() if wanted["state"] == "admitted" else 0
    # Nothing is changed in check mode, a lock file neither. What is waited for is waited for without the lock.
    with contextlib.nullcontext() if module.check_mode else peers.locked(peers.LOCK, gateway.probes):
        if wanted["state"] == "drained":
            outcome = gateway.drain(datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"))
        else:
            outcome = gateway.admit()
            outcome.waited = waited
    if wanted["state"] == "drained":
        gateway.wait_idle(outcome)
        if not outcome.idle:
            module.warn(
                f"{wanted['name']}: {outcome.connections} connections of the gateway are left after {outcome.waited} s;"
                " what runs on them is cut when the host stops serving"
            )
    return {
        "changed": outcome.changed,
        "known": outcome.known,
        "peer_state": outcome.state,
        "held_by": outcome.held_by,
        "idle": outcome.idle,
        "connections": outcome.connections,
        "waited": outcome.waited,
        "diff": {
            "before": outcome.before,
            "after": outcome.after,
            "before_header": wanted["name"],
            "after_header": wanted["name"],
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "admitted"], "required": True},
            "owner": {"type": "str", "required": True},
            "reason": {"type": "str"},
            "peer_state": {"type": "str", "choices": ["up", "drain", "down"], "default": "up"},
            "together": {"type": "list", "elements": "str", "default": []},
            "capacity_floor": {"type": "int", "default": 0},
            "wait": {"type": "int", "default": 0},
            "health_path": {"type": "str", "default": ""},
            "status_port": {"type": "int", "default": 8090},
        },
        required_if=[("state", "drained", ["reason"])],
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except (peers.GatewayPeerError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
