# SPDX-License-Identifier: Apache-2.0
"""Plans, and refusals with their numbers."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._gpu_catalogue import GPUS
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import known
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_fit import (
    PlanError,
    PlanHost,
    Targets,
    Wish,
    batch_sizes,
    make_plan,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_speed import Device
from ansible_collections.gpufleet.deepseek.plugins.module_utils._plan_hosts import gpu_device

A100, A100_40, H100, H200 = "a100-sxm4-80gb", "a100-sxm4-40gb", "h100-sxm5-80gb", "h200-sxm5-141gb"
R1, LLAMA70, QWEN7 = known("deepseek-r1"), known("deepseek-r1-distill-llama-70b"), known("deepseek-r1-distill-qwen-7b")
SMOL = known("smollm2-135m-instruct")


def fleet(
    count: int,
    gpu: str = A100,
    *,
    start: int = 1,
    gpus: int = 8,
    rdma: bool = True,
    region: str = "eu",
    weight: int = 0,
) -> list[PlanHost]:
    product = GPUS[gpu]
    return [
        PlanHost(f"gpu{n}", region, gpu_device(product), gpu, product.generation, gpus, rdma, weight)
        for n in range(start, start + count)
    ]


def reasons(plan: dict[str, t.Any]) -> dict[str, str]:
    assert plan["verdict"] == "refused"
    return {reason["code"]: f"{reason['sentence']} | {reason['nearest']}" for reason in plan["refusals"]}


def test_the_full_model_on_eight_a100_is_awq_on_sglang() -> None:
    plan = make_plan(R1, fleet(3), Wish())
    assert (plan["verdict"], plan["engine"], plan["precision"]) == ("ok", "sglang", "awq")
    assert (plan["tensor_parallel"], plan["pipeline_parallel"], plan["hosts_per_replica"]) == (8, 1, 1)
    memory = plan["memory_per_device"]
    # 671e9 weights of 0.52 bytes over 8 GPUs, and MLA's down projections on each
    assert 40 < memory["weights_gib"] < 43
    used = sum(memory[key] for key in ("weights_gib", "kv_cache_gib", "activations_gib", "runtime_gib", "free_gib"))
    assert used == pytest.approx(memory["total_gib"], abs=0.05)
    # Every GPU holds the whole latent vector: 70,272 bytes a token, not an eighth of them.
    assert plan["kv_cache_tokens"] == pytest.approx(memory["kv_cache_gib"] * 2**30 / 70272, rel=0.001)
    assert [replica["hosts"] for replica in plan["replicas"]] == [["gpu1"], ["gpu2"], ["gpu3"]]
    assert plan["peers"]["gpu2"] == {
        "weight": 1,
        "weight_from": "plan",
        "token_capacity": plan["kv_cache_tokens"],
        "max_sequences": 64,
        "context_tokens": plan["context_tokens"],
        "region": "eu",
        "replica": "eu-2",
    }
    assert plan["limits"]["batch_sizes"] == [16, 24, 32, 48, 64]
    assert any("SM80" in sentence for sentence in plan["decisions"])
    json.dumps(plan)


def test_fp8_does_not_fit_eight_a100() -> None:
    text = reasons(make_plan(R1, fleet(1), Wish(precision="fp8")))["precision_architecture"]
    assert "671 GB" in text
    assert "687 GB" in text
    assert "no FP8 arithmetic" in text
    assert "Nearest plan that works: sglang with awq weights" in text


@pytest.mark.parametrize("gpu", [A100, "a40"])
def test_tensorrt_llm_does_not_run_the_full_model_on_ampere(gpu: str) -> None:
    text = reasons(make_plan(R1, fleet(1, gpu), Wish(engine="tensorrt_llm")))["engine_architecture"]
    assert "SM80 and SM86 are not supported" in text
    assert gpu == "a40" or "Nearest plan that works: sglang with awq weights" in text


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_sixteen_bits_do_not_fit_one_host(precision: str) -> None:
    text = "; ".join(reasons(make_plan(R1, fleet(1), Wish(precision=precision))).values())
    assert "1342 GB" in text
    assert "Nearest plan that works: sglang with awq weights" in text


def test_sixteen_bits_fit_four_hosts() -> None:
    plan = make_plan(R1, fleet(5), Wish(precision="bf16"))
    assert (plan["verdict"], plan["hosts_per_replica"], plan["tensor_parallel"]) == ("ok", 4, 32)
    assert plan["replicas"][0]["hosts"] == ["gpu1", "gpu2", "gpu3", "gpu4"]
    assert list(plan["peers"]) == ["gpu1"]
    assert plan["spare"] == [{"host": "gpu5", "reason": "one replica takes 4 hosts and eu has 5 of the kind"}]


def test_a_replica_stays_in_one_region() -> None:
    hosts = [*fleet(1), *fleet(1, start=2, region="us")]
    assert "takes 2 hosts" in "; ".join(reasons(make_plan(R1, hosts, Wish(precision="int8"))).values())


def test_tensor_parallel_must_divide_the_heads() -> None:
    text = reasons(make_plan(LLAMA70, fleet(1), Wish(tensor_parallel=7)))["layout"]
    assert "tensor parallel 7 does not divide the model's 64 attention heads; 1, 2, 4, 8" in text
    assert "tensor parallel 8" in text.split("|")[1]


def test_tensor_parallel_must_not_break_weight_groups() -> None:
    # 18944 / 8 is no multiple of the 128 weights of an AWQ group; 18944 / 4 is.
    assert make_plan(QWEN7, fleet(1), Wish(precision="awq"))["tensor_parallel"] == 4
    text = reasons(make_plan(known("deepseek-r1-distill-qwen-14b"), fleet(1), Wish(precision="awq", tensor_parallel=8)))
    assert "no multiple of 128" in text["layout"]


def test_experts_stay_whole_where_cutting_them_breaks_the_groups() -> None:
    plan = make_plan(R1, fleet(4, "h100-sxm5-80gb"), Wish(precision="fp8", hosts_per_replica=4))
    assert (plan["tensor_parallel"], plan["expert_parallel"]) == (32, 32)


def test_generations_are_not_mixed_in_a_replica() -> None:
    text = reasons(make_plan(R1, [*fleet(1), *fleet(1, H100, start=2)], Wish(hosts_per_replica=2)))
    assert list(text) == ["mixed_generations"]
    assert "gpu1" in text["mixed_generations"]
    assert "hopper" in text["mixed_generations"]


def test_generations_serve_side_by_side_with_weights_by_their_speed() -> None:
    plan = make_plan(R1, [*fleet(2), *fleet(2, H100, start=3)], Wish())
    assert [kind["device"]["product"] for kind in plan["kinds"]] == [A100, H100]
    assert len(plan["replicas"]) == 4
    speeds = [kind["speed"]["by_batch"][-1]["tokens_per_second"] for kind in plan["kinds"]]
    ratio = plan["peers"]["gpu3"]["weight"] / plan["peers"]["gpu1"]["weight"]
    assert ratio == pytest.approx(speeds[1] / speeds[0], abs=0.06)
    assert ratio > 1


def test_a_weight_of_the_inventory_wins() -> None:
    plan = make_plan(R1, [*fleet(1, weight=7), *fleet(1, start=2)], Wish())
    assert (plan["peers"]["gpu1"]["weight"], plan["peers"]["gpu1"]["weight_from"]) == (7, "inventory")
    assert plan["peers"]["gpu2"]["weight"] == 1


def test_no_replica_over_hosts_without_rdma() -> None:
    text = reasons(make_plan(R1, fleet(2, rdma=False), Wish(precision="int8")))["no_rdma"]
    assert "gpu1, gpu2" in text
    assert make_plan(R1, fleet(2), Wish(precision="int8"))["hosts_per_replica"] == 2


def test_a_context_too_long_for_the_cache_says_what_fits() -> None:
    wish = Wish(precision="awq", context_tokens=163840, memory_utilization=0.65)
    text = reasons(make_plan(R1, fleet(1), wish))["context"]
    fits = int(text.split("context_tokens up to ")[1].split(".")[0])
    assert fits < 163840
    assert (
        make_plan(R1, fleet(1), Wish(precision="awq", context_tokens=fits, memory_utilization=0.65))["verdict"] == "ok"
    )


def test_concurrency_that_the_cache_cannot_hold_says_how_many_it_can() -> None:
    text = reasons(make_plan(R1, fleet(1), Wish(precision="awq", concurrency=5000)))["concurrency"]
    fits = int(text.split("concurrency up to ")[1].split(".")[0])
    assert 300 < fits < 5000


def test_eight_gpus_of_40_gb_are_too_small() -> None:
    text = reasons(make_plan(R1, fleet(1, A100_40), Wish()))["memory"]
    assert "does not fit" in text
    assert "No engine and precision" in text


def test_hopper_runs_fp8() -> None:
    plan = make_plan(R1, fleet(1, H200), Wish())
    assert (plan["engine"], plan["precision"]) == ("tensorrt_llm", "fp8")


def test_the_distilled_models_run_in_16_bits_on_tensorrt_llm() -> None:
    plan = make_plan(LLAMA70, fleet(1), Wish())
    assert (plan["engine"], plan["precision"], plan["tensor_parallel"]) == ("tensorrt_llm", "bf16", 8)
    # Grouped-query attention divides the cache by its 8 heads.
    assert plan["kv_cache_tokens"] == pytest.approx(
        plan["memory_per_device"]["kv_cache_gib"] * 2**30 / (327680 / 8), rel=0.001
    )


def test_3000_requests_per_second_take_so_many_hosts() -> None:
    targets = Targets(requests_per_second=3000, prompt_tokens=256, answer_tokens=256)
    text = reasons(make_plan(R1, fleet(4), Wish(targets=targets)))["target_requests_per_second"]
    need = int(text.split(" take ")[1].split(" hosts")[0])
    assert 1000 < need < 3000
    assert f"or {need} hosts" in text


def test_300_ms_for_a_whole_answer_says_what_300_ms_can_be() -> None:
    text = reasons(make_plan(R1, fleet(4), Wish(targets=Targets(answer_ms=300, prompt_tokens=256))))["target_answer_ms"]
    assert "an answer of 9 tokens" in text
    assert "prompt of up to 717 tokens" in text


def test_availability_is_arithmetic() -> None:
    text = reasons(make_plan(R1, fleet(4), Wish(targets=Targets(availability_percent=99.995))))[
        "target_availability_percent"
    ]
    assert "2.16 minutes" in text
    assert "231%" in text
    assert "99.988 % with one failover" in text
    reasons(make_plan(R1, fleet(1), Wish(targets=Targets(availability_percent=100))))
    plan = make_plan(R1, fleet(4), Wish(targets=Targets(availability_percent=99.9, first_token_ms=1000)))
    assert [row["ok"] for row in plan["targets"]] == [True, True]


def test_first_token_target() -> None:
    text = reasons(make_plan(R1, fleet(1), Wish(targets=Targets(first_token_ms=300, prompt_tokens=4096))))
    assert "prompts of up to 717 tokens" in text["target_first_token_ms"]


def test_more_requests_at_a_time_give_more_tokens_and_slower_answers() -> None:
    rows = make_plan(R1, fleet(1), Wish())["speed"]["by_batch"]
    assert [row["batch"] for row in rows] == [1, 8, 16, 24, 32, 48, 64]
    for earlier, later in zip(rows, rows[1:]):
        assert later["tokens_per_second"] > earlier["tokens_per_second"]
        assert later["answer_seconds"] > earlier["answer_seconds"]


def test_a_cpu_serves_the_embedded_model() -> None:
    host = PlanHost("gpu1", "default", Device.of_cpu(2, 8 * 2.0**30), "cpu", "cpu", 1, False, 3)
    plan = make_plan(SMOL, [host], Wish())
    assert (plan["engine"], plan["precision"]) == ("llama_cpp", "gguf")
    assert (plan["limits"]["max_batch_size"], plan["context_tokens"]) == (4, 1024)
    assert plan["peers"]["gpu1"]["weight"] == 3
    assert "unsupported" in reasons(make_plan(R1, [host], Wish()))


def test_hosts_with_a_problem_are_named_and_left_out() -> None:
    sick = PlanHost("gpu9", "eu", None, "", "", 0, False, 0, "1 of its 8 GPUs do not answer (0000:07:00.0)")
    plan = make_plan(R1, [*fleet(1), sick], Wish())
    assert plan["spare"] == [{"host": "gpu9", "reason": sick.problem}]
    assert "gpu9: 1 of its 8 GPUs" in reasons(make_plan(R1, [sick], Wish()))["no_hosts"]


def test_no_hosts() -> None:
    assert "no host was given" in reasons(make_plan(R1, [], Wish()))["no_hosts"]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (Wish(engine="triton"), "engine: expected auto, tensorrt_llm"),
        (Wish(precision="fp12"), "precision: expected auto, bf16"),
        (Wish(tensor_parallel=-1), "tensor_parallel: expected 0 to 1024, found -1"),
        (Wish(context_tokens=10**12), "context_tokens: expected"),
        (Wish(context_tokens=163841), "knows at most 163840 tokens"),
        (Wish(memory_utilization=float("nan")), "memory_utilization"),
        (Wish(memory_utilization=1.5), "memory_utilization: expected 0.1 to 0.98, found 1.5"),
        (Wish(max_batch_size=0), "max_batch_size"),
        (Wish(targets=Targets(requests_per_second=-3)), "targets.requests_per_second"),
        (Wish(targets=Targets(availability_percent=101)), "targets.availability_percent"),
        (Wish(targets=Targets(answer_tokens=0)), "targets.answer_tokens"),
        (Wish(engine="x", precision="y"), "; precision"),
    ],
)
def test_wishes_without_sense_are_refused_by_name(wish: Wish, says: str) -> None:
    with pytest.raises(PlanError) as caught:
        make_plan(R1, fleet(1), wish)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(64, [16, 24, 32, 48, 64]), (4, [4]), (16, [16]), (40, [16, 24, 32, 40]), (256, [16, 24, 32, 48, 64, 128, 256])],
)
def test_batch_sizes(largest: int, sizes: list[int]) -> None:
    assert batch_sizes(largest) == sizes


def test_the_same_input_gives_the_same_plan() -> None:
    hosts = [*fleet(20), *fleet(20, H100, start=21, region="us")]
    assert json.dumps(make_plan(R1, hosts, Wish())) == json.dumps(make_plan(R1, hosts, Wish()))
