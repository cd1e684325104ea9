# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import pathlib
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _python_venv as python_venv

REQUIREMENTS = """\
# the engine
one==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
two==2.0 --hash=sha256:cc
"""


class FakeTools:
    """Stands for python -m venv and pip."""

    def __init__(self, failing: Any = "", said: Any = "") -> None:
        self.failing = failing
        self.said = said
        self.calls: list[Any] = []

    def __call__(self, argv: Any, environ: Any) -> Any:
        self.calls.append(argv)
        if argv[1:3] == ["-m", "venv"]:
            folder = pathlib.Path(argv[3], "bin")
            folder.mkdir(parents=True)
            (folder / "python").symlink_to(sys.executable)
            (folder / "tool").write_text(f"#!{folder}/python\n", encoding="utf-8")
            return (1, "", self.said) if self.failing == "venv" else (0, "", "")
        assert os.path.isdir(environ["TMPDIR"])
        return (1, "", self.said) if self.failing == "pip" else (0, "", "")


def make(tmp_path: Path, requirements: Any = REQUIREMENTS) -> Any:
    return python_venv.Wanted(str(tmp_path / "engines" / "1.0"), sys.executable, requirements)


def test_build_and_recognise(tmp_path: Path) -> None:
    wanted, tools = make(tmp_path), FakeTools()
    assert not python_venv.is_current(wanted)
    python_venv.build(wanted, tools)
    assert python_venv.is_current(wanted)
    assert os.listdir(tmp_path / "engines") == ["1.0"]
    assert (tmp_path / "engines" / "1.0" / "bin" / "tool").read_text() == f"#!{wanted.path}/bin/python\n"
    assert not (tmp_path / "engines" / "1.0" / "tmp").exists()
    assert "--require-hashes" in tools.calls[1]
    assert python_venv.read_marker(wanted.path)["pins"] == ["one==1.0", "two==2.0"]


def test_other_requirements_or_another_interpreter_need_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make(tmp_path)
    python_venv.build(wanted, FakeTools())
    assert not python_venv.is_current(make(tmp_path, REQUIREMENTS + "three==3.0 --hash=sha256:dd\n"))
    monkeypatch.setattr(python_venv, "interpreter", lambda python: "/usr/bin/python3.99")
    assert not python_venv.is_current(wanted)


@pytest.mark.parametrize(
    ("failing", "said", "message"),
    [
        ("venv", "no ensurepip", "cannot create .* no ensurepip"),
        ("pip", "THESE PACKAGES DO NOT MATCH THE HASHES", r"cannot install one==1.0, two==2.1: .* DO NOT MATCH"),
        ("pip", "[Errno 28] No space left on device", "ran full; nothing was changed"),
    ],
)
def test_a_failed_build_leaves_the_old_one(tmp_path: Path, failing: Any, said: Any, message: Any) -> None:
    wanted = make(tmp_path)
    python_venv.build(wanted, FakeTools())
    newer = make(tmp_path, REQUIREMENTS.replace("two==2.0", "two==2.1"))
    with pytest.raises(python_venv.VenvError, match=message):
        python_venv.build(newer, FakeTools(failing, said))
    assert python_venv.is_current(wanted)
    assert os.listdir(tmp_path / "engines") == ["1.0"]


def test_leftovers_of_a_killed_build_do_not_disturb(tmp_path: Path) -> None:
    wanted = make(tmp_path)
    for name in (".1.0.building", ".1.0.replaced"):
        (tmp_path / "engines" / name / "bin").mkdir(parents=True)
    python_venv.build(wanted, FakeTools())
    assert os.listdir(tmp_path / "engines") == ["1.0"]


def test_an_index_is_passed_on(tmp_path: Path) -> None:
    tools = FakeTools()
    wanted = python_venv.Wanted(str(tmp_path / "v"), sys.executable, REQUIREMENTS, "https://pypi.example/simple")
    python_venv.build(wanted, tools)
    assert "--index-url=https://pypi.example/simple" in tools.calls[1]


def test_an_incomplete_environment_has_no_marker(tmp_path: Path) -> None:
    folder = tmp_path / "engines" / "1.0"
    folder.mkdir(parents=True)
    assert python_venv.read_marker(str(folder)) == {}
    (folder / python_venv.MARKER).write_text("[]", encoding="utf-8")
    assert python_venv.read_marker(str(folder)) == {}


def test_a_missing_interpreter() -> None:
    with pytest.raises(python_venv.VenvError, match="is not on this host"):
        python_venv.interpreter("/usr/bin/python0")
