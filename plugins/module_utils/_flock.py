# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""One process at a time on this host."""

from __future__ import annotations

import contextlib
import fcntl
import time
import typing as t
from pathlib import Path


@contextlib.contextmanager
def alone(
    path: Path,
    seconds: float,
    clock: t.Callable[[], float] = time.monotonic,
    sleep: t.Callable[[float], object] = time.sleep,
    pause: float = 0.02,
) -> t.Iterator[None]:
    """Hold the flock of a file, which is made when it is missing, and stays.

    :arg seconds: how long to wait for another process.
    :arg pause: seconds between two tries.
    :raises TimeoutError: another process has held it for so long.
    """
    with path.open("a", encoding="utf-8") as stream:
        end = clock() + seconds
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if clock() > end:
                    raise TimeoutError(f"{path}: another process has held it for {seconds:g} s") from exc
            sleep(pause)
        yield
