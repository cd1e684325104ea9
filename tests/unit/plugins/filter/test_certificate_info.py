# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import datetime
import ipaddress
import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ansible_collections.gpufleet.deepseek.plugins.filter.certificate_info import certificate_info
from ansible_collections.gpufleet.deepseek.plugins.plugin_utils._certificate import certificate_info as describe

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


class Pair:
    """A certificate and its key."""

    def __init__(self, name: str, issuer: Pair | None = None, days: int = 90) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName(
            [
                x509.DNSName("llm.example.com"),
                x509.DNSName("*.gw.example.com"),
                x509.IPAddress(ipaddress.ip_address("192.0.2.10")),
            ]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name if issuer else self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 10 * DAY)
            .not_valid_after(NOW + days * DAY)
            .add_extension(alternative, critical=False)
        )
        self.certificate = builder.sign((issuer or self).key, hashes.SHA256())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def key_pem(self, passphrase: bytes = b"") -> str:
        protection: t.Any = (
            serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        )
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
        ).decode()


ROOT = Pair("root")
MIDDLE = Pair("middle", ROOT)
SERVER = Pair("gw1", MIDDLE)
OTHER = Pair("other")


def found(certificate: str, key: str = "", ca: str = "", now: datetime.datetime = NOW) -> list[str]:
    result: list[str] = describe(certificate, key, ca, (), now)["problems"]
    return result


def test_a_good_pair_and_chain() -> None:
    info = describe(SERVER.pem + MIDDLE.pem, SERVER.key_pem(), ROOT.pem, ["LLM.example.com", "192.0.2.10"], NOW)
    assert info["problems"] == []
    assert info["subject"] == "CN=gw1"
    assert info["issuer"] == "CN=middle"
    assert info["dns_names"] == ["llm.example.com", "*.gw.example.com"]
    assert info["ip_addresses"] == ["192.0.2.10"]
    assert info["days_left"] == 90
    assert info["not_after"] == "2026-08-30T00:00:00+00:00"
    assert (info["self_signed"], info["chain_length"]) == (False, 2)


def test_text_between_the_blocks_is_allowed() -> None:
    assert found("subject: gw1\n" + SERVER.pem + "\nissuer: middle\n" + MIDDLE.pem, SERVER.key_pem()) == []


def test_self_signed() -> None:
    assert describe(OTHER.pem, OTHER.key_pem(), "", (), NOW)["self_signed"] is True
    assert found(OTHER.pem, ca=OTHER.pem) == []


def test_the_key_of_another_certificate() -> None:
    assert found(SERVER.pem, OTHER.key_pem()) == ["the private key does not belong to the certificate of CN=gw1"]


@pytest.mark.parametrize("shift", [-11, 91])
def test_outside_its_time(shift: int) -> None:
    (sentence,) = found(SERVER.pem, now=NOW + shift * DAY)
    assert ("not valid before" if shift < 0 else "expired on 2026-08-30") in sentence


def test_a_wrong_order_of_the_chain() -> None:
    assert "certificate 1 of the file is not signed by certificate 2" in found(MIDDLE.pem + SERVER.pem)[0]


def test_an_authority_that_did_not_sign() -> None:
    (sentence,) = found(SERVER.pem + MIDDLE.pem, ca=OTHER.pem)
    assert "no authority of the given file signed the certificate of CN=middle" in sentence


@pytest.mark.parametrize("name", ["a.gw.example.com", "*.gw.example.com", "192.0.2.10"])
def test_names_that_it_is_for(name: str) -> None:
    assert describe(SERVER.pem, names=[name], now=NOW)["problems"] == []


@pytest.mark.parametrize("name", ["gw.example.com", "a.b.gw.example.com", "example.com", "192.0.2.11"])
def test_names_that_it_is_not_for(name: str) -> None:
    assert describe(SERVER.pem, names=[name], now=NOW)["problems"] == [
        f"the certificate is for llm.example.com, *.gw.example.com, 192.0.2.10, and not for {name}"
    ]


def test_unreadable_input_never_shows_the_key() -> None:
    secret = SERVER.key_pem().replace("PRIVATE KEY", "PRIVATE THING")
    (sentence,) = found(SERVER.pem, secret)
    assert "the private key cannot be read" in sentence
    assert not any(line in sentence for line in secret.splitlines())
    assert "protected by a passphrase" in found(SERVER.pem, SERVER.key_pem(b"secret"))[0]
    assert found("nothing") == ["the certificate file has no PEM block BEGIN CERTIFICATE"]
    damaged = SERVER.pem.replace(SERVER.pem.splitlines()[3], "!")
    assert found(damaged) == ["the certificate file cannot be read: a PEM block is damaged"]
    assert found(SERVER.pem, ca="x") == ["the file of certificate authorities has no PEM block BEGIN CERTIFICATE"]


def test_the_filter() -> None:
    assert certificate_info(SERVER.pem)["subject"] == "CN=gw1"
    with pytest.raises(AnsibleFilterError, match="key: expected text in PEM form"):
        certificate_info(SERVER.pem, key=None)
