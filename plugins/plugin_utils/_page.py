# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The frame and the look of the collection's HTML reports. PRIVATE to the collection.

A report is one file: no script, no font, no picture from elsewhere, so it can be mailed, archived and opened without a network. It follows the
reader's light or dark scheme and prints well. Colours mean the same on every page: ``bad`` blocks, ``warn`` warns, ``ok`` is fine, ``info`` is neutral;
each is also a word or a sign in the text, because not everybody sees the colours.
"""

from __future__ import annotations

import html

_STYLE = """
:root { color-scheme: light dark; --bg: #ffffff; --panel: #f5f7fa; --ink: #17202a; --soft: #5b6773; --line: #d6dde5; --bad: #b3261e; --bad-bg: #fbe3e1;
  --warn: #8a5a00; --warn-bg: #fdf0d0; --ok: #1b6e3c; --ok-bg: #e2f3e8; --info: #1d4f8f; --info-bg: #e3edf9; --one: #3767b0; --two: #d98b2b;
  --three: #7a5ab5; --four: #c9d2dc; }
@media (prefers-color-scheme: dark) { :root { --bg: #12171d; --panel: #1b222b; --ink: #e6ebf0; --soft: #9aa7b4; --line: #323d49; --bad: #ff8f87;
  --bad-bg: #47201e; --warn: #f2c15c; --warn-bg: #43330f; --ok: #7fd6a0; --ok-bg: #17361f; --info: #8fbdf5; --info-bg: #182f4c; --one: #6b9be6;
  --two: #e0a050; --three: #a98be0; --four: #4a5764; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; } h2 { font-size: 19px; margin: 34px 0 10px; } h3 { font-size: 16px; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 90ch; } .soft { color: var(--soft); } small { font-size: 13px; }
.tag { display: inline-block; border-radius: 4px; padding: 0 8px; font-size: 13px; font-weight: 600; white-space: nowrap; }
.bad { color: var(--bad); background: var(--bad-bg); } .warn { color: var(--warn); background: var(--warn-bg); }
.ok { color: var(--ok); background: var(--ok-bg); } .info { color: var(--info); background: var(--info-bg); }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; min-width: 132px; }
.card b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; } .card span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 12px; border-bottom: 1px solid var(--line); vertical-align: top; } tr:last-child td { border-bottom: 0; }
th { font-size: 13px; color: var(--soft); background: var(--panel); font-weight: 600; } td.num, th.num { text-align: right; }
code { font: 13px/1.4 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
.banner { border-radius: 8px; padding: 10px 16px; margin: 16px 0; font-weight: 600; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; border-top: 1px solid var(--line); padding-top: 10px; }
@media print { main { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""


def escape(value: object) -> str:
    """A value as text that is safe inside an element and inside a quoted attribute."""
    return html.escape(str(value), quote=True)


def tag(word: str, kind: str) -> str:
    """A small coloured word; kind is bad, warn, ok or info."""
    return f'<span class="tag {escape(kind)}">{escape(word)}</span>'


def cards(pairs: list[tuple[str, str]]) -> str:
    """A row of figures, each (value, what it is)."""
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in pairs)
        + "</div>"
    )


def page(title: str, body: str, *, simulated: bool = False, footer: str = "", style: str = "") -> str:
    """A whole document.

    :arg title: heading and title of the window, as plain text.
    :arg body: HTML below the heading; its maker has escaped what came from hosts.
    :arg simulated: say in a banner that the hardware was simulated.
    :arg footer: plain text at the end: when, from what, by what version.
    :arg style: more CSS of this page.
    """
    banner = (
        '<div class="banner warn">Simulated: at least one host shows GPUs that do not exist (lab).</div>'
        if simulated
        else ""
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{banner}\n{body}\n<footer>{escape(footer)}</footer>\n</main>\n</body>\n</html>\n"
    )
