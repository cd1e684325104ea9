# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the fleet_homogeneity module: see there for the documentation."""

from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import yaml
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity import (
    Comparison,
    Golden,
    Unusable,
    compare,
    golden_data,
    golden_notes,
    load_golden,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_rules import (
    RuleError,
    Standard,
    extend_standard,
    type_word,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_text import (
    MOST_LINES,
    document,
    fact_results,
    group_results,
    host_results,
    message,
    table,
)
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._homogeneity_junit import junit
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._homogeneity_page import homogeneity_page
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._report_file import ReportError, write_report

_STANDARDS = Path(__file__).resolve().parents[2] / "roles" / "fleet" / "files" / "standards"
_GOLDEN_HEAD = "# Golden values of a fleet, written by gpufleet.deepseek.fleet_homogeneity (write_golden).\n---\n"


class ActionModule(ActionBase):
    """Compares the facts in hostvars; never connects to a host."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return what differs, or fail with the worst of it in one message."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _unused, args = self.validate_argument_spec(
            argument_spec={
                "hosts": {"type": "list", "elements": "str"},
                "facts": {"type": "raw", "default": "fleet_hardware"},
                "group_by": {"type": "list", "elements": "str", "default": ["fleet_region"]},
                "standard": {"type": "str", "default": "a100_80gb_8"},
                "rules": {"type": "list", "elements": "dict", "default": []},
                "golden": {"type": "str", "default": ""},
                "write_golden": {"type": "str", "default": ""},
                "fail_on": {"type": "str", "choices": ["block", "warn", "never"], "default": "block"},
                "report_html": {"type": "str", "default": ""},
                "report_json": {"type": "str", "default": ""},
                "report_junit": {"type": "str", "default": ""},
                "allow_simulated": {"type": "bool", "default": False},
                "show": {"type": "bool", "default": True},
            }
        )
        variables = task_vars or {}
        hosts = list(dict.fromkeys(variables["ansible_play_hosts_all"] if args["hosts"] is None else args["hosts"]))
        result.update(changed=False, failed=False)
        try:
            compared = self._compare(hosts, args, variables)
            failed = compared.verdict == "block" and args["fail_on"] != "never"
            failed |= compared.verdict == "warn" and args["fail_on"] == "warn"
            # First, because it may add a note that belongs into the reports.
            if args["write_golden"]:
                self._write_golden(args, compared, failed, result)
            self._write_reports(args, compared)
        except (RuleError, ReportError) as exc:
            result.update(failed=True, msg=str(exc))
            return result
        if args["show"]:
            counts = compared.counts()
            title = f"Homogeneity of {counts['hosts']} hosts, standard {compared.standard.name}: {compared.verdict}"
            self._display.display("\n" + "\n".join([title, *table(compared)]))
        report = next((args[name] for name in ("report_html", "report_json") if args[name]), "")
        result.update(
            failed=failed,
            verdict=compared.verdict,
            counts=compared.counts(),
            groups=group_results(compared),
            notes=compared.notes,
            msg=message(compared, report),
        )
        if failed:
            _add_worst(result, compared)
        else:
            result.update(hosts=host_results(compared), facts=fact_results(compared))
        return result

    def _compare(self, hosts: list[str], args: dict[str, t.Any], variables: dict[str, t.Any]) -> Comparison:
        """Read standard, golden file and facts, and compare.

        :raises RuleError: what of the input is wrong, in one sentence.
        """
        if not hosts:
            raise RuleError("hosts is empty: there is nothing to compare")
        if args["golden"] and args["write_golden"]:
            raise RuleError("golden and write_golden exclude each other: check a fleet, or write down what it is")
        standard = self._standard(args["standard"], args["rules"])
        golden: Golden | None = None
        if args["golden"]:
            path = self._loader.path_dwim(args["golden"])
            golden = load_golden(_read(path), path, args["group_by"])
        facts, group_of = _collect(hosts, args["facts"], args["group_by"], variables["hostvars"])
        compared = compare(hosts, facts, group_of, standard, golden=golden, allow_simulated=args["allow_simulated"])
        if golden is not None:
            compared.notes += golden_notes(compared, golden)
        return compared

    def _standard(self, name: str, rules: list[dict[str, t.Any]]) -> Standard:
        """A shipped standard by its name, or one of the controller's files, with the rules of the task."""
        shipped = _STANDARDS / f"{name}.yml"
        if re.fullmatch(r"[A-Za-z0-9_-]+", name):
            if not shipped.is_file():
                known = ", ".join(sorted(path.stem for path in _STANDARDS.glob("*.yml")))
                raise RuleError(f"standard {name} is not shipped; there are {known}; a file of your own needs its path")
            path = str(shipped)
        else:
            path = self._loader.path_dwim(name)
        return extend_standard(_read(path), rules, f"standard {path}")

    def _write_reports(self, args: dict[str, t.Any], compared: Comparison) -> None:
        """Write the reports that are wanted, those only whose content differs. They are output, as a log is: no change, and no reason to fail."""
        makers: tuple[tuple[str, t.Callable[[], str]], ...] = (
            (args["report_html"], lambda: homogeneity_page(compared)),
            (args["report_json"], lambda: json.dumps(document(compared), indent=1, sort_keys=True, default=str) + "\n"),
            (args["report_junit"], lambda: junit(compared, args["fail_on"])),
        )
        for path, make in makers:
            if path:
                try:
                    write_report(self._loader.path_dwim(path), make(), bool(self._task.check_mode))
                except ReportError as exc:
                    self._display.warning(str(exc))

    def _write_golden(
        self, args: dict[str, t.Any], compared: Comparison, failed: bool, result: dict[str, t.Any]
    ) -> None:
        """Write down what the majority has, unless the fleet is not fit to be an example."""
        if failed:
            compared.notes.append("the golden file was not written: this fleet is no example to others")
            return
        path = self._loader.path_dwim(args["write_golden"])
        data = golden_data(compared, args["group_by"])
        text = _GOLDEN_HEAD + yaml.safe_dump(data, default_flow_style=False, allow_unicode=True, width=200)
        before = Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).is_file() else ""
        ties = sorted({one.rule.path for one in compared.differences if one.kind == "tie"})
        if ties:
            compared.notes.append(f"not in the golden file, for there is no majority: {', '.join(ties)}")
        if write_report(path, text, bool(self._task.check_mode)):
            result["changed"] = True
            if self._task.diff:
                result["diff"] = {"before": before, "after": text, "before_header": path, "after_header": path}


def _add_worst(result: dict[str, t.Any], compared: Comparison) -> None:
    """Of a failure, the worst hosts and facts only: Ansible prints a failed task's whole result on the screen."""
    order = {"block": 0, "warn": 1, "pass": 2}
    worst = sorted(
        (host for host, verdict in compared.verdicts.items() if verdict != "pass"),
        key=lambda host: order[compared.verdicts[host]],
    )
    result["hosts"] = {
        host: {**one, "findings": [finding["message"] for finding in one["findings"] if finding["severity"] != "info"]}
        for host, one in host_results(compared, set(worst[:MOST_LINES])).items()
    }
    result["facts"] = [f"{fact.rule.path} [{fact.group}]" for fact in compared.facts[:MOST_LINES]]
    result["hosts_left_out"] = max(0, len(worst) - MOST_LINES)


def _read(path: str) -> t.Any:
    """A YAML file's content."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise RuleError(f"{path} cannot be read: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise RuleError(f"{path} is no YAML: {' '.join(str(exc).split())}") from exc


def _collect(
    hosts: list[str], facts: t.Any, group_by: list[str], hostvars: t.Any
) -> tuple[dict[str, t.Any], dict[str, str]]:
    """Facts and group of each host.

    ``hostvars[host][name]`` walks the whole structure through the template engine, about 2 ms for 300 values; ``raw_get`` costs a thirtieth of
    that. Facts come from a module and have no templates in them; where they do (hardware written into an inventory), that host goes the long way.
    """
    given = facts if isinstance(facts, t.Mapping) else None
    if given is None and not (isinstance(facts, str) and facts):
        raise RuleError(
            f"facts must be the name of a host variable, or a mapping of hosts to their facts; found {type_word(facts)}"
        )
    found: dict[str, t.Any] = {}
    group_of: dict[str, str] = {}
    unknown = [host for host in hosts if host not in hostvars]
    if unknown:
        raise RuleError(f"hosts: {', '.join(unknown[:5])} {'are' if len(unknown) > 1 else 'is'} not in the inventory")
    for host in hosts:
        raw = hostvars.raw_get(host)
        group_of[host] = " / ".join(_word(_value(hostvars, host, raw, name)) for name in group_by) or "all"
        if given is not None:
            found[host] = given.get(host, Unusable("no facts: the mapping that was given has none of this host"))
        elif facts not in raw:
            found[host] = Unusable(f"no facts: variable {facts} is not defined; the host may not have been reached")
        else:
            found[host] = _value(hostvars, host, raw, facts)
    return found, group_of


def _value(hostvars: t.Any, host: str, raw: t.Mapping[str, t.Any], name: str) -> t.Any:
    """A variable's value; templates are resolved, and only they cost something."""
    value = raw.get(name)
    if not _has_template(value):
        return value
    try:
        return hostvars[host][name]
    except Exception as exc:  # templates fail in many ways, each of which is the finding
        return Unusable(f"no facts: variable {name} cannot be resolved: {' '.join(str(exc).split())}")


def _has_template(value: t.Any) -> bool:
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, dict):
        return any(map(_has_template, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_template, value))


def _word(value: t.Any) -> str:
    """A part of a group's name."""
    if isinstance(value, Unusable):
        raise RuleError(value.reason.replace("no facts: ", "group_by: "))
    if value is None:
        return "default"
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
