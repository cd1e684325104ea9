# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Which images go: on what podman 4.3.1 prints, cut down to what is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _container_images as containers

REPOSITORY = "registry.example:5000/engines/vllm"
NEW, OLD, OLDER = (f"sha256:{digit * 64}" for digit in "abc")


def image(number: int, *names: str, size: int = 1000) -> dict[str, Any]:
    """An image as ``podman image inspect`` prints it."""
    return {
        "Id": f"{number:064x}",
        "RepoTags": [name for name in names if "@" not in name],
        "RepoDigests": [name for name in names if "@" in name],
        "Size": size,
    }


def chosen(images: list[dict[str, Any]], used: list[str] | None = None, keep: tuple[str, ...] = (NEW,)) -> list[str]:
    """Ids of what would go."""
    found = containers.parse_images(json.dumps(images))
    there = containers.parse_used(json.dumps([{"Image": one} for one in used or []]))
    return [one.id.lstrip("0") for one in containers.choose(found, there, REPOSITORY, keep)]


def test_what_no_release_needs_goes() -> None:
    images = [image(1, f"{REPOSITORY}@{NEW}"), image(2, f"{REPOSITORY}@{OLD}"), image(3, f"{REPOSITORY}@{OLDER}")]
    assert chosen(images) == ["2", "3"]
    assert chosen(images, keep=(NEW, OLDER)) == ["2"]
    assert chosen(images, keep=(NEW, OLD, OLDER)) == []


def test_one_of_several_digests_is_enough_to_stay() -> None:
    # Of a list for several machines an image has the digest of the list, and its own.
    assert chosen([image(2, f"{REPOSITORY}@{OLD}", f"{REPOSITORY}@{NEW}")]) == []


def test_what_a_container_has_stays() -> None:
    images = [image(2, f"{REPOSITORY}@{OLD}"), image(3, f"{REPOSITORY}@{OLDER}")]
    assert chosen(images, used=[f"{2:064x}"]) == ["3"]
    # docker writes the kind of hash before an id.
    assert chosen(images, used=[f"sha256:{3:064x}"]) == ["2"]
    images[0]["Id"] = f"sha256:{2:064x}"
    assert chosen(images, used=[f"sha256:{2:064x}"]) == ["3"]


@pytest.mark.parametrize(
    "names",
    [
        (f"registry.example:5000/engines/sglang@{OLD}",),
        (f"registry.example/engines/vllm@{OLD}",),
        (f"{REPOSITORY}-nightly@{OLD}",),
        # The same image is something else's, too.
        (f"{REPOSITORY}@{OLD}", f"localhost/ours@{OLD}"),
        (f"{REPOSITORY}@{OLD}", "localhost/ours:1"),
        # Of the repository, and nobody can say which one.
        (f"{REPOSITORY}:latest",),
        (),
        ("<none>:<none>",),
    ],
)
def test_what_is_not_only_of_this_repository_stays(names: tuple[str, ...]) -> None:
    assert chosen([image(2, *names)]) == []


def test_a_tag_of_the_same_repository_does_not_keep_an_image() -> None:
    assert chosen([image(2, f"{REPOSITORY}:0.9", f"{REPOSITORY}@{OLD}")]) == ["2"]


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        (f"a/b@{OLD}", "a/b"),
        ("a/b:1", "a/b"),
        ("host:5000/b", "host:5000/b"),
        ("host:5000/b:1", "host:5000/b"),
        (f"host:5000/b:1@{OLD}", "host:5000/b"),
        ("b:1", "b"),
    ],
)
def test_repository_of(name: str, repository: str) -> None:
    assert containers.repository_of(name) == repository


@pytest.mark.parametrize(
    ("repository", "keep", "words"),
    [
        (f"{REPOSITORY}:latest", [NEW], "repository: expected"),
        (f"{REPOSITORY}@{NEW}", [NEW], "repository: expected"),
        (f"{REPOSITORY}/", [NEW], "repository: expected"),
        ("", [NEW], "repository: expected"),
        (REPOSITORY, [], "keep: expected at least one"),
        (REPOSITORY, [NEW, ""], "keep: expected sha256:"),
        (REPOSITORY, ["sha256:abc"], "keep: expected sha256:"),
    ],
)
def test_refused(repository: str, keep: list[str], words: str) -> None:
    with pytest.raises(containers.ImagesError, match=words):
        containers.check(repository, keep)


class Program:
    """podman, as far as the module uses it, with images and containers that change."""

    def __init__(self, images: list[dict[str, Any]], used: dict[str, str]) -> None:
        self.images, self.used = images, used
        self.removed: list[list[str]] = []

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        words, ids = argv[1:3], argv[3:]
        if argv[1:] == ["image", "ls", "--quiet", "--no-trunc"]:
            return 0, "".join(f"sha256:{one['Id']}\n" for one in self.images for _name in one["RepoDigests"]), ""
        if argv[1:] == ["container", "ls", "--all", "--quiet", "--no-trunc"]:
            return 0, "\n".join(self.used), ""
        if words == ["image", "inspect"]:
            assert len(ids) == len(set(ids)), "an image with two names is listed twice"
            return 0, json.dumps([one for one in self.images if f"sha256:{one['Id']}" in ids]), ""
        if words == ["container", "inspect"]:
            return 0, json.dumps([{"Image": self.used[one]} for one in ids]), ""
        if words == ["image", "rm"]:
            if any(name in self.used.values() for name in ids):
                return 2, "", "Error: image is in use by a container:\n consider listing external containers"
            self.removed.append(ids)
            return 0, "", ""
        raise AssertionError(argv)


def test_a_store_reads_and_removes() -> None:
    two = image(2, f"{REPOSITORY}@{OLD}", f"{REPOSITORY}@{OLDER}")
    tagged = image(3, f"{REPOSITORY}@{OLD}", f"{REPOSITORY}:1", f"{REPOSITORY}:2")
    program = Program([two, tagged], {"c1": f"{9:064x}"})
    store = containers.Store("/usr/bin/podman", program)
    assert store.used() == {f"{9:064x}"}
    for one in store.images():
        store.remove(one)
    assert program.removed == [[f"{2:064x}"], [f"{REPOSITORY}:1", f"{REPOSITORY}:2"]]


def test_what_somebody_has_begun_to_use_is_an_error_and_stays() -> None:
    program = Program([image(2, f"{REPOSITORY}@{OLD}")], {})
    store = containers.Store("/usr/bin/podman", program)
    (one,) = store.images()
    program.used["c1"] = one.id
    with pytest.raises(
        containers.ImagesError, match="/usr/bin/podman image rm failed: Error: image is in use by a container"
    ):
        store.remove(one)
    assert containers.Store("/usr/bin/podman", Program([], {})).images() == []
    assert containers.Store("/usr/bin/podman", Program([], {})).used() == set()
