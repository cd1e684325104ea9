# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The distribution's nginx, LuaJIT, busted and luacheck, unpacked beside the checkout: nothing is installed and no service is started.

lua_tools.py [PREFIX]     unpack them (default: .cache/lua) and print the variables that programs need
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steps import Run

ROOT = Path(__file__).resolve().parents[2]
PREFIX = ROOT / ".cache" / "lua"
# The module for nginx is bound to one LuaJIT; its interpreter and its library have other names in Debian 13.
PACKAGES = (
    ("nginx",),
    ("libnginx-mod-http-lua",),
    ("libnginx-mod-http-ndk",),
    ("lua-resty-core",),
    ("lua-resty-lrucache",),
    ("lua-cjson",),
    ("libluajit2-5.1-2", "libluajit-5.1-2"),
    ("luajit2", "luajit"),
    ("libluajit-5.1-common",),
    # nginx is linked with one of them.
    ("libpcre3", "libpcre2-8-0"),
    ("lua-busted",),
    ("lua-check",),
    ("lua-argparse",),
    ("lua-cliargs",),
    ("lua-dkjson",),
    ("lua-filesystem",),
    ("lua-luassert",),
    ("lua-mediator",),
    ("lua-penlight",),
    ("lua-say",),
    ("lua-system",),
    ("lua-term",),
    ("wrk",),
)
SPECS = ROOT / "tests" / "lua" / "spec"
MODULES = ROOT / "roles" / "gateway" / "files" / "lua"
PATHS = f"{MODULES}/?.lua;{ROOT}/tests/lua/support/?.lua"


def library(prefix: Path = PREFIX) -> Path:
    """Where the distribution puts libraries of this architecture."""
    found = sorted((prefix / "usr" / "lib").glob("*-linux-gnu"))
    return found[0] if found else prefix / "usr" / "lib"


def variables(prefix: Path = PREFIX) -> dict[str, str]:
    """What programs of the tree need to find each other."""
    share, lib = prefix / "usr" / "share" / "lua" / "5.1", library(prefix)
    return {
        # Some packages of Debian 12 still have their libraries in /lib.
        "LD_LIBRARY_PATH": f"{lib}:{prefix / 'lib' / lib.name}",
        "LUA_PATH": f"{share}/?.lua;{share}/?/init.lua;;",
        "LUA_CPATH": f"{lib}/lua/5.1/?.so;;",
    }


def program(name: str, prefix: Path = PREFIX) -> Path:
    """A program of the tree."""
    return next(path for path in (prefix / "usr/bin" / name, prefix / "usr/sbin" / name) if path.exists())


def luajit(prefix: Path = PREFIX) -> Path:
    """The interpreter, whatever its package calls it."""
    return sorted((prefix / "usr" / "bin").glob("luajit*"))[0]


def known(names: tuple[str, ...]) -> str:
    """The first of the packages that the distribution has."""
    for name in names:
        done = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", name],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode == 0 and f"Package: {name}\n" in done.stdout:
            return name
    return ""


def prepare(run: Run | None = None, prefix: Path = PREFIX) -> None:
    """Unpack the packages, or leave them when they are those of the last time."""
    mark = prefix / ".made-from"
    wanted = hashlib.sha256(
        (repr(PACKAGES) + Path("/etc/os-release").read_text("utf-8") + str(prefix)).encode()
    ).hexdigest()
    if mark.is_file() and mark.read_text("utf-8") == wanted:
        if run:
            run.notes.append("kept")
        return
    shutil.rmtree(prefix, ignore_errors=True)
    if not known(PACKAGES[0]) and os.geteuid() == 0:
        # A machine made from an image has no package lists.
        subprocess.run(["apt-get", "update", "-q"], check=True, stdin=subprocess.DEVNULL)
    names = [known(names) for names in PACKAGES]
    missing = [" or ".join(wanted) for wanted, name in zip(PACKAGES, names) if not name]
    if missing:
        raise RuntimeError(f"the distribution has no package {', '.join(missing)}; apt-get update may help")
    packages = prefix / "packages"
    packages.mkdir(parents=True)
    argv = ["apt-get", "-o", "APT::Sandbox::User=root", "download", *names]
    if run:
        run.retry(argv, cwd=packages)
    else:
        subprocess.run(argv, cwd=packages, check=True, stdin=subprocess.DEVNULL)
    for package in sorted(packages.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, prefix], check=True, stdin=subprocess.DEVNULL)
    for name in ("nginx", "busted", "luacheck", "wrk"):
        program(name, prefix)
    luajit(prefix)
    mark.write_text(wanted, encoding="utf-8")
    if run:
        run.notes.append(f"{len(names)} packages")


def main() -> None:
    """Unpack, and say how to use it."""
    prefix = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PREFIX
    prepare(prefix=prefix)
    for name, value in variables(prefix).items():
        print(f"export {name}='{value}'")
    print(f"export PATH='{prefix}/usr/bin:{prefix}/usr/sbin':$PATH")


if __name__ == "__main__":
    main()
