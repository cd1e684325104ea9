# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The stand-in of nvidia-smi and the command that feeds it, run as programs on a directory of their own."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gpu_catalogue as catalogue
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _hardware_nvidia as nvidia

FILES = Path(__file__).resolve().parents[4] / "roles" / "lab" / "files" / "simulated_gpu"
PROFILES = {
    "a100_pcie_80gb_4": (["NVIDIA A100 80GB PCIe"] * 4, 0),
    "a100_sxm4_40gb_8": (["NVIDIA A100-SXM4-40GB"] * 8, 6),
    "a100_sxm4_80gb_8": (["NVIDIA A100-SXM4-80GB"] * 8, 6),
    "h100_sxm5_80gb_8": (["NVIDIA H100 80GB HBM3"] * 8, 4),
    "l40s_8": (["NVIDIA L40S"] * 8, 0),
    "mixed": (["NVIDIA A100 80GB PCIe"] * 4 + ["NVIDIA H100 PCIe"] * 4, 0),
}
LOST = "Unable to determine the device handle for GPU0000:4E:00.0: GPU is lost.  Reboot the system to recover this GPU"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n\n"
)
Done = subprocess.CompletedProcess[str]


class Host:
    """A host's simulated view."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def call(self, program: str, *words: str) -> Done:
        return subprocess.run(
            [sys.executable, "-I", "-S", str(FILES / program), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "GPUFLEET_SIMULATED_DIR": str(self.directory)},
        )

    def command(self, *words: str) -> str:
        done = self.call("gpufleet_simulated_gpu.py", *words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def refused(self, *words: str) -> str:
        """The one sentence of a command that is refused; nothing is changed by it."""
        before = self.tree()
        done = self.call("gpufleet_simulated_gpu.py", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
        assert self.tree() == before
        return done.stderr.strip()

    def smi(self, *words: str) -> Done:
        return self.call("nvidia_smi.py", *words)

    def said(self, *words: str) -> str:
        done = self.smi(*words)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def xml(self, *words: str) -> ElementTree.Element:
        return parsed(self.smi("-q", "-x", *words).stdout)

    def gpus(self) -> list[dict[str, str]]:
        """Of each GPU what the XML says, by path."""
        return [flat(gpu) for gpu in self.xml().findall("gpu")]

    def query(self, fields: str, *words: str) -> list[list[str]]:
        done = self.smi(f"--query-gpu={fields}", "--format=csv,noheader,nounits", *words)
        return [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(done.stdout))]

    def tree(self) -> dict[str, str]:
        """Every file but the state and the lock."""
        return {
            str(path.relative_to(self.directory)): path.read_text("utf-8")
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and path.name not in ("state.json", ".lock")
        }

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "state.json").read_text("utf-8"))
        return found


def parsed(text: str) -> ElementTree.Element:
    """The whole document; it must be well formed."""
    reader: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(["start"])
    reader.feed(text)
    reader.close()
    events: list[Any] = list(reader.read_events())
    root: ElementTree.Element = events[0][1]
    return root


def flat(node: ElementTree.Element, path: str = "") -> dict[str, str]:
    found = {}
    for number, child in enumerate(node):
        name = f"{path}{child.tag}" if child.tag != "supported_graphics_clock" else f"{path}{child.tag}{number}"
        found.update(flat(child, f"{name}/") if len(child) else {name: (child.text or "").strip()})
    return found


def differing(before: list[dict[str, str]], after: list[dict[str, str]]) -> dict[int, dict[str, str]]:
    """By GPU the paths whose values changed, with the new value."""
    assert len(before) == len(after)
    found = {}
    for index, (old, new) in enumerate(zip(before, after)):
        assert old.keys() == new.keys()
        changed = {path: new[path] for path in new if old[path] != new[path]}
        if changed:
            found[index] = changed
    return found


@pytest.fixture(name="new", scope="module")
def make_new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first run writes: each test gets a copy."""
    made = Host(tmp_path_factory.mktemp("new") / "simulated")
    assert made.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu1") == "changed\n"
    return made.directory


@pytest.fixture(name="host")
def make_host(new: Path, tmp_path: Path) -> Host:
    shutil.copytree(new, tmp_path / "simulated")
    return Host(tmp_path / "simulated")


@pytest.fixture(name="smi", scope="module")
def load_smi() -> Any:
    spec = importlib.util.spec_from_file_location("simulated_nvidia_smi", FILES / "nvidia_smi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# -- data --------------------------------------------------------------------------------------------------------------


def test_products_agree_with_the_catalogue() -> None:
    products = json.loads((FILES / "products.json").read_text("utf-8"))["products"]
    for key, product in products.items():
        known = catalogue.GPUS[key]
        assert product["name"] == known.name
        assert product["device"] in known.device_ids
        assert product["memory_mib"] == known.memory_mib
        assert f"sm{product['compute_capability'].replace('.', '')}" == known.architecture
        assert product["architecture"].split()[0].lower() == known.generation
        assert product["nvlinks"] == known.nvlinks
        assert product["pcie_gen"] == known.pcie_gen
        assert product["power_w"]["default"] == known.power_w
        assert product["pci_class"][:6] in catalogue.GPU_CLASSES
        if product["nvlinks"]:
            both_directions = float(product["nvlink_gb_per_s"]) * product["nvlinks"] * 2
            assert both_directions == pytest.approx(known.nvlink_gbs, rel=0.07)


def test_profiles_are_the_known_ones() -> None:
    assert sorted(path.stem for path in (FILES / "profiles").iterdir()) == sorted(PROFILES)
    for path in (FILES / "profiles").iterdir():
        profile = json.loads(path.read_text("utf-8"))
        assert profile["name"] == path.stem
        addresses = [device["pci_address"] for device in profile["gpus"] + profile["nvswitches"]]
        assert len(set(addresses)) == len(addresses)
        assert all(re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.0", address) for address in addresses)
        assert [gpu["pci_address"] for gpu in profile["gpus"]] == sorted(gpu["pci_address"] for gpu in profile["gpus"])
        assert all(switch["device"] in catalogue.NVSWITCHES for switch in profile["nvswitches"])
        # The fabric of NVSwitches needs its manager, and nothing else does.
        assert profile["fabric_manager"] == bool(profile["nvswitches"])


def test_the_role_offers_these_profiles() -> None:
    spec = (FILES.parents[1] / "meta" / "argument_specs.yml").read_text("utf-8")
    offered = set(re.findall(r'choices: \["", (a100_pcie.*)\]', spec))
    assert offered == {", ".join(sorted(PROFILES))}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile(tmp_path: Path, profile: str) -> None:
    host = Host(tmp_path)
    assert host.command("apply", profile) == "changed\n"
    assert host.command("apply", profile) == "unchanged\n"
    names, switches = PROFILES[profile]
    root = host.xml()
    assert [gpu.findtext("product_name") for gpu in root.findall("gpu")] == names
    assert root.findtext("attached_gpus") == str(len(names))
    devices = tmp_path / "sys/bus/pci/devices"
    found = {path.name: (path / "device").read_text().strip()[2:] for path in devices.iterdir()}
    assert sum(1 for device in found.values() if device in catalogue.NVSWITCHES) == switches
    for gpu in root.findall("gpu"):
        address = (gpu.findtext("pci/pci_bus_id") or "").lower()[4:]
        product = catalogue.by_pci("10de", found[address])
        assert product is not None
        assert product.name == gpu.findtext("product_name")
        assert gpu.findtext("pci/pci_device_id") == f"{found[address]}10DE".upper()
        assert (devices / address / "current_link_width").read_text() == "16\n"
        assert (devices / address / "vendor").read_text() == "0x10de\n"
    assert "simulated" in (tmp_path / "proc/driver/nvidia/version").read_text()
    assert (tmp_path / "fabric_manager").exists() == (switches > 0)
    assert not (tmp_path / "kmsg").exists()
    # Every view works on every profile.
    for words in (["-q"], ["-L"], [], ["topo", "-m"], ["nvlink", "-s"], ["nvlink", "-e"], ["--version"]):
        assert host.said(*words).strip()


# -- apply -------------------------------------------------------------------------------------------------------------


def test_the_seed_changes_serials_and_uuids_only(host: Host, tmp_path: Path) -> None:
    other = Host(tmp_path / "other")
    other.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu2")
    changed = differing(host.gpus(), other.gpus())
    assert sorted(changed) == list(range(8))
    assert all(set(paths) == {"serial", "uuid"} for paths in changed.values())
    assert host.tree() == other.tree()
    again = Host(tmp_path / "again")
    again.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu1")
    assert again.gpus() == host.gpus()
    assert len({gpu["uuid"] for gpu in host.gpus() + other.gpus()}) == 16
    assert all(re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", gpu["uuid"]) for gpu in host.gpus())


def test_everything_is_readable_by_everybody(host: Host) -> None:
    for path in host.directory.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644) or path.name == ".lock"
    assert (host.directory / "SIMULATED").read_text().startswith("gpufleet.deepseek lab: profile a100_sxm4_80gb_8")


def test_another_profile_takes_the_place_of_the_first(host: Host) -> None:
    host.command("inject", "lost", "--gpu", "7")
    assert host.command("apply", "a100_pcie_80gb_4", "--seed", "gpu1") == "changed\n"
    assert host.state()["faults"] == []
    assert len(list((host.directory / "sys/bus/pci/devices").iterdir())) == 4
    assert not (host.directory / "fabric_manager").exists()
    assert host.said("-L").count("A100 80GB PCIe") == 4


def test_a_damaged_view_is_put_right(host: Host) -> None:
    before = host.tree()
    device = host.directory / "sys/bus/pci/devices/0000:07:00.0"
    (device / "device").write_text("0x1234\n")
    (device / "vendor").unlink()
    (host.directory / "sys/bus/pci/devices/0000:ff:00.0").mkdir()
    (host.directory / "kmsg").write_text("left behind\n")
    (host.directory / ".state.json.123").write_text("of a killed process")
    outside = host.directory.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours\n")
    (host.directory / "link").symlink_to(outside)
    assert host.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu1") == "changed\n"
    assert host.tree() == before
    assert not (host.directory / "sys/bus/pci/devices/0000:ff:00.0").exists()
    assert not (host.directory / "link").is_symlink()
    assert (outside / "file").read_text() == "not ours\n"
    assert host.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu1") == "unchanged\n"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "gpus": 3}'])
def test_a_broken_state(host: Host, text: str) -> None:
    (host.directory / "state.json").write_text(text)
    done = host.smi("-q", "-x")
    assert done.returncode == 9
    assert done.stderr == ""
    assert "gpufleet-simulated-gpu apply PROFILE" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert "gpufleet-simulated-gpu" in host.refused("show")
    assert host.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu1") == "changed\n"
    assert len(host.gpus()) == 8


def test_check_and_diff_change_nothing(tmp_path: Path) -> None:
    host = Host(tmp_path / "simulated")
    said = host.command("apply", "mixed", "--check", "--diff")
    assert said.startswith("changed\n")
    assert "+0x2331" in said
    assert not host.directory.exists()
    host.command("apply", "mixed")
    assert host.command("apply", "mixed", "--check", "--diff") == "unchanged\n"
    host.command("inject", "x8", "--gpu", "2")
    assert host.command("apply", "mixed", "--check", "--diff") == "unchanged\n"
    (host.directory / "modinfo_version").write_text("1.2\n")
    (host.directory / "extra").write_text("")
    said = host.command("apply", "mixed", "--check", "--diff")
    assert "-1.2\n+550.127.05\n" in said
    assert f"--- {host.directory / 'extra'}\n+++ /dev/null\n" in said
    assert (host.directory / "extra").exists()


def test_faults_and_persistence_outlive_an_apply(host: Host) -> None:
    host.command("inject", "vbios", "92.00.45.00.01")
    host.said("-pm", "0", "-i", "3")
    tree = host.tree()
    assert host.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu1") == "unchanged\n"
    assert host.tree() == tree
    assert host.gpus()[0]["vbios_version"] == "92.00.45.00.01"
    assert host.gpus()[3]["persistence_mode"] == "Disabled"


def test_a_broken_fault_does_not_outlive_an_apply(host: Host) -> None:
    state = host.state()
    state["faults"] = [{"fault": "lost", "gpu": 99}, {"fault": "xid", "gpu": 99, "value": 3, "count": 1, "uptime": 1.0}]
    (host.directory / "state.json").write_text(json.dumps(state))
    assert host.command("apply", "a100_sxm4_80gb_8", "--seed", "gpu1") == "changed\n"
    assert host.state()["faults"] == []


# -- nvidia-smi --------------------------------------------------------------------------------------------------------


def test_the_xml_says_what_it_is(host: Host) -> None:
    lines = host.said("-q", "-x").splitlines()
    assert lines[0] == '<?xml version="1.0" ?>'
    assert lines[1] == '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">'
    assert lines[2] == "<!-- simulated: gpufleet.deepseek lab -->"
    assert lines[3] == "<nvidia_smi_log>"
    root = host.xml()
    assert root.findtext("driver_version") == "550.127.05"
    assert root.findtext("cuda_version") == "12.4"
    gpu = root.findall("gpu")[1]
    assert gpu.get("id") == "00000000:0F:00.0"
    expected = {
        "product_brand": "NVIDIA",
        "product_architecture": "Ampere",
        "mig_mode/current_mig": "Disabled",
        "minor_number": "1",
        "gsp_firmware_version": "550.127.05",
        "pci/pci_sub_system_id": "146310DE",
        "pci/pci_gpu_link_info/pcie_gen/current_link_gen": "4",
        "pci/pci_gpu_link_info/link_widths/current_link_width": "16x",
        "fb_memory_usage/total": "81920 MiB",
        "ecc_mode/current_ecc": "Enabled",
        "ecc_errors/volatile/dram_uncorrectable": "0",
        "retired_pages/pending_retirement": "N/A",
        "remapped_rows/remapped_row_pending": "No",
        "remapped_rows/row_remapper_histogram/row_remapper_histogram_max": "640 bank(s)",
        "temperature/gpu_temp_max_threshold": "92 C",
        "gpu_power_readings/current_power_limit": "400.00 W",
        "max_clocks/sm_clock": "1410 MHz",
        "clocks_event_reasons/clocks_event_reason_gpu_idle": "Active",
        "gpu_reset_status/reset_required": "No",
    }
    assert {path: gpu.findtext(path) for path in expected} == expected


def test_the_text_of_a_query(host: Host) -> None:
    text = host.said("-q")
    assert "==============NVSMI LOG==============" in text
    assert "Simulated                                 : Yes, gpufleet.deepseek lab" in text
    # What people count with grep: one driver, one CUDA, and of each GPU a VBIOS.
    versions = [line.strip() for line in text.splitlines() if "Version" in line and ":" in line]
    assert sum(1 for line in versions if re.fullmatch(r"VBIOS Version +: 92.00.45.00.03", line)) == 8
    assert "Driver Version                            : 550.127.05" in text
    assert len(re.findall(r"^GPU 00000000:[0-9A-F]{2}:00.0$", text, re.MULTILINE)) == 8
    assert all(line.index(" : ") == 41 for line in text.splitlines() if " : " in line)


def test_a_part_of_a_query(host: Host) -> None:
    text = host.said("-q", "-d", "ECC,ROW_REMAPPER", "-i", "0")
    headings = re.findall(r"^    (\w[^:\n]*)$", text, re.MULTILINE)
    assert headings == ["ECC Mode", "ECC Errors", "Remapped Rows"]
    done = host.smi("-q", "-d", "COLOUR")
    assert done.returncode == 2
    assert "COLOUR" in done.stdout


def test_the_list(host: Host) -> None:
    lines = host.said("-L").splitlines()
    assert len(lines) == 8
    assert all(re.fullmatch(r"GPU \d: NVIDIA A100-SXM4-80GB \(UUID: GPU-[0-9a-f-]{36}\)", line) for line in lines)


def test_csv(host: Host) -> None:
    assert host.said("--query-gpu=index,memory.total,power.limit,pcie.link.width.current", "--format=csv").splitlines()[
        :2
    ] == [
        "index, memory.total [MiB], power.limit [W], pcie.link.width.current",
        "0, 81920 MiB, 400.00 W, 16",
    ]
    assert (
        host.said("--query-gpu=name,memory.total", "--format=csv,noheader", "-i", "0")
        == "NVIDIA A100-SXM4-80GB, 81920 MiB\n"
    )
    assert host.query("gpu_name,memory.total,temperature.gpu,clocks.sm,fan.speed,utilization.gpu", "-i", "0") == [
        ["NVIDIA A100-SXM4-80GB", "81920", "31", "210", "[N/A]", "0"]
    ]
    # What health checks of others ask for.
    assert host.query("index,ecc.errors.uncorrected.volatile.total,ecc.mode.current,ecc.mode.pending", "-i", "7") == [
        ["7", "0", "Enabled", "Enabled"]
    ]
    assert host.query("pci.bus_id,vbios_version,driver_version,clocks_throttle_reasons.active", "-i", "1") == [
        ["00000000:0F:00.0", "92.00.45.00.03", "550.127.05", "0x0000000000000001"]
    ]


def test_every_field_has_a_value(host: Host, smi: Any) -> None:
    names = [*smi.FIELDS, *smi.ALIASES]
    assert len(names) > 100
    row = host.query(",".join(names), "-i", "0")[0]
    assert len(row) == len(names)
    assert all(row)
    assert "None" not in row[names.index("temperature.memory")]
    documented = re.findall(r'^"([^"]+)"', host.said("--help-query-gpu"), re.MULTILINE)
    assert documented == list(smi.FIELDS)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--query-gpu=name,nosuch", "--format=csv"], 2, 'Field "nosuch" is not a valid field to query.'),
        (["--query-gpu=name"], 2, "--format="),
        (["--query-gpu=name", "--format=json"], 2, "--format=json is not valid"),
        (["--nosuch"], 2, "Invalid combination of input arguments."),
        (["topo"], 2, "Invalid combination of input arguments."),
        (["nvlink", "-s", "-e"], 2, "Invalid combination of input arguments."),
        (["-pm", "2"], 2, '"2" is not a valid persistence mode'),
        (["-i", "8"], 6, "No devices were found"),
        (["-L", "-i", "GPU-1234"], 6, "No devices were found"),
    ],
)
def test_wrong_arguments(host: Host, words: list[str], code: int, sentence: str) -> None:
    done = host.smi(*words)
    assert done.returncode == code
    assert done.stdout.startswith(sentence) or sentence in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_gpu_by_any_of_its_names(host: Host) -> None:
    uuid, serial = host.query("uuid,serial", "-i", "2")[0]
    for name in ("2", uuid, uuid.upper(), serial, "0000:47:00.0", "00000000:47:00.0", "47:00.0"):
        assert host.query("index", "-i", name) == [["2"]]
        assert host.query("index", f"--id={name}") == [["2"]]
    assert host.query("index", "-i", "5,2,5") == [["2"], ["5"]]
    assert host.xml("-i", "3").findall("gpu")[0].get("id") == "00000000:4E:00.0"


def matrix(text: str) -> dict[tuple[str, str], str]:
    lines = re.sub(r"\x1b\[\d*m", "", text).split("\n\n")[0].splitlines()
    header = [name for name in lines[0].split("\t") if name.startswith("GPU") and name != "GPU NUMA ID"]
    found = {}
    for line in lines[1:]:
        name, *cells = line.split("\t")
        found.update({(name, other): cell.strip() for other, cell in zip(header, cells)})
    return found


def test_topologies(tmp_path: Path) -> None:
    host = Host(tmp_path)
    expected = {
        "a100_sxm4_80gb_8": ("NV12", "NV12", "NV12"),
        "h100_sxm5_80gb_8": ("NV18", "NV18", "NV18"),
        "l40s_8": ("PXB", "NODE", "SYS"),
        "mixed": ("NV12", "NODE", "SYS"),
    }
    for profile, (near, node, far) in expected.items():
        host.command("apply", profile)
        text = host.said("topo", "-m")
        cells = matrix(text)
        assert len(cells) == 64
        assert cells["GPU0", "GPU0"] == "X"
        assert (cells["GPU0", "GPU1"], cells["GPU0", "GPU2"], cells["GPU0", "GPU4"]) == (near, node, far)
        assert all(cells[one, other] == cells[other, one] for one, other in cells)
        assert "Legend:" in text


def test_nvlinks(host: Host) -> None:
    text = host.said("nvlink", "-s", "-i", "1")
    assert text.splitlines()[0].startswith("GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-")
    assert re.findall(r"^\t Link (\d+): 25 GB/s$", text, re.MULTILINE) == [str(link) for link in range(12)]
    counters = re.findall(
        r"^\t Link \d+: (Replay|Recovery|CRC) Errors: (\d+)$", host.said("nvlink", "-e"), re.MULTILINE
    )
    assert len(counters) == 8 * 12 * 3
    assert {count for _name, count in counters} == {"0"}


def test_the_table(host: Host) -> None:
    lines = host.said().splitlines()
    assert lines[1].startswith("Simulated by gpufleet.deepseek lab")
    table = [line for line in lines if line.startswith(("|", "+"))]
    assert {len(line) for line in table} == {91}
    assert "| NVIDIA-SMI 550.127.05             Driver Version: 550.127.05     CUDA Version: 12.4     |" in table
    assert sum("NVIDIA A100-SXM4-80GB          On" in line for line in table) == 8


def test_versions_and_processes(host: Host) -> None:
    text = host.said("--version")
    assert "DRIVER version      : 550.127.05" in text
    assert "SIMULATED" in text
    assert host.said("--query-compute-apps=pid,used_memory", "--format=csv") == "pid, used_gpu_memory [MiB]\n"
    assert host.said("--query-compute-apps=pid", "--format=csv,noheader") == ""


def test_persistence_mode(host: Host) -> None:
    assert (
        host.said("-pm", "1", "-i", "0") == "Persistence mode is already Enabled for GPU 00000000:07:00.0.\nAll done.\n"
    )
    assert host.said("-pm", "0", "-i", "0") == "Disabled persistence mode for GPU 00000000:07:00.0.\nAll done.\n"
    assert [row[0] for row in host.query("persistence_mode")] == ["Disabled"] + ["Enabled"] * 7
    assert host.said("-pm", "1").startswith(
        "Enabled persistence mode for GPU 00000000:07:00.0.\nPersistence mode is already"
    )
    assert [row[0] for row in host.query("persistence_mode")] == ["Enabled"] * 8


def test_a_reset_heals_what_a_reset_heals(host: Host) -> None:
    for words in (["ecc", "--count", "3"], ["row_remap_pending"], ["requires_reset"], ["vbios", "92.00.45.00.01"]):
        host.command("inject", *words)
    host.command("inject", "ecc", "--gpu", "1")
    assert host.said("-r", "-i", "0") == "GPU 00000000:07:00.0 was successfully reset.\nAll done.\n"
    first, second = host.gpus()[:2]
    assert first["ecc_errors/volatile/dram_uncorrectable"] == "0"
    assert first["ecc_errors/aggregate/dram_uncorrectable"] == "3"
    assert first["remapped_rows/remapped_row_pending"] == "No"
    assert first["remapped_rows/remapped_row_unc"] == "1"
    assert first["gpu_reset_status/reset_required"] == "No"
    assert first["vbios_version"] == "92.00.45.00.01"
    assert second["ecc_errors/volatile/dram_uncorrectable"] == "1"
    assert host.said("--gpu-reset").count("was successfully reset") == 8
    assert host.gpus()[1]["ecc_errors/volatile/dram_uncorrectable"] == "0"


# -- faults ------------------------------------------------------------------------------------------------------------

DEVICE = "sys/bus/pci/devices/0000:4e:00.0"
PCI = "pci/pci_gpu_link_info/link_widths/current_link_width"
ECC = "ecc_errors"
REASON = "clocks_event_reasons/clocks_event_reason"
HISTOGRAM = "remapped_rows/row_remapper_histogram/row_remapper_histogram"
# A fault on GPU 3; what changes of it in the XML; which files change, and how.
FAULTS: list[tuple[list[str], dict[str, str], dict[str, str]]] = [
    (
        ["ecc", "--count", "2"],
        {f"{ECC}/volatile/dram_uncorrectable": "2", f"{ECC}/aggregate/dram_uncorrectable": "2"},
        {"kmsg": "Xid (PCI:0000:4e:00): 94,"},
    ),
    (
        ["ecc", "--location", "sram"],
        {
            f"{ECC}/volatile/sram_uncorrectable_parity": "1",
            f"{ECC}/aggregate/sram_uncorrectable_parity": "1",
            f"{ECC}/aggregate_uncorrectable_sram_sources/sram_sm": "1",
        },
        {"kmsg": "): 94,"},
    ),
    (
        ["row_remap_pending"],
        {
            "remapped_rows/remapped_row_unc": "1",
            "remapped_rows/remapped_row_pending": "Yes",
            "gpu_reset_status/drain_and_reset_recommended": "Yes",
            f"{HISTOGRAM}_max": "639 bank(s)",
            f"{HISTOGRAM}_high": "1 bank(s)",
        },
        {"kmsg": "): 63,"},
    ),
    (
        ["row_remap_failed"],
        {
            "remapped_rows/remapped_row_failure": "Yes",
            f"{HISTOGRAM}_max": "639 bank(s)",
            f"{HISTOGRAM}_none": "1 bank(s)",
        },
        {"kmsg": "): 64,"},
    ),
    (["xid", "13", "--count", "2"], {}, {"kmsg": "): 13,"}),
    (["x8"], {PCI: "8x"}, {f"{DEVICE}/current_link_width": "8\n"}),
    (["nvlink_down", "--link", "11"], {}, {"kmsg": "): 74,"}),
    (["vbios", "92.00.45.00.0a"], {"vbios_version": "92.00.45.00.0A"}, {}),
    (
        ["mig_on"],
        {
            "mig_mode/current_mig": "Enabled",
            "mig_mode/pending_mig": "Enabled",
            **{f"utilization/{kind}_util": "N/A" for kind in ("gpu", "memory", "encoder", "decoder", "jpeg", "ofa")},
        },
        {},
    ),
    (
        ["throttle"],
        {
            f"{REASON}_gpu_idle": "Not Active",
            f"{REASON}_hw_slowdown": "Active",
            f"{REASON}_hw_thermal_slowdown": "Active",
            "temperature/gpu_temp": "90 C",
        },
        {},
    ),
    (
        ["throttle", "--reason", "sw_power_cap"],
        {f"{REASON}_gpu_idle": "Not Active", f"{REASON}_sw_power_cap": "Active"},
        {},
    ),
]


@pytest.mark.parametrize(("words", "xml", "files"), FAULTS, ids=[" ".join(words) for words, _xml, _files in FAULTS])
def test_a_fault_changes_its_gpu_and_nothing_else(
    host: Host, words: list[str], xml: dict[str, str], files: dict[str, str]
) -> None:
    gpus, tree = host.gpus(), host.tree()
    assert host.command("inject", *words, "--gpu", "3") == "changed\n"
    assert differing(gpus, host.gpus()) == ({3: xml} if xml else {})
    after = host.tree()
    changed = {name: after[name] for name in after if tree.get(name) != after[name]}
    assert set(tree) - set(after) == set()
    assert set(changed) == set(files)
    assert all(text in changed[name] for name, text in files.items())
    if words[0] != "xid":
        assert host.command("inject", *words, "--gpu", "3") == "unchanged\n"
        assert host.tree() == after
    # Healing takes all of it back.
    assert host.command("heal", words[0], "--gpu", "2") == "unchanged\n"
    assert host.command("heal", words[0]) == "changed\n"
    assert host.gpus() == gpus
    assert host.tree() == tree
    assert host.command("heal") == "unchanged\n"


def test_a_lost_gpu(host: Host) -> None:
    before, tree = host.gpus(), host.tree()
    host.command("inject", "lost", "--gpu", "3")
    done = host.smi("-q", "-x")
    assert (done.returncode, done.stderr.strip()) == (15, LOST)
    root = parsed(done.stdout)
    assert root.findtext("attached_gpus") == "8"
    assert [flat(gpu) for gpu in root.findall("gpu")] == before[:3] + before[4:]
    for words in (
        ["-i", "3"],
        ["-q", "-x", "-i", "3"],
        ["-L", "-i", "3"],
        ["--query-gpu=name", "--format=csv,noheader", "-i", "3"],
    ):
        done = host.smi(*words)
        assert done.returncode == 15
        assert (done.stdout + done.stderr).strip().endswith(LOST)
    assert host.smi("-L").stdout.splitlines()[3] == LOST
    assert host.smi("--query-gpu=index", "--format=csv,noheader").stdout.splitlines() == [
        "0",
        "1",
        "2",
        LOST,
        "4",
        "5",
        "6",
        "7",
    ]
    assert host.smi("-i", "4").returncode == 0
    assert ("GPU2", "GPU4") in matrix(host.smi("topo", "-m").stdout)
    assert ("GPU2", "GPU3") not in matrix(host.smi("topo", "-m").stdout)
    assert host.smi("-r", "-i", "3").returncode == 15
    after = host.tree()
    changed = {name: after[name] for name in after if tree.get(name) != after[name]}
    assert changed[f"{DEVICE}/current_link_width"] == "63\n"
    assert set(changed) == {f"{DEVICE}/current_link_width", f"{DEVICE}/current_link_speed", "kmsg"}
    assert "): 79," in changed["kmsg"]
    host.command("heal", "lost")
    assert host.tree() == tree
    assert host.gpus() == before


def test_all_gpus_lost(host: Host) -> None:
    host.command("inject", "lost", "--gpu", "all")
    done = host.smi("-q", "-x")
    assert done.returncode == 15
    assert (done.stdout + done.stderr).count("GPU is lost") == 8


def test_a_gpu_that_requires_a_reset(host: Host) -> None:
    before = host.gpus()
    host.command("inject", "requires_reset", "--gpu", "5")
    changed = differing(before, host.gpus())
    assert list(changed) == [5]
    assert changed[5]["gpu_reset_status/reset_required"] == "Yes"
    assert changed[5]["temperature/gpu_temp"] == "GPU requires reset"
    assert not {"uuid", "serial", "vbios_version", "product_name", "fb_memory_usage/total"} & set(changed[5])
    assert host.query("temperature.gpu,power.draw,name", "-i", "5") == [
        ["[GPU requires reset]", "[GPU requires reset]", "NVIDIA A100-SXM4-80GB"]
    ]
    assert "ERR!" in host.said("-i", "5")
    assert "ERR!" not in host.said("-i", "4")


def test_no_driver(host: Host) -> None:
    tree = host.tree()
    host.command("inject", "driver_not_loaded")
    for words in ([], ["-q", "-x"], ["-L"], ["topo", "-m"], ["nvlink", "-s"], ["--version"], ["-pm", "1"], ["-r"]):
        done = host.smi(*words)
        assert (done.returncode, done.stdout, done.stderr) == (9, NO_DRIVER, "")
    after = host.tree()
    assert set(tree) - set(after) == {"proc/driver/nvidia/version"}
    assert after["modinfo_version"] == "550.127.05\n"
    assert host.smi("--help-query-gpu").returncode == 0
    host.command("heal")
    assert host.tree() == tree


def test_a_driver_of_another_version(host: Host) -> None:
    tree = host.tree()
    host.command("inject", "driver_mismatch", "550.90.07")
    done = host.smi("-q", "-x")
    assert done.returncode == 18
    assert done.stdout.splitlines() == [
        "Failed to initialize NVML: Driver/library version mismatch",
        "NVML library version: 550.90",
    ]
    after = host.tree()
    assert {name for name in after if after[name] != tree[name]} == {"modinfo_version"}
    assert after["modinfo_version"] == "550.90.07\n"
    # One driver is installed: a second version takes the place of the first.
    host.command("inject", "driver_mismatch", "560.35.03")
    assert len(host.state()["faults"]) == 1
    assert host.tree()["modinfo_version"] == "560.35.03\n"


def test_fabric_manager_down(host: Host) -> None:
    gpus = host.gpus()
    host.command("inject", "fabric_manager_down")
    assert host.tree()["fabric_manager"] == "version=550.127.05\nactive=false\n"
    assert host.gpus() == gpus
    host.command("apply", "h100_sxm5_80gb_8")
    assert host.gpus()[0]["fabric/state"] == "Completed"
    host.command("inject", "fabric_manager_down")
    assert host.gpus()[0]["fabric/state"] == "In Progress"


def test_faults_on_several_gpus(host: Host) -> None:
    host.command("inject", "x8", "--gpu", "1,6,1")
    assert [row[0] for row in host.query("pcie.link.width.current")] == ["16", "8", "16", "16", "16", "16", "8", "16"]
    assert host.command("inject", "x8", "--gpu", "1,2") == "changed\n"
    host.command("heal", "x8", "--gpu", "1")
    assert [fault["gpu"] for fault in host.state()["faults"]] == [6, 2]
    host.command("inject", "vbios", "92.00.45.00.01", "--gpu", "all")
    host.command("inject", "vbios", "92.00.45.00.02", "--gpu", "0")
    assert [row[0][-1] for row in host.query("vbios_version")] == ["2"] + ["1"] * 7
    shown = host.command("show")
    assert "fault    x8 gpu=6" in shown
    assert "fault    vbios gpu=0 value=92.00.45.00.02" in shown
    assert json.loads(host.command("show", "--json"))["profile"] == "a100_sxm4_80gb_8"


def test_xids_are_events(host: Host) -> None:
    host.command("inject", "xid", "31", "--gpu", "2")
    assert host.command("inject", "xid", "31", "--gpu", "2", "--count", "2") == "changed\n"
    lines = host.tree()["kmsg"].splitlines()
    assert len(lines) == 3
    assert all(re.match(r"\[ *\d+\.\d{6}\] NVRM: Xid \(PCI:0000:47:00\): 31, ", line) for line in lines)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["apply", "b200_9"], "there is no profile 'b200_9'; there are: a100_pcie_80gb_4, "),
        (["apply", "../../etc/passwd"], "there is no profile"),
        (["apply"], "PROFILE"),
        ([], "COMMAND"),
        (["explode"], "explode"),
        (["inject", "flood"], "there is no fault 'flood'; there are: ecc, "),
        (["heal", "flood"], "there is no fault 'flood'"),
        (["inject", "ecc", "--gpu", "8"], "--gpu: expected 0 to 7 or all, found '8'."),
        (["inject", "ecc", "--gpu", "-1"], "--gpu: expected 0 to 7 or all, found '-1'."),
        (["inject", "ecc", "--gpu", "1,x"], "found 'x'"),
        (["inject", "ecc", "--gpu", ""], "--gpu: expected 0 to 7 or all, found ''."),
        (["heal", "ecc", "--gpu", "8"], "--gpu: expected 0 to 7 or all"),
        (["inject", "ecc", "--count", "0"], "--count: expected 1 to 1000000, found 0."),
        (["inject", "ecc", "5"], "ecc takes no value, found '5'."),
        (["inject", "ecc", "--location", "l2"], "l2"),
        (["inject", "xid", "-5"], "xid: expected a number from 1 to 999, found '-5'."),
        (["inject", "xid", "0"], "xid: expected a number"),
        (["inject", "xid", "1000"], "xid: expected a number"),
        (["inject", "xid"], "xid wants a NUMBER."),
        (["inject", "vbios", "latest"], "vbios: expected a version like 92.00.45.00.03, found 'latest'."),
        (["inject", "vbios"], "vbios wants a VERSION."),
        (["inject", "driver_mismatch", "new"], "driver_mismatch: expected a version like 550.90.07, found 'new'."),
        (["inject", "driver_mismatch", "550.127.05"], "driver_mismatch: 550.127.05 is the loaded driver"),
        (["inject", "driver_mismatch", "550.90.07", "--gpu", "1"], "driver_mismatch takes no --gpu."),
        (["inject", "nvlink_down", "--link", "12"], "links 0 to 11; --link is 12"),
        (["inject", "nvlink_down", "--link", "-1"], "--link is -1"),
        (["inject", "x8", "--link", "1"], "x8 takes no --link."),
        (["inject", "throttle", "--reason", "age"], "age"),
    ],
)
def test_bad_input_is_one_sentence(host: Host, words: list[str], sentence: str) -> None:
    assert sentence in host.refused(*words)


def test_faults_that_a_product_cannot_have(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.command("apply", "l40s_8")
    assert host.refused("inject", "mig_on", "--gpu", "2").endswith("GPU 2 is an NVIDIA L40S, which has no MIG.")
    assert "no NVLink" in host.refused("inject", "nvlink_down")
    assert host.refused("inject", "fabric_manager_down").endswith("profile l40s_8 has no Fabric Manager.")


def test_nothing_was_applied(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert "run gpufleet-simulated-gpu apply PROFILE first" in host.refused("inject", "lost")
    assert "run gpufleet-simulated-gpu apply PROFILE first" in host.refused("show")
    done = host.smi("-L")
    assert done.returncode == 9
    assert "apply PROFILE" in done.stdout
    assert host.command("profiles").split()[0] == "a100_pcie_80gb_4"


def test_two_at_a_time_lose_nothing(host: Host) -> None:
    """Faults injected by processes that run side by side are all there afterwards."""
    env = {**os.environ, "GPUFLEET_SIMULATED_DIR": str(host.directory)}
    argv = [sys.executable, str(FILES / "gpufleet_simulated_gpu.py"), "inject", "x8", "--gpu"]
    started = [
        subprocess.Popen([*argv, str(gpu)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for gpu in range(8)
    ]
    for process in started:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert sorted(fault["gpu"] for fault in host.state()["faults"]) == list(range(8))
    assert [path.name for path in host.directory.iterdir() if path.name.startswith(".state")] == []


# -- the collection's own parsers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_hardware_info_reads_a_profile(tmp_path: Path, profile: str) -> None:
    host = Host(tmp_path)
    host.command("apply", profile)
    log = nvidia.parse_smi_xml(host.said("-q", "-x"))
    assert log.simulated
    assert (log.driver_version, log.cuda_version) == ("550.127.05", "12.4")
    names, _switches = PROFILES[profile]
    assert [view["name"] for view in log.gpus] == names
    for view in log.gpus:
        known = catalogue.by_name(view["name"])
        assert known is not None
        assert view["memory_mib"] == known.memory_mib
        assert view["power_limit_w"] == float(known.power_w)
        assert view["ecc"]["enabled"] is True
        assert view["ecc"]["volatile_uncorrected"] == 0
        assert view["row_remap"] == {"correctable": 0, "uncorrectable": 0, "pending": False, "failed": False}
    topology = nvidia.parse_topology(host.said("topo", "-m"))
    assert topology is not None
    assert len(topology) == len(names)
    links = nvidia.parse_nvlink(host.said("nvlink", "-s"))
    for view in log.gpus:
        known = catalogue.by_name(view["name"])
        assert known is not None
        found = nvidia.nvlink_of(links, view["uuid"], None, known.nvlinks)
        assert (found["active"] if found else 0) == known.nvlinks


def test_hardware_info_reads_faults(host: Host) -> None:
    for words in (["lost", "--gpu", "3"], ["ecc", "--gpu", "1"], ["row_remap_failed", "--gpu", "2"], ["throttle"]):
        host.command("inject", *words)
    host.command("inject", "requires_reset", "--gpu", "4")
    host.command("inject", "nvlink_down", "--gpu", "5", "--link", "2")
    done = host.smi("-q", "-x")
    log = nvidia.parse_smi_xml(done.stdout, done.stderr)
    by_address = {view["pci_address"]: view for view in log.gpus}
    assert [handle.address for handle in log.handles] == ["0000:4e:00.0"]
    assert "0000:4e:00.0" not in by_address
    assert by_address["0000:07:00.0"]["throttle_reasons"] == ["hw_slowdown", "hw_thermal_slowdown"]
    assert by_address["0000:0f:00.0"]["ecc"]["volatile_uncorrected"] == 1
    assert by_address["0000:47:00.0"]["row_remap"]["failed"] is True
    assert by_address["0000:87:00.0"]["state"] == "requires_reset"
    links = nvidia.parse_nvlink(host.smi("nvlink", "-s").stdout)
    assert nvidia.nvlink_of(links, by_address["0000:90:00.0"]["uuid"], None, 12)["inactive"] == 1
    found = {(entry["xid"], entry["pci_address"]) for entry in nvidia.parse_xids(host.tree()["kmsg"])}
    assert {(79, "0000:4e:00.0"), (94, "0000:0f:00.0"), (64, "0000:47:00.0"), (74, "0000:90:00.0")} <= found
    assert nvidia.parse_loaded(host.tree()["proc/driver/nvidia/version"]) == ("550.127.05", True)
