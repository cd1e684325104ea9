# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""What a load test sends, to whom, and how it is measured: the ladder, the mix of requests, the target, the figures of each step.

Times are seconds, speeds are per second, shares are from 0 to 1. Standard library only: the modules, the program on the host and Locust share it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import threading
import typing as t
from collections import Counter, deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SCHEMA = 1
_FILLER_TEXT = (
    "the rack holds eight cards and every card has a number that the operator reads aloud while water runs through the cold plate and "
    "a fan turns slowly behind the power shelf so that nobody hears the clock of the switch which counts packets all night long"
)
_FILLER = [word for word in _FILLER_TEXT.split(" ") if word]


class LoadTestError(Exception):
    """The test cannot be made as it was asked for, in words for the operator."""


@dataclass(frozen=True)
class Step:
    """So many users, each of whom asks again as soon as the answer is there, for so many seconds."""

    users: int
    seconds: int


def bounded(
    steps: t.Sequence[t.Mapping[str, t.Any]], max_users: int, max_minutes: float, reserved: float = 0.0
) -> tuple[list[Step], list[str]]:
    """The ladder within its bounds, and a sentence for each step that is left out.

    :arg steps: mappings with C(users) and C(seconds), both whole numbers from 1.
    :arg max_users: a step with more users is left out.
    :arg max_minutes: the first step that would end later, and all that follow it, are left out.
    :arg reserved: seconds of these minutes that something else needs.
    :raises LoadTestError: a step is none, or nothing is left.
    """
    kept: list[Step] = []
    left_out: list[str] = []
    total, room = 0.0, max_minutes * 60 - reserved
    full = False
    for number, step in enumerate(steps, 1):
        values = [step.get("users"), step.get("seconds")]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values) or set(step) != {
            "users",
            "seconds",
        }:
            raise LoadTestError(
                f"load_test_steps: expected users and seconds, whole numbers from 1, in step {number}, found {dict(step)}"
            )
        if step["users"] > max_users:
            left_out.append(f"{step['users']} users (load_test_max_users is {max_users})")
            continue
        full = full or total + step["seconds"] > room
        if full:
            left_out.append(f"{step['users']} users (load_test_max_minutes is {max_minutes:g})")
            continue
        total += step["seconds"]
        kept.append(Step(int(step["users"]), int(step["seconds"])))
    if not kept:
        raise LoadTestError(
            "load_test_steps: expected at least one step within load_test_max_users and load_test_max_minutes, found "
            + ("; ".join(left_out) or "none")
        )
    return kept, left_out


class Ladder:
    """The steps in time."""

    def __init__(self, steps: t.Sequence[Step]) -> None:
        self.steps = list(steps)
        self.ends: list[float] = []
        end = 0.0
        for step in self.steps:
            end += step.seconds
            self.ends.append(end)

    @property
    def seconds(self) -> float:
        """How long all of them take."""
        return self.ends[-1]

    def at(self, seconds: float) -> int | None:
        """Number of the step that runs so many seconds after the start, or None after the last."""
        for number, end in enumerate(self.ends):
            if seconds < end:
                return number
        return None

    def lasted(self, number: int, seconds: float) -> float:
        """Seconds of a step that had passed so many seconds after the start."""
        begin = self.ends[number] - self.steps[number].seconds
        return max(0.0, min(seconds, self.ends[number]) - begin)


# -- the requests ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """One request, ready to be sent."""

    name: str
    stream: bool
    body: bytes


_MIX_KEYS = {"name", "weight", "stream", "max_tokens", "prompts", "filler_words", "temperature", "unique"}


def _mix_problem(where: str, entry: t.Any) -> str:
    if not isinstance(entry, dict):
        return f"{where}: expected a mapping, found {type(entry).__name__}"
    unknown = sorted(set(entry) - _MIX_KEYS)
    if unknown:
        return f"{where}: expected keys out of {', '.join(sorted(_MIX_KEYS))}, found {', '.join(unknown)}"
    prompts = entry.get("prompts")
    if not isinstance(entry.get("name"), str) or not entry["name"]:
        return f"{where}.name: expected a word, found {entry.get('name')!r}"
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p for p in prompts):
        return f"{where}.prompts: expected a list of texts, found {prompts!r}"
    tokens = entry.get("max_tokens")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        return f"{where}.max_tokens: expected a whole number from 1, found {tokens!r}"
    weight = entry.get("weight", 1)
    if not isinstance(weight, (int, float)) or isinstance(weight, bool) or weight <= 0:
        return f"{where}.weight: expected a number above 0, found {weight!r}"
    share = entry.get("stream", True)
    if not isinstance(share, (bool, int, float)) or not 0 <= share <= 1:
        return f"{where}.stream: expected true, false or a share from 0 to 1, found {share!r}"
    words = entry.get("filler_words", [0, 0])
    if (
        not isinstance(words, list)
        or len(words) != 2
        or not all(isinstance(w, int) and w >= 0 for w in words)
        or words[0] > words[1]
    ):
        return f"{where}.filler_words: expected two whole numbers, the smaller one first, found {words!r}"
    return ""


class Dice:
    """Numbers that look random and are the same in every run, so that two runs of one shape send the same. Not for secrets.

    :arg seed: any text.
    """

    def __init__(self, seed: str) -> None:
        self._state = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") | 1

    def bits(self) -> int:
        """64 bits, by xorshift with a multiplication."""
        state = self._state
        state ^= state >> 12
        state ^= (state << 25) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 27
        self._state = state
        return (state * 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF

    def share(self) -> float:
        """A number from 0 to 1, without 1."""
        return (self.bits() >> 11) / (1 << 53)

    def between(self, least: int, most: int) -> int:
        """A whole number, both ends included."""
        return least + int(self.share() * (most - least + 1))

    def interval(self, rate: float) -> float:
        """Seconds until the next of so many independent events per second."""
        return -math.log(1.0 - self.share()) / rate

    def choose(self, weights: t.Sequence[float]) -> int:
        """The number of an entry, by weight."""
        left = self.share() * sum(weights)
        for number, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return number
        return len(weights) - 1


class Mix:
    """Requests by their weight.

    :arg data: what the mix file holds: C({"version": 1, "requests": [...]}); each request has C(name), C(prompts), C(max_tokens), and may have
        C(weight) (1), C(stream) (true; a number is the share of streams), C(filler_words) ([least, most] words put before the prompt),
        C(temperature) (0) and C(unique) (true: each prompt begins with other words, so that no prefix cache answers for the model).
    :raises LoadTestError: names the entry and what is wrong with it.
    """

    def __init__(self, data: t.Any) -> None:
        if not isinstance(data, dict) or data.get("version") != 1 or not isinstance(data.get("requests"), list):
            raise LoadTestError('load_test_mix: expected {"version": 1, "requests": [...]}, found something else')
        if not data["requests"]:
            raise LoadTestError("load_test_mix: expected at least one request, found none")
        for number, entry in enumerate(data["requests"]):
            problem = _mix_problem(f"load_test_mix: requests[{number}]", entry)
            if problem:
                raise LoadTestError(problem)
        self.entries: list[dict[str, t.Any]] = data["requests"]
        self.weights = [float(entry.get("weight", 1)) for entry in self.entries]

    @classmethod
    def of_text(cls, text: str) -> Mix:
        """The mix of a JSON text."""
        try:
            return cls(json.loads(text))
        except ValueError as exc:
            raise LoadTestError(f"load_test_mix: expected JSON, found {exc}") from exc

    def pick(self, dice: Dice, model: str) -> Prepared:
        """A request of the mix for this model."""
        entry = self.entries[dice.choose(self.weights)]
        share = entry.get("stream", True)
        stream = share if isinstance(share, bool) else dice.share() < share
        least, most = entry.get("filler_words", [0, 0])
        words = [_FILLER[dice.between(0, len(_FILLER) - 1)] for _word in range(dice.between(least, most))]
        if entry.get("unique", True):
            words.insert(0, f"Note {dice.bits() & 0xFFFFFFFFFF:x}.")
        prompt = " ".join([*words, entry["prompts"][dice.between(0, len(entry["prompts"]) - 1)]])
        body: dict[str, t.Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": entry["max_tokens"],
            "temperature": entry.get("temperature", 0),
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        return Prepared(entry["name"], bool(stream), json.dumps(body).encode())

    def describe(self) -> list[str]:
        """A line for each kind of request."""
        total = sum(self.weights)
        lines = []
        for entry, weight in zip(self.entries, self.weights):
            least, most = entry.get("filler_words", [0, 0])
            share = float(entry.get("stream", True))
            filler = f", {least} to {most} words of filler" if most else ""
            lines.append(
                f"{entry['name']}: {weight / total:.0%} of the requests, at most {entry['max_tokens']} tokens{filler}, {share:.0%} as streams"
            )
        return lines


def digest_of(*parts: t.Any) -> str:
    """A short name for what was sent: two runs with the same one can be compared."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


# -- the target --------------------------------------------------------------------------------------------------------------------------------


# All addresses of a name; raises OSError when it has none.
Resolve = t.Callable[[str], "list[str]"]


@dataclass(frozen=True)
class Target:
    """Where requests go. The connection is made to C(address), whatever the name may stand for later."""

    scheme: str
    host: str
    port: int
    path: str
    address: str

    @property
    def url(self) -> str:
        """As it was written."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{name}:{self.port}{self.path}"


def _addresses(name: str, resolve: Resolve) -> list[str]:
    try:
        return [str(ipaddress.ip_address(name.strip("[]")))]
    except ValueError:
        return sorted({str(ipaddress.ip_address(found.partition("%")[0])) for found in resolve(name)})


def check_target(
    url: str, allowed: t.Mapping[str, str], resolve: Resolve, connect_host: str = ""
) -> tuple[Target, str]:
    """The target and the inventory host that it is.

    :arg url: base, such as https://192.0.2.10:443, without C(/v1).
    :arg allowed: address or name by inventory host: the gateways and the engines.
    :arg connect_host: the inventory host to connect to although the name in the address stands for something else (a load balancer, no DNS).
    :raises LoadTestError: the target is no gateway and no engine of the inventory. Nothing was sent then.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as exc:
        raise LoadTestError(f"load_test_url: expected http://HOST[:PORT] or https://HOST[:PORT], found {url}") from exc
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username or parts.password:
        raise LoadTestError(f"load_test_url: expected http://HOST[:PORT] or https://HOST[:PORT], found {url}")
    known: dict[str, str] = {}
    for name, address in allowed.items():
        try:
            for found in _addresses(str(address), resolve):
                known.setdefault(found, name)
        except OSError:
            continue
    names = ", ".join(sorted(allowed)) or "none"
    path = parts.path.rstrip("/")
    if connect_host:
        mine = [address for address, name in known.items() if name == connect_host]
        if not mine:
            raise LoadTestError(
                f"load_test_connect_host: expected a gateway or an engine of the inventory ({names}), found {connect_host}"
            )
        return Target(parts.scheme, host, port, path, mine[0]), connect_host
    try:
        addresses = _addresses(host, resolve)
    except OSError as exc:
        raise LoadTestError(f"load_test_url: expected a name that can be resolved, found {host}: {exc}") from exc
    outside = [address for address in addresses if address not in known]
    if outside or not addresses:
        raise LoadTestError(
            f"load_test_url: expected a gateway or an engine of the inventory ({names}), found {host} with the address "
            f"{', '.join(outside) or 'none'}, which is none of them; nothing was sent"
        )
    return Target(parts.scheme, host, port, path, addresses[0]), known[addresses[0]]


# -- figures -----------------------------------------------------------------------------------------------------------------------------------


class Histogram:
    """Times in buckets of 2 %: any number of them in little memory, percentiles within 1 % of the true value."""

    _GROWTH = math.log(1.02)
    _LEAST = 1e-5

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.least = math.inf
        self.most = 0.0

    def add(self, seconds: float) -> None:
        """Count one time."""
        self.buckets[int(math.log(max(seconds, self._LEAST) / self._LEAST) / self._GROWTH)] += 1
        self.count += 1
        self.total += seconds
        self.least = min(self.least, seconds)
        self.most = max(self.most, seconds)

    def percentile(self, percent: float) -> float:
        """The time that so many percent did not exceed; 0 without any."""
        rank, seen = math.ceil(self.count * percent / 100), 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                middle = self._LEAST * math.exp((bucket + 0.5) * self._GROWTH)
                return min(max(middle, self.least), self.most)
        return 0.0

    def summary(self) -> dict[str, float]:
        """Count, mean, percentiles and maximum in seconds, to a tenth of a millisecond."""
        if not self.count:
            return {"count": 0}
        shown = {"mean": self.total / self.count, "max": self.most}
        shown.update({f"p{p}": self.percentile(p) for p in (50, 90, 99)})
        return {"count": self.count, **{key: round(value, 4) for key, value in shown.items()}}


@dataclass
class Answer:
    """One request as its client saw it; C(due), C(sent), C(first), C(end) and C(stamps) are of one monotonic clock.

    :ivar kind: ok, rejected (429 or 503 with Retry-After: a limit did its work), or error.
    :ivar due: when it should have been sent.
    :ivar stamps: arrival of each event of a stream that carried text.
    :ivar tokens: what the answer says it used, 0 when it does not say.
    """

    name: str
    stream: bool
    due: float
    sent: float
    kind: str = "error"
    reason: str = ""
    status: int = 0
    end: float = 0.0
    stamps: list[float] = field(default_factory=list)
    tokens: int = 0
    retry_after: float = 0.0

    @property
    def first(self) -> float:
        """When the first text came, 0 when none did."""
        return self.stamps[0] if self.stamps else 0.0


class StepFigures:
    """What happened in one step. Requests belong to the step in which they were sent, tokens and answers per second to the one in which they came."""

    def __init__(self) -> None:
        self.sent = self.ok = self.rejected = self.errors = self.answered_in = self.events_in = 0
        self.events = self.told_events = self.told_tokens = self.plain_tokens_in = 0
        self.reasons: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.ttft, self.itl, self.e2e = Histogram(), Histogram(), Histogram()

    def take(self, answer: Answer) -> None:
        """Count an answer. Times count from when the request was due."""
        self.statuses[str(answer.status or "none")] += 1
        if answer.kind == "rejected":
            self.rejected += 1
            return
        if answer.kind == "error":
            self.errors += 1
            self.reasons[answer.reason] += 1
            return
        self.ok += 1
        self.e2e.add(answer.end - answer.due)
        if answer.stream:
            self.ttft.add(answer.first - answer.due)
            for before, after in zip(answer.stamps, answer.stamps[1:]):
                self.itl.add(after - before)
            self.events += len(answer.stamps)
            if answer.tokens:
                self.told_events += len(answer.stamps)
                self.told_tokens += answer.tokens

    def summary(self, seconds: float) -> dict[str, t.Any]:
        """The figures, over so many seconds."""
        # An event may carry several tokens (speculative decoding): what the answers say they used corrects the count of events.
        per_event = self.told_tokens / self.told_events if self.told_events else 1.0
        tokens = self.events_in * per_event + self.plain_tokens_in
        finished = self.ok + self.rejected + self.errors
        judged = self.ok + self.errors
        return {
            "seconds": round(seconds, 1),
            "requests": self.sent,
            "ok": self.ok,
            "rejected": self.rejected,
            "errors": self.errors,
            "unfinished": self.sent - finished,
            "error_ratio": round(self.errors / judged, 5) if judged else 0.0,
            "rejected_ratio": round(self.rejected / finished, 5) if finished else 0.0,
            "error_reasons": dict(self.reasons.most_common(5)),
            "statuses": dict(sorted(self.statuses.items())),
            "requests_per_second": round(self.answered_in / seconds, 3) if seconds else 0.0,
            "tokens_per_second": round(tokens / seconds, 2) if seconds else 0.0,
            "tokens_per_event": round(per_event, 3),
            "ttft": self.ttft.summary(),
            "itl": self.itl.summary(),
            "e2e": self.e2e.summary(),
        }


class Recorder:
    """Figures of all steps, from any number of threads."""

    def __init__(self, ladder: Ladder, begin: float) -> None:
        self.ladder = ladder
        self.begin = begin
        self.figures = [StepFigures() for _step in ladder.steps]
        self._lock = threading.Lock()

    def _at(self, now: float) -> int | None:
        return self.ladder.at(now - self.begin)

    def sending(self, now: float) -> int | None:
        """A request is being sent: the step that it belongs to, or None after the last one."""
        with self._lock:
            number = self._at(now)
            if number is not None:
                self.figures[number].sent += 1
            return number

    def text(self, now: float) -> None:
        """An event with text arrived."""
        with self._lock:
            number = self._at(now)
            if number is not None:
                self.figures[number].events_in += 1

    def take(self, number: int, answer: Answer) -> None:
        """An answer of a request that was sent in this step."""
        with self._lock:
            self.figures[number].take(answer)
            now = self._at(answer.end)
            if now is not None and answer.kind == "ok":
                self.figures[now].answered_in += 1
                if not answer.stream:
                    self.figures[now].plain_tokens_in += answer.tokens

    def summaries(self, now: float) -> list[dict[str, t.Any]]:
        """The figures of every step that has begun."""
        with self._lock:
            found = []
            for number, (step, figures) in enumerate(zip(self.ladder.steps, self.figures)):
                lasted = self.ladder.lasted(number, now - self.begin)
                if lasted > 0 or figures.sent:
                    found.append({"users": step.users, "planned_seconds": step.seconds, **figures.summary(lasted)})
            return found


class Burn:
    """Whether errors eat more than they may: their share within a sliding window, once enough answers are there.

    :arg ratio: share of errors among answers that were not rejected, above which the test ends.
    :arg least: answers within the window below which nothing is concluded.
    :arg window: seconds.
    """

    def __init__(self, ratio: float, least: int, window: float) -> None:
        self.ratio, self.least, self.window = ratio, least, window
        self.seen: deque[tuple[float, bool]] = deque()
        self.errors = 0

    def add(self, now: float, answer: Answer) -> str:
        """Count an answer: a sentence when the test must end, else nothing."""
        if answer.kind == "rejected":
            return ""
        wrong = answer.kind == "error"
        self.seen.append((now, wrong))
        self.errors += wrong
        while self.seen and self.seen[0][0] < now - self.window:
            self.errors -= self.seen.popleft()[1]
        count = len(self.seen)
        if count < self.least or self.errors / count <= self.ratio:
            return ""
        return (
            f"{self.errors} of {count} requests failed within {self.window:g} s, more than {self.ratio:.1%} "
            f"(load_test_abort_error_ratio); the last one: {answer.reason}"
        )


class HostWatch:
    """Whether the host that sends is short of memory or of processor time.

    :arg min_memory_mib: the test ends below so much available memory; 0 does not look.
    :arg max_cpu_percent: the test ends when all processors of the host are busier for three looks in a row; 0 does not look.
    """

    def __init__(self, min_memory_mib: int, max_cpu_percent: int) -> None:
        self.min_memory_mib, self.max_cpu_percent = min_memory_mib, max_cpu_percent
        self._before: tuple[int, int] | None = None
        self._busy = 0

    def look(self, meminfo: str, stat: str) -> str:
        """A sentence when the test must end, else nothing. Takes the text of /proc/meminfo and /proc/stat."""
        if self.min_memory_mib:
            found = [line.split()[1] for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
            if found and int(found[0]) // 1024 < self.min_memory_mib:
                return (
                    f"{int(found[0]) // 1024} MiB of memory are left on the host that sends, fewer than {self.min_memory_mib} "
                    "(load_test_min_memory_mib)"
                )
        if self.max_cpu_percent:
            values = [int(word) for word in stat.splitlines()[0].split()[1:9]]
            now = (sum(values), values[3] + values[4])
            before, self._before = self._before, now
            if before and now[0] > before[0]:
                used = 100 * (1 - (now[1] - before[1]) / (now[0] - before[0]))
                self._busy = self._busy + 1 if used > self.max_cpu_percent else 0
                if self._busy >= 3:
                    return (
                        f"the host that sends is {used:.0f} % busy, more than {self.max_cpu_percent} % (load_test_max_cpu_percent): "
                        "its figures would be its own"
                    )
        return ""
