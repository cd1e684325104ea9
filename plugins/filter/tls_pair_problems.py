# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a certificate file and its key file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._certificate import certificate_info as describe


def tls_pair_problems(value: Any, key: Any) -> list[str]:
    """Sentences that name the file and what is wrong with it."""
    paths = {"certificate": str(value or ""), "key": str(key or "")}
    problems = [f"no {kind} is named" for kind, path in paths.items() if not path]
    problems += [
        f"{kind} {path} does not exist or cannot be read"
        for kind, path in paths.items()
        if path and not os.access(path, os.R_OK)
    ]
    if problems:
        return problems
    pem = {kind: Path(path).read_text(encoding="utf-8", errors="replace") for kind, path in paths.items()}
    found = describe(pem["certificate"], pem["key"])["problems"]
    return [f"certificate {paths['certificate']} with key {paths['key']}: {problem}" for problem in found]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter functions by name."""
        return {"tls_pair_problems": tls_pair_problems}
