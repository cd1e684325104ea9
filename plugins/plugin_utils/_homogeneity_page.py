# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A comparison of hosts as a page for people. PRIVATE to the collection.

What differs is on it, and nothing else: for each group a matrix of hosts and facts where hosts with the same findings share a row, so that the
page of ten thousand hosts is as readable as that of ten.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity import PSEUDO_RULES, Comparison, Difference
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_text import clip, joined_differences
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_values import name_list
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._page import cards, escape, page, tag

_MOST_FINDINGS = 200
_MOST_ROWS = 120
_MOST_COLUMNS = 48

_KIND = {"block": "bad", "warn": "warn", "info": "info", "pass": "ok"}
_SIGN = {"block": "✖", "warn": "▲", "info": "●"}
_WORD = {"block": "blocked", "warn": "with warnings", "pass": "in order"}

_WHOLE = {rule.path for rule in PSEUDO_RULES}

_STYLE = """
main { max-width: 1720px; }
.matrix th, .matrix td { padding: 5px 10px; border-right: 1px solid var(--line); } .matrix th:last-child, .matrix td:last-child { border-right: 0; }
.matrix thead th { min-width: 122px; max-width: 190px; vertical-align: bottom; overflow-wrap: anywhere; }
.matrix thead th code { display: block; font-size: 11px; font-weight: 400; }
.matrix th:first-child { position: sticky; left: 0; z-index: 1; min-width: 150px; max-width: 300px; background: var(--panel); }
.matrix tbody th { color: var(--ink); font-size: 14px; overflow-wrap: anywhere; }
.matrix td { max-width: 190px; overflow-wrap: anywhere; font-size: 13px; }
.matrix tr.expected th, .matrix tr.expected td { background: var(--panel); border-bottom: 2px solid var(--line); }
.matrix td.same { color: var(--soft); text-align: center; } .matrix td b { margin-right: 4px; }
.count { color: var(--soft); font-size: 12px; font-weight: 400; display: block; }
.findings td { font-size: 14px; } .findings td:nth-child(2) { min-width: 110px; max-width: 240px; overflow-wrap: anywhere; }
.findings td:nth-child(3) { min-width: 150px; max-width: 230px; overflow-wrap: anywhere; }
.findings td:nth-child(4), .findings td:nth-child(5) { min-width: 200px; max-width: 420px; overflow-wrap: anywhere; }
.findings td small { display: block; color: var(--soft); }
"""


def homogeneity_page(result: Comparison) -> str:
    """The document."""
    counts = result.counts()
    shares = [f"{counts[f'hosts_{word}']} {text}" for word, text in _WORD.items() if counts[f"hosts_{word}"]]
    body = [
        f"<p>{tag(result.verdict, _KIND[result.verdict])} {counts['hosts']} hosts in {counts['groups']} "
        f"{'groups' if counts['groups'] > 1 else 'group'}: {escape(', '.join(shares))}. "
        f"Standard <code>{escape(result.standard.name)}</code>: {escape(result.standard.description)}</p>",
        cards(
            [
                (str(counts["hosts"]), "hosts"),
                (str(counts["hosts_block"]), "blocked ✖"),
                (str(counts["hosts_warn"]), "with warnings ▲"),
                (str(counts["hosts_pass"]), "in order ✓"),
                (str(counts["rules"]), "facts compared"),
                (str(counts["facts_that_differ"]), "facts that differ"),
            ]
        ),
    ]
    if result.notes:
        body.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in result.notes) + "</ul>")
    body.append(_findings(result))
    body += [_group(result, group, hosts) for group, hosts in result.groups.items()]
    footer = f"gpufleet.deepseek.fleet_homogeneity, standard {result.standard.name}. Sources of its limits: {result.standard.source}"
    text = "\n".join(body).encode("utf-8", "replace").decode("utf-8")
    return page("Are these hosts the same?", text, simulated=result.simulated, footer=footer, style=_STYLE)


def _findings(result: Comparison) -> str:
    """What was found, the worst first, with what to do."""
    joined = joined_differences(result)
    if not joined:
        return "<h2>Findings</h2><p>None: no host stands out.</p>"
    several = len(result.groups) > 1
    rows = []
    for one, more in joined[:_MOST_FINDINGS]:
        where = result.where(one, one.hosts[0]) if len(one.hosts) == 1 else ""
        fact = f"{escape(one.rule.title)}<small><code>{escape(one.rule.path)}</code></small>"
        found = escape(one.expectation if one.whole else one.found(where))
        expected = "" if one.whole or one.kind == "unreadable" else escape(one.expectation)
        if more:
            names = name_list([each.rule.title for each in more], 3)
            fact += f"<small>and {len(more)} more: {escape(names)}</small>"
        hosts = escape(name_list(one.hosts, 6)) + (f"<small>{escape(one.group)}</small>" if several else "")
        rows.append(
            f"<tr><td>{tag(f'{_SIGN[one.severity]} {one.severity}', _KIND[one.severity])}</td><td>{hosts}</td><td>{fact}</td><td>{found}</td>"
            f"<td>{expected}<small>{escape(one.remedy)}</small></td></tr>"
        )
    left = len(joined) - _MOST_FINDINGS
    return (
        '<h2>Findings</h2><div class="scroll"><table class="findings"><thead><tr><th></th><th>Hosts</th><th>Fact</th><th>Found</th>'
        f"<th>Expected, and what to do</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f"<p class='soft'>And {left} more: the JSON report has them all.</p>" if left > 0 else "")
    )


def _group(result: Comparison, group: str, hosts: list[str]) -> str:
    """The matrix of one group: hosts that stand out, and facts that differ."""
    mine = [one for one in result.differences if one.group == group]
    head = (
        f"<h2>Group {escape(group)} <small class='soft'>{len(hosts)} host{'s' if len(hosts) != 1 else ''}</small></h2>"
    )
    if not mine:
        return f"{head}<p>{tag('✓ pass', 'ok')} {escape(name_list(hosts, 8))}: nothing differs.</p>"
    paths = list(dict.fromkeys(one.rule.path for one in mine))
    left_paths = paths[_MOST_COLUMNS:]
    paths = paths[:_MOST_COLUMNS]
    cells: dict[str, dict[str, Difference]] = {}
    for one in mine:
        for host in one.hosts:
            cells.setdefault(host, {}).setdefault(one.rule.path, one)
    blank = {path: _blank(result, group, path) for path in paths}
    excluded = {host for one in mine if one.kind in ("no_facts", "schema") for host in one.hosts}
    same: dict[tuple[t.Any, ...], list[str]] = {}
    for host in hosts:
        mine_cells = cells.get(host, {})
        key = tuple(id(mine_cells[path]) if path in mine_cells else host in blank[path] for path in paths)
        same.setdefault((host in excluded, *key), []).append(host)
    order = {"block": 0, "warn": 1, "pass": 2}
    rows = sorted(
        same.values(), key=lambda one: (order[result.verdicts[one[0]]], -len(cells.get(one[0], ())), len(one))
    )
    shown_rows = rows[:_MOST_ROWS]
    parts = [
        head,
        '<div class="scroll"><table class="matrix"><thead><tr><th>Hosts</th>',
        *(_heading(next(one for one in mine if one.rule.path == path)) for path in paths),
        '</tr></thead><tbody><tr class="expected"><th>Expected</th>',
        *(f"<td>{_expected(result, group, path)}</td>" for path in paths),
        "</tr>",
    ]
    for row in shown_rows:
        found = cells.get(row[0], {})
        verdict = result.verdicts[row[0]]
        count = f'<span class="count">{len(row)} hosts</span>' if len(row) > 1 else ""
        parts.append(f"<tr><th>{tag(verdict, _KIND[verdict])} {escape(name_list(row, 6))}{count}</th>")
        for path in paths:
            nothing = row[0] in blank[path] or (row[0] in excluded and path not in _WHOLE)
            parts.append(
                '<td class="same" title="no value">&ndash;</td>'
                if nothing and path not in found
                else _cell(result, found.get(path), row)
            )
        parts.append("</tr>")
    parts.append("</tbody></table></div>")
    notes = []
    if len(rows) > _MOST_ROWS:
        notes.append(f"{sum(map(len, rows[_MOST_ROWS:]))} more hosts stand out in other ways")
    if left_paths:
        notes.append(f"{len(left_paths)} more facts differ")
    if notes:
        parts.append(f"<p class='soft'>{escape('; '.join(notes))}: the JSON report has them all.</p>")
    return "".join(parts)


def _blank(result: Comparison, group: str, path: str) -> set[str]:
    """Hosts that have no value of a fact."""
    return {host for fact in result.facts if fact.rule.path == path and fact.group == group for host in fact.unreadable}


def _heading(one: Difference) -> str:
    return f"<th>{escape(one.rule.title)}<code>{escape(one.rule.path)}</code></th>"


def _expected(result: Comparison, group: str, path: str) -> str:
    fact = next((one for one in result.facts if one.rule.path == path and one.group == group), None)
    if fact is None:
        return ""
    share = ""
    if fact.rule.compare == "majority" and fact.majority_share:
        share = f'<span class="count">{fact.majority_share} of {fact.total} hosts</span>'
    elif fact.expected == "no majority":
        share = f'<span class="count">{len(fact.values)} values, {fact.total} hosts</span>'
    return f'<span title="{escape(fact.expected)}">{escape(clip(fact.expected, 34))}</span>{share}'


def _cell(result: Comparison, one: Difference | None, hosts: t.Sequence[str]) -> str:
    """A host's value where it stands out, a tick where it does not."""
    if one is None:
        return '<td class="same" title="as expected">✓</td>'
    words = {"unreadable": "not readable", "no_facts": "no facts", "schema": "other schema", "simulated": "simulated"}
    where = result.where(one, hosts[0]) if len(hosts) == 1 else ""
    text = words.get(one.kind) or (one.shown_bad if where and one.shown_bad else one.shown)
    place = f'<span class="count">{escape(clip(where, 40))}</span>' if where else ""
    title = escape(f"{one.severity}: {one.sentence(where)}")
    return f'<td class="{_KIND[one.severity]}" title="{title}"><b>{_SIGN[one.severity]}</b>{escape(clip(text, 34))}{place}</td>'
