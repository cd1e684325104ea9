# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What the status page asks Prometheus: the queries, and one bounded round of asking."""

from __future__ import annotations

import base64
import http.client
import json
import math
import ssl
import time
import urllib.parse
from typing import Any, NamedTuple

# Each answer within so many seconds; all of a round within the second number, or the page goes without the rest.
ANSWER_SECONDS = 8.0
ROUND_SECONDS = 20.0
# Points of a small chart, one a minute.
HISTORY_SECONDS = 3600
HISTORY_STEP = 60
# What reads 30 days is asked again after this time, in seconds.
SLOW_SECONDS = 300.0
LARGEST_ANSWER = 64 << 20

_ERRORS_30D = 'sum by (region) (increase(gw_requests_total{code=~"5.."}[30d]))'
_REQUESTS_30D = "sum by (region) (increase(gw_requests_total[30d]))"
_FILESYSTEMS = '{fstype!~"tmpfs|ramfs|overlay|squashfs|iso9660|fuse.*|nsfs", mountpoint!~"/(run|snap|boot/efi)(/.*)?"}'

QUERIES = {
    "up": "max by (job, host, region, role) (up)",
    "scraped": "max(timestamp(up))",
    "requests": "region:gateway_requests:rate5m",
    "errors": "region:gateway_errors:ratio5m",
    "no_answer": "region:llm_no_answer:bool",
    "ttft_p50": "histogram_quantile(0.5, sum by (region, le) (rate(gw_ttft_seconds_bucket[5m])))",
    "ttft_p99": "region:gateway_ttft_seconds:p99_5m",
    "tokens": "llm:output_tokens:rate2m",
    "running": "llm:requests_running",
    "waiting": "llm:requests_waiting",
    "kv": "llm:kv_usage:ratio",
    "gateway_requests": "sum by (host, region) (rate(gw_requests_total[5m]))",
    "gateway_rejected": "sum by (host, region) (rate(gw_rejected_total[5m]))",
    "gateway_inflight": "sum by (host, region) (gw_peer_inflight)",
    "gateway_config": "min by (host, region) (gw_config_reload_success)",
    "peers": "min by (host, peer, state) (gw_peer_up)",
    "release": "max by (host, release, model, engine, engine_version, weights) (gpufleet_release_info)",
    "verified": "max by (host) (gpufleet_weights_verify_timestamp_seconds)",
    "damaged": "sum by (host) (gpufleet_weights_verify_damaged_pieces + gpufleet_weights_verify_missing_files)",
    "gpus": "count by (host, region) (DCGM_FI_DEV_GPU_TEMP)",
    "gpus_simulated": 'count by (host) (DCGM_FI_DEV_GPU_TEMP{simulated="true"})',
    "gpu_util": "avg by (host) (DCGM_FI_DEV_GPU_UTIL) / 100",
    "gpu_sm": "avg by (host) (DCGM_FI_PROF_SM_ACTIVE)",
    "gpu_dram": "avg by (host) (DCGM_FI_PROF_DRAM_ACTIVE)",
    "gpu_used": "1048576 * sum by (host) (DCGM_FI_DEV_FB_USED)",
    "gpu_free": "1048576 * sum by (host) (DCGM_FI_DEV_FB_FREE)",
    "gpu_celsius": "max by (host) (DCGM_FI_DEV_GPU_TEMP)",
    "gpu_memory_celsius": "max by (host) (DCGM_FI_DEV_MEMORY_TEMP)",
    "gpu_watts": "sum by (host) (DCGM_FI_DEV_POWER_USAGE)",
    "xid": "max by (host, gpu, xid) (gpu:xid:recent)",
    "cpu": '1 - avg by (host, region) (rate(node_cpu_seconds_total{mode="idle"}[5m]))',
    "memory": "min by (host) (node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)",
    "disk": f"min by (host) (node_filesystem_avail_bytes{_FILESYSTEMS} / node_filesystem_size_bytes)",
    "quality": '{__name__=~"gpufleet_quality_.+"}',
    "load_test": '{__name__=~"gpufleet_load_test_.+"}',
}
SLOW = {
    "requests_30d": _REQUESTS_30D,
    "errors_30d": f"{_ERRORS_30D} or 0 * {_REQUESTS_30D}",
    "oldest": "min(prometheus_tsdb_lowest_timestamp_seconds)",
}
HISTORY = {
    "requests": "sum(region:gateway_requests:rate5m)",
    "tokens": "sum(llm:output_tokens:rate2m)",
    "ttft_p99": "max(region:gateway_ttft_seconds:p99_5m)",
    "waiting": "sum(llm:requests_waiting)",
}


class Sample(NamedTuple):
    """One series of an answer."""

    labels: dict[str, str]
    value: float


class SourceError(Exception):
    """Prometheus did not answer; the text says how."""


class Source:
    """A Prometheus.

    :arg url: where it answers, without a path of the interface.
    :arg username: empty when it asks for no password.
    :arg password: goes with it.
    :arg ca_file: certificate authority to trust; empty for the system's.
    """

    def __init__(self, url: str, username: str = "", password: str = "", ca_file: str = "") -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SourceError(f"expected an address such as http://127.0.0.1:9090, found {url}")
        self.where = parts.netloc
        self._path = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json"}
        if username:
            login = base64.b64encode(f"{username}:{password}".encode()).decode("ascii")
            self._headers["Authorization"] = f"Basic {login}"
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=ca_file or None)
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=ANSWER_SECONDS, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=ANSWER_SECONDS)

    def get(self, path: str, **words: str | float) -> Any:
        """The data of an answer.

        :raises SourceError: no answer, or one that is an error.
        """
        target = f"{self._path}/api/v1/{path}?{urllib.parse.urlencode(words)}"
        try:
            self._connection.request("GET", target, headers=self._headers)
            answer = self._connection.getresponse()
            body = answer.read(LARGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise SourceError(f"{self.where}: {error or type(error).__name__}") from error
        if answer.status == 401:
            raise SourceError(f"{self.where}: it does not accept the password")
        try:
            document = json.loads(body)
            if document["status"] != "success":
                raise SourceError(f"{self.where}: {document.get('error', 'no reason given')}")
            return document["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{self.where}: expected JSON of Prometheus, found HTTP {answer.status}") from error

    def vector(self, expr: str) -> list[Sample]:
        """The series of an instant query that have a number."""
        found = [Sample(one["metric"], float(one["value"][1])) for one in self.get("query", query=expr)["result"]]
        return [one for one in found if math.isfinite(one.value)]

    def history(self, expr: str, now: float) -> list[float | None]:
        """The last hour of a query of one series, a point for each minute; None where there is none."""
        data = self.get("query_range", query=expr, start=now - HISTORY_SECONDS, end=now, step=HISTORY_STEP)
        points: list[float | None] = [None] * (HISTORY_SECONDS // HISTORY_STEP + 1)
        for at, text in data["result"][0]["values"] if data["result"] else []:
            place = round((float(at) - now + HISTORY_SECONDS) / HISTORY_STEP)
            if 0 <= place < len(points) and math.isfinite(float(text)):
                points[place] = float(text)
        return points

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()


def alerts(source: Source) -> list[dict[str, Any]]:
    """What fires or waits to fire: labels, annotations, state, since (text)."""
    return [
        {
            "labels": one.get("labels", {}),
            "annotations": one.get("annotations", {}),
            "state": one.get("state", ""),
            "since": one.get("activeAt", ""),
        }
        for one in source.get("alerts")["alerts"]
    ]


def collect(source: Source, now: float, memory: dict[str, Any]) -> dict[str, Any]:
    """One round of asking.

    :arg memory: what the last round left: slow answers and their time; they are renewed in place.
    :returns: answers by name of the query; alerts; history; missing: names that came to nothing for want of time or by an error.
    :raises SourceError: Prometheus does not answer at all.
    """
    end = time.monotonic() + ROUND_SECONDS
    found: dict[str, Any] = {"missing": []}
    # The first questions decide whether there is anybody.
    found["up"] = source.vector(QUERIES["up"])
    found["alerts"] = alerts(source)
    if now - float(memory.get("slow_at", 0)) >= SLOW_SECONDS:
        slow = _ask(source, SLOW, end, found["missing"])
        memory["slow"] = {name: [[one.labels, one.value] for one in samples] for name, samples in slow.items()}
        memory["slow_at"] = now
    for name, rows in memory.get("slow", {}).items():
        found[name] = [Sample(labels, value) for labels, value in rows]
    rest = {name: expr for name, expr in QUERIES.items() if name not in found}
    found.update(_ask(source, rest, end, found["missing"]))
    found["history"] = {}
    for name, expr in HISTORY.items():
        if time.monotonic() < end:
            try:
                found["history"][name] = source.history(expr, now)
            except SourceError:
                found["missing"].append(f"history of {name}")
    return found


def _ask(source: Source, queries: dict[str, str], end: float, missing: list[str]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for name, expr in queries.items():
        found[name] = []
        if time.monotonic() > end:
            missing.append(name)
            continue
        try:
            found[name] = source.vector(expr)
        except SourceError:
            missing.append(name)
    return found
