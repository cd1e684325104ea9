# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Which images of one repository are not needed any more, and their end. Works the same with podman and docker."""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import dataclass

_REPOSITORY = re.compile(r"[a-z0-9][A-Za-z0-9._:/-]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NO_NAME = {"<none>:<none>", "<none>@<none>"}


class ImagesError(Exception):
    """The wish cannot be met; the text says why."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


@dataclass(frozen=True)
class Image:
    """An image as the host has it.

    :ivar tags, digests: its names, REPOSITORY:TAG and REPOSITORY@DIGEST.
    """

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    bytes: int

    @property
    def names(self) -> list[str]:
        """All of them."""
        return sorted({*self.tags, *self.digests})

    def words(self) -> str:
        """One line for people."""
        return f"{', '.join(self.names)} ({self.bytes} bytes)"

    def document(self) -> dict[str, t.Any]:
        """For those who read the result of the module."""
        return {"id": self.id, "names": self.names, "bytes": self.bytes}


def check(repository: str, keep: t.Sequence[str]) -> None:
    """Look at the values before anything is touched."""
    last = repository.rpartition("/")[2]
    if not _REPOSITORY.fullmatch(repository) or ":" in last or repository.endswith("/"):
        raise ImagesError(
            f"repository: expected REGISTRY/NAME without a tag and without a digest, found {repository!r}"
        )
    if not keep:
        raise ImagesError("keep: expected at least one digest, found none")
    for digest in keep:
        if not _DIGEST.fullmatch(digest):
            raise ImagesError(f"keep: expected sha256: and 64 hexadecimal digits in each, found {digest!r}")


def _bare(identity: str) -> str:
    """An id of an image; docker writes the kind of hash before it, podman does not."""
    return identity.removeprefix("sha256:")


def parse_images(text: str) -> list[Image]:
    """Images from the output of ``image inspect``."""
    found = json.loads(text)
    return [
        Image(
            _bare(str(one["Id"])),
            tuple(name for name in one.get("RepoTags") or [] if name not in _NO_NAME),
            tuple(name for name in one.get("RepoDigests") or [] if name not in _NO_NAME),
            int(one.get("Size") or 0),
        )
        for one in found
    ]


def parse_used(text: str) -> set[str]:
    """Ids of the images of containers, from the output of ``container inspect``."""
    return {_bare(str(one["Image"])) for one in json.loads(text)}


def repository_of(name: str) -> str:
    """The repository in REPOSITORY:TAG or REPOSITORY@DIGEST. A registry may have a port."""
    plain = name.partition("@")[0]
    head, slash, last = plain.rpartition("/")
    return f"{head}{slash}{last.partition(':')[0]}"


def choose(images: t.Sequence[Image], used: t.Collection[str], repository: str, keep: t.Collection[str]) -> list[Image]:
    """The images to remove: with a name, every name of this repository, no digest that is kept, and no container that has it."""
    kept = {f"{repository}@{digest}" for digest in keep}
    return [
        one
        for one in images
        if one.digests
        and {repository_of(name) for name in one.names} == {repository}
        and not kept.intersection(one.digests)
        and one.id not in used
    ]


class Store:
    """The images of one host."""

    def __init__(self, program: str, run: Run) -> None:
        self.program = program
        self.run = run

    def _ask(self, *words: str) -> str:
        rc, out, err = self.run([self.program, *words])
        if rc != 0:
            raise ImagesError(
                f"{self.program} {words[0]} {words[1]} failed: {' '.join((err.strip() or out.strip()).split())}"
            )
        return out

    def images(self) -> list[Image]:
        """All of them."""
        ids = sorted(set(self._ask("image", "ls", "--quiet", "--no-trunc").split()))
        return parse_images(self._ask("image", "inspect", *ids)) if ids else []

    def used(self) -> set[str]:
        """Those that a container has, running or not."""
        ids = sorted(set(self._ask("container", "ls", "--all", "--quiet", "--no-trunc").split()))
        return parse_used(self._ask("container", "inspect", *ids)) if ids else set()

    def remove(self, image: Image) -> None:
        """Without force: the program refuses what is in use after all, and what has another name meanwhile."""
        # With several tags an image has no end by its id: the last tag takes it along.
        self._ask("image", "rm", *(image.tags if len(image.tags) > 1 else [image.id]))
