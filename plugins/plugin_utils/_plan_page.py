# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The plan for people: a table for the screen and an HTML page. PRIVATE to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._table import render_table
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._page import cards, escape, page, tag

Plan = t.Mapping[str, t.Any]
# What fills a GPU's memory, in the order of the bar: key, words, colour of the page.
_PARTS = (
    ("weights_gib", "weights", "--one"),
    ("kv_cache_gib", "KV cache", "--two"),
    ("working_gib", "activations and runtime", "--three"),
    ("free_gib", "left free", "--four"),
)
_STYLE = """
.bar { display: flex; height: 34px; border-radius: 6px; overflow: hidden; border: 1px solid var(--line); margin: 8px 0 4px; }
.bar div { color: #fff; font-size: 13px; line-height: 34px; padding: 0 8px; white-space: nowrap; overflow: hidden; min-width: 0; }
.bar div.last { color: var(--ink); } .legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; } ol.why li { margin: 5px 0; max-width: 105ch; }
.share { position: relative; min-width: 120px; } .share span { display: block; height: 8px; border-radius: 4px; background: var(--one); margin-top: 6px; }
"""


def plan_summary(plan: Plan) -> str:
    """One line about a plan."""
    if plan["verdict"] != "ok":
        return f"{plan['model']['name']}: refused"
    hosts = sum(len(replica["hosts"]) for replica in plan["replicas"])
    fleet = plan["fleet"]
    return (
        f"{plan['model']['name']}: {plan['engine']} with {plan['precision']} weights, tensor parallel {plan['tensor_parallel']}, "
        f"{_count(fleet['replicas'], 'replica')} on {_count(hosts, 'host')}, {fleet['requests_at_a_time']} requests at a time, "
        f"{fleet['requests_per_second']:.3g} requests per second"
    )


def plan_table(plan: Plan) -> list[str]:
    """Lines for the screen: what is served how, each replica, what is expected, and why."""
    name = plan["model"]["name"]
    if "engine" not in plan:
        return [f"No plan for {name}:", *(f"  - {r['sentence']} {r['nearest']}".rstrip() for r in plan["refusals"])]
    lines = [
        f"Plan for {name}{' (simulated GPUs)' if plan.get('simulated') else ''}:",
        f"  {plan_summary({**plan, 'verdict': 'ok'})}",
        "",
    ]
    rows = []
    for replica in plan["replicas"]:
        kind = plan["kinds"][replica["kind"]]
        peer = plan["peers"][replica["leader"]]
        rows.append(
            [
                replica["name"],
                ", ".join(replica["hosts"]),
                f"{kind['devices_per_host']} x {kind['device']['product']}",
                f"{kind['tensor_parallel']}",
                f"{kind['kv_cache_tokens']}",
                f"{peer['max_sequences']}",
                f"{peer['weight']}",
            ]
        )
    lines += render_table(
        ["replica", "hosts", "devices", "tensor parallel", "KV tokens", "requests at a time", "weight"], rows
    )
    for kind in plan["kinds"]:
        memory = kind["memory_per_device"]
        lines += ["", f"  Memory of each {kind['device']['name']}, GiB:"]
        lines += render_table(
            ["weights", "KV cache", "activations", "runtime", "left free", "total"],
            [[f"{memory[key]:.1f}" for key in _MEMORY]],
        )
        speed = kind["speed"]
        lines += [
            "",
            f"  Expected of a replica, prompts of {speed['prompt_tokens']} and answers of {speed['answer_tokens']} tokens; first token after "
            f"{speed['first_token_seconds']:.3g} s when idle:",
        ]
        lines += render_table(
            ["requests at a time", "tokens/s", "tokens/s each", "requests/s", "s per answer"],
            [
                [
                    str(row["batch"]),
                    f"{row['tokens_per_second']:.0f}",
                    f"{row['tokens_per_second_per_request']:.1f}",
                    f"{row['requests_per_second']:.2f}",
                    f"{row['answer_seconds']:.1f}",
                ]
                for row in speed["by_batch"]
            ],
        )
    if plan["targets"]:
        lines += ["", *render_table(["target", "wanted", "expected", "met"], _targets(plan))]
    lines += ["", *(f"  - {sentence}" for sentence in plan["decisions"])]
    return lines


_MEMORY = ("weights_gib", "kv_cache_gib", "activations_gib", "runtime_gib", "free_gib", "total_gib")


def _targets(plan: Plan) -> list[list[str]]:
    return [[row["target"], row["wanted"], row["expected"], "yes" if row["ok"] else "NO"] for row in plan["targets"]]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def plan_page(plan: Plan) -> str:
    """The plan as one HTML document."""
    name = plan["model"]["name"]
    parts: list[str] = []
    refused = plan["verdict"] != "ok"
    if refused:
        parts.append(f'<div class="banner bad">Refused: {name} cannot be served as asked for.</div>')
        rows = "".join(
            f"<tr><td><code>{escape(r['code'])}</code></td><td>{escape(r['sentence'])}</td><td>{escape(r['nearest'])}</td></tr>"
            for r in plan["refusals"]
        )
        parts.append(_table(["reason", "what stands against it", "what would work"], rows))
    if "engine" in plan:
        parts += _planned(plan, refused)
    body = "\n".join(parts)
    footer = "Made by gpufleet.deepseek.model_fit. Speeds are a roofline with stated efficiencies; prove them with a load test before you promise them."
    return page(f"Plan for {name}", body, simulated=bool(plan.get("simulated")), footer=footer, style=_STYLE)


def _planned(plan: Plan, refused: bool) -> list[str]:
    fleet, first = plan["fleet"], plan["speed"]["first_token_seconds"]
    parts = [] if refused else [f"<p>{escape(plan_summary(plan))}.</p>"]
    parts.append(
        cards(
            [
                (str(plan["engine"]), "engine"),
                (str(plan["precision"]), "weights"),
                (str(fleet["replicas"]), "replicas"),
                (str(fleet["requests_at_a_time"]), "requests at a time"),
                (f"{fleet['requests_per_second']:.3g}/s", "requests"),
                (f"{fleet['tokens_per_second']:.0f}/s", "tokens of answers"),
                (str(plan.get("hardware_source") or "live"), "hardware facts"),
                (f"{first:.3g} s" if first >= 1 else f"{first * 1000:.0f} ms", "to the first token, idle"),
            ]
        )
    )
    if plan["targets"]:
        rows = "".join(
            f"<tr><td>{escape(row['target'])}</td><td>{escape(row['wanted'])}</td><td>{escape(row['expected'])}</td>"
            f"<td>{tag('met', 'ok') if row['ok'] else tag('missed', 'bad')}</td><td>{escape(row['sentence'])}</td></tr>"
            for row in plan["targets"]
        )
        parts += ["<h2>Targets</h2>", _table(["target", "wanted", "expected", "", "arithmetic"], rows)]
    parts.append("<h2>Memory of each device</h2>")
    parts += [_bar(kind) for kind in plan["kinds"]]
    parts.append("<h2>Replicas</h2>")
    rows = "".join(
        f"<tr><td>{escape(replica['name'])}</td><td>{escape(', '.join(replica['hosts']))}</td>"
        f"<td>{escape(plan['kinds'][replica['kind']]['device']['product'])}</td>"
        f"<td class=num>{plan['kinds'][replica['kind']]['tensor_parallel']}</td>"
        f"<td class=num>{plan['peers'][replica['leader']]['token_capacity']:,}</td>"
        f"<td class=num>{plan['peers'][replica['leader']]['max_sequences']}</td>"
        f"<td class=num>{plan['peers'][replica['leader']]['weight']}</td>"
        f"<td>{escape(plan['peers'][replica['leader']]['weight_from'])}</td></tr>"
        for replica in plan["replicas"]
    )
    parts.append(
        _table(
            [
                "replica",
                "hosts",
                "devices",
                "#tensor parallel",
                "#KV tokens",
                "#requests at a time",
                "#weight",
                "weight from",
            ],
            rows,
        )
    )
    if plan["spare"]:
        rows = "".join(f"<tr><td>{escape(s['host'])}</td><td>{escape(s['reason'])}</td></tr>" for s in plan["spare"])
        parts += ["<h2>Hosts that stay out</h2>", _table(["host", "reason"], rows)]
    for kind in plan["kinds"]:
        parts += _speed(kind)
    parts.append("<h2>Why</h2><ol class=why>" + "".join(f"<li>{escape(s)}</li>" for s in plan["decisions"]) + "</ol>")
    return parts


def _bar(kind: Plan) -> str:
    memory = dict(kind["memory_per_device"])
    memory["working_gib"] = memory["activations_gib"] + memory["runtime_gib"]
    total = memory["total_gib"]
    pieces, legend = [], []
    for key, words, colour in _PARTS:
        share = 100 * memory[key] / total
        text = f"{memory[key]:.1f}" if share > 5 else ""
        last = ' class="last"' if key == "free_gib" else ""
        pieces.append(f'<div{last} style="width:{share:.2f}%;background:var({colour})" title="{words}">{text}</div>')
        legend.append(f'<span><i style="background:var({colour})"></i>{words} {memory[key]:.1f} GiB</span>')
    tokens = f"{kind['kv_cache_tokens']:,}"
    return (
        f"<h3>{escape(kind['device']['name'])}, {total:.1f} GiB</h3><div class=bar>{''.join(pieces)}</div><div class=legend>{''.join(legend)}</div>"
        f"<p class=soft>The KV cache of a replica holds {tokens} tokens: {kind['sequences']['typical']} typical requests at a time, "
        f"{kind['sequences']['full_context']} of the longest.</p>"
    )


def _speed(kind: Plan) -> list[str]:
    speed = kind["speed"]
    most = max(row["tokens_per_second"] for row in speed["by_batch"])
    rows = "".join(
        f"<tr><td class=num>{row['batch']}</td><td class=num>{row['tokens_per_second']:.0f}</td>"
        f'<td class="share"><span style="width:{100 * row["tokens_per_second"] / most:.1f}%"></span></td>'
        f"<td class=num>{row['tokens_per_second_per_request']:.1f}</td><td class=num>{row['requests_per_second']:.2f}</td>"
        f"<td class=num>{row['answer_seconds']:.1f}</td></tr>"
        for row in speed["by_batch"]
    )
    return [
        f"<h2>Expected of a replica on {escape(kind['device']['name'])}</h2>",
        f"<p class=soft>Prompts of {speed['prompt_tokens']} tokens, answers of {speed['answer_tokens']}. "
        f"Decode reaches {speed['memory_efficiency']:.0%} of the "
        f"memory bandwidth plus {speed['layer_us']:g} µs per layer, prefill {speed['compute_efficiency']:.0%} of the tensor speed "
        f"({speed['prefill_tokens_per_second']:,.0f} tokens per second).</p>",
        _table(["#requests at a time", "#tokens/s", "", "#tokens/s each", "#requests/s", "#seconds per answer"], rows),
    ]


def _table(columns: list[str], rows: str) -> str:
    """A table in a box that scrolls; a column whose name begins with # holds numbers."""
    heads = "".join(
        f"<th class=num>{escape(c[1:])}</th>" if c.startswith("#") else f"<th>{escape(c)}</th>" for c in columns
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
