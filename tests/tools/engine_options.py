# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Write the options that the stand-in of an engine knows, from the wheel of that version.

    python3 tests/tools/engine_options.py sglang-0.5.23-cp311-cp311-manylinux_2_34_x86_64.whl vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl

The stand-in refuses what the engine refuses. So that it does not only repeat the schema of the role, its list is read in another way: text patterns, not
syntax trees, and no notes by hand.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from pathlib import Path

LIST = Path(__file__).resolve().parents[1] / "mock" / "engine_options.json"
FIELD = re.compile(
    r"^    ([a-z]\w*): (.*?)(?=^    [a-z]\w*: |^    #|^    def |^    @|^class |\Z)", re.MULTILINE | re.DOTALL
)
OPTION = re.compile(r"add_argument\(\s*((?:\"-[-\w]+\",?\s*)+)(.*?)\)\s*(?=\n)", re.DOTALL)


def texts(wheel: Path, pattern: str) -> list[str]:
    """Files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return [archive.read(name).decode() for name in sorted(archive.namelist()) if re.fullmatch(pattern, name)]


def kind(annotation: str) -> str:
    """How many words an option takes: flag, list or value."""
    head = annotation.strip().removeprefix("A[").strip()
    if re.match(r"(Optional\[)?bool\b", head) or "store_true" in annotation or "BooleanOptional" in annotation:
        return "flag"
    return "list" if re.match(r"(Optional\[)?([Ll]ist|set)\[", head) and "type_parser" not in annotation else "value"


def sglang(wheel: Path) -> dict[str, str]:
    """Fields of the argument groups, and what is registered by hand."""
    found: dict[str, str] = {}
    for text in texts(wheel, r"sglang/srt/arg_groups/fields/(?!__init__)\w+\.py"):
        for name, rest in FIELD.findall(text):
            if not rest.startswith("A[") or "no_cli=True" in rest:
                continue
            spelled = re.search(r'cli_name="--([-\w]+)"', rest)
            names = [spelled.group(1) if spelled else name.replace("_", "-")]
            aliases = re.search(r"aliases=\[(.*?)\]", rest, re.DOTALL)
            names += re.findall(r'"--([-\w]+)"', aliases.group(1)) if aliases else []
            found.update(dict.fromkeys(names, kind(rest)))
            if "BooleanOptional" in rest:
                found[f"no-{names[0]}"] = "flag"
    for text in texts(wheel, r"sglang/srt/server_args\.py"):
        for names, rest in OPTION.findall(text):
            found.update(dict.fromkeys(re.findall(r'"--([-\w]+)"', names), kind(rest)))
    return found


def vllm(wheel: Path) -> dict[str, str]:
    """Options of ``vllm serve``: those of the engine by its calls, those of the server by its fields."""
    annotations: dict[str, str] = {}
    for text in texts(wheel, r"vllm/config/\w+\.py"):
        annotations.update({name: kind(rest) for name, rest in FIELD.findall(text)})
    found: dict[str, str] = {}
    for text in texts(wheel, r"vllm/(engine/arg_utils|entrypoints/common/cli_args)\.py"):
        for names, rest in OPTION.findall(text):
            for name in re.findall(r'"--([-\w]+)"', names):
                field = re.search(r'_kwargs\[\s*"(\w+)"', rest)
                found[name] = annotations.get(field.group(1), "value") if field else kind(rest)
    front = "".join(texts(wheel, r"vllm/entrypoints/common/cli_args\.py"))
    for body in re.findall(r"^class \w*FrontendArgs.*?(?=^class |^def |\Z)", front, re.MULTILINE | re.DOTALL):
        found.update({name.replace("_", "-"): kind(rest) for name, rest in FIELD.findall(body)})
    found.update({f"no-{name}": "flag" for name, how in list(found.items()) if how == "flag"})
    return found


def main() -> int:
    """Read the wheels that are named."""
    known = json.loads(LIST.read_text("utf-8")) if LIST.exists() else {}
    for name in sys.argv[1:]:
        engine, version = Path(name).name.split("-")[:2]
        options = {"sglang": sglang, "vllm": vllm}[engine](Path(name))
        known[engine] = {"version": version, "options": dict(sorted(options.items()))}
        print(f"{engine} {version}: {len(options)} options")
    LIST.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
