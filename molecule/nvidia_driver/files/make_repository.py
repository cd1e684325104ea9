# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A signed repository of small packages with the names of real ones: apt and dpkg work for seconds, and for real.

Usage: make_repository.py DIRECTORY < DESCRIPTION. The description is JSON: label, origin, packages (name, version, depends, files, executables,
postinst; module is the path of a kernel module that carries the version).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run(*argv: str, data: bytes | None = None) -> bytes:
    """Run a tool; what it says on its standard output."""
    return subprocess.run(argv, check=True, input=data, stdout=subprocess.PIPE).stdout


def kernel_module(version: str) -> bytes:
    """An object file with nothing but what modinfo reads."""
    info = f"version={version}\0license=Dual MIT/GPL\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    at = 64
    table = at + len(info) + len(names)
    table += -table % 8
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, at, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, at + len(info), len(names), 0, 0, 1, 0)
    body = head + info + names
    return body.ljust(table, b"\0") + sections


def build(package: dict[str, Any], root: Path) -> Path:
    """One package."""
    name, version = package["name"], package["version"]
    tree = root / "tree"
    control = tree / "DEBIAN" / "control"
    control.parent.mkdir(parents=True)
    lines = [f"Package: {name}", f"Version: {version}", "Architecture: all", "Maintainer: molecule <root@localhost>"]
    lines += [f"Depends: {package['depends']}"] if package.get("depends") else []
    control.write_text("\n".join([*lines, "Description: stand-in", ""]), encoding="utf-8")
    if package.get("postinst"):
        script = tree / "DEBIAN" / "postinst"
        script.write_text(f"#!/bin/sh\nset -e\n{package['postinst']}\n", encoding="utf-8")
        script.chmod(0o755)
    files = {**package.get("files", {}), **package.get("executables", {})}
    for path, text in files.items():
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(0o755 if path in package.get("executables", {}) else 0o644)
    if package.get("module"):
        target = tree / package["module"].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(kernel_module(version.split("-")[0]))
    place = root / f"{name}_{version}_all.deb"
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "--build", str(tree), str(place))
    shutil.rmtree(tree)
    return place


def index(places: list[Path]) -> bytes:
    """The list of packages."""
    entries = []
    for place in places:
        text = run("dpkg-deb", "--field", str(place)).decode().rstrip()
        digest = hashlib.sha256(place.read_bytes()).hexdigest()
        entries.append(f"{text}\nFilename: ./{place.name}\nSize: {place.stat().st_size}\nSHA256: {digest}\n")
    return "\n".join(entries).encode()


def sign(root: Path, release: str) -> None:
    """Sign with a key of its own, and leave the key."""
    home = root / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
    try:
        run(*gpg, "--quick-generate-key", "molecule", "rsa2048", "sign", "never")
        (root / "key.asc").write_bytes(run(*gpg, "--armor", "--export"))
        (root / "InRelease").write_bytes(run(*gpg, "--clearsign", data=release.encode()))
    finally:
        run("gpgconf", "--homedir", str(home), "--kill", "all")
        shutil.rmtree(home)


def main() -> None:
    """Make the repository beside its place, then put it there."""
    target = Path(sys.argv[1])
    description = json.load(sys.stdin)
    root = target.with_name(f"{target.name}.new")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    packages = index([build(package, root) for package in description["packages"]])
    (root / "Packages").write_bytes(packages)
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())
    sign(
        root,
        f"Origin: {description['origin']}\nLabel: {description['label']}\nSuite: stable\nDate: {date}\nArchitectures: amd64 all\n"
        f"SHA256:\n {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n",
    )
    shutil.rmtree(target, ignore_errors=True)
    root.rename(target)


if __name__ == "__main__":
    main()
