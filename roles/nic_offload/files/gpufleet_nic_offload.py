# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Started by gpufleet-nic-offload@INTERFACE.service when a port appears: sets the features that the role wants there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

# Beside this program, where the role put it.
nic_offload = importlib.import_module("nic_offload")


def run(argv: list[str]) -> tuple[int, str, str]:
    """Run one command."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=60, env={"LC_ALL": "C", "PATH": PATH}
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return 127, "", str(exc)
    return done.returncode, done.stdout, done.stderr


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main() -> int:
    """Set the features of one port."""
    if len(sys.argv) != 4:
        print(f"usage: {sys.argv[0]} INTERFACE STATE_DIR CONFIG_DIR", file=sys.stderr)
        return 2
    try:
        print(nic_offload.at_boot(nic_offload.Host(run, sys.argv[2], sys.argv[3]), sys.argv[1]))
    except nic_offload.OffloadError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
