# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.gateway_peers import FilterModule, gateway_peers
from ansible_collections.gpufleet.deepseek.plugins.module_utils._gateway_peers import is_address, whole_number

problems: t.Callable[..., list[str]] = FilterModule().filters()["gateway_peer_problems"]
answering: t.Callable[..., list[dict[str, t.Any]]] = FilterModule().filters()["gateway_peer_hosts"]

GPU1 = {"fleet_address": "10.0.1.1", "fleet_weight": 3, "fleet_region": "eu", "deepseek_service_port": 8100}


class BrokenTemplate(dict[str, t.Any]):
    """Variables of a host whose fleet_address names a variable that does not exist."""

    def __getitem__(self, key: str) -> t.Any:
        if key == "fleet_address":
            raise KeyError("'nowhere' is undefined")
        return super().__getitem__(key)


def test_every_variable_is_read() -> None:
    assert gateway_peers(["gpu1"], {"gpu1": {**GPU1, "fleet_peer_state": "drain"}}) == [
        {"name": "gpu1", "address": "10.0.1.1", "port": 8100, "weight": 3, "state": "drain", "region": "eu"}
    ]


def test_defaults() -> None:
    assert gateway_peers(["gpu2"], {"gpu2": {"ansible_host": "10.0.1.2"}}) == [
        {"name": "gpu2", "address": "10.0.1.2", "port": 8000, "weight": 1, "state": "up", "region": "default"}
    ]
    assert gateway_peers(["gpu3.example.com"], {"gpu3.example.com": {}}, port=9)[0]["address"] == "gpu3.example.com"
    assert gateway_peers([], {}) == []


def test_a_sidecar_is_asked_instead_of_the_engine() -> None:
    port = gateway_peers(["gpu1"], {"gpu1": {**GPU1, "envoy_sidecar_enabled": True}})[0]["port"]
    assert port == 8080
    own = {**GPU1, "envoy_sidecar_enabled": "yes", "envoy_sidecar_port": "8443"}
    assert gateway_peers(["gpu1"], {"gpu1": own})[0]["port"] == 8443
    assert gateway_peers(["gpu1"], {"gpu1": {**GPU1, "envoy_sidecar_port": 8443}})[0]["port"] == 8100


def test_gateway_and_sidecar_speak_the_same() -> None:
    plain, secure = {"envoy_sidecar_enabled": True}, {"envoy_sidecar_enabled": True, "envoy_sidecar_tls": True}
    hosts: dict[str, dict[str, t.Any]] = {"plain": plain, "secure": secure, "engine": {}}
    assert problems(list(hosts), hosts) == []
    assert problems(list(hosts), hosts, False) == [
        "host secure: envoy_sidecar_tls: expected false because gateway_peer_tls is false, found true"
    ]
    assert problems(list(hosts), hosts, True) == [
        "host plain: envoy_sidecar_tls: expected true because gateway_peer_tls is true, found false"
    ]


def test_the_plan_gives_weights_and_leaves_out_who_answers_nothing() -> None:
    plan = {"peers": {"gpu1": {"weight": 2}, "gpu3": {"weight": 5}}, "hosts": ["gpu1", "gpu2", "gpu3"]}
    hostvars: dict[str, dict[str, t.Any]] = {
        "gpu1": {},
        "gpu2": {},  # the second host of gpu1's replica
        "gpu3": {"fleet_weight": 7},
        "gpu4": {},  # newer than the plan: it goes on as the inventory says
    }
    peers = gateway_peers(answering(list(hostvars), plan), hostvars)
    assert [(peer["name"], peer["weight"]) for peer in peers] == [("gpu1", 2), ("gpu3", 7), ("gpu4", 1)]
    assert len(gateway_peers(answering(list(hostvars), {}), hostvars)) == 4


@pytest.mark.parametrize(
    ("hosts", "plan", "sentence"),
    [
        ("gpu1", {}, "gateway_peer_hosts: expected a list of inventory host names, found 'gpu1'"),
        (["gpu1"], "later", "gateway_peer_hosts: expected a plan, which is a mapping, found 'later'"),
    ],
)
def test_what_is_no_list_and_no_plan(hosts: t.Any, plan: t.Any, sentence: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        answering(hosts, plan)
    assert sentence in str(caught.value)


def test_order_is_that_of_the_hosts() -> None:
    hostvars: dict[str, dict[str, t.Any]] = {"a": {}, "b": {}}
    assert [peer["name"] for peer in gateway_peers(["b", "a"], hostvars)] == ["b", "a"]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"fleet_weight": 0}, "host gpu1: fleet_weight: expected a whole number from 1 to 256, found 0"),
        ({"fleet_weight": 257}, "host gpu1: fleet_weight: expected a whole number from 1 to 256, found 257"),
        ({"fleet_weight": 1.5}, "host gpu1: fleet_weight: expected a whole number from 1 to 256, found 1.5"),
        ({"fleet_weight": True}, "host gpu1: fleet_weight: expected a whole number from 1 to 256, found True"),
        ({"fleet_weight": "heavy"}, "host gpu1: fleet_weight: expected a whole number from 1 to 256, found 'heavy'"),
        ({"deepseek_service_port": 0}, "deepseek_service_port: expected a whole number from 1 to 65535, found 0"),
        ({"fleet_peer_state": "off"}, "host gpu1: fleet_peer_state: expected up, drain or down, found 'off'"),
        ({"fleet_address": "10.0.1.256"}, "host gpu1: fleet_address: expected an IP address or a host name"),
        ({"fleet_address": "a; b"}, "host gpu1: fleet_address: expected an IP address or a host name, found 'a; b'"),
        ({"ansible_host": ""}, "host gpu1: ansible_host: expected an IP address or a host name, found ''"),
    ],
)
def test_bad_values(variables: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        gateway_peers(["gpu1"], {"gpu1": variables})
    assert sentence in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        gateway_peers(["gpu1", "gpu2", "gpu9"], {"gpu1": {"fleet_weight": 0}, "gpu2": BrokenTemplate(GPU1)})
    text = str(caught.value)
    assert "host gpu1: fleet_weight" in text
    assert "host gpu2: fleet_address: expected a value, found a template that fails" in text
    assert "host gpu9: expected a host of the inventory" in text


def test_problems_of_the_hosts_without_an_error() -> None:
    assert problems(["gpu1"], {"gpu1": GPU1}) == []
    assert problems(["gpu1"], {"gpu1": {"fleet_weight": 0}}) == [
        "host gpu1: fleet_weight: expected a whole number from 1 to 256, found 0"
    ]


def test_hosts_must_be_a_list() -> None:
    with pytest.raises(AnsibleFilterError, match="expected a list of inventory host names"):
        gateway_peers("gpu1", {"gpu1": GPU1})


GOOD = [
    {"name": "gpu1", "address": "10.0.1.1", "port": 8000, "weight": 3, "state": "up", "region": "eu"},
    {"name": "gpu2", "address": "2001:db8::2", "port": "8000", "weight": "2", "state": "drain", "max_conns": 64},
]


def test_a_good_list_has_no_problem() -> None:
    assert problems(GOOD) == []
    assert problems([{"name": "gpu1", "address": "gpu1.example.com"}]) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "gpu1"}, "peer gpu1: name: used by peers number 1 and 2, expected different names"),
        ({"name": "a b"}, "peer a b: name: expected letters"),
        ({"name": ""}, "peer number 2: name: expected letters"),
        ({"address": "10.0.1.1"}, "peer gpu2: address: 10.0.1.1 port 8000 is also that of peer gpu1"),
        ({"address": None}, "peer gpu2: address: expected an IP address or a host name, found None"),
        ({"address": "fe80::1%eth0"}, "peer gpu2: address: expected an IP address"),
        ({"port": 70000}, "peer gpu2: port: expected a whole number from 1 to 65535, found 70000"),
        ({"weight": -1}, "peer gpu2: weight: expected a whole number from 1 to 256, found -1"),
        ({"max_conns": "many"}, "peer gpu2: max_conns: expected a whole number from 0 to 1000000, found 'many'"),
        ({"state": True}, "peer gpu2: state: expected up, drain or down, found True"),
        ({"sni": "not a name"}, "peer gpu2: sni: expected the name in its certificate, found 'not a name'"),
        ({"wieght": 3}, "peer gpu2: wieght: no such key of a peer"),
    ],
)
def test_problems_of_a_peer(change: dict[str, t.Any], sentence: str) -> None:
    found = problems([GOOD[0], {**GOOD[1], **change}])
    assert len(found) == 1
    assert sentence in found[0]


def test_problems_of_the_list() -> None:
    assert problems([]) == ["expected at least one peer in state up, found none among 0"]
    assert problems([{**GOOD[0], "state": "down"}]) == ["expected at least one peer in state up, found none among 1"]
    assert problems("gpu1") == ["expected a list of peers, found str"]
    assert problems({"gpu1": {}}) == ["expected a list of peers, found dict"]
    assert problems([GOOD[0], "gpu2"]) == ["peer number 2: expected a mapping, found 'gpu2'"]


@pytest.mark.parametrize(("value", "number"), [(1, 1), ("7", 7), (" 7", None), ("७", None), (None, None), (9, None)])
def test_whole_number(value: t.Any, number: int | None) -> None:
    assert whole_number(value, (1, 8)) == number


@pytest.mark.parametrize(
    ("value", "good"),
    [("10.0.0.1", True), ("::1", True), ("gpu-1.example.com", True), ("10.0.0", False), ("a/b", False), ("-a", False)],
)
def test_is_address(value: str, good: bool) -> None:
    assert is_address(value) is good
