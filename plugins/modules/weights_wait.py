#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: weights_wait
short_description: Show how far a job on weights is, line by line, until it ends
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Prints the lines of a job of M(gpufleet.deepseek.weights_job) with the host's name before them, with share, speed and number of peers.
  - Fails with the last words of a job that failed.
  - Only watches. When it is interrupted, the job goes on; when it is run again, it goes on watching.
  - A connection that breaks is tried again for a minute.
options:
  job:
    description: Name of the job.
    type: str
    required: true
  kind:
    description: Its kind.
    type: str
    choices: [fill, publish, seed]
    default: fill
  state_dir:
    description: Where its status lies on the host.
    type: path
    default: /var/lib/gpufleet/model_store
  program:
    description: The program on the host that tells the status.
    type: path
    default: /usr/local/lib/gpufleet/model_store/gpufleet_weights.py
  timeout:
    description: Seconds after which to stop waiting. The job goes on.
    type: int
    default: 86400
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
attributes:
  action:
    description: Has a corresponding action plugin, so parts of it run on the controller.
    support: full
"""

EXAMPLES = r"""
- name: Watch the set arrive
  gpufleet.deepseek.weights_wait:
    job: "{{ started.job }}"
"""

RETURN = r"""
state:
  description: State of the job at the end, V(done) or V(failed). V(running) in check mode.
  returned: success
  type: str
  sample: done
root:
  description: Root of the set.
  returned: success
  type: str
  sample: fe385c3fc4e7484695452c1062f5a04278c3421a8344f648c0fedd687a014d1b
result:
  description: Figures of the job, such as C(linked_files), C(repaired_pieces) and C(sent_bytes).
  returned: success
  type: dict
  sample: {linked_files: 0}
lines:
  description: The lines that were shown.
  returned: success
  type: list
  elements: str
  sample: ["swarm: 42 %, 289.30 of 688.59 GB, 412 MiB/s, 7 peers"]
"""
