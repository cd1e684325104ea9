# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""Look at the arrays of role nvme_raid: metrics for Prometheus, a line in the journal, a mail when one breaks.

mdadm --monitor does not watch RAID 0, because there is nothing in it to repair. Run by gpufleet-nvme-raid.timer. Ends with 1 when an array is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = {
    "up": "Whether the array runs, is mounted and can be read.",
    "members_expected": "Drives the array is made of.",
    "members_present": "Drives of the array that are on the host.",
    "mounted": "Whether its file system is mounted where it belongs.",
    "read_only": "Whether it is mounted read-only, as after an error of the file system.",
}
SENDMAIL = "/usr/sbin/sendmail"


def mount_of(point: str, root: str) -> tuple[str, bool]:
    """The device mounted at a point and whether that is read-only."""
    found = ("", False)
    for line in Path(f"{root}/proc/self/mountinfo").read_text("utf-8").splitlines():
        left, _dash, right = line.partition(" - ")
        first, second = left.split(), right.split()
        if len(first) > 5 and len(second) > 2 and first[4] == point:
            found = (second[1], "ro" in first[5].split(",") or "ro" in second[2].split(","))
    return found


def look(record: dict[str, Any], root: str = "") -> tuple[dict[str, int], list[str]]:
    """The metrics of one array, and what is wrong with it."""
    members = [str(member["by_id"]) for member in record["members"]]
    present = [name for name in members if os.path.exists(f"{root}/dev/disk/by-id/{name}")]
    wrong = [f"{name} is not on this host" for name in members if name not in present]
    plain = re.sub(r"[^0-9a-f]", "", str(record["array_uuid"]).lower())
    uuid = ":".join(plain[at : at + 8] for at in range(0, 32, 8))
    device = os.path.basename(os.path.realpath(f"{root}/dev/disk/by-id/md-uuid-{uuid}"))
    state = ""
    if device.startswith("md") and not device.startswith("md-uuid"):
        path = Path(f"{root}/sys/block/{device}/md/array_state")
        state = path.read_text("utf-8").strip() if path.exists() else ""
    if state not in ("clean", "active", "active-idle", "write-pending", "readonly", "read-auto"):
        wrong.append(f"md says {state or 'nothing'}, expected clean")
    point = str(record["mount"])
    source, read_only = mount_of(point, root)
    mounted = bool(state) and os.path.basename(os.path.realpath(f"{root}{source}")) == device
    if not mounted:
        wrong.append(f"{source or 'nothing'} is mounted on {point}")
    elif read_only:
        wrong.append(f"{point} is read-only")
    if mounted:
        try:
            os.listdir(f"{root}{point}")
            os.statvfs(f"{root}{point}")
        except OSError as exc:
            wrong.append(f"{point} cannot be read: {exc.strerror}")
    return {
        "up": int(not wrong),
        "members_expected": len(members),
        "members_present": len(present),
        "mounted": int(mounted),
        "read_only": int(read_only),
    }, wrong


def text_of(found: dict[str, dict[str, int]], now: float) -> str:
    """The metrics as Prometheus reads them."""
    lines = []
    for name, explained in NAMES.items():
        metric = f"gpufleet_nvme_raid_{name}"
        lines += [f"# HELP {metric} {explained}", f"# TYPE {metric} gauge"]
        lines += [f'{metric}{{array="{array}"}} {values[name]}' for array, values in sorted(found.items())]
    lines += [
        "# HELP gpufleet_nvme_raid_check_timestamp_seconds When it was looked at.",
        "# TYPE gpufleet_nvme_raid_check_timestamp_seconds gauge",
        f"gpufleet_nvme_raid_check_timestamp_seconds {now:.0f}",
    ]
    return "\n".join(lines) + "\n"


def replace(path: Path, text: str) -> None:
    """Write a file at once, or a scrape would see half of it."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text, "utf-8")
    beside.chmod(0o644)
    beside.replace(path)


def mail(to: str, subject: str, text: str) -> None:
    """Send a mail, if the host can."""
    if not os.path.exists(SENDMAIL):
        print(f"no mail to {to}: there is no {SENDMAIL}", file=sys.stderr)
        return
    letter = f"To: {to}\nSubject: {subject}\n\n{text}\n"
    subprocess.run([SENDMAIL, "-t"], input=letter, text=True, timeout=60, check=False)


def main() -> int:
    """Look at all arrays that have a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", default="/var/lib/gpufleet/nvme_raid")
    parser.add_argument("--textfile-dir", action="append", default=[])
    parser.add_argument("--mail", default="")
    parser.add_argument("--seen", default="/run/gpufleet/nvme_raid.seen")
    arguments = parser.parse_args()
    found, bad = {}, {}
    for path in sorted(Path(arguments.records).glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        # Before it is built there is nothing to watch.
        if record.get("stage") == "built":
            found[record["name"]], wrong = look(record)
            if wrong:
                bad[record["name"]] = "; ".join(wrong)
    for directory in arguments.textfile_dir:
        if os.path.isdir(directory):
            replace(Path(directory) / "gpufleet_nvme_raid.prom", text_of(found, time.time()))
    for name, why in bad.items():
        print(f"array {name} is broken: {why}", file=sys.stderr)
    seen = Path(arguments.seen)
    before = seen.read_text("utf-8") if seen.exists() else "{}"
    now = json.dumps(bad, sort_keys=True)
    if arguments.mail and now != before:
        host = os.uname().nodename
        lines = [f"array {name}: {why}" for name, why in bad.items()] or ["all arrays are well again"]
        mail(arguments.mail, f"{host}: NVMe RAID 0 {'broken' if bad else 'well again'}", "\n".join(lines))
    if now != before:
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(now, "utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
