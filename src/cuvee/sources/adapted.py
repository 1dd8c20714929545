"""A base source with some tensors replaced, added, or changed by deltas computed on the fly.

Owns the combinator; adapters and live PEFT models fill it in. Must not know names or formats of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.dtypes import FLOAT32, FLOAT64, DType
from cuvee.core.sampling import Span
from cuvee.core.tensors import Extent, Stored, TensorMeta
from cuvee.errors import Diagnostic
from cuvee.sources.source import Source, bounded, kept_dtype, meta_of, stored_form, unfetched, weight_files

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sources.low_rank import Delta
    from cuvee.sources.remote_file import RemoteFile


@dataclass(frozen=True, slots=True)
class Replacement:
    """A tensor that stands in for the base's, or beside them."""

    meta: TensorMeta
    read: Callable[[int, int], Tensor]
    extent: Callable[[], Extent | None]


@dataclass(frozen=True, slots=True)
class OverlayFacts:
    """An adapter in figures: its name, the ranks of its factors, bytes stored, tensors it changes and it replaces."""

    name: str
    ranks: tuple[int, ...]
    nbytes: int
    changed: int
    replaced: int


@dataclass(frozen=True, slots=True)
class Overlay:
    """What an adapter changes: whole tensors by name, deltas by name, side files, and what it is."""

    replaced: Mapping[str, Replacement]
    deltas: Mapping[str, Delta]
    identity: Mapping[str, Any]
    notes: tuple[Diagnostic, ...] = ()
    read_file: Callable[[str], bytes | None] = lambda name: None
    file_names: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None
    facts: OverlayFacts | None = None
    weights: Callable[[], Mapping[Path, tuple[Span, ...]]] = dict
    removed: frozenset[str] = frozenset()  # tensors of the base that are not there
    config: Mapping[str, Any] | None = None  # instead of the base's
    sizes: Mapping[str, int] | None = (
        None  # bytes of files that each delta is made of; None where that is not known
    )


class AdaptedSource:
    """base + overlay; adapted tensors are float32 (float64 where the base is)."""

    def __init__(self, base: Source, overlay: Overlay, label: str) -> None:
        self.label = label
        self.config = base.config if overlay.config is None else overlay.config
        self.notes = base.notes + overlay.notes
        self._base = base
        self._overlay = overlay
        self.tensors: Mapping[str, TensorMeta] = self._metas()

    def _metas(self) -> dict[str, TensorMeta]:
        metas = {n: m for n, m in self._base.tensors.items() if n not in self._overlay.removed}
        metas.update({name: made.meta for name, made in self._overlay.replaced.items()})
        for name in self._overlay.deltas:
            metas[name] = replace(metas[name], dtype=sum_dtype(metas[name].dtype))
        return metas

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop): the base's or the replacement's, plus the delta there."""
        meta = meta_of(self.tensors, name, self.label)
        start, stop = bounded(meta, start, stop)
        replacement = self._overlay.replaced.get(name)
        values = replacement.read(start, stop) if replacement else self._base.read(name, start, stop)
        delta = self._overlay.deltas.get(name)
        return values if delta is None else added(values, delta, start, stop, meta.dtype)

    def under(self, name: str) -> tuple[Source, tuple[Delta, ...]]:
        """The source that holds the tensor as it is stored, and what is added to it (see `added`), innermost first.

        Where the tensor is replaced, that is this source, and all it adds is in what it reads.
        """
        if name in self._overlay.replaced:
            return self, ()
        deeper = getattr(self._base, "under", None)
        source, deltas = deeper(name) if deeper else (self._base, ())
        own = self._overlay.deltas.get(name)
        return source, deltas if own is None else (*deltas, own)

    def laid(self, name: str) -> int | None:
        """Bytes of files that what is added to a tensor is made of; None where that is not known."""
        deeper = getattr(self._base, "laid", None)
        below: int | None = 0 if deeper is None or name in self._overlay.replaced else deeper(name)
        if below is None or name not in self._overlay.deltas:
            return below
        return None if self._overlay.sizes is None else below + self._overlay.sizes[name]

    def changes(self, name: str, origin: Source) -> tuple[Delta, ...] | None:
        """The deltas that lead from the tensor of `origin` to this one's; None where it is not what this lies on, or
        the tensor is replaced.
        """
        if name in self._overlay.replaced or name not in self._base.tensors:
            return None
        below: tuple[Delta, ...] | None = ()
        if not _same_bytes(self._base, origin, name):
            deeper = getattr(self._base, "changes", None)
            below = deeper(name, origin) if deeper else None
        own = self._overlay.deltas.get(name)
        return below if below is None or own is None else (*below, own)

    def kept_dtype(self, name: str) -> DType:
        """The base's type: an adapted tensor is float32 only on its way."""
        replaced = name in self._overlay.replaced
        return self.tensors[name].dtype if replaced else kept_dtype(self._base, name)

    def stored(self, name: str) -> Stored:
        """The base's form, or the replacement's; what a delta adds counts with the adapter (`overlays`)."""
        made = self._overlay.replaced.get(name)
        return Stored(made.meta.dtype.name, made.meta.nbytes) if made else stored_form(self._base, name)

    @property
    def overlays(self) -> tuple[OverlayFacts, ...]:
        """What lies over the base, innermost first."""
        below: tuple[OverlayFacts, ...] = getattr(self._base, "overlays", ())
        return below if self._overlay.facts is None else (*below, self._overlay.facts)

    def extent(self, name: str) -> Extent | None:
        """The base's bytes, or the replacement's; None for adapted tensors."""
        meta_of(self.tensors, name, self.label)
        if name in self._overlay.deltas:
            return None
        replacement = self._overlay.replaced.get(name)
        return replacement.extent() if replacement else self._base.extent(name)

    def file(self, name: str) -> bytes | None:
        """The overlay's side file where it has one, else the base's."""
        if name in self._overlay.file_names:
            return self._overlay.read_file(name)
        return self._base.file(name)

    def files(self) -> list[str]:
        """Side files of base and overlay."""
        return sorted({*self._base.files(), *self._overlay.file_names})

    def unfetched(self) -> list[RemoteFile]:
        """The files of the base of which only the header is here."""
        return unfetched(self._base)

    def weight_files(self) -> Mapping[Path, tuple[Span, ...]]:
        """The base's files and the adapter's."""
        return {**weight_files(self._base), **self._overlay.weights()}

    def identity(self) -> dict[str, Any]:
        """The base's identity and the overlay's."""
        return {
            "kind": "adapted",
            "name": self.label_of_identity(),
            "revision": None,
            "files": [],
            "base": self._base.identity(),
            "adapter": dict(self._overlay.identity),
        }

    def label_of_identity(self) -> str:
        """`base + adapter`, by their names, not their paths."""
        return f"{self._base.identity()['name']} + {self._overlay.identity['name']}"

    def close(self) -> None:
        """Close both."""
        self._base.close()
        self._overlay.close()


def _same_bytes(one: Source, other: Source, name: str) -> bool:
    """Whether a tensor of two sources is the same bytes on disk; identities know headers, which may be alike."""
    if one is other:
        return True
    ours = one.extent(name)
    theirs = other.extent(name) if name in other.tensors else None
    if ours is None or theirs is None or one.tensors[name] != other.tensors[name]:
        return False
    same_place = (ours.offset, ours.nbytes) == (theirs.offset, theirs.nbytes)
    return same_place and ours.path.resolve() == theirs.path.resolve()


def added(values: Tensor, delta: Delta, start: int, stop: int, dtype: DType) -> Tensor:
    """Elements [start, stop) of a tensor whose stored ones are `values`, with a delta."""
    kind = dtype.torch
    return delta.slice(start, stop, kind).add_(values.to(kind))


def sum_dtype(base: DType) -> DType:
    """The dtype a delta is added in: float64 for a float64 base, else float32."""
    return FLOAT64 if base is FLOAT64 else FLOAT32
