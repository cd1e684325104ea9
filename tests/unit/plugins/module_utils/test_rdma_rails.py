# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _rdma_rails as rails


def peer(name: str, *addresses: str, mtu: int = 9000) -> dict[str, Any]:
    return {
        "name": name,
        "rails": [{"name": f"rail{index}", "address": address, "mtu": mtu} for index, address in enumerate(addresses)],
    }


GOOD = [peer("gpu1", "10.1.0.11/24", "10.2.0.11/24"), peer("gpu2", "10.1.0.12/24", "10.2.0.12/24")]


def test_good_rails() -> None:
    assert rails.rail_problems(GOOD, "gpu1") == []
    assert rails.rail_problems([], "gpu1") == []
    assert (
        rails.rail_problems([{"name": "gpu1", "address": "10.1.0.1"}, {"name": "gpu2", "address": "10.1.0.2"}], "gpu2")
        == []
    )


@pytest.mark.parametrize(
    ("peers", "options", "words"),
    [
        (GOOD, {"name": "gpu3"}, "expected an entry named gpu3, found gpu1, gpu2"),
        ([*GOOD, GOOD[0]], {}, "expected every name once, found gpu1 again"),
        (
            [peer("gpu1", "10.1.0.300/24")],
            {},
            "expected an address with its prefix length for rail0 of gpu1, found 10.1.0.300/24",
        ),
        (
            [peer("gpu1", "10.1.0.11/24"), peer("gpu2", "10.1.0.11/24")],
            {},
            "expected every address once, found 10.1.0.11 for rail0 of gpu1 and rail0 of gpu2",
        ),
        (
            [peer("gpu1", "10.1.0.11/24", "10.1.0.12/24")],
            {},
            "expected a network for each rail, or rdma_rp_filter_loose: true, found 10.1.0.0/24 twice (rail0 of gpu1, rail1 of gpu1)",
        ),
        (
            [peer("gpu1", "10.1.0.11/16", "10.1.2.12/24")],
            {"loose": True},
            "expected networks that do not overlap, found 10.1.0.0/16 and 10.1.2.0/24",
        ),
        (
            [peer("gpu1", "10.1.0.11/24"), peer("gpu2", "10.1.0.12/24", mtu=1500)],
            {},
            "expected one mtu along rail0, found 9000 on gpu1 and 1500 on gpu2",
        ),
        (
            [peer("gpu1", "10.1.0.11/24"), peer("gpu2", "10.2.0.12/24")],
            {},
            "expected one network along rail0, or rdma_rails_routed: true, found 10.1.0.0/24 on gpu1 and 10.2.0.0/24 on gpu2",
        ),
        (
            [peer("gpu1", "10.1.0.11/24", "10.2.0.11/24"), peer("gpu2", "10.1.0.12/24")],
            {},
            "expected the rails of gpu1 on gpu2 too, found none named rail1",
        ),
    ],
)
def test_bad_rails(peers: list[dict[str, Any]], options: dict[str, Any], words: str) -> None:
    (found,) = rails.rail_problems(peers, **{"name": "gpu1", **options})
    assert words in found


def test_what_is_permitted_when_asked_for() -> None:
    assert rails.rail_problems([peer("gpu1", "10.1.0.11/24", "10.1.0.12/24")], "gpu1", loose=True) == []
    assert rails.rail_problems([peer("gpu1", "10.1.0.11/24"), peer("gpu2", "10.9.0.12/24")], "gpu1", routed=True) == []


@pytest.mark.parametrize(
    ("pairing", "count", "expected"),
    [
        ("ring", 1, [None]),
        ("ring", 2, [1, 0]),
        ("ring", 4, [3, 0, 1, 2]),
        ("pairs", 2, [None, 0]),
        ("pairs", 4, [None, 0, None, 2]),
        ("pairs", 5, [None, 0, None, 2, 3]),
    ],
)
def test_partners_are_few(pairing: str, count: int, expected: list[int | None]) -> None:
    peers = [{"name": f"gpu{index}", "address": f"10.1.0.{index}/24"} for index in range(count)]
    found = [rails.partner(peers, f"gpu{index}", pairing) for index in range(count)]
    assert [entry.get("name") for entry in found] == [None if one is None else f"gpu{one}" for one in expected]
    assert all(entry["rails"][0]["name"] == "rail0" for entry in found if entry)


def test_a_stranger_has_no_partner() -> None:
    assert rails.partner(GOOD, "gpu9") == {}
    assert rails.rails_of({"name": "x"}) == []
