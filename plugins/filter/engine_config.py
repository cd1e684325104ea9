# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configuration of the GPU engines, for role deepseek_service."""

from __future__ import annotations

import dataclasses
import functools
import typing as t
from pathlib import Path

import yaml
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _engine_config as configs
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _engine_schema as schemas


@functools.lru_cache(maxsize=8)
def _read(path: str, _changed: int) -> t.Any:
    """A schema is large and is asked for often."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with open(path, "rb") as stream:
        return loader(stream).get_single_data()


def _schema(value: object) -> t.Mapping[str, t.Any]:
    if isinstance(value, str):
        path = Path(value)
        if not path.is_file():
            known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yml"))) or "none"
            raise AnsibleFilterError(
                f"deepseek_service_engine_version: expected a version with a schema ({known}), found {path.stem}"
            )
        value = _read(str(path), path.stat().st_mtime_ns)
    missing = [name for name in ("engine", "version", "keys") if not isinstance(value, t.Mapping) or name not in value]
    if missing:
        raise AnsibleFilterError(f"expected the schema of an engine, found nothing named {', '.join(missing)} in it")
    return {"removed": {}, "elsewhere": {}, **t.cast("t.Mapping[str, t.Any]", value)}


def engine_config(
    plan: object, engine: str, host: str, schema: object, settings: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """What an engine is told on one host."""
    if engine not in configs.ENGINES:
        raise AnsibleFilterError(f"engine: expected one of {', '.join(configs.ENGINES)}, found {engine}")
    known = {entry.name for entry in dataclasses.fields(configs.Settings)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise AnsibleFilterError(f"settings: expected {', '.join(sorted(known))}; found {', '.join(unknown)}")
    try:
        wanted = configs.Settings(**settings)
    except TypeError as exc:
        raise AnsibleFilterError(f"settings: {exc}") from exc
    return configs.configure(plan if isinstance(plan, t.Mapping) else {}, engine, host, _schema(schema), wanted)


def engine_config_problems(config: object, schema: object, file_name: str = "engine.yml") -> list[str]:
    """What is wrong with a configuration, in sentences."""
    return schemas.problems(config, _schema(schema), file_name)


def engine_image_problems(image: str, digest: str = "") -> list[str]:
    """What is wrong with a container image, in sentences."""
    return configs.image_problems(str(image), str(digest))


class FilterModule:
    """Filters of role deepseek_service."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Names and functions."""
        return {
            "engine_config": engine_config,
            "engine_config_problems": engine_config_problems,
            "engine_image_problems": engine_image_problems,
        }
