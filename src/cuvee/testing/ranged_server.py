"""A server of files that answers ranged requests, on 127.0.0.1, with faults on request.

Owns a server thread, a record of what was asked, and a queue of faults. Files are those of a folder.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit

Fault = Literal["503", "429", "cut", "reset", "shifted", "garbled", "stalled", "trickled", "slow head"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for a file: which bytes were asked for, and which version."""

    name: str
    first: int
    last: int
    if_match: str | None

    @property
    def count(self) -> int:
        """Bytes asked for."""
        return self.last + 1 - self.first


@dataclass(slots=True)
class Manners:
    """How the server behaves. `faults` are used up one by one (None is none), when a name contains `at`."""

    ranges: bool = True
    etags: bool = True
    dates: bool = False
    digests: bool = False
    faults: list[Fault | None] = field(default_factory=list)
    at: str = ""


class RangedServer:
    """A running server of the files in a folder; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manners = Manners()
        self.asked: list[Asked] = []
        self.over = threading.Event()  # what is stalled goes on
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        """The folder's address."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def fault(self, name: str) -> Fault | None:
        """The next fault that a request for this file meets."""
        manners = self.manners
        return manners.faults.pop(0) if manners.faults and manners.at in name else None

    def __enter__(self) -> RangedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: RangedServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may go whenever they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner = cast(_Server, self.server).owner
        name = unquote(urlsplit(self.path).path).strip("/")
        path = owner.folder / name
        if not path.is_file():
            self._answer(404, b"no such file")
            return
        content = path.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"' if owner.manners.etags else None
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2])) if wanted else (0, len(content) - 1)
        owner.asked.append(Asked(name, first, last, self.headers.get("If-Match")))
        fault = owner.fault(name)
        if fault in ("503", "429"):
            self._answer(int(fault), b"busy", {"Retry-After": "0"})
        elif fault in ("reset", "stalled", "slow head"):
            self.close_connection = True
            if fault == "stalled":
                owner.over.wait()
            if fault == "slow head":
                self._trickle(b"HTTP/1.1 206 Partial Content\r\nX-Words: " + b"a" * 10_000)
            self.connection.close()
        elif etag and self.headers.get("If-Match") not in (None, etag):
            self._answer(412, b"changed")
        elif not owner.manners.ranges or wanted is None:
            self._answer(200, content, self._tags(etag))
        else:
            self._part(content, first, min(last, len(content) - 1), self._tags(etag), fault)

    def _part(
        self, content: bytes, first: int, last: int, headers: dict[str, str], fault: Fault | None
    ) -> None:
        data = content[first : last + 1]
        shift = 1 if fault == "shifted" else 0
        headers["Content-Range"] = f"bytes {first + shift}-{last + shift}/{len(content)}"
        if cast(_Server, self.server).owner.manners.digests:
            digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
            headers["Content-Digest"] = f"sha-256=:{digest}:"
        if fault == "garbled":
            data = bytes([data[0] ^ 1]) + data[1:]
        self._answer(206, data, headers, cut=fault == "cut", slow=fault == "trickled")

    def _tags(self, etag: str | None) -> dict[str, str]:
        manners = cast(_Server, self.server).owner.manners
        tags = {} if etag is None else {"ETag": etag}
        return {**tags, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"} if manners.dates else tags

    def _answer(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        *,
        cut: bool = False,
        slow: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = self.close_connection or cut or slow
        if slow:
            self._trickle(data)
        else:
            self.wfile.write(data[: len(data) // 2] if cut else data)

    def _trickle(self, data: bytes) -> None:
        """A byte now and then, until the client goes or the server ends."""
        over = cast(_Server, self.server).owner.over
        for byte in data:
            self.wfile.write(bytes([byte]))
            if over.wait(0.05):
                break

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""
