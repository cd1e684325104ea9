# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Places and packages of the two kinds of nginx; OpenResty's runs on no test host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.plugins.filter.core import FilterModule as CoreFilters
from ansible.plugins.test.core import TestModule as CoreTests

ROLE = Path(__file__).parents[4] / "roles/gateway"
PLACES = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
SETTINGS: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text(encoding="utf-8"))


def environment() -> jinja2.Environment:
    """Jinja as Ansible sets it up, with the filters and tests that the templates use."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLE / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=jinja2.select_autoescape(),
    )
    # Jinja's own come first: Ansible's "default" knows Ansible's undefined values only.
    made.filters = {**CoreFilters().filters(), **made.filters}
    made.tests.update(CoreTests().tests())
    return made


def values(flavor: str, balancer: str) -> dict[str, Any]:
    """All variables of the templates; those of vars/main.yml that follow from the flavour are worked out."""
    found: dict[str, Any] = {
        **{name: value for name, value in SETTINGS.items() if "{{" not in str(value)},
        "gateway_flavor": flavor,
        "gateway_balancer": balancer,
        "gateway_peers": [
            {"name": "gpu1", "address": "192.0.2.21", "port": 8000, "weight": 3, "state": "up", "max_conns": 0}
        ],
        "gateway_operator_networks": ["127.0.0.0/8"],
        "gateway_tls_mode": "none",
        "gateway_upstream_keepalive": 64 if balancer == "lua" else 0,
        "__gateway_openresty": flavor == "openresty",
        "__gateway_lua": balancer == "lua",
        "__gateway_tls": False,
        "__gateway_tracing": False,
        "__gateway_held": [],
        "__gateway_weights": {},
        "__gateway_listen": "192.0.2.10:443",
        "__gateway_status_listen": "127.0.0.1:8090",
        "__gateway_metrics_listen": "192.0.2.10:9145",
        "__gateway_lua_id": "0" * 64,
        "__gateway_lua_dir": "/usr/local/lib/gpufleet/gateway/lua",
        "__gateway_policy_file": "/etc/gpufleet/gateway/policy.json",
        "__gateway_peers_file": "/etc/gpufleet/gateway/peers.json",
        "__gateway_engine_key_file": "/etc/gpufleet/gateway/engine.conf",
        "__gateway_config_mark": PLACES["__gateway_config_mark"],
        "__gateway_address_pattern": PLACES["__gateway_address_pattern"],
    }
    for name in ("service", "config_file", "binary", "pid_file", "modules", "writable", "packages", "peer_variable"):
        text = PLACES[f"__gateway_{name}"]
        found[f"__gateway_{name}"] = (
            jinja2.Environment(autoescape=jinja2.select_autoescape()).from_string(text).render(found)
        )
    return found


@pytest.mark.parametrize("balancer", ["native", "lua"])
@pytest.mark.parametrize(
    ("flavor", "lines", "not_there"),
    [
        ("debian", ["pid /run/nginx.pid;", "include /etc/nginx/modules-enabled/*.conf;"], "/usr/local/openresty"),
        ("openresty", ["pid /usr/local/openresty/nginx/logs/nginx.pid;"], "modules-enabled"),
    ],
)
def test_configuration(flavor: str, lines: list[str], not_there: str, balancer: str) -> None:
    found = environment().get_template("etc/nginx/nginx.conf.j2").render(values(flavor, balancer)).splitlines()
    # gateway_peer and the unit know the file by its first words.
    assert found[0] == "# gpufleet.deepseek gateway"
    for line in lines:
        assert line in found
    assert not any(not_there in line for line in found)
    assert any("lua_package_path" in line for line in found) == (balancer == "lua")
    assert any("least_conn" in line for line in found) == (balancer == "native")


@pytest.mark.parametrize(
    ("flavor", "config", "writable"),
    [
        ("debian", "/etc/nginx/nginx.conf", "/run /var/lib/nginx /var/log/nginx"),
        (
            "openresty",
            "/usr/local/openresty/nginx/conf/nginx.conf",
            "/run /usr/local/openresty/nginx /var/log/nginx",
        ),
    ],
)
def test_unit_settings(flavor: str, config: str, writable: str) -> None:
    template = environment().get_template("etc/systemd/system/nginx.service.d/gpufleet.conf.j2")
    found = template.render(values(flavor, "lua")).splitlines()
    assert f'ExecCondition=/usr/bin/grep -q "^# gpufleet.deepseek gateway" {config}' in found
    assert f"ReadWritePaths={writable}" in found
    assert ("LogsDirectory=nginx" in found) == (flavor == "openresty")


def test_packages_and_places() -> None:
    debian, openresty = values("debian", "lua"), values("openresty", "lua")
    assert "libnginx-mod-http-lua" in debian["__gateway_packages"]
    assert "openresty" in openresty["__gateway_packages"]
    assert "libnginx-mod-http-lua" not in openresty["__gateway_packages"]
    assert (debian["__gateway_service"], openresty["__gateway_service"]) == ("nginx.service", "openresty.service")
    assert set(PLACES["__gateway_openresty_codenames"]) == set(PLACES["__gateway_openresty_components"])


def test_spans_go_where_the_endpoint_says() -> None:
    """Only the balancer lua makes some."""
    to = {
        "__gateway_tracing": True,
        "__gateway_tracing_host": "192.0.2.30",
        "__gateway_tracing_port": "4318",
        "__gateway_tracing_path": "/v1/traces",
        "inventory_hostname": "gw1",
        "fleet_region": "eu",
    }
    template = environment().get_template("etc/nginx/nginx.conf.j2")
    found = [line.strip() for line in template.render(values("debian", "lua") | to).splitlines()]
    begin = found.index("tracing = {")
    assert found[begin + 1 : found.index("},", begin)] == [
        'host = "192.0.2.30",',
        "port = 4318,",
        'path = "/v1/traces",',
        "timeout_ms = 2000,",
        "ratio = 0.01,",
        "follow = true,",
        "errors = true,",
        "queue = 4096,",
        "batch = 128,",
        'service = "gateway",',
        'node = "gw1",',
        'region = "eu",',
    ]
    assert "tracing = {" not in template.render(values("debian", "native") | to)


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    [
        ("http://192.0.2.30:4318", ["192.0.2.30", "4318", ""]),
        ("http://[2001:db8::30]:4318/otlp/", ["[2001:db8::30]", "4318", "/otlp/"]),
        ("https://192.0.2.30:4318", None),
        ("http://collector:4318", None),
        ("http://192.0.2.30", None),
        ('http://192.0.2.30:4318/"', None),
    ],
)
def test_endpoints(endpoint: str, parts: list[str] | None) -> None:
    """An address, a port, perhaps a path, and nothing that would end a text of Lua."""
    found = re.match(PLACES["__gateway_tracing_pattern"], endpoint)
    assert [part or "" for part in found.groups()] == parts if found else parts is None
