#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: burn_in_wait
short_description: Show what a burn-in does, line by line, until it ends
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Prints a line for each thing that happens in the job of M(gpufleet.deepseek.burn_in_job), with the host's name before it.
  - Only watches. When it is interrupted, the job goes on; when it is run again, it goes on watching.
  - A connection that breaks is tried again for a minute.
options:
  job:
    description: Name of the job.
    type: str
    required: true
  directory:
    description: Where its status lies on the host.
    type: path
    default: /var/lib/gpufleet/burn_in
  program:
    description: The program on the host that tells the status.
    type: path
    default: /usr/local/lib/gpufleet/burn_in/gpufleet_burn_in.py
  timeout:
    description: Seconds after which to stop waiting. The job goes on.
    type: int
    default: 14400
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
attributes:
  action:
    description: Has a corresponding action plugin, so parts of it run on the controller.
    support: full
"""

EXAMPLES = r"""
- name: Watch the burn-in
  gpufleet.deepseek.burn_in_wait:
    job: "{{ started.job }}"
"""

RETURN = r"""
state:
  description: State of the job at the end, V(done), V(cancelled), V(failed) or V(interrupted). V(running) in check mode.
  returned: success
  type: str
  sample: done
verdict:
  description: Verdict of the job at its end.
  returned: success
  type: str
  sample: pass
lines:
  description: The lines that were shown.
  returned: success
  type: list
  elements: str
  sample: ["5/8, 12 min 04 s: memory: passed"]
"""
