# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Hashes that servers accept and that stay the same."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.deepseek.plugins.filter import bcrypt_hash as module

bcrypt_hash = module.bcrypt_hash


def test_the_same_in_every_run() -> None:
    # Written down once, so that a change of the salt or of the algorithm shows: it would change every installation.
    assert bcrypt_hash("secret", "x/operator") == "$2b$10$NXyztDoHceW47Z8cm4FNiuEDCJ0naUuKo1MW7nhi17tAlvnitNN1a"


def test_known_answer_of_libcrypt() -> None:
    setting = b"$2b$10$abcdefghijklmnopqrstuu"
    assert module.crypt(b"secret", setting) == "$2b$10$abcdefghijklmnopqrstuuqflPDzB6gcMhKa1rZqKiun2YGL5sa2u"


def test_differs_by_password_seed_and_rounds() -> None:
    hashes = {
        bcrypt_hash("a", "s", rounds=4),
        bcrypt_hash("b", "s", rounds=4),
        bcrypt_hash("a", "t", rounds=4),
        bcrypt_hash("a", "s", rounds=5),
    }
    assert len(hashes) == 4
    assert all(module.HASH.fullmatch(text) for text in hashes)


def test_a_server_finds_the_password_right() -> None:
    made = bcrypt_hash("s3cret", "lab", rounds=4)
    assert module.crypt(b"s3cret", made.encode()) == made
    assert module.crypt(b"S3cret", made.encode()) != made


@pytest.mark.parametrize(
    ("value", "seed", "rounds"),
    [
        ("", "s", 10),
        (None, "s", 10),
        ("p", "", 10),
        ("p", None, 10),
        ("p" * 73, "s", 10),
        ("a\0b", "s", 10),
        ("p", "s", 3),
        ("p", "s", "x"),
    ],
)
def test_wrong_input_is_named(value: Any, seed: Any, rounds: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="bcrypt_hash: expected"):
        bcrypt_hash(value, seed, rounds)


def test_no_libcrypt_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda name: "libnothing-of-this-name.so")
    with pytest.raises(AnsibleFilterError, match="htpasswd"):
        bcrypt_hash("p", "s")


def test_a_libcrypt_without_bcrypt_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "crypt", lambda password, setting: "*0")
    with pytest.raises(AnsibleFilterError, match="htpasswd"):
        bcrypt_hash("p", "s")
