# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Take one peer out of a gateway, let it in again, change its weight: what is kept on the gateway, its configuration, the running nginx."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import time
import typing as t
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _gateway_policy
from ansible_collections.gpufleet.deepseek.plugins.module_utils._flock import alone

# The first words of a configuration that role gateway wrote.
MARK = "# gpufleet.deepseek gateway"
# A peer of the inventory's state up that somebody holds.
HELD = "held"

_PLACE_OF_ID = "@config_id@"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_CONFIG_ID = re.compile(r"^\s*add_header X-Config-Id (\S+);$", re.MULTILINE)
_PEER = re.compile(
    r"^(?P<head>\s*server (?P<endpoint>\S+) weight=)(?P<weight>\d+)(?P<rest>[^;#\n]*?)(?: down)?;"
    r"  # (?P<name>\S+), (?P<state>up|drain|down|held)$",
    re.MULTILINE,
)
# With the balancer lua, nginx.conf names the files and not the peers.
_LUA_PEERS = re.compile(r'^\s*peers = "([^"\n]+)",$', re.MULTILINE)
_LUA_POLICY = re.compile(r'^\s*policy = "([^"\n]+)",$', re.MULTILINE)
_TLS_PAIR = re.compile(r"^\s*proxy_ssl_certificate (\S+);$", re.MULTILINE)
_TLS_CA = re.compile(r"^\s*proxy_ssl_trusted_certificate (\S+);$", re.MULTILINE)
_FIRST_ID = re.compile(r'\s*{\s*"id"\s*:\s*"([0-9a-f]{64})"')
LOCK = Path("/run/gpufleet-gateway-peer.lock")
WEIGHTS = (1, 256)
# Nothing must be in flight for so many seconds on end: an old worker may still be reading a request that it then sends to the peer.
_QUIET = 3
# A worker of the Lua gateway looks for a new file once a second. Seconds until one must use it, from then until all do, and until an
# error that the status page shows is not one of an earlier file.
_TAKEN_WITHIN = 15
_TAKEN_BY_ALL = 2
_ERROR_STANDS = 3
# So many answers, or one for each worker, when nothing was written: then it is only a look.
_TAKEN_ANSWERS = 3
_CONNECT_TIMEOUT = 2.0


class GatewayPeerError(Exception):
    """The wish cannot be met; the text says why."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


# -- what is kept on the gateway ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hold:
    """Why a peer gets no requests.

    :ivar served: whether the peer accepted connections when it was taken out; one that did not has nothing to prove before it is let in.
    """

    owner: str
    reason: str
    since: str
    served: bool = True


@dataclass(frozen=True)
class Override:
    """A weight that somebody gave a peer instead of the planned one.

    :ivar planned: the weight that the configuration had before the first override.
    """

    weight: int
    owner: str
    reason: str
    since: str
    planned: int


def kept_file(folder: Path, peer: str) -> Path:
    """Where the holds of a peer lie, or its weight."""
    if not _NAME.fullmatch(peer):
        raise GatewayPeerError(f"name: expected letters, digits, dots, dashes and underscores, found {peer!r}")
    return folder / f"{peer}.json"


def _read_kept(path: Path) -> dict[str, t.Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or not found:
        raise ValueError("no JSON object")
    return found


def read_holds(folder: Path, peer: str) -> list[Hold]:
    """The holds on a peer. A file that cannot be read is somebody's hold all the same."""
    path = kept_file(folder, peer)
    try:
        found = _read_kept(path)
        return [
            Hold(str(one["owner"]), str(one["reason"]), str(one["since"]), bool(one.get("served", True)))
            for one in (found["holds"] if found else [])
        ]
    except (ValueError, KeyError, TypeError) as exc:
        raise GatewayPeerError(
            f"{path}: expected holds as this module writes them, found something else ({exc}). "
            "The peer stays as it is; delete the file when nobody holds the peer."
        ) from exc


def write_holds(folder: Path, peer: str, holds: t.Sequence[Hold]) -> None:
    """Keep the holds; the file is there exactly while the peer is held."""
    _keep(kept_file(folder, peer), {"peer": peer, "holds": [vars(hold) for hold in holds]} if holds else {})


def read_override(folder: Path, peer: str) -> Override | None:
    """The weight that somebody gave a peer."""
    path = kept_file(folder, peer)
    try:
        found = _read_kept(path)
        if not found:
            return None
        owner, reason, since = (str(found[name]) for name in ("owner", "reason", "since"))
        return Override(int(found["weight"]), owner, reason, since, int(found["planned"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise GatewayPeerError(
            f"{path}: expected a weight as this module writes it, found something else ({exc}). "
            "The peer stays as it is; delete the file and run gateway.yml for the planned weight."
        ) from exc


def write_override(folder: Path, peer: str, override: Override | None) -> None:
    """Keep the weight; the file is there exactly while there is one."""
    _keep(kept_file(folder, peer), {"peer": peer, **vars(override)} if override else {})


def _keep(path: Path, known: t.Mapping[str, t.Any]) -> None:
    if not known:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    folder = path.parent
    for parent in (folder.parent.parent, folder.parent, folder):
        if not parent.is_dir():
            parent.mkdir(parents=True, exist_ok=True)
            parent.chmod(0o755)
    _stage(path, json.dumps(known, indent=2, sort_keys=True) + "\n", f".{path.name}.new").replace(path)


def _stage(path: Path, text: str, name: str) -> Path:
    """Write a file of that name beside the place; the caller moves it there."""
    staged = path.with_name(name)
    with staged.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    staged.chmod(0o644)
    return staged


# -- the configuration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """The name in a peer's certificate, and files: the gateway's own certificate with its key, and the authority of the peers."""

    name: str
    pair: str
    authority: str


@dataclass(frozen=True)
class Peer:
    """A peer as the configuration has it.

    :ivar identity: with TLS only.
    """

    name: str
    endpoint: str
    weight: int
    state: str
    identity: Identity | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _colon, port = self.endpoint.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Pool:
    """Peers that share requests."""

    name: str
    peers: t.Sequence[Peer]


class Config(ABC):
    """What decides who gets requests: a file as text, and what it says.

    :cvar judge: what says whether a new file is good.
    :cvar held: how the file writes the state of a peer that is held.
    :cvar left: how people are told about what is in flight when the time is over.
    """

    judge: t.ClassVar[str]
    held: t.ClassVar[str]
    left: t.ClassVar[str]
    path: Path
    text: str

    @property
    @abstractmethod
    def pools(self) -> list[Pool]:
        """The pools in their order. The balancer native has one, without a name."""

    @property
    @abstractmethod
    def id(self) -> str:
        """What the running nginx names when it uses this configuration."""

    @abstractmethod
    def with_peer(self, name: str, state: str | None = None, weight: int | None = None) -> Config:
        """The same with another state or weight of one peer, to the letter as role gateway would write it."""

    @property
    def peers(self) -> list[Peer]:
        """Each peer once."""
        found: dict[str, Peer] = {}
        for pool in self.pools:
            for peer in pool.peers:
                found.setdefault(peer.name, peer)
        return list(found.values())

    def peer(self, name: str) -> Peer | None:
        """The peer of that name."""
        return next((peer for peer in self.peers if peer.name == name), None)


@dataclass(frozen=True)
class NativeConfig(Config):
    """nginx.conf, which names the peers. Without text there is no gateway of this collection."""

    path: Path
    text: str = ""

    judge = "nginx"
    held = HELD
    left = "connections of the gateway are left after {} s; what runs on them is cut when the host stops serving"

    @property
    def pools(self) -> list[Pool]:
        """One."""
        peers = [
            Peer(found["name"], found["endpoint"], int(found["weight"]), found["state"])
            for found in _PEER.finditer(self.text)
        ]
        return [Pool("", peers)]

    @property
    def id(self) -> str:
        """The hash of the text."""
        found = _CONFIG_ID.search(self.text)
        return found[1] if found else ""

    def with_peer(self, name: str, state: str | None = None, weight: int | None = None) -> NativeConfig:
        """The text with another line."""

        def line(found: re.Match[str]) -> str:
            now, share = state or found["state"], found["weight"] if weight is None else str(weight)
            if found["name"] != name or (now, share) == (found["state"], found["weight"]):
                return found[0]
            return f"{found['head']}{share}{found['rest']}{'' if now == 'up' else ' down'};  # {name}, {now}"

        plain = _PEER.sub(line, self.text)
        if plain == self.text:
            return self
        if self.id:
            plain = plain.replace(self.id, _PLACE_OF_ID)
            plain = plain.replace(_PLACE_OF_ID, hashlib.sha256(plain.encode()).hexdigest())
        return replace(self, text=plain)


@dataclass(frozen=True)
class LuaConfig(Config):
    """peers.json of the Lua gateway.

    :ivar policy: the other file of its configuration.
    :ivar pair, authority: files for TLS with the engines, where nginx.conf names them.
    """

    path: Path
    policy: Path
    text: str
    pair: str = ""
    authority: str = ""

    judge = "gwcheck"
    held = "drain"
    left = "requests of the gateway are left after {} s; they are cut when the host stops serving"

    @property
    def pools(self) -> list[Pool]:
        """Those of the file."""
        try:
            return [
                Pool(str(pool["name"]), [self._peer(peer) for peer in pool["peers"]])
                for pool in json.loads(self.text)["pools"]
            ]
        except (ValueError, KeyError, TypeError) as exc:
            raise GatewayPeerError(
                f"{self.path}: expected the peers as role gateway writes them, found something else ({exc})."
                " Nothing was changed; run gateway.yml."
            ) from exc

    def _peer(self, found: t.Mapping[str, t.Any]) -> Peer:
        address, sni = str(found["address"]), str(found.get("sni") or "")
        host = f"[{address}]" if ":" in address else address
        identity = Identity(sni, self.pair, self.authority) if sni else None
        return Peer(str(found["name"]), f"{host}:{found['port']}", int(found["weight"]), str(found["state"]), identity)

    @property
    def id(self) -> str:
        """The beginnings of the ids of both files, as they are on disk now."""
        return "-".join(_id_of(path)[:12] for path in (self.policy, self.path))

    def with_peer(self, name: str, state: str | None = None, weight: int | None = None) -> LuaConfig:
        """The file with other values wherever the peer is named."""
        content = json.loads(self.text)
        before = json.dumps(content)
        for pool in content["pools"]:
            for peer in pool["peers"]:
                if peer["name"] == name and state:
                    peer["state"] = self.held if state == HELD else state
                if peer["name"] == name and weight is not None:
                    peer["weight"] = weight
        # A file that says the same stays as it is written.
        if json.dumps(content) == before:
            return self
        content.pop("id", None)
        return replace(self, text=_gateway_policy.text(_gateway_policy.document(content)))


def _id_of(path: Path) -> str:
    """The id of a file of the Lua gateway. It comes first, so that nobody has to read all of a large file."""
    try:
        with path.open(encoding="utf-8") as stream:
            found = _FIRST_ID.match(stream.read(256))
        return found[1] if found else str(json.loads(path.read_text("utf-8"))["id"])
    except (ValueError, KeyError, TypeError) as exc:
        raise GatewayPeerError(f"{path}: expected a JSON object with an id, found something else ({exc})") from exc


def read_config(path: Path) -> Config:
    """The configuration of which nginx.conf is the beginning, empty where role gateway has written none."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return NativeConfig(path)
    if not text.startswith(MARK):
        return NativeConfig(path)
    peers, policy = _LUA_PEERS.search(text), _LUA_POLICY.search(text)
    if not peers or not policy:
        return NativeConfig(path, text)
    pair, authority = _TLS_PAIR.search(text), _TLS_CA.search(text)
    place = Path(peers[1])
    try:
        content = place.read_text("utf-8")
    except FileNotFoundError as exc:
        raise GatewayPeerError(
            f"{place}: expected the peers as role gateway writes them, found no file; run gateway.yml"
        ) from exc
    return LuaConfig(place, Path(policy[1]), content, pair[1] if pair else "", authority[1] if authority else "")


# -- the running gateway ------------------------------------------------------------------------------------------------


def accepts(peer: Peer) -> bool:
    """Whether the peer accepts a connection from here."""
    try:
        with socket.create_connection(peer.address, timeout=_CONNECT_TIMEOUT):
            return True
    except OSError:
        return False


def healthy(peer: Peer, path: str) -> str:
    """Empty when the peer's health page answers 200, else what came instead."""
    connection = http.client.HTTPConnection(*peer.address, timeout=5)
    try:
        if peer.identity:
            # As nginx does it: the name is that of the certificate, not the address.
            context = ssl.create_default_context(cafile=peer.identity.authority or None)
            if peer.identity.pair:
                context.load_cert_chain(peer.identity.pair)
            connection.connect()
            connection.sock = context.wrap_socket(connection.sock, server_hostname=peer.identity.name)
        connection.request("GET", path)
        status = connection.getresponse().status
        return "" if status == 200 else f"HTTP status {status}"
    except (OSError, http.client.HTTPException) as exc:
        return str(exc) or type(exc).__name__
    finally:
        connection.close()


def running_id(port: int) -> str:
    """Which configuration the running nginx has; empty when it does not say."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/running")
        return connection.getresponse().getheader("X-Config-Id") or ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def status(port: int) -> dict[str, t.Any] | None:
    """What one worker of the Lua gateway says; None when nobody listens there.

    :raises ValueError: the answer is no status.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/status.json")
        answer = connection.getresponse()
        text = answer.read()
    except ConnectionRefusedError:
        return None
    except (OSError, http.client.HTTPException) as exc:
        raise ValueError(str(exc) or type(exc).__name__) from exc
    finally:
        connection.close()
    if answer.status != 200:
        raise ValueError(f"HTTP status {answer.status}")
    try:
        found = json.loads(text)
    except ValueError as exc:
        raise ValueError("something that is no JSON") from exc
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise ValueError("JSON that is no status")
    return found


def in_flight(found: t.Mapping[str, t.Any], name: str) -> int:
    """Requests of all workers that a peer is working on. Each pool of the peer names the same number.

    :raises ValueError: the status does not say.
    """
    try:
        peers = [peer for pool in found["pools"] for peer in pool["peers"] if peer["name"] == name]
        return max((int(peer["inflight"]) for peer in peers), default=0)
    except (KeyError, TypeError) as exc:
        raise ValueError("JSON that is no status") from exc


def connections(run: Run, peer: Peer) -> int:
    """Connections of nginx to the peer, of old workers as well."""
    host, port = peer.address
    try:
        addresses = {found[4][0] for found in socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)}
    except OSError:
        addresses = {host}
    count = 0
    for address in sorted(map(str, addresses)):
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        rc, out, err = run(["ss", "-H", "-t", "-n", "-p", "state", "established", "dst", target])
        if rc != 0:
            raise GatewayPeerError(f"cannot count the connections to {peer.name}: {err.strip() or out.strip()}")
        count += sum('"nginx"' in line for line in out.splitlines())
    return count


@dataclass
class Probes:
    """The questions that are asked of the network and the clock; tests answer them."""

    accepts: t.Callable[[Peer], bool] = accepts
    healthy: t.Callable[[Peer, str], str] = healthy
    running_id: t.Callable[[int], str] = running_id
    status: t.Callable[[int], t.Mapping[str, t.Any] | None] = status
    clock: t.Callable[[], float] = time.monotonic
    sleep: t.Callable[[float], None] = time.sleep


# -- the decision -------------------------------------------------------------------------------------------------------


def floor_problem(config: Config, leaving: t.Sequence[str], floor: int, alive: t.Callable[[Peer], bool]) -> str:
    """Why these peers must not leave together; empty when they may.

    :arg leaving: peers that are taken out at the same time.
    :arg floor: percent of the weight of all peers that must go on serving, in each pool.
    :arg alive: whether a peer accepts connections.
    """
    up = [peer for peer in config.peers if peer.state == "up"]
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        serving = {peer.name for peer, well in zip(up, threads.map(alive, up)) if well}
    found = [_pool_problem(pool, leaving, floor, serving) for pool in config.pools]
    return "; ".join(problem for problem in found if problem)


def _pool_problem(pool: Pool, leaving: t.Sequence[str], floor: int, serving: t.Collection[str]) -> str:
    total = sum(peer.weight for peer in pool.peers)
    gone = [peer for peer in pool.peers if peer.name in serving and peer.name in leaving]
    weight = sum(peer.weight for peer in pool.peers if peer.name in serving and peer.name not in leaving)
    if not gone or weight * 100 >= floor * total:
        return ""
    out = [f"{peer.name} is {peer.state}" for peer in pool.peers if peer.state != "up"]
    dead = [peer.name for peer in pool.peers if peer.state == "up" and peer.name not in serving]
    words = out + [f"{name} accepts no connection" for name in dead]
    return (
        f"without {', '.join(peer.name for peer in gone)} the weight of the peers that serve"
        f"{f' in pool {pool.name}' if pool.name else ''} is {weight} of {total}"
        f" ({weight * 100 // total} percent); expected at least {floor} percent"
        + (f". Not serving already: {'; '.join(words)}" if words else "")
    )


@dataclass(frozen=True)
class Wish:
    """What shall be; the options of the module.

    :ivar checker: the program that judges a new peers.json, before its own arguments.
    """

    name: str
    state: str
    owner: str
    reason: str = ""
    weight: int = 0
    peer_state: str = "up"
    together: t.Sequence[str] = ()
    floor: int = 0
    wait: int = 0
    health_path: str = ""
    config: Path = Path("/etc/nginx/nginx.conf")
    holds: Path = Path("/etc/gpufleet/gateway/holds")
    weights: Path = Path("/etc/gpufleet/gateway/weights")
    status_port: int = 8090
    binary: Path = Path("/usr/sbin/nginx")
    unit: str = "nginx.service"
    checker: t.Sequence[str] = ("/usr/local/bin/gwcheck",)


def flavored(wish: Wish, root: Path = Path("/usr/local/openresty/nginx")) -> Wish:
    """The wish with the places of OpenResty where role gateway has put it in front of the engines, unchanged elsewhere."""
    config = root / "conf" / "nginx.conf"
    try:
        ours = config.read_text("utf-8").startswith(MARK)
    except (FileNotFoundError, NotADirectoryError):
        return wish
    return replace(wish, config=config, binary=root / "sbin" / "nginx", unit="openresty.service") if ours else wish


@dataclass
class Outcome:
    """What was done, and how it is now."""

    changed: bool = False
    known: bool = False
    held_by: list[str] = field(default_factory=list)
    state: str = ""
    weight: int = 0
    planned: int = 0
    idle: bool = True
    connections: int = 0
    left: str = ""
    waited: int = 0
    before: str = ""
    after: str = ""


def check_owner(owner: str) -> None:
    """An owner is one word."""
    if not _OWNER.fullmatch(owner):
        raise GatewayPeerError(f"owner: expected a name without blanks, such as hosts.yml, found {owner!r}")


@contextlib.contextmanager
def locked(path: Path, probes: Probes, seconds: float = 60) -> t.Iterator[None]:
    """One at a time: the hosts of a batch change the same configuration."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(alone(path, seconds, probes.clock, probes.sleep, 0.2))
        except TimeoutError as exc:
            raise GatewayPeerError(f"{path}: another run has changed this gateway for {seconds} s") from exc
        yield


@dataclass(frozen=True)
class _Told:
    """What one worker of the Lua gateway said about its configuration."""

    found: str
    right: bool = False
    refused: bool = False
    workers: int = 1


class Gateway:
    """One peer of one gateway. What changes something (drain, admit, weigh) needs the lock; what waits (prove, wait_taken, wait_idle) does not."""

    def __init__(self, run: Run, wish: Wish, probes: Probes | None = None, check: bool = False) -> None:
        check_owner(wish.owner)
        kept_file(wish.holds, wish.name)
        self.run = run
        self.wish = wish
        self.probes = probes or Probes()
        self.check = check

    # -- changes

    def drain(self, now: str) -> Outcome:
        """Hold the peer. The hold is written first: a run that is killed after that is known to the next one."""
        wish = self.wish
        if not wish.reason.strip():
            raise GatewayPeerError("reason: expected words that say why the peer is drained, found none")
        config, holds, peer = self._look()
        outcome = Outcome(known=peer is not None, before=self._words(holds, peer))
        served = peer is not None and self.probes.accepts(peer)
        if not any(hold.owner == wish.owner for hold in holds):
            if peer and peer.state == "up" and wish.floor:
                problem = floor_problem(config, [wish.name, *wish.together], wish.floor, self.probes.accepts)
                if problem:
                    raise GatewayPeerError(f"{wish.name} was not drained: {problem}")
            holds = [*holds, Hold(wish.owner, " ".join(wish.reason.split()), now, served)]
            outcome.changed = True
            if not self.check:
                write_holds(wish.holds, wish.name, holds)
        if peer:
            peer = replace(peer, state=HELD if peer.state == "up" else peer.state)
        outcome.after = self._words(holds, peer)
        return self._settle(config, holds, peer, outcome)

    def admit(self) -> Outcome:
        """Release the owner's hold. It is deleted last: until then the next run knows that work is left."""
        wish = self.wish
        config, holds, peer = self._look()
        outcome = Outcome(known=peer is not None, before=self._words(holds, peer))
        own = [hold for hold in holds if hold.owner == wish.owner]
        rest = [hold for hold in holds if hold.owner != wish.owner]
        written = config.peer(wish.name)
        # Where the file has no word of its own for held, only the hold tells that it was not the inventory that wanted the peer out.
        if peer and written and not rest and written.state == config.held and (own or config.held == HELD):
            peer = replace(peer, state=wish.peer_state)
        outcome.after = self._words(rest, peer)
        outcome = self._settle(config, rest, peer, outcome)
        if own:
            outcome.changed = True
            if not self.check:
                write_holds(wish.holds, wish.name, rest)
        return outcome

    def weigh(self, now: str) -> Outcome:
        """Give the peer another weight, or the planned one again. The override is written first and deleted last, as a hold is."""
        wish = self.wish
        if not 0 <= wish.weight <= WEIGHTS[1]:
            raise GatewayPeerError(
                f"weight: expected a whole number from {WEIGHTS[0]} to {WEIGHTS[1]}, or 0 for the planned weight, found {wish.weight}"
            )
        reason = " ".join(wish.reason.split())
        if wish.weight and not reason:
            raise GatewayPeerError("reason: expected words that say why the peer gets another weight, found none")
        config, holds, peer = self._look()
        old = read_override(wish.weights, wish.name)
        outcome = Outcome(known=peer is not None, before=self._weight_words(old, peer))
        new = None
        if wish.weight and peer:
            new = Override(wish.weight, wish.owner, reason, now, old.planned if old else peer.weight)
            if old and replace(new, since=old.since) == old:
                new = old
        elif wish.weight:
            # Without a peer there is no planned weight that this could replace.
            new = old
        if new and new != old:
            outcome.changed = True
            if not self.check:
                write_override(wish.weights, wish.name, new)
        if peer:
            peer = replace(peer, weight=new.weight if new else old.planned if old else peer.weight)
        outcome.after = self._weight_words(new, peer)
        outcome = self._settle(config, holds, peer, outcome)
        outcome.planned = new.planned if new else outcome.weight
        if old and not new:
            outcome.changed = True
            if not self.check:
                write_override(wish.weights, wish.name, None)
        return outcome

    # -- waiting

    def prove(self) -> int:
        """Wait until the engine of a peer that is about to be let in is well, if it served when it was taken out.

        :returns: seconds that it took.
        """
        wish = self.wish
        _config, holds, peer = self._look()
        own = [hold for hold in holds if hold.owner == wish.owner]
        unserved = any(not hold.served for hold in own)
        if (
            self.check
            or not wish.health_path
            or peer is None
            or peer.state != HELD
            or len(own) < len(holds)
            or unserved
        ):
            return 0
        if wish.peer_state != "up":
            return 0
        begin = self.probes.clock()
        while True:
            found = self.probes.healthy(peer, wish.health_path)
            waited = int(self.probes.clock() - begin)
            if not found:
                return waited
            if waited >= wish.wait:
                raise GatewayPeerError(
                    f"{wish.name} stays drained: expected its engine to answer at"
                    f" {'https' if peer.identity else 'http'}://{peer.endpoint}{wish.health_path}"
                    f" within {wish.wait} s, found {found}"
                )
            self.probes.sleep(1)

    def wait_taken(self, outcome: Outcome) -> None:
        """Wait until every worker of the Lua gateway uses the file. The balancer native has nothing to wait for: nginx was reloaded."""
        config = read_config(self.wish.config)
        if self.check or not outcome.known or not isinstance(config, LuaConfig):
            return
        begin = self.probes.clock()
        first, right = begin, 0
        # Others write the file while this waits, and what they write has our change in it.
        good: set[str] = set()
        while True:
            good.add(config.id)
            told = self._ask(good)
            if told is None:
                # nginx does not run; it reads the file when it starts.
                return
            now = self.probes.clock()
            right = right + 1 if told.right else 0
            first = now if right == 1 else first
            looked = not outcome.changed and right >= max(_TAKEN_ANSWERS, told.workers)
            if looked or (told.right and now - first >= _TAKEN_BY_ALL):
                return
            if not told.right and now - begin >= (_ERROR_STANDS if told.refused else _TAKEN_WITHIN):
                raise GatewayPeerError(
                    f"{self.wish.name}: {config.path} is written, and the gateway does not use it after {int(now - begin)} s:"
                    f" expected configuration {config.id} at http://127.0.0.1:{self.wish.status_port}/status.json,"
                    f" found {told.found}"
                )
            if outcome.changed or not told.right:
                self.probes.sleep(0.25)

    def wait_idle(self, outcome: Outcome) -> None:
        """Wait until nothing has been in flight to the peer for a while, or until the time is over."""
        config = read_config(self.wish.config)
        peer = config.peer(self.wish.name)
        if peer is None or self.check or not self.wish.wait:
            return
        begin = self.probes.clock()
        quiet = 0
        while True:
            problem = self._count(config, peer, outcome)
            quiet = 0 if outcome.connections or problem else quiet + 1
            outcome.idle = quiet >= _QUIET
            outcome.waited = int(self.probes.clock() - begin)
            if outcome.idle:
                return
            if outcome.waited >= self.wish.wait and problem:
                raise GatewayPeerError(
                    f"{self.wish.name} is drained, and nobody knows what is in flight: expected a status at"
                    f" http://127.0.0.1:{self.wish.status_port}/status.json, found {problem}"
                )
            if outcome.waited >= self.wish.wait:
                outcome.left = f"{outcome.connections} {config.left.format(outcome.waited)}"
                return
            self.probes.sleep(1)

    # -- parts

    def _ask(self, good: t.Collection[str]) -> _Told | None:
        """Ask one worker; None when nginx does not run."""
        try:
            found = self.probes.status(self.wish.status_port)
        except ValueError as exc:
            return _Told(found=str(exc))
        if found is None:
            return None
        config, workers = found["config"], found.get("workers") or {}
        error = config.get("error")
        return _Told(
            found=f"{config.get('id')}, with the new files refused: {error}" if error else str(config.get("id")),
            right=config.get("id") in good and not error,
            refused=bool(error),
            workers=int(workers.get("expected") or 1),
        )

    def _count(self, config: Config, peer: Peer, outcome: Outcome) -> str:
        """Count what is in flight to the peer.

        :returns: empty, or what came instead of a status.
        """
        try:
            found = self.probes.status(self.wish.status_port) if isinstance(config, LuaConfig) else None
            # Where nobody listens there may be an nginx all the same, with its page at another port.
            outcome.connections = connections(self.run, peer) if found is None else in_flight(found, peer.name)
        except ValueError as exc:
            return str(exc)
        return ""

    def _look(self) -> tuple[Config, list[Hold], Peer | None]:
        """The configuration, who holds the peer, and the peer with the state that people know it by."""
        wish = self.wish
        config = read_config(wish.config)
        holds = read_holds(wish.holds, wish.name)
        peer = config.peer(wish.name)
        if peer and holds and peer.state == config.held and wish.peer_state == "up":
            peer = replace(peer, state=HELD)
        return config, holds, peer

    @staticmethod
    def _words(holds: t.Sequence[Hold], peer: Peer | None) -> str:
        lines = [f"{peer.state}\n" if peer else "not a peer of this gateway\n"]
        return "".join(lines + [f"held by {hold.owner}: {hold.reason}\n" for hold in holds])

    @staticmethod
    def _weight_words(override: Override | None, peer: Peer | None) -> str:
        lines = [f"weight {peer.weight}\n" if peer else "not a peer of this gateway\n"]
        if override:
            lines.append(
                f"weight {override.weight} instead of {override.planned} by {override.owner}: {override.reason}\n"
            )
        return "".join(lines)

    def _settle(self, config: Config, holds: t.Sequence[Hold], peer: Peer | None, outcome: Outcome) -> Outcome:
        """Bring the configuration and, with the balancer native, nginx to the peer's state and weight."""
        outcome.held_by = [hold.owner for hold in holds]
        if peer is None:
            return outcome
        outcome.state, outcome.weight = peer.state, peer.weight
        wanted = config.with_peer(peer.name, peer.state, peer.weight)
        if wanted.text != config.text:
            outcome.changed = True
            if not self.check:
                self._write_config(wanted)
        if isinstance(wanted, LuaConfig):
            return outcome
        # Asked rather than remembered: a run may have been killed after it wrote the file and before nginx read it.
        running = self.probes.running_id(self.wish.status_port)
        if running and running != wanted.id:
            outcome.changed = True
            if not self.check:
                self._reload(wanted)
        return outcome

    def _write_config(self, wanted: Config) -> None:
        path = wanted.path
        staged = _stage(path, wanted.text, f".{path.name}.gateway_peer")
        if isinstance(wanted, LuaConfig):
            before = path.stat()
            os.chown(staged, before.st_uid, before.st_gid)
            staged.chmod(before.st_mode & 0o7777)
            argv = [*self.wish.checker, "both", str(wanted.policy), str(staged)]
        else:
            # The umask is that of the unit: a log file that the check creates is as private as one that nginx creates.
            argv = ["/bin/sh", "-c", f"umask 027 && exec {self.wish.binary} -t -q -c {staged}"]
        try:
            rc, out, err = self.run(argv)
            if rc != 0:
                raise GatewayPeerError(
                    f"{wanted.judge} does not accept the configuration with {self.wish.name} {self.wish.state},"
                    f" so the old one stays: {' '.join((err.strip() or out.strip()).split())}"
                )
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)

    def _reload(self, wanted: Config) -> None:
        rc, out, err = self.run(["systemctl", "reload", self.wish.unit])
        if rc != 0:
            raise GatewayPeerError(f"nginx cannot be reloaded: {err.strip() or out.strip()}")
        end = self.probes.clock() + 30
        while self.probes.running_id(self.wish.status_port) != wanted.id:
            if self.probes.clock() > end:
                raise GatewayPeerError(f"nginx was reloaded and does not run {self.wish.config} after 30 s")
            self.probes.sleep(0.3)
