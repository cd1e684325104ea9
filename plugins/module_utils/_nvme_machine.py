# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""The host on which an array is built: commands, files that survive a power cut, and exclusive claims on devices."""

from __future__ import annotations

import contextlib
import fcntl
import os
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Reader
from ansible_collections.gpufleet.deepseek.plugins.module_utils._nvme_drives import NvmeError, Run


def claim(path: str) -> str:
    """Ask the kernel whether a block device is free; the reason when it is not.

    O_EXCL on a block device fails while a mount, md, the device mapper, swap or ZFS holds it.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


class Machine:
    """A host.

    :arg run: runs a command and never raises; 127 for a missing one.
    :arg root: directory in front of all paths of files, for tests.
    :arg try_claim: says why a device is not free.
    """

    def __init__(self, run: Run, root: str = "", try_claim: t.Callable[[str], str] = claim) -> None:
        self.run = run
        self.root = root
        self.reader = Reader(root)
        self.claim = try_claim

    def must(self, argv: list[str]) -> str:
        """Run a command that has to succeed."""
        code, out, err = self.run(argv)
        if code != 0:
            raise NvmeError(f"'{' '.join(argv)}' failed: {err.strip() or out.strip() or f'exit code {code}'}")
        return out

    def text(self, path: str) -> str:
        """A whole file, byte for byte; empty when it is not there."""
        raw = self.reader.data(path)
        return "" if raw is None else raw.decode("utf-8", "surrogateescape")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Replace a file so that a power cut leaves the old one or the new one."""
        place = f"{self.root}{path}"
        directory = os.path.dirname(place)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        temporary = f"{place}.gpufleet-new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, os.stat(place).st_mode & 0o7777 if os.path.exists(place) else mode)
            view = memoryview(text.encode("utf-8", "surrogateescape"))
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, place)
        self._sync(directory)

    def remove(self, path: str) -> None:
        """Remove a file, for good."""
        place = f"{self.root}{path}"
        if os.path.lexists(place):
            os.unlink(place)
            self._sync(os.path.dirname(place))

    @staticmethod
    def _sync(directory: str) -> None:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def poke(self, path: str, text: str) -> None:
        """Write an attribute in sysfs."""
        try:
            with open(f"{self.root}{path}", "w", encoding="utf-8") as attribute:
                attribute.write(text)
        except OSError as exc:
            raise NvmeError(f"{path} does not take {text}: {exc.strerror or exc}") from exc

    def make_directory(self, path: str) -> None:
        """Create a mount point."""
        os.makedirs(f"{self.root}{path}", mode=0o755, exist_ok=True)

    def has_command(self, name: str) -> bool:
        """Is a tool of the administrator installed?"""
        return any(self.reader.exists(f"{place}/{name}") for place in ("/usr/sbin", "/sbin", "/usr/bin"))

    def settle(self) -> None:
        """Wait, for a while, until udev has seen what happened."""
        self.run(["udevadm", "settle", "--timeout=60"])

    @contextlib.contextmanager
    def locked(self, paths: t.Iterable[str]) -> t.Iterator[None]:
        """Keep udev away from devices for a while: it leaves alone what is locked, and would else assemble again what was just stopped."""
        with contextlib.ExitStack() as stack:
            for path in paths:
                with contextlib.suppress(OSError):
                    device = stack.enter_context(open(f"{self.root}{path}", "rb"))
                    fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield

    def usage(self, point: str) -> tuple[int, int]:
        """Bytes and files in use on a mounted file system."""
        try:
            said = os.statvfs(f"{self.root}{point}")
        except OSError:
            return 0, 0
        return (said.f_blocks - said.f_bfree) * said.f_frsize, said.f_files - said.f_ffree
