#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: python_venv
short_description: Keep a virtual environment with exactly the pinned and hashed requirements
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Builds the environment beside its place and moves it there when everything is installed. A failed or killed build leaves the old one as it was.
  - Installs wheels only, each one with its hash, and nothing that is not in O(requirements).
  - An environment that is complete is recognised by its marker file, so that a run without changes starts no pip.
  - Builds it anew when O(requirements) or the interpreter behind O(python) changed.
options:
  path:
    description: Directory of the environment. Missing parent directories are created.
    type: path
    required: true
  requirements:
    description: Content of a requirements file in which every line is pinned and hashed.
    type: str
    required: true
  python:
    description: The interpreter to build it with.
    type: str
    default: /usr/bin/python3
  index_url:
    description: Package index. Without it, pip's own configuration on the host counts.
    type: str
    default: ""
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
requirements:
  - The venv module of the interpreter (package python3-venv on Debian and Ubuntu)
"""

EXAMPLES = r"""
- name: Build the engine's environment
  gpufleet.deepseek.python_venv:
    path: /opt/gpufleet/engines/llama_cpp/2026.10.11549
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt') }}"
"""

RETURN = r"""
path:
  description: Directory of the environment.
  returned: success
  type: str
  sample: /opt/gpufleet/engines/llama_cpp/2026.10.11549
pins:
  description: What is installed.
  returned: success
  type: list
  elements: str
  sample: [xllamacpp==2026.10.11549]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._python_venv import (
    VenvError,
    Wanted,
    build,
    is_current,
    read_marker,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "python": {"type": "str", "default": "/usr/bin/python3"},
            "index_url": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    wanted = Wanted(**{name: module.params[name] for name in ("path", "python", "requirements", "index_url")})

    def run(argv: list[str], environ: dict[str, str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update=environ))

    before = read_marker(wanted.path).get("pins", [])
    try:
        changed = not is_current(wanted)
        if changed and not module.check_mode:
            build(wanted, run)
    except VenvError as exc:
        module.fail_json(msg=str(exc))
    diff = {
        "before": "".join(f"{pin}\n" for pin in before),
        "after": "".join(f"{pin}\n" for pin in wanted.pins),
        "before_header": wanted.path,
        "after_header": wanted.path,
    }
    module.exit_json(changed=changed, path=wanted.path, pins=wanted.pins, diff=diff)


if __name__ == "__main__":
    main()
