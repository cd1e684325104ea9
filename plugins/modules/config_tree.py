#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: config_tree
short_description: Write the configuration files of a service as one, after the service's own checker accepted them
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Writes any number of files below one directory in a single round trip.
  - The whole directory is first put together beside the old one, as it will be; the commands of O(validate) judge that copy. Only when all of
    them accept it is any file replaced, each one atomically. A run that is killed leaves old or new files, never half a file.
  - A file that an earlier run wrote and that is no longer wanted is removed. Files of others in the same directory are left alone.
options:
  path:
    description: Directory of the files. It is created when it is missing; the mode of an existing one is not changed.
    type: path
    required: true
  files:
    description: Content of each file, by its name relative to O(path). A name may contain directories.
    type: dict
    default: {}
  secret_files:
    description: The same as O(files), for content that must not show in a result, a diff or a log.
    type: dict
    default: {}
  owner:
    description: Owner of the files and of the directories that the module creates for them.
    type: str
    default: root
  group:
    description: Group of the files and of the directories that the module creates for them.
    type: str
    default: root
  mode:
    description: Mode of the files, as a quoted octal number.
    type: str
    default: "0640"
  directory_mode:
    description: Mode of the directories below O(path) that hold the files, and of O(path) when it is created, as a quoted octal number.
    type: str
    default: "0750"
  validate:
    description:
      - Commands that judge the new tree, in order, each a list of words. C(%s) in a word stands for the directory with the new files.
      - They run only when something would change.
      - In check mode a command that is not installed yet is left out.
    type: list
    elements: list
    default: []
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
notes:
  - Use one task for a directory; the names that it wrote are remembered in V(.config_tree.json) there.
"""

EXAMPLES = r"""
- name: Write the configuration and the rules, if promtool accepts both
  gpufleet.deepseek.config_tree:
    path: /etc/prometheus
    group: prometheus
    files:
      prometheus.yml: "{{ lookup('ansible.builtin.template', 'prometheus.yml.j2') }}"
      rules.d/fleet.yml: "{{ lookup('ansible.builtin.file', 'rules/fleet.yml') }}"
    secret_files:
      secrets/engine_api_key: "{{ fleet_api_key }}"
    validate:
      - [/usr/bin/promtool, check, config, "%s/prometheus.yml"]
  notify: Reload prometheus
"""

RETURN = r"""
written:
  description: Names of the files that were written, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [prometheus.yml, rules.d/fleet.yml]
removed:
  description: Names of the files that were removed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [rules.d/old.yml]
"""

import grp
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _config_tree as tree


def validate(module: AnsibleModule, staged: Path, root: Path) -> None:
    """Let every checker judge the staged tree; stop at the first that refuses."""
    for words in module.params["validate"]:
        argv = [str(word).replace("%s", str(staged)) for word in words]
        if not argv:
            continue
        if shutil.which(argv[0]) is None:
            if module.check_mode:
                continue
            module.fail_json(msg=f"{root}: cannot check the new files, {argv[0]} is not installed; nothing was changed")
        rc, out, err = module.run_command(argv, environ_update={"LC_ALL": "C"})
        if rc != 0:
            # amtool gives its reason beside what it has checked, and only the result as an error.
            reason = " ".join((out.partition("FAILED:")[2].strip(), err.strip())).strip() or out
            said = " ".join(reason.replace(str(staged), str(root)).split())
            module.fail_json(
                msg=f"{root}: the new files were refused and nothing was changed. {Path(argv[0]).name} said: {said}",
                rc=rc,
            )


def set_attributes(module: AnsibleModule, path: Path, mode: str, changed: bool) -> bool:
    """Owner, group and mode of a path that exists."""
    if not path.exists():
        return changed
    name = str(path)
    changed = module.set_owner_if_different(name, module.params["owner"], changed)
    changed = module.set_group_if_different(name, module.params["group"], changed)
    return module.set_mode_if_different(name, mode, changed)


def accounts_exist(module: AnsibleModule) -> bool:
    """In check mode on a fresh host owner and group may be missing still."""
    try:
        pwd.getpwnam(module.params["owner"])
        grp.getgrnam(module.params["group"])
    except KeyError:
        return False
    return True


def make_directory(module: AnsibleModule, path: Path) -> bool:
    """Create a directory that nobody but its owner can open until its attributes are set."""
    if path.is_dir():
        return False
    if not module.check_mode:
        path.mkdir(mode=0o700, parents=True)
        set_attributes(module, path, module.params["directory_mode"], True)
    return True


def differences(
    plan: tree.TreePlan, root: Path, files: dict[str, str], secrets: dict[str, str]
) -> list[dict[str, str]]:
    """The diff of each file; a secret one shows that it changes, not how."""
    shown = []
    for name in [*plan.write, *plan.remove]:
        secret = name not in files and (name in secrets or name in plan.remove)
        before, after = plan.before.get(name, ""), files.get(name, "")
        if secret:
            before = "(content not shown)\n" if name in plan.before else ""
            after = "(new content not shown)\n" if name in secrets else ""
        shown.append(
            {"before": before, "after": after, "before_header": str(root / name), "after_header": str(root / name)}
        )
    return shown


def replace(module: AnsibleModule, root: Path, plan: tree.TreePlan, staged: Path, names: list[str]) -> None:
    """Move each new file over the old one; the manifest knows a file before it is there and until it is gone."""
    known = tree.read_manifest(root)
    if set(known) != set(names):
        tree.write_manifest(root, sorted({*known, *names}))
    for name in plan.write:
        set_attributes(module, staged / name, module.params["mode"], True)
        (staged / name).replace(root / name)
    for name in plan.remove:
        (root / name).unlink()


def apply(module: AnsibleModule) -> dict[str, Any]:
    """Compare, judge, replace."""
    root = Path(module.params["path"])
    files, secrets = module.params["files"], module.params["secret_files"]
    twice = sorted(set(files) & set(secrets))
    if twice:
        raise tree.TreeError(f"{', '.join(twice)}: named in both files and secret_files")
    wanted = {**files, **secrets}
    odd = sorted(name for name, content in wanted.items() if not isinstance(content, str))
    if odd:
        raise tree.TreeError(f"{', '.join(odd)}: the content must be a string, found {type(wanted[odd[0]]).__name__}")
    names = sorted(wanted)
    tree.check_names(names)
    plan = tree.compare(root, wanted)
    changed = bool(plan)
    if not module.check_mode:
        if not root.is_dir():
            make_directory(module, root)
            changed = True
        tree.clean_stages(root)
    if plan:
        where = module.tmpdir if module.check_mode else str(root)
        staged = Path(tempfile.mkdtemp(prefix=tree.STAGE_PREFIX, dir=where))
        try:
            tree.stage(root, staged, wanted, plan.remove)
            validate(module, staged, root)
            if not module.check_mode:
                for folder in tree.directories(names):
                    make_directory(module, root / folder)
                replace(module, root, plan, staged, names)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    if not module.check_mode or accounts_exist(module):
        for folder in tree.directories(names):
            changed = set_attributes(module, root / folder, module.params["directory_mode"], changed)
        for name in names:
            changed = set_attributes(module, root / name, module.params["mode"], changed)
    if not module.check_mode and set(tree.read_manifest(root)) != set(names):
        tree.write_manifest(root, names)
    return {
        "changed": changed,
        "written": plan.write,
        "removed": plan.remove,
        "diff": differences(plan, root, files, secrets),
    }


def main() -> None:
    """Read the wish, meet it, report."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "dict", "default": {}},
            "secret_files": {"type": "dict", "default": {}, "no_log": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0640"},
            "directory_mode": {"type": "str", "default": "0750"},
            "validate": {"type": "list", "elements": "list", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        result = apply(module)
    except (tree.TreeError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
