# SPDX-License-Identifier: Apache-2.0
"""What the engines are told: whole results compared with files that a person has read, and what is refused."""

from __future__ import annotations

import copy
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _engine_config as configs
from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import GPUS
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import known
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_fit import PlanHost, Wish, make_plan
from ansible_collections.gpufleet.deepseek.plugins.module_utils._plan_hosts import gpu_device

ROOT = Path(__file__).resolve().parents[4]
GOLDEN = ROOT / "tests" / "unit" / "fixtures" / "engine_config"
ENGINES = ROOT / "roles" / "deepseek_service" / "files" / "engines"
VERSIONS = {"sglang": "0.5.23", "vllm": "0.33.0", "tensorrt_llm": "1.2.1"}
A100, H200 = "a100-sxm4-80gb", "h200-sxm5-141gb"
R1, LLAMA70 = "deepseek-r1", "deepseek-r1-distill-llama-70b"


def schema(engine: str) -> dict[str, t.Any]:
    path = ENGINES / engine / "schemas" / f"{VERSIONS[engine]}.yml"
    return t.cast("dict[str, t.Any]", yaml.safe_load(path.read_text("utf-8")))


def plan(model: str, gpu: str, hosts: int, engine: str, precision: str, **wish: t.Any) -> dict[str, t.Any]:
    product = GPUS[gpu]
    fleet = [
        PlanHost(f"gpu{n}", "eu", gpu_device(product), gpu, product.generation, 8, True, 0) for n in range(1, hosts + 1)
    ]
    made = make_plan(known(model), fleet, Wish(engine=engine, precision=precision, **wish))
    assert made["verdict"] == "ok", made
    return made


def settings(engine: str, **changes: t.Any) -> configs.Settings:
    values: dict[str, t.Any] = {
        "model_name": "deepseek",
        "listen_address": "127.0.0.1" if engine == "tensorrt_llm" else "10.0.0.11",
        "weights": "/srv/models/weights/0123",
        "config_dir": "/srv/models/releases/r1/config",
        "bin_dir": f"/opt/gpufleet/engines/{engine}/{VERSIONS[engine]}/bin/",
        "addresses": {"gpu1": "10.0.0.11", "gpu2": "10.0.0.12"},
    }
    return configs.Settings(**{**values, **changes})


RDMA = {"rdma_interface": "eth0", "rdma_adapters": ["mlx5_0", "mlx5_1"], "rdma_gid_index": 3}
CASES: dict[str, tuple[tuple[t.Any, ...], str, dict[str, t.Any]]] = {
    "r1-awq-8xa100-sglang": ((R1, A100, 1, "sglang", "awq"), "gpu1", {}),
    "r1-awq-8xa100-vllm": ((R1, A100, 1, "vllm", "awq"), "gpu1", {}),
    "r1-fp8-8xh200-sglang": ((R1, H200, 1, "sglang", "fp8"), "gpu1", {}),
    "r1-fp8-8xh200-vllm": ((R1, H200, 1, "vllm", "fp8"), "gpu1", {}),
    "r1-fp8-8xh200-tensorrt_llm": ((R1, H200, 1, "tensorrt_llm", "fp8"), "gpu1", {}),
    "llama70-fp16-8xa100-tensorrt_llm": ((LLAMA70, A100, 1, "tensorrt_llm", "fp16"), "gpu1", {}),
    "r1-int8-2x8xa100-sglang-leader": ((R1, A100, 2, "sglang", "int8"), "gpu1", RDMA),
    "r1-int8-2x8xa100-sglang-worker": ((R1, A100, 2, "sglang", "int8"), "gpu2", RDMA),
}


def render(case: str, **changes: t.Any) -> dict[str, t.Any]:
    arguments, host, more = CASES[case]
    engine = arguments[3]
    return configs.configure(plan(*arguments), engine, host, schema(engine), settings(engine, **more, **changes))


@pytest.mark.parametrize("case", CASES)
def test_the_whole_result(case: str) -> None:
    assert render(case) == yaml.safe_load((GOLDEN / f"{case}.yml").read_text("utf-8"))


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yml")} == set(CASES)


def test_the_order_of_options_changes_nothing() -> None:
    options = {"kv_cache_config": {"host_cache_size": 0, "dtype": "fp8"}, "stream_interval": 4}
    other = {"stream_interval": 4, "kv_cache_config": {"dtype": "fp8", "host_cache_size": 0}}
    one = render("llama70-fp16-8xa100-tensorrt_llm", options=options)
    two = render("llama70-fp16-8xa100-tensorrt_llm", options=other)
    assert yaml.safe_dump(one) == yaml.safe_dump(two)
    assert list(one["file"]) == sorted(one["file"])


def test_options_win_at_any_depth_and_leave_the_rest() -> None:
    found = render("llama70-fp16-8xa100-tensorrt_llm", options={"kv_cache_config": {"dtype": "fp8"}})
    assert found["problems"] == []
    assert found["file"]["kv_cache_config"]["dtype"] == "fp8"
    assert found["file"]["kv_cache_config"]["tokens_per_block"] == 32


def test_options_may_be_spelled_with_underscores() -> None:
    found = render("r1-awq-8xa100-sglang", options={"enable_torch_compile": False, "mem_fraction_static": 0.8})
    assert found["problems"] == []
    assert found["file"]["enable-torch-compile"] is False
    assert found["file"]["mem-fraction-static"] == 0.8
    assert not [name for name in found["file"] if "_" in name]


def test_null_takes_a_key_away_where_the_engine_has_no_null() -> None:
    assert "quantization" not in render("r1-awq-8xa100-sglang", options={"quantization": None})["file"]
    kept = render("llama70-fp16-8xa100-tensorrt_llm", options={"torch_compile_config": None})
    assert kept["file"]["torch_compile_config"] is None
    assert kept["problems"] == []


@pytest.mark.parametrize(
    ("case", "options", "sentence"),
    [
        (
            "llama70-fp16-8xa100-tensorrt_llm",
            {"fp16": True},
            "tensorrt_llm engine.yml at fp16: expected a key of version 1.2.1, found fp16: dtype: float16 replaced it",
        ),
        (
            "llama70-fp16-8xa100-tensorrt_llm",
            {"--strict_types": True},
            "strict_types: dtype replaced it: networks are strongly typed",
        ),
        (
            "llama70-fp16-8xa100-tensorrt_llm",
            {"cuda_graph_config": {"batch_sizes": [16, 24, 0]}},
            "at cuda_graph_config.batch_sizes[2]: expected a whole number at least 1, found 0.",
        ),
        (
            "llama70-fp16-8xa100-tensorrt_llm",
            {"cuda_graph_config": {"max_batch_size": 64}},
            "at cuda_graph_config: expected one of batch_sizes and max_batch_size, found both.",
        ),
        ("r1-awq-8xa100-vllm", {"api_key": ["0123456789abcdef"]}, "found api-key: it is a secret"),
        ("r1-awq-8xa100-vllm", {"max_num_sequences": 4}, "did you mean max-num-seqs?"),
        ("r1-awq-8xa100-sglang", {"cuda-graph-max-bs": 4}, "cuda-graph-max-bs-decode replaced it"),
    ],
)
def test_an_option_that_the_version_does_not_take(case: str, options: dict[str, t.Any], sentence: str) -> None:
    found = render(case, options=options)["problems"]
    assert len(found) == 1
    assert sentence in found[0]
    assert "0123456789abcdef" not in found[0]


@pytest.mark.parametrize("case", CASES)
def test_no_key_on_the_command_line_and_little_else(case: str) -> None:
    found = render(case)
    words = [word for word in found["argv"] if word.startswith("-")]
    assert set(words) <= {"-m", "--host", "--port", "--config", "--model-path", "--headless"}
    assert "/srv/models/weights/0123" in found["argv"]


def test_tensorrt_llm_stays_on_loopback() -> None:
    (found,) = render("llama70-fp16-8xa100-tensorrt_llm", listen_address="10.0.0.11")["problems"]
    assert found.startswith(
        "deepseek_service_listen_address: expected 127.0.0.1 or ::1, because TensorRT-LLM checks no API key"
    )
    assert found.endswith("found 10.0.0.11.")
    assert render("llama70-fp16-8xa100-tensorrt_llm", listen_address="::1")["problems"] == []


def test_tensorrt_llm_does_not_span_hosts() -> None:
    made = plan(LLAMA70, A100, 2, "tensorrt_llm", "fp16", hosts_per_replica=2)
    found = configs.configure(made, "tensorrt_llm", "gpu1", schema("tensorrt_llm"), settings("tensorrt_llm"))
    assert "found 2; sglang and vllm span hosts" in found["problems"][0]


def test_mla_is_not_cut_by_tensorrt_llm_on_ampere() -> None:
    made = copy.deepcopy(plan(LLAMA70, A100, 1, "tensorrt_llm", "fp16"))
    made["model"]["family"] = "deepseek_v2"
    found = configs.configure(made, "tensorrt_llm", "gpu1", schema("tensorrt_llm"), settings("tensorrt_llm"))["file"]
    assert found["enable_chunked_prefill"] is False
    assert found["kv_cache_config"]["enable_block_reuse"] is False


def test_a_worker_of_vllm_answers_nobody() -> None:
    made = plan(R1, A100, 2, "vllm", "awq", hosts_per_replica=2)
    found = configs.configure(made, "vllm", "gpu2", schema("vllm"), settings("vllm", **RDMA))
    assert found["problems"] == []
    assert found["role"] == "worker"
    assert found["argv"][-1] == "--headless"
    assert "--port" not in found["argv"]
    assert (found["file"]["node-rank"], found["file"]["nnodes"]) == (1, 2)
    assert (found["file"]["master-addr"], found["file"]["master-port"]) == ("10.0.0.11", 20000)
    assert found["environment"]["VLLM_HOST_IP"] == "10.0.0.12"
    assert found["environment"]["NCCL_IB_GID_INDEX"] == "3"


def test_a_prompt_that_is_not_cut_fits_into_one_step() -> None:
    found = render("r1-awq-8xa100-vllm")["file"]
    assert found["enable-chunked-prefill"] is False
    assert found["max-num-batched-tokens"] >= found["max-model-len"]


@pytest.mark.parametrize(
    ("made", "host", "sentence"),
    [
        (
            {},
            "gpu1",
            "fleet_plan: expected a plan for sglang, found none; plan.yml with fleet_engine: sglang makes one.",
        ),
        ({"engine": "vllm"}, "gpu1", "found one for vllm"),
        (
            {"engine": "sglang", "replicas": [], "spare": [{"host": "gpu1", "reason": "no active RDMA port"}]},
            "gpu1",
            "fleet_plan: expected a replica with gpu1, found none; the plan leaves it out: no active RDMA port.",
        ),
    ],
)
def test_a_host_without_a_plan(made: dict[str, t.Any], host: str, sentence: str) -> None:
    found = configs.configure(made, "sglang", host, schema("sglang"), settings("sglang"))
    assert sentence in found["problems"][0]
    assert found["file"] == {}


def test_a_leader_without_an_address() -> None:
    made = plan(R1, A100, 2, "sglang", "int8")
    found = configs.configure(made, "sglang", "gpu2", schema("sglang"), settings("sglang", addresses={}))
    assert found["problems"] == ["fleet_address: expected an address of gpu1, which leads the replica, found none."]


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        (
            "r1-awq-8xa100-sglang",
            {"enable-trace": True, "otlp-traces-endpoint": "192.0.2.30:4317", "otlp-service-name": "sglang"},
        ),
        ("r1-awq-8xa100-vllm", {"otlp-traces-endpoint": "http://192.0.2.30:4317"}),
        ("r1-fp8-8xh200-tensorrt_llm", {"otlp_traces_endpoint": "http://192.0.2.30:4317"}),
    ],
)
def test_engines_send_spans_where_they_are_told(case: str, wanted: dict[str, t.Any]) -> None:
    plain, traced = render(case), render(case, tracing_endpoint="http://192.0.2.30:4317")
    assert traced["problems"] == []
    assert {key: value for key, value in traced["file"].items() if plain["file"].get(key) != value} == wanted
    assert traced["argv"] == plain["argv"]
    assert set(traced["environment"]) - set(plain["environment"]) == {
        "OTEL_SERVICE_NAME",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    }


def test_spans_that_an_engine_cannot_send_are_refused() -> None:
    arguments, host, more = CASES["r1-awq-8xa100-vllm"]
    known_keys = schema("vllm")
    old = {
        **known_keys,
        "keys": {key: value for key, value in known_keys["keys"].items() if not key.startswith("otlp")},
    }
    told = settings("vllm", **more, tracing_endpoint="http://192.0.2.30:4317")
    (problem,) = configs.configure(plan(*arguments), "vllm", host, old, told)["problems"]
    assert problem == (
        f"deepseek_service_tracing_endpoint: expected nothing, because vllm {old['version']} has no otlp-traces-endpoint, "
        "found http://192.0.2.30:4317."
    )
    (problem,) = render("r1-awq-8xa100-vllm", tracing_endpoint="192.0.2.30:4317")["problems"]
    assert problem.startswith("deepseek_service_tracing_endpoint: expected http://HOST:PORT")
