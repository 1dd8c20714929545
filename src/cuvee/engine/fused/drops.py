"""Dropping at random that restores a norm: sums of magnitudes before and after, and the bits that both passes share.

Which entries are kept is drawn once: the pass that sums magnitudes leaves a bit for each element, the pass that
combines looks there. Owns where such bits are kept and when they are worth their memory. Must not import torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuvee.core.dtypes import FLOAT32
from cuvee.engine.fused.builder import Builder
from cuvee.engine.fused.crowd import changed, dropping
from cuvee.engine.fused.feed import Arena, padded
from cuvee.engine.kernels.operations import TILE, Code, Norms
from cuvee.engine.streams import uniforms_of
from cuvee.plan.nodes import Apply

# Bits for each element that the pass for a figure leaves to those after it: what is kept; and what may be (`sifted`).
_BITS = {("drop", "factor"): 1, ("sce", "cuts"): 2}


@dataclass(frozen=True, slots=True)
class Draws:
    """The stages over one tensor whose bits are kept from one pass to the next, and the bytes of each."""

    nodes: Sequence[tuple[Apply, int]]

    @property
    def room(self) -> int:
        """Bytes of arena."""
        return sum(padded(nbytes) for _, nbytes in self.nodes)

    def place(self, known: Mapping[int, dict[str, Any]], arena: Arena) -> None:
        """Add the memory's addresses to the figures `known`."""
        for node, nbytes in self.nodes:
            known[id(node)]["room"] = arena.take(nbytes)[0]


def draws(pending: Sequence[tuple[Apply, str]], total: int, most: int) -> Draws:
    """Of stages and the figures they lack, over `total` elements; none where bits would take more than `most` bytes."""
    asked = ((node, _BITS.get((node.stage, figure), 0)) for node, figure in pending)
    found = Draws([(node, -(-total // TILE) * TILE // 8 * bits) for node, bits in asked if bits])
    return found if found.room <= most else Draws(())


def norms(builder: Builder, node: Apply, before: Any, after: Any) -> bool:
    """Whether magnitudes are summed in one operation, of all into `before` and of what is kept into `after`."""
    if node.stage != "drop":
        return False
    member, (below, _) = changed(builder, node.inputs[0], uses=2), dropping(dict(node.values))
    if member is None or member.base is None or below >= 1 << 32:
        return False
    head, base, own = Norms(), builder.use(member.base), builder.new()
    at = ctypes.addressof(head)
    head.input, head.wide = builder.place(member.read), int(member.read.meta.dtype == FLOAT32)
    head.base, head.own = base.register, own.register
    head.key, head.below = uniforms_of(node).key, below  # type: ignore[attr-defined]
    head.before, head.after = ctypes.addressof(before) - at, ctypes.addressof(after) - at
    figures: Any = builder.known.get(id(node), {})
    if "room" in figures:
        figures["bits"] = figures["room"]  # from now on they are there
        head.drawn = figures["bits"] - at
    builder.kept += [head, before, after]
    builder.emit(Code.NORMS, None, data=at)
    builder.release(base)
    builder.release(own)
    return True
