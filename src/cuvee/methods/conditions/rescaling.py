"""The l1 rescaling that every thinning stage offers; the formula stands once. Must not know any stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cuvee.methods.contract import Block, Stream
from cuvee.methods.summaries import totals

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = 1e-7  # norms below this are left alone (MergeKit's threshold)


def l1_factor(stream: Stream, thinned: Callable[[Block], Tensor]) -> float:
    """Σ|x| / Σ|thinned x| over the stream, sums in float64; 1 when either is below 1e-7.

    A thinned task vector times this has the l1 norm it had before.
    """
    norms = totals(stream, lambda block: [block.tensors[0].abs(), thinned(block).abs()])
    if not norms or min(norms) < _SMALLEST:
        return 1.0
    before, after = norms
    return before / after
