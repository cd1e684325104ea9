# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Where hardware facts are read from: this host, or a tree that was recorded on another one.

Everything goes through one class: files, links, and the output of tools. In a recorded tree a file stands under its own path below the
root, and what a tool printed stands in ``commands/SLUG``; ``commands/SLUG.rc`` holds its exit code when that was not zero.
Nothing here writes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import typing as t
from dataclasses import dataclass, field

UNITS = (
    "nvidia-fabricmanager.service",
    "nvidia-dcgm.service",
    "dcgm.service",
    "chronyd.service",
    "chrony.service",
    "systemd-timesyncd.service",
    "ntpd.service",
    "ntp.service",
    "ntpsec.service",
)
# The tools by slug, and whether only root gets an answer from them.
TOOLS: dict[str, tuple[str, ...]] = {
    "nvidia_smi_xml": ("nvidia-smi", "-q", "-x"),
    "nvidia_smi_topo": ("nvidia-smi", "topo", "-m"),
    "nvidia_smi_nvlink": ("nvidia-smi", "nvlink", "-s"),
    "nv_fabricmanager": ("nv-fabricmanager", "--version"),
    "dcgmi": ("dcgmi", "--version"),
    "modinfo": ("modinfo", "nvidia"),
    "dmidecode": ("dmidecode", "-t", "memory"),
    "dmesg": ("dmesg",),
    "systemctl": ("systemctl", "show", "--property=Id,ActiveState", *UNITS),
}
# A file of the kernel has no size; what is longer than this is not one of those that are read here.
_LIMIT = 16 * 1024 * 1024
_GRACE = 1.0


@dataclass(frozen=True)
class Output:
    """What a tool said.

    :ivar rc: exit code.
    :ivar out: standard output; in a recorded tree both streams.
    :ivar err: standard error.
    :ivar problem: why there is no answer at all, in words; empty when there is one.
    :ivar missing: there is no such tool.
    """

    rc: int
    out: str
    err: str = ""
    problem: str = ""
    missing: bool = False

    @property
    def answered(self) -> bool:
        """Did the tool run and succeed?"""
        return not self.problem and self.rc == 0

    def failure(self, tool: str) -> str:
        """Why there is nothing to be read from it, as one sentence without its full stop."""
        if self.problem:
            return self.problem
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        first = f": {lines[0][:200]}" if lines else ""
        return f"{tool} ended with exit code {self.rc}{first}"


class Runner(t.Protocol):
    """Runs one tool and comes back when the time is over."""

    def __call__(self, argv: t.Sequence[str], timeout: float) -> Output: ...


@dataclass
class _Job:
    """A tool that runs in its own thread."""

    thread: threading.Thread
    result: list[t.Any] = field(default_factory=list)


class Parts:
    """An open file that is read in parts: a device's configuration space (reading all of it takes milliseconds), a large file."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size

    def data(self, offset: int, size: int) -> bytes:
        """So many bytes, or fewer where the file or the permission ends."""
        try:
            return os.pread(self._descriptor, size, offset)
        except (OSError, OverflowError):
            return b""

    def number(self, offset: int, size: int) -> int | None:
        """A little-endian number, or None where the file or the permission ends."""
        raw = self.data(offset, size)
        return int.from_bytes(raw, "little") if len(raw) == size else None


class Reader:
    """Reads a host.

    :arg root: directory of a recorded tree; empty for this host.
    :arg simulation: directory of the simulated GPU view, as a path of the host that is read.
    :arg run: runs a tool; None when there is none to be run.
    :arg timeout: seconds for each tool.
    """

    def __init__(self, root: str = "", simulation: str = "", run: Runner | None = None, timeout: float = 10.0) -> None:
        self.root = os.path.realpath(root) if root else ""
        self.timeout = timeout
        self._run = run
        self._jobs: dict[str, _Job] = {}
        self.simulation = simulation if simulation and self.exists(f"{simulation}/SIMULATED") else ""

    @property
    def live(self) -> bool:
        """Is it this host?"""
        return not self.root

    def _path(self, path: str) -> str | None:
        """Where a path of the host lies; None when a link leads out of a recorded tree."""
        if not self.root:
            return path
        place = os.path.realpath(f"{self.root}/{path.lstrip('/')}")
        return place if place == self.root or place.startswith(f"{self.root}/") else None

    def data(self, path: str, limit: int = _LIMIT) -> bytes | None:
        """What a file holds, or None when it cannot be read."""
        place = self._path(path)
        if place is None:
            return None
        parts = []
        try:
            # Never wait for a pipe or a device that somebody put in the place of a file.
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            while limit > 0:
                part = os.read(descriptor, min(limit, 1 << 20))
                if not part:
                    break
                parts.append(part)
                limit -= len(part)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return b"".join(parts)

    def text(self, path: str) -> str | None:
        """What a file says, without blanks and zero bytes around it, or None when it cannot be read."""
        raw = self.data(path)
        return None if raw is None else raw.decode("utf-8", "replace").strip("\0 \t\r\n")

    def word(self, path: str) -> str | None:
        """As ``text``, and None for what says nothing."""
        return self.text(path) or None

    def number(self, path: str) -> int | None:
        """A decimal number, or None."""
        return integer(self.text(path))

    def names(self, path: str) -> list[str]:
        """What a directory holds, sorted; empty when it cannot be read."""
        place = self._path(path)
        try:
            return sorted(os.listdir(place)) if place is not None else []
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Is there such a path?"""
        place = self._path(path)
        return place is not None and os.path.exists(place)

    def real(self, path: str) -> str:
        """The path with all links followed, as a path of the host."""
        place = self._path(path)
        if place is None:
            return path
        place = os.path.realpath(place)
        return place[len(self.root) :] if self.root and place.startswith(self.root) else place

    def target(self, path: str) -> str | None:
        """The name that a link leads to, or None when it is none."""
        place = f"{self.root}/{path.lstrip('/')}" if self.root else path
        try:
            return os.path.basename(os.readlink(place)) or None
        except OSError:
            return None

    @contextlib.contextmanager
    def parts(self, path: str) -> t.Iterator[Parts | None]:
        """A file, open for a while; None when it cannot be read."""
        place = self._path(path)
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC) if place is not None else -1
        except OSError:
            descriptor = -1
        if descriptor < 0:
            yield None
            return
        try:
            yield Parts(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def recorded(self, slug: str) -> Output | None:
        """What a tool said when the tree was recorded, or None."""
        text = self.data(f"commands/{slug}") if self.root else None
        if text is None:
            return None
        code = integer(self.text(f"commands/{slug}.rc"))
        return Output(code or 0, text.decode("utf-8", "replace"))

    def in_background(self, name: str, work: t.Callable[[], t.Any]) -> None:
        """Begin some work whose result is asked for later with ``result``; what runs already goes on."""
        if name in self._jobs:
            return
        result: list[t.Any] = []
        # A daemon: a tool that hangs in the kernel must not keep the module from ending.
        thread = threading.Thread(target=lambda: result.append(work()), name=name, daemon=True)
        self._jobs[name] = _Job(thread, result)
        thread.start()

    def result(self, name: str) -> t.Any:
        """What the work came to; None when it never began, or has not ended in its time."""
        job = self._jobs.get(name)
        if job is None:
            return None
        job.thread.join(self.timeout + _GRACE)
        return job.result[0] if job.result else None

    def start(self, *slugs: str) -> None:
        """Begin tools whose answers are needed later."""
        run = self._run
        if self.root or run is None:
            return
        for slug in slugs:
            self.in_background(slug, _call(run, TOOLS[slug], self.timeout))

    def command(self, slug: str) -> Output:
        """What a tool says; it is run once however often it is asked for."""
        tool = TOOLS[slug][0]
        if self.root:
            return self.recorded(slug) or Output(
                127, "", problem=f"{tool} was not recorded in commands/{slug}", missing=True
            )
        if self._run is None:
            return Output(127, "", problem=f"{tool} is not run here", missing=True)
        self.start(slug)
        answer = self.result(slug)
        if isinstance(answer, Output):
            return answer
        return Output(124, "", problem=f"{tool} did not end within {self.timeout:g} s and cannot be stopped")


def _call(run: Runner, argv: tuple[str, ...], timeout: float) -> t.Callable[[], Output]:
    return lambda: run(argv, timeout)


def integer(text: str | None) -> int | None:
    """A whole number at the beginning of a text, or None."""
    words = (text or "").split()
    try:
        return int(words[0]) if words else None
    except ValueError:
        return None


class ModuleRunner:
    """Runs tools by a module's ``run_command``, with a limit of time that it does not have by itself.

    :arg run_command: the module's method.
    :arg find: gives the path of a tool, or None.
    """

    def __init__(self, run_command: t.Callable[..., t.Any], find: t.Callable[[str], str | None]) -> None:
        self._run_command = run_command
        self._find = find

    def __call__(self, argv: t.Sequence[str], timeout: float) -> Output:
        """Run it; a missing tool and one that takes too long are answers, too."""
        path = self._find(argv[0])
        if path is None:
            return Output(127, "", problem=f"{argv[0]} is not installed", missing=True)
        late = threading.Event()
        timers: list[threading.Timer] = []

        def watch(process: t.Any) -> None:
            def stop() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(timeout, stop)
            timer.daemon = True
            timers.append(timer)
            timer.start()

        try:
            code, out, err = self._run_command(
                [path, *argv[1:]],
                environ_update={"LC_ALL": "C", "LANGUAGE": "C"},
                errors="replace",
                expand_user_and_vars=False,
                handle_exceptions=False,
                before_communicate_callback=watch,
            )
        except OSError as exc:
            return Output(126, "", problem=f"{argv[0]} cannot be run: {exc.strerror or exc}")
        finally:
            for timer in timers:
                timer.cancel()
        if late.is_set():
            return Output(124, out, err, problem=f"{argv[0]} did not end within {timeout:g} s")
        return Output(code, out, err)
