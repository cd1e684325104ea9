# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings of the sidecar: what is refused in which words, and what becomes of them. Whether Envoy takes it is asked in tests/sidecar."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.envoy_sidecar import (
    FilterModule,
    envoy_sidecar_config,
    envoy_sidecar_problems,
)

SETTINGS: dict[str, t.Any] = {
    "node_name": "gpu1",
    "listen_address": "192.0.2.21",
    "port": 8080,
    "paths": ["/v1/"],
    "engine_address": "127.0.0.1",
    "engine_port": "8000",
    "engine_health_path": "/health",
    "engine_grpc_port": 0,
    "engine_keepalive": 4,
    "stats_address": "192.0.2.21",
    "stats_port": 9146,
    "engine_metrics_paths": ["/metrics"],
    "admin_socket": "/run/x/admin.sock",
    "files_dir": "/run/credentials/x",
    "max_requests": 8,
    "max_connections": 1000,
    "retry": {},
    "outlier": {},
    "health": {},
    "connect_timeout": 2,
    "stream_idle": 300,
    "max_stream_seconds": 3600,
    "tls": False,
    "tls_client_names": [],
    "api_keys": [],
    "otlp_endpoint": "",
    "otlp_service_name": "sidecar",
    "otlp_sampling_percent": 100,
}
SECRET = "sk-0123456789abcdef"


def refused(**changes: t.Any) -> list[str]:
    """What is said about settings with these changes."""
    return envoy_sidecar_problems({**SETTINGS, **changes})


def test_filters() -> None:
    assert FilterModule().filters() == {
        "envoy_sidecar_config": envoy_sidecar_config,
        "envoy_sidecar_problems": envoy_sidecar_problems,
    }
    assert refused() == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"port": 0}, "port: expected a whole number from 1 to 65535, found 0"),
        ({"port": True}, "port: expected a whole number from 1 to 65535, found True"),
        ({"engine_port": "eight"}, "engine_port: expected a whole number from 1 to 65535, found 'eight'"),
        ({"engine_grpc_port": -1}, "engine_grpc_port: expected a whole number from 0 to 65535, found -1"),
        ({"max_requests": 0}, "max_requests: expected a whole number from 1 to 1000000, found 0"),
        ({"max_stream_seconds": 1.5}, "max_stream_seconds: expected a whole number from 1 to 604800, found 1.5"),
        ({"listen_address": "1.2.3"}, "listen_address: expected an IP address, found '1.2.3'"),
        ({"stats_address": "gpu1"}, "stats_address: expected an IP address, found 'gpu1'"),
        ({"engine_address": "a b"}, "engine_address: expected an IP address or a host name, found 'a b'"),
        ({"retry": []}, "retry: expected a mapping, found []"),
        ({"retry": {"trys": 1}}, "retry.trys: no such setting; known: tries, budget_percent, floor"),
        ({"outlier": {"interval_s": 0}}, "outlier.interval_s: expected a whole number from 1 to 3600, found 0"),
        ({"health": {"fall": "x"}}, "health.fall: expected a whole number from 1 to 100, found 'x'"),
        ({"paths": []}, "paths: expected a list of paths such as /v1/, found []"),
        ({"paths": ["v1"]}, "paths: expected paths such as /v1/, found 'v1'"),
        (
            {"engine_metrics_paths": "/metrics"},
            "engine_metrics_paths: expected a list of paths such as /v1/, found '/metrics'",
        ),
        ({"engine_health_path": "health"}, "engine_health_path: expected a path such as /health, found 'health'"),
        (
            {"engine_address": "192.0.2.21", "engine_port": 8080},
            "engine_port: 192.0.2.21 port 8080 is also that of envoy_sidecar_port, expected different ones",
        ),
        (
            {"stats_port": 8080},
            "stats_port: 192.0.2.21 port 8080 is also that of envoy_sidecar_port, expected different ones",
        ),
        (
            {"otlp_endpoint": "collector"},
            "otlp_endpoint: expected host:port, such as collector:4317, found 'collector'",
        ),
        (
            {"otlp_endpoint": "2001:db8::1:4317"},
            "otlp_endpoint: expected host:port, such as collector:4317, found '2001:db8::1:4317'",
        ),
        ({"otlp_sampling_percent": 101}, "otlp_sampling_percent: expected a number from 0 to 100, found 101"),
        ({"otlp_sampling_percent": "nan"}, "otlp_sampling_percent: expected a number from 0 to 100, found 'nan'"),
        (
            {"tls": True},
            "tls_client_names: expected the names in the certificates of the gateways, because envoy_sidecar_tls is true; found none",
        ),
        ({"tls_client_names": "gw1"}, "tls_client_names: expected a list of names, found 'gw1'"),
        ({"tls_client_names": ["*.x"]}, "tls_client_names: expected DNS names such as gw1.example.org, found '*.x'"),
    ],
)
def test_bad_values(changes: dict[str, t.Any], says: str) -> None:
    assert refused(**changes) == [f"envoy_sidecar_{says}"]


@pytest.mark.parametrize("keys", [SECRET, [SECRET, "sk-short"], [SECRET + "\n"], [SECRET + ' "x']])
def test_a_bad_key_is_not_shown(keys: t.Any) -> None:
    (problem,) = refused(api_keys=keys)
    assert "envoy_sidecar_api_keys" in problem
    assert "0123456789" not in problem
    assert "short" not in problem


def test_all_problems_at_once() -> None:
    assert len(refused(port=0, max_requests=0, paths=[], otlp_endpoint="x")) == 4


def test_no_configuration_of_bad_settings() -> None:
    with pytest.raises(AnsibleFilterError, match="envoy_sidecar_port: expected"):
        envoy_sidecar_config({**SETTINGS, "port": 0})
    with pytest.raises(AnsibleFilterError, match="expected the setting port, found none"):
        envoy_sidecar_config({key: value for key, value in SETTINGS.items() if key != "port"})
    with pytest.raises(AnsibleFilterError, match="expected a mapping, found list"):
        envoy_sidecar_problems([])


def test_the_order_of_settings_is_nothing() -> None:
    """AWX sorts keys."""
    mixed: dict[str, t.Any] = {
        **SETTINGS,
        "outlier": {"interval_s": 3, "ejection_s": 4},
        "retry": {"floor": 1, "tries": 2},
    }
    other = {
        key: dict(reversed(value.items())) if isinstance(value, dict) else value
        for key, value in reversed(mixed.items())
    }
    one, two = (json.dumps(envoy_sidecar_config(settings), sort_keys=True) for settings in (mixed, other))
    assert one == two


def test_numbers_of_surveys_are_strings() -> None:
    as_text = {
        key: str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in SETTINGS.items()
    }
    assert envoy_sidecar_config(as_text) == envoy_sidecar_config(SETTINGS)


def test_what_an_engine_may_have_begun_on_is_no_reason_to_try_again() -> None:
    made = envoy_sidecar_config({**SETTINGS, "retry": {"tries": 5}})
    text = json.dumps(made)
    assert '"retry_on": "connect-failure,refused-stream,reset-before-request"' in text
    assert "retry_policy" not in json.dumps(envoy_sidecar_config({**SETTINGS, "retry": {"tries": 0}}))


def test_limits_and_causes_that_are_off() -> None:
    clusters = envoy_sidecar_config({**SETTINGS, "outlier": {"server_errors": 4}})["static_resources"]["clusters"]
    engine = next(cluster for cluster in clusters if cluster["name"] == "engine")
    assert [one["max_requests"] for one in engine["circuit_breakers"]["thresholds"]] == [8, 8]
    assert engine["outlier_detection"]["enforcing_consecutive_5xx"] == 100
    off = envoy_sidecar_config(SETTINGS)["static_resources"]["clusters"][0]["outlier_detection"]
    assert off["enforcing_consecutive_5xx"] == 0
    assert off["enforcing_consecutive_gateway_failure"] == 100


def test_names_and_addresses_of_engines() -> None:
    def kind(address: str) -> str:
        clusters = envoy_sidecar_config({**SETTINGS, "engine_address": address})["static_resources"]["clusters"]
        return str(clusters[0]["type"])

    assert [kind(address) for address in ("127.0.0.1", "::1", "localhost")] == ["STATIC", "STATIC", "STRICT_DNS"]
