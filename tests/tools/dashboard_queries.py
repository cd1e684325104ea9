# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Ask a real Prometheus every query of every dashboard of role dashboards, variables filled in, and name those without data.

dashboard_queries.py                               a Prometheus of its own (the distribution's, unpacked), a made-up fleet: every query must have data,
                                                   those of the status page as well, and the page must say what is wrong with the fleet
dashboard_queries.py --prometheus URL [options]    a running one: what has no data is listed, with what its panel needs

  --user NAME --password-file FILE --ca FILE       how to log in, and whom to trust
  --without gpu,rdma,...                           needs of panels that this fleet does not have: their queries may be empty

Exits with 1 when a query fails, or has no data and no excuse.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib
import json
import math
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lua_tools
import rules_tools
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "dashboards"
sys.path[:0] = [str(ROOT / "tests" / "mock"), str(ROLE / "files" / "status"), str(ROOT / "collections")]

PREFIX = ROOT / ".cache" / "prometheus"
READY_SECONDS = 60.0
LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    dashboard: str
    panel: str
    expr: str
    needs: tuple[str, ...]


@dataclass
class Prometheus:
    """How to ask one."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = None

    def get(self, path: str, **words: Any) -> Any:
        """The data of an answer; an answer that is an error is raised as one."""
        # Straight to it: a proxy of the environment is for other things.
        ways: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.context:
            ways.append(urllib.request.HTTPSHandler(context=self.context))
        opener = urllib.request.build_opener(*ways)
        opener.addheaders = list(self.headers.items())
        try:
            with opener.open(
                f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(words, doseq=True)}", timeout=30
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            # While it starts it answers with plain text.
            try:
                text = str(json.load(error)["error"])
            except (ValueError, KeyError):
                text = str(error)
            raise RuntimeError(text) from error

    def has_data(self, expr: str) -> bool:
        """Whether a query has a value that is a number."""
        return any(not math.isnan(float(one["value"][1])) for one in self.get("query", query=expr)["result"])


def settings() -> dict[str, Any]:
    """What stands behind the marks of the dashboards: the role's own, with the defaults of role prometheus."""
    import jinja2

    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text("utf-8"))["__dashboards_settings"]
    given = yaml.safe_load((ROOT / "roles" / "prometheus" / "defaults" / "main.yml").read_text("utf-8"))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=jinja2.select_autoescape())
    return {name: float(environment.from_string(str(text)).render(given)) for name, text in variables.items()}


def sources() -> list[dict[str, Any]]:
    """The data of the role's dashboards."""
    return [yaml.safe_load(path.read_text("utf-8")) for path in sorted((ROLE / "files" / "dashboards").glob("*.yml"))]


def dashboards() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Data and JSON of every dashboard."""
    from ansible_collections.gpufleet.deepseek.plugins.plugin_utils import _grafana_dashboard

    known = settings()
    return [(data, _grafana_dashboard.grafana_dashboard(data, known)) for data in sources()]


def queries(prometheus: Prometheus) -> tuple[list[Query], list[str]]:
    """All queries with their variables filled in as Grafana does for "All", and what is wrong with the variables."""
    found: list[Query] = []
    problems = []
    for data, dashboard in dashboards():
        needs = {panel["title"]: tuple(panel.get("needs", [])) for row in data["rows"] for panel in row["panels"]}
        values: dict[str, str] = {}
        for variable in dashboard["templating"]["list"]:
            asked = LABEL_VALUES.fullmatch(fill(variable["definition"], values))
            if not asked:
                raise RuntimeError(f"{dashboard['title']}: no label_values(series, label): {variable['definition']}")
            names = prometheus.get(f"label/{asked[2]}/values", **{"match[]": asked[1]})
            if not names:
                problems.append(f"{dashboard['title']}: variable {variable['name']} has no value: {asked[0]}")
            values[variable["name"]] = "(" + "|".join(map(re.escape, names)) + ")" if names else ".*"
        for panel in dashboard["panels"]:
            found += [
                Query(dashboard["title"], panel["title"], fill(target["expr"], values), needs[panel["title"]])
                for target in panel.get("targets", [])
            ]
    return found, problems


def fill(text: str, values: dict[str, str]) -> str:
    """A text with the values of its variables. Names of hosts are regular expressions inside a string of PromQL."""
    return re.sub(r"\$(\w+)", lambda mark: values[mark[1]].replace("\\", "\\\\"), text)


def ask(prometheus: Prometheus, without: set[str]) -> tuple[list[str], list[str], int]:
    """What is wrong, what is empty with an excuse, and how many queries there are."""
    known, wrong = queries(prometheus)
    excused = []
    for query in known:
        where = f"{query.dashboard} / {query.panel}"
        try:
            if prometheus.has_data(query.expr):
                continue
        except RuntimeError as error:
            wrong.append(f"{where}: {error}: {query.expr}")
            continue
        if without & set(query.needs):
            excused.append(f"{where}: needs {', '.join(query.needs)}")
        else:
            wrong.append(f"{where}: no data: {query.expr}")
    return wrong, excused, len(known)


def binary() -> Path:
    """The distribution's Prometheus: beside promtool, or from a package of its own."""
    rules_tools.prepare()
    beside = rules_tools.PROMTOOL.with_name("prometheus")
    if beside.is_file():
        return beside
    own = PREFIX / "usr" / "bin" / "prometheus"
    if not own.is_file():
        name = lua_tools.known(("prometheus",))
        if not name:
            raise RuntimeError("the distribution has no package prometheus; apt-get update may help")
        packages = PREFIX / "packages"
        packages.mkdir(parents=True, exist_ok=True)
        argv = ["apt-get", "-o", "APT::Sandbox::User=root", "download", name]
        subprocess.run(argv, cwd=packages, check=True, stdin=subprocess.DEVNULL)
        for package in packages.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, PREFIX], check=True, stdin=subprocess.DEVNULL)
    return own


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def made_up(hosts: int = 5) -> Iterator[Prometheus]:
    """A Prometheus that watches a made-up fleet with the rules of role prometheus, scraping and evaluating every second."""
    fleet_metrics = importlib.import_module("fleet_metrics")
    fleet = fleet_metrics.Fleet(hosts)
    pages = fleet_metrics.server(fleet, "127.0.0.1", 0)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    folder = Path(tempfile.mkdtemp(prefix="gpufleet-dashboards-"))
    own = f"127.0.0.1:{free_port()}"
    try:
        rules_tools.render(folder / "rules", (*rules_tools.JOBS, "gpu"))
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules/*.yml"],
            "scrape_configs": fleet_metrics.scrape_config(fleet, f"127.0.0.1:{pages.server_port}", own),
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    binary(),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={own}",
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            yield Prometheus(f"http://{own}")
        finally:
            process.terminate()
            process.wait(20)
    finally:
        pages.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def settled(prometheus: Prometheus, seconds: float = READY_SECONDS) -> tuple[list[str], int]:
    """Ask until every query has data: a rate needs two scrapes, a rule of a rule some rounds more.

    :returns: what is wrong at the end, and how many queries there are.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            wrong, _excused, count = ask(prometheus, set())
        except (OSError, RuntimeError) as error:
            wrong, count = [f"Prometheus does not answer: {error}"], 0
        if not wrong or time.monotonic() > end:
            return wrong, count
        time.sleep(1)


def status_page(prometheus: Prometheus) -> list[str]:
    """What is wrong with the status page of the made-up fleet."""
    gpufleet_status, status_source = map(importlib.import_module, ("gpufleet_status", "status_source"))
    source = status_source.Source(prometheus.url)
    found = status_source.collect(source, time.time(), {})
    source.close()
    wrong = [f"status page: no answer in time: {name}" for name in found["missing"]]
    wrong += [
        f"status page: no data: {name}: {expr}"
        for name, expr in {**status_source.QUERIES, **status_source.SLOW}.items()
        if not found[name]
    ]
    with tempfile.TemporaryDirectory(prefix="gpufleet-status-") as folder:
        config = gpufleet_status.Config(directory=Path(folder), prometheus_url=prometheus.url)
        sentence = gpufleet_status.render(config)
        text = (Path(folder) / gpufleet_status.PAGE).read_text("utf-8")
    expected = "Somebody is needed now: gpu5: GPU 3 has fallen off the bus (XID 79)."
    if sentence != expected:
        wrong.append(f"status page: expected {expected!r}, found {sentence!r}")
    wrong += [
        f"status page: {words!r} is not on it"
        for words in (
            "Simulated: at least one host",
            "deepseek-r1-70b-81be77d4",
            "runbooks/gpu.md#gpuxidreboot",
            "within noise",
        )
        if words not in text
    ]
    return wrong


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Ask Prometheus every query of every dashboard.")
    parser.add_argument("--prometheus", help="address of a running one, such as https://10.77.0.30:9090")
    parser.add_argument("--user", default="")
    parser.add_argument("--password-file", type=Path)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--without", default="", help="needs of panels that this fleet does not have")
    return parser.parse_args()


def running(options: argparse.Namespace) -> Prometheus:
    """The one of the command line."""
    headers = {}
    if options.user:
        password = options.password_file.read_text("utf-8").strip()
        headers["Authorization"] = "Basic " + base64.b64encode(f"{options.user}:{password}".encode()).decode()
    context = ssl.create_default_context(cafile=str(options.ca)) if options.ca else None
    return Prometheus(options.prometheus.rstrip("/"), headers, context)


def main() -> int:
    """Ask, and say what was found."""
    options = parse()
    began = time.monotonic()
    excused: list[str] = []
    if options.prometheus:
        wrong, excused, count = ask(running(options), set(filter(None, options.without.split(","))))
    else:
        with made_up() as prometheus:
            wrong, count = settled(prometheus)
            wrong += status_page(prometheus)
    for line in excused:
        print(f"empty   {line}")
    for line in wrong:
        print(f"ERROR   {line}")
    empty = f", {len(excused)} of them empty with a reason" if excused else ""
    print(
        f"{count} queries of {len(sources())} dashboards{empty}, {len(wrong)} errors, {time.monotonic() - began:.1f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
