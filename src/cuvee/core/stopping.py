"""Whether somebody asked this process to end: what waits for long, for a server above all, looks at it now and then.

Plain flags, since signal handlers set them. Must not know who waits.
"""

from __future__ import annotations

import time

_LOOK = 0.1  # seconds between two looks


class _Request:
    """The one request of this process."""

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made = False


_REQUEST = _Request()


def ask() -> None:
    """Ask what waits to give up."""
    _REQUEST.made = True


def withdraw() -> None:
    """Waiting is right again."""
    _REQUEST.made = False


def asked() -> bool:
    """Whether an end was asked for."""
    return _REQUEST.made


def pause(seconds: float) -> bool:
    """Wait; True when an end was asked for before or meanwhile."""
    end = time.monotonic() + seconds
    while not asked() and (left := end - time.monotonic()) > 0:
        time.sleep(min(_LOOK, left))
    return asked()
