#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: load_test_wait
short_description: Show how a load test does, line by line, until it ends
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Prints the lines of a run that role C(load_test) started, with the host's name before them, and returns its verdict.
  - A verdict of C(failed) is no failure of this module; a run that sent nothing, or that was ended from outside, is.
  - Watching keeps the run alive. When nobody watches for C(load_test_lease_seconds), the run ends by itself.
options:
  directory:
    description: Where status and runs lie on the host.
    type: path
    default: /var/lib/gpufleet/load_test
  program:
    description: The program on the host that tells the status.
    type: path
    default: /usr/local/lib/gpufleet/load_test/gpufleet_load_test.py
  unit:
    description: The unit that runs the test.
    type: str
    default: gpufleet-load-test@watched.service
  not_job:
    description: Name of the run before, whose status may still be there.
    type: str
    default: ""
  timeout:
    description: Seconds after which to stop waiting. The run ends by itself soon after.
    type: int
    default: 3600
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
attributes:
  action:
    description: Has a corresponding action plugin, so parts of it run on the controller.
    support: full
seealso:
  - module: gpufleet.deepseek.load_test_info
"""

EXAMPLES = r"""
- name: Watch the load test to its end
  gpufleet.deepseek.load_test_wait:
    timeout: 900
"""

RETURN = r"""
state:
  description: State of the run at the end, V(done) or V(failed). V(running) in check mode.
  returned: success
  type: str
  sample: done
verdict:
  description: C(state) (passed, failed or aborted), C(reasons), C(warnings), C(losses), C(run), C(url), C(folder) on the host, and a table.
  returned: success
  type: dict
  sample: {state: passed, reasons: [], run: 20261129T220026Z}
lines:
  description: The lines that were shown.
  returned: success
  type: list
  elements: str
  sample: ["4 users: 1.20 answers/s, 38.1 tokens/s, first text p99 410 ms, 0 errors, 0 rejected"]
"""
