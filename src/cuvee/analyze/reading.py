"""Base and experts side by side, tensor by tensor: what can be compared, where it stands, its elements in blocks.

Owns the matching of names and the stream of task vectors. Memory is bounded by `BUDGET`, whatever the model: a tensor
that fits is read once, a larger one again for each pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cuvee.api.checkpoint import Checkpoint
from cuvee.core.lazy import torch
from cuvee.core.random import Stream as RandomStream
from cuvee.core.random import key_of
from cuvee.errors import EvaluationError
from cuvee.methods.contract import Block, Uniforms

if TYPE_CHECKING:
    from torch import Tensor

BUDGET = 128 << 20  # bytes of float32 elements held at once
LARGEST = 1 << 25  # elements of a block


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a tensor stands: its role, and its layer as people write it (`3`, `encoder.3`, `before`, `after`)."""

    name: str
    shape: tuple[int, ...]
    role: str
    layer: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A tensor that was not compared, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Matched:
    """What can be compared, in the order of the layers, what cannot, and the share of parameters that can."""

    spots: tuple[Spot, ...]
    skipped: tuple[Skipped, ...]
    coverage: tuple[float, ...]  # of the base's parameters, for each expert


def match(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> Matched:
    """The float tensors that all models have in one shape; EvaluationError CV-B230 when there is none."""
    spots, skipped = [], []
    shared, total = dict.fromkeys(experts, 0), 0
    for name, meta in base.source.tensors.items():
        if not meta.dtype.is_float or not meta.numel:
            continue
        total += meta.numel
        wrong = {e: w for e, c in experts.items() if (w := _mismatch(c, name, meta.shape)) is not None}
        for expert in experts.keys() - wrong.keys():
            shared[expert] += meta.numel
        if wrong:
            skipped.append(Skipped(name, "; ".join(f"{e} {w}" for e, w in wrong.items())))
        else:
            spots.append(_spot(base, name, meta.shape))
    if not spots:
        raise EvaluationError(
            "CV-B230",
            f"no float tensor of `{base.source.label}` is in every expert with the same shape, so there is nothing "
            "to compare: these models have no common base",
            hint="`cuvee diff BASE EXPERT --structure` shows what differs",
        )
    coverage = tuple(n / max(1, total) for n in shared.values())
    return Matched(tuple(sorted(spots, key=_order)), tuple(skipped), coverage)


def _mismatch(expert: Checkpoint, name: str, shape: tuple[int, ...]) -> str | None:
    found = expert.source.tensors.get(name)
    if found is None:
        return "lacks it"
    if found.shape != shape:
        return f"has shape {'×'.join(map(str, found.shape))}"
    return None if found.dtype.is_float else f"has {found.dtype.name}"


def _spot(base: Checkpoint, name: str, shape: tuple[int, ...]) -> Spot:
    place = base.family.place(name)
    module = "" if place.module in (base.family.main, "default") else f"{place.module}."
    layer = place.position if place.layer is None else str(place.layer)
    return Spot(name, shape, place.role, f"{module}{layer}")


def _order(spot: Spot) -> tuple[str, int, int]:
    module, _, layer = spot.layer.rpartition(".")
    position = {"before": 0, "after": 2}.get(layer, 1)
    return module, position, int(layer) if position == 1 and layer.isdecimal() else 0


class Deltas:
    """One tensor's base and task vectors as a `methods.contract.Stream`: inputs are the task vectors, float32.

    `whole` is the base and all task vectors (n+1 × elements) where they fit `BUDGET`.
    """

    def __init__(self, spot: Spot, base: Checkpoint, experts: Sequence[Checkpoint]) -> None:
        self.spot, self.base, self.experts = spot, base, experts
        self.size = base.source.tensors[spot.name].numel
        self._kept: Tensor | None = None
        self.fits = self.size <= min(LARGEST, BUDGET // (4 * (len(experts) + 1)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of the tensor."""
        return (self.size,)

    @property
    def inputs(self) -> int:
        """Number of experts."""
        return len(self.experts)

    def runs(self) -> Iterator[tuple[int, Tensor]]:
        """One pass: where each run starts, and its base and task vectors (n+1 × elements)."""
        if self.fits:
            if self._kept is None:
                self._kept = self._read(0, self.size)
            yield 0, self._kept
            return
        step = max(1024, min(LARGEST, BUDGET // (4 * (len(self.experts) + 1))) // 1024 * 1024)
        for start in range(0, self.size, step):
            yield start, self._read(start, min(start + step, self.size))

    def blocks(self) -> Iterator[Block]:
        """One pass over the task vectors."""
        for start, rows in self.runs():
            yield Block(list(rows[1:]), start, self.spot.shape)

    def uniforms(self, number: int) -> Uniforms:
        """A stream of the tensor's own; nothing here is random, the protocol wants one."""
        return RandomStream(key_of(0, "analyze", "", self.spot.name))

    def _read(self, start: int, stop: int) -> Tensor:
        rows = [c.source.read(self.spot.name, start, stop).float() for c in (self.base, *self.experts)]
        return torch.stack([rows[0], *(row - rows[0] for row in rows[1:])])

    def single(self, number: int) -> Deltas:
        """The base and one expert alone: what is not held already is read for those two only."""
        alone = Deltas(self.spot, self.base, [self.experts[number]])
        if self.fits:
            ((_, rows),) = self.runs()
            alone._kept = rows[[0, 1 + number]]
        return alone

    def matrix(self, number: int) -> Tensor:
        """One task vector as a matrix: first axis by the rest."""
        found = torch.cat([rows[1 + number] for _, rows in self.runs()])
        return found.reshape(self.spot.shape[0], -1)
