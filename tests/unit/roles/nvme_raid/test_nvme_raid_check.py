# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The check that watches the arrays, on a tree of files and as a program."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[4] / "roles/nvme_raid/files/usr/local/lib/gpufleet/nvme_raid_check.py"
UUID = "3aaa0122-2982-7cfa-5331-ad66ca767371"
RECORD = {
    "name": "models",
    "stage": "built",
    "array_uuid": UUID,
    "mount": "/srv/models",
    "members": [{"by_id": "nvme-A"}, {"by_id": "nvme-B"}],
}


@pytest.fixture
def check() -> Any:
    spec = importlib.util.spec_from_file_location("nvme_raid_check", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with a whole array."""
    by_id = tmp_path / "dev/disk/by-id"
    by_id.mkdir(parents=True)
    (tmp_path / "dev/md127").write_text("")
    os.symlink("../../md127", by_id / "md-uuid-3aaa0122:29827cfa:5331ad66:ca767371")
    for name in ("nvme-A", "nvme-B"):
        (by_id / name).write_text("")
    state = tmp_path / "sys/block/md127/md/array_state"
    state.parent.mkdir(parents=True)
    state.write_text("clean\n")
    mounts(tmp_path, "rw")
    (tmp_path / "srv/models").mkdir(parents=True)
    return tmp_path


def mounts(root: Path, options: str, source: str = "/dev/md127") -> None:
    path = root / "proc/self/mountinfo"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"1 0 254:16 / / rw - ext4 /dev/vdb rw\n2 1 9:127 / /srv/models {options} shared:1 - xfs {source} rw\n"
    )


def test_a_whole_array(check: Any, root: Path) -> None:
    values, wrong = check.look(RECORD, str(root))
    assert wrong == []
    assert values == {"up": 1, "members_expected": 2, "members_present": 2, "mounted": 1, "read_only": 0}


def test_a_drive_is_gone(check: Any, root: Path) -> None:
    (root / "dev/disk/by-id/nvme-B").unlink()
    (root / "sys/block/md127/md/array_state").write_text("broken\n")
    values, wrong = check.look(RECORD, str(root))
    assert wrong == ["nvme-B is not on this host", "md says broken, expected clean"]
    assert (values["up"], values["members_present"]) == (0, 1)


def test_not_assembled_and_not_mounted(check: Any, root: Path) -> None:
    (root / "dev/disk/by-id/md-uuid-3aaa0122:29827cfa:5331ad66:ca767371").unlink()
    (root / "proc/self/mountinfo").write_text("")
    values, wrong = check.look(RECORD, str(root))
    assert wrong == ["md says nothing, expected clean", "nothing is mounted on /srv/models"]
    assert values["mounted"] == 0


@pytest.mark.parametrize(
    ("options", "source", "words"),
    [("ro", "/dev/md127", "/srv/models is read-only"), ("rw", "/dev/vdb", "/dev/vdb is mounted on /srv/models")],
)
def test_mounted_wrongly(check: Any, root: Path, options: str, source: str, words: str) -> None:
    mounts(root, options, source)
    values, wrong = check.look(RECORD, str(root))
    assert wrong == [words]
    assert values["up"] == 0


def test_metrics(check: Any, root: Path) -> None:
    values, _wrong = check.look(RECORD, str(root))
    lines = check.text_of({"models": values}, 1000.4).splitlines()
    assert 'gpufleet_nvme_raid_up{array="models"} 1' in lines
    assert "gpufleet_nvme_raid_check_timestamp_seconds 1000" in lines
    assert sum(line.startswith("# TYPE") for line in lines) == 6


def test_as_a_program(tmp_path: Path) -> None:
    records, metrics = tmp_path / "records", tmp_path / "metrics"
    records.mkdir()
    metrics.mkdir()
    argv = [
        sys.executable,
        str(FILE),
        f"--records={records}",
        f"--seen={tmp_path}/run/seen",
        "--mail=nobody@example.org",
    ]
    argv += [f"--textfile-dir={metrics}", f"--textfile-dir={tmp_path}/none"]
    assert subprocess.run(argv, check=False).returncode == 0
    (records / "begun.json").write_text(json.dumps({**RECORD, "stage": "format"}))
    assert subprocess.run(argv, check=False).returncode == 0
    (records / "models.json").write_text(json.dumps({**RECORD, "mount": "/nowhere"}))
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "array models is broken: nvme-A is not on this host" in done.stderr
    assert 'gpufleet_nvme_raid_up{array="models"} 0' in (metrics / "gpufleet_nvme_raid.prom").read_text()
    assert [path.name for path in metrics.iterdir()] == ["gpufleet_nvme_raid.prom"]
