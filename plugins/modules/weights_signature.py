#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: weights_signature
short_description: Sign the manifest of a set of weights, or check its signature
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Signs by OpenSSF model signing with a key, or checks such a signature. The manifest binds every byte of the set.
  - The private key is handed to the program on its standard input and lies in no file.
options:
  models_dir:
    description: Directory that holds C(weights).
    type: path
    default: /srv/models
  root:
    description: Root of the set, which must be in place.
    type: str
    required: true
  state:
    description: V(signed) makes a signature unless there is one that fits; V(checked) refuses a set without one that fits.
    type: str
    choices: [signed, checked]
    default: checked
  private_key:
    description: Elliptic curve key in PEM without a password, with O(state=signed).
    type: str
  public_key:
    description: Its public key in PEM. Needed with O(state=checked); with O(state=signed) it tells a signature that fits already.
    type: str
  python:
    description: Python that has model signing.
    type: path
    required: true
  program:
    description: The program that role model_store installs.
    type: path
    default: /usr/local/lib/gpufleet/model_store/gpufleet_weights.py
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.no_diff
"""

EXAMPLES = r"""
- name: Refuse a set that was not signed by us
  gpufleet.deepseek.weights_signature:
    root: "{{ model_store_model.root }}"
    public_key: "{{ model_store_public_key }}"
    python: /opt/gpufleet/model_store/1/bin/python
"""

RETURN = r"""
root:
  description: Root of the set.
  returned: success
  type: str
  sample: fe385c3fc4e7484695452c1062f5a04278c3421a8344f648c0fedd687a014d1b
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights as weights


def main() -> None:
    """Let the program do it, and report."""
    module = AnsibleModule(
        argument_spec={
            "models_dir": {"type": "path", "default": "/srv/models"},
            "root": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["signed", "checked"], "default": "checked"},
            "private_key": {"type": "str", "no_log": True},
            "public_key": {"type": "str", "no_log": False},
            "python": {"type": "path", "required": True},
            "program": {"type": "path", "default": "/usr/local/lib/gpufleet/model_store/gpufleet_weights.py"},
        },
        required_if=[("state", "signed", ["private_key"]), ("state", "checked", ["public_key"])],
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        places = weights.Places(wanted["models_dir"], weights.check_root(wanted["root"]))
    except weights.WeightsError as exc:
        module.fail_json(msg=str(exc))
    if module.check_mode and not (os.path.exists(wanted["python"]) and os.path.exists(places.manifest)):
        module.exit_json(changed=wanted["state"] == "signed", root=wanted["root"])
    verb = "sign" if wanted["state"] == "signed" else "check"
    argv = [
        wanted["python"],
        "-sB",
        wanted["program"],
        verb,
        "--models",
        wanted["models_dir"],
        "--root",
        wanted["root"],
    ]
    data = wanted["public_key"]
    if verb == "sign":
        keys = {"private": wanted["private_key"], "public": wanted["public_key"] or ""}
        data = json.dumps({**keys, "write": not module.check_mode})
    code, out, err = module.run_command(argv, data=data)
    if code:
        lines = err.strip().splitlines() or ["no word"]
        module.fail_json(msg=lines[-1])
    changed = bool(json.loads(out)["changed"]) if verb == "sign" else False
    module.exit_json(changed=changed, root=wanted["root"])


if __name__ == "__main__":
    main()
