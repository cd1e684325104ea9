# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Releases on real directories: every state, every gap in which a run may be killed, and what must never be touched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _model_release as mr

ROOT_HASH = "ab" * 32
DAY = 86400


class Killed(BaseException):
    """The run ends here."""


class Host:
    """A host with releases, and a clock that only a test moves."""

    def __init__(self, top: Path) -> None:
        """Nothing is there yet."""
        self.top = top
        self.root = top / "models"
        self.folder = self.root / "releases"
        self.time = 1_900_000_000.0
        self.free = 10**15
        self.mounts: list[str] = []
        self.processes: dict[int, str] = {}
        self.steps: list[str] = []
        self.kill_at = 0
        self.die_at = ""

    def step(self, name: str) -> None:
        """Count, and perhaps end."""
        if name == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps.append(name)
        if self.kill_at and len(self.steps) == self.kill_at:
            raise Killed(name)

    def run(self, state: str, check: bool = False, **options: Any) -> mr.Outcome:
        """One run of the module's work."""
        self.steps = []
        probes = mr.Probes(
            now=lambda: self.time,
            clock=lambda: self.time,
            sleep=self.pass_time,
            free=lambda _path: self.free,
            mounts=lambda: self.mounts,
            process=lambda pid: self.processes.get(pid, ""),
            step=self.step,
        )
        wish = mr.Wish(root=str(self.root), state=state, **{"by": "alice", **options})
        return mr.Releases(wish, probes, check).run()

    def pass_time(self, seconds: float) -> None:
        """Time goes by."""
        self.time += seconds

    def bind(self, name: str, **options: Any) -> dict[str, Any]:
        """What state staged needs."""
        found = {
            "id": name,
            "weights_root": ROOT_HASH,
            "engine": "sglang",
            "engine_version": "0.5.6",
            "plan_id": "plan-1",
            **options,
        }
        return {"id": name, "binding": mr.binding(found)}

    def source(self, name: str, files: dict[str, str]) -> Path:
        """A directory that is complete."""
        path = self.top / f"source-{name}"
        fill(path, files)
        return path

    def stage(self, name: str, content: dict[str, str] | None = None, **options: Any) -> mr.Outcome:
        """A finished release."""
        self.time += 60
        source = self.source(name, content or {"model.gguf": f"weights of {name}"})
        return self.run("staged", source=str(source), **self.bind(name, **options))

    def release(self, name: str, verdict: str = "good", content: dict[str, str] | None = None, **options: Any) -> None:
        """A release that was active and got its verdict."""
        self.stage(name, content, **options)
        self.time += 60
        self.run("activated", id=name)
        self.time += DAY
        if verdict:
            self.run(verdict, id=name, reason="as it was")

    @property
    def current(self) -> str:
        """Where the link leads."""
        return os.readlink(self.root / "current") if (self.root / "current").is_symlink() else ""

    @property
    def journal(self) -> dict[str, Any]:
        """What state.json says."""
        found: dict[str, Any] = json.loads((self.root / "state.json").read_text())
        return found

    def names(self) -> list[str]:
        """What lies in releases."""
        return sorted(path.name for path in self.folder.iterdir())


def fill(path: Path, files: dict[str, str]) -> None:
    """Files with a content."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)


def manifest(files: dict[str, str], **hashes: str) -> dict[str, dict[str, Any]]:
    """Sizes and hashes, as a caller gives them. The hash of a content is made up of its letters."""
    return {
        name: {"size": len(content), "hash": hashes.get(name, (content.encode().hex() + "0" * 64)[:64])}
        for name, content in files.items()
    }


def tree(path: Path) -> dict[str, Any]:
    """Everything below a directory, to see whether anything was touched."""
    return {
        str(one.relative_to(path)): os.readlink(one)
        if one.is_symlink()
        else (one.read_bytes() if one.is_file() else "", one.lstat().st_ino)
        for one in sorted(path.rglob("*"))
    }


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was brought to disk. It would take most of the time of these tests."""
    found: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: found.append(os.readlink(f"/proc/self/fd/{handle}")))
    return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """An empty host."""
    return Host(tmp_path)


# -- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("id", "../r1", "id: expected up to 128 letters"),
        ("id", ".r1", "id: expected"),
        ("id", "r1.partial", "id: expected"),
        ("id", "a/b", "id: expected"),
        ("weights_root", "abc", "weights_root: expected a hash"),
        ("weights_root", "zz" * 32, "weights_root: expected a hash"),
        ("engine", "", "engine: expected"),
        ("engine_version", " 1", "engine_version: expected"),
        ("plan_id", "a\nb", "plan_id: expected"),
        ("image_digest", "latest", "image_digest: expected sha256:"),
        ("configuration", [1], "configuration: expected a mapping, found list"),
        ("files", [1], "files: expected a mapping of names, found list"),
        ("files", {"../x": {"size": 1, "hash": ROOT_HASH}}, "files: expected plain paths"),
        ("files", {"/x": {"size": 1, "hash": ROOT_HASH}}, "files: expected plain paths"),
        ("files", {"release.json": {"size": 1, "hash": ROOT_HASH}}, "something else has that place"),
        (
            "files",
            {"a": {"size": 1, "hash": ROOT_HASH}, "a/b": {"size": 1, "hash": ROOT_HASH}},
            "something else has that place",
        ),
        ("files", {"a": {"size": -1, "hash": ROOT_HASH}}, "files.a: expected a mapping with size"),
        ("files", {"a": {"size": True, "hash": ROOT_HASH}}, "files.a: expected a mapping with size"),
        ("files", {"a": 1}, "files.a: expected a mapping with size"),
        ("files", {"a": {"size": 1}}, "files.a.hash: expected a hash"),
    ],
)
def test_a_wrong_value_is_named(host: Host, field: str, value: Any, words: str) -> None:
    name = value if field == "id" else "r1"
    with pytest.raises(mr.ReleaseError, match=words):
        host.bind(name, **({} if field == "id" else {field: value}))


@pytest.mark.parametrize(
    ("state", "options", "words"),
    [
        ("activated", {"id": "../x"}, "id: expected"),
        ("activated", {"id": ""}, "id: expected the release to activate"),
        ("staged", {}, "staged needs weights_root"),
        ("pruned", {"keep": 0}, "keep: expected a whole number of at least 1, found 0"),
        ("pruned", {"partial_hours": -1}, "partial_hours: expected"),
        ("good", {"id": "r1", "soak": -1}, "soak_seconds: expected"),
        ("bad", {"id": "r1", "reason": " "}, "reason: expected words"),
        ("good", {"id": "r1"}, "id: expected a staged release, found r1. There are no releases"),
    ],
)
def test_a_wrong_wish_is_named(host: Host, state: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(mr.ReleaseError, match=words):
        host.run(state, **options)


def test_a_root_that_is_none_is_refused(host: Host) -> None:
    for root in ("relative", "/"):
        with pytest.raises(mr.ReleaseError, match="root: expected an absolute path below /"):
            mr.Releases(mr.Wish(root=root, state="pruned")).run()


def test_hashes_do_not_depend_on_their_case(host: Host) -> None:
    assert host.bind("r1", weights_root="SHA256:" + "AB" * 32)["binding"].weights_root == f"sha256:{ROOT_HASH}"


def test_differences_name_the_field_and_both_values(host: Host) -> None:
    one = host.bind("r1", configuration={"a": {"b": 1, "c": 2}, "x": 1})["binding"]
    two = host.bind("r1", configuration={"a": {"b": 3, "c": 2}, "y": 1}, engine="vllm")["binding"]
    assert mr.differences(one, two) == [
        "configuration.a.b is 1, and should be 3",
        "configuration.x is there, and should be missing",
        "configuration.y is missing, and should be there",
        'engine is "sglang", and should be "vllm"',
    ]
    assert mr.differences(one, replace(one, files=None)) == []


def test_a_release_reads_what_it_wrote(host: Host) -> None:
    bound = host.bind("r1", files=manifest({"a": "1"}), configuration={"n": 1.5})["binding"]
    one = mr.Release(bound, 7, "2026-11-29T13:45:00Z", "alice", "why")
    assert mr.parse_release(one.text()) == one
    for damaged in ("", "[]", "{}", '{"format": 1}', one.text().replace("2026", "x"), one.text().replace('"r1"', "[]")):
        with pytest.raises(ValueError, match=r"\w"):
            mr.parse_release(damaged)


# -- staging ------------------------------------------------------------------------------------------------------------


def test_a_directory_is_registered_filled_and_finished(host: Host) -> None:
    files = {"model/1.gguf": "one", "model/2.gguf": "two2"}
    wish = host.bind("r1", files=manifest(files), image_digest=f"sha256:{ROOT_HASH}", configuration={"tp": 8})
    done = host.run("staged", finish=False, **wish)
    partial = host.folder / "r1.partial"
    assert (done.changed, done.result["partial"], done.result["linked"]) == (True, str(partial), [])
    assert done.result["missing"] == ["model/1.gguf", "model/2.gguf"]
    assert done.result["staging"] == [{"id": "r1", "path": str(partial), "bytes": 0, "filled_by": ""}]
    assert not host.run("staged", finish=False, **wish).changed
    fill(partial, files)
    assert host.run("staged", finish=False, **wish).result["missing"] == []
    # Half of a file.
    fill(partial, {"model/1.gguf": "o"})
    assert host.run("staged", finish=False, **wish).result["missing"] == ["model/1.gguf"]
    fill(partial, files)
    host.time += 60
    done = host.run("staged", reason="a try", **wish)
    assert done.changed
    assert host.names() == ["r1"]
    [one] = done.result["releases"]
    assert (one["status"], one["bytes"], one["active"], one["activated_at"]) == ("staged", 7, False, "")
    written = json.loads((host.folder / "r1/release.json").read_text())
    assert written["files"]["model/1.gguf"]["size"] == 3
    assert (written["plan_id"], written["configuration"], written["staged_by"]) == ("plan-1", {"tp": 8}, "alice")
    assert host.journal["history"][-1]["reason"] == "a try"
    assert not host.run("staged", **wish).changed
    assert not host.run("staged", finish=False, **wish).changed


def test_a_source_is_moved_and_not_copied(host: Host) -> None:
    source = host.source("r1", {"model.gguf": "1"})
    inode = (source / "model.gguf").stat().st_ino
    wish = {"source": str(source), **host.bind("r1")}
    assert host.run("staged", **wish).changed
    assert not source.exists()
    assert (host.folder / "r1/model.gguf").stat().st_ino == inode
    assert not host.run("staged", **wish).changed


def test_a_release_is_on_disk_before_it_has_its_name(host: Host, synced: list[str]) -> None:
    source = host.source("r1", {"d/a": "1", "b": "2"})
    host.run("staged", source=str(source), **host.bind("r1"))
    partial = f"{host.folder}/r1.partial"
    at = [synced.index(name) for name in (f"{partial}/d/a", f"{partial}/d", partial)]
    assert at == sorted(at)
    assert f"{partial}/b" in synced
    assert at[-1] < max(place for place, name in enumerate(synced) if name == str(host.folder))


def test_other_content_under_the_same_id_is_refused(host: Host) -> None:
    host.stage("r1", configuration={"tp": 8})
    before = tree(host.root)
    with pytest.raises(mr.ReleaseError, match=r"r1 exists with other content.*configuration.tp is 8, and should be 4"):
        host.run("staged", force=True, **host.bind("r1", configuration={"tp": 4}))
    assert tree(host.root) == before


def test_a_registration_for_other_content_needs_force(host: Host) -> None:
    host.run("staged", finish=False, **host.bind("r1"))
    other = host.bind("r1", engine="vllm")
    with pytest.raises(mr.ReleaseError, match=r'being staged with other content: engine is "sglang"'):
        host.run("staged", finish=False, **other)
    assert host.run("staged", finish=False, force=True, **other).changed
    assert not host.run("staged", finish=False, **other).changed


def test_files_that_were_registered_hold_later(host: Host) -> None:
    host.run("staged", finish=False, **host.bind("r1", files=manifest({"a": "1", "b": "2"})))
    fill(host.folder / "r1.partial", {"a": "1"})
    with pytest.raises(mr.ReleaseError, match="expected the complete release r1, found b is missing"):
        host.run("staged", **host.bind("r1"))
    fill(host.folder / "r1.partial", {"b": "2"})
    host.run("staged", **host.bind("r1"))
    assert set(json.loads((host.folder / "r1/release.json").read_text())["files"]) == {"a", "b"}


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({"a": "1"}, {}, "b is missing"),
        ({"a": "1", "b": "22"}, {}, "b has 2 bytes instead of 1"),
        ({"a": "1", "b": "2", "c": "3"}, {}, "c is not one of files"),
        ({"a": "1", "b": "2", "release.json": "{}"}, {}, "release.json is not of this module"),
        ({"a": "1"}, {"files": None, "bytes": 9}, "1 bytes instead of 9"),
        ({}, {"files": None}, "no file"),
    ],
)
def test_an_incomplete_release_gets_no_name(
    host: Host, files: dict[str, str], options: dict[str, Any], words: str
) -> None:
    named = options.get("files", manifest({"a": "1", "b": "2"}))
    wish = host.bind("r1", files=named)
    host.run("staged", finish=False, **wish)
    fill(host.folder / "r1.partial", files)
    before = tree(host.root)
    with pytest.raises(mr.ReleaseError, match=f"expected the complete release r1, found {words}"):
        host.run("staged", bytes=options.get("bytes", 0), **wish)
    assert tree(host.root) == before


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../outside", "../source-r1/a", "nowhere"])
def test_links_that_lead_out_of_a_release_are_refused(host: Host, target: str) -> None:
    source = host.source("r1", {"a": "1"})
    (source / "link").symlink_to(target)
    with pytest.raises(mr.ReleaseError, match="found link: a link "):
        host.run("staged", source=str(source), **host.bind("r1"))
    assert (source / "a").read_text() == "1"


def test_a_link_within_a_release_is_fine_and_a_pipe_is_not(host: Host) -> None:
    source = host.source("r1", {"d/a": "1"})
    (source / "link").symlink_to("d/a")
    host.run("staged", source=str(source), **host.bind("r1"))
    assert (host.folder / "r1/link").read_text() == "1"
    source = host.source("r2", {"a": "1"})
    os.mkfifo(source / "pipe")
    with pytest.raises(mr.ReleaseError, match="pipe: neither a file nor a directory"):
        host.run("staged", source=str(source), **host.bind("r2"))


def test_sources_that_cannot_be_taken_over(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.stage("r0")
    outside = host.source("x", {"a": "1"})
    link = host.top / "link"
    link.symlink_to(outside)
    for source, words in (
        ("relative", "source: expected an absolute path"),
        (str(host.top / "none"), "source: expected a directory, found nothing"),
        (str(link), "source: expected a directory, found a link"),
        (str(outside / "a"), "source: expected a directory, found a file"),
        (str(host.folder / "r0"), "source: expected a directory outside of"),
        (str(host.top), "source: expected a directory outside of"),
        ("/proc/self", "source: expected a directory, found a link"),
        ("/proc/sys", "source: expected a directory on the file system of"),
    ):
        with pytest.raises(mr.ReleaseError, match=words):
            host.run("staged", source=source, **host.bind("r1"))
    host.mounts = [str(outside / "mnt")]
    with pytest.raises(mr.ReleaseError, match="found a mount at"):
        host.run("staged", source=str(outside), **host.bind("r1"))
    host.mounts = []

    def other_mount(_self: Path, target: Path) -> Path:
        raise OSError(errno.EXDEV, "cross-device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", other_mount)
        with pytest.raises(mr.ReleaseError, match="in another mount"):
            host.run("staged", source=str(outside), **host.bind("r1"))
    host.run("staged", finish=False, **host.bind("r1"))
    with pytest.raises(mr.ReleaseError, match="found both"):
        host.run("staged", source=str(outside), **host.bind("r1"))
    assert tree(outside).keys() == {"a"}


def test_links_are_made_by_size_and_hash_alone(host: Host) -> None:
    host.stage("r1", {"a": "same", "b": "old"}, files=manifest({"a": "same", "b": "old"}))
    # The same name and size with another hash is not the same; the same hash under another name is.
    new = {"moved/a": "same", "b": "new"}
    wish = host.bind("r2", files=manifest(new))
    done = host.run("staged", finish=False, link=True, **wish)
    assert (done.result["linked"], done.result["missing"]) == (["moved/a"], ["b"])
    partial = host.folder / "r2.partial"
    assert (partial / "moved/a").samefile(host.folder / "r1/a")
    assert not (partial / "b").exists()
    assert not host.run("staged", finish=False, link=True, **wish).changed
    # Without being asked nothing is linked.
    assert host.run("staged", finish=False, **host.bind("r3", files=manifest(new))).result["linked"] == []


def test_a_hash_with_another_size_is_not_the_same(host: Host) -> None:
    host.stage("r1", {"a": "1"}, files=manifest({"a": "1"}, a=ROOT_HASH))
    wish = host.bind("r2", files=manifest({"a": "22"}, a=ROOT_HASH))
    assert host.run("staged", finish=False, link=True, **wish).result["linked"] == []


def test_a_file_that_changed_its_size_or_became_a_link_is_not_linked(host: Host) -> None:
    for name in ("grown", "link", "under"):
        host.stage(name, {"d/a": name}, files=manifest({"d/a": name}))
    (host.folder / "grown/d/a").write_text("much longer")
    (host.folder / "link/d/a").unlink()
    (host.folder / "link/d/a").symlink_to(host.source("x", {"a": "link"}) / "a")
    (host.folder / "under/d").rename(host.top / "d")
    (host.folder / "under/d").symlink_to(host.top / "d")
    for name in ("grown", "link", "under"):
        wish = host.bind(f"new-{name}", files=manifest({"a": name}))
        assert host.run("staged", finish=False, link=True, **wish).result["missing"] == ["a"]


def test_a_bad_release_is_not_linked_from(host: Host) -> None:
    host.stage("r1", {"a": "1"}, files=manifest({"a": "1"}))
    host.run("bad", id="r1", reason="wrong weights")
    wish = host.bind("r2", files=manifest({"a": "1"}))
    assert host.run("staged", finish=False, link=True, **wish).result["missing"] == ["a"]


def test_a_release_with_the_weights_of_an_older_one_needs_no_transfer(host: Host) -> None:
    files = {"a": "1", "b": "22"}
    host.stage("r1", files, files=manifest(files))
    host.free = 0
    done = host.run("staged", link=True, **host.bind("r2", files=manifest(files), configuration={"tp": 4}))
    assert (done.result["linked"], host.names()) == (["a", "b"], ["r1", "r2"])
    assert done.result["releases"][1]["bytes"] == 3


def test_linking_needs_files(host: Host) -> None:
    with pytest.raises(mr.ReleaseError, match="link_from: identical needs option files"):
        host.run("staged", link=True, **host.bind("r1"))


def test_room_is_checked_before_anything_is_registered(host: Host) -> None:
    host.free = 1099
    with pytest.raises(mr.ReleaseError, match=r"needs 1000 more bytes.*expected 1100 bytes free, found 1099"):
        host.run("staged", finish=False, bytes=1000, margin=100, **host.bind("r1"))
    assert host.names() == []
    host.free = 1100
    host.run("staged", finish=False, bytes=1000, margin=100, **host.bind("r1"))
    fill(host.folder / "r1.partial", {"a": "x" * 400})
    host.free = 700
    assert not host.run("staged", finish=False, bytes=1000, margin=100, **host.bind("r1")).changed


def test_bytes_that_contradict_files_are_named(host: Host) -> None:
    with pytest.raises(mr.ReleaseError, match="bytes: expected 3, the sum of files, found 4"):
        host.run("staged", finish=False, bytes=4, **host.bind("r1", files=manifest({"a": "123"})))


def test_a_directory_that_is_filled_is_not_finished(host: Host) -> None:
    wish = host.bind("r1")
    with pytest.raises(mr.ReleaseError, match="stager_pid: expected a running process, found none with the number 7"):
        host.run("staged", finish=False, stager_pid=7, **wish)
    host.processes = {7: "boot:7:100"}
    done = host.run("staged", finish=False, stager_pid=7, **wish)
    assert done.result["staging"][0]["filled_by"] == "process 7"
    assert not host.run("staged", finish=False, stager_pid=7, **wish).changed
    fill(host.folder / "r1.partial", {"a": "1"})
    with pytest.raises(mr.ReleaseError, match="found that process 7 fills it"):
        host.run("staged", **wish)
    # Another process with the same number.
    host.processes = {7: "boot:7:200"}
    host.run("staged", **wish)
    assert host.names() == ["r1"]


def test_a_lock_on_the_registration_says_that_it_is_filled(host: Host) -> None:
    host.run("staged", finish=False, **host.bind("r1"))
    fill(host.folder / "r1.partial", {"a": "1"})
    with (host.folder / ".r1.staging.json").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(mr.ReleaseError, match=r"a process that holds a lock on .r1.staging.json fills it"):
            host.run("staged", **host.bind("r1"))
        host.time += 30 * DAY
        assert host.run("pruned").result["removed"] == []
    host.run("staged", **host.bind("r1"))


def test_the_identity_of_a_process_is_its_start() -> None:
    own = mr.process_identity(os.getpid())
    assert own.split(":")[1] == str(os.getpid())
    assert own == mr.process_identity(os.getpid())
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    assert mr.process_identity(int(done.stdout)) == ""


def test_a_directory_of_somebody_else_is_not_overwritten(host: Host) -> None:
    (host.folder / "r1").mkdir(parents=True)
    with pytest.raises(
        mr.ReleaseError, match=r"expected nothing or release r1, found a directory without a release.json"
    ):
        host.run("staged", **host.bind("r1"))


def test_a_directory_that_was_made_before_it_was_registered_is_taken(host: Host) -> None:
    fill(host.folder / "r1.partial", {"a": "1"})
    host.run("staged", **host.bind("r1"))
    assert host.names() == ["r1"]


def test_a_registration_that_cannot_be_read_is_written_again(host: Host) -> None:
    host.run("staged", finish=False, **host.bind("r1"))
    (host.folder / ".r1.staging.json").write_text("{")
    assert host.run("staged", finish=False, **host.bind("r1")).changed
    assert not host.run("staged", finish=False, **host.bind("r1")).changed


# -- activation and judgement -------------------------------------------------------------------------------------------


def test_activation_moves_the_link_and_remembers(host: Host) -> None:
    host.stage("r1")
    host.stage("r2")
    host.run("activated", id="r1")
    host.time += 60
    done = host.run("activated", id="r2", reason="new weights")
    assert (done.changed, host.current) == (True, "releases/r2")
    assert (done.result["current"], done.result["previous"]) == ("r2", "r1")
    assert [one["status"] for one in done.result["releases"]] == ["staged", "active"]
    assert host.journal["history"][-1] == {
        "at": mr.seconds_text(host.time),
        "event": "activated",
        "id": "r2",
        "by": "alice",
        "reason": "new weights",
        "origin": "r1",
    }
    assert "current: r1\n" in done.before
    assert "current: r2\n" in done.after
    host.time += 60
    again = host.run("activated", id="r2")
    assert (again.changed, again.result["previous"]) == (False, "r1")


def test_only_staged_releases_are_activated(host: Host) -> None:
    host.stage("r1")
    host.run("staged", finish=False, **host.bind("r2"))
    (host.folder / "mine").mkdir()
    (host.folder / "link").symlink_to("/etc")
    for name, words in (
        ("r3", r"found nothing for r3. There are r1 \(staged, never active\), r2 \(being staged\)"),
        ("r2", "found one that is being staged for r2"),
        ("mine", "found a directory without a release.json"),
        ("link", "found a link to /etc"),
    ):
        with pytest.raises(mr.ReleaseError, match=words):
            host.run("activated", id=name)
    for name in ("r2", "r3", "link"):
        with pytest.raises(mr.ReleaseError, match="expected a staged release"):
            host.run("activated", id=name, force=True)
    assert host.current == ""
    host.run("activated", id="mine", force=True)
    assert host.current == "releases/mine"
    assert not host.run("activated", id="mine", force=True).changed


def test_a_bad_release_needs_force(host: Host) -> None:
    host.stage("r1")
    host.run("bad", id="r1", reason="it talks nonsense")
    with pytest.raises(mr.ReleaseError, match="found r1, which is bad: it talks nonsense"):
        host.run("activated", id="r1")
    done = host.run("activated", id="r1", force=True)
    assert [one["status"] for one in done.result["releases"]] == ["bad"]
    assert not host.run("activated", id="r1", force=True).changed
    with pytest.raises(mr.ReleaseError, match="which is bad"):
        host.run("good", id="r1")
    assert host.run("good", id="r1", force=True).result["releases"][0]["status"] == "good"


def test_check_mode_takes_a_missing_release_as_staged(host: Host) -> None:
    done = host.run("activated", id="r1", check=True)
    assert (done.changed, done.result["current"]) == (True, "r1")
    assert done.warnings == [f"{host.folder / 'r1'}: not there yet; taken as staged in check mode"]
    assert not host.root.exists()


def test_good_waits_for_the_soak(host: Host) -> None:
    host.stage("r1")
    with pytest.raises(mr.ReleaseError, match="expected the active release, which there is none of, found r1"):
        host.run("good", id="r1")
    host.run("activated", id="r1")
    host.time += 3000
    with pytest.raises(mr.ReleaseError, match=r"to be active for 3600 s, found 3000 s; 600 s are left"):
        host.run("good", id="r1", soak=3600)
    host.time += 600
    assert host.run("good", id="r1", soak=3600).changed
    assert not host.run("good", id="r1", soak=10**9).changed


def test_a_clock_that_went_back_is_no_soak(host: Host) -> None:
    host.stage("r1")
    host.run("activated", id="r1")
    host.time -= DAY
    with pytest.raises(mr.ReleaseError, match="found 0 s; 1 s are left"):
        host.run("good", id="r1", soak=1)


def test_bad_says_why(host: Host) -> None:
    host.release("r1")
    done = host.run("bad", id="r1", reason="slow")
    assert "release r1: bad (slow)" in done.after
    assert not host.run("bad", id="r1", reason="slow").changed
    assert host.run("bad", id="r1", reason="slow and wrong").changed
    assert host.current == "releases/r1"


# -- rollback -----------------------------------------------------------------------------------------------------------


def test_rollback_goes_to_the_last_good_one_before(host: Host) -> None:
    host.release("r1")
    host.release("r2")
    host.release("r3", "bad")
    host.release("r4", "")
    done = host.run("rolled_back", reason="worse answers")
    assert (done.result["from"], done.result["to"], host.current) == ("r4", "r2", "releases/r2")
    assert done.result["previous"] == "r4"
    last = host.journal["history"][-1]
    assert (last["event"], last["origin"], last["reason"]) == ("rolled_back", "r4", "worse answers")
    # A second run of the same play goes no further.
    again = host.run("rolled_back")
    assert (again.changed, again.result["from"], again.result["to"]) == (False, "r2", "r2")
    assert not host.run("rolled_back", id="r4").changed
    # Going further back takes a word, and never leads forward to what was left, good or not.
    host.run("good", id="r2")
    done = host.run("rolled_back", id="r2")
    assert (done.result["to"], host.current) == ("r1", "releases/r1")


def test_rollback_from_one_that_was_activated_again(host: Host) -> None:
    host.release("r1")
    host.release("r2")
    host.time += 60
    host.run("activated", id="r1")
    assert host.run("rolled_back").result["to"] == "r2"


def test_rollback_from_one_that_was_rolled_back_to_and_is_bad(host: Host) -> None:
    host.release("r1")
    host.release("r2")
    host.release("r3")
    host.run("rolled_back")
    host.run("bad", id="r2", reason="bad as well")
    assert host.run("rolled_back").result["to"] == "r1"


def test_rollback_without_a_good_one_says_what_there_is(host: Host) -> None:
    with pytest.raises(mr.ReleaseError, match=r"found none\. There are no releases"):
        host.run("rolled_back")
    host.release("r1", "bad")
    host.release("r2", "")
    host.stage("r3")
    with pytest.raises(
        mr.ReleaseError,
        match=r"from before r2, found none. There are r1 \(bad\), r2 \(active, current\), r3 \(staged, never active\)",
    ):
        host.run("rolled_back")
    with pytest.raises(mr.ReleaseError, match="id: expected the release to leave, found typo"):
        host.run("rolled_back", id="typo")
    assert host.current == "releases/r2"


# -- pruning ------------------------------------------------------------------------------------------------------------


def test_the_last_good_ones_stay(host: Host) -> None:
    for number in range(1, 7):
        host.release(f"r{number}", "bad" if number == 4 else "good")
    host.release("r7", "")
    host.stage("r8")
    wish: dict[str, Any] = {"keep": 2}
    predicted = host.run("pruned", check=True, **wish)
    assert sorted(host.names()) == [f"r{number}" for number in range(1, 9)]
    done = host.run("pruned", **wish)
    # r6 and r5 are good, r6 is also the previous one, r7 is active, r8 waits.
    assert host.names() == ["r5", "r6", "r7", "r8"]
    assert [one["id"] for one in done.result["removed"]] == ["r1", "r2", "r3", "r4"]
    assert done.result["removed"] == predicted.result["removed"]
    assert (done.before, done.after) == (predicted.before, predicted.after)
    assert "release r1: good, 13 bytes\n" in done.before
    assert "r1" not in done.after
    assert set(host.journal["releases"]) == {"r5", "r6", "r7", "r8"}
    assert not host.run("pruned", **wish).changed


def test_the_previous_release_stays_whatever_it_is(host: Host) -> None:
    host.release("r1", "bad")
    host.release("r2")
    done = host.run("pruned", keep=1)
    assert done.result["removed"] == []
    host.release("r3")
    assert [one["id"] for one in host.run("pruned", keep=1).result["removed"]] == ["r1"]


def test_freed_bytes_are_honest_about_hard_links(host: Host) -> None:
    for name in ("r1", "r2", "r3", "r4", "r5"):
        content = {"shared": "x" * 10000, **({"old": "y" * 3000} if name < "r3" else {"new": "z" * 7})}
        wish = host.bind(name, files=manifest(content))
        linked = host.run("staged", finish=False, link=True, **wish).result
        assert linked["linked"] == {"r1": [], "r3": ["shared"]}.get(name, sorted(content))
        fill(host.folder / f"{name}.partial", {one: content[one] for one in linked["missing"]})
        host.run("staged", **wish)
        host.time += 60
        host.run("activated", id=name)
        host.run("good", id=name)
    own = [(host.folder / name / "release.json").stat().st_size for name in ("r1", "r2")]
    predicted = host.run("pruned", keep=3, check=True)
    done = host.run("pruned", keep=3)
    assert done.result["removed"] == predicted.result["removed"]
    # "shared" lives on in r3, and the content of "old" goes with the second of its names.
    assert [(one["id"], one["bytes"], one["freed_bytes"]) for one in done.result["removed"]] == [
        ("r1", 13000, own[0]),
        ("r2", 13000, own[1] + 3000),
    ]
    assert done.result["freed_bytes"] == sum(own) + 3000
    assert (host.folder / "r5/shared").stat().st_nlink == 3


def test_directories_that_nobody_fills_go_when_they_are_old(host: Host) -> None:
    host.time = time.time()
    host.processes = {7: "boot:7:100"}
    host.run("staged", finish=False, **host.bind("old"))
    host.run("staged", finish=False, stager_pid=7, **host.bind("alive"))
    fill(host.folder / "unregistered.partial", {"a": "12345"})
    os.utime(host.folder / "unregistered.partial/a", (1, 1))
    host.time += 23 * 3600
    assert not host.run("pruned", partial_hours=24).changed
    host.time += 2 * 3600
    predicted = host.run("pruned", partial_hours=24, check=True)
    assert "unregistered: not registered, 5 bytes" in predicted.before
    done = host.run("pruned", partial_hours=24)
    assert [(one["kind"], one["id"], one["bytes"]) for one in done.result["removed"]] == [
        ("partial", "old", 0),
        ("partial", "unregistered", 5),
    ]
    assert done.result["removed"] == predicted.result["removed"]
    assert done.result["freed_bytes"] == 5
    assert host.names() == [".alive.staging.json", "alive.partial"]
    host.processes = {}
    assert [one["id"] for one in host.run("pruned").result["removed"]] == ["alive"]
    assert host.names() == []


def test_what_is_not_of_this_module_is_left_alone_and_named(host: Host) -> None:
    outside = host.source("outside", {"precious": "1"})
    for name in ("r1", "r2", "r3"):
        host.release(name)
    (host.folder / "notes.txt").write_text("mine")
    (host.folder / "link").symlink_to(outside)
    (host.folder / "link.partial").symlink_to(outside)
    (host.folder / ".x.removing").symlink_to(outside)
    (host.folder / ".y.staging.json").symlink_to(outside / "precious")
    fill(host.folder / "theirs", {"a": "1", "release.json": '{"format": 1}'})
    fill(host.folder / ".hidden.d", {"a": "1"})
    done = host.run("pruned", keep=1, partial_hours=0)
    assert [one["id"] for one in done.result["removed"]] == ["r1"]
    named = [one.split(":")[0] for one in done.result["foreign"]]
    assert named == [".hidden.d", ".x.removing", ".y.staging.json", "link", "link.partial", "notes.txt", "theirs"]
    assert (outside / "precious").read_text() == "1"
    assert host.names() == sorted([*named, "r2", "r3"])
    assert not host.run("pruned", keep=1, partial_hours=0).changed


def test_nothing_is_followed_out_of_a_release(host: Host) -> None:
    outside = host.source("outside", {"precious": "1"})
    for name in ("r1", "r2", "r3"):
        host.release(name)
    (host.folder / "r1/way-out").symlink_to(outside)
    os.link(outside / "precious", host.folder / "r1/hard")
    done = host.run("pruned", keep=1)
    assert [one["id"] for one in done.result["removed"]] == ["r1"]
    assert (outside / "precious").read_text() == "1"


def test_what_has_a_mount_in_it_is_not_removed(host: Host) -> None:
    for name in ("r1", "r2", "r3"):
        host.release(name)
    host.mounts = [str(host.folder / "r1/mnt")]
    with pytest.raises(mr.ReleaseError, match="in which nothing is mounted, found a mount at"):
        host.run("pruned", keep=1)
    assert host.names() == ["r1", "r2", "r3"]
    # What a killed run had put away does not stop what has nothing to do with it.
    (host.folder / ".r0.removing").mkdir()
    host.mounts = [str(host.folder / ".r0.removing/mnt")]
    done = host.run("rolled_back")
    assert host.current == "releases/r2"
    assert "cannot be removed" in done.warnings[0]
    assert ".r0.removing" in host.names()


# -- places that are not what they should be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/etc", "found one to /etc"),
        ("../elsewhere", "found one to ../elsewhere"),
        ("releases/../../x", "is no place for a release in"),
        ("releases", "is no place for a release in"),
        ("releases/r1/deeper", "is no place for a release in"),
        ("releases/r1.partial", "is no place for a release in"),
        ("releases/evil", "is no place for a release in"),
    ],
)
def test_a_link_that_leads_out_is_refused(host: Host, target: str, words: str) -> None:
    host.stage("r1")
    (host.folder / "evil").symlink_to("/etc")
    (host.root / "current").symlink_to(target)
    before = tree(host.root)
    for state in ("activated", "rolled_back", "pruned"):
        with pytest.raises(mr.ReleaseError, match=words):
            host.run(state, id="r1")
    assert tree(host.root) == before


def test_an_absolute_link_to_a_release_is_the_same(host: Host) -> None:
    host.release("r1")
    (host.root / "current").unlink()
    (host.root / "current").symlink_to(host.folder / "r1")
    done = host.run("activated", id="r1")
    assert (done.changed, done.warnings) == (False, [])


@pytest.mark.parametrize("place", ["releases", "state.json", "current"])
def test_a_place_of_another_kind_is_refused(host: Host, place: str) -> None:
    host.root.mkdir()
    (host.top / "elsewhere").mkdir()
    if place == "current":
        (host.root / place).mkdir()
    else:
        (host.root / place).symlink_to(host.top / "elsewhere")
    with pytest.raises(mr.ReleaseError, match=f"{place}: expected a"):
        host.run("staged", finish=False, **host.bind("r1"))
    assert list((host.top / "elsewhere").iterdir()) == []


def test_a_link_to_the_root_is_followed(host: Host) -> None:
    real = host.top / "disk"
    real.mkdir()
    host.root.symlink_to(real)
    host.release("r1")
    assert (real / "current/model.gguf").read_text() == "weights of r1"


def test_a_link_in_the_way_of_a_lock_is_not_followed(host: Host) -> None:
    host.stage("r1")
    (host.root / mr.LOCK_FILE).unlink()
    (host.root / mr.LOCK_FILE).symlink_to(host.top / "victim")
    with pytest.raises(OSError, match=r"model_release\.lock"):
        host.run("activated", id="r1")
    assert not (host.top / "victim").exists()


def test_two_runs_do_not_interleave(host: Host) -> None:
    host.stage("r1")
    with (host.root / mr.LOCK_FILE).open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        begin = host.time
        with pytest.raises(mr.ReleaseError, match=r"did not end within 5 s \(lock_seconds\)"):
            host.run("activated", id="r1", lock_seconds=5)
        assert host.time - begin >= 5
        assert host.current == ""
        # Check mode changes nothing and waits for nobody.
        assert host.run("activated", id="r1", check=True).changed
    host.run("activated", id="r1")


def test_what_the_other_run_did_counts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.stage("r1")
    host.stage("r2")
    other = Host(host.top)
    other.time = host.time
    taken = fcntl.flock
    calls: list[int] = []

    def late(stream: Any, how: int) -> None:
        # The other run gets the lock first.
        if not calls:
            calls.append(1)
            monkeypatch.setattr(fcntl, "flock", taken)
            other.run("activated", id="r2")
        taken(stream, how)

    monkeypatch.setattr(fcntl, "flock", late)
    done = host.run("activated", id="r1")
    assert (done.result["previous"], done.recovered, done.warnings) == ("r2", [], [])


# -- the journal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": 1, "releases": {}, "history": [], "pending": null}',
        '{"format": 1, "current": "", "previous": "", "releases": {"r1": {"status": "odd"}}, "history": [], "pending": null}',
        '{"format": 1, "current": "../x", "previous": "", "releases": {}, "history": [], "pending": null}',
        '{"format": 1, "current": "", "previous": "", "releases": {}, "history": [{"id": 3}], "pending": null}',
        '{"format": 1, "current": "", "previous": "", "releases": {"r1": {"activated_at": "x"}}, "history": [], "pending": null}',
        "\x80",
    ],
)
def test_a_damaged_journal_is_rebuilt(host: Host, damage: str) -> None:
    for name in ("r1", "r2", "r3", "r4", "r5"):
        host.release(name)
    at = int((host.root / "current").lstat().st_mtime)
    (host.root / "state.json").write_text(damage, encoding="latin-1")
    predicted = host.run("pruned", check=True)
    assert (host.root / "state.json").read_text(encoding="latin-1") == damage
    done = host.run("pruned")
    assert (predicted.changed, done.changed, done.before, done.after) == (True, True, predicted.before, predicted.after)
    [warning] = done.warnings
    for words in (
        "Lost are the marks good and bad",
        "(r1, r2, r3, r4, r5)",
        "current (r5)",
        "is kept as state.json.damaged-",
    ):
        assert words in warning
    # Nothing is known to be good, so nothing is removed.
    assert done.result["removed"] == []
    assert [(one["id"], one["status"]) for one in done.result["releases"]][3:] == [("r4", "staged"), ("r5", "active")]
    assert done.result["releases"][4]["activated_at"] == mr.seconds_text(at)
    [kept] = host.root.glob("state.json.damaged-*")
    assert kept.read_text(encoding="latin-1") == damage
    again = host.run("pruned")
    assert (again.changed, again.warnings) == (False, [])


def test_a_missing_journal_is_rebuilt(host: Host) -> None:
    host.release("r1")
    (host.root / "state.json").unlink()
    done = host.run("activated", id="r1")
    assert (done.changed, host.current) == (True, "releases/r1")
    assert "found no file" in done.warnings[0]
    assert not host.run("activated", id="r1").changed


def test_a_damaged_journal_without_releases_is_made_new(host: Host) -> None:
    host.root.mkdir()
    (host.root / "state.json").write_text("{")
    assert host.run("pruned").changed
    assert not host.run("pruned").changed


def test_a_journal_of_a_later_version_is_not_touched(host: Host) -> None:
    host.release("r1")
    (host.root / "state.json").write_text('{"format": 2}')
    with pytest.raises(mr.ReleaseError, match="expected format 1, found 2, which a later version"):
        host.run("pruned")
    assert (host.root / "state.json").read_text() == '{"format": 2}'


def test_a_link_that_somebody_moved_counts(host: Host) -> None:
    host.release("r1")
    host.release("r2")
    (host.root / "current").unlink()
    (host.root / "current").symlink_to("releases/r1")
    done = host.run("pruned")
    assert (done.changed, done.result["current"], done.result["previous"]) == (True, "r1", "r2")
    assert "expected a link to releases/r2, as state.json says, found one to releases/r1" in done.warnings[0]
    assert not host.run("pruned").changed
    (host.root / "current").unlink()
    done = host.run("pruned")
    assert (done.result["current"], done.result["previous"]) == ("", "r1")
    assert "found none; the link counts" in done.warnings[0]
    assert not host.run("pruned").changed


def test_a_release_that_somebody_removed_or_brought(host: Host) -> None:
    host.release("r1")
    host.release("r2")
    (host.folder / "r1").rename(host.top / "away")
    done = host.run("pruned")
    assert done.warnings == [f"{host.folder / 'r1'}: expected release r1, found nothing"]
    assert done.result["previous"] == ""
    assert not host.run("pruned").changed
    (host.top / "away").rename(host.folder / "r1")
    done = host.run("pruned")
    assert done.recovered == ["took release r1 into the journal"]
    assert done.result["releases"][0]["status"] == "good"
    assert done.result["releases"][0]["activated_at"] != ""
    (host.folder / "r2").rename(host.top / "away")
    done = host.run("pruned")
    assert f"{host.root}/current: leads to {host.folder}/r2, which is not there" in done.warnings
    assert host.run("activated", id="r1").result["previous"] == ""
    assert not host.run("activated", id="r1").changed


# -- killed between two steps -------------------------------------------------------------------------------------------


def _stage_source(host: Host) -> dict[str, Any]:
    host.release("r1")
    source = host.source("r2", {"d/a": "1", "b": "2"})
    return {"state": "staged", "source": str(source), **host.bind("r2")}


def _stage_new(host: Host) -> dict[str, Any]:
    source = host.source("r2", {"d/a": "1", "b": "2"})
    return {"state": "staged", "source": str(source), **host.bind("r2")}


def _stage_links(host: Host) -> dict[str, Any]:
    files = {"d/a": "1", "b": "2"}
    host.release("r1")
    host.stage("r0", files, files=manifest(files))
    return {"state": "staged", "link": True, **host.bind("r2", files=manifest(files))}


def _register(host: Host) -> dict[str, Any]:
    files = {"d/a": "1", "b": "2"}
    host.stage("r0", files, files=manifest(files))
    return {"state": "staged", "finish": False, "link": True, **host.bind("r2", files=manifest({**files, "c": "3"}))}


def _activate_first(host: Host) -> dict[str, Any]:
    host.stage("r1")
    return {"state": "activated", "id": "r1"}


def _activate_next(host: Host) -> dict[str, Any]:
    host.release("r1")
    host.stage("r2")
    return {"state": "activated", "id": "r2"}


def _good(host: Host) -> dict[str, Any]:
    host.release("r1", "")
    return {"state": "good", "id": "r1"}


def _bad(host: Host) -> dict[str, Any]:
    host.release("r1")
    return {"state": "bad", "id": "r1", "reason": "slow"}


def _roll_back(host: Host) -> dict[str, Any]:
    host.release("r1")
    host.release("r2")
    return {"state": "rolled_back", "id": "r2"}


def _prune(host: Host) -> dict[str, Any]:
    for name in ("r1", "r2", "r3", "r4"):
        host.release(name)
    host.run("staged", finish=False, **host.bind("r5"))
    fill(host.folder / "r5.partial", {"a": "1"})
    return {"state": "pruned", "keep": 1, "partial_hours": 0}


def _rebuild(host: Host) -> dict[str, Any]:
    host.release("r1")
    host.release("r2")
    (host.root / "state.json").write_text("{")
    return {"state": "activated", "id": "r1"}


SCENES = [
    _stage_source,
    _stage_new,
    _stage_links,
    _register,
    _activate_first,
    _activate_next,
    _good,
    _bad,
    _roll_back,
    _prune,
    _rebuild,
]


@contextlib.contextmanager
def killed(host: Host, at: int) -> Iterator[None]:
    """The run ends after that many steps."""
    host.kill_at = at
    try:
        with contextlib.suppress(Killed):
            yield
    finally:
        host.kill_at = 0


def outline(host: Host) -> dict[str, Any]:
    """What must be the same however often a run was killed: everything but times and the way there."""
    journal = host.journal if (host.root / "state.json").exists() else {}
    events = [(one["event"], one["id"], one["origin"]) for one in journal.get("history", [])]
    return {
        "names": host.names(),
        "current": host.current,
        # A damaged journal is kept under the time at which it was found.
        "files": sorted(re.sub(r"damaged-\w+", "", str(path.relative_to(host.root))) for path in host.root.rglob("*")),
        "marks": {name: one["status"] for name, one in journal.get("releases", {}).items()},
        "previous": journal.get("previous"),
        "pending": journal.get("pending"),
        "events": sorted(events),
    }


def sound(host: Host) -> None:
    """What must hold at any time."""
    for name in host.names() if host.folder.is_dir() else []:
        if not name.startswith(".") and not name.endswith(".partial"):
            one = mr.parse_release((host.folder / name / "release.json").read_text())
            assert one.binding.id == name
            assert mr.scan(host.folder / name).bytes == one.bytes
    if host.current:
        assert (host.root / host.current / "release.json").is_file()


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("how", ["once", "twice", "check first"])
def test_a_killed_run_is_finished_or_undone(tmp_path: Path, scene: Callable[[Host], dict[str, Any]], how: str) -> None:
    def prepared(name: str) -> tuple[Host, dict[str, Any]]:
        (tmp_path / name).mkdir()
        host = Host(tmp_path / name)
        wish = scene(host)
        # Files that a test makes have the time of today.
        host.time += 30 * DAY
        return host, wish

    host, wish = prepared("whole")
    state = wish.pop("state")
    host.run(state, **wish)
    steps, expected = list(host.steps), outline(host)
    sound(host)
    assert steps
    for at in range(1, len(steps) + 1):
        host, wish = prepared(f"killed-{at}")
        state = wish.pop("state")
        with killed(host, at):
            host.run(state, **wish)
        assert host.steps == steps[:at]
        sound(host)
        if how == "twice":
            # The run that cleans up is killed as well.
            with killed(host, 1):
                host.run(state, **wish)
            sound(host)
        before = tree(host.root)
        predicted = host.run(state, check=True, **wish) if how == "check first" else None
        if predicted:
            assert tree(host.root) == before
        done = host.run(state, **wish)
        if predicted:
            assert (predicted.changed, predicted.after) == (done.changed, done.after), steps[at - 1]
            assert predicted.recovered == done.recovered
        sound(host)
        found = outline(host)
        assert found == expected, steps[at - 1]
        assert not host.run(state, **wish).changed


def test_a_process_that_is_killed_leaves_no_lock(host: Host) -> None:
    host.release("r1")
    host.stage("r2")
    child = os.fork()
    if child == 0:
        try:
            host.die_at = "moved the link"
            host.run("activated", id="r2")
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert host.journal["current"] == "r1"
    done = host.run("activated", id="r2", lock_seconds=0)
    assert (done.changed, done.result["current"], done.result["previous"]) == (True, "r2", "r1")
    assert not host.run("activated", id="r2").changed


def test_another_wish_cleans_up_as_well(host: Host) -> None:
    host.release("r1")
    host.stage("r2")
    host.stage("r3")
    with killed(host, 4):
        host.run("activated", id="r2")
    assert host.steps[-1] == "moved the link"
    done = host.run("activated", id="r3")
    assert done.recovered[0].startswith("finished the activation of r2")
    assert [(one["id"], one["origin"]) for one in host.journal["history"] if one["event"] == "activated"] == [
        ("r1", ""),
        ("r2", "r1"),
        ("r3", "r2"),
    ]
    with killed(host, 2):
        host.run("activated", id="r1")
    assert host.steps[-1] == "wrote state.json"
    done = host.run("bad", id="r1", reason="slow")
    assert done.recovered[0].startswith("dropped the activation of r1")
    assert (host.current, host.journal["pending"]) == ("releases/r3", None)


def test_a_new_release_under_an_old_name_has_no_past(host: Host) -> None:
    for name in ("r1", "r2", "r3"):
        host.release(name)
    host.run("pruned", keep=1)
    host.stage("r1")
    (host.root / "state.json").write_text(json.dumps({**host.journal, "releases": {}}))
    done = host.run("pruned", keep=1)
    assert [(one["id"], one["status"]) for one in done.result["releases"]] == [
        ("r1", "staged"),
        ("r2", "good"),
        ("r3", "good"),
    ]
    assert done.result["releases"][0]["activated_at"] == ""
    host.run("rolled_back")
    with pytest.raises(mr.ReleaseError, match=r"r1 \(staged, never active\)"):
        host.run("rolled_back", id="r2")


def test_what_was_put_away_and_came_again(host: Host) -> None:
    for name in ("r1", "r2", "r3"):
        host.release(name)
    with killed(host, 1):
        host.run("pruned", keep=1)
    assert ".r1.removing" in host.names()
    done = host.stage("r1")
    assert "finished the removal of r1" in done.recovered
    assert host.names() == ["r1", "r2", "r3"]
