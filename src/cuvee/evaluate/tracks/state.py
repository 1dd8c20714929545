"""The state of an unfinished training in one file of the cache, so that what was killed goes on from its last minute.

Owns the file and where it lies; its metadata name the training it belongs to and a digest of its tensors, and a file
that is damaged or of another training is as good as none. Knows no training loop and no models.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from cuvee.core import disk
from cuvee.core.digests import tensor_bytes
from cuvee.core.dtypes import of_torch
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CuveeError, RunError
from cuvee.formats.safetensors import encode_header, open_safetensors

if TYPE_CHECKING:
    from torch import Tensor

_PART = ".cuvee-part"
_ABANDONED = 300.0  # seconds without a write after which a half-written file is nobody's


@dataclass(frozen=True, slots=True)
class Place:
    """Where the training of one thing may keep its state, and whom it tells the share (0…1) it goes on from."""

    path: Path
    tell: Callable[[float], None] = lambda share: None


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def kept_at(place: Place) -> Iterator[None]:
    """Inside, a training keeps its state there; after success the state is removed."""
    token = _PLACE.set(place)
    try:
        yield
    finally:
        _PLACE.reset(token)
    remove(place.path)


def current() -> Place | None:
    """Where to keep state; None where what is trained has no place in the cache."""
    return _PLACE.get()


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Replace the file in one step, tensor by tensor, without a copy of them all in memory; RunError of the disk."""
    metas = [
        TensorMeta(name, of_torch(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()
    ]
    disk.make_folders(path.parent)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_PART}")
    try:
        _fill(part, metas, tensors, facts)
        disk.REAL.rename(part, path)
    except BaseException:  # interrupted, too
        # a file whose space could not be reserved is there all the same
        with suppress(RunError):
            disk.REAL.unlink(part)
        raise


def _fill(
    part: Path, metas: Sequence[TensorMeta], tensors: Mapping[str, Tensor], facts: Mapping[str, str]
) -> None:
    """Write a new file and make it durable."""
    header, begins = encode_header(metas, {**facts, "content": "0" * 64})
    handle = disk.REAL.create(part, len(header) + sum(meta.nbytes for meta in metas))
    try:
        content = _begun(facts)
        for name, tensor in tensors.items():
            data = tensor_bytes(tensor)
            content.update(data)
            disk.REAL.pwrite(handle, data, begins[name])
        disk.REAL.pwrite(handle, encode_header(metas, {**facts, "content": content.hexdigest()})[0], 0)
        disk.REAL.sync(handle)
    finally:
        disk.REAL.close(handle)


def read(path: Path, facts: Mapping[str, str]) -> tuple[dict[str, Tensor], Mapping[str, str]] | None:
    """The tensors and all facts of a file that states these facts; None for no file, another's or a damaged one."""
    if not path.is_file():
        return None
    try:
        stored = open_safetensors(path)
    except CuveeError:
        return None
    try:
        if any(stored.metadata.get(name) != fact for name, fact in facts.items()):
            return None
        found = {name: stored.read(name).reshape(meta.shape).clone() for name, meta in stored.tensors.items()}
    except CuveeError:
        return None
    finally:
        stored.close()
    known = {name: fact for name, fact in stored.metadata.items() if name != "content"}
    content = _begun(known)
    for tensor in found.values():
        content.update(tensor_bytes(tensor))
    return (found, known) if content.hexdigest() == stored.metadata.get("content") else None


def _begun(facts: Mapping[str, str]) -> Any:
    return blake3(repr(sorted(facts.items())).encode())


def remove(path: Path) -> None:
    """Remove the state, and half-written ones that a killed process left."""
    with suppress(OSError, RunError):
        for part in path.parent.glob(f"{path.name}.*{_PART}"):
            if disk.REAL.age(part) > _ABANDONED:
                disk.REAL.unlink(part)
    with suppress(RunError):
        if path.exists():
            disk.REAL.unlink(path)
