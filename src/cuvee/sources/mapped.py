"""A source under other names: each tensor is put together from parts of the inner source's tensors while it is read.

Owns the reading of `key_map.Part`. The inner names stay readable, so that expressions made before still hold. Must
not know what the names mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.dtypes import DType
from cuvee.core.lazy import torch
from cuvee.core.sampling import Span
from cuvee.core.tensors import Extent, Stored, TensorMeta
from cuvee.errors import Diagnostic
from cuvee.sources.key_map import Made, Part
from cuvee.sources.source import Source, bounded, kept_dtype, meta_of, stored_form, unfetched, weight_files

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sources.remote_file import RemoteFile


class MappedSource:
    """`made` over `inner`; side files and config are `beside`'s (by default the inner source's own)."""

    def __init__(
        self,
        inner: Source,
        made: Mapping[str, Made],
        notes: tuple[Diagnostic, ...] = (),
        beside: Source | None = None,
    ) -> None:
        self.label = inner.label
        self.config: Mapping[str, Any] | None = (beside or inner).config
        self.notes = (*inner.notes, *notes)
        self.tensors: Mapping[str, TensorMeta] = {name: one.meta for name, one in made.items()}
        self.inner = inner
        self.made = made
        self._beside = beside or inner

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop), from the parts that hold them; an inner name is read as it is."""
        one = self.made.get(name)
        if one is None and name in self.inner.tensors:
            return self.inner.read(name, start, stop)
        start, stop = bounded(meta_of(self.tensors, name, self.label), start, stop)
        assert one is not None
        pieces, at = [], 0
        for part in one.parts:
            low, high = max(start, at), min(stop, at + part.count)
            if low < high:
                pieces.append(self._piece(part, low - at, high - at))
            at += part.count
        if len(pieces) == 1:
            return pieces[0].to(one.meta.dtype.torch)
        empty = torch.empty(0, dtype=one.meta.dtype.torch)
        return torch.cat([empty, *(piece.to(one.meta.dtype.torch) for piece in pieces)])

    def _piece(self, part: Part, start: int, stop: int) -> Tensor:
        if not part.turned:
            return self.inner.read(part.name, part.start + start, part.start + stop)
        shape = self.inner.tensors[part.name].shape
        return self.inner.read(part.name).reshape(shape).T.reshape(-1)[start:stop].clone()

    def kept_dtype(self, name: str) -> DType:
        """The inner source's."""
        one = self.made.get(name)
        return kept_dtype(self.inner, name if one is None else one.parts[0].name)

    def stored(self, name: str) -> Stored:
        """As the inner tensors lie: one form where all agree, every byte of the parts."""
        one = self.made.get(name)
        if one is None:
            return stored_form(self.inner, name)
        forms = [stored_form(self.inner, part.name) for part in one.parts]
        size = sum(
            f.nbytes * p.count // max(1, self.inner.tensors[p.name].numel)
            for f, p in zip(forms, one.parts, strict=True)
        )
        return Stored(forms[0].kind, size)

    def extent(self, name: str) -> Extent | None:
        """The inner tensor's bytes where the tensor is one run of them, else None."""
        meta = meta_of(self.tensors, name, self.label)
        parts = self.made[name].parts
        extent = self.inner.extent(parts[0].name)
        if extent is None or len(parts) > 1 or parts[0].turned:
            return None
        return Extent(extent.path, extent.offset + parts[0].start * meta.dtype.size, meta.nbytes)

    def file(self, name: str) -> bytes | None:
        """A side file."""
        return self._beside.file(name)

    def files(self) -> list[str]:
        """Names of the side files."""
        return self._beside.files()

    def unfetched(self) -> list[RemoteFile]:
        """The files of the inner source of which only the header is here."""
        return unfetched(self.inner)

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """The inner source's files."""
        return weight_files(self.inner)

    def identity(self) -> dict[str, Any]:
        """The inner source's."""
        return self.inner.identity()

    def close(self) -> None:
        """Close the inner source; the one beside it is its owner's."""
        self.inner.close()
