#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: burn_in_report
short_description: Keep the burn-ins of all hosts on the controller, and show them on a page
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Writes a file C(HOST.json) for each host of O(hosts) into O(directory), and a page of all files that lie there, so the page has hosts of
    earlier runs and other batches, too.
  - Runs on the controller; it never connects to a host.
options:
  directory:
    description: Directory on the controller.
    type: path
    required: true
  page:
    description: The page. Empty writes none.
    type: str
    default: ""
  hosts:
    description: What M(gpufleet.deepseek.burn_in_info) returned, by host.
    type: dict
    default: {}
  show:
    description: Whether to show a table of O(hosts), too.
    type: bool
    default: true
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.no_diff
attributes:
  action:
    description: Has a corresponding action plugin, so it runs on the controller.
    support: full
"""

EXAMPLES = r"""
- name: Keep what was found
  gpufleet.deepseek.burn_in_report:
    directory: reports/burn_in
    page: reports/burn_in.html
    hosts:
      gpu1: "{{ hostvars['gpu1'].burn_in }}"
  run_once: true
"""

RETURN = r"""
reports:
  description: Files that were written or were up to date.
  returned: success
  type: list
  elements: str
  sample: [reports/burn_in/gpu1.json, reports/burn_in.html]
"""
