# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Simulated GPUs on real lab hosts: applied, broken, healed, taken away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from labtools import ROOT, Lab, command

HOSTS = ["gpu1", "gpu2"]
PROFILE = "a100_sxm4_80gb_8"
PLAY = """
- name: Simulated GPUs
  hosts: gpu_hosts
  gather_facts: false
  tasks:
    - name: Give the lab's hosts their simulated GPUs
      ansible.builtin.include_role:
        name: gpufleet.deepseek.lab
        tasks_from: simulated_gpu
"""
INSTALLED = (
    "/usr/local/bin/nvidia-smi",
    "/usr/local/sbin/gpufleet-simulated-gpu",
    "/usr/local/share/gpufleet-simulated-gpu.json",
    "/var/lib/gpufleet/simulated",
)


class Simulated(Lab):
    """A lab with a playbook for its hosts."""

    play_file: Path

    def run(self, profile: str, *words: str) -> tuple[int, str]:
        """The exit code, and what was said."""
        argv = self.argv("lab_up", "-e", f"lab_simulated_gpu_profile={profile}", *words)
        argv = [str(self.play_file) if word == "playbooks/lab_up.yml" else word for word in argv]
        done = command(*argv, ANSIBLE_NOCOLOR="1")
        return done.returncode, done.stdout + done.stderr

    def changes(self, profile: str, *words: str) -> tuple[dict[str, int], str]:
        """How much was changed on each host; it must succeed."""
        code, text = self.run(profile, *words)
        assert code == 0, text[-4000:]
        found = re.findall(r"^(\w+)\s*: ok=\d+\s+changed=(\d+)", text, re.MULTILINE)
        return {host: int(number) for host, number in found}, text

    def there(self, host: str) -> list[str]:
        """What of it lies on a host."""
        return self.ssh(host, f"ls -d {' '.join(INSTALLED)} 2>/dev/null || true").split()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    made = Simulated(
        "labsim", "10.78.2.0/24", ["-e", "lab_gpu_count=2", "-e", "lab_gateway_count=0", "-e", "lab_monitor_count=0"]
    )
    made.play_file = tmp_path_factory.mktemp("simulated") / "play.yml"
    made.play_file.write_text(PLAY)
    made.down()
    made.up()
    yield made
    made.down()
    assert made.traces() == []


def test_from_nothing_to_gpus_and_back(simulated: Simulated) -> None:
    # A check run says what would come, and nothing comes.
    changed, text = simulated.changes(PROFILE, "--check", "--diff")
    assert all(number > 0 for number in changed.values())
    assert f"gpu1 would get the GPUs of {PROFILE}" in text
    assert [simulated.there(host) for host in HOSTS] == [[], []]
    # Applied: eight GPUs on each host, no two of them the same.
    assert all(number > 0 for number in simulated.changes(PROFILE)[0].values())
    assert [simulated.there(host) for host in HOSTS] == [sorted(INSTALLED)] * 2
    lists = [simulated.ssh(host, "nvidia-smi -L").splitlines() for host in HOSTS]
    assert [len(names) for names in lists] == [8, 8]
    assert not set(lists[0]) & set(lists[1])
    # A second run changes nothing, a fault on one of them included.
    assert simulated.ssh("gpu2", "gpufleet-simulated-gpu inject vbios 92.00.45.00.01 --gpu 5") == "changed"
    assert simulated.changes(PROFILE)[0] == {"gpu1": 0, "gpu2": 0}
    query = "nvidia-smi --query-gpu=vbios_version --format=csv,noheader | sort | uniq -c | sort -n"
    assert simulated.ssh("gpu1", query).split() == ["8", "92.00.45.00.03"]
    assert simulated.ssh("gpu2", query).split() == ["1", "92.00.45.00.01", "7", "92.00.45.00.03"]
    assert simulated.ssh("gpu2", "gpufleet-simulated-gpu heal") == "changed"
    assert simulated.ssh("gpu2", query).split() == ["8", "92.00.45.00.03"]
    # A damaged view is seen beforehand; where nothing is wrong a check run finds nothing.
    simulated.ssh("gpu1", "echo 0xffff > /var/lib/gpufleet/simulated/sys/bus/pci/devices/0000:07:00.0/device")
    changed, text = simulated.changes(PROFILE, "--check", "--diff")
    assert changed == {"gpu1": 1, "gpu2": 0}
    assert "-0xffff" in text
    # Other GPUs take the place of these.
    assert simulated.changes("h100_sxm5_80gb_8")[0] == {"gpu1": 1, "gpu2": 1}
    assert simulated.ssh("gpu1", "nvidia-smi -L").count("NVIDIA H100 80GB HBM3") == 8
    # Taken away, and only once.
    assert all(number > 0 for number in simulated.changes("", "--check")[0].values())
    assert simulated.there("gpu1") == sorted(INSTALLED)
    assert all(number > 0 for number in simulated.changes("")[0].values())
    assert [simulated.there(host) for host in HOSTS] == [[], []]


def test_hardware_info_says_that_it_is_simulated(simulated: Simulated) -> None:
    simulated.changes(PROFILE, "--limit", "gpu1")
    simulated.ssh("gpu1", "gpufleet-simulated-gpu inject lost --gpu 3")
    argv = simulated.argv("lab_up")
    argv[0] = argv[0].replace("ansible-playbook", "ansible")
    argv[argv.index("playbooks/lab_up.yml")] = "gpu1"
    words = ["-m", "gpufleet.deepseek.hardware_info", "-a", "gather_subset=gpu,xid"]
    done = command(*argv, *words, ANSIBLE_NOCOLOR="1", ANSIBLE_CALLBACK_RESULT_FORMAT="json", cwd=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r'"simulated": true', done.stdout)
    assert re.search(r'"lost": \[\s*"0000:4e:00.0"\s*\]', done.stdout)
    assert '"xid": 79' in done.stdout


def test_what_is_refused(simulated: Simulated) -> None:
    assert all(number > 0 for number in simulated.changes("", "--limit", "gpu1")[0].values())
    code, text = simulated.run("b200_9", "--limit", "gpu1")
    assert code != 0
    assert "value of lab_simulated_gpu_profile must be one of" in text
    # Somebody else's nvidia-smi stays, whether GPUs are wanted or not.
    simulated.ssh(
        "gpu1", "printf '#!/bin/sh\\necho real\\n' > /usr/local/bin/nvidia-smi; chmod 755 /usr/local/bin/nvidia-smi"
    )
    code, text = simulated.run(PROFILE, "--limit", "gpu1")
    assert code != 0
    assert "gpu1 cannot have the simulated GPUs of lab_simulated_gpu_profile" in text
    assert "/usr/local/bin/nvidia-smi, which is not of this collection" in text
    assert simulated.changes("", "--limit", "gpu1")[0] == {"gpu1": 0}
    assert simulated.ssh("gpu1", "nvidia-smi; rm /usr/local/bin/nvidia-smi") == "real"
    assert simulated.there("gpu1") == []


def test_a_host_with_a_gpu_is_refused(simulated: Simulated) -> None:
    """What a host on a machine with a GPU would see, laid over its kernel's files."""
    simulated.ssh(
        "gpu2",
        "mkdir -p /run/pci/0000:07:00.0 /run/driver/nvidia; echo 0x10de > /run/pci/0000:07:00.0/vendor;"
        " mount --bind /run/pci /sys/bus/pci/devices; mount --bind /run/driver /proc/driver",
    )
    try:
        code, text = simulated.run(PROFILE, "--limit", "gpu2")
        assert code != 0
        assert "a loaded NVIDIA driver (/proc/driver/nvidia); a real NVIDIA device" in text
        assert "/sys/bus/pci/devices/0000:07:00.0" in text
        # There is nothing to refuse where none are wanted.
        assert simulated.run("", "--limit", "gpu2")[0] == 0
    finally:
        simulated.ssh("gpu2", "umount /sys/bus/pci/devices /proc/driver")


def test_a_host_that_is_not_the_labs_is_refused(simulated: Simulated, tmp_path: Path) -> None:
    play = tmp_path / "play.yml"
    play.write_text(PLAY.replace("gpu_hosts", "localhost").replace("facts: false", "facts: false\n  connection: local"))
    argv = [simulated.argv("x")[0], "-i", "localhost,", str(play), "-e", f"lab_simulated_gpu_profile={PROFILE}"]
    done = command(*argv, ANSIBLE_NOCOLOR="1")
    assert done.returncode != 0
    assert (
        "localhost: simulated GPUs are for lab hosts only, and this host has no lab_kind." in done.stdout + done.stderr
    )
    assert not Path("/usr/local/sbin/gpufleet-simulated-gpu").exists()
