# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""What a server certificate, its key and its authority say, and whether they belong together. PRIVATE to the collection.

Runs on the controller, where ansible-core brings the cryptography library along.
"""

from __future__ import annotations

import datetime
import typing as t

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
except ImportError:  # documentation and sanity tests load filters where Ansible's own requirements are not
    HAS_CRYPTOGRAPHY = False
else:
    HAS_CRYPTOGRAPHY = True


def _moment(certificate: x509.Certificate, which: str) -> datetime.datetime:
    """Start or end of validity, in UTC, from old and new versions of the library."""
    aware = getattr(certificate, f"not_valid_{which}_utc", None)
    if isinstance(aware, datetime.datetime):
        return aware
    naive: datetime.datetime = getattr(certificate, f"not_valid_{which}")
    return naive.replace(tzinfo=datetime.timezone.utc)


def _public_bytes(key: t.Any) -> bytes:
    data: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return data


def _names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """DNS names and IP addresses of the certificate."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    dns = [str(name) for name in extension.get_values_for_type(x509.DNSName)]
    return dns, [str(address) for address in extension.get_values_for_type(x509.IPAddress)]


def _covers(name: str, dns: list[str], addresses: list[str]) -> bool:
    """Whether a certificate with these names is good for a host name (a wildcard stands for one label) or an address."""
    name = name.lower()
    known = {entry.lower() for entry in dns}
    return name in known or name in addresses or "*." + name.partition(".")[2] in known


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether issuer's key signed certificate. Before version 40 of the library: whether the names say so."""
    verify = getattr(certificate, "verify_directly_issued_by", None)
    if verify is None:
        return certificate.issuer == issuer.subject
    try:
        verify(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _load_all(pem: str) -> list[x509.Certificate]:
    blocks: list[list[str]] = []
    for line in pem.splitlines():
        if line.strip() == "-----BEGIN CERTIFICATE-----":
            blocks.append([])
        if blocks:
            blocks[-1].append(line)
    return [x509.load_pem_x509_certificate("\n".join([*block, ""]).encode()) for block in blocks]


def _load(pem: str, what: str, problems: list[str]) -> list[x509.Certificate]:
    try:
        certificates = _load_all(pem)
    except ValueError:
        problems.append(f"the {what} cannot be read: a PEM block is damaged")
        return []
    if not certificates:
        problems.append(f"the {what} has no PEM block BEGIN CERTIFICATE")
    return certificates


def _key_problem(key_pem: str, leaf: x509.Certificate) -> str:
    try:
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
    except TypeError:
        return "the private key is protected by a passphrase; a server needs one without"
    except Exception:  # the library's classes for unreadable keys differ by version
        return "the private key cannot be read; expected one PEM block PRIVATE KEY"
    if _public_bytes(key.public_key()) != _public_bytes(leaf.public_key()):
        return f"the private key does not belong to the certificate of {leaf.subject.rfc4514_string() or 'no subject'}"
    return ""


def certificate_info(
    certificate_pem: str,
    key_pem: str = "",
    ca_pem: str = "",
    names: t.Sequence[str] = (),
    now: datetime.datetime | None = None,
) -> dict[str, t.Any]:
    """Describe a certificate file and say what is wrong with it.

    :arg certificate_pem: the server's certificate, then intermediates.
    :arg key_pem: the private key; empty: not checked.
    :arg ca_pem: the authorities that clients trust; empty: the chain's end is not checked.
    :arg names: host names and addresses by which clients call the server.
    :arg now: moment of the check; None is this moment.
    :raises RuntimeError: the cryptography library is not there, which ansible-core requires.
    """
    if not HAS_CRYPTOGRAPHY:
        raise RuntimeError("certificate_info: expected the Python library cryptography on the controller, found none")
    now = now or datetime.datetime.now(datetime.timezone.utc)
    problems: list[str] = []
    chain = _load(certificate_pem, "certificate file", problems)
    authorities = _load(ca_pem, "file of certificate authorities", problems) if ca_pem else []
    if not chain:
        return {"problems": problems}
    leaf = chain[0]
    begin, end = _moment(leaf, "before"), _moment(leaf, "after")
    if now < begin:
        problems.append(f"the certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC")
    if now > end:
        problems.append(f"the certificate expired on {end:%Y-%m-%d %H:%M} UTC")
    if key_pem and (problem := _key_problem(key_pem, leaf)):
        problems.append(problem)
    for number, (certificate, issuer) in enumerate(zip(chain, chain[1:]), start=1):
        if not _issued_by(certificate, issuer):
            problems.append(
                f"certificate {number} of the file is not signed by certificate {number + 1}: "
                "expected the server's certificate first, then each one's issuer"
            )
    self_signed = leaf.subject == leaf.issuer and _issued_by(leaf, leaf)
    if authorities and not any(chain[-1] == ca or _issued_by(chain[-1], ca) for ca in authorities):
        problems.append(
            f"no authority of the given file signed the certificate of {chain[-1].subject.rfc4514_string() or 'no subject'}"
            f" (its issuer is {chain[-1].issuer.rfc4514_string()})"
        )
    dns, addresses = _names(leaf)
    problems += [
        f"the certificate is for {', '.join([*dns, *addresses]) or 'no name'}, and not for {name}"
        for name in names
        if not _covers(name, dns, addresses)
    ]
    return {
        "subject": leaf.subject.rfc4514_string(),
        "issuer": leaf.issuer.rfc4514_string(),
        "dns_names": dns,
        "ip_addresses": addresses,
        "not_before": begin.isoformat(),
        "not_after": end.isoformat(),
        "days_left": (end - now).days,
        "self_signed": self_signed,
        "chain_length": len(chain),
        "problems": problems,
    }
