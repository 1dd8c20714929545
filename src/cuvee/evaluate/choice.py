"""What a method decided on, as a value: between choosing and scoring nothing else of the method is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cuvee.evaluate.ledger import Ledger

if TYPE_CHECKING:
    from cuvee.evaluate.track import Weights


@dataclass(frozen=True, slots=True)
class Choice:
    """The weights a method chose, its settings, what it spent to choose, and what it tried on the way."""

    weights: Weights
    settings: Mapping[str, Any] = field(default_factory=dict)
    spent: Ledger = field(default_factory=Ledger)
    log: Sequence[tuple[Mapping[str, Any], float]] = ()
