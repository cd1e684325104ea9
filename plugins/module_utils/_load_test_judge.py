# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Judge a load test: marks from the plan or from the operator, the last run of the same shape, metrics of the result.

Times are seconds, speeds are tokens or requests per second, shares are from 0 to 1.
"""

from __future__ import annotations

import math
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._load_test import SCHEMA, LoadTestError

MARKS = (
    "ttft_p99_seconds",
    "itl_p99_seconds",
    "e2e_p99_seconds",
    "error_ratio",
    "rejected_ratio",
    "min_tokens_per_second",
    "min_requests_per_second",
    "max_users",
)
ERROR_RATIO = 0.01
_UNITS = {"seconds": " s", "second": "/s", "ratio": ""}


def check_pass(marks: t.Mapping[str, t.Any]) -> None:
    """Refuse a mark that is none.

    :raises LoadTestError: names the mark, what was expected and what was found.
    """
    unknown = sorted(set(marks) - set(MARKS))
    if unknown:
        raise LoadTestError(f"load_test_pass: expected marks out of {', '.join(MARKS)}, found {', '.join(unknown)}")
    for name, value in marks.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value < 0:
            raise LoadTestError(f"load_test_pass.{name}: expected a number from 0, found {value!r}")


def plan_of(plan: t.Mapping[str, t.Any], first_token_ms: float) -> dict[str, t.Any]:
    """What the judge needs of a plan; empty when there is no plan that could be carried out.

    :arg plan: C(fleet_plan).
    :arg first_token_ms: the operator's target for an idle replica (C(fleet_targets)); 0 for none.
    """
    if not plan.get("fleet") or not plan.get("speed"):
        return {}
    return {
        "model": plan["model"]["name"],
        "replicas": int(plan["fleet"]["replicas"]),
        "requests_at_a_time": int(plan["fleet"]["requests_at_a_time"]),
        "first_token_seconds": float(plan["speed"]["first_token_seconds"]),
        "prompt_tokens": int(plan["speed"]["prompt_tokens"]),
        "answer_tokens": int(plan["speed"]["answer_tokens"]),
        "by_batch": [
            {key: float(row[key]) for key in ("batch", "tokens_per_second_per_request", "requests_per_second")}
            for row in plan["speed"]["by_batch"]
        ],
        "first_token_target_seconds": first_token_ms / 1000,
    }


def marks_for(
    users: int, plan: t.Mapping[str, t.Any], own: t.Mapping[str, t.Any], slack: float
) -> dict[str, tuple[float, str]]:
    """Marks of a step with so many users, each with where it comes from; empty when the step is measured and not judged.

    The plan's requests are spread evenly over its replicas. Then the prompts of a batch are read one after the other, a decode step takes what the next
    larger batch of the plan takes, and so many requests are answered as the next smaller batch answers. The plan is an estimate: times may be C(slack)
    times as long, speeds as much smaller. Steps beyond C(max_users), or beyond the plan's requests at a time, are not judged.

    :arg plan: from plan_of, or empty.
    :arg own: C(load_test_pass); replaces the plan's marks one by one.
    """
    most = own.get("max_users") or plan.get("requests_at_a_time") or 0
    if most and users > most:
        return {}
    marks: dict[str, tuple[float, str]] = {"error_ratio": (ERROR_RATIO, "default")}
    if plan:
        batch = math.ceil(users / plan["replicas"])
        rows = plan["by_batch"]
        larger = next((row for row in rows if row["batch"] >= batch), rows[-1])
        smaller = next((row for row in reversed(rows) if row["batch"] <= max(1, users // plan["replicas"])), rows[0])
        busy = min(users, plan["replicas"])
        target = plan["first_token_target_seconds"]
        marks["ttft_p99_seconds"] = (
            (target, "fleet_targets")
            if target and batch == 1
            else (plan["first_token_seconds"] * batch * slack, "plan")
        )
        marks["itl_p99_seconds"] = (slack / larger["tokens_per_second_per_request"], "plan")
        marks["min_tokens_per_second"] = (
            busy * smaller["requests_per_second"] * plan["answer_tokens"] / slack,
            "plan",
        )
    marks.update({name: (float(value), "load_test_pass") for name, value in own.items() if name != "max_users"})
    return marks


def _shown(name: str, value: float) -> str:
    if name.endswith("ratio"):
        return f"{value * 100:.3g} %"
    if name.endswith("_per_second"):
        return f"{value:.4g} {'tokens' if 'tokens' in name else 'requests'}/s"
    return f"{value * 1000:.4g} ms" if value < 1 else f"{value:.4g} s"


def _found(step: t.Mapping[str, t.Any], name: str) -> float | None:
    """The figure that a mark is about; None when nothing was measured, such as the first text where there are no streams."""
    if name in ("ttft_p99_seconds", "itl_p99_seconds", "e2e_p99_seconds"):
        found = step[name.split("_")[0]].get("p99")
        return None if found is None else float(found)
    return float(step[name.replace("min_", "")])


def judge_step(step: t.Mapping[str, t.Any], marks: t.Mapping[str, tuple[float, str]]) -> list[dict[str, t.Any]]:
    """What a step missed: mark, expected, found, where the mark comes from and a sentence."""
    misses = []
    where = step.get("title") or f"step of {step['users']} user{'s' if step['users'] > 1 else ''}"
    if not step["ok"]:
        said = f"; {next(iter(step['error_reasons']))}" if step["error_reasons"] else ""
        sentence = f"{where}: expected answers, found none ({step['rejected']} rejected, {step['errors']} failed, {step['unfinished']} not at an end{said})"
        return [{"mark": "answers", "expected": 1, "found": 0, "from": "default", "sentence": sentence}]
    for name, (expected, source) in marks.items():
        # The fastest step is asked for the operator's throughput, not each one.
        if name.startswith("min_") and source == "load_test_pass":
            continue
        found = _found(step, name)
        if found is None or (found >= expected if name.startswith("min_") else found <= expected):
            continue
        sign = "at least" if name.startswith("min_") else "at most"
        misses.append(_miss(where, name, sign, expected, found, source, step))
    return misses


def _miss(
    where: str, name: str, sign: str, expected: float, found: float, source: str, step: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    reasons = step.get("error_reasons") or {}
    why = f" ({next(iter(reasons))})" if name == "error_ratio" and reasons else ""
    return {
        "mark": name,
        "expected": round(expected, 5),
        "found": round(found, 5),
        "from": source,
        "sentence": f"{where}: {name}: expected {sign} {_shown(name, expected)} (from {source}), found {_shown(name, found)}{why}",
    }


def judge(
    steps: t.Sequence[t.Mapping[str, t.Any]], plan: t.Mapping[str, t.Any], own: t.Mapping[str, t.Any], slack: float
) -> list[dict[str, t.Any]]:
    """The steps with C(judged), C(marks), C(passed) and C(misses). A step that was cut off is not judged."""
    found = []
    for step in steps:
        whole = step["seconds"] >= step["planned_seconds"] - 1
        marks = marks_for(step["users"], plan, own, slack) if whole else {}
        misses = judge_step(step, marks) if marks else []
        found.append(
            {
                **step,
                "judged": bool(marks),
                "marks": {k: {"expected": round(v, 5), "from": w} for k, (v, w) in marks.items()},
                "passed": not misses,
                "misses": misses,
            }
        )
    judged = [step for step in found if step["judged"]]
    for name in ("min_tokens_per_second", "min_requests_per_second"):
        if judged and name in own:
            key = name.replace("min_", "")
            best = max(judged, key=lambda step: float(step[key]))
            if best[key] < own[name]:
                where = f"the fastest step ({best['users']} users)"
                best["misses"].append(
                    _miss(where, name, "at least", float(own[name]), best[key], "load_test_pass", best)
                )
                best["passed"] = False
    return found


def compare(
    steps: t.Sequence[t.Mapping[str, t.Any]], last: t.Mapping[str, t.Any] | None, percent: float
) -> dict[str, t.Any]:
    """Compare with the last run of the same shape, step by step.

    A loss is a throughput that is more than C(percent) smaller, or a median time to the first text or of the whole answer that is more than that longer:
    medians, because the highest percentile of a short step is one request.

    :arg last: the other run's verdict, or None.
    :returns: C(with), C(rows) and C(losses), sentences.
    """
    if not last:
        return {"with": "", "rows": [], "losses": []}
    before = {int(step["users"]): step for step in last["steps"] if step.get("judged", True)}
    rows, losses = [], []
    for step in steps:
        old = before.get(int(step["users"]))
        if old is None or not step.get("judged", True):
            continue
        row: dict[str, t.Any] = {"users": step["users"]}
        pairs = {
            "tokens_per_second": (old["tokens_per_second"], step["tokens_per_second"], -1),
            "ttft_p50": (old["ttft"].get("p50", 0), step["ttft"].get("p50", 0), 1),
            "e2e_p50": (old["e2e"].get("p50", 0), step["e2e"].get("p50", 0), 1),
        }
        for name, (then, now, worse) in pairs.items():
            change = (now - then) / then * 100 if then else 0.0
            row[name] = {"then": then, "now": now, "change_percent": round(change, 1)}
            if change * worse > percent:
                shown = "tokens_per_second" if name == "tokens_per_second" else "seconds"
                losses.append(
                    f"{step['users']} user{'s' if step['users'] > 1 else ''}: {name} was {_shown(shown, then)} and is {_shown(shown, now)}, {change:+.0f} %"
                )
        rows.append(row)
    return {"with": last["run"], "rows": rows, "losses": losses}


def verdict_of(
    steps: t.Sequence[t.Mapping[str, t.Any]],
    open_loop: t.Mapping[str, t.Any] | None,
    comparison: t.Mapping[str, t.Any],
    compare_action: str,
    aborted: str,
) -> tuple[str, list[str], list[str]]:
    """passed, failed or aborted, with the sentences that say why, and the warnings."""
    reasons = [miss["sentence"] for step in steps for miss in step["misses"]]
    if open_loop:
        reasons += [miss["sentence"] for miss in open_loop["misses"]]
    warnings = []
    if comparison["losses"]:
        told = [f"slower than run {comparison['with']}: {loss}" for loss in comparison["losses"]]
        if compare_action == "fail":
            reasons += told
        else:
            warnings += told
    if aborted:
        return "aborted", [aborted, *reasons], warnings
    if not reasons and not any(step["judged"] for step in steps):
        warnings.append(
            "no step was judged: all are beyond the plan's requests at a time, and load_test_pass sets no other max_users"
        )
    return ("failed" if reasons else "passed"), reasons, warnings


def rows_of(verdict: t.Mapping[str, t.Any]) -> list[list[str]]:
    """The table of a verdict, one row for each step, in milliseconds and per second."""

    def ms(values: t.Mapping[str, float], name: str) -> str:
        return f"{values[name] * 1000:.0f}" if name in values else "-"

    rows = []
    steps = list(verdict["steps"])
    if verdict.get("open_loop"):
        steps.append(verdict["open_loop"])
    for step in steps:
        word = ("ok" if step["passed"] else "missed") if step["judged"] else "measured"
        rows.append(
            [
                str(step["users"]) if "users" in step else f"open {step['rate']:g}/s",
                f"{step['requests_per_second']:.2f}",
                "-" if step.get("tool") == "k6" else f"{step['tokens_per_second']:.1f}",
                ms(step["ttft"], "p50"),
                ms(step["ttft"], "p99"),
                ms(step["itl"], "p50"),
                ms(step["itl"], "p99"),
                ms(step["e2e"], "p99"),
                str(step["errors"]),
                str(step["rejected"]),
                word,
            ]
        )
    return rows


COLUMNS = [
    "users",
    "answers/s",
    "tokens/s",
    "TTFT p50 ms",
    "p99 ms",
    "ITL p50 ms",
    "p99 ms",
    "whole p99 ms",
    "errors",
    "rejected",
    "verdict",
]


def metrics_of(verdict: t.Mapping[str, t.Any]) -> str:
    """The result for node_exporter's textfile collector."""
    blocks: dict[str, tuple[str, list[str]]] = {}

    def put(name: str, help_text: str, value: float, **labels: t.Any) -> None:
        shown = ",".join(f'{key}="{word}"' for key, word in labels.items())
        lines = blocks.setdefault(f"gpufleet_load_test_{name}", (help_text, []))[1]
        lines.append(f"gpufleet_load_test_{name}{'{' + shown + '}' if shown else ''} {value:.10g}")

    put("schema", "Version of these metrics.", SCHEMA)
    put("last_run_timestamp_seconds", "When the last load test ended.", verdict["finished_unix"])
    put(
        "passed",
        "Whether the last load test passed (0 when it failed or was ended early).",
        verdict["state"] == "passed",
    )
    put("aborted", "Whether the last load test was ended early.", verdict["state"] == "aborted")
    put(
        "losses",
        "Figures that were worse than in the run before, beyond load_test_compare_percent.",
        len(verdict["comparison"]["losses"]),
    )
    for step in verdict["steps"]:
        users = step["users"]
        put("step_passed", "Whether a judged step passed.", step["passed"], users=users) if step["judged"] else None
        put("requests_per_second", "Whole answers per second.", step["requests_per_second"], users=users)
        put("tokens_per_second", "Tokens per second of all users.", step["tokens_per_second"], users=users)
        put("error_ratio", "Share of errors among answers that were not rejected.", step["error_ratio"], users=users)
        put("rejected_ratio", "Share of requests that a limit rejected.", step["rejected_ratio"], users=users)
        for name, text in (
            ("ttft", "Time to the first text."),
            ("itl", "Time between two texts of a stream."),
            ("e2e", "Time of the whole answer."),
        ):
            for key, quantile in (("p50", "0.5"), ("p99", "0.99")):
                if key in step[name]:
                    put(f"{name}_seconds", text, step[name][key], users=users, quantile=quantile)
    found = []
    for name, (help_text, lines) in blocks.items():
        found += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", *lines]
    return "\n".join(found) + "\n"
