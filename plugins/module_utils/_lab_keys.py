# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything secret or pinned in a lab: SSH keys, known_hosts, a small CA and its certificates, the API key.

PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _lab

CA_DAYS = 3650
CERTIFICATE_DAYS = 397
RENEW_SECONDS = 30 * 86400
# Random words, one file each: the key engines demand and clients present, the password of Prometheus' web page.
SECRETS = ("api_key", "prometheus_password")


@dataclass
class Plan:
    """What is missing or outdated, and the sentences that say so."""

    files: dict[Path, tuple[bytes, int]] = field(default_factory=dict)
    directories: dict[Path, int] = field(default_factory=dict)
    ssh_keys: list[tuple[Path, str]] = field(default_factory=list)
    ca: bool = False
    certificates: list[_lab.HostSpec] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def host_key(lab: _lab.Lab, host: str) -> Path:
    return lab.hosts_dir / host / "ssh_host_ed25519_key"


def public_key(path: Path) -> str:
    """`type base64` of a public key file, without its comment; empty when there is none."""
    text = _lab.read_bytes(path.with_name(path.name + ".pub"))
    return " ".join(text.decode("ascii", errors="replace").split()[:2]) if text else ""


def render_known_hosts(lines: Sequence[tuple[_lab.HostSpec, str]]) -> str:
    return "".join(f"{host.name},{host.address} {key}\n" for host, key in lines)


def render_ssh_config(lab: _lab.Lab, hosts: Sequence[_lab.HostSpec]) -> str:
    """For people: `ssh -F this gw1`."""
    blocks = [f"Host {host.name}\n    HostName {host.address}\n" for host in sorted(hosts, key=lambda item: item.name)]
    common = (
        "Host *\n"
        "    User root\n"
        f"    IdentityFile {lab.state_dir}/ssh/id_ed25519\n"
        "    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {lab.state_dir}/known_hosts\n"
        "    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
        "    PreferredAuthentications publickey\n"
        "    UpdateHostKeys no\n"
        "    ConnectTimeout 5\n"
        "    LogLevel ERROR\n"
    )
    return "\n".join([*blocks, common])


def parse_alt_names(text: str) -> set[str]:
    """Names and addresses out of `openssl x509 -ext subjectAltName`."""
    return set(re.findall(r"(?:DNS|IP Address):([^,\s]+)", text))


class Keys:
    def __init__(self, lab: _lab.Lab, commands: _lab.Commands) -> None:
        self.lab = lab
        self.commands = commands
        self.pki = lab.state_dir / "pki"

    # -- reading

    def _pair_ok(self, path: Path) -> bool:
        """A private key whose public half lies beside it and belongs to it."""
        if _lab.read_bytes(path) is None or not public_key(path):
            return False
        rc, out, _err = self.commands.try_("ssh-keygen", "-y", "-P", "", "-f", str(path))
        return rc == 0 and " ".join(out.split()[:2]) == public_key(path)

    def _certificate_note(self, name: str, names: set[str], signed: bool) -> str:
        """Why a certificate must be made (again); empty when it is good."""
        certificate, key = self.pki / f"{name}.crt", self.pki / f"{name}.key"
        if _lab.read_bytes(certificate) is None or _lab.read_bytes(key) is None:
            return "missing"
        rc, public, _err = self.commands.try_("openssl", "pkey", "-in", str(key), "-pubout")
        if rc != 0:
            return "its key cannot be read"
        show = ("openssl", "x509", "-in", str(certificate), "-noout")
        rc, out, _err = self.commands.try_(*show, "-pubkey", "-checkend", str(RENEW_SECONDS), "-ext", "subjectAltName")
        if rc != 0:
            return "expires within 30 days, or cannot be read"
        if public.strip() not in out:
            return "does not belong to its key"
        if names and parse_alt_names(out) != names:
            return "was made for other names or addresses"
        if signed:
            rc, _out, _err = self.commands.try_(
                "openssl", "verify", "-CAfile", str(self.pki / "ca.crt"), str(certificate)
            )
            if rc != 0:
                return "was not signed by the lab's CA"
        return ""

    def plan(self, hosts: Sequence[_lab.HostSpec], certificates: Sequence[str]) -> Plan:
        plan = Plan()
        state = self.lab.state_dir
        wanted = {
            state: 0o755,
            state / "ssh": 0o700,
            self.pki: 0o755,
            state / "secrets": 0o700,
            self.lab.hosts_dir: 0o700,
            **{self.lab.hosts_dir / host.name: 0o700 for host in hosts},
        }
        for path, mode in wanted.items():
            if not path.is_dir() or (path.stat().st_mode & 0o7777) != mode:
                plan.directories[path] = mode
        operator = state / "ssh" / "id_ed25519"
        if not self._pair_ok(operator):
            plan.ssh_keys.append((operator, f"operator of lab {self.lab.name}"))
            plan.notes.append("operator key")
        for host in hosts:
            if not self._pair_ok(host_key(self.lab, host.name)):
                plan.ssh_keys.append((host_key(self.lab, host.name), host.name))
                plan.notes.append(f"host key of {host.name}")
        if certificates:
            note = self._certificate_note("ca", set(), signed=False)
            if note:
                plan.ca = True
                plan.notes.append(f"CA: {note}")
        for host in hosts:
            if host.name not in certificates:
                continue
            note = "the CA is new" if plan.ca else self._certificate_note(host.name, {host.name, host.address}, True)
            if note:
                plan.certificates.append(host)
                plan.notes.append(f"certificate of {host.name}: {note}")
        for name in SECRETS:
            path = state / "secrets" / name
            content = _lab.read_bytes(path)
            if not content or not content.strip():
                plan.files[path] = (secrets.token_hex(24).encode(), 0o600)
                plan.notes.append(f"secret {name}")
            elif _lab.needs_write(path, content, 0o600):
                plan.files[path] = (content, 0o600)
        return plan

    def texts(self, hosts: Sequence[_lab.HostSpec]) -> dict[Path, str]:
        """The files made from keys; the part of a host whose key is not made yet says so."""
        known = [(host, public_key(host_key(self.lab, host.name)) or "(a new key)") for host in hosts]
        return {
            self.lab.state_dir / "known_hosts": render_known_hosts(known),
            self.lab.state_dir / "ssh" / "config": render_ssh_config(self.lab, hosts),
        }

    # -- changing

    def _make_ssh_key(self, path: Path, comment: str) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as directory:
            new = Path(directory) / "key"
            self.commands("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(new))
            # The public half first: a private key alone would be taken for a pair of old and new.
            public = new.with_name("key.pub")
            public.replace(path.with_name(path.name + ".pub"))
            new.replace(path)

    def _make_ca(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.pki, prefix=".new-") as directory:
            key, certificate = Path(directory) / "ca.key", Path(directory) / "ca.crt"
            self.commands(
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                *("-sha256", "-days", str(CA_DAYS), "-subj", f"/O=gpufleet lab/CN=CA of lab {self.lab.name}"),
                *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
                *("-keyout", str(key), "-out", str(certificate)),
            )
            self._install(key, certificate)

    def _make_certificate(self, host: _lab.HostSpec) -> None:
        kind = "IP" if _is_address(host.address) else "DNS"
        with tempfile.TemporaryDirectory(dir=self.pki, prefix=".new-") as directory:
            base = Path(directory)
            key, request, certificate = base / f"{host.name}.key", base / "request", base / f"{host.name}.crt"
            self.commands(
                *("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
                *("-sha256", "-subj", f"/O=gpufleet lab/CN={host.name}", "-keyout", str(key), "-out", str(request)),
            )
            extensions = base / "extensions"
            extensions.write_text(
                f"subjectAltName=DNS:{host.name},{kind}:{host.address}\n"
                "basicConstraints=critical,CA:FALSE\n"
                "keyUsage=critical,digitalSignature\n"
                "extendedKeyUsage=serverAuth\n"
                "authorityKeyIdentifier=keyid\n",
                encoding="ascii",
            )
            self.commands(
                *("openssl", "x509", "-req", "-in", str(request), "-sha256", "-days", str(CERTIFICATE_DAYS)),
                *("-CA", str(self.pki / "ca.crt"), "-CAkey", str(self.pki / "ca.key")),
                *("-set_serial", f"0x{secrets.token_hex(16)}", "-extfile", str(extensions), "-out", str(certificate)),
            )
            self._install(key, certificate)

    def _install(self, key: Path, certificate: Path) -> None:
        key.chmod(0o600)
        certificate.chmod(0o644)
        key.replace(self.pki / key.name)
        certificate.replace(self.pki / certificate.name)

    def apply(self, plan: Plan) -> None:
        for path, mode in plan.directories.items():
            _lab.ensure_dir(path, mode)
        for place in (self.lab.state_dir / "ssh", self.pki, *self.lab.hosts_dir.iterdir()):
            # What a killed run was making.
            for left in place.glob(".new-*"):
                shutil.rmtree(left, ignore_errors=True)
        for path, comment in plan.ssh_keys:
            self._make_ssh_key(path, comment)
        for path, (content, mode) in plan.files.items():
            _lab.write_file(path, content, mode)
        if plan.ca:
            self._make_ca()
        for host in plan.certificates:
            self._make_certificate(host)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
