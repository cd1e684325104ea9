# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An array on a host of paper: check, run, check, run; cut at every command; refused wherever there is data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _nvme_raid0 as raid
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_drives import NvmeError
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_plan import Wish
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.nvme_world import (
    Disk,
    KilledError,
    Md,
    World,
    sig,
)

WISH = Wish("models", homehost="gpu1", prefix="nvme_raid_")
SETUP = raid.Setup(read_ahead_kb=4096)
RECORD = "var/lib/gpufleet/nvme_raid/models.json"
UUID = "3aaa0122-2982-7cfa-5331-ad66ca767371"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(world: World, wish: Wish = WISH, check: bool = False, **changes: Any) -> dict[str, Any]:
    result, warnings = raid.ensure(world.machine(), dataclasses.replace(wish, **changes), SETUP, check)
    return {**result, "warnings": warnings}


def refused(world: World, **changes: Any) -> str:
    """What a refusal says; nothing may have been changed, in check mode and without."""
    before = len(world.changes)
    for check in (True, False):
        with pytest.raises(NvmeError) as caught:
            run(world, check=check, **changes)
    assert len(world.changes) == before
    return str(caught.value)


def absent(world: World, destroy: tuple[str, ...] = (), check: bool = False) -> dict[str, Any]:
    return raid.ensure_absent(world.machine(), WISH, SETUP, destroy, check)


def record(world: World) -> dict[str, Any]:
    return dict(json.loads(world.read(RECORD)))


def names(world: World) -> tuple[str, ...]:
    return tuple(disk.name for disk in world.disks.values())


@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_check_run_check_run(world: World, filesystem: str) -> None:
    predicted = run(world, check=True, filesystem=filesystem)
    assert predicted["changed"]
    assert "UUID=(new) /srv/models" in predicted["diff"]["after"]
    assert not world.changes
    assert not (world.root / "var").exists()
    done = run(world, filesystem=filesystem)
    assert done["actions"][0].startswith("create a RAID 0 of nvme-SAMSUNG")
    assert done["array"]["device"] == "/dev/md127"
    assert done["array"]["members"] == list(names(world))
    assert world.mounts[-1] == ("md127", "/srv/models")
    assert record(world)["stage"] == "built"
    assert f"{filesystem} noatime,nofail 0 0\n" in world.read("etc/fstab")
    assert world.read("etc/fstab").startswith("UUID=1234 / ext4")
    conf = f"# gpufleet nvme_raid models\nARRAY /dev/md/models metadata=1.2 UUID={done['array']['uuid']}\n"
    assert world.read("etc/mdadm/mdadm.conf") == f"MAILADDR root\n{conf}"
    assert [argv[0] for argv in world.changes].count("update-initramfs") == 1
    again = run(world, check=True, filesystem=filesystem)
    assert not again["changed"]
    assert again["diff"]["before"] == again["diff"]["after"]
    changes = len(world.changes)
    assert not run(world, filesystem=filesystem)["changed"]
    assert len(world.changes) == changes


def test_it_comes_back_after_a_reboot_under_another_name(world: World) -> None:
    run(world)
    world.reboot()
    after = run(world)
    assert after["array"]["device"] == "/dev/md126"
    # systemd mounts it at boot; on paper nobody did.
    assert after["actions"][-1] == "mount it on /srv/models"
    assert not run(world)["changed"]


def test_a_whole_array_that_is_not_assembled_is_assembled(world: World) -> None:
    run(world)
    world.reboot(assemble=False)
    assert run(world)["actions"][0].startswith("assemble the array")
    assert not run(world)["changed"]


@pytest.mark.parametrize("reboot", ["no", "assembled", "not assembled"])
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])
def test_killed_anywhere_the_next_run_finishes(world: World, at: float, reboot: str) -> None:
    world.kill = at
    with pytest.raises(KilledError):
        run(world)
    world.kill = None
    if reboot != "no":
        world.reboot(assemble=reboot == "assembled")
    run(world)
    assert not run(world)["changed"]
    assert world.mounts[-1][1] == "/srv/models"
    assert [argv[:2] for argv in world.changes].count(["mdadm", "--create"]) == 1


def test_there_are_four_places_to_be_killed_at(world: World) -> None:
    run(world)
    assert [argv[0] for argv in world.changes] == ["mdadm", "mkfs.xfs", "update-initramfs", "mount"]


def test_killed_inside_of_mkfs(world: World) -> None:
    world.cut_mkfs = True
    with pytest.raises(KilledError):
        run(world)
    world.cut_mkfs = False
    assert record(world)["stage"] == "format"
    world.reboot()
    run(world)
    assert "-f" in next(argv for argv in reversed(world.changes) if argv[0] == "mkfs.xfs")
    assert not run(world)["changed"]


def test_a_finished_file_system_is_never_made_again(world: World) -> None:
    world.kill = 1.5
    with pytest.raises(KilledError):
        run(world)
    world.kill = None
    uuid = record(world)["fs_uuid"]
    run(world)
    assert [argv[0] for argv in world.changes].count("mkfs.xfs") == 1
    assert record(world)["fs_uuid"] == uuid


def test_a_half_written_create_is_explained_and_begins_again_when_confirmed(world: World) -> None:
    world.kill = 0.5
    with pytest.raises(KilledError):
        run(world)
    world.reboot(assemble=False)
    for kernel in ("nvme2n1", "nvme3n1"):
        world.disks[kernel].sigs.clear()
    said = refused(world)
    assert "half-built" in said
    assert f"on {world.disks['nvme0n1'].name}, {world.disks['nvme1n1'].name} and not on the others" in said
    world.may_go = set(names(world)[:2])
    run(world, confirm_wipe=names(world)[:2])
    assert not run(world)["changed"]


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (sig("ext4", UUID, "data"), "an ext4 file system named data"),
        (sig("LVM2_member", UUID), "an LVM physical volume"),
        (sig("zfs_member", "1"), "a member of a ZFS pool"),
        (sig("gpt"), "a GPT partition table"),
        (sig("linux_raid_member", UUID, "old:0"), "a member of an md array named old:0"),
        (sig("crypto_LUKS", UUID), "a LUKS volume"),
        (sig("ceph_bluestore"), "a ceph_bluestore signature"),
    ],
)
def test_a_drive_with_data_is_refused_by_name_and_wiped_only_when_confirmed(
    world: World, seen: dict[str, str], words: str
) -> None:
    disk = world.disks["nvme2n1"]
    disk.sigs.append(seen)
    said = refused(world)
    assert f"{disk.name} (/dev/nvme2n1, 3.84 TB) carries data: {words}. Expected a blank drive or its name in" in said
    assert "nvme_raid_confirm_wipe" in said
    assert "carries data" in refused(world, confirm_wipe=(world.disks["nvme1n1"].name, "nvme-of-another-host"))
    assert disk.sigs == [seen]
    predicted = run(world, check=True, confirm_wipe=(disk.name,))
    assert predicted["actions"][0] == f"wipe {disk.name} (/dev/nvme2n1, 3.84 TB): {words}"
    world.may_go = {disk.name}
    done = run(world, confirm_wipe=(f"/dev/disk/by-id/{disk.name}",))
    assert done["actions"] == predicted["actions"]
    assert [argv for argv in world.changes if argv[0] == "wipefs"] == [["wipefs", "--all", "/dev/nvme2n1"]]
    # The name may stay in the inventory: it is not wiped again.
    assert not run(world, confirm_wipe=(disk.name,))["changed"]


def test_partitions_are_wiped_before_their_table(world: World) -> None:
    disk = world.disks["nvme0n1"]
    disk.sigs = [sig("gpt"), sig("PMBR")]
    disk.parts = {"nvme0n1p1": [sig("ext4", UUID)], "nvme0n1p2": []}
    world.sync()
    said = refused(world)
    assert "a GPT partition table, partition nvme0n1p1: an ext4 file system, partition nvme0n1p2." in said
    world.may_go = {disk.name}
    run(world, confirm_wipe=(disk.name,))
    wiped = [argv[-1] for argv in world.changes if argv[0] == "wipefs"]
    assert wiped == ["/dev/nvme0n1p1", "/dev/nvme0n1p2", "/dev/nvme0n1"]


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_killed_while_it_wipes(world: World, at: float) -> None:
    for kernel in ("nvme0n1", "nvme1n1"):
        world.disks[kernel].sigs = [sig("xfs", UUID)]
    world.may_go = set(names(world)[:2])
    world.kill = at
    with pytest.raises(KilledError):
        run(world, confirm_wipe=names(world)[:2])
    world.kill = None
    run(world, confirm_wipe=names(world)[:2])
    assert not run(world)["changed"]


def test_a_mounted_drive_is_refused_even_when_confirmed(world: World) -> None:
    disk = world.disks["nvme1n1"]
    disk.sigs = [sig("xfs", UUID)]
    world.mounts.append(("nvme1n1", "/data"))
    world.sync()
    said = refused(world, confirm_wipe=names(world))
    assert f"{disk.name} (/dev/nvme1n1, 3.84 TB) is in use: mounted on /data" in said


def test_the_disk_of_the_system_is_refused_even_when_confirmed(world: World) -> None:
    disk = world.disks["nvme0n1"]
    disk.parts = {"nvme0n1p1": [sig("ext4", UUID)]}
    world.mounts = [("nvme0n1p1", "/")]
    world.sync()
    said = refused(world, confirm_wipe=(disk.name,))
    assert "is the disk of the running system (/ is on it): it is never overwritten" in said
    assert "is the disk of the running system" in refused(world, devices=names(world), confirm_wipe=names(world))
    # The rule does not mean it.
    done = run(world)
    assert disk.name not in done["array"]["members"]
    assert done["skipped_drives"] == [f"{disk.name} (/dev/nvme0n1, 3.84 TB): disk of the system (/)"]


def test_something_that_holds_a_drive_without_a_signature_stops_it(world: World) -> None:
    world.claims["nvme3n1"] = "Device or resource busy"
    with pytest.raises(NvmeError, match="is held by something that shows no signature"):
        run(world)
    assert not world.changes
    world.claims.clear()
    assert run(world)["changed"]


def test_data_that_appears_after_the_plan_stops_it(world: World) -> None:
    disk = world.disks["nvme1n1"]
    disk.sigs = [sig("xfs", UUID)]

    def write(argv: list[str]) -> None:
        if argv[0] == "wipefs":
            world.disks["nvme3n1"].sigs = [sig("ext4", UUID, "new")]

    world.before_change = write
    world.may_go = {disk.name}
    with pytest.raises(NvmeError, match="was blank a moment ago and is not now: an ext4"):
        run(world, confirm_wipe=(disk.name,))
    assert [argv[0] for argv in world.changes] == ["wipefs"]


def test_no_drives(tmp_path: Path) -> None:
    said = refused(World(tmp_path, 0), min_size=10**12)
    assert said == ("no drives: expected some NVMe drives (at least 1.00 TB), found no NVMe drive on this host")


def test_no_drives_that_fit(world: World) -> None:
    said = refused(world, models=("Micron",))
    assert "expected some NVMe drives (model like Micron), found none that fits among 4; left out: nvme-SAMSUNG" in said
    assert "(/dev/nvme0n1, 3.84 TB): model SAMSUNG MZQL23T8HCLS-00A07" in said


def test_one_drive_is_no_stripe(tmp_path: Path) -> None:
    assert "expected at least 2 drives to stripe over, found one" in refused(World(tmp_path, 1))


def test_the_rule(world: World) -> None:
    world.disks["nvme4n1"] = Disk("BOSS", size=480_000_000_000, model="DELL BOSS-N1")
    world.sync()
    said = refused(world)
    assert "nvme_raid_mixed_sizes: expected drives of one size" in said
    said = refused(world, count=4)
    assert said.startswith("nvme_raid_count: expected 4 drives (any model and size), found 5: nvme-SAMSUNG")
    for changes in ({"min_size": 10**12}, {"models": ("SAMSUNG",)}, {"exclude": ("nvme-DELL_BOSS-N1_BOSS",)}):
        assert len(run(world, check=True, **changes)["array"]["members"]) == 4
    assert (
        len(
            run(
                world,
                check=True,
                max_size=10**12,
                models=("^SAM", "^DELL"),
                mixed_sizes="allow",
                devices=names(world)[:2],
            )["array"]["members"]
        )
        == 2
    )


def test_names(world: World) -> None:
    said = refused(world, devices=("nvme-nothing",))
    assert (
        "nvme_raid_devices: expected names below /dev/disk/by-id of NVMe drives on this host, found nvme-nothing"
        in said
    )
    assert "listed twice" in refused(world, devices=(names(world)[0], "nvme-eui.0000000000000000"))
    assert "nvme_raid_count: expected 3 drives, found 2" in refused(world, devices=names(world)[:2], count=3)
    world.disks["nvme1n1"].by_id = False
    world.sync()
    assert "expected a name below /dev/disk/by-id, found none" in refused(world)


def test_drives_that_differ(world: World) -> None:
    world.disks["nvme1n1"].firmware = "OLD"
    world.sync()
    assert "expected one model with one firmware" in run(world, check=True)["warnings"][0]
    assert "expected one model with one firmware" in refused(world, mixed_firmware="refuse")
    assert run(world, check=True, mixed_firmware="allow")["warnings"] == []


@pytest.mark.parametrize("model", ["INTEL SSDPEKNW010T8", "CT2000P3PSSD8", "CT1000P1SSD8", "SOLIDIGM SSDPFKNU010TZ"])
def test_desktop_drives(world: World, model: str) -> None:
    for disk in world.disks.values():
        disk.model = model
    world.sync()
    assert len(run(world, check=True)["warnings"]) == 4
    assert "desktop drive with four bits per cell" in refused(world, consumer="refuse")
    assert run(world, check=True, consumer="allow")["warnings"] == []


def test_growing_shrinking_and_other_changes_are_refused(world: World) -> None:
    run(world)
    five = Disk("NEW", sigs=[sig("xfs", UUID)])
    world.disks["nvme4n1"] = five
    world.sync()
    said = refused(world)
    assert f"{five.name} (/dev/nvme4n1, 3.84 TB) with an xfs file system is chosen besides: growing is refused" in said
    assert "growing and shrinking are refused" not in said
    assert not run(world, exclude=(five.name,))["changed"]
    assert not run(world, count=4)["changed"]
    assert "growing is refused" in refused(world, devices=(*names(world),))
    assert "is not chosen any more" in refused(world, devices=names(world)[:3])
    assert "expected 3 drives, found an array models of 4" in refused(world, count=3, exclude=(five.name,))
    assert "nvme_raid_chunk_kib: the array models was built with 512, expected 256" in refused(
        world, chunk_kib=256, count=4
    )
    assert "was built with xfs, expected ext4" in refused(world, filesystem="ext4", count=4)


@pytest.mark.parametrize("stage", ["create", "built"])
def test_a_missing_drive_is_explained_and_nothing_is_wiped_whatever_is_confirmed(world: World, stage: str) -> None:
    run(world)
    world.reboot(assemble=False)
    all_names = names(world)
    gone = world.disks.pop("nvme2n1")
    world.sync()
    said = refused(world, confirm_wipe=all_names)
    assert f"found {gone.name} not on this host" in said
    assert "Nothing is changed: bring back the drive" in said
    world.disks["nvme2n1"] = gone
    world.sync()
    assert run(world)["changed"]


def test_a_broken_array_is_explained(world: World) -> None:
    run(world)
    md = world.arrays["md127"]
    md.wanted, md.members = 4, md.members[:3]
    md.state = "broken"
    del world.disks["nvme3n1"]
    world.sync()
    said = refused(world, confirm_wipe=names(world))
    assert (
        "/dev/md127 broken with 3 of 4 drives on this host, missing nvme-SAMSUNG_MZQL23T8HCLS-00A07_S64HNE0R600003"
        in said
    )


def test_a_drive_that_is_gone_before_md_notices_is_explained(world: World) -> None:
    run(world)
    all_names = names(world)
    del world.disks["nvme3n1"]
    world.sync()
    assert "/dev/md127 clean with 3 of 4 drives on this host, missing nvme-SAMSUNG" in refused(world)
    # The array can be given up as it is: it takes no writes, and the drive that is gone is not touched.
    world.may_go = set(all_names)
    world.broken = True
    assert "clean with 3 of 4 drives on this host (/dev/md127 cannot be probed: I/O error), missing nvme-" in refused(
        world
    )
    absent(world, all_names)
    assert not world.arrays
    assert all(not disk.sigs for disk in world.disks.values())


def test_wiped_superblocks_are_explained(world: World) -> None:
    run(world)
    world.reboot(assemble=False)
    for disk in world.disks.values():
        disk.sigs.clear()
    assert "somebody wiped them" in refused(world)


def test_a_vanished_or_foreign_file_system_is_not_made_again(world: World) -> None:
    run(world)
    world.mounts.pop()
    stripes = world.stripes[tuple(world.arrays["md127"].members)]
    stripes[:] = []
    world.sync()
    assert "carries nothing; expected the xfs file system" in refused(world)
    stripes[:] = [sig("ext4", UUID, "mine")]
    assert "carries an ext4 file system named mine that this role did not make" in refused(world)


def foreign(world: World, name: str = "old:0", carried: str = "xfs") -> None:
    members = list(world.disks)
    for kernel in members:
        world.disks[kernel].sigs = [sig("linux_raid_member", UUID, name)]
    world.arrays["md127"] = Md(UUID.replace("-", ""), name, members, 512)
    world.stripes[tuple(members)] = [sig(carried, "0d6a4bd5-7a12-4c0e-8b93-8a1f7a4c1b55", "models")]
    world.sync()


def test_an_array_of_others_is_never_formatted(world: World) -> None:
    foreign(world)
    assert refused(world).count("a member of an md array named old:0") == 4
    said = refused(world, devices=names(world)[:2], confirm_wipe=names(world)[:2])
    assert "together with nvme2n1, nvme3n1" in said
    world.mounts.append(("md127", "/data"))
    world.sync()
    assert "is in use: mounted on /data" in refused(world, confirm_wipe=names(world))
    world.mounts.pop()
    world.sync()
    world.may_go = set(names(world))
    done = run(world, confirm_wipe=names(world))
    assert done["actions"][0] == "stop the array md127 (old:0)"
    assert not run(world)["changed"]


def test_an_array_with_our_name_and_no_record_is_taken_over_with_its_data(world: World) -> None:
    foreign(world, "gpu1:models")
    done = run(world)
    assert done["actions"][0] == "take over the array and its file system as they are"
    assert done["array"]["filesystem_uuid"] == "0d6a4bd5-7a12-4c0e-8b93-8a1f7a4c1b55"
    assert not run(world)["changed"]
    assert "mkfs.xfs" not in [argv[0] for argv in world.changes]


@pytest.mark.parametrize(("name", "carried"), [("gpu1:models", "ext4"), ("gpu2:models", "xfs")])
def test_an_array_that_only_looks_like_ours_is_not_taken(world: World, name: str, carried: str) -> None:
    foreign(world, name, carried)
    assert "carries data" in refused(world)


def test_what_an_older_array_left_on_the_stripes_goes_only_when_all_is_confirmed(world: World) -> None:
    world.stripes[tuple(world.disks)] = [sig("xfs", UUID, "old")]
    with pytest.raises(NvmeError, match="of an older array of these drives; it is not formatted"):
        run(world)
    assert "its drives belonged to an older array whose superblocks are gone" in refused(world)
    world.may_go = set(names(world))
    run(world, confirm_wipe=names(world))
    assert not run(world)["changed"]


def test_missing_tools_are_predicted_and_stop_a_run(world: World) -> None:
    (world.root / "usr/sbin/mdadm").unlink()
    assert run(world, check=True)["missing_tools"] == ["mdadm"]
    with pytest.raises(NvmeError, match="expected mdadm to be installed, found no such program"):
        run(world)
    assert not world.changes
    assert not (world.root / RECORD).exists()


def test_the_mount_point_must_be_free(world: World) -> None:
    world.file("srv/models/weights.gguf", "x")
    assert "expected /srv/models to be empty before the array is mounted over it, found weights.gguf" in refused(world)
    (world.root / "srv/models/weights.gguf").unlink()
    world.file("etc/fstab", "/dev/sdb1 /srv/models ext4 defaults 0 2\n")
    assert "found in /etc/fstab: /dev/sdb1 /srv/models" in refused(world)
    world.file("etc/fstab", "")
    world.mounts.append(("sda1", "/srv/models"))
    world.sync()
    assert "found sda1 mounted on it" in refused(world)


def test_another_mount_point_for_an_array_that_is_mounted(world: World) -> None:
    run(world)
    assert "found it on /srv/models: unmount it first" in refused(world, mount="/srv/other")


def test_a_record_that_cannot_be_read_stops_it(world: World) -> None:
    world.file(RECORD, "{")
    assert "expected the record of an array" in refused(world)


def test_absent_keeps_the_data_and_present_takes_it_up_again(world: World) -> None:
    run(world)
    uuid = record(world)["fs_uuid"]
    assert absent(world, check=True)["changed"]
    assert absent(world)["changed"]
    assert not absent(world)["changed"]
    assert world.read("etc/fstab") == "UUID=1234 / ext4 defaults 0 1\n"
    assert world.read("etc/mdadm/mdadm.conf") == "MAILADDR root\n"
    assert not (world.root / "etc/udev/rules.d/66-gpufleet-models.rules").exists()
    run(world)
    assert record(world)["fs_uuid"] == uuid
    assert [argv[0] for argv in world.changes].count("mkfs.xfs") == 1


def test_giving_up_takes_every_name(world: World) -> None:
    run(world)
    with pytest.raises(NvmeError, match=r"loses all of it\. Expected the names of all its drives"):
        absent(world, names(world)[:3])
    assert world.mounts[-1][1] == "/srv/models"
    world.may_go = set(names(world))
    assert (
        "give up the array models" in absent(world, (*names(world), "nvme-of-another-host"), check=True)["actions"][-1]
    )
    absent(world, names(world))
    assert not world.arrays
    assert not (world.root / RECORD).exists()
    assert all(not disk.sigs for disk in world.disks.values())
    run(world)
    assert not run(world)["changed"]


def test_giving_up_reads_back(world: World) -> None:
    run(world)
    world.may_go = set(names(world))
    world.sticks = "nvme1n1"
    with pytest.raises(NvmeError, match=r"expected no drive to carry it any more, found .*nvme1n1.*: run it again"):
        absent(world, names(world))
    assert (world.root / RECORD).exists()
    absent(world, names(world))
    assert not (world.root / RECORD).exists()
    assert all(not disk.sigs for disk in world.disks.values())


@pytest.mark.parametrize("at", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
def test_killed_while_giving_up(world: World, at: float) -> None:
    run(world)
    world.may_go = set(names(world))
    world.kill = len(world.changes) + at
    with pytest.raises(KilledError):
        absent(world, names(world))
    world.kill = None
    absent(world, names(world))
    assert not absent(world, names(world))["changed"]
    assert all(not disk.sigs for disk in world.disks.values())
