# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The status page as one HTML file: no script, no font, no picture from elsewhere. A colour is always a word as well."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from status_view import MOST_ALERTS, MOST_ROWS, span

# Where the server says how old the page is.
AGE_MARK = "<!--age-->"
CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
WORDS = {"well": "well", "worse": "look at it", "bad": "act now", "unknown": "unknown"}
KINDS = {"well": "ok", "worse": "warn", "bad": "bad", "unknown": "dark"}
STATUS = {
    "up": "ok",
    "down": "bad",
    "not used": "warn",
    "drained": "info",
    "partly silent": "warn",
    "old configuration": "warn",
    "page": "bad",
    "ticket": "warn",
    "info": "info",
    "passed": "ok",
    "failed": "bad",
    "ended early": "warn",
}

STYLE = """
:root { color-scheme: light dark; --bg: #f6f7f9; --panel: #fff; --ink: #17202a; --soft: #5b6773; --line: #d9e0e7; --bar: #cfe0f5; --bad: #a81f17;
  --bad-bg: #fbe3e1; --warn: #7d5200; --warn-bg: #fdf0d0; --ok: #176636; --ok-bg: #dff2e6; --info: #1d4f8f; --info-bg: #e3edf9; --line-ink: #3767b0;
  --dark: #fff; --dark-bg: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --bg: #11161b; --panel: #1a2129; --ink: #e6ebf0; --soft: #9aa7b4; --line: #303b46; --bar: #27425f;
  --bad: #ff9a92; --bad-bg: #4a211e; --warn: #f2c662; --warn-bg: #43330f; --ok: #86dba6; --ok-bg: #17361f; --info: #93c0f6; --info-bg: #182f4c;
  --line-ink: #7aa7ea; --dark: #11161b; --dark-bg: #c3ccd5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 20px 24px 56px; }
header { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; justify-content: space-between; }
h1 { font-size: 20px; margin: 0; } h2 { font-size: 17px; margin: 30px 0 8px; } h2 small { color: var(--soft); font-weight: 400; font-size: 14px; }
.soft { color: var(--soft); } .small { font-size: 13px; } .nowrap { white-space: nowrap; }
.ok { color: var(--ok); background: var(--ok-bg); } .warn { color: var(--warn); background: var(--warn-bg); }
.bad { color: var(--bad); background: var(--bad-bg); } .info { color: var(--info); background: var(--info-bg); }
.dark { color: var(--dark); background: var(--dark-bg); }
.say { border-radius: 10px; padding: 14px 18px; margin: 12px 0 16px; font-size: 21px; line-height: 1.35; font-weight: 600; text-wrap: balance; }
summary { cursor: pointer; padding: 8px 14px; color: var(--soft); }
.say span { display: block; font-size: 13px; font-weight: 700; letter-spacing: .06em; text-transform: uppercase; opacity: .85; }
.note { border-radius: 8px; padding: 9px 14px; margin: 10px 0; }
.tag { display: inline-block; border-radius: 4px; padding: 0 7px; font-size: 13px; font-weight: 600; white-space: nowrap; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 10px; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; min-width: 0; }
.card b { display: block; font-size: 23px; line-height: 1.25; font-variant-numeric: tabular-nums; white-space: nowrap; }
.card span { color: var(--soft); font-size: 13px; display: block; } .card svg { display: block; width: 100%; height: 30px; margin-top: 6px; }
.card path { fill: none; stroke: var(--line-ink); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.card path.area { fill: var(--bar); stroke: none; opacity: .6; }
.box { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--line); vertical-align: top; } tbody tr:last-child td { border-bottom: 0; }
th { font-size: 13px; color: var(--soft); font-weight: 600; } td.num, th.num { text-align: right; white-space: nowrap; }
.meter { position: relative; display: inline-block; min-width: 74px; width: 100%; max-width: 130px; border-radius: 4px; overflow: hidden; text-align: left;
  background: color-mix(in srgb, var(--line) 55%, transparent); }
.meter i { position: absolute; inset: 0 auto 0 0; background: var(--bar); }
.meter em { position: relative; font-style: normal; padding: 0 6px; white-space: nowrap; }
.alert { padding: 10px 14px; border-bottom: 1px solid var(--line); } .alert:last-child { border-bottom: 0; }
.box + .box { margin-top: 8px; }
.alert b { font-size: 16px; margin-left: 4px; } .alert p { margin: 4px 0 2px; max-width: 110ch; }
a { color: var(--info); } code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
footer { margin-top: 34px; color: var(--soft); font-size: 13px; border-top: 1px solid var(--line); padding-top: 10px; }
.old .cards, .old .box { opacity: .62; }
@media (max-width: 640px) { main { padding: 14px 12px 40px; } .say { font-size: 18px; } .cards { grid-template-columns: 1fr 1fr; } .card b { font-size: 20px; }
  .box { overflow: visible; } thead { display: none; } table, tbody, tr, td { display: block; } tr { border-bottom: 1px solid var(--line); padding: 8px 12px; }
  tbody tr:last-child { border-bottom: 0; } td, td.num { border: 0; padding: 2px 0; text-align: right; display: flex; justify-content: space-between;
  gap: 12px; } td::before { content: attr(data-name); color: var(--soft); text-align: left; flex: none; }
  td.head { font-weight: 600; } .meter { max-width: 60%; } }
@media print { .box { overflow: visible; } }
"""


def escape(value: object) -> str:
    """A value as text that is safe inside an element and inside a quoted attribute."""
    return html.escape("".join(letter if letter.isprintable() else " " for letter in str(value)), quote=True)


def tag(word: str, kind: str = "") -> str:
    """A small coloured word."""
    return f'<span class="tag {kind or STATUS.get(word, "info")}">{escape(word)}</span>'


def figure(value: float | None, unit: str = "") -> str:
    """A number with three digits that count: "1.23k", "2.54 kW"."""
    if value is None:
        return "-"
    size, letter = abs(value), ""
    for step in ("k", "M", "G", "T"):
        if size < 999.5:
            break
        size, letter = size / 1000, step
    text = f"{size:.0f}" if size >= 99.95 or size == int(size) else f"{size:.1f}" if size >= 9.995 else f"{size:.2f}"
    return f"{'-' if value < 0 else ''}{text}{' ' if unit else ''}{letter}{unit}"


def seconds(value: float | None) -> str:
    """A latency."""
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 0.9995 else f"{value:.2f} s" if value < 9.995 else f"{value:.0f} s"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as percent; one that is nearly whole is not called whole."""
    if value is None:
        return "-"
    text = f"{100 * value:.{digits}f}"
    if digits and value < 1 and float(text) >= 100:
        text = f"{100 * value:.{digits + 2}f}"
        text = text if float(text) < 100 else "&lt; 100"
    return f"{text} %"


def meter(value: float | None, text: str = "") -> str:
    """A share as a bar with words in it."""
    if value is None:
        return "-"
    width = max(0.0, min(100.0, 100 * value))
    return f'<span class="meter"><i style="width:{width:.0f}%"></i><em>{text or percent(value)}</em></span>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the names of columns that begin with # have numbers. Cells are HTML."""
    names = [name.lstrip("#") for name in columns]
    kinds = [' class="num"' if name.startswith("#") else "" for name in columns]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(names, kinds))
    body = []
    for row in rows:
        cells = []
        for place, (name, kind, cell) in enumerate(zip(names, kinds, row)):
            head_class = ' class="head"' if not place else kind
            cells.append(f'<td{head_class} data-name="{escape(name)}"><span>{cell}</span></td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def spark(points: Sequence[float | None]) -> str:
    """The last hour as a line; from zero, so that a small change looks small."""
    known = [value for value in points if value is not None]
    if len(known) < 2:
        return ""
    top = max(*known, 1e-9)
    wide = max(1, len(points) - 1)
    runs: list[list[str]] = [[]]
    for place, value in enumerate(points):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{100 * place / wide:.1f},{28 - 26 * max(0.0, value) / top:.1f}")
    lines = [run for run in runs if len(run) > 1]
    area = "".join(f"M{run[0].split(',')[0]},30L{'L'.join(run)}L{run[-1].split(',')[0]},30Z" for run in lines)
    path = "".join("M" + "L".join(run) for run in lines)
    return f'<svg viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true"><path class="area" d="{area}"/><path d="{path}"/></svg>'


def card(value: str, name: str, chart: str = "", kind: str = "") -> str:
    """One figure."""
    return f'<div class="card {kind}"><b>{value}</b><span>{escape(name)}</span>{chart}</div>'


def cards(view: Mapping[str, Any]) -> str:
    """The figures at the top."""
    regions, history = view["regions"], view["history"]

    def total(name: str) -> float | None:
        known = [row[name] for row in regions if row[name] is not None]
        return sum(known) if known else None

    late = [row["ttft_p99"] for row in regions if row["ttft_p99"] is not None]
    middle = [row["ttft_p50"] for row in regions if row["ttft_p50"] is not None]
    budgets = [row["budget"] for row in regions if row["budget"] is not None]
    up = sum(row["engines"][0] for row in regions)
    left = min(budgets) if budgets else None
    return (
        '<div class="cards">'
        + card(f"{up} of {len(view['engines'])}", "engines up")
        + card(figure(total("requests")), "requests per second", spark(history.get("requests", [])))
        + card(figure(total("tokens")), "tokens per second", spark(history.get("tokens", [])))
        + card(
            seconds(max(late) if late else None),
            f"first token, P99; P50 {seconds(max(middle) if middle else None)}",
            spark(history.get("ttft_p99", [])),
        )
        + card(figure(total("waiting")), "requests wait in engines", spark(history.get("waiting", [])))
        + card(
            percent(left),
            f"of the error budget left ({view['slo_percent']:g} % over 30 d)",
            kind="" if left is None or left > 0.25 else "warn" if left > 0 else "bad",
        )
        + "</div>"
    )


def section(title: str, detail: str, body: str) -> str:
    """A heading with what follows it."""
    return f"<section><h2>{escape(title)} <small>{detail}</small></h2>{body}</section>"


def bounded(rows: list[Any], most: int, what: str) -> tuple[list[Any], str]:
    """The first rows, and a sentence about the others."""
    left = len(rows) - most
    return rows[:most], f'<p class="soft small">and {left} more {what}</p>' if left > 0 else ""


def alerts(view: Mapping[str, Any]) -> str:
    """What fires, with the sentence for three in the morning and its runbook."""
    if not view["alerts"]:
        quiet = (
            "Nothing fires."
            if view["alerting"]
            else "Nothing fires, and the dead man's switch Watchdog does not either: no rules are loaded."
        )
        return section("Alerts", "", f'<div class="note {"ok" if view["alerting"] else "warn"}">{escape(quiet)}</div>')
    urgent = [row for row in view["alerts"] if row["severity"] != "info"]
    reading = [row for row in view["alerts"] if row["severity"] == "info"]
    body = ""
    for rows, words in ((urgent, ""), (reading, "for reading, nobody need do anything")):
        shown, more = bounded(rows, MOST_ALERTS, "alerts")
        text = "".join(alert(row, view["now"]) for row in shown)
        if text and words:
            text = f"<details><summary>{len(rows)} {words}</summary>{text}</details>"
        body += (f'<div class="box">{text}</div>' if text else "") + more
    return section("Alerts", f"{len(urgent)} of page or ticket", body)


def alert(row: Mapping[str, Any], now: float) -> str:
    """One that fires: what, why, since when, and where it says what to do."""
    since = f", for {span(now - row['since'])}" if row["since"] else ""
    # Only addresses that a browser opens without running anything.
    safe = row["runbook"].startswith(("https://", "http://"))
    link = f' · <a href="{escape(row["runbook"])}" rel="noreferrer">what to do</a>' if safe else ""
    return (
        f'<div class="alert">{tag(row["severity"])} <b>{escape(row["summary"])}</b>'
        f'<p>{escape(row["description"])}</p><span class="soft small">{escape(row["name"])}{escape(since)}</span>{link}</div>'
    )


def regions(view: Mapping[str, Any]) -> str:
    """The regions."""
    if not view["regions"]:
        return ""
    rows = []
    for row in view["regions"]:
        asked = row["requests"] is not None
        rows.append(
            [
                escape(row["region"]) + (" " + tag("answers nobody", "bad") if row["no_answer"] else ""),
                _of(row["engines"]),
                _of(row["gateways"]),
                figure(row["requests"]),
                percent(row["availability"], 2) if row["availability"] is not None else "no requests" if asked else "-",
                seconds(row["ttft_p50"]),
                seconds(row["ttft_p99"]),
                figure(row["tokens"]),
                figure(row["running"]),
                figure(row["waiting"]),
                meter(row["budget"])
                if row["budget"] is None or row["budget"] > 0
                else tag(percent(row["budget"]), "bad"),
            ]
        )
    columns = [
        "Region",
        "Engines",
        "Gateways",
        "#Requests/s",
        "#Availability",
        "#TTFT P50",
        "#TTFT P99",
        "#Tokens/s",
        "#Run",
        "#Wait",
        "Budget left",
    ]
    return section("Regions", "availability over 5 min, budget over 30 d", table(columns, rows))


def _of(pair: Sequence[int]) -> str:
    text = f"{pair[0]} of {pair[1]}"
    return text if pair[0] == pair[1] else tag(text, "bad" if not pair[0] else "warn")


def engines(view: Mapping[str, Any]) -> str:
    """The engines with what they serve."""
    if not view["engines"]:
        return ""
    shown, more = bounded(view["engines"], MOST_ROWS, "engines that are no worse")
    rows = []
    for row in shown:
        weights = f"<code>{escape(row['weights'])}</code>" if row["weights"] else "-"
        if row["damaged"]:
            weights += " " + tag(f"{row['damaged']:.0f} damaged", "bad")
        elif row["verified"]:
            weights += f' <span class="soft small nowrap">verified {span(view["now"] - row["verified"])} ago</span>'
        used, known = row["gateways"]
        rows.append(
            [
                escape(row["host"]),
                escape(row["region"]),
                tag(row["status"]),
                f"{used} of {known}" if known else "-",
                figure(row["tokens"]),
                figure(row["running"]),
                figure(row["waiting"]),
                meter(row["kv"]),
                f"<code>{escape(row['release'])}</code>" if row["release"] else "-",
                weights,
            ]
        )
    columns = [
        "Engine",
        "Region",
        "Status",
        "Gateways use it",
        "#Tokens/s",
        "#Run",
        "#Wait",
        "KV cache",
        "Release",
        "Weights",
    ]
    return section("Engines", _count(view["engines"]), table(columns, rows) + more)


def _count(rows: Iterable[Mapping[str, Any]]) -> str:
    found: dict[str, int] = {}
    for row in rows:
        found[row["status"]] = found.get(row["status"], 0) + 1
    return ", ".join(f"{count} {escape(word)}" for word, count in found.items())


def gateways(view: Mapping[str, Any]) -> str:
    """The gateways."""
    if not view["gateways"]:
        return ""
    shown, more = bounded(view["gateways"], MOST_ROWS, "gateways that are no worse")
    rows = [
        [
            escape(row["host"]),
            escape(row["region"]),
            tag(row["status"]),
            figure(row["requests"]),
            figure(row["rejected"]),
            figure(row["inflight"]),
            _of(row["engines"]) if row["engines"][1] else "-",
        ]
        for row in shown
    ]
    columns = ["Gateway", "Region", "Status", "#Requests/s", "#Turned away/s", "#In flight", "Engines in use"]
    return section("Gateways", _count(view["gateways"]), table(columns, rows) + more)


def gpus(view: Mapping[str, Any]) -> str:
    """Hosts with GPUs. GPU_UTIL stands beside what the chip did."""
    with_gpus = [row for row in view["hosts"] if row["gpus"]]
    if not with_gpus:
        return ""
    shown, more = bounded(with_gpus, MOST_ROWS, "hosts")
    rows = []
    for row in shown:
        full = row["memory"] / row["memory_total"] if row["memory_total"] else None
        memory = f"{row['memory'] / 2**30:.0f} of {row['memory_total'] / 2**30:.0f} GiB" if full is not None else ""
        faults = " ".join(tag(text, "bad") for text in row["xids"]) or "none"
        rows.append(
            [
                escape(row["host"]) + (" " + tag("simulated", "info") if row["simulated"] else ""),
                f"{row['gpus']:.0f}",
                meter(row["util"]),
                meter(row["sm"]),
                meter(row["dram"]),
                meter(full, memory),
                f"{row['celsius']:.0f} °C" if row["celsius"] is not None else "-",
                f"{row['memory_celsius']:.0f} °C" if row["memory_celsius"] is not None else "-",
                figure(row["watts"], "W"),
                faults,
            ]
        )
    columns = [
        "Host",
        "#GPUs",
        "GPU_UTIL",
        "SM active",
        "DRAM active",
        "Memory",
        "#Hottest GPU",
        "#Hottest memory",
        "#Power",
        "Faults",
    ]
    detail = "GPU_UTIL says that anything ran; SM and DRAM active say how much of the chip worked"
    return section("GPUs", detail, table(columns, rows) + more)


def hosts(view: Mapping[str, Any]) -> str:
    """The machines."""
    if not view["hosts"]:
        return ""
    shown, more = bounded(view["hosts"], MOST_ROWS, "hosts that are no worse")
    rows = []
    for row in shown:
        status = tag(row["status"])
        if row["status"] == "partly silent":
            status += f' <span class="soft small">{escape(", ".join(row["silent"]))}</span>'
        rows.append(
            [
                escape(row["host"]),
                escape(row["region"]),
                status,
                meter(row["cpu"]),
                percent(row["memory_free"]),
                percent(row["disk_free"]),
            ]
        )
    columns = ["Host", "Region", "Status", "Processors busy", "#Memory free", "#Least disk free"]
    return section("Hosts", _count(view["hosts"]), table(columns, rows) + more)


def quality(view: Mapping[str, Any]) -> str:
    """Answer quality and the last load test."""
    out = ""
    found = view["quality"]
    if found:
        facts = [f"release {escape(found['release'])}", f"suite {escape(found['suite'])}"]
        facts.append("no baseline" if not found["baseline"] else "against the release's own baseline")
        facts.append("never scored" if found["age"] is None else f"scored {span(found['age'])} ago")
        rows = []
        for row in found["scores"]:
            edges = [
                f"{sign} {edge:.3g}" for sign, edge in (("≥", row["lowest"]), ("≤", row["highest"])) if edge is not None
            ]
            word = tag("beyond noise", "bad") if row["beyond"] else tag("within noise", "ok") if edges else "not judged"
            value, mean = (f"{one:.3g}" if one is not None else "-" for one in (row["value"], row["mean"]))
            rows.append(
                [escape(row["language"]), escape(row["score"]), value, mean, escape(", ".join(edges)) or "-", word]
            )
        body = '<div class="note warn">The last scores are too old.</div>' if found["stale"] else ""
        if rows:
            body += table(["Language", "Score", "#Now", "#Baseline", "#Noise", "Verdict"], rows)
        out += section("Answer quality", ", ".join(facts), body)
    test = view["load_test"]
    if test:
        rows = [
            [
                escape(row["users"]),
                figure(row["requests"]),
                figure(row["tokens"]),
                seconds(row["ttft_p99"]),
                seconds(row["itl_p99"]),
                percent(row["errors"], 1),
                percent(row["rejected"], 1),
                tag("passed" if row["passed"] else "failed") if row["passed"] is not None else "not judged",
            ]
            for row in test["steps"]
        ]
        columns = ["Users", "#Answers/s", "#Tokens/s", "#TTFT P99", "#ITL P99", "#Errors", "#Rejected", "Verdict"]
        losses = f", {test['losses']:.0f} figures worse than before" if test["losses"] else ""
        detail = f"{tag(test['verdict'])} {span(test['age'])} ago{losses}"
        out += section("Last load test", detail, table(columns, rows) if rows else "")
    return out


def notes(view: Mapping[str, Any]) -> str:
    """What one must know to believe the page."""
    out = []
    if view["error"]:
        out.append(("bad", f"Prometheus: {view['error']}"))
    if view["missing"]:
        out.append(
            (
                "warn",
                f"Prometheus was too slow or could not answer for: {', '.join(view['missing'])}. What needs it is missing below.",
            )
        )
    if view["simulated"]:
        out.append(("warn", "Simulated: at least one host shows GPUs that do not exist. It is marked below."))
    return "".join(f'<div class="note {kind}">{escape(text)}</div>' for kind, text in out)


def page(view: Mapping[str, Any], title: str, refresh_seconds: int, links: Mapping[str, str]) -> str:
    """The whole document.

    :arg view: as status_view makes it.
    :arg title: the fleet's name.
    :arg refresh_seconds: the browser loads the page again so often.
    :arg links: addresses by their names, for the head of the page.
    """
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(view["now"]))
    age = f"newest measurement {span(view['data_age'])} old" if view["data_age"] is not None else "no measurement"
    where = "".join(f' · <a href="{escape(link)}" rel="noreferrer">{escape(name)}</a>' for name, link in links.items())
    kept = ""
    if view["since"]:
        days = (view["now"] - view["since"]) / 86400
        kept = (
            f" Prometheus holds {days:.0f} d."
            if days >= 1
            else f" Prometheus holds {span(view['now'] - view['since'])} so far."
        )
    kind = KINDS[view["verdict"]]
    body = (
        cards(view)
        + alerts(view)
        + regions(view)
        + engines(view)
        + gateways(view)
        + gpus(view)
        + quality(view)
        + hosts(view)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{refresh_seconds}"><title>{escape(WORDS[view["verdict"]])} · {escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><main{' class=' + chr(34) + 'old' + chr(34) if view['error'] else ''}>"
        f'<header><h1>{escape(title)}</h1><div class="soft small">{stamp} · {age}{where}</div></header>{AGE_MARK}'
        f'<div class="say {kind}"><span>{escape(WORDS[view["verdict"]])}</span>{escape(view["sentence"])}</div>{notes(view)}{body}'
        f"<footer>Rendered from Prometheus every {refresh_seconds} s. The error budget counts answers with 5xx against {view['slo_percent']:g} % over 30 days"
        f" or as long as there are measurements.{kept} TTFT is the time to the first token, at the gateway, over 5 min.</footer></main></body></html>\n"
    )


def age_note(seconds_old: float) -> str:
    """What the server puts in when the page itself has not been made anew."""
    return f'<div class="say bad"><span>old page</span>This page was made {span(seconds_old)} ago and is not made anew: nothing below is about now.</div>'
