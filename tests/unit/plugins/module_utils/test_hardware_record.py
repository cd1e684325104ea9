# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The script in docs/hardware.md that records a host: what it records reads as the host itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware import gather
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_host import SYSCTLS
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import TOOLS, Reader

DOCS = Path(__file__).resolve().parents[4] / "docs" / "hardware.md"


@pytest.fixture(scope="module")
def script() -> str:
    """The script."""
    found = re.search(r"```sh\n(# record\.sh.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_script_runs_every_tool_as_the_module_does(script: str) -> None:
    said = {
        slug: tuple(rest.replace("\\\n", " ").split())
        for slug, rest in re.findall(r"^say (\w+) ((?:[^\n\\]|\\\n)+)", script, re.MULTILINE)
    }
    assert {slug: said.get(slug) for slug in TOOLS} == TOOLS
    assert set(said) - set(TOOLS) == {"uname", "getconf_glibc", "timedatectl", "chronyc"}
    assert [name for name in SYSCTLS if f"proc/sys/{name.replace('.', '/')}" not in script] == []


def test_a_recorded_host_reads_as_the_host_itself(script: str, tmp_path: Path) -> None:
    path = tmp_path / "record.sh"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(["/bin/sh", str(path), str(tmp_path / "tree")], check=False, capture_output=True, text=True)
    assert (done.stderr, (tmp_path / "tree" / "commands" / "uname").is_file()) == ("", True)
    wanted = ["cpu", "memory", "board", "network", "rdma", "storage", "os"]
    live, recorded = gather(Reader(), wanted), gather(Reader(str(tmp_path / "tree")), wanted)
    for key in ("cpu", "rdma", "iommu", "sysctl", "os"):
        assert recorded[key] == live[key], key
    for key in ("total_mib", "swap_mib", "hugepages"):
        assert recorded["memory"][key] == live["memory"][key], key
    known = ("name", "pci_address", "vendor_id", "device_id", "driver", "mac", "mtu", "link", "speed_mbps", "pcie")
    ports = [[{key: port[key] for key in known} for port in found["nics"]] for found in (recorded, live)]
    assert ports[0] == ports[1]
    # The tree has no devices to look into, only what udev and mounts say about them.
    sizes = [
        [(disk["name"], disk["size_bytes"], disk["rotational"]) for disk in found["block"]]
        for found in (recorded, live)
    ]
    assert sizes[0] == sizes[1]
