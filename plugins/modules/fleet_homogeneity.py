#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_homogeneity
short_description: Find out whether servers are the same, and which are not
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Compares the hardware facts of all hosts of a group by the rules of a standard. A rule says for one fact whether hosts must agree with the
    majority, have a certain value, keep a limit, or must not have something, and whether a host that does not blocks or is warned about.
  - Each finding names host, fact, value, how many hosts have which other value, and what to do about it. Values that are equally common are
    named as a tie. A host without facts is a finding.
  - Runs on the controller, once, for all hosts; it never connects to one. The facts are those that M(gpufleet.deepseek.hardware_info) returned.
  - Can write the values of a fleet into a golden file, and compare with such a file later, which shows what has drifted.
options:
  hosts:
    description: Inventory names of the hosts to compare. All hosts of the play by default, those that failed included.
    type: list
    elements: str
  facts:
    description:
      - Name of the host variable that holds what M(gpufleet.deepseek.hardware_info) returned as C(hardware).
      - Or a mapping of hosts to these structures.
    type: raw
    default: fleet_hardware
  group_by:
    description:
      - Variables whose values make a group. Hosts are compared with hosts of their own group only. A host without the variable counts as C(default).
      - Add V(group_names) to compare within equal sets of inventory groups.
    type: list
    elements: str
    default: [fleet_region]
  standard:
    description:
      - Name of a shipped standard, V(a100_80gb_8) or V(minimal), or the path of a file on the controller.
      - A path has a slash or a dot in it; a relative one is taken from the playbook's directory.
    type: str
    default: a100_80gb_8
  rules:
    description:
      - Rules in addition to the standard's. A rule for a path that the standard has changes the keys it names and keeps the others.
      - Keys are C(path), C(severity) (V(block), V(warn), V(info), or V(off) to take the rule away), C(compare) (V(majority), V(golden),
        V(minimum), V(maximum), V(tolerance), V(forbidden)), C(value), C(tolerance) in percent with C(center) V(majority) or V(median), C(patterns)
        and C(extra_patterns) (regular expressions, each text or a mapping of C(pattern) and C(why)), C(uniform) (all elements within a host must be
        equal), C(optional) (a value that cannot be read is no finding), C(title), C(unit), C(remedy), C(source).
      - 'A path is names with dots between them: C(gpu.count). C(gpus[].vbios) is each element''s value, C(sysctl["vm.swappiness"]) a name with dots.'
    type: list
    elements: dict
    default: []
  golden:
    description:
      - Path of a golden file on the controller. Rules that compare with the majority compare with its values instead.
      - Mutually exclusive with O(write_golden).
    type: str
    default: ""
  write_golden:
    description:
      - Path on the controller of a golden file to write from this fleet's majority values. It is not written when the task fails, for a fleet that
        is not in order is no example.
    type: str
    default: ""
  fail_on:
    description: The verdict that makes the task fail.
    type: str
    choices: [block, warn, never]
    default: block
  report_html:
    description: Path on the controller of a report for people, one HTML file. Reports are written when the task fails, too.
    type: str
    default: ""
  report_json:
    description: Path on the controller of a report for programs, with every finding of every host.
    type: str
    default: ""
  report_junit:
    description:
      - Path on the controller of a JUnit XML report, a test case for each host and rule. Of fleets with more than 200,000 of these, hosts without a
        finding have one test case for all rules.
    type: str
    default: ""
  allow_simulated:
    description: Accept hosts whose GPUs are simulated. Otherwise each of them is blocked.
    type: bool
    default: false
  show:
    description: Show what differs as a table on the screen.
    type: bool
    default: true
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
attributes:
  action:
    description: Has a corresponding action plugin, so it runs on the controller.
    support: full
  check_mode:
    details:
      - Compares in full; files on the controller are not written.
  diff_mode:
    details:
      - Shows what changes in a golden file; reports have no diff.
notes:
  - Reports are output, as a log is. They do not count as a change, and one that cannot be written is a warning.
seealso:
  - module: gpufleet.deepseek.hardware_info
"""

EXAMPLES = r"""
- name: Stop unless the hosts of each region are the same
  gpufleet.deepseek.fleet_homogeneity:
    standard: a100_80gb_8
    report_html: reports/homogeneity.html
    report_junit: reports/homogeneity.xml
  run_once: true

- name: Compare with hosts of four GPUs, and do not care about the BMC
  gpufleet.deepseek.fleet_homogeneity:
    rules:
      - path: gpu.count
        value: 4
      - path: board.bmc_version
        severity: "off"
      - path: sysctl["vm.swappiness"]
        severity: warn
        compare: golden
        value: "10"
        title: Swappiness
  run_once: true

- name: Write down what the fleet is today
  gpufleet.deepseek.fleet_homogeneity:
    write_golden: golden/fleet.yml
  run_once: true

- name: See what has drifted since
  gpufleet.deepseek.fleet_homogeneity:
    golden: golden/fleet.yml
    fail_on: warn
  run_once: true
"""

RETURN = r"""
msg:
  description: The worst findings, a line each, naming host, fact, value, majority and remedy; at most 20 lines.
  returned: always
  type: str
  sample: >-
    4 hosts compared by standard a100_80gb_8: 1 blocked, 0 with warnings, 3 without: block: gpu2: VBIOS (gpus[].vbios) is 92.00.36.00.02,
    92.00.45.00.05 on 0000:47:00.0; 3 of 4 hosts have 92.00.45.00.05. Flash the VBIOS that the other hosts have, with the server vendor's tool.
verdict:
  description: The worst verdict of a host.
  returned: when the hosts could be compared
  type: str
  sample: block
hosts:
  description:
    - Verdict, group and findings of each host. A finding is a mapping with C(severity), C(path), C(title), C(kind), C(value), C(where),
      C(hosts_with_value), C(hosts_compared), C(expected), C(message) and C(remedy).
    - When the task fails, only the 20 worst hosts, with findings as sentences, because Ansible prints the result of a failed task on the screen;
      RV(hosts_left_out) is how many more there are. The JSON report has them all.
  returned: when the hosts could be compared
  type: dict
  sample: {gpu1: {verdict: pass, group: eu, findings: []}}
hosts_left_out:
  description: Hosts with findings that are not in RV(hosts).
  returned: when the task fails because of findings
  type: int
  sample: 0
facts:
  description: What differs, fact by fact, with the values and how many hosts have each. When the task fails, the paths of the first 20.
  returned: when the hosts could be compared
  type: list
  elements: raw
  sample: []
groups:
  description: Size and verdicts of each group.
  returned: when the hosts could be compared
  type: dict
  sample: {eu: {hosts: 4, verdict: block, hosts_pass: 3, hosts_warn: 0, hosts_block: 1}}
counts:
  description: Hosts by verdict, findings by severity, rules, groups, facts that differ.
  returned: when the hosts could be compared
  type: dict
  sample: {hosts: 4, groups: 1, rules: 115, hosts_pass: 3, hosts_warn: 0, hosts_block: 1, findings_block: 1, findings_warn: 0, findings_info: 0,
    facts_that_differ: 1}
notes:
  description: What is no finding and good to know.
  returned: when the hosts could be compared
  type: list
  elements: str
  sample: []
"""
