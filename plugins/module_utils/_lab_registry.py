# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's settings for package registries, read so that lab hosts can use the same ones.

Nothing here knows a mirror or an index by name: what the machine uses, its lab hosts use.
PRIVATE to the collection: no user outside of it, may change in any release.
"""

from __future__ import annotations

import configparser
import hashlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# Suites of a Debian release, by what follows its codename.
_POCKETS = ("", "-updates", "-security", "/updates", "-backports")
_REMOTE = ("http", "https", "ftp")

_APT_KEYS = (
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::ftp::",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Max-ValidTime",
    "Acquire::Min-ValidTime",
    "Acquire::Max-FutureTime",
    "Acquire::Retries",
    "Acquire::ForceIPv4",
    "Acquire::ForceIPv6",
    "Acquire::By-Hash",
    "Acquire::AllowInsecureRepositories",
    "Acquire::AllowWeakRepositories",
    "Acquire::AllowDowngradeToInsecureRepositories",
    "APT::Get::AllowUnauthenticated",
)
_APT_DEFAULTS = {
    "Acquire::AllowInsecureRepositories": "0",
    "Acquire::AllowWeakRepositories": "0",
    "Acquire::AllowDowngradeToInsecureRepositories": "0",
}

_PIP_SINGLE = ("index-url", "proxy", "timeout", "retries")
_PIP_LISTS = ("extra-index-url", "trusted-host", "find-links")
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class AptSource:
    """One `deb` line: one URI, one suite."""

    uri: str
    suite: str
    components: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    key: str = ""  # an OpenPGP key written into the source itself

    def option(self, name: str) -> str:
        return dict(self.options).get(name, "")

    def line(self) -> str:
        text = " ".join(f"{key}={value}" for key, value in self.options)
        parts = ["deb", f"[{text}]" if text else "", self.uri, self.suite, *self.components]
        return " ".join(part for part in parts if part)


@dataclass
class Settings:
    """What lab hosts get of the machine's settings."""

    sources: list[str] = field(default_factory=list)
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    keyrings: dict[str, bytes] = field(default_factory=dict)
    certificates: list[str] = field(default_factory=list)
    resolv_conf: str = ""
    warnings: list[str] = field(default_factory=list)


# -- apt sources -----------------------------------------------------------------------------------------------------


def parse_one_line(text: str) -> list[AptSource]:
    """Entries of a `sources.list`."""
    found = []
    for raw in text.splitlines():
        line = raw.partition("#")[0].strip()
        match = re.match(r"^deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*(.*)$", line)
        if match is None:
            continue
        options = []
        for item in (match.group(1) or "").split():
            name, sign, value = item.partition("=")
            if sign == "=" and value:
                options.append((name.lower(), value))
        found.append(AptSource(match.group(2), match.group(3), tuple(match.group(4).split()), tuple(options)))
    return found


def _paragraphs(text: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    current: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if current:
                found.append(current)
            current, name = {}, ""
        elif line[0] in " \t":
            if name:
                current[name] += "\n" + line.strip()
        else:
            name, _colon, value = line.partition(":")
            name = name.strip().lower()
            current[name] = value.strip()
    return found


def parse_deb822(text: str) -> list[AptSource]:
    """Entries of a `.sources` file, one for every URI and suite."""
    found: list[AptSource] = []
    for item in _paragraphs(text):
        if "deb" not in item.get("types", "").split() or item.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        options = []
        key = ""
        for name, option in (
            ("architectures", "arch"),
            ("trusted", "trusted"),
            ("check-valid-until", "check-valid-until"),
            ("check-date", "check-date"),
        ):
            if item.get(name):
                options.append((option, ",".join(item[name].split())))
        signed_by = item.get("signed-by", "")
        if "BEGIN PGP" in signed_by:
            # In a deb822 field a single dot stands for an empty line.
            lines = ["" if line == "." else line for line in signed_by.strip().splitlines()]
            key = "\n".join(lines) + "\n"
        elif signed_by:
            options.append(("signed-by", ",".join(signed_by.split())))
        found.extend(
            AptSource(uri, suite, tuple(item.get("components", "").split()), tuple(options), key)
            for uri in item.get("uris", "").split()
            for suite in item.get("suites", "").split()
        )
    return found


def read_apt_sources(etc_apt: Path) -> list[AptSource]:
    found: list[AptSource] = []
    main = etc_apt / "sources.list"
    if main.is_file():
        found.extend(parse_one_line(main.read_text(encoding="utf-8", errors="replace")))
    parts = etc_apt / "sources.list.d"
    for path in sorted(parts.iterdir()) if parts.is_dir() else []:
        if path.suffix == ".list":
            found.extend(parse_one_line(path.read_text(encoding="utf-8", errors="replace")))
        elif path.suffix == ".sources":
            found.extend(parse_deb822(path.read_text(encoding="utf-8", errors="replace")))
    return found


def _mirror_list(uri: str) -> list[str]:
    """The mirrors in the file a `mirror+file:` URI names (cloud images of Debian use one)."""
    path = Path("/" + uri.partition(":")[2].lstrip("/"))
    if not path.is_file():
        return []
    lines = (line.partition("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines())
    return [words[0] for words in lines if words]


def select_sources(
    found: Sequence[AptSource], codename: str, suite: str, warnings: list[str] | None = None
) -> list[AptSource]:
    """The entries that belong to the machine's own Debian release, moved to the wanted release.

    Third-party repositories (other suites, no C(main)) are left out.
    """
    notes = warnings if warnings is not None else []
    chosen: list[AptSource] = []
    for item in found:
        release = "stable" if item.suite.startswith("stable") else codename
        pocket = item.suite[len(release) :] if item.suite.startswith(release) else None
        if pocket not in _POCKETS or "main" not in item.components:
            continue
        uris = [item.uri]
        if item.uri.startswith("mirror+file:"):
            uris = _mirror_list(item.uri)[:1]
        for uri in uris:
            if urlsplit(uri).scheme not in _REMOTE:
                notes.append(f"The apt source {uri} {item.suite} is local to this machine: lab hosts do without it.")
                continue
            new = AptSource(uri, suite + pocket, item.components, item.options, item.key)
            if new not in chosen:
                chosen.append(new)
    return chosen


def resolve_keys(chosen: Sequence[AptSource], settings: Settings, key_dir: Path) -> list[AptSource]:
    """Turn keys written inside sources into files, and collect every keyring a source names."""
    result = []
    for item in chosen:
        options = dict(item.options)
        if item.key:
            digest = hashlib.sha256(item.key.encode()).hexdigest()[:16]
            path = key_dir / f"{digest}.asc"
            settings.keyrings[str(path)] = item.key.encode()
            options["signed-by"] = str(path)
        for name in options.get("signed-by", "").split(","):
            path = Path(name)
            if name.startswith("/") and path.is_file():
                settings.keyrings.setdefault(name, path.read_bytes())
        result.append(AptSource(item.uri, item.suite, item.components, tuple(options.items())))
    return result


# -- apt configuration -----------------------------------------------------------------------------------------------


def select_apt_conf(dump: str, warnings: list[str]) -> tuple[str, list[str]]:
    """Of `apt-config dump`, what concerns fetching; and the CA files it names."""
    lines, ca_files = [], []
    for line in dump.splitlines():
        match = re.match(r'^(\S+) "(.*)";$', line)
        if match is None:
            continue
        key, value = match.groups()
        plain = key.rstrip(":")
        if value == "" or not key.startswith(_APT_KEYS) or _APT_DEFAULTS.get(plain) == value:
            continue
        if plain.endswith("::CaInfo"):
            ca_files.append(value)
            value = CA_BUNDLE
        elif plain.endswith(("::Proxy-Auto-Detect", "::ProxyAutoDetect", "::SslCert", "::SslKey", "::CaPath")):
            warnings.append(f"The apt setting {plain} names a file of this machine: lab hosts do without it.")
            continue
        elif plain.endswith("::Proxy") and is_loopback(value):
            warnings.append(f"The apt proxy {value} is a loopback address, which lab hosts cannot reach.")
        lines.append(f'{key} "{value}";')
    return "".join(f"{line}\n" for line in lines), ca_files


def is_loopback(url: str) -> bool:
    host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# -- pip -------------------------------------------------------------------------------------------------------------


def pip_files(environ: Mapping[str, str], home: Path) -> list[Path]:
    """Where pip looks, the weakest first."""
    found = [Path(part) / "pip" / "pip.conf" for part in environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if part]
    found.reverse()
    found.append(Path("/etc/pip.conf"))
    found.append(home / ".pip" / "pip.conf")
    found.append(Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf")
    chosen = environ.get("PIP_CONFIG_FILE", "")
    if chosen == "/dev/null":
        return []
    if chosen:
        found.append(Path(chosen))
    return found


def merge_pip(texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings of files and environment, as pip would see them for an install."""
    merged: dict[str, str] = {}
    for text in texts:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(text)
        except configparser.Error:
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                merged.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            merged[name[4:].lower().replace("_", "-")] = value
    return merged


def render_pip(merged: Mapping[str, str], own_certificates: bool, warnings: list[str]) -> str:
    """A `pip.conf` for a lab host: what it can use of the machine's settings. Empty when there is nothing to say."""
    lines = []
    for key in _PIP_SINGLE:
        value = merged.get(key, "")
        if not value:
            continue
        if key == "index-url" and urlsplit(value).scheme not in _REMOTE:
            warnings.append(f"pip's index-url {value} is local to this machine: lab hosts use pip's default index.")
            continue
        if key == "proxy" and is_loopback(value):
            warnings.append(f"pip's proxy {value} is a loopback address, which lab hosts cannot reach.")
        lines.append(f"{key} = {value}")
    for key in _PIP_LISTS:
        values = merged.get(key, "").split()
        if key != "trusted-host":
            values = [value for value in values if urlsplit(value).scheme in _REMOTE]
        if values:
            lines.append(f"{key} =" + "".join(f"\n    {value}" for value in values))
    if merged.get("cert") or own_certificates:
        lines.append(f"cert = {CA_BUNDLE}")
    if merged.get("client-cert"):
        warnings.append("pip's client-cert stays on this machine: lab hosts do without it.")
    return "[global]\n" + "".join(f"{line}\n" for line in lines) if lines else ""


# -- certificates ----------------------------------------------------------------------------------------------------

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


def pem_blocks(text: str) -> list[str]:
    return [re.sub(r"\s*\n\s*", "\n", block).strip() for block in _PEM.findall(text)]


def extra_certificates(machine: str, image: str) -> list[str]:
    """The certificates the machine trusts and an image does not."""
    known = set(pem_blocks(image))
    extra = []
    for block in pem_blocks(machine):
        if block not in known:
            known.add(block)
            extra.append(block)
    return extra


# -- names and proxies -----------------------------------------------------------------------------------------------


def choose_resolv_conf(main: str, behind: str) -> str:
    """A resolv.conf that works elsewhere: not the machine's own stub on a loopback address.

    Empty when neither text names a server a host could reach.
    """
    for text in (main, behind):
        kept, usable = [], False
        for line in text.splitlines():
            words = line.split()
            if not words or words[0][0] in "#;":
                continue
            if words[0] == "nameserver" and len(words) > 1:
                if is_loopback(words[1]) or words[1] == "::1":
                    continue
                usable = True
            if words[0] in ("nameserver", "search", "domain", "options"):
                kept.append(" ".join(words))
        if usable:
            return "".join(f"{line}\n" for line in kept)
    return ""


def render_environment(environ: Mapping[str, str], subnet: str, warnings: list[str]) -> str:
    """`/etc/environment` of a lab host: the machine's proxies, the lab itself excepted."""
    values: dict[str, str] = {}
    for name in _PROXY_VARIABLES:
        value = environ.get(name) or environ.get(name.upper()) or ""
        if value:
            values[name] = value
    if not any(name != "no_proxy" for name in values):
        return ""
    for name, value in values.items():
        if name != "no_proxy" and is_loopback(value):
            warnings.append(f"The proxy {value} ({name}) is a loopback address, which lab hosts cannot reach.")
    values["no_proxy"] = ",".join(filter(None, [values.get("no_proxy", ""), "localhost", "127.0.0.1", subnet]))
    lines = [f"{key}={value}\n" for key, value in values.items()]
    lines.extend(f"{key.upper()}={value}\n" for key, value in values.items())
    return "".join(lines)


# -- all of it -------------------------------------------------------------------------------------------------------


def read_os_release(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        key, sign, value = line.partition("=")
        if sign:
            found[key.strip()] = value.strip().strip("\"'")
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def read_settings(
    *,
    suite: str,
    subnet: str,
    apt_dump: str,
    environ: Mapping[str, str],
    sources: Sequence[str] = (),
    nameservers: Sequence[str] = (),
    root: Path = Path("/"),
    home: Path = Path("/root"),
) -> Settings:
    """Read everything. O(sources) replaces what the machine's apt uses, O(nameservers) its resolver."""
    settings = Settings()
    release = read_os_release(_text(root / "etc/os-release"))
    if sources:
        chosen = [item for line in sources for item in parse_one_line(line)]
    elif release.get("ID") == "debian" and release.get("VERSION_CODENAME"):
        found = read_apt_sources(root / "etc/apt")
        chosen = select_sources(found, release["VERSION_CODENAME"], suite, settings.warnings)
    else:
        chosen = []
    chosen = resolve_keys(chosen, settings, Path("/etc/apt/keyrings"))
    settings.sources = [item.line() for item in chosen]
    if not all(item.option("signed-by") or item.option("trusted") for item in chosen):
        for path in sorted((root / "etc/apt/trusted.gpg.d").glob("*")):
            if path.suffix in (".gpg", ".asc") and path.is_file():
                settings.keyrings[f"/etc/apt/trusted.gpg.d/{path.name}"] = path.read_bytes()

    conf, ca_files = select_apt_conf(apt_dump, settings.warnings)
    if conf:
        settings.files["etc/apt/apt.conf.d/90gpufleet-lab"] = (conf.encode(), 0o644)
    for path in [root / "etc/apt/auth.conf", *sorted((root / "etc/apt/auth.conf.d").glob("*.conf"))]:
        if path.is_file():
            settings.files[str(path.relative_to(root))] = (path.read_bytes(), 0o600)

    merged = merge_pip([_text(path) for path in pip_files(environ, home)], environ)
    bundles = [str(root / CA_BUNDLE.lstrip("/")), merged.get("cert", ""), *ca_files]
    bundles.extend(environ.get(name, "") for name in _CA_VARIABLES)
    seen: set[str] = set()
    for bundle in bundles:
        if bundle and bundle not in seen:
            seen.add(bundle)
            settings.certificates.extend(pem_blocks(_text(Path(bundle))))

    pip = render_pip(merged, bool(environ.get("PIP_CERT")), settings.warnings)
    if pip:
        # A password inside an index address is nobody else's business.
        settings.files["etc/pip.conf"] = (pip.encode(), 0o600 if re.search(r"://[^/\s]*@", pip) else 0o644)
    environment = render_environment(environ, subnet, settings.warnings)
    if environment:
        settings.files["etc/environment"] = (environment.encode(), 0o644)

    if nameservers:
        settings.resolv_conf = "".join(f"nameserver {server}\n" for server in nameservers)
    else:
        settings.resolv_conf = choose_resolv_conf(
            _text(root / "etc/resolv.conf"), _text(root / "run/systemd/resolve/resolv.conf")
        )
    return settings
