#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_hosts
short_description: Run lab hosts as systemd-nspawn containers
version_added: 1.0.0
description:
  - Real Debian hosts on this machine - each with a systemd, an sshd and an address of its own - on an overlay of one image.
  - Brings every host to the asked state and heals what it finds. A host that is gone is booted again, a wrong address or a link that left
    the bridge is repaired in the running host, changed files of its identity are written back, and so are this machine's package registry
    settings when they change.
  - All hosts boot at the same time. The module ends when each lets the operator in over SSH with its pinned host key and its systemd has
    finished.
  - Hosts outlive the command that started them. Where PID 1 is systemd each is a transient unit, elsewhere a process of its own.
author:
  - gpufleet.deepseek contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
  - gpufleet.deepseek._lab
  - gpufleet.deepseek._lab.hosts
  - gpufleet.deepseek._lab.registries
options:
  state:
    description:
      - With V(started) the hosts are there, healthy, and as O(hosts) says.
      - With V(stopped) they are switched off; what is on their disks stays.
      - With V(absent) their processes, mounts and files are removed; without O(only) this is every host the lab has a trace of.
    type: str
    choices: [started, stopped, absent]
    default: started
  only:
    description:
      - Names of the hosts to act on. Empty means all.
    type: list
    elements: str
    default: []
  remove_unlisted:
    description:
      - Whether V(started) removes hosts of this lab that are not in O(hosts) any more.
    type: bool
    default: false
  bridge:
    description:
      - The bridge the hosts are connected to. Required when O(state=started).
    type: str
  subnet:
    description:
      - The lab's IPv4 network. Required when O(state=started).
    type: str
  image:
    description:
      - Directory of the image, as M(gpufleet.deepseek.lab_image) returns it. Required when O(state=started).
    type: path
  storage:
    description:
      - How a host gets its disk. V(overlay) is quick and small, V(copy) works where O(state_dir) lies on a file system that cannot carry
        an overlay, V(auto) tries the first and falls back to the second.
    type: str
    choices: [auto, overlay, copy]
    default: auto
  boot_timeout:
    description:
      - Seconds a host has to boot.
    type: float
    default: 120
  wait:
    description:
      - Seconds to wait for another process that changes this lab.
    type: float
    default: 180
seealso:
  - module: gpufleet.deepseek.lab_vms
  - module: gpufleet.deepseek.lab_image
  - module: gpufleet.deepseek.lab_network
  - module: gpufleet.deepseek.lab_keys
"""

EXAMPLES = r"""
- name: Boot a host
  gpufleet.deepseek.lab_hosts:
    lab: gpufleet
    state_dir: /var/lib/gpufleet-lab/gpufleet
    cache_dir: /var/cache/gpufleet-lab
    bridge: lab-gpufleet
    subnet: 10.77.0.0/24
    image: /var/cache/gpufleet-lab/images/bookworm-0123456789ab
    hosts:
      - name: gpu1
        address: 10.77.0.21
"""

RETURN = r"""
actions:
  description: What was done, host by host.
  returned: always
  type: dict
  sample:
    gpu1: [boot]
unlisted:
  description: Hosts of this lab that are not in O(hosts); they are left alone unless O(remove_unlisted) is set.
  returned: when O(state=started)
  type: list
  elements: str
  sample: []
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_container, _lab_module

REQUIRED = ["bridge", "subnet", "image"]


def options_of(params: dict[str, Any]) -> _lab_container.Options:
    table = _lab.mounts()
    kernel = Path("/proc/filesystems").read_text(encoding="ascii")
    return _lab_container.Options(
        bridge=params["bridge"],
        subnet=params["subnet"],
        image=Path(params["image"]),
        suite=params["suite"],
        storage=params["storage"],
        boot_timeout=params["boot_timeout"],
        systemd=_lab.pid1_is_systemd(),
        unified_environment=_lab_container.unified_environment(_lab.cgroup_layout(table), "\tcgroup2\n" in kernel),
    )


def started(module: AnsibleModule, lab: _lab.Lab, commands: _lab.Commands) -> dict[str, Any]:
    params = module.params
    containers = _lab_container.Containers(lab, options_of(params), commands)
    everyone = _lab_module.hosts_of(params["hosts"])
    ours = {item["name"] for item in params["hosts"] if item["kind"] == "container"}
    hosts = [host for host in everyone if host.name in ours and (not params["only"] or host.name in params["only"])]
    settings = _lab_module.settings_of(params, params["subnet"], commands)
    works = containers.plan(hosts, everyone, settings)
    unlisted = [name for name in containers.known() if name not in ours]
    leaving = unlisted if params["remove_unlisted"] else []
    actions = {work.host.name: work.steps for work in works if work.steps}
    actions.update({name: ["remove"] for name in leaving})
    if actions and not module.check_mode:
        for name in leaving:
            containers.remove(name)
        containers.apply([work for work in works if work.steps], everyone, settings)
    for text in containers.warnings:
        module.warn(text)
    return {"actions": actions, "unlisted": unlisted}


def ended(module: AnsibleModule, lab: _lab.Lab, commands: _lab.Commands) -> dict[str, Any]:
    params = module.params
    containers = _lab_container.Containers(lab, None, commands)
    names = [name for name in containers.known() if not params["only"] or name in params["only"]]
    if params["state"] == "stopped":
        specs = [_lab.HostSpec(name, "") for name in names]
        seen = containers.see(specs, [], _lab.processes(), deep=False)
        names = [name for name in names if seen[name].anything]
    if not module.check_mode:
        if names or params["state"] == "absent":
            containers.close_connections()
        for name in names:
            if params["state"] == "stopped":
                containers.stop(name, params["boot_timeout"])
            else:
                containers.remove(name)
    return {"actions": {name: ["remove" if params["state"] == "absent" else "switch off"] for name in names}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **_lab_module.LAB_SPEC,
            **_lab_module.REGISTRY_SPEC,
            "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
            **_lab_module.HOSTS_SPEC,
            "only": {"type": "list", "elements": "str", "default": []},
            "remove_unlisted": {"type": "bool", "default": False},
            "bridge": {"type": "str"},
            "subnet": {"type": "str"},
            "image": {"type": "path"},
            "storage": {"type": "str", "choices": ["auto", "overlay", "copy"], "default": "auto"},
            "boot_timeout": {"type": "float", "default": 120},
            "wait": {"type": "float", "default": 180},
        },
        required_if=[("state", "started", REQUIRED)],
        supports_check_mode=True,
    )
    lab = _lab_module.lab_of(module.params)
    commands = _lab.Commands(module.run_command)
    work = started if module.params["state"] == "started" else ended
    try:
        with _lab_module.exclusive(module, lab):
            result = work(module, lab, commands)
    except _lab.LabError as error:
        module.fail_json(msg=str(error))
    after = "".join(f"{name}: {'; '.join(steps)}\n" for name, steps in sorted(result["actions"].items()))
    module.exit_json(changed=bool(result["actions"]), diff={"before": "", "after": after}, **result)


if __name__ == "__main__":
    main()
