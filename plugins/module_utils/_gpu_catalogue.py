# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""What is known about GPUs: adding one is adding a line to the table.

Sources of the numbers:

* device ids: the PCI ID database (package ``pci.ids``).
* memory: what ``nvidia-smi`` prints as the total of that product.
* the rest: what the column ``source`` names; ``ds-NAME`` is NVIDIA's data sheet, ``wp-CHIP`` its white paper.
  Speeds are dense: figures "with sparsity" are
  halved.
"""

from __future__ import annotations

from dataclasses import dataclass

NVIDIA = "10de"
# class codes of /sys/bus/pci/devices/*/class that are GPUs: VGA controller and 3D controller.
GPU_CLASSES = ("0x0300", "0x0302")
# NVSwitches are bridges ("0x0680") with these device ids. Source: pci.ids (1af1, 1ac1, 1ac2, 22a3).
NVSWITCHES = {"1ac1": "V100", "1ac2": "V100", "1af1": "A100", "22a3": "H100"}


@dataclass(frozen=True)
class Gpu:
    """One product.

    :ivar key: name in inventories, plans and reports.
    :ivar name: product name as ``nvidia-smi`` prints it.
    :ivar device_ids: PCI device ids, without 0x.
    :ivar generation: ampere, hopper ...
    :ivar architecture: compute capability, as sm80.
    :ivar memory_mib: total memory that the driver reports, in MiB.
    :ivar bandwidth_gbs: memory bandwidth, 10^9 bytes per second.
    :ivar fp16_tflops: dense FP16/BF16 tensor speed, 10^12 operations per second, accumulating in FP32.
    :ivar fp8_tflops: dense FP8 tensor speed; 0 when the GPU has none.
    :ivar power_w: board power, W.
    :ivar nvlinks: links per GPU in an HGX board or over a full bridge; 0 without NVLink.
    :ivar nvlink_gbs: bandwidth of all links in both directions, 10^9 bytes per second.
    :ivar pcie_gen: generation of the host link at its best; its width is 16.
    :ivar form: sxm or pcie.
    :ivar source: where the numbers come from.
    """

    key: str
    name: str
    device_ids: tuple[str, ...]
    generation: str
    architecture: str
    memory_mib: int
    bandwidth_gbs: float
    fp16_tflops: float
    fp8_tflops: float
    power_w: int
    nvlinks: int
    nvlink_gbs: int
    pcie_gen: int
    form: str
    source: str

    @property
    def memory_bytes(self) -> int:
        """Total memory in bytes."""
        return self.memory_mib * 1024 * 1024


# Speeds: memory GB/s; dense FP16 and FP8 TFLOPS, 0 where there is none; links: NVLinks of a GPU and GB/s of all of them, both directions.
_TABLE = """
key            | name                          | device ids| generation| sm   | MiB   | GB/s| fp16 | fp8 | W   | links| GB/s| PCIe| form| source
v100-sxm2-16gb | Tesla V100-SXM2-16GB          | 1db1 1df5 | volta     | sm70 | 16160 | 900 | 125  | 0   | 300 | 6    | 300 | 3   | sxm | ds-V100
v100-sxm2-32gb | Tesla V100-SXM2-32GB          | 1db5      | volta     | sm70 | 32510 | 900 | 125  | 0   | 300 | 6    | 300 | 3   | sxm | ds-V100
v100-pcie-32gb | Tesla V100-PCIE-32GB          | 1db6      | volta     | sm70 | 32510 | 900 | 112  | 0   | 250 | 0    | 0   | 3   | pcie| ds-V100
t4             | Tesla T4                      | 1eb8      | turing    | sm75 | 15360 | 300 | 65   | 0   | 70  | 0    | 0   | 3   | pcie| ds-T4
a100-sxm4-40gb | NVIDIA A100-SXM4-40GB         | 20b0      | ampere    | sm80 | 40960 | 1555| 312  | 0   | 400 | 12   | 600 | 4   | sxm | ds-A100
a100-sxm4-80gb | NVIDIA A100-SXM4-80GB         | 20b2      | ampere    | sm80 | 81920 | 2039| 312  | 0   | 400 | 12   | 600 | 4   | sxm | ds-A100
a100-pcie-40gb | NVIDIA A100-PCIE-40GB         | 20b1 20f1 | ampere    | sm80 | 40960 | 1555| 312  | 0   | 250 | 12   | 600 | 4   | pcie| ds-A100
a100-pcie-80gb | NVIDIA A100 80GB PCIe         | 20b5      | ampere    | sm80 | 81920 | 1935| 312  | 0   | 300 | 12   | 600 | 4   | pcie| ds-A100
a800-sxm4-80gb | NVIDIA A800-SXM4-80GB         | 20f3      | ampere    | sm80 | 81920 | 2039| 312  | 0   | 400 | 8    | 400 | 4   | sxm | ds-A800
a800-pcie-80gb | NVIDIA A800 80GB PCIe         | 20f5      | ampere    | sm80 | 81920 | 1935| 312  | 0   | 300 | 8    | 400 | 4   | pcie| ds-A800
a30            | NVIDIA A30                    | 20b7      | ampere    | sm80 | 24576 | 933 | 165  | 0   | 165 | 4    | 200 | 4   | pcie| ds-A30
a40            | NVIDIA A40                    | 2235      | ampere    | sm86 | 46068 | 696 | 149.7| 0   | 300 | 4    | 112 | 4   | pcie| ds-A40
a10            | NVIDIA A10                    | 2236      | ampere    | sm86 | 23028 | 600 | 125  | 0   | 150 | 0    | 0   | 4   | pcie| ds-A10
a10g           | NVIDIA A10G                   | 2237      | ampere    | sm86 | 23028 | 600 | 70   | 0   | 300 | 0    | 0   | 4   | pcie| ds-A10G
rtx-a6000      | NVIDIA RTX A6000              | 2230      | ampere    | sm86 | 49140 | 768 | 154.8| 0   | 300 | 4    | 112 | 4   | pcie| ds-A6000
rtx-3090       | NVIDIA GeForce RTX 3090       | 2204      | ampere    | sm86 | 24576 | 936 | 71   | 0   | 350 | 4    | 112 | 4   | pcie| wp-GA102
l4             | NVIDIA L4                     | 27b8      | ada       | sm89 | 23034 | 300 | 121  | 242 | 72  | 0    | 0   | 4   | pcie| ds-L4
l40            | NVIDIA L40                    | 26b5      | ada       | sm89 | 46068 | 864 | 181  | 362 | 300 | 0    | 0   | 4   | pcie| ds-L40
l40s           | NVIDIA L40S                   | 26b9      | ada       | sm89 | 46068 | 864 | 362  | 733 | 350 | 0    | 0   | 4   | pcie| ds-L40S
rtx-6000-ada   | NVIDIA RTX 6000 Ada Generation| 26b1      | ada       | sm89 | 49140 | 960 | 364  | 728 | 300 | 0    | 0   | 4   | pcie| ds-6000-Ada
rtx-4090       | NVIDIA GeForce RTX 4090       | 2684      | ada       | sm89 | 24564 | 1008| 165  | 330 | 450 | 0    | 0   | 4   | pcie| wp-AD102
h100-sxm5-80gb | NVIDIA H100 80GB HBM3         | 2330      | hopper    | sm90 | 81559 | 3352| 989  | 1979| 700 | 18   | 900 | 5   | sxm | ds-H100
h100-pcie-80gb | NVIDIA H100 PCIe              | 2331      | hopper    | sm90 | 81559 | 2039| 756  | 1513| 350 | 12   | 600 | 5   | pcie| ds-H100
h100-nvl       | NVIDIA H100 NVL               | 2321      | hopper    | sm90 | 95830 | 3938| 835  | 1671| 400 | 12   | 600 | 5   | pcie| ds-H100
h800-sxm5-80gb | NVIDIA H800                   | 2324      | hopper    | sm90 | 81559 | 3352| 989  | 1979| 700 | 8    | 400 | 5   | sxm | ds-H800
h20            | NVIDIA H20                    | 2329      | hopper    | sm90 | 97871 | 4000| 148  | 296 | 500 | 18   | 900 | 5   | sxm | ds-H20
h200-sxm5-141gb| NVIDIA H200                   | 2335      | hopper    | sm90 | 143771| 4800| 989  | 1979| 700 | 18   | 900 | 5   | sxm | ds-H200
h200-nvl       | NVIDIA H200 NVL               | 233b      | hopper    | sm90 | 143771| 4800| 835  | 1671| 600 | 18   | 900 | 5   | pcie| ds-H200
b200-sxm6-180gb| NVIDIA B200                   | 2901      | blackwell | sm100| 183359| 8000| 2250 | 4500| 1000| 18   | 1800| 5   | sxm | ds-B200
"""


def _read(table: str) -> dict[str, Gpu]:
    """The products of the table by key."""
    found = {}
    for line in table.strip().splitlines()[1:]:
        cells = [cell.strip() for cell in line.split("|")]
        gpu = Gpu(
            key=cells[0],
            name=cells[1],
            device_ids=tuple(cells[2].split()),
            generation=cells[3],
            architecture=cells[4],
            memory_mib=int(cells[5]),
            bandwidth_gbs=float(cells[6]),
            fp16_tflops=float(cells[7]),
            fp8_tflops=float(cells[8]),
            power_w=int(cells[9]),
            nvlinks=int(cells[10]),
            nvlink_gbs=int(cells[11]),
            pcie_gen=int(cells[12]),
            form=cells[13],
            source=cells[14],
        )
        found[gpu.key] = gpu
    return found


GPUS: dict[str, Gpu] = _read(_TABLE)
BY_DEVICE_ID: dict[str, Gpu] = {device: gpu for gpu in GPUS.values() for device in gpu.device_ids}
_BY_NAME: dict[str, Gpu] = {gpu.name.lower(): gpu for gpu in GPUS.values()}


def by_pci(vendor: str, device: str) -> Gpu | None:
    """The product behind a PCI id, or None.

    :arg vendor: vendor id, four hexadecimal digits with or without 0x.
    :arg device: device id likewise.
    """
    if vendor.lower().replace("0x", "") != NVIDIA:
        return None
    return BY_DEVICE_ID.get(device.lower().replace("0x", ""))


def by_name(name: str) -> Gpu | None:
    """The product by its key or by the name that the driver prints, or None."""
    return GPUS.get(name.lower()) or _BY_NAME.get(name.lower())
