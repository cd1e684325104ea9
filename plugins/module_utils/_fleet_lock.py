# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""A lock that lies on a host of the fleet, so that two runs that know nothing of each other do not change the same thing.

The lock is a file with an owner and an end. Who takes it looks and writes under one flock, so of two that come at the same instant one wins. It outlives
the run that took it, and a reboot: a run that was killed half-way has left the fleet in a state that not everybody may go on from.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import time
import typing as t
from dataclasses import dataclass, replace
from pathlib import Path

from ansible_collections.gpufleet.deepseek.plugins.module_utils._flock import alone

DIRECTORY = "/var/lib/gpufleet/locks"
FORMAT = 1
SECONDS = (60, 604800)

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+:-]{0,127}")
_WORDS = re.compile(r"[ -~]{1,256}")
_PURPOSE = 256
# Who looks and writes holds the flock for milliseconds.
_FLOCK_SECONDS = 20.0


class LockError(Exception):
    """The wish cannot be met; the text says why."""


@dataclass(frozen=True)
class Lock:
    """Who has it.

    :ivar run: which run of that owner.
    :ivar since, until: seconds since 1970, by the clock of the host that the lock lies on.
    """

    owner: str
    run: str
    purpose: str
    since: float
    until: float

    def words(self) -> str:
        """For people."""
        return f"{self.owner} ({self.purpose}), since {_time(self.since)}, at the longest until {_time(self.until)}"

    def document(self) -> dict[str, t.Any]:
        """For those who read the result of the module."""
        return {
            "owner": self.owner,
            "run": self.run,
            "purpose": self.purpose,
            "since": _time(self.since),
            "until": _time(self.until),
            "words": self.words(),
        }


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


@dataclass(frozen=True)
class Wish:
    """What is wanted.

    :ivar seconds: for how long from now.
    :ivar succeeds: a run that has ended without giving its lock back, and whose place is taken.
    :ivar take_over: whoever has it.
    """

    directory: Path
    name: str
    owner: str = ""
    run: str = ""
    purpose: str = ""
    seconds: int = 7200
    succeeds: str = ""
    take_over: bool = False


@dataclass
class Outcome:
    """What was done.

    :ivar holder: who has it now, or would without check mode.
    :ivar other: somebody else who has it, so that the wish was not met.
    :ivar displaced: who had it and lost it.
    :ivar how: why that one lost it.
    """

    changed: bool = False
    holder: Lock | None = None
    other: Lock | None = None
    displaced: Lock | None = None
    how: str = ""
    before: str = ""
    after: str = ""


def check(wish: Wish, releasing: bool = False) -> None:
    """Look at the values before anything is touched."""
    if not _NAME.fullmatch(wish.name):
        raise LockError(
            f"name: expected up to 64 lower-case letters, digits, dashes and underscores, found {wish.name!r}"
        )
    if not _OWNER.fullmatch(wish.owner):
        raise LockError(f"owner: expected a name without blanks, such as alice@ops1, found {wish.owner!r}")
    if not _WORDS.fullmatch(wish.run):
        raise LockError(f"run: expected up to 256 plain characters that name the run, found {wish.run!r}")
    if releasing:
        return
    if not wish.purpose.strip() or not wish.purpose.isprintable() or len(wish.purpose) > _PURPOSE:
        raise LockError(
            f"purpose: expected up to {_PURPOSE} characters on one line, such as upgrade.yml, found {wish.purpose!r}"
        )
    if not SECONDS[0] <= wish.seconds <= SECONDS[1]:
        raise LockError(f"seconds: expected {SECONDS[0]} to {SECONDS[1]}, found {wish.seconds}")


def path_of(wish: Wish) -> Path:
    """Where the lock lies."""
    return wish.directory / f"{wish.name}.json"


def read(path: Path) -> Lock | None:
    """The lock that lies there. A file that cannot be read is somebody's lock all the same."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r} instead of {FORMAT}")
        words = [str(found[name]) for name in ("owner", "run", "purpose")]
        times = [float(found[name]) for name in ("since", "until")]
        # A time that cannot be written is none.
        for one in times:
            _time(one)
        return Lock(words[0], words[1], words[2], times[0], times[1])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, OSError) as exc:
        raise LockError(
            f"{path}: expected a lock as this module writes it, found something else ({type(exc).__name__}: {exc})."
            " Delete the file when nobody works on the fleet."
        ) from exc


def hold(wish: Wish, clock: t.Callable[[], float] = time.time, check_mode: bool = False) -> Outcome:
    """Take the lock, or keep it for longer. In check mode nothing is touched, and somebody else's lock is only reported."""
    check(wish)
    path = path_of(wish)
    with contextlib.nullcontext() if check_mode else _alone(wish):
        there, now = read(path), clock()
        mine = Lock(wish.owner, wish.run, wish.purpose, now, now + wish.seconds)
        outcome = Outcome(holder=there, before=_text(there))
        outcome.after = outcome.before
        if there and (there.owner, there.run) == (wish.owner, wish.run):
            # The same run goes on: what people are told of it stays as it was.
            outcome.holder = replace(there, until=max(there.until, mine.until))
            if not check_mode:
                _write(path, outcome.holder)
            return outcome
        if there:
            outcome.how = _reason(there, wish, now)
            if not outcome.how:
                outcome.other = there
                return outcome
            outcome.displaced = there
        outcome.changed, outcome.holder, outcome.after = True, mine, _text(mine)
        if not check_mode:
            _write(path, mine)
    return outcome


def _reason(there: Lock, wish: Wish, now: float) -> str:
    """Why a lock of somebody else may be taken; empty when it may not."""
    if there.until <= now:
        return "its time had run out"
    if wish.succeeds and (there.owner, there.run) == (wish.owner, wish.succeeds):
        return "its run has ended"
    return "take_over" if wish.take_over else ""


def release(wish: Wish, check_mode: bool = False) -> Outcome:
    """Give the lock back. That of another run stays, unless it is taken over."""
    check(wish, releasing=True)
    path = path_of(wish)
    # A host without the directory has no lock, and gets no directory for that.
    if not wish.directory.is_dir():
        return Outcome()
    with contextlib.nullcontext() if check_mode else _alone(wish):
        there = read(path)
        outcome = Outcome(holder=there, before=_text(there))
        outcome.after = outcome.before
        if there is None:
            return outcome
        own = (there.owner, there.run) == (wish.owner, wish.run)
        if not own and not wish.take_over:
            outcome.other = there
            return outcome
        if not own:
            outcome.displaced, outcome.how = there, "take_over"
        outcome.changed, outcome.holder, outcome.after = True, None, ""
        if not check_mode:
            path.unlink()
    return outcome


def _text(lock: Lock | None) -> str:
    return f"{lock.words()}\n" if lock else ""


@contextlib.contextmanager
def _alone(wish: Wish) -> t.Iterator[None]:
    """One at a time on this host."""
    for folder in (wish.directory.parent, wish.directory):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
    path = wish.directory / f".{wish.name}.flock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(path, _FLOCK_SECONDS))
        except TimeoutError as exc:
            raise LockError(str(exc)) from exc
        yield


def _write(path: Path, lock: Lock) -> None:
    """It appears whole or not at all, and is still there after a loss of power."""
    staged = path.with_name(f".{path.name}.new")
    found = {"format": FORMAT, **vars(lock)}
    with staged.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(found, indent=2, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    staged.chmod(0o644)
    staged.replace(path)
