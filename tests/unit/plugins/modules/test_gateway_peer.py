# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The module itself: what it wants to be told, what it says, and when it needs the lock."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_peer
from ansible_collections.gpufleet.deepseek.plugins.modules import gateway_peer
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.test_gateway_peer import Host
from ansible_collections.gpufleet.deepseek.tests.unit.plugins.module_utils.test_gateway_peer_lua import LuaHost


@pytest.fixture(params=[Host, LuaHost])
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A gateway host with one balancer or the other, for the module to work on."""
    made: Host = request.param(tmp_path)
    probes = made.gateway("drained").probes
    places: dict[str, Any] = {"config": made.config, "holds": made.holds, "weights": made.weights}
    monkeypatch.setattr(_gateway_peer, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(_gateway_peer, "Wish", functools.partial(_gateway_peer.Wish, **places))
    monkeypatch.setattr(_gateway_peer, "Probes", lambda: probes)
    monkeypatch.setattr(gateway_peer.AnsibleModule, "run_command", lambda _self, argv, environ_update: made.run(argv))
    return made


def run(capsys: pytest.CaptureFixture[str], *, check: bool = False, **options: Any) -> dict[str, Any]:
    """One run of the module and what it says."""
    wish = {"name": "gpu1", "owner": "alice", **options}
    with (
        patch_module_args({**wish, "_ansible_check_mode": check, "_ansible_diff": True}),
        pytest.raises(SystemExit),
    ):
        gateway_peer.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_check_run_check_run(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, state, weight in (
        ({"state": "drained", "reason": "fans", "wait": 60}, "held", 3),
        ({"state": "weighed", "reason": "trial", "weight": 9}, "held", 9),
        ({"state": "admitted", "health_path": "/health"}, "up", 9),
        ({"state": "weighed", "weight": 0}, "up", 3),
    ):
        (tmp_path / "lock").unlink(missing_ok=True)
        predicted = run(capsys, check=True, **options)
        assert predicted["changed"]
        assert not (tmp_path / "lock").exists()
        done = run(capsys, **options)
        assert (done["changed"], done["known"], done["peer_state"], done["weight"]) == (True, True, state, weight)
        assert done["diff"] == predicted["diff"]
        assert done["diff"]["before"] != done["diff"]["after"]
        assert ("planned_weight" in done) == (options["state"] == "weighed")
        assert done["idle"]
        assert not run(capsys, check=True, **options)["changed"]
        assert not run(capsys, **options)["changed"]


def test_what_is_left_is_said(host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Where warnings end up depends on what else of Ansible is loaded.
    said: list[str] = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, text: said.append(text))
    host.sockets = [2] * 9
    if isinstance(host, LuaHost):
        host.listens = False
    done = run(capsys, state="drained", reason="fans", wait=3)
    assert (done["idle"], done["connections"], done["waited"]) == (False, 2, 3)
    assert len(said) == 1
    assert said[0].startswith("gpu1: 2 ")
    assert "of the gateway are left after 3 s; " in said[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"state": "drained"}, "state is drained but all of the following are missing: reason"),
        ({"state": "weighed", "reason": "x"}, "state is weighed but all of the following are missing: weight"),
        ({"state": "weighed", "weight": 1}, "reason: expected words"),
        ({"state": "weighed", "weight": 999, "reason": "x"}, "weight: expected a whole number from 1 to 256"),
        ({"state": "admitted", "owner": "a b"}, "owner: expected"),
        ({"state": "gone"}, "value of state must be one of: drained, admitted, weighed"),
    ],
)
def test_refused(host: Host, capsys: pytest.CaptureFixture[str], options: dict[str, Any], words: str) -> None:
    done = run(capsys, **options)
    assert done["failed"]
    assert words in done["msg"]
    assert not host.holds.exists()
    assert not host.weights.exists()
