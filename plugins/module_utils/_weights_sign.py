# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Sign a manifest and check its signature, by OpenSSF model signing with a key.

What is signed is a directory that holds the manifest and nothing else. The manifest binds every byte of the set, so that 700 GB are signed in a moment.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import tempfile
import typing as t

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights import WeightsError


def _library(name: str) -> t.Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise WeightsError(f"model signing is not installed beside this program: {exc}") from None


def _as_file(content: bytes) -> int:
    """A file in memory, for a library that wants a path. It has no name that another process could open."""
    handle = os.memfd_create("key", os.MFD_CLOEXEC)
    os.write(handle, content)
    return handle


def sign(manifest: merkle.Manifest, private_key: str) -> bytes:
    """The signature of a manifest. The key is an elliptic curve key in PEM, without a password."""
    signing = _library("model_signing.signing")
    handle = _as_file(private_key.encode("utf-8"))
    try:
        with tempfile.TemporaryDirectory(prefix="gpufleet-sign-") as made:
            folder = pathlib.Path(made, "manifest")
            folder.mkdir()
            name = f"{manifest.root()}.merkle.json"
            (folder / name).write_text(merkle.manifest_text(manifest), encoding="utf-8")
            target = pathlib.Path(made, "signature")
            try:
                config = signing.Config().use_elliptic_key_signer(private_key=f"/proc/self/fd/{handle}")
                config.sign(folder, target)
            except Exception as exc:
                # The text of a library about a key may hold a part of it.
                raise WeightsError(
                    "model_store_signing_key: expected a private key in PEM, on the curve P-256, P-384 or P-521 and without a password; "
                    f"it cannot be used ({type(exc).__name__})"
                ) from None
            return target.read_bytes()
    finally:
        os.close(handle)


def check(manifest: merkle.Manifest, signature: bytes, public_key: str) -> None:
    """Refuse a manifest that the owner of the key did not sign."""
    verifying = _library("model_signing.verifying")
    handle = _as_file(public_key.encode("utf-8"))
    root = manifest.root()
    try:
        with tempfile.TemporaryDirectory(prefix="gpufleet-sign-") as made:
            folder = pathlib.Path(made, "manifest")
            folder.mkdir()
            (folder / f"{root}.merkle.json").write_text(merkle.manifest_text(manifest), encoding="utf-8")
            given = pathlib.Path(made, "signature")
            given.write_bytes(signature)
            try:
                config = verifying.Config().use_elliptic_key_verifier(public_key=f"/proc/self/fd/{handle}")
            except Exception as exc:
                raise WeightsError(
                    f"model_store_public_key: expected a public key in PEM, on the curve P-256, P-384 or P-521, found something else ({exc})"
                ) from None
            try:
                config.verify(folder, given)
            except Exception as exc:
                lines = str(exc).strip().splitlines()
                raise WeightsError(
                    f"the signature of {root} is not one of this manifest by model_store_public_key: "
                    f"{lines[0] if lines else type(exc).__name__}"
                ) from None
    finally:
        os.close(handle)
