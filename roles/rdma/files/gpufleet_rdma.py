# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""RDMA settings at boot, and measurements between two hosts.

gpufleet-rdma apply CONFIG     brings soft RoCE, QoS, PCIe and kernel settings where they shall be, and reads them back
gpufleet-rdma serve CONFIG     answers one measurement of each rail, then ends
gpufleet-rdma measure CONFIG   measures each rail against the partner of the configuration, and prints JSON
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

# Beside this program, where the role put it.
rdma_host = importlib.import_module("rdma_host")

ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": os.environ.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
}
LOCK = os.environ.get("GPUFLEET_RDMA_LOCK", "/run/gpufleet-rdma.lock")
# rping's ports begin so far above those of ib_write_bw.
RPING = 100
PINGS = 10


def run(argv: list[str], timeout: float = 60) -> tuple[int, str, str]:
    """Run one command."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout, env=ENVIRONMENT)
    except subprocess.TimeoutExpired:
        return 124, "", f"no end within {timeout:.0f} s"
    except OSError as exc:
        return 127, "", str(exc)
    return done.returncode, done.stdout, done.stderr


def apply(config: dict[str, Any]) -> int:
    """Bring everything where it shall be. Two ports that appear at once wait for each other."""
    with open(LOCK, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        host = rdma_host.Host(run)
        # A port that is not there yet starts this again when it comes.
        config = {**config, "soft_roce": [port for port in config.get("soft_roce", []) if port in host.interfaces()]}
        try:
            done = host.apply(config)
        except rdma_host.RdmaError as exc:
            print(exc, file=sys.stderr)
            return 1
    for setting in done:
        print(f"{setting.what}: {setting.found or 'nothing'} -> {setting.wanted}")
    if not done:
        print("everything is as wanted")
    return 0


def bandwidth_argv(host: Any, rail: dict[str, Any], test: dict[str, Any], port: int) -> list[str]:
    """ib_write_bw for the own end of a rail."""
    netdev = host.rail_ports({"rails": [rail]})[rail["name"]]
    found = [device for device in host.devices() if device.netdev == netdev]
    if not netdev or not found:
        raise rdma_host.RdmaError(f"{rail['name']}: no RDMA device at {rail['address']}")
    device = found[0]
    argv = ["ib_write_bw", f"--ib-dev={device.name}", f"--port={port}", "--report_gbits", "-F"]
    argv += [f"--duration={test['seconds']}", f"--size={test['size']}"]
    if device.layer == "Ethernet":
        argv.append(f"--gid-index={host.gid_index(device.name, rail['address'])}")
    return argv


def start(argv: list[str]) -> subprocess.Popen[bytes]:
    """Start a server that says nothing."""
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=ENVIRONMENT)


def serve(config: dict[str, Any]) -> int:
    """Answer one measurement of each rail, and every attempt at it: a client that gave up comes again."""
    host, test = rdma_host.Host(run), config["test"]
    pings, writes = [], []
    for index, rail in enumerate(config.get("rails", [])):
        port = int(test["port"]) + index
        address = rdma_host.bare_address(rail["address"])
        argv = bandwidth_argv(host, rail, test, port)
        writes.append((argv, start(argv)))
        # -P serves one client after the other; without it, one that hangs is the last.
        pings.append(start(["rping", "-s", "-P", "-a", address, "-p", str(port + RPING), "-C", str(PINGS)]))
    deadline = time.monotonic() + limit(test, len(writes))
    # The bandwidth is measured last, so its end is the end of all.
    while any(child.poll() != 0 for _argv, child in writes) and time.monotonic() < deadline:
        time.sleep(0.2)
        writes = [(argv, start(argv) if child.poll() else child) for argv, child in writes]
    for child in [*pings, *(child for _argv, child in writes)]:
        if child.poll() is None:
            child.kill()
        child.wait()
    return 0


def limit(test: dict[str, Any], rails: int) -> float:
    """Seconds that a measurement of all rails may take."""
    return 60.0 + rails * (3.0 * float(test["seconds"]) + 20.0)


def patiently(argv: list[str], test: dict[str, Any]) -> tuple[int, str, str]:
    """Run a client; its server may need a moment."""
    result = (1, "", "")
    for _attempt in range(int(test.get("attempts", 5))):
        result = run(argv, timeout=3.0 * float(test["seconds"]) + 20.0)
        if result[0] == 0:
            break
        time.sleep(float(test.get("pause", 2)))
    return result


def measure(config: dict[str, Any]) -> int:
    """Measure each rail against the same rail of the partner."""
    host, test, partner = rdma_host.Host(run), config["test"], config.get("partner") or {}
    own = {rail["name"]: rail for rail in config.get("rails", [])}
    soft = {device.netdev for device in host.devices() if device.soft}
    ports = host.rail_ports(config)
    results = []
    for index, rail in enumerate(partner.get("rails", [])):
        name, port = rail["name"], int(test["port"]) + index
        result: dict[str, Any] = {
            "rail": name,
            "soft": ports.get(name, "") in soft,
            "gbps": 0.0,
            "ping": False,
            "said": "",
        }
        results.append(result)
        if name not in own:
            result["said"] = f"no rail {name} here"
            continue
        address = rdma_host.bare_address(rail["address"])
        try:
            argv = bandwidth_argv(host, own[name], test, port)
        except rdma_host.RdmaError as exc:
            result["said"] = str(exc)
            continue
        code, out, err = patiently(["rping", "-c", "-a", address, "-p", str(port + RPING), "-C", str(PINGS)], test)
        result["ping"] = code == 0
        said = [] if code == 0 else [f"rping: {last(out, err)}"]
        code, out, err = patiently([*argv, address], test)
        result["gbps"] = rdma_host.parse_write_bw(out, int(test["seconds"])) or 0.0
        said += [] if code == 0 and result["gbps"] else [f"ib_write_bw: {last(out, err)}"]
        result["said"] = "; ".join(said)
    for result in results:
        kind = " by soft RoCE, which is no measure of hardware" if result["soft"] else ""
        answer = "rping answered" if result["ping"] else "rping did not answer"
        result["sentence"] = f"{result['rail']} to {partner.get('name')}: {result['gbps']:.2f} Gb/s{kind}, {answer}"
    print(json.dumps(results))
    return 0


def last(out: str, err: str) -> str:
    """The last words of a program."""
    lines = [line.strip() for line in (err.strip() or out.strip()).splitlines() if line.strip()]
    return lines[-1] if lines else "nothing"


def main() -> int:
    """Do what the command line says."""
    todo = {"apply": apply, "serve": serve, "measure": measure}
    if len(sys.argv) != 3 or sys.argv[1] not in todo:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        config = json.loads(Path(sys.argv[2]).read_text("utf-8"))
        return todo[sys.argv[1]](config)
    except (OSError, ValueError, rdma_host.RdmaError) as exc:
        print(f"{sys.argv[2]}: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
