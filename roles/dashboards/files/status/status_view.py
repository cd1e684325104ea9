# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""From Prometheus' answers to what the status page says: one verdict, one sentence, and rows with the worst first.

A view is a plain dict that JSON can hold. Seconds, bytes, watts and degrees Celsius are numbers without a prefix; shares are 0 to 1; what is not known is None.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from status_source import Sample

WELL, WORSE, BAD, UNKNOWN = "well", "worse", "bad", "unknown"
SEVERITIES = ("page", "ticket", "info")
# A fleet of a thousand hosts is not read as a list: the worst rows are shown, the rest is a number.
MOST_ROWS = 100
MOST_ALERTS = 30


def spoken(names: list[str], most: int = 3) -> str:
    """Names for a sentence: "gpu1, gpu2 and 4 more"."""
    if len(names) <= most:
        return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def seconds_of(text: str) -> float | None:
    """A time of Prometheus as Unix seconds. It has nanoseconds, which Python does not read."""
    try:
        whole, _dot, _rest = text.rstrip("Z").partition(".")
        return datetime.datetime.fromisoformat(whole + "+00:00").timestamp()
    except ValueError:
        return None


class Answers:
    """Prometheus' answers, to look things up in."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found
        self._tables: dict[tuple[str, str], dict[str, float]] = {}

    def rows(self, name: str) -> list[Sample]:
        """All series of a query."""
        return list(self._found.get(name, []))

    def by(self, name: str, label: str) -> dict[str, float]:
        """The value by one label; series that share it are added up."""
        key = (name, label)
        if key not in self._tables:
            table: dict[str, float] = {}
            for labels, value in self.rows(name):
                if label in labels:
                    table[labels[label]] = table.get(labels[label], 0.0) + value
            self._tables[key] = table
        return self._tables[key]

    def host(self, name: str, host: str) -> float | None:
        """The value of a host."""
        return self.by(name, "host").get(host)

    def region(self, name: str, region: str) -> float | None:
        """The value of a region."""
        return self.by(name, "region").get(region)

    def one(self, name: str) -> float | None:
        """The value of a query that has one."""
        rows = self.rows(name)
        return rows[0].value if rows else None


def targets(answers: Answers, job: str, role: str = "") -> list[Sample]:
    """Targets of a job, one for each host."""
    best: dict[str, Sample] = {}
    for one in answers.rows("up"):
        if one.labels.get("job") == job and (not role or one.labels.get("role") == role):
            host = one.labels.get("host", "")
            # A gateway has two targets; it is down when either is.
            if host not in best or one.value < best[host].value:
                best[host] = one
    return [best[host] for host in sorted(best, key=natural)]


def natural(name: str) -> tuple[Any, ...]:
    """A key that puts gpu2 before gpu10."""
    parts: list[Any] = []
    digits = ""
    for letter in name:
        if letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((1, int(digits), ""))
            digits = ""
        parts.append((0, 0, letter))
    if digits:
        parts.append((1, int(digits), ""))
    return tuple(parts)


def engine_rows(answers: Answers) -> list[dict[str, Any]]:
    """A row for each engine."""
    peers: dict[str, list[tuple[str, float]]] = {}
    for labels, value in answers.rows("peers"):
        peers.setdefault(labels.get("peer", ""), []).append((labels.get("state", "up"), value))
    releases = {one.labels.get("host", ""): one.labels for one in answers.rows("release")}
    found = []
    for labels, value in targets(answers, "engine", "engine"):
        host = labels.get("host", "")
        gateways = peers.get(host, [])
        drained = any(state != "up" for state, _value in gateways)
        used = sum(1 for _state, value_ in gateways if value_ > 0)
        status = "up"
        if value < 1:
            status = "down"
        elif drained:
            status = "drained"
        elif gateways and used < len(gateways):
            status = "not used"
        release = releases.get(host, {})
        found.append(
            {
                "host": host,
                "region": labels.get("region", ""),
                "status": status,
                "gateways": [used, len(gateways)],
                "tokens": answers.host("tokens", host),
                "running": answers.host("running", host),
                "waiting": answers.host("waiting", host),
                "kv": answers.host("kv", host),
                "release": release.get("release", ""),
                "engine": " ".join(filter(None, (release.get("engine"), release.get("engine_version")))),
                "weights": release.get("weights", ""),
                "verified": answers.host("verified", host),
                "damaged": answers.host("damaged", host),
            }
        )
    return worst_first(found, lambda row: ("down", "not used", "drained", "up").index(row["status"]))


def worst_first(rows: list[dict[str, Any]], rank: Any) -> list[dict[str, Any]]:
    """Sorted by rank, then as they were."""
    return sorted(rows, key=rank)


def gateway_rows(answers: Answers) -> list[dict[str, Any]]:
    """A row for each gateway."""
    used: dict[str, list[float]] = {}
    for labels, value in answers.rows("peers"):
        used.setdefault(labels.get("host", ""), []).append(value)
    found = []
    for labels, value in targets(answers, "gateway"):
        host = labels.get("host", "")
        config = answers.host("gateway_config", host)
        found.append(
            {
                "host": host,
                "region": labels.get("region", ""),
                "status": "down" if value < 1 else "old configuration" if config == 0 else "up",
                "requests": answers.host("gateway_requests", host),
                "rejected": answers.host("gateway_rejected", host),
                "inflight": answers.host("gateway_inflight", host),
                "engines": [sum(1 for one in used.get(host, []) if one > 0), len(used.get(host, []))],
            }
        )
    return worst_first(found, lambda row: ("down", "old configuration", "up").index(row["status"]))


def host_rows(answers: Answers) -> list[dict[str, Any]]:
    """A row for each machine, with its GPUs where it has some."""
    xids: dict[str, list[str]] = {}
    for labels, value in answers.rows("xid"):
        if value > 0:
            text = f"XID {labels.get('xid', '?')} on GPU {labels.get('gpu', '?')}"
            xids.setdefault(labels.get("host", ""), []).append(text)
    up: dict[str, dict[str, float]] = {}
    regions: dict[str, str] = {}
    for labels, value in answers.rows("up"):
        host = labels.get("host", "")
        if host:
            up.setdefault(host, {})[labels.get("job", "")] = value
            regions.setdefault(host, labels.get("region", ""))
    found = []
    for host in sorted(up, key=natural):
        silent = sorted(job for job, value in up[host].items() if value < 1)
        used, free = answers.host("gpu_used", host), answers.host("gpu_free", host)
        gpus = answers.host("gpus", host)
        found.append(
            {
                "host": host,
                "region": regions[host],
                "status": "down" if len(silent) == len(up[host]) else "partly silent" if silent else "up",
                "silent": silent,
                "cpu": answers.host("cpu", host),
                "memory_free": answers.host("memory", host),
                "disk_free": answers.host("disk", host),
                "gpus": gpus,
                "simulated": bool(answers.host("gpus_simulated", host)),
                "util": answers.host("gpu_util", host),
                "sm": answers.host("gpu_sm", host),
                "dram": answers.host("gpu_dram", host),
                "memory": used,
                "memory_total": used + free if used is not None and free is not None else None,
                "celsius": answers.host("gpu_celsius", host),
                "memory_celsius": answers.host("gpu_memory_celsius", host),
                "watts": answers.host("gpu_watts", host),
                "xids": sorted(xids.get(host, [])),
            }
        )
    return worst_first(found, lambda row: (("down", "partly silent", "up").index(row["status"]), not row["xids"]))


def region_rows(answers: Answers, engines: list[dict[str, Any]], slo_percent: float) -> list[dict[str, Any]]:
    """A row for each region."""
    gateways = targets(answers, "gateway")
    names = sorted({row["region"] for row in engines} | {one.labels.get("region", "") for one in gateways})
    allowed = 1 - slo_percent / 100
    found = []
    for name in names:
        own = [row for row in engines if row["region"] == name]
        errors = answers.region("errors", name)
        asked, failed = answers.region("requests_30d", name), answers.region("errors_30d", name)
        budget = None
        if asked and asked >= 1 and failed is not None and allowed > 0:
            budget = 1 - failed / asked / allowed
        found.append(
            {
                "region": name,
                "engines": [sum(row["status"] != "down" for row in own), len(own)],
                "gateways": [
                    sum(one.value >= 1 for one in gateways if one.labels.get("region") == name),
                    sum(1 for one in gateways if one.labels.get("region") == name),
                ],
                "requests": answers.region("requests", name),
                "availability": None if errors is None else 1 - errors,
                "no_answer": (answers.region("no_answer", name) or 0) >= 1,
                "ttft_p50": answers.region("ttft_p50", name),
                "ttft_p99": answers.region("ttft_p99", name),
                "tokens": added(row["tokens"] for row in own),
                "running": added(row["running"] for row in own),
                "waiting": added(row["waiting"] for row in own),
                "budget": budget,
            }
        )
    return found


def added(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def alert_rows(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Alerts that fire, those that wake somebody first, then the oldest. The dead man's switch is none of them."""
    rows = []
    for one in found:
        labels, notes = one["labels"], one["annotations"]
        if one["state"] != "firing" or labels.get("alertname") == "Watchdog":
            continue
        severity = labels.get("severity", "info")
        rows.append(
            {
                "name": labels.get("alertname", ""),
                "severity": severity if severity in SEVERITIES else "info",
                "host": labels.get("host", ""),
                "region": labels.get("region", ""),
                "summary": notes.get("summary", labels.get("alertname", "")),
                "description": notes.get("description", ""),
                "runbook": notes.get("runbook_url", ""),
                "since": seconds_of(one["since"]),
            }
        )
    return sorted(
        rows, key=lambda row: (SEVERITIES.index(row["severity"]), row["since"] or 0, row["name"], row["host"])
    )


def quality_of(rows: list[Sample], now: float) -> dict[str, Any] | None:
    """What the quality probe says: a row for each score, those beyond noise first. None without a probe."""
    table: dict[tuple[str, str], dict[str, Any]] = {}
    plain: dict[str, float] = {}
    release = suite = ""
    for labels, value in rows:
        name = labels.get("__name__", "")[len("gpufleet_quality_") :]
        release, suite = labels.get("release", release), labels.get("suite", suite)
        if "score" not in labels:
            plain[name] = max(value, plain.get(name, value))
            continue
        row = table.setdefault((labels.get("language", ""), labels["score"]), {})
        row[name] = value
    if not plain and not table:
        return None
    scores = [
        {
            "language": language,
            "score": score,
            "value": row.get("score"),
            "mean": row.get("baseline_mean"),
            "lowest": row.get("lowest"),
            "highest": row.get("highest"),
            "beyond": row.get("beyond_noise", 0) >= 1,
        }
        for (language, score), row in sorted(table.items())
    ]
    age = now - plain["scored_timestamp_seconds"] if "scored_timestamp_seconds" in plain else None
    return {
        "release": release,
        "suite": suite,
        "baseline": plain.get("baseline", 0) >= 1,
        "age": age,
        "stale": age is None or age > plain.get("stale_seconds", 86400),
        "errors": plain.get("run_errors"),
        "scores": sorted(scores, key=lambda row: not row["beyond"]),
    }


def load_test_of(rows: list[Sample], now: float) -> dict[str, Any] | None:
    """What the last load test found: a row for each step. None without one."""
    steps: dict[str, dict[str, Any]] = {}
    plain: dict[str, float] = {}
    for labels, value in rows:
        name = labels.get("__name__", "")[len("gpufleet_load_test_") :]
        if "users" not in labels:
            plain[name] = max(value, plain.get(name, value))
            continue
        key = f"{name}_p99" if labels.get("quantile") == "0.99" else name
        if labels.get("quantile") != "0.5":
            steps.setdefault(labels["users"], {})[key] = value
    if "last_run_timestamp_seconds" not in plain:
        return None
    return {
        "age": now - plain["last_run_timestamp_seconds"],
        "verdict": "ended early" if plain.get("aborted") else "passed" if plain.get("passed") else "failed",
        "losses": plain.get("losses", 0),
        "steps": [
            {
                "users": users,
                "requests": row.get("requests_per_second"),
                "tokens": row.get("tokens_per_second"),
                "ttft_p99": row.get("ttft_seconds_p99"),
                "itl_p99": row.get("itl_seconds_p99"),
                "errors": row.get("error_ratio"),
                "rejected": row.get("rejected_ratio"),
                "passed": None if "step_passed" not in row else row["step_passed"] >= 1,
            }
            for users, row in sorted(steps.items(), key=lambda item: natural(item[0]))
        ],
    }


def verdict(view: Mapping[str, Any], slo_percent: float) -> tuple[str, str]:
    """One word and one sentence: is it well?"""
    pages = [row for row in view["alerts"] if row["severity"] == "page"]
    tickets = [row for row in view["alerts"] if row["severity"] == "ticket"]
    silent = [row["region"] for row in view["regions"] if row["no_answer"]]
    empty = [row["region"] for row in view["regions"] if row["engines"][1] and not row["engines"][0]]
    if silent:
        return BAD, f"Region {spoken(silent)} answers nobody."
    if empty:
        return BAD, f"Region {spoken(empty)} has no engine that is up."
    down = [row["host"] for row in view["engines"] if row["status"] == "down"]
    missing = [row["host"] for row in view["gateways"] if row["status"] == "down"]
    engines = len(view["engines"])
    trouble = []
    if down:
        trouble.append(f"{len(down)} of {engines} engines {'is' if len(down) == 1 else 'are'} down ({spoken(down)})")
    if missing:
        trouble.append(f"gateway {spoken(missing)} does not answer")
    unused = [row["host"] for row in view["engines"] if row["status"] == "not used"]
    if unused:
        trouble.append(f"a gateway sends nothing to {spoken(unused)}")
    poor = [
        row for row in view["regions"] if row["availability"] is not None and row["availability"] < slo_percent / 100
    ]
    if poor:
        share = min(row["availability"] for row in poor)
        trouble.append(
            f"{100 * (1 - share):.3g} % of the requests to region {spoken([row['region'] for row in poor])} fail"
        )
    if pages:
        count = len(pages)
        if trouble:
            return (
                BAD,
                f"Somebody is needed now: {'; '.join(trouble)}. {count} alert{'s page' if count > 1 else ' pages'}.",
            )
        more = f", and {count - 1} more alert{'s page' if count > 2 else ' pages'}" if count > 1 else ""
        return BAD, f"Somebody is needed now: {pages[0]['summary']}{more}."
    if trouble:
        return WORSE, f"It serves, but {'; '.join(trouble)}."
    if tickets:
        more = f", and {len(tickets) - 1} more" if len(tickets) > 1 else ""
        return WORSE, f"It serves. For working hours: {tickets[0]['summary']}{more}."
    if not engines and not view["gateways"]:
        return UNKNOWN, "Prometheus answers and knows of no engine and no gateway."
    return WELL, _praise(view, engines)


def _praise(view: Mapping[str, Any], engines: int) -> str:
    regions = len(view["regions"])
    where = f" in {regions} regions" if regions > 1 else ""
    sentence = f"All is well: {engines} of {engines} engines answer{where}"
    requests = added(row["requests"] for row in view["regions"])
    if requests is not None:
        sentence += f", {requests:.3g} requests per second" if requests >= 0.005 else ", nobody asks at the moment"
    late = [row["ttft_p99"] for row in view["regions"] if row["ttft_p99"] is not None]
    if late:
        sentence += f", 99 of 100 first tokens within {max(late):.2g} s"
    return sentence + "."


def view_of(found: Mapping[str, Any], now: float, slo_percent: float, stale_seconds: float) -> dict[str, Any]:
    """The view of one round of answers.

    :arg now: Unix seconds.
    :arg slo_percent: availability target in percent.
    :arg stale_seconds: older samples say nothing about now.
    """
    answers = Answers(found)
    engines = engine_rows(answers)
    hosts = host_rows(answers)
    scraped = answers.one("scraped")
    view: dict[str, Any] = {
        "now": now,
        "slo_percent": slo_percent,
        "data_age": None if scraped is None else max(0.0, now - scraped),
        "since": answers.one("oldest"),
        "regions": region_rows(answers, engines, slo_percent),
        "engines": engines,
        "gateways": gateway_rows(answers),
        "hosts": hosts,
        "alerts": alert_rows(found.get("alerts", [])),
        "alerting": any(one["labels"].get("alertname") == "Watchdog" for one in found.get("alerts", [])),
        "quality": quality_of(answers.rows("quality"), now),
        "load_test": load_test_of(answers.rows("load_test"), now),
        "history": found.get("history", {}),
        "missing": list(found.get("missing", [])),
        "simulated": any(row["simulated"] for row in hosts),
        "error": "",
    }
    view["verdict"], view["sentence"] = verdict(view, slo_percent)
    if view["data_age"] is None:
        view["verdict"], view["sentence"] = UNKNOWN, "Nobody knows: Prometheus answers and has measured nothing."
    elif view["data_age"] > stale_seconds:
        view["verdict"] = UNKNOWN
        view["sentence"] = (
            f"Nobody knows: Prometheus answers, but its newest measurement is {span(view['data_age'])} old."
        )
    return view


def unknown_view(last: Mapping[str, Any] | None, error: str, now: float, slo_percent: float) -> dict[str, Any]:
    """The view when Prometheus does not answer: what was last known, and since when nothing is."""
    view: dict[str, Any] = {
        "regions": [],
        "engines": [],
        "gateways": [],
        "hosts": [],
        "alerts": [],
        "quality": None,
        "load_test": None,
        "history": {},
        "missing": [],
        "simulated": False,
        "data_age": None,
        "since": None,
        "alerting": False,
    }
    view.update(last or {})
    seen = (last or {}).get("now")
    age = (last or {}).get("data_age") or 0.0
    view.update(now=now, slo_percent=slo_percent, verdict=UNKNOWN, error=error)
    view["data_age"] = None if seen is None else now - float(seen) + float(age)
    tail = f" What follows was seen {span(view['data_age'])} ago." if view["data_age"] is not None else ""
    view["sentence"] = f"Nobody knows: Prometheus does not answer.{tail}"
    return view


def span(seconds: float | None) -> str:
    """Seconds as "3 d 4 h": the two largest units."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 and whole < 600 else "")
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
