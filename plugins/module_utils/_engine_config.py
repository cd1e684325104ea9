# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""From the plan to an engine's own file: what TensorRT-LLM, SGLang and vLLM are told on one host.

Everything that can stand in the file stands in the file; the command line has the weights, and words in place of the address and the port, which the
supervisor knows: a release is the same on equal hosts. No key is in either.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _engine_schema

ENGINES = ("tensorrt_llm", "sglang", "vllm")
# Architectures whose kernels for multi-head latent attention cut prompts and share cache blocks (TensorRT-LLM: SM90 and later).
_MLA_FAMILIES = ("deepseek_v3", "deepseek_v2")
_MLA_TENSORRT_LLM = ("sm90", "sm100")
# Activations of 4-bit weights are 16-bit floats: the kernels for them know no bfloat16 on Ampere.
_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "awq": "float16"}
_FRACTION_DIGITS = 3
_JOIN_PORT = 20000
# http and no TLS: the engines' exporters take the scheme for that.
_TRACING = re.compile(r"http://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
# The supervisor puts what its file for --listen says in their place.
_ADDRESS, _PORT = "@ADDRESS@", "@PORT@"


class ConfigError(Exception):
    """The engine cannot be configured, in words for the operator."""


@dataclass(frozen=True)
class Settings:
    """What the plan does not say.

    :ivar model_name: name for clients.
    :ivar listen_address: where the engine answers; only looked at, the command does not have it.
    :ivar weights: directory of the weights on the host, or in the container.
    :ivar config_dir: directory of engine.yml there.
    :ivar bin_dir: where the engine's programs are, with a slash at the end; empty in a container.
    :ivar drain_seconds: time for requests in flight.
    :ivar options: what the operator wants in the engine's file; it wins.
    :ivar environment: the same for the engine's environment.
    :ivar addresses: address of each host of the replica, for a replica of several.
    :ivar join_port: where the hosts of a replica meet.
    :ivar rdma_interface: interface over which they meet; empty: NCCL looks for itself.
    :ivar rdma_adapters: RDMA adapters of NCCL; empty: all.
    :ivar rdma_gid_index: index of the RoCE v2 address in the adapters' tables; -1: NCCL looks for itself.
    :ivar tracing_endpoint: http://HOST:PORT of a collector that takes OTLP over gRPC; empty: no spans.
    """

    model_name: str
    listen_address: str
    weights: str
    config_dir: str
    bin_dir: str = ""
    drain_seconds: int = 30
    options: t.Mapping[str, t.Any] = field(default_factory=dict)
    environment: t.Mapping[str, str] = field(default_factory=dict)
    addresses: t.Mapping[str, str] = field(default_factory=dict)
    join_port: int = _JOIN_PORT
    rdma_interface: str = ""
    rdma_adapters: t.Sequence[str] = ()
    rdma_gid_index: int = -1
    tracing_endpoint: str = ""


@dataclass(frozen=True)
class Place:
    """A host's place in its replica.

    :ivar rank: 0 is the leader, which answers requests.
    :ivar hosts: all of the replica, the leader first.
    :ivar kind: what the plan says about replicas like this.
    """

    rank: int
    hosts: t.Sequence[str]
    kind: t.Mapping[str, t.Any]

    @property
    def role(self) -> str:
        """Whether it stands alone, leads or works."""
        if len(self.hosts) == 1:
            return "single"
        return "worker" if self.rank else "leader"


def place_of(plan: t.Mapping[str, t.Any], engine: str, host: str) -> Place:
    """Find a host in the plan.

    :raises ConfigError: there is no plan for this engine, or none with this host.
    """
    if plan.get("engine") != engine:
        found = f"one for {plan['engine']}" if plan.get("engine") else "none"
        raise ConfigError(
            f"fleet_plan: expected a plan for {engine}, found {found}; plan.yml with fleet_engine: {engine} makes one"
        )
    for replica in plan.get("replicas", []):
        if host in replica["hosts"]:
            leader = replica.get("leader", replica["hosts"][0])
            hosts = [leader, *(name for name in replica["hosts"] if name != leader)]
            kinds = plan.get("kinds") or [plan]
            return Place(hosts.index(host), hosts, kinds[replica.get("kind", 0)])
    spare = {entry["host"]: entry["reason"] for entry in plan.get("spare", [])}
    why = f"; the plan leaves it out: {spare[host]}" if host in spare else ""
    raise ConfigError(f"fleet_plan: expected a replica with {host}, found none{why}")


def merged(base: t.Mapping[str, t.Any], over: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """One mapping laid over another, mappings in them as well; everything else is replaced."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, t.Mapping) and isinstance(out.get(key), t.Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def is_loopback(address: str) -> bool:
    """Whether only this host reaches an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, _FRACTION_DIGITS)


def _tensorrt_llm(plan: t.Mapping[str, t.Any], place: Place, settings: Settings) -> dict[str, t.Any]:
    kind, limits = place.kind, plan["limits"]
    memory = kind["memory_per_device"]
    mla = plan["model"]["family"] in _MLA_FAMILIES and kind["device"]["architecture"] not in _MLA_TENSORRT_LLM
    free = memory["kv_cache_gib"] + memory["free_gib"]
    config: dict[str, t.Any] = {
        "dtype": _DTYPES.get(plan["precision"], "auto"),
        "tensor_parallel_size": kind["tensor_parallel"],
        "pipeline_parallel_size": kind["pipeline_parallel"],
        "max_batch_size": limits["max_batch_size"],
        "max_num_tokens": limits["max_num_tokens"],
        "max_seq_len": plan["context_tokens"],
        "enable_chunked_prefill": bool(plan["chunked_prefill"]) and not mla,
        "cuda_graph_config": {"batch_sizes": list(limits["batch_sizes"]), "enable_padding": True},
        "kv_cache_config": {
            "dtype": "fp8" if plan["kv_dtype"] == "fp8" else "auto",
            # Of the memory that is free once the weights are loaded, not of the whole GPU.
            "free_gpu_memory_fraction": _ratio(memory["kv_cache_gib"], free),
            "enable_block_reuse": not mla,
            "enable_partial_reuse": not mla,
            "tokens_per_block": 32,
        },
        "scheduler_config": {
            "capacity_scheduler_policy": "GUARANTEED_NO_EVICT",
            "context_chunking_policy": "FIRST_COME_FIRST_SERVED",
            "dynamic_batch_config": {
                "enable_batch_size_tuning": True,
                "enable_max_num_tokens_tuning": False,
                "dynamic_batch_moving_average_window": 128,
            },
        },
        "batch_wait_timeout_ms": limits["batch_wait_ms"],
        "batch_wait_max_tokens_ratio": 0.5,
        "torch_compile_config": {
            "enable_fullgraph": True,
            "enable_inductor": False,
            "enable_piecewise_cuda_graph": True,
            "capture_num_tokens": [256, 512],
            "enable_userbuffers": True,
            "max_num_streams": 1,
        },
        # Without return_perf_metrics there is no /prometheus/metrics. Nobody reads the queue of iterations, so it gets a bound.
        "return_perf_metrics": True,
        "enable_iter_perf_stats": True,
        "iter_stats_max_iterations": 1000,
        "print_iter_log": False,
        "stream_interval": 1,
        "trust_remote_code": False,
    }
    if kind.get("expert_parallel", 1) > 1:
        config["moe_expert_parallel_size"] = kind["expert_parallel"]
    return config


def _sglang(plan: t.Mapping[str, t.Any], place: Place, settings: Settings) -> dict[str, t.Any]:
    kind, limits, precision = place.kind, plan["limits"], plan["precision"]
    memory = kind["memory_per_device"]
    architecture = kind["device"]["architecture"]
    config: dict[str, t.Any] = {
        "served-model-name": settings.model_name,
        "dtype": _DTYPES.get(precision, "auto"),
        "kv-cache-dtype": _sglang_kv(plan["kv_dtype"], architecture),
        "tp-size": kind["tensor_parallel"],
        "pp-size": kind["pipeline_parallel"],
        # What weights and KV cache may take together; activations and graphs come on top.
        "mem-fraction-static": _ratio(memory["weights_gib"] + memory["kv_cache_gib"], memory["total_gib"]),
        "context-length": plan["context_tokens"],
        "max-running-requests": limits["max_batch_size"],
        "max-prefill-tokens": limits["max_num_tokens"],
        "chunked-prefill-size": limits["max_num_tokens"] if plan["chunked_prefill"] else -1,
        "cuda-graph-bs-decode": list(limits["batch_sizes"]),
        "cuda-graph-max-bs-decode": max(limits["batch_sizes"]),
        "enable-torch-compile": True,
        # Larger batches gain little from it and take long to compile.
        "torch-compile-max-bs": min(limits["batch_sizes"]),
        "disable-radix-cache": False,
        "enable-cache-report": True,
        "enable-metrics": True,
        "stream-interval": 1,
        "log-level": "info",
        "trust-remote-code": False,
    }
    quantization = {"awq": "awq_marlin", "fp8": "fp8", "int8": "w8a8_int8"}.get(precision, "")
    if precision == "awq" and plan["model"]["family"] == "deepseek_v3":
        quantization = "moe_wna16"
    elif precision == "awq" and architecture == "sm75":
        quantization = "awq"
    if quantization:
        config["quantization"] = quantization
    if kind.get("expert_parallel", 1) > 1:
        config["ep-size"] = kind["expert_parallel"]
    if len(place.hosts) > 1:
        config["nnodes"] = len(place.hosts)
        config["node-rank"] = place.rank
        config["dist-init-addr"] = _endpoint(_leader_address(place, settings), settings.join_port)
        # The slowest host of a replica has read its weights by then.
        config["dist-timeout"] = 3600
    return config


def _sglang_kv(dtype: str, architecture: str) -> str:
    if dtype == "fp8":
        return "fp8_e4m3" if architecture in ("sm89", "sm90", "sm100") else "fp8_e5m2"
    return "bfloat16" if dtype == "bf16" else "auto"


def _vllm(plan: t.Mapping[str, t.Any], place: Place, settings: Settings) -> dict[str, t.Any]:
    kind, limits, precision = place.kind, plan["limits"], plan["precision"]
    memory = kind["memory_per_device"]
    chunked = bool(plan["chunked_prefill"])
    config: dict[str, t.Any] = {
        "served-model-name": [settings.model_name],
        "dtype": _DTYPES.get(precision, "auto"),
        "kv-cache-dtype": "fp8" if plan["kv_dtype"] == "fp8" else "auto",
        "tensor-parallel-size": kind["tensor_parallel"],
        "pipeline-parallel-size": kind["pipeline_parallel"],
        "gpu-memory-utilization": round(1 - memory["free_gib"] / memory["total_gib"], _FRACTION_DIGITS),
        "max-model-len": plan["context_tokens"],
        "max-num-seqs": limits["max_batch_size"],
        # A prompt that is not cut must fit into one step.
        "max-num-batched-tokens": limits["max_num_tokens"]
        if chunked
        else max(limits["max_num_tokens"], plan["context_tokens"]),
        "enable-chunked-prefill": chunked,
        "enable-prefix-caching": True,
        "compilation-config": {
            "mode": "VLLM_COMPILE",
            "cudagraph_mode": "FULL_AND_PIECEWISE",
            "cudagraph_capture_sizes": list(limits["batch_sizes"]),
        },
        "disable-log-stats": False,
        "disable-uvicorn-access-log": True,
        "shutdown-timeout": settings.drain_seconds,
        "trust-remote-code": False,
    }
    if precision == "fp8" and plan["model"]["family"] == "dense":
        config["quantization"] = "fp8"
    if kind.get("expert_parallel", 1) > 1:
        config["enable-expert-parallel"] = True
    if len(place.hosts) > 1:
        config["distributed-executor-backend"] = "mp"
        config["nnodes"] = len(place.hosts)
        config["node-rank"] = place.rank
        config["master-addr"] = _leader_address(place, settings)
        config["master-port"] = settings.join_port
    return config


def _tracing(engine: str, endpoint: str, schema: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The keys that make an engine send spans.

    :raises ConfigError: its version has none, or the endpoint is none.
    """
    if not _TRACING.fullmatch(endpoint):
        raise ConfigError(
            f"deepseek_service_tracing_endpoint: expected http://HOST:PORT, such as http://192.0.2.30:4317, found {endpoint}"
        )
    keys: dict[str, dict[str, t.Any]] = {
        "tensorrt_llm": {"otlp_traces_endpoint": endpoint},
        # It has no scheme, and never TLS.
        "sglang": {"enable-trace": True, "otlp-traces-endpoint": endpoint.removeprefix("http://")},
        "vllm": {"otlp-traces-endpoint": endpoint},
    }
    wanted = keys[engine]
    if engine == "sglang" and "otlp-service-name" in schema["keys"]:
        wanted["otlp-service-name"] = engine
    missing = sorted(set(wanted) - set(schema["keys"]))
    if missing:
        raise ConfigError(
            f"deepseek_service_tracing_endpoint: expected nothing, because {engine} {schema.get('version', '')} has no "
            f"{' and '.join(missing)}, found {endpoint}"
        )
    return wanted


def _leader_address(place: Place, settings: Settings) -> str:
    address = settings.addresses.get(place.hosts[0], "")
    if not address:
        raise ConfigError(
            f"fleet_address: expected an address of {place.hosts[0]}, which leads the replica, found none"
        )
    return address


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _environment(
    engine: str, plan: t.Mapping[str, t.Any], place: Place, host: str, settings: Settings
) -> dict[str, str]:
    """Weights are on the host: no engine asks the network for them, or tells it anything."""
    env = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
    if engine == "vllm":
        env.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"})
        if plan["precision"] == "awq":
            # Without it small batches of the full model's AWQ weights are slow: see the model card.
            env["VLLM_MARLIN_USE_ATOMIC_ADD"] = "1"
    if engine == "tensorrt_llm":
        env["TRTLLM_NO_USAGE_STATS"] = "1"
    if settings.tracing_endpoint:
        # SGLang has an option for it as well.
        env["OTEL_SERVICE_NAME"] = engine
        env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "grpc"
    if len(place.hosts) > 1:
        env["NCCL_DEBUG"] = "WARN"
        if settings.rdma_interface:
            env["NCCL_SOCKET_IFNAME"] = env["GLOO_SOCKET_IFNAME"] = settings.rdma_interface
        if settings.rdma_adapters:
            env["NCCL_IB_HCA"] = ",".join(settings.rdma_adapters)
        if settings.rdma_gid_index >= 0:
            env["NCCL_IB_GID_INDEX"] = str(settings.rdma_gid_index)
        if engine == "vllm" and settings.addresses.get(host):
            env["VLLM_HOST_IP"] = settings.addresses[host]
    return {**env, **{name: str(value) for name, value in settings.environment.items()}}


def _argv(engine: str, place: Place, settings: Settings) -> list[str]:
    config = f"{settings.config_dir}/engine.yml"
    where = ["--host", _ADDRESS, "--port", _PORT]
    if engine == "tensorrt_llm":
        return [f"{settings.bin_dir}trtllm-serve", settings.weights, "--config", config, *where]
    if engine == "sglang":
        python = f"{settings.bin_dir}python" if settings.bin_dir else "python3"
        return [python, "-m", "sglang.launch_server", "--config", config, "--model-path", settings.weights, *where]
    command = [f"{settings.bin_dir}vllm", "serve", settings.weights, "--config", config]
    return [*command, "--headless"] if place.role == "worker" else [*command, *where]


def configure(
    plan: t.Mapping[str, t.Any],
    engine: str,
    host: str,
    schema: t.Mapping[str, t.Any],
    settings: Settings,
) -> dict[str, t.Any]:
    """What an engine is told on a host.

    :arg plan: fleet_plan.
    :arg engine: one of ENGINES.
    :arg host: inventory name.
    :arg schema: of the engine's version.
    :arg settings: the rest.
    :returns: ``file`` for engine.yml, ``argv``, ``environment``, ``role`` and ``leader`` of the host, ``problems`` in sentences.
    """
    found = []
    if engine == "tensorrt_llm" and not is_loopback(settings.listen_address):
        found.append(
            "deepseek_service_listen_address: expected 127.0.0.1 or ::1, because TensorRT-LLM checks no API key and must stand behind "
            f"envoy_sidecar, found {settings.listen_address}."
        )
    try:
        place = place_of(plan, engine, host)
        render = {"tensorrt_llm": _tensorrt_llm, "sglang": _sglang, "vllm": _vllm}[engine]
        rendered = render(plan, place, settings)
        if settings.tracing_endpoint:
            rendered.update(_tracing(engine, settings.tracing_endpoint, schema))
    except ConfigError as exc:
        return {
            "file": {},
            "argv": [],
            "environment": {},
            "role": "single",
            "leader": {},
            "problems": [*found, f"{exc}."],
        }
    if engine == "tensorrt_llm" and len(place.hosts) > 1:
        found.append(
            f"fleet_plan: expected one host per replica for TensorRT-LLM, whose start on several needs MPI, found {len(place.hosts)}; "
            "sglang and vllm span hosts."
        )
    options = _engine_schema.spelled(settings.options, schema)
    config = merged(rendered, options)
    # Only null takes a key away, where the engine has no word for it.
    nulls = {key for key, value in options.items() if value is None and key in rendered and not _nullable(schema, key)}
    config = {key: value for key, value in config.items() if key not in nulls}
    found += _engine_schema.problems(config, schema)
    leader = {"host": place.hosts[0], "address": settings.addresses.get(place.hosts[0], ""), "port": settings.join_port}
    return {
        "file": dict(sorted(config.items())),
        "argv": _argv(engine, place, settings),
        "environment": dict(sorted(_environment(engine, plan, place, host, settings).items())),
        "role": place.role,
        "leader": leader if len(place.hosts) > 1 else {},
        "problems": found,
    }


def _nullable(schema: t.Mapping[str, t.Any], key: str) -> bool:
    return bool(schema["keys"].get(key, {}).get("nullable"))


def image_problems(image: str, digest: str) -> list[str]:
    """What is wrong with a container image: it needs a name without a tag, and the digest of its content."""
    found = []
    last = image.rpartition("/")[2]
    if "@" in image or ":" in last:
        found.append(
            f"deepseek_service_image: expected a name without a tag, because a tag may be another image tomorrow, found {image}; "
            "deepseek_service_image_digest says which one."
        )
    elif not re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+", image):
        found.append(
            f"deepseek_service_image: expected REGISTRY/NAME, such as registry.example/vllm/vllm-openai, found {image or 'nothing'}."
        )
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        found.append(
            f"deepseek_service_image_digest: expected sha256: and 64 hexadecimal digits in lower case, found {digest or 'nothing'}."
        )
    return found
