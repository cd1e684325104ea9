# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Make the plan: hosts and wishes in, fleet_plan out, or refusals with numbers and the nearest plan that works."""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.gpufleet.deepseek.plugins.module_utils._engine_catalogue import (
    ENGINES,
    KV_BYTES,
    PRECISIONS,
    TENSORRT_LLM_AMPERE,
    Support,
    lines,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_speed import (
    GIB,
    Device,
    Layout,
    Memory,
    Speed,
    memory_of,
)

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.deepseek.plugins.module_utils._model_catalogue import ModelShape

SCHEMA = 1
BATCH_SIZES = (16, 24, 32, 48, 64)
DEFAULT_CONTEXT = 8192
# A CPU serves the embedded model, to show the way through: a few requests of a short context.
CPU_CONTEXT, CPU_BATCH = 1024, 4


class PlanError(Exception):
    """A wish that makes no sense, in words for the operator."""


@dataclass(frozen=True)
class PlanHost:
    """A host as the planner sees it.

    :ivar name: inventory name.
    :ivar region: hosts of one replica are of one region.
    :ivar device: one of its GPUs, or its CPU.
    :ivar product: GPUs of one product only may share a replica.
    :ivar generation: for the sentence that says why.
    :ivar devices: number of GPUs that answer; 1 for a CPU.
    :ivar rdma: it has an active RDMA port, so that it may share a replica with other hosts.
    :ivar weight: gateway weight set by the operator; 0: from the plan.
    :ivar problem: why the host cannot be planned with, empty when it can.
    """

    name: str
    region: str
    device: Device | None
    product: str
    generation: str
    devices: int
    rdma: bool
    weight: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Targets:
    """What the service is to do. 0 means not asked for.

    :ivar requests_per_second: of the whole fleet.
    :ivar prompt_tokens: tokens of a typical prompt.
    :ivar answer_tokens: tokens of a typical answer.
    :ivar first_token_ms: time to the first token of an idle replica.
    :ivar answer_ms: mean time of a whole answer.
    :ivar availability_percent: over the window.
    :ivar failover_minutes: how long one failover takes.
    :ivar window_days: the window.
    """

    requests_per_second: float = 0.0
    prompt_tokens: int = 1024
    answer_tokens: int = 256
    first_token_ms: float = 0.0
    answer_ms: float = 0.0
    availability_percent: float = 0.0
    failover_minutes: float = 5.0
    window_days: float = 30.0


@dataclass(frozen=True)
class Wish:
    """What the operator wants; auto and 0 leave the choice to the planner."""

    engine: str = "auto"
    precision: str = "auto"
    kv_dtype: str = "auto"
    tensor_parallel: int = 0
    pipeline_parallel: int = 0
    hosts_per_replica: int = 0
    context_tokens: int = 0
    concurrency: int = 0
    max_batch_size: int = 64
    max_num_tokens: int = 8192
    memory_utilization: float = 0.90
    batch_wait_ms: int = 5
    targets: Targets = field(default_factory=Targets)


@dataclass(frozen=True)
class Refusal:
    """Why there is no plan: a code for programs, a sentence with numbers, and what would work."""

    code: str
    sentence: str
    nearest: str = ""


@dataclass(frozen=True)
class Candidate:
    """One way to serve the model on hosts of one kind."""

    support: Support
    device: Device
    product: str
    devices_per_host: int
    layout: Layout
    memory: Memory
    order: int

    @property
    def label(self) -> str:
        """In words."""
        gpus = f"tensor parallel {self.layout.tensor_parallel}"
        if self.layout.pipeline_parallel > 1:
            gpus += f", pipeline parallel {self.layout.pipeline_parallel}"
        hosts = f"{self.layout.hosts} host{'s' if self.layout.hosts > 1 else ''} per replica"
        return f"{self.support.engine} with {self.support.precision} weights, {gpus}, {hosts}"


def check_wish(wish: Wish, model: ModelShape) -> None:
    """Refuse what makes no sense at all.

    :raises PlanError: with the name of the wish, what was expected and what was found.
    """
    problems = []

    def check(name: str, value: float, low: float, high: float) -> None:
        if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
            problems.append(f"{name}: expected {low:g} to {high:g}, found {value!r}")

    if wish.engine not in ("auto", *ENGINES):
        problems.append(f"engine: expected auto, {', '.join(ENGINES)}; found {wish.engine!r}")
    if wish.precision not in ("auto", *PRECISIONS):
        problems.append(f"precision: expected auto, {', '.join(PRECISIONS)}; found {wish.precision!r}")
    if wish.kv_dtype not in KV_BYTES:
        problems.append(f"kv_dtype: expected {', '.join(KV_BYTES)}; found {wish.kv_dtype!r}")
    check("tensor_parallel", wish.tensor_parallel, 0, 1024)
    check("pipeline_parallel", wish.pipeline_parallel, 0, 128)
    check("hosts_per_replica", wish.hosts_per_replica, 0, 128)
    check("context_tokens", wish.context_tokens, 0, 134217728)
    check("concurrency", wish.concurrency, 0, 1000000)
    check("max_batch_size", wish.max_batch_size, 1, 4096)
    check("max_num_tokens", wish.max_num_tokens, 64, 1048576)
    check("memory_utilization", wish.memory_utilization, 0.1, 0.98)
    check("batch_wait_ms", wish.batch_wait_ms, 0, 10000)
    goals = wish.targets
    check("targets.requests_per_second", goals.requests_per_second, 0, 1e9)
    check("targets.prompt_tokens", goals.prompt_tokens, 1, 134217728)
    check("targets.answer_tokens", goals.answer_tokens, 1, 134217728)
    check("targets.first_token_ms", goals.first_token_ms, 0, 1e9)
    check("targets.answer_ms", goals.answer_ms, 0, 1e9)
    check("targets.availability_percent", goals.availability_percent, 0, 100)
    check("targets.failover_minutes", goals.failover_minutes, 0, 1e6)
    check("targets.window_days", goals.window_days, 1, 3660)
    if wish.context_tokens > model.max_context:
        problems.append(
            f"context_tokens: {model.name} knows at most {model.max_context} tokens, found {wish.context_tokens}"
        )
    if problems:
        raise PlanError("; ".join(problems))


def make_plan(model: ModelShape, hosts: t.Sequence[PlanHost], wish: Wish) -> dict[str, t.Any]:
    """The plan for one model on some hosts.

    :arg model: what is to be served.
    :arg hosts: where; those with a problem are set aside and named.
    :arg wish: what the operator wants.
    :returns: ``verdict`` ``ok`` or ``refused``; when refused, ``refusals`` say why and what would work.
    :raises PlanError: a wish makes no sense.
    """
    check_wish(wish, model)
    if model.native_precision == "gguf" and wish.max_batch_size > CPU_BATCH:
        wish = replace(wish, max_batch_size=max(CPU_BATCH, min(wish.concurrency, wish.max_batch_size)))
    refusals, chosen, others = _choose(model, hosts, wish)
    if chosen is None:
        nearest = _nearest(model, hosts, wish) if any(not host.problem for host in hosts) else ""
        return _refused(model, [replace(r, nearest=r.nearest or nearest) for r in refusals])
    kinds = [chosen, *_other_kinds(model, hosts, wish, chosen)]
    replicas, spare = _replicas(hosts, kinds)
    plan = _describe(model, wish, kinds, replicas, spare, hosts, others)
    missed = _check_targets(plan, model, wish, kinds)
    if missed:
        return {**plan, **_refused(model, missed)}
    return plan


def _refused(model: ModelShape, refusals: list[Refusal]) -> dict[str, t.Any]:
    return {
        "schema": SCHEMA,
        "verdict": "refused",
        "model": {"name": model.name},
        "refusals": [{"code": r.code, "sentence": r.sentence, "nearest": r.nearest} for r in refusals],
    }


# -- which engine, which precision, how cut ---------------------------------------------------------------------------


def _choose(
    model: ModelShape, hosts: t.Sequence[PlanHost], wish: Wish
) -> tuple[list[Refusal], Candidate | None, list[str]]:
    """The best candidate and the others in words, or why there is none."""
    usable = [host for host in hosts if not host.problem and host.device is not None]
    if not usable:
        found = "; ".join(f"{host.name}: {host.problem}" for host in hosts if host.problem) or "no host was given"
        return [Refusal("no_hosts", f"There is no host to plan with: {found}.")], None, []
    refusals: list[Refusal] = []
    candidates: list[tuple[tuple[float, ...], Candidate]] = []
    kinds: dict[tuple[str, str, int], list[PlanHost]] = {}
    for host in usable:
        kinds.setdefault((host.region, host.product, host.devices), []).append(host)
    for members in kinds.values():
        found_here, why = _candidates(model, members, wish)
        refusals += why
        for candidate in found_here:
            # Fewest hosts for a replica, then the order of the catalogue; a kind with more hosts breaks the tie.
            key = (float(candidate.layout.hosts), float(candidate.order), -float(len(members)))
            candidates.append((key, candidate))
    if candidates:
        ranked = [pair[1] for pair in sorted(candidates, key=lambda pair: pair[0])]
        labels = list(dict.fromkeys(f"{c.label} on {c.product}" for c in ranked))
        return [], ranked[0], labels[1:]
    mixed = _mixed(usable, wish)
    return _distinct([mixed] if mixed else refusals), None, []


def _other_kinds(model: ModelShape, hosts: t.Sequence[PlanHost], wish: Wish, chosen: Candidate) -> list[Candidate]:
    """Hosts with other GPUs serve too, in replicas of their own, when the same engine runs the same weights there."""
    kinds: dict[tuple[str, int], list[PlanHost]] = {}
    for host in hosts:
        if not host.problem and host.device is not None:
            kinds.setdefault((host.product, host.devices), []).append(host)
    found = []
    for (product, devices), members in sorted(kinds.items()):
        device = t.cast(Device, members[0].device)
        if (product, devices) == (chosen.product, chosen.devices_per_host):
            continue
        if device.architecture in chosen.support.architectures:
            outcome = _best_of_line(model, members, wish, chosen.support, chosen.order)
            if isinstance(outcome, Candidate):
                found.append(outcome)
    return found


def _mixed(hosts: list[PlanHost], wish: Wish) -> Refusal | None:
    """Hosts of several kinds that would be enough if they were of one."""
    kinds: dict[str, list[str]] = {}
    for host in hosts:
        kinds.setdefault(f"{host.devices} x {host.product} ({host.generation})", []).append(host.name)
    if len(kinds) < 2 or wish.hosts_per_replica < 2:
        return None
    if max(len(names) for names in kinds.values()) >= wish.hosts_per_replica or len(hosts) < wish.hosts_per_replica:
        return None
    what = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in sorted(kinds.items()))
    return Refusal(
        "mixed_generations",
        f"A replica of {wish.hosts_per_replica} hosts needs that many with the same GPUs, because the slowest GPU sets the pace and kernels differ by "
        f"generation; found {what}.",
    )


def _distinct(refusals: list[Refusal]) -> list[Refusal]:
    """Each reason once; how a model is cut is the same for every precision."""
    return list({(r.code, "" if r.code == "layout" else r.sentence): r for r in reversed(refusals)}.values())[::-1]


def _candidates(model: ModelShape, members: list[PlanHost], wish: Wish) -> tuple[list[Candidate], list[Refusal]]:
    """What fits on hosts of one kind, and why the rest does not."""
    device = t.cast(Device, members[0].device)
    supported = lines(wish.engine, model.family, wish.precision, device.architecture)
    gguf = model.native_precision == "gguf"
    supported = [line for line in supported if (line.precision == "gguf") == gguf]
    if not supported:
        return [], [_unsupported(model, wish, device, members)]
    found: list[Candidate] = []
    reasons: dict[str, Refusal] = {}
    for order, line in enumerate(supported):
        outcome = _best_of_line(model, members, wish, line, order)
        if isinstance(outcome, Candidate):
            found.append(outcome)
        else:
            # Engines differ little in memory: the first one's reason stands for the precision.
            reasons.setdefault("16 bits" if line.precision in ("fp16", "bf16") else line.precision, outcome)
    return found, list(reasons.values())


def _best_of_line(
    model: ModelShape, members: list[PlanHost], wish: Wish, line: Support, order: int
) -> Candidate | Refusal:
    """The candidate with the fewest hosts for a replica, or the reason that says most."""
    device, count = t.cast(Device, members[0].device), members[0].devices
    if wish.hosts_per_replica > line.nodes:
        return Refusal(
            "too_many_hosts",
            f"{line.engine} with {line.precision} weights is planned on at most {line.nodes} hosts per replica, asked for were "
            f"{wish.hosts_per_replica}.",
        )
    sizes = [wish.hosts_per_replica] if wish.hosts_per_replica else list(range(1, line.nodes + 1))
    outcomes = [_fit(model, members, wish, line, device, count, nodes, order) for nodes in sizes]
    for outcome in outcomes:
        if isinstance(outcome, Candidate):
            return outcome
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    told = [refusal for nodes, refusal in zip(sizes, refusals) if nodes <= len(members) and refusal.code != "layout"]
    missing = next((refusal for refusal in refusals if refusal.code == "too_few_hosts"), None)
    first = told[-1] if told else (missing or refusals[0])
    if missing and first is not missing:
        return replace(first, sentence=f"{first.sentence} {missing.sentence}")
    return first


def _unsupported(model: ModelShape, wish: Wish, device: Device, members: list[PlanHost]) -> Refusal:
    where = f"{members[0].devices} x {device.name} ({device.architecture}; {_names(members)})"
    if wish.engine == "tensorrt_llm" and model.family == "deepseek_v3" and device.architecture in ("sm80", "sm86"):
        return Refusal("engine_architecture", f"{TENSORRT_LLM_AMPERE}; found {where}.")
    can = sorted(
        {f"{line.engine} {line.precision}" for line in lines("auto", model.family, "auto", device.architecture)}
    )
    runs = f"what runs there: {', '.join(can)}." if can else "no engine of this release runs it there."
    sentence = f"{model.name} ({model.family}) does not run on {where} with "
    sentence += f"{'any engine' if wish.engine == 'auto' else wish.engine} in {'any precision' if wish.precision == 'auto' else wish.precision}; {runs}"
    if wish.precision == "auto":
        return Refusal("unsupported", sentence)
    total = device.memory_bytes * members[0].devices / 1e9
    size = model.parameters * PRECISIONS[wish.precision].weight_bytes / 1e9
    room = total * wish.memory_utilization
    sentence += f" Weights alone would take {size:.0f} GB in {wish.precision}; a host has {total:.0f} GB, of which {room:.0f} may be used"
    sentence += ": it does not fit one host either." if size > room else "."
    if wish.precision == "fp8" and not device.fp8_flops and device.architecture != "cpu":
        sentence += f" {device.architecture} has no FP8 arithmetic."
    return Refusal("precision_architecture", sentence)


def _fit(
    model: ModelShape,
    members: list[PlanHost],
    wish: Wish,
    line: Support,
    device: Device,
    count: int,
    nodes: int,
    order: int,
) -> Candidate | Refusal:
    """A candidate on that many hosts per replica, or the reason against it."""
    what = f"{model.name} with {line.precision} weights on {nodes} x {count} {device.name}"
    layout = _layout(model, wish, line, count, nodes)
    if isinstance(layout, str):
        return Refusal("layout", f"{what}: {layout}.")
    memory = memory_of(
        model,
        line.precision,
        device,
        layout,
        max_batch=wish.max_batch_size,
        max_num_tokens=wish.max_num_tokens,
        graphs=len(batch_sizes(wish.max_batch_size)) if device.architecture != "cpu" else 0,
        utilization=wish.memory_utilization,
        kv_dtype=wish.kv_dtype,
    )
    if memory.kv <= 0:
        size = model.parameters * PRECISIONS[line.precision].weight_bytes / 1e9
        return Refusal(
            "memory",
            f"{what} does not fit: weights of {size:.0f} GB in all are {memory.weights / GIB:.1f} GiB on each GPU, runtime {memory.runtime / GIB:.1f} and "
            f"activations {memory.activations / GIB:.1f}; usable are {memory.usable / GIB:.1f} of {memory.total / GIB:.1f} GiB.",
        )
    context = context_of(model, wish)
    if memory.kv_tokens < context:
        return Refusal(
            "context",
            f"{what}: the KV cache that is left holds {memory.kv_tokens} tokens ({memory.kv / GIB:.1f} GiB on each GPU, "
            f"{memory.kv_bytes_per_token / 1024:.1f} KiB a token), less than one request of {context} tokens.",
            f"The same with context_tokens up to {memory.kv_tokens // 256 * 256}." if memory.kv_tokens >= 256 else "",
        )
    typical = wish.targets.prompt_tokens + wish.targets.answer_tokens
    if wish.concurrency and memory.kv_tokens < wish.concurrency * min(typical, context):
        return Refusal(
            "concurrency",
            f"{what}: {wish.concurrency} requests of {min(typical, context)} tokens at a time need {wish.concurrency * min(typical, context)} tokens of KV "
            f"cache in one replica, there are {memory.kv_tokens}.",
            f"The same with concurrency up to {memory.kv_tokens // min(typical, context)}.",
        )
    # Facts about the hosts come last: that they are too few says little when the model does not fit anyway.
    if nodes > 1 and not all(host.rdma for host in members):
        without = [host for host in members if not host.rdma]
        return Refusal(
            "no_rdma",
            f"{what}: a replica over {nodes} hosts needs RDMA between them; {_names(without)} have no active RDMA port.",
        )
    if nodes > len(members):
        return Refusal(
            "too_few_hosts",
            f"{model.name} with {line.precision} weights takes {nodes} hosts of {count} {device.name} for one replica, all in one region; {members[0].region} "
            f"has {len(members)} ({_names(members)}).",
        )
    return Candidate(line, device, members[0].product, count, layout, memory, order)


def _layout(model: ModelShape, wish: Wish, line: Support, count: int, nodes: int) -> Layout | str:
    """How the model is cut over nodes x count GPUs, or the reason why it cannot be."""
    gpus = count * nodes
    if wish.tensor_parallel or wish.pipeline_parallel:
        pp = wish.pipeline_parallel or max(1, gpus // wish.tensor_parallel if wish.tensor_parallel and nodes > 1 else 1)
        tp = wish.tensor_parallel or max(1, gpus // pp)
        if tp * pp > gpus:
            return f"tensor parallel {tp} x pipeline parallel {pp} needs {tp * pp} GPUs, there are {gpus}"
        return _cut(model, line, tp, pp, nodes)
    reason = ""
    for tp in range(gpus, 0, -1):
        if gpus % tp or (nodes > 1 and tp != gpus):
            continue
        layout = _cut(model, line, tp, 1, nodes)
        if isinstance(layout, Layout):
            return layout
        reason = reason or layout
    return reason or f"{gpus} GPUs cannot be divided"


def _cut(model: ModelShape, line: Support, tp: int, pp: int, nodes: int) -> Layout | str:
    group = PRECISIONS[line.precision].group
    if model.heads % tp:
        good = [n for n in range(1, model.heads + 1) if model.heads % n == 0 and n <= 64]
        return f"tensor parallel {tp} does not divide the model's {model.heads} attention heads; {', '.join(map(str, good))} do"
    if model.kv_sharded and model.kv_heads % tp and tp % model.kv_heads:
        return f"tensor parallel {tp} fits the model's {model.kv_heads} KV heads neither way"
    if pp > model.layers:
        return f"pipeline parallel {pp} exceeds the model's {model.layers} layers"
    expert_parallel = 1
    if model.intermediate % (tp * group):
        if not model.experts or model.experts % tp:
            return (
                f"tensor parallel {tp} cuts the intermediate size {model.intermediate} into pieces that are no multiple of {group}, "
                f"the group of {line.precision} weights"
            )
        expert_parallel = tp
    return Layout(tp, pp, expert_parallel, nodes)


def batch_sizes(max_batch: int) -> list[int]:
    """Batch sizes for which graphs are captured: 16 to 64 by default."""
    sizes = [size for size in BATCH_SIZES if size < max_batch]
    while sizes and sizes[-1] * 2 < max_batch:
        sizes.append(sizes[-1] * 2)
    return [*sizes, max_batch]


def context_of(model: ModelShape, wish: Wish) -> int:
    """Tokens of the longest request: as asked, else 8192 (1024 on a CPU) or what the model knows."""
    return wish.context_tokens or min(
        CPU_CONTEXT if model.native_precision == "gguf" else DEFAULT_CONTEXT, model.max_context
    )


def _names(hosts: t.Sequence[PlanHost]) -> str:
    names = [host.name for host in hosts]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _nearest(model: ModelShape, hosts: t.Sequence[PlanHost], wish: Wish) -> str:
    """The plan that differs least from the wish and works, in words."""
    free: dict[str, t.Any] = {"tensor_parallel": 0, "pipeline_parallel": 0}
    steps: list[dict[str, t.Any]] = [
        free,
        {**free, "hosts_per_replica": 0},
        {**free, "engine": "auto"},
        {**free, "engine": "auto", "hosts_per_replica": 0},
        {**free, "precision": "auto"},
        {**free, "precision": "auto", "hosts_per_replica": 0},
        {**free, "engine": "auto", "precision": "auto", "hosts_per_replica": 0},
        {**free, "engine": "auto", "precision": "auto", "hosts_per_replica": 0, "concurrency": 0},
        {
            **free,
            "engine": "auto",
            "precision": "auto",
            "hosts_per_replica": 0,
            "concurrency": 0,
            "context_tokens": 2048,
        },
    ]
    for step in steps:
        _why, chosen, _others = _choose(model, hosts, replace(wish, **step))
        if chosen:
            shorter = " and context_tokens 2048" if "context_tokens" in step else ""
            return f"Nearest plan that works: {chosen.label}{shorter}."
    return "No engine and precision of this release serves this model on these hosts; a smaller model, or more or larger GPUs, would."


# -- the plan ---------------------------------------------------------------------------------------------------------


def _replicas(
    hosts: t.Sequence[PlanHost], kinds: list[Candidate]
) -> tuple[list[dict[str, t.Any]], list[dict[str, str]]]:
    """Hosts of the same kind and region in groups, and the rest with the reason."""
    replicas: list[dict[str, t.Any]] = []
    spare: list[dict[str, str]] = []
    groups: dict[tuple[str, int], list[PlanHost]] = {}
    number = {(kind.product, kind.devices_per_host): index for index, kind in enumerate(kinds)}
    for host in hosts:
        index = number.get((host.product, host.devices))
        if host.problem or host.device is None:
            spare.append({"host": host.name, "reason": host.problem or "its hardware is not known"})
        elif index is None:
            reason = f"{kinds[0].support.engine} cannot serve the same {kinds[0].support.precision} weights on {host.devices} x {host.product}"
            spare.append({"host": host.name, "reason": reason})
        elif kinds[index].layout.hosts > 1 and not host.rdma:
            spare.append({"host": host.name, "reason": "no active RDMA port"})
        else:
            groups.setdefault((host.region, index), []).append(host)
    count: dict[str, int] = {}
    for (region, index), members in groups.items():
        size = kinds[index].layout.hosts
        whole = len(members) // size * size
        for start in range(0, whole, size):
            group = members[start : start + size]
            count[region] = count.get(region, 0) + 1
            replicas.append(
                {
                    "name": f"{region}-{count[region]}",
                    "region": region,
                    "hosts": [host.name for host in group],
                    "leader": group[0].name,
                    "kind": index,
                    "weight": group[0].weight,
                }
            )
        spare += [
            {"host": host.name, "reason": f"one replica takes {size} hosts and {region} has {len(members)} of the kind"}
            for host in members[whole:]
        ]
    return replicas, spare


def _describe_kind(model: ModelShape, wish: Wish, kind: Candidate) -> dict[str, t.Any]:
    """What a replica on hosts of one kind is and does."""
    memory, layout, line = kind.memory, kind.layout, kind.support
    speed = Speed(model, line, kind.device, layout, memory)
    goals = wish.targets
    context = context_of(model, wish)
    typical = min(context, goals.prompt_tokens + goals.answer_tokens)
    sequences = max(1, min(wish.max_batch_size, memory.kv_tokens // typical))
    by_batch = []
    for batch in sorted({1, *(b for b in (8, *batch_sizes(wish.max_batch_size)) if b <= sequences), sequences}):
        step = speed.step_seconds(batch, typical)
        answer = speed.answer_seconds(batch, goals.prompt_tokens, goals.answer_tokens)
        by_batch.append(
            {
                "batch": batch,
                "tokens_per_second": round(batch / step, 1),
                "tokens_per_second_per_request": round(1 / step, 1),
                "requests_per_second": round(batch / answer, 3),
                "answer_seconds": round(answer, 2),
            }
        )
    shown = {
        "total_gib": memory.total / GIB,
        "weights_gib": memory.weights / GIB,
        "kv_cache_gib": memory.kv / GIB,
        "activations_gib": memory.activations / GIB,
        "runtime_gib": memory.runtime / GIB,
        "free_gib": (memory.total - memory.usable) / GIB,
    }
    return {
        "device": {"name": kind.device.name, "product": kind.product, "architecture": kind.device.architecture},
        "devices_per_host": kind.devices_per_host,
        "tensor_parallel": layout.tensor_parallel,
        "pipeline_parallel": layout.pipeline_parallel,
        "expert_parallel": layout.expert_parallel,
        "hosts_per_replica": layout.hosts,
        "memory_per_device": {key: round(value, 2) for key, value in shown.items()},
        "kv_cache_tokens": memory.kv_tokens,
        "sequences": {
            "typical": sequences,
            "full_context": max(1, min(wish.max_batch_size, memory.kv_tokens // context)),
        },
        "speed": {
            "prompt_tokens": goals.prompt_tokens,
            "answer_tokens": goals.answer_tokens,
            "prefill_tokens_per_second": round(speed.prefill_tokens_per_second(), 1),
            "first_token_seconds": round(speed.first_token_seconds(goals.prompt_tokens), 3),
            "by_batch": by_batch,
            "memory_efficiency": line.memory_efficiency,
            "compute_efficiency": line.compute_efficiency,
            "layer_us": line.layer_us,
        },
    }


def _weights(rates: list[float]) -> list[int]:
    """Gateway weights from 1 to 256 in the proportion of rates, as small as one decimal of the proportion allows."""
    tenths = [min(256, max(1, round(10 * rate / min(rates)))) for rate in rates]
    common = math.gcd(*tenths)
    return [number // common for number in tenths]


def _describe(
    model: ModelShape,
    wish: Wish,
    kinds: list[Candidate],
    replicas: list[dict[str, t.Any]],
    spare: list[dict[str, str]],
    hosts: t.Sequence[PlanHost],
    others: list[str],
) -> dict[str, t.Any]:
    line = kinds[0].support
    described = [_describe_kind(model, wish, kind) for kind in kinds]
    best = [kind["speed"]["by_batch"][-1] for kind in described]
    weights = _weights([rates["tokens_per_second"] for rates in best])
    peers = {
        replica["leader"]: {
            "weight": replica["weight"] or weights[replica["kind"]],
            "weight_from": "inventory" if replica["weight"] else "plan",
            "token_capacity": described[replica["kind"]]["kv_cache_tokens"],
            "max_sequences": described[replica["kind"]]["sequences"]["typical"],
            "context_tokens": context_of(model, wish),
            "region": replica["region"],
            "replica": replica["name"],
        }
        for replica in replicas
    }
    return {
        "schema": SCHEMA,
        "verdict": "ok",
        "hosts": [host.name for host in hosts],
        "model": {
            "name": model.name,
            "family": model.family,
            "parameters": model.parameters,
            "active_parameters": model.active_parameters,
            "kv_bytes_per_token": model.kv_bytes_per_token(KV_BYTES[wish.kv_dtype]),
            "max_context": model.max_context,
        },
        "engine": line.engine,
        "precision": line.precision,
        "kv_dtype": wish.kv_dtype,
        "chunked_prefill": line.chunked_prefill,
        "context_tokens": context_of(model, wish),
        "limits": {
            "max_batch_size": wish.max_batch_size,
            "batch_sizes": batch_sizes(wish.max_batch_size),
            "batch_wait_ms": wish.batch_wait_ms,
            "max_num_tokens": wish.max_num_tokens,
        },
        # The first kind is the one that the plan was made for; its values stand at the top as well.
        **described[0],
        "kinds": described,
        "replicas": [{k: v for k, v in replica.items() if k != "weight"} for replica in replicas],
        "spare": spare,
        "fleet": {
            "replicas": len(replicas),
            "requests_at_a_time": sum(described[r["kind"]]["sequences"]["typical"] for r in replicas),
            "requests_per_second": round(sum(best[r["kind"]]["requests_per_second"] for r in replicas), 3),
            "tokens_per_second": round(sum(best[r["kind"]]["tokens_per_second"] for r in replicas), 1),
        },
        "peers": peers,
        "targets": [],
        "alternatives": others,
        "decisions": _decisions(model, wish, kinds, described, replicas, spare, hosts, others),
    }


def _decisions(
    model: ModelShape,
    wish: Wish,
    kinds: list[Candidate],
    described: list[dict[str, t.Any]],
    replicas: list[dict[str, t.Any]],
    spare: list[dict[str, str]],
    hosts: t.Sequence[PlanHost],
    others: list[str],
) -> list[str]:
    """A sentence for each decision."""
    line = kinds[0].support
    weights = model.parameters * PRECISIONS[line.precision].weight_bytes / 1e9
    out = [
        f"Precision {line.precision}: {'asked for' if wish.precision != 'auto' else 'the fewest hosts for a replica, then the best that fits'}; "
        f"weights take {weights:.1f} GB ({PRECISIONS[line.precision].note}).",
        f"Engine {line.engine}: {'asked for' if wish.engine != 'auto' else 'first choice of the catalogue'} for {model.family} in {line.precision} on "
        f"{kinds[0].device.architecture}.",
    ]
    if model.family == "deepseek_v3" and kinds[0].device.architecture in ("sm80", "sm86"):
        out.append(f"{TENSORRT_LLM_AMPERE}.")
    for kind, facts in zip(kinds, described):
        out += _kind_decisions(model, wish, kind, facts)
    regions = sorted({replica["region"] for replica in replicas})
    out.append(f"{len(replicas)} replica{'s' if len(replicas) != 1 else ''} in {', '.join(regions)}.")
    if len(replicas) == 1:
        out.append("One replica: while its host is down, nobody answers.")
    out += [f"{entry['host']} stays out: {entry['reason']}." for entry in spare]
    by_hand = [host.name for host in hosts if host.weight and not host.problem]
    if by_hand:
        out.append(
            f"Gateway weight from the inventory (fleet_weight): {', '.join(by_hand)}; the others follow their tokens per second."
        )
    if others:
        out.append(f"Would work too: {'; '.join(others[:5])}.")
    return out


def _kind_decisions(model: ModelShape, wish: Wish, kind: Candidate, facts: dict[str, t.Any]) -> list[str]:
    layout, memory, out = kind.layout, kind.memory, []
    gpu = kind.device.architecture != "cpu"
    if gpu:
        unused = kind.devices_per_host * layout.hosts - layout.tensor_parallel * layout.pipeline_parallel
        out.append(
            f"Tensor parallel {layout.tensor_parallel} on {kind.product}: divides {model.heads} heads over {layout.hosts} "
            f"host{'s' if layout.hosts > 1 else ''}"
            + (f"; {unused} GPUs of each replica stay unused." if unused else ", all GPUs of a replica.")
        )
    if layout.expert_parallel > 1:
        out.append(
            f"Expert parallel {layout.expert_parallel}: whole experts per GPU, because cutting them by {layout.tensor_parallel} breaks the weight groups."
        )
    out.append(
        f"Memory: of {memory.total / GIB:.1f} GiB {'a GPU' if gpu else 'the host'} uses {wish.memory_utilization:.0%}; after weights, runtime and activations "
        f"{memory.kv / GIB:.1f} GiB are left for {memory.kv_tokens} tokens of KV cache ({memory.kv_bytes_per_token / 1024:.1f} KiB a token"
        + (
            " on each GPU: MLA's latent vector cannot be divided)."
            if not model.kv_sharded
            else " on each)."
            if gpu
            else ")."
        )
    )
    goals, context = wish.targets, context_of(model, wish)
    out.append(
        f"Batch: dynamic, {', '.join(map(str, batch_sizes(wish.max_batch_size)))}; a replica works on {facts['sequences']['typical']} requests of "
        f"{min(context, goals.prompt_tokens + goals.answer_tokens)} tokens at a time, or {facts['sequences']['full_context']} of {context}."
    )
    if layout.hosts > 1:
        out.append(
            f"{layout.hosts} hosts per replica over RDMA: fewer do not hold the model in this precision, or so many were asked for."
        )
    return out


def _check_targets(plan: dict[str, t.Any], model: ModelShape, wish: Wish, kinds: list[Candidate]) -> list[Refusal]:
    """Compare the plan with the targets; fills plan['targets'] and returns what is missed. Times are those of the slowest kind."""
    goals = wish.targets
    slowest = max(range(len(kinds)), key=lambda n: float(plan["kinds"][n]["speed"]["by_batch"][0]["answer_seconds"]))
    kind = kinds[slowest]
    full_batch = plan["kinds"][slowest]["speed"]["by_batch"][-1]["answer_seconds"]
    speed = Speed(model, kind.support, kind.device, kind.layout, kind.memory)
    prompt, answer = goals.prompt_tokens, goals.answer_tokens
    rows: list[dict[str, t.Any]] = plan["targets"]
    missed: list[Refusal] = []

    def row(name: str, wanted: str, got: str, ok: bool, sentence: str, nearest: str) -> None:
        rows.append({"target": name, "wanted": wanted, "expected": got, "ok": ok, "sentence": sentence})
        if not ok:
            missed.append(Refusal(f"target_{name}", sentence, nearest))

    if goals.requests_per_second:
        got = plan["fleet"]["requests_per_second"]
        one = plan["speed"]["by_batch"][-1]["requests_per_second"]
        need = math.ceil(goals.requests_per_second / one) * kinds[0].layout.hosts
        have = sum(len(replica["hosts"]) for replica in plan["replicas"])
        row(
            "requests_per_second",
            f"{goals.requests_per_second:g}/s",
            f"{got:g}/s",
            got >= goals.requests_per_second,
            f"{goals.requests_per_second:g} requests per second of {prompt} prompt and {answer} answer tokens take {need} hosts of this kind; "
            f"{have} give {got:g} ({one:.2f} for a replica).",
            f"{got:g} requests per second on these hosts, or {need} hosts.",
        )
    first = speed.first_token_seconds(prompt)
    if goals.first_token_ms:
        longest = int((goals.first_token_ms / 1000) * speed.prefill_tokens_per_second())
        row(
            "first_token_ms",
            f"{goals.first_token_ms:g} ms",
            f"{first * 1000:.0f} ms",
            first * 1000 <= goals.first_token_ms,
            f"The first token of a prompt of {prompt} tokens comes after {first * 1000:.0f} ms on an idle replica; {goals.first_token_ms:g} ms were asked for.",
            f"{goals.first_token_ms:g} ms to the first token for prompts of up to {longest} tokens on an idle replica.",
        )
    if goals.answer_ms:
        alone = speed.answer_seconds(1, prompt, answer) * 1000
        step = speed.step_seconds(1, prompt)
        within = max(0, int((goals.answer_ms / 1000 - first) / step) + 1) if goals.answer_ms / 1000 >= first else 0
        longest = int((goals.answer_ms / 1000) * speed.prefill_tokens_per_second())
        row(
            "answer_ms",
            f"{goals.answer_ms:g} ms",
            f"{alone:.0f} ms",
            alone <= goals.answer_ms,
            f"A whole answer of {answer} tokens takes {alone:.0f} ms even on an idle replica ({step * 1000:.1f} ms a token), and "
            f"{full_batch * 1000:.0f} ms in a full batch; {goals.answer_ms:g} ms were asked for.",
            f"{goals.answer_ms:g} ms can be "
            + (f"an answer of {within} tokens" if within else "no answer at all for such a prompt")
            + f" on an idle replica, or the time to the first token of a prompt of up to {longest} tokens.",
        )
    if goals.availability_percent:
        window = goals.window_days * 24 * 60
        budget = window * (1 - goals.availability_percent / 100)
        best = 100 * (1 - goals.failover_minutes / window)
        row(
            "availability_percent",
            f"{goals.availability_percent:g} %",
            f"{math.floor(best * 1000) / 1000:g} % with one failover",
            budget >= goals.failover_minutes,
            f"{goals.availability_percent:g} % over {goals.window_days:g} days leave {budget:.2f} minutes of outage; one failover of "
            f"{goals.failover_minutes:g} minutes spends "
            + (f"{goals.failover_minutes / budget:.0%} of them." if budget > 0 else "more than there are."),
            f"{math.floor(best * 1000) / 1000:g} % with one failover of {goals.failover_minutes:g} minutes in {goals.window_days:g} days, or a failover within "
            f"{budget:.2f} minutes.",
        )
    return missed
