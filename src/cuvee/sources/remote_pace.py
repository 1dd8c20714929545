"""How slowly a server may answer: one that trickles bytes is given up and asked again, like one that fails.

Owns the rule (bytes a second over a window), the sessions of HTTP that keep it, and the reading of bodies. Must not
know which file is read, nor how often it is asked for.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from cuvee.core import settings
from cuvee.core.names import printable
from cuvee.errors import UsageError

_SILENCE = 60.0  # seconds between two bytes; also the most that the head of an answer may take
_CONNECT = 10.0
_PIECE = 1 << 20


class Unsteady(Exception):
    """An answer that may be another one when asked again; `wait` seconds at least, where the server says."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Stalled(Unsteady):
    """An answer that comes too slowly."""


def least_rate() -> float:
    """Bytes a second from `CUVEE_SLOWEST`; 0 waits as long as any byte comes. UsageError when it is no number."""
    text = settings.get("CUVEE_SLOWEST") or "0"
    if not text.strip().isdecimal():
        raise UsageError(
            "CV-S391",
            f"`CUVEE_SLOWEST={printable(text, 100)}` is not a whole number of bytes a second",
            hint="leave it out for 8192, or set 0 to wait as long as any byte comes",
        )
    return float(text)


@dataclass(frozen=True, slots=True)
class Pace:
    """An answer must bring `least` bytes a second over every `window` seconds."""

    least: float = field(default_factory=least_rate)
    window: float = 30.0

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds to connect, and between two bytes."""
        return _CONNECT, _SILENCE

    @property
    def head(self) -> float | None:
        """Seconds that the status and the headers of an answer may take."""
        return 2 * self.window if self.least else None

    def whole(self, count: int) -> float | None:
        """Seconds for `count` bytes, where nobody says how many there are already."""
        return self.window + count / self.least if self.least else None

    def stalled(self, came: int, seconds: float) -> Stalled:
        """What to raise when only `came` bytes came in these seconds."""
        return Stalled(f"{came:,} bytes came in {seconds:,.0f} seconds")


def body(raw: Any, count: int, pace: Pace) -> bytes:
    """Up to `count` bytes of an answer, fewer when it ends; Stalled when they come too slowly."""
    pieces: list[bytes] = []
    left, since, came = count, time.monotonic(), 0
    while left > 0 and (piece := raw.read1(min(left, _PIECE), decode_content=False)):
        pieces.append(piece)
        left, came = left - len(piece), came + len(piece)
        seconds = time.monotonic() - since
        if seconds >= pace.window and left > 0:
            if came < pace.least * seconds:
                raise pace.stalled(came, seconds)
            since, came = time.monotonic(), 0
    return b"".join(pieces)


def session(pace: Pace) -> Any:
    """A session of `requests` whose answers have their headers in time."""
    import requests
    from requests.adapters import HTTPAdapter

    class Prompt(HTTPAdapter):  # the library's way to change its connections
        def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
            pool: Any = super().get_connection_with_tls_context(*arguments, **options)
            if not hasattr(pool, "cuvee_limited"):
                pool.ConnectionCls = _limited(pool.ConnectionCls, pace)
                pool.cuvee_limited = True
            return pool

    made = requests.Session()
    for scheme in ("http://", "https://"):
        made.mount(scheme, Prompt())
    return made


def _limited(kind: Callable[..., Any], pace: Pace) -> Callable[..., Any]:
    """Connections of a kind, whose headers must come within `pace.head`."""

    def connection(*arguments: Any, **options: Any) -> Any:
        made = kind(*arguments, **options)
        plain = made.getresponse

        def response() -> Any:
            with _ended(made, pace):
                return plain()

        made.getresponse = response
        return made

    return connection


@contextmanager
def _ended(connection: Any, pace: Pace) -> Iterator[None]:
    """Shut the connection when this takes too long, and raise Stalled then, whatever it led to."""
    if pace.head is None:
        yield
        return
    over = threading.Event()
    timer = threading.Timer(pace.head, _shut, (connection.sock, over))
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if not over.is_set():
            raise
    finally:
        timer.cancel()
    if over.is_set():
        raise Stalled(f"no whole head of an answer came in {pace.head:,.0f} seconds")


def _shut(found: Any, over: threading.Event) -> None:
    over.set()
    with suppress(OSError, AttributeError, TypeError):
        # of the base class: TLS keeps what its reader still uses
        socket.socket.shutdown(found, socket.SHUT_RDWR)
