# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A load test on one page: verdict, a figure of each step, what was compared. PRIVATE to the collection.

Runs on the host that sent the load, too, where nobody has Ansible: standard library and C(_page) only.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._load_test_judge import COLUMNS, rows_of
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._page import cards, escape, page, tag

_KINDS = {"passed": "ok", "failed": "bad", "aborted": "bad"}
_STYLE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 16px; margin: 16px 0; }
figure { margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
figcaption { font-weight: 600; font-size: 14px; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; } svg .grid { stroke: var(--line); }
svg .l1 { stroke: var(--one); } svg .l2 { stroke: var(--two); } svg .l3 { stroke: var(--three); }
svg .d1 { fill: var(--one); } svg .d2 { fill: var(--two); } svg .d3 { fill: var(--three); }
.key { font-size: 13px; color: var(--soft); } .key i { display: inline-block; width: 14px; height: 3px; margin: 0 5px 3px 12px; }
"""
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 460, 210, 52, 14, 34, 12
Series = tuple[str, list[t.Optional[float]]]


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** len(str(int(value))) if value >= 1 else 1.0
    while power / 10 >= value:
        power /= 10
    return next(power / 10 * step for step in (1, 2, 2.5, 5, 10) if power / 10 * step >= value * 0.999)


def _chart(title: str, labels: t.Sequence[str], series: t.Sequence[Series]) -> str:
    """Lines over the steps of the ladder; a step without a value is a gap."""
    top = _round_up(max([value for _name, values in series for value in values if value is not None] or [1.0]))
    inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_of(number: int) -> float:
        return _LEFT + inner_w * (number + 0.5) / max(1, len(labels))

    def y_of(value: float) -> float:
        return _TOP + inner_h * (1 - value / top)

    parts = []
    for part in range(5):
        value = top * part / 4
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    parts += [
        f'<text x="{x_of(n):.1f}" y="{_HEIGHT - 16}" text-anchor="middle">{escape(label)}</text>'
        for n, label in enumerate(labels)
    ]
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}" text-anchor="end">users</text>')
    for index, (name, values) in enumerate(series, 1):
        points = [(x_of(n), y_of(value), value) for n, value in enumerate(values) if value is not None]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _value in points)
        parts.append(f'<polyline class="l{index}" points="{line}" fill="none" stroke-width="2"/>')
        parts += [
            f'<circle class="d{index}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{escape(name)}: {value:.4g}</title></circle>'
            for x, y, value in points
        ]
    colours = ("one", "two", "three")
    key = "".join(
        f'<i style="background: var(--{colour})"></i>{escape(name)}' for (name, _values), colour in zip(series, colours)
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{"".join(parts)}</svg><div class="key">{key}</div></figure>'
    )


def _of(steps: t.Sequence[t.Mapping[str, t.Any]], name: str, key: str) -> list[float | None]:
    return [None if key not in step[name] else float(step[name][key]) * 1000 for step in steps]


def _charts(steps: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    labels = [str(step["users"]) for step in steps]
    first, between, whole = (
        [(f"{word}", _of(steps, name, key)) for word, key in (("median", "p50"), ("p99", "p99"))]
        for name in ("ttft", "itl", "e2e")
    )
    lost: list[Series] = [
        ("failed", [float(step["error_ratio"]) * 100 for step in steps]),
        ("rejected by a limit", [float(step["rejected_ratio"]) * 100 for step in steps]),
    ]
    speed: list[Series] = [("tokens/s", [float(step["tokens_per_second"]) for step in steps])]
    answers: list[Series] = [("answers/s", [float(step["requests_per_second"]) for step in steps])]
    return (
        '<div class="charts">'
        + _chart("Tokens per second, all users", labels, speed)
        + _chart("Whole answers per second", labels, answers)
        + _chart("Time to the first text, ms", labels, first)
        + _chart("Time between two texts, ms", labels, between)
        + _chart("Time of the whole answer, ms", labels, whole)
        + _chart("Requests without an answer, %", labels, lost)
        + "</div>"
    )


def _table(columns: t.Sequence[str], rows: t.Sequence[t.Sequence[str]]) -> str:
    head = "".join(f'<th class="num">{escape(name)}</th>' for name in columns)
    kinds = {"ok": "ok", "missed": "bad", "measured": "info"}
    body = ""
    for row in rows:
        cells = "".join(
            f'<td class="num">{tag(cell, kinds[cell]) if cell in kinds else escape(cell)}</td>' for cell in row
        )
        body += f"<tr>{cells}</tr>"
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _list(lines: t.Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _open_loop(found: t.Mapping[str, t.Any]) -> str:
    def ms(name: str, key: str) -> str:
        value = (found.get(name) or {}).get(key)
        return "-" if value is None else f"{value * 1000:.0f} ms"

    pairs = [
        (f"{found['rate']:g}/s", "requests were due"),
        (f"{found['requests_per_second']:g}/s", "were answered within the step"),
        (ms("e2e", "p99"), "whole answer p99" + (", from when it was due" if found["tool"] == "own" else "")),
    ]
    if found["tool"] == "own":
        pairs += [
            (ms("e2e_from_sent", "p99"), "whole answer p99, from when it was sent"),
            (ms("late", "p99"), "sent too late, p99"),
        ]
        words = (
            "Requests come at their own times, as from people who do not wait for each other. The difference between due and sent is the queue that a "
            "closed ladder does not show."
        )
    else:
        pairs.append((ms("headers", "p99"), "headers p99"))
        words = "Sent by k6, which times headers and whole answers and no text within a stream. Arrivals that found no free sender were dropped."
    pairs.append((str(found["never_sent"]), "were not sent"))
    return f"<h2>Open loop</h2><p>{escape(words)}</p>{cards(pairs)}"


def _comparison(verdict: t.Mapping[str, t.Any]) -> str:
    found = verdict["comparison"]
    if not found["with"]:
        return "<h2>Compared with the last run</h2><p>There is no earlier run of this shape.</p>"
    rows = []
    for row in found["rows"]:
        cells = [str(row["users"])]
        for name, factor in (("tokens_per_second", 1), ("ttft_p50", 1000), ("e2e_p50", 1000)):
            pair = row[name]
            cells.append(f"{pair['then'] * factor:.4g} → {pair['now'] * factor:.4g} ({pair['change_percent']:+.1f} %)")
        rows.append(cells)
    words = (
        _list(found["losses"])
        if found["losses"]
        else f"<p>{tag('ok', 'ok')} Nothing is more than {escape(verdict['compare_percent'])} % worse.</p>"
    )
    columns = ["users", "tokens/s", "first text median ms", "whole answer median ms"]
    return f"<h2>Compared with run {escape(found['with'])}</h2>{words}{_table(columns, rows)}"


def load_test_page(verdict: t.Mapping[str, t.Any]) -> str:
    """The whole page.

    :arg verdict: what C(verdict.json) holds.
    """
    steps = verdict["steps"]
    best = max(steps, key=lambda step: float(step["tokens_per_second"]), default=None)
    pairs = [
        (
            f"{best['tokens_per_second']:.1f}",
            f"tokens/s at {best['users']} user{'s' if best['users'] > 1 else ''}, the fastest step",
        )
        if best
        else ("-", "no step ran"),
        (f"{max((step['users'] for step in steps), default=0)}", "most users at a time"),
        (str(sum(step["requests"] for step in steps)), "requests"),
        (str(sum(step["errors"] for step in steps)), "failed"),
        (str(sum(step["rejected"] for step in steps)), "rejected by a limit"),
    ]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(verdict["started_unix"]))
    label = f" {tag(verdict['label'], 'warn')}" if verdict.get("label") else ""
    body = (
        f"<p>{tag(verdict['state'], _KINDS[verdict['state']])}{label} {escape(verdict['model'])} at {escape(verdict['url'])} "
        f"({escape(verdict['target_host'])}), {escape(when)}, sent from {escape(verdict['sender']['host'])}</p>"
        + cards(pairs)
    )
    if verdict["reasons"]:
        body += "<h2>Why it did not pass</h2>" + _list(verdict["reasons"])
    if verdict["warnings"]:
        body += "<h2>Warnings</h2>" + _list(verdict["warnings"])
    if steps:
        body += "<h2>Step by step</h2>" + _table(COLUMNS, rows_of(verdict)) + _charts(steps)
        body += (
            '<p class="soft">TTFT: time to the first text of a stream; ITL: time between two texts; both from when the request was due, connection '
            "included. Times are within 1 %; p99 of fewer than 100 requests is nearly the slowest one. A step that is only measured lies beyond "
            "the plan's requests at a time, or was cut off.</p>"
        )
    if verdict["open_loop"]:
        body += _open_loop(verdict["open_loop"])
    body += _comparison(verdict)
    body += "<h2>What was sent</h2>" + _list(
        [*verdict["sender"]["mix"], *(f"left out: {text}" for text in verdict["left_out"])]
    )
    footer = f"Run {verdict['run']}, shape {verdict['shape']}, Locust {verdict['sender']['locust']}; Locust's own report is locust.html beside this file."
    return page("Load test", body, footer=footer, style=_STYLE)
