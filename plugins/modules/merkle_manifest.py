#!/usr/bin/python
# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: merkle_manifest
short_description: Prove a directory of model weights piece by piece, and replace only the pieces that are damaged
version_added: 1.0.0
author: gpufleet.deepseek maintainers (@gpufleet)
description:
  - Makes a manifest of all files below a directory, verifies the directory against it, and repairs it from a second copy.
  - Every file has a hash tree, the one of BitTorrent v2 (BEP 52), SHA-256 over blocks of 16 KiB. The root of a file is the C(pieces root) that a
    v2 torrent of it has, whatever the length of the pieces. The manifest keeps the hash of every piece, so that damage is located.
  - One root stands for the whole set, its names, sizes and contents. It does not depend on the length of the pieces. Whoever knows it by another
    way, such as a signature or an inventory, can tell whether the manifest is the one that is meant.
  - Names that begin with a dot are part of the set. Owners, modes, times and empty directories are not.
options:
  path:
    description:
      - Directory of the weights.
      - A symbolic link in it counts as the file that it points to. One that points outside, to a directory or to nothing is refused, and so is what
        is neither a file nor a directory, and a name that is not UTF-8.
      - With O(state=repaired) it is created when it is missing.
    type: path
    required: true
  manifest:
    description:
      - File of the manifest, JSON. It must lie outside of O(path), in a directory that exists.
      - Written with O(state=built), else read.
    type: path
    required: true
  state:
    description:
      - V(built) hashes the directory and writes the manifest. It takes what is there for good; give O(root) where that is known.
      - V(verified) reads every byte, changes nothing, and fails when something is missing, damaged or extra.
      - V(repaired) verifies, and then takes the pieces that are damaged or missing out of O(source). It fails when the directory is not whole
        afterwards. Extra files stay.
    type: str
    choices: [built, verified, repaired]
    default: verified
  root:
    description:
      - Root that the manifest must have, 64 hexadecimal digits. A manifest that was changed, even in all its parts, is refused and named.
      - With O(state=built) the root that the directory must have; nothing is written when it has another.
    type: str
  piece_mib:
    description:
      - MiB of a piece, with O(state=built). Smaller pieces mean less to copy in a repair and a larger manifest, 64 bytes for a piece.
      - When the manifest exists with another length, it is written again.
    type: int
    choices: [1, 2, 4, 8, 16, 32, 64]
    default: 4
  mode:
    description: Mode of the manifest, a quoted octal number, with O(state=built).
    type: str
    default: "0644"
  cache:
    description:
      - File outside of O(path) that remembers size, modification time and inode of each file, with O(state=built).
      - A file that has the same three as when it was hashed for the manifest is not read again. Damage on the drive does not change them, so without
        this option every byte is read.
    type: path
  quick:
    description: Compare only names and sizes, with O(state=verified).
    type: bool
    default: false
  fail:
    description: Whether the module fails when the directory is not as the manifest says. When not, RV(intact) tells.
    type: bool
    default: true
  source:
    description:
      - Directory with another copy, local or mounted, with O(state=repaired), which needs it. It need not be whole.
      - Only the pieces that are needed are read. Each is proved in memory before it is written, so a source that is damaged cannot do harm.
    type: path
  quarantine:
    description:
      - Directory outside of O(path) and on the same file system, with O(state=repaired). Files that are damaged and cannot be repaired are moved there,
        under a name that is free. Without it they stay where they are.
    type: path
  state_file:
    description:
      - File outside of O(path) that keeps the pieces that were verified so far, with O(state=verified) and O(state=repaired). A run that was killed
        is taken up there by the next.
      - The pieces of a file count no longer when its size, modification time or inode differ, and none do when the manifest is another. A run that
        came to its end leaves none, so that the next one reads everything again.
      - It is written about every 5 seconds. C(progress) in it are lines for people.
    type: path
  threads:
    description:
      - Threads that hash. V(0) is one for each core that the module may use.
      - Each takes 1 MiB of memory, and the length of a piece while a file is repaired.
    type: int
    default: 0
  nice:
    description: By how much the priority for processor time is lowered, from 0 to 19.
    type: int
    default: 0
  idle_io:
    description:
      - Read only when nobody else does, by the idle class of C(ionice). A warning says when it could not be set.
      - It has no effect where the kernel's scheduler of the drive has no classes, as C(none), the usual one of NVMe drives.
    type: bool
    default: false
  drop_cache:
    description:
      - Take each piece out of the page cache before and after it is read, so that the drive is verified and not the memory, and the
        pages of other programs stay.
      - Pages that another program has mapped, as an engine that runs, stay in memory and are read from there.
    type: bool
    default: false
extends_documentation_fragment:
  - gpufleet.deepseek._attributes
attributes:
  check_mode:
    details:
      - The files are read as in a run, because nothing else can tell. The files of O(cache) and O(state_file) are not written.
  diff_mode:
    details:
      - With O(state=verified) and O(state=repaired) it compares what was found with what the manifest says.
notes:
  - A file is repaired in place, piece by piece, so no room for a second copy is needed, and its owner and mode stay. What was written is synced and read
    back. A run that is killed leaves pieces that are right and pieces that are still damaged; the next run finds them.
  - A file that is missing is put together as NAME.partial and renamed when it is whole and synced. It gets the mode 0644. When the source has not all of
    it, NAME.partial stays, and a run with another source goes on with it. Until then it is an extra file.
  - A file that has several hard links is repaired for all of its names. A symbolic link in the place of a file that is damaged is not written through.
  - A file that changes while it is read ends the run, and is named.
  - The manifest is the same, byte for byte, for the same set and the same O(piece_mib).
"""

EXAMPLES = r"""
- name: Make the manifest once, where the weights are published
  gpufleet.deepseek.merkle_manifest:
    path: /srv/models/deepseek-r1-awq
    manifest: /srv/models/deepseek-r1-awq.merkle.json
    state: built
  register: published

- name: Prove every byte on the host, beside a running engine, and go on where a run was killed
  gpufleet.deepseek.merkle_manifest:
    path: /srv/models/deepseek-r1-awq
    manifest: /srv/models/deepseek-r1-awq.merkle.json
    root: "{{ published.root }}"
    state_file: /var/lib/gpufleet/deepseek-r1-awq.verify.json
    threads: 2
    nice: 19
    idle_io: true
    drop_cache: true

- name: See in a second whether all files are there
  gpufleet.deepseek.merkle_manifest:
    path: /srv/models/deepseek-r1-awq
    manifest: /srv/models/deepseek-r1-awq.merkle.json
    quick: true
    fail: false
  register: present

- name: Take what is damaged from the copy of another host
  gpufleet.deepseek.merkle_manifest:
    path: /srv/models/deepseek-r1-awq
    manifest: /srv/models/deepseek-r1-awq.merkle.json
    state: repaired
    root: "{{ published.root }}"
    source: /mnt/store/deepseek-r1-awq
    quarantine: /srv/models/quarantine
"""

RETURN = r"""
root:
  description: Root of the set.
  returned: success
  type: str
  sample: 5b1d3f8b6f3a7a0c1de1a3d1b3b6a8f2d0c9b7a6e5f4d3c2b1a0918273645546
piece_length:
  description: Bytes of a piece.
  returned: success
  type: int
  sample: 4194304
file_count:
  description: Files of the set.
  returned: success
  type: int
  sample: 163
piece_count:
  description: Pieces of the set.
  returned: success
  type: int
  sample: 164221
total_bytes:
  description: Bytes of the set.
  returned: success
  type: int
  sample: 688586727753
read_bytes:
  description: Bytes of the set that were hashed in this run.
  returned: success
  type: int
  sample: 688586727753
resumed_bytes:
  description: Bytes that were not read, with O(state=built) because of O(cache), else because an earlier run had verified them.
  returned: success
  type: int
  sample: 0
intact:
  description: Whether the directory is as the manifest says, after the repair if there was one. Extra files count with O(state=verified) only.
  returned: when O(state=verified) or O(state=repaired)
  type: bool
missing:
  description: Files that the manifest lists and that were not there.
  returned: when O(state=verified) or O(state=repaired)
  type: list
  elements: str
  sample: [model-00007-of-000163.safetensors]
extra:
  description: Files that were there and that the manifest does not list.
  returned: when O(state=verified) or O(state=repaired)
  type: list
  elements: str
  sample: [notes.txt]
wrong_size:
  description: Files of another size.
  returned: when O(state=verified) or O(state=repaired)
  type: list
  elements: dict
  contains:
    path:
      description: Name of the file below O(path).
      type: str
    expected:
      description: Bytes that the manifest says.
      type: int
    found:
      description: Bytes that the file had.
      type: int
damaged_count:
  description: Pieces of files that were there whose content was wrong, or that were beyond the end of the file.
  returned: when O(state=verified) or O(state=repaired)
  type: int
  sample: 1
damaged:
  description: Those pieces, the first 1000 of them.
  returned: when O(state=verified) or O(state=repaired)
  type: list
  elements: dict
  contains:
    path:
      description: Name of the file below O(path).
      type: str
    index:
      description: Number of the piece in the file, from 0.
      type: int
    offset:
      description: Where in the file it begins, in bytes.
      type: int
    length:
      description: Its bytes.
      type: int
repaired_count:
  description: Pieces that were written, or would be in check mode.
  returned: when O(state=repaired)
  type: int
  sample: 1
repaired_files:
  description: Files that are whole again, or would be in check mode.
  returned: when O(state=repaired)
  type: list
  elements: str
  sample: [model-00003-of-000163.safetensors]
unrepaired:
  description: Pieces that could not be repaired, the first 1000 of them.
  returned: when O(state=repaired)
  type: list
  elements: dict
  contains:
    path:
      description: Name of the file below O(path).
      type: str
    index:
      description: Number of the piece in the file, from 0.
      type: int
    offset:
      description: Where in the file it begins, in bytes.
      type: int
    length:
      description: Its bytes.
      type: int
    reason:
      description: Why not.
      type: str
quarantined:
  description: Files that were moved to O(quarantine), or would be in check mode.
  returned: when O(state=repaired)
  type: list
  elements: dict
  contains:
    path:
      description: Name of the file below O(path).
      type: str
    to:
      description: Where it is now.
      type: str
"""

import os
import re
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle

LISTED = 1000
# Options that have a meaning only in some states.
ONLY = {
    "quick": ("verified",),
    "source": ("repaired",),
    "quarantine": ("repaired",),
    "cache": ("built",),
    "state_file": ("verified", "repaired"),
}


def check_options(wanted: dict[str, t.Any]) -> None:
    """What the argument specification cannot say."""
    for name, states in ONLY.items():
        if wanted[name] and wanted["state"] not in states:
            raise merkle.MerkleError(
                f"{name}: expected only with state {' or '.join(states)}, found with {wanted['state']}"
            )
    if wanted["state"] == "repaired" and not wanted["source"]:
        raise merkle.MerkleError("source: expected a directory, as state is repaired, found none")
    if not 0 <= wanted["nice"] <= 19:
        raise merkle.MerkleError(f"nice: expected a number from 0 to 19, found {wanted['nice']}")
    if not 0 <= wanted["threads"] <= 1024:
        raise merkle.MerkleError(f"threads: expected a number from 0 to 1024, found {wanted['threads']}")
    if wanted["root"] is not None and not re.fullmatch("[0-9a-f]{64}", wanted["root"]):
        raise merkle.MerkleError(f"root: expected 64 hexadecimal digits in lower case, found {wanted['root']!r}")
    if not re.fullmatch("[0-7]{3,4}", wanted["mode"]):
        raise merkle.MerkleError(f"mode: expected a quoted octal number such as '0644', found {wanted['mode']!r}")
    inside = os.path.realpath(wanted["path"])
    for name in ("manifest", "cache", "state_file", "quarantine", "source"):
        if wanted[name] is None:
            continue
        other = os.path.realpath(wanted[name])
        if (other + "/").startswith(inside + "/"):
            raise merkle.MerkleError(f"{name}: expected a place outside of {wanted['path']}, found {wanted[name]}")
        if name in ("source", "quarantine") and (inside + "/").startswith(other + "/"):
            raise merkle.MerkleError(
                f"{name}: expected a place that does not hold {wanted['path']}, found {wanted[name]}"
            )
        folder = os.path.dirname(other)
        if name in ("manifest", "cache", "state_file") and not os.path.isdir(folder):
            raise merkle.MerkleError(f"{name}: {wanted[name]}: expected the directory {folder}, found none")
    files = [os.path.realpath(wanted[name]) for name in ("manifest", "cache", "state_file") if wanted[name]]
    if len(set(files)) != len(files):
        raise merkle.MerkleError("manifest, cache and state_file: expected a file for each, found the same one twice")
    if wanted["source"] and not os.path.isdir(wanted["source"]):
        raise merkle.MerkleError(f"source: {wanted['source']}: expected a directory, found none")


def be_modest(module: AnsibleModule) -> None:
    """Lower the priority; threads that start later have the same."""
    if module.params["nice"]:
        os.nice(module.params["nice"])
    if module.params["idle_io"]:
        tool = module.get_bin_path("ionice")
        if tool is None:
            module.warn("idle_io: ionice is not installed, the files are read at the usual priority")
            return
        code, _out, err = module.run_command([tool, "-c", "3", "-p", str(os.getpid())])
        if code:
            module.warn(f"idle_io: the files are read at the usual priority, ionice said: {err.strip()}")


def totals(manifest: merkle.Manifest, read: int, resumed: int) -> dict[str, t.Any]:
    """What every state reports."""
    return {
        "root": manifest.root(),
        "piece_length": manifest.piece_length,
        "file_count": len(manifest.files),
        "piece_count": manifest.count(),
        "total_bytes": manifest.size(),
        "read_bytes": read,
        "resumed_bytes": resumed,
    }


def listing(manifest: merkle.Manifest | None) -> str:
    """A manifest as lines that can be compared."""
    if manifest is None:
        return ""
    lines = [f"root {manifest.root()}", f"piece_length {manifest.piece_length}"]
    lines += [f"{entry.path} {entry.size} {entry.root.hex()}" for entry in manifest.files]
    return "\n".join(lines) + "\n"


def old_manifest(module: AnsibleModule, path: str) -> tuple[merkle.Manifest | None, str]:
    """The manifest that is there, if it can be used, and its text. A file that is no manifest is not replaced."""
    if not os.path.lexists(path):
        return None, ""
    with open(path, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    try:
        return merkle.read_manifest(path), text
    except merkle.MerkleError as exc:
        if f'"{merkle.FORMAT}"' not in text:
            raise merkle.MerkleError(f"{exc}; a file that is no manifest is not replaced") from exc
        module.warn(f"the manifest that was there cannot be used and is replaced: {exc}")
        return None, text


def built(module: AnsibleModule, work: merkle.Work) -> dict[str, t.Any]:
    """Hash, compare with the manifest that is there, write."""
    wanted = module.params
    path, length = wanted["manifest"], wanted["piece_mib"] * merkle.MIB
    before, text = old_manifest(module, path)
    stamps = merkle.scan(wanted["path"])
    known = merkle.read_cache(wanted["cache"], before, length, stamps) if wanted["cache"] else {}
    manifest = merkle.build(wanted["path"], length, work, stamps, known)
    if wanted["root"] and manifest.root() != wanted["root"]:
        raise merkle.MerkleError(
            f"{wanted['path']}: expected a directory with the root {wanted['root']}, found {manifest.root()}; nothing was written"
        )
    after = merkle.manifest_text(manifest)
    changed = text != after
    if changed and not module.check_mode:
        merkle.write_atomically(path, after, int(wanted["mode"], 8))
    if os.path.lexists(path):
        changed = module.set_mode_if_different(path, wanted["mode"], changed)
    if wanted["cache"] and not module.check_mode:
        merkle.write_cache(wanted["cache"], manifest, stamps)
    spared = sum(entry.size for entry in known.values())
    return {
        "changed": changed,
        **totals(manifest, manifest.size() - spared, spared),
        "diff": {"before": listing(before), "after": listing(manifest), "before_header": path, "after_header": path},
    }


def differences(found: merkle.Findings, root: str, manifest: str) -> dict[str, str]:
    """What was found, and what the manifest says."""
    before = [f"{merkle.shown(path)}: extra" for path in found.extra]
    before += [f"{path}: {size} bytes" for path, _expected, size in found.wrong_size]
    before += [f"{one.path}: piece {one.number} at {one.offset} damaged" for one in found.damaged[:LISTED]]
    after = [f"{path}: present" for path in found.missing]
    after += [f"{path}: {size} bytes" for path, size, _found in found.wrong_size]
    after += [f"{one.path}: piece {one.number} at {one.offset} as in the manifest" for one in found.damaged[:LISTED]]
    return {
        "before": "".join(f"{line}\n" for line in before),
        "after": "".join(f"{line}\n" for line in after),
        "before_header": root,
        "after_header": manifest,
    }


def report(found: merkle.Findings, wanted: dict[str, t.Any]) -> dict[str, t.Any]:
    """What was found, as data."""
    return {
        "missing": found.missing,
        "extra": found.extra,
        "wrong_size": [{"path": path, "expected": size, "found": now} for path, size, now in found.wrong_size],
        "damaged_count": len(found.damaged),
        "damaged": [piece.as_dict() for piece in found.damaged[:LISTED]],
        "diff": differences(found, wanted["path"], wanted["manifest"]),
    }


def verified(module: AnsibleModule, work: merkle.Work) -> dict[str, t.Any]:
    """Compare; change nothing."""
    wanted = module.params
    manifest = merkle.read_manifest(wanted["manifest"], wanted["root"] or "")
    stamps = merkle.scan(wanted["path"])
    progress = merkle.Progress(wanted["state_file"] or "", manifest, stamps, work, write=not module.check_mode)
    found = merkle.compare(manifest, stamps)
    if not wanted["quick"]:
        found = merkle.verify(wanted["path"], manifest, progress, work)
    intact = found.whole() and not found.extra
    wrong = found.sentence(manifest.count())
    if not wanted["quick"]:
        progress.say("finished: " + (wrong or "all is as the manifest says"))
        progress.save(finished=True)
    result = {
        "changed": False,
        "intact": intact,
        **totals(manifest, progress.read, progress.resumed),
        **report(found, wanted),
    }
    if not intact and wanted["fail"]:
        module.fail_json(msg=f"{wanted['path']} is not what {wanted['manifest']} says: {wrong}", **result)
    return result


def check_quarantine(wanted: dict[str, t.Any]) -> None:
    """Moving must be a rename."""
    if not wanted["quarantine"]:
        return
    folder = os.path.realpath(wanted["quarantine"])
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder) or os.stat(folder).st_dev != os.stat(wanted["path"]).st_dev:
        raise merkle.MerkleError(
            f"quarantine: {wanted['quarantine']}: expected a directory on the file system of {wanted['path']}, "
            f"found {'another file system' if os.path.isdir(folder) else 'a file'}"
        )


def mend(module: AnsibleModule, work: merkle.Work, manifest: merkle.Manifest) -> dict[str, t.Any]:
    """Verify, and take from the source what is not right."""
    wanted = module.params
    write = not module.check_mode
    stamps = merkle.scan(wanted["path"]) if os.path.lexists(wanted["path"]) else {}
    progress = merkle.Progress(wanted["state_file"] or "", manifest, stamps, work, write)
    found = merkle.verify(wanted["path"], manifest, progress, work)
    repairer = merkle.Repairer(wanted["path"], manifest, wanted["source"], progress, work, write)
    done = repairer.run(found)
    if wanted["quarantine"]:
        lost = [path for path in done.failed if path not in set(found.missing)]
        done.quarantined = merkle.quarantine(wanted["path"], lost, wanted["quarantine"], write)
    wrong = "; ".join(f"{path} ({why})" for path, why in list(done.failed.items())[:5])
    wrong += f" and {len(done.failed) - 5} more" if len(done.failed) > 5 else ""
    progress.say(
        f"finished: {len(done.repaired)} pieces repaired, "
        + (f"not repaired: {wrong}" if wrong else "all is as the manifest says")
    )
    progress.save(finished=True)
    result = {
        "changed": done.changed or bool(done.quarantined) or bool(done.files),
        "intact": not done.failed,
        **totals(manifest, progress.read, progress.resumed),
        **report(found, wanted),
        "repaired_count": len(done.repaired),
        "repaired_files": done.files,
        "unrepaired": [{**piece.as_dict(), "reason": why} for piece, why in done.unrepaired[:LISTED]],
        "quarantined": [{"path": path, "to": to} for path, to in done.quarantined],
    }
    if done.failed and wanted["fail"]:
        module.fail_json(
            msg=f"{wanted['path']} is not what {wanted['manifest']} says and could not be repaired from {wanted['source']}: "
            f"{len(done.failed)} files, {len(done.unrepaired)} pieces: {wrong}",
            **result,
        )
    return result


def repaired(module: AnsibleModule, work: merkle.Work) -> dict[str, t.Any]:
    """One at a time; in check mode nothing is made or locked."""
    wanted = module.params
    manifest = merkle.read_manifest(wanted["manifest"], wanted["root"] or "")
    if module.check_mode:
        if os.path.lexists(wanted["path"]):
            check_quarantine(wanted)
        return mend(module, work, manifest)
    merkle.make_directory(os.path.realpath(wanted["path"]))
    check_quarantine(wanted)
    with merkle.alone(wanted["path"]):
        return mend(module, work, manifest)


def main() -> None:
    """Read the wish, meet it, report."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "manifest": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["built", "verified", "repaired"], "default": "verified"},
            "root": {"type": "str"},
            "piece_mib": {"type": "int", "choices": [1, 2, 4, 8, 16, 32, 64], "default": 4},
            "mode": {"type": "str", "default": "0644"},
            "cache": {"type": "path"},
            "quick": {"type": "bool", "default": False},
            "fail": {"type": "bool", "default": True},
            "source": {"type": "path"},
            "quarantine": {"type": "path"},
            "state_file": {"type": "path"},
            "threads": {"type": "int", "default": 0},
            "nice": {"type": "int", "default": 0},
            "idle_io": {"type": "bool", "default": False},
            "drop_cache": {"type": "bool", "default": False},
        },
        required_if=[("state", "repaired", ["source"])],
        supports_check_mode=True,
    )
    try:
        check_options(module.params)
        be_modest(module)
        work = merkle.Work(threads=module.params["threads"], drop_cache=module.params["drop_cache"])
        result = {"built": built, "verified": verified, "repaired": repaired}[module.params["state"]](module, work)
    except (merkle.MerkleError, OSError) as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
