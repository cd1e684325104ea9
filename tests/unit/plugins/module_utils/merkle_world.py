# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Files with content that anybody can make again, and runs that are stopped in the middle."""

from __future__ import annotations

import hashlib
from pathlib import Path


def content(size: int) -> bytes:
    """SHA-256 of 0, 1, 2 ... as eight bytes each, one after the other."""
    whole = b"".join(hashlib.sha256(number.to_bytes(8, "big")).digest() for number in range(-(-size // 32)))
    return whole[:size]


def make(root: Path, files: dict[str, bytes]) -> Path:
    """A directory with these files."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


class Killed(BaseException):
    """As a signal would."""


class Stopper:
    """Stops a run before the nth step of a kind, and counts."""

    def __init__(self, kind: str, after: int) -> None:
        self.kind, self.after, self.seen = kind, after, 0

    def __call__(self, name: str, what: object) -> None:
        if name == self.kind:
            self.seen += 1
            if self.seen > self.after:
                raise Killed
