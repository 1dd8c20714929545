"""Fingerprints of tensors, files and values, and the one JSON form that is always the same bytes.

    region digest   BLAKE3 (32 bytes) of one MiB of a tensor's bytes; the last region may be shorter
    tensor digest   BLAKE3 of its region digests, joined in order (of nothing, for a tensor without bytes)
    header digest   BLAKE3 of everything in a weight file before its first tensor (length field and JSON)
    file digest     of a weight file: BLAKE3 of the header digest, then the tensor digests in file order
                    of any other file: BLAKE3 of its bytes

Digests are joined as raw bytes and shown as 64 lower-case hexadecimal digits. A region can be hashed while it
is in cache, and a file's digest costs nothing more. This module must not write, and must not know any format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blake3 import blake3

from cuvee.core.lazy import torch
from cuvee.core.limits import MIB

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Buffer

REGION = MIB


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a manifest says of one file; `header` counts the bytes before the first tensor."""

    kind: Literal["tensors", "plain"]
    size: int
    digest: str
    header: int = 0


class TensorHasher:
    """The digest of one tensor whose bytes arrive in order, in pieces of any size. Not thread-safe."""

    __slots__ = ("_open", "_outer", "position")

    def __init__(self) -> None:
        self._outer = blake3()
        self._open = blake3()
        self.position = 0  # bytes seen

    def update(self, data: Buffer) -> None:
        """Take the next bytes (C-contiguous); whole regions are hashed where they lie, without a copy."""
        view = as_bytes(data)
        start, end = 0, len(view)
        while start < end:
            room = REGION - self.position % REGION
            piece = view[start : start + room]
            self._open.update(piece)
            start += len(piece)
            self.position += len(piece)
            if len(piece) == room:
                self._outer.update(self._open.digest())
                self._open = blake3()

    def digest(self) -> bytes:
        """The digest of what has arrived so far; more may follow."""
        outer = self._outer.copy()
        if self.position % REGION:
            outer.update(self._open.digest())
        return outer.digest()

    def hexdigest(self) -> str:
        """As `digest`, as text."""
        return self.digest().hex()


class RegionHasher:
    """The digests of a tensor's regions, from a region's start on, of bytes that arrive in order. Not thread-safe."""

    __slots__ = ("_digests", "_open", "_position")

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self._open = blake3()
        self._position = 0

    def update(self, data: Buffer) -> None:
        """Take the next bytes (C-contiguous)."""
        view = as_bytes(data)
        while view:
            room = REGION - self._position % REGION
            self._open.update(view[:room])
            self._position += len(view[:room])
            view = view[room:]
            if self._position % REGION == 0:
                self._digests.append(self._open.digest())
                self._open = blake3()

    def digests(self) -> bytes:
        """The regions' digests in order, joined; an open one as it is."""
        rest = [self._open.digest()] if self._position % REGION else []
        return b"".join([*self._digests, *rest])


def joined_digest(regions: bytes) -> str:
    """The digest of a tensor whose region digests are these, joined in order."""
    return blake3(regions).hexdigest()


def as_bytes(data: Buffer) -> memoryview:
    """A flat byte view of any C-contiguous buffer, without copying."""
    view = memoryview(data)
    if view.nbytes == 0:  # `cast` refuses shapes with a zero
        return memoryview(b"")
    return view.cast("B")


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes as they stand in a file (little-endian machines only), without a copy where possible."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return as_bytes(flat.view(torch.uint8).numpy().data)


def tensor_digest(data: Buffer) -> str:
    """The digest of a tensor that is at hand as a whole."""
    hasher = TensorHasher()
    hasher.update(data)
    return hasher.hexdigest()


def extent_digest(read: Callable[[int, int], bytes], offset: int, nbytes: int) -> str | None:
    """The tensor digest of `nbytes` at `offset` of a file; None when the file ends before.

    `read(count, offset)` gives at most `count` bytes; peak memory is one region.
    """
    hasher = TensorHasher()
    while hasher.position < nbytes:
        piece = read(min(REGION, nbytes - hasher.position), offset + hasher.position)
        if not piece:
            return None
        hasher.update(piece)
    return hasher.hexdigest()


def bytes_digest(data: Buffer) -> str:
    """The plain digest of bytes at hand: side files, headers, texts."""
    return blake3(as_bytes(data)).hexdigest()


def weight_file_digest(header_digest: str, tensor_digests: Iterable[str]) -> str:
    """A weight file's digest; the tensor digests in the order they lie in the file."""
    joined = blake3(bytes.fromhex(header_digest))
    for digest in tensor_digests:
        joined.update(bytes.fromhex(digest))
    return joined.hexdigest()


def digest_file(path: Path) -> str:
    """The plain digest of a file, read a MiB at a time. OSError when it cannot be read."""
    hasher = blake3()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(REGION):
            hasher.update(piece)
    return hasher.hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one encoding of a JSON value: keys sorted by code point, no spaces, ASCII only, no final newline.

    Floats take Python's shortest form. ValueError for NaN and infinity, TypeError for what is not JSON.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")
