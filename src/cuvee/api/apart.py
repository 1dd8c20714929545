"""Which tensors share memory: what is filled must not lie in that of a held model, nor in that of another one.

Compares the bytes that tensors span; whether views with gaps really share an element is for the caller to find out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from cuvee.core.names import printable
from cuvee.errors import UsageError
from cuvee.plan.cost import inputs_of
from cuvee.plan.plan import Plan
from cuvee.sources.source import held_at

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor and the one behind its last; of a view with gaps all that it spans."""
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (sum(steps) + 1) * tensor.element_size()


def overlapping(spans: Iterable[tuple[int, int, T]]) -> Iterator[tuple[T, T]]:
    """Every two whose spans (first byte, the one behind the last, whose) overlap, the one that begins first before."""
    reaching: list[tuple[int, T]] = []
    for start, stop, what in sorted(spans, key=lambda one: one[:2]):
        reaching = [one for one in reaching if one[0] > start]
        yield from ((other, what) for _, other in reaching)
        reaching.append((stop, what))


def refuse_shared(plan: Plan, filled: Mapping[str, Tensor], *, each: bool = True) -> None:
    """UsageError CV-U220 where a tensor to be filled lies in the memory of an input of the plan, or (`each`) of another
    one.
    """
    own = [
        (*span(t), (f"`{printable(name)}`", True))
        for name, t in filled.items()
        if t.device.type == "cpu" and t.numel()
    ]
    for one, other in overlapping([*own, *_inputs(plan)]):
        inside, around = (one, other) if one[1] else (other, one)
        if inside[1] and (each or not around[1]):
            raise UsageError(
                "CV-U220",
                f"{inside[0]}, which the merge is put into, lies in the memory of {around[0]}",
                hint="give tensors of their own, or a copy of the module: held models stay as they are",
            )


def _inputs(plan: Plan) -> Iterator[tuple[int, int, tuple[str, bool]]]:
    for key, name in inputs_of(plan.tensors):
        place = held_at(plan.sources[key].source, name)
        if place is not None and place.nbytes:
            what = f"`{printable(name)}` of the model `{printable(key)}`"
            yield place.address, place.address + place.nbytes, (what, False)
