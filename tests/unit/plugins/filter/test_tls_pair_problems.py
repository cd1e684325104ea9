# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""A certificate and a key are checked before they are sent anywhere."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ansible_collections.gpufleet.deepseek.plugins.filter.tls_pair_problems import tls_pair_problems


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two self-signed pairs and an encrypted key."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "openssl: expected in PATH, found nowhere"
    where = tmp_path_factory.mktemp("pki")

    def run(*words: str) -> None:
        subprocess.run([openssl, *words], cwd=where, check=True, capture_output=True)

    for name in ("a", "b"):
        run(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt"),
        )
    run("pkey", "-in", "a.key", "-aes256", "-passout", "pass:secret", "-out", "locked.key")
    (where / "text").write_text("no certificate\n")
    return where


def test_a_pair_is_fine(pki: Path) -> None:
    assert tls_pair_problems(str(pki / "a.crt"), str(pki / "a.key")) == []


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("a.crt", "b.key", "does not belong to the certificate"),
        ("a.crt", "missing", "missing does not exist"),
        ("missing", "a.key", "missing does not exist"),
        ("text", "a.key", "no PEM block BEGIN CERTIFICATE"),
        ("a.crt", "text", "private key cannot be read"),
        ("a.crt", "locked.key", "protected by a passphrase"),
    ],
)
def test_problems_name_the_file(pki: Path, certificate: str, key: str, words: str) -> None:
    problems = tls_pair_problems(str(pki / certificate), str(pki / key))
    assert len(problems) == 1
    assert words in problems[0]


def test_nothing_named() -> None:
    assert tls_pair_problems("", None) == ["no certificate is named", "no key is named"]
