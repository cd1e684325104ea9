# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Write a report on the controller. PRIVATE to the collection."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class ReportError(Exception):
    """A report that could not be written, in words for the operator."""


def write_report(path: str, text: str, check: bool) -> bool:
    """Write a file at once or not at all, and only when its content differs.

    :arg path: where; missing directories are made. ``~`` is the home of the user who runs Ansible.
    :arg text: the whole content.
    :arg check: only say whether it would change.
    :returns: whether the content differs from what was there.
    :raises ReportError: names the file and the system's reason.
    """
    target = Path(path).expanduser()
    try:
        if target.is_file() and target.read_text(encoding="utf-8") == text:
            return False
        if check:
            return True
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except (OSError, UnicodeDecodeError) as exc:
        raise ReportError(f"report {target} cannot be written: {exc}") from exc
    return True
