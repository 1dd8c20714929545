"""The first bytes of a file on the hub, by ranged requests, kept in cuvee's cache: a commit's files never change.

Owns the request and the cache of headers. Must not know what the bytes mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.core import cache
from cuvee.core.disk import make_folders, write_file
from cuvee.errors import CuveeError
from cuvee.sources.hub_client import tell_nothing

FIRST = 1 << 17  # bytes of the first request: most headers fit
_KEPT = 1 << 26  # longer ones are asked for again
_RANGE = re.compile(r"bytes 0-\d+/(\d+)")


class NoRanges(Exception):
    """The hub sends whole files only."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A repository at one commit, on one hub."""

    repository: str
    commit: str
    endpoint: str | None


def ranged(at: Commit, name: str) -> tuple[int, Callable[[int, int], bytes]]:
    """The size of a file, and a reader of its bytes from the start; NoRanges where only whole files are served."""
    kept = _kept(at, name)
    size, start = kept or _first(at, name, FIRST)
    have = [start]

    def read(offset: int, count: int) -> bytes:
        if offset + count > len(have[0]):
            have[0] = _first(at, name, min(offset + count, size))[1]
            _keep(at, name, size, have[0])
        return have[0][offset : offset + count]

    if kept is None:
        _keep(at, name, size, start)
    return size, read


def _first(at: Commit, name: str, count: int) -> tuple[int, bytes]:
    """The file's size and its first bytes."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    tell_nothing()
    url = hf_hub_url(at.repository, name, revision=at.commit, endpoint=at.endpoint)
    # Without compression, or the bytes would not be those of the file.
    headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    with _answer(url, headers) as answer:
        hf_raise_for_status(answer)
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status_code != 206 or found is None:
            raise NoRanges
        pieces = answer.iter_bytes() if hasattr(answer, "iter_bytes") else answer.iter_content(1 << 16)
        data = bytearray()
        for piece in pieces:
            data += piece
            if len(data) >= count:
                break
    return int(found[1]), bytes(data[:count])


@contextmanager
def _answer(url: str, headers: dict[str, str]) -> Iterator[Any]:
    """The hub client's own session, whichever HTTP library it is built on; the body is not read ahead."""
    from huggingface_hub.utils import get_session

    session = get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers) as answer:
            yield answer
    else:
        with session.get(url, headers=headers, stream=True) as answer:
            yield answer


def _path(at: Commit, name: str) -> Path:
    key = "\0".join((at.endpoint or "", at.repository, at.commit, name))
    return cache.folder() / "hub-headers" / blake3(key.encode()).hexdigest()


def _kept(at: Commit, name: str) -> tuple[int, bytes] | None:
    try:
        data = _path(at, name).read_bytes()
    except OSError:
        return None
    return (int.from_bytes(data[:8], "little"), data[8:]) if len(data) > 8 else None


def _keep(at: Commit, name: str, size: int, start: bytes) -> None:
    """Remember the size and first bytes; a cache that cannot be written to is no reason to stop."""
    path = _path(at, name)
    if len(start) > _KEPT:
        return
    try:
        make_folders(path.parent)
        write_file(path, size.to_bytes(8, "little") + start)
    except (CuveeError, OSError):
        return
