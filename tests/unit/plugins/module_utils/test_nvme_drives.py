# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What drives carry: captured output, and the real tools on files. The lines of configuration."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvme_config as config
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvme_drives as drives
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Reader
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_machine import Machine, claim

FIXTURES = Path(__file__).parents[2] / "fixtures" / "nvme_raid"
UUID = "3aaa0122-2982-7cfa-5331-ad66ca767371"


def real(argv: list[str]) -> tuple[int, str, str]:
    """The real tools: they look at files as they do at devices."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={"PATH": path, "LC_ALL": "C.UTF-8"})
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    return path


def test_an_empty_image_carries_nothing(image: Path) -> None:
    assert drives.signatures(real, str(image)) == []


def test_real_signatures(image: Path) -> None:
    assert real(["mkfs.ext4", "-q", "-U", UUID, "-L", "keepme", str(image)])[0] == 0
    assert drives.signatures(real, str(image)) == [drives.Signature("ext4", UUID, "keepme")]
    assert drives.signatures(real, str(image))[0].words == "an ext4 file system named keepme"


def test_a_real_swap_area_and_a_real_partition_table(image: Path) -> None:
    assert real(["mkswap", str(image)])[0] == 0
    assert [entry.words for entry in drives.signatures(real, str(image))] == ["a swap area"]
    with image.open("r+b") as file:
        file.truncate(0)
        file.truncate(64 * 1024 * 1024)
        file.seek(446)
        file.write(struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\0\0", 2048, 4096))
        file.seek(510)
        file.write(b"\x55\xaa")
    assert [entry.words for entry in drives.signatures(real, str(image))] == ["a DOS partition table"]


def test_a_real_md_superblock(image: Path) -> None:
    """Version 1.2 lies 4 KiB from the beginning: magic, version, UUID, name, and a checksum over it."""
    block = bytearray(256)
    struct.pack_into("<II", block, 0, 0xA92B4EFC, 1)
    block[16:32] = bytes.fromhex(UUID.replace("-", ""))
    block[32 : 32 + 11] = b"gpu1:models"
    struct.pack_into("<Q", block, 144, 8)
    total = sum(struct.unpack("<64I", block))
    struct.pack_into("<I", block, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    with image.open("r+b") as file:
        file.seek(4096)
        file.write(block)
    assert drives.signatures(real, str(image)) == [drives.Signature("linux_raid_member", UUID, "gpu1:models")]


def test_what_cannot_be_read_is_no_blank_drive(tmp_path: Path) -> None:
    with pytest.raises(drives.NvmeError, match="missing cannot be probed"):
        drives.signatures(real, str(tmp_path / "missing"))


def test_two_signatures_that_blkid_cannot_tell_apart() -> None:
    def run(argv: list[str]) -> tuple[int, str, str]:
        return (0, "", "") if argv[0] == "wipefs" else (8, "", "ambivalent result")

    assert drives.signatures(run, "/dev/x") == [drives.Signature("more than one")]


def test_what_only_blkid_sees_counts() -> None:
    def run(argv: list[str]) -> tuple[int, str, str]:
        return (0, "", "") if argv[0] == "wipefs" else (0, "TYPE=zfs_member\nUUID=1\nPTTYPE=gpt\n", "")

    assert [entry.kind for entry in drives.signatures(run, "/dev/x")] == ["zfs_member", "gpt"]


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (
            [
                "nvme-QEMU_NVMe_Ctrl_gfhost-vm1-data",
                "nvme-QEMU_NVMe_Ctrl_gfhost-vm1-data_1",
                "nvme-nvme.1b36-6766-5145-00000001",
                "nvme-QEMU_NVMe_Ctrl_gfhost-vm1-data-part1",
            ],
            "nvme-QEMU_NVMe_Ctrl_gfhost-vm1-data",
        ),
        (["nvme-eui.0025385b71b00001"], "nvme-eui.0025385b71b00001"),
        (["wwn-0x1"], ""),
        ([], ""),
    ],
)
def test_the_name_that_people_can_read(names: list[str], best: str) -> None:
    assert drives.readable(names) == best


def test_captured_lsblk() -> None:
    nodes = drives.parse_lsblk((FIXTURES / "lsblk_blank.json").read_text())
    assert [node["kname"] for node in nodes if "nvme" in node["kname"]] == [
        "/dev/nvme3n1",
        "/dev/nvme2n1",
        "/dev/nvme0n1",
        "/dev/nvme4n1",
        "/dev/nvme1n1",
    ]


def test_a_container_has_no_drives_whatever_sysfs_shows(tmp_path: Path) -> None:
    def run(argv: list[str]) -> tuple[int, str, str]:
        assert argv[0] == "lsblk", "nothing else may be asked"
        return 0, (FIXTURES / "lsblk_blank.json").read_text(), ""

    assert drives.read_drives(Reader(str(tmp_path)), run) == []


def test_lsblk_that_fails() -> None:
    with pytest.raises(drives.NvmeError, match="lsblk does not answer: broken"):
        drives.read_drives(Reader(), lambda argv: (1, "", "broken"))


def test_a_plain_file_can_be_claimed_and_a_missing_one_cannot(image: Path) -> None:
    assert claim(str(image)) == ""
    assert claim(f"{image}.missing") == "No such file or directory"


def test_writing_keeps_the_mode_and_leaves_no_other_file(tmp_path: Path) -> None:
    machine = Machine(real, root=str(tmp_path))
    machine.write("/etc/fstab", "a\n", 0o640)
    machine.write("/etc/fstab", "b\n")
    assert (tmp_path / "etc/fstab").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path / "etc") == ["fstab"]
    machine.remove("/etc/fstab")
    machine.remove("/etc/fstab")
    assert machine.text("/etc/fstab") == ""


def test_the_superblock_of_an_xfs_whose_mkfs_was_cut() -> None:
    block = bytearray(512)
    block[:4] = b"XFSB"
    assert not drives.xfs_unfinished(bytes(block))
    block[126] = 1
    assert drives.xfs_unfinished(bytes(block))
    assert not drives.xfs_unfinished(b"")


def test_fstab_keeps_everything_else_and_its_place() -> None:
    before = (
        "# mine\nUUID=1 / ext4 defaults 0 1\nUUID=" + UUID.upper() + " /old xfs noatime 0 0\n/dev/sr0 /cd auto ro 0 0"
    )
    after = config.fstab(before, "models", UUID, ("/srv/models", "xfs", "noatime,nofail"))
    assert after.splitlines() == [
        "# mine",
        "UUID=1 / ext4 defaults 0 1",
        "# gpufleet nvme_raid models",
        f"UUID={UUID} /srv/models xfs noatime,nofail 0 0",
        "/dev/sr0 /cd auto ro 0 0",
    ]
    assert config.fstab(after, "models", UUID, ("/srv/models", "xfs", "noatime,nofail")) == after
    assert "gpufleet" not in config.fstab(after, "models", UUID, None)


def test_lines_of_others_for_the_mount_point() -> None:
    text = f"#/dev/x /srv/models\n/dev/sdb1 /srv/models/ ext4 defaults 0 2\nUUID={UUID} /srv/models xfs noatime 0 0\n"
    assert config.fstab_users(text, "/srv/models", UUID) == ["/dev/sdb1 /srv/models/ ext4 defaults 0 2"]
    assert len(config.fstab_users(text, "/srv/models", "")) == 2


def test_mdadm_conf_takes_the_place_of_the_line_that_the_package_wrote() -> None:
    line = f"ARRAY /dev/md/models  metadata=1.2 UUID={config.md_uuid(UUID)} name=gpu1:models\n"
    before = f"HOMEHOST <system>\n{line}# end\n"
    after = config.mdadm_conf(before, "models", UUID, True)
    ours = f"ARRAY /dev/md/models metadata=1.2 UUID={config.md_uuid(UUID)}"
    assert after == f"HOMEHOST <system>\n# gpufleet nvme_raid models\n{ours}\n# end\n"
    assert config.mdadm_conf(after, "models", UUID, True) == after
    assert config.mdadm_conf(after, "models", UUID, False) == "HOMEHOST <system>\n# end\n"


def test_udev_rule() -> None:
    rule = config.udev_rule("models", UUID, "none", 4096)
    assert f'ENV{{ID_FS_UUID}}=="{UUID}", ATTR{{queue/scheduler}}="none"' in rule
    assert 'ENV{MD_UUID}=="3aaa0122:29827cfa:5331ad66:ca767371", ATTR{queue/read_ahead_kb}="4096"' in rule
    assert "scheduler" not in config.udev_rule("models", UUID, "", 4096)
    assert config.udev_rule("models", UUID, "", 0) == ""


def test_file_systems_are_aligned_with_the_stripes() -> None:
    xfs = config.mkfs("xfs", "/dev/md0", UUID, "models", 512, 4, False)
    assert xfs == ["mkfs.xfs", "-q", "-m", f"uuid={UUID}", "-L", "models", "-d", "su=512k,sw=4", "/dev/md0"]
    ext4 = config.mkfs("ext4", "/dev/md0", UUID, "models", 256, 8, False)
    assert ext4[-3:] == ["-E", "stride=64,stripe_width=512", "/dev/md0"]


def test_what_the_file_system_says_about_stripes() -> None:
    said = (FIXTURES / "xfs_info.txt").read_text()
    assert config.parse_xfs_info(said) == {"bsize": 4096, "sunit": 128, "swidth": 512}
    assert config.parse_dumpe2fs(
        "Block size:               4096\nRAID stride:  128\nRAID stripe width:        512\n"
    ) == {
        "bsize": 4096,
        "sunit": 128,
        "swidth": 512,
    }


def test_captured_array(tmp_path: Path) -> None:
    """Four drives on a virtual host, as md and wipefs show them."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        if argv[0] == "mdadm":
            return 0, (FIXTURES / "mdadm_detail_export.txt").read_text(), ""
        if argv[0] == "wipefs":
            return 0, (FIXTURES / "wipefs_array.json").read_text(), ""
        return 0, (FIXTURES / "blkid_array.txt").read_text(), ""

    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mdstat").write_text((FIXTURES / "mdstat.txt").read_text())
    found = drives.read_arrays(Reader(str(tmp_path)), run)
    assert len(found) == 1
    assert (found[0].level, found[0].wanted, found[0].name) == ("raid0", 4, "vm1:models")
    assert len(found[0].uuid) == 32
    assert found[0].whole


def test_captured_member() -> None:
    seen = drives.parse_wipefs((FIXTURES / "wipefs_member.json").read_text())
    said = drives.parse_export((FIXTURES / "mdadm_detail_export.txt").read_text())
    assert [(entry.kind, entry.label) for entry in seen] == [("linux_raid_member", "vm1:models")]
    assert drives.hexadecimal(seen[0].uuid) == drives.hexadecimal(said["MD_UUID"])


def test_captured_lsblk_of_an_array(tmp_path: Path) -> None:
    """The same array as a child of each of its drives."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        if argv[0] == "lsblk":
            return 0, (FIXTURES / "lsblk_array.json").read_text(), ""
        name = "wipefs_data.json" if argv[-1] == "/dev/nvme4n1" else "wipefs_member.json"
        return (0, (FIXTURES / name).read_text(), "") if argv[0] == "wipefs" else (2, "", "")

    for number in range(5):
        path = tmp_path / f"dev/nvme{number}n1"
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    found = drives.read_drives(Reader(str(tmp_path)), run)
    assert [drive.kernel for drive in found] == [f"nvme{number}n1" for number in range(5)]
    assert found[0].users == ("mounted on /srv/models", "part of md127 (raid0)")
    assert found[0].md_name == "vm1:models"
    assert found[4].users == ()
    assert found[4].content == ("an ext4 file system named keepme",)


def test_captured_drive_with_data() -> None:
    seen = drives.parse_wipefs((FIXTURES / "wipefs_data.json").read_text())
    assert [entry.words for entry in seen] == ["an ext4 file system named keepme"]
    assert json.loads((FIXTURES / "wipefs_blank.json").read_text()) == {"signatures": []}
