# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Why the kernel module does not load, from what modprobe and the kernel's log said."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Output
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvidia_module import Answer, load, reason

# As a virtual machine without a GPU said it: Debian 12, kernel 6.1.0-50, driver 535.261.03.
NO_GPU_LOG = """\
[  101.480563] nvidia: loading out-of-tree module taints kernel.
[  102.021000] nvidia-nvlink: Nvlink Core is being initialized, major device number 244
[  102.021050] NVRM: No NVIDIA GPU found.
[  102.034000] nvidia-nvlink: Unregistered Nvlink Core, major device number 244
"""
NO_GPU = "modprobe: ERROR: could not insert 'nvidia_current_open': No such device\n"


@pytest.mark.parametrize(
    ("modprobe", "log", "said"),
    [
        (NO_GPU, NO_GPU_LOG, "No NVIDIA GPU found"),
        (NO_GPU, "", "No NVIDIA GPU found"),
        (
            "modprobe: ERROR: could not insert 'nvidia': Key was rejected by service\n",
            "",
            "the kernel trusts no key that signed it (Secure Boot)",
        ),
        ("", "NVRM: GPU 0000:07:00.0 is already bound to nouveau.", "another driver holds the GPU (nouveau)"),
        (
            "modprobe: ERROR: could not insert 'nvidia': No such device\n",
            "NVRM: GPU 0000:07:00.0 is already bound to nouveau.",
            "another driver holds the GPU (nouveau)",
        ),
        (
            "",
            "NVRM: API mismatch: the client has the version 580.95.05, but",
            "kernel module and user space have different versions",
        ),
        (
            "Exec format error",
            "nvidia: version magic '6.1.0-49-amd64 SMP' should be",
            "it was built for another kernel",
        ),
        (
            "modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.1\n",
            "",
            "modprobe: FATAL: Module nvidia not found in directory /lib/modules/6.1",
        ),
        ("", "", "modprobe gave no reason"),
    ],
)
def test_reason(modprobe: str, log: str, said: str) -> None:
    assert reason(modprobe, log) == said


class Host:
    """Says what a host would say."""

    def __init__(self, before: str, after: str, modprobe: Output) -> None:
        self.logs = [before, after]
        self.modprobe = modprobe

    def __call__(self, argv: Sequence[str], timeout: float) -> Output:
        if argv[0] == "dmesg":
            return Output(0, self.logs.pop(0))
        return self.modprobe


def test_no_gpu() -> None:
    assert load(Host("boot\n", f"boot\n{NO_GPU_LOG}", Output(1, "", NO_GPU)), "nvidia", 1) == Answer(
        "No NVIDIA GPU found", no_gpu=True
    )


def test_old_lines_of_the_log_do_not_count() -> None:
    host = Host(
        NO_GPU_LOG, f"{NO_GPU_LOG}[200.0] nvidia: version magic 'x' should be 'y'\n", Output(1, "", "Exec format error")
    )
    assert load(host, "nvidia", 1) == Answer("it was built for another kernel")


def test_a_log_that_has_turned_over() -> None:
    assert load(Host("old\n" * 9, NO_GPU_LOG, Output(1, "", "x")), "nvidia", 1).no_gpu


def test_it_loads() -> None:
    assert load(Host("", "", Output(0, "")), "nvidia", 1) == Answer()


def test_no_modprobe() -> None:
    host = Host("", "", Output(127, "", problem="modprobe is not installed", missing=True))
    assert load(host, "nvidia", 1) == Answer("modprobe is not installed")
