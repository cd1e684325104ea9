#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: host_files
short_description: Write, edit and tighten files all over a host as one, with a record of what was there
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Brings any number of files in any directories into their state in a single round trip, and runs the commands that must follow.
  - All new files are judged by O(files[].validate) before the first one is replaced. Each is replaced atomically.
  - What stood in a place before the first run is remembered in O(record). A file that is no longer wanted, and everything with O(state=absent),
    gets back what it was.
  - A command that is owed is remembered before the file is replaced and until the command has succeeded, so a run that was killed in between is
    made good by the next one.
options:
  files:
    description: Files that are wanted whole. Their owner is root.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where it is. Missing directories are made.
        type: path
        required: true
      content:
        description: What is in it. A newline that is missing at its end is added.
        type: str
        required: true
      mode:
        description: Its mode, as a quoted octal number.
        type: str
        default: "0644"
      validate:
        description: Command that judges the new file, as a list of words. C(%s) in a word stands for a copy of it.
        type: list
        elements: str
        default: []
      then:
        description: Names of O(actions) to run when it has changed.
        type: list
        elements: str
        default: []
  edits:
    description: Settings that are wanted in files of others. A file that is not there is reported, not made.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where it is.
        type: path
        required: true
      values:
        description: Value by key.
        type: dict
        required: true
      separator:
        description: What stands between key and value in a line that is written.
        type: str
        default: " = "
      then:
        description: Names of O(actions) to run when it has changed.
        type: list
        elements: str
        default: []
  limits:
    description: The permission bits that a path may have at most, by path. Bits are only taken away. A path that is not there is left out.
    type: dict
    default: {}
  actions:
    description: Commands by name, each name a list of commands, each command a list of words. They run in this order.
    type: dict
    default: {}
  record:
    description: File that remembers what was there before.
    type: path
    required: true
  state:
    description: Whether the files shall be as wanted, or as they were before the first run.
    type: str
    default: present
    choices: [present, absent]
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
"""

EXAMPLES = r"""
- name: Bound the journal
  gpufleet.deepseek.host_files:
    record: /var/lib/site/files.json
    files:
      - path: /etc/systemd/journald.conf.d/95-site.conf
        content: "[Journal]\nSystemMaxUse=2G\n"
        then: [journald]
    limits:
      /etc/crontab: "0600"
    actions:
      journald:
        - [systemctl, try-restart, systemd-journald.service]
"""

RETURN = r"""
written:
  description: Files that were written, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [/etc/systemd/journald.conf.d/95-site.conf]
removed:
  description: Paths that got back what they were.
  returned: success
  type: list
  elements: str
  sample: []
tightened:
  description: Paths that lost permission bits.
  returned: success
  type: list
  elements: str
  sample: [/etc/crontab]
missing:
  description: Files to be edited that are not there.
  returned: success
  type: list
  elements: str
  sample: []
ran:
  description: Actions that were run.
  returned: success
  type: list
  elements: str
  sample: [journald]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _host_files as files


def _octal(module: AnsibleModule, value: object) -> int:
    try:
        return int(str(value), 8)
    except ValueError:
        module.fail_json(msg=f"expected a mode as a quoted octal number such as '0644', found {value!r}")
        raise


def main() -> None:
    """Run the module."""
    words: dict[str, t.Any] = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                    "validate": words,
                    "then": words,
                },
            },
            "edits": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "values": {"type": "dict", "required": True},
                    "separator": {"type": "str", "default": " = "},
                    "then": words,
                },
            },
            "limits": {"type": "dict", "default": {}},
            "actions": {"type": "dict", "default": {}},
            "record": {"type": "path", "required": True},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
        },
        supports_check_mode=True,
    )
    wanted = module.params

    def run(argv: list[str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C.UTF-8"}))

    whole = [
        files.File(
            one["path"],
            one["content"].rstrip("\n") + "\n",
            _octal(module, one["mode"]),
            tuple(one["validate"]),
            tuple(one["then"]),
        )
        for one in wanted["files"]
    ]
    edits = [
        files.Edit(
            one["path"],
            {str(key): str(value) for key, value in one["values"].items()},
            one["separator"],
            tuple(one["then"]),
        )
        for one in wanted["edits"]
    ]
    limits = {str(path): _octal(module, mode) for path, mode in wanted["limits"].items()}
    host = files.Host(run, wanted["record"], wanted["actions"], module.check_mode)
    try:
        out = files.present(host, whole, edits, limits) if wanted["state"] == "present" else files.absent(host)
    except files.HostFilesError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(
        changed=out.changed,
        written=out.written,
        removed=out.removed,
        tightened=out.tightened,
        missing=out.missing,
        ran=out.ran,
        diff=out.diff,
    )


if __name__ == "__main__":
    main()
