"""Models by name that are made when one is asked for: to know what references a track has must not train them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Deferred(Mapping[str, "Weights"]):
    """A mapping of names to weights; each value is made by its function every time it is looked up."""

    makers: Mapping[str, Callable[[], Weights]]

    def __getitem__(self, name: str) -> Weights:
        return self.makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)
