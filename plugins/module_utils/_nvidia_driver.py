# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# PRIVATE to the collection: no stability promise.
"""What the NVIDIA driver of a host consists of: one read of everything.

Files are read below a root, so that a recorded tree can stand in for a host; the output of a tool then stands in ``commands/SLUG``.
Nothing here writes.
"""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gpu_catalogue as catalogue
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_pci import devices
from ansible_collections.gpufleet.deepseek.plugins.module_utils._hardware_reader import Output, Reader, Runner

# The driver's own module by the names that packages give it: NVIDIA's repository and the runfile, Debian (open, proprietary).
MODULES = ("nvidia", "nvidia-current-open", "nvidia-current")
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_MOK_KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")
# Packages that the version lock, the holds and the decision look at.
_RELEVANT = re.compile(
    r"^(lib)?nvidia|^libcuda|^cuda-driver|^cuda-compat|^firmware-nvidia|^linux-(image|headers|modules|generic)|^dkms$|nvidia"
)
_UNPACKED = ("unpacked", "half-configured", "half-installed", "triggers-pending")
_VERSION_LINE = re.compile(r"Kernel Module\s+(?:for \S+\s+)?([0-9]+(?:\.[0-9]+)+)")
_DKMS = re.compile(r"^([\w.+-]+)/([\w.+~-]+),\s*([\w.+~-]+),\s*[\w-]+:\s*(\w+)")
_SOURCES = "/etc/apt/sources.list.d"
# The role's own files do not count as the host's sources.
OWN_SOURCES = "gpufleet-"
_LIBRARY = re.compile(r"^libnvidia-ml\.so\.([0-9]+(?:\.[0-9]+)+)$")
_LIBRARY_DIRS = tuple(
    f"/usr/lib/{machine}{rest}"
    for machine in ("x86_64-linux-gnu", "aarch64-linux-gnu")
    for rest in ("", "/nvidia/current", "/nvidia")
)


@dataclass(frozen=True)
class Package:
    """What dpkg knows about a package.

    :ivar version: its full version.
    :ivar held: is it on hold?
    :ivar state: dpkg's word for its state; installed when all is well.
    """

    version: str
    held: bool
    state: str


# Units that the role stopped for an exchange of the driver and that nobody has started since. A reboot starts what is enabled.
STOPPED_UNITS = "/run/gpufleet-nvidia-driver.stopped"


@dataclass(frozen=True)
class Driver:
    """A host as the driver sees it; every field is what was found, None or empty where nothing was."""

    gpus: list[dict[str, str]] = field(default_factory=list)
    nvswitches: int = 0
    simulated: bool = False
    kernel: str = ""
    kernels: list[str] = field(default_factory=list)
    headers: bool = False
    loaded: str = ""
    loaded_flavor: str = ""
    nouveau: bool = False
    module: str = ""
    module_version: str = ""
    dkms: list[dict[str, str]] = field(default_factory=list)
    packages: dict[str, Package] = field(default_factory=dict)
    dpkg_interrupted: bool = False
    library: str = ""
    secure_boot: bool | None = None
    mok_enrolled: bool | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    components: list[str] = field(default_factory=list)
    initramfs_stale: bool = False
    active_units: list[str] = field(default_factory=list)
    stopped_units: list[str] = field(default_factory=list)

    @property
    def newest_kernel(self) -> str:
        """The installed kernel that the next boot takes; the running one where none is installed."""
        return max(self.kernels, key=natural) if self.kernels else self.kernel

    @property
    def kernel_pending(self) -> bool:
        """Will the next boot bring another kernel?"""
        return bool(self.kernels) and natural(self.newest_kernel) > natural(self.kernel)

    def packages_of_driver(self) -> list[str]:
        """The installed packages of the driver itself."""
        return sorted(name for name in self.packages if re.match(r"(lib)?nvidia-|libcuda1|cuda-driver", name))


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts versions: numbers as numbers, words as words, and the shorter of two first."""
    return tuple(
        (1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"[0-9]+|[a-zA-Z]+|\+|~", text)
    )


def upstream(version: str) -> str:
    """NVIDIA's version in a package's: without epoch, revision and what a distribution adds."""
    match = re.match(r"(?:[0-9]+:)?([0-9]+(?:\.[0-9]+)*)", version)
    return match[1] if match else ""


def parse_packages(text: str) -> dict[str, Package]:
    """Read what dpkg-query printed in the format of ``QUERY``."""
    found = {}
    for line in text.splitlines():
        cells = line.split("\t")
        if len(cells) != 4:
            continue
        name, version, want, state = cells
        if state in ("not-installed", "config-files"):
            continue
        found[name.split(":")[0]] = Package(version, want == "hold", state)
    return found


QUERY = "${binary:Package}\\t${Version}\\t${db:Status-Want}\\t${db:Status-Status}\\n"


def parse_loaded(text: str) -> tuple[str, str]:
    """Version and flavour of the loaded module, as /proc/driver/nvidia/version says it."""
    match = _VERSION_LINE.search(text)
    if match is None:
        return "", ""
    return match[1], "open" if "Open Kernel Module" in text else "proprietary"


def parse_dkms(text: str) -> list[dict[str, str]]:
    """NVIDIA's lines of ``dkms status``."""
    found = []
    for line in text.splitlines():
        match = _DKMS.match(line.strip())
        if match is not None and match[1].startswith("nvidia"):
            found.append({"module": match[1], "version": match[2], "kernel": match[3], "state": match[4]})
    return found


def parse_parameters(text: str) -> dict[str, str]:
    """The options that the loaded module runs with, by their names without NVreg_."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip().strip('"') for name, value in pairs}


def components(texts: t.Iterable[str]) -> list[str]:
    """The components that apt's sources name, in the one-line and in the deb822 form."""
    found: set[str] = set()
    for text in texts:
        for line in text.splitlines():
            words = re.sub(r"\[[^\]]*\]", "", line).split()
            if len(words) > 3 and words[0] == "deb":
                found.update(words[3:])
            elif words and words[0].lower() == "components:":
                found.update(words[1:])
    return sorted(found)


class Probe:
    """Reads a host.

    :arg reader: gives the files.
    :arg run: runs a tool; not used for a recorded tree.
    """

    def __init__(self, reader: Reader, run: Runner | None = None) -> None:
        self._reader = reader
        self._run = run

    def _ask(self, slug: str, *argv: str) -> Output:
        if self._reader.root:
            return self._reader.recorded(slug) or Output(127, "", problem=f"{argv[0]} was not recorded", missing=True)
        if self._run is None:
            return Output(127, "", problem=f"{argv[0]} is not run here", missing=True)
        return self._run(argv, self._reader.timeout)

    def _sources(self) -> list[str]:
        names = [f"{_SOURCES}/{name}" for name in self._reader.names(_SOURCES) if not name.startswith(OWN_SOURCES)]
        files = ["/etc/apt/sources.list", *(name for name in names if name.endswith((".list", ".sources")))]
        return [self._reader.text(name) or "" for name in files]

    def _library(self) -> str:
        versions = [
            match[1]
            for folder in _LIBRARY_DIRS
            for match in map(_LIBRARY.match, self._reader.names(folder))
            if match is not None
        ]
        return max(versions, key=natural) if versions else ""

    def _module(self, kernel: str) -> tuple[str, str]:
        folders = (
            f"/lib/modules/{kernel}/updates/dkms",
            f"/lib/modules/{kernel}/updates",
            f"/lib/modules/{kernel}/kernel/drivers/video",
        )
        files = {
            name.split(".ko")[0]: f"{folder}/{name}"
            for folder in reversed(folders)
            for name in self._reader.names(folder)
            if ".ko" in name
        }
        for name in MODULES:
            if name in files:
                said = self._ask("modinfo_version", "modinfo", "-F", "version", files[name])
                return name, said.out.strip() if said.answered else ""
        return "", ""

    def _mok(self) -> bool | None:
        """Is the key that DKMS signs with enrolled? None when it cannot be known."""
        key = next((path for path in _MOK_KEYS if self._reader.exists(path)), None)
        if key is None:
            return False
        said = self._ask("mokutil_test_key", "mokutil", "--test-key", key)
        return None if said.problem else "is already enrolled" in said.out + said.err

    def _initramfs_stale(self, kernel: str, options: str) -> bool:
        """Is the running kernel's initramfs older than the module options?"""
        if self._reader.root or not options:
            return False
        try:
            return os.stat(f"/boot/initrd.img-{kernel}").st_mtime < os.stat(options).st_mtime
        except OSError:
            return False

    def _active(self, units: t.Sequence[str]) -> list[str]:
        if not units:
            return []
        said = self._ask(
            "systemctl_units",
            "systemctl",
            "list-units",
            "--plain",
            "--no-legend",
            "--full",
            "--state=active,activating",
            *units,
        )
        return [line.split()[0] for line in said.out.splitlines() if line.strip()] if said.answered else []

    def read(self, units: t.Sequence[str] = (), options: str = "") -> Driver:
        """Everything at once.

        :arg units: patterns of the units that use the GPUs.
        :arg options: the file with the module's options, to be compared with the initramfs.
        """
        reader = self._reader
        found = devices(reader)
        kernel = reader.text("/proc/sys/kernel/osrelease") or os.uname().release
        loaded, loaded_flavor = parse_loaded(reader.text(f"{reader.simulation}/proc/driver/nvidia/version") or "")
        variable = reader.data(f"/sys/firmware/efi/efivars/{_SECURE_BOOT}", 16)
        secure = (
            (len(variable) > 4 and variable[4] == 1)
            if variable is not None
            else (None if reader.exists("/sys/firmware/efi") else False)
        )
        packages = parse_packages(self._ask("dpkg_query", "dpkg-query", "-W", "-f", QUERY).out)
        simulated = reader.text(f"{reader.simulation}/modinfo_version") if reader.simulation else None
        module, module_version = ("nvidia", simulated) if simulated else self._module(kernel)
        updates = [name for name in reader.names("/var/lib/dpkg/updates") if name.isdigit()]
        return Driver(
            gpus=[
                {
                    "address": device.address,
                    "device": device.device,
                    "key": gpu.key if gpu else "",
                    "generation": gpu.generation if gpu else "",
                }
                for device in found
                if device.vendor == catalogue.NVIDIA and device.kind.startswith(catalogue.GPU_CLASSES)
                for gpu in [catalogue.by_pci(device.vendor, device.device)]
            ],
            nvswitches=sum(
                device.vendor == catalogue.NVIDIA and device.device in catalogue.NVSWITCHES for device in found
            ),
            simulated=bool(reader.simulation),
            kernel=kernel,
            kernels=sorted(
                (name[len("vmlinuz-") :] for name in reader.names("/boot") if name.startswith("vmlinuz-")), key=natural
            ),
            headers=reader.exists(f"/lib/modules/{kernel}/build"),
            loaded=loaded or reader.text("/sys/module/nvidia/version") or "",
            loaded_flavor=loaded_flavor,
            nouveau=reader.exists("/sys/module/nouveau"),
            module=module,
            module_version=module_version,
            dkms=parse_dkms(self._ask("dkms_status", "dkms", "status").out),
            packages={name: package for name, package in packages.items() if _RELEVANT.search(name)},
            dpkg_interrupted=bool(updates) or any(package.state in _UNPACKED for package in packages.values()),
            library=self._library(),
            secure_boot=secure,
            mok_enrolled=self._mok() if secure else None,
            parameters=parse_parameters(reader.text("/proc/driver/nvidia/params") or ""),
            components=components(self._sources()),
            initramfs_stale=self._initramfs_stale(kernel, options),
            active_units=self._active(units),
            stopped_units=(reader.text(STOPPED_UNITS) or "").split(),
        )
