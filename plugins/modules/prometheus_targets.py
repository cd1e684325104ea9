#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: prometheus_targets
short_description: Wait until every target of a Prometheus server is up
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Asks a Prometheus server for its active targets until each is up and each job has the expected number of them, or the time is over.
options:
  url:
    description: Base URL of the server.
    type: str
    required: true
  url_username:
    description: User for basic authentication.
    type: str
    default: ""
  url_password:
    description: Password for basic authentication.
    type: str
    default: ""
  validate_certs:
    description: Whether the certificate of the server is verified.
    type: bool
    default: true
  ca_pem:
    description: Certificates to trust, in PEM form. Empty for the system's trust store.
    type: str
    default: ""
  expected:
    description: Number of targets by job.
    type: dict
    default: {}
  timeout:
    description: Seconds to wait.
    type: int
    default: 60
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
"""

EXAMPLES = r"""
- name: Wait for all targets
  gpufleet.deepseek.prometheus_targets:
    url: http://127.0.0.1:9090
    expected: {node: 4, engine: 2}
"""

RETURN = r"""
problems:
  description: A sentence for each target that is not up, and each job that has not the expected number of them.
  returned: always
  type: list
  elements: str
  sample: []
summary:
  description: All of it in one line for people.
  returned: when the server answered
  type: str
  sample: 9 of 9 targets up (engine 2, gateway 1, node 4, prometheus 1)
total:
  description: Number of active targets.
  returned: when the server answered
  type: int
  sample: 9
up:
  description: Number of targets that are up.
  returned: when the server answered
  type: int
  sample: 9
jobs:
  description: Number of targets by job.
  returned: when the server answered
  type: dict
  sample: {engine: 2}
"""

import time
from pathlib import Path
from urllib.error import URLError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.gpufleet.deepseek.plugins.module_utils._prometheus_targets import Targets, judge_targets


def main() -> None:
    """Ask until all is well or the time is over."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "url_username": {"type": "str", "default": ""},
            "url_password": {"type": "str", "default": "", "no_log": True},
            "validate_certs": {"type": "bool", "default": True},
            "ca_pem": {"type": "str", "default": ""},
            "expected": {"type": "dict", "default": {}},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    expected = {job: int(count) for job, count in p["expected"].items()}
    ca_path = None
    if p["ca_pem"]:
        ca_path = str(Path(module.tmpdir) / "ca.pem")
        Path(ca_path).write_text(p["ca_pem"], encoding="utf-8")
    deadline = time.monotonic() + p["timeout"]
    while True:
        targets, error = Targets(), ""
        try:
            answer = open_url(
                p["url"].rstrip("/") + "/api/v1/targets?state=active",
                url_username=p["url_username"] or None,
                url_password=p["url_password"] or None,
                force_basic_auth=bool(p["url_username"]),
                validate_certs=p["validate_certs"],
                ca_path=ca_path,
                timeout=10,
            )
            targets = judge_targets(answer.read().decode(), expected)
        except (URLError, OSError, ValueError) as exc:
            error = f"{p['url']}: {exc}"
        if not error and not targets.problems:
            module.exit_json(changed=False, failed=False, summary=targets.summary(), **vars(targets))
        if time.monotonic() >= deadline:
            break
        time.sleep(1)
    problems = [error] if error else targets.problems
    result = {} if error else {**vars(targets), "summary": targets.summary()}
    result["problems"] = problems
    module.fail_json(msg=f"after {p['timeout']} s: " + "; ".join(problems), failed=True, **result)


if __name__ == "__main__":
    main()
