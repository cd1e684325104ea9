# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk every lab host of the kind C(vm) starts from: the same root file system, with a kernel, as a disk that boots.

Packages are installed at the machine's own speed, never inside an emulated host.
PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab, _lab_image
from ansible_collections.gpufleet.deepseek.plugins.module_utils._lab_registry import CA_BUNDLE

# Part of the key: a new number makes new disks.
RECIPE = 1
LABEL = "gfroot"
SEED_SERIAL = "gfseed"
ROOT_BYTES = 8 << 30
COMMAND_LINE = "console=ttyS0 mitigations=off net.ifnames=1"
GRUB_MODULES_DIR = Path("/usr/lib/grub/i386-pc")
# What GRUB needs before it has found the root file system; the rest it loads from there.
GRUB_MODULES = (
    "biosdisk",
    "part_msdos",
    "ext2",
    "search",
    "search_label",
    "configfile",
    "linux",
    "normal",
    "test",
    "serial",
    "echo",
)
# A disk of its own starts the host, so that the one with the root file system needs no partitions. The host's own
# update-grub is obeyed from the moment when it has run once.
GRUB_CONFIG = f"""\
serial --unit=0
terminal_output serial
search --no-floppy --label {LABEL} --set=root
set prefix=($root)/boot/grub
if [ -f /boot/grub/grub.cfg ]; then
  configfile /boot/grub/grub.cfg
fi
linux /vmlinuz root=LABEL={LABEL} ro {COMMAND_LINE}
initrd /initrd.img
boot
"""
SEED_SCRIPT = f"""\
#!/bin/sh
# Puts the files that make this lab host itself in their places, when they are others than at the last boot.
set -eu
for block in /sys/block/vd*; do
  if [ "$(cat "$block/serial")" = {SEED_SERIAL} ]; then seed=/dev/${{block##*/}}; fi
done
new=$(tar -xOf "$seed" var/lib/gpufleet-lab/seed)
old=$(cat /var/lib/gpufleet-lab/seed 2>/dev/null || true)
if [ "$new" != "$old" ]; then
  tar -xf "$seed" -C / --exclude=var/lib/gpufleet-lab/seed
  sync
  tar -xf "$seed" -C / var/lib/gpufleet-lab/seed
fi
hostname -F /etc/hostname
"""
SEED_UNIT = """\
[Unit]
Description=Identity of this lab host
DefaultDependencies=no
After=systemd-remount-fs.service
Before=sysinit.target systemd-networkd.service systemd-sysctl.service ssh.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/gpufleet-lab-seed

[Install]
WantedBy=sysinit.target
"""
# Only what a lab host needs: a small initial file system is read and unpacked in seconds by an emulated processor.
INITRAMFS_HOOK = """\
#!/bin/sh
[ "${1:-}" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk ext4 nvme
"""
FILES: dict[str, tuple[str, int]] = {
    "etc/initramfs-tools/conf.d/gpufleet-lab": ("MODULES=list\n", 0o644),
    "etc/initramfs-tools/hooks/gpufleet-lab": (INITRAMFS_HOOK, 0o755),
    "usr/local/sbin/gpufleet-lab-seed": (SEED_SCRIPT, 0o755),
    "etc/systemd/system/gpufleet-lab-seed.service": (SEED_UNIT, 0o644),
    "etc/default/grub.d/00-gpufleet-lab.cfg": (
        f'GRUB_TIMEOUT=0\nGRUB_TERMINAL=serial\nGRUB_DISABLE_OS_PROBER=true\nGRUB_CMDLINE_LINUX="{COMMAND_LINE}"\n',
        0o644,
    ),
    "etc/fstab": (f"LABEL={LABEL} / ext4 noatime,errors=remount-ro 0 1\n", 0o644),
    # An emulated host is slow; nobody is helped by a unit that is killed for it.
    "etc/systemd/system.conf.d/gpufleet-lab.conf": ("[Manager]\nDefaultTimeoutStartSec=600s\n", 0o644),
}
WANTED = ("gpufleet-lab-seed.service", "sysinit.target.wants")
# Units of packages that only cost time: looking for NVMe over a network, for snapshots of LVM.
MASKED = ("nvmf-autoconnect.service", "e2scrub_reap.service")


def seed_files() -> dict[str, tuple[bytes, int]]:
    """Files that must be there before the first package is installed."""
    return {name: (text.encode(), mode) for name, (text, mode) in FILES.items() if name != "etc/fstab"}


def write_boot_disk(target: Path, commands: _lab.Commands) -> None:
    """A disk with nothing but GRUB on it: its first sector, then its core at sector 1, where the first looks for it."""
    config = target.with_suffix(".cfg")
    config.write_text(GRUB_CONFIG, encoding="utf-8")
    core = target.with_suffix(".core")
    commands(
        *("grub-mkimage", "--format=i386-pc", f"--directory={GRUB_MODULES_DIR}", f"--config={config}"),
        *("--prefix=/boot/grub", f"--output={core}", *GRUB_MODULES),
    )
    content = (GRUB_MODULES_DIR / "boot.img").read_bytes() + core.read_bytes()
    # Firmware looks at whole cylinders.
    size = -(-len(content) // (1 << 20)) * (1 << 20)
    target.write_bytes(content.ljust(size, b"\0"))
    core.unlink()
    config.unlink()


def start_with_the_oldest_kernel(root: Path) -> None:
    """Of several kernels in an image, the newer ones are what a host can wait for a reboot into."""
    versions = [path.name.removeprefix("vmlinuz-") for path in (root / "boot").glob("vmlinuz-*")]
    oldest = min(versions, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])
    for link, name in (("vmlinuz", f"vmlinuz-{oldest}"), ("initrd.img", f"initrd.img-{oldest}")):
        (root / link).unlink()
        (root / link).symlink_to(f"boot/{name}")


def finish(directory: Path, commands: _lab.Commands) -> None:
    """Make C(root.img) and C(boot.img) of C(rootfs), of which only what hosts are compared with stays."""
    root = directory / "rootfs"
    for name in ("vmlinuz", "initrd.img"):
        if not (root / name).is_symlink():
            raise _lab.LabError(f"The new image has no /{name}: add a kernel to lab_vm_packages.")
    start_with_the_oldest_kernel(root)
    (root / "etc/fstab").write_text(FILES["etc/fstab"][0], encoding="utf-8")
    unit, wants = WANTED
    link = root / "etc/systemd/system" / wants / unit
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(f"/etc/systemd/system/{unit}")
    for unit in MASKED:
        mask = root / "etc/systemd/system" / unit
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")
    modules = root / "usr/lib/grub/i386-pc"
    if modules.is_dir():
        shutil.copytree(modules, root / "boot/grub/i386-pc", dirs_exist_ok=True)
    image = directory / "root.img"
    with image.open("wb") as file:
        file.truncate(ROOT_BYTES)
    commands("mkfs.ext4", "-q", "-F", "-L", LABEL, "-m", "0", "-O", "^has_journal", "-d", str(root), str(image))
    # Power can be cut in tests: hosts have a journal. Made afterwards, it costs nothing in the copy.
    commands("tune2fs", "-j", str(image))
    write_boot_disk(directory / "boot.img", commands)
    bundle = root / CA_BUNDLE.lstrip("/")
    kept = bundle.read_bytes() if bundle.is_file() else b""
    keyrings = {path: path.read_bytes() for path in (root / "usr/share/keyrings").glob("*.gpg")}
    shutil.rmtree(root)
    bundle.parent.mkdir(parents=True)
    bundle.write_bytes(kept)
    for path, content in keyrings.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def image_of(suite: str, packages: Sequence[str], sources: Sequence[str], commands: _lab.Commands) -> _lab_image.Image:
    """The ingredients of a disk image."""
    return _lab_image.image_of(suite, packages, sources, commands, kind="vm", recipe=RECIPE)
