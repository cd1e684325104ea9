# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The rules of CONTRIBUTING.md that no other linter knows.

Prints one line for each thing that is wrong and exits with 1 when there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = {".yml", ".yaml", ".py", ".j2", ".sh", ".md", ".toml", ".cfg", ".txt", ".lua", ".conf", ""}
FACTS = (
    "architecture|bios_\\w+|date_time|default_ipv[46]|devices|distribution\\w*|dns|env|fqdn|hostname|interfaces|kernel\\w*|lsb"
    "|machine|memfree_mb|memory_mb|memtotal_mb|mounts|nodename|os_family|pkg_mgr|processor\\w*|product_\\w+|service_mgr"
    "|system_vendor|uptime_seconds|virtualization_\\w+"
)
# (the files, what must not stand in them, why). The patterns are put together so that this file does not find itself.
RULES: tuple[tuple[str, str, str], ...] = (
    (
        r"^(roles|playbooks|molecule|plugins|tests|dev|benchmarks)/",
        r"#\s*no" + r"qa\b",
        "a linter is never told to look away",
    ),
    (r"^(roles|playbooks|molecule)/.*\.yml$", r"\bignore_" + r"errors:", "an error is handled or it stops the play"),
    (r"^(roles|playbooks|plugins|molecule|tests|dev)/", r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", "work left behind"),
    (
        r"^roles/.*\.(yml|j2)$",
        r"\bgroups\s*[\[.](?!['\"]all['\"]\])|\bgroups\.get\b",
        "playbooks hand a role its hosts; no role names a group",
    ),
    (
        r"^(roles|playbooks)/",
        rf"(?<![\w.'\"\[-])ansible_({FACTS})\b(?!\s*:)",
        "facts are read as ansible_facts['name']",
    ),
    (r"^(roles|playbooks)/.*\.(yml|j2)$", r"(?<![\w.'\"])vars\[", "the vars dictionary goes away: use the vars lookup"),
    (
        r"^roles/(?!fleet/).*\.yml$",
        r"ansible\.builtin\.re" + r"boot:",
        "a reboot is asked for by the topic of role fleet",
    ),
    (
        r"^(roles|playbooks)/.*\.yml$",
        r"ansible\.builtin\.(apt_key|apt_repository):",
        "deb822_repository is the module for that",
    ),
)

# Roles whose scenario is that of another one.
TESTED_WITH = {"blackbox_exporter": "alertmanager"}


def tracked() -> list[str]:
    """Files that git knows, or would take."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return sorted(
        name for name in done.stdout.splitlines() if (ROOT / name).is_file() and not (ROOT / name).is_symlink()
    )


def check_names(names: list[str]) -> list[str]:
    """File names: playbooks that a fully qualified name can call, one ending for YAML."""
    found = [
        f"{name}: a playbook's name is snake_case, or gpufleet.deepseek.NAME cannot call it"
        for name in names
        if name.startswith("playbooks/") and name.endswith(".yml") and not re.fullmatch(r"[a-z][a-z0-9_/]*\.yml", name)
    ]
    found += [
        f"{name}: YAML files end in .yml"
        for name in names
        if name.endswith(".yaml") and not name.startswith((".", "changelogs/"))
    ]
    scenarios = {name.split("/")[1] for name in names if re.fullmatch(r"molecule/[^/]+/molecule\.yml", name)}
    roles = {name.split("/")[1] for name in names if name.startswith("roles/")}
    found += [
        f"roles/{role}: no molecule scenario of that name"
        for role in sorted(roles - scenarios - set(TESTED_WITH) - {"fleet", "lab"})
    ]
    found += [
        f"molecule/{scenario}: expected to have role {role}, too (TESTED_WITH)"
        for role, scenario in TESTED_WITH.items()
        if f"role: gpufleet.deepseek.{role}\n" not in (ROOT / f"molecule/{scenario}/converge.yml").read_text("utf-8")
    ]
    return found


def check_lines(name: str) -> list[str]:
    """What the rules say about the lines of one file."""
    rules = [(re.compile(pattern), why) for files, pattern, why in RULES if re.search(files, name)]
    if not rules or Path(name).suffix not in TEXT:
        return []
    try:
        lines = (ROOT / name).read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        return []
    return [
        f"{name}:{number}: {why}: {line.strip()[:100]}"
        for number, line in enumerate(lines, 1)
        for pattern, why in rules
        if pattern.search(line)
    ]


def main() -> int:
    """Check the whole tree."""
    names = tracked()
    found = check_names(names)
    for name in names:
        found += check_lines(name)
    fragments = [name for name in names if re.match(r"changelogs/fragments/.+\.ya?ml$", name)]
    if not fragments and "changelogs/changelog.yaml" not in names:
        found.append("changelogs/fragments: no fragment and no release: what does a user see?")
    for line in found:
        print(f"ERROR {line}")
    print(f"{len(names)} files, {len(found)} errors")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
