# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Controller side of the model_fit module: see there for the documentation."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import (
    ModelError,
    ModelShape,
    known,
    shape_of,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_fit import PlanError, Targets, Wish, make_plan
from ansible_collections.gpufleet.deepseek.plugins.module_utils._plan_hosts import (
    HardwareError,
    check_overrides,
    plan_host,
)
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._plan_page import plan_page, plan_summary, plan_table
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._report_file import ReportError, write_report

_NUMBER = {"type": "float", "default": 0.0}
_TARGETS: dict[str, dict[str, t.Any]] = {
    "requests_per_second": _NUMBER,
    "prompt_tokens": {"type": "int", "default": 1024},
    "answer_tokens": {"type": "int", "default": 256},
    "first_token_ms": _NUMBER,
    "answer_ms": _NUMBER,
    "availability_percent": _NUMBER,
    "failover_minutes": {"type": "float", "default": 5.0},
    "window_days": {"type": "float", "default": 30.0},
}
_WISHES: dict[str, dict[str, t.Any]] = {
    "engine": {"type": "str", "default": "auto"},
    "precision": {"type": "str", "default": "auto"},
    "kv_dtype": {"type": "str", "choices": ["auto", "fp16", "bf16", "fp8"], "default": "auto"},
    "tensor_parallel": {"type": "int", "default": 0},
    "pipeline_parallel": {"type": "int", "default": 0},
    "hosts_per_replica": {"type": "int", "default": 0},
    "context_tokens": {"type": "int", "default": 0},
    "concurrency": {"type": "int", "default": 0},
    "max_batch_size": {"type": "int", "default": 64},
    "max_num_tokens": {"type": "int", "default": 8192},
    "memory_utilization": {"type": "float", "default": 0.9},
    "batch_wait_ms": {"type": "int", "default": 5},
}


class ActionModule(ActionBase):
    """Makes the plan from hostvars; never connects to a host."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Return the plan, or fail with every reason and what would work."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _unused, args = self.validate_argument_spec(
            argument_spec={
                "model": {"type": "str", "required": True},
                "config": {"type": "raw"},
                "hosts": {"type": "list", "elements": "str"},
                "facts": {"type": "raw", "default": "fleet_hardware"},
                **_WISHES,
                "targets": {"type": "dict", "default": {}, "options": _TARGETS, "apply_defaults": True},
                "targets_action": {"type": "str", "choices": ["fail", "warn"], "default": "fail"},
                "gpu_overrides": {"type": "dict", "default": {}},
                "report_json": {"type": "str", "default": ""},
                "report_html": {"type": "str", "default": ""},
                "show": {"type": "bool", "default": True},
            }
        )
        variables = task_vars or {}
        result.update(changed=False, failed=False)
        try:
            model = _model(args["model"], args["config"])
            wish = Wish(**{name: args[name] for name in _WISHES}, targets=Targets(**args["targets"]))
            check_overrides(args["gpu_overrides"])
            names = variables["ansible_play_hosts_all"] if args["hosts"] is None else args["hosts"]
            hosts, simulated, source = _hosts(names, args, variables["hostvars"], model)
            plan = make_plan(model, hosts, wish)
        except (ModelError, PlanError, HardwareError) as exc:
            result.update(failed=True, msg=f"{exc}. Nothing was touched.")
            return result
        plan.update(simulated=simulated, hardware_source=source)
        warned: list[str] = []
        if plan["verdict"] == "refused" and args["targets_action"] == "warn" and "engine" in plan:
            warned = [f"{reason['sentence']} {reason['nearest']}" for reason in plan["refusals"]]
            plan = {**plan, "verdict": "ok", "targets_missed": plan.pop("refusals")}
        for text in warned:
            self._display.warning(f"{model.name}: {text}")
        lines = plan_table(plan)
        if args["show"]:
            self._display.display("\n" + "\n".join(lines))
        result.update(plan=plan, table=lines)
        result["reports"] = []
        for path, text in (
            (args["report_json"], json.dumps(plan, indent=2, sort_keys=True) + "\n"),
            (args["report_html"], plan_page(plan)),
        ):
            if path:
                try:
                    write_report(path, text, bool(self._task.check_mode))
                    result["reports"].append(path)
                except ReportError as exc:
                    # The plan stands without its report, and so does the run that needs the plan.
                    self._display.warning(str(exc))
        if plan["verdict"] == "refused":
            count = len(plan["refusals"])
            head = f"{model.name} cannot be served as asked for, {count} reason{'s' if count > 1 else ''}; nothing was touched:"
            result["failed"] = True
            result["msg"] = "\n  - ".join(
                [head, *(f"{r['sentence']} {r['nearest']}".strip() for r in plan["refusals"])]
            )
        else:
            result["msg"] = plan_summary(plan)
        return result


def _model(name: str, config: t.Any) -> ModelShape:
    """The shape of the model: out of the catalogue, or worked out from a config.json."""
    if config in (None, ""):
        return known(name)
    if isinstance(config, t.Mapping):
        return shape_of(name, config)
    path = Path(str(config)).expanduser()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"{name}: config {path}: expected a readable JSON file; {exc}") from exc
    if not isinstance(data, dict):
        raise ModelError(f"{name}: config {path}: expected a JSON object, found {type(data).__name__}")
    return shape_of(name, data)


def _hosts(
    names: t.Sequence[str], args: dict[str, t.Any], hostvars: t.Mapping[str, t.Any], model: ModelShape
) -> tuple[list[t.Any], bool, str]:
    """The hosts for the planner; whether a GPU view among them was simulated; where the facts came from."""
    facts = args["facts"]
    found, simulated, sources = [], False, set()
    use_gpus = model.native_precision != "gguf"
    for name in names:
        in_inventory = name in hostvars
        if not in_inventory and not isinstance(facts, t.Mapping):
            raise HardwareError(f"host {name} is not in the inventory")
        variables: t.Mapping[str, t.Any] = hostvars[name] if in_inventory else {}
        hardware = facts.get(name) if isinstance(facts, t.Mapping) else variables.get(str(facts))
        if isinstance(hardware, t.Mapping):
            simulated = simulated or (use_gpus and bool(hardware.get("simulated")))
            sources.add(str(hardware.get("source", "live")))
        weight = variables.get("fleet_weight", 0)
        if not str(weight).isdigit():
            raise HardwareError(f"{name}: fleet_weight: expected a whole number from 1 to 256, found {weight!r}")
        found.append(
            plan_host(
                name,
                hardware,
                region=str(variables.get("fleet_region", "default")),
                weight=int(weight),
                use_gpus=use_gpus,
                overrides=args["gpu_overrides"],
            )
        )
    return found, simulated, ", ".join(sorted(sources))
