# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""The two files that the Lua gateway reads, made of role variables: who may ask for how much, and which engines there are."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t

# Bounds of a key in characters: shorter ones can be guessed, longer ones are no keys.
KEY_LENGTH = (8, 512)

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Limits of a tier as in gw/conf.lua: lowest and highest value, or the words. A unit test compares the two.
LIMITS: dict[str, tuple[t.Any, ...]] = {
    "rpm": (0, 10_000_000),
    "burst_rps": (0, 1_000_000),
    "tpm": (0, 10**12),
    "tpd": (0, 10**13),
    "concurrency": (0, 1_000_000),
    "max_tokens": (1, 10_000_000),
    "default_max_tokens": (1, 10_000_000),
    "max_body": (1, 16_777_216),
    "max_stream_seconds": (1, 604_800),
    "priority": ("batch", "standard", "premium"),
    "queue_ms": (0, 600_000),
    "prompt_estimate": ("typical", "bound"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TENANT_FIELDS = {"id", "tier", "keys", "keys_sha256", "overrides", "models"}
_POOL_FIELDS = {"aliases", "default", "context_tokens", "peers"}
# A peer without a plan: no bound of its own.
_CAPACITY_TOKENS = 1_000_000
_MAX_INFLIGHT = 1024
_CONTEXT_TOKENS = 131_072


def key_hash(key: t.Any) -> str:
    """What a gateway keeps of an API key: the SHA-256 of its bytes, 64 lower-case hexadecimal digits.

    :raises ValueError: it is no key; the text does not contain it.
    """
    if not isinstance(key, str) or not KEY_LENGTH[0] <= len(key) <= KEY_LENGTH[1] or re.search(r"\s", key):
        raise ValueError(f"expected a key of {KEY_LENGTH[0]} to {KEY_LENGTH[1]} characters without blanks")
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def document(content: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The content with an id before it that follows from what it says: workers compare it to find a new file.

    Members are sorted, for an inventory may come with the same variables in another order, as AWX's does.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {"id": hashlib.sha256(text.encode("ascii")).hexdigest(), **json.loads(text)}


def text(document: t.Mapping[str, t.Any]) -> str:
    """A document as it stands in its file. Role and module gateway_peer write the same bytes."""
    return json.dumps(document, indent=2, sort_keys=False, ensure_ascii=True) + "\n"


def merged(base: t.Mapping[str, t.Any], over: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The base with the values that are over it, mappings member by member."""
    found = dict(base)
    for name, value in over.items():
        below = found.get(name)
        found[name] = merged(below, value) if isinstance(below, t.Mapping) and isinstance(value, t.Mapping) else value
    return found


def setting_problems(wanted: t.Any, known: t.Mapping[str, t.Any], label: str) -> list[str]:
    """What is wrong with settings that replace known ones: names that nobody reads, and values of another kind.

    :arg wanted: what the site sets.
    :arg known: all settings with their defaults.
    :arg label: the variable, for the sentences.
    """
    if not isinstance(wanted, t.Mapping):
        return [f"{label}: expected a mapping, found {_kind(wanted)}"]
    problems: list[str] = []
    for name, value in wanted.items():
        place = f"{label}.{name}"
        if name not in known:
            problems.append(f"{place}: no such setting; there are {', '.join(sorted(known))}")
            continue
        default = known[name]
        if isinstance(default, t.Mapping):
            problems += setting_problems(value, default, place)
        elif isinstance(default, str) != isinstance(value, str) or isinstance(value, (bool, t.Mapping, list)):
            problems.append(
                f"{place}: expected {'a word' if isinstance(default, str) else 'a number'}, found {value!r}"
            )
    return problems


def limit_problems(limits: t.Any, label: str) -> list[str]:
    """What is wrong with the limits of a tier, or with those that a tenant has instead."""
    if not isinstance(limits, t.Mapping):
        return [f"{label}: expected a mapping of limits, found {_kind(limits)}"]
    problems: list[str] = []
    for name, value in limits.items():
        field = LIMITS.get(str(name))
        if field is None:
            problems.append(f"{label}: {name}: no such limit; there are {', '.join(LIMITS)}")
        elif isinstance(field[0], str):
            if value not in field:
                problems.append(f"{label}: {name}: expected one of {', '.join(map(str, field))}, found {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int) or not field[0] <= value <= field[1]:
            problems.append(f"{label}: {name}: expected a whole number from {field[0]} to {field[1]}, found {value!r}")
    return problems


def fitting(limits: t.Mapping[str, t.Any], given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The limits, with an answer's usual length that they have room for, unless somebody has given one.

    :arg limits: all limits, each of the right kind.
    :arg given: those that were set for this tier or tenant.
    """
    fit = dict(limits)
    if "default_max_tokens" not in given:
        # Half of a budget, for there is a prompt as well.
        room = [fit[name] // 2 for name in ("tpm", "tpd") if fit.get(name)]
        bounds = [fit[name] for name in ("default_max_tokens", "max_tokens") if name in fit]
        if bounds:
            fit["default_max_tokens"] = max(1, min([*bounds, *room]))
    return fit


def _unfit(limits: t.Mapping[str, t.Any], label: str) -> list[str]:
    """What of the limits contradicts what else of them."""
    usual = limits.get("default_max_tokens", 0)
    found = []
    if usual > limits.get("max_tokens", usual):
        found.append(f"{label}: default_max_tokens: expected at most max_tokens, {limits['max_tokens']}, found {usual}")
    found += [
        f"{label}: {name}: expected more than default_max_tokens, {usual}, found {limits[name]}"
        for name in ("tpm", "tpd")
        if 0 < limits.get(name, 0) <= usual
    ]
    return found


def _kind(value: t.Any) -> str:
    return type(value).__name__.replace("_AnsibleTagged", "")


def policy(
    tiers: t.Mapping[str, t.Mapping[str, t.Any]],
    tenants: t.Any,
    settings: t.Mapping[str, t.Any],
) -> tuple[dict[str, t.Any], list[str]]:
    """Who may ask for how much.

    :arg tiers: all limits by name of the tier.
    :arg tenants: mappings with id and tier, keys (as they are, from a vault) or keys_sha256, overrides of the tier's limits, models.
    :arg settings: the other parts of the file: token_cost, windows, breaker ...
    :returns: the file's content, without any key in it, and a sentence for each problem. gwcheck judges fields and ranges.
    """
    problems = [
        problem for name, limits in tiers.items() for problem in limit_problems(limits, f"gateway_tiers: {name}")
    ]
    if not problems:
        problems += [problem for name, limits in tiers.items() for problem in _unfit(limits, f"gateway_tiers: {name}")]
    made: list[dict[str, t.Any]] = []
    owners: dict[str, str] = {}
    names: set[str] = set()
    if isinstance(tenants, (str, t.Mapping)) or not isinstance(tenants, t.Sequence):
        return {}, ["gateway_tenants: expected a list of tenants, found something else"]
    for number, tenant in enumerate(tenants, start=1):
        if not isinstance(tenant, t.Mapping):
            problems.append(f"gateway_tenants: number {number}: expected a mapping, found {_kind(tenant)}")
            continue
        name = str(tenant.get("id", ""))
        label = f"gateway_tenants: {name or f'number {number}'}"
        problems += [
            f"{label}: {field}: no such field of a tenant" for field in sorted(set(map(str, tenant)) - _TENANT_FIELDS)
        ]
        if tenant.get("tier") not in tiers:
            problems.append(
                f"{label}: tier: expected one of {', '.join(sorted(tiers)) or 'gateway_tiers'}, found {tenant.get('tier')!r}"
            )
        if not _NAME.fullmatch(name):
            problems.append(f"{label}: id: expected 1 to 64 letters, digits and . _ -, found {name!r}")
        elif name in names:
            problems.append(f"{label}: id: two tenants have it, expected different ones")
        names.add(name)
        overrides = tenant.get("overrides", {})
        wrong = limit_problems(overrides, f"{label}: overrides")
        problems += wrong
        if not wrong and not problems and overrides:
            own = fitting({**tiers[tenant["tier"]], **overrides}, overrides)
            problems += _unfit(own, f"{label}: overrides")
            if own.get("default_max_tokens") != tiers[tenant["tier"]].get("default_max_tokens"):
                overrides = {**overrides, "default_max_tokens": own["default_max_tokens"]}
        hashes = _hashes(label, tenant, problems)
        for digest in hashes:
            if owners.setdefault(digest, name) != name:
                problems.append(
                    f"{label}: keys: one of them is also a key of {owners[digest]}, expected different keys"
                )
        made.append(
            {
                "id": name,
                "tier": str(tenant.get("tier", "")),
                "keys_sha256": sorted(set(hashes)),
                "overrides": dict(overrides) if isinstance(overrides, t.Mapping) else {},
                "models": [str(model) for model in tenant.get("models", [])],
            }
        )
    content = {"version": 1, "tiers": {name: dict(limits) for name, limits in tiers.items()}, "tenants": made}
    return document({**content, **settings}), problems


def _hashes(label: str, tenant: t.Mapping[str, t.Any], problems: list[str]) -> list[str]:
    hashes: list[str] = []
    for key in tenant.get("keys", []):
        try:
            hashes.append(key_hash(key))
        except ValueError as exc:
            problems.append(f"{label}: keys: {exc}, found something else")
    for digest in tenant.get("keys_sha256", []):
        if isinstance(digest, str) and _SHA256.fullmatch(digest):
            hashes.append(digest)
        else:
            # Not repeated: somebody may have written the key itself.
            problems.append(f"{label}: keys_sha256: expected 64 lower-case hexadecimal digits, found something else")
    if not hashes:
        problems.append(f"{label}: keys: expected at least one key, found none")
    return hashes


def pools_of_hosts(
    peers: t.Sequence[t.Mapping[str, t.Any]], models: t.Mapping[str, str], model: str
) -> dict[str, dict[str, t.Any]]:
    """A pool for each model that the peers serve; the only one is the default of clients that name none.

    :arg peers: the gateway's peers.
    :arg models: name of the model by name of the peer, of those that say so.
    :arg model: what the others serve.
    """
    found: dict[str, dict[str, t.Any]] = {}
    for peer in peers:
        name = str(peer["name"])
        found.setdefault(models.get(name) or model, {"peers": []})["peers"].append(name)
    if len(found) == 1:
        next(iter(found.values()))["default"] = True
    return found


def pools(
    wanted: t.Mapping[str, t.Any],
    peers: t.Sequence[t.Mapping[str, t.Any]],
    plan: t.Mapping[str, t.Any],
    region: str,
    regions: t.Mapping[str, t.Any],
) -> tuple[dict[str, t.Any], list[str]]:
    """Which engines answer for which model.

    :arg wanted: by name of the model: aliases, default, context_tokens, and the names of its peers (all when absent).
    :arg peers: the gateway's peers, as filter gateway_peers makes them.
    :arg plan: fleet_plan, or an empty mapping; its peers say how many tokens and requests each holds.
    :arg region: the gateway's own.
    :arg regions: priority of each region, 0 first; those that peers name and this does not come last.
    :returns: the file's content, and a sentence for each problem.
    """
    problems: list[str] = []
    by_name = {str(peer["name"]): _peer(peer, plan.get("peers", {}).get(peer["name"], {})) for peer in peers}
    made: list[dict[str, t.Any]] = []
    for model, pool in sorted(wanted.items(), key=lambda item: str(item[0])):
        label = f"gateway_pools: {model}"
        found = pool if isinstance(pool, t.Mapping) else {}
        if not isinstance(pool, t.Mapping):
            problems.append(f"{label}: expected a mapping, found {_kind(pool)}")
        problems += [
            f"{label}: {field}: no such field of a pool" for field in sorted(set(map(str, found)) - _POOL_FIELDS)
        ]
        names = [str(name) for name in found.get("peers", by_name)]
        problems += [
            f"{label}: peers: expected one of {', '.join(by_name) or 'gateway_peers'}, found {name}"
            for name in names
            if name not in by_name
        ]
        made.append(
            {
                "name": str(model),
                "aliases": [str(alias) for alias in found.get("aliases", [])],
                "default": bool(found.get("default", False)),
                "context_tokens": int(found.get("context_tokens", 0)) or _context(names, plan),
                "peers": [by_name[name] for name in names if name in by_name],
            }
        )
    known = {str(name): {"priority": int(dict(value).get("priority", 0))} for name, value in regions.items()}
    last = max([value["priority"] for value in known.values()], default=0) + 1
    for name in [region, *(str(peer["region"]) for peer in by_name.values())]:
        known.setdefault(name, {"priority": 0 if name == region else last})
    return document({"version": 1, "local_region": region, "regions": known, "pools": made}), problems


def _context(names: t.Sequence[str], plan: t.Mapping[str, t.Any]) -> int:
    """Tokens of a prompt and its answer that each of the peers has room for, as far as the plan knows."""
    known = [int(plan.get("peers", {}).get(name, {}).get("context_tokens", 0)) for name in names]
    return min([tokens for tokens in known if tokens] or [_CONTEXT_TOKENS])


def _peer(peer: t.Mapping[str, t.Any], planned: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    # What an engine works on at once, and as much again that waits there: the next one must not wait for the network.
    bound = int(peer.get("max_conns", 0)) or 2 * int(planned.get("max_sequences", 0)) or _MAX_INFLIGHT
    return {
        "name": str(peer["name"]),
        "address": str(peer["address"]),
        "port": int(peer.get("port", 8000)),
        "weight": int(peer.get("weight", 1)),
        "capacity_tokens": int(planned.get("token_capacity", 0)) or _CAPACITY_TOKENS,
        "max_inflight": bound,
        "region": str(peer.get("region", "default")),
        "state": str(peer.get("state", "up")),
        "sni": str(peer.get("sni", "")),
    }
