#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_peer
short_description: Take a peer out of a gateway, let it in again, or change its weight
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Runs on a gateway host. Holds one of its peers, so that it gets no new request, and waits until those in flight have ended.
  - Each hold has an owner and a reason and lies in C(/etc/gpufleet/gateway/holds). The role P(gpufleet.deepseek.gateway#role) leaves a peer that
    is held out of service, whoever runs it. A peer is let in when its last hold is released; nobody releases the hold of another owner.
  - A weight that replaces the planned one lies with its owner and reason in C(/etc/gpufleet/gateway/weights). The role reads it, so that the
    peer keeps it when the role runs again. A peer has one such weight; the last who sets or forgets it counts, whoever set it before.
  - With the balancer V(native), the new C(nginx.conf) is checked by nginx before it takes the old one's place, and nginx is reloaded, which
    cuts no stream.
  - With the balancer V(lua), the new C(peers.json) is checked by gwcheck before it takes the old one's place. nginx is not reloaded; the module
    waits until all workers use the file, about two seconds, and fails when they do not within 15 seconds.
  - A peer that the gateway does not have yet, and a host without a gateway, are no error. The hold is kept for the time when there is one; a
    weight is not, because there is none that it could replace. When nginx does not run, only the files are changed.
options:
  name:
    description: Name of the peer, as in C(gateway_peers).
    type: str
    required: true
  state:
    description:
      - V(drained) holds the peer and waits until the gateway has nothing in flight to it.
      - V(admitted) releases the hold of O(owner) when the peer answers again.
      - V(weighed) gives the peer the weight O(weight), in every pool that it is in.
    type: str
    choices: [drained, admitted, weighed]
    required: true
  owner:
    description:
      - Whose hold or weight it is, a word such as C(hosts.yml) or the name of a person.
      - Up to 64 letters, digits, dots, dashes, underscores and @.
    type: str
    required: true
  reason:
    description:
      - Why, for those who find the peer out of service or with another weight.
      - Required when O(state=drained), and when O(state=weighed) and O(weight) is greater than 0.
    type: str
  weight:
    description:
      - Share of the requests relative to the other peers, from 1 to 256.
      - V(0) forgets the weight that was set, and gives the peer the one that the configuration had before.
      - Required when O(state=weighed).
    type: int
  peer_state:
    description:
      - What the inventory says about the peer. Without a hold it has this state, so V(drain) and V(down) are never let in.
      - With the balancer V(lua), a peer that is held has the state V(drain) in C(peers.json), as one that the inventory drains. Say so here when
        O(state=admitted) and the inventory does not say V(up), or the peer is let in when its last hold is released.
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
      - Percent of the weight of all peers that must go on serving, with the balancer V(lua) in each pool. Draining is refused when less would
        be left, and the message names the pool.
      - A peer that accepts no connection does not count as serving. V(0) refuses nothing.
    type: int
    default: 0
  wait:
    description:
      - Seconds. With O(state=drained) the longest wait for requests in flight; when it is over, RV(idle) is false and a warning says so.
        Nothing must be in flight for three counts in a row, one a second, so less than 3 is too short.
      - With O(state=admitted) the longest wait for the engine; when it is over, the module fails and the peer stays drained.
      - Not used with O(state=weighed).
    type: int
    default: 0
  health_path:
    description:
      - Page of the engine that must answer 200 before the peer is admitted. Empty asks nothing.
      - Asked over TLS, with the gateway's certificate, where the gateway itself asks its engines so.
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
  - Works with the balancers C(native) and C(lua) of the role, nginx as Debian and Ubuntu package it. C(nginx.conf) says which it is.
  - Fails, with the configuration as it was, when a file of the gateway is not as the role or this module writes it, when the new
    configuration is refused, when O(capacity_floor) would not be kept, or when another run has changed the same gateway for 60 seconds.
  - Fails, with the files changed, when nginx cannot be reloaded or when its workers do not use them. The next run finds that out again.
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
    peer_state: "{{ hostvars['gpu2'].fleet_peer_state | default('up') }}"
    health_path: /health
    wait: 600
  delegate_to: gw1

- name: Give gpu2 few requests for now
  gpufleet.deepseek.gateway_peer:
    name: gpu2
    state: weighed
    weight: 1
    owner: alice
    reason: one of its GPUs is throttled
  delegate_to: gw1

- name: Give it the planned weight again
  gpufleet.deepseek.gateway_peer:
    name: gpu2
    state: weighed
    weight: 0
    owner: alice
  delegate_to: gw1
"""

RETURN = r"""
known:
  description: Whether the gateway has such a peer.
  returned: success
  type: bool
peer_state:
  description:
    - State of the peer afterwards, C(up), C(drain), C(down) or C(held); empty when the gateway has no such peer.
    - With the balancer C(lua), C(held) is a peer with a hold, the state C(drain) in the file and O(peer_state=up).
  returned: success
  type: str
  sample: held
held_by:
  description: Owners of the holds that are left.
  returned: success
  type: list
  elements: str
  sample: [hosts.yml]
weight:
  description: Weight of the peer afterwards; 0 when the gateway has no such peer.
  returned: success
  type: int
  sample: 3
planned_weight:
  description: Weight that the peer gets when the one that was set is forgotten; the same as RV(weight) when none was set.
  returned: when O(state=weighed)
  type: int
  sample: 3
idle:
  description: Whether the gateway has nothing in flight to the peer. Counted only when O(wait) is greater than 0.
  returned: success
  type: bool
connections:
  description:
    - With the balancer C(native), connections of nginx to the peer.
    - With the balancer C(lua), requests of all workers that the peer is working on, as the status page has them; when nobody listens at
      O(status_port), connections of nginx.
  returned: success
  type: int
waited:
  description: Seconds that were waited for requests in flight, or for the engine.
  returned: success
  type: int
"""

import contextlib
import datetime
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_peer as peers


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Hold, release or weigh, wait, report."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C.UTF-8"}))

    wanted = module.params
    state = wanted["state"]
    gateway = peers.Gateway(
        run,
        peers.flavored(
            peers.Wish(
                name=wanted["name"],
                state=state,
                owner=wanted["owner"],
                reason=wanted["reason"] or "",
                weight=wanted["weight"] or 0,
                peer_state=wanted["peer_state"],
                together=wanted["together"],
                floor=wanted["capacity_floor"],
                wait=wanted["wait"],
                health_path=wanted["health_path"],
                status_port=wanted["status_port"],
            )
        ),
        check=module.check_mode,
    )
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    waited = gateway.prove() if state == "admitted" else 0
    # Nothing is changed in check mode, a lock file neither. What is waited for is waited for without the lock.
    with contextlib.nullcontext() if module.check_mode else peers.locked(peers.LOCK, gateway.probes):
        if state == "drained":
            outcome = gateway.drain(now)
        elif state == "weighed":
            outcome = gateway.weigh(now)
        else:
            outcome = gateway.admit()
            outcome.waited = waited
    gateway.wait_taken(outcome)
    if state == "drained":
        gateway.wait_idle(outcome)
        if not outcome.idle:
            module.warn(f"{wanted['name']}: {outcome.left}")
    return {
        "changed": outcome.changed,
        "known": outcome.known,
        "peer_state": outcome.state,
        "held_by": outcome.held_by,
        "weight": outcome.weight,
        **({"planned_weight": outcome.planned} if state == "weighed" else {}),
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
            "state": {"type": "str", "choices": ["drained", "admitted", "weighed"], "required": True},
            "owner": {"type": "str", "required": True},
            "reason": {"type": "str"},
            "weight": {"type": "int"},
            "peer_state": {"type": "str", "choices": ["up", "drain", "down"], "default": "up"},
            "together": {"type": "list", "elements": "str", "default": []},
            "capacity_floor": {"type": "int", "default": 0},
            "wait": {"type": "int", "default": 0},
            "health_path": {"type": "str", "default": ""},
            "status_port": {"type": "int", "default": 8090},
        },
        required_if=[("state", "drained", ["reason"]), ("state", "weighed", ["weight"])],
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except (peers.GatewayPeerError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
