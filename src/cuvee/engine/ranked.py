"""Thresholds from magnitudes that a catalogue keeps by their rank, where a tensor has too many to be counted.

Owns which of them answer for which stages: those of a tensor for one, those of a model for stages over exactly its
tensors. Must not know where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cuvee.core.dtypes import FLOAT32, DType
from cuvee.engine.fused.chosen import Chosen
from cuvee.engine.fused.figures import kept_counts, ties_of
from cuvee.engine.fused.selection import Rank, chosen_of
from cuvee.methods.summaries import Ties
from cuvee.plan.nodes import Apply, Read

if TYPE_CHECKING:
    from cuvee.sources.catalogue_ranks import Ranks

Taken = tuple[Read, Read, DType]  # expert, base and the type of their difference


def ranks_for(
    taken: Sequence[Taken | None], wholes: Mapping[tuple[str, str], Ranks]
) -> tuple[Ranks, list[str]] | None:
    """The ranks of a model that stages share a threshold over, and the names of their tensors in their order.

    None where these are not all that was ranked, each once, as differences in float32.
    """
    pairs = {(one[0].source, one[1].source) for one in taken if one is not None}
    ranks = wholes.get(pairs.pop()) if len(pairs) == 1 else None
    names = [one[0].meta.name for one in taken if one is not None and one[2] == FLOAT32]
    if ranks is None or ranks.tied is None or len(names) != len(taken):
        return None
    return (ranks, names) if sorted(names) == sorted(ranks.tied) else None


def chosen_by(nodes: Sequence[Apply], ranks: Ranks, names: Sequence[str]) -> list[list[Chosen]] | None:
    """What each application keeps, as a pass finds it; None where a threshold has a rank that is not known.

    `names` are those of the tensors where there are several.
    """
    sizes = [math.prod(node.shape) for node in nodes]
    total, ties = sum(sizes), ties_of(nodes[0])
    found: list[list[Chosen]] = [[] for _ in nodes]
    for count in (min(max(count, 0), total) for count in kept_counts(nodes[0], total)):
        rank = None
        if 0 < count < total + (ties == "none"):
            known = ranks.at(total - count)
            if known is None:
                return None
            tied = tuple(ranks.equal_to(known[0], name) for name in names)
            rank = Rank(*known, tied or None)
        for own, one in zip(found, _ended(count, rank, sizes, ties), strict=True):
            own.append(one)
    return found


def _ended(count: int, rank: Rank | None, sizes: Sequence[int], ties: Ties) -> list[Chosen]:
    """What `chosen_of` returns, which asks for nothing where all is known."""
    try:
        next(chosen_of(count, rank, sizes, ties))
    except StopIteration as end:
        done: list[Chosen] = end.value
        return done
    raise LookupError(count)
