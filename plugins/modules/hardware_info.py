#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: hardware_info
short_description: Read what a GPU host is made of
version_added: 1.0.0
description:
  - Returns one structure with everything that has to be equal between the hosts of a GPU fleet, or that decides which models fit them.
    It holds GPUs as the bus and as the driver see them, processors, memory, board, network, RDMA, disks, operating system and the
    driver's errors since the start.
  - Works without a driver, with a broken one, with a GPU that fell off the bus and on hosts without a GPU. What cannot be read is V(null),
    and RV(hardware.unavailable) says why.
  - Every tool runs once and for no longer than O(timeout) seconds; slow ones run beside each other.
  - Changes nothing.
author: gpufleet.deepseek maintainers (@gpufleet)
options:
  gather_subset:
    description:
      - What to read. V(all) is everything, a name with V(!) before it is left out; only names with V(!) leave out from everything.
      - The names are V(gpu), V(cpu), V(memory), V(board), V(network), V(rdma), V(storage), V(os) and V(xid).
    type: list
    elements: str
    default: [all]
  root:
    description:
      - A tree that was recorded on another host, to be read in the place of this one. Empty reads this host.
      - Files stand under their own path below it, what tools printed in C(commands/SLUG), their exit codes other than 0 in
        C(commands/SLUG.rc). The slugs and how to record are in C(docs/hardware.md).
    type: path
    default: ""
  simulation:
    description: Where hosts of the lab keep their simulated GPUs. Without a file C(SIMULATED) in it the option has no effect.
    type: path
    default: /var/lib/gpufleet/simulated
  timeout:
    description: How many seconds each external tool may take.
    type: float
    default: 10.0
extends_documentation_fragment:
  - gpufleet.deepseek._attributes.info
notes:
  - Run as root. Other users do not see DIMMs, the board's serial number, ACS, wear of NVMe drives, and often the kernel log.
seealso:
  - module: ansible.builtin.setup
"""

EXAMPLES = r"""
- name: Read all of it
  gpufleet.deepseek.hardware_info:
  register: found

- name: Stop when a GPU does not answer
  ansible.builtin.assert:
    that: found.hardware.gpu.lost | length == 0
    fail_msg: "No answer from {{ found.hardware.gpu.lost | join(', ') }}"

- name: Read only the GPUs and their errors
  gpufleet.deepseek.hardware_info:
    gather_subset: [gpu, xid]

- name: Read all but disks
  gpufleet.deepseek.hardware_info:
    gather_subset: ["!storage"]

- name: Read what somebody else recorded
  gpufleet.deepseek.hardware_info:
    root: /tmp/recorded/gpu17
  delegate_to: localhost
"""

RETURN = r"""
hardware:
  description:
    - The structure. Every key is there always; a section that was not asked for or could not be read is V(null), and so is a value that
      cannot be read. Units are part of the names.
  returned: always
  type: dict
  contains:
    schema:
      description: Version of the structure.
      type: int
      sample: 1
    source:
      description: V(live), or V(recorded) with O(root).
      type: str
      sample: live
    simulated:
      description: Whether the GPUs are the lab's stand-in.
      type: bool
      sample: false
    subsets:
      description: What was gathered.
      type: list
      elements: str
      sample: [gpu, cpu, memory, board, network, rdma, storage, os, xid]
    unavailable:
      description: For each subset that is missing or not whole, the reason.
      type: dict
      sample: {memory: the DIMMs are listed for root only}
    gpu:
      description: The GPUs in one view.
      type: dict
      sample: {}
      contains:
        count:
          description: On the bus.
          type: int
          sample: 8
        driver_count:
          description: Answering the driver; V(null) without a driver that answers.
          type: int
          sample: 8
        product:
          description: The product of all of them, V(mixed), or empty without a GPU.
          type: str
          sample: NVIDIA A100-SXM4-80GB
        catalogue:
          description: Its name in the GPU catalogue; V(mixed), or V(null) when one is not in it.
          type: str
          sample: a100-sxm4-80gb
        architecture:
          description: Compute capability, V(mixed) or V(null).
          type: str
          sample: sm80
        generation:
          description: Generation, V(mixed) or V(null).
          type: str
          sample: ampere
        memory_mib:
          description: Memory of the smallest, as the driver says, else the catalogue.
          type: int
          sample: 81920
        nvswitch_count:
          description: NVSwitches on the bus.
          type: int
          sample: 6
        lost:
          description: PCI addresses of those on the bus that do not answer.
          type: list
          elements: str
          sample: ["0000:07:00.0"]
        unknown_pci_ids:
          description: Those that the catalogue does not know.
          type: list
          elements: str
          sample: ["10de:ffff"]
        topology_hash:
          description: Short name of the connections between GPUs; equal on equal hosts.
          type: str
          sample: 57c6e4ed64d5f2bb
        mig_enabled:
          description: How many are partitioned (MIG).
          type: int
          sample: 0
    gpus:
      description: One entry for each GPU, in the order of the bus.
      type: list
      elements: dict
      sample: []
      contains:
        index:
          description: The driver's index.
          type: int
          sample: 0
        pci_address:
          description: PCI address.
          type: str
          sample: "0000:07:00.0"
        vendor_id:
          description: PCI vendor.
          type: str
          sample: 10de
        device_id:
          description: PCI device.
          type: str
          sample: 20b2
        subsystem_id:
          description: PCI vendor and device of the board.
          type: str
          sample: "10de:1463"
        name:
          description: Name that the driver gives it, else the catalogue, else its PCI id.
          type: str
          sample: NVIDIA A100-SXM4-80GB
        catalogue:
          description: Its name in the GPU catalogue.
          type: str
          sample: a100-sxm4-80gb
        architecture:
          description: Compute capability.
          type: str
          sample: sm80
        memory_mib:
          description: Memory.
          type: int
          sample: 81920
        numa_node:
          description: NUMA node.
          type: int
          sample: 3
        pcie:
          description: The link to the host, now and at most. The generation falls when the GPU idles.
          type: dict
          sample: {width: 16, width_max: 16, gen: 4, gen_max: 4}
        state:
          description:
            - V(ok), V(lost) (does not answer), V(requires_reset), V(no_driver) (none, or another one has it), V(error) (the driver does not
              answer, or values of this GPU cannot be read).
          type: str
          sample: ok
        uuid:
          description: UUID.
          type: str
          sample: GPU-6ec3c8a1-0d4c-4f6e-a6c5-0f6b1f2d0000
        serial:
          description: Serial number.
          type: str
          sample: "1563221020001"
        vbios:
          description: Version of the video BIOS.
          type: str
          sample: 92.00.45.00.03
        inforom:
          description: Version of the inforom image.
          type: str
          sample: G506.0210.00.04
        board_part_number:
          description: Part number of the board.
          type: str
          sample: 692-2G506-0212-002
        gsp_firmware:
          description: Version of the GSP firmware.
          type: str
          sample: 550.127.05
        ecc:
          description:
            - Error correction. Volatile counters began when the driver was loaded, aggregate ones when the GPU was made;
              C(sram_corrected) and C(dram_corrected) are aggregate where the driver counts that.
          type: dict
          sample: {}
          contains:
            enabled: {description: On now., type: bool, sample: true}
            pending: {description: On after the next reset., type: bool, sample: true}
            volatile_corrected: {description: Corrected., type: int, sample: 0}
            volatile_uncorrected: {description: Not corrected., type: int, sample: 0}
            aggregate_corrected: {description: Corrected in all its life., type: int, sample: 0}
            aggregate_uncorrected: {description: Not corrected in all its life., type: int, sample: 0}
            sram_uncorrected_volatile: {description: Not corrected in on-chip memory., type: int, sample: 0}
            sram_uncorrected_aggregate: {description: Not corrected in on-chip memory in all its life., type: int, sample: 0}
            sram_corrected: {description: Corrected in on-chip memory., type: int, sample: 0}
            dram_corrected: {description: Corrected in device memory., type: int, sample: 0}
        row_remap:
          description: Rows of memory that were replaced; V(null) before Ampere.
          type: dict
          sample: {correctable: 0, uncorrectable: 0, pending: false, failed: false}
        retired_pages:
          description: Pages of memory that were retired; V(null) since Ampere.
          type: dict
          sample: {single_bit: 0, double_bit: 0, pending: false}
        mig:
          description: Whether it is partitioned; V(null) when it cannot be.
          type: bool
          sample: false
        persistence:
          description: Persistence mode.
          type: bool
          sample: true
        power_limit_w:
          description: Power limit.
          type: float
          sample: 400.0
        power_limit_default_w:
          description: Power limit it comes with.
          type: float
          sample: 400.0
        power_limit_max_w:
          description: Highest possible power limit.
          type: float
          sample: 400.0
        clocks:
          description: Clocks now and at most.
          type: dict
          sample: {sm_mhz: 210, memory_mhz: 1593, sm_max_mhz: 1410, memory_max_mhz: 1593}
        temperature_c:
          description: Temperature.
          type: int
          sample: 31
        throttle_reasons:
          description: What holds the clocks back now, without idling.
          type: list
          elements: str
          sample: [sw_power_cap]
        nvlink:
          description: NVLinks; V(null) without.
          type: dict
          sample: {active: 12, inactive: 0, speed_gbps: 200.0}
    gpu_driver:
      description: The driver; V(null) when there is no trace of one.
      type: dict
      sample: {}
      contains:
        version: {description: Version that answers., type: str, sample: 550.127.05}
        loaded_version: {description: Version of the loaded kernel module., type: str, sample: 550.127.05}
        installed_version: {description: Version of the installed kernel module., type: str, sample: 550.127.05}
        open_modules: {description: Whether it is the open kernel module., type: bool, sample: false}
        cuda_version: {description: Newest CUDA that the driver supports., type: str, sample: "12.4"}
        answers: {description: Whether nvidia-smi gave a whole answer., type: bool, sample: true}
        error: {description: What it said in its place or beside it., type: str, sample: ""}
        mismatch: {description: Whether parts of different versions are in use., type: bool, sample: false}
        peermem_loaded: {description: Whether the module for GPUDirect RDMA is loaded., type: bool, sample: true}
    fabric_manager:
      description: NVIDIA Fabric Manager.
      type: dict
      sample: {installed_version: 550.127.05, active: true, version_matches_driver: true, needed: true}
    dcgm:
      description: NVIDIA Data Center GPU Manager.
      type: dict
      sample: {installed_version: 3.3.5, active: false}
    cpu:
      description: Processors. Several governors are joined by commas.
      type: dict
      sample:
        model: AMD EPYC 7742 64-Core Processor
        vendor: AuthenticAMD
        sockets: 2
        cores: 128
        threads: 256
        smt: true
        numa_nodes: 8
        governor: performance
        microcode: "0x830107a"
        architecture: x86_64
        flags_avx512: false
    memory:
      description: Memory. What is known of DIMMs takes root; sizes and huge pages (by KiB) are counted.
      type: dict
      sample:
        total_mib: 2063832
        dimm_count: 32
        dimm_size_mib: {"65536": 32}
        dimm_speed_mts: [3200]
        swap_mib: 0
        hugepages: {"2048": 0, "1048576": 0}
    board:
      description: Board and firmware; the serial number takes root.
      type: dict
      sample:
        vendor: NVIDIA
        product: DGXA100 920-23687-2530-000
        serial: "1563220000017"
        board_product: DGXA100
        bios_vendor: American Megatrends Inc.
        bios_version: "1.25"
        bios_date: 05/14/2024
        bmc_version: "0.23"
    nics:
      description: Ethernet ports of devices, without bridges, pairs and virtual functions.
      type: list
      elements: dict
      sample: []
      contains:
        name: {description: Name., type: str, sample: enp225s0f0}
        driver: {description: Driver., type: str, sample: mlx5_core}
        driver_version: {description: Its version., type: str, sample: 24.10-1.1.4}
        firmware: {description: Firmware., type: str, sample: 22.39.2048 (MT_0000000436)}
        pci_address: {description: PCI address., type: str, sample: "0000:e1:00.0"}
        vendor_id: {description: PCI vendor., type: str, sample: 15b3}
        device_id: {description: PCI device., type: str, sample: 101d}
        speed_mbps: {description: Speed; V(null) without a link., type: int, sample: 200000}
        link: {description: Whether there is a link., type: bool, sample: true}
        duplex: {description: V(full) or V(half)., type: str, sample: full}
        mtu: {description: MTU., type: int, sample: 9000}
        mac: {description: MAC address., type: str, sample: "0c:42:a1:00:00:01"}
        numa_node: {description: NUMA node., type: int, sample: 7}
        pcie: {description: The link to the host., type: dict, sample: {width: 16, width_max: 16, gen: 4, gen_max: 4}}
        offloads:
          description: What the card does in the place of the processor.
          type: dict
          sample: {rx_checksum: true, tx_checksum: true, tso: true, gso: true, gro: true, lro: false}
        rdma_device: {description: Its RDMA device., type: str, sample: mlx5_4}
    rdma:
      description: RDMA devices.
      type: list
      elements: dict
      sample: []
      contains:
        name: {description: Name., type: str, sample: mlx5_0}
        board_id: {description: Board (PSID)., type: str, sample: MT_0000000223}
        firmware: {description: Firmware., type: str, sample: 20.39.2048}
        hca_type: {description: Type., type: str, sample: MT4123}
        node_guid: {description: GUID of the device., type: str, sample: "0c42:a103:0000:0001"}
        pci_address: {description: PCI address., type: str, sample: "0000:0c:00.0"}
        numa_node: {description: NUMA node., type: int, sample: 3}
        netdev: {description: Its Ethernet or IPoIB port., type: str, sample: ibp12s0}
        ports:
          description: Its ports. The MTU is RoCE's payload, V(null) with InfiniBand.
          type: list
          elements: dict
          sample:
            - port: 1
              state: ACTIVE
              physical_state: LinkUp
              rate_gbps: 200.0
              link_layer: InfiniBand
              roce_mode: null
              mtu: null
    network:
      description: The network in one view.
      type: dict
      sample: {fastest_gbps: 200.0, rdma_ports_active: 8, rdma_fastest_gbps: 200.0}
    nvme:
      description: NVMe namespaces.
      type: list
      elements: dict
      sample: []
      contains:
        name: {description: Name., type: str, sample: nvme0n1}
        controller: {description: Controller., type: str, sample: nvme0}
        model: {description: Model., type: str, sample: KCM6DRUL3T84}
        firmware: {description: Firmware., type: str, sample: "0106"}
        serial: {description: Serial number., type: str, sample: 91K0A01ETT8Y}
        size_bytes: {description: Size., type: int, sample: 3840755982336}
        by_id:
          description: Path that stays the same.
          type: str
          sample: /dev/disk/by-id/nvme-eui.01000000000000008ce38ee20a9d1201
        pci_address: {description: PCI address., type: str, sample: "0000:22:00.0"}
        numa_node: {description: NUMA node., type: int, sample: 2}
        pcie: {description: The link to the host., type: dict, sample: {width: 4, width_max: 4, gen: 4, gen_max: 4}}
        wear_percent: {description: Used part of the promised life; takes root., type: int, sample: 2}
        media_errors: {description: Data that could not be read or written; takes root., type: int, sample: 0}
        in_use: {description: Whether anything speaks against overwriting it., type: bool, sample: true}
        used_by: {description: What that is., type: list, elements: str, sample: [md1, mount /raid]}
    storage:
      description: Disks in one view. C(raid0) lists striped arrays, C(mounts_rotational) what is mounted from rotating disks.
      type: dict
      sample:
        nvme_count: 8
        nvme_models: [KCM6DRUL3T84]
        nvme_bytes: 30726047858688
        nvme_free_count: 0
        raid0:
          - {name: md1, level: raid0, members: [nvme0n1, nvme1n1], state: clean, size_bytes: 7681238827008}
        mounts_rotational: []
    block:
      description: Disks that are no NVMe, also no loops, arrays and mappings.
      type: list
      elements: dict
      sample:
        - {name: sda, size_bytes: 960197124096, model: MTFDDAK960TDS, serial: 2028A1, rotational: false, in_use: true, used_by: [mount /]}
    os:
      description: Operating system. C(virtualization) is the hypervisor below, V(null) on bare metal.
      type: dict
      sample:
        distribution: Ubuntu
        version: "22.04"
        codename: jammy
        kernel: 5.15.0-1053-nvidia
        kernel_cmdline: BOOT_IMAGE=/boot/vmlinuz root=/dev/md0 iommu=pt
        architecture: x86_64
        container: false
        virtualization: null
        secure_boot: false
        glibc: "2.35"
    iommu:
      description: The IOMMU; its mode is V(off), V(translated), V(passthrough) or V(null).
      type: dict
      sample: {enabled: true, mode: passthrough, groups: 187}
    pci:
      description: Bridges with access control services on, and devices that are set to another payload than their path carries; takes root.
      type: dict
      sample: {acs_enabled_bridges: ["0000:00:01.1"], max_payload_mismatch: []}
    clock:
      description: Whether the clock is synchronized, and by what (V(chrony), V(systemd-timesyncd), V(ntpd)).
      type: dict
      sample: {synchronized: true, source: chrony}
    sysctl:
      description: Kernel settings.
      type: dict
      sample: {vm.swappiness: "60"}
    xids:
      description: Errors that the NVIDIA driver reported, as far back as the kernel's log goes.
      type: list
      elements: dict
      sample: []
      contains:
        xid: {description: Number of the error., type: int, sample: 79}
        count: {description: How often., type: int, sample: 1}
        pci_address: {description: The GPU., type: str, sample: "0000:07:00.0"}
        message: {description: Its first line., type: str, sample: "NVRM: Xid (PCI:0000:07:00): 79, pid=0, GPU has fallen off the bus."}
"""

import os
import shutil

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware import HardwareError, gather
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import ModuleRunner, Reader

# A shell without login has a short PATH.
FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def find(tool: str) -> str | None:
    """The path of a tool, or None."""
    return shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", ""), *FOLDERS)))


def main() -> None:
    """Read the host."""
    module = AnsibleModule(
        argument_spec={
            "gather_subset": {"type": "list", "elements": "str", "default": ["all"]},
            "root": {"type": "path", "default": ""},
            "simulation": {"type": "path", "default": "/var/lib/gpufleet/simulated"},
            "timeout": {"type": "float", "default": 10.0},
        },
        supports_check_mode=True,
    )
    root, timeout = module.params["root"], module.params["timeout"]
    if root and not os.path.isdir(root):
        module.fail_json(msg=f"root must be the directory of a recorded tree; {root} is no directory")
    if not 0 < timeout <= 3600:
        module.fail_json(msg=f"timeout must be more than 0 and at most 3600 seconds; it is {timeout:g}")
    reader = Reader(root, module.params["simulation"], ModuleRunner(module.run_command, find), timeout)
    try:
        hardware = gather(reader, module.params["gather_subset"])
    except HardwareError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, hardware=hardware)


if __name__ == "__main__":
    main()
