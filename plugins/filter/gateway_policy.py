# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that make the files of the Lua gateway; documented in the YAML files of the same names."""

from __future__ import annotations

import ipaddress
import typing as t

from ansible.errors import AnsibleError, AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_policy as made


def gateway_key_hash(key: t.Any) -> str:
    """What a gateway keeps of an API key."""
    try:
        return made.key_hash(key)
    except ValueError as exc:
        raise AnsibleFilterError(f"gateway_key_hash: {exc}, found something else") from exc


def gateway_policy(
    tenants: t.Any,
    tiers: t.Any,
    tier_defaults: t.Any,
    settings: t.Any = None,
    setting_defaults: t.Any = None,
    operator_networks: t.Sequence[str] = (),
) -> dict[str, t.Any]:
    """The content of policy.json, its id, and what is wrong with it."""
    problems = made.limit_problems(tier_defaults, "gateway_tier_defaults")
    if not isinstance(tiers, t.Mapping) or not tiers:
        problems.append(f"gateway_tiers: expected a mapping with at least one tier, found {tiers!r}")
        tiers = {}
    for name, limits in tiers.items():
        if isinstance(limits, t.Mapping):
            problems += made.limit_problems(limits, f"gateway_tiers: {name}")
        else:
            problems.append(f"gateway_tiers: {name}: expected a mapping of limits, found {limits!r}")
    problems += made.setting_problems(settings or {}, setting_defaults or {}, "gateway_lua_settings")
    if problems:
        return {"text": "", "id": "", "problems": problems}
    whole = {name: made.fitting(made.merged(tier_defaults, limits), limits) for name, limits in tiers.items()}
    # What follows the prefix of a network means nothing to nginx, and an error to the gateway.
    networks = sorted({str(ipaddress.ip_network(str(network), strict=False)) for network in operator_networks})
    others = {**made.merged(setting_defaults or {}, settings or {}), "operator_networks": networks}
    content, problems = made.policy(whole, tenants, others)
    return {"text": made.text(content) if not problems else "", "id": content.get("id", ""), "problems": problems}


def gateway_pools(peers: t.Any, hostvars: t.Any, model: str) -> dict[str, dict[str, t.Any]]:
    """A pool for each model that the inventory says the peers serve."""
    models = {}
    for peer in peers:
        name = str(peer["name"])
        try:
            # "in" first: hostvars has an answer for every name, also for one that is not in the inventory.
            found = hostvars[name].get("deepseek_service_model_name") if name in hostvars else None
        except AnsibleError as exc:
            raise AnsibleFilterError(
                f"gateway_pools: host {name}: deepseek_service_model_name: expected a name, found a template that fails: {exc}"
            ) from exc
        if found:
            models[name] = str(found)
    return made.pools_of_hosts(peers, models, model)


def gateway_peers_file(
    pools: t.Any,
    peers: t.Any,
    plan: t.Any,
    region: str,
    regions: t.Any,
    held: t.Any = (),
    weights: t.Any = None,
    tls: bool = False,
) -> dict[str, t.Any]:
    """The content of peers.json, its id, and what is wrong with it."""
    if not isinstance(pools, t.Mapping) or not pools:
        return {
            "text": "",
            "id": "",
            "problems": [f"gateway_pools: expected a mapping with at least one model, found {pools!r}"],
        }
    now = []
    for peer in peers:
        name, state = str(peer["name"]), str(peer.get("state", "up"))
        now.append(
            {
                **peer,
                "state": "drain" if state == "up" and name in held else state,
                "weight": int((weights or {}).get(name) or peer.get("weight", 1)),
                "sni": str(peer.get("sni") or name) if tls else "",
            }
        )
    try:
        content, problems = made.pools(pools, now, plan, region, regions)
    except (TypeError, ValueError) as exc:
        return {"text": "", "id": "", "problems": [f"gateway_pools, gateway_regions: a value of another kind: {exc}"]}
    return {"text": made.text(content) if not problems else "", "id": content["id"], "problems": problems}


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Filters by name."""
        return {
            "gateway_key_hash": gateway_key_hash,
            "gateway_policy": gateway_policy,
            "gateway_pools": gateway_pools,
            "gateway_peers_file": gateway_peers_file,
        }
