# SPDX-License-Identifier: Apache-2.0
"""Bad input: one clear message, nothing half-installed, the running service keeps running."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import Fleet


@pytest.fixture(autouse=True)
def served(fleet: Fleet) -> Iterator[None]:
    """Whatever a test does, the fleet answers before and after, from the same processes."""

    def processes() -> dict[str, str]:
        units = {"gpu1": "deepseek-service", "gpu2": "deepseek-service", "gw1": "nginx", "mon1": "prometheus"}
        return {host: fleet.ssh(host, f"systemctl show -P MainPID {unit}").stdout for host, unit in units.items()}

    before = processes()
    yield
    assert processes() == before, "a service was restarted"
    assert fleet.ask()[0] == 200


def refused(fleet: Fleet, sentence: str, *args: str, touched: bool = False) -> str:
    """Run site.yml; it must fail with a message that matches, before it changes anything."""
    run = fleet.play("site.yml", *args)
    assert run.rc != 0, run.output
    assert re.search(sentence, run.output), f"expected {sentence!r} in:\n{run.output[-4000:]}"
    if not touched:
        assert run.changed() == 0, run.output
    return run.output


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"fleet_weight": "heavy"}, r"gpu1: role fleet: variable fleet_weight: expected int, found str 'heavy'"),
        ({"fleet_weight": 0}, r"fleet_weight.*expected .*1 (to|and) 256.*found 0"),
        ({"fleet_weight": 257}, r"fleet_weight.*expected .*1 (to|and) 256.*found 257"),
        ({"fleet_peer_state": "maybe"}, r"value of fleet_peer_state must be one of: up, drain, down, got: maybe"),
        (
            {"gateway_prot": 8443},
            r"gw1: variable gateway_prot is not known to role gateway; did you mean gateway_port\?",
        ),
        ({"deepseek_service_port": 99999}, r"deepseek_service_port.*65535.*99999"),
        ({"gateway_port": 70000}, r"gateway_port.*65535.*70000"),
        ({"prometheus_port": 0}, r"prometheus_port.*65535.*0"),
        ({"deepseek_service_engine": "sglang"}, r"fleet_plan: expected a plan for sglang"),
        (
            {"deepseek_service_engine_version": "0.0"},
            r"deepseek_service_engine_version: expected 2026\.10\.11549 or 2026\.9\.11063",
        ),
        (
            {"gateway_flavor": "openresty", "gateway_openresty_codename": "sid"},
            r"gateway_openresty_codename: expected bookworm",
        ),
        (
            {"gateway_tenants": [{"id": "acme", "tier": "gold", "keys": ["0123456789"]}]},
            r"acme: tier: expected one of trial, unlimited, found 'gold'",
        ),
        ({"gateway_tiers": {"trial": {"rps": 3}}}, r"gateway_tiers: trial: rps: no such limit"),
        ({"fleet_api_key": "short"}, r"fleet_api_key|deepseek_service_api_key"),
        ({"fleet_peer_state": "drain"}, r"up"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_variable(fleet: Fleet, variables: dict[str, object], sentence: str) -> None:
    refused(fleet, sentence, "-e", json.dumps(variables))


def test_a_missing_required_variable(fleet: Fleet, tmp_path: Path) -> None:
    copy = tmp_path / "lab"
    shutil.copytree(fleet.inventory, copy)
    variables = copy / "group_vars" / "all" / "fleet.yml"
    text = variables.read_text(encoding="utf-8")
    variables.write_text(re.sub(r"^fleet_api_key:.*$", "", text, flags=re.MULTILINE), encoding="utf-8")
    other = Fleet(copy)
    refused(other, r"gw1: role fleet: missing required variable fleet_api_key")


def test_a_port_that_somebody_else_has(fleet: Fleet) -> None:
    address = fleet.vars["gpu1"]["ansible_host"]
    serve = f"systemd-run --unit=squatter --collect python3 -m http.server 8055 --bind {address}"
    fleet.ssh("gpu1", serve)
    try:
        refused(fleet, r"8055.*python3", "-e", "deepseek_service_port=8055")
    finally:
        fleet.ssh("gpu1", "systemctl stop squatter")


def test_weights_that_are_not_those_that_were_meant(fleet: Fleet) -> None:
    root = "fe385c3fc4e7484695452c1062f5a04278c3421a8344f648c0fedd687a014d1b"
    weights = {"name": "other", "root": "0" * 64, "source": "path", "path": f"/srv/models/weights/{root}"}
    output = refused(fleet, r"0{64}", "-e", json.dumps({"fleet_weights": weights}), touched=True)
    assert root in output, "what was found is not named"
    left = fleet.ssh("gpu1", f"ls -d /srv/models/weights/{'0' * 64}", check=False).stdout
    assert left == "", f"half-installed: {left}"


def test_no_disk_space(fleet: Fleet) -> None:
    fleet.ssh("gpu1", "mkdir -p /srv/small && mount -t tmpfs -o size=16m tmpfs /srv/small")
    try:
        refused(fleet, r"/srv/small.*(free|space)", "-e", "fleet_models_dir=/srv/small")
    finally:
        fleet.ssh("gpu1", "umount /srv/small && rmdir /srv/small")


def test_a_key_that_does_not_match_its_certificate(fleet: Fleet, tmp_path: Path) -> None:
    key = tmp_path / "other.key"
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(key)],
        check=True,
        capture_output=True,
    )
    refused(fleet, r"gateway_tls_key_file.*(match|belong)", "-e", f"gateway_tls_key_file={key}")


def test_an_invalid_nginx_configuration_is_never_loaded(fleet: Fleet) -> None:
    before = fleet.ssh(
        "gw1", "sha256sum /etc/nginx/nginx.conf; pgrep -P $(systemctl show -P MainPID nginx) | sort"
    ).stdout
    extra = json.dumps({"gateway_extra_http_config": "this_is_no_directive on;"})
    refused(fleet, r'unknown directive \\?"this_is_no_directive', "-e", extra)
    after = fleet.ssh(
        "gw1", "sha256sum /etc/nginx/nginx.conf; pgrep -P $(systemctl show -P MainPID nginx) | sort"
    ).stdout
    assert after == before, "the file or the worker processes are not the same any more"
