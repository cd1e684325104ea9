# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The third entrance: as AWX runs it, by ansible-runner in a private data directory."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Call

# A survey's answers: whatever the survey calls them, they arrive as text.
SURVEY = {"fleet_verify_requests": "10", "fleet_reboot_allowed": "false", "fleet_reboot_timeout": "1200"}
PLAY_LINE = re.compile(r"^\s*-?\s*(hosts|include|import_playbook):")
NOT_LISTED = {"roles", "tasks", "group_vars", "host_vars"}


def listed_by_awx(project: Path) -> set[str]:
    """The playbooks that AWX offers for a project, by its rule.

    A YAML file counts when one of its lines opens a play (or an import in the short form), unless it lies in a folder
    for roles, tasks or variables, or in a hidden one. A fully qualified import does not count.
    """
    found = set()
    for path in project.rglob("*.y*ml"):
        parts = path.relative_to(project).parts
        if (
            path.suffix not in (".yml", ".yaml")
            or NOT_LISTED & set(parts)
            or any(part.startswith(".") for part in parts)
        ):
            continue
        if any(PLAY_LINE.match(line) for line in path.read_text("utf-8", "replace").splitlines()):
            found.add("/".join(parts))
    return found


def test_awx_lists_the_playbooks(clone: Path) -> None:
    """The site is offered, and every playbook that has plays of its own."""
    found = listed_by_awx(clone)
    assert "site.yml" in found
    for path in sorted((clone / "playbooks").glob("*.yml")):
        has_plays = re.search(r"^\s+hosts:", path.read_text("utf-8"), re.MULTILINE)
        assert not has_plays or f"playbooks/{path.name}" in found


def test_awx_finds_the_requirements(clone: Path, call: Call) -> None:
    """A project sync installs what this file names, from the project's folder."""
    assert (clone / "collections" / "requirements.yml").is_file()
    words = [
        "-r",
        "collections/requirements.yml",
        "--collections-path",
        clone.parent / "requirements_collections",
        "--offline",
    ]
    call("ansible-galaxy", "collection", "install", *words, cwd=clone)


def plain(value: Any) -> Any:
    """The same values without the marks that ansible-inventory puts on some of them: AWX keeps plain data."""
    if isinstance(value, dict):
        return (
            value["__ansible_unsafe"]
            if set(value) == {"__ansible_unsafe"}
            else {key: plain(item) for key, item in value.items()}
        )
    return [plain(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def job(tmp_path: Path, clone: Path, inventory: Path, call: Call, lab_settings: dict[str, str]) -> Path:
    """A private data directory as AWX lays it: project, one generated inventory script, variables, the SSH key."""
    folder = tmp_path / "job"
    for name in ("inventory", "env"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(clone, folder / "project", symlinks=True)
    shown = call("ansible-inventory", "-i", inventory, "--list", cwd=Path("/"), env=lab_settings)
    hosts = plain(json.loads(shown.text[shown.text.index("{") :]))
    every = hosts["_meta"]["hostvars"]
    for values in every.values():
        # The key comes from AWX's credential, by an agent; the lab's own settings would not let an agent's key be used.
        assert values.pop("ansible_ssh_private_key_file")
        values["ansible_ssh_common_args"] = values["ansible_ssh_common_args"].replace("-o IdentitiesOnly=yes", "")
    answer = folder / "inventory.json"
    answer.write_text(json.dumps(hosts), encoding="utf-8")
    script = folder / "inventory" / "hosts"
    script.write_text(f"#!/bin/sh\nexec cat {answer}\n", encoding="utf-8")
    script.chmod(0o700)
    words = (
        "ansible",
        "-i",
        inventory,
        next(iter(every)),
        "-m",
        "ansible.builtin.debug",
        "-a",
        "var=ansible_ssh_private_key_file",
    )
    path = re.search(
        r"ansible_ssh_private_key_file\"?: \"?([^\s\"]+)", call(*words, cwd=Path("/"), env=lab_settings).text
    )
    assert path
    secret = folder / "env" / "ssh_key"
    secret.write_text(Path(path.group(1)).read_text("utf-8"), encoding="utf-8")
    secret.chmod(0o600)
    (folder / "env" / "envvars").write_text(
        json.dumps(
            {
                "ANSIBLE_COLLECTIONS_PATH": f"{tmp_path / 'requirements_collections'}:collections",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_RETRY_FILES_ENABLED": "False",
                "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
            }
        ),
        encoding="utf-8",
    )
    (folder / "env" / "extravars").write_text(json.dumps(SURVEY), encoding="utf-8")
    return folder


def run_job(folder: Path, monkeypatch: pytest.MonkeyPatch, stranger: dict[str, str], **more: Any) -> Any:
    """Run the job by ansible-runner's Python API."""
    import ansible_runner

    for name, value in stranger.items():
        if name != "ANSIBLE_CONFIG":
            monkeypatch.setenv(name, value)
    for name in ("ANSIBLE_CONFIG", "SSH_AUTH_SOCK"):
        monkeypatch.delenv(name, raising=False)
    job = ansible_runner.run(
        private_data_dir=str(folder), playbook="site.yml", ident="1", quiet=True, timeout=900, **more
    )
    print(job.stdout.read())
    return job


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["check", "run"])
def test_job(
    job: Path, fleet_hosts: set[str], kind: str, monkeypatch: pytest.MonkeyPatch, stranger: dict[str, str]
) -> None:
    """A job of either type succeeds; its events and its stats name every host and no failure."""
    done = run_job(job, monkeypatch, stranger, cmdline="--check --diff" if kind == "check" else None)
    assert (done.status, done.rc) == ("successful", 0)
    stats = done.stats
    assert stats["failures"] == {}
    assert stats["dark"] == {}
    assert stats["changed"] == {}, "answers that say what the defaults say change nothing"
    assert fleet_hosts <= set(stats["ok"])
    events = list(done.events)
    assert [event for event in events if event["event"] == "runner_on_unreachable"] == []
    failed = [
        event
        for event in events
        if event["event"] == "runner_on_failed" and not event["event_data"].get("ignore_errors")
    ]
    assert failed == []
    assert fleet_hosts <= {event["event_data"].get("host") for event in events if event["event"] == "runner_on_ok"}
    assert [event["event"] for event in events][-1] == "playbook_on_stats"
    plays = [event["event_data"]["play"] for event in events if event["event"] == "playbook_on_play_start"]
    assert plays[0] == "Say where this run goes"
    assert len(plays) > 5


@pytest.mark.lab
def test_job_with_a_bad_answer(job: Path, monkeypatch: pytest.MonkeyPatch, stranger: dict[str, str]) -> None:
    """An answer that makes no sense ends the job before anything is touched, and the event says which."""
    answers = {**SURVEY, "gateway_port": "four hundred"}
    (job / "env" / "extravars").write_text(json.dumps(answers), encoding="utf-8")
    done = run_job(job, monkeypatch, stranger)
    assert done.status == "failed"
    failed = [event for event in done.events if event["event"] == "runner_on_failed"]
    assert any("gateway_port" in json.dumps(event["event_data"].get("res", {})) for event in failed)
    assert done.stats["changed"] == {}
