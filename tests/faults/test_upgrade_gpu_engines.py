# SPDX-License-Identifier: Apache-2.0
"""From the CPU engine to one for GPUs, to another release of that, and back, while people use it.

The GPUs are simulated, and the engine is its stand-in (``tests/mock/engine_standin.py``): command line, files, endpoints and metrics of SGLang, no model.
Everything else is real: the plan, the weights and their root, package index and hashes, units, drains, the gateway and the clients.
"""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import ROOT, Fleet, Run
from test_upgrade import ROLLBACK, UPGRADE, journal, lock, nothing_lost, serving, starts, status, under_load

pytestmark = pytest.mark.long

# As on the hosts of molecule's scenario engines.
PREPARE = """
- hosts: gpu_hosts
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        src: "{{ standins }}/simple"
        dest: /srv/engine-standins/
        mode: "0644"
        directory_mode: "0755"
    - ansible.builtin.file:
        path: /srv/standin-weights
        state: directory
        mode: "0755"
    - ansible.builtin.copy:
        content: "{{ item.content }}"
        dest: "{{ item.path }}"
        mode: "0644"
      loop:
        - {path: /srv/standin-weights/config.json, content: '{"architectures": ["simulated"]}'}
        - {path: /srv/standin-weights/model-00001-of-00001.safetensors, content: "{{ 'simulated ' * 400 }}"}
        - {path: /srv/engine-standin.json, content: "{}"}
        - {path: /srv/engine-standin-stupid.json, content: '{"stupid": true}'}
      loop_control:
        label: "{{ item.path }}"
    - gpufleet.deepseek.merkle_manifest:
        path: /srv/standin-weights
        manifest: /srv/standin-weights.merkle.json
        state: built
      register: built
    - ansible.builtin.copy:
        content: "{{ built.root }}"
        dest: "{{ standins }}/root"
        mode: "0644"
      delegate_to: localhost
      run_once: true
"""
CLEAN = """
- hosts: gpu_hosts
  gather_facts: false
  tasks:
    - ansible.builtin.file:
        path: "{{ item }}"
        state: absent
      loop: [/srv/engine-standins, /srv/standin-weights, /srv/standin-weights.merkle.json, /srv/engine-standin.json, /srv/engine-standin-stupid.json]
"""
# The name that clients ask for stays: to them it is the same service.
ENGINE: dict[str, t.Any] = {
    "lab_simulated_gpu_profile": "a100_sxm4_80gb_8",
    "fleet_model": "deepseek-r1",
    "fleet_engine": "sglang",
    "fleet_precision": "awq",
    "fleet_pypi_index": "file:///srv/engine-standins/simple/",
    "model_store_distribution": "direct",
    "model_store_margin_gib": 0,
    "deepseek_service_model_name": "smollm2-135m-instruct",
    "deepseek_service_environment": {"ENGINE_STANDIN_CONTROL": "/srv/engine-standin.json"},
    "fleet_soak_seconds": 1,
}


def ok(run: Run) -> Run:
    """A run that went well."""
    assert run.rc == 0, run.output
    return run


@pytest.fixture(scope="module")
def wanted(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, t.Any]]:
    """Hosts with simulated GPUs and a package index of stand-ins; afterwards the lab's own engine serves, and nothing of them is left."""
    folder = tmp_path_factory.mktemp("standins")
    versions = ["--python=3.11", "--python=3.13"]
    subprocess.run([sys.executable, ROOT / "tests/mock/standin_wheels.py", folder, *versions], check=True, timeout=300)
    for name, text in (("prepare", PREPARE), ("clean", CLEAN)):
        (folder / f"{name}.yml").write_text(text, encoding="utf-8")
    simulated = "playbooks/lab_simulated_gpu.yml"
    try:
        ok(fleet.play(simulated, "-e", "lab_simulated_gpu_profile=a100_sxm4_80gb_8"))
        ok(fleet.play(str(folder / "prepare.yml"), "-e", f"standins={folder}"))
        root = (folder / "root").read_text(encoding="ascii").strip()
        yield {
            **ENGINE,
            "fleet_weights": {"name": "standin", "root": root, "source": "path", "path": "/srv/standin-weights"},
            "deepseek_service_requirements_src": str(folder / "sglang.txt"),
            "fleet_report_dir": str(folder),
        }
    finally:
        runs = [
            fleet.play(simulated, "-e", '{"lab_simulated_gpu_profile": ""}'),
            # What the stand-in needs no time for is no measure for an engine that thinks. Releases that a test marked bad are the lab's own no longer.
            fleet.play(
                UPGRADE, "-e", '{"fleet_canary_requests": 0, "fleet_soak_seconds": 0, "deepseek_service_force": true}'
            ),
            fleet.play("playbooks/gateway.yml"),
            fleet.play(str(folder / "clean.yml")),
        ]
    for run in runs:
        ok(run)


def upgrade(fleet: Fleet, wanted: dict[str, t.Any], **more: t.Any) -> Run:
    """To a release of the stand-in, under load, of which nothing may be lost."""
    run, answers, streams = under_load(fleet, UPGRADE, "-e", json.dumps({**wanted, **more}))
    nothing_lost(fleet, answers, streams)
    assert len(answers) > 20, "too few requests to say anything"
    return run


def test_there_and_back(fleet: Fleet, wanted: dict[str, t.Any]) -> None:
    """From llama.cpp to SGLang, to SGLang with another setting, and one step back; the second run of each changes nothing."""
    hosts = fleet.groups["gpu_hosts"]
    ok(upgrade(fleet, wanted))
    first = {host: str(journal(fleet, host)["current"]) for host in hosts}
    assert all("-sglang-" in release for release in first.values()), first
    assert {host: serving(fleet, host) for host in hosts} == first
    assert {status(fleet, host, first[host]) for host in hosts} == {"good"}
    body = fleet.ask(max_tokens=4)[1]
    assert "simulated" in body, body

    other = {"deepseek_service_engine_options": {"max-running-requests": 7}}
    ok(upgrade(fleet, wanted, **other))
    second = {host: str(journal(fleet, host)["current"]) for host in hosts}
    assert all(second[host] not in (first[host], "") for host in hosts)
    assert {host: serving(fleet, host) for host in hosts} == second
    told = fleet.ssh("gpu1", "cat /srv/models/current/config/engine.yml").stdout
    assert "max-running-requests: 7" in told

    started = {host: starts(fleet, host) for host in hosts}
    assert ok(fleet.play(UPGRADE, "-e", json.dumps({**wanted, **other}))).changed() == 0
    assert {host: starts(fleet, host) for host in hosts} == started

    run, answers, streams = under_load(
        fleet, ROLLBACK, "-e", json.dumps({**wanted, "rollback_reason": "the test wants it"})
    )
    ok(run)
    nothing_lost(fleet, answers, streams)
    assert {host: serving(fleet, host) for host in hosts} == first
    assert {status(fleet, host, second[host]) for host in hosts} == {"bad"}
    assert "max-running-requests: 7" not in fleet.ssh("gpu1", "cat /srv/models/current/config/engine.yml").stdout
    assert lock(fleet) == {}


def test_an_engine_that_answers_nonsense_is_put_back(fleet: Fleet, wanted: dict[str, t.Any]) -> None:
    """It is healthy and writes tokens, but what it says is wrong: the first host shows it, and the second is not touched."""
    before = {host: serving(fleet, host) for host in fleet.groups["gpu_hosts"]}
    untouched = starts(fleet, "gpu2")
    stupid = {"deepseek_service_environment": {"ENGINE_STANDIN_CONTROL": "/srv/engine-standin-stupid.json"}}
    run = upgrade(fleet, wanted, **stupid)
    said = " ".join(run.output.split())
    assert run.rc != 0, run.output
    assert f"gpu1 serves {before['gpu1']} again" in said, run.output
    assert {host: serving(fleet, host) for host in before} == before
    assert starts(fleet, "gpu2") == untouched
    assert lock(fleet) == {}


def test_an_option_that_the_engine_does_not_know_is_refused_before_anything_is_touched(
    fleet: Fleet, wanted: dict[str, t.Any], tmp_path: Path
) -> None:
    """A wrong key ends the run on every host, with the key in one sentence; nothing is fetched, staged, drained or started."""
    started = {host: starts(fleet, host) for host in fleet.groups["gpu_hosts"]}
    bad = {**wanted, "fleet_report_dir": str(tmp_path), "deepseek_service_engine_options": {"max-num-sequences": 8}}
    run = fleet.play(UPGRADE, "-e", json.dumps(bad))
    assert run.rc != 0
    assert "max-num-sequences" in run.output
    assert run.changed() == 0, run.output
    assert {host: starts(fleet, host) for host in started} == started
