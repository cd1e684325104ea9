# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The files of the Lua gateway, made of role variables."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.errors import AnsibleError, AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter import gateway_policy as filters

KEY = "sk-0123456789"
DEFAULTS = {"rpm": 0, "tpm": 0, "priority": "standard"}
SETTINGS = {"breaker": {"consecutive": 5, "window_s": 10}}
PEERS = [
    {"name": "gpu1", "address": "192.0.2.11", "weight": 3},
    {"name": "gpu2", "address": "192.0.2.12", "weight": 2, "state": "down", "sni": "two.example"},
]


def test_a_policy_is_whole() -> None:
    made = filters.gateway_policy(
        [{"id": "acme", "tier": "pro", "keys": [KEY]}],
        {"pro": {"rpm": 60}},
        DEFAULTS,
        {"breaker": {"consecutive": 3}},
        SETTINGS,
        ["192.0.2.7/24", "127.0.0.0/8", "192.0.2.0/24"],
    )
    assert made["problems"] == []
    found = json.loads(made["text"])
    assert found["id"] == made["id"]
    assert KEY not in made["text"]
    assert found["tiers"] == {"pro": {"rpm": 60, "tpm": 0, "priority": "standard"}}
    assert found["breaker"] == {"consecutive": 3, "window_s": 10}
    assert found["operator_networks"] == ["127.0.0.0/8", "192.0.2.0/24"]
    assert made["text"].endswith("}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], {}, DEFAULTS), "gateway_tiers: expected a mapping with at least one tier"),
        (([], {"pro": 3}, DEFAULTS), "gateway_tiers: pro: expected a mapping of limits, found 3"),
        (([], {"pro": {"rpm": -1}}, DEFAULTS), "gateway_tiers: pro: rpm: expected a whole number"),
        (([], {"pro": {}}, {"rpm": "many"}), "gateway_tier_defaults: rpm: expected a whole number"),
        (("acme", {"pro": {}}, DEFAULTS), "gateway_tenants: expected a list of tenants"),
        (([], {"pro": {}}, DEFAULTS, {"braker": {}}, SETTINGS), "gateway_lua_settings.braker: no such setting"),
    ],
)
def test_what_cannot_be_is_said_and_makes_no_text(arguments: Any, words: str) -> None:
    made = filters.gateway_policy(*arguments)
    assert any(words in problem for problem in made["problems"]), made["problems"]
    assert made["text"] == ""


def test_peers_are_held_reweighed_and_named() -> None:
    made = filters.gateway_peers_file(
        {"m": {}}, PEERS, {}, "eu", {}, held=["gpu1", "gpu2"], weights={"gpu1": 9}, tls=True
    )
    assert made["problems"] == []
    first, second = json.loads(made["text"])["pools"][0]["peers"]
    assert (first["state"], first["weight"], first["sni"]) == ("drain", 9, "gpu1")
    assert (second["state"], second["weight"], second["sni"]) == ("down", 2, "two.example")
    plain = json.loads(filters.gateway_peers_file({"m": {}}, PEERS, {}, "eu", {})["text"])["pools"][0]["peers"]
    assert [peer["state"] for peer in plain] == ["up", "down"]
    assert [peer["sni"] for peer in plain] == ["", ""]


@pytest.mark.parametrize(
    ("pools", "words"),
    [
        ({}, "gateway_pools: expected a mapping with at least one model"),
        ({"m": {"peers": ["gpu9"]}}, "gateway_pools: m: peers: expected one of gpu1, gpu2, found gpu9"),
        ({"m": {"context_tokens": "much"}}, "a value of another kind"),
    ],
)
def test_bad_pools_make_no_text(pools: Any, words: str) -> None:
    made = filters.gateway_peers_file(pools, PEERS, {}, "eu", {})
    assert any(words in problem for problem in made["problems"]), made["problems"]
    assert made["text"] == ""


def test_hosts_say_what_they_serve() -> None:
    hostvars = {"gpu1": {"deepseek_service_model_name": "r1"}, "gpu2": {}}
    assert filters.gateway_pools(PEERS, hostvars, "m") == {"r1": {"peers": ["gpu1"]}, "m": {"peers": ["gpu2"]}}
    assert filters.gateway_pools(PEERS, {}, "m") == {"m": {"peers": ["gpu1", "gpu2"], "default": True}}


def test_a_host_whose_model_cannot_be_read_is_named() -> None:
    class Unclear(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            raise AnsibleError(f"{key} is undefined")

    with pytest.raises(AnsibleFilterError, match="host gpu1: deepseek_service_model_name: expected a name"):
        filters.gateway_pools(PEERS, {"gpu1": Unclear()}, "m")


def test_a_key_is_hashed_and_never_repeated() -> None:
    assert len(filters.gateway_key_hash(KEY)) == 64
    with pytest.raises(AnsibleFilterError) as caught:
        filters.gateway_key_hash("a b secret")
    assert "secret" not in str(caught.value)
    assert set(filters.FilterModule().filters()) == {
        "gateway_key_hash",
        "gateway_policy",
        "gateway_pools",
        "gateway_peers_file",
    }
