# SPDX-License-Identifier: Apache-2.0
"""The action plugin in real plays on hosts that do not exist: nothing may connect to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import yaml

from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.homogeneity_fleet import Facts, fleet

COLLECTIONS = Path(__file__).resolve().parents[2] / "collections"

Result = dict[str, t.Any]


def run(
    path: Path, hosts: dict[str, Facts | None], tasks: list[dict[str, t.Any]], *arguments: str
) -> tuple[list[Result], str, int]:
    """Run a play of comparisons on hosts that have their facts as variables.

    :arg path: an empty directory.
    :arg hosts: facts by name; gpu1 and gpu2 are in region eu, the others have none.
    :arg tasks: options of each comparison; ``_check`` runs this one in check mode.
    :returns: the results as registered, the output, and how many changes the recap counts.
    """
    listed: dict[str, t.Any] = {}
    for name, facts in hosts.items():
        listed[name] = {"fleet_region": "eu"} if name in ("gpu1", "gpu2") else {}
        if facts is not None:
            listed[name]["fleet_hardware"] = facts
    (path / "hosts.json").write_text(json.dumps({"gpu_hosts": {"hosts": listed}}), encoding="utf-8")
    (path / "none.cfg").write_text("", encoding="utf-8")
    steps: list[dict[str, t.Any]] = []
    for number, task in enumerate(tasks):
        options = {key: value for key, value in task.items() if key != "_check"}
        step: dict[str, t.Any] = {"gpufleet.deepseek.fleet_homogeneity": options, "register": f"__r{number}"}
        if task.get("_check"):
            step["check_mode"] = True
        steps.append({"name": f"Compare {number}", **step, "run_once": True, "ignore_errors": True})
    results = "[" + ", ".join(f"__r{number}" for number in range(len(tasks))) + "]"
    copy = {"content": f"{{{{ {results} | to_json }}}}", "dest": str(path / "results.json")}
    keep = {"name": "Keep", "ansible.builtin.copy": copy, "delegate_to": "localhost", "run_once": True}
    steps.append({**keep, "check_mode": False, "diff": False, "changed_when": False})
    play = [{"name": "Test", "hosts": "gpu_hosts", "gather_facts": False, "tasks": steps}]
    (path / "play.yml").write_text(json.dumps(play), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "hosts.json", "play.yml", *arguments],
        cwd=path,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_CONFIG": str(path / "none.cfg"),
            "ANSIBLE_HOME": str(path / "home"),
            "ANSIBLE_NOCOLOR": "true",
            "LC_ALL": "C.UTF-8",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = done.stdout + done.stderr
    assert (path / "results.json").is_file(), output
    changed = sum(int(part.split("=")[1]) for part in done.stdout.split() if part.startswith("changed="))
    return json.loads((path / "results.json").read_text(encoding="utf-8")), output, changed


def test_a_host_that_stands_out_stops_the_play_and_is_named(tmp_path: Path) -> None:
    hosts: dict[str, Facts | None] = {**fleet(5), "gpu6": None}
    broken = hosts["gpu4"]
    assert broken is not None
    broken["gpus"][4]["vbios"] = "92.00.36.00.02"
    reports = {
        "report_json": "out/r.json",
        "report_html": "out/r.html",
        "report_junit": "out/r.xml",
        "write_golden": "golden.yml",
    }
    (result,), output, _changed = run(tmp_path, hosts, [reports])
    assert result["failed"]
    assert result["verdict"] == "block"
    sentence = (
        "gpu4 [default]: VBIOS (gpus[].vbios) is 92.00.36.00.02 on 0000:47:00.0; 2 of 3 hosts have 92.00.45.00.05"
    )
    assert sentence in result["msg"]
    assert "gpu6 [default]: no facts: variable fleet_hardware is not defined" in result["msg"]
    assert sorted(result["hosts"]) == ["gpu4", "gpu6"]
    assert "Homogeneity of 6 hosts, standard a100_80gb_8: block" in output
    whole = json.loads((tmp_path / "out" / "r.json").read_text(encoding="utf-8"))
    assert whole["hosts"]["gpu1"] == {"verdict": "pass", "group": "eu", "findings": []}
    assert "92.00.36.00.02" in (tmp_path / "out" / "r.html").read_text(encoding="utf-8")
    assert "<failure" in (tmp_path / "out" / "r.xml").read_text(encoding="utf-8")
    # Such a fleet is no example.
    assert "the golden file was not written: this fleet is no example to others" in result["notes"]
    assert not (tmp_path / "golden.yml").exists()


def test_a_golden_file_is_predicted_written_and_left_alone(tmp_path: Path) -> None:
    golden = tmp_path / "golden.yml"
    write: dict[str, t.Any] = {"write_golden": "golden.yml", "show": False, "report_html": "r.html"}
    (result,), output, changed = run(tmp_path, dict(fleet(4)), [write], "--check", "--diff")
    assert (result["changed"], changed, golden.exists(), (tmp_path / "r.html").exists()) == (True, 1, False, False)
    assert "+standard: a100_80gb_8" in output
    tasks = [write, {**write, "_check": True}, write, {"golden": "golden.yml"}]
    results, _output, changed = run(tmp_path, dict(fleet(4)), tasks)
    assert [one["changed"] for one in results] == [True, False, False, False]
    assert changed == 1
    assert golden.stat().st_mode & 0o777 == 0o644
    assert yaml.safe_load(golden.read_text(encoding="utf-8"))["groups"]["eu"]["os.kernel"] == "6.1.0-26-amd64"
    assert (results[3]["verdict"], results[3]["notes"]) == ("pass", [])


BAD_INPUT: list[tuple[dict[str, t.Any], str]] = [
    ({"hosts": []}, "hosts is empty: there is nothing to compare"),
    ({"hosts": ["gpu1", "gpu77"]}, "hosts: gpu77 is not in the inventory"),
    ({"standard": "h100"}, "standard h100 is not shipped; there are a100_80gb_8, minimal"),
    ({"standard": "./none.yml"}, "none.yml cannot be read: No such file or directory"),
    ({"standard": "./hosts.json"}, "hosts.json: unknown key 'gpu_hosts'"),
    ({"golden": "./a.yml", "write_golden": "./b.yml"}, "golden and write_golden exclude each other"),
    ({"rules": [{"path": "gpu.count", "valeu": 4}]}, "rules: rule gpu.count: unknown key 'valeu'; did you mean value?"),
    ({"facts": 5}, "facts must be the name of a host variable"),
    ({"write_golden": "/proc/none/r.html"}, "report /proc/none/r.html cannot be written"),
]


def test_options_and_bad_input(tmp_path: Path) -> None:
    rules = [{"path": "size", "severity": "warn", "compare": "majority"}]
    (tmp_path / "mine.yml").write_text(json.dumps({"name": "mine", "rules": rules}), encoding="utf-8")
    sizes = {name: {"schema": 1, "size": "{{ 40 + 2 }}" if name == "gpu1" else 42} for name in ("gpu1", "gpu2", "gpu3")}
    mine: dict[str, t.Any] = {
        "standard": "./mine.yml",
        "facts": sizes,
        "group_by": [],
        "hosts": sorted(sizes),
        "show": False,
    }
    less = {**mine, "rules": [{"path": "size", "compare": "maximum", "value": 41}]}
    tasks = [
        {**mine, "fail_on": "warn"},
        {**less, "fail_on": "warn"},
        less,
        {"rules": [{"path": "os.kernel", "severity": False}]},
    ]
    results, _output, _changed = run(tmp_path, dict(fleet(3)), [*tasks, *(options for options, _text in BAD_INPUT)])
    assert [(one["failed"], one["verdict"]) for one in results[:4]] == [
        (False, "pass"),
        (True, "warn"),
        (False, "warn"),
        (False, "pass"),
    ]
    assert results[0]["groups"]["all"]["hosts"] == 3
    assert results[3]["counts"]["rules"] == 113
    for result, (_options, text) in zip(results[4:], BAD_INPUT):
        assert result["failed"]
        assert text in result["msg"]
        assert "\n" not in result["msg"]
