"""An expert of which some blocks are not read: the base's stand in for them.

Owns nothing but the choice between the two. Blocks that equal the base's change no byte; which others may be left out
is decided in `plan.budget`.
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
from cuvee.formats.bytes_file import ByteFile
from cuvee.sources.catalogue import step_of
from cuvee.sources.source import Source, bounded, kept_dtype, meta_of, stored_form, unfetched, weight_files

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sources.remote_file import RemoteFile


class SparedSource:
    """`expert`, but for the blocks in `spared` (by tensor), which are read from `base`."""

    def __init__(
        self, expert: Source, base: Source, spared: Mapping[str, frozenset[int]], facts: Mapping[str, Any]
    ) -> None:
        self.label = expert.label
        self.config = expert.config
        self.tensors: Mapping[str, TensorMeta] = expert.tensors
        self._expert = expert
        self._base = base
        self._spared = spared
        self._facts = dict(facts)

    @property
    def notes(self) -> tuple[Diagnostic, ...]:
        return self._expert.notes

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop), run by run from the expert and the base."""
        meta = meta_of(self.tensors, name, self.label)
        start, stop = bounded(meta, start, stop)
        left_out = self._spared.get(name, frozenset())
        if not left_out or start == stop:
            return self._expert.read(name, start, stop)
        step = step_of(meta.dtype.size)
        runs: list[list[int]] = []  # from the base or not, first element, last
        for block in range(start // step, -(-stop // step)):
            own = int(block in left_out)
            if runs and runs[-1][0] == own:
                runs[-1][2] = min(stop, (block + 1) * step)
            else:
                runs.append([own, max(start, block * step), min(stop, (block + 1) * step)])
        parts = [self._base.read(name, a, b) if own else self._exactly(name, a, b) for own, a, b in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

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
        """The expert's bytes or the base's, where the whole tensor is of one of them."""
        meta = meta_of(self.tensors, name, self.label)
        left_out = self._spared.get(name, frozenset())
        if not left_out:
            return self._expert.extent(name)
        whole = len(left_out) == -(-meta.numel // step_of(meta.dtype.size))
        return self._base.extent(name) if whole else None

    def kept_dtype(self, name: str) -> DType:
        """The expert's."""
        return kept_dtype(self._expert, name)

    def stored(self, name: str) -> Stored:
        """The expert's."""
        return stored_form(self._expert, name)

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
        """The expert's identity, and what of it is not read."""
        return {**self._expert.identity(), "spared": self._facts}

    def close(self) -> None:
        """Close the expert; the base is closed by whoever opened it."""
        self._expert.close()
