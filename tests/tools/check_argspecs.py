# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A role's defaults, its argument specification and its README name the same variables and mean the same.

Prints one line for each thing that is wrong and exits with 1 when there is any.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEMANDED = ("README.md", "defaults/main.yml", "meta/main.yml", "meta/argument_specs.yml", "tasks/main.yml")
INCLUDES = {"ansible.builtin.import_tasks", "ansible.builtin.include_tasks"}
INCLUDE_KEYS = {"name", "when", "tags", "vars", "loop", "loop_control", "apply"} | INCLUDES
COMMENTED = re.compile(r"^# ?([a-z][a-z0-9_]*):", re.MULTILINE)
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}


def load(path: Path) -> Any:
    """The YAML of a file; an empty one is an empty mapping."""
    return yaml.safe_load(path.read_text("utf-8")) or {}


def is_template(value: Any) -> bool:
    """A value whose type shows only when it is used."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def has_type(value: Any, kind: str) -> bool:
    """Whether a default has the type that the specification gives it."""
    if kind == "raw" or is_template(value):
        return True
    wanted = TYPES.get(kind)
    if wanted is None:
        return True
    if isinstance(value, bool) and kind != "bool":
        return False
    return isinstance(value, wanted)


def check_value(name: str, value: Any, option: dict[str, Any]) -> list[str]:
    """Compare one default with its specification."""
    kind = option.get("type", "str")
    if not has_type(value, kind):
        return [f"{name}: the default is {type(value).__name__} {value!r}, the specification says {kind}"]
    if is_template(value):
        return []
    found = []
    if kind == "list" and "elements" in option:
        found += [
            f"{name}: the default's item {item!r} is not {option['elements']}"
            for item in value
            if not has_type(item, option["elements"])
        ]
    choices = option.get("choices")
    items = value if kind == "list" else [value]
    if choices:
        found += [f"{name}: the default {item!r} is none of {choices}" for item in items if item not in choices]
    if "default" in option and option["default"] != value:
        found.append(f"{name}: the specification's default {option['default']!r} is not {value!r} of defaults/main.yml")
    if kind == "list" and "elements" not in option:
        found.append(f"{name}: a list without 'elements'")
    return found


def check_options(where: str, options: dict[str, Any]) -> list[str]:
    """Every option, and every option below it, has a type and a description."""
    found = []
    for name, option in options.items():
        path = f"{where}{name}"
        found += [f"{path}: no '{key}' in the specification" for key in ("type", "description") if not option.get(key)]
        found += check_options(f"{path}.", option.get("options", {}))
    return found


def check_main_tasks(role: Path) -> list[str]:
    """tasks/main.yml is a table of contents: it only includes files that exist."""
    tasks = load(role / "tasks" / "main.yml")
    found = []
    for task in tasks or []:
        named = [key for key in task if key in INCLUDES]
        if not named or set(task) - INCLUDE_KEYS:
            found.append(f"tasks/main.yml: {task.get('name', task)} does more than include a file")
            continue
        target = task[named[0]]
        file = target.get("file", "") if isinstance(target, dict) else target
        if not is_template(file) and not (role / "tasks" / file).is_file():
            found.append(f"tasks/main.yml: {file} does not exist")
    return found


def check_role(role: Path) -> list[str]:
    """All that is wrong with one role."""
    found = [f"{name} is missing" for name in DEMANDED if not (role / name).is_file()]
    if found:
        return found
    defaults_file = role / "defaults" / "main.yml"
    defaults = load(defaults_file)
    commented = set(COMMENTED.findall(defaults_file.read_text("utf-8"))) - set(defaults)
    commented = {name for name in commented if name.startswith(role.name + "_")}
    main = load(role / "meta" / "argument_specs.yml").get("argument_specs", {}).get("main")
    if not isinstance(main, dict):
        return ["meta/argument_specs.yml has no entry point 'main'"]
    options: dict[str, Any] = main.get("options", {})
    found += [
        f"{name}: in defaults/main.yml, not in the specification" for name in sorted(set(defaults) - set(options))
    ]
    found += [
        f"{name}: listed in defaults/main.yml, not in the specification" for name in sorted(commented - set(options))
    ]
    found += [
        f"{name}: in the specification, neither set nor listed as '# {name}:' in defaults/main.yml"
        for name in sorted(set(options) - set(defaults) - commented)
    ]
    found += [
        f"{name}: has a default and is required"
        for name in sorted(set(defaults) & set(options))
        if options[name].get("required")
    ]
    found += [
        f"{name}: a public variable begins with {role.name}_"
        for name in sorted(set(defaults) | set(options))
        if not name.startswith(role.name + "_")
    ]
    found += check_options("", options)
    for name in sorted(set(defaults) & set(options)):
        found += check_value(name, defaults[name], options[name])
    for path in sorted(role.glob("vars/**/*.yml")):
        found += [
            f"{path.relative_to(role)}: {name} does not begin with __{role.name}_"
            for name in load(path)
            if not name.startswith(f"__{role.name}_")
        ]
    readme = (role / "README.md").read_text("utf-8")
    found += [f"README.md does not mention {name}" for name in sorted(options) if not re.search(rf"\b{name}\b", readme)]
    if not (role / "tasks" / "remove.yml").is_file() and role.name not in ("fleet", "lab"):
        found.append("tasks/remove.yml is missing")
    found += check_main_tasks(role)
    return found


def main() -> int:
    """Check the roles named, or all."""
    roles = [Path(word) for word in sys.argv[1:]] or sorted(
        path for path in (ROOT / "roles").iterdir() if path.is_dir()
    )
    wrong = 0
    for role in roles:
        for line in check_role(role):
            print(f"ERROR roles/{role.name}: {line}")
            wrong += 1
    print(f"{len(roles)} roles, {wrong} errors")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
