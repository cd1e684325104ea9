#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: burn_in_job
short_description: Start the burn-in of a host, join the one that runs, or stop it
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - With V(started), a host whose result is valid is left alone, a burn-in that already runs is joined, and otherwise a new one is started.
  - The job runs on the host as the unit C(gpufleet-burn-in.service); it does not need whoever started it.
  - Refuses to load the GPUs while a service of O(conflicting_units) runs, and when the disk test has no room.
options:
  state:
    description: V(started) sees to a valid result, V(stopped) stops a job that runs.
    type: str
    choices: [started, stopped]
    default: started
  config:
    description: What is wanted, see M(gpufleet.deepseek.burn_in_info). Required for V(started).
    type: dict
  directory:
    description: Where status and result lie on the host.
    type: path
    default: /var/lib/gpufleet/burn_in
  simulation:
    description: Where hosts of the lab keep their simulated GPUs.
    type: path
    default: /var/lib/gpufleet/simulated
  force:
    description: Start a new job although the result is valid.
    type: bool
    default: false
  conflicting_units:
    description: Units that use the GPUs; while one of them is active no job is started.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.no_diff
seealso:
  - module: gpufleet.deepseek.burn_in_wait
"""

EXAMPLES = r"""
- name: Stop the burn-in
  gpufleet.deepseek.burn_in_job:
    state: stopped
"""

RETURN = r"""
action:
  description: What was done, V(start), V(join), V(stop), or V(none).
  returned: success
  type: str
  sample: join
job:
  description: Name of the job that was started, joined or stopped, or of the one whose result is valid.
  returned: success
  type: str
  sample: 20261129T010000Z-4711
reasons:
  description: Why a new job is needed.
  returned: success
  type: list
  elements: str
  sample: [no burn-in has run to its end on this host]
"""

import os
import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in_job as jobs
from ansible_collections.gpufleet.deepseek.plugins.module_utils._burn_in import assess, fingerprint
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware import gather
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import ModuleRunner, Reader

FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def find(tool: str) -> str | None:
    """The path of a tool, or None."""
    return shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", ""), *FOLDERS)))


def _started(module: AnsibleModule, run: jobs.Run, job: jobs.Job) -> dict[str, t.Any]:
    wanted = module.params
    if job.state == "running":
        return {"changed": False, "action": "join", "job": jobs.name_of_running(wanted["directory"]), "reasons": []}
    result = jobs.read_json(f"{wanted['directory']}/result.json")
    reasons = ["burn_in_force is set"] if wanted["force"] else []
    if not reasons:
        now = None
        if result is not None:
            reader = Reader("", wanted["simulation"], ModuleRunner(module.run_command, find), 30.0)
            now = fingerprint(gather(reader, ["gpu", "network", "rdma", "storage"]))
        answer = assess(result, wanted["config"], now)
        if answer["valid"]:
            return {"changed": False, "action": "none", "job": (result or {}).get("job", ""), "reasons": []}
        reasons = answer["reasons"]
    busy = jobs.busy_units(run, wanted["conflicting_units"])
    if busy:
        raise jobs.JobError(
            f"a burn-in is needed ({reasons[0]}) and would load the GPUs that {', '.join(busy)} uses (burn_in_conflicting_units): "
            "expected it to be stopped on a drained host, found it running"
        )
    disk = wanted["config"]["tests"].get("fio")
    if disk:
        problem = jobs.room_problem(disk["params"]["directory"], jobs.parse_size(str(disk["params"]["size"])))
        if problem:
            raise jobs.JobError(problem)
    name = "" if module.check_mode else jobs.start(run, wanted["directory"])
    return {"changed": True, "action": "start", "job": name, "reasons": reasons}


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Bring the job into its state and say what that took."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C.UTF-8"}))

    job = jobs.job_of(module.params["directory"])
    if module.params["state"] == "started":
        return _started(module, run, job)
    if job.state != "running":
        return {"changed": False, "action": "none", "job": job.job, "reasons": []}
    if not module.check_mode:
        jobs.stop(run, module.params["directory"])
    return {"changed": True, "action": "stop", "job": job.job, "reasons": []}


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "stopped"], "default": "started"},
            "config": {"type": "dict"},
            "directory": {"type": "path", "default": "/var/lib/gpufleet/burn_in"},
            "simulation": {"type": "path", "default": "/var/lib/gpufleet/simulated"},
            "force": {"type": "bool", "default": False},
            "conflicting_units": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "started", ["config"])],
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except jobs.JobError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(failed=False, **result)


if __name__ == "__main__":
    main()
