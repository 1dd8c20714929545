"""Pieces of files on a server or in an object store: one request each, its answer checked before it counts.

Owns what an answer must look like, and retries. A file is pinned to the version that was seen first (its ETag, or what
the store has instead). Must not know what the bytes mean. Addresses are shown without credentials, which are refused.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from cuvee.core import stopping
from cuvee.core.askers import stopped
from cuvee.core.names import printable
from cuvee.errors import CorruptFile, SourceError, Where
from cuvee.sources.remote_pace import Pace, Stalled, Unsteady, body, session

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_DIGEST = re.compile(r"sha-(256|512)=:([A-Za-z0-9+/=]+):")
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_VERSION_KEYS = ("VersionId", "version_id", "ETag", "etag", "generation", "LastModified", "mtime", "created")
_TOLD = 1 << 20  # bytes of what a store tells about files, at most
T = TypeVar("T")
INSTALL = "install it with `pip install 'cuvee[remote]'`"


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file, the size of the whole file, and its version, where the store tells."""

    data: bytes
    size: int
    version: str | None


class Store(Protocol):
    """A folder on a server or in an object store. Safe from any thread."""

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        ...

    def names(self) -> list[str] | None:
        """Names of the files directly in it; None where that cannot be asked."""
        ...

    def piece(self, name: str, offset: int, count: int, version: str | None) -> Piece | None:
        """Up to `count` bytes; None when there is no such file. Raises Unsteady, or a SourceError for good."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a request is made, how long the pauses between are (doubled each time, with some chance in them), and
    how slowly an answer may come.
    """

    attempts: int = 6
    first: float = 0.25
    most: float = 20.0
    pace: Pace = field(default_factory=Pace)

    def pause(self, attempt: int, least: float) -> float:
        """Seconds to wait after this attempt (0 is the first)."""
        wait: float = min(self.most, self.first * 2**attempt) * (0.5 + random.random() / 2)
        return min(max(wait, least), self.most)


def patiently(
    store: Store, name: str, offset: int, count: int, version: str | None, patience: Patience
) -> Piece | None:
    """A piece, asked for again while the answers are unsteady; CV-S213 or CV-S390 when they stay so."""
    return again(lambda: store.piece(name, offset, count, version), store, name, patience)


def again(ask: Callable[[], T], store: Store, name: str, patience: Patience) -> T:
    """What is answered in the end; CV-S213 when it stays unsteady, CV-S390 when the last answer came too slowly.

    Raises Interrupted when the process must end.
    """
    code = "CV-S213"
    for attempt in range(patience.attempts):
        try:
            return ask()
        except Unsteady as error:
            reason, least = str(error), error.wait
            code = "CV-S390" if isinstance(error, Stalled) else "CV-S213"
        if attempt + 1 < patience.attempts and stopping.pause(patience.pause(attempt, least)):
            raise stopped()
    raise SourceError(
        code,
        f"`{shown(store, name)}` cannot be read: {reason}, {patience.attempts} times",
        where=Where(file=shown(store, name)),
        hint="run the same command again when the server answers; what is finished is kept",
    )


class HttpStore:
    """A folder on a server of HTTP or HTTPS that answers ranged requests; sessions are kept per thread."""

    def __init__(self, url: str, pace: Pace) -> None:
        self.url = url.rstrip("/")
        self._pace = pace
        self._threads = threading.local()

    def names(self) -> list[str] | None:
        return None

    def piece(self, name: str, offset: int, count: int, version: str | None) -> Piece | None:
        requests = _requests()
        headers = {"Range": f"bytes={offset}-{offset + count - 1}", "Accept-Encoding": "identity"}
        if version is not None and version.startswith('"'):  # weak ones must not stand in a condition
            headers["If-Match"] = version
        url = f"{self.url}/{quote(name)}" if name else self.url
        try:
            with self._session().get(
                url, headers=headers, stream=True, timeout=self._pace.timeouts
            ) as answer:
                return self._read(answer, name, (offset, count), version)
        except (requests.exceptions.SSLError, requests.exceptions.InvalidURL) as error:
            raise SourceError(
                "CV-S211", f"`{shown(self, name)}` cannot be asked for: {type(error).__name__}"
            ) from None
        except (requests.exceptions.RequestException, _broken(), OSError) as error:
            raise Unsteady(f"the connection failed ({type(error).__name__})") from None

    def _read(self, answer: Any, name: str, wanted: tuple[int, int], version: str | None) -> Piece | None:
        status, headers = answer.status_code, answer.headers
        if status in (404, 410):
            return None
        if status == 412:
            raise changed(self, name)
        if status in _BUSY:
            raise Unsteady(f"the server answers {status}", _seconds(headers.get("Retry-After")))
        if status == 416 and headers.get("Content-Range", "").endswith("/0"):
            return Piece(b"", 0, _version(headers))
        if status not in (200, 206):
            raise refused(self, name, f"the server answers {status}")
        first, last, size = self._span(answer, name, wanted)
        found = _version(headers)
        if version is not None and found != version:
            raise changed(self, name)
        data = body(answer.raw, last + 1 - first, self._pace)
        if len(data) != last + 1 - first:
            raise Unsteady(f"an answer ends after {len(data):,} of {last + 1 - first:,} bytes")
        _check(data, headers)
        return Piece(data, size, found)

    def _span(self, answer: Any, name: str, wanted: tuple[int, int]) -> tuple[int, int, int]:
        """First and last byte of the answer, and the size of the file; SourceError when it is not what was asked."""
        offset, count = wanted
        headers = answer.headers
        plain = headers.get("Content-Encoding", "identity") == "identity"
        if answer.status_code == 200:
            length = headers.get("Content-Length", "")
            if plain and offset == 0 and length.isdigit() and int(length) <= count:  # a small file, whole
                return 0, int(length) - 1, int(length)
            plain = False
        match = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if not plain or match is None:
            raise SourceError(
                "CV-S214",
                f"the server of `{shown(self, name)}` does not serve parts of files",
                where=Where(file=shown(self, name)),
                hint="fetch the model first and name its folder, or use a server that answers `Range` requests",
            )
        first, last, size = (int(group) for group in match.groups())
        if first != offset or last != min(offset + count, size) - 1:
            raise Unsteady("an answer holds another part of the file than was asked for")
        return first, last, size

    def _session(self) -> Any:
        if not hasattr(self._threads, "session"):
            self._threads.session = session(self._pace)
        return self._threads.session


class ObjectStore:
    """A folder of any file system that fsspec knows (`s3`, `gs`); each piece is followed by a look at the version.

    Its libraries do not say how much has come, so an answer is timed as a whole, where they can be told to give up.
    """

    def __init__(self, url: str, pace: Pace) -> None:
        self.url = url.rstrip("/")
        self._pace = pace
        scheme = url.partition(":")[0]
        try:
            import fsspec

            self._system, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise SourceError(
                "CV-S210",
                f"`{scheme}` addresses need a library that is not installed: {printable(str(error))}",
                hint=INSTALL,
            ) from None

    def names(self) -> list[str] | None:
        entries = self._asked("", lambda: self._system.ls(self._root, detail=True, **self._within())) or []
        files = (entry["name"] for entry in entries if entry.get("type") == "file")
        return sorted(name.rstrip("/").rpartition("/")[2] for name in files)

    def piece(self, name: str, offset: int, count: int, version: str | None) -> Piece | None:
        path = f"{self._root}/{name}" if name else self._root
        before = self._asked(name, lambda: self._info(path)) if version is None else None
        if version is None and before is None:
            return None
        data: Any = b""  # an object without bytes has no range that could be asked for
        if before is None or before.get("size") != 0:
            span, limit = {"start": offset, "end": offset + count}, self._within(count)
            data = self._asked(name, lambda: self._system.cat_file(path, **span, **limit))
        after = self._asked(name, lambda: self._info(path))
        pinned = version if version is not None else _stamp(before)
        if data is None or after is None or _stamp(after) != pinned:
            raise changed(self, name)
        size = int(after.get("size") or 0)
        expected = max(0, min(offset + count, size) - offset)
        if len(data) != expected:
            raise Unsteady(f"an answer has {len(data):,} of {expected:,} bytes")
        return Piece(bytes(data), size, pinned)

    def _info(self, path: str) -> Any:
        self._system.invalidate_cache()
        return self._system.info(path, **self._within())

    def _within(self, count: int = _TOLD) -> dict[str, float]:
        """How long a request for so many bytes may take, where the library can be told."""
        limit = self._pace.whole(count) if self._system.async_impl else None
        return {} if limit is None else {"timeout": limit}

    def _asked(self, name: str, ask: Callable[[], Any]) -> Any:
        """What the store answers, None for what is not there."""
        try:
            return ask()
        except FileNotFoundError:
            return None
        except PermissionError:
            raise refused(self, name, "access is denied") from None
        except Exception as error:  # noqa: BLE001 - each store's library has errors of its own
            kind = type(error).__name__
            if "Credential" in kind:
                raise refused(self, name, f"there are no credentials for it ({kind})") from None
            if kind == "FSTimeoutError":
                raise Stalled("no whole answer came in time") from None
            raise Unsteady(f"the store fails ({kind})") from None


def shown(store: Store, name: str) -> str:
    """The address of a file, for a person."""
    return printable(f"{store.url}/{name}" if name else store.url, 300)


def changed(store: Store, name: str) -> CorruptFile:
    """The file is not the one that was read before."""
    return CorruptFile(
        "CV-S212",
        f"`{shown(store, name)}` was replaced while it was read",
        where=Where(file=shown(store, name)),
        hint="merge again, with `--no-resume`, when nothing writes to it any more",
    )


def refused(store: Store, name: str, reason: str) -> SourceError:
    """An answer that asking again will not change."""
    return SourceError(
        "CV-S211", f"`{shown(store, name)}` cannot be read: {reason}", where=Where(file=shown(store, name))
    )


def _requests() -> Any:
    try:
        import requests
    except ImportError:
        raise SourceError(
            "CV-S210", "reading from addresses needs the library `requests`", hint=INSTALL
        ) from None
    return requests


def _broken() -> type[Exception]:
    """What the library below `requests` raises when a body is cut short."""
    from urllib3.exceptions import HTTPError

    return HTTPError


def _version(headers: Mapping[str, str]) -> str | None:
    return headers.get("ETag") or headers.get("Last-Modified")


def _stamp(info: Mapping[str, Any] | None) -> str | None:
    if info is None:
        return None
    found = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), None)
    return None if found is None else f"{found} {info.get('size')}"


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdigit() else 0.0


def _check(data: bytes, headers: Mapping[str, str]) -> None:
    """Unsteady when the server says what the bytes of its answer hash to, and they do not."""
    said = {f"sha{bits}": digest for bits, digest in _DIGEST.findall(headers.get("Content-Digest", ""))}
    if "Content-MD5" in headers:
        said["md5"] = headers["Content-MD5"]
    for kind, digest in said.items():
        made = hashlib.new(kind, data, usedforsecurity=False).digest()
        if base64.b64encode(made).decode() != digest:
            raise Unsteady("an answer does not have the checksum that came with it")
