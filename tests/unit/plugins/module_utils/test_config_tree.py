# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The parts of module config_tree that need no module."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _config_tree as tree


@pytest.mark.parametrize(
    "names",
    [
        ["/etc/passwd"],
        ["../x"],
        ["a/../../x"],
        [""],
        ["a//b"],
        ["a/"],
        ["."],
        [tree.MANIFEST],
        [".config_tree.x/y"],
        ["a", "a/b"],
    ],
)
def test_names_outside_or_odd_are_refused(names: list[str]) -> None:
    with pytest.raises(tree.TreeError):
        tree.check_names(names)


def test_directories_parents_first() -> None:
    assert tree.directories(["x", "a/b/c", "a/d"]) == ["a", "a/b"]


def test_compare_writes_what_differs_and_removes_what_was_ours(tmp_path: Path) -> None:
    (tmp_path / "same").write_text("1")
    (tmp_path / "other").write_text("1")
    (tmp_path / "old").write_text("1")
    (tmp_path / "foreign").write_text("1")
    tree.write_manifest(tmp_path, ["same", "old", "gone-by-itself"])
    plan = tree.compare(tmp_path, {"same": "1", "other": "2", "new": "3"})
    assert plan.write == ["new", "other"]
    assert plan.remove == ["old"]
    assert plan.before == {"same": "1", "other": "1", "old": "1"}
    assert plan


def test_compare_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert not tree.compare(tmp_path / "missing", {})


def test_a_link_is_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("1")
    (tmp_path / "name").symlink_to(tmp_path / "target")
    assert tree.compare(tmp_path, {"name": "1"}).write == ["name"]


def test_a_directory_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(tree.TreeError, match="is a directory"):
        tree.compare(tmp_path, {"name": "1"})


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "no json", '["../../etc/passwd", "/etc/passwd"]'])
def test_a_damaged_manifest_removes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / tree.MANIFEST).write_text(text)
    assert tree.read_manifest(tmp_path) == []


def test_stage_is_the_tree_as_it_will_be(tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "target"
    (root / "rules.d").mkdir(parents=True)
    (root / ".config_tree.left").mkdir()
    (root / ".config_tree.left" / "junk").write_text("x")
    for name in ("rules.d/foreign", "rules.d/old", "main"):
        (root / name).write_text("before")
    target.mkdir()
    tree.stage(root, target, {"main": "after", "deep/er/new": "after"}, ["rules.d/old"])
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()) == [
        "deep/er/new",
        "main",
        "rules.d/foreign",
    ]
    assert (target / "main").read_text() == "after"
    assert (target / "main").stat().st_mode & 0o777 == 0o600
    assert (target / "rules.d/foreign").is_symlink()


def test_clean_stages_leaves_the_manifest(tmp_path: Path) -> None:
    tree.write_manifest(tmp_path, ["a"])
    (tmp_path / ".config_tree.abc" / "deep").mkdir(parents=True)
    (tmp_path / ".config_tree.manifest").write_text("half")
    (tmp_path / "file").write_text("x")
    tree.clean_stages(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [tree.MANIFEST, "file"]
