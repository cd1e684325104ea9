#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_lock
short_description: Let one run at a time change a fleet
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Takes a lock that lies on a host of the fleet, C(/var/lib/gpufleet/locks/NAME.json), or gives it back. Two controllers that know nothing of each other
    meet there.
  - The lock has an owner and a run. The same run takes it again as often as it likes, which makes its end later. Another run is refused and told who has it,
    what for, and since when.
  - The owner is the account and the controller's name, such as C(alice@ops1), in AWX the name of its user and C(awx). The run is the process of
    ansible-playbook, in AWX the job.
  - A run of the same owner on the same controller whose process is not there any more was killed; its place is taken without a question. Of a job of
    AWX nobody can tell from here whether it still runs, so its lock is taken over with O(take_over), or when its time has run out.
options:
  name:
    description: What is locked.
    type: str
    default: releases
  state:
    description: V(held) takes the lock or keeps it for longer. V(released) gives it back, and leaves that of another run alone.
    type: str
    choices: [held, released]
    default: held
  purpose:
    description: What it is for, as a rule the name of the playbook. Required when O(state=held).
    type: str
  seconds:
    description: For how long from now the lock counts, 60 to 604800. When they are over, anybody may take it.
    type: int
    default: 7200
  take_over:
    description:
      - With O(state=held), takes the lock from whoever has it. A run that loses it so stops when it asks for more time.
      - With O(state=released), removes it whoever has it.
    type: bool
    default: false
  owner:
    description: Whose lock it is, a name without blanks. Found out by the controller when it is empty.
    type: str
    default: ""
  run:
    description: Which run it is. Found out by the controller when it is empty.
    type: str
    default: ""
  succeeds:
    description: A run of the same owner whose lock is taken because it has ended. Found out by the controller.
    type: str
    default: ""
  directory:
    description: Where locks lie on the host.
    type: path
    default: /var/lib/gpufleet/locks
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
notes:
  - Of several that come at the same instant exactly one gets the lock of a host. Who wants those of several hosts gives back what it has when it is refused
    at one of them.
  - The lock stays when its run is killed, and over a reboot. More time for the same run is no change.
  - In check mode nothing is taken, and a lock of somebody else is returned in RV(other) and is no failure.
  - Fails when another run has the lock, when the file is not as this module writes it, and when a value is not as expected.
seealso:
  - module: gpufleet.deepseek.gateway_peer
"""

EXAMPLES = r"""
- name: Take the lock for half an hour
  gpufleet.deepseek.fleet_lock:
    purpose: new switches
    seconds: 1800
  delegate_to: gw1

- name: Give it back
  gpufleet.deepseek.fleet_lock:
    state: released
  delegate_to: gw1
"""

RETURN = r"""
holder:
  description: Who has the lock afterwards, or would in check mode; empty when nobody does.
  returned: always
  type: dict
  contains:
    owner:
      description: Whose it is.
      type: str
    run:
      description: Which run of that owner.
      type: str
    purpose:
      description: What it is for.
      type: str
    since:
      description: When it was taken, by the clock of the host.
      type: str
    until:
      description: From when on anybody may take it.
      type: str
    words:
      description: All of that for people.
      type: str
  sample:
    owner: alice@ops1
    run: ops1 7f2c1a50-3f5e-4d83-9f1e-0d8a4f1f2c11 pid:[4026531836] 4711 8153172
    purpose: upgrade.yml
    since: 2026-11-30 09:12:44 UTC
    until: 2026-11-30 11:12:44 UTC
    words: alice@ops1 (upgrade.yml), since 2026-11-30 09:12:44 UTC, at the longest until 2026-11-30 11:12:44 UTC
other:
  description: Another run that has it, as in RV(holder), so that the wish was not met; else empty.
  returned: always
  type: dict
displaced:
  description: Another run that had it and lost it, as in RV(holder); else empty.
  returned: always
  type: dict
how:
  description: Why that one lost it, C(its time had run out), C(its run has ended) or C(take_over).
  returned: always
  type: str
"""

import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _fleet_lock as locks


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Take the lock or give it back, and report."""
    wanted = module.params
    holding = wanted["state"] == "held"
    wish = locks.Wish(
        directory=Path(wanted["directory"]),
        name=wanted["name"],
        owner=wanted["owner"],
        run=wanted["run"],
        purpose=" ".join((wanted["purpose"] or "").split()),
        seconds=wanted["seconds"],
        succeeds=wanted["succeeds"],
        take_over=wanted["take_over"],
    )
    outcome = (locks.hold if holding else locks.release)(wish, check_mode=module.check_mode)
    result = {
        "changed": outcome.changed,
        "holder": outcome.holder.document() if outcome.holder else {},
        "other": outcome.other.document() if outcome.other else {},
        "displaced": outcome.displaced.document() if outcome.displaced else {},
        "how": outcome.how,
        "diff": {
            "before": outcome.before,
            "after": outcome.after,
            "before_header": str(locks.path_of(wish)),
            "after_header": str(locks.path_of(wish)),
        },
    }
    if holding and outcome.other and not module.check_mode:
        module.fail_json(msg=f"the lock on {wish.name} belongs to {outcome.other.words()}", **result)
    return result


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "releases"},
            "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
            "purpose": {"type": "str"},
            "seconds": {"type": "int", "default": 7200},
            "take_over": {"type": "bool", "default": False},
            "owner": {"type": "str", "default": ""},
            "run": {"type": "str", "default": ""},
            "succeeds": {"type": "str", "default": ""},
            "directory": {"type": "path", "default": locks.DIRECTORY},
        },
        required_if=[("state", "held", ["purpose"])],
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except (locks.LockError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
