#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_report
short_description: Show a table that people like to read
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Prints a table in the middle of a play's output, on a terminal as in AWX.
  - Runs on the controller; it never connects to a host.
options:
  title:
    description: The line above the table.
    type: str
    required: true
  columns:
    description: The headings.
    type: list
    elements: str
    required: true
  rows:
    description: The rows, each a list with one cell a column.
    type: list
    elements: list
    required: true
  notes:
    description: Lines below the table.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
attributes:
  action:
    description: Has a corresponding action plugin, so it runs on the controller.
    support: full
"""

EXAMPLES = r"""
- name: Say which host is where
  gpufleet.deepseek.fleet_report:
    title: Hosts
    columns: [host, address]
    rows:
      - [gpu1, 192.0.2.21]
      - [gpu2, 192.0.2.22]
  run_once: true
"""

RETURN = r"""
table:
  description: The lines of the table.
  returned: always
  type: list
  elements: str
  sample: ["  host  address", "  ----  ----------", "  gpu1  192.0.2.21"]
"""
