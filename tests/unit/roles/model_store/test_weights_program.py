# Copyright (c) 2026, gpufleet.deepseek contributors
# SPDX-License-Identifier: Apache-2.0
"""The program as it stands on a host: run as a process, against sources that are real servers, honest ones and others.

What takes a library of the role's environment (swarm, signatures, Hugging Face, S3) is in molecule/model_store, on hosts that have it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights as weights
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_fetch as fetching
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_job as jobs
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _weights_swarm as swarming

ROOT = Path(__file__).resolve().parents[4]
MIB = 1 << 20
SHARED = ("_merkle", "_python_wheel", "_weights", "_weights_fetch", "_weights_job", "_weights_sign", "_weights_swarm")


def content(size: int, mark: int) -> bytes:
    """Bytes that no other mark has."""
    block = hashlib.sha256(str(mark).encode()).digest()
    return (block * (size // len(block) + 1))[:size]


FILES = {
    "model-1.safetensors": content(3 * MIB + 77, 1),
    "model-2.safetensors": content(2 * MIB, 2),
    "sub/config.json": b'{"a": 1}\n',
    "zero": b"",
}


def write_set(folder: Path, files: dict[str, bytes] | None = None) -> merkle.Manifest:
    """A directory of weights and its manifest."""
    for name, data in (files or FILES).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return merkle.build(str(folder), MIB, merkle.Work(threads=1))


class Source:
    """An HTTP server that may misbehave in one way at a time."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.mode, self.asked = dict(files), "", []  # type: dict[str, bytes], str, list[tuple[str, str]]
        self.sent = 0
        self.headers: list[dict[str, str]] = []
        self.go_on = threading.Event()
        source = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                source.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """One answer, in the way that is set."""
        name = request.path.lstrip("/")
        self.headers.append(dict(request.headers))
        wanted = request.headers.get("Range") or ""
        self.asked.append((name, wanted))
        if name not in self.files:
            request.send_error(404)
            return
        data = self.files[name]
        begin = 0
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if match and self.mode != "no range":
            begin = int(match[1])
            if begin >= len(data):
                request.send_response(416)
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            end = int(match[2]) + 1 if match[2] else len(data)
            part = data[begin:end]
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(data)}")
        else:
            part = data
            request.send_response(200)
        promised = len(part) + {"promises more": 100, "promises less": -100}.get(self.mode, 0)
        if self.mode == "no length":
            request.send_header("Connection", "close")
            part = part + b"x" * 100
        else:
            request.send_header("Content-Length", str(promised))
        request.end_headers()
        with contextlib.suppress(OSError):
            self._body(request, part)

    def _body(self, request: http.server.BaseHTTPRequestHandler, part: bytes) -> None:
        half = len(part) // 2
        if self.mode == "halves":
            part = part[: len(part) - half]
        if self.mode == "ends early":
            part = part[:half] if not request.headers.get("Range") else b""
        if self.mode in ("stalls", "waits"):
            half = half if not request.headers.get("Range") else 0
            request.wfile.write(part[:half])
            request.wfile.flush()
            self.sent += half
            self.go_on.wait(60)
            part = part[half:] if self.mode == "waits" else b""
        if self.mode == "trickles":
            for at in range(half):
                request.wfile.write(part[at : at + 1])
                request.wfile.flush()
                if self.go_on.wait(0.1):
                    break
            part = b""
        request.wfile.write(part)
        request.wfile.flush()
        self.sent += len(part)
        if self.mode in ("ends early", "halves", "stalls", "trickles", "no length", "promises more"):
            request.close_connection = True

    def close(self) -> None:
        """End it."""
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


class Host:
    """A host in a directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.models, self.state = place / "models", place / "state"
        self.library = place / "library"
        package = self.library / "ansible_collections" / "gpufleet" / "deepseek" / "plugins" / "module_utils"
        package.mkdir(parents=True)
        (self.library / "ansible_collections" / "__init__.py").write_text("")
        for name in SHARED:
            shutil.copy(ROOT / "plugins" / "module_utils" / f"{name}.py", package)
        self.program = self.library / "gpufleet_weights.py"
        shutil.copy(ROOT / "roles" / "model_store" / "files" / "gpufleet_weights.py", self.program)

    def command(self, *words: str) -> list[str]:
        """A call of the program."""
        return [sys.executable, "-sB", str(self.program), *words]

    def job(self, **options: Any) -> list[str]:
        """A call that runs a job."""
        config = {
            "kind": "fill",
            "job": "test",
            "models": str(self.models),
            "state_dir": str(self.state),
            "listen": "127.0.0.1",
            "stall_seconds": 1,
            "tries": 2,
            "pause": 0.05,
            "parallel": 1,
            "piece_mib": 1,
            "threads": 1,
            **options,
        }
        self.state.mkdir(parents=True, exist_ok=True)
        path = self.state / f"{config['kind']}.job.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return self.command("run", "--job", str(path), "--secrets", str(self.state / "secrets.json"))

    def run(self, **options: Any) -> dict[str, Any]:
        """Run a job to its end and read what it said last."""
        done = subprocess.run(self.job(**options), capture_output=True, text=True, timeout=120, check=False)
        status = jobs.read_status(str(self.state), options.get("kind", "fill"))
        assert status, done.stderr
        assert (done.returncode == 0) == (status["state"] == "done"), (done.stderr, status)
        return status

    def places(self, root: str) -> weights.Places:
        """Where a set lies."""
        return weights.Places(str(self.models), root)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "host")
    yield made
    # Sets are read-only; pytest wants to remove them.
    for where, _folders, _names in os.walk(made.models):
        os.chmod(where, 0o700)


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source(FILES)
    yield made
    made.close()


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    write_set(folder)
    return folder


def url_model(source: Source, root: str, **more: Any) -> dict[str, Any]:
    """A model that comes from the server."""
    return {
        "name": "test",
        "root": root,
        "source": "url",
        "url": source.url,
        "files": {name: {} for name in FILES},
        **more,
    }


def assert_in_place(host: Host, root: str) -> None:
    """The set is whole, under its name, read-only, with all that belongs beside it."""
    places = host.places(root)
    manifest = merkle.read_manifest(places.manifest, root)
    stamps = merkle.scan(places.final)
    work = merkle.Work(threads=1)
    found = merkle.verify(places.final, manifest, merkle.Progress("", manifest, stamps, work), work)
    assert not found.sentence(manifest.count())
    assert os.stat(places.final).st_mode & 0o777 == 0o555
    for path in stamps:
        assert os.stat(os.path.join(places.final, path)).st_mode & 0o777 == 0o444
    assert Path(places.torrent).read_bytes() == swarming.torrent(manifest)
    assert json.loads(Path(places.info).read_text())["root"] == root
    assert not os.path.lexists(places.partial)
    assert weights.look(str(host.models), root).present


@contextlib.contextmanager
def seed(host: Host, root: str) -> Iterator[tuple[int, swarming.Server]]:
    """The HTTP server of a host that has the set, on a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    net = swarming.Net("127.0.0.1", 1, port, ("127.0.0.1",), ("127.0.0.1",))
    server = swarming.serve(str(host.models), [root], net)
    try:
        yield port, server
    finally:
        server.close()


@pytest.fixture
def store(tmp_path: Path, origin: Path) -> Iterator[tuple[Host, str]]:
    """A host that has the set."""
    made = Host(tmp_path / "store")
    root = merkle.build(str(origin), MIB, merkle.Work(threads=1)).root()
    assert made.run(root=root, model={"root": root, "source": "path", "path": str(origin)})["state"] == "done"
    yield made, root
    for where, _folders, _names in os.walk(made.models):
        os.chmod(where, 0o700)


# Sources


def test_a_path_is_copied_proved_and_named(host: Host, origin: Path) -> None:
    root = write_set(origin).root()
    status = host.run(root=root, model={"root": root, "source": "path", "path": str(origin), "name": "test"})
    assert status["state"] == "done", status
    assert_in_place(host, root)
    info = json.loads(Path(host.places(root).info).read_text())
    assert info["source"] == str(origin)
    assert info["files"] == len(FILES)


def test_a_url_is_fetched_and_its_password_is_nowhere(host: Host, source: Source, origin: Path) -> None:
    root = write_set(origin).root()
    model = url_model(source, root, url=source.url.replace("http://", "http://user:hidden-word@"))
    status = host.run(root=root, model=model)
    assert status["state"] == "done", status
    assert_in_place(host, root)
    assert source.headers[-1]["Authorization"].startswith("Basic ")
    texts = [path.read_text() for path in (Path(host.places(root).info), host.state / "fill.status.json")]
    assert not any("hidden-word" in text for text in texts)


def test_a_key_goes_to_the_host_that_it_is_for(source: Source, tmp_path: Path) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", source.url + "sub/config.json")
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/x"
        item = fetching.Item("x", url, None, None, {"Authorization": "Bearer hidden-word"})
        fetching.fetch_items([item], str(tmp_path), fetching.Fetch(stall_seconds=5))
    finally:
        server.shutdown()
        server.server_close()
    assert (tmp_path / "x").read_bytes() == FILES["sub/config.json"]
    assert "Authorization" not in source.headers[-1]


def test_secrets_are_read_once_and_their_file_is_gone(host: Host, origin: Path) -> None:
    root = write_set(origin).root()
    host.state.mkdir(parents=True)
    secrets = host.state / "secrets.json"
    secrets.write_text(json.dumps({"s3_secret_key": "hidden-word"}))
    assert host.run(root=root, model={"root": root, "source": "path", "path": str(origin)})["state"] == "done"
    assert not secrets.exists()
    for path in host.place.rglob("*"):
        if path.is_file() and path.suffix == ".json":
            assert "hidden-word" not in path.read_text()


# Sources that do not do what they should


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("stalls", "stalled"),
        ("trickles", "stalled"),
        ("ends early", "ended after"),
        ("promises more", f"expected {len(FILES['model-1.safetensors'])} bytes, the source says"),
        ("promises less", f"expected {len(FILES['model-1.safetensors'])} bytes, the source says"),
        ("no length", "sends more"),
    ],
)
def test_a_source_that_lies_or_stalls_is_named(host: Host, source: Source, origin: Path, mode: str, says: str) -> None:
    root = write_set(origin).root()
    model = url_model(source, root, files={name: {"bytes": len(data)} for name, data in FILES.items()})
    source.mode = mode
    status = host.run(root=root, model=model)
    assert status["state"] == "failed"
    assert says in status["message"]
    assert "model-1.safetensors from http://127.0.0.1" in status["message"]
    assert not os.path.lexists(host.places(root).final)
    source.mode = ""
    source.go_on.set()
    assert host.run(root=root, model=model)["state"] == "done"
    assert_in_place(host, root)


def test_a_source_that_ends_early_brings_a_little_each_time(host: Host, source: Source, origin: Path) -> None:
    root = write_set(origin).root()
    source.mode = "halves"
    status = host.run(root=root, model=url_model(source, root))
    asked = [int(wanted[6:-1]) for name, wanted in source.asked if name == "model-1.safetensors" and wanted]
    # Half of what is left each time: every attempt goes on further in the file.
    assert asked == sorted(asked)
    assert len(set(asked)) > 10
    assert status["state"] == "done", status
    assert_in_place(host, root)


def test_a_source_without_ranges_begins_again(host: Host, source: Source, origin: Path) -> None:
    root = write_set(origin).root()
    source.mode = "no range"
    partial = Path(host.places(root).partial)
    partial.mkdir(parents=True)
    (partial / "model-1.safetensors.part").write_bytes(b"what an earlier run left")
    assert host.run(root=root, model=url_model(source, root))["state"] == "done"
    assert_in_place(host, root)


def test_other_weights_than_meant_are_set_aside(host: Host, source: Source, origin: Path) -> None:
    root = write_set(origin).root()
    source.files["model-2.safetensors"] = content(2 * MIB, 3)
    status = host.run(root=root, model=url_model(source, root))
    assert status["state"] == "failed"
    assert f"expected the root {root}, found " in status["message"]
    assert not os.path.lexists(host.places(root).final)
    assert not os.path.lexists(host.places(root).partial)
    assert Path(host.places(root).quarantine, "model-2.safetensors").exists()
    source.files["model-2.safetensors"] = FILES["model-2.safetensors"]
    assert host.run(root=root, model=url_model(source, root))["state"] == "done"


def test_a_wrong_checksum_is_named(host: Host, source: Source, origin: Path) -> None:
    root = write_set(origin).root()
    model = url_model(source, root)
    model["files"] = {**model["files"], "model-2.safetensors": {"sha256": "0" * 64}}
    status = host.run(root=root, model=model)
    assert status["state"] == "failed"
    assert f"model-2.safetensors from {source.url}model-2.safetensors: expected sha256 {'0' * 64}" in status["message"]


def test_a_path_that_is_not_mounted_is_named(host: Host, tmp_path: Path) -> None:
    status = host.run(root="0" * 64, model={"root": "0" * 64, "source": "path", "path": str(tmp_path / "none")})
    assert status["message"].endswith("expected a file or a directory on this host, found nothing; is it mounted?")


# Killed runs


def wait_for(true: Any, what: str) -> None:
    """Until something is true, for a minute at most."""
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def test_a_killed_download_is_taken_up(host: Host, source: Source, origin: Path) -> None:
    root = write_set(origin).root()
    source.mode = "waits"
    options = {"root": root, "model": url_model(source, root), "stall_seconds": 60}
    process = subprocess.Popen(host.job(**options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = Path(host.places(root).partial, "model-1.safetensors.part")
    # The server waits in the middle of the file; what it sent may still be on its way to the drive.
    wait_for(lambda: part.exists() and part.stat().st_size > MIB, "no bytes came")
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    source.mode = ""
    source.go_on.set()
    source.asked.clear()
    assert host.run(**options)["state"] == "done"
    assert ("model-1.safetensors", f"bytes={have}-") in source.asked
    assert_in_place(host, root)


def test_a_stopped_job_ends_and_is_taken_up(host: Host, source: Source, origin: Path) -> None:
    root = write_set(origin).root()
    source.mode = "waits"
    options = {"root": root, "model": url_model(source, root), "stall_seconds": 2}
    process = subprocess.Popen(host.job(**options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = Path(host.places(root).partial, "model-1.safetensors.part")
    wait_for(lambda: part.exists() and part.stat().st_size > MIB, "no bytes came")
    process.terminate()
    assert process.wait(timeout=30) == 1
    assert jobs.read_status(str(host.state), "fill")["state"] == "failed"
    source.mode = ""
    source.go_on.set()
    assert host.run(**options)["state"] == "done"
    assert_in_place(host, root)


def test_a_run_killed_before_the_name_is_finished_by_the_next(host: Host, source: Source, origin: Path) -> None:
    """All files are there and sealed, and the rename is what is left."""
    root = write_set(origin).root()
    model = url_model(source, root)
    assert host.run(root=root, model=model)["state"] == "done"
    places = host.places(root)
    os.rename(places.final, places.partial)
    source.asked.clear()
    assert host.run(root=root, model=model)["state"] == "done"
    assert_in_place(host, root)
    assert [name for name, _range in source.asked if name in FILES] == []


# Disks


@pytest.fixture
def small_disk(host: Host) -> Iterator[Path]:
    """A real file system of 4 MiB below the models of the host."""
    host.models.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0755", "tmpfs", str(host.models)], check=True)
    yield host.models
    subprocess.run(["umount", str(host.models)], check=True)


def test_no_room_is_found_before_the_first_byte(host: Host, source: Source, origin: Path, small_disk: Path) -> None:
    root = write_set(origin).root()
    model = url_model(source, root, files={name: {"bytes": len(data)} for name, data in FILES.items()})
    status = host.run(root=root, model=model, margin_bytes=MIB)
    size = sum(map(len, FILES.values()))
    assert (
        f"expected {size + MIB} bytes free ({size} for what is missing and a margin of {MIB}), found "
        in status["message"]
    )
    assert source.sent == 0


def test_a_disk_that_fills_keeps_what_came(host: Host, source: Source, origin: Path, small_disk: Path) -> None:
    root = write_set(origin).root()
    status = host.run(root=root, model=url_model(source, root))
    assert "ran full" in status["message"]
    assert "for a run that has room" in status["message"]
    assert Path(host.places(root).partial, "model-1.safetensors").stat().st_size == len(FILES["model-1.safetensors"])
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    source.asked.clear()
    assert host.run(root=root, model=url_model(source, root))["state"] == "done"
    assert "model-1.safetensors" not in [name for name, _range in source.asked]
    assert_in_place(host, root)


# Copies from a seed, repair


def test_a_copy_comes_from_a_seed(host: Host, store: tuple[Host, str]) -> None:
    _other, root = store
    with seed(*store) as (port, server):
        status = host.run(
            root=root,
            model={"root": root, "source": "set"},
            distribution="copy",
            seeds=["127.0.0.1"],
            http_port=port,
        )
    assert status["state"] == "done", status
    assert_in_place(host, root)
    assert server.served.sent >= sum(map(len, FILES.values()))


def test_a_seed_that_is_gone_is_followed_by_the_source(
    host: Host, store: tuple[Host, str], source: Source, origin: Path
) -> None:
    _other, root = store
    with seed(*store) as (port, server):
        server.served.bucket.rate = 1e6
        model = url_model(source, root)
        argv = host.job(root=root, model=model, distribution="copy", seeds=["127.0.0.1"], http_port=port)
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part = Path(host.places(root).partial, "model-1.safetensors.part")
        wait_for(lambda: part.exists() and part.stat().st_size > 0, "no bytes came")
        # The seed goes away in the middle: no new connection, and the old one ends.
        server.served.roots.clear()
        server.close()
        server.served.bucket.rate = 1
        assert process.wait(timeout=60) == 0
    lines = [line["text"] for line in jobs.read_status(str(host.state), "fill")["lines"]]
    assert any(line.startswith("copy from 127.0.0.1: ") and "going on with the next way" in line for line in lines)
    # What the seed gave is not fetched again.
    assert any(name == "model-1.safetensors" and wanted for name, wanted in source.asked)
    assert_in_place(host, root)


def from_seed(root: str) -> dict[str, Any]:
    """A job that copies a set from a seed on this machine."""
    return {
        "root": root,
        "model": {"root": root, "source": "set"},
        "distribution": "copy",
        "seeds": ["127.0.0.1"],
    }


def test_only_damaged_pieces_are_fetched_again(host: Host, store: tuple[Host, str]) -> None:
    _other, root = store
    options = from_seed(root)
    with seed(*store) as (port, server):
        assert host.run(**options, http_port=port)["state"] == "done"
        places = host.places(root)
        damaged = Path(places.final, "model-1.safetensors")
        before = damaged.stat().st_ino
        with damaged.open("r+b") as stream:
            stream.seek(MIB + 5)
            stream.write(b"damage")
        assert weights.look(str(host.models), root).present
        verify = host.command("verify", "--models", str(host.models), "--state-dir", str(host.state))
        done = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert f"1 of 7 pieces damaged (model-1.safetensors piece 1 at {MIB}, {MIB} bytes)" in done.stderr
        found = weights.look(str(host.models), root, str(host.state))
        assert (found.present, found.damaged) == (False, 1)
        sent = server.served.sent
        status = host.run(**options, http_port=port)
        assert status["state"] == "done", status
        assert status["result"]["repaired_pieces"] == 1
        # The manifest is at home already: one piece, and nothing else, came over the network.
        assert server.served.sent - sent == MIB
        assert damaged.stat().st_ino == before
    assert_in_place(host, root)
    assert weights.look(str(host.models), root, str(host.state)).present
    assert subprocess.run(verify, capture_output=True, check=False, timeout=60).returncode == 0


def test_missing_and_extra_files_are_put_right(host: Host, store: tuple[Host, str]) -> None:
    _other, root = store
    options = from_seed(root)
    with seed(*store) as (port, _server):
        assert host.run(**options, http_port=port)["state"] == "done"
        final = Path(host.places(root).final)
        (final / "model-2.safetensors").unlink()
        (final / "stranger").write_text("x")
        reason = weights.look(str(host.models), root).reason
        assert "1 missing (model-2.safetensors)" in reason
        assert "1 extra (stranger)" in reason
        assert host.run(**options, http_port=port)["state"] == "done"
    assert_in_place(host, root)
    assert not (final / "stranger").exists()


def test_a_changed_manifest_is_not_believed(host: Host, store: tuple[Host, str]) -> None:
    other, root = store
    options = from_seed(root)
    with seed(*store) as (port, _server):
        assert host.run(**options, http_port=port)["state"] == "done"
        mine, theirs = Path(host.places(root).manifest), Path(other.places(root).manifest)
        good = mine.read_text()
        changed = good.replace('"path": "model-2', '"path": "model-9').replace("model-1", "model-0", 1)
        mine.write_text(changed)
        assert not weights.look(str(host.models), root).present
        assert host.run(**options, http_port=port)["state"] == "done"
        assert mine.read_text() == good
        # A seed that serves a changed one is not believed either.
        theirs.write_text(changed)
        empty = Host(host.place / "second")
        status = empty.run(**options, http_port=port)
    assert status["state"] == "failed"
    assert any("it is not used" in line["text"] for line in status["lines"])
    assert not os.path.lexists(empty.places(root).final)


def test_damage_that_nobody_can_mend_goes_to_quarantine(host: Host, store: tuple[Host, str]) -> None:
    other, root = store
    bad = Path(other.places(root).final, "model-2.safetensors")
    with bad.open("r+b") as stream:
        stream.write(b"damage")
    with seed(*store) as (port, _server):
        status = host.run(
            root=root,
            model={"root": root, "source": "set"},
            distribution="copy",
            seeds=["127.0.0.1"],
            http_port=port,
        )
    assert status["state"] == "failed"
    assert "1 damaged files were moved to" in status["message"]
    assert not os.path.lexists(host.places(root).final)
    assert Path(host.places(root).quarantine, "model-2.safetensors").exists()
    assert Path(host.places(root).partial, "model-1.safetensors").exists()


def test_the_server_gives_nothing_else_to_nobody_else(store: tuple[Host, str]) -> None:
    other, root = store
    (Path(other.models) / "weights" / "secret").write_text("x")
    how = fetching.Fetch(stall_seconds=5, tries=1)
    with seed(*store) as (port, server):
        base = f"http://127.0.0.1:{port}"
        for path in (
            "/weights/secret",
            "/weights/",
            f"/weights/{root}",
            f"/weights/{root}/../secret",
            f"/weights/{root}/%2e%2e/secret",
            f"/weights/{root}.json",
            "/etc/passwd",
        ):
            assert fetching.get(base + path, how) is None, path
        assert fetching.get(f"{base}/weights/{root}/sub/config.json", how) == FILES["sub/config.json"]
        server.served.allowed = frozenset(["192.0.2.1"])
        with pytest.raises(weights.WeightsError):
            fetching.get(f"{base}/weights/{root}/sub/config.json", how)


# Sets that share files


def test_files_of_another_set_are_linked_once_they_are_proved(
    host: Host, store: tuple[Host, str], tmp_path: Path
) -> None:
    _other, root = store
    with seed(*store) as (port, server):
        options: dict[str, Any] = {"distribution": "copy", "seeds": ["127.0.0.1"], "http_port": port}
        second = tmp_path / "second"
        files = {**FILES, "model-2.safetensors": content(2 * MIB, 9)}
        manifest = write_set(second, files)
        model = {"root": manifest.root(), "source": "path", "path": str(second)}
        assert host.run(root=manifest.root(), model=model)["state"] == "done"
        sent = server.served.sent
        status = host.run(root=root, model={"root": root, "source": "set"}, **options)
        assert status["state"] == "done", status
        # model-1 and the configuration are linked; model-2 and the manifest came.
        assert status["result"]["linked_files"] == 2
        came = server.served.sent - sent
        assert 2 * MIB < came < 2 * MIB + 20000
    one, two = (Path(host.places(name).final, "model-1.safetensors") for name in (root, manifest.root()))
    assert one.stat().st_ino == two.stat().st_ino
    assert_in_place(host, root)
    assert_in_place(host, manifest.root())


def test_a_damaged_file_of_another_set_is_not_linked(host: Host, store: tuple[Host, str], tmp_path: Path) -> None:
    _other, root = store
    second = tmp_path / "second"
    files = {**FILES, "model-2.safetensors": content(2 * MIB, 9)}
    manifest = write_set(second, files)
    model = {"root": manifest.root(), "source": "path", "path": str(second)}
    assert host.run(root=manifest.root(), model=model)["state"] == "done"
    theirs = Path(host.places(manifest.root()).final, "model-1.safetensors")
    with theirs.open("r+b") as stream:
        stream.write(b"damage")
    with seed(*store) as (port, _server):
        status = host.run(
            root=root,
            model={"root": root, "source": "set"},
            distribution="copy",
            seeds=["127.0.0.1"],
            http_port=port,
        )
    assert status["result"]["linked_files"] == 1
    assert_in_place(host, root)
    assert theirs.read_bytes()[:6] == b"damage"


# Publishing, the status


def test_publish_tells_the_root_and_a_second_one_fetches_nothing(host: Host, source: Source, origin: Path) -> None:
    root = write_set(origin).root()
    model = {"name": "a model", "source": "url", "url": source.url, "files": {name: {} for name in FILES}}
    status = host.run(kind="publish", model=model)
    assert (status["state"], status["root"]) == ("done", root)
    assert_in_place(host, root)
    source.asked.clear()
    assert host.run(kind="publish", root=root, model={**model, "root": root})["state"] == "done"
    assert source.asked == []


def test_the_status_is_told_when_it_has_news(host: Host, origin: Path) -> None:
    root = write_set(origin).root()
    assert host.run(root=root, model={"root": root, "source": "path", "path": str(origin)})["state"] == "done"
    ask = host.command("status", "--state-dir", str(host.state), "--job", "test", "--timeout", "5")
    said = json.loads(subprocess.run(ask, capture_output=True, check=True, timeout=60).stdout)
    assert (said["state"], said["root"]) == ("done", root)
    assert said["lines"][-1]["text"].startswith(f"{root[:12]} is proved and in place")


def test_a_job_that_was_killed_has_failed(
    host: Host, source: Source, origin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last status says that it runs; that its unit is over says otherwise."""
    root = write_set(origin).root()
    source.mode = "waits"
    argv = host.job(root=root, model=url_model(source, root), stall_seconds=60)
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: source.sent > 0, "no bytes came")
    process.kill()
    process.wait()
    spec = importlib.util.spec_from_file_location("gpufleet_weights", host.program)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    said = {}
    for over in (False, True):
        monkeypatch.setattr(program, "ended", lambda _unit, over=over: over)
        assert program.command_status(str(host.state), "fill", "test", 10**6, 0.0, "the.service") == 0
        said[over] = json.loads(capsys.readouterr().out)
    assert said[False]["state"] == "running"
    assert said[True]["state"] == "failed"
    assert "journalctl -u the.service" in said[True]["message"]


def test_metrics_are_whole_and_named(host: Host, origin: Path) -> None:
    root = write_set(origin).root()
    metrics = host.place / "metrics"
    metrics.mkdir()
    model = {"root": root, "source": "path", "path": str(origin)}
    assert host.run(root=root, model=model, metrics_dir=str(metrics))["state"] == "done"
    verify = host.command(
        "verify", "--models", str(host.models), "--state-dir", str(host.state), "--metrics-dir", str(metrics)
    )
    assert subprocess.run(verify, capture_output=True, check=False, timeout=60).returncode == 0
    text = (metrics / "gpufleet_weights_verify.prom").read_text()
    assert f'gpufleet_weights_verify_damaged_pieces{{root="{root}"}} 0' in text
    assert (
        f'gpufleet_weights_transfer_running{{job="fill",root="{root}"}} 0'
        in (metrics / "gpufleet_weights_transfer.prom").read_text()
    )
    with Path(host.places(root).final, "model-2.safetensors").open("r+b") as stream:
        stream.write(b"damage")
    assert subprocess.run(verify, capture_output=True, check=False, timeout=60).returncode == 1
    text = (metrics / "gpufleet_weights_verify.prom").read_text()
    assert f'gpufleet_weights_verify_damaged_pieces{{root="{root}"}} 1' in text
