# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Write the requirements of an engine, with the hashes of what a GPU host may install, from a resolved lock file.

    echo vllm==0.33.0 > vllm.in
    uv pip compile --universal --python-version 3.11 --only-binary :all: --format pylock.toml -o pylock.vllm.toml vllm.in
    python3 tests/tools/engine_requirements.py vllm 0.33.0 pylock.vllm.toml

SGLang's are those of sglang[tracing], without which it cannot export traces.
Kept are wheels for Linux on x86_64 and the Pythons of the supported distributions; the rest of the lock file is three times as much.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ROOT / "roles" / "deepseek_service" / "files" / "engines"
# Debian 12 and 13, Ubuntu 24.04.
PYTHONS = ("cp311", "cp312", "cp313")
PLATFORM = re.compile(r"(^|\.)(any|manylinux\w*_x86_64|linux_x86_64)($|\.)")
OTHER_SYSTEMS = re.compile(
    r"sys_platform == '(win32|darwin)'|platform_machine == '(aarch64|arm64|ppc64le|s390x)'|os_name == 'nt'"
)


def usable(name: str) -> bool:
    """Whether a wheel with this file name runs on a supported host."""
    python, abi, platform = name.removesuffix(".whl").split("-")[-3:]
    if not PLATFORM.search(platform):
        return False
    if abi == "abi3":
        return any(int(tag.removeprefix("cp3") or 0) <= 11 for tag in python.split(".") if tag.startswith("cp3"))
    return any(tag in (*PYTHONS, "py3", "py2.py3") or tag.startswith("py3") for tag in python.split("."))


def requirement(package: dict[str, Any]) -> tuple[str, int]:
    """Lines of one package, and its largest wheel; no lines when no supported host installs it."""
    marker = package.get("marker", "")
    if marker and OTHER_SYSTEMS.search(marker) and " or " not in marker:
        return "", 0
    wheels = [
        wheel for wheel in package.get("wheels", []) if usable(wheel.get("name") or wheel["url"].rpartition("/")[2])
    ]
    if not wheels:
        return "", 0
    # All Pythons that are supported are newer than that.
    marker = marker.removeprefix("python_full_version >= '3.11'").removeprefix(" and ")
    pin = f"{package['name']}=={package['version']}" + (f" ; {marker}" if marker else "")
    hashes = sorted(wheel["hashes"]["sha256"] for wheel in wheels)
    text = pin + "".join(f" \\\n    --hash=sha256:{digest}" for digest in hashes) + "\n"
    return text, max(int(wheel.get("size", 0)) for wheel in wheels)


def main() -> int:
    """Read the lock file that is named."""
    engine, version, lock = sys.argv[1:]
    packages = tomllib.loads(Path(lock).read_text("utf-8"))["packages"]
    found = [requirement(package) for package in packages]
    path = ENGINES / engine / "requirements" / f"{version}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "# Written by tests/tools/engine_requirements.py: Linux on x86_64, Python 3.11 to 3.13.\n"
    path.write_text(head + "".join(text for text, _size in found), "utf-8")
    kept = sum(1 for text, _size in found if text)
    print(
        f"{path.relative_to(ROOT)}: {kept} of {len(found)} packages, {sum(size for _text, size in found) / 2**30:.1f} GiB of wheels"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
