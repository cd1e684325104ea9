# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab_registry as registry

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----"
OTHER = "-----BEGIN CERTIFICATE-----\nREVG\n-----END CERTIFICATE-----"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

LIST = """\
# a comment
deb http://mirror.example/debian bookworm main contrib # the rest
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/debian-security bookworm-security main
deb https://third.example/apt cloud-bookworm main
deb [trusted=yes] file:/srv/packages bookworm main
"""
SOURCES = """\
# the archive
Types: deb deb-src
URIs: http://mirror.example/debian http://second.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://mirror.example/off
Suites: bookworm
Components: main

Types: deb
URIs: https://third.example/linux/debian
Suites: bookworm
Components: stable

Types: deb
URIs: http://keyed.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 AAAA
 -----END PGP PUBLIC KEY BLOCK-----
"""


def lines(found: Any) -> Any:
    return [item.line() for item in found]


def test_one_line_sources() -> None:
    assert lines(registry.parse_one_line(LIST)) == [
        "deb http://mirror.example/debian bookworm main contrib",
        "deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://mirror.example/debian-security bookworm-security main",
        "deb https://third.example/apt cloud-bookworm main",
        "deb [trusted=yes] file:/srv/packages bookworm main",
    ]


def test_deb822_sources() -> None:
    found = registry.parse_deb822(SOURCES)
    assert lines(found)[:4] == [
        f"deb [signed-by={KEYRING}] http://mirror.example/debian bookworm main",
        f"deb [signed-by={KEYRING}] http://mirror.example/debian bookworm-updates main",
        f"deb [signed-by={KEYRING}] http://second.example/debian bookworm main",
        f"deb [signed-by={KEYRING}] http://second.example/debian bookworm-updates main",
    ]
    assert not any("off" in item.uri for item in found)
    assert found[-1].key == "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n"


def test_third_parties_and_local_sources_stay_out() -> None:
    notes: Any = []
    chosen = registry.select_sources(registry.parse_one_line(LIST), "bookworm", "bookworm", notes)
    assert [item.uri for item in chosen] == ["http://mirror.example/debian", "http://mirror.example/debian-security"]
    assert notes == ["The apt source file:/srv/packages bookworm is local to this machine: lab hosts do without it."]
    chosen = registry.select_sources(registry.parse_deb822(SOURCES), "bookworm", "bookworm")
    assert not any("third.example" in item.uri for item in chosen)


def test_another_release_uses_the_same_mirrors() -> None:
    chosen = registry.select_sources(registry.parse_one_line(LIST), "bookworm", "trixie")
    assert [(item.uri, item.suite) for item in chosen] == [
        ("http://mirror.example/debian", "trixie"),
        ("http://mirror.example/debian-security", "trixie-security"),
    ]
    stable = registry.parse_one_line("deb http://mirror.example/debian stable-updates main\n")
    assert [item.suite for item in registry.select_sources(stable, "trixie", "bookworm")] == ["bookworm-updates"]


def test_a_mirror_list_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mirrors"
    path.write_text("# first choice\nhttp://near.example/debian\tpriority:1\nhttp://far.example/debian\n")
    found = registry.parse_one_line(f"deb mirror+file:{path} bookworm main\n")
    assert [item.uri for item in registry.select_sources(found, "bookworm", "bookworm")] == [
        "http://near.example/debian"
    ]


def test_keys_inside_sources_become_files(tmp_path: Path) -> None:
    settings = registry.Settings()
    found = registry.resolve_keys(registry.parse_deb822(SOURCES)[-1:], settings, tmp_path)
    (path, content), *_rest = settings.keyrings.items()
    assert path.startswith(str(tmp_path))
    assert path.endswith(".asc")
    assert b"AAAA" in content
    assert f"signed-by={path}" in found[0].line()


def test_apt_settings_that_concern_fetching() -> None:
    dump = """\
APT "";
APT::Install-Recommends "1";
Acquire::AllowInsecureRepositories "0";
Acquire::Check-Valid-Until "false";
Acquire::http::Proxy "http://proxy.example:3128";
Acquire::http::Proxy::direct.example "DIRECT";
Acquire::https::CaInfo "/etc/site/ca.pem";
Acquire::https::SslKey "/etc/site/key.pem";
Acquire::IndexTargets::deb::Packages::MetaKey "$(COMPONENT)/binary";
"""
    notes: Any = []
    text, ca_files = registry.select_apt_conf(dump, notes)
    assert text == (
        'Acquire::Check-Valid-Until "false";\n'
        'Acquire::http::Proxy "http://proxy.example:3128";\n'
        'Acquire::http::Proxy::direct.example "DIRECT";\n'
        'Acquire::https::CaInfo "/etc/ssl/certs/ca-certificates.crt";\n'
    )
    assert ca_files == ["/etc/site/ca.pem"]
    assert notes == ["The apt setting Acquire::https::SslKey names a file of this machine: lab hosts do without it."]


def test_a_proxy_on_a_loopback_address_is_named() -> None:
    notes: Any = []
    registry.select_apt_conf('Acquire::http::Proxy "http://127.0.0.1:3142";\n', notes)
    assert "loopback" in notes[0]


def test_pip_settings_merge_as_pip_does() -> None:
    merged = registry.merge_pip(
        [
            "[global]\ntimeout = 60\ncert = /etc/ca.pem\n",
            "[global]\ntimeout = 90\n[install]\nextra-index-url = https://a/\n",
        ],
        {"PIP_INDEX_URL": "https://index.example/simple", "PIP_NO_INPUT": "1", "HOME": "/root"},
    )
    assert merged["timeout"] == "90"
    assert merged["index-url"] == "https://index.example/simple"
    assert merged["extra-index-url"] == "https://a/"


def test_hosts_get_the_part_of_pips_settings_they_can_use() -> None:
    notes: Any = []
    merged = {
        "index-url": "https://user:word@index.example/simple",
        "extra-index-url": "file:///opt/wheels https://more.example/simple",
        "find-links": "/opt/wheels",
        "trusted-host": "index.example",
        "cert": "/etc/ca.pem",
        "client-cert": "/etc/me.pem",
    }
    assert registry.render_pip(merged, False, notes) == (
        "[global]\n"
        "index-url = https://user:word@index.example/simple\n"
        "extra-index-url =\n    https://more.example/simple\n"
        "trusted-host =\n    index.example\n"
        "cert = /etc/ssl/certs/ca-certificates.crt\n"
    )
    assert notes == ["pip's client-cert stays on this machine: lab hosts do without it."]


def test_no_pip_settings_no_file() -> None:
    assert registry.render_pip({"find-links": "/opt/wheels"}, False, []) == ""


def test_a_local_index_is_named() -> None:
    notes: Any = []
    assert registry.render_pip({"index-url": "file:///opt/index"}, False, notes) == ""
    assert "local to this machine" in notes[0]


def test_only_the_machines_own_authorities_are_extra() -> None:
    machine = f"# one\n{CERTIFICATE}\n# two\n{OTHER}\n{OTHER}\n"
    assert registry.extra_certificates(machine, CERTIFICATE.replace("\n", "\r\n")) == [OTHER]
    assert registry.extra_certificates(CERTIFICATE, CERTIFICATE + OTHER) == []


@pytest.mark.parametrize(
    ("main", "behind", "expected"),
    [
        ("nameserver 192.0.2.53\n", "", "nameserver 192.0.2.53\n"),
        (
            "# stub\nnameserver 127.0.0.53\nsearch x\n",
            "nameserver 192.0.2.1\nsearch lan\n",
            "nameserver 192.0.2.1\nsearch lan\n",
        ),
        ("nameserver ::1\nnameserver 192.0.2.2\n", "", "nameserver 192.0.2.2\n"),
        ("nameserver 127.0.0.1\n", "nameserver 127.0.0.1\n", ""),
        ("", "", ""),
    ],
)
def test_a_resolver_on_loopback_is_of_no_use_to_others(main: Any, behind: Any, expected: Any) -> None:
    assert registry.choose_resolv_conf(main, behind) == expected


def test_proxies_except_the_lab_itself() -> None:
    text = registry.render_environment(
        {"HTTPS_PROXY": "http://proxy.example:3128", "no_proxy": "lan"}, "10.77.0.0/24", []
    )
    assert "https_proxy=http://proxy.example:3128\n" in text
    assert "no_proxy=lan,localhost,127.0.0.1,10.77.0.0/24\n" in text
    assert "HTTPS_PROXY=" in text
    assert registry.render_environment({"no_proxy": "lan"}, "10.77.0.0/24", []) == ""


def test_everything_of_a_machine(tmp_path: Path) -> None:
    def put(name: Any, text: Any) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    put("etc/os-release", 'ID=debian\nVERSION_CODENAME="bookworm"\n')
    put(
        "etc/apt/sources.list.d/debian.sources",
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n",
    )
    put("etc/apt/auth.conf.d/site.conf", "machine mirror.example login a password b\n")
    put("etc/apt/trusted.gpg.d/site.asc", "key")
    put("etc/ssl/certs/ca-certificates.crt", CERTIFICATE)
    put("etc/resolv.conf", "nameserver 127.0.0.53\n")
    put("run/systemd/resolve/resolv.conf", "nameserver 192.0.2.53\n")
    settings = registry.read_settings(
        suite="trixie",
        subnet="10.77.0.0/24",
        apt_dump='Acquire::Retries "3";\n',
        environ={"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "https://u:p@index.example/simple"},
        root=tmp_path,
        home=tmp_path,
    )
    assert settings.sources == ["deb http://mirror.example/debian trixie main"]
    assert settings.files["etc/apt/auth.conf.d/site.conf"][1] == 0o600
    assert settings.files["etc/apt/apt.conf.d/90gpufleet-lab"][0] == b'Acquire::Retries "3";\n'
    # It carries a password.
    assert settings.files["etc/pip.conf"][1] == 0o600
    assert settings.keyrings == {"/etc/apt/trusted.gpg.d/site.asc": b"key"}
    assert settings.certificates == [CERTIFICATE]
    assert settings.resolv_conf == "nameserver 192.0.2.53\n"


def test_another_distribution_needs_sources_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    given: dict[str, Any] = {
        "suite": "bookworm",
        "subnet": "10.77.0.0/24",
        "apt_dump": "",
        "environ": {"PIP_CONFIG_FILE": "/dev/null"},
    }
    assert registry.read_settings(**given, root=tmp_path).sources == []
    line = "deb [trusted=yes] http://mirror.example/debian bookworm main"
    settings = registry.read_settings(**given, root=tmp_path, sources=[line], nameservers=["192.0.2.1"])
    assert settings.sources == [line]
    assert settings.resolv_conf == "nameserver 192.0.2.1\n"
