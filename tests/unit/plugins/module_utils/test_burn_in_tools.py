# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _burn_in_tools as tools

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "burn_in"


def text(name: str) -> str:
    return (FIXTURES / name).read_text(encoding="utf-8")


def test_dcgm_4_passes() -> None:
    found = tools.parse_dcgmi(0, text("dcgmi_4_pass.json"), "")
    assert found.values == {"tests_pass": 56.0, "tests_fail": 0.0, "tests_warn": 0.0, "tests_skip": 8.0}
    assert found.versions == {"dcgm": "4.4.1", "driver": "550.127.05"}
    assert (found.errors, found.notes, found.nothing) == ([], [], "")


def test_dcgm_4_names_the_gpu_that_failed_and_keeps_the_warning_of_one_that_passed() -> None:
    found = tools.parse_dcgmi(226, text("dcgmi_4_fail.json"), "")
    assert found.errors == [
        "targeted_power GPU 5 failed: Max power of 281.4 did not reach desired power minimum of 300.0 for GPU 5"
    ]
    assert found.notes == [
        "memory GPU 2 (pass): Could not allocate the wanted share of GPU 2's memory: 71% of 75%.",
        "targeted_power GPU 6 (warn): Clocks of GPU 6 are being held back: HW_THERMAL",
    ]


def test_dcgm_3() -> None:
    found = tools.parse_dcgmi(0, text("dcgmi_3_fail.json"), "")
    assert found.errors == ["GPU Memory GPU 3 failed: 1 row remapping failure on GPU 3"]
    assert found.notes == [
        "Persistence Mode GPU 0,1,2,3,4,5,6,7 (warn): Persistence mode for GPU 0 is currently disabled."
    ]
    assert found.versions["dcgm"] == "3.3.5"


@pytest.mark.parametrize(
    ("rc", "out", "err", "words"),
    [
        (
            255,
            "",
            "Error: unable to establish a connection to the specified host: localhost",
            "exit code 255: Error: unable",
        ),
        (0, "", "", "printed no JSON"),
        (0, "{}", "", "reported no test"),
        (
            0,
            '{"DCGM Diagnostic": {"runtime_error": "GPUs are in use"}}',
            "",
            "could not run the diagnostic: GPUs are in use",
        ),
        (0, '{"DCGM Diagnostic": {"test_categories": [1, null, {"tests": "x"}]}}', "", "reported no test"),
        (0, '{"tests": [{"name": "x", "results": [{"status": "Aborted"}]}]}', "", "x: DCGM says 'Aborted'"),
        (0, '{"tests": [{"name": "x"}]}', "", "x: DCGM says 'nothing'"),
        (
            0,
            '{"tests": [{"name": "x", "results": [{"status": "Pass"}], "test_summary": {"status": "Fail"}}]}',
            "",
            "x failed",
        ),
    ],
)
def test_what_dcgm_should_not_say(rc: int, out: str, err: str, words: str) -> None:
    assert any(words in error for error in tools.parse_dcgmi(rc, out, err).errors)


def test_dcgm_that_skips_everything_has_tested_nothing() -> None:
    out = '{"DCGM GPU Diagnostic": {"test_categories": [{"tests": [{"name": "x", "results": [{"status": "Skip"}]}]}]}}'
    assert tools.parse_dcgmi(0, out, "").nothing == "dcgmi skipped every test"


def test_nvbandwidth() -> None:
    found = tools.parse_nvbandwidth(0, text("nvbandwidth.json"), "")
    assert found.errors == []
    assert found.values["h2d_gbs"]["GPU 4"] == 25.0  # type: ignore[index]
    assert len(found.values["d2h_gbs"]) == 8  # type: ignore[arg-type]
    assert found.versions == {"nvbandwidth": "v0.8", "driver": "550.127.05", "cuda_runtime": "12040"}


def test_a_cell_without_a_number_is_no_measurement() -> None:
    found = tools.parse_nvbandwidth(0, text("nvbandwidth_slow.json"), "")
    assert sorted(found.values["h2d_gbs"]) == [f"GPU {n}" for n in range(7)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("CUDA error", "printed no JSON"),
        ('{"nvbandwidth": {"error": "no device"}}', "nvbandwidth says: no device"),
        (
            '{"nvbandwidth": {"testcases": []}}',
            "reported nothing for host_to_device_memcpy_ce, device_to_host_memcpy_ce",
        ),
        ('{"nvbandwidth": {"testcases": [{"name": "host_to_device_memcpy_ce", "status": "Waived"}]}}', "Waived"),
    ],
)
def test_what_nvbandwidth_should_not_say(out: str, words: str) -> None:
    assert any(words in error for error in tools.parse_nvbandwidth(0, out, "").errors)


def test_nccl() -> None:
    found = tools.parse_nccl(0, text("nccl.txt"), "")
    assert found.values == {"ranks": 8.0, "busbw_gbs": 234.137}
    assert found.versions == {"nccl_tests": "2.16.4", "nccl": "22703"}
    assert found.errors == []


def test_nccl_with_wrong_sums() -> None:
    found = tools.parse_nccl(0, text("nccl_wrong.txt"), "")
    assert found.errors == ["all_reduce_perf found 3 wrong results in the data"]
    assert tools.parse_nccl(1, "", "gpu17: Test NCCL failure\n").errors == [
        "all_reduce_perf ended with exit code 1: gpu17: Test NCCL failure"
    ]
    assert tools.parse_nccl(0, "#\n", "").errors == ["all_reduce_perf printed no average bus bandwidth"]


def test_ib_write_bw() -> None:
    assert tools.parse_ib_write_bw(0, text("ib_write_bw.txt"), "").values == {"write_gbps": 196.18}
    assert tools.parse_ib_write_bw(0, '{"results": {"BW_average": 184.2}}', "").values == {"write_gbps": 184.2}
    assert tools.parse_ib_write_bw(1, "", " Couldn't connect to 127.0.0.1:18600\n").errors == [
        "ib_write_bw ended with exit code 1: Couldn't connect to 127.0.0.1:18600"
    ]


def test_fio() -> None:
    found = tools.parse_fio(0, text("fio.json"), "")
    assert found.errors == []
    assert found.values["write_mbs"] == 1048.6
    assert found.values["read_mbs"] == 932.1
    assert found.versions == {"fio": "fio-3.33"}


def test_fio_that_reads_other_data_than_it_wrote() -> None:
    found = tools.parse_fio(1, text("fio_damaged.json"), text("fio_damaged.err"))
    assert found.errors == [
        "fio job read: error 84: /srv/models/burn reads back other data than was written, at offset 1048576"
    ]


@pytest.mark.parametrize(
    ("rc", "out", "words"),
    [
        (1, "fio: looks like your file system does not support direct=1", "exit code 1"),
        (0, "{}", "no write and no read speed"),
        (
            0,
            json.dumps({"jobs": [{"jobname": "write", "error": 0, "write": {"bw": 1000, "io_bytes": 5}}]}),
            "no read speed",
        ),
    ],
)
def test_what_fio_should_not_say(rc: int, out: str, words: str) -> None:
    assert words in tools.parse_fio(rc, out, "").errors[0]


def test_stressapptest() -> None:
    found = tools.parse_stressapptest(0, text("stressapptest.txt"), "")
    assert found.errors == []
    assert found.values == {"copy_mbs": 23972.68}
    bad = text("stressapptest.txt").replace("0 hardware incidents, 0 errors", "2 hardware incidents, 5 errors")
    bad = bad.replace("Status: PASS", "Status: FAIL")
    assert tools.parse_stressapptest(1, bad, "").errors == [
        "stressapptest found 2 hardware incidents and 5 errors in memory"
    ]
    assert tools.parse_stressapptest(1, "", "Process Error: Not enough memory").errors != []
    assert tools.parse_stressapptest(0, "", "").errors == ["stressapptest did not say that memory passed"]


def test_memtester() -> None:
    found = tools.parse_memtester(0, text("memtester.txt"), "")
    assert (found.errors, found.values, found.versions) == ([], {"tested_mb": 1.0}, {"memtester": "4.6.0"})
    bad = "FAILURE: 0xffff != 0x7fff at offset 0x00001000.\n"
    assert tools.parse_memtester(4, text("memtester.txt"), bad).errors == [
        "memtester: 0xffff != 0x7fff at offset 0x00001000."
    ]
    assert tools.parse_memtester(1, "", "").errors == ["memtester: it could not get or lock the memory"]
    assert tools.parse_memtester(0, "Loop 1/1:", "").errors == ["memtester did not come to its end"]
    assert tools.parse_memtester(6, "", "").errors == ["memtester: stuck address line", "memtester: a pattern failed"]


def stress(**changes: Any) -> str:
    data: dict[str, Any] = {
        "rounds": 12,
        "tflops": {"0": 262.0, "1": 261.0, "2": 200.0},
        "mismatches": [],
        "versions": {"torch": "2.5.1"},
    }
    return "some warning\n" + json.dumps({**data, **changes}) + "\n"


def test_gpu_stress() -> None:
    found = tools.parse_gpu_stress(0, stress(), "")
    assert found.errors == []
    assert found.values["speed_ratio"] == {"GPU 0": 1.004, "GPU 1": 1.0, "GPU 2": 0.766}
    assert found.versions == {"torch": "2.5.1"}


def test_gpu_stress_that_found_something() -> None:
    found = tools.parse_gpu_stress(0, stress(mismatches=["round 3: cuda:1 differs from cuda:0"]), "")
    assert found.errors == ["silent data corruption: round 3: cuda:1 differs from cuda:0"]
    assert (
        tools.parse_gpu_stress(1, '{"error": "CUDA out of memory", "rounds": 0}', "").errors[-1]
        == "gpu_stress: CUDA out of memory"
    )
    assert tools.parse_gpu_stress(0, stress(rounds=0), "").errors == ["gpu_stress finished no round"]
    assert tools.parse_gpu_stress(0, "", "").errors == ["gpu_stress printed no JSON"]


@pytest.mark.parametrize(
    "parser",
    [
        tools.parse_dcgmi,
        tools.parse_nvbandwidth,
        tools.parse_nccl,
        tools.parse_ib_write_bw,
        tools.parse_fio,
        tools.parse_stressapptest,
        tools.parse_memtester,
        tools.parse_gpu_stress,
    ],
)
@pytest.mark.parametrize(
    "out", ["", "{", "}{", "[1, 2]", '{"a": NaN}', "\x00\xff", '{"jobs": 5, "nvbandwidth": 5, "tflops": {"0": "x"}}']
)
def test_no_output_breaks_a_parser(parser: Callable[[int, str, str], tools.Reading], out: str) -> None:
    for rc in (0, 1, -9, 124):
        found = parser(rc, out, "")
        # Nothing that was not understood may look like a pass.
        assert found.errors or found.nothing


def test_numbers() -> None:
    assert [tools.number(value) for value in ("25.1", 3, None, True, "N/A", float("nan"), "inf")] == [
        25.1,
        3.0,
        None,
        None,
        None,
        None,
        None,
    ]
