# SPDX-License-Identifier: Apache-2.0
"""Hosts that are prepared while they serve: one reboot for all causes, drained, and whatever is lost on the way is finished by the next run."""

from __future__ import annotations

import json
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet, Load, Run

PLAYBOOK = "playbooks/hosts.yml"
MARKS = "/run/gpufleet/reboot-required.d"
MODEL = "smollm2-135m-instruct"
HOLDS = "/etc/gpufleet/gateway/holds"
REBOOT = "TASK [gpufleet.deepseek.fleet : reboot | Reboot the node]"


@pytest.fixture
def hosts(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet without causes of a reboot; whatever a test leaves is gone afterwards."""
    yield fleet
    for host in fleet.groups["gpu_hosts"]:
        fleet.ssh(host, f"rm -rf {MARKS}")
    fleet.ssh("gw1", f"rm -rf {HOLDS}")
    if {state(fleet, host) for host in fleet.groups["gpu_hosts"]} != {"up"}:
        run = fleet.play("playbooks/gateway.yml")
        assert run.rc == 0, run.output


def want_reboot(fleet: Fleet, host: str, *causes: str) -> None:
    """Leave the marks that roles leave."""
    for cause in causes:
        fleet.ssh(host, f"mkdir -p {MARKS} && echo 'the test wants {cause}' > {MARKS}/{cause}.reason")


def boot(fleet: Fleet, host: str) -> str:
    """Which boot a host is in."""
    return fleet.ssh(host, "cat /proc/sys/kernel/random/boot_id").stdout.strip()


def causes(fleet: Fleet, host: str) -> list[str]:
    """The marks on a host."""
    return sorted(fleet.ssh(host, f"ls {MARKS} 2>/dev/null", check=False).stdout.split())


def holds(fleet: Fleet) -> dict[str, list[str]]:
    """Who holds which peer, on the first gateway."""
    text = fleet.ssh("gw1", f"cat {HOLDS}/*.json 2>/dev/null", check=False).stdout
    decoder, found = json.JSONDecoder(), {}
    while text.strip():
        one, end = decoder.raw_decode(text.lstrip())
        text = text.lstrip()[end:]
        found[one["peer"]] = [hold["owner"] for hold in one["holds"]]
    return found


def state(fleet: Fleet, peer: str) -> str:
    """What the gateway's configuration says about a peer; "held" when a hold is the reason why it drains."""
    pools = json.loads(fleet.ssh("gw1", "cat /etc/gpufleet/gateway/peers.json").stdout)["pools"]
    found = {one["state"] for pool in pools for one in pool["peers"] if one["name"] == peer}
    assert len(found) == 1, found
    return "held" if found == {"drain"} and peer in holds(fleet) else found.pop()


def reboots(run: Run) -> int:
    """How often a run rebooted a host."""
    return sum(part.partition("\nTASK")[0].count("changed: [") for part in run.output.split(REBOOT)[1:])


def peers_that_answer(fleet: Fleet, requests: int = 8) -> set[str]:
    """Who answers a few requests; all must be answered."""
    answers = [fleet.ask() for _unused in range(requests)]
    assert [status for status, _body, _peer in answers] == [200] * requests, answers
    return {peer for _status, _body, peer in answers}


def hosts_yml(fleet: Fleet, *args: str) -> Run:
    """Run the playbook on gpu2. With the tag reboot it does what is left of a reboot and nothing else."""
    run = fleet.play(PLAYBOOK, "--limit", "gpu2", *args)
    assert run.rc == 0, run.output
    return run


def test_not_allowed_is_remembered_and_then_one_reboot_for_three_causes(hosts: Fleet) -> None:
    """No request fails meanwhile, though the host that reboots was serving."""
    before = boot(hosts, "gpu2")
    want_reboot(hosts, "gpu2", "os_hardening", "nic_offload", "rdma")
    run = hosts_yml(hosts, "--tags=reboot", "-e", "fleet_reboot_allowed=false")
    words = " ".join(run.output.split())
    assert "gpu2 needs a reboot (nic_offload: the test wants nic_offload; os_hardening:" in words
    assert "set fleet_reboot_allowed to true" in words
    assert (run.changed(), boot(hosts, "gpu2"), state(hosts, "gpu2")) == (0, before, "up")
    assert causes(hosts, "gpu2") == ["nic_offload.reason", "os_hardening.reason", "rdma.reason"]

    check = hosts_yml(hosts, "--tags=reboot", "--check")
    assert "gpu2 is rebooted: nic_offload:" in " ".join(check.output.split())
    assert (boot(hosts, "gpu2"), state(hosts, "gpu2"), holds(hosts)) == (before, "up", {})

    with Load(hosts, clients=3, seconds=25) as load:
        run = hosts_yml(hosts)
    assert reboots(run) == 1
    assert boot(hosts, "gpu2") != before
    assert (causes(hosts, "gpu2"), holds(hosts), state(hosts, "gpu2")) == ([], {}, "up")
    assert len(load.answers) > 20, "too few requests to say anything"
    assert [answer for answer in load.answers if answer.status != 200] == []
    assert peers_that_answer(hosts) == {"gpu1", "gpu2"}

    run = hosts_yml(hosts, "--tags=reboot")
    assert (run.changed(), reboots(run)) == (0, 0)


@pytest.mark.parametrize(
    ("hook", "rebooted"), [("fleet_reboot_before_tasks", False), ("fleet_reboot_after_tasks", True)]
)
def test_a_run_that_is_killed_is_finished_by_the_next(hosts: Fleet, tmp_path: Path, hook: str, rebooted: bool) -> None:
    """Once when the host is drained and has not rebooted, once when it has and is not in service yet."""
    before = boot(hosts, "gpu2")
    want_reboot(hosts, "gpu2", "killed")
    (tmp_path / "sit.yml").write_text("- name: Sit here\n  ansible.builtin.pause: {seconds: 60}\n", encoding="utf-8")
    hosts.play_until(
        PLAYBOOK, "TASK .*Sit here", "--limit", "gpu2", "--tags=reboot", "-e", f"{hook}={tmp_path / 'sit.yml'}"
    )
    assert (boot(hosts, "gpu2") != before) is rebooted
    assert holds(hosts) == {"gpu2": ["hosts.yml"]}
    assert peers_that_answer(hosts) == {"gpu1"}
    # Whoever runs the gateway's playbook now finds nothing to do, and lets nobody in.
    run = hosts.play("playbooks/gateway.yml")
    assert (run.rc, run.changed(), state(hosts, "gpu2")) == (0, 0, "held"), run.output

    run = hosts_yml(hosts, "--tags=reboot")
    assert reboots(run) == (0 if rebooted else 1)
    assert boot(hosts, "gpu2") != before
    assert (causes(hosts, "gpu2"), holds(hosts), state(hosts, "gpu2")) == ([], {}, "up")
    assert peers_that_answer(hosts) == {"gpu1", "gpu2"}


def test_what_an_operator_drained_stays_drained(hosts: Fleet) -> None:
    hold: dict[str, t.Any] = {"peer": "gpu2", "holds": [{"owner": "alice", "reason": "fans", "since": "2026-01-02"}]}
    hosts.ssh("gw1", f"mkdir -p {HOLDS} && echo '{json.dumps(hold)}' > {HOLDS}/gpu2.json")
    run = hosts.play("playbooks/gateway.yml")
    assert run.rc == 0, run.output
    assert state(hosts, "gpu2") == "held"
    want_reboot(hosts, "gpu2", "operator")
    run = hosts_yml(hosts, "--tags=reboot")
    assert reboots(run) == 1
    assert "gpu2: it stays drained, held by alice" in " ".join(run.output.split())
    assert (holds(hosts), state(hosts, "gpu2")) == ({"gpu2": ["alice"]}, "held")
    assert peers_that_answer(hosts) == {"gpu1"}
    run = hosts.play("playbooks/verify.yml")
    assert (run.rc, "held out of service: gpu2" in " ".join(run.output.split())) == (0, True), run.output
    hosts.ssh("gw1", f"rm -rf {HOLDS}")

    only_gpu2 = "{{ 'drain' if inventory_hostname == 'gpu2' else 'up' }}"
    drain = ("-e", json.dumps({"gateway_peer_hosts": ["gpu1", "gpu2"], "fleet_peer_state": only_gpu2}))
    run = hosts.play("playbooks/gateway.yml", *drain)
    assert (run.rc, state(hosts, "gpu2")) == (0, "drain"), run.output
    want_reboot(hosts, "gpu2", "operator")
    assert reboots(hosts_yml(hosts, "--tags=reboot", *drain)) == 1
    assert (holds(hosts), state(hosts, "gpu2")) == ({}, "drain")


def test_too_little_would_go_on_serving(hosts: Fleet) -> None:
    """gpu1 has the weight 3 and gpu2 2: together they may not go, and gpu1 alone only as far as the floor allows."""
    before = {host: boot(hosts, host) for host in ("gpu1", "gpu2")}
    for host in before:
        want_reboot(hosts, host, "floor")
    run = hosts.play(PLAYBOOK, "--tags=reboot", "-e", '{"fleet_serial": ["100%"]}')
    words = " ".join(run.output.split())
    assert run.rc != 0
    for host in before:
        assert f"{host} stays in service and was not touched: gw1: {host} was not drained" in words
    assert (
        f"without gpu1, gpu2 the weight of the peers that serve in pool {MODEL} is 0 of 5 (0 percent); expected at least 33 percent"
        in words
    )
    run = hosts.play(PLAYBOOK, "--tags=reboot", "-e", "fleet_capacity_floor=41", "--limit", "gpu1")
    assert run.rc != 0
    assert (
        f"without gpu1 the weight of the peers that serve in pool {MODEL} is 2 of 5 (40 percent); expected at least 41 percent"
        in " ".join(run.output.split())
    )
    assert {host: boot(hosts, host) for host in before} == before
    assert (holds(hosts), state(hosts, "gpu1"), state(hosts, "gpu2")) == ({}, "up", "up")
