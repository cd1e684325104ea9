# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The configuration of the Envoy that stands between gateways and an engine: checked settings in, one bootstrap out. PRIVATE to the collection."""

from __future__ import annotations

import ipaddress
import math
import re
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peers import PORTS, is_address, whole_number

CERTIFICATE = "tls.crt"
KEY = "tls.key"
CLIENT_CA = "client_ca.crt"

# Whole numbers: lowest and highest value.
RANGES: dict[str, tuple[int, int]] = {
    "port": PORTS,
    "engine_port": PORTS,
    "engine_grpc_port": (0, PORTS[1]),
    "stats_port": (0, PORTS[1]),
    "max_requests": (1, 1_000_000),
    "max_connections": (16, 1_000_000),
    "connect_timeout": (1, 75),
    "engine_keepalive": (0, 86_400),
    "stream_idle": (1, 86_400),
    "max_stream_seconds": (1, 604_800),
}
OUTLIER: dict[str, tuple[int, int, int]] = {
    # name: lowest, highest, default. 0 of the first three switches a cause off.
    "gateway_failures": (0, 1000, 5),
    "server_errors": (0, 1000, 0),
    "connect_failures": (0, 1000, 3),
    "interval_s": (1, 3600, 2),
    "ejection_s": (1, 3600, 10),
    "max_ejection_s": (1, 86_400, 120),
}
RETRY: dict[str, tuple[int, int, int]] = {
    "tries": (0, 5, 1),
    "budget_percent": (0, 100, 10),
    "floor": (0, 1000, 2),
}
HEALTH: dict[str, tuple[int, int, int]] = {
    "interval_s": (1, 3600, 3),
    "unhealthy_interval_s": (1, 3600, 1),
    "timeout_s": (1, 600, 5),
    "fall": (1, 100, 3),
    "rise": (1, 100, 1),
}
GROUPS: dict[str, dict[str, tuple[int, int, int]]] = {"outlier": OUTLIER, "retry": RETRY, "health": HEALTH}

_KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")
_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_TYPE = "type.googleapis.com/envoy"
_EXTENSIONS = f"{_TYPE}.extensions"
_ENGINE = "engine"
_GRPC = "engine_grpc"
_METRICS = "engine_metrics"
_ADMIN = "admin"
_TRACES = "otlp"


def _items(value: t.Any) -> list[t.Any] | None:
    """The value when it is a list, else None."""
    return list(value) if isinstance(value, t.Sequence) and not isinstance(value, (str, bytes)) else None


def _is_number(value: t.Any) -> bool:
    """Whether the value is a finite number, and not true or false."""
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _is_ip(value: t.Any) -> bool:
    """Whether the value is an address to listen on, which Envoy wants as a number."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return isinstance(value, str) and "%" not in value


def otlp_place(endpoint: str) -> tuple[str, int] | None:
    """Host and port of an endpoint such as collector:4317 or [2001:db8::1]:4317; None when it is none."""
    host, colon, port = endpoint.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = whole_number(port, PORTS)
    if not colon or number is None or not is_address(bare) or (":" in bare and bare == host):
        return None
    return bare, number


def problems(settings: t.Mapping[str, t.Any], prefix: str = "envoy_sidecar_") -> list[str]:
    """What is wrong with the settings, a sentence each.

    :arg settings: the values, see :func:`bootstrap`.
    :arg prefix: what stands before a setting's name in the inventory.
    """
    found: list[str] = []

    def expected(name: str, what: str, value: t.Any) -> None:
        found.append(f"{prefix}{name}: expected {what}, found {value!r}")

    for name, limits in RANGES.items():
        if whole_number(settings[name], limits) is None:
            expected(name, f"a whole number from {limits[0]} to {limits[1]}", settings[name])
    for name in ("listen_address", "stats_address"):
        if not _is_ip(settings[name]):
            expected(name, "an IP address", settings[name])
    if not is_address(settings["engine_address"]):
        expected("engine_address", "an IP address or a host name", settings["engine_address"])
    for group, known in GROUPS.items():
        given = settings[group]
        if not isinstance(given, t.Mapping):
            expected(group, "a mapping", given)
            continue
        for name in sorted(set(map(str, given)) - set(known)):
            found.append(f"{prefix}{group}.{name}: no such setting; known: {', '.join(known)}")
        for name in sorted(set(map(str, given)) & set(known)):
            low, high, _default = known[name]
            if whole_number(given[name], (low, high)) is None:
                expected(f"{group}.{name}", f"a whole number from {low} to {high}", given[name])
    for name, least in (("paths", 1), ("engine_metrics_paths", 0)):
        paths = _items(settings[name])
        if paths is None or len(paths) < least:
            expected(name, "a list of paths such as /v1/", settings[name])
            continue
        for path in paths:
            if not _PATH.fullmatch(str(path)):
                expected(name, "paths such as /v1/", path)
    if not _PATH.fullmatch(str(settings["engine_health_path"])):
        expected("engine_health_path", "a path such as /health", settings["engine_health_path"])
    found += _places_problems(settings, prefix)
    found += _secret_problems(settings, prefix)
    endpoint = settings["otlp_endpoint"]
    if endpoint and otlp_place(str(endpoint)) is None:
        expected("otlp_endpoint", "host:port, such as collector:4317", endpoint)
    sampling = settings["otlp_sampling_percent"]
    if not _is_number(sampling) or not 0 <= float(sampling) <= 100:
        expected("otlp_sampling_percent", "a number from 0 to 100", sampling)
    return found


def _places_problems(settings: t.Mapping[str, t.Any], prefix: str) -> list[str]:
    """Two that would listen at one place."""
    found = []
    places = {
        "port": (settings["listen_address"], settings["port"]),
        "engine_port": (settings["engine_address"], settings["engine_port"]),
        "engine_grpc_port": (settings["engine_address"], settings["engine_grpc_port"]),
        "stats_port": (settings["stats_address"], settings["stats_port"]),
    }
    seen: dict[tuple[str, str], str] = {}
    for name, (address, port) in places.items():
        if str(port) == "0":
            continue
        other = seen.setdefault((str(address), str(port)), name)
        if other != name:
            found.append(
                f"{prefix}{name}: {address} port {port} is also that of {prefix}{other}, expected different ones"
            )
    return found


def _secret_problems(settings: t.Mapping[str, t.Any], prefix: str) -> list[str]:
    """What is wrong with keys and names of clients. No key is shown."""
    found = []
    keys = _items(settings["api_keys"])
    if keys is None:
        found.append(f"{prefix}api_keys: expected a list of keys, found something else (not shown)")
    elif any(not _KEY.fullmatch(str(key)) for key in keys):
        found.append(
            f"{prefix}api_keys: expected 16 to 512 letters, digits and ._~+/=- in each key; one differs (not shown)"
        )
    names = _items(settings["tls_client_names"])
    if names is None:
        found.append(f"{prefix}tls_client_names: expected a list of names, found {settings['tls_client_names']!r}")
    else:
        if settings["tls"] and not names:
            found.append(
                f"{prefix}tls_client_names: expected the names in the certificates of the gateways, because"
                f" {prefix}tls is true; found none"
            )
        found += [
            f"{prefix}tls_client_names: expected DNS names such as gw1.example.org, found {name!r}"
            for name in names
            if not _NAME.fullmatch(str(name))
        ]
    return found


# -- pieces of the bootstrap


def _place(address: t.Any, port: t.Any) -> dict[str, t.Any]:
    return {"socket_address": {"address": str(address), "port_value": int(port)}}


def _seconds(value: t.Any) -> str:
    return f"{int(value)}s"


def _with_defaults(given: t.Mapping[str, t.Any], known: t.Mapping[str, tuple[int, int, int]]) -> dict[str, int]:
    return {name: int(given.get(name, default)) for name, (_low, _high, default) in known.items()}


def _endpoints(name: str, endpoint: dict[str, t.Any]) -> dict[str, t.Any]:
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": endpoint}}]}]}


def _protocol(**options: t.Any) -> dict[str, t.Any]:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: {"@type": f"type.googleapis.com/{name}", **options}}


def _cluster(name: str, settings: t.Mapping[str, t.Any], port: t.Any, protocol: dict[str, t.Any]) -> dict[str, t.Any]:
    """What all clusters that lead to the engine have."""
    address = str(settings["engine_address"])
    numeric = ":" in address or bool(re.fullmatch(r"[\d.]+", address))
    return {
        "name": name,
        "type": "STATIC" if numeric else "STRICT_DNS",
        "connect_timeout": _seconds(settings["connect_timeout"]),
        "load_assignment": _endpoints(name, _place(address, port)),
        "typed_extension_protocol_options": protocol,
    }


def _guarded(
    name: str, settings: t.Mapping[str, t.Any], port: t.Any, protocol: dict[str, t.Any], check: dict[str, t.Any]
) -> dict[str, t.Any]:
    """A cluster with all that keeps a sick or a full engine from being asked."""
    outlier = _with_defaults(settings["outlier"], OUTLIER)
    retry = _with_defaults(settings["retry"], RETRY)
    health = _with_defaults(settings["health"], HEALTH)
    most = int(settings["max_requests"])
    threshold = {
        # A request whose connection is still being made is pending: as many as may run, or a burst would be turned away before
        # the limit is reached. Connections are bounded by requests; a lower bound of theirs would make requests wait here.
        "max_connections": 2 * most,
        "max_pending_requests": most,
        "max_requests": most,
        "retry_budget": {
            "budget_percent": {"value": retry["budget_percent"]},
            "min_retry_concurrency": retry["floor"],
        },
        "track_remaining": True,
    }
    return {
        **_cluster(name, settings, port, protocol),
        "lb_policy": "LEAST_REQUEST",
        # An engine that is not healthy is not asked, although there is no other one.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": {
            "thresholds": [{"priority": "DEFAULT", **threshold}, {"priority": "HIGH", **threshold}],
        },
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_gateway_failure": outlier["gateway_failures"] or 1,
            "enforcing_consecutive_gateway_failure": 100 if outlier["gateway_failures"] else 0,
            "consecutive_5xx": outlier["server_errors"] or 1,
            "enforcing_consecutive_5xx": 100 if outlier["server_errors"] else 0,
            "consecutive_local_origin_failure": outlier["connect_failures"] or 1,
            "enforcing_consecutive_local_origin_failure": 100 if outlier["connect_failures"] else 0,
            "interval": _seconds(outlier["interval_s"]),
            "base_ejection_time": _seconds(outlier["ejection_s"]),
            "max_ejection_time": _seconds(max(outlier["max_ejection_s"], outlier["ejection_s"])),
            "max_ejection_percent": 100,
            # Shares need more hosts than one to be compared with.
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_failure_percentage": 0,
            "enforcing_failure_percentage_local_origin": 0,
            "successful_active_health_check_uneject_host": True,
        },
        "health_checks": [
            {
                "interval": _seconds(health["interval_s"]),
                # Without requests, Envoy would look once a minute only.
                "no_traffic_interval": _seconds(health["interval_s"]),
                "unhealthy_interval": _seconds(health["unhealthy_interval_s"]),
                "no_traffic_healthy_interval": _seconds(health["interval_s"]),
                "timeout": _seconds(health["timeout_s"]),
                "unhealthy_threshold": health["fall"],
                "healthy_threshold": health["rise"],
                "reuse_connection": False,
                **check,
            }
        ],
    }


def _clusters(settings: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    keep = int(settings["engine_keepalive"])
    idle: dict[str, t.Any] = {"idle_timeout": _seconds(keep)} if keep else {"max_requests_per_connection": 1}
    plain = _protocol(common_http_protocol_options=idle, explicit_http_config={"http_protocol_options": {}})
    look = {"http_health_check": {"path": str(settings["engine_health_path"])}}
    found = [_guarded(_ENGINE, settings, settings["engine_port"], plain, look)]
    if int(settings["engine_grpc_port"]):
        keepalive = {"connection_keepalive": {"interval": "30s", "timeout": "5s"}}
        http2 = _protocol(explicit_http_config={"http2_protocol_options": keepalive})
        found.append(_guarded(_GRPC, settings, settings["engine_grpc_port"], http2, {"grpc_health_check": {}}))
    if int(settings["stats_port"]):
        found.append(
            {
                "name": _ADMIN,
                "type": "STATIC",
                "connect_timeout": "2s",
                "load_assignment": _endpoints(_ADMIN, {"pipe": {"path": str(settings["admin_socket"])}}),
            }
        )
        if settings["engine_metrics_paths"]:
            # Not by the cluster of the requests: metrics are wanted most when the engine is full.
            found.append(_cluster(_METRICS, settings, settings["engine_port"], plain))
    traces = otlp_place(str(settings["otlp_endpoint"])) if settings["otlp_endpoint"] else None
    if traces:
        found.append(
            {
                "name": _TRACES,
                "type": "STRICT_DNS",
                "connect_timeout": "2s",
                "load_assignment": _endpoints(_TRACES, _place(*traces)),
                "typed_extension_protocol_options": _protocol(explicit_http_config={"http2_protocol_options": {}}),
            }
        )
    return found


def _header(name: str, value: str) -> dict[str, t.Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _reply(
    access_filter: dict[str, t.Any], status: int, code: str, message: str, headers: t.Mapping[str, str] | None = None
) -> dict[str, t.Any]:
    """How an answer of Envoy itself looks: as an error of OpenAI's interface."""
    kind = "authentication_error" if status == 401 else "server_error"
    return {
        "filter": access_filter,
        "status_code": status,
        "headers_to_add": [_header(name, value) for name, value in (headers or {}).items()],
        "body_format_override": {"json_format": {"error": {"message": message, "type": kind, "code": code}}},
    }


def _flags(*flags: str) -> dict[str, t.Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _replies() -> dict[str, t.Any]:
    """A 503 of these says that the engine got nothing of the request, and a gateway may send it elsewhere. What the engine may have begun
    to work on is 502 or 504, which no gateway sends again."""
    overflow = {"x-engine-rejected": "overflow", "retry-after": "1"}
    unavailable = {"x-engine-rejected": "unavailable", "retry-after": "1"}
    forbidden = {
        "status_code_filter": {"comparison": {"value": {"default_value": 403, "runtime_key": "gpufleet.forbidden"}}}
    }
    return {
        "mappers": [
            _reply(_flags("UO", "OM"), 503, "overflow", "the engine has as many requests as it may have", overflow),
            _reply(_flags("UH", "UF"), 503, "unavailable", "the engine is not available", unavailable),
            _reply(_flags("UC", "UR", "LR", "UPE"), 502, "engine_failed", "the engine ended the connection"),
            _reply(_flags("UT", "SI", "DT", "UMSDR"), 504, "engine_timeout", "the engine was silent for too long"),
            _reply(forbidden, 401, "invalid_api_key", "wrong or missing API key", {"www-authenticate": "Bearer"}),
        ],
        "body_format": {
            "json_format": {
                "error": {"message": "%LOCAL_REPLY_BODY%", "type": "server_error", "code": "%RESPONSE_CODE%"}
            }
        },
    }


def _http_filters(settings: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    http = f"{_EXTENSIONS}.filters.http"
    clusters = [_ENGINE] + ([_GRPC] if int(settings["engine_grpc_port"]) else [])
    found: list[dict[str, t.Any]] = [
        {
            "name": "envoy.filters.http.health_check",
            "typed_config": {
                "@type": f"{http}.health_check.v3.HealthCheck",
                "pass_through_mode": False,
                # /health is where gateways look at an engine.
                "headers": [{"name": ":path", "string_match": {"safe_regex": {"regex": r"/healthz?(\?.*)?"}}}],
                "cluster_min_healthy_percentages": {name: {"value": 50} for name in clusters},
            },
        }
    ]
    if settings["api_keys"]:
        keys = [
            {"header": {"name": "authorization", "string_match": {"exact": f"Bearer {key}"}}}
            for key in dict.fromkeys(settings["api_keys"])
        ]
        policy = {"permissions": [{"any": True}], "principals": keys}
        found.append(
            {
                "name": "envoy.filters.http.rbac",
                "typed_config": {
                    "@type": f"{http}.rbac.v3.RBAC",
                    "rules": {"action": "ALLOW", "policies": {"api_keys": policy}},
                },
            }
        )
    router = {"@type": f"{http}.router.v3.Router", "suppress_envoy_headers": True}
    return [*found, {"name": "envoy.filters.http.router", "typed_config": router}]


def _routes(settings: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    retry = _with_defaults(settings["retry"], RETRY)
    action: dict[str, t.Any] = {"timeout": "0s", "idle_timeout": _seconds(settings["stream_idle"])}
    if retry["tries"]:
        # Nothing of these has reached an engine. Neither is a status of the engine among them.
        action["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": retry["tries"],
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        }
    found: list[dict[str, t.Any]] = []
    if int(settings["engine_grpc_port"]):
        duration = {"grpc_timeout_header_max": _seconds(settings["max_stream_seconds"])}
        grpc = {**action, "cluster": _GRPC, "max_stream_duration": duration}
        found.append({"match": {"prefix": "/", "grpc": {}}, "route": grpc})
    found += [{"match": {"prefix": str(path)}, "route": {**action, "cluster": _ENGINE}} for path in settings["paths"]]
    return found


def _manager(
    prefix: str, routes: list[dict[str, t.Any]], filters: list[dict[str, t.Any]], **more: t.Any
) -> dict[str, t.Any]:
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": prefix,
            "codec_type": "AUTO",
            # The host of the request is the gateway's business.
            "route_config": {"name": prefix, "virtual_hosts": [{"name": prefix, "domains": ["*"], "routes": routes}]},
            "http_filters": filters,
            **more,
        },
    }


def _main_manager(settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    log = f"{_EXTENSIONS}.access_loggers.stream.v3.StderrAccessLog"
    line = {
        "time": "%START_TIME%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "path": "%REQ(:PATH)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "ms": "%DURATION%",
    }
    more: dict[str, t.Any] = {
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "max_stream_duration": _seconds(settings["max_stream_seconds"]),
        },
        "stream_idle_timeout": _seconds(settings["stream_idle"]),
        "http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "5s"}},
        "server_header_transformation": "PASS_THROUGH",
        "skip_xff_append": True,
        "preserve_external_request_id": True,
        "local_reply_config": _replies(),
        # Only what went wrong, and never what was asked or answered.
        "access_log": [
            {
                "name": "envoy.access_loggers.stderr",
                "filter": {
                    "response_flag_filter": {
                        "flags": ["UO", "OM", "UH", "UF", "UC", "UR", "LR", "UPE", "UT", "SI", "DT", "UMSDR"]
                    }
                },
                "typed_config": {"@type": log, "log_format": {"json_format": line}},
            }
        ],
    }
    if settings["otlp_endpoint"]:
        more["tracing"] = {
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": f"{_TYPE}.config.trace.v3.OpenTelemetryConfig",
                    "grpc_service": {"envoy_grpc": {"cluster_name": _TRACES}, "timeout": "1s"},
                    "service_name": str(settings["otlp_service_name"]),
                    "sampler": _sampler(float(settings["otlp_sampling_percent"])),
                },
            },
            # The sampler decides. A share here would thin out the traces of gateways as well.
            "random_sampling": {"value": 100},
            "spawn_upstream_span": True,
        }
    return _manager("engine", _routes(settings), _http_filters(settings), **more)


def _sampler(percent: float) -> dict[str, t.Any]:
    """A request that brings a trace is recorded when its sender's is; of the others, so many percent."""
    samplers, kind = "envoy.tracers.opentelemetry.samplers", f"{_EXTENSIONS}.tracers.opentelemetry.samplers.v3"
    share = {"numerator": round(percent * 10_000), "denominator": "MILLION"}
    own = {
        "name": f"{samplers}.trace_id_ratio_based",
        "typed_config": {"@type": f"{kind}.TraceIdRatioBasedSamplerConfig", "sampling_percentage": share},
    }
    return {
        "name": f"{samplers}.parent_based",
        "typed_config": {"@type": f"{kind}.ParentBasedSamplerConfig", "wrapped_sampler": own},
    }


def _transport(settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    folder = str(settings["files_dir"])
    names = [{"san_type": "DNS", "matcher": {"exact": str(name)}} for name in settings["tls_client_names"]]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": f"{folder}/{CERTIFICATE}"},
                        "private_key": {"filename": f"{folder}/{KEY}"},
                    }
                ],
                "validation_context": {
                    "trusted_ca": {"filename": f"{folder}/{CLIENT_CA}"},
                    "match_typed_subject_alt_names": names,
                },
            },
        },
    }


def _stats_manager(settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    only_get = [{"name": ":method", "string_match": {"exact": "GET"}}]
    routes: list[dict[str, t.Any]] = [
        {"match": {"path": "/stats/prometheus", "headers": only_get}, "route": {"cluster": _ADMIN, "timeout": "15s"}}
    ]
    routes += [
        {"match": {"path": str(path), "headers": only_get}, "route": {"cluster": _METRICS, "timeout": "15s"}}
        for path in settings["engine_metrics_paths"]
    ]
    router = {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router", "suppress_envoy_headers": True}
    filters = [{"name": "envoy.filters.http.router", "typed_config": router}]
    return _manager("stats", routes, filters, common_http_protocol_options={"idle_timeout": "120s"})


def bootstrap(settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The whole configuration of Envoy.

    :arg settings: ``node_name``; ``listen_address``, ``port``; ``engine_address``, ``engine_port``, ``engine_health_path``, ``engine_grpc_port``
        (0: none), ``engine_keepalive`` (0: a connection for each request); ``stats_address``, ``stats_port`` (0: none),
        ``engine_metrics_paths``; ``admin_socket``, ``files_dir``;
        ``paths``; ``max_requests``, ``max_connections``, ``retry``, ``outlier``, ``health``; ``connect_timeout``, ``stream_idle``,
        ``max_stream_seconds``; ``tls``, ``tls_client_names``; ``api_keys``; ``otlp_endpoint``, ``otlp_service_name``, ``otlp_sampling_percent``.
        :func:`problems` has accepted them.
    """
    chain: dict[str, t.Any] = {"filters": [_main_manager(settings)]}
    if settings["tls"]:
        chain["transport_socket"] = _transport(settings)
    listeners: list[dict[str, t.Any]] = [
        {
            "name": "engine",
            "address": _place(settings["listen_address"], settings["port"]),
            "filter_chains": [chain],
            # What is held of one connection; a stream of events is passed on as it comes.
            "per_connection_buffer_limit_bytes": 1_048_576,
        }
    ]
    if int(settings["stats_port"]):
        listeners.append(
            {
                "name": "stats",
                "address": _place(settings["stats_address"], settings["stats_port"]),
                "filter_chains": [{"filters": [_stats_manager(settings)]}],
                "per_connection_buffer_limit_bytes": 1_048_576,
                "ignore_global_conn_limit": True,
            }
        )
    monitor = {
        "@type": f"{_EXTENSIONS}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": int(settings["max_connections"]),
    }
    return {
        "node": {"id": str(settings["node_name"]), "cluster": "gpufleet"},
        # A socket that only its user and root can open: the page shows the configuration, with a key of clients in it.
        "admin": {"address": {"pipe": {"path": str(settings["admin_socket"]), "mode": 0o600}}},
        "static_resources": {"listeners": listeners, "clusters": _clusters(settings)},
        "overload_manager": {
            "resource_monitors": [
                {"name": "envoy.resource_monitors.global_downstream_max_connections", "typed_config": monitor}
            ]
        },
    }
