# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""What a comparison of hosts says: sentences, a table for the screen, data for JSON."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity import Comparison, Difference
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_values import clean, name_list, shown
from ansible_collections.gpufleet.deepseek.plugins.module_utils._table import render_table

MOST_LINES = 20
_MOST_ROWS = 40
_WIDEST = 44


def host_findings(result: Comparison) -> dict[str, list[dict[str, t.Any]]]:
    """The findings of each host that has one, the worst first."""
    found: dict[str, list[dict[str, t.Any]]] = {}
    for one in result.differences:
        for host in one.hosts:
            where = result.where(one, host)
            found.setdefault(host, []).append(
                {
                    "severity": one.severity,
                    "path": one.rule.path,
                    "title": one.rule.title,
                    "kind": one.kind,
                    "value": one.value,
                    "shown": one.shown,
                    "where": where,
                    "hosts_with_value": one.share,
                    "hosts_compared": one.total,
                    "expected": one.expectation,
                    "message": f"{host}: {one.sentence(where)}",
                    "remedy": one.remedy,
                }
            )
    return found


def host_results(result: Comparison, only: t.Collection[str] | None = None) -> dict[str, dict[str, t.Any]]:
    """Verdict, group and findings of each host.

    :arg only: names of the hosts that are wanted; all of them by default.
    """
    findings = host_findings(result)
    return {
        host: {"verdict": result.verdicts[host], "group": group, "findings": findings.get(host, [])}
        for group, hosts in result.groups.items()
        for host in hosts
        if only is None or host in only
    }


def fact_results(result: Comparison) -> list[dict[str, t.Any]]:
    """What differs, fact by fact."""
    return [
        {
            "path": fact.rule.path,
            "title": fact.rule.title,
            "severity": fact.rule.severity,
            "compare": fact.rule.compare,
            "group": fact.group,
            "unit": fact.rule.unit,
            "expected": fact.expected,
            "majority": fact.majority,
            "hosts_with_majority": fact.majority_share,
            "hosts_compared": fact.total,
            "hosts_unreadable": len(fact.unreadable),
            "values": [{"value": text, "hosts": count} for text, count in fact.values],
        }
        for fact in result.facts
    ]


def group_results(result: Comparison) -> dict[str, dict[str, t.Any]]:
    """Size and verdicts of each group."""
    found: dict[str, dict[str, t.Any]] = {}
    for group, hosts in result.groups.items():
        verdicts = [result.verdicts[host] for host in hosts]
        found[group] = {
            "hosts": len(hosts),
            "verdict": "block" if "block" in verdicts else "warn" if "warn" in verdicts else "pass",
            **{f"hosts_{word}": verdicts.count(word) for word in ("pass", "warn", "block")},
        }
    return found


def document(result: Comparison) -> dict[str, t.Any]:
    """The whole comparison as data, for JSON. It holds no date: equal fleets make equal documents."""
    return {
        "schema": 1,
        "standard": result.standard.name,
        "verdict": result.verdict,
        "simulated": result.simulated,
        "counts": result.counts(),
        "notes": result.notes,
        "groups": group_results(result),
        "facts": fact_results(result),
        "hosts": host_results(result),
    }


def joined_differences(result: Comparison) -> list[tuple[Difference, list[Difference]]]:
    """Findings for people: those that only say that a host's facts could not be read for one reason are one."""
    joined: list[tuple[Difference, list[Difference]]] = []
    place: dict[tuple[t.Any, ...], list[Difference]] = {}
    for one in result.differences:
        if one.kind == "unreadable":
            key = (one.group, one.severity, one.expectation, tuple(one.hosts))
            if key in place:
                place[key].append(one)
                continue
            place[key] = []
            joined.append((one, place[key]))
        else:
            joined.append((one, []))
    return joined


def finding_lines(result: Comparison) -> list[tuple[str, str, str]]:
    """Severity, sentence and remedy of each finding, the worst first; hosts that share a value share a sentence."""
    lines = []
    several = len(result.groups) > 1
    for one, more in joined_differences(result):
        hosts = name_list(one.hosts, 4)
        where = result.where(one, one.hosts[0]) if len(one.hosts) == 1 else ""
        sentence = one.sentence(where)
        if more:
            titles = name_list([each.rule.title for each in [one, *more]], 3)
            sentence = f"{len(more) + 1} facts {one.expectation} ({titles})"
        lines.append((one.severity, f"{hosts}{f' [{one.group}]' if several else ''}: {sentence}", one.remedy))
    return lines


def message(result: Comparison, report: str = "") -> str:
    """The outcome in a few lines: the worst findings with their remedies.

    :arg report: path of a report that says more.
    """
    counts = result.counts()
    head = (
        f"{counts['hosts']} host{'s' if counts['hosts'] != 1 else ''} compared by standard {result.standard.name}: "
        f"{counts['hosts_block']} blocked, {counts['hosts_warn']} with warnings, {counts['hosts_pass']} without"
    )
    lines = [
        f"{severity}: {sentence}{'. ' + remedy if remedy else ''}"
        for severity, sentence, remedy in finding_lines(result)
        if severity != "info"
    ]
    left = len(lines) - MOST_LINES
    text = "\n  - ".join([head + (":" if lines else ""), *lines[:MOST_LINES]])
    if left > 0:
        text += f"\n  and {left} more, see {report or 'a report (report_html, report_json)'}"
    return text


def clip(text: str, width: int = _WIDEST) -> str:
    """A text that is not too wide for a table; what is left out is in the middle."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def table(result: Comparison) -> list[str]:
    """What differs, as a table for the screen."""
    several = len(result.groups) > 1
    columns = ["", *(["group"] if several else []), "host", "fact", "value", "expected", "hosts"]
    rows = []
    joined = joined_differences(result)
    for one, more in joined[:_MOST_ROWS]:
        where = result.where(one, one.hosts[0]) if len(one.hosts) == 1 else ""
        value = one.expectation if one.whole else one.found(where)
        rows.append(
            [
                one.severity,
                *([one.group] if several else []),
                name_list(one.hosts, 2),
                clip(f"{one.rule.path}" + (f" and {len(more)} more" if more else "")),
                clip(value),
                clip(one.expected),
                f"{one.share} of {max(one.total, one.share)}",
            ]
        )
    lines = render_table(columns, [[clean(cell) for cell in row] for row in rows]) if rows else ["  nothing differs"]
    if len(joined) > _MOST_ROWS:
        lines.append(f"  and {len(joined) - _MOST_ROWS} more")
    return lines + [f"  note: {shown(note)}" for note in result.notes]
