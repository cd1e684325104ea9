# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: module merkle_manifest on real files."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import merkle_manifest
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.merkle_world import (
    Killed,
    Stopper,
    content,
    make,
)

MIB = 1 << 20
BIG = content(3 * MIB + 5)
SET = {"a.safetensors": BIG, "sub/b.safetensors": BIG[: MIB + 1], "config.json": b"{}", "empty": b""}


def written(path: Path) -> tuple[int, int, int, int]:
    """What changes when somebody writes a file, or its owner and rights. Reading it may change the time of the last access."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class World:
    """Weights, their manifest, a second copy, and the module."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.top, self.capsys = tmp_path, capsys
        self.path = make(tmp_path / "weights", SET)
        self.source = make(tmp_path / "source", SET)
        self.manifest = tmp_path / "m.json"

    def run(self, state: str = "verified", *, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        """One run of the module and what it says."""
        arguments = {
            "path": str(self.path),
            "manifest": str(self.manifest),
            "state": state,
            "threads": 1,
            **({"piece_mib": 1} if state == "built" else {}),
            **({"source": str(self.source)} if state == "repaired" else {}),
            **{name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
            "_ansible_check_mode": check,
            "_ansible_diff": True,
        }
        with patch_module_args(arguments), pytest.raises(SystemExit):
            merkle_manifest.main()
        result: dict[str, t.Any] = json.loads(self.capsys.readouterr().out)
        return result

    def built(self) -> World:
        assert self.run("built")["changed"]
        return self

    def damage(self, name: str, *offsets: int, root: Path | None = None) -> None:
        """Turn one bit of each of these bytes."""
        with ((root or self.path) / name).open("r+b") as stream:
            for offset in offsets:
                stream.seek(offset)
                byte = stream.read(1)[0]
                stream.seek(offset)
                stream.write(bytes([byte ^ 1]))

    def tree(self, root: Path | None = None) -> dict[str, bytes]:
        """All files and their content."""
        root = root or self.path
        return {str(one.relative_to(root)): one.read_bytes() for one in sorted(root.rglob("*")) if one.is_file()}


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the module warns of."""
    said: list[str] = []
    monkeypatch.setattr(merkle_manifest.AnsibleModule, "warn", lambda _module, text: said.append(text))
    return said


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> World:
    return World(tmp_path, capsys)


def pieces(listed: list[dict[str, t.Any]]) -> list[tuple[str, int]]:
    return [(one["path"], one["index"]) for one in listed]


def test_built_check_run_check_run(world: World) -> None:
    predicted = world.run("built", check=True)
    assert predicted["changed"]
    assert not world.manifest.exists()
    done = world.run("built")
    assert done["changed"]
    assert done["root"] == predicted["root"]
    assert done["diff"] == predicted["diff"]
    assert done["diff"]["before"] == ""
    assert f"root {done['root']}" in done["diff"]["after"]
    assert "config.json 2 " in done["diff"]["after"]
    assert (done["file_count"], done["piece_count"], done["piece_length"]) == (4, 7, MIB)
    assert done["total_bytes"] == done["read_bytes"] == 4 * MIB + 8
    assert world.manifest.stat().st_mode & 0o777 == 0o644
    before = written(world.manifest)
    assert not world.run("built", check=True)["changed"]
    again = world.run("built")
    assert not again["changed"]
    assert again["diff"]["before"] == again["diff"]["after"]
    assert written(world.manifest) == before
    assert sorted(one.name for one in world.top.iterdir()) == ["m.json", "source", "weights"]


def test_built_again_when_something_changed(world: World) -> None:
    first = world.built().run("built")["root"]
    world.damage("config.json", 0)
    changed = world.run("built", check=True)
    assert changed["changed"]
    assert changed["root"] != first
    assert world.run()["failed"]
    assert world.run("built")["changed"]
    assert world.run()["intact"]
    # Another length of pieces is another manifest with the same root.
    root = world.run("built")["root"]
    longer = world.run("built", piece_mib=2)
    assert (longer["changed"], longer["root"], longer["piece_count"]) == (True, root, 4)
    # So is a mode.
    assert world.run("built", piece_mib=2, mode="0600", check=True)["changed"]
    assert world.run("built", piece_mib=2, mode="0600")["changed"]
    assert world.manifest.stat().st_mode & 0o777 == 0o600
    assert not world.run("built", piece_mib=2, mode="0600")["changed"]


def test_built_refuses_another_root(world: World) -> None:
    root = world.built().run("built")["root"]
    assert not world.run("built", root=root)["changed"]
    text = world.manifest.read_text()
    world.damage("a.safetensors", 7)
    refused = world.run("built", root=root)
    assert refused["failed"]
    assert f"expected a directory with the root {root}, found " in refused["msg"]
    assert world.manifest.read_text() == text


def test_built_replaces_a_manifest_that_was_edited_and_nothing_else(world: World, warned: list[str]) -> None:
    text = world.built().manifest.read_text()
    world.manifest.write_text(text.replace('"size": 2,', '"size": 3,'))
    done = world.run("built")
    assert done["changed"]
    assert "cannot be used and is replaced" in warned[0]
    assert world.manifest.read_text() == text
    world.manifest.write_text("something of somebody else")
    refused = world.run("built")
    assert refused["failed"]
    assert "a file that is no manifest is not replaced" in refused["msg"]
    assert world.manifest.read_text() == "something of somebody else"


def test_built_refuses_an_empty_directory(world: World) -> None:
    (world.top / "none").mkdir()
    refused = world.run("built", path=world.top / "none")
    assert refused["failed"]
    assert "found an empty directory" in refused["msg"]


def test_built_reads_all_unless_a_cache_is_named(world: World) -> None:
    world.built()
    cache = world.top / "cache.json"
    assert world.run("built", cache=cache, check=True)["read_bytes"] == 4 * MIB + 8
    assert not cache.exists()
    assert world.run("built", cache=cache)["read_bytes"] == 4 * MIB + 8
    spared = world.run("built", cache=cache)
    assert (spared["read_bytes"], spared["resumed_bytes"], spared["changed"]) == (0, 4 * MIB + 8, False)
    assert world.run("built")["read_bytes"] == 4 * MIB + 8
    world.damage("config.json", 1)
    changed = world.run("built", cache=cache)
    assert (changed["read_bytes"], changed["changed"]) == (2, True)
    assert world.run()["intact"]


@pytest.mark.parametrize("quick", [False, True])
def test_verified_check_run_check_run(world: World, quick: bool) -> None:
    root = world.built().run("built")["root"]
    for check in (True, False, True, False):
        result = world.run(check=check, root=root, quick=quick)
        assert not result["changed"]
        assert result["intact"]
        assert result["read_bytes"] == (0 if quick else 4 * MIB + 8)
        assert result["missing"] == result["extra"] == result["wrong_size"] == result["damaged"] == []
        assert result["diff"]["before"] == result["diff"]["after"] == ""
    assert world.tree() == SET


def test_verified_names_everything(world: World) -> None:
    world.built()
    world.damage("a.safetensors", 0, MIB, 3 * MIB + 4)
    os.truncate(world.path / "sub/b.safetensors", 5)
    (world.path / "empty").rename(world.path / "other")
    for check in (True, False):
        result = world.run(check=check)
        assert result["failed"]
        assert not result["changed"]
        assert not result["intact"]
        assert result["missing"] == ["empty"]
        assert result["extra"] == ["other"]
        assert result["wrong_size"] == [{"path": "sub/b.safetensors", "expected": MIB + 1, "found": 5}]
        assert result["damaged_count"] == 5
        assert result["damaged"][2] == {"path": "a.safetensors", "index": 3, "offset": 3 * MIB, "length": 5}
        assert pieces(result["damaged"]) == [
            ("a.safetensors", 0),
            ("a.safetensors", 1),
            ("a.safetensors", 3),
            ("sub/b.safetensors", 0),
            ("sub/b.safetensors", 1),
        ]
        assert "1 missing (empty); 1 extra (other); 1 of wrong size" in result["msg"]
        assert "5 of 7 pieces damaged (a.safetensors piece 0 at 0, 1048576 bytes" in result["msg"]
        assert "a.safetensors: piece 3 at 3145728 damaged" in result["diff"]["before"]
        assert "empty: present" in result["diff"]["after"]
    told = world.run(fail=False)
    assert not told.get("failed")
    assert not told["intact"]


def test_quick_sees_names_and_sizes_only(world: World) -> None:
    world.built().damage("a.safetensors", 0)
    assert world.run(quick=True)["intact"]
    (world.path / "config.json").write_bytes(b"")
    result = world.run(quick=True)
    assert result["failed"]
    assert result["damaged"] == []
    assert "config.json expected 2 bytes, found 0" in result["msg"]


def test_a_long_list_is_cut_and_the_count_is_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.built().damage("a.safetensors", 0, MIB, 2 * MIB)
    monkeypatch.setattr(merkle_manifest, "LISTED", 2)
    result = world.run(fail=False)
    assert (len(result["damaged"]), result["damaged_count"]) == (2, 3)


@pytest.mark.parametrize("state", ["verified", "repaired"])
def test_a_manifest_that_was_edited_is_refused(world: World, state: str) -> None:
    root = world.built().run("built")["root"]
    text = world.manifest.read_text()
    world.manifest.write_text(text.replace('"config.json"', '"../config.json"'))
    refused = world.run(state)
    assert refused["failed"]
    assert f"{world.manifest}: files[1].path: expected a plain path" in refused["msg"]
    # Edited in all of its parts: only who knows the root can tell.
    (world.path / "config.json").write_bytes(b"[]")
    assert world.run("built", manifest=world.top / "other.json")["changed"]
    assert world.run(manifest=world.top / "other.json")["intact"]
    refused = world.run(state, manifest=world.top / "other.json", root=root)
    assert refused["failed"]
    assert f"other.json: this is not the manifest that is meant: expected the root {root}" in refused["msg"]


def test_repaired_check_run_check_run(world: World) -> None:
    world.built()
    world.damage("a.safetensors", 0, 3 * MIB + 4)
    os.truncate(world.path / "sub/b.safetensors", MIB - 1)
    (world.path / "config.json").write_bytes(b"{} ")
    (world.path / "empty").unlink()
    (world.path / "extra").write_bytes(b"mine")
    (world.path / "a.safetensors").chmod(0o600)
    spoiled = world.tree()
    predicted = world.run("repaired", check=True)
    assert predicted["changed"]
    assert world.tree() == spoiled
    done = world.run("repaired")
    for name in ("changed", "intact", "repaired_count", "repaired_files", "damaged", "missing", "wrong_size", "diff"):
        assert done[name] == predicted[name]
    assert done["intact"]
    assert done["repaired_count"] == 4
    assert done["repaired_files"] == ["a.safetensors", "config.json", "empty", "sub/b.safetensors"]
    assert done["extra"] == ["extra"]
    assert world.tree() == {**SET, "extra": b"mine"}
    assert (world.path / "a.safetensors").stat().st_mode & 0o777 == 0o600
    assert (world.path / "empty").stat().st_mode & 0o777 == 0o644
    assert not world.run("repaired", check=True)["changed"]
    again = world.run("repaired")
    assert not again["changed"]
    assert again["intact"]
    (world.path / "extra").unlink()
    assert world.run()["intact"]


@pytest.mark.parametrize("threads", [1, 3])
def test_only_the_pieces_that_are_needed_are_read_and_written(
    world: World, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    world.built().damage("a.safetensors", MIB + 7)
    wrote: list[tuple[int, int]] = []
    genuine = os.pwrite
    inode = (world.path / "a.safetensors").stat().st_ino

    def write(handle: int, view: memoryview, offset: int) -> int:
        wrote.append((offset, len(view)))
        return genuine(handle, view, offset)

    # A source that has nothing but the piece that is needed.
    (world.source / "a.safetensors").write_bytes(b"\0" * MIB + BIG[MIB : 2 * MIB])
    for name in ("config.json", "empty", "sub/b.safetensors"):
        (world.source / name).unlink()
    monkeypatch.setattr(merkle_manifest.merkle.os, "pwrite", write)
    done = world.run("repaired", threads=threads)
    assert done["intact"]
    assert wrote == [(MIB, MIB)]
    assert world.tree() == SET
    assert (world.path / "a.safetensors").stat().st_ino == inode


@pytest.mark.parametrize("threads", [1, 4])
def test_a_directory_that_is_not_there_is_copied_whole(world: World, threads: int) -> None:
    world.built()
    target = world.top / "new/weights"
    predicted = world.run("repaired", path=target, check=True)
    assert predicted["changed"]
    assert predicted["repaired_count"] == 7
    assert not target.exists()
    done = world.run("repaired", path=target, threads=threads)
    assert done["intact"]
    assert world.tree(target) == SET
    assert (target / "sub").stat().st_mode & 0o777 == 0o755
    assert not world.run("repaired", path=target)["changed"]


def test_a_source_that_is_damaged_as_well_is_not_written(world: World) -> None:
    world.built()
    world.damage("a.safetensors", 0, 2 * MIB)
    world.damage("a.safetensors", 5, root=world.source)
    os.truncate(world.source / "sub/b.safetensors", MIB)
    (world.path / "sub/b.safetensors").unlink()
    spoiled = world.tree()
    predicted = world.run("repaired", check=True)
    assert world.tree() == spoiled
    done = world.run("repaired")
    assert done["unrepaired"] == predicted["unrepaired"]
    assert done["failed"]
    assert done["changed"]
    assert not done["intact"]
    assert "could not be repaired" in done["msg"]
    assert "a.safetensors (the source is damaged there as well)" in done["msg"]
    assert done["unrepaired"][0] == {
        "path": "a.safetensors",
        "index": 0,
        "offset": 0,
        "length": MIB,
        "reason": "the source is damaged there as well",
    }
    assert done["unrepaired"][1]["reason"] == "the source ends before"
    # The first piece is as it was, the third is repaired; what is missing has no final name yet.
    now = world.tree()
    assert now["a.safetensors"] == spoiled["a.safetensors"][: 2 * MIB] + BIG[2 * MIB :]
    assert "sub/b.safetensors" not in now
    assert now["sub/b.safetensors.partial"] == BIG[:MIB]
    assert not world.run("repaired", fail=False).get("failed")
    # Another source has the rest: only that is taken.
    good = make(world.top / "good", SET)
    done = world.run("repaired", source=good)
    assert done["intact"]
    assert pieces([*done["damaged"]]) == [("a.safetensors", 0)]
    assert done["repaired_count"] == 2
    assert world.tree() == SET


def test_a_source_without_the_file(world: World) -> None:
    world.built().damage("a.safetensors", 0)
    (world.source / "a.safetensors").unlink()
    os.mkfifo(world.source / "a.safetensors")
    done = world.run("repaired")
    assert done["failed"]
    assert "the source cannot be read: is no regular file" in done["msg"]
    (world.source / "a.safetensors").unlink()
    assert "the source cannot be read: No such file" in world.run("repaired")["msg"]


def test_what_cannot_be_repaired_goes_to_quarantine(world: World) -> None:
    world.built()
    world.damage("a.safetensors", 0)
    world.damage("a.safetensors", 0, root=world.source)
    (world.path / "extra").write_bytes(b"mine")
    spoiled = world.tree()
    kept = make(world.top / "quarantine", {"a.safetensors": b"an older one"})
    options: dict[str, t.Any] = {"quarantine": kept, "fail": False}
    predicted = world.run("repaired", check=True, **options)
    assert world.tree() == spoiled
    done = world.run("repaired", **options)
    assert done["quarantined"] == predicted["quarantined"]
    assert done["quarantined"] == [{"path": "a.safetensors", "to": str(kept / "a.safetensors.1")}]
    assert done["changed"]
    assert not done["intact"]
    assert world.tree(kept) == {"a.safetensors": b"an older one", "a.safetensors.1": spoiled["a.safetensors"]}
    assert "a.safetensors" not in world.tree()
    assert world.tree()["extra"] == b"mine"
    # The file is missing now, and the source has three of its four pieces.
    done = world.run("repaired", **options)
    assert (done["missing"], done["repaired_count"], done["quarantined"]) == (["a.safetensors"], 3, [])
    done = world.run("repaired", source=make(world.top / "good", SET))
    assert (done["intact"], done["repaired_count"]) == (True, 1)


def test_a_link_is_not_written_through(world: World) -> None:
    world.built()
    (world.path / "config.json").unlink()
    (world.path / "config.json").symlink_to("a.safetensors")
    done = world.run("repaired")
    assert done["failed"]
    assert "config.json (cannot be written: Too many levels of symbolic links)" in done["msg"]
    assert world.tree()["a.safetensors"] == BIG


def test_what_is_in_the_way_of_a_missing_file_is_named(world: World) -> None:
    world.built()
    (world.path / "config.json").unlink()
    (world.path / "config.json").mkdir()
    (world.path / "sub/b.safetensors").unlink()
    (world.path / "sub").rmdir()
    (world.path / "sub").write_bytes(b"mine")
    before = world.tree()
    for check in (True, False):
        done = world.run("repaired", check=check)
        assert done["failed"]
        assert not done["changed"]
        assert "config.json (a directory has its name)" in done["msg"]
        assert "sub/b.safetensors (sub is a file, a directory is expected)" in done["msg"]
        assert pieces(done["unrepaired"]) == [("config.json", 0), ("sub/b.safetensors", 0), ("sub/b.safetensors", 1)]
    assert world.tree() == before


def test_a_source_without_a_good_piece_leaves_nothing_behind(world: World) -> None:
    world.built()
    (world.path / "a.safetensors").unlink()
    (world.source / "a.safetensors").write_bytes(b"other")
    before = world.tree()
    assert "the source ends before" in world.run("repaired")["msg"]
    assert world.tree() == before


def stop_before(monkeypatch: pytest.MonkeyPatch, kind: str, after: int) -> None:
    """Kill the next run before the nth step of a kind."""
    genuine = merkle_manifest.merkle.Work
    stopper = Stopper(kind, after)
    monkeypatch.setattr(merkle_manifest.merkle, "Work", lambda **options: genuine(step=stopper, **options))


def killed(world: World, state: str, **options: t.Any) -> None:
    """A run that does not come to its end."""
    arguments = {"path": str(world.path), "manifest": str(world.manifest), "state": state, "threads": 1, **options}
    with patch_module_args(arguments), pytest.raises(Killed):
        merkle_manifest.main()


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("write", 0),
        ("written", 0),
        ("write", 1),
        ("written", 1),
        ("write", 3),
        ("cut", 0),
        ("rename", 0),
        ("rename", 1),
    ],
)
def test_a_repair_that_was_killed_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str, after: int
) -> None:
    world.built()
    world.damage("a.safetensors", 0, MIB)
    (world.path / "config.json").write_bytes(b"{}}")
    (world.path / "empty").unlink()
    (world.path / "sub/b.safetensors").unlink()
    state = world.top / "state.json"
    with monkeypatch.context() as patch:
        stop_before(patch, kind, after)
        killed(world, "repaired", source=str(world.source), state_file=str(state))
    now = world.tree()
    # No half a file has a final name, and no byte that is not the right one was written.
    for name in ("sub/b.safetensors", "empty"):
        assert now.get(name, SET[name]) == SET[name]
    assert now["a.safetensors"][2 * MIB :] == BIG[2 * MIB :]
    done = world.run("repaired", state_file=state)
    assert done["intact"]
    assert done["resumed_bytes"] > 0
    assert world.tree() == SET
    assert json.loads(state.read_text())["files"] == {}
    assert world.run()["intact"]


def test_a_verification_that_was_killed_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.built()
    state = world.top / "state.json"
    with monkeypatch.context() as patch:
        stop_before(patch, "verify", 4)
        killed(world, "verified", state_file=str(state))
    assert state.exists()
    before = state.read_text()
    assert world.run(check=True, state_file=state)["resumed_bytes"] == 3 * MIB + 5
    assert state.read_text() == before
    done = world.run(state_file=state)
    assert done["intact"]
    assert (done["resumed_bytes"], done["read_bytes"]) == (3 * MIB + 5, MIB + 3)
    lines = json.loads(state.read_text())["progress"]
    assert "stopped: Killed" in "".join(lines)
    assert lines[-1].endswith("finished: all is as the manifest says")
    assert world.run(state_file=state)["read_bytes"] == 4 * MIB + 8


def test_a_build_that_was_killed_leaves_the_old_manifest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    text = world.built().manifest.read_text()
    world.damage("a.safetensors", 9)
    with monkeypatch.context() as patch:
        stop_before(patch, "hash", 2)
        killed(world, "built", piece_mib=1)
    assert world.manifest.read_text() == text
    assert world.run("built")["changed"]
    assert world.run()["intact"]


@pytest.mark.parametrize(
    ("state", "options", "words"),
    [
        ("verified", {"root": "x"}, "root: expected 64 hexadecimal digits"),
        ("verified", {"threads": -1}, "threads: expected a number from 0"),
        ("verified", {"nice": 20}, "nice: expected a number from 0 to 19, found 20"),
        ("built", {"mode": "u=rw"}, "mode: expected a quoted octal number"),
        ("built", {"quick": True}, "quick: expected only with state verified, found with built"),
        ("verified", {"source": "/"}, "source: expected only with state repaired"),
        ("verified", {"cache": "/c"}, "cache: expected only with state built"),
        ("built", {"state_file": "/c"}, "state_file: expected only with state verified or repaired"),
        ("repaired", {"source": None}, "source: expected a directory, as state is repaired, found none"),
        ("repaired", {"source": "{top}/no"}, "source: {top}/no: expected a directory, found none"),
        ("repaired", {"source": "{top}"}, "source: expected a place that does not hold {top}/weights"),
        ("repaired", {"source": "{top}/weights/sub"}, "source: expected a place outside of {top}/weights"),
        ("repaired", {"quarantine": "{top}/weights/q"}, "quarantine: expected a place outside of {top}/weights"),
        (
            "repaired",
            {"quarantine": "/proc/q"},
            "expected a directory on the file system of {top}/weights, found another",
        ),
        ("built", {"manifest": "{top}/weights/m.json"}, "manifest: expected a place outside of {top}/weights"),
        ("built", {"manifest": "{top}/no/m.json"}, "manifest: {top}/no/m.json: expected the directory {top}/no"),
        ("verified", {"manifest": "{top}/no.json"}, "{top}/no.json: no such file"),
        ("verified", {"state_file": "{top}/m.json"}, "expected a file for each, found the same one twice"),
        ("verified", {"path": "{top}/no"}, "{top}/no: expected a directory, found nothing"),
        ("built", {"piece_mib": 3}, "value of piece_mib must be one of"),
    ],
)
def test_a_wrong_wish_is_named(world: World, state: str, options: dict[str, t.Any], words: str) -> None:
    world.built()
    filled: dict[str, t.Any] = {
        name: value.format(top=world.top) if isinstance(value, str) else value for name, value in options.items()
    }
    result = world.run(state, **filled)
    assert result["failed"]
    assert words.format(top=world.top) in result["msg"]


def test_a_low_priority_is_asked_for(world: World, monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> None:
    world.built()
    asked: list[int] = []
    monkeypatch.setattr(merkle_manifest.os, "nice", asked.append)
    calls: list[list[str]] = []

    def answer(code: int) -> t.Callable[..., tuple[int, str, str]]:
        def run(_module: object, argv: list[str]) -> tuple[int, str, str]:
            calls.append(argv)
            return code, "", "not permitted"

        return run

    monkeypatch.setattr(merkle_manifest.AnsibleModule, "get_bin_path", lambda _module, name: f"/usr/bin/{name}")
    monkeypatch.setattr(merkle_manifest.AnsibleModule, "run_command", answer(0))
    assert world.run(nice=19, idle_io=True, drop_cache=True)["intact"]
    assert warned == []
    assert asked == [19]
    assert calls == [["/usr/bin/ionice", "-c", "3", "-p", str(os.getpid())]]
    monkeypatch.setattr(merkle_manifest.AnsibleModule, "run_command", answer(1))
    assert world.run(idle_io=True)["intact"]
    assert "ionice said: not permitted" in warned[0]
    monkeypatch.setattr(merkle_manifest.AnsibleModule, "get_bin_path", lambda _module, _name: None)
    assert world.run(idle_io=True)["intact"]
    assert "ionice is not installed" in warned[1]
