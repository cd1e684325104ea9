# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parsers of what NVIDIA's tools print."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_nvidia as nvidia
from ansible_collections.gpufleet.deepseek.tests.unit.fixtures.hardware import build
from ansible_collections.gpufleet.deepseek.tests.unit.fixtures.hardware.build import GpuSpec, smi_xml

TEXT = Path(build.__file__).with_name("text")


def text(name: str) -> str:
    """A typed or captured fixture."""
    return (TEXT / name).read_text(encoding="utf-8")


def view(layout: str = "550", **spec: Any) -> dict[str, Any]:
    """One GPU, written in a layout and read back."""
    log = nvidia.parse_smi_xml(smi_xml([GpuSpec(**spec)], layout))
    assert log.complete
    assert len(log.gpus) == 1
    return log.gpus[0]


@pytest.mark.parametrize("layout", build.LAYOUTS)
@pytest.mark.parametrize("product", sorted(build.PRODUCTS))
def test_every_product_in_every_layout(product: str, layout: str) -> None:
    wanted = build.PRODUCTS[product]
    found = view(layout, product=product, sram=3, dram=40, uncorrectable=2)
    assert found["pci_address"] == "0000:07:00.0"
    assert (found["vendor_id"], found["device_id"]) == ("10de", wanted.device)
    assert found["subsystem_id"] == f"10de:{wanted.subsystem}"
    assert (found["name"], found["memory_mib"]) == (wanted.name, wanted.memory)
    assert found["pcie"] == {"width": 16, "width_max": 16, "gen": wanted.gen, "gen_max": wanted.gen}
    assert found["power_limit_w"] == found["power_limit_default_w"] == found["power_limit_max_w"] == float(wanted.power)
    assert found["clocks"] == {
        "sm_mhz": 210,
        "memory_mhz": wanted.mem,
        "sm_max_mhz": wanted.sm,
        "memory_max_mhz": wanted.mem,
    }
    assert (found["state"], found["persistence"], found["temperature_c"]) == ("ok", True, 31)
    assert (found["vbios"], found["inforom"], found["board_part_number"]) == (wanted.vbios, wanted.inforom, wanted.part)
    assert found["throttle_reasons"] == []
    assert found["ecc"] == {
        "enabled": True,
        "pending": True,
        "volatile_corrected": 43,
        "volatile_uncorrected": 2,
        "aggregate_corrected": 43,
        "aggregate_uncorrected": 2,
        "sram_uncorrected_volatile": 2,
        "sram_uncorrected_aggregate": 2,
        "sram_corrected": 3,
        "dram_corrected": 40,
    }
    if layout == "418":
        assert found["retired_pages"] == {"single_bit": 2, "double_bit": 1, "pending": False}
        assert found["row_remap"] is None
        assert found["mig"] is None
    else:
        assert found["retired_pages"] is None
        assert found["row_remap"] == {"correctable": 0, "uncorrectable": 2, "pending": False, "failed": False}
        assert found["mig"] is False
    assert found["gsp_firmware"] == (build.VERSIONS["550"] if layout == "550" else None)


@pytest.mark.parametrize("layout", build.LAYOUTS)
def test_throttle_reasons_have_one_name_in_all_layouts(layout: str) -> None:
    found = view(layout, active="sw_power_cap hw_slowdown gpu_idle")
    assert found["throttle_reasons"] == ["hw_slowdown", "sw_power_cap"]


def test_mig_ecc_off_and_pending_remap() -> None:
    assert view(mig="Enabled")["mig"] is True
    off = view(ecc="Disabled")["ecc"]
    assert off["enabled"] is False
    assert off["volatile_uncorrected"] is off["sram_corrected"] is None
    remap = view(remap_pending="Yes", remap_failed="Yes", uncorrectable=1)["row_remap"]
    assert (remap["pending"], remap["failed"], remap["uncorrectable"]) == (True, True, 1)
    assert view(product="v100", layout="418", remap_pending="Yes")["retired_pages"]["pending"] is True


@pytest.mark.parametrize(
    ("replaced", "state", "field", "value"),
    [
        ((("31 C", "ERR!"),), "error", "temperature_c", None),
        ((("31 C", "[N/A]"),), "ok", "temperature_c", None),
        ((("31 C", "[Not Supported]"),), "ok", "temperature_c", None),
        ((("81920 MiB", "[GPU requires reset]"),), "requires_reset", "memory_mib", None),
        ((("81920 MiB", "GPU requires reset"),), "requires_reset", "memory_mib", None),
        ((("<reset_required>No", "<reset_required>Yes"),), "requires_reset", "memory_mib", 81920),
        ((("81920 MiB", "[GPU is lost]"),), "lost", "memory_mib", None),
        ((("81920 MiB", "Unknown Error"),), "lost", "memory_mib", None),
        ((("31 C", "[Unknown Error]"),), "error", "temperature_c", None),
        ((("92.00.45.00.03", "??.??"),), "ok", "power_limit_w", 400.0),
        ((("400.00 W", "N/A"),), "ok", "power_limit_w", None),
        (
            (("<gpu_reset_status>", "<gpu_recovery_action>Reset</gpu_recovery_action><gpu_reset_status>"),),
            "requires_reset",
            "mig",
            False,
        ),
        (
            (("<gpu_reset_status>", "<gpu_recovery_action>None</gpu_recovery_action><gpu_reset_status>"),),
            "ok",
            "mig",
            False,
        ),
    ],
)
def test_fields_that_hold_no_value(replaced: Any, state: str, field: str, value: Any) -> None:
    found = view(replaced=replaced)
    assert found["state"] == state
    assert found[field] == value


@pytest.mark.parametrize(
    ("out", "err", "handles", "message"),
    [
        ("No devices were found\n", "", [], "No devices were found"),
        (
            "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 560.35\n",
            "",
            [],
            "Failed to initialize NVML: Driver/library version mismatch",
        ),
        (
            "",
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that it runs.\n",
            [],
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that it runs.",
        ),
        (
            "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost.  Reboot the system to recover this GPU\n",
            "",
            [(None, "0000:3b:00.0", "lost")],
            "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost. Reboot the system to recover this GPU",
        ),
        (
            "Unable to determine the device handle for gpu 0000:3B:00.0: GPU requires reset\n",
            "",
            [(None, "0000:3b:00.0", "requires_reset")],
            "Unable to determine the device handle for gpu 0000:3B:00.0: GPU requires reset",
        ),
        (
            "Unable to determine the device handle for GPU0000:25:00.0: Unknown Error\n",
            "",
            [(None, "0000:25:00.0", "lost")],
            "Unable to determine the device handle for GPU0000:25:00.0: Unknown Error",
        ),
        (
            "",
            "Unable to determine the device handle for GPU3: 0000:5F:00.0: Unknown Error\n",
            [(3, "0000:5f:00.0", "lost")],
            "Unable to determine the device handle for GPU3: 0000:5F:00.0: Unknown Error",
        ),
        (
            "Unable to determine the device handle for GPU2: Unknown Error\n",
            "",
            [(2, None, "lost")],
            "Unable to determine the device handle for GPU2: Unknown Error",
        ),
        ("", "", [], ""),
        ("\x00\x01\x02\x03\n", "", [], ""),
        ("\ufffd\ufffdx\ufffd\n", "", [], "nvidia-smi printed what is no text"),
    ],
)
def test_answers_without_a_document(out: str, err: str, handles: Any, message: str) -> None:
    log = nvidia.parse_smi_xml(out, err)
    assert not log.complete
    assert log.gpus == []
    assert [(handle.index, handle.address, handle.state) for handle in log.handles] == handles
    assert log.message == message


def test_shares_and_processes_of_a_gpu_say_nothing_about_it() -> None:
    share = "<mig_device><index>0</index><fb_memory_usage><total>9856 MiB</total></fb_memory_usage></mig_device>"
    process = "<processes><process_info><process_name>ERR! gpu is lost, requires reset</process_name></process_info>"
    found = view(mig="Enabled", replaced=(("\t\t\tNone\n", share), ("<processes>", process)))
    assert (found["mig"], found["memory_mib"], found["state"]) == (True, 81920, "ok")


def test_a_lost_gpu_keeps_its_index() -> None:
    specs = build.eight()
    before = "Unable to determine the device handle for GPU2: 0000:47:00.0: Unknown Error\n"
    log = nvidia.parse_smi_xml(smi_xml(specs[:2] + specs[3:], before=before))
    assert log.complete
    assert nvidia.indices(log) == {f"0000:{place}": index for index, place in enumerate(build.ADDRESSES)}
    unnamed = nvidia.parse_smi_xml(
        smi_xml(specs[1:], before="Unable to determine the device handle for GPU0: Unknown Error\n")
    )
    assert nvidia.indices(unnamed)["0000:0f:00.0"] == 1


def test_the_lab_says_that_it_is_simulated() -> None:
    document = smi_xml([GpuSpec()])
    assert not nvidia.parse_smi_xml(document).simulated
    marked = document.replace("<nvidia_smi_log>", f"<!-- {nvidia.SIMULATED} -->\n<nvidia_smi_log>", 1)
    for shape in (marked, f"<!-- {nvidia.SIMULATED} -->\n{document}"):
        log = nvidia.parse_smi_xml(shape)
        assert log.simulated
        assert log.complete


def test_a_document_that_breaks_off_keeps_its_whole_gpus() -> None:
    document = smi_xml(build.eight())
    log = nvidia.parse_smi_xml(document[: document.index(build.eight()[3].uuid)])
    assert not log.complete
    assert [gpu["uuid"] for gpu in log.gpus] == [spec.uuid for spec in build.eight()[:3]]
    assert log.driver_version == build.VERSIONS["550"]
    assert "breaks off" in log.message


def test_entities_and_deep_nesting_are_refused() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><nvidia_smi_log>&b;</nvidia_smi_log>'
    log = nvidia.parse_smi_xml(bomb)
    assert not log.complete
    assert "entities" in log.message
    deep = nvidia.parse_smi_xml("<nvidia_smi_log>" + "<a>" * 100000)
    assert "nested" in deep.message


def test_nothing_that_is_cut_or_flipped_raises() -> None:
    chance = build.Chance()
    document = smi_xml([GpuSpec(), GpuSpec(number=1, product="v100")], "418") + text("topo_h100.txt")
    for _turn in range(300):
        shape = list(document[: chance.below(len(document))])
        for _flip in range(chance.below(20)):
            if shape:
                shape[chance.below(len(shape))] = "\0\t&<>[\ufffd\U0001f600"[chance.below(8)]
        broken = "".join(shape)
        log = nvidia.parse_smi_xml(broken, broken[:200])
        assert all(gpu["state"] for gpu in log.gpus)
        for parse in (
            nvidia.parse_nvlink,
            nvidia.parse_topology,
            nvidia.parse_xids,
            nvidia.parse_loaded,
            nvidia.parse_modinfo,
        ):
            parse(broken)
        nvidia.modinfo_section(broken.encode()[:64], lambda _offset, _size: b"")


def test_nvlink() -> None:
    specs = build.eight()
    links = nvidia.parse_nvlink(build.nvlink(specs, {3: 2}))
    assert nvidia.nvlink_of(links, specs[0].uuid, 0, 12) == {"active": 12, "inactive": 0, "speed_gbps": 200.0}
    assert nvidia.nvlink_of(links, specs[3].uuid, 3, 12) == {"active": 10, "inactive": 2, "speed_gbps": 200.0}
    assert nvidia.nvlink_of(links, "GPU-other", 0, 12) is None
    hopper = nvidia.parse_nvlink(build.nvlink([GpuSpec(product="h100")]))
    assert nvidia.nvlink_of(hopper, GpuSpec().uuid, 0, 18) == {"active": 18, "inactive": 0, "speed_gbps": 212.496}
    # Cards without links are listed with nothing below them; old drivers print no UUID.
    assert nvidia.nvlink_of(nvidia.parse_nvlink(build.nvlink([GpuSpec(product="l40s")])), GpuSpec().uuid, 0, 0) is None
    old = nvidia.parse_nvlink("GPU 0: Tesla V100-SXM2-32GB\n\t Link 0: 25.781 GB/s\n\t Link 1: <inactive>\n")
    assert nvidia.nvlink_of(old, "GPU-x", 0, 6) == {"active": 1, "inactive": 1, "speed_gbps": 206.248}
    said = "GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-a)\nNVML: Unable to retrieve NVLink information as all links are inActive\n"
    assert nvidia.nvlink_of(nvidia.parse_nvlink(said), "GPU-a", 0, 12) == {
        "active": 0,
        "inactive": 12,
        "speed_gbps": None,
    }


@pytest.mark.parametrize(
    ("answer", "matrix"),
    [
        (text("topo_h100.txt"), [["X", "NV18"], ["NV18", "X"]]),
        (text("topo_pcie_470.txt"), [["X", "SYS"], ["SYS", "X"]]),
        (build.topo(1), [["X"]]),
        ("No devices were found\n", None),
        (text("topo_h100.txt").split("GPU1\tNV18")[0], None),
        ("", None),
    ],
)
def test_topology(answer: str, matrix: Any) -> None:
    assert nvidia.parse_topology(answer) == matrix


def test_topology_hash_tells_a_missing_link_and_not_the_cards_beside() -> None:
    same = [
        nvidia.topology_hash(nvidia.parse_topology(answer))
        for answer in (build.topo(8), build.topo(8).replace("NIC0", "mlx5_0"))
    ]
    assert same[0] == same[1]
    assert len(same[0] or "") == 16
    assert nvidia.topology_hash(nvidia.parse_topology(build.topo(8).replace("NV12", "NV11", 1))) != same[0]
    assert nvidia.topology_hash(None) is None


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (text("version_proprietary.txt"), ("550.127.05", False)),
        (text("version_open.txt"), ("570.86.15", True)),
        ("", (None, None)),
        ("GCC version: 11.4.0", (None, None)),
    ],
)
def test_loaded_module(said: str, found: Any) -> None:
    assert nvidia.parse_loaded(said) == found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (text("modinfo.txt"), ("550.127.05", False)),
        (text("modinfo_open.txt"), ("570.86.15", True)),
        ("license=NVIDIA\nversion=470.256.02\n", ("470.256.02", False)),
        ("modinfo: ERROR: Module nvidia not found.", (None, None)),
    ],
)
def test_installed_module(said: str, found: Any) -> None:
    assert nvidia.parse_modinfo(said) == found


def elf(strings: bytes) -> bytes:
    """A kernel module of three sections: none, names, .modinfo."""
    names = b"\0.shstrtab\0.modinfo\0"
    table = 64 + len(names) + len(strings)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 1
    )

    def section(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)

    rows = bytes(64) + section(1, 64, len(names)) + section(11, 64 + len(names), len(strings))
    return head + names + strings + rows


def test_the_module_file_says_its_version_without_modinfo() -> None:
    data = elf(b"license=Dual MIT/GPL\0version=570.86.15\0supported=external\0")

    def read(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    assert nvidia.parse_modinfo(nvidia.modinfo_section(data[:64], read) or "") == ("570.86.15", True)
    assert nvidia.modinfo_section(b"not a module", read) is None
    assert nvidia.modinfo_section(data[:64], lambda _offset, _size: b"") is None
    short = elf(b"")
    assert nvidia.modinfo_section(short[:64], lambda offset, size: short[offset : offset + size]) == ""


def test_information_without_nvidia_smi() -> None:
    assert nvidia.parse_information(text("information.txt")) == {
        "name": "NVIDIA A100-SXM4-80GB",
        "uuid": "GPU-6ec3c8a1-0d4c-4f6e-a6c5-0f6b1f2d0001",
        "vbios": "92.00.45.00.03",
        "gsp_firmware": "550.127.05",
    }
    assert nvidia.parse_information(text("information_lost.txt")) == {}


def test_xids() -> None:
    found = nvidia.parse_xids(text("dmesg_xids.txt"))
    assert [(entry["xid"], entry["count"], entry["pci_address"]) for entry in found] == [
        (31, 2, "0000:0f:00.0"),
        (43, 1, "0000:47:00.0"),
        (48, 1, "0000:4e:00.0"),
        (63, 1, "0000:4e:00.0"),
        (79, 1, "0000:07:00.0"),
        (94, 1, "0000:b7:00.0"),
    ]
    assert found[0]["message"].startswith("NVRM: Xid (PCI:0000:0f:00): 31, pid=4711")
    assert nvidia.parse_xids("") == []


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("Fabric Manager version is : 550.127.05\n", "550.127.05"),
        ("\ndcgmi  version: 3.3.5\n", "3.3.5"),
        ("Version : 4.1.1\nBuild ID : 16\n", "4.1.1"),
        ("no number here", None),
    ],
)
def test_versions_of_tools(said: str, version: str | None) -> None:
    assert nvidia.parse_version(said) == version


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("400.00 W", 400.0),
        ("-2 C", -2.0),
        ("16x", None),
        ("0x1234", None),
        ("95.02.66", None),
        ("N/A", None),
        (None, None),
    ],
)
def test_numbers(said: str | None, value: float | None) -> None:
    assert nvidia.number(said) == value
