# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab's simulated GPUs, and their faults, look like in the structure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware import gather
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Output, Reader

FILES = Path(__file__).resolve().parents[4] / "roles" / "lab" / "files" / "simulated_gpu"


class Host:
    """A host with simulated GPUs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _run(self, program: str, *words: str) -> Output:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(FILES / program), *words],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "GPUFLEET_SIMULATED_DIR": str(self.folder)},
        )
        return Output(done.returncode, done.stdout, done.stderr)

    def __call__(self, argv: Sequence[str], timeout: float) -> Output:
        if argv[0] != "nvidia-smi":
            return Output(127, "", problem=f"{argv[0]} is not installed", missing=True)
        return self._run("nvidia_smi.py", *argv[1:])

    def command(self, *words: str) -> None:
        """Run the command that makes GPUs and breaks them."""
        done = self._run("gpufleet_simulated_gpu.py", *words)
        assert (done.rc, done.err) == (0, "")

    def hardware(self) -> dict[str, Any]:
        """What hardware_info would return."""
        return gather(Reader("", str(self.folder), self), ["gpu", "xid"])


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with eight A100."""
    made = Host(tmp_path / "view")
    made.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu1")
    return made


@pytest.mark.parametrize(
    ("profile", "count", "catalogue", "switches", "links"),
    [
        ("a100_sxm4_80gb_8", 8, "a100-sxm4-80gb", 6, 12),
        ("a100_sxm4_40gb_8", 8, "a100-sxm4-40gb", 6, 12),
        ("h100_sxm5_80gb_8", 8, "h100-sxm5-80gb", 4, 18),
        ("a100_pcie_80gb_4", 4, "a100-pcie-80gb", 0, 12),
        ("l40s_8", 8, "l40s", 0, None),
        ("mixed", 8, "mixed", 0, None),
    ],
)
def test_every_profile_is_whole(
    tmp_path: Path, profile: str, count: int, catalogue: str, switches: int, links: int | None
) -> None:
    made = Host(tmp_path / "view")
    made.command("apply", profile, "--seed", "gpu1")
    found = made.hardware()
    assert found["simulated"] is True
    assert found["unavailable"] == {}
    gpu = found["gpu"]
    assert (gpu["count"], gpu["driver_count"], gpu["catalogue"]) == (count, count, catalogue)
    assert (gpu["nvswitch_count"], gpu["lost"], gpu["unknown_pci_ids"]) == (switches, [], [])
    assert len(gpu["topology_hash"]) == 16
    assert {entry["state"] for entry in found["gpus"]} == {"ok"}
    assert [entry["index"] for entry in found["gpus"]] == list(range(count))
    for entry in found["gpus"]:
        assert entry["uuid"]
        assert entry["ecc"]["enabled"] is True
        assert entry["row_remap"] == {"correctable": 0, "uncorrectable": 0, "pending": False, "failed": False}
        assert entry["pcie"]["width"] == entry["pcie"]["width_max"] == 16
        assert entry["throttle_reasons"] == []
        if catalogue != "mixed":
            assert (entry["nvlink"] or {}).get("active") == links
    driver = found["gpu_driver"]
    assert (driver["answers"], driver["error"], driver["mismatch"]) == (True, "", False)
    assert driver["version"] == driver["loaded_version"] == driver["installed_version"]
    assert found["fabric_manager"]["needed"] is (switches > 0)
    assert found["xids"] == []


@pytest.mark.parametrize(
    ("fault", "path", "value"),
    [
        (("vbios", "92.00.45.00.01", "--gpu", "5"), ("gpus", 5, "vbios"), "92.00.45.00.01"),
        (("ecc", "--gpu", "2", "--location", "sram"), ("gpus", 2, "ecc", "sram_uncorrected_volatile"), 1),
        (("ecc", "--gpu", "2", "--count", "3", "--location", "dram"), ("gpus", 2, "ecc", "volatile_uncorrected"), 3),
        (("row_remap_pending", "--gpu", "1"), ("gpus", 1, "row_remap", "pending"), True),
        (("row_remap_failed", "--gpu", "1"), ("gpus", 1, "row_remap", "failed"), True),
        (("x8", "--gpu", "4"), ("gpus", 4, "pcie", "width"), 8),
        (("nvlink_down", "--gpu", "3"), ("gpus", 3, "nvlink", "inactive"), 1),
        (("mig_on", "--gpu", "6"), ("gpu", "mig_enabled"), 1),
        (("throttle", "--gpu", "0", "--reason", "sw_power_cap"), ("gpus", 0, "throttle_reasons"), ["sw_power_cap"]),
        (("requires_reset", "--gpu", "7"), ("gpus", 7, "state"), "requires_reset"),
        (("lost", "--gpu", "3"), ("gpu", "lost"), ["0000:4e:00.0"]),
        (("lost", "--gpu", "3"), ("gpus", 3, "index"), 3),
        (("lost", "--gpu", "3"), ("gpu", "driver_count"), 7),
        (("lost", "--gpu", "3"), ("gpu", "product"), "NVIDIA A100-SXM4-80GB"),
        (("driver_mismatch", "560.35.03"), ("gpu_driver", "mismatch"), True),
        (("driver_mismatch", "560.35.03"), ("gpu_driver", "installed_version"), "560.35.03"),
        (("driver_not_loaded",), ("gpu_driver", "loaded_version"), None),
        (("driver_not_loaded",), ("gpus", 0, "state"), "no_driver"),
        (("fabric_manager_down",), ("fabric_manager", "active"), False),
        (("xid", "31", "--gpu", "2", "--count", "4"), ("xids", 0, "count"), 4),
    ],
)
def test_every_fault_is_seen_and_heals(host: Host, fault: tuple[str, ...], path: tuple[Any, ...], value: Any) -> None:
    def at(found: Any) -> Any:
        for step in path:
            found = found[step]
        return found

    before = host.hardware()
    host.command("inject", *fault)
    assert at(host.hardware()) == value
    host.command("heal")
    healed = host.hardware()
    # What the kernel said stays said.
    assert {**healed, "xids": None} == {**before, "xids": None}
