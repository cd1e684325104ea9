#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: container_images
short_description: Remove the images of a repository that nobody needs any more
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Removes the images of one repository from a host, but for those whose digests are named.
  - An image that a container has, running or not, stays. So does one that has a name in another repository, or no digest of this one.
options:
  program:
    description: Full path of the program that has the images, podman or docker.
    type: path
    required: true
  repository:
    description: The repository, C(REGISTRY/NAME) without a tag.
    type: str
    required: true
  keep:
    description: Digests of the images that stay, each C(sha256:) and 64 hexadecimal digits. At least one.
    type: list
    elements: str
    required: true
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
notes:
  - Images are removed without force. One that somebody has begun to use meanwhile makes the module fail and stays.
seealso:
  - module: gpufleet.deepseek.model_release
"""

EXAMPLES = r"""
- name: Keep two images of the engine
  gpufleet.deepseek.container_images:
    program: /usr/bin/podman
    repository: registry.example/vllm-openai
    keep:
      - sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945
      - sha256:9a3ecbe5ed12ab4d8e11ba873c2f11161202b9454f53cda18c2baa0c0354bb5f
"""

RETURN = r"""
removed:
  description: Images that were removed, or would be in check mode.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Id of the image.
      type: str
    names:
      description: Its names, C(REPOSITORY:TAG) and C(REPOSITORY@DIGEST).
      type: list
      elements: str
    bytes:
      description: Its size. Layers that another image has too stay.
      type: int
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _container_images as containers


def _ensure(module: AnsibleModule) -> dict[str, t.Any]:
    """Choose, remove, report."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        return t.cast("tuple[int, str, str]", module.run_command(argv, environ_update={"LC_ALL": "C.UTF-8"}))

    wanted = module.params
    containers.check(wanted["repository"], wanted["keep"])
    store = containers.Store(wanted["program"], run)
    images = store.images()
    old = containers.choose(images, store.used(), wanted["repository"], wanted["keep"])
    if not module.check_mode:
        for image in old:
            store.remove(image)
    return {
        "changed": bool(old),
        "removed": [image.document() for image in old],
        "diff": {
            "before": "".join(f"{image.words()}\n" for image in old),
            "after": "",
            "before_header": wanted["repository"],
            "after_header": wanted["repository"],
        },
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "program": {"type": "path", "required": True},
            "repository": {"type": "str", "required": True},
            "keep": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        result = _ensure(module)
    except (containers.ImagesError, ValueError, KeyError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
