"""The order in which a run takes its tensors: large ones first, so that no thread ends alone, others as on disk.

Changes no byte of the output. Must not read any weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cuvee.plan.nodes import Read, walk
from cuvee.plan.plan import OutputTensor
from cuvee.sources.source import Source

_SHARES = 16  # a tensor is large when it is more than this part of a thread's share of the work


def scheduled(
    tensors: Iterable[OutputTensor], sources: Mapping[str, Source], threads: int
) -> list[OutputTensor]:
    """The tensors in the order in which they should be begun."""
    found = list(tensors)
    total = sum(tensor.meta.nbytes for tensor in found)
    large = total / (max(1, threads) * _SHARES)

    def key(place: int) -> tuple[int, str, int, int]:
        nbytes = found[place].meta.nbytes
        if threads > 1 and nbytes > large:
            return (-nbytes, "", 0, place)
        return (0, *_position(found[place], sources), place)

    return [found[place] for place in sorted(range(len(found)), key=key)]


def _position(tensor: OutputTensor, sources: Mapping[str, Source]) -> tuple[str, int]:
    """File and offset of the tensor's first input that lies plainly in a file."""
    for node in walk(tensor.node):
        if isinstance(node, Read):
            extent = sources[node.source].extent(node.meta.name)
            if extent is not None:
                return str(extent.path), extent.offset
    return "", 0
