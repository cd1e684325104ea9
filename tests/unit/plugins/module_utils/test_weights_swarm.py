# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The torrent of a set, read back by a parser of its own. That the library takes it is shown by molecule/model_store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_fetch as fetching
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_swarm as swarming

MIB = 1 << 20


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """Read one value; keys must be sorted."""
    head = data[at : at + 1]
    if head == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if head == b"d":
        found: dict[bytes, Any] = {}
        at += 1
        while data[at : at + 1] != b"e":
            key, at = decode(data, at)
            assert not found or key > max(found)
            found[key], at = decode(data, at)
        return found, at + 1
    colon = data.index(b":", at)
    size = int(data[at:colon])
    return data[colon + 1 : colon + 1 + size], colon + 1 + size


def test_the_torrent_is_the_manifest_in_other_words(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "big").write_bytes(b"x" * (3 * MIB + 1))
    (tmp_path / "small").write_bytes(b"y")
    (tmp_path / "empty").write_bytes(b"")
    manifest = merkle.build(str(tmp_path), MIB, merkle.Work(threads=1))
    by_path = {entry.path: entry for entry in manifest.files}
    content, end = decode(swarming.torrent(manifest))
    assert end == len(swarming.torrent(manifest))
    info = content[b"info"]
    assert (info[b"meta version"], info[b"private"], info[b"piece length"]) == (2, 1, MIB)
    assert info[b"name"].decode() == manifest.root()
    big = by_path["sub/big"]
    assert info[b"file tree"] == {
        b"empty": {b"": {b"length": 0}},
        b"small": {b"": {b"length": 1, b"pieces root": by_path["small"].root}},
        b"sub": {b"big": {b"": {b"length": 3 * MIB + 1, b"pieces root": big.root}}},
    }
    assert content[b"piece layers"] == {big.root: big.layer}
    assert len(big.layer) == 4 * 32


def test_a_rate_is_shared_and_not_saved_up() -> None:
    now = [100.0]
    bucket = fetching.Bucket(1000, clock=lambda: now[0])
    assert bucket.take(500) == pytest.approx(0.5)
    assert bucket.take(500) == pytest.approx(1.0)
    now[0] += 60
    assert bucket.take(1000) == pytest.approx(0.95)
    assert fetching.Bucket(0).take(10**9) == 0


def test_an_address_of_six_is_bracketed() -> None:
    assert swarming.seed_url("::1", 7412, "a b") == "http://[::1]:7412/weights/a%20b"
