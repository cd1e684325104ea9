# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Alertmanager's configuration from receivers, routes and inhibitions as people write them. PRIVATE to the collection."""

from __future__ import annotations

import re
import typing as t

# Takes what nobody is to hear.
NOBODY = "nobody"
SEVERITIES = ("page", "ticket", "info")
_DURATION = re.compile(r"([0-9]+(ms|[smhdwy]))+")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_MATCHER = re.compile(r'[a-zA-Z_][a-zA-Z0-9_]*(=|!=|=~|!~)"(\\.|[^"\\])*"', re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 ._-]*[A-Za-z0-9])?")
_FOUR_ERRORS = "GatewayErrorsFast|GatewayErrorsSlow|GatewayErrorsDay|GatewayErrorsTrend"

Rule = tuple[dict[str, str], dict[str, str], list[str]]
# What is going on, what follows from it and need not be told, and the labels that say that both are about the same thing.
# peer is the name of a host as gateways know it: the alerts about hosts carry it for the sake of those about gateways.
INHIBITIONS: tuple[Rule, ...] = (
    ({"alertname": "HostUnreachable"}, {"alertname": "TargetDown|ProbeFails|NginxDown|AlertmanagerDown"}, ["host"]),
    ({"alertname": "HostUnreachable"}, {"alertname": "GatewayEngineOut"}, ["peer"]),
    (
        {"alertname": "EnginesAllDown"},
        {"alertname": "TargetDown|HostUnreachable|ProbeFails", "role": "engine"},
        ["region"],
    ),
    (
        {"alertname": "EnginesAllDown"},
        {
            "alertname": "EnginesFew|GatewayEngineOut|GatewayEnginesAllOut|GatewayTurnsAway|RegionAnswersNobody|"
            + _FOUR_ERRORS
        },
        ["region"],
    ),
    ({"alertname": "TargetDown", "job": "engine"}, {"alertname": "ProbeFails", "role": "engine"}, ["host"]),
    ({"alertname": "TargetDown", "job": "engine"}, {"alertname": "GatewayEngineOut"}, ["peer"]),
    ({"alertname": "TargetDown", "job": "engine"}, {"alertname": "Sidecar.+"}, ["host"]),
    ({"alertname": "EngineStuck"}, {"alertname": "GatewayEngineOut"}, ["peer"]),
    ({"alertname": "EngineStuck"}, {"alertname": "Sidecar.+|EngineFinishesNothing|EngineQueueLong"}, ["host"]),
    ({"alertname": "NginxDown"}, {"alertname": "ProbeFails", "role": "gateway"}, ["host"]),
    ({"alertname": "NginxDown|ProbeFails", "role": "gateway"}, {"alertname": "TargetDown", "job": "gateway"}, ["host"]),
    ({"alertname": "AlertmanagerDown"}, {"alertname": "TargetDown", "job": "alertmanager"}, ["host"]),
    ({"alertname": "EnginesAllDown"}, {"alertname": "ProbeFails", "module": "gateway_models"}, ["region"]),
    ({"alertname": "GatewayEnginesAllOut"}, {"alertname": "GatewayEngineOut"}, ["host"]),
    ({"alertname": "GatewayEnginesAllOut"}, {"alertname": "ProbeFails", "module": "gateway_models"}, ["host"]),
    (
        {"alertname": "GatewayErrorsFast"},
        {"alertname": "GatewayErrorsSlow|GatewayErrorsDay|GatewayErrorsTrend"},
        ["region"],
    ),
    ({"alertname": "GatewayErrorsSlow"}, {"alertname": "GatewayErrorsDay|GatewayErrorsTrend"}, ["region"]),
    (
        {"alertname": "StateStoreDown"},
        {"alertname": "StateStoreReplicationBroken|StateStoreReplicasFew"},
        ["region"],
    ),
    ({"alertname": "GpuXidReboot"}, {"alertname": "GpuLost|GpuDriverSilent"}, ["host"]),
    ({"alertname": "GpuXidRmaCheck"}, {"alertname": "GpuRowRemapFailed"}, ["host"]),
    # The check of the arrays fails as a unit as well.
    (
        {"alertname": "NvmeRaidMemberMissing|NvmeRaidNotMounted|NvmeRaidReadOnly|NvmeRaidUnreadable"},
        {"alertname": "HostUnitFailed", "name": "gpufleet-nvme-raid.service"},
        ["host"],
    ),
)


class Field(t.NamedTuple):
    """A secret of a receiver.

    :param key: its name in the configuration when it stands there itself.
    :param file_key: its name there when a file holds it; empty when there is none.
    :param since: first version of Alertmanager that reads the file.
    """

    key: str
    file_key: str
    since: tuple[int, int]


class Kind(t.NamedTuple):
    """A way to tell people.

    :param section: name of the list in the configuration.
    :param required: settings without which it cannot work.
    :param plain: settings that are handed on, by their names in the configuration.
    :param secrets: settings that must not be read by others.
    """

    section: str
    required: tuple[str, ...]
    plain: dict[str, str]
    secrets: dict[str, Field]


KINDS: dict[str, Kind] = {
    "webhook": Kind(
        "webhook_configs", ("url",), {"max_alerts": "max_alerts"}, {"url": Field("url", "url_file", (0, 26))}
    ),
    "email": Kind(
        "email_configs",
        ("to", "from", "smarthost"),
        {
            "to": "to",
            "from": "from",
            "smarthost": "smarthost",
            "username": "auth_username",
            "hello": "hello",
            "require_tls": "require_tls",
            "headers": "headers",
        },
        {"password": Field("auth_password", "auth_password_file", (0, 25))},
    ),
    "slack": Kind(
        "slack_configs",
        ("url", "channel"),
        {"channel": "channel", "title": "title", "text": "text"},
        {"url": Field("api_url", "api_url_file", (0, 22))},
    ),
    "pagerduty": Kind(
        "pagerduty_configs",
        ("routing_key",),
        {"description": "description", "url": "url"},
        {"routing_key": Field("routing_key", "routing_key_file", (0, 25))},
    ),
}
# Where HTTP is spoken: basic authentication or a bearer token.
_HTTP = ("webhook", "slack", "pagerduty")
_COMMON = ("name", "kind", "send_resolved")
_ROUTE = (
    "receiver",
    "match",
    "matchers",
    "group_by",
    "group_wait",
    "group_interval",
    "repeat_interval",
    "mute",
    "active",
    "continue",
    "routes",
)


class Config(t.NamedTuple):
    """What is to be written.

    :param content: the configuration, to be written as YAML.
    :param secrets: content of each secret file, by its name below the directory of the configuration.
    :param inline: whether the configuration itself holds a secret, because this Alertmanager reads none from a file there.
    """

    content: dict[str, t.Any]
    secrets: dict[str, str]
    inline: bool


def version_of(text: str) -> tuple[int, int]:
    """First two numbers of a version.

    :raises ValueError: the text does not begin with two numbers.
    """
    found = re.match(r"v?([0-9]+)[.]([0-9]+)", str(text))
    if not found:
        raise ValueError(f"expected a version such as 0.28.1, found {text!r}")
    return int(found[1]), int(found[2])


def matcher(label: str, value: t.Any) -> str:
    """A matcher that both parsers of Alertmanager read alike: a text is equal, of a list any one is."""
    if isinstance(value, (list, tuple)):
        return f'{label}=~"{_quoted("|".join(re.escape(str(one)) for one in value))}"'
    return f'{label}="{_quoted(str(value))}"'


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _pattern(labels: t.Mapping[str, str]) -> list[str]:
    """Matchers of a built-in inhibition, whose values are patterns when they look like it."""
    return [f'{label}{"=~" if re.search(r"[|.+]", value) else "="}"{value}"' for label, value in labels.items()]


def inhibitions() -> list[dict[str, t.Any]]:
    """The built-in inhibitions as they stand in the configuration."""
    return [
        {"source_matchers": _pattern(source), "target_matchers": _pattern(target), "equal": list(equal)}
        for source, target, equal in INHIBITIONS
    ]


class Builder:
    """Makes a configuration of settings that :func:`problems` has nothing to say about.

    :param settings: variables of the role, without their prefix.
    :param version: version of the Alertmanager that reads it.
    :param directory: directory of the configuration on the host.
    """

    def __init__(self, settings: t.Mapping[str, t.Any], version: str, directory: str) -> None:
        self._settings = settings
        self._version = version_of(version)
        self._directory = directory.rstrip("/")
        self._secrets: dict[str, str] = {}
        self._inline = False

    def build(self) -> Config:
        """The configuration and its secrets."""
        settings = self._settings
        content: dict[str, t.Any] = {"route": self._root(), "receivers": self._receivers()}
        intervals = settings.get("time_intervals") or []
        if intervals:
            # The name of today came with 0.24.
            content["time_intervals" if self._version >= (0, 24) else "mute_time_intervals"] = intervals
        rules = [*(inhibitions() if settings.get("default_inhibitions", True) else []), *self._own_inhibitions()]
        if rules:
            content["inhibit_rules"] = rules
        return Config(content, self._secrets, self._inline)

    def receivers_of(self) -> dict[str, str]:
        """Who gets each severity, and the dead man's switch, when no route of the site takes it before."""
        names = [str(one["name"]) for one in self._settings.get("receivers") or []]
        first = names[0] if names else NOBODY
        page = str(self._settings.get("page_receiver") or first)
        return {
            "page": page,
            "ticket": str(self._settings.get("ticket_receiver") or page),
            "info": str(self._settings.get("info_receiver") or NOBODY),
            "watchdog": str(self._settings.get("watchdog_receiver") or NOBODY),
        }

    def _root(self) -> dict[str, t.Any]:
        settings, to = self._settings, self.receivers_of()
        repeat = str(settings["watchdog_repeat_interval"])
        routes: list[dict[str, t.Any]] = [
            {
                "receiver": to["watchdog"],
                "matchers": ['alertname="Watchdog"'],
                "group_by": ["alertname"],
                "group_wait": "0s",
                "group_interval": repeat,
                # It is looked at each group_interval, and with the same time for both it would be some milliseconds too early every second time.
                "repeat_interval": "1s",
            },
            *(self._route(route) for route in settings.get("routes") or []),
            {"receiver": to["page"], "matchers": ['severity="page"']},
            {"receiver": to["info"], "matchers": ['severity="info"']},
        ]
        # What carries no severity is a ticket: an alert of the site's own must not get lost.
        tickets: dict[str, t.Any] = {"receiver": to["ticket"]}
        if settings.get("ticket_mute"):
            tickets["mute_time_intervals"] = list(settings["ticket_mute"])
            routes.append(tickets)
        return {
            "receiver": to["ticket"],
            "group_by": list(settings["group_by"]),
            "group_wait": str(settings["group_wait"]),
            "group_interval": str(settings["group_interval"]),
            "repeat_interval": str(settings["repeat_interval"]),
            "routes": routes,
        }

    def _route(self, route: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        found: dict[str, t.Any] = {}
        if route.get("receiver"):
            found["receiver"] = str(route["receiver"])
        found["matchers"] = [
            *(matcher(label, value) for label, value in (route.get("match") or {}).items()),
            *(route.get("matchers") or []),
        ]
        for key in ("group_by", "group_wait", "group_interval", "repeat_interval", "continue"):
            if key in route:
                found[key] = route[key]
        for key, name in (("mute", "mute_time_intervals"), ("active", "active_time_intervals")):
            if route.get(key):
                found[name] = list(route[key])
        if route.get("routes"):
            found["routes"] = [self._route(one) for one in route["routes"]]
        return found

    def _own_inhibitions(self) -> list[dict[str, t.Any]]:
        return [
            {
                "source_matchers": [matcher(label, value) for label, value in rule["source"].items()],
                "target_matchers": [matcher(label, value) for label, value in rule["target"].items()],
                "equal": list(rule.get("equal") or []),
            }
            for rule in self._settings.get("inhibitions") or []
        ]

    def _receivers(self) -> list[dict[str, t.Any]]:
        """One entry for each name: two settings of one name are two ways to tell the same people."""
        found: dict[str, dict[str, t.Any]] = {NOBODY: {"name": NOBODY}}
        for number, one in enumerate(self._settings.get("receivers") or []):
            entry = found.setdefault(str(one["name"]), {"name": str(one["name"])})
            if one["kind"] == "raw":
                for section, entries in one["config"].items():
                    entry.setdefault(section, []).extend(entries)
                self._inline = True
                continue
            kind = KINDS[one["kind"]]
            slug = re.sub(r"[^a-z0-9]+", "_", str(one["name"]).lower()).strip("_")
            entry.setdefault(kind.section, []).append(self._receiver(one, kind, f"secrets/{number}_{slug}"))
        return list(found.values())

    def _receiver(self, one: t.Mapping[str, t.Any], kind: Kind, stem: str) -> dict[str, t.Any]:
        found: dict[str, t.Any] = {"send_resolved": bool(one.get("send_resolved", True))}
        found.update({key: one[name] for name, key in kind.plain.items() if name in one})
        for name, field in kind.secrets.items():
            if one.get(name):
                if self._version >= field.since:
                    found[field.file_key] = self._keep(f"{stem}_{name}", one[name])
                else:
                    found[field.key] = str(one[name])
                    self._inline = True
        if one["kind"] in _HTTP:
            if one.get("password"):
                found["http_config"] = {
                    "basic_auth": {
                        "username": str(one["username"]),
                        "password_file": self._keep(f"{stem}_password", one["password"]),
                    }
                }
            elif one.get("token"):
                found["http_config"] = {
                    "authorization": {"type": "Bearer", "credentials_file": self._keep(f"{stem}_token", one["token"])}
                }
        return found

    def _keep(self, name: str, value: t.Any) -> str:
        self._secrets[name] = str(value)
        return f"{self._directory}/{name}"


def problems(settings: t.Mapping[str, t.Any]) -> list[str]:
    """A sentence for each setting that cannot work, with the variable, what was expected and what was found. Secrets are not named."""
    receivers = settings.get("receivers") or []
    found: list[str] = []
    for number, one in enumerate(receivers):
        found += _receiver_problems(f"alertmanager_receivers[{number}]", one)
    names = {NOBODY, *(str(one.get("name")) for one in receivers if isinstance(one, t.Mapping))}
    for key in ("page_receiver", "ticket_receiver", "info_receiver", "watchdog_receiver"):
        value = settings.get(key)
        if value and value not in names:
            found.append(f"alertmanager_{key}: expected one of {', '.join(sorted(names))}, found {value}")
    intervals = set()
    for number, one in enumerate(settings.get("time_intervals") or []):
        if not isinstance(one, t.Mapping) or not one.get("name") or not isinstance(one.get("time_intervals"), list):
            found.append(
                f"alertmanager_time_intervals[{number}]: expected name and time_intervals, found something else"
            )
        else:
            intervals.add(str(one["name"]))
    for key in ("group_wait", "group_interval", "repeat_interval", "watchdog_repeat_interval"):
        if not _DURATION.fullmatch(str(settings[key])):
            found.append(f"alertmanager_{key}: expected a duration such as 30s, found {settings[key]}")
    found += _label_problems("alertmanager_group_by", settings["group_by"])
    found += _interval_problems("alertmanager_ticket_mute", settings.get("ticket_mute") or [], intervals)
    for number, route in enumerate(settings.get("routes") or []):
        found += _route_problems(f"alertmanager_routes[{number}]", route, names, intervals)
    for number, rule in enumerate(settings.get("inhibitions") or []):
        found += _inhibition_problems(f"alertmanager_inhibitions[{number}]", rule)
    return found


def _receiver_problems(where: str, one: t.Any) -> list[str]:
    if not isinstance(one, t.Mapping):
        return [f"{where}: expected a dictionary with name and kind"]
    found = []
    name = str(one.get("name") or "")
    if not _NAME.fullmatch(name):
        found.append(f"{where}.name: expected letters, digits, blanks and . _ -, found {name or 'nothing'}")
    if name == NOBODY:
        found.append(f"{where}.name: expected another name than {NOBODY}, which takes what nobody is to hear")
    kind = one.get("kind")
    if kind == "raw":
        config = one.get("config")
        if not isinstance(config, t.Mapping) or not all(
            str(key).endswith("_configs") and isinstance(value, list) for key, value in config.items()
        ):
            found.append(f"{where}.config: expected lists by names such as webhook_configs")
        return found
    if kind not in KINDS:
        return [*found, f"{where}.kind: expected one of {', '.join([*KINDS, 'raw'])}, found {kind or 'nothing'}"]
    spec = KINDS[kind]
    known = {*_COMMON, *spec.plain, *spec.secrets, *(("username", "password", "token") if kind in _HTTP else ())}
    found += [
        f"{where}.{key}: expected to be set for kind {kind}, found nothing" for key in spec.required if not one.get(key)
    ]
    unknown = sorted(str(key) for key in set(one) - known)
    if unknown:
        found.append(
            f"{where}: expected settings of kind {kind}, {', '.join(sorted(known))}; found {', '.join(unknown)}"
        )
    if kind in _HTTP and bool(one.get("password")) != bool(one.get("username")):
        found.append(f"{where}: expected username and password, found only one of them")
    if kind in ("webhook", "slack") and one.get("url") and not re.match(r"https?://[^/\s]", str(one["url"])):
        found.append(f"{where}.url: expected an address that begins with http:// or https://")
    return found


def _label_problems(where: str, labels: t.Any) -> list[str]:
    if not isinstance(labels, (list, tuple)):
        return [f"{where}: expected a list of labels, found {labels!r}"]
    wrong = [str(label) for label in labels if label != "..." and not _LABEL.fullmatch(str(label))]
    return [f"{where}: expected names of labels, found {', '.join(wrong)}"] if wrong else []


def _interval_problems(where: str, names: t.Iterable[t.Any], known: set[str]) -> list[str]:
    wrong = [str(name) for name in names if str(name) not in known]
    if not wrong:
        return []
    return [
        f"{where}: expected names of alertmanager_time_intervals, {', '.join(sorted(known)) or 'which are none'}; found "
        + ", ".join(wrong)
    ]


def _match_problems(where: str, match: t.Any) -> list[str]:
    if not isinstance(match, t.Mapping) or not match:
        return [f"{where}: expected values by label, found {match!r}"]
    return _label_problems(where, list(match))


def _route_problems(where: str, route: t.Any, receivers: set[str], intervals: set[str]) -> list[str]:
    if not isinstance(route, t.Mapping):
        return [f"{where}: expected a dictionary with receiver and match, found {route!r}"]
    found = []
    unknown = sorted(str(key) for key in set(route) - set(_ROUTE))
    if unknown:
        found.append(f"{where}: expected {', '.join(_ROUTE)}; found {', '.join(unknown)}")
    if route.get("receiver") and str(route["receiver"]) not in receivers:
        found.append(f"{where}.receiver: expected one of {', '.join(sorted(receivers))}, found {route['receiver']}")
    if not route.get("match") and not route.get("matchers"):
        found.append(f"{where}: expected match or matchers, found neither; it would take every alert")
    if route.get("match"):
        found += _match_problems(f"{where}.match", route["match"])
    wrong = [str(one) for one in route.get("matchers") or [] if not _MATCHER.fullmatch(str(one))]
    if wrong:
        found.append(f'{where}.matchers: expected texts such as region=~"eu-.*", found {", ".join(wrong)}')
    if "group_by" in route:
        found += _label_problems(f"{where}.group_by", route["group_by"])
    for key in ("group_wait", "group_interval", "repeat_interval"):
        if key in route and not _DURATION.fullmatch(str(route[key])):
            found.append(f"{where}.{key}: expected a duration such as 30s, found {route[key]}")
    for key in ("mute", "active"):
        found += _interval_problems(f"{where}.{key}", route.get(key) or [], intervals)
    for number, one in enumerate(route.get("routes") or []):
        found += _route_problems(f"{where}.routes[{number}]", one, receivers, intervals)
    return found


def _inhibition_problems(where: str, rule: t.Any) -> list[str]:
    if not isinstance(rule, t.Mapping):
        return [f"{where}: expected a dictionary with source, target and equal, found {rule!r}"]
    found = []
    for key in ("source", "target"):
        found += _match_problems(f"{where}.{key}", rule.get(key))
    return found + _label_problems(f"{where}.equal", rule.get("equal") or [])
