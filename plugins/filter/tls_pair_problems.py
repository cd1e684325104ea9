# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a certificate file and its key file."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any


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
    try:
        # An encrypted key must fail, not ask.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(paths["certificate"], paths["key"], password=lambda: "")
    except ssl.SSLError as exc:
        if exc.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            return [f"certificate {paths['certificate']} does not match key {paths['key']}"]
        return [
            f"certificate {paths['certificate']} and key {paths['key']} cannot be used as a pair: {exc.reason or exc}"
        ]
    except OSError as exc:
        return [f"certificate {paths['certificate']} and key {paths['key']} cannot be read: {exc}"]
    return []


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter functions by name."""
        return {"tls_pair_problems": tls_pair_problems}
