# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Every check of the collection. ``dev/test`` calls this; it needs nothing but a Python of the machine.

dev/test                       everything
dev/test lint unit             some parts
dev/test molecule --only gateway
dev/test --list                what there is
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import ansible_test
import environments
import lua_tools
import rules_tools
from environments import CACHE, ROOT, Environment
from steps import ANSI, Failure, Finalizer, Run, Runner, Skip, Step

PARTS = ("lint", "unit", "gateway", "sanity", "lab", "entrances", "faults", "molecule")
# Only when it is asked for: all of them take the time of all the other parts together. Part lab has those of HOSTS_TESTS.
MORE_PARTS = ("hosts",)
# A part that is named runs whole. The run without names leaves out what takes long and is seen by something else in it as well, or has nothing to do with
# what a user runs on a fleet: it must fit into the time that CI has. Of molecule, these are scenarios of roles that the two labs have, on Debian 12 and
# 13, with a second run, a check run and faults, or of which tests/engines, tests/sidecar, tests/gateway and tests/rules run the real processes.
MORE_SCENARIOS = (
    "alertmanager",
    "dashboards",
    "deepseek_service",
    "engines",
    "engines_podman",
    "engines_replica",
    "envoy_sidecar",
    "gpu_exporter",
    "load_test",
    "model_store",
    "node_exporter",
    "prometheus",
    "quality_probe",
    "redis_exporter",
    "tracing",
)
# Files of tests/hosts that need no driver: part lab has them when it is named. Two emulated hosts take a core and a half for half an hour.
HOSTS_TESTS = ("nvme_raid", "nic_offload")
SNAPSHOT = CACHE / "snapshot"
ARTIFACT = CACHE / "artifact"
INSTALLED = ARTIFACT / "collections" / "ansible_collections"
# Steps of one lane share hosts and never overlap: the lab of dev/lab, the hosts of molecule, labs that a step makes for itself.
LAB_LANE = "lab"
MOLECULE_LANE = "molecule"
OWN_LANE = "own labs"
HOSTS_LANE = "virtual hosts"
LAB_INVENTORY = ROOT / "inventories" / "lab"
MOLECULE_INVENTORY = ROOT / "molecule" / "inventory"
RECAP = re.compile(r"^(\S+)\s*: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
LABS = Path("/var/lib/gpufleet-lab")
# Debian 12 and 13.
SUITES = ("bookworm", "trixie")
OTHER_LAB = "gfother"
# Tests of tests/faults that happen to the other lab, the rest to the lab of dev/lab: each takes half of the time, and Debian 13 is seen to fail as well.
OTHER_FAULTS = ("test_alerts.py", "test_alerts_gpus.py", "test_quality.py", "test_upgrade.py")
OTHER_SUBNET = "10.78.0.0/24"
FAULTS_KILLED = f"faults: site.yml is killed, {SUITES[-1]}"
HOSTS_LAB = "gfhosts"
LUA_SETUP = "setup: Lua tools"
RULES_SETUP = "setup: promtool"
SHIPPED = ("README.md", "LICENSE", "meta/runtime.yml", "playbooks/site.yml", "changelogs/config.yaml")
NOT_SHIPPED = re.compile(
    r"(^|/)(\.git|\.cache|\.ci|\.venv[^/]*|__pycache__|collections|molecule|dev|benchmarks)(/|$)|\.pyc$|\.tar\.gz$"
    r"|^(site\.yml|ansible\.cfg)$|(^|/)(id_ed25519|id_rsa|known_hosts)$|\.key$"
)


def git_files() -> list[str]:
    """Files that git knows, or would take, without links to folders."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return sorted(name for name in done.stdout.split("\0") if name and (ROOT / name).exists())


def shebang(path: Path) -> str:
    """The first line of a script, or nothing."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        line = file.readline(200)
    return line.decode("utf-8", "replace").strip() if line.startswith(b"#!") else ""


def recap(log: Path, start: int = 0) -> dict[str, dict[str, int]]:
    """The last play recap of a log, host by host."""
    text = ANSI.sub("", log.read_text("utf-8", "replace")[start:])
    at = text.rfind("PLAY RECAP")
    if at < 0:
        raise Failure("the play printed no recap")
    found = {}
    for host, ok, changed, unreachable, failed in RECAP.findall(text[at:]):
        found[host] = {"ok": int(ok), "changed": int(changed), "unreachable": int(unreachable), "failed": int(failed)}
    return found


def expect_unchanged(run: Run, log: Path) -> None:
    """The play that has just ended changed nothing anywhere."""
    hosts = recap(log)
    if not hosts:
        raise Failure("the recap names no host")
    changed = {host: count["changed"] for host, count in hosts.items() if count["changed"]}
    if changed:
        raise Failure("still changes: " + ", ".join(f"{host} changed={number}" for host, number in changed.items()))
    run.notes.append(f"changed=0 on {len(hosts)} hosts")


def expect_nothing_left(lab: str) -> None:
    """A lab that was taken down left no folder, mount, link, rule or process."""
    state = LABS / lab
    left = [str(state)] if state.exists() else []
    left += [
        f"mount {line.split()[1]}"
        for line in Path("/proc/mounts").read_text("utf-8").splitlines()
        if f"{state}/" in line
    ]
    left += [f"link {path.name}" for path in Path("/sys/class/net").glob(f"lab-{lab}*")]
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    left += [f"nft {line}" for line in done.stdout.splitlines() if line.endswith(f"gpufleet_lab_{lab}")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(f"{state}/".encode()) for word in words):
            left.append(f"process {path.parent.name}")
    if left:
        raise Failure(f"left behind by lab {lab}: " + ", ".join(left[:6]))


class Checks:
    """The steps, and what they share."""

    def __init__(self, options: argparse.Namespace, logs: Path) -> None:
        """Look at the machine."""
        self.options = options
        self.logs = logs
        self.chosen, self.missing = environments.choose()
        if not self.chosen:
            sys.exit("dev/test: no Python 3.11 or later that can make a virtual environment (apt: python3-venv)")
        self.main = self.chosen[0]
        self.lab_was_up = self.lab_is_up()
        # Names of the steps that run.
        self.planned: set[str] = set()

    # -- the list ---------------------------------------------------------------------------------------------------

    def steps(self) -> list[Step]:
        """All steps of the parts asked for, in the order in which they should start."""
        parts = set(self.options.parts or PARTS)
        steps = [
            Step(self.setup_name(env), lambda run, env=env: environments.prepare(env, run), "setup", 900)  # type: ignore[misc]
            for env in self.chosen
        ]
        steps += [Step(f"setup: core {core.name}", self.absent(why), "setup") for core, why in self.missing]
        if parts & {"lint", "unit", "gateway"}:
            steps.append(Step(LUA_SETUP, lua_tools.prepare, "setup", 300))
        if "unit" in parts:
            steps.append(Step(RULES_SETUP, rules_tools.prepare, "setup", 300))
        by_part: tuple[tuple[str, Callable[[], list[Step]]], ...] = (
            # What takes long and needs nothing starts first; what a person wants to know first comes next; what is left
            # fills the core that is free. Two steps keep two cores busy; one more that mostly waits costs them little.
            ("lab", self.lab_up_steps),
            ("lint", self.lint_steps),
            ("unit", self.unit_steps),
            ("gateway", self.gateway_steps),
            ("lab", self.lab_steps),
            ("entrances", self.entrance_steps),
            ("faults", self.fault_steps),
            ("molecule", self.molecule_steps),
            ("hosts", self.host_steps),
            ("lab", self.own_lab_steps),
            ("sanity", self.sanity_steps),
        )
        for part, make in by_part:
            if part in parts:
                known = {step.name for step in steps}
                steps += [step for step in make() if step.name not in known]
        if self.options.only:
            steps = self.narrow(steps, self.options.only)
        self.planned = {step.name for step in steps}
        return steps

    def named(self, part: str) -> bool:
        """Whether a part was asked for by its name: then all of it runs."""
        return part in self.options.parts

    @staticmethod
    def narrow(steps: list[Step], pattern: str) -> list[Step]:
        """The steps whose name matches, and those they need."""
        by_name = {step.name: step for step in steps}
        wanted: set[str] = set()

        def take(name: str) -> None:
            if name in by_name and name not in wanted:
                wanted.add(name)
                for needed in by_name[name].needs:
                    take(needed)

        for name in by_name:
            if re.search(pattern, name):
                take(name)
        return [step for step in steps if step.name in wanted]

    def finalizers(self, steps: list[Step]) -> list[Finalizer]:
        """What is undone at the end, whatever happened."""
        if self.options.keep:
            return []
        groups = {step.group for step in steps}
        found = []
        if any(step.name.startswith(f"lab: {SUITES[-1]}") for step in steps):
            found.append(Finalizer(f"lab: {OTHER_LAB} down", self.lab_other_down))
        if "molecule" in groups:
            found.append(Finalizer("molecule: destroy", self.molecule_destroy))
        if any("virtual hosts" in step.name for step in steps):
            found.append(Finalizer("hosts: down", self.hosts_down))
        if groups & {"lab", "entrances", "faults"} and not self.lab_was_up:
            found.append(Finalizer("lab: down", self.lab_down))
        return found

    @staticmethod
    def setup_name(environment: Environment) -> str:
        """The name of the step that makes an environment."""
        return f"setup: core {environment.core.name}, Python {environment.python_version}"

    @staticmethod
    def absent(why: str) -> Callable[[Run], None]:
        """A step that says why it cannot be."""

        def action(_run: Run) -> None:
            raise Skip(why)

        return action

    def ready(self, *needs: str) -> tuple[str, ...]:
        """What nearly every step needs: the environment with all the tools."""
        return (self.setup_name(self.main), *needs)

    def tool(self, name: str, *words: str | Path, cwd: Path = ROOT, **extra: str) -> Callable[[Run], None]:
        """A step that is one command of the main environment."""

        def action(run: Run) -> None:
            run.cmd([self.main.bin(name), *words], env=self.main.env(**extra), cwd=cwd)

        return action

    # -- lint -------------------------------------------------------------------------------------------------------

    def lint_steps(self) -> list[Step]:
        """Everything that only reads."""
        tools = ROOT / "tests" / "tools"
        python = self.main.bin
        needs = self.ready()
        return [
            Step("lint: shell", self.lint_shell, "lint", 120),
            Step("lint: ansible-lint", self.lint_ansible, "lint", 900, needs),
            Step("lint: yamllint", self.tool("yamllint", "--strict", "."), "lint", 120, needs),
            Step("lint: ruff check", self.lint_ruff("check"), "lint", 120, needs),
            Step("lint: ruff format", self.lint_ruff("format", "--check", "--diff"), "lint", 120, needs),
            Step("lint: mypy", self.lint_mypy, "lint", 600, needs),
            Step(
                "lint: argument specs", self.tool(str(python("python")), tools / "check_argspecs.py"), "lint", 60, needs
            ),
            Step("lint: house rules", self.tool(str(python("python")), tools / "check_house.py"), "lint", 60, needs),
            Step(
                "lint: catalogue tables",
                self.tool("python", tools / "catalogue_tables.py", "--check", PYTHONPATH=str(ROOT / "collections")),
                "lint",
                60,
                needs,
            ),
            Step(
                "lint: settings of the host roles",
                self.tool("python", tools / "settings_table.py", "--check"),
                "lint",
                60,
                needs,
            ),
            Step("lint: luacheck", self.lint_lua, "lint", 60, (LUA_SETUP,)),
            Step("lint: antsibull-docs", self.lint_docs, "lint", 300, needs),
            Step("lint: changelog", self.lint_changelog, "lint", 120, needs),
        ]

    def lint_shell(self, run: Run) -> None:
        """Syntax by the shells themselves, sense by shellcheck."""
        scripts = [ROOT / name for name in git_files()]
        found = [(path, shebang(path)) for path in scripts if not path.is_symlink()]
        posix = [path for path, line in found if re.search(r"[/ ](sh|dash)$", line.split(" -")[0])]
        bash = [path for path, line in found if re.search(r"[/ ]bash$", line.split(" -")[0])]
        posix += [
            path
            for path in scripts
            if path.parent == ROOT / "dev" and path.suffix == ".sh" and path not in posix + bash
        ]
        for path in posix:
            run.cmd([shutil.which("dash") or "sh", "-n", path])
        for path in bash:
            run.cmd(["bash", "-n", path])
        if not posix + bash:
            raise Skip("no script in the tree")
        checker = shutil.which("shellcheck")
        if not checker:
            raise Failure("shellcheck is not installed")
        for kind, paths in (("sh", posix), ("bash", bash)):
            if paths:
                run.cmd(
                    [checker, "--shell", kind, "--external-sources", "--source-path", "SCRIPTDIR", *paths], cwd=ROOT
                )
        run.notes.append(f"{len(posix)} sh, {len(bash)} bash")

    def lint_ansible(self, run: Run) -> None:
        """ansible-lint with the production profile; a warning counts as well."""
        run.cmd([self.main.bin("ansible-lint"), "--offline"], env=self.main.env(), cwd=ROOT)

    def lint_ruff(self, *words: str) -> Callable[[Run], None]:
        """Ruff, over Python files with and without the ending."""

        def action(run: Run) -> None:
            files = self.python_files()
            if not files:
                raise Skip("no Python in the tree")
            run.cmd([self.main.bin("ruff"), *words, "--no-cache", *files], env=self.main.env(), cwd=ROOT)

        return action

    @staticmethod
    def python_files() -> list[str]:
        """Every Python file, those with only a first line that says so among them."""
        names = [name for name in git_files() if not name.startswith("collections/") and not (ROOT / name).is_symlink()]
        return [name for name in names if name.endswith(".py") or "python" in shebang(ROOT / name)]

    def lint_mypy(self, run: Run) -> None:
        """Types: the plugins with their tests in one go, each folder of scripts by itself."""
        files = self.python_files()
        link = "collections/ansible_collections/gpufleet/deepseek/"
        groups: dict[str, list[str]] = {}
        for name in files:
            if name.startswith(("plugins/", "tests/unit/")):
                groups.setdefault("plugins", []).append(link + name)
            else:
                groups.setdefault(str(Path(name).parent), []).append(name)
        if not groups:
            raise Skip("no Python in the tree")
        broken = []
        for folder, names in sorted(groups.items()):
            env = self.main.env()
            words: list[str] = []
            if folder != "plugins":
                env["MYPYPATH"] = ":".join(
                    str(ROOT / place) for place in (folder, "tests/tools", "tests/gateway", "tests/sidecar")
                )
                words = ["--scripts-are-modules"]
            cache = CACHE / "mypy" / folder.replace("/", "-")
            argv: list[str | Path] = [
                self.main.bin("mypy"),
                "--config-file",
                "pyproject.toml",
                "--cache-dir",
                cache,
                *words,
                *names,
            ]
            if run.cmd(argv, env=env, cwd=ROOT, check=False):
                broken.append(folder)
        if broken:
            raise Failure("type errors in " + ", ".join(broken))
        run.notes.append(f"{sum(map(len, groups.values()))} files")

    @staticmethod
    def lua_env() -> dict[str, str]:
        """The variables of somebody who has just logged in, and what the Lua tools need."""
        env = {**Checks.plain_env(), **lua_tools.variables()}
        env["PATH"] = f"{lua_tools.PREFIX / 'usr/bin'}:{env.get('PATH', '/usr/bin:/bin')}"
        return env

    def lint_lua(self, run: Run) -> None:
        """Luacheck over every Lua file."""
        files = [name for name in git_files() if name.endswith(".lua")]
        config = ("--no-color", "--config", "tests/lua/luacheckrc")
        argv: list[str | Path] = [lua_tools.luajit(), lua_tools.program("luacheck"), *config, *files]
        run.cmd(argv, env=self.lua_env(), cwd=ROOT)
        run.notes.append(f"{len(files)} files")

    def unit_lua(self, run: Run) -> None:
        """The specs of the gateway's Lua, under LuaJIT as in nginx; that there is none is an error."""
        argv: list[str | Path] = [lua_tools.luajit(), lua_tools.program("busted"), f"--lpath={lua_tools.PATHS}"]
        run.cmd([*argv, "--output=plainTerminal", lua_tools.SPECS], env=self.lua_env(), cwd=ROOT)
        found = re.findall(r"^(\d+) successes", Path(run.log.name).read_text("utf-8", "replace"), re.MULTILINE)
        if not found or int(found[-1]) == 0:
            raise Failure("no spec was run")
        run.notes.append(f"{found[-1]} specs")

    def lint_docs(self, run: Run) -> None:
        """The documentation of plugins and roles, as antsibull-docs will render it."""
        words = ["lint-collection-docs", "--plugin-docs", "--validate-collection-refs", "all", "--skip-rstcheck", "."]
        env = self.main.env(ANSIBLE_COLLECTIONS_PATH=str(ROOT / "collections"))
        run.cmd([self.main.bin("antsibull-docs"), *words], env=env, cwd=ROOT)

    def lint_changelog(self, run: Run) -> None:
        """The fragments, and that a release could be made of them."""
        env = self.main.env(ANSIBLE_COLLECTIONS_PATH=str(ROOT / "collections"))
        run.cmd([self.main.bin("antsibull-changelog"), "lint"], env=env, cwd=ROOT)

    # -- unit -------------------------------------------------------------------------------------------------------

    def unit_steps(self) -> list[Step]:
        """The unit tests in the checkout, with each core; where ansible-test runs them with the first core, on the built collection, only with the others.

        Ansible-test makes a process for each test, which takes four times as long: that they stand by themselves need not be seen twice.
        """
        chosen = self.chosen[1:] if "sanity" in (self.options.parts or PARTS) else self.chosen
        specs = [Step("unit: busted, LuaJIT", self.unit_lua, "unit", 300, (LUA_SETUP,))]
        tests = [
            Step(f"unit: pytest, core {env.core.name}", self.unit_pytest(env), "unit", 900, (self.setup_name(env),))
            for env in chosen
        ]
        engines = Step("unit: engines and their supervisor", self.unit_engines, "unit", 600, self.ready(), waits=True)
        tool = ROOT / "tests" / "tools" / "rules_tools.py"
        rules = Step("unit: alert rules", self.tool("python", tool), "unit", 300, self.ready(RULES_SETUP))
        tool = ROOT / "tests" / "tools" / "dashboard_queries.py"
        boards = Step("unit: queries of dashboards", self.tool("python", tool), "unit", 300, self.ready(RULES_SETUP))
        return [*specs, *tests, engines, rules, boards] + [
            Step(f"unit: pytest, core {core.name}", self.absent(why), "unit") for core, why in self.missing
        ]

    def unit_engines(self, run: Run) -> None:
        """What GPU engines are told, and how they are watched: real processes against stand-ins. Most of it is waiting."""
        run.cmd([self.main.bin("pytest"), "tests/engines"], env=self.main.env(), cwd=ROOT)

    @staticmethod
    def unit_pytest(environment: Environment) -> Callable[[Run], None]:
        """Pytest; that it finds no test is an error."""

        def action(run: Run) -> None:
            run.cmd([environment.bin("pytest"), "tests/unit"], env=environment.env(), cwd=ROOT)

        return action

    # -- the artifact -----------------------------------------------------------------------------------------------

    def artifact_steps(self) -> list[Step]:
        """Build the collection once, as a release would be built, and install it into an empty folder."""
        return [Step("artifact: build and install", self.artifact_build, "sanity", 180, self.ready())]

    def artifact_build(self, run: Run) -> None:
        """From a snapshot of what git knows or would take: nothing else of this folder gets in."""
        shutil.rmtree(SNAPSHOT, ignore_errors=True)
        source = SNAPSHOT / "source"
        for name in git_files():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
        git = ["git", "-c", "user.name=snapshot", "-c", "user.email=snapshot@example.org", "-C", str(source)]
        run.cmd([*git, "init", "--quiet", "--initial-branch=main"])
        run.cmd([*git, "add", "--all", "--force"])
        run.cmd([*git, "commit", "--quiet", "--no-verify", "--message=Snapshot of the tree under test"])
        shutil.rmtree(ARTIFACT, ignore_errors=True)
        ARTIFACT.mkdir(parents=True)
        galaxy = self.main.bin("ansible-galaxy")
        run.cmd([galaxy, "collection", "build", source, "--output-path", ARTIFACT], env=self.main.env(), cwd=SNAPSHOT)
        archive = self.archive()
        with tarfile.open(archive) as tar:
            names = tar.getnames()
        run.say("\n".join(names))
        stray = [name for name in names if NOT_SHIPPED.search(name)]
        absent = [name for name in SHIPPED if name not in names]
        if stray:
            raise Failure("in the artifact, and should not be: " + ", ".join(stray[:8]))
        if absent:
            raise Failure("not in the artifact: " + ", ".join(absent))
        words: list[str | Path] = [
            "collection",
            "install",
            archive,
            "--collections-path",
            INSTALLED.parent,
            "--offline",
        ]
        run.cmd([galaxy, *words], env=self.main.env(ANSIBLE_COLLECTIONS_PATH=str(INSTALLED.parent)), cwd=SNAPSHOT)
        run.notes.append(f"{archive.name}, {len(names)} files, {archive.stat().st_size // 1024} KiB")

    @staticmethod
    def archive() -> Path:
        """The built collection."""
        found = sorted(ARTIFACT.glob("gpufleet-deepseek-*.tar.gz"))
        if not found:
            raise Failure("no built collection")
        return found[-1]

    def sanity_steps(self) -> list[Step]:
        """What a certification would run, on the artifact."""
        needs = self.ready("artifact: build and install")
        steps = self.artifact_steps()
        for env in self.chosen:
            after = (*needs, self.setup_name(env))
            # The two share ansible-test's cache of virtual environments: one after the other.
            steps.append(Step(f"sanity: core {env.core.name}", self.sanity(env), "sanity", 1800, after, "ansible-test"))
            if env is self.main or "unit" not in (self.options.parts or PARTS):
                steps.append(
                    Step(f"sanity: units, core {env.core.name}", self.units(env), "sanity", 1500, after, "ansible-test")
                )
        steps += [Step(f"sanity: core {core.name}", self.absent(why), "sanity") for core, why in self.missing]
        steps.append(Step("sanity: galaxy-importer", self.importer, "sanity", 600, needs))
        steps.append(Step("sanity: execution environment", self.execution_environment, "sanity", 120, needs))
        return steps

    @staticmethod
    def sanity(environment: Environment) -> Callable[[Run], None]:
        """All sanity tests, without an ignore file."""

        def action(run: Run) -> None:
            if list((INSTALLED / "gpufleet" / "deepseek" / "tests" / "sanity").glob("ignore*")):
                raise Failure("there is a sanity ignore file")
            ansible_test.call(environment, INSTALLED, run, "sanity")

        return action

    @staticmethod
    def units(environment: Environment) -> Callable[[Run], None]:
        """The unit tests as ansible-test runs them, each by itself."""

        def action(run: Run) -> None:
            ansible_test.call(environment, INSTALLED, run, "units", "--venv", "--python", environment.python_version)

        return action

    def importer(self, run: Run) -> None:
        """What Galaxy and Automation Hub do with an upload; their errors fail, their warnings are shown."""
        config = CACHE / "importer.cfg"
        config.write_text(
            "[galaxy-importer]\nrequire_v1_or_greater = True\ncheck_required_tags = True\n", encoding="utf-8"
        )
        env = self.main.env(GALAXY_IMPORTER_CONFIG=str(config))
        code = run.cmd(
            [self.main.bin("python"), "-m", "galaxy_importer.main", self.archive()], env=env, cwd=ARTIFACT, check=False
        )
        log = Path(run.log.name).read_text("utf-8", "replace")
        errors = re.findall(r"^ERROR:? .*$", log, re.MULTILINE)
        warnings = re.findall(r"^WARNING:? .*$", log, re.MULTILINE)
        # ansible-lint's findings come as warnings: WARNING: file:line:column: rule ...
        errors += [line for line in warnings if re.match(r"WARNING:? (\S+:\d+|ERROR)", line)]
        if code or errors or "Importer processing completed successfully" not in log:
            raise Failure((errors or [f"exit {code}, and no word of success"])[0][:200])
        run.notes.append(f"{len(warnings)} warnings" + (": " + "; ".join(warnings)[:300] if warnings else ""))

    def execution_environment(self, run: Run) -> None:
        """ansible-builder reads the artifact's metadata and finds what the collection needs."""
        builder = self.main.bin("ansible-builder")
        run.cmd([builder, "introspect", "--sanitize", INSTALLED.parent], env=self.main.env(), cwd=ARTIFACT)
        text = Path(run.log.name).read_text("utf-8", "replace")
        if "# from collection gpufleet.deepseek" not in text:
            raise Failure("ansible-builder finds no requirements of the collection")

    # -- the lab of dev/lab -----------------------------------------------------------------------------------------

    @staticmethod
    def lab_state() -> Path:
        """Where the lab keeps its state."""
        return LABS / "gpufleet"

    def lab_is_up(self) -> bool:
        """Whether somebody's lab stands already: then it is used, and left standing."""
        return (self.lab_state() / "ssh" / "id_ed25519").exists()

    @staticmethod
    def needs_root() -> None:
        """Hosts are containers: only root can start them."""
        if os.geteuid() != 0:
            raise Skip("needs root")

    def lab_steps(self) -> list[Step]:
        """dev/lab, as a user runs it: up, and up again."""
        again = Step("lab: up again", self.lab_second, "lab", 1200, self.ready("lab: up"), LAB_LANE)
        return [*self.lab_up_steps(), again]

    def own_lab_steps(self) -> list[Step]:
        """Labs of their own: the other core on the other Debian, from nothing; and the hard cases of the lab itself."""
        steps = [self.other_lab_step()]
        virtual = self.pytest(["hosts/test_vm.py"], "")
        steps.append(Step("lab: virtual hosts", virtual, "lab", 1800, self.ready(), HOSTS_LANE))
        steps += [
            Step(
                f"lab: virtual hosts, {name}",
                self.pytest([f"hosts/test_{name}.py"], ""),
                "lab",
                2400,
                self.ready(),
                HOSTS_LANE,
            )
            for name in (HOSTS_TESTS if self.named("lab") else ())
        ]
        # CI itself is a fresh machine, and the other lab is another release: the tests of both, and of what comes up again below, take long.
        hard = self.pytest(["lab"], "" if self.named("lab") else "not long and not machine")
        return [*steps, Step("lab: hard cases", hard, "lab", 2700, self.ready(), HOSTS_LANE)]

    def other_lab_step(self) -> Step:
        """A lab with the other core on the other Debian; it stands until the end."""
        env = self.chosen[-1]
        name = f"lab: {SUITES[-1]} from nothing, core {env.core.name}"
        return Step(name, self.lab_other(env), "lab", 2700, self.ready(self.setup_name(env)), OWN_LANE)

    def lab_up_steps(self) -> list[Step]:
        """The lab that the entrances and the faults work on."""
        return [Step("lab: up", self.lab_up, "lab", 1500, (), LAB_LANE)]

    def lab_up(self, run: Run) -> None:
        """The README's first command."""
        self.needs_root()
        run.cmd([ROOT / "dev" / "lab", "up"], env=self.plain_env(), cwd=ROOT)

    def lab_second(self, run: Run) -> None:
        """The same command again changes nothing; every host is well. (Check runs of these hosts: the entrances.)"""
        run.cmd([ROOT / "dev" / "lab", "up"], env=self.plain_env(), cwd=ROOT)
        expect_unchanged(run, CACHE / "logs" / "site-gpufleet.log")
        run.cmd([ROOT / "dev" / "lab", "status"], env=self.plain_env(), cwd=ROOT)

    def lab_other(self, environment: Environment) -> Callable[[Run], None]:
        """A check run on new hosts passes; site.yml converges them; a second run and a check run change nothing. All but the first may be the faults'."""

        def action(run: Run) -> None:
            self.needs_root()
            log = Path(run.log.name)
            words = ["--name", OTHER_LAB, "--subnet", OTHER_SUBNET]
            up: list[str | Path] = [ROOT / "dev" / "lab", "up", "--no-site", "--suite", SUITES[-1], *words]
            run.cmd(up, env=self.plain_env(), cwd=ROOT)
            playbook: list[str | Path] = [environment.bin("ansible-playbook"), "-i", LAB_INVENTORY, "site.yml"]
            playbook += ["-e", f"lab_name={OTHER_LAB}", "-e", f"lab_subnet={OTHER_SUBNET}"]
            run.cmd([*playbook, "--check", "--diff"], env=environment.env(), cwd=ROOT)
            if FAULTS_KILLED in self.planned:
                run.notes.append("converged by the faults")
                return
            run.cmd(playbook, env=environment.env(), cwd=ROOT)
            run.cmd(playbook, env=environment.env(), cwd=ROOT)
            expect_unchanged(run, log)
            run.cmd([*playbook, "--check", "--diff"], env=environment.env(), cwd=ROOT)
            expect_unchanged(run, log)

        return action

    def lab_other_down(self, run: Run) -> None:
        """The other lab leaves nothing, either."""
        if not (LABS / OTHER_LAB).exists():
            raise Skip("there is none")
        words = ["--name", OTHER_LAB, "--subnet", OTHER_SUBNET]
        run.cmd([ROOT / "dev" / "lab", "down", *words], env=self.plain_env(), cwd=ROOT)
        expect_nothing_left(OTHER_LAB)

    def lab_down(self, run: Run) -> None:
        """dev/lab down leaves nothing."""
        if not (ROOT / "dev" / "lab").exists() or os.geteuid() != 0:
            raise Skip("no lab")
        run.cmd([ROOT / "dev" / "lab", "down"], env=self.plain_env(), cwd=ROOT)
        expect_nothing_left("gpufleet")

    @staticmethod
    def plain_env() -> dict[str, str]:
        """The variables of somebody who has just logged in: no environment of ours."""
        return {key: value for key, value in os.environ.items() if not environments.FOREIGN.match(key)}

    # -- entrances and faults ---------------------------------------------------------------------------------------

    def entrance_steps(self) -> list[Step]:
        """The three ways in, each as somebody uses it."""
        needs = self.ready("artifact: build and install")
        offline = Step("entrances: what AWX lists", self.pytest(["entrances"], "not lab"), "entrances", 300, needs)
        real = Step(
            "entrances: clone, artifact, AWX",
            self.pytest(["entrances"], "lab"),
            "entrances",
            2700,
            (*needs, "lab: up"),
            LAB_LANE,
        )
        return [*self.artifact_steps(), *self.lab_up_steps(), offline, real]

    def fault_steps(self) -> list[Step]:
        """Faults and bad input on real hosts; when they are asked for, with those that take longer."""
        marker = "not own_lab" if self.named("faults") else "not own_lab and not long"
        # The other lab is converged by this one, after four runs that are killed.
        killed = self.pytest(
            ["faults/test_killed_runs.py"],
            "",
            GPUFLEET_NEW_LAB=f"{OTHER_LAB},{OTHER_SUBNET}",
            GPUFLEET_BIN=str(self.chosen[-1].path / "bin"),
        )
        here = self.pytest(["faults", *(f"--ignore={ROOT}/tests/faults/{name}" for name in OTHER_FAULTS)], marker)
        there = self.pytest(
            [f"faults/{name}" for name in OTHER_FAULTS],
            marker,
            GPUFLEET_LAB_NAME=OTHER_LAB,
            GPUFLEET_LAB_SUBNET=OTHER_SUBNET,
        )
        long = self.pytest(["faults", f"--ignore={ROOT}/tests/faults/test_killed_runs.py"], "own_lab")
        other = self.other_lab_step()
        return [
            *self.lab_up_steps(),
            other,
            Step("faults", here, "faults", 7200, self.ready("lab: up"), LAB_LANE, waits=True),
            Step(FAULTS_KILLED, killed, "faults", 3600, self.ready(other.name), OWN_LANE),
            Step(f"faults: {SUITES[-1]}", there, "faults", 7200, self.ready(FAULTS_KILLED), OWN_LANE, waits=True),
            *(
                [Step("faults: labs of their own", long, "faults", 5400, self.ready(), OWN_LANE)]
                if self.named("faults")
                else []
            ),
        ]

    def host_steps(self) -> list[Step]:
        """Host preparation on virtual hosts: kernels, drives and network cards of their own, shared by all these tests."""
        run = self.pytest(["hosts"], "", GPUFLEET_HOSTS_DRIVER="1")
        return [Step("hosts: preparation on virtual hosts", run, "hosts", 10800, self.ready(), HOSTS_LANE)]

    def gateway_steps(self) -> list[Step]:
        """The Lua gateway in the distribution's nginx on loopback; when it is asked for, with what needs a machine of its own."""
        marker = "" if self.named("gateway") else "not timing"
        return [
            Step("gateway: live nginx", self.pytest(["gateway"], marker), "gateway", 1500, self.ready(LUA_SETUP)),
            Step("gateway: live Envoy sidecar", self.pytest(["sidecar"], ""), "gateway", 900, self.ready(LUA_SETUP)),
        ]

    def hosts_down(self, run: Run) -> None:
        """The virtual hosts, when their step was stopped before it could do this itself."""
        if not (LABS / HOSTS_LAB).exists():
            raise Skip("gone already")
        run.cmd([ROOT / "dev" / "lab", "down", "--name", HOSTS_LAB], env=self.plain_env(), cwd=ROOT)
        expect_nothing_left(HOSTS_LAB)

    def pytest(self, wanted: Sequence[str], marker: str, **extra: str) -> Callable[[Run], None]:
        """Tests that call Ansible by themselves: where the pieces are is told by variables. Paths are those below tests; an option is one."""

        def action(run: Run) -> None:
            if marker != "not lab":
                self.needs_root()
            env = self.main.env(
                GPUFLEET_ROOT=str(ROOT),
                GPUFLEET_SNAPSHOT=str(SNAPSHOT / "source"),
                GPUFLEET_ARTIFACT=str(self.archive()) if "entrances" in wanted else "",
                GPUFLEET_LAB_INVENTORY=str(LAB_INVENTORY),
                **{"GPUFLEET_BIN": str(self.main.path / "bin"), **extra},
            )
            words: list[str | Path] = ["-v", "-ra", "--durations=0"]
            words += ["-m", marker] if marker else []
            words += [name if name.startswith("-") else ROOT / "tests" / name for name in wanted]
            run.cmd([self.main.bin("pytest"), *words], env=env, cwd=ROOT)
            log = Path(run.log.name).read_text("utf-8", "replace")
            last = re.findall(r"^=+ (.*\d+ passed.*) =+$", log, re.MULTILINE)
            run.notes += last[-1:]

        return action

    # -- molecule ---------------------------------------------------------------------------------------------------

    def scenarios(self) -> list[str]:
        """The scenarios, but for the one that makes the hosts."""
        left_out = ("default",) if self.named("molecule") else ("default", *MORE_SCENARIOS)
        folders = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
        return [name for name in folders if name not in left_out]

    def molecule_steps(self) -> list[Step]:
        """Each role's scenario on hosts of a lab that only molecule uses."""
        steps = []
        for suite in SUITES if self.options.debian == "both" else (self.options.debian,):
            create = f"molecule: {suite}: create"
            steps.append(Step(create, self.molecule_create(suite), "molecule", 900, self.ready(), MOLECULE_LANE))
            steps += [
                Step(
                    f"molecule: {suite}: {name}",
                    self.molecule_scenario(name, suite),
                    "molecule",
                    1800,
                    self.ready(create),
                    MOLECULE_LANE,
                )
                for name in self.scenarios()
            ]
        return steps

    def molecule(self, run: Run, suite: str, *words: str) -> None:
        """One molecule command."""
        run.cmd([self.main.bin("molecule"), *words], env=self.main.env(MOLECULE_LAB_SUITE=suite), cwd=ROOT)

    def molecule_create(self, suite: str) -> Callable[[Run], None]:
        """The shared hosts, new."""

        def action(run: Run) -> None:
            self.needs_root()
            self.molecule(run, suite, "destroy", "--scenario-name", "default")
            self.molecule(run, suite, "reset", "--scenario-name", "default")
            self.molecule(run, suite, "create", "--scenario-name", "default")

        return action

    def molecule_scenario(self, name: str, suite: str) -> Callable[[Run], None]:
        """Converge, idempotence, a check run that finds nothing to do, verify."""

        def action(run: Run) -> None:
            scenario = ("--scenario-name", name)
            try:
                self.molecule(run, suite, "converge", *scenario)
                self.molecule(run, suite, "idempotence", *scenario)
                self.molecule(run, suite, "converge", *scenario, "--", "--check", "--diff")
                expect_unchanged(run, Path(run.log.name))
                self.molecule(run, suite, "verify", *scenario)
            except Failure:
                self.diagnose(run)
                raise

        return action

    def diagnose(self, run: Run) -> None:
        """What the hosts say about their units: read it above the summary."""
        play = ROOT / "molecule" / "shared" / "diagnose.yml"
        argv: list[str | Path] = [self.main.bin("ansible-playbook"), "-i", MOLECULE_INVENTORY, play]
        run.cmd(argv, env=self.main.env(), cwd=ROOT, check=False)

    def molecule_destroy(self, run: Run) -> None:
        """Nothing of the molecule hosts stays."""
        if os.geteuid() != 0 or not self.main.bin("molecule").exists():
            raise Skip("no hosts")
        self.molecule(run, SUITES[0], "destroy", "--scenario-name", "default")
        expect_nothing_left("gftest")


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dev/test", description="Run the collection's checks.")
    known = (*PARTS, *MORE_PARTS)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"any of: {', '.join(known)} (default: all but {', '.join(MORE_PARTS)})",
    )
    parser.add_argument("--only", metavar="REGEX", help="only the steps whose name matches, and what they need")
    parser.add_argument(
        "--debian",
        choices=[*SUITES, "both"],
        default=SUITES[0],
        help="the release of molecule's hosts (default: %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the hosts standing at the end")
    parser.add_argument(
        "--jobs", type=int, default=2, help="steps at a time, beside one that mostly waits (default: 2)"
    )
    parser.add_argument("--list", action="store_true", help="name the steps and stop")
    options = parser.parse_args(argv)
    unknown = [part for part in options.parts if part not in known]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)} (there are: {', '.join(known)})")
    return options


def main(argv: list[str]) -> int:
    """Run what was asked for."""
    options = parse(argv)
    logs = CACHE / "logs" / "test"
    checks = Checks(options, logs)
    steps = checks.steps()
    if options.list:
        for step in steps:
            print(f"{step.group:<10} {step.name}")
        return 0
    CACHE.mkdir(exist_ok=True)
    lock = (CACHE / "test.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("dev/test: another run works in this checkout")
    shutil.rmtree(logs, ignore_errors=True)
    finalizers = checks.finalizers(steps)
    print(f"{len(steps)} steps, logs in {logs}", flush=True)
    runner = Runner(steps, finalizers, logs, jobs=max(1, options.jobs))
    code = runner.run()
    times = [{"step": step.name, "result": step.result, "seconds": round(step.seconds, 1)} for step in runner.steps]
    (logs / "summary.json").write_text(json.dumps(times, indent=2) + "\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
