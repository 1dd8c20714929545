"""PyTorch checkpoints (`.bin`, `.pt`, `.pth`) as tensor files: views of storages, nothing executed.

The container (a zip archive, or the older plain stream) says where storages lie; `pickle_machine` says what
the views are. Must not import torch for header work, and never calls `torch.load`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.tensors import Extent, TensorMeta
from cuvee.formats.bytes_file import ByteFile, element_range
from cuvee.formats.pickle_values import Checkpoint, View
from cuvee.formats.refusals import corrupt, quoted
from cuvee.formats.torch_legacy import read_legacy
from cuvee.formats.torch_views import named_views
from cuvee.formats.torch_zip import read_zip

if TYPE_CHECKING:
    from torch import Tensor

_GATHER = 1 << 18  # elements gathered at once from a view that is not contiguous


class TorchFile:
    """An opened PyTorch checkpoint; see `TensorFile`.

    `metadata` has `container` (`zip` or `legacy`), `nest` (the keys the model was found under) and `skipped`
    (entries that are not its tensors).
    """

    format = "torch"

    def __init__(
        self, raw: ByteFile, views: dict[str, View], found: Checkpoint, notes: dict[str, Any]
    ) -> None:
        self.path = raw.path
        self.tensors: Mapping[str, TensorMeta] = {
            name: TensorMeta(name, view.dtype, view.shape) for name, view in views.items()
        }
        self.metadata: Mapping[str, Any] = notes
        self.encodings: Mapping[str, str] = {}
        self._raw = raw
        self._views = views
        self._begins = {name: found.begins[view.storage.key] + _first(view) for name, view in views.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop) of a tensor in row-major order of its shape, whatever its strides."""
        view, meta = self._views[name], self.tensors[name]
        first, last = element_range(meta, start, stop)
        if _contiguous(view):
            offset = self._begins[name] + first * meta.dtype.size
            return self._raw.tensor_at(offset, last - first, meta.dtype, name)
        return self._gather(view, name, first, last)

    def _gather(self, view: View, name: str, first: int, last: int) -> Tensor:
        """Elements of a strided view: its span of the storage is read once, then picked from by pieces."""
        out = torch.empty(last - first, dtype=view.dtype.torch)
        if first == last:
            return out
        low, high = _span(view, first, last)
        offset = self._begins[name] + low * view.dtype.size
        word = getattr(torch, f"int{8 * view.dtype.size}")  # picking moves bytes; not all dtypes can do it
        held = self._raw.tensor_at(offset, high - low, view.dtype, name).view(word)
        lanes = out.view(word)
        for begin in range(first, last, _GATHER):
            end = min(begin + _GATHER, last)
            index = torch.arange(begin, end, dtype=torch.int64)
            position = torch.full_like(index, -low)
            for length, step in zip(reversed(view.shape), reversed(view.stride), strict=True):
                position += (index % length) * step
                index //= length
            lanes[begin - first : end - first] = held[position]
        return out

    def extent(self, name: str) -> Extent | None:
        """Where the tensor's bytes lie, when its strides are those of a plain array."""
        if not _contiguous(self._views[name]):
            return None
        return Extent(self.path, self._begins[name], self.tensors[name].nbytes)

    def close(self) -> None:
        """Close the file; reads fail afterwards."""
        self._raw.close()


def open_torch(path: Path, limits: Limits = DEFAULT) -> TorchFile:
    """Open a checkpoint; UnsafeFile when it asks for anything but tensors and plain values."""
    raw = ByteFile(path)
    try:
        zipped = raw.bytes_at(0, min(raw.size, 4)) == b"PK\x03\x04"
        found = read_zip(raw, limits) if zipped else read_legacy(raw, limits)
        named = named_views(found.value, path, limits)
        for name, view in named.views.items():
            if view.storage.key not in found.begins:
                message = f"the storage {quoted(view.storage.key)} of {quoted(name)} is not in the file"
                raise corrupt("CV-S062", path, message, tensor=name)
    except BaseException:
        raw.close()
        raise
    notes = {
        "container": "zip" if zipped else "legacy",
        "nest": named.nest,
        "skipped": named.skipped,
    }
    return TorchFile(raw, named.views, found, notes)


def _first(view: View) -> int:
    """Bytes from the begin of the storage to the view's first element."""
    return view.storage.offset * view.storage.dtype.size + view.offset * view.dtype.size


def _contiguous(view: View) -> bool:
    if 0 in view.shape:
        return True
    expected = 1
    for length, step in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if length != 1 and step != expected:
            return False
        expected *= length
    return True


def _span(view: View, first: int, last: int) -> tuple[int, int]:
    """The storage elements, counted from the view's first, between which elements [first, last) lie."""
    inner, low, high, split = math.prod(view.shape), 0, 0, False
    for length, step in zip(view.shape, view.stride, strict=True):
        inner //= length
        a, b = first // inner % length, (last - 1) // inner % length
        if split:  # the leading indices differ, so this one takes every value
            a, b = 0, length - 1
        low, high, split = low + a * step, high + b * step, split or a != b
    return low, high + 1
