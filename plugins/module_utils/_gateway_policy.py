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
_TENANT_FIELDS = {"id", "tier", "keys", "keys_sha256", "overrides", "models"}
_POOL_FIELDS = {"aliases", "default", "context_tokens", "peers"}
# A peer without a plan: no bound of its own.
_CAPACITY_TOKENS = 1_000_000
_MAX_INFLIGHT = 1024


def key_hash(key: t.Any) -> str:
    """What a gateway keeps of an API key: the SHA-256 of its bytes, 64 lower-case hexadecimal digits.

    :raises ValueError: it is no key; the text does not contain it.
    """
    if not isinstance(key, str) or not KEY_LENGTH[0] <= len(key) <= KEY_LENGTH[1] or re.search(r"\s", key):
        raise ValueError(f"expected a key of {KEY_LENGTH[0]} to {KEY_LENGTH[1]} characters without blanks")
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def document(content: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The content with an id before it that follows from what it says: workers compare it to find a new file."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return {"id": hashlib.sha256(text.encode("ascii")).hexdigest(), **content}


def policy(
    tiers: t.Mapping[str, t.Mapping[str, t.Any]],
    tenants: t.Any,
    settings: t.Mapping[str, t.Any],
) -> tuple[dict[str, t.Any], list[str]]:
    """Who may ask for how much.

    :arg tiers: limits by name of the tier.
    :arg tenants: mappings with id and tier, keys (as they are, from a vault) or keys_sha256, overrides of the tier's limits, models.
    :arg settings: the other parts of the file: token_cost, windows, breaker ...
    :returns: the file's content, without any key in it, and a sentence for each problem. gwcheck judges fields and ranges.
    """
    problems: list[str] = []
    made: list[dict[str, t.Any]] = []
    owners: dict[str, str] = {}
    if isinstance(tenants, (str, t.Mapping)) or not isinstance(tenants, t.Sequence):
        return {}, ["gateway_tenants: expected a list of tenants, found something else"]
    for number, tenant in enumerate(tenants, start=1):
        if not isinstance(tenant, t.Mapping):
            problems.append(f"gateway_tenants: number {number}: expected a mapping, found {type(tenant).__name__}")
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
                "overrides": dict(tenant.get("overrides", {})),
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
    for model, pool in wanted.items():
        label = f"gateway_pools: {model}"
        found = pool if isinstance(pool, t.Mapping) else {}
        if not isinstance(pool, t.Mapping):
            problems.append(f"{label}: expected a mapping, found {type(pool).__name__}")
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
                "context_tokens": int(found.get("context_tokens", 131072)),
                "peers": [by_name[name] for name in names if name in by_name],
            }
        )
    known = {str(name): {"priority": int(dict(value).get("priority", 0))} for name, value in regions.items()}
    last = max([value["priority"] for value in known.values()], default=0) + 1
    for name in [region, *(str(peer["region"]) for peer in by_name.values())]:
        known.setdefault(name, {"priority": 0 if name == region else last})
    return document({"version": 1, "local_region": region, "regions": known, "pools": made}), problems


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
