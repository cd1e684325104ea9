# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Write a set of weights whose bytes, and so its root, are the same everywhere: make_set.py DIRECTORY."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

MIB = 1 << 20


def block(mark: str) -> bytes:
    """A MiB that no other mark has, and that is nowhere the same in itself."""
    return b"".join(hashlib.sha256(f"{mark} {number}".encode()).digest() for number in range(MIB // 32))


def main() -> None:
    """Three files of weights of 40 MiB in all, and what lies beside them."""
    folder = Path(sys.argv[1])
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for number, size in enumerate((16, 16, 8)):
        with (folder / f"model-{number}.safetensors").open("wb") as stream:
            for part in range(size):
                stream.write(block(f"{number} {part}"))
            stream.write(b"the end")
    (folder / "config.json").write_text('{"model_type": "test"}\n', encoding="utf-8")
    (folder / "tokenizer" / "merges.txt").write_text("a b\n", encoding="utf-8")
    (folder / "done").write_text("", encoding="utf-8")


if __name__ == "__main__":
    main()
