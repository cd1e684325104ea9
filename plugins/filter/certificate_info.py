# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that reads a server certificate; documented in the YAML file of the same name."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._certificate import certificate_info as describe


def certificate_info(
    certificate: t.Any, key: t.Any = "", ca: t.Any = "", names: t.Sequence[str] = ()
) -> dict[str, t.Any]:
    """Describe a certificate in PEM form and say what is wrong with it, its key and its authority."""
    for name, value in (("certificate", certificate), ("key", key), ("ca", ca)):
        if not isinstance(value, str):
            raise AnsibleFilterError(
                f"certificate_info: {name}: expected text in PEM form, found {type(value).__name__}"
            )
    return describe(certificate, key, ca, names)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {"certificate_info": certificate_info}
