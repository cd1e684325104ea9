# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Hand a set from host to host: a BitTorrent v2 swarm of the fleet's own addresses, and a read-only HTTP server for what a swarm cannot do.

The torrent is made from the manifest, whose trees are those of BitTorrent v2, so that there is one truth. There is no tracker and no discovery: whoever
starts the agent names the peers, and everybody else is filtered out.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib
import ipaddress
import os
import re
import socket
import threading
import time
import typing as t
import urllib.parse
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights import Places, WeightsError
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights_fetch import Bucket

_CHUNK = 1 << 18
# First and last address of each family.
_EVERYBODY = (
    (str(ipaddress.IPv4Address(0)), str(ipaddress.IPv4Address((1 << 32) - 1))),
    (str(ipaddress.IPv6Address(0)), str(ipaddress.IPv6Address((1 << 128) - 1))),
)
_CONNECTIONS = 64
_SOCKET_SECONDS = 60.0
_RECONNECT_SECONDS = 0.5
_FLUSH_SECONDS = 300.0
# Priorities of the library: before all others, and the usual one.
_FIRST, _SOME = 7, 4


def rate(mbit: float) -> float:
    """Bytes for a second, of a rate in Mbit/s."""
    return mbit * 1e6 / 8


def resolve(address: str) -> str:
    """The IP address of a host."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        pass
    try:
        return str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as exc:
        raise WeightsError(f"{address} is neither an IP address nor a name that this host can resolve: {exc}") from None


# The torrent


def bencode(value: t.Any) -> bytes:
    """Text, bytes, whole numbers, lists and mappings as BitTorrent writes them."""
    if isinstance(value, bool):
        raise TypeError("bencode has no booleans")
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode("utf-8")
    if isinstance(value, (bytes, bytearray)):
        return b"%d:%s" % (len(value), bytes(value))
    if isinstance(value, (list, tuple)):
        return b"l" + b"".join(bencode(one) for one in value) + b"e"
    pairs = sorted((key.encode("utf-8") if isinstance(key, str) else key, one) for key, one in value.items())
    return b"d" + b"".join(bencode(key) + bencode(one) for key, one in pairs) + b"e"


def torrent(manifest: merkle.Manifest) -> bytes:
    """The set as a private torrent of version 2 that is named by its root."""
    tree: dict[str, t.Any] = {}
    layers: dict[bytes, bytes] = {}
    for entry in manifest.files:
        *folders, name = entry.path.split("/")
        place = tree
        for one in folders:
            place = place.setdefault(one, {})
        leaf: dict[str, t.Any] = {"length": entry.size}
        if entry.size:
            leaf["pieces root"] = entry.root
        place[name] = {"": leaf}
        if entry.size > manifest.piece_length:
            layers[entry.root] = entry.layer
    info = {
        "file tree": tree,
        "meta version": 2,
        "name": manifest.root(),
        "piece length": manifest.piece_length,
        "private": 1,
    }
    return bencode({"info": info, "piece layers": layers})


# The agent


@dataclass(frozen=True)
class Net:
    """Where the agent listens, whom it knows, and how fast it may be."""

    listen: str
    port: int
    http_port: int
    peers: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    uplink_mbit: float = 0
    downlink_mbit: float = 0
    web_seeds: tuple[str, ...] = ()


@dataclass
class Snapshot:
    """How far a torrent is."""

    done: int = 0
    total: int = 0
    down: float = 0.0
    up: float = 0.0
    peers: int = 0
    sent: int = 0
    complete: bool = False
    checking: bool = False
    error: str = ""
    complete_peers: set[str] = field(default_factory=set)


class Agent:
    """A session of libtorrent that knows nobody but the fleet."""

    def __init__(self, net: Net, links: str, share: tuple[int, int] = (0, 1), library: t.Any = None) -> None:
        """Listen. ``links`` is a directory for the names by which the library finds the sets, ``share`` the number of this host among those that lack it."""
        self.lt = library if library is not None else importlib.import_module("libtorrent")
        self.net, self.links, self.share = net, links, share
        self.peers = {address: resolve(address) for address in net.peers}
        self.handle: t.Any = None
        self.connected = 0.0
        address = resolve(net.listen)
        where = f"[{address}]:{net.port}" if ":" in address else f"{address}:{net.port}"
        settings = {
            "listen_interfaces": where,
            "outgoing_interfaces": address,
            "user_agent": "gpufleet-weights/1",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "announce_to_all_trackers": False,
            "close_redundant_connections": False,
            "allow_multiple_connections_per_ip": False,
            "upload_rate_limit": int(rate(net.uplink_mbit)),
            "download_rate_limit": int(rate(net.downlink_mbit)),
            "connections_limit": max(2 * len(net.allowed), 16),
            "peer_connect_timeout": 10,
            "min_reconnect_time": 1,
            "torrent_connect_boost": 0,
            # Everybody serves everybody: all of them belong together.
            "unchoke_slots_limit": -1,
            # Short queues: what is asked for early is asked for without knowing what the others have by then, and what waits in the buffers of one
            # connection keeps the others of the same line waiting.
            "request_queue_time": 1,
            "max_out_request_queue": 64,
            "predictive_piece_announce": 500,
            "rate_limit_ip_overhead": False,
            "initial_picker_threshold": 0,
            "whole_pieces_threshold": 1,
            **self._buffers(net.uplink_mbit),
            "alert_mask": self.lt.alert.category_t.error_notification | self.lt.alert.category_t.storage_notification,
        }
        self.session = self.lt.session({**settings, "dht_bootstrap_nodes": ""})
        self._filter()
        if not self._listens():
            self.close()
            raise WeightsError(f"cannot listen on {where}: the port is taken or the address is not this host's")

    @staticmethod
    def _buffers(uplink_mbit: float) -> dict[str, int]:
        """Buffers of a connection: as much as the line sends in 10 ms, where its rate is known."""
        size = min(max(int(rate(uplink_mbit) / 100), 1 << 16), 1 << 20) if uplink_mbit else 1 << 18
        return {
            "send_buffer_watermark": size,
            "send_buffer_low_watermark": 1 << 14,
            "send_buffer_watermark_factor": 10,
            "send_socket_buffer_size": size,
        }

    def _filter(self) -> None:
        allowed, everybody = self.lt.ip_filter(), self.lt.ip_filter()
        for first, last in _EVERYBODY:
            allowed.add_rule(first, last, 1)
            # Rates hold for neighbours in the same network as well, which the library would not limit.
            everybody.add_rule(first, last, 1 << int(self.lt.session.global_peer_class_id))
        for address in {resolve(one) for one in (*self.net.allowed, *self.net.peers)}:
            allowed.add_rule(address, address, 0)
        self.session.set_ip_filter(allowed)
        self.session.set_peer_class_filter(everybody)

    def _listens(self) -> bool:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if self.session.is_listening() and self.session.listen_port() == self.net.port:
                return True
            time.sleep(0.05)
        return False

    def add(self, manifest: merkle.Manifest, folder: str, whole: bool) -> None:
        """Take part with a directory; ``whole`` when every byte of it is proved."""
        self.remove()
        root = manifest.root()
        merkle.make_directory(self.links)
        link = os.path.join(self.links, root)
        fresh = link + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        os.symlink(folder, fresh)
        os.replace(fresh, link)
        # The library's own limits are those for torrents of strangers; this one is ours, and its pieces are many.
        wanted = self.lt.load_torrent_buffer(
            torrent(manifest), {"max_buffer_size": 1 << 30, "max_pieces": 1 << 24, "max_decode_tokens": 1 << 26}
        )
        # A set of one file has no directory of its own in a torrent.
        alone = len(manifest.files) == 1 and "/" not in manifest.files[0].path
        wanted.save_path = link if alone else self.links
        flags = self.lt.torrent_flags
        wanted.flags = (wanted.flags | flags.disable_dht | flags.disable_lsd | flags.disable_pex) & ~(
            flags.auto_managed | flags.paused
        )
        if whole:
            wanted.flags |= flags.seed_mode
        if self.net.web_seeds and not whole:
            wanted.url_seeds = [
                f"{url.rstrip('/')}/{root}/" if alone else f"{url.rstrip('/')}/" for url in self.net.web_seeds
            ]
        if self.share[1] > 1 and not whole:
            wanted.piece_priorities = self._own_share(manifest.count())
        self.handle = self.session.add_torrent(wanted)
        self.connect()

    def _own_share(self, count: int) -> list[int]:
        """Ask the seeds for other pieces than the others do, so that they send each piece about once and the hosts have much to exchange."""
        number, hosts = self.share
        return [_FIRST if piece % hosts == number else _SOME for piece in range(count)]

    def connect(self) -> None:
        """Ask the peers that are not connected."""
        self.connected = time.monotonic()
        known = {peer.ip[0] for peer in self.handle.get_peer_info()}
        for address in self.peers.values():
            if address not in known and address != resolve(self.net.listen):
                self.handle.connect_peer((address, self.net.port))

    def snapshot(self) -> Snapshot:
        """How far it is; peers that are missing are asked again from time to time."""
        status = self.handle.status()
        seeds = set()
        infos = self.handle.get_peer_info()
        for peer in infos:
            if peer.flags & self.lt.peer_info.seed:
                seeds.add(peer.ip[0])
        if time.monotonic() - self.connected > _RECONNECT_SECONDS:
            self.connect()
        states = self.lt.torrent_status.states
        return Snapshot(
            done=status.total_wanted_done,
            total=status.total_wanted,
            down=status.download_payload_rate,
            up=status.upload_payload_rate,
            peers=len(infos),
            sent=status.total_payload_upload,
            complete=bool(status.is_finished or status.is_seeding),
            checking=status.state in (states.checking_files, states.checking_resume_data),
            error=status.errc.message() if status.errc.value() else "",
            complete_peers={name for name, address in self.peers.items() if address in seeds},
        )

    def flush(self) -> None:
        """Have everything written that is still in memory: what reads the files afterwards must find them at rest."""
        self.session.pop_alerts()
        self.handle.flush_cache()
        until = time.monotonic() + _FLUSH_SECONDS
        while time.monotonic() < until:
            self.session.wait_for_alert(500)
            if any(one.what() == "cache_flushed" for one in self.session.pop_alerts()):
                return
        raise WeightsError(f"the last pieces could not be written within {_FLUSH_SECONDS:g} s")

    def remove(self) -> None:
        """Leave the torrent and close its files."""
        if self.handle is None:
            return
        self.session.remove_torrent(self.handle)
        until = time.monotonic() + 30
        while self.handle.is_valid() and time.monotonic() < until:
            time.sleep(0.02)
        self.handle = None

    def close(self) -> None:
        """Leave the swarm."""
        self.remove()
        self.session.pause()
        del self.session


# The server


@dataclass
class Served:
    """Sets that may be read, and by whom."""

    models: str
    roots: dict[str, dict[str, int]]
    allowed: frozenset[str]
    bucket: Bucket
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, number: int) -> None:
        """Bytes that went out."""
        with self.lock:
            self.sent += number

    def find(self, target: str) -> str:
        """The file behind a URL path, or nothing. Names are looked up in the manifests, so that no path leads anywhere else."""
        parts = urllib.parse.unquote(urllib.parse.urlsplit(target).path).split("/", 3)
        if len(parts) < 3 or parts[0] or parts[1] != "weights":
            return ""
        if len(parts) == 3:
            root, dot, ending = parts[2].partition(".")
            if root in self.roots and dot and ending in ("merkle.json", "sig", "torrent"):
                return os.path.join(self.models, "weights", parts[2])
            return ""
        if parts[2] in self.roots and parts[3] in self.roots[parts[2]]:
            return os.path.join(Places(self.models, parts[2]).final, parts[3])
        return ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "gpufleet-weights"
    sys_version = ""
    timeout = _SOCKET_SECONDS

    def log_message(self, format: str, *args: t.Any) -> None:  # the base class names it so
        """Say nothing: every piece is a request."""

    def do_HEAD(self) -> None:
        """Headers alone."""
        self._answer(False)

    def do_GET(self) -> None:
        """A file, or a part of it."""
        self._answer(True)

    def _answer(self, body: bool) -> None:
        served = t.cast("Server", self.server).served
        path = served.find(self.path)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else -1
        except OSError:
            handle = -1
        if handle < 0:
            self.send_error(404)
            return
        with os.fdopen(handle, "rb") as stream:
            size = os.fstat(handle).st_size
            begin, end = 0, size
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if asked:
                begin = int(asked[1])
                end = min(int(asked[2]) + 1, size) if asked[2] else size
            if asked and begin >= end:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(end - begin))
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            self.end_headers()
            if body:
                self._send(stream, begin, end, served)

    def _send(self, stream: t.BinaryIO, begin: int, end: int, served: Served) -> None:
        stream.seek(begin)
        while begin < end:
            chunk = stream.read(min(_CHUNK, end - begin))
            if not chunk:
                self.close_connection = True
                return
            self.wfile.write(chunk)
            begin += len(chunk)
            served.count(len(chunk))
            time.sleep(served.bucket.take(len(chunk)))


class Server(http.server.ThreadingHTTPServer):
    """Files of proved sets for the fleet's addresses, and nothing else for nobody else."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, listen: str, port: int, served: Served) -> None:
        """Listen."""
        address = resolve(listen)
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.served = served
        self.free = threading.BoundedSemaphore(_CONNECTIONS)
        try:
            super().__init__((address, port), _Handler)
        except OSError as exc:
            raise WeightsError(f"cannot listen on {address}:{port}: {exc.strerror}") from None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def verify_request(self, request: t.Any, client_address: t.Any) -> bool:
        """Only the fleet."""
        return str(client_address[0]) in self.served.allowed

    def process_request(self, request: t.Any, client_address: t.Any) -> None:
        """Bounded: who comes when all places are taken is sent away and tries again."""
        if not self.free.acquire(timeout=5):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: t.Any, client_address: t.Any) -> None:
        """Give the place back at the end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: t.Any, client_address: t.Any) -> None:
        """A client that went away is no news."""

    def close(self) -> None:
        """Stop."""
        self.shutdown()
        self.server_close()


def serve(models: str, roots: t.Iterable[str], net: Net) -> Server:
    """Serve sets that are in place."""
    names = {}
    for root in roots:
        manifest = merkle.read_manifest(Places(models, root).manifest, root)
        names[root] = {entry.path: entry.size for entry in manifest.files}
    allowed = frozenset(resolve(one) for one in (*net.allowed, *net.peers))
    return Server(net.listen, net.http_port, Served(models, names, allowed, Bucket(rate(net.uplink_mbit))))


def seed_url(address: str, http_port: int, path: str) -> str:
    """Where a seed has a file."""
    ip = resolve(address)
    host = f"[{ip}]" if ":" in ip else ip
    return f"http://{host}:{http_port}/weights/{urllib.parse.quote(path)}"
