"""A source whose tensors were read once and stay in memory; all else is asked of the source itself.

Must not know what kind of source that is. Tensors that the source can describe as changes of another (adapters) are
not held: what is merged then are those changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cuvee.core.tensors import Extent, Held
from cuvee.sources.source import Source, bounded, held_at, meta_of

if TYPE_CHECKING:
    from torch import Tensor


class HeldSource:
    """`source` with the named tensors in memory, where they are not there already."""

    def __init__(self, source: Source, names: Iterable[str]) -> None:
        self.source = source
        places = {name: held_at(source, name) for name in names}
        wanted = [name for name, place in places.items() if place is None]
        plain = not hasattr(source, "changes")
        self._held: dict[str, Tensor] = {
            name: source.read(name).contiguous()
            for name in wanted
            if plain or source.extent(name) is not None
        }
        self._places = {name: place for name, place in places.items() if place is not None}
        for name, tensor in self._held.items():
            self._places[name] = Held(tensor.data_ptr(), tensor.numel() * tensor.element_size())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements [start, stop), 1-D; a view of the tensor where it is held."""
        tensor = self._held.get(name)
        if tensor is None:
            return self.source.read(name, start, stop)
        start, stop = bounded(meta_of(self.source.tensors, name, self.source.label), start, stop)
        return tensor[start:stop]

    def extent(self, name: str) -> Extent | None:
        """Where the tensor lies in a file; None where it is held."""
        return None if name in self._places else self.source.extent(name)

    def held(self, name: str) -> Held | None:
        """Where the tensor lies in memory."""
        return self._places.get(name) or held_at(self.source, name)

    def close(self) -> None:
        """Let go of the tensors, and close the source."""
        self._held, self._places = {}, {}
        self.source.close()
