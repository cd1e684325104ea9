# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bcrypt hash of a password, the same in every run."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import re
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
HASH = re.compile(r"\$2b\$\d\d\$[./A-Za-z0-9]{53}")
LONGEST = 72
# Larger than struct crypt_data of any libcrypt.
CRYPT_DATA_SIZE = 262144


def salt_of(seed: str) -> str:
    """Twenty-two characters of bcrypt's alphabet that depend on nothing but the seed."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest(), "big")
    return "".join(ALPHABET[(number >> 6 * place) & 63] for place in range(22))


def crypt(password: bytes, setting: bytes) -> str:
    """What libcrypt makes of the password."""
    found = ctypes.util.find_library("crypt")
    try:
        library = ctypes.CDLL(found or "libcrypt.so.1")
        function = library.crypt_r
    except (OSError, AttributeError) as exc:
        raise AnsibleFilterError(
            f"bcrypt_hash: the controller has no usable libcrypt ({exc}); put a hash of 'htpasswd -nBC 10' there"
        ) from exc
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p]
    result = function(password, setting, ctypes.create_string_buffer(CRYPT_DATA_SIZE))
    return (result or b"").decode("ascii", "replace")


def bcrypt_hash(value: Any, seed: Any, rounds: int = 10) -> str:
    """Hash the password."""
    if not isinstance(value, str) or not value:
        raise AnsibleFilterError("bcrypt_hash: expected a password that is not empty")
    if not isinstance(seed, str) or not seed:
        raise AnsibleFilterError("bcrypt_hash: expected a seed that is not empty")
    password = value.encode()
    if len(password) > LONGEST or b"\0" in password:
        raise AnsibleFilterError(
            f"bcrypt_hash: expected a password of at most {LONGEST} bytes without a zero byte, found {len(password)} bytes"
        )
    if not isinstance(rounds, int) or not 4 <= rounds <= 16:
        raise AnsibleFilterError(f"bcrypt_hash: expected rounds from 4 to 16, found {rounds!r}")
    result = crypt(password, f"$2b${rounds:02d}${salt_of(seed)}".encode())
    if not HASH.fullmatch(result):
        raise AnsibleFilterError(
            "bcrypt_hash: the controller's libcrypt cannot do bcrypt; put a hash of 'htpasswd -nBC 10' there"
        )
    return result


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filter functions by name."""
        return {"bcrypt_hash": bcrypt_hash}
