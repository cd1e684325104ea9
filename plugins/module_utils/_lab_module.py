# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab modules share as modules: options, and how parameters become objects.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_registry

LAB_SPEC: dict[str, dict[str, Any]] = {
    "lab": {"type": "str", "required": True},
    "state_dir": {"type": "path", "required": True},
    "cache_dir": {"type": "path", "required": True},
}
REGISTRY_SPEC: dict[str, dict[str, Any]] = {
    "suite": {"type": "str", "default": "bookworm"},
    "apt_sources": {"type": "list", "elements": "str", "default": []},
    "nameservers": {"type": "list", "elements": "str", "default": []},
}
HOSTS_SPEC: dict[str, dict[str, Any]] = {
    "hosts": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "kind": {"type": "str", "choices": ["container", "vm"], "default": "container"},
            "certificate": {"type": "bool", "default": False},
        },
    },
}


def lab_of(params: dict[str, Any]) -> _lab.Lab:
    return _lab.Lab(params["lab"], Path(params["state_dir"]), Path(params["cache_dir"]))


def hosts_of(items: list[dict[str, Any]]) -> list[_lab.HostSpec]:
    return [_lab.HostSpec(item["name"], item["address"]) for item in items]


def settings_of(params: dict[str, Any], subnet: str, commands: _lab.Commands) -> _lab_registry.Settings:
    rc, dump, _err = commands.try_("apt-config", "dump")
    return _lab_registry.read_settings(
        suite=params["suite"],
        subnet=subnet,
        apt_dump=dump if rc == 0 else "",
        environ=os.environ,
        sources=params["apt_sources"],
        nameservers=params["nameservers"],
        home=Path(os.path.expanduser("~")),
    )


def exclusive(module: AnsibleModule, lab: _lab.Lab) -> contextlib.AbstractContextManager[None]:
    """One process at a time changes a lab; looking needs no permission."""
    if module.check_mode:
        return contextlib.nullcontext()
    if os.geteuid() != 0:
        raise _lab.LabError("A lab needs root on this machine (namespaces, mounts, a bridge): run it as root.")
    return _lab.locked(lab.lock_file, module.params["wait"], f"The lab {lab.name}")
