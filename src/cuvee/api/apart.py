"""Tensors that are filled must lie in memory of their own: held models stay as they are, and no two get one value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from cuvee.core.names import printable
from cuvee.errors import UsageError
from cuvee.plan.cost import inputs_of
from cuvee.plan.plan import Plan
from cuvee.sources.source import held_at

if TYPE_CHECKING:
    from torch import Tensor

Run: TypeAlias = tuple[int, int, str]  # the first byte, the one behind the last, what lies there


def refuse_shared(plan: Plan, filled: Mapping[str, Tensor]) -> None:
    """UsageError where a tensor to be filled lies in the memory of an input of the plan, or of another one."""
    held = [(start, stop, name, False) for start, stop, name in _inputs(plan)]
    own = [(start, stop, name, True) for start, stop, name in _runs(filled.items())]
    far: dict[bool, Run] = {}  # by whether it is filled, the run that reaches farthest so far
    for start, stop, name, is_filled in sorted(held + own):
        for other, (_, end, there) in far.items():
            if start < end and (is_filled or other):
                one = name if is_filled else there
                what = "another one" if is_filled and other else f"the model {there if is_filled else name}"
                raise UsageError(
                    "CV-U220",
                    f"`{printable(one)}`, which the merge is put into, lies in the memory of {what}",
                    hint="give tensors of their own, or a copy of the module: held models stay as they are",
                )
        if is_filled not in far or stop > far[is_filled][1]:
            far[is_filled] = start, stop, name


def _inputs(plan: Plan) -> Iterator[Run]:
    for key, name in inputs_of(plan.tensors):
        place = held_at(plan.sources[key].source, name)
        if place is not None and place.nbytes:
            yield place.address, place.address + place.nbytes, f"`{printable(key)}` (`{printable(name)}`)"


def _runs(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[Run]:
    for name, tensor in tensors:
        if tensor.device.type == "cpu" and tensor.numel():
            yield *span(tensor), name


def span(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor and the one behind its last; of a view with gaps all that it spans."""
    steps = ((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (sum(steps) + 1) * tensor.element_size()
