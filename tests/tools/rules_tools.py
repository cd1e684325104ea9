# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Promtool of the distribution, unpacked beside the checkout, and the alert rules of role prometheus under it.

rules_tools.py [FOLDER]   render the rules with the role's defaults, check them, run the tests of tests/rules (default: .cache/rules)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lua_tools

if TYPE_CHECKING:
    from steps import Run

ROOT = Path(__file__).resolve().parents[2]
PREFIX = ROOT / ".cache" / "promtool"
# Debian 13 has it in a package of its own, Debian 12 in Prometheus' package.
PACKAGE = ("promtool", "prometheus")
PROMTOOL = PREFIX / "usr" / "bin" / "promtool"
ROLE = ROOT / "roles" / "prometheus"
TEMPLATES = ROLE / "templates" / "etc" / "prometheus" / "rules.d"
TESTS = ROOT / "tests" / "rules"
JOBS = ("node", "engine", "gateway", "prometheus")
# What is off by default is on, where alerts are tested.
TESTED_WITH: dict[str, Any] = {"prometheus_alert_state_store_replicas": 1}


def prepare(run: Run | None = None) -> None:
    """Unpack the package, or leave it when it is that of the last time."""
    mark = PREFIX / ".made-from"
    wanted = hashlib.sha256((repr(PACKAGE) + Path("/etc/os-release").read_text("utf-8")).encode()).hexdigest()
    if mark.is_file() and mark.read_text("utf-8") == wanted:
        if run:
            run.notes.append("kept")
        return
    shutil.rmtree(PREFIX, ignore_errors=True)
    if not lua_tools.known(PACKAGE) and os.geteuid() == 0:
        # A machine made from an image has no package lists.
        subprocess.run(["apt-get", "update", "-q"], check=True, stdin=subprocess.DEVNULL)
    name = lua_tools.known(PACKAGE)
    if not name:
        raise RuntimeError(f"the distribution has no package {' or '.join(PACKAGE)}; apt-get update may help")
    packages = PREFIX / "packages"
    packages.mkdir(parents=True)
    argv = ["apt-get", "-o", "APT::Sandbox::User=root", "download", name]
    if run:
        run.retry(argv, cwd=packages)
    else:
        subprocess.run(argv, cwd=packages, check=True, stdin=subprocess.DEVNULL)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, PREFIX], check=True, stdin=subprocess.DEVNULL)
    if not PROMTOOL.is_file():
        raise RuntimeError(f"package {name} has no usr/bin/promtool")
    mark.write_text(wanted, encoding="utf-8")
    if run:
        run.notes.append(f"package {name}")


def render(folder: Path, jobs: tuple[str, ...] = JOBS, **settings: Any) -> list[Path]:
    """Every rule file as the role would write it, with its defaults and the given settings."""
    import jinja2
    import yaml

    defaults: dict[str, Any] = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text("utf-8"))
    private: dict[str, Any] = yaml.safe_load((ROLE / "vars" / "main.yml").read_text("utf-8"))
    values: dict[str, Any] = {
        **defaults,
        "__prometheus_hosts": {job: ["a-host"] for job in jobs},
        "__prometheus_keep_firing_for": True,
        **settings,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=jinja2.select_autoescape(),
        **private["__prometheus_rule_marks"],
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    written = []
    for topic in private["__prometheus_rule_topics"]:
        path = folder / f"{topic}.yml"
        path.write_text(environment.get_template(f"{topic}.yml.j2").render(values), encoding="utf-8")
        written.append(path)
    return written


def main() -> int:
    """Check the rules and test each alert."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / ".cache" / "rules"
    prepare()
    # A site without any host, with an old Prometheus, and with other thresholds must be given good files as well.
    bare = render(folder / "bare", (), __prometheus_keep_firing_for=False)
    rules = render(folder / "rules", **TESTED_WITH)
    done = subprocess.run([PROMTOOL, "check", "rules", *bare, *rules], check=False)
    if done.returncode:
        return done.returncode
    tests = []
    for path in sorted(TESTS.glob("*.yml")):
        # The tests name rules/TOPIC.yml beside them.
        tests.append(folder / path.name)
        shutil.copyfile(path, tests[-1])
    if not tests:
        print(f"ERROR no test in {TESTS}")
        return 1
    return subprocess.run([PROMTOOL, "test", "rules", *tests], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
