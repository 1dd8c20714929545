"""Keeps decompositions on disk from run to run, so that a sweep over strength, rank or sparsity repeats none.

Owns the folder `decompositions` in the cache: one file for each matrix and level of rank (`methods.decompositions`),
named by the digest of what was decomposed. A file is written under another name and renamed, verified when it is read,
and thrown away when it does not hold; the least recently used go when the folder would grow beyond its limit. Results
are the same bits with and without the store. Nothing is kept in memory, and a store that cannot write only costs time.
Must not know any method.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core import cache
from cuvee.core.digests import TensorHasher, bytes_digest, canonical_json, tensor_bytes
from cuvee.core.disk import REAL, Disk, Handle, make_folders
from cuvee.core.lazy import torch
from cuvee.core.limits import MIB
from cuvee.engine.options import RunOptions
from cuvee.errors import RunError
from cuvee.methods.contract import Decomposer
from cuvee.methods.decompositions import VERSION, Plain, Triplets, content, eigh, level, svd_at

if TYPE_CHECKING:
    from torch import Tensor

_MAGIC = b"CUVEEDC1"
_HEADER = 512  # bytes of magic and header, padded with spaces
_WORTH = 256  # directions below which computing is as fast as reading
_LOCKS = 64


def decomposer(options: RunOptions) -> Decomposer:
    """What a run's stages ask: a store in the cache folder, or without room for one a plain decomposer."""
    if not options.decompositions:
        return Plain()
    return Store(cache.folder() / "decompositions", options.decompositions)


class Store:
    """A `Decomposer` that looks into a folder first. May be used from several threads and processes."""

    def __init__(self, folder: Path, limit: int, disk: Disk = REAL) -> None:
        self.folder, self.limit, self.disk = folder, limit, disk
        self.hits = self.misses = 0
        self._writable = True
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def svd(self, matrix: Tensor, rank: int | None = None, *, spend: bool = False) -> Triplets:
        """As `Plain.svd`; a stored level of rank serves every smaller rank of that level."""
        wanted = level(tuple(matrix.shape), str(matrix.dtype), rank)
        if min(matrix.shape) < _WORTH:
            u, s, vh = svd_at(matrix, wanted, spend=spend)
        else:
            u, s, vh = self._triplets(matrix, wanted, spend=spend)
        return u[:, :rank], s[:rank], vh[:rank]

    def eigh(self, matrix: Tensor, *, spend: bool = False) -> tuple[Tensor, Tensor]:
        """As `Plain.eigh`."""
        if len(matrix) < _WORTH:
            return eigh(matrix, spend=spend)
        name = _name("eigh", matrix)
        with self._lock(name):
            found = self._read(name, matrix)
            if found is None:
                values, vectors = eigh(matrix, spend=spend)
                self._write(name, [values, vectors.T])
                return values, vectors
        return found[0], found[1].T

    def _triplets(self, matrix: Tensor, wanted: int, *, spend: bool) -> Triplets:
        key, full = _name("svd", matrix), min(matrix.shape)
        with self._lock(key):
            found = self._read(f"{key}-{wanted}", matrix)
            if found is not None and not found:  # no algorithm for the level was accurate enough
                found = self._read(f"{key}-{full}", matrix)
            if found:
                return found[1].T, found[0], found[2]
            u, s, vh = svd_at(matrix, wanted, spend=spend)
            self._write(f"{key}-{len(s)}", [s, u.T, vh])
            if len(s) != wanted:
                self._write(f"{key}-{wanted}", [])
        return u, s, vh

    def _lock(self, name: str) -> threading.Lock:
        return self._locks[int(name[:8], 16) % _LOCKS]

    def _read(self, name: str, like: Tensor) -> list[Tensor] | None:
        """The stored tensors, or None where there are none that hold; what is broken is removed."""
        path = self.folder / name
        if self.disk.kind(path) != "file":
            self.misses += 1
            return None
        with contextlib.suppress(RunError):  # another process may just have pruned it
            found = self._verified(path)
            if found is None:
                self.disk.unlink(path)
            else:
                self._touch(path)
                self.hits += 1
                return [tensor.to(like.device) for tensor in found]
        self.misses += 1
        return None

    def _verified(self, path: Path) -> list[Tensor] | None:
        handle = self.disk.open_file(path)
        try:
            head = _header(self.disk.pread(handle, _HEADER, 0))
            if head is None:
                return None
            hasher, offset, out = TensorHasher(), _HEADER, []
            if self.disk.size(path) != _HEADER + sum(
                _bytes(shape, head["dtype"]) for shape in head["shapes"]
            ):
                return None
            for shape in head["shapes"]:
                tensor = torch.empty(shape, dtype=getattr(torch, head["dtype"]))
                offset = self._fill(handle, tensor, offset, hasher)
                out.append(tensor)
            return out if hasher.hexdigest() == head["digest"] else None
        finally:
            self.disk.close(handle)

    def _fill(self, handle: Handle, tensor: Tensor, offset: int, hasher: TensorHasher) -> int:
        view = tensor_bytes(tensor)
        for start in range(0, len(view), MIB):
            piece = self.disk.pread(handle, min(MIB, len(view) - start), offset + start)
            view[start : start + len(piece)] = piece
            hasher.update(piece)
        return offset + len(view)

    def _touch(self, path: Path) -> None:
        """Note that a file was used: its first byte is written again."""
        with contextlib.suppress(RunError):
            handle = self.disk.open_file(path, "write")
            try:
                self.disk.pwrite(handle, _MAGIC[:1], 0)
            finally:
                self.disk.close(handle)

    def _write(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Keep tensors under a name, where there is room; failing only means that they are computed again."""
        views = [tensor_bytes(tensor) for tensor in tensors]
        size = _HEADER + sum(len(view) for view in views)
        if size > self.limit or not self._writable:
            return
        hasher = TensorHasher()
        for view in views:
            hasher.update(view)
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else "float32"
        head = {"dtype": dtype, "shapes": [list(t.shape) for t in tensors], "digest": hasher.hexdigest()}
        try:
            make_folders(self.folder, self.disk)
            if self.disk.free(self.folder) < 2 * size:
                return
            self._prune(self.limit - size)
            self._replace(name, [(_MAGIC + canonical_json(head)).ljust(_HEADER), *views], size)
        except RunError:
            self._writable = False

    def _replace(self, name: str, pieces: Sequence[Any], size: int) -> None:
        # Without syncing: what a power cut leaves incomplete does not pass the check on reading.
        temporary = self.folder / f".{name}.{os.getpid()}-{threading.get_ident()}.cuvee-tmp"
        handle = self.disk.create(temporary, size)
        try:
            try:
                offset = 0
                for piece in pieces:
                    self.disk.pwrite(handle, piece, offset)
                    offset += len(piece)
            finally:
                self.disk.close(handle)
            self.disk.rename(temporary, self.folder / name)
        except RunError:
            with contextlib.suppress(RunError):
                self.disk.unlink(temporary)
            raise

    def _prune(self, room: int) -> None:
        """Remove the least recently used files until the rest takes at most `room` bytes."""
        found = []
        for name in self.disk.listing(self.folder):
            with contextlib.suppress(RunError):  # gone meanwhile
                path = self.folder / name
                found.append((self.disk.age(path), self.disk.size(path), path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found, reverse=True):
            if total <= room:
                return
            with contextlib.suppress(RunError):
                self.disk.unlink(path)
            total -= size


def _name(kind: str, matrix: Tensor) -> str:
    """What a decomposition is known by: its kind, the algorithms' version, and the matrix."""
    facts = [kind, VERSION, str(matrix.dtype), list(matrix.shape), str(matrix.device.type), content(matrix)]
    return bytes_digest(canonical_json(facts))


def _header(data: bytes) -> dict[str, Any] | None:
    if len(data) != _HEADER or not data.startswith(_MAGIC):
        return None
    try:
        head = json.loads(data[len(_MAGIC) :])
        shapes, dtype, digest = head["shapes"], head["dtype"], head["digest"]
        right = dtype in ("float32", "float64") and isinstance(digest, str) and len(shapes) <= 3
        sizes = all(type(axis) is int and axis >= 0 for shape in shapes for axis in shape)
    except (ValueError, KeyError, TypeError):
        return None
    return head if right and sizes else None


def _bytes(shape: Sequence[int], dtype: str) -> int:
    size = 4 if dtype == "float32" else 8
    for axis in shape:
        size *= axis
    return size
