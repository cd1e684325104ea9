# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: every state of module model_release on real directories."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.modules import model_release

BOUND: dict[str, Any] = {"weights_root": "ab" * 32, "engine": "sglang", "engine_version": "0.5.6", "plan_id": "plan-1"}
FILES = {"a": {"size": 3, "hash": "11" * 32}, "d/b": {"size": 2, "hash": "22" * 32}}


class Play:
    """Runs the module on the same releases again and again."""

    def __init__(self, top: Path, capsys: pytest.CaptureFixture[str], said: list[str]) -> None:
        """Nothing is there yet."""
        self.top = top
        self.root = top / "models"
        self.capsys = capsys
        self.said = said

    def run(self, state: str, *, check: bool = False, **options: Any) -> dict[str, Any]:
        """One run of the module and what it says."""
        self.said.clear()
        wish = {"root": str(self.root), "state": state, "margin_bytes": 0, **options}
        with (
            patch_module_args({**wish, "_ansible_check_mode": check, "_ansible_diff": True}),
            pytest.raises(SystemExit),
        ):
            model_release.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def four(self, state: str, **options: Any) -> dict[str, Any]:
        """Check, run, check, run."""
        before = self.seen()
        predicted = self.run(state, check=True, **options)
        assert predicted["changed"], predicted
        assert self.seen() == before
        done = self.run(state, **options)
        assert done["changed"], done
        assert done["diff"] == predicted["diff"]
        assert done["diff"]["before"] != done["diff"]["after"]
        told = (
            "current",
            "previous",
            "foreign",
            "recovered",
            "removed",
            "freed_bytes",
            "from",
            "to",
            "linked",
            "missing",
        )
        for name in told:
            assert done.get(name) == predicted.get(name)
        assert [one["id"] for one in done["releases"]] == [one["id"] for one in predicted["releases"]]
        settled = self.seen()
        for check in (True, False):
            again = self.run(state, check=check, **options)
            assert not again["changed"], again
            assert again["diff"]["before"] == again["diff"]["after"] == done["diff"]["after"]
            assert self.seen() == settled
        return done

    def seen(self) -> list[tuple[str, int, int]]:
        """Everything that is there, and when it was changed."""
        return [
            (str(path.relative_to(self.top)), path.lstat().st_ino, path.lstat().st_mtime_ns)
            for path in sorted(self.top.rglob("*"))
        ]

    def fill(self, folder: Path) -> None:
        """The files that FILES names."""
        (folder / "d").mkdir(parents=True, exist_ok=True)
        (folder / "a").write_text("aaa")
        (folder / "d/b").write_text("bb")

    def release(self, name: str, verdict: str = "good") -> None:
        """A release that was active."""
        source = self.top / "source"
        self.fill(source)
        steps: list[tuple[str, dict[str, Any]]] = [
            ("staged", {**BOUND, "source": str(source), "configuration": {"name": name}}),
            ("activated", {}),
            *([(verdict, {"reason": "seen"})] if verdict else []),
        ]
        for state, options in steps:
            done = self.run(state, id=name, **options)
            assert done["changed"], done


@pytest.fixture
def play(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Play:
    """A play on an empty host."""
    # Where warnings end up depends on what else of Ansible is loaded.
    said: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text: said.append(text))
    monkeypatch.setattr(os, "fsync", lambda _handle: None)
    return Play(tmp_path, capsys, said)


def _register(play: Play) -> dict[str, Any]:
    return {"state": "staged", "finish": False, "id": "r1", "files": FILES, **BOUND}


def _finish(play: Play) -> dict[str, Any]:
    play.run(**_register(play))
    play.fill(play.root / "releases/r1.partial")
    return {"state": "staged", "id": "r1", "files": FILES, **BOUND}


def _take_over(play: Play) -> dict[str, Any]:
    play.fill(play.top / "source")
    return {
        "state": "staged",
        "id": "r1",
        "source": str(play.top / "source"),
        "image_digest": "sha256:" + "0" * 64,
        **BOUND,
    }


def _link(play: Play) -> dict[str, Any]:
    play.run(**_finish(play))
    return {"state": "staged", "id": "r2", "files": FILES, "link_from": "identical", **BOUND}


def _activate(play: Play) -> dict[str, Any]:
    play.release("r1")
    play.run(**{**_take_over(play), "id": "r2"})
    return {"state": "activated", "id": "r2", "reason": "new weights"}


def _good(play: Play) -> dict[str, Any]:
    play.release("r1", "")
    return {"state": "good", "id": "r1"}


def _bad(play: Play) -> dict[str, Any]:
    play.release("r1")
    return {"state": "bad", "id": "r1", "reason": "too slow"}


def _roll_back(play: Play) -> dict[str, Any]:
    play.release("r1")
    play.release("r2")
    return {"state": "rolled_back"}


def _roll_back_from(play: Play) -> dict[str, Any]:
    return {**_roll_back(play), "id": "r2"}


def _prune(play: Play) -> dict[str, Any]:
    for name in ("r1", "r2", "r3", "r4", "r5"):
        play.release(name, "bad" if name == "r2" else "good")
    play.run("staged", finish=False, id="r6", **BOUND)
    (play.root / "releases/notes").write_text("mine")
    return {"state": "pruned", "partial_hours": 0}


@pytest.mark.parametrize(
    ("scene", "lines"),
    [
        (_register, ["+partial r1: registered, 0 bytes"]),
        (_finish, ["-partial r1: registered, 5 bytes", "+release r1: staged, 5 bytes"]),
        (_take_over, ["+release r1: staged, 5 bytes"]),
        (_link, ["+release r2: staged, 5 bytes"]),
        (
            _activate,
            [
                "-current: r1",
                "-previous: none",
                "-release r2: staged, 5 bytes",
                "+current: r2",
                "+previous: r1",
                "+release r2: active, 5 bytes",
            ],
        ),
        (_good, ["-release r1: active, 5 bytes", "+release r1: good, 5 bytes"]),
        (_bad, ["-release r1: good, 5 bytes", "+release r1: bad (too slow), 5 bytes"]),
        (_roll_back, ["-current: r2", "-previous: r1", "+current: r1", "+previous: r2"]),
        (_roll_back_from, ["-current: r2", "-previous: r1", "+current: r1", "+previous: r2"]),
        (
            _prune,
            ["-release r1: good, 5 bytes", "-release r2: bad (seen), 5 bytes", "-partial r6: registered, 0 bytes"],
        ),
    ],
)
def test_check_run_check_run(play: Play, scene: Callable[[Play], dict[str, Any]], lines: list[str]) -> None:
    done = play.four(**scene(play))
    before, after = (done["diff"][side].splitlines() for side in ("before", "after"))
    changes = [f"-{line}" for line in before if line not in after]
    assert changes + [f"+{line}" for line in after if line not in before] == lines
    assert done["diff"]["before_header"] == str(play.root)


def test_what_every_state_tells(play: Play) -> None:
    play.release("r1")
    done = play.run("pruned")
    assert not done["changed"]
    [one] = done["releases"]
    assert one == {
        **BOUND,
        "id": "r1",
        "path": str(play.root / "releases/r1"),
        "status": "good",
        "active": True,
        "reason": "seen",
        "activated_at": one["activated_at"],
        "staged_at": one["staged_at"],
        "bytes": 5,
        "image_digest": "",
        "configuration": {"name": "r1"},
    }
    assert (
        abs(time.time() - time.mktime(time.strptime(one["activated_at"], "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 600
    )
    assert (done["current"], done["previous"], done["staging"], done["foreign"]) == ("r1", "", [], [])
    assert (done["removed"], done["freed_bytes"]) == ([], 0)


def test_check_mode_of_a_whole_upgrade_on_a_new_host(play: Play) -> None:
    wish = {"id": "r1", "files": FILES, **BOUND}
    done = play.run("staged", check=True, finish=False, **wish)
    assert done["missing"] == ["a", "d/b"]
    done = play.run("staged", check=True, **wish)
    assert done["changed"]
    assert done["releases"][0]["bytes"] == 5
    done = play.run("staged", check=True, source=str(play.top / "to-be-made"), **wish)
    assert done["changed"]
    done = play.run("activated", check=True, id="r1")
    assert (done["changed"], done["current"]) == (True, "r1")
    assert play.said == [f"{play.root}/releases/r1: not there yet; taken as staged in check mode"]
    assert not play.run("pruned", check=True)["changed"]
    assert list(play.top.iterdir()) == []


def test_check_mode_of_an_upgrade_that_was_interrupted(play: Play) -> None:
    wish = {"id": "r1", "files": FILES, **BOUND}
    play.run("staged", finish=False, **wish)
    (play.root / "releases/r1.partial/a").write_text("aaa")
    done = play.run("staged", check=True, **wish)
    assert (done["changed"], done["releases"][0]["bytes"]) == (True, 5)
    assert play.said == [
        f"{play.root}/releases/r1.partial: expected the complete release r1, found d/b is missing; taken as complete in check mode"
    ]
    assert play.run("staged", **wish)["failed"]
    # A source is there or not, nothing fills it later.
    (play.top / "source").mkdir()
    assert play.run("staged", check=True, id="r2", source=str(play.top / "source"), **BOUND)["failed"]


def test_pruning_tells_what_and_how_much(play: Play) -> None:
    wish = _prune(play)
    done = play.run(**wish)
    assert [(one["kind"], one["id"], one["bytes"]) for one in done["removed"]] == [
        ("partial", "r6", 0),
        ("release", "r1", 5),
        ("release", "r2", 5),
    ]
    assert done["removed"][1]["path"] == str(play.root / "releases/r1")
    assert done["freed_bytes"] == sum(one["freed_bytes"] for one in done["removed"]) > 10
    assert done["foreign"] == ["notes: a file"]


def test_a_rollback_says_from_and_to(play: Play) -> None:
    done = play.run(**_roll_back(play))
    assert (done["from"], done["to"], done["current"], done["previous"]) == ("r2", "r1", "r1", "r2")


def test_who_and_why_are_kept(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "carol")
    play.run(**_activate(play))
    play.run("activated", id="r1", by="upgrade.yml", reason="two\nlines")
    journal = json.loads((play.root / "state.json").read_text())
    assert [(one["by"], one["reason"]) for one in journal["history"][-2:]] == [
        ("carol", "new weights"),
        ("upgrade.yml", "two lines"),
    ]
    monkeypatch.delenv("SUDO_USER")
    assert model_release._account()


def test_a_damaged_journal_is_a_warning(play: Play) -> None:
    play.release("r1")
    (play.root / "state.json").write_text("{")
    done = play.run("activated", id="r1")
    assert (done["changed"], done["recovered"][0]) == (True, "rebuilt state.json")
    assert "Lost are the marks good and bad" in play.said[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"state": "staged"}, "state is staged but all of the following are missing: id, weights_root, engine"),
        ({"state": "activated"}, "state is activated but all of the following are missing: id"),
        ({"state": "good"}, "state is good but all of the following are missing: id"),
        ({"state": "bad", "id": "r1"}, "state is bad but all of the following are missing: reason"),
        ({"state": "gone"}, "value of state must be one of: staged, activated, good, bad, rolled_back, pruned"),
        ({"state": "activated", "id": "../x"}, "id: expected up to 128 letters"),
        ({"state": "staged", "id": "r1", **BOUND, "plan_id": ""}, "plan_id: expected up to 256 characters on one line"),
        ({"state": "staged", "id": "r1", **BOUND, "source": "/nowhere"}, "source: expected a directory, found nothing"),
        ({"state": "staged", "id": "r1", **BOUND}, "expected the complete release r1, found no file"),
        ({"state": "good", "id": "r0", "soak_seconds": 3600}, "soak_seconds: expected r0 to be active for 3600 s"),
        ({"state": "rolled_back"}, "found none. There are r0 (active, current)"),
        ({"state": "pruned", "keep": 0}, "keep: expected a whole number of at least 1, found 0"),
    ],
)
def test_a_wrong_wish_is_named_and_changes_nothing(play: Play, options: dict[str, Any], words: str) -> None:
    play.release("r0", "")
    before = play.seen()
    failed = play.run(**options)
    assert failed["failed"]
    assert words in failed["msg"]
    assert play.seen() == before


def test_an_error_of_the_system_is_told(play: Play) -> None:
    play.release("r1")
    (play.root / "releases/.model_release.new").mkdir()
    failed = play.run("bad", id="r1", reason="slow")
    assert failed["failed"]
    assert ".model_release.new" in failed["msg"]
