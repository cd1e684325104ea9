# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Take one peer out of a gateway and let it in again: holds, the written configuration, the running nginx."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import socket
import time
import typing as t
from dataclasses import dataclass, field, replace
from pathlib import Path

# The first words of a configuration that role gateway wrote.
MARK = "# gpufleet.deepseek gateway"
# A peer of the inventory's state up that somebody holds.
HELD = "held"

_PLACE_OF_ID = "@config_id@"
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_CONFIG_ID = re.compile(r"^\s*add_header X-Config-Id (\S+);$", re.MULTILINE)
_PEER = re.compile(
    r"^(?P<head>\s*server (?P<endpoint>\S+) weight=(?P<weight>\d+)[^;#\n]*?)(?: down)?;"
    r"  # (?P<name>\S+), (?P<state>up|drain|down|held)$",
    re.MULTILINE,
)
LOCK = Path("/run/gpufleet-gateway-peer.lock")
# Connections must be gone for so many seconds on end: an old worker may still be reading a request that it then sends to the peer.
_QUIET = 3
_CONNECT_TIMEOUT = 2.0


class GatewayPeerError(Exception):
    """The wish cannot be met; the text says why."""


class Run(t.Protocol):
    """Runs one command: argv in, exit code, output and errors out."""

    def __call__(self, argv: list[str]) -> tuple[int, str, str]:
        """Run the command."""


# -- holds --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hold:
    """Why a peer gets no requests.

    :ivar served: whether the peer accepted connections when it was taken out; one that did not has nothing to prove before it is let in.
    """

    owner: str
    reason: str
    since: str
    served: bool = True


def hold_file(folder: Path, peer: str) -> Path:
    """Where the holds of a peer lie."""
    if not _NAME.fullmatch(peer):
        raise GatewayPeerError(f"name: expected letters, digits, dots, dashes and underscores, found {peer!r}")
    return folder / f"{peer}.json"


def read_holds(folder: Path, peer: str) -> list[Hold]:
    """The holds on a peer. A file that cannot be read is somebody's hold all the same."""
    path = hold_file(folder, peer)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    try:
        found = json.loads(text)["holds"]
        return [
            Hold(str(one["owner"]), str(one["reason"]), str(one["since"]), bool(one.get("served", True)))
            for one in found
        ]
    except (ValueError, KeyError, TypeError) as exc:
        raise GatewayPeerError(
            f"{path}: expected holds as this module writes them, found something else ({exc}). "
            "The peer stays as it is; delete the file when nobody holds the peer."
        ) from exc


def write_holds(folder: Path, peer: str, holds: t.Sequence[Hold]) -> None:
    """Keep the holds; the file is there exactly while the peer is held."""
    path = hold_file(folder, peer)
    if not holds:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    for parent in (folder.parent.parent, folder.parent, folder):
        if not parent.is_dir():
            parent.mkdir(parents=True, exist_ok=True)
            parent.chmod(0o755)
    known = {"peer": peer, "holds": [vars(hold) for hold in holds]}
    _write(path, json.dumps(known, indent=2, sort_keys=True) + "\n")


def _write(path: Path, text: str, name: str = "") -> Path:
    """Write beside the place and, unless a name for that is given, move it there."""
    temporary = path.with_name(name or f".{path.name}.new")
    with temporary.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.chmod(0o644)
    if name:
        return temporary
    temporary.replace(path)
    return path


# -- the configuration --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A peer as the configuration has it."""

    name: str
    endpoint: str
    weight: int
    state: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _colon, port = self.endpoint.rpartition(":")
        return host.strip("[]"), int(port)


@dataclass(frozen=True)
class Config:
    """The configuration of a gateway, as text and as what it says. Without text there is no gateway of this collection."""

    text: str = ""

    @property
    def peers(self) -> list[Peer]:
        """The peers in their order."""
        return [
            Peer(found["name"], found["endpoint"], int(found["weight"]), found["state"])
            for found in _PEER.finditer(self.text)
        ]

    @property
    def id(self) -> str:
        """What the running nginx names when it runs this configuration."""
        found = _CONFIG_ID.search(self.text)
        return found[1] if found else ""

    def peer(self, name: str) -> Peer | None:
        """The peer of that name."""
        return next((peer for peer in self.peers if peer.name == name), None)

    def with_state(self, name: str, state: str) -> Config:
        """The same with another state of one peer, to the letter as role gateway would write it."""

        def line(found: re.Match[str]) -> str:
            if found["name"] != name:
                return found[0]
            return f"{found['head']}{'' if state == 'up' else ' down'};  # {name}, {state}"

        plain = _PEER.sub(line, self.text)
        if not self.id:
            return Config(plain)
        plain = plain.replace(self.id, _PLACE_OF_ID)
        return Config(plain.replace(_PLACE_OF_ID, hashlib.sha256(plain.encode()).hexdigest()))


def read_config(path: Path) -> Config:
    """The configuration, empty where role gateway has written none."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Config()
    return Config(text if text.startswith(MARK) else "")


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
    clock: t.Callable[[], float] = time.monotonic
    sleep: t.Callable[[float], None] = time.sleep


# -- the decision -------------------------------------------------------------------------------------------------------


def floor_problem(config: Config, leaving: t.Sequence[str], floor: int, alive: t.Callable[[Peer], bool]) -> str:
    """Why these peers must not leave together; empty when they may.

    :arg leaving: peers that are taken out at the same time.
    :arg floor: percent of the weight of all peers that must go on serving.
    :arg alive: whether a peer accepts connections.
    """
    peers = config.peers
    total = sum(peer.weight for peer in peers)
    up = [peer for peer in peers if peer.state == "up"]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        serving = [peer for peer, well in zip(up, pool.map(alive, up)) if well]
    gone = [peer for peer in serving if peer.name in leaving]
    stay = [peer for peer in serving if peer.name not in leaving]
    weight = sum(peer.weight for peer in stay)
    if not gone or weight * 100 >= floor * total:
        return ""
    dead = [peer for peer in up if peer not in serving]
    out = [peer for peer in peers if peer.state != "up"]
    words = [f"{peer.name} is {peer.state}" for peer in out] + [f"{peer.name} accepts no connection" for peer in dead]
    return (
        f"without {', '.join(peer.name for peer in gone)} the weight of the peers that serve is {weight} of {total}"
        f" ({weight * 100 // total} percent); expected at least {floor} percent"
        + (f". Not serving already: {'; '.join(words)}" if words else "")
    )


@dataclass(frozen=True)
class Wish:
    """What shall be; the options of the module."""

    name: str
    state: str
    owner: str
    reason: str = ""
    peer_state: str = "up"
    together: t.Sequence[str] = ()
    floor: int = 0
    wait: int = 0
    health_path: str = ""
    config: Path = Path("/etc/nginx/nginx.conf")
    holds: Path = Path("/etc/gpufleet/gateway/holds")
    status_port: int = 8090
    binary: Path = Path("/usr/sbin/nginx")


@dataclass
class Outcome:
    """What was done, and how it is now."""

    changed: bool = False
    known: bool = False
    held_by: list[str] = field(default_factory=list)
    state: str = ""
    idle: bool = True
    connections: int = 0
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
    with path.open("w", encoding="utf-8") as stream:
        end = probes.clock() + seconds
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if probes.clock() > end:
                    raise GatewayPeerError(f"{path}: another run has changed this gateway for {seconds} s") from exc
            probes.sleep(0.2)
        yield


class Gateway:
    """One peer of one gateway."""

    def __init__(self, run: Run, wish: Wish, probes: Probes | None = None, check: bool = False) -> None:
        check_owner(wish.owner)
        hold_file(wish.holds, wish.name)
        self.run = run
        self.wish = wish
        self.probes = probes or Probes()
        self.check = check

    def drain(self, now: str) -> Outcome:
        """Hold the peer. The hold is written first: a run that is killed after that is known to the next one."""
        wish = self.wish
        if not wish.reason.strip():
            raise GatewayPeerError("reason: expected words that say why the peer is drained, found none")
        config = read_config(wish.config)
        holds = read_holds(wish.holds, wish.name)
        peer = config.peer(wish.name)
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
        state = HELD if peer and peer.state == "up" else peer.state if peer else ""
        return self._settle(config, holds, state, outcome)

    def admit(self) -> Outcome:
        """Release the owner's hold. It is deleted last: until then the next run knows that work is left."""
        wish = self.wish
        config = read_config(wish.config)
        holds = read_holds(wish.holds, wish.name)
        peer = config.peer(wish.name)
        outcome = Outcome(known=peer is not None, before=self._words(holds, peer))
        own = [hold for hold in holds if hold.owner == wish.owner]
        rest = [hold for hold in holds if hold.owner != wish.owner]
        state = peer.state if peer else ""
        if not rest and state == HELD:
            state = wish.peer_state
        outcome = self._settle(config, rest, state, outcome)
        if own:
            outcome.changed = True
            if not self.check:
                write_holds(wish.holds, wish.name, rest)
        return outcome

    def wait_idle(self, outcome: Outcome) -> None:
        """Wait until nginx has had no connection to the peer for a while, or until the time is over."""
        peer = read_config(self.wish.config).peer(self.wish.name)
        if peer is None or self.check or not self.wish.wait:
            return
        begin = self.probes.clock()
        quiet = 0
        while True:
            outcome.connections = connections(self.run, peer)
            quiet = 0 if outcome.connections else quiet + 1
            outcome.idle = quiet >= _QUIET
            outcome.waited = int(self.probes.clock() - begin)
            if outcome.idle or outcome.waited >= self.wish.wait:
                return
            self.probes.sleep(1)

    def prove(self) -> int:
        """Wait until the engine of a peer that is about to be let in is well, if it served when it was taken out.

        :returns: seconds that it took.
        """
        wish = self.wish
        peer = read_config(wish.config).peer(wish.name)
        holds = read_holds(wish.holds, wish.name)
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
                    f"{wish.name} stays drained: expected its engine to answer at http://{peer.endpoint}{wish.health_path}"
                    f" within {wish.wait} s, found {found}"
                )
            self.probes.sleep(1)

    @staticmethod
    def _words(holds: t.Sequence[Hold], peer: Peer | None) -> str:
        lines = [f"{peer.state}\n" if peer else "not a peer of this gateway\n"]
        return "".join(lines + [f"held by {hold.owner}: {hold.reason}\n" for hold in holds])

    def _settle(self, config: Config, holds: t.Sequence[Hold], state: str, outcome: Outcome) -> Outcome:
        """Bring configuration and nginx to the state."""
        wish = self.wish
        outcome.held_by = [hold.owner for hold in holds]
        outcome.state = state
        peer = config.peer(wish.name)
        outcome.after = self._words(holds, replace(peer, state=state) if peer else None)
        if peer is None:
            return outcome
        wanted = config.with_state(wish.name, state) if peer.state != state else config
        if wanted.text != config.text:
            outcome.changed = True
            if not self.check:
                self._write_config(wanted)
        # Asked rather than remembered: a run may have been killed after it wrote the file and before nginx read it.
        running = self.probes.running_id(wish.status_port)
        if running and running != wanted.id:
            outcome.changed = True
            if not self.check:
                self._reload(wanted)
        return outcome

    def _write_config(self, wanted: Config) -> None:
        path = self.wish.config
        staged = _write(path, wanted.text, f".{path.name}.gateway_peer")
        # The umask is that of the unit: a log file that the check creates is as private as one that nginx creates.
        rc, out, err = self.run(["/bin/sh", "-c", f"umask 027 && exec {self.wish.binary} -t -q -c {staged}"])
        if rc != 0:
            staged.unlink()
            raise GatewayPeerError(
                f"nginx does not accept the configuration with {self.wish.name} {self.wish.state}, so the old one stays: "
                + " ".join((err.strip() or out.strip()).split())
            )
        staged.replace(path)

    def _reload(self, wanted: Config) -> None:
        rc, out, err = self.run(["systemctl", "reload", "nginx.service"])
        if rc != 0:
            raise GatewayPeerError(f"nginx cannot be reloaded: {err.strip() or out.strip()}")
        end = self.probes.clock() + 30
        while self.probes.running_id(self.wish.status_port) != wanted.id:
            if self.probes.clock() > end:
                raise GatewayPeerError(f"nginx was reloaded and does not run {self.wish.config} after 30 s")
            self.probes.sleep(0.3)
