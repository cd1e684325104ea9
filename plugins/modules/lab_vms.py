#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_vms
short_description: Run lab hosts as virtual machines of QEMU
version_added: 1.0.0
description:
  - Real Debian hosts on this machine with a kernel of their own - md, RDMA, kernel modules, reboots - each on an overlay of one disk image,
    with empty NVMe drives, one more drive that carries a file system with a file on it, and two C(e1000e) network cards.
  - The first card is on the lab's bridge with the host's address, the second is a rail, for RDMA, with an address of its own.
  - A host that is gone is booted again, one whose identity or package registry settings changed is written anew and booted again.
  - Uses KVM where a kernel really boots on it, which is tried once per boot of this machine, and emulates a processor elsewhere.
  - The module ends when each host lets the operator in over SSH with its pinned host key and its systemd has finished.
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
      - With V(reset) their power is cut for a moment; what their kernels had not written is lost. Does not wait for the boot.
      - With V(absent) their processes and disks are removed; without O(only) this is every virtual host the lab has a trace of.
    type: str
    choices: [started, stopped, reset, absent]
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
  accel:
    description:
      - What the processor is. V(auto) takes KVM where it works.
    type: str
    choices: [auto, kvm, tcg]
    default: auto
  cpus:
    description:
      - Processors of each host.
    type: int
    default: 2
  memory_mb:
    description:
      - Memory of each host, MiB; at least 512.
    type: int
    default: 1536
  nvme_count:
    description:
      - Empty NVMe drives of each host.
    type: int
    default: 4
  nvme_mb:
    description:
      - Size of each NVMe drive, MiB; it takes no more room than what is written to it.
    type: int
    default: 1024
  rail_subnet:
    description:
      - IPv4 network of the hosts' second cards. Empty gives them no address.
    type: str
    default: ""
  boot_timeout:
    description:
      - Seconds a host has to boot.
    type: float
    default: 600
  wait:
    description:
      - Seconds to wait for another process that changes this lab.
    type: float
    default: 900
seealso:
  - module: gpufleet.deepseek.lab_hosts
  - module: gpufleet.deepseek.lab_image
  - module: gpufleet.deepseek.lab_network
  - module: gpufleet.deepseek.lab_keys
"""

EXAMPLES = r"""
- name: Boot a virtual host
  gpufleet.deepseek.lab_vms:
    lab: gpufleet
    state_dir: /var/lib/gpufleet-lab/gpufleet
    cache_dir: /var/cache/gpufleet-lab
    bridge: lab-gpufleet
    subnet: 10.77.0.0/24
    image: /var/cache/gpufleet-lab/images/bookworm-vm-0123456789ab
    hosts:
      - name: vm1
        address: 10.77.0.51
        kind: vm
"""

RETURN = r"""
actions:
  description: What was done, host by host.
  returned: always
  type: dict
  sample:
    vm1: [boot]
accelerator:
  description: What the hosts' processors are, C(kvm) or C(tcg).
  returned: when O(state=started) and a host was booted
  type: str
  sample: tcg
unlisted:
  description: Virtual hosts of this lab that are not in O(hosts); they are left alone unless O(remove_unlisted) is set.
  returned: when O(state=started)
  type: list
  elements: str
  sample: []
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_module, _lab_vm

DONE = {"stopped": "switch off", "reset": "cut the power", "absent": "remove"}


def options_of(params: dict[str, Any]) -> _lab_vm.Options:
    if params["memory_mb"] < _lab_vm.MINIMUM_MEMORY:
        raise _lab.LabError(f"memory_mb: expected at least {_lab_vm.MINIMUM_MEMORY}, found {params['memory_mb']}.")
    return _lab_vm.Options(
        bridge=params["bridge"],
        subnet=params["subnet"],
        image=Path(params["image"]),
        suite=params["suite"],
        boot_timeout=params["boot_timeout"],
        systemd=_lab.pid1_is_systemd(),
        accel=params["accel"],
        cpus=params["cpus"],
        memory_mb=params["memory_mb"],
        nvme_count=params["nvme_count"],
        nvme_mb=params["nvme_mb"],
        rail_subnet=params["rail_subnet"],
    )


def started(module: AnsibleModule, lab: _lab.Lab, commands: _lab.Commands) -> dict[str, Any]:
    params = module.params
    machines = _lab_vm.Machines(lab, options_of(params), commands)
    everyone = _lab_module.hosts_of(params["hosts"])
    ours = {item["name"] for item in params["hosts"] if item["kind"] == _lab_vm.KIND}
    hosts = [host for host in everyone if host.name in ours and (not params["only"] or host.name in params["only"])]
    settings = _lab_module.settings_of(params, params["subnet"], commands)
    works = machines.plan(hosts, everyone, settings)
    unlisted = [name for name in machines.known() if name not in ours]
    leaving = unlisted if params["remove_unlisted"] else []
    actions = {work.host.name: work.steps for work in works if work.steps}
    actions.update({name: ["remove"] for name in leaving})
    result: dict[str, Any] = {"actions": actions, "unlisted": unlisted}
    if actions and not module.check_mode:
        for name in leaving:
            machines.remove(name)
        due = [work for work in works if work.steps]
        if due:
            machines.apply(due, everyone, settings)
            result["accelerator"] = machines.accelerator()
    for text in machines.warnings:
        module.warn(text)
    return result


def ended(module: AnsibleModule, lab: _lab.Lab, commands: _lab.Commands) -> dict[str, Any]:
    params = module.params
    machines = _lab_vm.Machines(lab, None, commands)
    names = [name for name in machines.known() if not params["only"] or name in params["only"]]
    if params["state"] != "absent":
        seen = machines.see([_lab.HostSpec(name, "") for name in names])
        names = [name for name in names if seen[name].qemu]
    if not module.check_mode:
        for name in names:
            if params["state"] == "stopped":
                machines.stop(name, params["boot_timeout"])
            elif params["state"] == "reset":
                machines.reset(name)
            else:
                machines.remove(name)
    return {"actions": {name: [DONE[params["state"]]] for name in names}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **_lab_module.LAB_SPEC,
            **_lab_module.REGISTRY_SPEC,
            "state": {"type": "str", "choices": ["started", "stopped", "reset", "absent"], "default": "started"},
            **_lab_module.HOSTS_SPEC,
            "only": {"type": "list", "elements": "str", "default": []},
            "remove_unlisted": {"type": "bool", "default": False},
            "bridge": {"type": "str"},
            "subnet": {"type": "str"},
            "image": {"type": "path"},
            "accel": {"type": "str", "choices": ["auto", "kvm", "tcg"], "default": "auto"},
            "cpus": {"type": "int", "default": 2},
            "memory_mb": {"type": "int", "default": 1536},
            "nvme_count": {"type": "int", "default": 4},
            "nvme_mb": {"type": "int", "default": 1024},
            "rail_subnet": {"type": "str", "default": ""},
            "boot_timeout": {"type": "float", "default": 600},
            "wait": {"type": "float", "default": 900},
        },
        required_if=[("state", "started", ["bridge", "subnet", "image"])],
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
