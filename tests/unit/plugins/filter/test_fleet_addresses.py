# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Addresses of hosts, for firewalls."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter.fleet_addresses import FilterModule, fleet_addresses

HOSTVARS = {
    "gw1": {"fleet_address": "10.0.0.1", "ansible_host": "192.0.2.1"},
    "gw2": {"ansible_host": "192.0.2.2"},
    "gw3.example.com": {},
    "same": {"ansible_host": "192.0.2.2"},
    "bad": {"fleet_address": "not an address"},
}


def test_each_address_once_and_in_order() -> None:
    assert FilterModule().filters() == {"fleet_addresses": fleet_addresses}
    assert fleet_addresses(["gw2", "gw1", "same", "gw3.example.com"], HOSTVARS) == [
        "192.0.2.2",
        "10.0.0.1",
        "gw3.example.com",
    ]
    assert fleet_addresses([], HOSTVARS) == []


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("gw1", "expected a list"),
        (["nobody"], "no such name"),
        (["bad"], "host bad: fleet_address: expected an IP address"),
    ],
)
def test_refused(hosts: object, words: str) -> None:
    with pytest.raises(AnsibleFilterError, match=words):
        fleet_addresses(hosts, HOSTVARS)
