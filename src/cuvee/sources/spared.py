"""A source of which some blocks are not read: other sources stand in for them.

Where those hold the same bytes nothing changes; which blocks may be left out otherwise is decided in `plan.budget`.
Owns nothing but the way from a run of elements to the sources that it is read from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.dtypes import DType
from cuvee.core.lazy import torch
from cuvee.core.sampling import Span
from cuvee.core.tensors import Decoded, Extent, Held, Pieces, Stored, TensorMeta
from cuvee.errors import Diagnostic
from cuvee.formats.bytes_file import ByteFile
from cuvee.sources.catalogue import step_of
from cuvee.sources.source import (
    Source,
    bounded,
    decoded_of,
    held_at,
    kept_dtype,
    meta_of,
    stored_form,
    unfetched,
    weight_files,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sources.remote_file import RemoteFile

StandIns = Mapping[str, Mapping[int, Source]]  # by tensor and block


class SparedSource:
    """`expert`, but for some blocks, which are read from the sources in `spared` under the same name.

    `facts` tell of a loss in the identity; None where the stand-ins hold the same bytes.
    """

    def __init__(self, expert: Source, spared: StandIns, facts: Mapping[str, Any] | None) -> None:
        self.label = expert.label
        self.config = expert.config
        self.tensors: Mapping[str, TensorMeta] = expert.tensors
        self._expert = expert
        self._spared = spared
        self._facts = facts

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        return self._expert.notes

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop), run by run from the expert and from what stands in.

        Where something is lost, whole tensors are not read ahead of, either: what lies behind one may be left out.
        """
        meta = meta_of(self.tensors, name, self.label)
        start, stop = bounded(meta, start, stop)
        if start == stop or not (self._spared.get(name) or self._facts):
            return self._expert.read(name, start, stop)
        parts = [
            self._exactly(name, a, b) if source is None else source.read(name, a, b)
            for source, a, b in self._runs(name, start, stop)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _runs(self, name: str, start: int, stop: int) -> Iterator[tuple[Source | None, int, int]]:
        """Runs of elements with the source that stands in for each; None for the expert itself."""
        step, left_out = step_of(self.tensors[name].dtype.size), self._spared.get(name, {})
        begin = start
        for block in range(start // step, -(-stop // step)):
            end = min(stop, (block + 1) * step)
            if end == stop or left_out.get(block) is not left_out.get(block + 1):
                yield left_out.get(block), begin, end
                begin = end

    def _exactly(self, name: str, start: int, stop: int) -> Tensor:
        """Elements of the expert, without reading ahead into what is left out."""
        meta, extent = self.tensors[name], self._expert.extent(name)
        if extent is None or extent.nbytes != meta.nbytes:
            return self._expert.read(name, start, stop)
        file = ByteFile(extent.path)
        try:
            file.read_exactly()
            return file.tensor_at(extent.offset + start * meta.dtype.size, stop - start, meta.dtype, name)
        finally:
            file.close()

    def extent(self, name: str) -> Extent | None:
        """Where the tensor lies, when all of it is of one source."""
        meta = meta_of(self.tensors, name, self.label)
        if not self._spared.get(name):
            return self._expert.extent(name)
        runs = list(self._runs(name, 0, meta.numel))
        return (runs[0][0] or self._expert).extent(name) if len(runs) == 1 else None

    def pieces(self, name: str) -> Pieces | None:
        """Where the tensor lies, when it is of several sources that all lie plainly in files."""
        meta = meta_of(self.tensors, name, self.label)
        if not self._spared.get(name):
            return None
        parts, own, size = [], [], meta.dtype.size
        for source, start, stop in self._runs(name, 0, meta.numel):
            whole = (source or self._expert).extent(name)
            if whole is None or whole.nbytes != meta.nbytes:
                return None
            parts.append(Extent(whole.path, whole.offset + start * size, (stop - start) * size))
            own.append(source is None)
        return Pieces(tuple(parts), tuple(own))

    def decoded(self, name: str) -> Decoded | None:
        """How the expert decodes a tensor of which nothing is left out."""
        return None if self._spared.get(name) else decoded_of(self._expert, name)

    def held(self, name: str) -> Held | None:
        """Where the expert holds a tensor of which nothing is left out."""
        return None if self._spared.get(name) else held_at(self._expert, name)

    def kept_dtype(self, name: str) -> DType:
        """The expert's."""
        return kept_dtype(self._expert, name)

    def stored(self, name: str) -> Stored:
        """The expert's form, and the bytes that are read of it."""
        form = stored_form(self._expert, name)
        if not self._spared.get(name):
            return form
        meta = self.tensors[name]
        read = sum(b - a for source, a, b in self._runs(name, 0, meta.numel) if source is None)
        return Stored(form.kind, form.nbytes * read // max(1, meta.numel))

    def file(self, name: str) -> bytes | None:
        """A side file of the expert."""
        return self._expert.file(name)

    def files(self) -> list[str]:
        """Names of side files."""
        return self._expert.files()

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """The expert's files."""
        return weight_files(self._expert)

    def unfetched(self) -> list[RemoteFile]:
        """Files of which only the header is here."""
        return unfetched(self._expert)

    def identity(self) -> dict[str, Any]:
        """The expert's identity, and what is lost of it."""
        return {**self._expert.identity(), **({} if self._facts is None else {"spared": dict(self._facts)})}

    def close(self) -> None:
        """Close the expert; what stands in is closed by whoever opened it."""
        self._expert.close()
