#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: lab_keys
short_description: Make a lab's keys, pinned host keys and certificates
version_added: 1.0.0
description:
  - The operator's SSH key, a host key for each host and a C(known_hosts) that pins them, an C(ssh) configuration for people, a small
    certificate authority with one server certificate for each host that asks for one, the fleet's API key (C(secrets/api_key)) and a
    password for its Prometheus (C(secrets/prometheus_password)).
  - What is there and good stays. A certificate is made again when it expires within 30 days, when its host's address changed, and when
    it does not belong to its key or to the lab's authority.
author:
  - gpufleet.deepseek contributors (@gpufleet)
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
  - gpufleet.deepseek._lab
  - gpufleet.deepseek._lab.hosts
options:
  state:
    description:
      - With V(absent) all of it is removed, and O(state_dir) with it when nothing else lies there.
    type: str
    choices: [present, absent]
    default: present
  wait:
    description:
      - Seconds to wait for another process that changes this lab.
    type: float
    default: 180
"""

EXAMPLES = r"""
- name: Make keys and certificates
  gpufleet.deepseek.lab_keys:
    lab: gpufleet
    state_dir: /var/lib/gpufleet-lab/gpufleet
    cache_dir: /var/cache/gpufleet-lab
    hosts:
      - name: gw1
        address: 10.77.0.10
        certificate: true
"""

RETURN = r"""
made:
  description: What was made, and why.
  returned: when O(state=present)
  type: list
  elements: str
  sample: ["certificate of gw1: was made for other names or addresses"]
"""

import contextlib
import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_keys, _lab_module


def present(module: AnsibleModule, lab: _lab.Lab, keys: _lab_keys.Keys) -> dict[str, Any]:
    hosts = _lab_module.hosts_of(module.params["hosts"])
    wanting = [item["name"] for item in module.params["hosts"] if item["certificate"]]
    plan = keys.plan(hosts, wanting)
    work = bool(plan.notes or plan.files or plan.directories)
    # Reading before and after the change shows texts, never keys.
    texts = keys.texts(hosts)
    before = {path: (_lab.read_bytes(path) or b"").decode(errors="replace") for path in texts}
    if work and not module.check_mode:
        keys.apply(plan)
        texts = keys.texts(hosts)
    stale = [path for path, text in texts.items() if _lab.needs_write(path, text.encode(), 0o600)]
    if not module.check_mode:
        for path in stale:
            _lab.write_file(path, texts[path].encode(), 0o600)
    diff = [
        {"before_header": str(path), "after_header": str(path), "before": before[path], "after": text}
        for path, text in texts.items()
        if before[path] != text
    ]
    notes = "".join(f"{note}\n" for note in plan.notes)
    diff.append({"before_header": "made", "after_header": "made", "before": "", "after": notes})
    return {"changed": work or bool(stale), "made": plan.notes, "diff": diff}


def absent(module: AnsibleModule, lab: _lab.Lab) -> dict[str, Any]:
    found = [
        lab.state_dir / name for name in ("ssh", "pki", "secrets", "known_hosts") if (lab.state_dir / name).exists()
    ]
    changed = bool(found) or lab.state_dir.is_dir()
    diff = {"before": "".join(f"{path}\n" for path in found), "after": ""}
    if changed and not module.check_mode:
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (lab.hosts_dir, lab.state_dir):
            with contextlib.suppress(FileNotFoundError):
                left = sorted(os.listdir(path))
                if left:
                    raise _lab.LabError(f"{path} is not empty, and is not all the lab's: {', '.join(left)}.")
                path.rmdir()
        if lab.state_dir.parent.name == "gpufleet-lab":
            with contextlib.suppress(OSError):
                lab.state_dir.parent.rmdir()
    return {"changed": changed, "diff": diff}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **_lab_module.LAB_SPEC,
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            **_lab_module.HOSTS_SPEC,
            "wait": {"type": "float", "default": 180},
        },
        supports_check_mode=True,
    )
    lab = _lab_module.lab_of(module.params)
    keys = _lab_keys.Keys(lab, _lab.Commands(module.run_command))
    try:
        with _lab_module.exclusive(module, lab):
            result = present(module, lab, keys) if module.params["state"] == "present" else absent(module, lab)
    except _lab.LabError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
