#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: model_release
short_description: Stage, activate, judge, roll back and prune the releases of a model
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - A release is what has to change together, that is the weights, the engine that serves them, its configuration, and the plan that both come from.
    It lies in C(releases/<id>) below O(root), with what it binds in C(release.json), and is never changed.
  - The link C(current) leads to the release that is active. C(state.json) is the journal, with every activation, when, by whom and why it was, and
    with what is thought of each release.
  - A release has its final name only when it is complete and on disk. Until then its directory is C(releases/<id>.partial).
  - Going back to an older release moves one link. Nothing is transferred.
  - The module restarts nothing. What serves the release reads it through C(current) and is restarted by the play.
  - Every change is a row of atomic steps. When a run is killed between two of them, the next run finishes or undoes what was begun and says so in
    RV(recovered).
options:
  root:
    description:
      - Directory of the releases, an absolute path. It is created with O(state=staged) when it is missing. A link to it is followed.
      - Nothing outside of C(releases) below it is ever deleted.
    type: path
    default: /srv/models
  state:
    description:
      - V(staged) registers the directory C(releases/<id>.partial) for the caller to fill, and with O(finish=true) makes it the release O(id).
        A release that exists already with the same content is left as it is; one with other content is refused.
      - V(activated) makes C(current) lead to the release O(id).
      - V(good) marks the release O(id), which must be the active one for O(soak_seconds), as one to go back to.
      - V(bad) marks the release O(id) as one that must not be activated, for O(reason).
      - V(rolled_back) activates the last good release that was activated before the active one.
      - V(pruned) removes releases that are not needed any more, and directories that nobody fills any more.
    type: str
    choices: [staged, activated, good, bad, rolled_back, pruned]
    required: true
  id:
    description:
      - Name of the release, up to 128 letters, digits, dots, dashes and underscores. It begins with a letter or a digit.
      - Required when O(state) is V(staged), V(activated), V(good) or V(bad).
      - With O(state=rolled_back) the release to get away from. Nothing is done when another one is active. Without it, nothing is done when the
        active release was itself reached by a rollback and is not marked bad, so that a play that runs twice does not go back twice.
    type: str
  weights_root:
    description:
      - Hash that stands for all the weights, such as the root of a Merkle manifest. 32 to 128 hexadecimal digits, with or without the name of
        its kind and a colon before it, such as C(sha256:).
      - It is kept and compared. That the files are those of the hash is for the caller to prove before the release is finished.
      - Required when O(state=staged).
    type: str
  engine:
    description: Name of the engine, such as C(sglang). Required when O(state=staged).
    type: str
  engine_version:
    description: Version of the engine. Required when O(state=staged).
    type: str
  image_digest:
    description: Digest of the container image, C(sha256:) and 64 hexadecimal digits. Left out where the engine runs without one.
    type: str
  configuration:
    description:
      - What the engine is configured with.
      - It lies in a file that everybody may read and is shown in results, so nothing that is secret belongs into it.
    type: dict
    default: {}
  plan_id:
    description: Which plan the release was made for. Required when O(state=staged).
    type: str
  files:
    description:
      - Every file of the release, by its name relative to the release, with its C(size) in bytes and its C(hash). The hashes of all releases
        must be of one kind, or of kinds that are named before a colon.
      - When it is given, a release is finished only when it has exactly these files in these sizes. The hashes are not computed.
      - What was given when the directory was registered holds when it is left out later.
    type: dict
  link_from:
    description:
      - V(identical) makes a file that is still missing a hard link to a file of an older release that has the same size and the same hash in
        O(files). Names do not count, and releases that are marked bad are not linked from.
      - Such files share their content, so what changes a file in place changes it in both releases. Whoever fills the directory must replace files
        and not write into them.
    type: str
    choices: [none, identical]
    default: none
  source:
    description:
      - A complete directory that becomes the release, an absolute path outside of C(releases) on the same file system. It is moved, not copied.
      - Without it, the directory is C(releases/<id>.partial), which the caller fills between a task with O(finish=false) and one with
        O(finish=true).
    type: path
  finish:
    description:
      - Whether the directory is complete. With V(false), O(state=staged) only registers it, links what O(link_from) allows, and returns its path
        in RV(partial) and what is to be transferred in RV(missing).
      - With V(true) the files are brought to disk, C(release.json) is written and the directory gets its final name.
    type: bool
    default: true
  bytes:
    description:
      - Size of all files of the release, in bytes. Left out, it is the sum of O(files).
      - With O(finish=false) so much must be free, less what is there already or linked. With O(finish=true) a release that has fewer is refused.
    type: int
    default: 0
  margin_bytes:
    description: What must be free besides, in bytes. The default is 10 GiB.
    type: int
    default: 10737418240
  stager_pid:
    description:
      - Number of the process that fills the directory. As long as it runs, the directory is neither finished nor pruned.
      - A process can say the same by holding an exclusive C(flock) on C(releases/.<id>.staging.json).
    type: int
    default: 0
  force:
    description:
      - With O(state=activated), activates a release that is marked bad, and a directory in C(releases) without a valid C(release.json).
      - With O(state=good), marks a release good that is marked bad.
      - With O(state=staged), registers other content for a directory that is being staged. A finished release is never changed.
    type: bool
    default: false
  soak_seconds:
    description: How long the release must have been active before it may be marked good, in seconds.
    type: int
    default: 0
  keep:
    description: How many good releases stay with O(state=pruned), the active one included when it is good. At least 1.
    type: int
    default: 3
  partial_hours:
    description:
      - Age in hours from which O(state=pruned) removes a directory that was not finished.
      - It counts from the last change to anything in it, so one that is being filled does not age.
    type: int
    default: 24
  by:
    description: Who does it, for the journal. Left out, it is the account that the module runs for.
    type: str
  reason:
    description: Why, for the journal. Required when O(state=bad).
    type: str
  lock_seconds:
    description: How long to wait for another run that works on the same releases, in seconds.
    type: int
    default: 60
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
notes:
  - With O(state=pruned) the good releases that were activated last stay, O(keep) of them. The active release, the one that was active before it,
    and releases that were staged and never activated stay in any case. Mark one of the latter bad to have it removed.
  - Files and directories in C(releases) that this module did not make are left alone and named in RV(foreign).
  - In check mode, the tasks before this one changed nothing either. So a directory that is not there or not complete counts as complete, a
    O(source) that is not there as well, and with O(state=activated) a release that is not there counts as staged. A warning says so where
    there is something incomplete, and for the release. Check mode takes no lock.
  - When C(state.json) is damaged or missing it is rebuilt from the releases and the link, and a warning says what is lost. A damaged file is
    kept beside it.
  - Fails, without a change, when C(root), C(releases), C(state.json) or C(current) is something else than this module makes of it, or leads out
    of O(root).
  - Fails when O(id) exists with other content, naming the fields that differ; when files are missing, too many or of another size; when there is
    not enough room; when a process still fills the directory; when O(source) is on another file system or has something mounted in it; when the
    release to activate is bad or not there; when the soak is not over; when there is no good release to go back to; when another run holds the
    lock for longer than O(lock_seconds). Each message names the option, what was expected and what was found.
seealso:
  - module: gpufleet.deepseek.gateway_peer
  - module: gpufleet.deepseek.model_file
"""

EXAMPLES = r"""
- name: Upgrade one host after the other
  hosts: gpu_hosts
  serial: 1
  max_fail_percentage: 0
  tasks:
    - name: Register the release, and link what an older one has
      gpufleet.deepseek.model_release:
        state: staged
        finish: false
        link_from: identical
        bytes: "{{ release.bytes }}"
        id: "{{ release.id }}"
        weights_root: "{{ release.weights_root }}"
        engine: sglang
        engine_version: 0.5.6
        configuration: "{{ release.configuration }}"
        plan_id: "{{ fleet_plan.id }}"
        files: "{{ release.files }}"
      register: staging

    - name: Transfer what is missing
      ansible.builtin.get_url:
        url: "https://weights.example/{{ release.id }}/{{ item }}"
        dest: "{{ staging.partial }}/{{ item }}"
        checksum: "sha256:{{ release.files[item].hash }}"
        mode: "0644"
      loop: "{{ staging.missing }}"

    - name: Finish the release
      gpufleet.deepseek.model_release:
        state: staged
        id: "{{ release.id }}"
        weights_root: "{{ release.weights_root }}"
        engine: sglang
        engine_version: 0.5.6
        configuration: "{{ release.configuration }}"
        plan_id: "{{ fleet_plan.id }}"
        files: "{{ release.files }}"

    - name: Activate it, prove it, or go back
      block:
        - name: Activate the release
          gpufleet.deepseek.model_release:
            state: activated
            id: "{{ release.id }}"
            by: upgrade.yml
            reason: "{{ upgrade_reason }}"

        - name: Restart the engine
          ansible.builtin.systemd_service:
            name: deepseek-service
            state: restarted

        - name: Wait until it serves
          ansible.builtin.uri:
            url: http://127.0.0.1:8000/health
          register: health
          until: health is succeeded
          retries: 60
          delay: 5
      rescue:
        - name: Mark the release bad
          gpufleet.deepseek.model_release:
            state: bad
            id: "{{ release.id }}"
            reason: it did not serve within five minutes

        - name: Go back to the last good release
          gpufleet.deepseek.model_release:
            state: rolled_back
            id: "{{ release.id }}"
            by: upgrade.yml

        - name: Restart the engine with the old release
          ansible.builtin.systemd_service:
            name: deepseek-service
            state: restarted

        - name: Stop the upgrade
          ansible.builtin.fail:
            msg: "{{ release.id }} is bad, {{ inventory_hostname }} serves the release from before"

- name: Keep the release, an hour later
  hosts: gpu_hosts
  tasks:
    - name: Mark it good
      gpufleet.deepseek.model_release:
        state: good
        id: "{{ release.id }}"
        soak_seconds: 3600
      when: not ansible_check_mode

    - name: Remove what is not needed any more
      gpufleet.deepseek.model_release:
        state: pruned
        keep: 3

- name: Roll back by hand
  hosts: gpu_hosts
  serial: 1
  tasks:
    - name: Go back to the last good release
      gpufleet.deepseek.model_release:
        state: rolled_back
        by: alice
        reason: answers got worse
      notify: Restart the engine
  handlers:
    - name: Restart the engine
      ansible.builtin.systemd_service:
        name: deepseek-service
        state: restarted
"""

RETURN = r"""
current:
  description: The release that is active afterwards, or would be in check mode. Empty when there is none.
  returned: success
  type: str
  sample: r1-awq-2
previous:
  description: The release that was active before it. Empty when there was none or when it is not there any more.
  returned: success
  type: str
  sample: r1-awq-1
releases:
  description: Every finished release, by its name.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Name of the release.
      type: str
    path:
      description: Its directory.
      type: str
    status:
      description: V(staged), V(active), V(good) or V(bad). V(active) is the active release as long as it is neither marked good nor bad.
      type: str
    active:
      description: Whether it is the active release.
      type: bool
    reason:
      description: Why it was marked.
      type: str
    activated_at:
      description: When it was last activated, in UTC. Empty when it never was.
      type: str
    staged_at:
      description: When it was finished, in UTC.
      type: str
    bytes:
      description: Size of its files in bytes, those that it shares with other releases included.
      type: int
    weights_root:
      description: Hash of its weights.
      type: str
    engine:
      description: Name of its engine.
      type: str
    engine_version:
      description: Version of its engine.
      type: str
    image_digest:
      description: Digest of its container image, or empty.
      type: str
    configuration:
      description: Its configuration.
      type: dict
    plan_id:
      description: The plan that it was made for.
      type: str
  sample:
    - id: r1-awq-2
      path: /srv/models/releases/r1-awq-2
      status: active
      active: true
      reason: ""
      activated_at: "2026-11-29T13:45:00Z"
      staged_at: "2026-11-29T13:40:00Z"
      bytes: 364000000000
      weights_root: 8d1f7a4f0c5e4a0f9f8b3a9d2c1e0f4b8d1f7a4f0c5e4a0f9f8b3a9d2c1e0f4b
      engine: sglang
      engine_version: 0.5.6
      image_digest: ""
      configuration: {tensor_parallel: 8}
      plan_id: plan-17
staging:
  description: Every directory that is not finished.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Name of the release that it is to become.
      type: str
    path:
      description: The directory.
      type: str
    bytes:
      description: Size of the files that are there, in bytes.
      type: int
    filled_by:
      description: The process that fills it, or empty when none is known.
      type: str
foreign:
  description: What lies in C(releases) and is not of this module, each with what it is. It is left alone.
  returned: success
  type: list
  elements: str
  sample: ["notes.txt: a file"]
recovered:
  description: What was finished, undone or taken over before the wish was met, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: ["finished the activation of r1-awq-2 that began at 2026-11-29T13:45:00Z"]
partial:
  description: The directory to fill. Empty when the release is finished.
  returned: when O(state=staged)
  type: str
  sample: /srv/models/releases/r1-awq-2.partial
linked:
  description: Files that became hard links, or would in check mode.
  returned: when O(state=staged)
  type: list
  elements: str
missing:
  description: Files of O(files) that are still to be transferred. Empty when the release is finished.
  returned: when O(state=staged)
  type: list
  elements: str
from:
  description: The release that was active.
  returned: when O(state=rolled_back)
  type: str
  sample: r1-awq-2
to:
  description: The release that is active now, or would be in check mode. The same as RV(from) when nothing was done.
  returned: when O(state=rolled_back)
  type: str
  sample: r1-awq-1
removed:
  description: What was removed, in this order, or would be in check mode.
  returned: when O(state=pruned)
  type: list
  elements: dict
  contains:
    kind:
      description: V(release), V(partial) for a directory that was not finished, or V(leftover) for what a killed run had put away already.
      type: str
    id:
      description: Name of the release.
      type: str
    path:
      description: The directory.
      type: str
    bytes:
      description: Size of its files in bytes.
      type: int
    freed_bytes:
      description: What its removal frees after those before it in the list, in bytes. A file that another release has too frees nothing.
      type: int
freed_bytes:
  description: What all of RV(removed) frees together, in bytes.
  returned: when O(state=pruned)
  type: int
  sample: 364000000000
"""

import os
import pwd
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _model_release as releases

_BOUND = ("weights_root", "engine", "engine_version", "plan_id")


def _account() -> str:
    """Who runs this, with the name from before sudo."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Meet the wish and report."""
    wanted = module.params
    wish = releases.Wish(
        root=wanted["root"],
        state=wanted["state"],
        id=wanted["id"] or "",
        binding=releases.binding(wanted) if wanted["state"] == "staged" else None,
        source=wanted["source"] or "",
        finish=wanted["finish"],
        link=wanted["link_from"] == "identical",
        bytes=wanted["bytes"],
        margin=wanted["margin_bytes"],
        stager_pid=wanted["stager_pid"],
        force=wanted["force"],
        soak=wanted["soak_seconds"],
        keep=wanted["keep"],
        partial_hours=wanted["partial_hours"],
        by=" ".join((wanted["by"] or _account()).split()),
        reason=" ".join((wanted["reason"] or "").split()),
        lock_seconds=wanted["lock_seconds"],
    )
    outcome = releases.Releases(wish, check=module.check_mode).run()
    for text in outcome.warnings:
        module.warn(text)
    diff = {
        "before": outcome.before,
        "after": outcome.after,
        "before_header": wanted["root"],
        "after_header": wanted["root"],
    }
    return {"changed": outcome.changed, "diff": diff, **outcome.result}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "default": "/srv/models"},
            "state": {"type": "str", "choices": list(releases.STATES), "required": True},
            "id": {"type": "str"},
            "weights_root": {"type": "str"},
            "engine": {"type": "str"},
            "engine_version": {"type": "str"},
            "image_digest": {"type": "str"},
            "configuration": {"type": "dict", "default": {}},
            "plan_id": {"type": "str"},
            "files": {"type": "dict"},
            "link_from": {"type": "str", "choices": ["none", "identical"], "default": "none"},
            "source": {"type": "path"},
            "finish": {"type": "bool", "default": True},
            "bytes": {"type": "int", "default": 0},
            "margin_bytes": {"type": "int", "default": 10737418240},
            "stager_pid": {"type": "int", "default": 0},
            "force": {"type": "bool", "default": False},
            "soak_seconds": {"type": "int", "default": 0},
            "keep": {"type": "int", "default": 3},
            "partial_hours": {"type": "int", "default": 24},
            "by": {"type": "str"},
            "reason": {"type": "str"},
            "lock_seconds": {"type": "int", "default": 60},
        },
        required_if=[
            ("state", "staged", ["id", *_BOUND]),
            ("state", "activated", ["id"]),
            ("state", "good", ["id"]),
            ("state", "bad", ["id", "reason"]),
        ],
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except (releases.ReleaseError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
