"""The way out of a space, for chains that rescale within it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cuvee.methods.contract import stage

if TYPE_CHECKING:
    from torch import Tensor


@stage("leave", role="leave", access="tensor")
def leave(merged: Tensor) -> Tensor:
    """Leave the space here, so that rescale stages before it still work on coordinates.

    A chain without it leaves its space right behind the combine stage.
    """
    return merged
