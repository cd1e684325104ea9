# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in as proof

MARKS: dict[str, Any] = {
    "nvbandwidth_h2d_gbs_min": 24.0,
    "nccl_busbw_gbs_min": 228.0,
    "fio_read_mbs_min": 0.0,
    "gpu_count": 8,
    "gpu_pcie_width_min": 16,
    "nvlink_inactive_max": 0,
    "sram_uncorrected_max": 0,
    "row_remap_problems_max": 0,
    "xids_blocking": [79, 64],
    "rdma_port_gbps_min": 200.0,
}


def gpu(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "index": number,
        "pci_address": f"0000:0{number}:00.0",
        "uuid": f"GPU-{number}",
        "serial": f"15632{number}",
        "state": "ok",
        "pcie": {"width": 16},
        "ecc": {"sram_uncorrected_volatile": 0},
        "row_remap": {"pending": False, "failed": False},
        "nvlink": {"active": 12, "inactive": 0},
        **changes,
    }


def host(**changes: Any) -> dict[str, Any]:
    return {
        "gpu": {"driver_count": 8},
        "gpus": [gpu(index) for index in range(8)],
        "gpu_driver": {"version": "550.1", "loaded_version": "550.1", "installed_version": "550.1", "mismatch": False},
        "fabric_manager": {
            "needed": True,
            "active": True,
            "installed_version": "550.1",
            "version_matches_driver": True,
        },
        "nvme": [{"name": "nvme0n1", "serial": "S1", "model": "KCM6"}],
        "nics": [
            {"name": "eth0", "mac": "0c:42", "pci_address": "0000:e1:00.0"},
            {"name": "br0", "mac": "02:00", "pci_address": None},
        ],
        "rdma": [
            {
                "name": "mlx5_0",
                "node_guid": "0c42:1",
                "pci_address": "0000:0c:00.0",
                "ports": [
                    {"port": 1, "state": "ACTIVE", "rate_gbps": 200.0},
                    {"port": 2, "state": "DOWN", "rate_gbps": 10.0},
                ],
            },
            {
                "name": "rxe0",
                "node_guid": "1",
                "pci_address": None,
                "ports": [{"port": 1, "state": "ACTIVE", "rate_gbps": 2.5}],
            },
        ],
        "pci": {"max_payload_mismatch": []},
        "xids": [],
        **changes,
    }


def config(*names: str, **changes: Any) -> dict[str, Any]:
    return {
        "tests": {name: {"params": {}} for name in names},
        "marks": MARKS,
        "allow_not_run": [],
        "allow_simulated": False,
        **changes,
    }


def entry(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "outcome": "measured", "measured": {}, "errors": [], "notes": [], "params": {}, **changes}


def result(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "finished": "2026-11-29T01:00:00Z",
        "simulated": False,
        "fingerprint": proof.fingerprint(host()),
        "tests": list(entries),
        **changes,
    }


GOOD = entry("nccl", measured={"busbw_gbs": 234.137})
NOW = proof.fingerprint(host())


def test_a_healthy_host() -> None:
    verdict = proof.judge("hardware", proof.health(host()), MARKS)
    assert (verdict["status"], verdict["sentences"]) == ("pass", [])
    # 1 count, 4 values of 8 GPUs, XIDs, the one RDMA port of hardware that is up.
    assert len(verdict["checks"]) == 35


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu": {"driver_count": 7}}, "GPUs that answer: expected 8 (burn_in_gpu_count), found 7"),
        ({"gpus": [gpu(3, state="lost", uuid=None, index=None)]}, "GPU 0000:03:00.0 is lost"),
        (
            {"gpus": [gpu(2, pcie={"width": 8})]},
            "GPU 2: PCIe lanes: expected at least 16 (burn_in_gpu_pcie_width_min), found 8",
        ),
        (
            {"gpus": [gpu(2, nvlink={"inactive": 1})]},
            "GPU 2: inactive NVLinks: expected at most 0 (burn_in_nvlink_inactive_max), found 1",
        ),
        (
            {"gpus": [gpu(1, row_remap={"pending": True, "failed": True})]},
            "expected at most 0 (burn_in_row_remap_problems_max), found 2",
        ),
        (
            {"gpus": [gpu(1, ecc={"sram_uncorrected_volatile": 4})]},
            "expected at most 0 (burn_in_sram_uncorrected_max), found 4",
        ),
        ({"fabric_manager": {"needed": True, "active": False}}, "Fabric Manager is not active"),
        (
            {
                "fabric_manager": {
                    "needed": True,
                    "active": True,
                    "installed_version": "549",
                    "version_matches_driver": False,
                }
            },
            "Fabric Manager is 549, the driver 550.1",
        ),
        (
            {"gpu_driver": {"mismatch": True, "loaded_version": "1", "installed_version": "2", "version": "3"}},
            "parts of the driver do not match: loaded 1, installed 2, in use 3",
        ),
        ({"pci": {"max_payload_mismatch": ["0000:e1:00.0"]}}, "0000:e1:00.0 is set to another payload"),
        (
            {
                "xids": [
                    {"xid": 79, "count": 2, "pci_address": "0000:07:00.0"},
                    {"xid": 94, "count": 1, "pci_address": "x"},
                ]
            },
            "found 79 on 0000:07:00.0 (2 times)",
        ),
        (
            {
                "rdma": [
                    {
                        "name": "mlx5_0",
                        "pci_address": "x",
                        "ports": [{"port": 1, "state": "ACTIVE", "rate_gbps": 100.0}],
                    }
                ]
            },
            "mlx5_0 port 1: rate of the RDMA port: expected at least 200 Gb/s (burn_in_rdma_port_gbps_min), found 100 Gb/s",
        ),
    ],
)
def test_a_sick_host(changes: dict[str, Any], words: str) -> None:
    verdict = proof.judge("hardware", proof.health(host(**changes)), MARKS)
    assert verdict["status"] == "fail"
    assert any(words in sentence for sentence in verdict["sentences"]), verdict["sentences"]


def test_what_happened_under_load() -> None:
    gone = host(gpus=[gpu(index) for index in range(7)], xids=[{"xid": 94, "count": 3, "pci_address": "0000:07:00.0"}])
    before = host(xids=[{"xid": 94, "count": 1, "pci_address": "0000:07:00.0"}])
    found = proof.health(gone, before)
    assert found["errors"] == ["during the burn-in: GPU GPU-7 (156327) was tested and is gone"]
    assert found["notes"] == ["XID 94 on 0000:07:00.0 came up 2 times during the burn-in"]
    assert "could not be read" in proof.health(host(xids=None))["notes"][0]


def test_a_host_without_anything() -> None:
    bare = {"gpus": None, "gpu": None, "nvme": None, "nics": None, "rdma": None, "xids": None}
    assert proof.fingerprint(bare) == {"gpus": {}, "nvme": {}, "nics": {}, "driver": ""}
    assert proof.judge("hardware", proof.health(bare), {"gpu_count": 0})["status"] == "pass"
    assert proof.judge("hardware", proof.health(bare), {"gpu_count": 8})["status"] == "fail"
    assert proof.serials(bare)["gpus"] == []
    assert proof.versions(bare) == {}


def test_no_result() -> None:
    assert proof.assess(None, config("nccl"), NOW)["verdict"] == "none"
    assert proof.assess(result(GOOD, schema=7), config("nccl"), NOW)["verdict"] == "void"


def test_a_good_result() -> None:
    found = proof.assess(result(GOOD), config("nccl"), NOW)
    assert (found["valid"], found["verdict"], found["reasons"]) == (True, "pass", [])


def test_marks_judge_what_was_measured_before_they_changed() -> None:
    marks = {**MARKS, "nccl_busbw_gbs_min": 240.0}
    found = proof.assess(result(GOOD), config("nccl", marks=marks), NOW)
    assert found["verdict"] == "fail"
    assert found["reasons"] == [
        "nccl: all-reduce bus bandwidth: expected at least 240 GB/s (burn_in_nccl_busbw_gbs_min), found 234.137 GB/s"
    ]
    assert proof.assess(result(GOOD), config("nccl", marks={**MARKS, "nccl_busbw_gbs_min": 0}), NOW)["valid"]


def test_parameters_void_what_was_measured_with_others() -> None:
    wanted = config("nccl")
    wanted["tests"]["nccl"]["params"] = {"size": "8G"}
    found = proof.assess(result(entry("nccl", params={"size": "4G"})), wanted, NOW)
    assert (found["verdict"], found["reasons"]) == (
        "void",
        ["nccl: was run on 2026-11-29T01:00:00Z with size '4G' instead of '8G'"],
    )
    assert proof.assess(result(GOOD), config("nccl", "fio"), NOW)["reasons"] == [
        "fio: was not asked for in the burn-in of 2026-11-29T01:00:00Z"
    ]


def test_what_was_not_run_blocks_unless_it_is_allowed() -> None:
    missing = entry("nccl", outcome="not_run", reason="all_reduce_perf is not installed")
    found = proof.assess(result(missing), config("nccl"), NOW)
    assert found["verdict"] == "not_run"
    assert found["reasons"] == [
        "nccl: not run: all_reduce_perf is not installed (expected a run, or nccl in burn_in_allow_not_run)"
    ]
    assert proof.assess(result(missing), config("nccl", allow_not_run=["nccl"]), NOW)["valid"]


def test_errors_fail_whatever_is_allowed() -> None:
    bad = entry("nccl", measured={"busbw_gbs": 300.0}, errors=["all_reduce_perf found 3 wrong results in the data"])
    found = proof.assess(result(bad), config("nccl", allow_not_run=["nccl"]), NOW)
    assert found["reasons"] == ["nccl: all_reduce_perf found 3 wrong results in the data"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"gpus": [gpu(n) for n in range(7)] + [gpu(7, uuid="GPU-new", serial="9")]},
            ["GPU-7 (156327) was tested", "GPU-new (9) was never tested"],
        ),
        ({"gpus": [gpu(n) for n in range(9)]}, ["GPU GPU-8 (156328) was never tested"]),
        (
            {"gpus": [gpu(n) for n in range(7)] + [gpu(7, uuid=None, serial=None)]},
            ["no UUID at 0000:07:00.0 was never tested"],
        ),
        (
            {"nvme": [{"name": "nvme0n1", "serial": "S2", "model": "QLC"}]},
            ["NVMe drive S1 (KCM6) was tested", "NVMe drive S2 (QLC) was never tested"],
        ),
        (
            {"nics": [{"name": "eth0", "mac": "0c:99", "pci_address": "0000:e1:00.0"}]},
            ["network port 0c:42 (eth0) was tested and is gone"],
        ),
        ({"rdma": []}, ["network port 0c42:1 (mlx5_0) was tested and is gone"]),
        ({"gpu_driver": {"version": "560.1", "loaded_version": "560.1"}}, ["the driver was 550.1 and is 560.1"]),
        ({"gpu_driver": None}, ["the driver was 550.1 and is none"]),
    ],
)
def test_other_hardware_voids(changes: dict[str, Any], words: list[str]) -> None:
    found = proof.assess(result(GOOD), config("nccl"), proof.fingerprint(host(**changes)))
    assert found["verdict"] == "void"
    for word in words:
        assert any(word in reason for reason in found["reasons"]), found["reasons"]


def test_order_and_links_of_the_same_parts_do_not_void() -> None:
    other = host()
    other["gpus"] = list(reversed(copy.deepcopy(other["gpus"])))
    other["nics"].append({"name": "veth1", "mac": "02:99", "pci_address": None})
    assert proof.assess(result(GOOD), config("nccl"), proof.fingerprint(other))["valid"]


def test_simulated_results_count_only_where_they_may() -> None:
    simulated = result(GOOD, simulated=True, simulated_by=["GPUs", "nccl"])
    found = proof.assess(simulated, config("nccl"), NOW)
    assert (found["verdict"], found["reasons"]) == (
        "void",
        ["the burn-in of 2026-11-29T01:00:00Z is simulated (GPUs, nccl), which burn_in_allow_simulated does not allow"],
    )
    assert proof.assess(simulated, config("nccl", allow_simulated=True), NOW)["valid"]


def test_lines_about_finished_tests() -> None:
    assert proof.summary(GOOD, proof.judge("nccl", GOOD, MARKS)) == (
        "nccl: passed: all-reduce bus bandwidth 234.137 GB/s, at least 228 GB/s wanted"
    )
    slow = entry("nvbandwidth", measured={"h2d_gbs": {"GPU 0": 12.0, "GPU 1": 11.5}})
    assert proof.summary(slow, proof.judge("nvbandwidth", slow, MARKS)) == (
        "nvbandwidth: GPU 0: host to device: expected at least 24 GB/s (burn_in_nvbandwidth_h2d_gbs_min), found 12 GB/s (and 1 more)"
    )
    memory = entry("memory", measured={"tested_mb": 16.0})
    assert proof.summary(memory, proof.judge("memory", memory, MARKS)) == "memory: passed: tested_mb 16"


def test_durations() -> None:
    assert [proof.duration(value) for value in (5.9, 65, 3700)] == ["5 s", "1 min 05 s", "1 h 01 min"]


def test_every_mark_belongs_to_a_test() -> None:
    assert {mark.test for mark in proof.MARKS} <= set(proof.TESTS)
    assert set(proof.WORDS) == set(proof.TESTS)
