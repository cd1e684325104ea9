# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Join the tables "Settings" of the host roles' READMEs in docs/hosts.md, or with --check say whether they are up to date.

python3 tests/tools/settings_table.py            write docs/hosts.md
python3 tests/tools/settings_table.py --check    exit with 1 when the file differs
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "hosts.md"
ROLES = ("os_hardening", "nvidia_driver", "cuda_toolkit", "nvme_raid", "nic_offload", "rdma", "burn_in")
COLUMNS = ["setting", "why", "default", "source", "verified", "undo"]
MARK = re.compile(r"(<!-- settings: begin -->\n).*(<!-- settings: end -->)", re.DOTALL)


def rows_of(role: str) -> list[list[str]]:
    """The cells of a role's table; one that is missing or of another shape stops everything."""
    text = (ROOT / "roles" / role / "README.md").read_text("utf-8")
    section = re.search(r"^## Settings\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not section:
        sys.exit(f"roles/{role}/README.md has no section Settings")
    lines = [line.strip() for line in section.group(1).splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    wrong = [row for row in rows if len(row) != len(COLUMNS)]
    if wrong or len(rows) < 3:
        sys.exit(f"roles/{role}/README.md: expected rows of {len(COLUMNS)} cells in Settings, found {wrong or rows}")
    return rows[2:]


def render(text: str) -> str:
    """The document with the tables of today."""
    parts = []
    for role in ROLES:
        parts += [f"### {role}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        parts += ["| " + " | ".join(row) + " |" for row in rows_of(role)] + [""]
    body = "\n" + "\n".join(parts)
    found, count = MARK.subn(lambda match: match.group(1) + body + match.group(2), text)
    if count != 1:
        sys.exit("docs/hosts.md: expected one pair of the marks <!-- settings: begin --> and <!-- settings: end -->")
    return found


def main() -> int:
    """Write, or compare."""
    before = TARGET.read_text("utf-8")
    after = render(before)
    if "--check" in sys.argv[1:]:
        if before != after:
            print("docs/hosts.md differs from the roles' READMEs: run python3 tests/tools/settings_table.py")
        return int(before != after)
    TARGET.write_text(after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
