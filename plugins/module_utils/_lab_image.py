# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The root file system every lab host starts from: made once, kept in the cache, never changed afterwards.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab
from ansible_collections.gpufleet.deepseek.plugins.module_utils._lab_registry import Settings

# Part of the key: a new number makes new images.
RECIPE = 2
# What timeout(1) says when it had to end a command.
TIMED_OUT = (124, 137)
# Every process of a build has this in its environment, with the build's directory.
BUILD_MARK = "GPUFLEET_LAB_BUILD"
# Package lists in a new image count as this old: roles that take lists of a day read them again after a few hours, before
# the archive has moved on too far.
LISTS_AGE = 20 * 3600

MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "man-db.timer",
    "systemd-networkd-wait-online.service",
)
ENABLED = {
    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
    "etc/systemd/system/multi-user.target.wants/ssh.service": "/lib/systemd/system/ssh.service",
}
FILES = {
    # The lab generates one host key of this kind for each host and pins it.
    "etc/ssh/sshd_config.d/10-gpufleet-lab.conf": (
        "HostKey /etc/ssh/ssh_host_ed25519_key\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "UseDNS no\n"
    ),
    # A lab host is thrown away, not recovered after a power cut.
    "etc/dpkg/dpkg.cfg.d/gpufleet-lab": "force-unsafe-io\n",
}


@dataclass(frozen=True)
class Image:
    """What an image is made of; the same ingredients give the same place."""

    suite: str
    packages: tuple[str, ...]
    sources: tuple[str, ...]
    architecture: str
    kind: str = "container"  # container, vm
    recipe: int = 0  # of the kind, beside RECIPE

    @property
    def key(self) -> str:
        ingredients = [RECIPE, self.suite, sorted(self.packages), list(self.sources), self.architecture]
        if self.kind != "container":
            ingredients += [self.kind, self.recipe]
        return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        return f"{self.suite}-{self.key}" if self.kind == "container" else f"{self.suite}-{self.kind}-{self.key}"


def image_of(
    suite: str,
    packages: Sequence[str],
    sources: Sequence[str],
    commands: _lab.Commands,
    kind: str = "container",
    recipe: int = 0,
) -> Image:
    rc, out, _err = commands.try_("dpkg", "--print-architecture")
    architecture = out.strip() if rc == 0 else os.uname().machine
    return Image(suite, tuple(packages), tuple(sources), architecture, kind, recipe)


def image_dir(lab: _lab.Lab, image: Image) -> Path:
    return lab.images_dir / image.name


def is_complete(directory: Path) -> bool:
    return (directory / "image.json").is_file()


def build_argv(image: Image, target: Path, sources: Sequence[str], seed: Path, seconds: int) -> list[str]:
    return [
        "timeout",
        "--kill-after=10",
        str(seconds),
        "mmdebstrap",
        "--mode=root",
        "--variant=apt",
        "--format=directory",
        f"--architectures={image.architecture}",
        f"--include={','.join(image.packages)}",
        # Lists stay: a new host installs packages without reading them again on its first day.
        "--skip=cleanup/apt/lists",
        "--dpkgopt=force-unsafe-io",
        f'--setup-hook=cp -a "{seed}/." "$1/"',
        image.suite,
        str(target),
        *sources,
    ]


def finish(root: Path) -> None:
    """What turns a bare Debian into the start of every lab host."""
    for required in ("usr/lib/systemd/systemd", "usr/sbin/sshd", "usr/bin/python3"):
        if not (root / required).exists():
            raise _lab.LabError(f"The new image has no /{required}: add its package to lab_image_packages.")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_text("", encoding="utf-8")
    for unit in MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for name, to in ENABLED.items():
        link = root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(to)
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    then = time.time() - LISTS_AGE
    os.utime(root / "var/lib/apt/lists", (then, then))


def is_builder(pid: int, partial: Path) -> bool:
    """A process of a build in this directory: it says so in its environment, or works inside."""
    with contextlib.suppress(OSError):
        if f"{BUILD_MARK}={partial}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return True
    for link in ("root", "cwd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/{link}").startswith(f"{partial}/"):
                return True
    return False


def reap_builders(partial: Path) -> None:
    """End what an interrupted build left running."""
    for _attempt in range(50):
        found = [item.pid for item in _lab.processes() if item.pid != os.getpid() and is_builder(item.pid, partial)]
        if not found:
            return
        for pid in found:
            _lab.end(pid, signal.SIGKILL)
        _lab.wait_gone(found, 2)
    raise _lab.LabError(f"Processes of an interrupted build in {partial} do not end.")


def remove_partial(partial: Path, commands: _lab.Commands) -> None:
    # A helper of the killed build, such as the one that unpacks, can outlive it for a moment and write while we remove.
    for attempt in range(20):
        reap_builders(partial)
        for mount in _lab.mounts_below(partial):
            commands.try_("umount", "--lazy", mount.target)
        if _lab.mounts_below(partial):
            raise _lab.LabError(f"Something is still mounted below {partial}: unmount it, then run this again.")
        try:
            if partial.exists():
                shutil.rmtree(partial)
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.ENOENT) or attempt == 19:
                raise
            time.sleep(0.5)
        else:
            return


def build(
    lab: _lab.Lab,
    image: Image,
    settings: Settings,
    commands: _lab.Commands,
    *,
    attempts: int,
    delay: float,
    timeout: int,
    wait: float,
    seed_files: Mapping[str, tuple[bytes, int]] | None = None,
    then: Callable[[Path], None] | None = None,
) -> bool:
    """Make the image unless it is there; say whether it was made. One builder at a time, whichever lab asks.

    O(seed_files) are there before the first package; O(then) gets the directory when the root file system is complete.
    """
    target = image_dir(lab, image)
    if is_complete(target):
        return False
    if os.geteuid() != 0:
        raise _lab.LabError("Making an image needs root on this machine: run it as root.")
    _lab.ensure_dir(lab.images_dir, 0o755)
    with _lab.locked(lab.images_dir / ".lock", wait, f"The image cache {lab.images_dir}", lab.name):
        if is_complete(target):
            return False
        partial = lab.images_dir / f".partial-{image.name}"
        keys = lab.images_dir / f".keys-{image.name}"
        for attempt in range(1, attempts + 1):
            remove_partial(partial, commands)
            seed, root = partial / "seed", partial / "rootfs"
            _write_seed(seed, settings, seed_files or {})
            sources = _own_keys(keys, settings, image.sources)
            started = time.time()
            argv = build_argv(image, root, sources, seed, timeout)
            rc, out, err = commands.try_(*argv, env={BUILD_MARK: str(partial)})
            _lab.write_file(lab.images_dir / f"{image.name}.log", f"{out}{err}".encode(), 0o644)
            if rc == 0:
                break
            if attempt < attempts:
                time.sleep(delay)
        else:
            remove_partial(partial, commands)
            last = " ".join((err or out).strip().splitlines()[-4:])
            if rc in TIMED_OUT:
                last = f"it did not end within {timeout} s; the last it said: {last}"
            raise _lab.LabError(
                f"mmdebstrap could not make a {image.suite} image in {attempts} attempts: {last}"
                f" (the whole log: {lab.images_dir / f'{image.name}.log'})"
            )
        finish(root)
        if then is not None:
            then(partial)
        shutil.rmtree(seed)
        shutil.rmtree(keys, ignore_errors=True)
        about = {
            "suite": image.suite,
            "packages": sorted(image.packages),
            "sources": list(image.sources),
            "architecture": image.architecture,
            "seconds": round(time.time() - started, 1),
        }
        _lab.write_file(partial / "image.json", json.dumps(about, indent=2).encode(), 0o644)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        return True


def _write_seed(seed: Path, settings: Settings, more: Mapping[str, tuple[bytes, int]]) -> None:
    seed.mkdir(parents=True)
    apt = {name: file for name, file in settings.files.items() if name.startswith("etc/apt/")}
    for name, (content, mode) in {**apt, **more}.items():
        path = seed / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _lab.write_file(path, content, mode)


def _own_keys(keys: Path, settings: Settings, sources: Sequence[str]) -> list[str]:
    """Keys that exist only inside a source become files for as long as the build runs."""
    lines = list(sources)
    for name, content in settings.keyrings.items():
        if not os.path.exists(name):
            keys.mkdir(parents=True, exist_ok=True)
            path = keys / os.path.basename(name)
            path.write_bytes(content)
            lines = [line.replace(name, str(path)) for line in lines]
    return lines


def in_use(lab: _lab.Lab, table: list[_lab.Mount]) -> set[str]:
    """Names of the images some lab host's root or disk is made of."""
    used = set()
    for mount in table:
        lower = mount.option("lowerdir") if mount.fstype == "overlay" else None
        if lower and Path(lower).parent.parent == lab.images_dir:
            used.add(Path(lower).parent.name)
    prefix = f"file={lab.images_dir}/"
    for item in _lab.processes():
        used.update(word.removeprefix(prefix).split("/")[0] for word in item.argv if word.startswith(prefix))
    return used


def purge(lab: _lab.Lab, commands: _lab.Commands, check: bool) -> tuple[list[str], list[str]]:
    """Remove every image no host stands on; return what went and what stayed."""
    if not lab.images_dir.is_dir():
        return [], []
    used = in_use(lab, _lab.mounts())
    gone: list[str] = []
    kept: list[str] = []
    for path in sorted(lab.images_dir.iterdir()):
        if path.name == ".lock":
            continue
        if path.name.removesuffix(".log") in used:
            kept.append(path.name)
            continue
        gone.append(path.name)
        if check:
            continue
        if path.is_dir():
            remove_partial(path, commands)
        else:
            path.unlink()
    if not check and not kept:
        (lab.images_dir / ".lock").unlink(missing_ok=True)
        lab.images_dir.rmdir()
        for lock in lab.cache_dir.glob("*.lock"):
            if _lab.lock_holder(lock) is None:
                lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            lab.cache_dir.rmdir()
    return gone, kept


def stop_builder(lab: _lab.Lab, commands: _lab.Commands, check: bool) -> bool:
    """End a build this lab began and nobody waits for any more."""
    holder = _lab.lock_holder(lab.images_dir / ".lock") if lab.images_dir.is_dir() else None
    mine = holder is not None and holder[1] == lab.name
    partials = list(lab.images_dir.glob(".partial-*")) if lab.images_dir.is_dir() else []
    abandoned = holder is None and bool(partials)
    if check or not (mine or abandoned):
        return mine or abandoned
    if holder is not None:
        _lab.end(holder[0], signal.SIGKILL)
        _lab.wait_gone([holder[0]], 5)
    for partial in partials:
        remove_partial(partial, commands)
    for keys in lab.images_dir.glob(".keys-*"):
        shutil.rmtree(keys, ignore_errors=True)
    return True
