#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: nvme_raid0
short_description: Build a RAID 0 over NVMe drives, and never over data
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Picks NVMe drives by rule or by name, builds an md array of level 0, makes a file system that is aligned with its stripes, and mounts it
    by UUID so that it comes back after a reboot.
  - A RAID 0 has no redundancy. When one drive fails, everything on the array is lost. Put only there what can be made again, such as weights.
  - A drive that carries a partition, a file system, LVM, md, ZFS or any other signature is refused by its name, unless that very name stands in
    O(confirm_wipe). A drive that is mounted or held by anything is refused even then, and so is the disk of the running system.
  - Before it creates anything, the module writes a record with the UUIDs that array and file system are going to have. A run that was cut at any
    point is finished by the next one, because what carries these UUIDs is its own. Any other array is never formatted.
  - Growing, shrinking and changing the chunk are refused with the reason. An array that lacks a drive is explained and not touched.
  - In check mode it reads everything, says what it would do, and refuses what it would refuse.
options:
  name:
    description: Name of the array. It is also the label of the file system.
    type: str
    default: models
  state:
    description:
      - V(present) builds the array, configures and mounts it.
      - V(absent) unmounts it and removes its configuration. Array and file system stay on the drives, and V(present) takes them up again, unless
        O(destroy) names all drives.
    type: str
    default: present
    choices: [present, absent]
  devices:
    description:
      - Names below C(/dev/disk/by-id), with or without the directory. Empty lets the rule choose.
    type: list
    elements: str
    default: []
  count:
    description: How many drives there must be, exactly. V(0) takes all that the rule means.
    type: int
    default: 0
  min_gb:
    description: Part of the rule, smallest size in units of 10^9 bytes.
    type: int
    default: 0
  max_gb:
    description: Part of the rule, largest size in units of 10^9 bytes. V(0) for no limit.
    type: int
    default: 0
  models:
    description: Part of the rule, regular expressions of which one must be found in the drive's model.
    type: list
    elements: str
    default: []
  exclude:
    description: Part of the rule, by-id names of drives that are not meant.
    type: list
    elements: str
    default: []
  confirm_wipe:
    description:
      - By-id names of drives whose content may be lost. Only what is named here is ever wiped, and only when it is chosen by O(devices) or the rule.
      - Names of other hosts' drives do no harm.
    type: list
    elements: str
    default: []
  destroy:
    description:
      - By-id names of the drives of the array that O(state=absent) gives up. All of them must be named, or nothing is done.
    type: list
    elements: str
    default: []
  chunk_kib:
    description: Chunk of the array in KiB, a power of two.
    type: int
    default: 512
  filesystem:
    description: Kind of the file system.
    type: str
    default: xfs
    choices: [xfs, ext4]
  mount:
    description: Where it is mounted. The directory must be empty before.
    type: path
    default: /srv/models
  mount_options:
    description: Options in C(/etc/fstab).
    type: list
    elements: str
    default: [defaults, noatime, nofail, x-systemd.device-timeout=180s]
  scheduler:
    description: I/O scheduler of the drives. Empty leaves the kernel's.
    type: str
    default: none
  read_ahead_kb:
    description: Read-ahead of the array in KiB. V(0) leaves the kernel's.
    type: int
    default: 4096
  update_initramfs:
    description: Whether the initramfs is made anew when the array's line in C(mdadm.conf) is new to it.
    type: bool
    default: true
  consumer:
    description: What is done about desktop drives with four bits per cell.
    type: str
    default: warn
    choices: [refuse, warn, allow]
  consumer_models:
    description: Regular expressions of more models that count as such.
    type: list
    elements: str
    default: []
  mixed_sizes:
    description: What is done about drives of different sizes.
    type: str
    default: refuse
    choices: [refuse, warn, allow]
  mixed_firmware:
    description: What is done about drives of different models or firmware.
    type: str
    default: warn
    choices: [refuse, warn, allow]
  state_dir:
    description: Where the record of the array lies.
    type: path
    default: /var/lib/gpufleet/nvme_raid
  label:
    description: Name of the host in messages. Empty for its host name.
    type: str
    default: ""
  prefix:
    description: What stands before names of options in messages, for a role whose variables are named after them.
    type: str
    default: ""
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
notes:
  - Run it as root. It needs util-linux, and for building mdadm and xfsprogs or e2fsprogs.
"""

EXAMPLES = r"""
- name: Four drives of at least 3.8 TB, whatever their names are
  gpufleet.deepseek.nvme_raid0:
    count: 4
    min_gb: 3800

- name: These two, one of which may be wiped
  gpufleet.deepseek.nvme_raid0:
    devices:
      - nvme-SAMSUNG_MZQL23T8HCLS-00A07_S64HNE0R600001
      - nvme-SAMSUNG_MZQL23T8HCLS-00A07_S64HNE0R600002
    confirm_wipe:
      - nvme-SAMSUNG_MZQL23T8HCLS-00A07_S64HNE0R600002

- name: Unmount it and forget its configuration; the data stays
  gpufleet.deepseek.nvme_raid0:
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be done, in order.
  returned: success
  type: list
  elements: str
  sample: [create a RAID 0 of nvme-A and nvme-B, make the file system, mount it on /srv/models]
array:
  description: The array.
  returned: success, when O(state=present)
  type: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: models
    device:
      description: Its device now; empty when it is not built yet.
      type: str
      sample: /dev/md127
    uuid:
      description: Its UUID as mdadm writes it; empty when it is not built yet.
      type: str
      sample: 3aaa0122:29827cfa:5331ad66:ca767371
    filesystem_uuid:
      description: UUID of its file system; empty when it is not built yet.
      type: str
      sample: 0d6a4bd5-7a12-4c0e-8b93-8a1f7a4c1b55
    size_bytes:
      description: Its size.
      type: int
      sample: 15360950534144
    members:
      description: By-id names of its drives.
      type: list
      elements: str
      sample: [nvme-SAMSUNG_MZQL23T8HCLS-00A07_S64HNE0R600001]
    devices:
      description: The drives' devices in the same order.
      type: list
      elements: str
      sample: [/dev/nvme0n1]
skipped_drives:
  description: NVMe drives that the rule does not mean, and why.
  returned: success, when O(state=present)
  type: list
  elements: str
  sample: ["nvme-BOSS (/dev/nvme4n1, 480.1 GB): disk of the system (/)"]
missing_tools:
  description: Programs that building needs and that are not installed.
  returned: success, when O(state=present)
  type: list
  elements: str
  sample: [mdadm]
"""

import os
import re
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_drives import NvmeError
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_machine import Machine
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_plan import Wish
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_raid0 import Setup, ensure, ensure_absent

# An account other than root may find no /sbin in its path.
_PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/local/sbin:/usr/sbin:/sbin"
_ACTIONS = ["refuse", "warn", "allow"]


def _no_input() -> None:
    """Let programs find the end where they would read an answer: mdadm and mkfs take that for no.

    An answer through a pipe would fail with EPIPE whenever the program ends before it is written.
    """
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        os.dup2(nothing, 0)
    finally:
        if nothing:
            os.close(nothing)


def _runner(module: AnsibleModule) -> t.Callable[[list[str]], tuple[int, str, str]]:
    def run(argv: list[str]) -> tuple[int, str, str]:
        try:
            return t.cast(
                "tuple[int, str, str]",
                module.run_command(
                    argv,
                    environ_update={"LC_ALL": "C.UTF-8", "PATH": _PATH},
                    expand_user_and_vars=False,
                    handle_exceptions=False,
                    errors="surrogateescape",
                ),
            )
        except OSError as exc:
            return 127, "", f"{argv[0]} cannot be run: {exc.strerror or exc}"

    return run


def _check(params: dict[str, t.Any]) -> None:
    """Values that the argument specification cannot check."""
    prefix = params["prefix"]
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,11}", params["name"]):
        raise NvmeError(
            f"{prefix}name: expected up to 12 lower-case letters, digits, - and _, a letter first, found {params['name']}"
        )
    chunk = params["chunk_kib"]
    if chunk < 4 or chunk & (chunk - 1):
        raise NvmeError(f"{prefix}chunk_kib: expected a power of two from 4, found {chunk}")
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", params["mount"]) or params["mount"].startswith(
        ("/dev", "/proc", "/sys")
    ):
        raise NvmeError(f"{prefix}mount: expected an absolute path without blanks, found {params['mount']}")
    for option in ("models", "consumer_models"):
        for pattern in params[option]:
            try:
                re.compile(pattern)
            except re.error as exc:
                raise NvmeError(f"{prefix}{option}: expected regular expressions, found {pattern} ({exc})") from exc
    wrong = [
        name for option in ("devices", "exclude", "confirm_wipe", "destroy") for name in params[option] if _no_id(name)
    ]
    if wrong:
        raise NvmeError(
            f"expected names below /dev/disk/by-id, which stay the same after a reboot, found {', '.join(wrong)}"
        )


def _no_id(name: str) -> bool:
    """Is it no by-id name? A name such as nvme0n1 may be another drive tomorrow."""
    plain = name[len("/dev/disk/by-id/") :] if name.startswith("/dev/disk/by-id/") else name
    return "/" in plain or not plain or re.fullmatch(r"(nvme\d+n\d+|sd[a-z]+)(p?\d+)?", plain) is not None


def main() -> None:
    """Run the module."""
    names: dict[str, t.Any] = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "models"},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
            "devices": names,
            "count": {"type": "int", "default": 0},
            "min_gb": {"type": "int", "default": 0},
            "max_gb": {"type": "int", "default": 0},
            "models": names,
            "exclude": names,
            "confirm_wipe": names,
            "destroy": names,
            "chunk_kib": {"type": "int", "default": 512},
            "filesystem": {"type": "str", "default": "xfs", "choices": ["xfs", "ext4"]},
            "mount": {"type": "path", "default": "/srv/models"},
            "mount_options": {
                "type": "list",
                "elements": "str",
                "default": ["defaults", "noatime", "nofail", "x-systemd.device-timeout=180s"],
            },
            "scheduler": {"type": "str", "default": "none"},
            "read_ahead_kb": {"type": "int", "default": 4096},
            "update_initramfs": {"type": "bool", "default": True},
            "consumer": {"type": "str", "default": "warn", "choices": _ACTIONS},
            "consumer_models": names,
            "mixed_sizes": {"type": "str", "default": "refuse", "choices": _ACTIONS},
            "mixed_firmware": {"type": "str", "default": "warn", "choices": _ACTIONS},
            "state_dir": {"type": "path", "default": "/var/lib/gpufleet/nvme_raid"},
            "label": {"type": "str", "default": ""},
            "prefix": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    host = os.uname().nodename
    wish = Wish(
        name=params["name"],
        devices=tuple(params["devices"]),
        count=params["count"],
        min_size=params["min_gb"] * 10**9,
        max_size=params["max_gb"] * 10**9,
        models=tuple(params["models"]),
        exclude=tuple(params["exclude"]),
        confirm_wipe=tuple(params["confirm_wipe"]),
        chunk_kib=params["chunk_kib"],
        filesystem=params["filesystem"],
        mount=params["mount"].rstrip("/"),
        homehost=host.partition(".")[0],
        consumer=params["consumer"],
        consumer_models=tuple(params["consumer_models"]),
        mixed_sizes=params["mixed_sizes"],
        mixed_firmware=params["mixed_firmware"],
        prefix=params["prefix"],
    )
    setup = Setup(
        options=tuple(params["mount_options"]),
        scheduler=params["scheduler"],
        read_ahead_kb=params["read_ahead_kb"],
        update_initramfs=params["update_initramfs"],
        state_dir=params["state_dir"],
    )
    _no_input()
    machine = Machine(_runner(module))
    try:
        _check(params)
        if params["state"] == "present":
            result, warnings = ensure(machine, wish, setup, module.check_mode)
        else:
            result, warnings = ensure_absent(machine, wish, setup, params["destroy"], module.check_mode), []
    except NvmeError as exc:
        module.fail_json(msg=f"{params['label'] or host}: {exc}")
    for warning in warnings:
        module.warn(f"{params['label'] or host}: {warning}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
