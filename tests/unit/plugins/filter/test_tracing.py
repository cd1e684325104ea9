# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The configuration of the collector of spans, against what Jaeger 2 knows: its program is not at hand, so names and kinds of its keys stand here."""

from __future__ import annotations

import re
import typing as t

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.tracing import (
    FilterModule,
    tracing_config,
    tracing_headers,
    tracing_problems,
)

SETTINGS: dict[str, t.Any] = {
    "kind": "jaeger",
    "storage": "badger",
    "listen_address": "192.0.2.30",
    "otlp_grpc_port": 4317,
    "otlp_http_port": "4318",
    "spanmetrics_port": 8889,
    "metrics_port": 8888,
    "query_port": 16686,
    "query_grpc_port": 16685,
    "data_dir": "/var/lib/tracing/",
    "ttl_hours": 72,
    "max_traces": 50000,
    "memory_mib": 1024,
    "max_message_mib": 4,
    "span_buckets_ms": [50, 100, 2500, 320000],
    "span_dimensions": ["gpufleet.peer"],
    "prometheus_url": "http://127.0.0.1:9090",
    "external_endpoint": "",
    "external_protocol": "http",
    "external_headers": {},
    "external_ca_file": "",
}
SECRET = "Bearer 0123456789abcdef"
EXTERNAL: dict[str, t.Any] = {
    **SETTINGS,
    "kind": "external",
    "external_endpoint": "https://otlp.example.com:4318",
    "external_headers": {"X-Scope": "fleet", "Authorization": SECRET},
}

# What the parts know, from the sources of Jaeger 2 and of the collector inside: a type, a list of one kind, or a mapping of keys. "*" is any key.
DURATION = re.compile(r"[0-9]+(ms|s|m|h)")
ENDPOINT = re.compile(r"([0-9.]+|\[[0-9a-f:.]+\]):[0-9]+")
URL = re.compile(r"https?://.+")
QUEUE = {"enabled": bool, "num_consumers": int, "queue_size": int}
RETRY = {"enabled": bool, "initial_interval": DURATION, "max_interval": DURATION, "max_elapsed_time": DURATION}
HTTP_SERVER = {
    "endpoint": ENDPOINT,
    "max_request_body_size": int,
    "read_header_timeout": DURATION,
    "response_headers": {"*": str},
}
GRPC_SERVER = {"endpoint": ENDPOINT, "max_recv_msg_size_mib": int, "max_concurrent_streams": int}
CLIENT = {
    "endpoint": URL,
    "sending_queue": QUEUE,
    "retry_on_failure": RETRY,
    "timeout": DURATION,
    "headers": {"*": re.compile(r"\$\{env:TRACING_HEADER_[0-9]+\}")},
    "tls": {"insecure": bool, "ca_file": str},
}
KNOWN: dict[str, t.Any] = {
    "receivers": {"otlp": {"protocols": {"grpc": GRPC_SERVER, "http": HTTP_SERVER}}},
    "processors": {
        "memory_limiter": {"check_interval": DURATION, "limit_mib": int, "spike_limit_mib": int},
        "batch": {"send_batch_size": int, "send_batch_max_size": int, "timeout": DURATION},
    },
    "connectors": {
        "spanmetrics": {
            "namespace": str,
            "histogram": {"unit": re.compile("ms|s"), "explicit": {"buckets": [DURATION]}},
            "dimensions": [{"name": str}],
            "resource_metrics_key_attributes": [str],
            "metrics_flush_interval": DURATION,
            "metrics_expiration": DURATION,
            "aggregation_cardinality_limit": int,
        }
    },
    "exporters": {
        "prometheus": {"endpoint": ENDPOINT, "metric_expiration": DURATION},
        "jaeger_storage_exporter": {"trace_storage": str, "queue": QUEUE},
        "otlphttp": CLIENT,
        "otlp": CLIENT,
    },
    "extensions": {
        "jaeger_storage": {
            "backends": {
                "*": {
                    "memory": {"max_traces": int},
                    "badger": {
                        "directories": {"keys": str, "values": str},
                        "ephemeral": bool,
                        "ttl": {"spans": DURATION},
                        "maintenance_interval": DURATION,
                    },
                }
            },
            "metric_backends": {
                "*": {"prometheus": {"endpoint": URL, "normalize_calls": bool, "normalize_duration": bool}}
            },
        },
        "jaeger_query": {
            "storage": {"traces": str, "metrics": str},
            "http": HTTP_SERVER,
            "grpc": GRPC_SERVER,
        },
    },
    "service": {
        "extensions": [str],
        "pipelines": {"*": {"receivers": [str], "processors": [str], "exporters": [str]}},
        "telemetry": {
            "resource": {"*": str},
            "logs": {"level": re.compile("debug|info|warn|error")},
            "metrics": {
                "level": re.compile("none|basic|normal|detailed"),
                "readers": [{"pull": {"exporter": {"prometheus": {"host": str, "port": int}}}}],
            },
        },
    },
}


def unknown(value: t.Any, known: t.Any, path: str = "") -> list[str]:
    """Where a value is not what is known, in words."""
    if isinstance(known, dict):
        if not isinstance(value, dict):
            return [f"{path}: expected a mapping"]
        found = [f"{path}.{key}: unknown" for key in value if key not in known and "*" not in known]
        for key, item in value.items():
            found += (
                unknown(item, known.get(key, known.get("*")), f"{path}.{key}") if key in known or "*" in known else []
            )
        return found
    if isinstance(known, list):
        return [text for item in value for text in unknown(item, known[0], f"{path}[]")]
    if isinstance(known, re.Pattern):
        return [] if isinstance(value, str) and known.fullmatch(value) else [f"{path}: {value!r}"]
    good = isinstance(value, known) and not (known is int and isinstance(value, bool))
    return [] if good else [f"{path}: expected {known.__name__}, found {value!r}"]


def loose_ends(config: dict[str, t.Any]) -> list[str]:
    """Parts that a pipeline names and nobody has defined, and parts that nobody uses."""
    used: dict[str, set[str]] = {kind: set() for kind in ("receivers", "processors", "exporters")}
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            used[kind] |= set(names)
    connectors = set(config["connectors"])
    found = [f"a connector without both ends: {name}" for name in connectors - (used["receivers"] & used["exporters"])]
    for kind, names in used.items():
        found += [f"{kind}: {name}" for name in (names - connectors) ^ set(config[kind])]
    return found + [
        f"extensions: {name}"
        for name in set(config["service"].get("extensions", [])) ^ set(config.get("extensions", {}))
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"storage": "memory", "prometheus_url": ""},
        {"kind": "collector", "listen_address": "2001:db8::30"},
        EXTERNAL,
        {**EXTERNAL, "external_protocol": "grpc", "external_ca_file": "/etc/tracing/external_ca.crt"},
        {**EXTERNAL, "external_endpoint": "http://127.0.0.1:4318"},
    ],
)
def test_every_part_and_key_is_one_that_jaeger_knows(changes: dict[str, t.Any]) -> None:
    config = tracing_config({**SETTINGS, **changes})
    assert unknown(config, KNOWN) == []
    assert loose_ends(config) == []
    # As a file and back it is the same.
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert SECRET not in str(config)


def test_spans_are_stored_counted_and_shown_to_this_host_only() -> None:
    config = tracing_config(SETTINGS)
    assert config["service"]["pipelines"]["traces"] == {
        "receivers": ["otlp"],
        "processors": ["memory_limiter", "batch"],
        "exporters": ["jaeger_storage_exporter", "spanmetrics"],
    }
    assert config["receivers"]["otlp"]["protocols"]["http"]["endpoint"] == "192.0.2.30:4318"
    assert config["connectors"]["spanmetrics"]["histogram"]["explicit"]["buckets"] == [
        "50ms",
        "100ms",
        "2500ms",
        "320s",
    ]
    assert config["extensions"]["jaeger_query"]["http"]["endpoint"] == "127.0.0.1:16686"
    assert config["extensions"]["jaeger_query"]["grpc"]["endpoint"] == "127.0.0.1:16685"
    assert config["extensions"]["jaeger_storage"]["backends"] == {
        "main": {
            "badger": {
                "directories": {"keys": "/var/lib/tracing/keys", "values": "/var/lib/tracing/values"},
                "ephemeral": False,
                "ttl": {"spans": "72h"},
                "maintenance_interval": "5m",
            }
        }
    }
    limiter = config["processors"]["memory_limiter"]
    assert (limiter["limit_mib"], limiter["spike_limit_mib"]) == (716, 143)
    assert tracing_config({**SETTINGS, "storage": "memory"})["extensions"]["jaeger_storage"]["backends"] == {
        "main": {"memory": {"max_traces": 50000}}
    }


def test_secrets_are_in_a_file_of_their_own() -> None:
    exporter = tracing_config(EXTERNAL)["exporters"]["otlphttp"]
    assert exporter["headers"] == {
        "Authorization": "${env:TRACING_HEADER_0}",
        "X-Scope": "${env:TRACING_HEADER_1}",
    }
    assert tracing_headers(EXTERNAL["external_headers"]) == f'TRACING_HEADER_0="{SECRET}"\nTRACING_HEADER_1="fleet"\n'
    assert tracing_headers({}) == ""
    assert "extensions" not in tracing_config(EXTERNAL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "tempo"}, "tracing_kind: expected jaeger or collector or external, found 'tempo'"),
        ({"storage": "disk"}, "tracing_storage: expected badger or memory, found 'disk'"),
        ({"otlp_http_port": 0}, "tracing_otlp_http_port: expected a whole number from 1 to 65535, found 0"),
        ({"query_port": 4317}, "tracing_query_port: expected another port than tracing_otlp_grpc_port, found '4317'"),
        ({"listen_address": "0.0.0.0"}, "tracing_listen_address: expected one IP address of the host, found '0.0.0.0'"),
        ({"listen_address": "mon1"}, "tracing_listen_address: expected one IP address of the host, found 'mon1'"),
        ({"ttl_hours": 0}, "tracing_ttl_hours: expected a whole number from 1 to 8760, found 0"),
        ({"memory_mib": 64}, "tracing_memory_mib: expected a whole number from 256 to 1048576, found 64"),
        ({"span_buckets_ms": [100, 50]}, "tracing_span_buckets_ms: expected rising whole numbers of milliseconds"),
        ({"span_buckets_ms": []}, "tracing_span_buckets_ms: expected rising whole numbers of milliseconds"),
        ({"span_dimensions": ["Peer"]}, "tracing_span_dimensions: expected names of attributes such as gpufleet.peer"),
        (
            {"span_dimensions": ["gen_ai.usage.input_tokens"]},
            "tracing_span_dimensions: expected attributes with few values",
        ),
        ({"span_dimensions": list("abcdefg")}, "tracing_span_dimensions: expected a list of at most 6 attributes"),
        ({"prometheus_url": "mon1:9090"}, "tracing_prometheus_url: expected an address such as http://127.0.0.1:9090"),
        (
            {**EXTERNAL, "external_endpoint": "otlp.example.com"},
            "tracing_external_endpoint: expected an address such as https://otlp.example.com:4318",
        ),
        (
            {**EXTERNAL, "external_endpoint": "http://otlp.example.com:4318"},
            "tracing_external_endpoint: expected https because tracing_external_headers would travel in the clear",
        ),
        ({**EXTERNAL, "external_headers": {"X Y": "z"}}, "tracing_external_headers: expected names of headers"),
        (
            {**EXTERNAL, "external_headers": {"X": 'a"b'}},
            "tracing_external_headers: expected letters, digits and plain signs in X",
        ),
        (
            {**EXTERNAL, "external_headers": {"X": "a: b"}},
            "tracing_external_headers: expected letters, digits and plain signs in X",
        ),
        ({**EXTERNAL, "external_headers": []}, "tracing_external_headers: expected values by name, found 'list'"),
    ],
)
def test_what_is_refused(changes: dict[str, t.Any], words: str) -> None:
    found = tracing_problems({**SETTINGS, **changes})
    assert len(found) == 1
    assert found[0].startswith(words)
    with pytest.raises(AnsibleFilterError, match="tracing_config: tracing_"):
        tracing_config({**SETTINGS, **changes})


def test_a_secret_is_not_in_a_sentence() -> None:
    found = tracing_problems({**EXTERNAL, "external_headers": {"Authorization": "a-secret\n"}})
    assert found
    assert "a-secret" not in " ".join(found)


def test_what_is_no_mapping() -> None:
    assert set(FilterModule().filters()) == {"tracing_config", "tracing_headers", "tracing_problems"}
    with pytest.raises(AnsibleFilterError, match="expected a mapping, found list"):
        tracing_problems([])
    with pytest.raises(AnsibleFilterError, match="expected a mapping, found str"):
        tracing_headers("a")
    with pytest.raises(AnsibleFilterError, match="expected the setting kind, found none"):
        tracing_problems({})
