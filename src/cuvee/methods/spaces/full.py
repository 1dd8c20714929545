"""The space of the tensors themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cuvee.methods.contract import Coordinates, stage

if TYPE_CHECKING:
    from torch import Tensor


def _leave(merged: Tensor, frame: Any) -> Tensor:
    return merged


@stage("full", role="space", access="tensor", upcast=True, leave=_leave)
def full(deltas: list[Tensor]) -> Coordinates:
    """The task vectors as they are: merging in this space is merging without one."""
    return Coordinates(tuple(deltas), None)
