# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""Compare the hardware facts of many hosts by the rules of a standard.

The work goes rule by rule, not host by host: a rule's path is read from all hosts at once into a column, equal values are counted, and each
different value is judged once. Ten thousand equal hosts cost ten thousand dictionary look-ups for each rule and one judgement.
"""

from __future__ import annotations

import json
import math
import statistics
import typing as t
from collections import Counter
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_columns import (
    KeyColumn,
    labelled,
    read_columns,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_derived import DERIVED
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_rules import (
    Rule,
    RuleError,
    Standard,
    Step,
    is_number,
    type_word,
)
from ansible_collections.gpufleet.deepseek.plugins.module_utils._homogeneity_values import (
    Key,
    contrast,
    key_of,
    long_lists,
    name_list,
    order_of,
    shown,
)

SCHEMA = 1
"""The number of the structure that ``hardware_info`` returns and these rules can read."""

# Which part of the facts a path belongs to, to say why it could not be read.
_SECTION_OF = {
    **dict.fromkeys(("gpu", "gpus", "gpu_driver", "fabric_manager", "dcgm"), "gpu"),
    **dict.fromkeys(("nics", "network"), "network"),
    **dict.fromkeys(("nvme", "storage", "block"), "storage"),
    **dict.fromkeys(("os", "iommu", "pci", "clock", "sysctl"), "os"),
    **{name: name for name in ("cpu", "memory", "board", "rdma")},
    "xids": "xid",
}
# Findings about a host's facts as a whole, in the place of a rule.
NO_FACTS = Rule(
    "facts", "block", "golden", title="Hardware facts", remedy="See why the host did not answer, then run again."
)
OTHER_SCHEMA = Rule(
    "schema",
    "block",
    "golden",
    title="Version of the facts",
    remedy="Gather the facts again with this version of the collection.",
)
SIMULATED = Rule(
    "simulated",
    "block",
    "golden",
    title="Simulated hardware",
    remedy="Allow simulated hosts only where the fleet is a lab.",
)
PSEUDO_RULES = (NO_FACTS, OTHER_SCHEMA, SIMULATED)

_MOST_VALUES = 200
"""More different values than this in one group are not told apart one by one."""
_UNSET: t.Any = object()


class Unusable:
    """What stands in the place of a host's facts when there are none."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


@dataclass(frozen=True)
class Golden:
    """Values that a fleet had once: by group, by path."""

    groups: t.Mapping[str, t.Mapping[str, t.Any]]


@dataclass
class Difference:
    """One value of one fact, in one group, that a rule does not accept, and the hosts that have it.

    :ivar kind: differs, tie, mixed, golden, minimum, maximum, tolerance, forbidden, unreadable, no_facts, schema, simulated.
    :ivar value: the hosts' value; None when it could not be read.
    :ivar share: how many hosts of the group have this value.
    :ivar total: how many hosts of the group have a value at all.
    :ivar expectation: what was expected, as the second half of a sentence.
    :ivar shown: the value as text; of long values only what differs.
    :ivar expected: what it is compared with as text, short.
    :ivar bad: keys of the elements that stand out, for paths with [].
    :ivar shown_bad: the values of these elements as text.
    """

    rule: Rule
    group: str
    kind: str
    value: t.Any
    hosts: list[str]
    share: int
    total: int
    expectation: str
    shown: str
    expected: str = ""
    bad: frozenset[Key] = frozenset()
    shown_bad: str = ""

    @property
    def severity(self) -> str:
        """block, warn or info."""
        return self.rule.severity

    @property
    def whole(self) -> bool:
        """Whether it is about the host's facts as a whole: no rule was applied to this host, or it is not to be believed."""
        return self.kind in ("no_facts", "schema", "simulated")

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.kind == "unreadable":
            return "See why it cannot be read; nobody knows whether this host is in order"
        return self.rule.remedy

    def found(self, where: str = "") -> str:
        """The value as text; when the elements that stand out are named, theirs."""
        if self.kind == "unreadable":
            return self.expectation
        return f"{self.shown_bad} on {where}" if where and self.shown_bad else self.shown

    def sentence(self, where: str = "") -> str:
        """What was found and what was expected.

        :arg where: the elements that stand out, as text.
        """
        if self.whole:
            return self.expectation
        if self.kind == "unreadable":
            return f"{self.rule.name} {self.expectation}"
        return f"{self.rule.name} is {self.found(where)}; {self.expectation}"


@dataclass
class Fact:
    """A fact that differs in a group: the values and how many have them, the most common first; the hosts that have none."""

    rule: Rule
    group: str
    expected: str
    majority: t.Any
    majority_share: int
    total: int
    unreadable: list[str]
    values: list[tuple[str, int]]


@dataclass
class Comparison:
    """Everything that came out.

    :ivar groups: names of hosts, by group.
    :ivar verdicts: pass, warn or block, by host.
    :ivar notes: sentences that are no finding.
    :ivar majorities: the majority value by group and path, for a golden file; a tie has none.
    """

    standard: Standard
    groups: dict[str, list[str]]
    verdicts: dict[str, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    majorities: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    simulated: bool = False
    structures: t.Mapping[str, t.Mapping[str, t.Any]] = field(default_factory=dict)
    _labels: dict[tuple[str, tuple[Step, ...]], list[tuple[str, Key]]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst verdict of a host."""
        return worst(self.verdicts.values())

    def counts(self) -> dict[str, int]:
        """Figures for people: hosts by verdict, findings by severity, rules, groups, facts that differ."""
        verdicts = Counter(self.verdicts.values())
        findings: Counter[str] = Counter()
        for one in self.differences:
            findings[one.severity] += len(one.hosts)
        return {
            "hosts": len(self.verdicts),
            "groups": len(self.groups),
            "rules": len(self.standard.rules),
            "hosts_pass": verdicts["pass"],
            "hosts_warn": verdicts["warn"],
            "hosts_block": verdicts["block"],
            "findings_block": findings["block"],
            "findings_warn": findings["warn"],
            "findings_info": findings["info"],
            "facts_that_differ": len({fact.rule.path for fact in self.facts}),
        }

    def where(self, difference: Difference, host: str) -> str:
        """Which elements of the host's list stand out, as text; "" when it is no list."""
        if not difference.bad or not difference.rule.each or host not in self.structures:
            return ""
        steps = difference.rule.steps
        labels = self._labels.get((host, steps))
        if labels is None:
            labels = self._labels[host, steps] = list(labelled(self.structures[host], steps))
        named = [label for label, key in labels if key in difference.bad]
        if len(named) == len(labels) and len(named) > 1:
            return f"all {len(named)}"
        return name_list(named, 4)


def worst(verdicts: t.Iterable[str]) -> str:
    """The worst of verdicts."""
    found = set(verdicts)
    return "block" if "block" in found else "warn" if "warn" in found else "pass"


def compare(
    hosts: t.Sequence[str],
    facts: t.Mapping[str, t.Any],
    group_of: t.Mapping[str, str],
    standard: Standard,
    *,
    golden: Golden | None = None,
    allow_simulated: bool = False,
) -> Comparison:
    """Compare hosts within their groups.

    :arg hosts: names; each gets a verdict.
    :arg facts: the structure of each host; :class:`Unusable`, None or no entry when there is none.
    :arg group_of: the group of each host.
    :arg golden: values that stand in the place of the majority.
    :arg allow_simulated: a host with simulated GPUs is a note and no finding.
    """
    groups: dict[str, list[str]] = {}
    for host in hosts:
        groups.setdefault(group_of.get(host, ""), []).append(host)
    groups = {name: groups[name] for name in sorted(groups)}
    result = Comparison(standard, groups, verdicts=dict.fromkeys(hosts, "pass"))
    usable = _admit(result, facts, allow_simulated)
    result.structures = usable

    names = list(usable)
    columns = read_columns(usable, names, standard.rules)
    place = {name: number for number, name in enumerate(names)}
    members = {group: [place[host] for host in listed if host in place] for group, listed in groups.items()}
    for column in columns:
        rule = column.rule
        if names and column.missing == len(names):
            result.notes.append(f"no host's facts have {rule.path}: is the path of this rule misspelt?")
        for group, numbers in members.items():
            if numbers:
                _Judge(result, rule, group, names, numbers, column, golden).run()
    for group, listed in groups.items():
        if len(listed) == 1:
            result.notes.append(
                f"{listed[0]} is the only host of group {group}: nothing to compare it with, only fixed limits were checked"
            )
    _set_verdicts(result)
    order = {severity: number for number, severity in enumerate(("block", "warn", "info"))}
    result.differences.sort(key=lambda one: order[one.severity])
    result.facts.sort(key=lambda one: order[one.rule.severity])
    return result


def _set_verdicts(result: Comparison) -> None:
    """A host's verdict is that of its worst finding; info does not count."""
    for one in result.differences:
        if one.severity == "info":
            continue
        for host in one.hosts:
            if one.severity == "block" or result.verdicts[host] == "pass":
                result.verdicts[host] = one.severity


def _admit(result: Comparison, facts: t.Mapping[str, t.Any], allow_simulated: bool) -> dict[str, t.Mapping[str, t.Any]]:
    """Hosts whose facts can be compared; the others become findings."""
    usable: dict[str, t.Mapping[str, t.Any]] = {}
    declared = 0
    simulated_hosts = []
    for group, listed in result.groups.items():
        refused: dict[tuple[int, str], list[str]] = {}
        for host in listed:
            found = facts.get(host)
            if not isinstance(found, t.Mapping):
                reason = (
                    found.reason
                    if isinstance(found, Unusable)
                    else "no facts"
                    if found is None
                    else f"facts are {type_word(found)}, not the structure that hardware_info returns"
                )
                refused.setdefault((0, reason), []).append(host)
                continue
            schema = found.get("schema")
            if schema != SCHEMA or isinstance(schema, bool):
                reason = f"facts have schema {shown(schema)}; this version compares schema {SCHEMA}"
                refused.setdefault((1, reason), []).append(host)
                continue
            if found.get("simulated"):
                result.simulated = True
                simulated_hosts.append(host)
                if not allow_simulated:
                    refused.setdefault((2, "shows simulated GPUs: they do not exist"), []).append(host)
            declared += found.get("source") == "declared"
            usable[host] = found
        for (number, reason), hosts in refused.items():
            kind = ("no_facts", "schema", "simulated")[number]
            result.differences.append(
                Difference(PSEUDO_RULES[number], group, kind, None, hosts, len(hosts), len(listed), reason, "")
            )
    if allow_simulated and simulated_hosts:
        result.notes.append(
            f"simulated GPUs on {name_list(simulated_hosts, 5)}: what is said about them is true of a lab only"
        )
    if declared:
        result.notes.append(
            f"{declared} hosts are declared in the inventory, not measured: only what is declared was compared"
        )
    return usable


# Judgement -----------------------------------------------------------------------------------------------------------


class _Judge:
    """One rule in one group."""

    def __init__(
        self,
        result: Comparison,
        rule: Rule,
        group: str,
        names: list[str],
        numbers: list[int],
        column: KeyColumn,
        golden: Golden | None,
    ) -> None:
        self.result, self.rule, self.group, self.names, self.numbers, self.column = (
            result,
            rule,
            group,
            names,
            numbers,
            column,
        )
        keys = column.keys if len(numbers) == len(column.keys) else [column.keys[number] for number in numbers]
        self.keys = keys
        self.counts: Counter[Key] = Counter(keys)
        self.unread = self.counts.pop(None, 0)
        self.total = len(keys) - self.unread
        self.expected: t.Any = _UNSET
        if golden is not None and rule.compare in ("majority", "tolerance"):
            self.expected = golden.groups.get(group, {}).get(rule.path, _UNSET)
        # What a key is found to be: (kind, expectation, elements that stand out).
        self.bad: dict[Key, tuple[str, str, frozenset[Key]]] = {}
        self.majority: Key = _UNSET
        self.expected_text = ""

    def run(self) -> None:
        """Judge, and add what was found to the result."""
        if self.counts:
            self._find_majority()
            getattr(
                self,
                "_"
                + ("golden" if self.expected is not _UNSET and self.rule.compare == "majority" else self.rule.compare),
            )()
        self._report()

    def _value(self, key: Key) -> t.Any:
        return self.column.value(key)

    def _show(self, key: Key) -> str:
        return shown(self._value(key), self.rule.unit)

    def _find_majority(self) -> None:
        """The most common value, unless two are equally common. Of a uniform rule, hosts that differ within themselves have no vote."""
        counts = self.counts
        if self.rule.uniform and len(counts) > 1:
            voting = Counter({key: count for key, count in counts.items() if len(key) == 1})
            counts = voting or counts
        self.votes = counts
        ordered = counts.most_common(2)
        if len(ordered) == 1 or ordered[0][1] > ordered[1][1]:
            self.majority = ordered[0][0]
            if self.rule.compare == "majority":
                self.result.majorities.setdefault(self.group, {})[self.rule.path] = self._value(self.majority)

    def _majority(self) -> None:
        if self.majority is _UNSET:
            self._tie()
            return
        count = self.counts[self.majority]
        self.expected_text = self._show(self.majority)
        normal = set(self.majority) if self.rule.each else set()
        for key in self.counts:
            if key != self.majority:
                normal_value, value = self._value(self.majority), self._value(key)
                text = f"{count} of {self.total} hosts have {contrast(normal_value, value, self.rule.unit)}"
                if long_lists(value, normal_value):
                    text = f"compared with what {count} of {self.total} hosts have"
                self.bad[key] = (
                    "differs",
                    text,
                    frozenset(one for one in key if one not in normal) if self.rule.each else frozenset(),
                )
        if self.rule.uniform and len(self.majority) > 1:
            for key in self.counts:
                if len(key) > 1:
                    self.bad[key] = ("mixed", "expected one value on one host", self._rare(key))

    def _rare(self, key: Key) -> frozenset[Key]:
        """Elements of the first host with this key other than its most common one."""
        host = self.names[self.numbers[self.keys.index(key)]]
        ordered = Counter(one for _label, one in labelled(self.result.structures[host], self.rule.steps)).most_common(2)
        return frozenset(one for one in key if one != ordered[0][0]) if ordered[0][1] > ordered[1][1] else frozenset()

    def _tie(self) -> None:
        top = max(self.votes.values())
        sides = sorted(
            (key for key, count in self.votes.items() if count == top), key=lambda key: order_of(self._value(key))
        )
        if top == 1 and len(sides) == self.total:
            text = f"no majority: {self.total} hosts have {self.total} different values"
        else:
            text = "no majority: " + ", ".join(f"{top} hosts have {self._show(key)}" for key in sides[:3])
            text += f" and {len(sides) - 3} more values have {top} each" if len(sides) > 3 else ""
        self.expected_text = "no majority"
        for key in self.counts:
            self.bad[key] = ("tie", text, frozenset())

    def _golden(self) -> None:
        if self.expected is _UNSET:
            expected, text = self.rule.value, f"expected {shown(self.rule.value, self.rule.unit)}"
        else:
            expected, text = self.expected, f"the golden file has {shown(self.expected, self.rule.unit)}"
        self.expected_text = shown(expected, self.rule.unit)
        whole = isinstance(expected, (list, tuple))
        wanted = {key_of(one) for one in expected} if whole else {key_of(expected)}
        for key in self.counts:
            value = self._value(key)
            if not self.rule.each:
                if key_of(value) != key_of(expected):
                    self.bad[key] = ("golden", text, frozenset())
                continue
            off = frozenset(one for one in key if key_of(self.column.value_of[one]) not in wanted)
            if off or (whole and len(key) != len(wanted)):
                self.bad[key] = ("golden", text, off)

    def _limit(self, kind: str, word: str, fits: t.Callable[[t.Any], bool]) -> None:
        self.expected_text = f"{word} {shown(self.rule.value, self.rule.unit)}"
        self._numbers(kind, f"expected {self.expected_text}", fits)

    def _minimum(self) -> None:
        self._limit("minimum", "at least", lambda value: value >= self.rule.value)

    def _maximum(self) -> None:
        self._limit("maximum", "at most", lambda value: value <= self.rule.value)

    def _numbers(self, kind: str, text: str, fits: t.Callable[[t.Any], bool]) -> None:
        """Find keys with a value that is no number or does not fit."""
        for key in self.counts:
            parts = key if self.rule.each else (key,)
            values = {one: self.column.value_of[one] for one in parts}
            odd = [one for one, value in values.items() if not is_number(value)]
            off = frozenset(odd or (one for one, value in values.items() if not fits(value)))
            if off:
                self.bad[key] = (kind, "expected a number" if odd else text, off if self.rule.each else frozenset())

    def _tolerance(self) -> None:
        weights: Counter[t.Any] = Counter()
        for key, count in self.counts.items():
            for one in key if self.rule.each else (key,):
                if is_number(self.column.value_of[one]):
                    weights[self.column.value_of[one]] += count
        if not weights:
            self._numbers("tolerance", "", lambda _value: True)
            return
        common = weights.most_common(1)[0]
        if self.rule.center == "majority" and common[1] * 2 > sum(weights.values()):
            center, what = common[0], f"value of {common[1]} of {self.total} hosts"
        else:
            center, what = statistics.median(weights.elements()), "median"
        self.result.majorities.setdefault(self.group, {})[self.rule.path] = center
        if is_number(self.expected):
            center, what = self.expected, "value in the golden file"
        allowed = abs(center) * self.rule.tolerance
        self.expected_text = f"{shown(center, self.rule.unit)} ± {self.rule.tolerance:g} %"
        self._numbers(
            "tolerance",
            f"expected {self.expected_text}, the {what}",
            # A value that is exactly at the edge fits, whatever floating point makes of it.
            lambda value: abs(value - center) * 100 <= allowed * (1 + 1e-9),
        )

    def _forbidden(self) -> None:
        self.expected_text = "none that is forbidden"
        for key in self.counts:
            off, reasons = set(), []
            value = self._value(key)
            plain = value if isinstance(value, (list, tuple)) else [value]
            for one, part in zip(key if self.rule.each else [key] * len(plain), plain):
                for pattern in self.rule.patterns:
                    if pattern.regex.search(shown(part)):
                        off.add(one)
                        reason = pattern.why or f"forbidden by {pattern.regex.pattern}"
                        reasons += [] if reason in reasons else [reason]
                        break
            if off:
                self.bad[key] = ("forbidden", "; ".join(reasons), frozenset(off) if self.rule.each else frozenset())

    def _report(self) -> None:
        hosts_of: dict[Key, list[str]] = {}
        names = self.names
        if self.bad:
            for number, key in zip(self.numbers, self.keys):
                if key in self.bad:
                    hosts_of.setdefault(key, []).append(names[number])
        ordered = sorted(self.bad, key=lambda key: (-self.counts[key], order_of(self._value(key))))
        for key in ordered[:_MOST_VALUES]:
            kind, text, off = self.bad[key]
            value, expected = self._value(key), self.expected_text
            short = shown(value, self.rule.unit)
            if kind == "differs":
                normal = self._value(self.majority)
                short, expected = contrast(value, normal, self.rule.unit), contrast(normal, value, self.rule.unit)
            self._add(kind, value, hosts_of[key], self.counts[key], text, short, expected, off)
        rest = ordered[_MOST_VALUES:]
        if rest:
            hosts = [host for key in rest for host in hosts_of[key]]
            kind, text, _off = self.bad[rest[0]]
            short = f"one of {len(rest)} more different values"
            self._add(kind, None, hosts, self.counts[rest[0]], text, short, self.expected_text)
        unread = self._unreadable() if self.unread and not self.rule.optional else 0
        if self.bad or unread:
            self.result.facts.append(
                Fact(
                    self.rule,
                    self.group,
                    self.expected_text,
                    None if self.majority is _UNSET else self._value(self.majority),
                    0 if self.majority is _UNSET else self.counts[self.majority],
                    self.total,
                    [self.names[number] for number, key in zip(self.numbers, self.keys) if key is None],
                    [(self._show(key), count) for key, count in self.counts.most_common(20)],
                )
            )

    def _unreadable(self) -> int:
        """Findings about hosts that have no value; how many there are."""
        hosts_of: dict[str, list[str]] = {}
        for number, key in zip(self.numbers, self.keys):
            if key is None:
                host = self.names[number]
                structure = self.result.structures[host]
                if structure.get("source") != "declared":
                    hosts_of.setdefault(_why(structure, self.rule), []).append(host)
        for reason, hosts in hosts_of.items():
            self._add("unreadable", None, hosts, self.unread, f"cannot be read: {reason}", "not readable")
        return len(hosts_of)

    def _add(
        self,
        kind: str,
        value: t.Any,
        hosts: list[str],
        share: int,
        text: str,
        short: str,
        expected: str = "",
        off: frozenset[Key] = frozenset(),
    ) -> None:
        odd = sorted((self.column.value_of[key] for key in off), key=order_of)
        self.result.differences.append(
            Difference(
                rule=self.rule,
                group=self.group,
                kind=kind,
                value=value,
                hosts=hosts,
                share=share,
                total=self.total,
                expectation=text,
                shown=short,
                expected=expected,
                bad=off,
                shown_bad=shown(odd, self.rule.unit) if odd else "",
            )
        )


def _why(structure: t.Mapping[str, t.Any], rule: Rule) -> str:
    """Why a host has no value for a rule's path."""
    first = rule.steps[0] or ""
    if first == "derived":
        derived = DERIVED.get(rule.steps[1] or "") if len(rule.steps) > 1 else None
        section = derived.section if derived else ""
    else:
        section = _SECTION_OF.get(first, "")
    reasons = structure.get("unavailable")
    if isinstance(reasons, t.Mapping) and (reasons.get(section) or reasons.get(first)):
        return shown(reasons.get(section) or reasons.get(first))
    subsets = structure.get("subsets")
    if section and isinstance(subsets, (list, tuple)) and section not in subsets:
        return f"subset {section} was not gathered"
    if section == "gpu" and structure.get("gpu") is not None:
        driver = structure.get("gpu_driver")
        if driver is None:
            return "the host has no NVIDIA driver"
        if isinstance(driver, t.Mapping) and driver.get("error"):
            return shown(driver["error"])
    return "the facts have no value there"


# Golden files --------------------------------------------------------------------------------------------------------


def golden_data(result: Comparison, group_by: t.Sequence[str]) -> dict[str, t.Any]:
    """What a golden file holds: the majority values of a fleet, without a date, so that equal fleets make equal files."""
    groups = {}
    for group in sorted(result.majorities):
        values = {
            path: value
            for path, value in sorted(result.majorities[group].items())
            if value is not None and not (isinstance(value, float) and math.isnan(value))
        }
        groups[group] = json.loads(json.dumps(values, default=str))
    return {
        "schema": SCHEMA,
        "standard": str(result.standard.name),
        "group_by": [str(name) for name in group_by],
        "groups": groups,
    }


def load_golden(data: object, where: str, group_by: t.Sequence[str]) -> Golden:
    """A golden file out of its YAML.

    :raises RuleError: with one sentence that names the file.
    """
    if not isinstance(data, t.Mapping):
        raise RuleError(f"{where}: expected a golden file, a mapping with schema and groups, found {type_word(data)}")
    if data.get("schema") != SCHEMA or isinstance(data.get("schema"), bool):
        raise RuleError(
            f"{where}: golden file of schema {shown(data.get('schema'))}; this version reads schema {SCHEMA}: write it again"
        )
    groups = data.get("groups")
    if not isinstance(groups, t.Mapping) or not all(isinstance(one, t.Mapping) for one in groups.values()):
        raise RuleError(f"{where}: groups must map each group to its values by path")
    if list(data.get("group_by") or []) != list(group_by):
        raise RuleError(
            f"{where}: the golden file was written with group_by {shown(data.get('group_by'))}, this comparison has {shown(list(group_by))}"
        )
    return Golden(groups)


def golden_notes(result: Comparison, golden: Golden) -> list[str]:
    """What a golden file does not speak of, or speaks of in vain."""
    notes = []
    rules = {rule.path: rule for rule in result.standard.rules}
    for group in result.groups:
        if group not in golden.groups:
            notes.append(f"the golden file has no group {group}: its hosts were compared with each other only")
            continue
        silent = [path for path in sorted(result.majorities.get(group, {})) if path not in golden.groups[group]]
        if silent:
            notes.append(
                f"group {group}: the golden file has no value for {name_list(silent, 5)}: compared with the majority"
            )
    unknown = sorted({path for values in golden.groups.values() for path in values if path not in rules})
    if unknown:
        notes.append(f"the golden file has values that no rule reads: {name_list(unknown, 5)}")
    return notes
