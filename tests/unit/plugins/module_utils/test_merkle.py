# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Hash trees, manifests, and work that is stopped in the middle."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import threading
import typing as t
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.merkle_world import (
    Killed,
    Stopper,
    content,
    make,
)

PIECE = 32768
# Roots that libtorrent 2.1.1 gives to files with the content of content(size): create_torrent(list_files(folder), piece_length, v2_only),
# set_piece_hashes, generate, "pieces root" in the file tree. They were the same for pieces of 32 KiB, 1 MiB and 4 MiB.
# The third value is the SHA-256 of the file's "piece layers" in the torrent with pieces of 32 KiB.
TORRENT = [
    (1, "5a6e7a4754af8e7f47fc9493040d853e7b01e39d537cb1dd353c93b7ae58eb3d", ""),
    (16383, "0200e9204906f5ec952f0f4ccf4bd5564976a4980a625ec4b3d0dfd0bd273a95", ""),
    (16384, "c38e88a193896a289b0d22a1c6e89658cb1cc5be759b8b6c8c6723377242fe7b", ""),
    (16385, "32962f6e715dfea78a8345841650323056d5a83ba7b4f93b86a5097ead0428f2", ""),
    (1048575, "59cc92ae305fea925da01725641145b24b073ffeb3a6ea7a3afbf5750e1cf38b", "e1a734fb5015f1e9"),
    (1048576, "2292015a386ebfc8ef9cf4965e51c8106a8ea4578f5a18d26b8f3abf8cf4b6a8", "e19b76402bbea976"),
    (1048577, "1d6eeff76e24c4a2f06be2788e6621a801a2086827205ca8fea92de63f00d775", "391f895623050d3c"),
    (3145728, "a8c0b4fd24c476cc59128717194f72d4b4a926b225afed1f39f0531d7e74e81e", "6b47dd3c10e1b761"),
    (5255225, "51190872ee94e0abf658a472d0dddf633ab26bafb30fa1131311e31c794932f3", "66a7b98cc46a53ea"),
]


def one_thread(**options: t.Any) -> merkle.Work:
    return merkle.Work(threads=1, **options)


SET = {
    "a.safetensors": content(5 * PIECE + 100),
    "sub/b.safetensors": content(2 * PIECE),
    "config.json": b"{}",
    "empty": b"",
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make(tmp_path / "weights", SET)


def checked(root: Path, manifest: merkle.Manifest, work: merkle.Work | None = None, state: str = "") -> merkle.Findings:
    work = work or one_thread()
    return merkle.verify(str(root), manifest, merkle.Progress(state, manifest, merkle.scan(str(root)), work), work)


@pytest.mark.parametrize("piece_length", [PIECE, 1 << 20, 4 << 20, 64 << 20])
def test_roots_are_those_of_a_v2_torrent(tmp_path: Path, piece_length: int) -> None:
    make(tmp_path, {f"f{size:08d}": content(size) for size, _root, _layer in TORRENT})
    manifest = merkle.build(str(tmp_path), piece_length, merkle.Work(threads=3))
    assert [(entry.size, entry.root.hex()) for entry in manifest.files] == [
        (size, root) for size, root, _layer in TORRENT
    ]


def test_piece_layers_are_those_of_a_v2_torrent(tmp_path: Path) -> None:
    make(tmp_path, {f"f{size:08d}": content(size) for size, _root, _layer in TORRENT})
    manifest = merkle.build(str(tmp_path), PIECE, one_thread())
    listed = json.loads(merkle.manifest_text(manifest))["files"]
    for one, (_size, _root, layer) in zip(listed, TORRENT):
        pieces = bytes.fromhex(one.get("pieces", ""))
        assert (hashlib.sha256(pieces).hexdigest()[:16] if pieces else "") == layer


def test_a_tree_by_hand() -> None:
    zero = bytes(32)

    def sha(data: bytes) -> bytes:
        return hashlib.sha256(data).digest()

    leaves = [sha(bytes([number]) * merkle.BLOCK) for number in range(3)]
    data = b"".join(bytes([number]) * merkle.BLOCK for number in range(3))
    by_hand = sha(sha(leaves[0] + leaves[1]) + sha(leaves[2] + zero))
    assert merkle.piece_hash(data, len(data), 4 * merkle.BLOCK) == by_hand
    layer = merkle.piece_hash(data[:PIECE], len(data), PIECE) + merkle.piece_hash(data[PIECE:], len(data), PIECE)
    assert merkle.root_of(layer, len(data), PIECE) == by_hand


def test_an_empty_file_has_no_root_and_counts(tmp_path: Path) -> None:
    manifest = merkle.build(str(make(tmp_path / "a", {"x": b"1", "y": b""})), PIECE, one_thread())
    assert [entry.root.hex() for entry in manifest.files][1] == "0" * 64
    assert json.loads(merkle.manifest_text(manifest))["files"][1] == {"path": "y", "size": 0, "root": ""}
    other = merkle.build(str(make(tmp_path / "b", {"x": b"1"})), PIECE, one_thread())
    assert manifest.root() != other.root()


def test_the_set_root_binds_names_and_contents_and_not_the_piece_length(tmp_path: Path) -> None:
    def root(name: str, files: dict[str, bytes], length: int = PIECE) -> str:
        return merkle.build(str(make(tmp_path / name, files)), length, one_thread()).root()

    first = root("1", SET)
    # Computed without this code, from the roots that libtorrent gives. A root that is signed today must be the same tomorrow.
    assert first == "4886b2e682b812296cd465fac89bedbf3ad56d88caf5ab2aca54ce5c2eb85e7a"
    assert root("2", SET, 4 << 20) == first
    assert root("3", {**SET, "config.json": b"[]"}) != first
    assert root("4", {("c.json" if name == "config.json" else name): data for name, data in SET.items()}) != first
    assert root("5", {"ab": b"x", "c": b"y"}) != root("6", {"a": b"x", "bc": b"y"})


def test_files_are_sorted_by_bytes_and_threads_do_not_matter(tmp_path: Path) -> None:
    make(tmp_path, {"b": b"1", "a/z": content(9 * PIECE), "a.b": b"2", "é": b"3", "B": b"4", ".hidden/x": b"5"})
    texts = {merkle.manifest_text(merkle.build(str(tmp_path), PIECE, merkle.Work(threads=n))) for n in (0, 1, 2, 7)}
    assert len(texts) == 1
    names = [one["path"] for one in json.loads(texts.pop())["files"]]
    assert names == [".hidden/x", "B", "a.b", "a/z", "b", "é"]


def test_a_manifest_reads_back_as_it_was(weights: Path) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    text = merkle.manifest_text(manifest)
    assert merkle.parse_manifest("m", json.loads(text), manifest.root()) == manifest
    assert merkle.manifest_text(merkle.parse_manifest("m", json.loads(text))) == text


Edit = t.Callable[[dict[str, t.Any]], object]
EDITS: list[tuple[str, Edit]] = [
    ("m: field format: expected 'gpufleet.merkle_manifest', found 'x'", lambda m: m.update(format="x")),
    ("m: field version: expected 1, found 2", lambda m: m.update(version=2)),
    ("field version: expected 1, found True", lambda m: m.update(version=True)),
    ("field piece_length: expected a power of two", lambda m: m.update(piece_length=3 * 16384)),
    ("field piece_length: expected a power of two", lambda m: m.update(piece_length=8192)),
    ("field piece_length: expected a power of two", lambda m: m.update(piece_length=128 << 20)),
    ("field piece_length: expected a power of two", lambda m: m.update(piece_length=True)),
    ("field files: expected a list", lambda m: m.update(files=[])),
    ("field files: expected a list", lambda m: m.pop("files")),
    ("files[1]: expected a mapping, found 7", lambda m: m["files"].__setitem__(1, 7)),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path="/etc/passwd")),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path="../x")),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path="a/../../x")),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path="a//b")),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path="./a")),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path="a/")),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path="a\0b")),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path="")),
    ("files[0].path: expected a plain path", lambda m: m["files"][0].update(path=None)),
    ("files[0].path: expected a name in UTF-8", lambda m: m["files"][0].update(path="\udc80")),
    ("files[1].path: 'a.safetensors' is listed twice", lambda m: m["files"][1].update(path="a.safetensors")),
    ("lies below 'a.safetensors', which is a file", lambda m: m["files"][1].update(path="a.safetensors/x/y")),
    ("sorted by the bytes of their paths", lambda m: m["files"].reverse()),
    ("files[1] (config.json): expected the fields", lambda m: m["files"][1].update(mode="0644")),
    ("files[1] (config.json) field size: expected a number of bytes", lambda m: m["files"][1].update(size="2")),
    ("files[1] (config.json) field size: expected a number of bytes", lambda m: m["files"][1].update(size=-1)),
    ("files[1] (config.json) field root: expected 64 hexa", lambda m: m["files"][1].update(root="00")),
    ("files[1] (config.json) field root: expected 64 hexa", lambda m: m["files"][1].update(root="Z" * 64)),
    ("files[1] (config.json) field root: expected 64 hexa", lambda m: m["files"][1].pop("root")),
    ("files[1] (config.json) field pieces: expected nothing", lambda m: m["files"][1].update(pieces="")),
    ("files[2] (empty) field root: expected an empty text", lambda m: m["files"][2].update(root="0" * 64)),
    ("(a.safetensors) field pieces: expected 6 SHA-256", lambda m: m["files"][0].update(pieces="00")),
    ("(a.safetensors) field pieces: expected 6 SHA-256", lambda m: m["files"][0].pop("pieces")),
    ("field pieces: expected hashes with the root", lambda m: m["files"][0].update(pieces="0" * 384)),
    ("field pieces: expected hashes with the root", lambda m: m["files"][0].update(root="0" * 64)),
    ("(a.safetensors) field pieces: expected 5 SHA-256", lambda m: m["files"][0].update(size=5 * PIECE)),
    ("field size: expected 229478, the sum of the files", lambda m: m.update(size=7)),
    ("field root: expected", lambda m: m["files"][1].update(root="0" * 64)),
    ("field root: expected", lambda m: m.update(root="0" * 64)),
]


@pytest.mark.parametrize(("words", "edit"), EDITS)
def test_a_manifest_that_was_edited_is_named_with_its_field(weights: Path, words: str, edit: Edit) -> None:
    data = json.loads(merkle.manifest_text(merkle.build(str(weights), PIECE, one_thread())))
    edit(data)
    with pytest.raises(merkle.MerkleError) as caught:
        merkle.parse_manifest("m", data)
    assert words in str(caught.value)


def test_a_manifest_that_is_changed_in_all_its_parts_has_another_root(weights: Path) -> None:
    good = merkle.build(str(weights), PIECE, one_thread())
    (weights / "config.json").write_bytes(b"[]")
    data = json.loads(merkle.manifest_text(merkle.build(str(weights), PIECE, one_thread())))
    assert merkle.parse_manifest("m", copy.deepcopy(data))
    with pytest.raises(merkle.MerkleError, match=f"not the manifest that is meant: expected the root {good.root()}"):
        merkle.parse_manifest("m", data, good.root())


@pytest.mark.parametrize("text", ["", "{", "\x80", "[]", "7"])
def test_what_is_no_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text, encoding="latin-1")
    with pytest.raises(merkle.MerkleError, match=r"m.json: .*expected .*found"):
        merkle.read_manifest(str(tmp_path / "m.json"))


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(merkle.MerkleError, match=r"m.json: no such file"):
        merkle.read_manifest(str(tmp_path / "m.json"))


def test_what_cannot_be_in_a_set_is_refused_by_name(weights: Path, tmp_path: Path) -> None:
    make(tmp_path, {"outside.bin": b"x"})
    (weights / "out").symlink_to("../outside.bin")
    (weights / "abs").symlink_to("/etc")
    (weights / "gone").symlink_to("nowhere")
    (weights / "dir").symlink_to("sub")
    os.mkfifo(weights / "pipe")
    (weights / os.fsdecode(b"bad\xff")).write_bytes(b"")
    with pytest.raises(merkle.MerkleError) as caught:
        merkle.scan(str(weights))
    said = str(caught.value)
    assert "6 names" in said
    for words in (
        "abs (a link to /etc, outside",
        "dir (a link to sub, which is a directory",
        "gone (a link to nowhere, which",
    ):
        assert words in said
    for name in ("abs", "dir", "gone", "pipe"):
        (weights / name).unlink()
    with pytest.raises(merkle.MerkleError) as caught:
        merkle.scan(str(weights))
    assert "bad\\udcff (its name is not UTF-8), out (a link to ../outside.bin, outside of the directory)" in str(
        caught.value
    )
    said.encode("utf-8")


def test_a_link_inside_counts_as_its_file(weights: Path) -> None:
    (weights / "link").symlink_to("sub/b.safetensors")
    manifest = merkle.build(str(weights), PIECE, one_thread())
    entries = {entry.path: entry for entry in manifest.files}
    assert entries["link"].root == entries["sub/b.safetensors"].root


def test_no_directory_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty/sub").mkdir(parents=True)
    for name, words in (
        ("file", "found something else"),
        ("no", "found nothing"),
        ("empty", "found an empty directory"),
    ):
        with pytest.raises(merkle.MerkleError, match=words):
            merkle.build(str(tmp_path / name), PIECE, one_thread())


def test_a_whole_directory_has_no_findings(weights: Path) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    for threads in (1, 2, 5):
        for drop in (False, True):
            found = checked(weights, manifest, merkle.Work(threads=threads, drop_cache=drop))
            assert found.whole()
            assert found.extra == []
            assert found.sentence(manifest.count()) == ""


@pytest.mark.parametrize(
    ("offset", "pieces"),
    [
        (0, [0]),
        (5 * PIECE + 99, [5]),
        (PIECE - 1, [0]),
        (PIECE, [1]),
        (2 * PIECE, [2]),
    ],
)
def test_one_wrong_byte_is_located(weights: Path, offset: int, pieces: list[int]) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    data = bytearray(SET["a.safetensors"])
    data[offset] ^= 1
    (weights / "a.safetensors").write_bytes(data)
    found = checked(weights, manifest)
    assert [piece.number for piece in found.damaged] == pieces
    number = pieces[0]
    length = 100 if number == 5 else PIECE
    assert found.damaged[0].as_dict() == {
        "path": "a.safetensors",
        "index": number,
        "offset": number * PIECE,
        "length": length,
    }
    assert (
        found.sentence(manifest.count())
        == f"1 of 9 pieces damaged (a.safetensors piece {number} at {number * PIECE}, {length} bytes)"
    )


def test_cut_grown_renamed_and_extra(weights: Path) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    os.truncate(weights / "a.safetensors", 3 * PIECE + 1)
    with (weights / "config.json").open("ab") as stream:
        stream.write(b"\n")
    (weights / "sub/b.safetensors").rename(weights / "sub/c.safetensors")
    found = checked(weights, manifest)
    assert found.missing == ["sub/b.safetensors"]
    assert found.extra == ["sub/c.safetensors"]
    assert found.wrong_size == [("a.safetensors", 5 * PIECE + 100, 3 * PIECE + 1), ("config.json", 2, 3)]
    # The file that grew has all the bytes that it should have.
    assert [(piece.path, piece.number) for piece in found.damaged] == [
        ("a.safetensors", 3),
        ("a.safetensors", 4),
        ("a.safetensors", 5),
    ]
    assert not found.whole()


def test_a_part_of_the_drive_that_cannot_be_read_is_damage(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    genuine = os.preadv

    def read(handle: int, views: t.Any, offset: int) -> int:
        if offset == 2 * PIECE:
            raise OSError(errno.EIO, "Input/output error")
        return genuine(handle, views, offset)

    monkeypatch.setattr(merkle.os, "preadv", read)
    assert [piece.number for piece in checked(weights, manifest).damaged] == [2]


def test_a_file_that_changes_while_it_is_read_is_named(weights: Path) -> None:
    def touch(name: str, what: object) -> None:
        if isinstance(what, merkle.Piece) and what.path == "config.json":
            (weights / "config.json").write_bytes(b"{}\n")

    with pytest.raises(merkle.MerkleError, match=r"config.json: changed while it was read: expected 2 bytes"):
        merkle.build(str(weights), PIECE, one_thread(step=touch))

    def add(name: str, what: object) -> None:
        (weights / "new").write_bytes(b"")

    with pytest.raises(merkle.MerkleError, match="came, went or changed while the directory was read"):
        merkle.build(str(weights), PIECE, one_thread(step=add))


def test_a_cache_spares_only_files_that_look_the_same(weights: Path, tmp_path: Path) -> None:
    read: list[str] = []
    work = one_thread(step=lambda _name, what: read.append(t.cast("merkle.Piece", what).path))
    cache = str(tmp_path / "cache.json")
    stamps = merkle.scan(str(weights))
    manifest = merkle.build(str(weights), PIECE, work, stamps)
    assert merkle.read_cache(cache, manifest, PIECE, stamps) == {}
    merkle.write_cache(cache, manifest, stamps)
    read.clear()
    known = merkle.read_cache(cache, manifest, PIECE, stamps)
    assert merkle.build(str(weights), PIECE, work, stamps, known) == manifest
    assert read == []
    # The same size and time, another inode.
    old = (weights / "config.json").stat()
    (tmp_path / "new").write_bytes(b"[]")
    os.utime(tmp_path / "new", ns=(old.st_atime_ns, old.st_mtime_ns))
    (tmp_path / "new").rename(weights / "config.json")
    os.utime(weights / "sub/b.safetensors", ns=(1, 1))
    stamps = merkle.scan(str(weights))
    known = merkle.read_cache(cache, manifest, PIECE, stamps)
    again = merkle.build(str(weights), PIECE, work, stamps, known)
    assert sorted(set(read)) == ["config.json", "sub/b.safetensors"]
    assert again.root() != manifest.root()
    # Another length of pieces, or no manifest: nothing is known.
    assert merkle.read_cache(cache, manifest, 2 * PIECE, stamps) == {}
    assert merkle.read_cache(cache, None, PIECE, stamps) == {}
    (tmp_path / "cache.json").write_text('{"format": "x"}')
    with pytest.raises(merkle.MerkleError, match=r"cache.json: field format"):
        merkle.read_cache(cache, manifest, PIECE, stamps)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_thread_ends_all_of_them(weights: Path, threads: int) -> None:
    stopper = Stopper("hash", 3)
    with pytest.raises(Killed):
        merkle.build(str(weights), PIECE, merkle.Work(threads=threads, step=stopper))
    assert threading.active_count() == 1
    assert stopper.seen <= 3 + threads


def test_memory_is_bounded_and_threads_share_the_work() -> None:
    sizes: list[int] = []
    idents: set[int] = set()
    together = threading.Barrier(4, timeout=20)

    def act(_item: int, view: memoryview) -> None:
        together.wait()
        sizes.append(len(view))
        idents.add(threading.get_ident())

    merkle.in_threads(range(8), act, lambda _item, _result: None, 4, 1000)
    assert sizes == [1000] * 8
    assert len(idents) == 4


def test_a_verification_that_was_killed_goes_on(weights: Path, tmp_path: Path) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    data = bytearray(SET["a.safetensors"])
    data[PIECE] ^= 1
    (weights / "a.safetensors").write_bytes(data)
    state = str(tmp_path / "state.json")
    with pytest.raises(Killed):
        checked(weights, manifest, one_thread(step=Stopper("verify", 4)), state)
    kept = json.loads(Path(state).read_text())
    assert kept["files"]["a.safetensors"]["good"] == f"{0b1101:x}"
    assert not kept["finished"]
    assert "stopped: Killed" in kept["progress"][-1]
    counter = Stopper("verify", 99)
    work = one_thread(step=counter)
    progress = merkle.Progress(state, manifest, merkle.scan(str(weights)), work)
    found = merkle.verify(str(weights), manifest, progress, work)
    # Nine pieces, three of them proved before; the damaged one is read again.
    assert counter.seen == 6
    assert progress.resumed == 3 * PIECE
    assert [piece.number for piece in found.damaged] == [1]
    assert any("goes on" in line for line in progress.lines)
    progress.save(finished=True)
    # A run that ended leaves nothing to go on with.
    assert merkle.Progress(state, manifest, merkle.scan(str(weights)), work).resumed == 0


def test_what_was_proved_is_void_when_the_file_or_the_manifest_changes(weights: Path, tmp_path: Path) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    state = str(tmp_path / "state.json")
    with pytest.raises(Killed):
        checked(weights, manifest, one_thread(step=Stopper("verify", 8)), state)
    assert merkle.Progress(state, manifest, merkle.scan(str(weights)), one_thread()).resumed == 6 * PIECE + 102
    os.utime(weights / "a.safetensors", ns=(5, 5))
    assert merkle.Progress(state, manifest, merkle.scan(str(weights)), one_thread()).resumed == PIECE + 2
    other = merkle.build(str(weights), 2 * PIECE, one_thread())
    assert other.root() == manifest.root()
    assert merkle.Progress(state, other, merkle.scan(str(weights)), one_thread()).resumed == 0
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(
        merkle.MerkleError, match=r"state.json: field format: expected 'gpufleet.merkle_state', found None"
    ):
        merkle.Progress(state, manifest, {}, one_thread())


def test_progress_is_written_now_and_then_with_lines_for_people(weights: Path, tmp_path: Path) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    state = tmp_path / "state.json"
    now = [0.0]
    seen: list[list[str]] = []

    def step(_name: str, _what: object) -> None:
        now[0] += 3
        if state.exists():
            seen.append(json.loads(state.read_text())["progress"])

    found = checked(weights, manifest, one_thread(step=step, clock=lambda: now[0]), str(state))
    assert found.whole()
    assert seen[-1]
    assert "of 0.0 GB (" in seen[-1][-1]
    assert "min left" in seen[-1][-1]
    assert (state.stat().st_mode & 0o777) == 0o644


def test_writing_is_atomic_and_sets_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    merkle.write_atomically(str(path), "old", 0o640)
    assert path.stat().st_mode & 0o777 == 0o640

    def stop(_handle: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(merkle.os, "fsync", stop)
        with pytest.raises(Killed):
            merkle.write_atomically(str(path), "new")
    assert path.read_text() == "old"
    merkle.write_atomically(str(path), "newer")
    assert path.read_text() == "newer"
    assert [one.name for one in tmp_path.iterdir()] == ["m.json"]


def test_one_repair_at_a_time(weights: Path) -> None:
    refused = pytest.raises(merkle.MerkleError, match="another run repairs this directory")
    with merkle.alone(str(weights)), refused, merkle.alone(str(weights)):
        pass
    with merkle.alone(str(weights)):
        pass


def test_a_repair_needs_room(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    source = make(tmp_path / "source", SET)
    (weights / "a.safetensors").unlink()
    work = one_thread()
    progress = merkle.Progress("", manifest, merkle.scan(str(weights)), work)
    found = merkle.verify(str(weights), manifest, progress, work)
    genuine = os.statvfs(weights)

    class Full:
        f_frsize = genuine.f_frsize
        f_bavail = 1

    monkeypatch.setattr(merkle.os, "statvfs", lambda _path: Full)
    with pytest.raises(
        merkle.MerkleError, match=f"no room for the repair: expected {5 * PIECE + 100} bytes free, found"
    ):
        merkle.Repairer(str(weights), manifest, str(source), progress, work, True).run(found)
    assert not (weights / "a.safetensors.partial").exists()


def test_a_written_piece_that_reads_back_otherwise_is_not_repaired(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = merkle.build(str(weights), PIECE, one_thread())
    source = make(tmp_path / "source", SET)
    data = bytearray(SET["a.safetensors"])
    data[0] ^= 1
    (weights / "a.safetensors").write_bytes(data)
    work = one_thread()
    progress = merkle.Progress("", manifest, merkle.scan(str(weights)), work)
    found = merkle.verify(str(weights), manifest, progress, work)
    monkeypatch.setattr(merkle.os, "pwrite", lambda _handle, view, _offset: len(view))
    done = merkle.Repairer(str(weights), manifest, str(source), progress, work, True).run(found)
    assert done.repaired == []
    assert done.failed == {"a.safetensors": "was written, but reads back otherwise"}
