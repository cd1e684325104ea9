# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.

from __future__ import annotations


class ModuleDocFragment:
    # What every lab module asks for.
    DOCUMENTATION = r"""
options:
  lab:
    description:
      - Name of the lab. Several labs can stand side by side on one machine.
    type: str
    required: true
  state_dir:
    description:
      - Where everything of this lab lies, except what labs share.
    type: path
    required: true
  cache_dir:
    description:
      - Where what labs share lies - images and locks. It outlives labs.
    type: path
    required: true
"""

    # Where lab hosts get packages from.
    REGISTRIES = r"""
options:
  suite:
    description:
      - Codename of the Debian release the hosts run.
    type: str
    default: bookworm
  apt_sources:
    description:
      - C(deb) lines for the hosts. Empty means the machine's own ones, moved to O(suite).
    type: list
    elements: str
    default: []
  nameservers:
    description:
      - Name servers for the hosts. Empty means the machine's own ones.
    type: list
    elements: str
    default: []
"""

    # The hosts of a lab, as every module reads them.
    HOSTS = r"""
options:
  hosts:
    description:
      - All hosts of the lab; each knows the names of the others.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the host.
        type: str
        required: true
      address:
        description: Its IPv4 address.
        type: str
        required: true
      kind:
        description: What it is made of.
        type: str
        choices: [container, vm]
        default: container
      certificate:
        description: Whether it gets a server certificate.
        type: bool
        default: false
"""
