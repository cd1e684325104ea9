# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The configuration of the collector of spans: checked settings in, one OpenTelemetry configuration for Jaeger v2 out. PRIVATE to the collection."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peers import PORTS, is_address, whole_number

KINDS = ("jaeger", "collector", "external")
STORAGES = ("badger", "memory")
PROTOCOLS = ("http", "grpc")
PORT_NAMES = (
    "otlp_grpc_port",
    "otlp_http_port",
    "spanmetrics_port",
    "metrics_port",
    "query_port",
    "query_grpc_port",
)
# Whole numbers: lowest and highest value.
RANGES: dict[str, tuple[int, int]] = {
    **dict.fromkeys(PORT_NAMES, PORTS),
    "ttl_hours": (1, 8760),
    "max_traces": (100, 10_000_000),
    "memory_mib": (256, 1_048_576),
    "max_message_mib": (1, 64),
}
# The names of span metrics begin with it: traces_span_metrics_duration_milliseconds_bucket in Prometheus.
NAMESPACE = "traces.span.metrics"
# Environment variable of the value of a header, with the header's number.
HEADER_VARIABLE = "TRACING_HEADER_"

_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
# As a scalar of YAML and in a file of systemd, where the collector finds it: no quotes, no dollar, no ": ", no " #".
_HEADER_VALUE = re.compile(r"[A-Za-z0-9._~+/=:;,@!*()-]+( [A-Za-z0-9._~+/=:;,@!*()-]+)*")
_URL = re.compile(r"(https?)://([^/\s:\[\]]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(/[A-Za-z0-9._~/-]*)?")
_DIMENSION = re.compile(r"[a-z][a-z0-9_.]{0,63}")
# Names that carry what only one request has: a series for each would fill Prometheus.
_UNBOUNDED = ("trace", "span", "request_id", "request.id", "url", "http.target", "gpufleet.tokens", "gen_ai.usage")
_MAX_BUCKETS, _MAX_DIMENSIONS = 40, 6
_SECOND_MS = 1000


def _endpoint(address: str, port: t.Any) -> str:
    """Address and port as the collector writes them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _is_ip(value: t.Any) -> bool:
    """Whether the value is one address of a host, and no wildcard."""
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        return False
    return isinstance(value, str) and not found.is_unspecified and "%" not in value


def _bucket(milliseconds: t.Any) -> str:
    """A bound of a histogram as a duration."""
    number = int(milliseconds)
    return f"{number // _SECOND_MS}s" if number % _SECOND_MS == 0 else f"{number}ms"


def _are_buckets(value: t.Any) -> bool:
    """Whether the value is a list of rising whole numbers."""
    if not isinstance(value, t.Sequence) or isinstance(value, (str, bytes)) or not 1 <= len(value) <= _MAX_BUCKETS:
        return False
    numbers = [whole_number(item, (1, 86_400_000)) for item in value]
    known = [number for number in numbers if number is not None]
    return len(known) == len(numbers) and all(a < b for a, b in zip(known, known[1:]))


def url_parts(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of the address of a collector; None when it is none."""
    found = _URL.fullmatch(url)
    if not found:
        return None
    host = found[2].strip("[]")
    port = int(found[3] or (443 if found[1] == "https" else 80))
    if not is_address(host) or not PORTS[0] <= port <= PORTS[1]:
        return None
    return found[1], host, port


def problems(settings: t.Mapping[str, t.Any], prefix: str = "tracing_") -> list[str]:
    """What is wrong with the settings, a sentence each. No sentence has the value of a header.

    :arg settings: the values, see :func:`collector_config`.
    :arg prefix: what stands before a setting's name in the inventory.
    """
    found: list[str] = []

    def expected(name: str, what: str, value: t.Any) -> None:
        found.append(f"{prefix}{name}: expected {what}, found {value!r}")

    for name, choices in (("kind", KINDS), ("storage", STORAGES), ("external_protocol", PROTOCOLS)):
        if settings[name] not in choices:
            expected(name, " or ".join(choices), settings[name])
    for name, (low, high) in RANGES.items():
        if whole_number(settings[name], (low, high)) is None:
            expected(name, f"a whole number from {low} to {high}", settings[name])
    ports = [str(settings[name]) for name in PORT_NAMES]
    for number, port in enumerate(ports):
        if port in ports[:number]:
            expected(PORT_NAMES[number], f"another port than {prefix}{PORT_NAMES[ports.index(port)]}", port)
    if not _is_ip(settings["listen_address"]):
        expected("listen_address", "one IP address of the host", settings["listen_address"])
    if not _are_buckets(settings["span_buckets_ms"]):
        expected("span_buckets_ms", "rising whole numbers of milliseconds", settings["span_buckets_ms"])
    _dimension_problems(settings, expected)
    if settings["prometheus_url"] and url_parts(str(settings["prometheus_url"])) is None:
        expected("prometheus_url", "an address such as http://127.0.0.1:9090", settings["prometheus_url"])
    if settings["kind"] == "external":
        _external_problems(settings, expected)
    return found


def _dimension_problems(settings: t.Mapping[str, t.Any], expected: t.Callable[[str, str, t.Any], None]) -> None:
    names = settings["span_dimensions"]
    if not isinstance(names, t.Sequence) or isinstance(names, (str, bytes)) or len(names) > _MAX_DIMENSIONS:
        expected("span_dimensions", f"a list of at most {_MAX_DIMENSIONS} attributes", names)
        return
    for name in names:
        if not isinstance(name, str) or not _DIMENSION.fullmatch(name):
            expected("span_dimensions", "names of attributes such as gpufleet.peer", name)
        elif name.startswith(_UNBOUNDED):
            expected("span_dimensions", "attributes with few values, for each value is a series of its own", name)


def _external_problems(settings: t.Mapping[str, t.Any], expected: t.Callable[[str, str, t.Any], None]) -> None:
    endpoint, headers = str(settings["external_endpoint"]), settings["external_headers"]
    parts = url_parts(endpoint)
    if parts is None:
        expected("external_endpoint", "an address such as https://otlp.example.com:4318", settings["external_endpoint"])
    elif headers and parts[0] != "https" and not _is_loopback(parts[1]):
        expected("external_endpoint", "https because tracing_external_headers would travel in the clear", endpoint)
    if not isinstance(headers, t.Mapping):
        expected("external_headers", "values by name", type(headers).__name__)
        return
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name):
            expected("external_headers", "names of headers such as Authorization", name)
        elif not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value) or ": " in value:
            # Its value is a secret.
            expected("external_headers", f"letters, digits and plain signs in {name}", "something else")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def header_environment(headers: t.Mapping[str, str]) -> str:
    """The file of environment variables that has the values of headers; empty without any."""
    names = sorted(headers)
    return "".join(f'{HEADER_VARIABLE}{number}="{headers[name]}"\n' for number, name in enumerate(names))


def collector_config(settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The configuration of the collector.

    :arg settings: ``kind``, ``storage``, ``listen_address``; the ports of :data:`PORT_NAMES`; ``data_dir``, ``ttl_hours``, ``max_traces``;
        ``memory_mib``, ``max_message_mib``; ``span_buckets_ms``, ``span_dimensions``; ``prometheus_url``; ``external_endpoint``,
        ``external_protocol``, ``external_headers``, ``external_ca_file`` (path on the host).
    :returns: receivers, processors, connectors, exporters, extensions and service, as OpenTelemetry's collector reads them. The values of
        headers are references to environment variables, see :func:`header_environment`.
    """
    kind, address = settings["kind"], str(settings["listen_address"])
    limit = int(settings["memory_mib"]) * 7 // 10
    message = int(settings["max_message_mib"])
    exporters: dict[str, t.Any] = {
        "prometheus": {"endpoint": _endpoint(address, settings["spanmetrics_port"]), "metric_expiration": "1h"}
    }
    extensions: dict[str, t.Any] = {}
    sinks = ["spanmetrics"]
    if kind == "jaeger":
        exporters["jaeger_storage_exporter"] = {"trace_storage": "main", "queue": _queue()}
        extensions = _jaeger(settings)
        sinks.insert(0, "jaeger_storage_exporter")
    elif kind == "external":
        name, exporter = _external(settings)
        exporters[name] = exporter
        sinks.insert(0, name)
    return {
        "receivers": {
            "otlp": {
                "protocols": {
                    "grpc": {
                        "endpoint": _endpoint(address, settings["otlp_grpc_port"]),
                        "max_recv_msg_size_mib": message,
                        "max_concurrent_streams": 100,
                    },
                    "http": {
                        "endpoint": _endpoint(address, settings["otlp_http_port"]),
                        "max_request_body_size": message * 1024 * 1024,
                        "read_header_timeout": "10s",
                    },
                }
            }
        },
        "processors": {
            # First in the pipeline: what is refused here is tried again by who sent it.
            "memory_limiter": {"check_interval": "1s", "limit_mib": limit, "spike_limit_mib": limit // 5},
            "batch": {"send_batch_size": 512, "send_batch_max_size": 2048, "timeout": "1s"},
        },
        "connectors": {
            "spanmetrics": {
                "namespace": NAMESPACE,
                "histogram": {
                    "unit": "ms",
                    "explicit": {"buckets": [_bucket(ms) for ms in settings["span_buckets_ms"]]},
                },
                "dimensions": [{"name": name} for name in settings["span_dimensions"]],
                # Gateways and sidecars of all hosts count together, and one that restarts goes on where it was.
                "resource_metrics_key_attributes": ["service.name"],
                "metrics_flush_interval": "15s",
                "metrics_expiration": "1h",
                "aggregation_cardinality_limit": 5000,
            }
        },
        "exporters": exporters,
        **({"extensions": extensions} if extensions else {}),
        "service": {
            **({"extensions": sorted(extensions, reverse=True)} if extensions else {}),
            "pipelines": {
                "traces": {"receivers": ["otlp"], "processors": ["memory_limiter", "batch"], "exporters": sinks},
                "metrics/spanmetrics": {"receivers": ["spanmetrics"], "exporters": ["prometheus"]},
            },
            "telemetry": {
                "resource": {"service.name": "tracing"},
                "logs": {"level": "warn"},
                "metrics": {
                    "level": "normal",
                    "readers": [
                        {"pull": {"exporter": {"prometheus": {"host": address, "port": int(settings["metrics_port"])}}}}
                    ],
                },
            },
        },
    }


def _queue() -> dict[str, t.Any]:
    return {"enabled": True, "num_consumers": 4, "queue_size": 1000}


def _external(settings: t.Mapping[str, t.Any]) -> tuple[str, dict[str, t.Any]]:
    """The exporter to somebody else's collector, by its name."""
    names = sorted(settings["external_headers"])
    exporter: dict[str, t.Any] = {
        "endpoint": str(settings["external_endpoint"]),
        "sending_queue": _queue(),
        "retry_on_failure": {
            "enabled": True,
            "initial_interval": "5s",
            "max_interval": "30s",
            "max_elapsed_time": "300s",
        },
        "timeout": "10s",
    }
    if names:
        exporter["headers"] = {name: f"${{env:{HEADER_VARIABLE}{number}}}" for number, name in enumerate(names)}
    scheme = (url_parts(str(settings["external_endpoint"])) or ("https",))[0]
    if scheme == "http":
        exporter["tls"] = {"insecure": True}
    elif settings["external_ca_file"]:
        exporter["tls"] = {"ca_file": str(settings["external_ca_file"])}
    return ("otlp" if settings["external_protocol"] == "grpc" else "otlphttp"), exporter


def _jaeger(settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Storage, and the page for people, which only this host reaches."""
    backend: dict[str, t.Any] = {"memory": {"max_traces": int(settings["max_traces"])}}
    if settings["storage"] == "badger":
        folder = str(settings["data_dir"]).rstrip("/")
        backend = {
            "badger": {
                "directories": {"keys": f"{folder}/keys", "values": f"{folder}/values"},
                "ephemeral": False,
                "ttl": {"spans": f"{int(settings['ttl_hours'])}h"},
                "maintenance_interval": "5m",
            }
        }
    storage: dict[str, t.Any] = {"backends": {"main": backend}}
    query: dict[str, t.Any] = {
        "storage": {"traces": "main"},
        "http": {
            "endpoint": f"127.0.0.1:{settings['query_port']}",
            "max_request_body_size": 1024 * 1024,
            "read_header_timeout": "10s",
            "response_headers": {
                "Content-Security-Policy": "frame-ancestors 'none'",
                "Referrer-Policy": "no-referrer",
                "X-Content-Type-Options": "nosniff",
                "X-Frame-Options": "DENY",
            },
        },
        "grpc": {"endpoint": f"127.0.0.1:{settings['query_grpc_port']}"},
    }
    if settings["prometheus_url"]:
        storage["metric_backends"] = {
            "spans": {
                "prometheus": {
                    "endpoint": str(settings["prometheus_url"]),
                    "normalize_calls": True,
                    "normalize_duration": True,
                }
            }
        }
        query["storage"]["metrics"] = "spans"
    return {"jaeger_storage": storage, "jaeger_query": query}
