#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: access_guard
short_description: Change sshd and the firewall of a host so that nobody is locked out
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - With O(state=begun), sshd and C(nft) judge the new files; then a timer is started that would undo everything, then the files are replaced and put
    to work. sshd is asked what it now follows.
  - With O(state=confirmed) the timer is stopped and the change stays. Call it over a new connection; one that stood before the change proves nothing.
  - When no confirmation comes, the timer puts the former files back. After a power cut the unit O(boot_unit) does the same before the network is up,
    so a host always boots with what was last confirmed.
  - Only the table C(inet gpufleet) is touched. The tables of container runtimes and of others stay as they are.
options:
  state:
    description: What shall happen.
    type: str
    required: true
    choices: [begun, confirmed, absent]
  ssh_file:
    description: The drop-in of sshd. The first file that names a keyword wins, so its name should begin with C(00).
    type: path
    required: true
  ssh_settings:
    description: Value by keyword of C(sshd_config). Times are given in seconds. Empty means that there is no drop-in.
    type: dict
    default: {}
  ssh_unit:
    description: The unit of sshd.
    type: str
    default: ssh.service
  ssh_ports:
    description: Ports that O(firewall_rules) leave open for sshd. When sshd listens on another, nothing is changed.
    type: list
    elements: int
    default: [22]
  firewall_file:
    description: The file of rules that the boot unit loads.
    type: path
    required: true
  firewall_rules:
    description: A whole file for C(nft -f) that replaces the table C(inet gpufleet) in one step. Empty means that there is no such table.
    type: str
    default: ""
  helper:
    description: The program that undoes a change (C(rollback)) and loads the rules at boot (C(boot)).
    type: path
    required: true
  boot_unit:
    description: The unit that runs the helper at boot.
    type: str
    required: true
  state_dir:
    description: Directory for the former files and the mark of a change that is not confirmed. The helper uses the same one.
    type: path
    required: true
  header:
    description: Comment at the top of the drop-in of sshd.
    type: str
    default: Managed by Ansible.
  rollback_seconds:
    description: Time for the confirmation.
    type: int
    default: 60
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Change sshd under the timer
  gpufleet.deepseek.access_guard:
    state: begun
    ssh_file: /etc/ssh/sshd_config.d/00-site.conf
    ssh_settings: {PasswordAuthentication: "no"}
    firewall_file: /etc/site/firewall.nft
    helper: /usr/local/lib/site/access-guard
    boot_unit: site-access.service
    state_dir: /var/lib/site/access
  register: access

- name: Come back over a new connection
  ansible.builtin.wait_for_connection:
    timeout: 120
  when: access.pending

- name: Keep the change
  gpufleet.deepseek.access_guard:
    state: confirmed
    ssh_file: /etc/ssh/sshd_config.d/00-site.conf
    firewall_file: /etc/site/firewall.nft
    helper: /usr/local/lib/site/access-guard
    boot_unit: site-access.service
    state_dir: /var/lib/site/access
  when: access.pending
"""

RETURN = r"""
pending:
  description: Whether a change waits for its confirmation, or would in check mode.
  returned: success
  type: bool
  sample: false
reasons:
  description: Why something was done.
  returned: success
  type: list
  elements: str
  sample: [the rules in the kernel are not those of the file]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _access_guard as access


def _word(value: object) -> str:
    """YAML's booleans are yes and no in sshd_config; a list is words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(str(one) for one in value)
    return str(value).strip()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "required": True, "choices": ["begun", "confirmed", "absent"]},
            "ssh_file": {"type": "path", "required": True},
            "ssh_settings": {"type": "dict", "default": {}},
            "ssh_unit": {"type": "str", "default": "ssh.service"},
            "ssh_ports": {"type": "list", "elements": "int", "default": [22]},
            "firewall_file": {"type": "path", "required": True},
            "firewall_rules": {"type": "str", "default": ""},
            "helper": {"type": "path", "required": True},
            "boot_unit": {"type": "str", "required": True},
            "state_dir": {"type": "path", "required": True},
            "header": {"type": "str", "default": "Managed by Ansible."},
            "rollback_seconds": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )

    def run(argv: list[str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C.UTF-8"}))

    wanted = module.params
    wish = access.Wish(
        state_dir=wanted["state_dir"],
        helper=wanted["helper"],
        boot_unit=wanted["boot_unit"],
        ssh_file=wanted["ssh_file"],
        firewall_file=wanted["firewall_file"],
        ssh_settings={str(key): _word(value) for key, value in wanted["ssh_settings"].items()},
        ssh_unit=wanted["ssh_unit"],
        ssh_ports=tuple(wanted["ssh_ports"]),
        firewall_rules=f"{wanted['firewall_rules'].strip()}\n" if wanted["firewall_rules"].strip() else "",
        header=wanted["header"],
        seconds=wanted["rollback_seconds"],
    )
    guard = access.Guard(run, wish, module.check_mode)
    steps = {"begun": guard.begin, "confirmed": guard.confirm, "absent": guard.remove}
    try:
        out = steps[wanted["state"]]()
    except access.AccessError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=out.changed, pending=out.pending, reasons=out.reasons, diff=out.diff)


if __name__ == "__main__":
    main()
