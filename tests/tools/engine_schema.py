# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Write the schema of an engine's configuration file from the wheel of that version.

    python3 tests/tools/engine_schema.py sglang sglang-0.5.23-cp311-cp311-manylinux_2_34_x86_64.whl
    python3 tests/tools/engine_schema.py vllm vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl

Nothing of the wheel is imported: names, types and choices are read from its syntax trees. What no tree says (ranges, keys that went away,
keys that hold secrets) comes from engine_schema_notes.yml. The result goes to roles/deepseek_service/files/engines/ENGINE/schemas/VERSION.yml.
"""

from __future__ import annotations

import argparse
import ast
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTES = Path(__file__).with_name("engine_schema_notes.yml")
SCHEMAS = ROOT / "roles" / "deepseek_service" / "files" / "engines"
SIMPLE = {"str": "str", "int": "int", "float": "float", "bool": "bool", "Path": "str"}
BOUNDED: dict[str, tuple[str, int]] = {
    "PositiveInt": ("int", 1),
    "NonNegativeInt": ("int", 0),
    "NonNegativeFloat": ("float", 0),
}
BOUNDS = {"ge": "min", "le": "max", "gt": "above", "lt": "below"}
# What Python may hold and a YAML file cannot say.
UNSPOKEN: dict[str, Any] = {"unspoken": True}
LISTS = {"list", "List", "Sequence", "tuple", "Tuple", "set", "Set", "frozenset", "Iterable"}
DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
WRAPPERS = {"A", "Annotated", "SkipValidation", "InitVar", "ClassVar", "Required", "NotRequired"}
DEPTH = 3
WIDTH = 150

Rule = dict[str, Any]


class Sources:
    """Classes, aliases and constants of some modules of a wheel, by name."""

    def __init__(self, trees: Iterable[ast.Module]) -> None:
        """Read them."""
        self.classes: dict[str, ast.ClassDef] = {}
        self.values: dict[str, ast.expr] = {}
        for tree in trees:
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    self.classes.setdefault(node.name, node)
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    self.values.setdefault(node.targets[0].id, node.value)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                    self.values.setdefault(node.target.id, node.value)

    def fields(self, name: str) -> Iterator[tuple[str, ast.AnnAssign]]:
        """Fields of a class and its bases."""
        node = self.classes.get(name)
        if node is None:
            return
        for base in node.bases:
            if isinstance(base, ast.Name):
                yield from self.fields(base.id)
        for entry in node.body:
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                yield entry.target.id, entry

    def field_rule(self, entry: ast.AnnAssign, depth: int = 0, seen: frozenset[str] = frozenset()) -> Rule:
        """What values a field permits: its annotation, and the bounds of its Field()."""
        rule = dict(self.rule(entry.annotation, depth, seen))
        rule.pop("unspoken", None)
        if rule.get("type") in ("int", "float") and isinstance(entry.value, ast.Call):
            for word in entry.value.keywords:
                if word.arg in BOUNDS and isinstance(word.value, ast.Constant):
                    rule[BOUNDS[word.arg]] = word.value.value
        return rule

    def strings(self, node: ast.expr | None) -> list[Any] | None:
        """The literal values of an expression: a list, a set, a name of one, or a sum of them."""
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            found: list[Any] = []
            for item in node.elts:
                part = item.value if isinstance(item, ast.Starred) else item
                values = [part.value] if isinstance(part, ast.Constant) else self.strings(part)
                if values is None:
                    return None
                found += values
            return found
        if isinstance(node, ast.Name) and node.id in self.values:
            return self.strings(self.values[node.id])
        if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name):
            if node.func.id in ("list", "set", "frozenset", "sorted", "tuple", "get_args"):
                return self.strings(node.args[0]) or self.literals(node.args[0])
            return None
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.BitOr)):
            left, right = self.strings(node.left), self.strings(node.right)
            return None if left is None or right is None else left + right
        return None

    def literals(self, node: ast.expr) -> list[Any] | None:
        """The values of a Literal type, or of a name of one."""
        if isinstance(node, ast.Name) and node.id in self.values:
            return self.literals(self.values[node.id])
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return [part.value for part in parts if isinstance(part, ast.Constant)]
        return None

    def rule(self, node: ast.expr, depth: int = 0, seen: frozenset[str] = frozenset()) -> Rule:
        """What values an annotation permits; {} is anything."""
        if isinstance(node, ast.Constant):
            if node.value is None:
                return {"nullable": True}
            return (
                self.rule(ast.parse(node.value, mode="eval").body, depth, seen) if isinstance(node.value, str) else {}
            )
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return self._either([node.left, node.right], depth, seen)
        if isinstance(node, ast.Subscript):
            return self._subscript(node, depth, seen)
        if isinstance(node, ast.Name):
            return self._name(node.id, depth, seen)
        return UNSPOKEN if isinstance(node, ast.Attribute) else {}

    def _subscript(self, node: ast.Subscript, depth: int, seen: frozenset[str]) -> Rule:
        name = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name in WRAPPERS:
            return self.rule(parts[0], depth, seen)
        if name == "Optional":
            return {**self.rule(parts[0], depth, seen), "nullable": True}
        if name == "Union":
            return self._either(parts, depth, seen)
        if name == "Literal":
            return _choices([part.value for part in parts if isinstance(part, ast.Constant)])
        if name in LISTS:
            items = self.rule(parts[0], depth, seen)
            return {"type": "list", **({"items": items} if items else {})}
        if name in DICTS:
            return {"type": "dict"}
        return UNSPOKEN if name in ("type", "Callable") else {}

    def _name(self, name: str, depth: int, seen: frozenset[str]) -> Rule:
        if name in SIMPLE:
            return {"type": SIMPLE[name]}
        if name in BOUNDED:
            kind, least = BOUNDED[name]
            return {"type": kind, "min": least}
        if name in LISTS or name in DICTS:
            return {"type": "list" if name in LISTS else "dict"}
        if name in self.values and name not in seen:
            return self.rule(self.values[name], depth, seen | {name})
        node = self.classes.get(name)
        if node is None:
            return {}
        bases = {getattr(base, "id", getattr(base, "attr", "")) for base in node.bases}
        if bases & {"Enum", "StrEnum", "IntEnum"}:
            return _members(node)
        if depth >= DEPTH or name in seen:
            return {"type": "dict"}
        keys = {
            field: self.field_rule(entry, depth + 1, seen | {name})
            for field, entry in self.fields(name)
            if not field.startswith("_") and "ClassVar" not in ast.unparse(entry.annotation)
        }
        return {"type": "dict", "keys": keys} if keys else {"type": "dict"}

    def _either(self, parts: list[ast.expr], depth: int, seen: frozenset[str]) -> Rule:
        rules = [self.rule(part, depth, seen) for part in parts]
        nullable = any(rule.get("nullable") for rule in rules)
        rules = [{key: value for key, value in rule.items() if key != "nullable"} for rule in rules]
        # An empty rule that came from None alone says nothing; any other one permits everything.
        kept = [rule for rule, part in zip(rules, parts, strict=True) if rule or not _is_none(part)]
        kept = [rule for rule in kept if rule != UNSPOKEN] or [{}]
        # Words, or any text: the words are what this version knows.
        words = [rule for rule in kept if rule.get("type") == "str" and "choices" in rule]
        kept = [rule for rule in kept if rule != {"type": "str"}] if words else kept
        if any(not rule for rule in kept):
            merged: Rule = {}
        elif len(kept) == 1:
            merged = kept[0]
        else:
            alternatives = [alternative for rule in kept for alternative in rule.get("any_of", [rule])]
            different = [rule for number, rule in enumerate(alternatives) if rule not in alternatives[:number]]
            merged = {"any_of": different} if len(different) > 1 else different[0]
        return {**merged, "nullable": True} if nullable and merged else merged


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _choices(values: list[Any]) -> Rule:
    kinds = {type(value).__name__ for value in values if value is not None}
    rule: Rule = {"type": kinds.pop()} if len(kinds) == 1 else {}
    rule["choices"] = [value for value in values if value is not None]
    return {**rule, "nullable": True} if None in values else rule


def _members(node: ast.ClassDef) -> Rule:
    """An enumeration: by the name of a member, or by its value where that is a word or a number."""
    pairs = [
        (entry.targets[0].id, entry.value)
        for entry in node.body
        if isinstance(entry, ast.Assign)
        and isinstance(entry.targets[0], ast.Name)
        and not entry.targets[0].id.startswith("_")
    ]
    values = [value.value for _name, value in pairs if isinstance(value, ast.Constant)]
    words: list[Any] = [value for value in values if isinstance(value, str)]
    numbers: list[Any] = [value for value in values if isinstance(value, int)]
    names: list[Any] = words if len(words) == len(pairs) else [name for name, _value in pairs]
    rules = [_choices(part) for part in (names, numbers) if part]
    return rules[0] if len(rules) == 1 else {"any_of": rules} if rules else {}


def modules(wheel: Path, *folders: str) -> list[ast.Module]:
    """Syntax trees of files of a wheel, those of the first folder first."""
    trees = []
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".py"))
        for folder in folders:
            for name in names:
                if name == folder or (
                    folder.endswith("/") and name.startswith(folder) and "/" not in name[len(folder) :]
                ):
                    trees.append(ast.parse(archive.read(name)))
    return trees


# -- SGLang -----------------------------------------------------------------------------------------------------------


def sglang(wheel: Path) -> tuple[dict[str, Rule], dict[str, str]]:
    """Keys of ``--config``: every long option, without its dashes."""
    groups = modules(wheel, "sglang/srt/arg_groups/fields/")
    sources = Sources(
        modules(
            wheel,
            "sglang/srt/arg_groups/fields/",
            "sglang/srt/arg_groups/choices.py",
            "sglang/srt/parser/reasoning_parser_names.py",
        )
    )
    keys: dict[str, Rule] = {}
    refused: dict[str, str] = {}
    for tree in groups:
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                for entry in node.body:
                    if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                        _sglang_field(sources, entry.target.id, entry.annotation, keys, refused)
    # Registered by hand in ServerArgs.add_cli_args, with choices that are made when it runs.
    names = sources.strings(ast.Name("REASONING_PARSER_NAMES"))
    keys["reasoning-parser"] = {"type": "str", "choices": ["auto", *names]} if names else {"type": "str"}
    keys["tool-call-parser"] = {"type": "str"}
    keys["kv-canary-real-data"] = {"type": "str", "choices": ["none", "partial", "all"]}
    keys["sampling-backend"] = {"type": "str", "choices": ["ascend", "flashinfer", "intel_xpu", "pytorch"]}
    return keys, refused


def _sglang_field(
    sources: Sources, name: str, annotation: ast.expr, keys: dict[str, Rule], refused: dict[str, str]
) -> None:
    if not (
        isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name) and annotation.value.id == "A"
    ):
        return
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    call = next((part for part in parts[1:] if isinstance(part, ast.Call)), None)
    meta = {word.arg: word.value for word in call.keywords} if call else {}
    if isinstance(meta.get("no_cli"), ast.Constant):
        return
    option = meta["cli_name"].value if isinstance(meta.get("cli_name"), ast.Constant) else name  # type: ignore[attr-defined]
    spellings = [str(option).lstrip("-").replace("_", "-")]
    if isinstance(meta.get("aliases"), ast.List):
        aliases = sources.strings(meta["aliases"]) or []
        spellings += [alias[2:] for alias in aliases if alias.startswith("--")]
    action = ast.unparse(meta["action"]) if "action" in meta else ""
    if action and "BooleanOptional" not in action and "Deprecated" not in action:
        refused.update(dict.fromkeys(spellings, "SGLang reads it from its command line only"))
        return
    rule = sources.rule(parts[0])
    rule.pop("nullable", None)
    if "type_parser" in meta and ("cuda_graph_config" in ast.unparse(meta["type_parser"])):
        rule = {"any_of": [{"type": "dict"}, {"type": "str"}]}
    elif "type_parser" in meta and rule.get("type") in ("list", "str"):
        parser = ast.unparse(meta["type_parser"])
        rule = {"any_of": [{"type": "str"}, {"type": "dict"}]} if parser == "json.loads" else {"type": "str"}
        if "int" in parser:
            rule = {"any_of": [{"type": "int"}, {"type": "str"}]}
    choices = sources.strings(meta.get("choices"))
    if choices:
        wanted = (
            {**rule.get("items", {}), "choices": choices}
            if rule.get("type") == "list"
            else {**rule, "choices": choices}
        )
        rule = {**rule, "items": wanted} if rule.get("type") == "list" else wanted
    for spelling in spellings:
        keys[spelling] = dict(rule)
    if "BooleanOptional" in action:
        keys[f"no-{spellings[0]}"] = {"type": "bool"}


# -- vLLM -------------------------------------------------------------------------------------------------------------


def vllm(wheel: Path) -> tuple[dict[str, Rule], dict[str, str]]:
    """Keys of ``--config``: every long option of ``vllm serve``, without its dashes."""
    engine = modules(wheel, "vllm/engine/arg_utils.py")
    front = modules(wheel, "vllm/entrypoints/common/cli_args.py")
    others = modules(
        wheel,
        "vllm/config/",
        "vllm/renderers/",
        "vllm/tool_parsers/",
        "vllm/model_executor/layers/quantization/__init__.py",
        "vllm/model_executor/model_loader/__init__.py",
        "vllm/v1/attention/backends/registry.py",
    )
    sources = Sources([*engine, *front, *others])
    keys: dict[str, Rule] = {}
    for tree in engine:
        _vllm_options(sources, tree, keys)
    for tree in front:
        _vllm_options(sources, tree, keys)
    for name, entry in sources.fields("FrontendArgs"):
        rule = sources.field_rule(entry)
        rule.pop("nullable", None)
        keys[name.replace("_", "-")] = rule
    keys.pop("config", None)
    return keys, {}


def _vllm_options(sources: Sources, tree: ast.Module, keys: dict[str, Rule]) -> None:
    classes: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Name) and call.func.id == "get_kwargs" and isinstance(call.args[0], ast.Name):
                classes[node.targets[0].id] = call.args[0].id
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
        ):
            continue
        words = [str(word.value) for word in node.args if isinstance(word, ast.Constant)]
        spellings = [word[2:] for word in words if word.startswith("--")]
        rule = _vllm_rule(sources, node, classes)
        for spelling in spellings:
            keys[spelling.replace("_", "-")] = rule


def _vllm_rule(sources: Sources, call: ast.Call, classes: dict[str, str]) -> Rule:
    words = {word.arg: word.value for word in call.keywords if word.arg}
    for word in call.keywords:
        for part in ast.walk(word.value) if word.arg is None else ():
            if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) and part.value.id in classes:
                fields = dict(sources.fields(classes[part.value.id]))
                entry = fields.get(str(ast.literal_eval(part.slice)))
                rule = sources.field_rule(entry) if entry is not None else {}
                rule.pop("nullable", None)
                return rule
    if "store_true" in ast.unparse(words.get("action", ast.Constant(""))) or "Boolean" in ast.unparse(
        words.get("action", ast.Constant(""))
    ):
        return {"type": "bool"}
    kind = words.get("type")
    rule = {"type": SIMPLE[kind.id]} if isinstance(kind, ast.Name) and kind.id in SIMPLE else {}
    choices = sources.strings(words.get("choices"))
    return {**rule, "choices": choices} if choices else rule


# -- the file ---------------------------------------------------------------------------------------------------------


def merge(rule: Rule, note: Rule) -> Rule:
    """A rule with what the notes say about it."""
    merged = {**rule, **{key: value for key, value in note.items() if key != "keys"}}
    if "keys" in note and "keys" in rule:
        merged["keys"] = {name: merge(inner, note["keys"].get(name, {})) for name, inner in rule["keys"].items()}
    return merged


def schema(
    engine: str, version: str, keys: dict[str, Rule], refused: dict[str, str], notes: dict[str, Any]
) -> dict[str, Any]:
    """The whole schema."""
    ranges = notes.get("ranges", {})
    unknown = sorted(set(ranges) - set(keys))
    if unknown:
        sys.exit(f"{NOTES.name}: {engine} {version} has no {', '.join(unknown)}")
    elsewhere = {**refused, **notes.get("elsewhere", {})}
    return {
        "engine": engine,
        "version": version,
        "source": f"read from the wheel of {engine} {version} by tests/tools/engine_schema.py",
        "dashes": True,
        "removed": {name: text for name, text in sorted(notes.get("removed", {}).items()) if name not in keys},
        "elsewhere": {name: text for name, text in sorted(elsewhere.items()) if name in keys or name in refused},
        "keys": {
            name: merge(rule, ranges.get(name, {})) for name, rule in sorted(keys.items()) if name not in elsewhere
        },
    }


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(part) for part in value) + "]"
    # In a flow mapping, so that a text is quoted where one needs it.
    return str(yaml.safe_dump([value], default_flow_style=True, width=10000)).strip()[1:-1]


def block(value: Any, indent: int) -> Iterator[str]:
    """Lines of a mapping or a list: what fits on a line stands on one."""
    pairs = value.items() if isinstance(value, dict) else [(None, part) for part in value]
    for key, part in pairs:
        head = " " * indent + ("-" if key is None else f"{flow(key)}:")
        if len(head) + len(flow(part)) < WIDTH or not isinstance(part, (dict, list)):
            yield f"{head} {flow(part)}"
        elif key is None:
            first, *rest = block(part, indent + 2)
            yield f"{head} {first.lstrip()}"
            yield from rest
        else:
            yield head
            yield from block(part, indent + 2)


def write(path: Path, content: dict[str, Any]) -> None:
    """One line for each key, so that versions can be compared."""
    text = "\n".join(block({key: value for key, value in content.items() if value}, 0)) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"---\n# Written by tests/tools/engine_schema.py. Change engine_schema_notes.yml, not this file.\n{text}",
        "utf-8",
    )


def main() -> int:
    """Read the command line and go."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=["sglang", "vllm"])
    parser.add_argument("wheel", type=Path)
    options = parser.parse_args()
    version = options.wheel.name.split("-")[1]
    notes = yaml.safe_load(NOTES.read_text("utf-8"))[options.engine]
    keys, refused = {"sglang": sglang, "vllm": vllm}[options.engine](options.wheel)
    path = SCHEMAS / options.engine / "schemas" / f"{version}.yml"
    write(path, schema(options.engine, version, keys, refused, notes))
    print(f"{path.relative_to(ROOT)}: {len(keys)} keys")
    return 0


if __name__ == "__main__":
    sys.exit(main())
