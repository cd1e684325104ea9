# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The burn-ins of a fleet as a table for the screen and a page for people. PRIVATE to the collection.

The page begins with a matrix of hosts and tests, so that a bad host and a bad test stand out; below it each host has what was measured beside
what was wanted, what was in it, and with which versions.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._burn_in import TESTS, WORDS, duration
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._page import cards, escape, page, tag

Host = t.Mapping[str, t.Any]
_VERDICTS = {
    "pass": ("passed", "ok", "✓"),
    "fail": ("failed", "bad", "✖"),
    "not_run": ("not complete", "warn", "▲"),
    "void": ("void", "warn", "▲"),
    "none": ("no result", "info", "●"),
}
_STATUS = {"pass": ("passed", "ok", "✓"), "fail": ("failed", "bad", "✖"), "not_run": ("not run", "warn", "▲")}
_STYLE = """
.matrix td.cell { text-align: center; white-space: nowrap; } .matrix a { color: inherit; font-weight: 600; }
ul.reasons { margin: 8px 0 12px; padding-left: 20px; max-width: 110ch; } ul.reasons li { margin: 4px 0; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--soft); } .facts { font-size: 13px; margin-top: 8px; }
.facts td:first-child { white-space: nowrap; color: var(--soft); } td.was { overflow-wrap: anywhere; } td.found { min-width: 140px; }
h2 .tag { margin-left: 8px; }
td.miss { background: var(--bad-bg); } td.when, td.short { white-space: nowrap; } code { overflow-wrap: anywhere; }
"""
_MOST_CHECKS = 40


def burn_in_rows(hosts: t.Mapping[str, Host]) -> list[list[str]]:
    """A row for each host: verdict, when, how long, and the tests that did not pass."""
    rows = []
    for name, host in sorted(hosts.items()):
        result = host.get("result") or {}
        bad = [
            f"{test['name']} {_STATUS[test['status']][0]}"
            for test in host.get("tests") or []
            if test["status"] != "pass"
        ]
        good = sum(1 for test in host.get("tests") or [] if test["status"] == "pass")
        told = ", ".join([f"{good} passed", *bad]) if host.get("tests") else ""
        verdict = _VERDICTS[host["verdict"]][0] + (", simulated" if result.get("simulated") else "")
        took = duration(result["seconds"]) if result.get("seconds") is not None else ""
        rows.append([name, verdict, str(result.get("finished") or ""), took, told])
    return rows


def burn_in_page(hosts: t.Mapping[str, Host]) -> str:
    """The document."""
    ordered = sorted(hosts.items(), key=lambda item: (list(_VERDICTS).index(item[1]["verdict"]) in (0,), item[0]))
    counts = {word: sum(1 for host in hosts.values() if host["verdict"] == word) for word in _VERDICTS}
    body = [
        "<p>What each host measured under load, beside the marks it must reach before it may serve. A result holds for the parts and the driver it "
        "was taken with.</p>",
        cards(
            [
                (str(len(hosts)), "hosts"),
                *(
                    (str(count), f"{_VERDICTS[word][0]} {_VERDICTS[word][2]}")
                    for word, count in counts.items()
                    if count
                ),
            ]
        ),
        _matrix(ordered),
    ]
    body += [_host(name, host) for name, host in ordered]
    simulated = any((host.get("result") or {}).get("simulated") for host in hosts.values())
    return page(
        "Burn-in",
        "\n".join(body),
        simulated=simulated,
        footer="Made by gpufleet.deepseek.burn_in_report from the results that the hosts keep. How to read it: docs/burn_in.md.",
        style=_STYLE,
    )


def _matrix(hosts: t.Sequence[tuple[str, Host]]) -> str:
    used = [
        name
        for name in TESTS
        if any(test["name"] == name for _host_name, host in hosts for test in host.get("tests") or [])
    ]
    heads = "".join(f'<th title="{escape(WORDS[name])}">{escape(name)}</th>' for name in used)
    rows = []
    for name, host in hosts:
        result, seen = host.get("result") or {}, {test["name"]: test["status"] for test in host.get("tests") or []}
        cells = "".join(f'<td class="cell">{_sign(seen.get(test), short=True)}</td>' for test in used)
        took = duration(result["seconds"]) if result.get("seconds") is not None else ""
        word, kind, _unused = _VERDICTS[host["verdict"]]
        rows.append(
            f'<tr><td><a href="#{escape(name)}">{escape(name)}</a></td><td>{tag(word, kind)}</td>{cells}'
            f"<td class=when>{escape(_when(result.get('finished')))}</td><td class=num>{escape(took)}</td></tr>"
        )
    return (
        f'<div class="scroll"><table class="matrix"><thead><tr><th>host</th><th>verdict</th>{heads}<th>finished (UTC)</th><th class=num>took</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _when(text: t.Any) -> str:
    return str(text or "")[:16].replace("T", " ")


def _sign(status: str | None, short: bool = False) -> str:
    if status is None:
        return '<span class="soft">&ndash;</span>'
    word, kind, sign = _STATUS[status]
    return tag(sign if short and status == "pass" else f"{sign} {word}", kind)


def _host(name: str, host: Host) -> str:
    result = host.get("result") or {}
    word, kind, sign = _VERDICTS[host["verdict"]]
    parts = [f'<h2 id="{escape(name)}">{escape(name)} {tag(f"{sign} {word}", kind)}</h2>']
    if result.get("simulated"):
        parts.append(f"<p>{tag('simulated', 'warn')} {escape(', '.join(result.get('simulated_by') or []))}</p>")
    if host.get("reasons"):
        parts.append(
            '<ul class="reasons">' + "".join(f"<li>{escape(reason)}</li>" for reason in host["reasons"]) + "</ul>"
        )
    entries = {entry["name"]: entry for entry in result.get("tests") or []}
    rows = [row for test in host.get("tests") or [] for row in _test_rows(test, entries.get(test["name"]) or {})]
    if rows:
        parts.append(
            '<div class="scroll"><table><thead><tr><th>test</th><th></th><th>what</th><th>wanted</th><th>found</th><th class=num>took</th></tr>'
            f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
        )
    if result:
        parts.append(_facts(result, entries))
    return "\n".join(parts)


def _test_rows(test: t.Mapping[str, t.Any], entry: t.Mapping[str, t.Any]) -> list[str]:
    """Rows of one test: its checks, the bad ones first, then what the tool said."""
    lines = [
        (str(check["what"]), str(check["expected"]), str(check["found"]), False)
        for check in test["checks"]
        if not check["ok"]
    ]
    lines = lines[:_MOST_CHECKS]
    lines += [(str(error), "no error", "error", False) for error in entry.get("errors") or []]
    lines += _good(test["checks"])
    lines += [(f"note: {note}", "", "", True) for note in entry.get("notes") or []]
    if test["status"] == "not_run":
        lines = [(str(entry.get("reason") or ""), "a run", "none", True)]
    lines = lines or [(_measured(entry), "no error", "none", True)]
    took = duration(entry["seconds"]) if entry.get("seconds") is not None else ""
    more = f"<br>{tag('simulated', 'warn')}" if entry.get("simulated") else ""
    head = (
        f"<td rowspan={len(lines)}><b>{escape(test['name'])}</b><br><small class=soft>{escape(WORDS.get(test['name'], ''))}</small>{more}</td>"
        f"<td rowspan={len(lines)}>{_sign(test['status'])}</td>"
    )
    rows = []
    for position, (what, wanted, found, good) in enumerate(lines):
        start = head if position == 0 else ""
        end = f"<td class=num rowspan={len(lines)}>{escape(took)}</td>" if position == 0 else ""
        miss = "" if good else " miss"
        cells = "".join(
            f'<td class="{kind}{miss}">{escape(text)}</td>'
            for kind, text in (("was", what), ("short", wanted), ("was found", found))
        )
        rows.append(f"<tr>{start}{cells}{end}</tr>")
    return rows


def _good(seen: t.Sequence[t.Mapping[str, t.Any]]) -> list[tuple[str, str, str, bool]]:
    """Marks that were reached, one line for each: of eight GPUs the slowest and the fastest are told."""
    lines = []
    for variable in dict.fromkeys(check["variable"] for check in seen):
        group = [check for check in seen if check["variable"] == variable and check["ok"]]
        if len(group) == 1:
            lines.append((str(group[0]["what"]), str(group[0]["expected"]), str(group[0]["found"]), True))
        elif group:
            words = str(group[0]["what"])[len(group[0]["device"]) + 2 :]
            ordered = sorted((str(check["found"]) for check in group), key=lambda text: float(text.split(" ")[0]))
            span = ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0].split(' ')[0]} to {ordered[-1]}"
            lines.append((f"{words}, {len(group)} devices", str(group[0]["expected"]), span, True))
    return lines


def _measured(entry: t.Mapping[str, t.Any]) -> str:
    values = {key: value for key, value in (entry.get("measured") or {}).items() if not isinstance(value, t.Mapping)}
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in values.items()) or "ran to its end"


def _facts(result: t.Mapping[str, t.Any], entries: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    """What was in the host, with which versions, and the very commands."""
    serials = result.get("serials") or {}
    rows = [("job", result.get("job")), ("started", result.get("started")), ("finished", result.get("finished"))]
    found = dict(result.get("versions") or {})
    for entry in entries.values():
        found.update({key: value for key, value in (entry.get("versions") or {}).items() if key not in found})
    rows.append(("versions", ", ".join(f"{key} {value}" for key, value in sorted(found.items()))))
    rows.append(("board", serials.get("board")))
    rows += [
        (f"GPU {one.get('index')}", f"{one.get('name')}, serial {one.get('serial')}, {one.get('uuid')}")
        for one in serials.get("gpus") or []
    ]
    rows += [
        (str(one.get("name")), f"{one.get('model')}, serial {one.get('serial')}, firmware {one.get('firmware')}")
        for one in serials.get("nvme") or []
    ]
    rows += [
        (str(one.get("name")), f"{one.get('mac')}, {one.get('driver')} {one.get('firmware') or ''}")
        for one in serials.get("nics") or []
    ]
    rows += [(f"{name} ran", " ".join(entry["command"])) for name, entry in entries.items() if entry.get("command")]
    body = "".join(
        f"<tr><td>{escape(key)}</td><td><code>{escape(value)}</code></td></tr>" for key, value in rows if value
    )
    return f'<details><summary>Parts, versions and commands</summary><div class="scroll facts"><table><tbody>{body}</tbody></table></div></details>'
