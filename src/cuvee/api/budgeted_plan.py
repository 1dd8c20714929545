"""A plan that leaves blocks out, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cuvee.api.sparing import Prints
from cuvee.engine.tables import Tables
from cuvee.plan.budget import Choice
from cuvee.plan.plan import OutputTensor, Plan
from cuvee.plan.sharing import StandIns


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [start, stop) of a block of an output tensor that is a weighted sum, the experts that are `gone` there,
    and the chance to draw it.
    """

    tensor: OutputTensor
    number: int
    start: int
    stop: int
    gone: tuple[str, ...]
    chance: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What is measured, and the bytes of the experts that are read for it (at most)."""

    pieces: tuple[Piece, ...] = ()
    tensors: tuple[OutputTensor, ...] = ()
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Budgeted:
    """A plan that leaves blocks out, what was chosen, the plan that reads everything, and thresholds that are known.

    `sample` is what the error is measured on afterwards, `stand_ins` every block read from another source, `facts`
    what is told of the sources of which something is lost.

    `prints` are the sources' fingerprints from before their catalogue was asked.
    """

    plan: Plan
    choice: Choice
    whole: Plan
    tables: Tables | None = None
    prints: Prints = ()
    sample: Sample = Sample()
    stand_ins: StandIns = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
