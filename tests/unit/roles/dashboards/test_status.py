# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The status page: what it says of a fleet, how it reads, and who gets it. Prometheus' answers are made up here."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "roles" / "dashboards" / "files" / "status"))

# Not a package: on a host they lie side by side.
gpufleet_status, status_page, status_source, status_view = (
    importlib.import_module(name) for name in ("gpufleet_status", "status_page", "status_source", "status_view")
)

NOW = 1_800_000_000.0
SLO = 99.9
S = status_source.Sample


def answers(**more: Any) -> dict[str, Any]:
    """A fleet that is well: two engines, one gateway, one monitor."""
    up = [
        ("engine", "gpu1", "engine", 1),
        ("engine", "gpu2", "engine", 1),
        ("node", "gpu1", "engine", 1),
        ("node", "gpu2", "engine", 1),
        ("gateway", "gw1", "gateway", 1),
    ]
    found: dict[str, Any] = {
        "up": [S({"job": job, "host": host, "region": "eu", "role": role}, value) for job, host, role, value in up],
        "alerts": [alert("Watchdog", "info")],
        "scraped": [S({}, NOW - 4)],
        "requests": [S({"region": "eu"}, 12.0)],
        "errors": [S({"region": "eu"}, 0.0)],
        "ttft_p99": [S({"region": "eu"}, 0.84)],
        "tokens": [S({"host": "gpu1", "region": "eu"}, 900.0), S({"host": "gpu2", "region": "eu"}, 600.0)],
        "peers": [S({"host": "gw1", "peer": name, "state": "up"}, 1.0) for name in ("gpu1", "gpu2")],
        "requests_30d": [S({"region": "eu"}, 100_000.0)],
        "errors_30d": [S({"region": "eu"}, 25.0)],
    }
    return {**found, **more}


def alert(name: str, severity: str, summary: str = "", state: str = "firing", **annotations: str) -> dict[str, Any]:
    """An alert as Prometheus gives it."""
    return {
        "labels": {"alertname": name, "severity": severity},
        "annotations": {"summary": summary, **annotations},
        "state": state,
        "since": "2027-01-15T07:59:00.123456789Z",
    }


def view(**more: Any) -> dict[str, Any]:
    """The view of such a fleet."""
    return status_view.view_of(answers(**more), NOW, SLO, 180)


def without(job: str, host: str) -> list[Any]:
    """The targets, one of them down."""
    return [
        S(one.labels, 0.0) if (one.labels["job"], one.labels["host"]) == (job, host) else one for one in answers()["up"]
    ]


def page(found: dict[str, Any]) -> str:
    """The page of a view."""
    return status_page.page(found, "Fleet", 30, {})


def test_all_is_well() -> None:
    found = view()
    assert (found["verdict"], found["sentence"]) == (
        "well",
        "All is well: 2 of 2 engines answer, 12 requests per second, 99 of 100 first tokens within 0.84 s.",
    )
    region = found["regions"][0]
    assert region["budget"] == pytest.approx(0.75)
    assert (region["tokens"], region["engines"], region["availability"]) == (1500.0, [2, 2], 1.0)


@pytest.mark.parametrize(
    ("more", "verdict", "sentence"),
    [
        ({"no_answer": [S({"region": "eu"}, 1.0)]}, "bad", "Region eu answers nobody."),
        ({"up": without("engine", "gpu2")}, "worse", "It serves, but 1 of 2 engines is down (gpu2)."),
        ({"up": without("gateway", "gw1")}, "worse", "It serves, but gateway gw1 does not answer."),
        ({"errors": [S({"region": "eu"}, 0.02)]}, "worse", "It serves, but 2 % of the requests to region eu fail."),
        ({"alerts": [alert("A", "page", "gpu2: on fire")]}, "bad", "Somebody is needed now: gpu2: on fire."),
        (
            {"up": without("engine", "gpu2"), "alerts": [alert("A", "page", "x"), alert("B", "page", "y")]},
            "bad",
            "Somebody is needed now: 1 of 2 engines is down (gpu2). 2 alerts page.",
        ),
        ({"alerts": [alert("A", "page", "x", "pending")]}, "well", "All is well: "),
        ({"alerts": [alert("A", "ticket", "gpu2: warm")]}, "worse", "It serves. For working hours: gpu2: warm."),
        (
            {"scraped": [S({}, NOW - 600)]},
            "unknown",
            "Nobody knows: Prometheus answers, but its newest measurement is 10 min",
        ),
        ({"scraped": []}, "unknown", "Nobody knows: Prometheus answers and has measured nothing."),
    ],
)
def test_verdicts(more: dict[str, Any], verdict: str, sentence: str) -> None:
    found = view(**more)
    assert found["verdict"] == verdict
    assert found["sentence"].startswith(sentence)


def test_no_engine_is_up() -> None:
    up = [S(one.labels, 0.0) if one.labels["job"] == "engine" else one for one in answers()["up"]]
    assert view(up=up)["sentence"] == "Region eu has no engine that is up."


def test_an_engine_that_is_up_and_gets_nothing() -> None:
    peers = [
        S({"host": "gw1", "peer": "gpu1", "state": "up"}, 0.0),
        S({"host": "gw1", "peer": "gpu2", "state": "drain"}, 0.0),
    ]
    rows = {row["host"]: row["status"] for row in view(peers=peers)["engines"]}
    assert rows == {"gpu1": "not used", "gpu2": "drained"}


def test_the_worst_come_first() -> None:
    found = view(
        up=without("engine", "gpu2"),
        alerts=[alert("B", "info", "c"), alert("C", "ticket", "b"), alert("D", "page", "a")],
    )
    assert [row["host"] for row in found["engines"]] == ["gpu2", "gpu1"]
    assert [row["severity"] for row in found["alerts"]] == ["page", "ticket", "info"]


def test_numbers_in_names_are_numbers() -> None:
    assert sorted(["gpu10", "gpu2", "gw1"], key=status_view.natural) == ["gpu2", "gpu10", "gw1"]


def test_what_came_from_hosts_is_escaped_and_bounded() -> None:
    found = view(
        alerts=[
            alert("A", "page", "<script>alert(1)</script>", runbook_url="javascript:alert(1)", description='"><img>'),
            *(alert(f"A{number}", "ticket", "more") for number in range(60)),
        ]
    )
    text = page(found)
    assert "<script>" not in text
    assert "<img>" not in text
    assert "javascript:" not in text
    assert f"and {61 - status_view.MOST_ALERTS} more alerts" in text


def test_a_page_of_a_thousand_hosts_is_small() -> None:
    up = [
        S({"job": job, "host": f"gpu{number}", "region": "eu", "role": "engine"}, 1.0)
        for number in range(1000)
        for job in ("engine", "node")
    ]
    text = page(view(up=up))
    assert "900 more engines that are no worse" in text
    assert len(text) < 400_000


def test_simulated_gpus_are_called_so() -> None:
    labels = {"host": "gpu1", "region": "eu"}
    found = view(
        gpus=[S(labels, 8.0)], gpus_simulated=[S(labels, 8.0)], gpu_util=[S(labels, 0.78)], gpu_sm=[S(labels, 0.31)]
    )
    text = page(found)
    assert found["simulated"]
    assert "Simulated: at least one host shows GPUs that do not exist" in text
    assert text.index("78 %") < text.index("31 %")


def test_a_silent_dead_mans_switch_is_said() -> None:
    assert "the dead man&#x27;s switch Watchdog does not either" in page(view(alerts=[]))


def test_prometheus_down_shows_what_was_last_known() -> None:
    last = view()
    found = status_view.unknown_view(last, "127.0.0.1:9090: refused", NOW + 300, SLO)
    assert found["sentence"] == "Nobody knows: Prometheus does not answer. What follows was seen 5 min 4 s ago."
    text = page(found)
    assert "127.0.0.1:9090: refused" in text
    assert "gpu1" in text
    assert "act now" not in text
    nothing = status_view.unknown_view(None, "refused", NOW, SLO)
    assert nothing["sentence"] == "Nobody knows: Prometheus does not answer."
    assert "gpu1" not in page(nothing)


def test_quality_and_load_test() -> None:
    who = {"release": "r-1", "suite": "3-ab", "model": "m"}

    def quality(name: str, value: float, **labels: str) -> Any:
        return S({"__name__": f"gpufleet_quality_{name}", **who, **labels}, value)

    def load(name: str, value: float, **labels: str) -> Any:
        return S({"__name__": f"gpufleet_load_test_{name}", **labels}, value)

    score = {"language": "en", "score": "chrf"}
    found = view(
        quality=[
            quality("baseline", 1),
            quality("stale_seconds", 7200),
            quality("scored_timestamp_seconds", NOW - 600),
            quality("score", 41.2, **score),
            quality("lowest", 43.0, **score),
            quality("beyond_noise", 1, **score),
        ],
        load_test=[
            load("last_run_timestamp_seconds", NOW - 86400),
            load("passed", 1),
            load("requests_per_second", 7.5, users="16"),
            load("ttft_seconds", 0.2, users="16", quantile="0.5"),
            load("ttft_seconds", 0.9, users="16", quantile="0.99"),
        ],
    )
    assert not found["quality"]["stale"]
    assert found["load_test"]["steps"][0]["ttft_p99"] == 0.9
    text = page(found)
    assert "beyond noise" in text
    assert "release r-1" in text
    assert "900 ms" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (1.234, "1.23"), (25.04, "25.0"), (1234, "1.23k"), (999.9, "1.00k"), (2.5e6, "2.50M")],
)
def test_figures(value: float | None, text: str) -> None:
    assert status_page.figure(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.0, "100.00 %"), (0.99999, "99.9990 %"), (0.5, "50.00 %"), (None, "-")])
def test_nearly_all_is_not_all(value: float | None, text: str) -> None:
    assert status_page.percent(value, 2) == text


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """A configuration of a page that a dead Prometheus feeds."""
    return gpufleet_status.Config(
        directory=tmp_path, prometheus_url="http://127.0.0.1:9", networks=["127.0.0.0/8"], port=0, interval_seconds=30
    )


@pytest.fixture
def served(config: Any) -> Iterator[int]:
    """The port of a running server of it."""
    with gpufleet_status.Server(config) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(5)


def get(port: int, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


def test_the_server(config: Any, served: int) -> None:
    assert get(served, "/")[0] == 503
    gpufleet_status.render(config)
    status, text, headers = get(served, "/")
    assert status == 200
    assert "Prometheus does not answer" in text
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert json.loads(get(served, "/status.json")[1])["verdict"] == "unknown"
    assert get(served, "/health")[0] == 200
    assert get(served, "/", "HEAD")[1] == ""
    assert [get(served, path)[0] for path in ("/memory.json", "/../memory.json", "/%2e%2e/x")] == [404] * 3
    assert get(served, "/", "POST")[0] == 501


def test_an_old_page_is_said_loudly(config: Any, served: int) -> None:
    gpufleet_status.render(config)
    old = time.time() - 3600
    os.utime(config.directory / "index.html", (old, old))
    assert "This page was made 1 h 0 min ago" in get(served, "/")[1]
    assert get(served, "/health")[0] == 503


def test_strangers_get_nothing(config: Any) -> None:
    config.networks = ["192.0.2.0/24"]
    gpufleet_status.render(config)
    with gpufleet_status.Server(config) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        status, text, _headers = get(server.server_address[1], "/")
        server.shutdown()
    assert status == 403
    assert "Prometheus" not in text


def test_files_are_whole_and_private(config: Any) -> None:
    gpufleet_status.render(config)
    names = sorted(path.name for path in config.directory.iterdir())
    assert names == ["index.html", "memory.json", "status.json"]
    assert all(path.stat().st_mode & 0o777 == 0o640 for path in config.directory.iterdir())


def test_a_bad_configuration_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "status.json"
    path.write_text(json.dumps({"directory": "/tmp", "prometheus_url": "x", "networks": ["everybody"]}), "utf-8")
    assert gpufleet_status.main(["check", "--config", str(path)]) == 2
    assert "everybody" in capsys.readouterr().err
