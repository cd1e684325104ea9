# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_policy as gateway_policy

TIERS = {"pro": {"rpm": 60, "tpm": 1000}}
KEY = "sk-0123456789"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
PEERS = [
    {"name": "gpu1", "address": "192.0.2.11", "port": 8000, "weight": 3, "state": "up", "region": "eu"},
    {"name": "gpu2", "address": "192.0.2.12", "port": 8000, "weight": 2, "state": "drain", "region": "us"},
]


def test_keys_become_hashes() -> None:
    assert gateway_policy.key_hash(KEY) == HASH
    tenants = [
        {
            "id": "acme",
            "tier": "pro",
            "keys": [KEY, KEY],
            "keys_sha256": ["f" * 64],
            "overrides": {"rpm": 5},
            "models": ["m"],
        }
    ]
    made, problems = gateway_policy.policy(TIERS, tenants, {"windows": {"buckets": 60}})
    assert not problems
    assert KEY not in json.dumps(made)
    assert made["tenants"] == [
        {
            "id": "acme",
            "tier": "pro",
            "keys_sha256": sorted([HASH, "f" * 64]),
            "overrides": {"rpm": 5},
            "models": ["m"],
        }
    ]
    assert made["windows"] == {"buckets": 60}
    # The first thing in the file: workers read no more than that to find a new one.
    assert next(iter(made)) == "id"


def test_the_id_follows_from_the_content_alone() -> None:
    one = gateway_policy.document({"a": 1, "b": {"c": 2, "d": 3}})
    same = gateway_policy.document({"b": {"d": 3, "c": 2}, "a": 1})
    assert gateway_policy.text(one) == gateway_policy.text(same)
    assert one["id"] == same["id"] != gateway_policy.document({"a": 1, "b": {"c": 2, "d": 4}})["id"]
    assert len(one["id"]) == 64


def test_the_text_of_a_file() -> None:
    made = gateway_policy.document({"b": [1, 2.5], "a": {"name": "b\u00e4r"}})
    text = gateway_policy.text(made)
    # Workers read no more than the beginning to find a new file.
    assert text == (
        '{\n  "id": "' + made["id"] + '",\n  "a": {\n    "name": "b\\u00e4r"\n  },\n  "b": [\n    1,\n    2.5\n  ]\n}\n'
    )
    assert json.loads(text) == made


@pytest.mark.parametrize(
    ("tenants", "words"),
    [
        ("acme", "expected a list of tenants"),
        ([3], "number 1: expected a mapping, found int"),
        ([{"id": "a", "tier": "free", "keys": [KEY]}], "a: tier: expected one of pro, found 'free'"),
        ([{"id": "a", "tier": "pro"}], "a: keys: expected at least one key, found none"),
        ([{"id": "a", "tier": "pro", "keys": ["short"]}], "a: keys: expected a key of 8 to 512 characters"),
        ([{"id": "a", "tier": "pro", "keys": ["has a blank in it"]}], "a: keys: expected a key of 8 to 512 characters"),
        ([{"id": "a", "tier": "pro", "keys_sha256": [KEY]}], "a: keys_sha256: expected 64 lower-case"),
        ([{"id": "a", "tier": "pro", "keys": [KEY], "rpm": 3}], "a: rpm: no such field of a tenant"),
        (
            [{"id": "a", "tier": "pro", "keys": [KEY]}, {"id": "b", "tier": "pro", "keys": [KEY]}],
            "b: keys: one of them is also a key of a",
        ),
    ],
)
def test_bad_tenants_are_named_and_their_keys_are_not(tenants: Any, words: str) -> None:
    _made, problems = gateway_policy.policy(TIERS, tenants, {})
    assert any(words in problem for problem in problems), problems
    assert not any(KEY in problem or "short" in problem for problem in problems)


def test_pools_are_made_of_peers_and_plan() -> None:
    plan = {"peers": {"gpu1": {"token_capacity": 400000, "max_sequences": 64}}}
    wanted = {
        "deepseek-r1": {"aliases": ["r1"], "default": True, "context_tokens": 65536},
        "small": {"peers": ["gpu2"]},
    }
    made, problems = gateway_policy.pools(wanted, PEERS, plan, "eu", {})
    assert not problems
    first, second = made["pools"]
    assert (first["name"], first["aliases"], first["default"], first["context_tokens"]) == (
        "deepseek-r1",
        ["r1"],
        True,
        65536,
    )
    assert [peer["name"] for peer in first["peers"]] == ["gpu1", "gpu2"]
    assert [peer["name"] for peer in second["peers"]] == ["gpu2"]
    assert first["peers"][0] == {
        "name": "gpu1",
        "address": "192.0.2.11",
        "port": 8000,
        "weight": 3,
        "capacity_tokens": 400000,
        "max_inflight": 128,
        "region": "eu",
        "state": "up",
        "sni": "",
    }
    assert first["peers"][1]["capacity_tokens"] == 1_000_000
    assert made["regions"] == {"eu": {"priority": 0}, "us": {"priority": 1}}


def test_the_order_of_an_inventory_does_not_matter() -> None:
    one = gateway_policy.pools({"a": {"default": True}, "b": {}}, PEERS, {}, "eu", {"eu": {}, "us": {}})[0]
    other = gateway_policy.pools({"b": {}, "a": {"default": True}}, PEERS, {}, "eu", {"us": {}, "eu": {}})[0]
    assert gateway_policy.text(one) == gateway_policy.text(other)


def test_the_smallest_context_of_a_pool_counts() -> None:
    plan = {"peers": {"gpu1": {"context_tokens": 65536}, "gpu2": {"context_tokens": 4096}}}
    for wanted, tokens in (({}, 4096), ({"peers": ["gpu1"]}, 65536), ({"context_tokens": 777}, 777)):
        assert gateway_policy.pools({"m": wanted}, PEERS, plan, "eu", {})[0]["pools"][0]["context_tokens"] == tokens
    assert gateway_policy.pools({"m": {}}, PEERS, {}, "eu", {})[0]["pools"][0]["context_tokens"] == 131072


def test_regions_without_a_priority_come_last() -> None:
    known = {"eu": {"priority": 2}, "asia": {"priority": 5}}
    made, _problems = gateway_policy.pools({"m": {}}, PEERS, {}, "eu", known)
    assert made["regions"] == {**known, "us": {"priority": 6}}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"m": "gpu1"}, "m: expected a mapping, found str"),
        ({"m": {"peers": ["gpu9"]}}, "m: peers: expected one of gpu1, gpu2, found gpu9"),
        ({"m": {"alias": []}}, "m: alias: no such field of a pool"),
    ],
)
def test_bad_pools_are_named(wanted: Any, words: str) -> None:
    _made, problems = gateway_policy.pools(wanted, PEERS, {}, "eu", {})
    assert any(words in problem for problem in problems), problems


def test_limits_are_those_of_the_lua() -> None:
    root = Path(__file__).resolve().parents[4]
    lua = (root / "roles/gateway/files/lua/gw/conf.lua").read_text("utf-8")
    part = lua[lua.index("local function limit_fields()") : lua.index("local function overrides()")]
    part = part.replace("MOST_TOKENS * 10", str(10**13)).replace("MOST_TOKENS", str(10**12))
    found: dict[str, tuple[Any, ...]] = {
        name: (int(low), int(high)) for name, low, high in re.findall(r'whole\("(\w+)", (\d+), (\d+),', part)
    }
    for name, words in re.findall(r'name = "(\w+)",\s+kind = "choice",\s+values = (\{.*?\}|M\.priorities),', part):
        listed = words if words.startswith("{") else re.findall(r"M\.priorities = (\{.*?\})", lua)[0]
        found[name] = tuple(re.findall(r'"(\w+)"', listed))
    assert found == gateway_policy.LIMITS


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"rpm": -1}, "x: rpm: expected a whole number from 0 to 10000000, found -1"),
        ({"rpm": True}, "x: rpm: expected a whole number from 0 to 10000000, found True"),
        ({"rpm": "60"}, "x: rpm: expected a whole number from 0 to 10000000, found '60'"),
        ({"priority": "high"}, "x: priority: expected one of batch, standard, premium, found 'high'"),
        ({"rps": 1}, "x: rps: no such limit; there are rpm, burst_rps"),
        (3, "x: expected a mapping of limits, found int"),
    ],
)
def test_bad_limits_are_named(limits: Any, words: str) -> None:
    assert any(words in problem for problem in gateway_policy.limit_problems(limits, "x"))


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"breaker": {"consecutive": 3}}, ""),
        ({"breaker": {"patience": 3}}, "s.breaker.patience: no such setting; there are consecutive"),
        ({"breaker": 3}, "s.breaker: expected a mapping, found int"),
        ({"affinity": {"mode": False}}, "s.affinity.mode: expected a word, found False"),
        ({"breaker": {"consecutive": "3"}}, "s.breaker.consecutive: expected a number, found '3'"),
        ([], "s: expected a mapping, found list"),
    ],
)
def test_settings_are_compared_with_the_known_ones(wanted: Any, problem: str) -> None:
    known = {"breaker": {"consecutive": 5}, "affinity": {"mode": "prefix"}}
    assert gateway_policy.setting_problems(wanted, known, "s") == ([problem] if problem else [])


def test_settings_are_merged_member_by_member() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert gateway_policy.merged(base, {"a": {"b": 9}, "e": 4}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_pools_follow_the_models_of_the_hosts() -> None:
    assert gateway_policy.pools_of_hosts(PEERS, {}, "m") == {"m": {"peers": ["gpu1", "gpu2"], "default": True}}
    assert gateway_policy.pools_of_hosts(PEERS, {"gpu2": "other"}, "m") == {
        "m": {"peers": ["gpu1"]},
        "other": {"peers": ["gpu2"]},
    }


@pytest.mark.parametrize("name", ["", "two words", "a:b", "x" * 65])
def test_names_of_tenants_fit_keys_and_labels(name: str) -> None:
    _made, problems = gateway_policy.policy(TIERS, [{"id": name, "tier": "pro", "keys": [KEY]}], {})
    assert any("id: expected 1 to 64 letters" in problem for problem in problems), problems


def test_two_tenants_have_two_names() -> None:
    tenants = [{"id": "a", "tier": "pro", "keys": [KEY]}, {"id": "a", "tier": "pro", "keys": [KEY + "x"]}]
    _made, problems = gateway_policy.policy(TIERS, tenants, {})
    assert "gateway_tenants: a: id: two tenants have it, expected different ones" in problems


@pytest.mark.parametrize(
    ("given", "usual"),
    [
        ({}, 4096),
        ({"max_tokens": 256}, 256),
        ({"tpm": 2000}, 1000),
        ({"tpm": 100000, "tpd": 5000}, 2500),
        ({"tpm": 1}, 1),
        ({"default_max_tokens": 9000}, 9000),
    ],
)
def test_the_usual_answer_fits_the_limits(given: dict[str, int], usual: int) -> None:
    defaults = {"max_tokens": 32768, "default_max_tokens": 4096, "tpm": 0, "tpd": 0}
    assert gateway_policy.fitting({**defaults, **given}, given)["default_max_tokens"] == usual


def test_limits_that_contradict_each_other_are_named() -> None:
    whole = {"max_tokens": 256, "default_max_tokens": 512, "tpm": 300, "tpd": 0}
    tenants = [{"id": "a", "tier": "pro", "keys": [KEY]}]
    _made, problems = gateway_policy.policy({"pro": whole}, tenants, {})
    assert problems == [
        "gateway_tiers: pro: default_max_tokens: expected at most max_tokens, 256, found 512",
        "gateway_tiers: pro: tpm: expected more than default_max_tokens, 512, found 300",
    ]


def test_overrides_bring_an_answer_that_fits_them() -> None:
    whole = {"max_tokens": 32768, "default_max_tokens": 4096, "tpm": 0, "tpd": 0}
    tenants = [
        {"id": "a", "tier": "pro", "keys": [KEY], "overrides": {"max_tokens": 64}},
        {"id": "b", "tier": "pro", "keys": [KEY + "b"], "overrides": {"rpm": 5}},
    ]
    made, problems = gateway_policy.policy({"pro": whole}, tenants, {})
    assert not problems
    assert [tenant["overrides"] for tenant in made["tenants"]] == [
        {"max_tokens": 64, "default_max_tokens": 64},
        {"rpm": 5},
    ]
    tenants[0]["overrides"] = {"max_tokens": 64, "default_max_tokens": 65}
    _made, problems = gateway_policy.policy({"pro": whole}, tenants, {})
    assert problems == ["gateway_tenants: a: overrides: default_max_tokens: expected at most max_tokens, 64, found 65"]
