# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A comparison of hosts as JUnit XML, which every CI server shows. PRIVATE to the collection.

A suite for each group, in it a test case for each host and rule. A finding that makes the run fail is a ``failure``, one that does not is text
(``system-out``) of a case that passed, a value that may be missing and is missing is not told apart from one that is as it should be. There is no date
and no time in it: equal fleets make equal files.
"""

from __future__ import annotations

import re
import typing as t
from xml.sax.saxutils import escape, quoteattr

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity import PSEUDO_RULES, Comparison
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_text import host_findings

# More cases than this, and hosts without a finding have one case for all rules: no CI server opens a file of a million cases.
MOST_CASES = 200_000

# What XML 1.0 cannot carry, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _text(value: object) -> str:
    return escape(_NOT_XML.sub("\ufffd", str(value)))


def _attribute(value: object) -> str:
    return quoteattr(_NOT_XML.sub("\ufffd", str(value)))


def junit(result: Comparison, fail_on: str = "block") -> str:
    """The document.

    :arg fail_on: ``warn`` makes warnings failures too; what blocks is always one.
    """
    failing = {"block", "warn"} if fail_on == "warn" else {"block"}
    findings = host_findings(result)
    rules = [*PSEUDO_RULES, *result.standard.rules]
    short = len(rules) * len(result.verdicts) > MOST_CASES
    suites: list[str] = []
    totals = [0, 0]
    for group, hosts in result.groups.items():
        cases: list[str] = []
        failures = skipped = 0
        for host in hosts:
            mine: dict[str, list[dict[str, t.Any]]] = {}
            for one in findings.get(host, []):
                mine.setdefault(one["path"], []).append(one)
            if short and not mine:
                cases.append(f'<testcase classname={_attribute(host)} name="all rules"/>')
                continue
            unread = any(one["kind"] in ("no_facts", "schema") for one in findings.get(host, ()))
            for rule in rules:
                head = f"<testcase classname={_attribute(host)} name={_attribute(rule.name)}"
                if rule.path not in mine and unread and rule not in PSEUDO_RULES:
                    skipped += 1
                    cases.append(f'{head}><skipped message="the host has no facts that can be compared"/></testcase>')
                    continue
                if rule.path not in mine:
                    cases.append(head + "/>")
                    continue
                inside = []
                bad = [one for one in mine[rule.path] if one["severity"] in failing]
                soft = [one for one in mine[rule.path] if one["severity"] not in failing]
                if bad:
                    failures += 1
                    body = "\n".join(f"{one['message']}\n{one['remedy']}".strip() for one in bad)
                    inside.append(
                        f"<failure message={_attribute(bad[0]['message'])} type={_attribute(bad[0]['severity'])}>{_text(body)}</failure>"
                    )
                if soft:
                    body = "\n".join(f"{one['severity']}: {one['message']}. {one['remedy']}".strip() for one in soft)
                    inside.append(f"<system-out>{_text(body)}</system-out>")
                cases.append(f"{head}>{''.join(inside)}</testcase>")
        totals[0] += len(cases)
        totals[1] += failures
        suites.append(
            f'<testsuite name={_attribute(group)} tests="{len(cases)}" failures="{failures}" errors="0" skipped="{skipped}">\n'
            + "\n".join(cases)
            + "\n</testsuite>"
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<testsuites name={_attribute("fleet homogeneity: " + result.standard.name)} tests="{totals[0]}" failures="{totals[1]}" errors="0">\n'
        + "\n".join(suites)
        + "\n</testsuites>\n"
    )
